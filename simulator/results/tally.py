"""Sums over the spans of a run that need no order of them: busy time, bytes, FLOPs, fetches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from simulator.errors import InputError
from simulator.results.energy import EnergyRates, EnergyTally
from simulator.runfiles.spans import KINDS, STEP_SCHEMA, STREAMS
from simulator.runfiles.tables import Columns, for_kernel, read_table

SPAN_COLUMNS = (
    "step", "gpu", "stream", "kind", "start_s", "end_s", "peer", "bytes", "flops", "used",
)  # fmt: skip
"""What a tally needs of the spans."""


@dataclass(frozen=True)
class Steps:
    """Measured steps, in order: arrays [steps]; last: the number of the run's last step."""

    step: npt.NDArray[np.int64]
    start_s: npt.NDArray[np.float64]
    end_s: npt.NDArray[np.float64]
    tokens: npt.NDArray[np.int64]
    last: int


def measured_steps(path: Path) -> Steps:
    """The measured steps of the table at `path`.

    Errors: InputError if it is missing or damaged, no step was measured, or steps overlap.
    """
    table = read_table(path, STEP_SCHEMA)
    chosen = np.flatnonzero(~table["warmup"])
    chosen = chosen[np.argsort(table["step"][chosen], kind="stable")]
    if not len(chosen):
        raise InputError(f"{path}: no step was measured; raise the number of steps")
    steps = Steps(
        step=table["step"][chosen].astype(np.int64),
        start_s=table["start_s"][chosen],
        end_s=table["end_s"][chosen],
        tokens=table["tokens"][chosen],
        last=int(table["step"].max()),
    )
    if not np.all(steps.end_s > steps.start_s):
        raise InputError(f"{path}: a step takes no time")
    if np.any(np.diff(steps.step) <= 0) or np.any(steps.start_s[1:] < steps.end_s[:-1]):
        raise InputError(f"{path}: steps overlap or are listed twice")
    return steps


class Tally:
    """Sums over the spans of the measured steps.

    busy_s: float [streams, gpus]; bytes_by_kind: float [kinds]; the rest are numbers. energy: None
    without rates.
    """

    def __init__(self, gpus: int, rates: EnergyRates | None) -> None:
        self.busy_s = np.zeros((len(STREAMS), gpus))
        self.bytes_by_kind = np.zeros(len(KINDS))
        self.flops = self.wasted_bytes = 0.0
        self.prefetches = self.prefetches_used = self.fetches = self.lent = 0
        self.energy = None if rates is None else EnergyTally(gpus)

    def add(self, other: Tally) -> None:
        """Add what another one has counted."""
        self.busy_s += other.busy_s
        self.bytes_by_kind += other.bytes_by_kind
        self.flops += other.flops
        self.wasted_bytes += other.wasted_bytes
        self.prefetches += other.prefetches
        self.prefetches_used += other.prefetches_used
        self.fetches += other.fetches
        self.lent += other.lent
        if self.energy is not None and other.energy is not None:
            self.energy.merge(other.energy)


def tally(spans: Columns, steps: Steps, gpus: int, rates: EnergyRates | None) -> Tally:
    """Count the spans (`SPAN_COLUMNS` [n], checked by `iter_spans`: all on one of the GPUs), those
    of measured steps, but in busy time what lies in measured steps of any of them.
    """
    from simulator.results import tally_kernels as kernels

    total = Tally(gpus, rates)
    rows = len(spans["step"])
    lengths = steps.end_s - steps.start_s
    done_s = np.concatenate([[0.0], np.cumsum(lengths)])[:-1]
    found = kernels.Found(
        total.busy_s,
        total.bytes_by_kind,
        np.empty(rows),
        np.empty(rows, np.bool_),
        np.zeros(kernels.COUNTS, np.int64),
    )
    given = kernels.Spans(*for_kernel(spans, kernels.Spans._fields))
    kernels.count(given, kernels.Clock(steps.step, steps.start_s, steps.end_s, done_s), found)
    counts = found.counts.tolist()
    whole = counts[kernels.MEASURED] == rows
    total.flops = float(np.sum(spans["flops"] if whole else spans["flops"][found.measured]))
    total.wasted_bytes = float(np.sum(found.wasted_bytes[: counts[kernels.WASTED]]))
    total.prefetches, total.prefetches_used = counts[kernels.PREFETCHES], counts[kernels.USED]
    total.fetches, total.lent = counts[kernels.FETCHES], counts[kernels.LENT]
    if total.energy is not None and rates is not None:
        total.energy.add(spans, found.measured, rates)
    return total
