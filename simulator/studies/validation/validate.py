"""How far simulated times are from measured ones, set by set (`sets`)."""

from __future__ import annotations

from pathlib import Path

from simulator.spec.transport import Transport, load_transport
from simulator.studies.validation.compute_validate import kernel_verdicts
from simulator.studies.validation.fit import Fitted, Key, fit, prepare, unknowns
from simulator.studies.validation.sets import Set, calibration, limits, sets
from simulator.studies.validation.simulated import simulated_s
from simulator.studies.validation.verdicts import Simulated, Verdict, judged


def validate(reference: Path | None = None) -> list[Verdict]:
    """Simulate all sets, of transports and of kernels.

    `reference`: a folder with the full tables, in place of the shipped ones. Sets of one family are
    also told together (`TOTALS`). Raises InputError for tables that cannot be read.
    """
    bounds = limits()
    found = [
        judged(
            rows,
            simulated(rows, load_transport(rows.transport)),
            bounds[rows.key],
            fitted_parameters(rows.transport) if rows.kind == "calibration" else 0,
        )
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
