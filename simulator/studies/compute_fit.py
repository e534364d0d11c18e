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
from simulator.model.sizes import BYTES_PER_ELEMENT, compute_dtype
from simulator.spec import catalogue
from simulator.spec.kernels import Kernel
from simulator.spec.schema import Gpu
from simulator.studies.compute_tables import KernelRow, loads
from simulator.studies.fit import rounded

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
    drawn = [
        kernels.fused_moe(
            of,
            row.tokens,
            int(counts.sum()),
            kernels.padded(counts, of.tile),
            int(np.count_nonzero(counts)),
            row.hidden,
            row.intermediate,
        ).seconds
        for counts in loads(row)
    ]
    return sum(drawn) / len(drawn)


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
    highest = {
        "compute": 1.0 / gpu.compute_efficiency,
        "memory": 1.0 / gpu.memory_efficiency,
        "quantise": 1.0,
    }
    return solve(rows, start, highest, lambda v: _with(gpu, rows[0].dtype, v))


def fit_moe(rows: Sequence[KernelRow], gpu: Gpu, efficiencies: bool) -> Fit:
    """launches and passes of a grouped family, and its own efficiencies where asked for."""
    start = {"launches": 10.0, "passes": 0.5}
    highest = {"passes": 1.0}
    if efficiencies:
        start |= {"compute": 0.8, "memory": 0.8}
        highest["compute"] = 1.0 / gpu.compute_efficiency
        highest["memory"] = 1.0 / gpu.memory_efficiency
    return solve(rows, start, highest, lambda v: _with(gpu, family_of(rows[0]), v))


def fit_scales(rows: Sequence[KernelRow], like: Gpu, on: Gpu) -> Fit:
    """Three scales on the figures of GPU `like` for the GPU of `rows`; given as its own figures."""
    keys = ("launch_overhead_s", "compute_efficiency", "memory_efficiency")
    start = {key: float(getattr(like, key)) for key in keys}
    highest = {"compute_efficiency": 1.0, "memory_efficiency": 1.0}
    return solve(rows, start, highest, lambda v: on.model_copy(update=dict(v)))


def fit_moe_scales(rows: Sequence[KernelRow], on: Gpu, like: Kernel) -> Fit:
    """launches, compute and memory of a grouped family on another GPU, from those it has."""
    start = {key: float(getattr(like, key)) for key in ("launches", "compute", "memory")}
    highest = {"compute": 1.0 / on.compute_efficiency, "memory": 1.0 / on.memory_efficiency}
    return solve(rows, start, highest, lambda v: _with(on, family_of(rows[0]), v))


def _with(gpu: Gpu, family: str, figures: Values) -> Gpu:
    kernel = gpu.kernels[family].model_copy(update=dict(figures))
    return gpu.model_copy(update={"kernels": {**gpu.kernels, family: kernel}})
