"""Finished programs, read out of the core as spans, and what a run of a plan adds up to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.engine import core, plan_pass
from simulator.engine.passes import Filled
from simulator.engine.plan_roads import PlanRoads
from simulator.engine.program import Program
from simulator.routing.batches import Batch
from simulator.runfiles import spans as tables
from simulator.runfiles.rundir import RunDir

Floats = NDArray[np.float64]
Longs = NDArray[np.int64]
Records = NDArray[np.void]

# Span kind and stream of what an operation is; a point of meeting is no span.
_SPANS = {
    plan_pass.ATTENTION: (tables.ATTENTION, tables.COMPUTE),
    plan_pass.FFN: (tables.FFN, tables.COMPUTE),
    plan_pass.EXPERTS: (tables.EXPERTS, tables.COMPUTE),
    plan_pass.HEAD: (tables.LM_HEAD, tables.COMPUTE),
    plan_pass.ALLREDUCE: (tables.ALLREDUCE, tables.COMM),
    plan_pass.ALLGATHER: (tables.ALLGATHER, tables.COMM),
    plan_pass.REDUCESCATTER: (tables.REDUCESCATTER, tables.COMM),
    plan_pass.DISPATCH: (tables.DISPATCH, tables.COMM),
    plan_pass.COMBINE: (tables.COMBINE, tables.COMM),
    plan_pass.SEND: (tables.SEND, tables.COPY),
    plan_pass.FETCH: (tables.PREFETCH, tables.COPY),
}


def read_spans(net: core.Net, of: Program, filled: Filled) -> Records:
    """Spans of a finished program (dtype `spans.RECORD`) in order of completion; step is the round.

    A kernel that waited for a tensor-parallel collective has as its peer the GPU that was ready
    last for it. One whose weights come from host memory was ready at its gate; what it then waited
    for them is its fetch_wait_s.
    """
    kind = np.full(of.what.max() + 1, -1)
    stream = np.zeros_like(kind)
    for what, (span, lane) in _SPANS.items():
        if what < len(kind):
            kind[what], stream[what] = span, lane
    if of.plan.streams:
        stream[plan_pass.SEND] = tables.COMM
    local = np.flatnonzero(kind[of.what] >= 0)
    base = np.arange(of.passes) * of.size
    ops = (base[:, None] + local[None]).ravel()
    times = net.op_f[filled.mover[ops]]
    took = times[:, core.END] > times[:, core.START]
    ops, times = ops[took], times[took]
    local = ops % of.size
    one = ops // of.size
    records = np.zeros(len(ops), dtype=tables.RECORD)
    records["step"], records["microbatch"] = np.divmod(one, of.plan.microbatches)
    records["chunk"], records["layer"] = of.chunk[local], of.layer[local]
    records["gpu"] = of.gpu[local]
    records["kind"], records["stream"] = kind[of.what[local]], stream[of.what[local]]
    records["start_s"], records["end_s"] = times[:, core.START], times[:, core.END]
    gate = np.where(of.gate[local] >= 0, one * of.size + of.gate[local], ops)
    records["ready_s"] = net.op_f[gate, core.READY]
    loaded_s = net.op_f[ops, core.READY]
    at_once = (gate != ops) & (records["start_s"] == loaded_s)
    records["fetch_wait_s"] = np.where(at_once, loaded_s - records["ready_s"], 0.0)
    cause = net.op_i[gate, core.CAUSE].astype(np.int64)
    peer = np.where(cause < of.plan.gpus, cause, _last_ready(net, of)[cause - of.plan.gpus])
    computes = records["stream"] == tables.COMPUTE
    again = computes & (peer < 0) & (records["layer"] == 0) & (one >= of.plan.microbatches)
    peer[again] = _came_back(net, of, one[again], records["ready_s"][again])
    records["peer"] = np.where(computes, peer, -1)
    records["expert"] = -1
    records["used"] = records["kind"] == tables.PREFETCH
    records["flops"], records["bytes"] = filled.flops[ops], filled.bytes[ops]
    records["rows"] = filled.rows[ops]
    return records[np.lexsort((records["gpu"], records["start_s"], records["end_s"]))]


def read_accesses(net: core.Net, of: Program, filled: Filled) -> Longs:
    """Experts with rows that were there when their tokens were, and that were still to come, int64
    [2, rounds, layers, gpus].
    """
    local = np.flatnonzero(of.what == plan_pass.EXPERTS)
    one = np.arange(of.passes)[:, None]
    ops, gate = one * of.size + local, one * of.size + of.gate[local]
    late = (of.gate[local] >= 0) & (net.op_f[ops, core.READY] > net.op_f[gate, core.READY])
    round_ = np.broadcast_to(one // of.plan.microbatches, ops.shape)
    found = np.zeros((2, of.rounds, int(of.layer.max()) + 1, of.plan.gpus), dtype=np.int64)
    at = (late.astype(np.int64), round_, of.layer[local], of.gpu[local])
    np.add.at(found, at, filled.active[ops])
    return found


def _last_ready(net: core.Net, of: Program) -> Longs:
    """For the end of each collective the GPU that was ready last, int64 [end + 1]; else -1."""
    found = np.full(of.end + 1, -1, dtype=np.int64)
    base = np.arange(of.passes)[:, None] * of.size
    for end, gpus, feeds in of.meetings:
        ended = [net.op_f[base + feed, core.END] for feed in feeds]
        last = np.max(ended, axis=0).reshape(of.passes, *gpus.shape).argmax(axis=2)
        found[base + end] = gpus[np.arange(len(gpus)), last]
    return found


def _came_back(net: core.Net, of: Program, one: Longs, ready_s: Floats) -> Longs:
    """For kernels of passes `one` that waited for the tokens of the batch before, the GPU
    of the last stage that had them last; for others -1.
    """
    before = (one - of.plan.microbatches) * of.size
    stage, head = of.plan.stages[-1], of.stages[-1].head
    waited = net.op_f[before + of.done, core.END] == ready_s
    last = net.op_f[before[:, None] + head, core.END].argmax(axis=1)
    return np.where(waited, np.array(stage.gpus)[last], -1)


class Book:
    """What a run adds up to. State: the steps so far and the sums over the measured ones."""

    def __init__(self, of: Program, roads: PlanRoads, warmup: int) -> None:
        """`warmup`: steps that do not count."""
        self._of = of
        self._roads = roads
        self._warmup = warmup
        self._starts: list[float] = []
        self._ends: list[float] = []
        self._tokens: list[int] = []
        self._route_bytes = np.zeros(roads.routes.count)
        self._loads: Longs | None = None

    def flushed(
        self,
        net: core.Net,
        filled: Filled,
        batches: list[Batch],
        index: int,
        start_s: float,
        spans: tables.SpanWriter,
        accesses: tables.AccessWriter,
    ) -> None:
        """A program that was one step."""
        records = read_spans(net, self._of, filled)
        records["step"] = index
        spans.extend(records)
        end_s = float(net.op_f[self._of.end, core.END])
        counts = read_accesses(net, self._of, filled)
        self._step(filled, 0, batches[0], start_s, end_s, counts, accesses)

    def steady(
        self,
        net: core.Net,
        filled: Filled,
        batches: list[Batch],
        index: int,
        start_s: float,
        spans: tables.SpanWriter,
        accesses: tables.AccessWriter,
    ) -> None:
        """A program that was all steps, and one batch more."""
        of = self._of
        dones = of.done + np.arange(of.passes) * of.size
        ends = net.op_f[dones, core.END].reshape(of.rounds, -1).max(axis=1)
        records = read_spans(net, of, filled)
        counts = read_accesses(net, of, filled)
        for step, end_s in enumerate(ends[:-1].tolist()):
            spans.extend(_within(records, step, start_s, end_s))
            self._step(filled, step, batches[step], start_s, end_s, counts, accesses)
            start_s = end_s

    def _step(
        self,
        filled: Filled,
        round_: int,
        batch: Batch,
        start_s: float,
        end_s: float,
        counts: Longs,
        accesses: tables.AccessWriter,
    ) -> None:
        index = len(self._starts)
        self._starts.append(start_s)
        self._ends.append(end_s)
        self._tokens.append(batch.tokens)
        here, coming = counts[0, round_].T, counts[1, round_].T
        gpus, layers = np.nonzero(here + coming)
        hits, late = here[gpus, layers], coming[gpus, layers]
        accesses.append(index, gpus, layers, hits, late, np.zeros_like(hits))
        if index < self._warmup:
            return
        self._route_bytes += filled.route_bytes[round_]
        if filled.loads is not None:
            loads = filled.loads[round_]
            self._loads = loads if self._loads is None else self._loads + loads

    def write(self, run: RunDir) -> None:
        """Write the tables of steps, loads and links."""
        steps = len(self._starts)
        warmup = [i < self._warmup for i in range(steps)]
        tables.write_steps(
            run.steps, list(range(steps)), self._starts, self._ends, self._tokens, warmup
        )
        loads = np.zeros((0, 0, 0), dtype=np.int64) if self._loads is None else self._loads
        at = np.nonzero(loads)
        tables.write_loads(run.loads, at[0], at[2], at[1], loads[at])
        routes = self._roads.routes
        tables.write_links(
            run.links,
            [f"{a} -> {b}" for a, b in routes.links],
            list(routes.kinds),
            routes.bandwidth_bytes_per_s,
            routes.link_bytes(self._route_bytes),
        )


def _within(records: Records, step: int, start_s: float, end_s: float) -> Records:
    """The parts of spans that lie between two times, with their part of bytes and FLOPs; weights
    count where they began to come, as in the step engine.
    """
    weights = records["kind"] == tables.PREFETCH
    coming = records[weights & (records["start_s"] >= start_s) & (records["start_s"] < end_s)]
    coming["step"] = step
    lasting = ~weights & (records["start_s"] < end_s) & (records["end_s"] > start_s)
    mine = records[lasting]
    whole_s = mine["end_s"] - mine["start_s"]
    begun = mine["start_s"] < start_s
    mine["start_s"] = np.maximum(mine["start_s"], start_s)
    mine["end_s"] = np.minimum(mine["end_s"], end_s)
    part = (mine["end_s"] - mine["start_s"]) / whole_s
    mine["bytes"] *= part
    mine["flops"] *= part
    mine["ready_s"] = np.maximum(mine["ready_s"], start_s)
    mine["peer"][begun] = -1
    mine["step"] = step
    mine = np.concatenate([mine[mine["end_s"] > mine["start_s"]], coming])
    return mine[np.lexsort((mine["gpu"], mine["start_s"], mine["end_s"]))]
