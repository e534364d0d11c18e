"""A run's spans as Chrome traces, one per GPU, in the dialect that PyTorch's profiler (Kineto)
writes.

Perfetto and chrome://tracing show them; HolisticTraceAnalysis reads them as it reads recorded ones.
The spans are read in blocks, and written as they come but for fetches, which are held until the
end: the file has them in the order in which their use became known.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from simulator.errors import InputError
from simulator.results import kineto_events as events
from simulator.results.kineto_events import Ints, Texts
from simulator.results.kineto_time import WholeMicroseconds
from simulator.results.kineto_write import Mark, Rates, TraceFile
from simulator.runfiles.rundir import RunDir
from simulator.runfiles.spans import (
    ACCESS_SCHEMA,
    BLOCK_ROWS,
    COMM,
    COMPUTE,
    COPY,
    SPAN_SCHEMA,
    STEP_SCHEMA,
    STREAMS,
)
from simulator.runfiles.tables import Columns, iter_spans, iter_table, read_table, whole_steps
from simulator.runfiles.values import Limits

MOST_SPANS = 4_000_000
"""Of one export: each makes two events, and viewers keep all of a file in memory."""

RANKS_AT_ONCE = 128
"""Files open at a time; more ranks take another pass over the spans."""

_PACKERS = 2

_TEXT_ROWS = 8192
"""Rows that are made text at a time: 5 MB."""

_AHEAD = 2
"""Texts that are being packed while the next is made."""

INTERVALS = 500
"""Of the counters of bytes, over the window."""

_COLUMNS = [name for name in SPAN_SCHEMA.names if name != "ready_s"]
_COPY_COLUMNS = (
    "gpu", "kind", "start_s", "end_s", "layer", "microbatch", "expert", "bytes", "used",
)  # fmt: skip


@dataclass(frozen=True)
class Exported:
    """What was written: the files, the first and last step, and how many spans.

    cut: the last step asked for, where the limit on spans ended the export before it; else None.
    """

    paths: list[Path]
    first: int
    last: int
    spans: int
    cut: int | None = None


@dataclass(frozen=True)
class _Window:
    """Steps [steps] in order of time, the instant that the trace calls 0, and what the run had."""

    steps: Ints
    marks: list[Mark]
    origin_s: float
    end_s: float
    spans: int
    limits: Limits

    def us(self, t_s: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Instants [n] in microseconds of the trace."""
        return (t_s - self.origin_s) * 1e6

    def holds(self, step: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Which of `step` [n] are in the window."""
        index = np.minimum(np.searchsorted(self.steps, step), len(self.steps) - 1)
        found: npt.NDArray[np.bool_] = self.steps[index] == step
        return found


def write_traces(run_dir: Path, gpus: int, max_steps: int = 4) -> list[Path]:
    """Write `trace_rank{N}.json.gz` for each of `gpus` GPUs into `run_dir`; their paths.

    They hold the first `max_steps` measured steps (`export`). Errors: InputError if a table is
    missing or damaged, or no step was measured.
    """
    files = RunDir(run_dir)
    table = read_table(files.steps, STEP_SCHEMA)
    chosen = np.flatnonzero(~table["warmup"])[:max_steps]
    if not len(chosen):
        raise InputError(f"{files.steps}: no step was measured, so there is nothing to trace")
    return export(run_dir, run_dir, range(gpus), table["step"][chosen], gpus=gpus).paths


def export(
    run_dir: Path,
    out: Path,
    ranks: range,
    steps: npt.NDArray[Any],
    most_spans: int = MOST_SPANS,
    gpus: int | None = None,
) -> Exported:
    """Write `trace_rank{N}.json.gz` of `ranks` into `out`: the spans of `steps` [steps], with the
    fetches asked for in them.

    Times are whole microseconds (`kineto_time`). The last `ProfilerStep` is empty, since readers
    drop the last. Steps that would take the spans of all GPUs beyond `most_spans` are left out.

    gpus: how many the run had, None: as many as the spans name.

    Errors: InputError if a table is missing or damaged, lacks a step, holds a value that no run
    writes, or names a GPU beyond `gpus`; if the first step alone is beyond `most_spans`.
    """
    files = RunDir(run_dir)
    window = _window(files, np.unique(steps).astype(np.int64), most_spans, gpus)
    paths: list[Path] = []
    for first in range(ranks.start, ranks.stop, RANKS_AT_ONCE):
        some = range(first, min(first + RANKS_AT_ONCE, ranks.stop))
        paths += _export_some(files, out, some, window)
    last, asked = int(window.steps[-1]), int(np.max(steps))
    cut = asked if last < asked else None
    return Exported(paths, int(window.steps[0]), last, window.spans, cut)


def _window(files: RunDir, wanted: Ints, most_spans: int, gpus: int | None) -> _Window:
    """The steps of `wanted` [steps] that hold at most `most_spans` spans together."""
    table = read_table(files.steps, STEP_SCHEMA)
    absent = np.setdiff1d(wanted, table["step"])
    if len(absent):
        low, high = int(table["step"].min()), int(table["step"].max())
        raise InputError(f"{files.steps}: has no step {absent[0]}, only {low} to {high}")
    counts = np.zeros(len(wanted), dtype=np.int64)
    first_s = np.inf
    limits = Limits(gpus, int(table["step"].max()))
    for block in iter_spans(files.spans, ["step", "start_s"], limits=limits):
        index = np.minimum(np.searchsorted(wanted, block["step"]), len(wanted) - 1)
        found = wanted[index] == block["step"]
        counts += np.bincount(index[found], minlength=len(wanted))
        first_s = min(first_s, float(np.min(block["start_s"][found], initial=np.inf)))
    taken = int(np.searchsorted(np.cumsum(counts), most_spans, "right"))
    if not taken:
        raise InputError(
            f"{files.spans}: step {wanted[0]} alone has {counts[0]:,} spans, beyond the limit of "
            f"{most_spans:,}; raise it with --max-spans"
        )
    if not counts.any():
        raise InputError(
            f"{files.spans}: holds no span of these steps, so there is nothing to show"
        )
    rows = np.flatnonzero(np.isin(table["step"], wanted[:taken]))
    rows = rows[np.argsort(table["step"][rows], kind="stable")]
    origin_s = float(min(np.min(table["start_s"][rows]), first_s))
    end_s = float(np.max(table["end_s"][rows]))
    begin, end = (
        np.rint((table[name][rows] - origin_s) * 1e6).astype(np.int64).tolist()
        for name in ("start_s", "end_s")
    )
    marks = list(zip(table["step"][rows].tolist(), begin, end, strict=True))
    total = int(counts[:taken].sum())
    return _Window(wanted[:taken], marks, origin_s, end_s, total, limits)


def _export_some(files: RunDir, out: Path, ranks: range, window: _Window) -> list[Path]:
    """One pass over the spans; the paths of `ranks`."""
    paths = [out / f"trace_rank{rank}.json.gz" for rank in ranks]
    with ExitStack() as stack:
        traces = [
            stack.enter_context(TraceFile(path, rank, window.marks))
            for rank, path in zip(ranks, paths, strict=True)
        ]
        # Packing takes half of the time, and lets other threads run.
        packers = [stack.enter_context(ThreadPoolExecutor(1)) for _ in range(_PACKERS)]
        lanes = _Lanes(ranks, window, packers)
        copies: list[Columns] = []
        mine = _mine(files.spans, ranks, window, copies)
        for block in whole_steps(mine, files.spans):
            lanes.write(block, traces)
        for block in _in_time(copies):
            lanes.write(block, traces)
        lanes.finish()
        lanes.write_rates(traces)
        _write_cache(files.accesses, ranks, window, traces)
    return paths


def _mine(path: Path, ranks: range, window: _Window, copies: list[Columns]) -> Iterator[Columns]:
    """The spans of the window and `ranks`, but for those of the copy stream, put into `copies`."""
    release = pa.default_memory_pool().release_unused
    for block in iter_spans(path, _COLUMNS, limits=window.limits, threads=False):
        gpu = block["gpu"]
        keep = window.holds(block["step"])
        keep &= (gpu >= ranks.start) & (gpu < ranks.stop)
        copied = keep & (block["stream"] == COPY)
        if np.any(copied):
            copies.append({name: block[name][copied] for name in _COPY_COLUMNS})
            copies[-1]["stream"] = block["stream"][copied]
        keep &= ~copied
        yield block if keep.all() else {name: values[keep] for name, values in block.items()}
        # What Arrow keeps for its next arrays would be twice what is in use.
        release()


def _in_time(copies: list[Columns]) -> Iterator[Columns]:
    """The spans of `copies` by GPU and time, in blocks: the text of all would take ten times the
    memory.
    """
    if not copies:
        return
    every = {name: np.concatenate([part[name] for part in copies]) for name in copies[0]}
    order = np.lexsort((every["start_s"], every["gpu"]))
    for first in range(0, len(order), BLOCK_ROWS):
        some = order[first : first + BLOCK_ROWS]
        yield {name: values[some] for name, values in every.items()}


class _Lanes:
    """Where the streams of some ranks stand.

    State: the instants so far; `events` [ranks], spans written so far; the sums of the counters.
    """

    def __init__(self, ranks: range, window: _Window, packers: Sequence[Executor]) -> None:
        self._ranks, self._window, self._packers = ranks, window, packers
        self._packing: deque[list[Future[None]]] = deque()
        self._clock = WholeMicroseconds(len(ranks))
        self._events = np.zeros(len(ranks), dtype=np.int64)
        length_s = window.end_s - window.origin_s
        intervals = max(min(INTERVALS, int(length_s * 1e6)), 1)
        self._rates = Rates(2 * len(ranks), length_s, intervals)

    def write(self, spans: Columns, traces: list[TraceFile]) -> None:
        """Write spans [rows] that follow, on each stream, those written before."""
        lane = spans["gpu"].astype(np.int64) * len(STREAMS) + spans["stream"]
        order = np.lexsort((spans["start_s"], lane))
        spans = {name: values[order] for name, values in spans.items()}
        rank = spans["gpu"].astype(np.int64) - self._ranks.start
        stream = spans["stream"].astype(np.int64)
        instants = [self._window.us(spans[name]) for name in ("start_s", "end_s")]
        begin, end = self._clock.place(rank, stream, spans["kind"], *instants)
        firsts = np.searchsorted(rank, np.arange(len(self._ranks) + 1))
        correlation = np.arange(1, len(rank) + 1) - (firsts[:-1] - self._events)[rank]
        self._events += np.diff(firsts)
        for one in (COMPUTE, COMM, COPY):
            every = np.flatnonzero(stream == one)
            for first in range(0, len(every), _TEXT_ROWS):
                rows = every[first : first + _TEXT_ROWS]
                part = {name: values[rows] for name, values in spans.items()}
                texts = events.kernels(part, begin[rows], end[rows], correlation[rows], one)
                self._spread(rank[rows], texts, traces)
                if one != COMPUTE:
                    self._add_rates(part, rank[rows], one)
        if "chunk" in spans and len(rank):
            found = events.arrows(spans, begin, correlation)
            if found is not None:
                self._spread(found[0] - self._ranks.start, found[1], traces)

    def _spread(self, rank: Ints, texts: Texts, traces: list[TraceFile]) -> None:
        """Write texts [rows], whose ranks are sorted, each to the trace of its rank."""
        offsets, data = texts
        bounds = np.searchsorted(rank, np.arange(len(traces) + 1))
        cuts = offsets[bounds].tolist()
        # One packer for each trace keeps its pieces in order.
        self._packing.append(
            [
                self._packers[index % len(self._packers)].submit(trace.write, data[begin:end])
                for index, (trace, (begin, end)) in enumerate(
                    zip(traces, pairwise(cuts), strict=True)
                )
                if end > begin
            ]
        )
        self.finish(_AHEAD)

    def finish(self, but: int = 0) -> None:
        """Wait until only `but` of the texts are still to be written."""
        while len(self._packing) > but:
            for job in self._packing.popleft():
                job.result()

    def _add_rates(self, spans: Columns, rank: Ints, stream: int) -> None:
        origin_s = self._window.origin_s
        lane = 2 * rank + (stream == COPY)
        begin_s, end_s = spans["start_s"] - origin_s, spans["end_s"] - origin_s
        self._rates.add(lane, begin_s, end_s, spans["bytes"])

    def write_rates(self, traces: list[TraceFile]) -> None:
        """Write the counters of what each GPU sent and fetched, where it did."""
        at = np.rint(self._rates.edges_s * 1e6).astype(np.int64)
        for index, trace in enumerate(traces):
            for lane, name in ((0, "sent"), (1, "fetched")):
                rate = self._rates.of(2 * index + lane)
                if np.any(rate):
                    values = {"GB/s": np.round(np.append(rate, 0.0) / 1e9, 6)}
                    trace.write(events.counter(name, self._ranks[index], at, values))


def _write_cache(path: Path, ranks: range, window: _Window, traces: list[TraceFile]) -> None:
    """Write, for each step, the accesses of a GPU's expert cache, where it has one.

    The traces are as good without: a run that was cut off may lack the table.
    """
    if not path.exists():
        return
    names = ("hit", "late", "miss")
    counts = np.zeros((len(names), len(ranks), len(window.steps)), dtype=np.int64)
    for block in iter_table(path, ACCESS_SCHEMA):
        keep = window.holds(block["step"])
        keep &= (block["gpu"] >= ranks.start) & (block["gpu"] < ranks.stop)
        step = np.searchsorted(window.steps, block["step"][keep])
        where = (block["gpu"][keep].astype(np.int64) - ranks.start) * len(window.steps) + step
        for index, name in enumerate(names):
            found = np.bincount(where, block[name][keep], minlength=counts[index].size)
            counts[index] += found.reshape(counts[index].shape).astype(np.int64)
    at = np.array([begin for _, begin, _ in window.marks], dtype=np.int64)
    for index, trace in enumerate(traces):
        if np.any(counts[:, index]):
            values = dict(zip(names, counts[:, index], strict=True))
            trace.write(events.counter("expert cache accesses", ranks[index], at, values))
