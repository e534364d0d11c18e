"""What a GPU's kernels, links and the parts beside it draw, for the analyzer."""

from __future__ import annotations

from typing import Any

from simulator.model import sizes
from simulator.runfiles.spans import KINDS
from simulator.spec import energy as spec
from simulator.spec.schema import Gpu, Workload

# Whose weights a kind of compute span multiplies; what is not named is a dense FFN's.
_PART: dict[str, sizes.Part] = {
    "attention": "attention",
    "experts": "experts",
    "lm_head": "lm_head",
}


def energy_rates(
    workload: Workload, gpu: Gpu, fabric_bytes_per_s: float, nics: int, cpus: int
) -> dict[str, Any]:
    """The fields of `simulator.results.energy.EnergyRates`, SI units.

    fabric_bytes_per_s: bandwidth into the NVSwitches (one direction) of the whole cluster. All
    FLOPs of a span are booked at the type of its weights, those of the scores of attention too.
    """
    energy = workload.energy
    beside = {
        "nvswitch": spec.nvswitch_w(energy, fabric_bytes_per_s),
        "nic": nics * spec.nic_w(energy),
        "cpu": cpus * spec.cpu_w(energy),
    }
    return {
        "idle_w": gpu.idle_power_w,
        "tdp_w": gpu.tdp_w,
        "j_per_flop": {
            kind: spec.j_per_flop(gpu, energy, _unit(workload, gpu, kind)) for kind in KINDS
        },
        "hbm_j_per_byte": spec.hbm_j_per_byte(energy),
        "link_j_per_byte": energy.links.by_kind(),
        "beside_w": {
            name: power_w for name, power_w in beside.items() if getattr(energy, name) == "counted"
        },
        "pue": energy.pue,
    }


def _unit(workload: Workload, gpu: Gpu, kind: str) -> str:
    dtype = sizes.dtype_of(workload.model, _PART.get(kind, "dense"))
    return sizes.compute_dtype(dtype, gpu)
