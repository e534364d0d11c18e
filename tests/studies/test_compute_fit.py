"""The shipped kernel figures are what the fit gives, and a fit finds what made the rows."""

from __future__ import annotations

import pytest

from simulator.model.kernels import fused_moe, tile_of
from simulator.model.kernels import rates as kernel_rates
from simulator.spec import catalogue
from simulator.spec.kernels import kernels
from simulator.studies.validation.compute_fit import (
    Fit,
    fit_gemm,
    fit_gpu,
    fit_moe,
    fit_scales,
    gpu_of,
    kernel_s,
    refit,
)
from simulator.studies.validation.compute_sets import calibration_rows

OWN = ("launch_overhead_s", "compute_efficiency", "memory_efficiency")
# A last digit may differ where another linear algebra library was used.
REL = 2e-3


@pytest.fixture(scope="module")
def fits() -> dict[str, Fit]:
    return refit(calibration_rows)[0]


@pytest.mark.parametrize("name", ["H100-SXM", "A100-SXM-80GB"])
def test_the_catalogue_holds_the_fitted_efficiencies(name: str, fits: dict[str, Fit]):
    entry = {"H100-SXM": "h100_sxm", "A100-SXM-80GB": "a100_sxm"}[name]
    gpu = gpu_of(entry)
    for key in OWN:
        assert getattr(gpu, key) == pytest.approx(fits[name].values[key], rel=REL)


@pytest.mark.parametrize("name", list(kernels()))
def test_the_families_are_the_fitted_ones(name: str, fits: dict[str, Fit]):
    values = fits["H100-SXM" if name == "bf16" else name].values
    shipped = kernels()[name]
    told = {key: value for key, value in values.items() if key not in OWN}
    assert told == pytest.approx({key: getattr(shipped, key) for key in told}, rel=REL)


def test_the_fused_moe_of_the_a100_is_the_fitted_one(fits: dict[str, Fit]):
    shipped = dict(catalogue.entries()["A100-SXM-80GB"]["kernels"]["moe_bf16"])
    assert shipped.pop("tile") == 128  # chosen, not fitted
    assert fits["A100-SXM-80GB moe_bf16"].values == pytest.approx(shipped, rel=REL)


@pytest.mark.parametrize(
    ("name", "rows", "parameters"),
    [("H100-SXM", 56, 5), ("fp8", 56, 6), ("fp8_block", 56, 6), ("moe_bf16", 56, 2),
     ("moe_fp8", 50, 2), ("moe_mxfp4", 48, 4), ("moe_mxfp4_trtllm", 56, 4),
     ("A100-SXM-80GB", 12, 3), ("A100-SXM-80GB moe_bf16", 12, 3)],
)  # fmt: skip
def test_rows_and_parameters(name: str, rows: int, parameters: int, fits: dict[str, Fit]):
    assert (fits[name].rows, len(fits[name].values)) == (rows, parameters)


def made(table: str, system: str, **changes: object) -> list:
    """The rows of a table with the times of a machine of our own."""
    gpu = gpu_of(system)
    family = changes.pop("family", None)
    own = {key: value for key, value in changes.items() if key in OWN}
    gpu = gpu.model_copy(update=own)
    if family:
        figures = {key: value for key, value in changes.items() if key not in OWN}
        kernel = gpu.kernels[family].model_copy(update=figures)
        gpu = gpu.model_copy(update={"kernels": {**gpu.kernels, family: kernel}})
    return [row._replace(time_s=kernel_s(row, gpu)) for row in calibration_rows(table)]


def test_a_fit_finds_the_gpu_that_made_the_rows():
    wanted = {
        "launch_overhead_s": 4e-6, "compute_efficiency": 0.6, "memory_efficiency": 0.7,
        "depth": 0.2, "fill": 300.0,
    }  # fmt: skip
    rows = made("gemm_h100_bf16.csv", "h100_sxm", family="bf16", **wanted)
    found = fit_gpu(rows, gpu_of("h100_sxm"))
    assert found.values == pytest.approx(wanted, rel=1e-3)
    assert found.error < 1e-3


def test_a_fit_finds_a_family_and_three_scales():
    wanted = {
        "compute": 0.5, "memory": 0.9, "launches": 3.0, "depth": 0.4, "fill": 200.0,
        "quantise": 0.3,
    }  # fmt: skip
    rows = made("gemm_h100_fp8.csv", "h100_sxm", family="fp8", **wanted)
    assert fit_gemm(rows, gpu_of("h100_sxm")).values == pytest.approx(wanted, rel=1e-2)
    grouped = {"launches": 20.0, "passes": 0.3}
    rows = made("moe_h100_bf16.csv", "h100_sxm", family="moe_bf16", **grouped)
    assert fit_moe(rows, gpu_of("h100_sxm")).values == pytest.approx(grouped, rel=1e-3)
    scales = {"launch_overhead_s": 9e-6, "compute_efficiency": 0.5, "memory_efficiency": 0.4}
    rows = made("gemm_a100_named.csv", "a100_sxm", **scales)
    found = fit_scales(rows, gpu_of("h100_sxm"), gpu_of("a100_sxm"))
    assert found.values == pytest.approx(scales, rel=1e-3)


def test_a_wrong_row_does_not_bend_the_others():
    """One row ten times too slow moves the efficiencies by less than a hundredth."""
    rows = list(calibration_rows("gemm_h100_bf16.csv"))
    before = fit_gpu(rows, gpu_of("h100_sxm")).values
    rows[40] = rows[40]._replace(time_s=10 * rows[40].time_s)
    after = fit_gpu(rows, gpu_of("h100_sxm")).values
    for key in ("compute_efficiency", "memory_efficiency"):
        assert after[key] == pytest.approx(before[key], abs=0.02)


def test_a_kernel_that_sees_every_choice_pays_for_them():
    """EP4, 1,024 tokens to 4 of 128 experts: 32 rows per expert, but 128 choices per expert of this
    rank. So tiles of 128 rows, not 64, and passes over all 4,096 choices, not the 1,024 here.
    """
    rows = calibration_rows("moe_h100_mxfp4_trtllm.csv")
    row = next(row for row in rows if row.ep == 4 and row.tokens == 1024)
    gpu = gpu_of("h100_sxm")
    family = gpu.kernels["moe_mxfp4_trtllm"]
    of = kernel_rates(gpu, family, gpu.flops_per_s["bf16"], 0.53125, 2.0)
    assert tile_of(of, 32.0) == 64
    seen = fused_moe(of, 1024, 1024, 128, 32, 32, 2880, 2880).seconds
    passed = 3072 * 6 * (2880 + 2880) / (gpu.hbm_bandwidth_bytes_per_s * family.passes)
    assert kernel_s(row, gpu) == pytest.approx(seen + passed, rel=1e-9)
