"""What GPUs did at each instant, from when kernels began and ended: for simulated and recorded
runs alike.

Where kernels of several sorts run at once, the instant counts as compute; else as communication
(then exposed); else as copies (exposed); with none, as idle. So the four parts make up the window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

SORTS = ("compute", "communication", "copies")
COMPUTING, COMMUNICATING, COPYING = range(3)

PARTS = ("compute", "exposed_communication", "exposed_copies", "idle")

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class StreamTime:
    """One stream of a GPU: its name, how many kernels, and how long at least one of them ran."""

    stream: str
    kernels: int
    busy_s: float


@dataclass(frozen=True)
class GpuTime:
    """One GPU within its window (`window_s`).

    parts_s: float [len(PARTS)], which add up to the window; sorts_s: float [len(SORTS)], the time
    in which at least one kernel of the sort ran; overlap_s: communication under compute.
    """

    rank: int
    device: str
    window_s: float
    parts_s: npt.NDArray[np.float64]
    sorts_s: npt.NDArray[np.float64]
    overlap_s: float
    streams: list[StreamTime]


def gpu_time(
    rank: int,
    device: str,
    begin_ns: Ints,
    end_ns: Ints,
    sort: npt.NDArray[Any],
    stream: npt.NDArray[Any],
    names: list[str],
) -> GpuTime:
    """Account for kernels [n > 0], each of a sort (index into `SORTS`) on a stream (into `names`),
    from the first one's begin to the last one's end.
    """
    each = [_union(begin_ns[sort == one], end_ns[sort == one]) for one in range(len(SORTS))]
    both = _union(*_stacked(each[COMPUTING], each[COMMUNICATING]))
    total = _union(*_stacked(both, each[COPYING]))
    compute, communication, copies = (_length(one) for one in each)
    window = int(end_ns.max()) - int(begin_ns.min())
    parts = (
        compute, _length(both) - compute, _length(total) - _length(both), window - _length(total),
    )  # fmt: skip
    streams = []
    for index, name in enumerate(names):
        mine = stream == index
        busy = _length(_union(begin_ns[mine], end_ns[mine]))
        streams.append(StreamTime(name, int(np.count_nonzero(mine)), busy / 1e9))
    return GpuTime(
        rank=rank,
        device=device,
        window_s=window / 1e9,
        parts_s=np.array(parts) / 1e9,
        sorts_s=np.array((compute, communication, copies)) / 1e9,
        overlap_s=(compute + communication - _length(both)) / 1e9,
        streams=streams,
    )


def _union(begin: Ints, end: Ints) -> tuple[Ints, Ints]:
    """Intervals [n] as the fewest that cover the same instants, in order."""
    if not len(begin):
        return begin, end
    order = np.argsort(begin, kind="stable")
    begin, end = begin[order], np.maximum.accumulate(end[order])
    first = np.append(True, begin[1:] > end[:-1])
    return begin[first], end[np.append(first[1:], True)]


def _stacked(one: tuple[Ints, Ints], other: tuple[Ints, Ints]) -> tuple[Ints, Ints]:
    return np.append(one[0], other[0]), np.append(one[1], other[1])


def _length(intervals: tuple[Ints, Ints]) -> int:
    return int(np.sum(intervals[1] - intervals[0]))
