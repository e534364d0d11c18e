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
    padded = kernels.tiles_of(rows, tile) * tile
    assert sum(rows) <= padded < sum(rows) + tile * sum(1 for count in rows if count) or not padded


@pytest.mark.parametrize(
    ("family", "wanted"),
    [  # mean rows: tile; made from triton_kernels' rule by hand for the latter
        ("moe_bf16", {0.1: 16, 16: 16, 16.5: 32, 64: 64, 65: 128, 129: 256, 5000: 256}),
        ("moe_mxfp4", {0.1: 16, 8: 16, 9: 32, 16: 32, 17: 64, 32: 64, 64: 64, 65: 128, 5000: 128}),
    ],
)
def test_a_tile_holds_the_mean_load_or_twice_that(family: str, wanted: dict[float, int]):
    of = kernels.rates(H100, H100.kernels[family], 1e15, 2.0, 2.0)
    assert {mean: kernels.tile_of(of, mean) for mean in wanted} == wanted


def test_a_hot_expert_runs_in_tiles_that_suit_the_others():
    """1,024 rows in tiles of 16 read the weights 64 times from L2, in tiles of 256 four times."""
    of = kernels.rates(H100, H100.kernels["moe_bf16"], H100.flops_per_s["bf16"], 2.0, 2.0)
    hidden, intermediate = 4096, 1536
    short, long = (
        kernels.fused_moe(of, 1024, 1024, tile, 1024 // tile, 1, hidden, intermediate)
        for tile in (16, 256)
    )
    assert (short.flops, short.bytes) == (long.flops, long.bytes)
    weights = 64 * 3 * 2.0 * hidden * intermediate / H100.l2_bandwidth_bytes_per_s
    computed = long.flops / of.flops_per_s
    assert short.seconds - long.seconds == pytest.approx(1.125 * weights - computed, rel=0.1)
    alone = of._replace(l2_bytes_per_s=float("inf"))
    same = [
        kernels.fused_moe(alone, 1024, 1024, tile, 1024 // tile, 1, hidden, intermediate).seconds
        for tile in (16, 256)
    ]
    assert same[0] == pytest.approx(same[1], rel=REL)


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
        assert (found.fill, found.tile, found.spare) == (kernel.fill, kernel.tile, kernel.spare)
        assert found.launch_s == gpu.launch_overhead_s * kernel.launches


def test_a_grouped_gemm_has_the_efficiencies_of_the_gemm():
    for name, like in (("moe_bf16", "bf16"), ("moe_fp8", "fp8")):
        mine, other = families()[name], families()[like]
        for key in ("compute", "memory", "depth", "fill"):
            assert getattr(mine, key) == getattr(other, key)


def test_single_figures_of_a_family_are_replaced():
    gpu = Gpu.model_validate(
        catalogue.expand({"model": "A100-SXM-80GB", "kernels": {"moe_bf16": {"tile": 64}}})
    )
    assert gpu.kernels["moe_bf16"].tile == 64
    assert gpu.kernels["moe_bf16"].fill == families()["moe_bf16"].fill
    assert gpu.kernels["bf16"] == families()["bf16"]
