"""What points say: which keep the constraints, which are best, which axis matters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from simulator.studies.whatif.metrics import Metric
from simulator.studies.whatif.run import Found, Point

Floats = npt.NDArray[np.float64]


class Effect(NamedTuple):
    """What an axis does to a metric.

    share: of the variance over all points, explained by the axis alone; direction: "rises" or
    "falls" where the metric does so all along the axis' numbers, all else equal; else empty.
    """

    axis: str
    share: float
    direction: str


def can_run(point: Point) -> bool:
    """Whether a point was run to its end."""
    return bool(point.row["status"] == "ok")


def keeps(found: Found, point: Point) -> bool:
    """Whether a point was run and keeps all constraints."""
    figures = point.row["figures"]
    return can_run(point) and all(bound.kept(figures) for bound in found.study.constraints)


def front(found: Found) -> list[Point]:
    """The Pareto front: points that keep the constraints and that no other one beats, being no
    worse in any objective and better in one. Of equal points all; none without objectives.
    """
    objectives = found.study.objectives
    entered = []
    for point in found.points:
        values = [metric.number(point.row["figures"]) for metric, _ in objectives]
        if objectives and keeps(found, point) and None not in values:
            signed = [
                v * sign for v, (_, sign) in zip(values, objectives, strict=True) if v is not None
            ]
            entered.append((point, np.array(signed)))
    kept = []
    for point, mine in entered:
        beaten = any(
            bool(np.all(other <= mine)) and bool(np.any(other < mine)) for _, other in entered
        )
        if not beaten:
            kept.append(point)
    return kept


def ranked(found: Found, metric: Metric, sign: float) -> list[Point]:
    """Points that keep the constraints, the best of a metric first (sign 1: the lowest)."""
    with_value = [
        (value * sign, point.number, point)
        for point in found.points
        if keeps(found, point) and (value := metric.number(point.row["figures"])) is not None
    ]
    return [point for _, _, point in sorted(with_value, key=lambda entry: entry[:2])]


def effects(found: Found, metric: Metric) -> list[Effect]:
    """What each axis does to a metric, over all points that were run; empty where they are too few
    to tell, or the metric is the same at all.

    The metric is fitted as a sum of one term for each value of each axis (analysis of variance,
    main effects); an axis' share is by how much the fit gets worse without it (type II sums of
    squares). In a full grid these are the first-order Sobol indices (Sobol, 1993), and sum to 1
    less what the axes do together.
    """
    chosen = [
        (point.choice, value)
        for point in found.points
        if can_run(point) and (value := metric.number(point.row["figures"])) is not None
    ]
    values = np.array([value for _, value in chosen])
    places = np.array([choice for choice, _ in chosen])  # [points, axes]
    if len(chosen) < 2:
        return []
    spread = float(((values - values.mean()) ** 2).sum())
    levels = [sorted(set(places[:, at].tolist())) for at in range(places.shape[1])]
    if spread <= 1e-24 * float((values**2).sum()):
        return []
    if len(chosen) <= sum(len(of) - 1 for of in levels) and len(found.study.axes) > 1:
        return []
    terms = [(places[:, at, None] == np.array(of)).astype(float) for at, of in enumerate(levels)]
    left, fitted = _fit(terms, values)
    told, start = [], 1
    for at, axis in enumerate(found.study.axes):
        without, _ = _fit([term for other, term in enumerate(terms) if other != at], values)
        share = min(max((without - left) / spread, 0.0), 1.0)
        numbers = [axis.values[place].number for place in levels[at]]
        height = fitted[start : start + len(levels[at])]
        told.append(Effect(axis.name, share, _direction(numbers, height, spread)))
        start += len(levels[at])
    return told


def _fit(terms: Sequence[Floats], values: Floats) -> tuple[float, Floats]:
    """The squares that a sum of terms leaves, and its heights: the constant, then of each term."""
    table = np.hstack([np.ones((len(values), 1)), *terms])
    fitted: Floats = np.linalg.lstsq(table, values, rcond=None)[0].astype(np.float64)
    return float(((values - table @ fitted) ** 2).sum()), fitted


def is_full(found: Found) -> bool:
    """Whether all points of the grid were run: then shares of the variance do not overlap."""
    return len(found.points) == found.study.size and all(map(can_run, found.points))


def _direction(numbers: Sequence[float | None], heights: Floats, spread: float) -> str:
    if len(numbers) < 2 or None in numbers:
        return ""
    pairs = sorted(zip([n for n in numbers if n is not None], heights.tolist(), strict=True))
    steps = np.diff([height for _, height in pairs])
    noise = 1e-9 * math.sqrt(spread)
    if bool(np.all(steps > noise)):
        return "rises"
    return "falls" if bool(np.all(steps < -noise)) else ""
