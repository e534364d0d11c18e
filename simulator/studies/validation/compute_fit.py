"""Kernel families fitted to measured kernel times, and what the model says of a measured row.

The order is that of the shipped figures: BF16 GEMM on the H100 gives the GPU's launch_overhead and
efficiencies, the other GEMMs their factors, grouped GEMMs (which take over the GEMM's efficiencies)
their launches and passes, and another GPU three scales. Least squares of the logarithm of simulated
over measured, with a loss that grows only linearly far out (soft_l1); efficiencies stay below 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.model import kernels
from simulator.model.kernels import Rates
from simulator.model.sizes import BYTES_PER_ELEMENT, compute_dtype
from simulator.spec import catalogue
from simulator.spec.kernels import Kernel
from simulator.spec.schema import Gpu
from simulator.studies.validation.compute_tables import KernelRow, loads
from simulator.studies.validation.fit import rounded

SPREAD = 0.05  # relative error beyond which a row counts less than by its square
GPUS = {"h100_sxm": "H100-SXM", "a100_sxm": "A100-SXM-80GB", "h800_sxm": "H800-SXM"}
"""Names of machines in the tables -> the catalogue's."""

FAMILIES = {
    ("moe_torch_flow_cutlass", "bf16"): "moe_bf16",
    ("moe_torch_flow_cutlass", "fp8"): "moe_fp8",
    ("moe_torch_flow", "bf16"): "moe_bf16",  # the A100's, which TensorRT-LLM 1.0 does not name
    ("moe_torch_flow", "mxfp4"): "moe_mxfp4_trtllm",
    (
        "vllm_gptossmxfp4moe_triton_oaitritonmxfp4expertsmonolithic",
        "mxfp4",
    ): "moe_mxfp4",
}
"""Kernel source and dtype of a fused-MoE row -> family."""
# What handles every choice of every token, also those of experts on other ranks: it chooses its
# tile by them, and its passes run over them (TensorRT-LLM, fused_moe_triton.py, TritonEPRouter).
EVERY_PAIR = ("moe_mxfp4_trtllm",)

Values = Mapping[str, float]
Floats = NDArray[np.float64]


class Fit(NamedTuple):
    """Parameters as they are written, and the error over the fitted rows."""

    values: dict[str, float]
    rows: int
    error: float


@cache
def gpu_of(system: str) -> Gpu:
    """The catalogue's GPU of a table's machine."""
    return Gpu.model_validate(catalogue.expand(GPUS[system]))


def family_of(row: KernelRow) -> str:
    """The kernel family that a row is taken for."""
    return FAMILIES[row.source, row.dtype] if row.tokens else row.dtype


def kernel_s(row: KernelRow, gpu: Gpu) -> float:
    """Seconds that the model says for a measured row; the mean over draws where loads are drawn."""
    kernel = gpu.kernels[family_of(row)]
    if row.kernel_only:
        kernel = kernel.model_copy(update={"launches": 0.0, "quantise": None})
    dtype = compute_dtype(row.dtype, gpu)
    weight, given = BYTES_PER_ELEMENT[row.dtype], BYTES_PER_ELEMENT[dtype]
    of = kernels.rates(gpu, kernel, gpu.flops_per_s[dtype], weight * row.groups, given)
    if not row.tokens:
        return kernels.gemm(of, row.m, row.n, row.k).seconds
    return _fused_moe_s(row, of)


def _fused_moe_s(row: KernelRow, of: Rates) -> float:
    """Kernels were chosen (by trying, or by rule) for the mean load of an expert, whatever the load
    that was timed.
    """
    pairs = row.tokens * row.top_k
    every = family_of(row) in EVERY_PAIR
    tile = kernels.tile_of(of, pairs * (row.ep if every else 1) / row.experts)
    shape = (row.hidden, row.intermediate)
    found = []
    for counts in loads(row):
        rows, active = int(counts.sum()), int(np.count_nonzero(counts))
        tiles = kernels.tiles_of(counts, tile)
        work = kernels.fused_moe(of, row.tokens, rows, tile, tiles, active, *shape)
        seconds = work.seconds
        if every:
            more = kernels.passed_bytes(of, row.tokens, pairs, *shape)
            more -= kernels.passed_bytes(of, row.tokens, rows, *shape)
            seconds += more / of.passes_bytes_per_s
        found.append(seconds)
    return sum(found) / len(found)


def solve(
    rows: Sequence[KernelRow],
    start: Values,
    highest: Values,
    gpu_with: Callable[[Values], Gpu],
) -> Fit:
    """Fit the values that `gpu_with` makes a GPU of; `highest` bounds some from above."""
    from scipy.optimize import least_squares

    names = list(start)
    scale = np.array([start[name] for name in names])
    measured = np.array([row.time_s for row in rows])

    def off(x: Floats) -> Floats:
        gpu = gpu_with(dict(zip(names, (x * scale).tolist(), strict=True)))
        found: Floats = np.log(np.array([kernel_s(row, gpu) for row in rows]) / measured)
        return found

    high = np.array([highest.get(name, np.inf) for name in names]) / scale
    low = np.full(len(names), 1e-9)
    found = least_squares(
        off, np.minimum(np.ones(len(names)), high), bounds=(low, high), loss="soft_l1",
        f_scale=SPREAD, xtol=1e-10, ftol=1e-10,
    )  # fmt: skip
    values = dict(zip(names, map(rounded, (found.x * scale).tolist()), strict=True))
    error = float(np.expm1(np.abs(off(np.array(list(values.values())) / scale)).mean()))
    return Fit(values, len(rows), error)


def fit_gpu(rows: Sequence[KernelRow], like: Gpu) -> Fit:
    """A GPU's launch_overhead_s and efficiencies, with depth and fill of family bf16."""
    start = {
        "launch_overhead_s": 3e-6, "compute_efficiency": 0.8, "memory_efficiency": 0.85,
        "depth": 0.3, "fill": 100.0,
    }  # fmt: skip

    def gpu_with(values: Values) -> Gpu:
        own = {key: values[key] for key in list(start)[:3]}
        figures = {key: values[key] for key in ("depth", "fill")}
        return _with(like.model_copy(update=own), "bf16", figures)

    highest = {"compute_efficiency": 1.0, "memory_efficiency": 1.0}
    return solve(rows, start, highest, gpu_with)


def fit_gemm(rows: Sequence[KernelRow], gpu: Gpu) -> Fit:
    """All figures of an FP8 GEMM family, relative to the GPU's."""
    start = {
        "compute": 0.95, "memory": 1.0, "launches": 3.0, "depth": 0.3, "fill": 100.0,
        "quantise": 0.4,
    }  # fmt: skip
    highest = {"quantise": 1.0, **_highest(gpu)}
    return solve(rows, start, highest, lambda v: _with(gpu, rows[0].dtype, v))


def fit_moe(rows: Sequence[KernelRow], gpu: Gpu, own: Sequence[str] = ()) -> Fit:
    """A grouped family's launches and passes, and `own` compute and memory where it has them."""
    start = {"launches": 10.0, "passes": 0.5, **dict.fromkeys(own, 0.8)}
    highest = {"passes": 1.0, **_highest(gpu)}
    return solve(rows, start, highest, lambda v: _with(gpu, family_of(rows[0]), v))


def fit_scales(rows: Sequence[KernelRow], like: Gpu, on: Gpu) -> Fit:
    """Three scales on the figures of GPU `like` for the GPU of `rows`; given as its own figures."""
    keys = ("launch_overhead_s", "compute_efficiency", "memory_efficiency")
    start = {key: float(getattr(like, key)) for key in keys}
    highest = {"compute_efficiency": 1.0, "memory_efficiency": 1.0}
    return solve(rows, start, highest, lambda v: on.model_copy(update=dict(v)))


def fit_moe_scales(rows: Sequence[KernelRow], on: Gpu, like: Kernel) -> Fit:
    """A grouped family's launches, compute and memory on another GPU, from those it has."""
    start = {key: float(getattr(like, key)) for key in ("launches", "compute", "memory")}
    return solve(rows, start, _highest(on), lambda v: _with(on, family_of(rows[0]), v))


def _highest(gpu: Gpu) -> dict[str, float]:
    """The factors at which an efficiency would be 1."""
    return {"compute": 1.0 / gpu.compute_efficiency, "memory": 1.0 / gpu.memory_efficiency}


def _with(gpu: Gpu, family: str, figures: Values) -> Gpu:
    kernel = gpu.kernels[family].model_copy(update=dict(figures))
    return gpu.model_copy(update={"kernels": {**gpu.kernels, family: kernel}})


def refit(rows_of: Callable[[str], Sequence[KernelRow]]) -> tuple[dict[str, Fit], dict[str, Gpu]]:
    """All fits anew, in their order, and the GPUs that they make of the catalogue's.

    rows_of: the rows of a shipped table by its name. Later fits build on the earlier ones' values,
    never on what the catalogue says of them.
    """
    found: dict[str, Fit] = {}
    h100 = gpu_of("h100_sxm")
    found["H100-SXM"] = first = fit_gpu(rows_of("gemm_h100_bf16.csv"), h100)
    keys = ("launch_overhead_s", "compute_efficiency", "memory_efficiency")
    h100 = h100.model_copy(update={key: first.values[key] for key in keys})
    h100 = _with(h100, "bf16", {key: first.values[key] for key in ("depth", "fill")})
    for name in ("fp8", "fp8_block"):
        found[name] = fit_gemm(rows_of(f"gemm_h100_{name}.csv"), h100)
        h100 = _with(h100, name, found[name].values)
    for name, like, table, own in _GROUPED:
        of = h100.kernels[like]
        taken = {"depth": of.depth, "fill": of.fill}
        if not own:
            taken |= {"compute": of.compute, "memory": of.memory}
        h100 = _with(h100, name, taken)
        found[name] = fit_moe(rows_of(table), h100, own)
        h100 = _with(h100, name, found[name].values)
    a100 = gpu_of("a100_sxm")
    tile = a100.kernels["moe_bf16"].tile
    a100 = a100.model_copy(update={"kernels": _with(h100, "moe_bf16", {"tile": tile}).kernels})
    found["A100-SXM-80GB"] = fit_scales(rows_of("gemm_a100_named.csv"), h100, a100)
    a100 = a100.model_copy(update=found["A100-SXM-80GB"].values)
    found["A100-SXM-80GB moe_bf16"] = last = fit_moe_scales(
        rows_of("moe_a100_named.csv"), a100, a100.kernels["moe_bf16"]
    )
    return found, {"H100-SXM": h100, "A100-SXM-80GB": _with(a100, "moe_bf16", last.values)}


# Family, the GEMM whose figures it takes over, its table, and what it is fitted besides.
_GROUPED: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("moe_bf16", "bf16", "moe_h100_bf16.csv", ()),
    ("moe_fp8", "fp8", "moe_h100_fp8.csv", ()),
    ("moe_mxfp4", "bf16", "moe_h100_mxfp4_vllm.csv", ("compute", "memory")),
    ("moe_mxfp4_trtllm", "bf16", "moe_h100_mxfp4_trtllm.csv", ("compute", "memory")),
)
