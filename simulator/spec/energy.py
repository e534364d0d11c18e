"""What energy and money a workload counts: keys ``energy`` and ``cost``, defaults of
``energy.yaml``, and what a FLOP costs.

The energy of a FLOP is not published for these GPUs. It is derived: a large GEMM (8192 in all
three dimensions) at the rate that the catalogue's ``compute_efficiency`` gives takes the board to
its TDP and no further, so

    J/FLOP = (TDP - idle power) / (peak FLOP/s * compute_efficiency) - its HBM bytes/FLOP * J/B

for each dtype at its own peak. H100s and H200s do run into their power limit there, in FP8 as in
BF16; for GPUs that do not, this is an upper bound.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import Field

from simulator.spec.fields import BitEnergy, FlopEnergy, FlopsDtype, Power, Spec, Tariff, Volume
from simulator.spec.units import Dimension, parse_quantity

if TYPE_CHECKING:
    from simulator.spec.schema import Gpu

_FILE = Path(__file__).with_name("energy.yaml")

GEMM = 8192
"""Rows, columns and depth of the GEMM that is taken to run at TDP."""

BYTES_PER_FLOP = 3 * 2.0 / (2 * GEMM)
"""HBM bytes per FLOP of that GEMM: three BF16 matrices, each once."""

Counted = Literal["counted", "excluded"]


@cache
def defaults() -> dict[str, Any]:
    """The file: key -> ``{value, source}``, ``links`` one level deeper; values are text."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    loaded: dict[str, Any] = yaml.load(_FILE.read_text(encoding="utf-8"), Loader=loader)
    return loaded


def default(key: str, dimension: Dimension) -> float:
    """The file's figure in SI units; ``key`` is ``hbm`` or ``links.nvlink``."""
    entry = defaults()
    for part in key.split("."):
        entry = entry[part]
    return parse_quantity(entry["value"], dimension)


class LinkEnergy(Spec):
    """J per byte and link that it crosses, by kind of link; null takes the file's."""

    nvlink_j_per_byte: BitEnergy | None = Field(default=None, alias="nvlink")
    pcie_j_per_byte: BitEnergy | None = Field(default=None, alias="pcie")
    membus_j_per_byte: BitEnergy | None = Field(default=None, alias="membus")
    socket_j_per_byte: BitEnergy | None = Field(default=None, alias="socket")
    network_j_per_byte: BitEnergy | None = Field(default=None, alias="network")

    def by_kind(self) -> dict[str, float]:
        """J per byte by kind of link, defaults filled in."""
        given = {name.removesuffix("_j_per_byte"): value for name, value in self}
        return {
            kind: default(f"links.{kind}", "bit energy") if value is None else value
            for kind, value in given.items()
        }


class Energy(Spec):
    """What is counted, and at which figures; null takes that of the file or of the derivation.

    ``nvswitch``, ``nic``, ``cpu``: whether the parts beside the GPUs are counted; ``pue``: power
    of the whole site over that of its computers, 1 counts no cooling. ``compute``: J/FLOP by dtype
    in place of the derived ones.
    """

    nvswitch: Counted = "counted"
    nic: Counted = "counted"
    cpu: Counted = "excluded"
    pue: Annotated[float, Field(ge=1)] = 1.0
    compute_j_per_flop: dict[FlopsDtype, FlopEnergy] = Field(default_factory=dict, alias="compute")
    hbm_j_per_byte: BitEnergy | None = Field(default=None, alias="hbm")
    links: LinkEnergy = LinkEnergy()
    nvswitch_port_power_w: Power | None = Field(default=None, alias="nvswitch_port_power")
    nic_power_w: Power | None = Field(default=None, alias="nic_power")
    cpu_power_w: Power | None = Field(default=None, alias="cpu_power")


class Cost(Spec):
    """Prices beside that of the GPU. ``electricity`` is added to the cost of a token only if
    ``electricity_in_price`` is false: a rental price holds it already. ``volume``: tokens for which
    a year's cost is told.
    """

    electricity_usd_per_kwh: Tariff = Field(default=0.10, alias="electricity")
    electricity_in_price: bool = True
    volume_tokens_per_year: Volume = Field(default=12e9, alias="volume")


def hbm_j_per_byte(energy: Energy) -> float:
    """Energy of one byte to or from HBM, J."""
    given = energy.hbm_j_per_byte
    return default("hbm", "bit energy") if given is None else given


def j_per_flop(gpu: Gpu, energy: Energy, dtype: str) -> float:
    """Energy of one FLOP at ``dtype``, J: given, or derived as the head of this module tells."""
    if dtype in energy.compute_j_per_flop:
        return energy.compute_j_per_flop[dtype]
    sustained_flops_per_s = gpu.flops_per_s[dtype] * gpu.compute_efficiency
    board_j = (gpu.tdp_w - gpu.idle_power_w) / sustained_flops_per_s
    return max(board_j - BYTES_PER_FLOP * hbm_j_per_byte(energy), 0.0)


def nvswitch_w(energy: Energy, bandwidth_bytes_per_s: float) -> float:
    """Power of the NVSwitch ports that carry this much bandwidth (one direction), W."""
    given = energy.nvswitch_port_power_w
    port_w = default("nvswitch_port", "power") if given is None else given
    return port_w * bandwidth_bytes_per_s / default("nvswitch_port_bandwidth", "bandwidth")


def nic_w(energy: Energy) -> float:
    """Power of one NIC, W."""
    return default("nic", "power") if energy.nic_power_w is None else energy.nic_power_w


def cpu_w(energy: Energy) -> float:
    """Power of one CPU, W."""
    return default("cpu", "power") if energy.cpu_power_w is None else energy.cpu_power_w
