"""Instants in whole microseconds, as readers of Kineto's traces need them, whose sums stay true.

Communication takes a microsecond or two, and rounding to the nearest makes the sum over a GPU's
several per cent wrong. So an instant is rounded down or up, whichever brings the time spent in each
state (computing or not, sending what) closer to the truth; what is missing is carried forward.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.compiled import compiled
from simulator.runfiles.spans import COMM, COMPUTE, KINDS, STREAMS

Ints = npt.NDArray[np.int64]

_COMPUTING = len(KINDS) + 1
_STATES = 2 * _COMPUTING
_SAME_US = 1e-4
"""Instants no farther apart are one: sums of seconds in another order."""


class WholeMicroseconds:
    """Where the streams of some ranks stand.

    State: `free` [ranks, streams], from when each stream is free, in us; `owed` [ranks, states],
    by how much the time in each state is too long so far, in us. It stays at about 1 us.
    """

    def __init__(self, ranks: int) -> None:
        self.free = np.zeros((ranks, len(STREAMS)), dtype=np.int64)
        self.owed = np.zeros((ranks, _STATES))

    def place(
        self,
        rank: Ints,
        stream: Ints,
        kind: npt.NDArray[Any],
        begin_us: npt.NDArray[np.float64],
        end_us: npt.NDArray[np.float64],
    ) -> tuple[Ints, Ints]:
        """Begin and end of spans [rows] that follow those placed before.

        Each lasts at least 1 us, and none overlaps the one before it on its stream: what follows a
        shorter one is moved later. All else is less than 1 us from where it was.
        """
        rows = len(rank)
        at = np.concatenate([end_us, begin_us])
        lane = rank * len(STREAMS) + stream
        by_lane = np.arange(rows)
        if np.any(
            np.where(lane[1:] == lane[:-1], begin_us[1:] < begin_us[:-1], lane[1:] < lane[:-1])
        ):
            by_lane = np.lexsort((begin_us, lane))
        ranks = len(self.free)
        firsts = np.searchsorted(lane[by_lane], np.arange(ranks * len(STREAMS) + 1))
        order = np.empty(2 * rows, dtype=np.int64)
        _merge(by_lane, firsts, at, len(STREAMS), order)
        weight = np.where(stream == COMPUTE, _COMPUTING, np.where(stream == COMM, kind + 1, 0))
        begin = np.zeros(rows, dtype=np.int64)
        end = np.zeros(rows, dtype=np.int64)
        _place(order, at, rank, stream, weight, self.free, self.owed, begin, end)
        return begin, end


@compiled
def _merge(
    by_lane: Ints, firsts: Ints, at: npt.NDArray[np.float64], streams: int, order: Ints
) -> None:
    """Fill in order [2 rows]: of `at` [2 rows], the ends, then the begins, by rank, then in time.

    by_lane [rows]: the spans by rank and stream, then in time; firsts [lanes + 1]: of each lane.
    On one stream begins and ends take turns, so its next instant is known.
    """
    rows = len(by_lane)
    filled = 0
    following = np.empty(streams, dtype=np.int64)
    for lane in range(0, len(firsts) - 1, streams):
        for stream in range(streams):
            following[stream] = 2 * firsts[lane + stream]
        while True:
            best, best_edge = -1, -1
            for stream in range(streams):
                edge = following[stream]
                if edge == 2 * firsts[lane + stream + 1]:
                    continue
                # Even: the begin of a span, odd: its end.
                row = by_lane[edge // 2]
                edge = row if edge % 2 else row + rows
                if best < 0 or at[edge] < at[best_edge]:
                    best, best_edge = stream, edge
            if best < 0:
                break
            order[filled] = best_edge
            filled += 1
            following[best] += 1


@compiled
def _place(
    order: Ints,
    at: npt.NDArray[np.float64],
    rank: Ints,
    stream: Ints,
    weight: Ints,
    free: Ints,
    owed: npt.NDArray[np.float64],
    begin: Ints,
    end: Ints,
) -> None:
    """Fill in begin and end [rows] from `at` [2 rows]: the ends, then the begins, in us.

    order [2 rows]: by rank, then in time. The state of a GPU is the sum of the weights [rows] of
    the spans that run, one on each stream.
    """
    rows = len(rank)
    running = np.full(free.shape[1], -1)
    first, mine, last = 0, -1, 0
    while first < len(order):
        of = rank[order[first] % rows]
        if of != mine:
            mine, last = of, -(1 << 62)
            running[:] = -1
        t = at[order[first]]
        before = 0
        for span in running:
            before += weight[span] if span >= 0 else 0
        after, low, until = before, last, first
        while until < len(order):
            edge = order[until]
            span = edge % rows
            if rank[span] != mine or at[edge] - t > _SAME_US:
                break
            lane = stream[span]
            if edge >= rows:
                if running[lane] >= 0:
                    after -= weight[running[lane]]
                running[lane] = span
                after += weight[span]
                low = max(low, free[mine, lane])
            else:
                low = max(low, begin[span] + 1)
                if running[lane] == span:
                    running[lane] = -1
                    after -= weight[span]
            until += 1
        # Later by d: what ran before gets d more, what runs now d less.
        wish = (owed[mine, after] - owed[mine, before]) / 2
        down = int(np.floor(t + _SAME_US))
        us = down if abs(down - t - wish) <= abs(down + 1 - t - wish) else down + 1
        us = max(us, low)
        owed[mine, before] += us - t
        owed[mine, after] -= us - t
        last = us
        for index in range(first, until):
            edge = order[index]
            span = edge % rows
            if edge >= rows:
                begin[span] = max(us, free[mine, stream[span]])
            else:
                end[span] = max(us, begin[span] + 1)
                free[mine, stream[span]] = end[span]
        first = until
