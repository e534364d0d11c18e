"""A finished step, read out of the core as spans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.engine import core, shape
from simulator.engine.shape import Shape
from simulator.engine.slots import Told
from simulator.engine.step import Step
from simulator.runfiles import spans

Records = NDArray[np.void]

_PLAIN = np.dtype((np.void, spans.RECORD.itemsize))


def read_spans(step: Step) -> Records:
    """Compute and communication spans of a step, in order of completion (dtype `spans.RECORD`)."""
    return _in_order(_joined([*_grid(step), _heads(step), _kernels(step)]))


def _joined(parts: Sequence[Records]) -> Records:
    # As plain bytes: numpy copies records with fields one field of one record at a time.
    return np.concatenate([part.view(_PLAIN) for part in parts]).view(spans.RECORD)


def _chosen(records: Records, which: NDArray[Any]) -> Records:
    """Records by number, or those for which `which` is true."""
    chosen: Records = records.view(_PLAIN)[which].view(spans.RECORD)
    return chosen


def _in_order(records: Records) -> Records:
    """Records in order of completion, without those too short for the clock to show."""
    records = _chosen(records, records["end_s"] > records["start_s"])
    order = np.lexsort((records["gpu"], records["start_s"], records["end_s"]))
    return _chosen(records, order)


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
    return _in_order(records)


def _span_kinds(of: Shape) -> NDArray[np.int8]:
    """The span kind of each operation kind, int8 [kinds]; -1 for points of meeting."""
    per_chunk = [spans.DISPATCH, -1, spans.EXPERTS, spans.COMBINE, -1, -1]
    return np.array([spans.ATTENTION, spans.FFN, *per_chunk * of.chunks], dtype=np.int8)


def _times(
    step: Step,
    ops: NDArray[Any],
    stream: int,
    index: NDArray[np.int64],
    gpu: NDArray[np.int64],
) -> Records:
    """Records of operations with what is alike for all kinds."""
    net = step.machine.driver.net
    records = np.zeros(len(ops), dtype=spans.RECORD)
    times = net.op_f[ops]
    records["step"] = step.index
    records["microbatch"] = index
    records["gpu"] = gpu
    records["stream"] = stream
    records["start_s"] = times[:, core.START]
    records["end_s"] = times[:, core.END]
    records["ready_s"] = times[:, core.READY]
    records["peer"] = -1
    records["expert"] = -1
    return records


def _peers(step: Step, ops: NDArray[Any]) -> NDArray[np.int32]:
    """The GPU that made each operation ready, -1 if none; the cause may be an operation of it."""
    cause = step.machine.driver.net.op_i[ops, core.CAUSE]
    return np.where(cause >= 0, cause % step.machine.shape.gpus, -1)


def _grid(step: Step) -> list[Records]:
    of = step.machine.shape
    net = step.machine.driver.net
    kind_of = _span_kinds(of)
    found = []
    runs = (net.op_i[: of.gates, core.STREAM] >= 0).reshape(of.grid.shape)
    for stream, sends in ((spans.COMPUTE, False), (spans.COMM, True)):
        chosen = runs & ((kind_of == spans.DISPATCH) | (kind_of == spans.COMBINE))[:, None]
        chosen = chosen if sends else runs & ~chosen
        index, layer, kind, gpu = np.nonzero(chosen)
        ops = of.grid[index, layer, kind, gpu]
        records = _times(step, ops, stream, index, gpu)
        records["chunk"] = np.maximum(kind - shape.CHUNK, 0) // shape.PER_CHUNK
        records["layer"] = layer
        records["kind"] = kind_of[kind]
        if not sends:
            records["peer"] = _peers(step, ops)
        elif of.whole:
            _as_a_whole(step, records, index, layer, kind, gpu)
        records["flops"] = step.work[index, layer, kind, gpu, 0]
        records["bytes"] = step.work[index, layer, kind, gpu, 1]
        records["rows"] = step.rows[index, layer, kind, gpu]
        # Who sends for others may send nothing itself.
        found.append(_chosen(records, records["rows"] > 0) if sends else records)
    return found


def _as_a_whole(
    step: Step,
    records: Records,
    index: NDArray[np.int64],
    layer: NDArray[np.int64],
    kind: NDArray[np.int64],
    gpu: NDArray[np.int64],
) -> None:
    """Give the sends of a collective that is one flow the times of the GPU that sends for all."""
    of = step.machine.shape
    op_f = step.machine.driver.net.op_f
    first = op_f[of.grid[index, layer, kind, gpu // of.whole * of.whole]]
    records["start_s"], records["end_s"] = first[:, core.START], first[:, core.END]
    # Dispatch waits for attention, combine for the experts, which come just before it.
    combine = (kind - shape.CHUNK) % shape.PER_CHUNK == shape.SEND_COMBINE
    before = np.where(combine, kind - 1, shape.ATTENTION)
    records["ready_s"] = op_f[of.grid[index, layer, before, gpu], core.END]


def _heads(step: Step) -> Records:
    of = step.machine.shape
    index, gpu = np.nonzero(step.head_rows)
    ops = of.heads + index * of.gpus + gpu
    records = _times(step, ops, spans.COMPUTE, index, gpu)
    records["layer"] = of.layers
    records["kind"] = spans.LM_HEAD
    records["peer"] = _peers(step, ops)
    records["flops"] = step.head_work[index, gpu, 0]
    records["bytes"] = step.head_work[index, gpu, 1]
    records["rows"] = step.head_rows[index, gpu]
    return records


def _kernels(step: Step) -> Records:
    """Expert kernels: they wait for tokens (ready_s) and for weights (fetch_wait_s)."""
    whole, times = step.kernels()
    op, expert, rows, index, chunk, layer, gpu, peer = whole.T
    records = _times(step, op, spans.COMPUTE, index, gpu)
    arrived_s, flops, moved = times.T
    loaded_s = records["ready_s"].copy()
    records["fetch_wait_s"] = np.where(records["start_s"] == loaded_s, loaded_s - arrived_s, 0.0)
    records["ready_s"] = arrived_s
    records["kind"] = spans.EXPERTS
    records["chunk"], records["layer"] = chunk, layer
    records["peer"], records["expert"] = peer, expert
    records["rows"] = rows
    records["flops"], records["bytes"] = flops, moved
    return records
