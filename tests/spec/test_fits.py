"""The fitted figures, fitted again from the measurements by the rules that their sources state."""

from __future__ import annotations

import csv
from pathlib import Path
from statistics import median

import pytest

from simulator.spec.load import load_topology

MEASURED = Path(__file__).resolve().parents[3] / "shared" / "reference" / "measured"
pytestmark = pytest.mark.skipif(not MEASURED.is_dir(), reason="the measurements are not here")


def rows(name: str) -> list[dict[str, str]]:
    with (MEASURED / name).open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize(
    ("system", "topology"), [("h100_sxm", "nvswitch16"), ("a100_sxm", "a100x8")]
)
def test_gpu_efficiencies(system, topology):
    gpu = load_topology(topology).gpu
    table = [
        (int(row["m"]), int(row["n"]), int(row["k"]), float(row["time_us"]) * 1e-6)
        for row in rows("gemm_h100_a100.csv")
        if row["system"] == system and row["gemm_dtype"] == "bfloat16"
    ]
    launch = median(sorted(t for *_, t in table)[:10])
    peak = gpu.flops_per_s["bf16"]
    compute = median(2 * m * n * k / t / peak for m, n, k, t in table if m * n * k >= 2**39)
    memory = median(
        2 * (m * k + k * n + m * n) / (t - launch) / gpu.hbm_bandwidth_bytes_per_s
        for m, n, k, t in table
        if m <= 16 and 2 * n * k >= 2**27
    )
    assert gpu.launch_overhead_s == pytest.approx(launch, abs=5.1e-9)
    assert gpu.compute_efficiency == pytest.approx(compute, abs=5.1e-4)
    assert gpu.memory_efficiency == pytest.approx(memory, abs=5.1e-4)
