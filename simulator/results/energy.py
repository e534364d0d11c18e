"""Joules of a run: FLOPs, HBM bytes, link bytes and the power of what is switched on.

    GPU      idle power x time + FLOPs x J/FLOP + HBM bytes x J/B      (never above TDP)
    links    bytes x J/B, by kind, for every link that a byte crosses
    beside   power x time of NVSwitch ports, NICs and CPUs, each if it is counted
    site     (PUE - 1) x all of these

HBM bytes are those of the kernels, twice those sent to other GPUs (read here, written there) and
once those of fetched weights. Every GPU draws idle power all the time, also while it waits.

A kernel that would take its GPU above TDP is booked at TDP, and so is a GPU whose copies come on
top of that; what is cut off is told as `over_tdp`. A real GPU would lower its clock instead: its
kernels would take longer, which the simulated times do not show.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.runfiles.spans import KINDS
from simulator.runfiles.tables import Columns, for_kernel

JOULES_PER_KWH = 3.6e6
BESIDE = ("nvswitch", "nic", "cpu")
"""Parts beside the GPUs that are counted or excluded by name."""


@dataclass(frozen=True)
class EnergyRates:
    """Figures of one run, SI units.

    j_per_flop: by kind of compute span; link_j_per_byte: by kind of link; beside_w: power of those
    of `BESIDE` that are counted, of the whole cluster; pue: power of the site over that of these.
    """

    idle_w: float
    tdp_w: float
    j_per_flop: Mapping[str, float]
    hbm_j_per_byte: float
    link_j_per_byte: Mapping[str, float]
    beside_w: Mapping[str, float]
    pue: float


@dataclass
class EnergyTally:
    """Sums over the measured spans, arrays [gpus]: J of FLOPs and of HBM bytes, J cut off at TDP,
    and seconds in kernels that were cut.
    """

    gpus: int
    compute_j: npt.NDArray[np.float64] = field(init=False)
    hbm_j: npt.NDArray[np.float64] = field(init=False)
    over_j: npt.NDArray[np.float64] = field(init=False)
    over_s: npt.NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.compute_j, self.hbm_j, self.over_j, self.over_s = np.zeros((4, self.gpus))

    def add(self, block: Columns, measured: npt.NDArray[np.bool_], rates: EnergyRates) -> None:
        """Add the spans of `block` (columns [n]) of which `measured` [n] is true."""
        from simulator.results import tally_kernels as kernels

        j_per_flop = np.array([rates.j_per_flop.get(kind, 0.0) for kind in KINDS])
        given = kernels.Drawn(*for_kernel(block, kernels.Drawn._fields))
        sums = np.zeros((4, self.gpus))
        most_w = rates.tdp_w - rates.idle_w
        kernels.draw(given, measured, j_per_flop, rates.hbm_j_per_byte, most_w, sums)
        self._add(sums)

    def merge(self, other: EnergyTally) -> None:
        """Add what another one has counted."""
        self._add((other.compute_j, other.hbm_j, other.over_j, other.over_s))

    def _add(self, sums: Iterable[npt.NDArray[np.float64]]) -> None:
        mine = (self.compute_j, self.hbm_j, self.over_j, self.over_s)
        for total, more in zip(mine, sums, strict=True):
            total += more


def energy_figures(
    tally: EnergyTally, rates: EnergyRates, links: Columns, time_s: float, steps: int, tokens: float
) -> dict[str, Any]:
    """The figures of `energy` in a summary: J per step and token by part, power, the boundary.

    links: columns of `links.parquet`; time_s, steps, tokens: of the measured steps.
    """
    room_j = (rates.tdp_w - rates.idle_w) * time_s
    asked_j = tally.compute_j + tally.hbm_j
    share = room_j / np.maximum(asked_j, room_j)
    compute_j, hbm_j = tally.compute_j * share, tally.hbm_j * share
    over_j = tally.over_j + asked_j * (1 - share)
    parts = {
        "gpu_idle": tally.gpus * rates.idle_w * time_s,
        "gpu_compute": float(np.sum(compute_j)),
        "gpu_hbm": float(np.sum(hbm_j)),
    }
    for kind in sorted(set(links["kind"])):
        moved = float(np.sum(links["bytes"][links["kind"] == kind]))
        parts[f"link_{kind}"] = moved * rates.link_j_per_byte.get(kind, 0.0)
    parts |= {name: power_w * time_s for name, power_w in rates.beside_w.items()}
    parts["site"] = (rates.pue - 1) * sum(parts.values())
    total_j = sum(parts.values())
    power_w = rates.idle_w + (compute_j + hbm_j) / time_s
    counted = {name: "counted" if name in rates.beside_w else "excluded" for name in BESIDE}
    return {
        "joules_per_step": total_j / steps,
        "joules_per_token": total_j / tokens if tokens else None,
        "kwh_per_million_tokens": 1e6 * total_j / tokens / JOULES_PER_KWH if tokens else None,
        "joules_per_step_by_part": {name: part / steps for name, part in parts.items()},
        "power_w": total_j / time_s,
        "gpu_power_w": {
            "mean": float(np.mean(power_w)),
            "max": float(np.max(power_w)),
            "idle": rates.idle_w,
            "tdp": rates.tdp_w,
        },
        "over_tdp_joules_per_step": float(np.sum(over_j)) / steps,
        "over_tdp_time_fraction": float(np.mean(tally.over_s)) / time_s,
        "boundary": {**counted, "pue": rates.pue},
    }
