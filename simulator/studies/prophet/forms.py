"""The closed form behind the published Prophet table, and what would have to be true for a claim.

    r         = experts_per_token x expert_bytes x single-GPU rate / bandwidth;   0 at EP = 1
    units     = max(EP, DP)
    baseline  = units x rate / (1 + r)
    Prophet   = units x rate x memory_reduction / (1 + (1 - accuracy) r)
    $/1M      = GPUs x price / 3600 / throughput x 1e6

It was recovered from the published figures and gives every hybrid throughput, speed-up, cost and
saving of the table to the printed digits. It is shown because the claims rest on it, not because
it is right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from simulator.results.summary import number
from simulator.studies.common.claims import Published, solve

SECONDS_PER_HOUR = 3600.0
MONTHS = 12
MILLION = 1e6


class Point(NamedTuple):
    """All that the closed form takes, SI units; price in $ per GPU and hour."""

    gpus: float
    ep: float
    dp: float
    bandwidth_bytes_per_s: float
    price_per_hour: float
    rate_tokens_per_s: float
    expert_bytes: float
    experts_per_token: float
    accuracy: float
    memory_reduction: float
    tokens_per_month: float
    hardware_cost: float

    @property
    def communication_per_compute(self) -> float:
        """What the module's formulas call r."""
        if self.ep <= 1:
            return 0.0
        moved = self.experts_per_token * self.expert_bytes
        return moved * self.rate_tokens_per_s / self.bandwidth_bytes_per_s


@dataclass(frozen=True)
class Figures:
    """What the closed form or two simulations say of one strategy on one system.

    Throughputs in token/s; comm_*: share of the time that goes on moving experts or tokens;
    bytes_ratio: bytes that the baseline moves over those that Prophet does; scaling_*: throughput
    per counted GPU over that of one GPU alone; costs in $; None where there is no such figure.
    """

    baseline_tokens_per_s: float
    prophet_tokens_per_s: float
    comm_baseline: float
    comm_prophet: float
    cost_baseline: float
    cost_prophet: float
    saving_per_year: float
    payback_months: float | None
    bytes_ratio: float | None
    scaling_baseline: float | None
    scaling_prophet: float | None

    @property
    def speedup(self) -> float:
        """Prophet over baseline."""
        return self.prophet_tokens_per_s / self.baseline_tokens_per_s

    @property
    def cost_ratio(self) -> float:
        """Cost per token of the baseline over Prophet's."""
        return self.cost_baseline / self.cost_prophet

    @property
    def comm_reduction(self) -> float | None:
        """By what share Prophet's part of communication is smaller; None if there was none."""
        return 1.0 - self.comm_prophet / self.comm_baseline if self.comm_baseline else None

    def value(self, name: str) -> float | None:
        """A figure by its name."""
        found: float | None = getattr(self, name)
        return found


FIGURES = (*Figures.__dataclass_fields__, "speedup", "cost_ratio", "comm_reduction")


def closed_form(at: Point) -> Figures:
    """The published analysis."""
    r = at.communication_per_compute
    left = (1.0 - at.accuracy) * r
    units = max(at.ep, at.dp)
    baseline = units * at.rate_tokens_per_s / (1.0 + r)
    prophet = units * at.rate_tokens_per_s * at.memory_reduction / (1.0 + left)
    return figures(
        at,
        (baseline, prophet),
        (r / (1.0 + r), left / (1.0 + left)),
        1.0 / (1.0 - at.accuracy) if r and at.accuracy < 1.0 else None,
        (1.0 / (1.0 + r), 1.0 / (1.0 + left)),
    )


def figures(
    at: Point,
    tokens_per_s: tuple[float, float],
    communication: tuple[float, float],
    bytes_ratio: float | None,
    scaling: tuple[float | None, float | None],
) -> Figures:
    """Figures of a baseline and Prophet, with their costs: $/1M token and what a year saves."""
    costs = [dollars_per_million(at, rate) for rate in tokens_per_s]
    saving = MONTHS * at.tokens_per_month / MILLION * (costs[0] - costs[1])
    return Figures(
        baseline_tokens_per_s=tokens_per_s[0],
        prophet_tokens_per_s=tokens_per_s[1],
        comm_baseline=communication[0],
        comm_prophet=communication[1],
        cost_baseline=costs[0],
        cost_prophet=costs[1],
        saving_per_year=saving,
        payback_months=at.hardware_cost / saving * MONTHS if saving > 0.0 else None,
        bytes_ratio=bytes_ratio,
        scaling_baseline=scaling[0],
        scaling_prophet=scaling[1],
    )


def dollars_per_million(at: Point, tokens_per_s: float) -> float:
    """$ per million tokens of GPUs that are rented by the hour."""
    return at.gpus * at.price_per_hour / SECONDS_PER_HOUR / tokens_per_s * MILLION


def overlap_bound(at: Point) -> float:
    """The speed-up if every expert were known ahead and its bytes still had to be moved:
    communication and compute side by side instead of one after the other.
    """
    r = at.communication_per_compute
    return (1.0 + r) / max(1.0, r)


# --- What would have to be true ----------------------------------------------------------


class _Knob(NamedTuple):
    """An assumption that may be otherwise: how it is told, and the values to look through."""

    field: str
    told: str
    unit: float
    grid: Callable[[float], list[float]]


def _decades(value: float) -> list[float]:
    """A thousandth to a thousand times a value, 20 to a decade."""
    return [value * 10.0 ** (step / 20.0) for step in range(-60, 61)]


def _from_one(value: float) -> list[float]:
    return [10.0 ** (step / 20.0) for step in range(61)]


def _to_one(value: float) -> list[float]:
    return [step / 100.0 for step in range(101)]


KNOBS = (
    _Knob("bandwidth_bytes_per_s", "{} GB/s", 1e9, _decades),
    _Knob("accuracy", "accuracy {}", 1.0, _to_one),
    _Knob("memory_reduction", "memory reduction {}", 1.0, _from_one),
    _Knob("rate_tokens_per_s", "{} token/s on one GPU", 1.0, _decades),
    _Knob("price_per_hour", "${}/h", 1.0, _decades),
    _Knob("hardware_cost", "${} of hardware", 1.0, _decades),
)


def holds_at(at: Point, figure: str, claim: Published, scale: float) -> str:
    """The nearest value of each single assumption at which the closed form gives the claim, the
    two first ones in words; the others stay as they are.
    """
    found = []
    for knob in KNOBS:
        start: float = getattr(at, knob.field)

        def value(x: float, field: str = knob.field) -> float | None:
            given = closed_form(at._replace(**{field: x})).value(figure)
            return None if given is None else given * scale

        x = solve(value, knob.grid(start), claim, start)
        if x is not None and abs(x / start - 1.0) > 1e-9:
            found.append(knob.told.format(number(round(x / knob.unit, 9), 4)))
    return " or ".join(found[:2]) if found else "no value of any one assumption"


# --- Claims on all systems together ------------------------------------------------------


class Standing(NamedTuple):
    """A system among the others: GPUs, bandwidth as published, speed-up and fall of the part of
    communication (None without communication).
    """

    gpus: int
    bandwidth_bytes_per_s: float
    speedup: float
    comm_reduction: float | None


Systems = Mapping[str, Standing]


def grows_with_gpus(of: Systems, system: str, other: str) -> bool:
    """Whether more GPUs always have the higher speed-up."""
    return _rising([(s.gpus, s.speedup) for s in of.values()])


def highest(of: Systems, system: str, other: str) -> bool:
    """Whether a system has the highest speed-up."""
    return all(of[system].speedup > s.speedup for name, s in of.items() if name != system)


def lower_than(of: Systems, system: str, other: str) -> bool:
    """Whether a system's speed-up is lower than another's."""
    return of[system].speedup < of[other].speedup


def falls_more_on_faster_links(of: Systems, system: str, other: str) -> bool:
    """Whether the part of communication falls more where the links are faster."""
    return _rising(
        [(s.bandwidth_bytes_per_s, s.comm_reduction) for s in of.values() if s.comm_reduction]
    )


def _rising(points: Sequence[tuple[float, float]]) -> bool:
    """Whether y never falls as x grows, and grows in all."""
    ordered = sorted(points)
    values = [y for _, y in ordered]
    return len(set(values)) > 1 and all(b[1] >= a[1] or a[0] == b[0] for a, b in pairwise(ordered))


ORDERS: dict[str, Callable[[Systems, str, str], bool]] = {
    "grows_with_gpus": grows_with_gpus,
    "highest": highest,
    "lower_than": lower_than,
    "falls_more_on_faster_links": falls_more_on_faster_links,
}
