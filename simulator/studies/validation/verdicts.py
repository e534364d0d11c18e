"""The figures of a set of measured rows: its error, the best that one could do, and what is ok."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from itertools import groupby
from statistics import median
from typing import NamedTuple

import numpy as np

from simulator.studies.validation.fit import error_of
from simulator.studies.validation.measured import Measurement
from simulator.studies.validation.sets import Limit, Set

FAR = 0.30  # a blind row that is farther off needs an explanation


class Simulated(NamedTuple):
    """A row, what the simulator says (s), and the topology that it says it of."""

    measured: Measurement
    simulated_s: float
    topology: str

    @property
    def ratio(self) -> float:
        """Simulated over measured."""
        return self.simulated_s / self.measured.time_s


class Verdict(NamedTuple):
    """A set with its figures.

    parameters: fitted to these rows, 0 for blind ones; error as `error_of`; p95: the error that
    95 % of the rows stay below; noise: the error of the best curve that does not fall with the
    size, None where there are too few sizes to tell; ok: within the limit, and far blind rows
    explained.
    """

    set: Set
    limit: Limit
    rows: tuple[Simulated, ...]
    parameters: int
    error: float
    p95: float
    worst: Simulated
    noise: float | None
    ok: bool

    @property
    def word(self) -> str:
        """Ok, ok but above the goal, or FAILED."""
        if not self.ok:
            return "FAILED"
        missed = self.limit.goal is not None and self.error > self.limit.goal
        return "goal missed" if missed else "ok"


def judged(rows: Set, found: Sequence[Simulated], limit: Limit, parameters: int) -> Verdict:
    """The figures of a set; parameters: as in `Verdict`."""
    off = np.abs(np.log([row.ratio for row in found]))
    far = rows.kind == "blind" and float(np.expm1(off.max())) > FAR
    error = float(np.expm1(off.mean()))
    return Verdict(
        rows,
        limit,
        tuple(found),
        parameters,
        error,
        float(np.expm1(np.percentile(off, 95))),
        found[int(off.argmax())],
        noise_floor([row.measured for row in found]),
        error <= limit.limit and not (far and not limit.explanation),
    )


def noise_floor(rows: Sequence[Measurement]) -> float | None:
    """The error of the best curve that does not fall with the size, per operation and machine.

    No model that is monotone in the size can do better on these rows. None where no group has
    three sizes.
    """
    fitted: list[float] = []
    measured: list[float] = []
    told = False
    ordered = sorted(rows, key=lambda row: (_group(row), _size(row)))
    for _, members in groupby(ordered, key=_group):
        same = [[row.time_s for row in some] for _, some in groupby(members, key=_size)]
        told |= len(same) >= 3
        for times, curve in zip(same, monotone(same), strict=True):
            measured += times
            fitted += [curve] * len(times)
    return error_of(fitted, measured) if told else None


def _group(row: Measurement) -> tuple[object, ...]:
    return row.system, row.operation, row.ranks, row.sms


def _size(row: Measurement) -> tuple[float, int]:
    return row.size_bytes, row.tokens


def monotone(times: Sequence[Sequence[float]]) -> list[float]:
    """The non-decreasing curve with the least sum of |ln(curve / time)|; one value per size.

    times: per size, in order, what was measured. Neighbours out of order are pooled to their
    median (Barlow, Bartholomew, Bremner, Brunk, "Statistical inference under order restrictions",
    1972).
    """
    blocks: list[tuple[list[float], int]] = []  # sorted times, number of sizes
    for some in times:
        block, count = sorted(some), 1
        while blocks and _middle(blocks[-1][0]) > _middle(block):
            before, sizes = blocks.pop()
            for time in before:
                bisect.insort(block, time)
            count += sizes
        blocks.append((block, count))
    return [_middle(block) for block, count in blocks for _ in range(count)]


def _middle(block: Sequence[float]) -> float:
    """The median in logarithms."""
    return float(np.exp(median(np.log(block))))
