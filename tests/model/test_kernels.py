"""Single kernels against closed forms, and what must hold whatever the figures."""

from __future__ import annotations

import closed_forms
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.model import kernels
from simulator.model.compute import gemm_rates, moe_rates
from simulator.spec import catalogue
from simulator.spec.kernels import kernels as families
from simulator.spec.schema import Gpu

REL = 1e-9
H100, A100, B200 = (
    Gpu.model_validate(catalogue.expand(name)) for name in ("H100-SXM", "A100-SXM-80GB", "B200")
)


def closed(of: kernels.Rates) -> closed_forms.Rates:
    return closed_forms.Rates(
        of.flops_per_s, of.bytes_per_s, of.launch_s, of.depth_s, of.fill, of.weight_bytes,
        of.input_bytes, of.quantise_bytes_per_s,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", ["bf16", "fp8", "fp8_block", "mxfp4"])
@pytest.mark.parametrize("shape", [(1, 512, 16384), (16, 7168, 512), (4096, 4096, 4096)])
def test_a_gemm(dtype: str, shape: tuple[int, int, int]):
    of = gemm_rates(H100, dtype)
    wanted = closed_forms.gemm(closed(of), *shape)
    assert kernels.gemm(of, *shape).seconds == pytest.approx(wanted, rel=REL)


shapes = st.integers(1, 1 << 15)


@given(shapes, shapes, shapes, st.sampled_from(["bf16", "fp8", "fp8_block", "int4"]))
def test_a_gemm_is_never_faster_than_the_datasheet(m: int, n: int, k: int, dtype: str):
    for gpu in (H100, A100):
        of = gemm_rates(gpu, dtype)
        work = kernels.gemm(of, m, n, k)
        peak = gpu.flops_per_s["fp8" if dtype.startswith("fp8") and gpu is H100 else "bf16"]
        assert work.seconds > work.flops / peak
        assert work.seconds > work.bytes / gpu.hbm_bandwidth_bytes_per_s
        assert kernels.gemm(of, m + 1, n, k).seconds >= work.seconds
        assert kernels.gemm(of, m, n, k + 1).seconds >= work.seconds


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=20), st.sampled_from([16, 64, 128]))
def test_padding_adds_less_than_a_tile_per_expert(rows: list[int], tile: int):
    padded = kernels.padded(rows, tile)
    assert padded % tile == 0
    assert sum(rows) <= padded < sum(rows) + tile * sum(1 for count in rows if count) or not padded


def test_the_ridge_is_rounded_and_never_below_the_larger():
    assert kernels.ridge(3.0, 0.0) == 3.0
    assert kernels.ridge(0.0, 0.0) == 0.0
    assert kernels.ridge(1.0, 1.0) == pytest.approx(2**0.25, rel=REL)
    assert kernels.ridge(2.0, 5.0) == kernels.ridge(5.0, 2.0)
    assert kernels.ridge(1e-300, 1e-300) > 0.0


@pytest.mark.parametrize("name", catalogue.names())
def test_no_efficiency_is_above_one(name: str):
    gpu = Gpu.model_validate(catalogue.expand(name))
    for kernel in gpu.kernels.values():
        of = kernels.rates(gpu, kernel, 1.0, 2.0, 2.0)
        assert of.flops_per_s <= 1.0
        assert of.bytes_per_s <= gpu.hbm_bandwidth_bytes_per_s
    measured = {"H100-SXM": H100, "A100-SXM-80GB": A100}.get(name)
    if measured:  # nothing had to be cut, but for what a parameter's last digit rounds
        for kernel in measured.kernels.values():
            assert measured.compute_efficiency * kernel.compute <= 1.0
            assert measured.memory_efficiency * kernel.memory <= 1.0002


@pytest.mark.parametrize(
    ("dtype", "gpu", "peak", "family", "grouped"),
    [
        ("bf16", H100, "bf16", "bf16", "moe_bf16"),
        ("fp8", H100, "fp8", "fp8", "moe_fp8"),
        ("fp8_block", H100, "fp8", "fp8_block", "moe_fp8"),
        ("fp8", A100, "bf16", "bf16", "moe_bf16"),
        ("int8", A100, "int8", "fp8", "moe_fp8"),
        ("mxfp4", H100, "bf16", "bf16", "moe_mxfp4"),
        ("int4", H100, "bf16", "bf16", "moe_mxfp4"),
        ("nvfp4", H100, "bf16", "bf16", "moe_mxfp4"),
        ("nvfp4", B200, "fp4", "fp8_block", "moe_fp8"),
    ],
)
def test_which_family_and_peak_a_type_takes(
    dtype: str, gpu: Gpu, peak: str, family: str, grouped: str
):
    for found, name in ((gemm_rates(gpu, dtype), family), (moe_rates(gpu, dtype), grouped)):
        kernel = gpu.kernels[name]
        share = min(gpu.compute_efficiency * kernel.compute, 1.0)
        assert found.flops_per_s == gpu.flops_per_s[peak] * share
        assert (found.fill, found.tile) == (kernel.fill, kernel.tile)
        assert found.launch_s == gpu.launch_overhead_s * kernel.launches


def test_a_grouped_gemm_has_the_efficiencies_of_the_gemm():
    for name, like in (("moe_bf16", "bf16"), ("moe_fp8", "fp8")):
        mine, other = families()[name], families()[like]
        assert (mine.compute, mine.memory, mine.fill) == (other.compute, other.memory, other.fill)


def test_single_figures_of_a_family_are_replaced():
    gpu = Gpu.model_validate(
        catalogue.expand({"model": "A100-SXM-80GB", "kernels": {"moe_bf16": {"tile": 64}}})
    )
    assert gpu.kernels["moe_bf16"].tile == 64
    assert gpu.kernels["moe_bf16"].fill == families()["moe_bf16"].fill
    assert gpu.kernels["bf16"] == families()["bf16"]
