"""A finished step, read out of the core as spans."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.compiled import allocation_free, inlined, on_top_of
from simulator.engine import core, shape
from simulator.engine.shape import Shape
from simulator.engine.slots import Told
from simulator.engine.step import Step
from simulator.runfiles import spans

Floats = NDArray[np.float64]
Int32s = NDArray[np.int32]
Longs = NDArray[np.int64]
Records = NDArray[np.void]

_PLAIN = np.dtype((np.void, spans.RECORD.itemsize))


def read_spans(step: Step) -> Records:
    """Compute and communication spans of a step, in order of completion (dtype `spans.RECORD`)."""
    of = step.machine.shape
    net = step.machine.driver.net
    kernels, times = step.kernels()
    records = np.zeros(of.gates + of.microbatches * of.gpus + len(kernels), dtype=spans.RECORD)
    count = _of_grid(
        records, step.index, of.whole, _span_kinds(of), net.op_f, net.op_i, step.work, step.rows
    )
    count = _of_heads(
        records,
        count,
        step.index,
        of.layers,
        of.heads,
        net.op_f,
        net.op_i,
        step.head_work,
        step.head_rows,
    )
    count = _of_kernels(records, count, step.index, net.op_f, kernels, times)
    return _in_order(records[:count])


def _in_order(records: Records) -> Records:
    """Records in order of completion; those that end together by start, then by GPU."""
    order = np.argsort(records["end_s"], kind="stable")
    _settle(records, order)
    return _chosen(records, order)


def _chosen(records: Records, which: NDArray[Any]) -> Records:
    """Records by number, or those for which `which` is true."""
    # As plain bytes: numpy copies records with fields one field of one record at a time.
    chosen: Records = records.view(_PLAIN)[which].view(spans.RECORD)
    return chosen


@allocation_free
def _settle(records: Records, order: Longs) -> None:
    """Put records that end together in order, by insertion: they mostly are already."""
    for i in range(1, len(order)):
        mine = order[i]
        span = records[mine]
        at = i
        while at > 0:
            other = records[order[at - 1]]
            if other["end_s"] < span["end_s"] or other["start_s"] < span["start_s"]:
                break
            if other["start_s"] == span["start_s"] and other["gpu"] <= span["gpu"]:
                break
            order[at] = order[at - 1]
            at -= 1
        order[at] = mine


def read_fetches(told: Told, dense: int, expert_bytes: float, origin: NDArray[np.int32]) -> Records:
    """Spans of fetches, in order of completion.

    `dense` layers come before the first MoE layer; expert_bytes: of an expert of size 1; origin:
    int32 [routes], the GPU at which each begins, -1: host memory.
    """
    records = np.zeros(len(told.step), dtype=spans.RECORD)
    records["step"] = told.step
    records["microbatch"] = np.where(told.prefetch, -1, told.microbatch)
    records["layer"] = told.layer + dense
    records["gpu"] = told.gpu
    records["stream"] = spans.COPY
    records["kind"] = np.where(told.prefetch, spans.PREFETCH, spans.DEMAND)
    records["start_s"], records["end_s"] = told.start_s, told.end_s
    records["ready_s"] = told.asked_s
    records["peer"] = origin[told.route]
    records["expert"] = told.expert
    records["bytes"] = expert_bytes * told.size
    records["used"] = told.used
    # None so short that the clock does not show it.
    return _in_order(_chosen(records, told.end_s > told.start_s))


def _span_kinds(of: Shape) -> NDArray[np.int8]:
    """The span kind of each operation kind, int8 [kinds]; -1 for points of meeting."""
    per_chunk = [spans.DISPATCH, -1, spans.EXPERTS, spans.COMBINE, -1, -1]
    return np.array([spans.ATTENTION, spans.FFN, *per_chunk * of.chunks], dtype=np.int8)


@on_top_of(core, shape, spans)
def _of_grid(
    records: Records,
    step: int,
    whole: int,
    kind_of: NDArray[np.int8],
    op_f: Floats,
    op_i: Int32s,
    work: Floats,
    rows: Longs,
) -> int:
    """Write spans of kernels, then of sends; gives how many. Tables as `Step` has them."""
    microbatches, layers, kinds, gpus = rows.shape
    count = 0
    for sends in (False, True):
        for m in range(microbatches):
            for layer in range(layers):
                for kind in range(kinds):
                    is_send = kind_of[kind] == spans.DISPATCH or kind_of[kind] == spans.COMBINE
                    if is_send != sends:
                        continue
                    first = ((m * layers + layer) * kinds + kind) * gpus
                    for gpu in range(gpus):
                        op = first + gpu
                        # Who sends for others may send nothing itself.
                        if op_i[op, core.STREAM] < 0 or (sends and rows[m, layer, kind, gpu] == 0):
                            continue
                        # A collective that is one flow has the times of the one who sends for all.
                        timed = op - gpu % whole if sends and whole else op
                        if not _write(records[count], step, op_f, timed):
                            continue
                        span = records[count]
                        count += 1
                        span["microbatch"] = m
                        span["chunk"] = max(kind - shape.CHUNK, 0) // shape.PER_CHUNK
                        span["layer"] = layer
                        span["gpu"] = gpu
                        span["stream"] = spans.COMM if sends else spans.COMPUTE
                        span["kind"] = kind_of[kind]
                        span["flops"] = work[m, layer, kind, gpu, 0]
                        span["bytes"] = work[m, layer, kind, gpu, 1]
                        span["rows"] = rows[m, layer, kind, gpu]
                        if not sends:
                            span["peer"] = _peer(op_i, op, gpus)
                        elif whole:
                            # Dispatch waits for attention, combine for the experts before it.
                            before = kind - 1
                            if kind_of[kind] == spans.DISPATCH:
                                before = shape.ATTENTION
                            span["ready_s"] = op_f[op + (before - kind) * gpus, core.END]
    return count


@on_top_of(core, shape, spans)
def _of_heads(
    records: Records,
    count: int,
    step: int,
    layers: int,
    heads: int,
    op_f: Floats,
    op_i: Int32s,
    work: Floats,
    rows: Longs,
) -> int:
    """Write spans of LM heads after `count` others; gives how many there are then."""
    microbatches, gpus = rows.shape
    for m in range(microbatches):
        for gpu in range(gpus):
            op = heads + m * gpus + gpu
            if rows[m, gpu] == 0 or not _write(records[count], step, op_f, op):
                continue
            span = records[count]
            count += 1
            span["microbatch"] = m
            span["layer"] = layers
            span["gpu"] = gpu
            span["stream"] = spans.COMPUTE
            span["kind"] = spans.LM_HEAD
            span["peer"] = _peer(op_i, op, gpus)
            span["flops"] = work[m, gpu, 0]
            span["bytes"] = work[m, gpu, 1]
            span["rows"] = rows[m, gpu]
    return count


@on_top_of(core, shape, spans)
def _of_kernels(
    records: Records, count: int, step: int, op_f: Floats, kernels: Int32s, times: Floats
) -> int:
    """Write spans of expert kernels: they wait for tokens (ready_s) and weights (fetch_wait_s).

    kernels, times: as `Step.kernels` gives them.
    """
    for i in range(len(kernels)):
        if not _write(records[count], step, op_f, kernels[i, 0]):
            continue
        span = records[count]
        count += 1
        loaded_s = op_f[kernels[i, 0], core.READY]
        if op_f[kernels[i, 0], core.START] == loaded_s:
            span["fetch_wait_s"] = loaded_s - times[i, 0]
        span["ready_s"] = times[i, 0]
        span["stream"] = spans.COMPUTE
        span["kind"] = spans.EXPERTS
        span["expert"] = kernels[i, 1]
        span["rows"] = kernels[i, 2]
        span["microbatch"] = kernels[i, 3]
        span["chunk"] = kernels[i, 4]
        span["layer"] = kernels[i, 5]
        span["gpu"] = kernels[i, 6]
        span["peer"] = kernels[i, 7]
        span["flops"] = times[i, 1]
        span["bytes"] = times[i, 2]
    return count


@inlined
def _write(span: Any, step: int, op_f: Floats, op: int) -> bool:
    """What is alike for all kinds; False, and nothing, if it is too short for the clock to show."""
    if not op_f[op, core.END] > op_f[op, core.START]:
        return False
    span["step"] = step
    span["start_s"] = op_f[op, core.START]
    span["end_s"] = op_f[op, core.END]
    span["ready_s"] = op_f[op, core.READY]
    span["peer"] = -1
    span["expert"] = -1
    return True


@inlined
def _peer(op_i: Int32s, op: int, gpus: int) -> int:
    """The GPU that made an operation ready, -1 if none; the cause may be an operation of it."""
    cause = op_i[op, core.CAUSE]
    return int(cause % gpus) if cause >= 0 else -1
