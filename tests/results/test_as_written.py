"""Resolved inputs as they are written: the input layer reads the same figure from the same key."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

import pytest
from pydantic import BaseModel

import simulator.spec
from simulator.results.as_written import as_written
from simulator.spec.units import Dimension, parse_quantity


def models(of: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for one in of.__subclasses__():
        yield one
        yield from models(one)


def test_keys_are_those_of_the_files() -> None:
    for module in pkgutil.iter_modules(simulator.spec.__path__):
        importlib.import_module(f"simulator.spec.{module.name}")
    found = 0
    for model in models(BaseModel):
        if not model.__module__.startswith("simulator.spec"):
            continue
        for name, field in model.model_fields.items():
            if field.alias in ("from", "to"):  # words of Python
                continue
            found += field.alias is not None
            assert as_written(name, None)[0] == (field.alias or name), (model, name)
    assert found > 40


@pytest.mark.parametrize(
    ("key", "value", "dimension", "text"),
    [
        ("topology.build.pcie.bandwidth_bytes_per_s", 64e9, "bandwidth", "64 GB/s"),
        ("topology.build.nic.bandwidth_bytes_per_s", 614.4e9, "bandwidth", "614.4 GB/s"),
        ("topology.build.nvlink.latency_s", 468e-9, "time", "468 ns"),
        ("workload.serving.timeout_s", 90.0, "time", "90 s"),
        ("topology.build.dram.capacity_bytes", 2.0**41, "bytes", "2 TiB"),
        ("workload.serving.kv_capacity_bytes", 16e9, "bytes", "16 GB"),
        ("topology.gpu.hbm_capacity_bytes", 85520809984.0, "bytes", "81559 MiB"),
        ("topology.gpu.flops_per_s.bf16", 989.4e12, "flops", "989.4 TFLOP/s"),
        ("topology.gpu.tdp_w", 1200.0, "power", "1.2 kW"),
        ("topology.gpu.price_per_hour", 2.5, "price", "2.5 $/h"),
        ("workload.energy.links.pcie_j_per_byte", 52e-12, "bit energy", "6.5 pJ/bit"),
        ("workload.energy.compute_j_per_flop.bf16", 0.7e-12, "FLOP energy", "0.7 pJ/FLOP"),
        ("workload.cost.electricity_usd_per_kwh", 0.1, "tariff", "0.1 $/kWh"),
    ],
)
def test_values_are_read_as_what_they_were(
    key: str, value: float, dimension: Dimension, text: str
) -> None:
    told = as_written(key, value)[1]
    assert told == text
    assert parse_quantity(told, dimension) == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize(
    ("value", "text"), [(4, "4"), (0.5, "0.5"), (True, "true"), (None, "(none)"), ("lru", "lru")]
)
def test_what_has_no_unit_stays(value: object, text: str) -> None:
    assert as_written("workload.anything", value) == ("workload.anything", text)
