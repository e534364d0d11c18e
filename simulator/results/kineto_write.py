"""Files of Kineto-style traces, one per rank, written as the events come."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
import numpy.typing as npt

from simulator.results.kineto_events import HOST_PID, STEP_TID, stream_id
from simulator.runfiles.spans import STREAMS

_LEVEL = 3
"""Of gzip: a third larger than level 6, in a third of its time."""

Mark = tuple[int, int, int]
"""Number, begin and end of a step in us."""


class TraceFile:
    """One `trace_rank{N}.json.gz`; memory does not grow with it. State: the file and its packer.

    The same events give the same bytes: no name or time stands in the header. Use it as a context
    manager, or call `close()`; the file is complete only after that.
    """

    def __init__(self, path: Path, rank: int, marks: Sequence[Mark]) -> None:
        """Open `path`, and write the names of the rows and the step marks (OSError)."""
        self._file: BinaryIO = path.open("wb")
        self._pack = zlib.compressobj(_LEVEL, zlib.DEFLATED, 31)
        # Readers look for the rank as text, with this very space after each colon.
        head = f'{{"schemaVersion": 1, "distributedInfo": {{"rank": {rank}}}, "traceEvents": ['
        events = ",\n".join(json.dumps(event) for event in [*_names(rank), *_steps(rank, marks)])
        self.write(f"{head}\n{events}".encode())

    def write(self, text: bytes | memoryview) -> None:
        """Add events, each begun by a comma."""
        self._file.write(self._pack.compress(text))

    def close(self) -> None:
        """Finish the file; a second call does nothing."""
        if not self._file.closed:
            self.write(b"\n]}\n")
            self._file.write(self._pack.flush())
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _names(gpu: int) -> list[dict[str, object]]:
    """What viewers call the processes and rows, and the order in which they show them."""
    host = HOST_PID + gpu
    found: list[tuple[str, int, int, dict[str, object]]] = []
    for pid, name in ((gpu, f"GPU {gpu}"), (host, f"launches of GPU {gpu}")):
        found.append(("process_name", pid, 0, {"name": name}))
        found.append(("process_sort_index", pid, 0, {"sort_index": pid}))
    found.append(("thread_name", host, STEP_TID, {"name": "steps"}))
    for stream, name in enumerate(STREAMS):
        found.append(("thread_name", gpu, stream_id(stream), {"name": f"{name} stream"}))
        found.append(("thread_name", host, stream_id(stream), {"name": f"launches on {name}"}))
    return [
        {"ph": "M", "name": what, "pid": pid, "tid": tid, "ts": 0, "args": args}
        for what, pid, tid, args in found
    ]


def _steps(gpu: int, marks: Sequence[Mark]) -> list[dict[str, object]]:
    """A mark for each step, and an empty one after them, since readers drop the last."""
    number, _, end = marks[-1]
    return [
        {
            "ph": "X",
            "cat": "user_annotation",
            "name": f"ProfilerStep#{step}",
            "pid": HOST_PID + gpu,
            "tid": STEP_TID,
            "ts": at,
            "dur": until - at,
            "args": {},
        }
        for step, at, until in [*marks, (number + 1, end, end + 1)]
    ]


class Rates:
    """Bytes per second over time, of several lanes: what was moved in each of equal intervals.

    State: sums over the transfers added so far. A transfer moves its bytes evenly. Between two
    instants the bytes moved are a broken line; its breaks are summed by interval, and the line
    is put together once, when asked for.
    """

    def __init__(self, lanes: int, length_s: float, intervals: int) -> None:
        self.edges_s = np.linspace(0.0, length_s, intervals + 1)
        self._slope = np.zeros((lanes, intervals + 2))
        self._offset = np.zeros((lanes, intervals + 2))

    def add(
        self,
        lane: npt.NDArray[np.int64],
        begin_s: npt.NDArray[np.float64],
        end_s: npt.NDArray[np.float64],
        bytes_: npt.NDArray[np.float64],
    ) -> None:
        """Add transfers [n] of bytes from begin to end (later than begin)."""
        rate = bytes_ / (end_s - begin_s)
        width = self._slope.shape[1]
        for sign, at_s in ((1.0, begin_s), (-1.0, end_s)):
            where = lane * width + np.searchsorted(self.edges_s, at_s)
            for sums, weights in ((self._slope, sign * rate), (self._offset, -sign * rate * at_s)):
                found = np.bincount(where, weights, minlength=sums.size)
                sums += found.reshape(sums.shape)

    def of(self, lane: int) -> npt.NDArray[np.float64]:
        """Bytes per second in each interval [intervals]."""
        moved = (
            np.cumsum(self._slope[lane])[:-1] * self.edges_s + np.cumsum(self._offset[lane])[:-1]
        )
        rate: npt.NDArray[np.float64] = np.maximum(np.diff(moved) / np.diff(self.edges_s), 0.0)
        return rate
