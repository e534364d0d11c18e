"""The kernel sets (`simulator.studies.validation.compute_sets`) as verdicts of `validate`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from simulator.studies.validation.compute_sets import KernelSet, kernel_sets, simulated_kernels
from simulator.studies.validation.compute_tables import KernelRow
from simulator.studies.validation.measured import Measurement
from simulator.studies.validation.sets import Limit, Set
from simulator.studies.validation.verdicts import Simulated, Verdict, judged


def kernel_verdicts(reference: Path | None, bounds: Mapping[str, Limit]) -> list[Verdict]:
    """Simulate all kernel sets; `reference` as in `validate`."""
    return [_verdict(found, bounds[found.key]) for found in kernel_sets(reference)]


def _verdict(found: KernelSet, limit: Limit) -> Verdict:
    rows = tuple(_measurement(row) for row in found.rows)
    told = Set(found.key, found.title, found.kind, "", rows, lambda row: "")
    simulated = [
        Simulated(row, seconds, "")
        for row, seconds in zip(rows, simulated_kernels(found.rows), strict=True)
    ]
    return judged(told, simulated, limit, found.parameters)


def _measurement(row: KernelRow) -> Measurement:
    return Measurement(row.where, row.system, row.name, 1, row.time_s)
