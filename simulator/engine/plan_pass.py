"""One *pass* of a plan, a micro-batch on its way through all stages: operations and what waits for
what.

    enter -> attention -> [sync] -> FFN or experts -> [sync] -> ... next layer ... -> leave
          leave -> send ---transfers---> enter of the next stage; last layer -> head -> done

A *sync* is a tensor-parallel collective: it begins when all GPUs of the group are ready (`begin`),
each GPU has its sends on its communication stream, and all go on when all transfers have arrived
(`end`). Dispatch and combine are as in `simulator.engine.shape`. Sends between stages have the copy
stream.

Where a collective is one flow, the sends of its GPUs are points at which they are ready, and one
operation more, on the communication stream of its first GPU, moves for all of them:

    sends of a group -> move ---one transfer---> end -> what each of the group waits for

Where a layer's weights come from host memory, its first kernel waits for them and for a point at
which all else is there:

    what was computed before -> gate -> kernel of the layer -> others
                               fetch ->
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.model.plan import Plan, Stage

Ints = NDArray[np.int32]

(
    ENTER,
    LEAVE,
    ATTENTION,
    FFN,
    EXPERTS,
    HEAD,
    ALLREDUCE,
    ALLGATHER,
    REDUCESCATTER,
    DISPATCH,
    COMBINE,
    SEND,
    FETCH,
    MEETING,
) = range(14)
SYNCS = {"allreduce": ALLREDUCE, "allgather": ALLGATHER, "reducescatter": REDUCESCATTER}
NONE: Ints = np.zeros(0, dtype=np.int32)


class SyncOps(NamedTuple):
    """A collective of all replicas of a stage: begin and end int32 [replicas], send int32 [gpus];
    move: int32 [replicas], empty unless it is one flow.
    """

    op: str
    begin: Ints
    send: Ints
    end: Ints
    move: Ints


class ExchangeOps(NamedTuple):
    """A dispatch or a combine: send and receive int32 [gpus]; move and end int32 [groups], empty
    unless it is one flow.
    """

    send: Ints
    receive: Ints
    move: Ints
    end: Ints


class ChunkOps(NamedTuple):
    """The expert part of one chunk: experts, and back, what its end is, int32 [gpus]; the exchanges
    before and after it (None: nothing is dispatched).
    """

    experts: Ints
    back: Ints
    dispatch: ExchangeOps | None = None
    combine: ExchangeOps | None = None


class Meeting(NamedTuple):
    """Where the GPUs of groups wait for each other.

    end: int32 [groups], the operation at which they go on; gpus: int32 [groups, members]; feeds:
    what each GPU must have ended before, each int32 [groups x members].
    """

    end: Ints
    gpus: Ints
    feeds: tuple[Ints, ...]


class LayerOps(NamedTuple):
    """A layer of a stage: kernels int32 [gpus]; ffn: dense FFN or shared experts; fetch: int32
    [gpus], of weights that come from host memory, empty if they do not; uses: the kernels that need
    them, each int32 [gpus].
    """

    layer: int
    attention: Ints
    ffn: Ints
    chunks: tuple[ChunkOps, ...]
    syncs: tuple[SyncOps, ...]
    fetch: Ints
    uses: tuple[Ints, ...]


class StageOps(NamedTuple):
    """A stage: int32 [gpus] each; send and head empty where there is none."""

    enter: Ints
    layers: tuple[LayerOps, ...]
    leave: Ints
    send: Ints
    head: Ints


@dataclass
class Template:
    """The operations of a pass while they are listed; `whole`: each collective is one flow."""

    what: list[Ints] = field(default_factory=list)
    layer: list[Ints] = field(default_factory=list)
    chunk: list[Ints] = field(default_factory=list)
    gpu: list[Ints] = field(default_factory=list)
    edges: list[tuple[Ints, Ints]] = field(default_factory=list)
    meetings: list[Meeting] = field(default_factory=list)
    gates: list[tuple[Ints, Ints]] = field(default_factory=list)
    whole: bool = False
    size: int = 0

    def add(self, what: int, gpus: Sequence[int], layer: int = 0, chunk: int = 0) -> Ints:
        """Operations of one kind, one per GPU (or replica); returns their numbers."""
        count = len(gpus)
        for column, value in ((self.what, what), (self.layer, layer), (self.chunk, chunk)):
            column.append(np.full(count, value, dtype=np.int32))
        self.gpu.append(np.array(gpus, dtype=np.int32))
        self.size += count
        return np.arange(self.size - count, self.size, dtype=np.int32)

    def edge(self, before: Ints, after: Ints) -> None:
        """One waits for the other, element by element."""
        a, b = np.broadcast_arrays(before, after)
        self.edges.append((a.ravel(), b.ravel()))

    def gate(self, kernels: Ints, gates: Ints, weights: Ints) -> None:
        """Kernels wait for weights too; at their gates all else that they need is there."""
        self.edge(weights, kernels)
        self.gates.append((kernels, gates))


def lay_stage(t: Template, plan: Plan, number: int) -> StageOps:
    """Add the operations of a stage."""
    stage = plan.stages[number]
    gpus = stage.gpus
    enter = t.add(ENTER, gpus)
    ready: tuple[Ints, ...] = (enter,)
    layers = []
    for layer in stage.layers:
        streamed = bool(plan.streamed) and layer in plan.streamed[number]
        fetch = t.add(FETCH, gpus, layer) if streamed else NONE
        ops, ready = _layer(t, plan, stage, layer, fetch, ready)
        layers.append(ops)
    leave = t.add(LEAVE, gpus)
    if stage.last:
        head = t.add(HEAD, gpus, stage.layers[-1] + 1)
        for one in ready:  # before the next micro-batch is taken up
            t.edge(one, head)
    for one in ready:
        t.edge(one, leave)
    if stage.last:
        return StageOps(enter, tuple(layers), leave, NONE, head)
    send = t.add(SEND, gpus, stage.layers[-1])
    t.edge(leave, send)
    return StageOps(enter, tuple(layers), leave, send, NONE)


def _layer(
    t: Template, plan: Plan, stage: Stage, layer: int, fetch: Ints, ready: tuple[Ints, ...]
) -> tuple[LayerOps, tuple[Ints, ...]]:
    """A layer after `ready`, with weights that `fetch` brings, if any; returns what its end is."""
    of, model = stage.degrees, stage.model
    sliced = plan.sequence_parallel and of.tp > 1
    sparse = layer >= model.moe.first_dense_layers
    dispatches = sparse and of.dispatches
    syncs: list[SyncOps] = []

    def sync(op: str, feeds: tuple[Ints, ...]) -> tuple[Ints, ...]:
        if of.tp == 1:
            return feeds
        syncs.append(_sync(t, stage, layer, op, feeds))
        return (np.repeat(syncs[-1].end, of.tp),)

    def kernel(what: int, after: tuple[Ints, ...], chunk: int = 0, weights: Ints = NONE) -> Ints:
        ops = t.add(what, stage.gpus, layer, chunk)
        if weights.size:
            gate = t.add(MEETING, stage.gpus, layer, chunk)
            for one in after:
                t.edge(one, gate)
            after = (gate,)
            t.gate(ops, gate, weights)
        for one in after:
            t.edge(one, ops)
        return ops

    whole_layers = plan.offload == "layers"
    of_layer, of_experts = (fetch, NONE) if whole_layers else (NONE, fetch)
    before = sync("allgather", ready) if sliced else ready
    attention = kernel(ATTENTION, before, weights=of_layer)
    after: tuple[Ints, ...] = (attention,)
    if model.attention.heads:
        after = sync("reducescatter" if sliced else "allreduce", after)
        if sliced and not dispatches:
            after = sync("allgather", after)
    ffn = kernel(FFN, after)
    outs = [ffn]
    chunks = []
    for chunk in range(plan.chunks if sparse else 0):
        if dispatches:
            ops = _dispatched(t, stage, layer, chunk, after, of_experts)
        else:
            experts = kernel(EXPERTS, after, chunk, of_experts)
            ops = ChunkOps(experts, experts)
        chunks.append(ops)
        outs.append(ops.back)
    end = tuple(outs)
    if dispatches:
        end = end if sliced else sync("allgather", end)
    else:
        end = sync("reducescatter" if sliced else "allreduce", end)
    uses = tuple(chunk_ops.experts for chunk_ops in chunks)
    if whole_layers:
        uses += (attention, ffn)
    return LayerOps(layer, attention, ffn, tuple(chunks), tuple(syncs), fetch, uses), end


def _sync(t: Template, stage: Stage, layer: int, op: str, feeds: tuple[Ints, ...]) -> SyncOps:
    of = stage.degrees
    begin = t.add(MEETING, range(of.dp), layer)
    send = t.add(SYNCS[op], stage.gpus, layer)
    move = t.add(MEETING, range(of.dp), layer) if t.whole else NONE
    end = t.add(MEETING, range(of.dp), layer)
    begins = np.repeat(begin, of.tp)
    for one in feeds:
        t.edge(one, begins)
    t.edge(begins, send)
    if t.whole:
        t.edge(begin, move)
    t.edge(begin, end)
    t.meetings.append(Meeting(end, np.array(stage.gpus).reshape(-1, of.tp), feeds))
    return SyncOps(op, begin, send, end, move)


def _dispatched(
    t: Template, stage: Stage, layer: int, chunk: int, after: tuple[Ints, ...], weights: Ints
) -> ChunkOps:
    kinds = (DISPATCH, MEETING, EXPERTS, COMBINE, MEETING)
    dispatch, arrived, experts, combine, back = (
        t.add(kind, stage.gpus, layer, chunk) for kind in kinds
    )
    for one in after:
        t.edge(one, dispatch)
        t.edge(one, arrived)
    t.edge(arrived, experts)
    if weights.size:
        t.gate(experts, arrived, weights)
    t.edge(experts, combine)
    t.edge(experts, back)
    return ChunkOps(
        experts,
        back,
        _exchange(t, stage, layer, chunk, dispatch, arrived),
        _exchange(t, stage, layer, chunk, combine, back),
    )


def _exchange(
    t: Template, stage: Stage, layer: int, chunk: int, send: Ints, receive: Ints
) -> ExchangeOps:
    """A dispatch or combine; as one flow, all of a group receive at its end."""
    if not t.whole:
        return ExchangeOps(send, receive, NONE, NONE)
    members = stage.degrees.ep * stage.degrees.expert_tp
    groups = range(len(stage.gpus) // members)
    move, end = (t.add(MEETING, groups, layer, chunk) for _ in range(2))
    t.edge(send, np.repeat(move, members))
    t.edge(send, np.repeat(end, members))
    t.edge(np.repeat(end, members), receive)
    t.meetings.append(Meeting(end, np.array(stage.gpus).reshape(-1, members), (send,)))
    return ExchangeOps(send, receive, move, end)
