"""What a run keeps in each GPU's and each host's memory, and the error when it does not fit."""

from __future__ import annotations

from collections.abc import Callable

from simulator.errors import InputError
from simulator.model import sizes
from simulator.model.speculative import queries
from simulator.spec.schema import Gpu, Workload

GIB = 2.0**30
RESERVED = (
    0.05  # share of HBM for the CUDA context, NCCL buffers and fragmentation (our assumption)
)


def gpu_bytes(workload: Workload, resident_experts: float, home_experts: float) -> dict[str, float]:
    """Bytes on one GPU by part (attention data-parallel: every GPU holds all dense weights).

    `resident_experts`: expert slots per MoE layer; `home_experts`: experts per layer whose only
    copy lies on this GPU for its peers to fetch (0 if the copies are in host memory).
    """
    model = workload.model
    moe = model.moe
    traffic = workload.traffic
    sparse = model.layers - moe.first_dense_layers
    ffns = moe.first_dense_layers * sizes.ffn_parameters(model, model.dense_intermediate)
    ffns += sparse * moe.shared_experts * sizes.ffn_parameters(model, moe.shared_intermediate)
    dense = (
        model.layers * sizes.attention_parameters(model) * sizes.weight_bytes(model, "attention")
        + ffns * sizes.weight_bytes(model, "dense")
        + 2 * model.vocab * model.hidden * sizes.weight_bytes(model, "lm_head")
        + sparse * sizes.gate_parameters(model) * sizes.weight_bytes(model, "gate")
    )
    if traffic.phase == "decode":
        sequences = -(-traffic.tokens_per_gpu // queries(traffic))
        cached = sequences * sizes.kept_tokens(model, traffic.context)
    else:
        cached = sizes.kept_tokens(model, traffic.context + traffic.tokens_per_gpu)
    widest = max(3 * moe.intermediate * moe.top_k, 3 * model.dense_intermediate, 4 * model.hidden)
    return {
        "dense weights": dense,
        "experts": (resident_experts + home_experts) * sparse * sizes.expert_bytes(model),
        "KV cache": cached * sizes.kv_bytes_per_token_layer(model),
        "activations": traffic.tokens_per_gpu * (2 * model.hidden + widest) * 2.0,
    }


def check_gpu(
    workload: Workload,
    gpu: Gpu,
    parts: dict[str, float],
    gpu_name: str,
    advice: Callable[[], str] = str,
) -> None:
    """Raise InputError that says by how much and where, and what `advice` says, if `parts` (bytes)
    do not fit the GPU.
    """
    room = gpu.hbm_capacity_bytes * (1.0 - RESERVED)
    total = sum(parts.values())
    if total <= room:
        return
    listed = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items())
    raise InputError(
        f"{workload.name} does not fit: {gpu_name} ({gpu.name}) needs {total / GIB:.1f} GiB "
        f"({listed}) and has {room / GIB:.1f} GiB after {RESERVED:.0%} reserve: "
        f"{(total - room) / GIB:.1f} GiB too much; {advice()}"
    )


def check_host(
    workload: Workload, host: str, needed: float, capacity: float, what: str = "experts"
) -> None:
    """Raise InputError if `what` is kept in a host's memory (bytes) exceeds its capacity."""
    if needed > capacity:
        raise InputError(
            f"{workload.name} does not fit: {host} must hold {needed / GIB:.0f} GiB of {what} and "
            f"has {capacity / GIB:.0f} GiB; use more hosts or keep more {what} on the GPUs"
        )
