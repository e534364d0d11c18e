"""What a plan keeps in each GPU's memory, what lies in host memory instead, and whether that fits.

With `parallel.offload` the weights of some layers (or their routed experts alone) lie in host
memory. They come to the GPU ahead of their use, each layer's to one of BUFFERS buffers in turn, so
that one is filled while the other is read. The layers are spread evenly over those of a GPU, its
first ones being resident as far as any are: what is computed in between hides what comes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

from simulator.model import sizes
from simulator.model.footprint import RESERVED, check_gpu
from simulator.model.sizes import ACTIVATION_BYTES
from simulator.model.speculative import queries
from simulator.spec.schema import Gpu, Model, Workload

if TYPE_CHECKING:
    from simulator.model.plan import Plan, Stage

BUFFERS = 2  # for streamed weights, as large as the largest layer of them

LARGEST_ALONE = ("activations", "fetched")
"""Parts of which a GPU with several stages needs the largest alone: it works on one at a time."""


def stage_bytes(plan: Plan, number: int, workload: Workload) -> dict[str, float]:
    """Bytes on a GPU of a stage by part; KV cache and activations of an even share of the tokens.

    buffers: what comes from the stage before and goes to the next (twice, so that one is filled
    while the other is read), and what dispatch and combine bring on average. fetched: buffers for
    weights from host memory, with `parallel.offload`.
    """
    stage = plan.stages[number]
    of, model, traffic = stage.degrees, stage.model, workload.traffic
    moe = model.moe
    streamed = plan.streamed[number] if plan.offload else ()
    kept = stage.layers
    if plan.offload == "layers":
        kept = tuple(layer for layer in kept if layer not in streamed)
    sparse = [layer for layer in stage.layers if _is_sparse(model, layer)]
    dense = _dense_bytes(model, kept)
    dense += (
        (stage.first + stage.last)
        * model.vocab
        * model.hidden
        * sizes.weight_bytes(model, "lm_head")
    )
    resident = sum(layer not in streamed for layer in sparse)
    tokens = traffic.tokens_per_gpu * plan.gpus / of.dp
    if traffic.phase == "decode":
        sequences, context = -(-tokens // queries(traffic)), traffic.context
    else:
        sequences, context = 1.0, int(traffic.context + tokens)
    has_attention = model.attention.heads > 0
    windows = sizes.windowed_layers(model)
    window = model.sliding_window.tokens if model.sliding_window else context
    seen = sum(min(context, window) if windows[layer] else context for layer in stage.layers)
    cached = sequences * seen * sizes.kv_bytes_per_token_layer(model) if has_attention else 0.0
    rows = tokens / plan.microbatches
    widest = max(
        3 * moe.intermediate * moe.top_k * of.expert_tp / of.tp,  # rows are k / ep of the group's
        3 * model.dense_intermediate,
        4 * model.hidden / of.tp,
    )
    held = rows * (2 * model.hidden + widest) * ACTIVATION_BYTES * plan.depth
    share = of.tp if plan.sequence_parallel else 1
    passed = 2 * rows * model.hidden * ACTIVATION_BYTES / share
    buffers = passed * ((not stage.first) + (not stage.last))
    if of.dispatches and sparse:
        arriving = rows / of.tp * of.expert_tp * min(moe.top_k, of.ep)
        buffers += 2 * arriving * model.hidden * ACTIVATION_BYTES
    found = {
        "dense weights": dense,
        "experts": most_experts(stage) * resident * sizes.expert_bytes(model),
        "KV cache": cached,
        "activations": held,
        "buffers": buffers,
    }
    if plan.offload:
        largest = max((offered_bytes(plan, number, layer) for layer in streamed), default=0.0)
        found["fetched"] = BUFFERS * largest
    return found


def gpu_bytes(plan: Plan, workload: Workload) -> list[dict[str, float]]:
    """Bytes on each GPU of the cluster by part; interleaved, of all that it holds."""
    found: list[dict[str, float]] = [{} for _ in range(plan.gpus)]
    for number, stage in enumerate(plan.stages):
        parts = stage_bytes(plan, number, workload)
        for gpu in stage.gpus:
            found[gpu] = _together([found[gpu], parts]) if found[gpu] else parts
    return found


def check_memory(
    plan: Plan,
    workload: Workload,
    gpu: Gpu,
    names: Sequence[str],
    advice: Callable[[], str] = str,
) -> None:
    """Raise InputError, with the sum by part and what `advice` says, for the first GPU that cannot
    hold its part.
    """
    for name, parts in zip(names, gpu_bytes(plan, workload), strict=True):
        check_gpu(workload, gpu, parts, name, advice)


# --- what lies in host memory --------------------------------------------------------------


def streamed_layers(plan: Plan, workload: Workload, gpu: Gpu) -> tuple[tuple[int, ...], ...]:
    """The layers of each stage whose weights (`plan.offload`) lie in host memory.

    All but `parallel.resident_layers` of those of a GPU; where that is not given, as few as it
    takes for the rest to fit, all if it never does. No more than there are buffers need not move.
    """
    asked = workload.parallel.resident_layers
    room = gpu.hbm_capacity_bytes * (1.0 - RESERVED)
    streamed: list[tuple[int, ...]] = [()] * len(plan.stages)
    for place in range(plan.pipeline):
        numbers = range(place, len(plan.stages), plan.pipeline)
        layers = [
            (number, layer)
            for number in numbers
            for layer in plan.stages[number].layers
            if offered_bytes(plan, number, layer) > 0.0
        ]
        if asked is not None:
            counts = [max(len(layers) - asked, 0)]
        else:
            counts = [0, *range(BUFFERS + 1, len(layers) + 1)]
        for count in counts:
            chosen = _spread(layers, count if count > BUFFERS else 0)
            for number in numbers:
                streamed[number] = tuple(layer for at, layer in chosen if at == number)
            trial = replace(plan, streamed=tuple(streamed))
            parts = _together([stage_bytes(trial, number, workload) for number in numbers])
            if sum(parts.values()) <= room:
                break
    return tuple(streamed)


def _spread(layers: list[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """So many of the layers, evenly spread, the last one among them."""
    return [layers[(one + 1) * len(layers) // count - 1] for one in range(count)]


def host_bytes(plan: Plan) -> list[float]:
    """Bytes that come from host memory to a GPU for every micro-batch, by place in the pipeline."""
    return [
        sum(
            offered_bytes(plan, number, layer)
            for number in range(place, len(plan.stages), plan.pipeline)
            for layer in plan.streamed[number]
        )
        for place in range(plan.pipeline)
    ]


def offered_bytes(plan: Plan, number: int, layer: int) -> float:
    """Bytes of a layer's weights on a GPU of a stage that `plan.offload` takes to host memory (with
    the largest share of the experts).
    """
    dense, expert = offered_parts(plan, number, layer)
    return dense + most_experts(plan.stages[number]) * expert


def offered_parts(plan: Plan, number: int, layer: int) -> tuple[float, float]:
    """As `offered_bytes`: what every GPU has of the layer beside routed experts, and one expert."""
    model = plan.stages[number].model
    expert = sizes.expert_bytes(model) if _is_sparse(model, layer) else 0.0
    return (_dense_bytes(model, (layer,)) if plan.offload == "layers" else 0.0), expert


def most_experts(stage: Stage) -> float:
    """Experts of a layer, in those of size 1, on the GPU of a stage that has most."""
    return max(expert_shares(stage))


def expert_shares(stage: Stage) -> list[float]:
    """Experts of a layer, in those of size 1, that each of the `ep` parts of a group has; they are
    in order, numbers differing by one at most (`simulator.policies.placement`).
    """
    moe, ep = stage.model.moe, stage.degrees.ep
    each = moe.expert_sizes or (1.0,) * moe.experts
    bounds = [part * moe.experts // ep for part in range(ep + 1)]
    return [sum(each[first:last]) for first, last in pairwise(bounds)]


def _is_sparse(model: Model, layer: int) -> bool:
    return layer >= model.moe.first_dense_layers


def _dense_bytes(model: Model, layers: Sequence[int]) -> float:
    """Weights of layers beside their routed experts."""
    moe = model.moe
    sparse = sum(_is_sparse(model, layer) for layer in layers)
    ffns = (len(layers) - sparse) * sizes.ffn_parameters(model, model.dense_intermediate)
    ffns += sparse * moe.shared_experts * sizes.ffn_parameters(model, moe.shared_intermediate)
    attention = sizes.attention_parameters(model) if model.attention.heads > 0 else 0
    return (
        len(layers) * attention * sizes.weight_bytes(model, "attention")
        + ffns * sizes.weight_bytes(model, "dense")
        + sparse * sizes.gate_parameters(model) * sizes.weight_bytes(model, "gate")
    )


def _together(stages: Sequence[dict[str, float]]) -> dict[str, float]:
    """What a GPU with these stages holds, by part."""
    return {
        name: (max if name in LARGEST_ALONE else sum)(parts[name] for parts in stages)
        for name in stages[0]
    }
