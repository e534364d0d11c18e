"""How far simulated times are from measured ones, set by set (`sets`)."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

from simulator.spec.transport import Transport, load_transport
from simulator.studies.validation.fit import Fitted, Key, error_of, fit, prepare, unknowns
from simulator.studies.validation.measured import Measurement
from simulator.studies.validation.sets import Limit, Set, calibration, limits, sets
from simulator.studies.validation.simulated import simulated_s

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


def validate(reference: Path | None = None) -> list[Verdict]:
    """Simulate all sets, of transports and of kernels.

    `reference`: a folder with the full tables, in place of the shipped ones. Sets of one family are
    also told together (`TOTALS`). Raises InputError for tables that cannot be read.
    """
    bounds = limits()
    found = [
        judged(rows, simulated(rows, load_transport(rows.transport)), bounds[rows.key])
        for rows in sets(reference)
    ]
    for key, title, members in TOTALS:
        parts = [verdict for verdict in found if verdict.set.key in members]
        first = parts[0].set
        whole = first._replace(
            key=key, title=title, transport="", rows=tuple(r for p in parts for r in p.set.rows)
        )
        rows = [row for part in parts for row in part.rows]
        parameters = sum(part.parameters for part in parts)
        found.append(judged(whole, rows, bounds[key], parameters))
    # Here, because it takes its types from this module.
    from simulator.studies.validation.compute_validate import kernel_verdicts

    return found + kernel_verdicts(reference, bounds)


TOTALS = (
    (
        "deepep-calibration",
        "DeepEP, all calibration rows",
        ("deepep-ll-calibration", "deepep-normal-calibration"),
    ),
    (
        "deepep-blind",
        "DeepEP, all blind rows",
        ("deepep-ll-blind", "deepep-ll-rdma-blind", "deepep-normal-blind"),
    ),
    (
        "deepep-ll-column",
        "DeepEP low latency, H800, EP16 to EP256, NVLink and RDMA, with the repeated rows",
        ("deepep-ll-blind", "deepep-ll-repeated"),
    ),
)


def simulated(rows: Set, transport: Transport) -> list[Simulated]:
    """Every row of a set, simulated."""
    found = []
    for measured in rows.rows:
        topology = rows.topology_of(measured)
        found.append(Simulated(measured, simulated_s(measured, topology, transport), topology))
    return found


def judged(
    rows: Set, found: Sequence[Simulated], limit: Limit, parameters: int | None = None
) -> Verdict:
    """The figures of a set; parameters: as in `Verdict`, counted if None."""
    off = np.abs(np.log([row.ratio for row in found]))
    far = rows.kind == "blind" and float(np.expm1(off.max())) > FAR
    error = float(np.expm1(off.mean()))
    if parameters is None:
        parameters = fitted_parameters(rows.transport) if rows.kind == "calibration" else 0
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


def fitted_parameters(transport: str) -> int:
    """How many parameters of a shipped transport its calibration rows were fitted with."""
    fitted = calibration(transport)
    rows = prepare(fitted.rows, fitted.topology_of, load_transport(transport))
    return len([key for key in unknowns(rows) if key not in FIXED.get(transport, ())])


# The five sizes of mnnvl begin at 512 MiB: they cannot tell a launch. Its own is that of 8 H100.
FIXED: dict[str, dict[Key, float]] = {"mnnvl": {("launch", "allreduce"): 13.7e-6}}


def refit(transport: str, like: Transport) -> Fitted:
    """Fit a shipped transport anew to its shipped calibration rows."""
    rows = calibration(transport)
    return fit(rows.rows, rows.topology_of, like, FIXED.get(transport))


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
