"""Whole microseconds: order on each stream, nearness, and sums over states by brute force."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.results.kineto_time import WholeMicroseconds
from simulator.runfiles.spans import COMBINE, COMM, COMPUTE, COPY, DEMAND, DISPATCH, EXPERTS

LANES = ((COMPUTE, (EXPERTS,)), (COMM, (DISPATCH, COMBINE)), (COPY, (DEMAND,)))


def drawn(rng: np.random.Generator, ranks: int, spans: int, least_us: float) -> list[Any]:
    """Spans of each stream of some ranks, back to back or apart: rank, stream, kind, begin, end."""
    rows = []
    for rank in range(ranks):
        for stream, kinds in LANES:
            lengths = least_us + rng.exponential(1.0, spans)
            gaps = np.where(rng.random(spans) < 0.5, 0.0, rng.exponential(2.0, spans))
            begin = np.cumsum(gaps + lengths) - lengths
            for at, length in zip(begin, lengths, strict=True):
                rows.append((rank, stream, rng.choice(kinds), at, at + length))
    order = rng.permutation(len(rows))
    return [np.array(column)[order] for column in zip(*rows, strict=True)]


def states(stream: Any, kind: Any, begin: Any, end: Any) -> dict[Any, float]:
    """Time in each state of one GPU: (what computes, what is sent), None for nothing."""
    cuts = np.unique(np.concatenate([begin, end]))
    found: dict[Any, float] = defaultdict(float)
    for low, high in pairwise(cuts):
        runs = [None, None]
        for row in np.flatnonzero((begin <= low) & (end >= high)):
            if stream[row] in (COMPUTE, COMM):
                runs[stream[row]] = kind[row]
        found[tuple(runs)] += high - low
    return found


@pytest.mark.parametrize("seed", range(8))
def test_the_time_in_each_state_is_true_to_some_microseconds(seed: int) -> None:
    rank, stream, kind, begin_us, end_us = drawn(np.random.default_rng(seed), 2, 250, 1.0)
    begin, end = WholeMicroseconds(2).place(rank, stream, kind, begin_us, end_us)
    assert np.all(np.abs(begin - begin_us) < 1)
    assert np.all(np.abs(end - end_us) < 1)
    for one in range(2):
        of = rank == one
        truth = states(stream[of], kind[of], begin_us[of], end_us[of])
        found = states(stream[of], kind[of], begin[of], end[of])
        for state, length_us in truth.items():
            assert found[state] == pytest.approx(length_us, abs=2.5), state
    # To the nearest, 500 lengths in all are off by 10 us and more.


@given(seed=st.integers(0, 10_000), least_us=st.sampled_from([0.001, 0.3, 1.0]))
def test_nothing_overlaps_and_all_lasts(seed: int, least_us: float) -> None:
    clock = WholeMicroseconds(3)
    ends: dict[Any, int] = {}
    rank, stream, kind, begin_us, end_us = drawn(np.random.default_rng(seed), 3, 12, least_us)
    early = end_us < 12.0
    for some in (early, ~early):
        begin, end = clock.place(*(of[some] for of in (rank, stream, kind, begin_us, end_us)))
        for row in np.lexsort((begin_us[some],)):
            lane = rank[some][row], stream[some][row]
            assert begin[row] >= ends.get(lane, 0)
            assert end[row] >= begin[row] + 1
            ends[lane] = end[row]


def test_instants_in_whole_microseconds_stay() -> None:
    rank, stream = np.zeros(4, dtype=np.int64), np.array([COMPUTE, COMPUTE, COMM, COPY])
    kind = np.array([EXPERTS, EXPERTS, DISPATCH, DEMAND])
    begin_us, end_us = np.array([3.0, 5.0, 4.0, 0.0]), np.array([5.0, 9.0, 6.0, 100.0])
    begin, end = WholeMicroseconds(1).place(rank, stream, kind, begin_us, end_us)
    assert begin.tolist() == [3, 5, 4, 0]
    assert end.tolist() == [5, 9, 6, 100]


@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_the_rows_does_not_matter(seed: int) -> None:
    rows = drawn(np.random.default_rng(seed), 3, 60, 0.01)
    order = np.lexsort((rows[3], rows[1], rows[0]))
    given = WholeMicroseconds(3).place(*rows)
    ordered = WholeMicroseconds(3).place(*(column[order] for column in rows))
    for one, other in zip(given, ordered, strict=True):
        assert one[order].tolist() == other.tolist()
