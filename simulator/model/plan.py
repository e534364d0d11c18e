"""A plan: which GPUs hold which part of which layers, and what crosses the wires between them.

`plan_of` turns the degrees of a workload (`simulator.spec.plan`) into `Stage`s, in the order in
which tokens pass them. A stage has `dp` replicas of `tp` GPUs each; GPU number r x tp + t of it is
rank t of replica r. Groups of `ep x expert_tp` neighbours hold all routed experts of its layers.

What crosses the wires, per layer and micro-batch (bytes in BF16 between kernels):

    tensor parallel     all-reduce of rows x hidden after attention and after the FFN (or, sequence
                        parallel, an all-gather before and a reduce-scatter after each)
    experts within it   nothing more: all of a tensor-parallel group have the tokens, compute their
                        experts' part, and the all-reduce adds up
    experts beyond it   dispatch and combine between the GPUs of an expert group; each rank sends
                        its 1/tp of the replica's tokens, to every shard of an expert. Without
                        sequence parallelism an all-gather hands all tokens to all ranks again
    between stages      rank to rank, every rank what it will compute on
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from simulator.errors import InputError
from simulator.model import sizes
from simulator.model.footprint import check_gpu
from simulator.model.speculative import queries
from simulator.spec.choices import parse_choice
from simulator.spec.plan import Degrees, degrees
from simulator.spec.schema import Gpu, GqaAttention, Model, Workload

ACTIVATION_BYTES = 2.0  # BF16 between kernels and on the wire


@dataclass(frozen=True)
class Stage:
    """Layers on GPUs.

    model: as one GPU computes it, its matrices cut by tp and expert_tp; first, last: whether the
    embedding, and the LM head, are here.
    """

    degrees: Degrees
    model: Model
    first: bool
    last: bool

    @property
    def gpus(self) -> tuple[int, ...]:
        """The GPUs, rank after rank and replica after replica."""
        return self.degrees.gpus

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers of the model, in order."""
        return self.degrees.layers


@dataclass(frozen=True)
class Plan:
    """How a model is laid over GPUs.

    stages: as tokens pass them, an interleaved pipeline's GPUs several times; gpus: of the cluster;
    microbatches: of a batch; chunks: of a micro-batch in expert layers; depth: micro-batches that a
    GPU works on at a time; steady: whether batches follow each other without a gap.
    """

    stages: tuple[Stage, ...]
    gpus: int
    pipeline: int
    microbatches: int
    chunks: int
    depth: int
    steady: bool
    sequence_parallel: bool
    allreduce: str

    @property
    def replicas(self) -> int:
        """The most replicas of any stage."""
        return max(stage.degrees.dp for stage in self.stages)


def needs_plan(workload: Workload) -> bool:
    """Whether a run is laid by a plan: anything but attention in data parallel and experts in
    expert parallel; and a model that lacks attention, experts or LM head.
    """
    model = workload.model
    whole = model.attention.heads and model.moe.experts and model.vocab
    return not (workload.parallel.plain and whole)


def plan_of(workload: Workload, gpus: int) -> Plan:
    """The plan of a workload on so many GPUs; raises InputError for what a plan does not do."""
    parallel, model = workload.parallel, workload.model
    _refuse_what_goes_without(workload)
    found = degrees(parallel, model.layers, model.moe.experts, gpus)
    last = len(found) - 1
    stages = tuple(
        Stage(one, shard(model, one), number == 0, number == last)
        for number, one in enumerate(found)
    )
    overlap = parse_choice(workload.overlap, "overlap")
    pipeline = len(found) // parallel.interleave
    depth = 2 if overlap.name == "two-batch" else 1
    steady = parallel.pipeline == "steady" or (
        parallel.pipeline is None and workload.traffic.phase == "decode"
    )
    return Plan(
        stages=stages,
        gpus=gpus,
        pipeline=pipeline,
        microbatches=_microbatches(workload, gpus, pipeline * depth),
        chunks=int(overlap.argument or 1) if overlap.name == "chunked" else 1,
        depth=depth,
        steady=steady and pipeline > 1,
        sequence_parallel=parallel.sequence_parallel,
        allreduce=parallel.allreduce,
    )


def _microbatches(workload: Workload, gpus: int, usual: int) -> int:
    parallel, tokens = workload.parallel, workload.traffic.tokens_per_gpu * gpus
    if parallel.chunk_bytes is not None:
        whole = tokens * workload.model.hidden * ACTIVATION_BYTES
        return max(1, min(tokens, -int(-whole // parallel.chunk_bytes)))
    return parallel.microbatches or usual


def _refuse_what_goes_without(workload: Workload) -> None:
    alone = "goes with parallel: {ep: N} alone, and a model with attention, experts and LM head"
    if workload.expert_slots is not None:
        raise InputError(f"expert_slots: {alone}; leave it out")
    if workload.expert_access == "fetch":
        raise InputError(f"expert_access: fetch {alone}; write dispatch")
    if parse_choice(workload.network, "network").name == "coflow":
        raise InputError(f"network: coflow {alone}; write exact")


def shard(model: Model, of: Degrees) -> Model:
    """The model as one GPU of a stage computes it.

    Heads, FFN widths and the vocabulary are cut by tp, experts by expert_tp. Fewer KV heads than tp
    are on several GPUs. Shared experts are whole where tokens are dispatched: each rank then runs
    them on its own tokens.
    """
    attention = model.attention
    cut = {"heads": attention.heads // of.tp}
    if isinstance(attention, GqaAttention):
        cut["kv_heads"] = max(attention.kv_heads // of.tp, min(attention.kv_heads, 1))
    moe = model.moe.model_copy(
        update={
            "intermediate": model.moe.intermediate // of.expert_tp,
            "shared_intermediate": _divided(
                model.moe.shared_intermediate, 1 if of.dispatches else of.tp
            ),
        }
    )
    return model.model_copy(
        update={
            "attention": attention.model_copy(update=cut),
            "moe": moe,
            "dense_intermediate": _divided(model.dense_intermediate, of.tp),
            "vocab": _divided(model.vocab, of.tp),
        }
    )


def _divided(size: int, by: int) -> int:
    """The largest share."""
    return -(-size // by)


# --- memory ------------------------------------------------------------------------------


def stage_bytes(plan: Plan, number: int, workload: Workload) -> dict[str, float]:
    """Bytes on a GPU of a stage by part; KV cache and activations of an even share of the tokens.

    buffers: what comes from the stage before and goes to the next (twice, so that one is filled
    while the other is read), and what dispatch and combine bring on average.
    """
    stage = plan.stages[number]
    of, model, traffic = stage.degrees, stage.model, workload.traffic
    moe = model.moe
    sparse = [layer for layer in stage.layers if layer >= moe.first_dense_layers]
    ffns = (len(stage.layers) - len(sparse)) * sizes.ffn_parameters(model, model.dense_intermediate)
    ffns += len(sparse) * moe.shared_experts * sizes.ffn_parameters(model, moe.shared_intermediate)
    has_attention = model.attention.heads > 0
    attention = sizes.attention_parameters(model) if has_attention else 0
    dense = (
        len(stage.layers) * attention * sizes.weight_bytes(model, "attention")
        + ffns * sizes.weight_bytes(model, "dense")
        + (stage.first + stage.last)
        * model.vocab
        * model.hidden
        * sizes.weight_bytes(model, "lm_head")
        + len(sparse) * sizes.gate_parameters(model) * sizes.weight_bytes(model, "gate")
    )
    most = _divided(moe.experts, of.ep)
    tokens = traffic.tokens_per_gpu * plan.gpus / of.dp
    if traffic.phase == "decode":
        sequences, context = -(-tokens // queries(traffic)), traffic.context
    else:
        sequences, context = 1.0, int(traffic.context + tokens)
    windows = sizes.windowed_layers(model)
    window = model.sliding_window.tokens if model.sliding_window else context
    kept = sum(min(context, window) if windows[layer] else context for layer in stage.layers)
    cached = sequences * kept * sizes.kv_bytes_per_token_layer(model) if has_attention else 0.0
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
    return {
        "dense weights": dense,
        "experts": most * len(sparse) * sizes.expert_bytes(model),
        "KV cache": cached,
        "activations": held,
        "buffers": buffers,
    }


def gpu_bytes(plan: Plan, workload: Workload) -> list[dict[str, float]]:
    """Bytes on each GPU of the cluster by part; interleaved, of all that it holds."""
    found: list[dict[str, float]] = [{} for _ in range(plan.gpus)]
    for number, stage in enumerate(plan.stages):
        parts = stage_bytes(plan, number, workload)
        for gpu in stage.gpus:
            for name, amount in parts.items():
                # Work on activations is done one part after the other: the largest counts.
                had = found[gpu].get(name, 0.0)
                found[gpu][name] = max(had, amount) if name == "activations" else had + amount
    return found


def check_memory(plan: Plan, workload: Workload, gpu: Gpu, names: Sequence[str]) -> None:
    """Raise InputError, with the sum by part, for the first GPU that cannot hold its part."""
    for name, parts in zip(names, gpu_bytes(plan, workload), strict=True):
        check_gpu(workload, gpu, parts, name)


# --- what crosses the wires --------------------------------------------------------------


class Crossing(NamedTuple):
    """A collective of one layer and micro-batch: its name, how many GPUs take part, how many such
    groups there are, and the bytes that each GPU hands over (all-gather: ends up with).
    """

    what: str
    ranks: int
    groups: int
    bytes: float


def crossings(plan: Plan, number: int, layer: int, rows: float) -> list[Crossing]:
    """What crosses the wires in a layer of a stage, with `rows` tokens per replica (dispatch and
    combine: the most that there can be, every choice on another GPU).
    """
    stage = plan.stages[number]
    of, model = stage.degrees, stage.model
    sparse = layer >= model.moe.first_dense_layers
    whole = rows * model.hidden * ACTIVATION_BYTES
    found: list[Crossing] = []

    def within(*names: str) -> None:
        if of.tp > 1:
            found.extend(Crossing(name, of.tp, of.dp, whole) for name in names)

    around = ("allgather", "reducescatter") if plan.sequence_parallel else ("allreduce",)
    if model.attention.heads:
        within(*around)
    if not (sparse and of.dispatches):
        within(*around)
        return found
    group = of.ep * of.expert_tp
    sent = whole / of.tp * of.expert_tp * min(model.moe.top_k, of.ep)
    found += [
        Crossing(name, group, len(of.gpus) // group, sent) for name in ("dispatch", "combine")
    ]
    if not plan.sequence_parallel:
        within("allgather")
    return found
