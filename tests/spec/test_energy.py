"""Coefficients of energy: the file, the derived energy of a FLOP, what a workload may replace."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from simulator.errors import InputError
from simulator.model.energy import energy_rates
from simulator.spec import catalogue
from simulator.spec import energy as spec
from simulator.spec.load import load_topology, load_workload
from simulator.spec.schema import Gpu

H100 = Gpu.model_validate(catalogue.expand("H100-SXM"))


def entries(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if "value" in node:
        yield path, node
        return
    for key, below in node.items():
        yield from entries(below, f"{path}.{key}".lstrip("."))


def test_every_coefficient_has_a_source() -> None:
    found = dict(entries(spec.defaults()))
    assert {"hbm", "nic", "cpu", "links.nvlink", "links.network"} <= set(found)
    for path, entry in found.items():
        assert len(entry["source"]) > 20, path


def test_the_defaults_are_those_of_the_page() -> None:
    energy = spec.Energy()
    assert spec.hbm_j_per_byte(energy) == pytest.approx(6 * 8 * 1e-12)
    assert energy.links.by_kind() == pytest.approx(
        {
            "nvlink": 1.3 * 8e-12,
            "pcie": 6.5 * 8e-12,
            "membus": 20.3 * 8e-12,
            "socket": 6.5 * 8e-12,
            "network": 22.5 * 8e-12,
        }
    )
    # 18 links of 25 GB/s of one H100, at 5.5 W each.
    assert spec.nvswitch_w(energy, 450e9) == pytest.approx(99)
    assert (spec.nic_w(energy), spec.cpu_w(energy)) == (25, 350)


@pytest.mark.parametrize("name", catalogue.names())
def test_a_large_gemm_at_the_fitted_rate_draws_tdp(name: str) -> None:
    gpu = Gpu.model_validate(catalogue.expand(name))
    for dtype, peak in gpu.flops_per_s.items():
        flops = 2 * 8192.0**3
        time_s = flops / (peak * gpu.compute_efficiency)
        hbm_j = 3 * 8192**2 * 2 * 6 * 8e-12
        joules = gpu.idle_power_w * time_s + hbm_j
        joules += flops * spec.j_per_flop(gpu, spec.Energy(), dtype)
        assert joules / time_s == pytest.approx(gpu.tdp_w, rel=1e-12), dtype


def test_given_figures_replace_the_files() -> None:
    energy = load_workload(
        "moe128",
        [
            "energy.hbm=4 pJ/bit",
            "energy.compute={bf16: 1 pJ/FLOP}",
            "energy.links.pcie=5 pJ/bit",
            "energy.nic_power=30 W",
        ],
    ).energy
    assert spec.hbm_j_per_byte(energy) == pytest.approx(32e-12)
    assert spec.j_per_flop(H100, energy, "bf16") == 1e-12
    assert spec.j_per_flop(H100, energy, "fp8") == pytest.approx(0.37e-12, rel=0.05)
    assert energy.links.by_kind()["pcie"] == pytest.approx(40e-12)
    assert energy.links.by_kind()["nvlink"] == pytest.approx(10.4e-12)
    assert spec.nic_w(energy) == 30


def test_parts_are_counted_by_name() -> None:
    given = ["energy.cpu=counted", "energy.nvswitch=excluded", "energy.pue=1.2"]
    workload = load_workload("moe128", given)
    rates = energy_rates(workload, H100, 8 * 450e9, nics=8, cpus=2)
    assert rates["beside_w"] == {"nic": 200, "cpu": 700}
    assert rates["pue"] == 1.2
    usual = energy_rates(load_workload("moe128"), H100, 8 * 450e9, nics=8, cpus=2)
    assert usual["beside_w"] == {"nvswitch": pytest.approx(792), "nic": 200}


def test_the_dtype_of_each_part_has_its_energy() -> None:
    workload = load_workload("moe128", ["model.dtypes={experts: fp8}"])
    per_flop = energy_rates(workload, H100, 0.0, 0, 0)["j_per_flop"]
    assert per_flop["experts"] < 0.5 * per_flop["attention"]
    assert per_flop["ffn"] == per_flop["attention"] == per_flop["lm_head"]


def test_costs_are_read_with_their_units() -> None:
    cost = load_workload("moe128").cost
    assert cost.volume_tokens_per_year == 12e9
    assert cost.electricity_usd_per_kwh == 0.10
    given = ["cost.volume=1e6 tokens/h", "cost.electricity=$80/MWh"]
    cost = load_workload("moe128", given).cost
    assert cost.volume_tokens_per_year == 8.76e9
    assert cost.electricity_usd_per_kwh == 0.08


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("energy.cpu=yes", "is not one of counted, excluded"),
        ("energy.pue=0.9", "energy.pue: must be >= 1, not 0.9"),
        ("energy.hbm=6", '6 has no unit; write for example "6 pJ/bit"'),
        ("energy.hbm=6 W", "'W' is not a unit of bit energy, which is a unit of power"),
        ("cost.volume=1e9 tokens", "'tokens' is not a unit of volume"),
        ("cost.volume=0 tokens/month", "must be > 0"),
        ("cost.electricity=0.1", '0.1 has no unit; write for example "0.1 $/kWh"'),
        ("cost.price=1", "unknown key 'price'"),
    ],
)
def test_refuses(given: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_workload("moe128", [given])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_idle_power_lies_below_tdp() -> None:
    with pytest.raises(InputError, match="must be below tdp = 50 W"):
        load_topology("nvswitch16", ["gpu.tdp=50 W"])
