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

from dataclasses import dataclass, replace
from typing import NamedTuple

from simulator.errors import InputError
from simulator.model.plan_memory import streamed_layers
from simulator.model.sizes import ACTIVATION_BYTES
from simulator.spec.choices import parse_choice
from simulator.spec.plan import Degrees, Offload, degrees
from simulator.spec.schema import Gpu, GqaAttention, Model, Workload


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

    @property
    def communicates(self) -> bool:
        """Whether its GPUs exchange anything with each other."""
        sparse = self.layers[-1] >= self.model.moe.first_dense_layers
        return self.degrees.tp > 1 or (sparse and self.degrees.dispatches)


@dataclass(frozen=True)
class Plan:
    """How a model is laid over GPUs.

    stages: as tokens pass them, an interleaved pipeline's GPUs several times; gpus: of the cluster;
    microbatches: of a batch; chunks: of a micro-batch in expert layers; depth: micro-batches that a
    GPU works on at a time; steady: whether batches follow each other without a gap; offload: which
    weights may lie in host memory; streamed: of each stage, the layers whose weights do.
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
    offload: Offload | None = None
    streamed: tuple[tuple[int, ...], ...] = ()

    @property
    def streams(self) -> bool:
        """Whether any weights come from host memory."""
        return any(self.streamed)

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


def plan_of(workload: Workload, gpus: int, gpu: Gpu) -> Plan:
    """The plan of a workload on so many GPUs of a kind; raises InputError for what a plan does not
    do.
    """
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
    plan = Plan(
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
    if parallel.offload is None:
        return plan
    plan = replace(plan, offload=parallel.offload, streamed=((),) * len(stages))
    plan = replace(plan, streamed=streamed_layers(plan, workload, gpu))
    # Weights of the next batch come while this one is computed, on a single stage too.
    return replace(plan, steady=steady and (pipeline > 1 or plan.streams))


def _microbatches(workload: Workload, gpus: int, usual: int) -> int:
    parallel, tokens = workload.parallel, workload.traffic.tokens_per_gpu * gpus
    if parallel.chunk_bytes is not None:
        whole = tokens * workload.model.hidden * ACTIVATION_BYTES
        return max(1, min(tokens, -int(-whole // parallel.chunk_bytes)))
    return parallel.microbatches or usual


def _refuse_what_goes_without(workload: Workload) -> None:
    alone = "goes with parallel: {ep: N} alone, and a model with attention, experts and LM head"
    if workload.expert_slots is not None:
        raise InputError(
            f"expert_slots: {alone}; leave it out, or write parallel.offload: experts, which "
            "streams those of whole layers"
        )
    if workload.expert_access == "fetch":
        raise InputError(f"expert_access: fetch {alone}; write dispatch")
    offload = workload.parallel.offload
    if offload is None:
        return
    if workload.expert_home != "host":
        raise InputError(
            f"expert_home: {workload.expert_home}, but parallel.offload streams from host memory; "
            "write host"
        )
    if workload.overlap == "two-batch":
        raise InputError(
            "overlap: two-batch, but with parallel.offload a GPU has the weights of one "
            "micro-batch at a time; write none or chunked:N"
        )


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
