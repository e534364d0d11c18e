"""The operations of a plan and what waits for what.

One *pass*, a micro-batch on its way through all stages, is laid as a template of operations; a
program is many passes, operation `o` of pass p being number p x size + o, and one more, the end.

    enter -> attention -> [sync] -> FFN or experts -> [sync] -> ... next layer ... -> leave
          leave -> send ---transfers---> enter of the next stage; last layer -> head -> done

A *sync* is a tensor-parallel collective: it begins when all GPUs of the group are ready (`begin`),
each GPU has its sends on its communication stream, and all go on when all transfers have arrived
(`end`). Dispatch and combine are as in `simulator.engine.shape`. Sends between stages have the copy
stream. A GPU takes up a micro-batch (`enter`) when it has left the one `depth` places before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
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
    MEETING,
) = range(13)
SYNCS = {"allreduce": ALLREDUCE, "allgather": ALLGATHER, "reducescatter": REDUCESCATTER}


class SyncOps(NamedTuple):
    """A collective of all replicas of a stage: begin and end int32 [replicas], send int32 [gpus];
    feeds: what each GPU must have ended before, each int32 [gpus].
    """

    op: str
    begin: Ints
    send: Ints
    end: Ints
    feeds: tuple[Ints, ...]


class ChunkOps(NamedTuple):
    """The expert part of one chunk, each int32 [gpus]; empty arrays where nothing is dispatched."""

    dispatch: Ints
    arrived: Ints
    experts: Ints
    combine: Ints
    back: Ints


class LayerOps(NamedTuple):
    """A layer of a stage: kernels int32 [gpus]; ffn: dense FFN or shared experts."""

    layer: int
    attention: Ints
    ffn: Ints
    chunks: tuple[ChunkOps, ...]
    syncs: tuple[SyncOps, ...]


class StageOps(NamedTuple):
    """A stage: int32 [gpus] each; send and head empty where there is none."""

    enter: Ints
    layers: tuple[LayerOps, ...]
    leave: Ints
    send: Ints
    head: Ints


@dataclass
class _Template:
    """The operations of a pass while they are listed."""

    what: list[Ints] = field(default_factory=list)
    layer: list[Ints] = field(default_factory=list)
    chunk: list[Ints] = field(default_factory=list)
    gpu: list[Ints] = field(default_factory=list)
    edges: list[tuple[Ints, Ints]] = field(default_factory=list)
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


@dataclass(frozen=True)
class Program:
    """A number of passes (module docstring); `rounds` batches of `microbatches` each.

    what, layer, chunk, gpu: int32 [size]; stages: as the plan has them; done: the end of a pass.
    """

    plan: Plan
    rounds: int
    size: int
    what: Ints
    layer: Ints
    chunk: Ints
    gpu: Ints
    inner: Ints
    stages: tuple[StageOps, ...]
    done: int

    @property
    def passes(self) -> int:
        """Number of passes."""
        return self.rounds * self.plan.microbatches

    @property
    def end(self) -> int:
        """Number of the last operation, the end of the program."""
        return self.passes * self.size

    @cached_property
    def edges(self) -> Ints:
        """What waits for what, int32 [edges, 2] (from, to), sorted by from."""
        offsets = np.arange(self.passes, dtype=np.int32) * np.int32(self.size)
        found = [(self.inner[None] + offsets[:, None, None]).reshape(-1, 2)]
        found += self._order()
        dones = self.done + offsets
        found.append(np.stack([dones, np.full_like(dones, self.end)], axis=1))
        edges = np.concatenate(found).astype(np.int32)
        return edges[np.argsort(edges[:, 0], kind="stable")]

    def _order(self) -> list[Ints]:
        """The order in which a GPU takes up micro-batches, and batches that follow each other."""
        plan = self.plan
        found = []
        for place in range(plan.pipeline):
            items = self._items(place)
            for late, early in zip(items[plan.depth :], items, strict=False):
                before = self.stages[early[1]].leave + early[0] * self.size
                after = self.stages[late[1]].enter + late[0] * self.size
                found.append(np.stack([before, after], axis=1))
        enter = self.stages[0].enter
        for one in range(plan.microbatches, self.passes):
            done = np.full_like(enter, self.done + (one - plan.microbatches) * self.size)
            found.append(np.stack([done, enter + one * self.size], axis=1))
        return found

    def _items(self, place: int) -> list[tuple[int, int]]:
        """(pass, stage) in the order in which the GPUs at a place of the pipeline take them up.

        Interleaved, micro-batches go in groups as large as the pipeline is long, a group through
        each part of the model in turn (Narayanan et al., SC 2021, section 2.2, forward only).
        """
        plan = self.plan
        parts = len(plan.stages) // plan.pipeline
        group = plan.pipeline if parts > 1 else plan.microbatches
        return [
            (first + i, part * plan.pipeline + place)
            for first in range(0, self.passes, group)
            for part in range(parts)
            for i in range(min(group, self.passes - first))
        ]

    @cached_property
    def waits(self) -> Ints:
        """How many edges end at each operation, int32 [end + 1]; 1 for the `starts`."""
        waits = np.bincount(self.edges[:, 1], minlength=self.end + 1).astype(np.int32)
        waits[waits == 0] = 1
        return waits

    @cached_property
    def starts(self) -> Ints:
        """What waits for nothing, and is let go at the start."""
        into = np.bincount(self.edges[:, 1], minlength=self.end + 1)
        return np.flatnonzero(into == 0).astype(np.int32)


def program_of(plan: Plan, rounds: int) -> Program:
    """The program of so many batches through a plan."""
    t = _Template()
    stages: list[StageOps] = []
    for number, stage in enumerate(plan.stages):
        stages.append(_stage(t, plan, stage))
        if number:
            before, after = plan.stages[number - 1], stage
            # Where nothing is to be sent, the order remains.
            first = [
                j // after.degrees.tp * before.degrees.dp // after.degrees.dp * before.degrees.tp
                for j in range(len(after.gpus))
            ]
            t.edge(stages[-2].leave[np.array(first)], stages[-1].enter)
    (done,) = t.add(MEETING, [0]).tolist()
    t.edge(stages[-1].head, np.array([done], dtype=np.int32))
    edges = np.stack([np.concatenate([pair[i] for pair in t.edges]) for i in (0, 1)], axis=1)
    return Program(
        plan=plan,
        rounds=rounds,
        size=t.size,
        what=np.concatenate(t.what),
        layer=np.concatenate(t.layer),
        chunk=np.concatenate(t.chunk),
        gpu=np.concatenate(t.gpu),
        inner=edges[np.argsort(edges[:, 0], kind="stable")],
        stages=tuple(stages),
        done=done,
    )


def _stage(t: _Template, plan: Plan, stage: Stage) -> StageOps:
    gpus = stage.gpus
    enter = t.add(ENTER, gpus)
    ready: tuple[Ints, ...] = (enter,)
    layers = []
    for layer in stage.layers:
        ops, ready = _layer(t, plan, stage, layer, ready)
        layers.append(ops)
    leave = t.add(LEAVE, gpus)
    nothing = np.zeros(0, dtype=np.int32)
    if stage.last:
        head = t.add(HEAD, gpus, stage.layers[-1] + 1)
        for one in ready:  # before the next micro-batch is taken up
            t.edge(one, head)
    for one in ready:
        t.edge(one, leave)
    if stage.last:
        return StageOps(enter, tuple(layers), leave, nothing, head)
    send = t.add(SEND, gpus, stage.layers[-1])
    t.edge(leave, send)
    return StageOps(enter, tuple(layers), leave, send, nothing)


def _layer(
    t: _Template, plan: Plan, stage: Stage, layer: int, ready: tuple[Ints, ...]
) -> tuple[LayerOps, tuple[Ints, ...]]:
    """A layer after `ready`; returns what its end is."""
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

    def kernel(what: int, after: tuple[Ints, ...], chunk: int = 0) -> Ints:
        ops = t.add(what, stage.gpus, layer, chunk)
        for one in after:
            t.edge(one, ops)
        return ops

    attention = kernel(ATTENTION, sync("allgather", ready) if sliced else ready)
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
            ops = _dispatched(t, stage, layer, chunk, after)
        else:
            nothing = np.zeros(0, dtype=np.int32)
            experts = kernel(EXPERTS, after, chunk)
            ops = ChunkOps(nothing, nothing, experts, nothing, experts)
        chunks.append(ops)
        outs.append(ops.back)
    end = tuple(outs)
    if dispatches:
        end = end if sliced else sync("allgather", end)
    else:
        end = sync("reducescatter" if sliced else "allreduce", end)
    return LayerOps(layer, attention, ffn, tuple(chunks), tuple(syncs)), end


def _sync(t: _Template, stage: Stage, layer: int, op: str, feeds: tuple[Ints, ...]) -> SyncOps:
    of = stage.degrees
    begin = t.add(MEETING, range(of.dp), layer)
    send = t.add(SYNCS[op], stage.gpus, layer)
    end = t.add(MEETING, range(of.dp), layer)
    begins = np.repeat(begin, of.tp)
    for one in feeds:
        t.edge(one, begins)
    t.edge(begins, send)
    t.edge(begin, end)
    return SyncOps(op, begin, send, end, feeds)


def _dispatched(
    t: _Template, stage: Stage, layer: int, chunk: int, after: tuple[Ints, ...]
) -> ChunkOps:
    kinds = (DISPATCH, MEETING, EXPERTS, COMBINE, MEETING)
    ops = ChunkOps(*(t.add(kind, stage.gpus, layer, chunk) for kind in kinds))
    for one in after:
        t.edge(one, ops.dispatch)
        t.edge(one, ops.arrived)
    t.edge(ops.arrived, ops.experts)
    t.edge(ops.experts, ops.combine)
    t.edge(ops.experts, ops.back)
    return ops
