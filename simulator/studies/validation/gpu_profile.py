"""A GPU profile (docs/gpus.md) from a table of tools/measure_gpu.py.

Fitted as the catalogue was (`compute_fit`), with at least four shapes for each parameter: BF16 GEMM
gives launch_overhead and efficiencies, and depth and fill of its family where there are enough
shapes; FP8 GEMM that family's compute, memory, depth and fill; a fused MoE its family's compute,
memory, launches and passes. Copies of 16 MiB and more give their median share of the raw bandwidth.
The rest is not fitted but simulated, and its error told.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from simulator.errors import InputError
from simulator.model.compute import gemm_rates
from simulator.model.kernels import moved
from simulator.spec.schema import Gpu
from simulator.studies.validation.compute_fit import (
    FAMILIES,
    Fit,
    Values,
    fit_gpu,
    fit_moe,
    fit_scales,
    kernel_s,
    solve,
)
from simulator.studies.validation.compute_tables import KernelRow
from simulator.studies.validation.fit import error_of, rounded
from simulator.studies.validation.gpu_rows import GpuRow, GpuTable, Shape

SHAPES_PER_PARAMETER = 4
LARGE_BYTES = 16 << 20  # smaller copies are mostly latency
ELEMENT = 2.0  # bytes, BF16
# GT/s of a PCIe lane by generation (PCI-SIG); a transfer is a bit, before encoding, as the
# topologies count.
LANE_GT_PER_S = {3: 8, 4: 16, 5: 32, 6: 64}
# What compute_fit calls a fused MoE in BF16.
_MOE = next(source for (source, dtype), family in FAMILIES.items() if family == "moe_bf16")
_GPU = ("compute_efficiency", "memory_efficiency")


class Fitted(NamedTuple):
    """A profile: figures and sources as its file has them; kernels by family."""

    model: str
    figures: dict[str, float]
    kernels: dict[str, dict[str, float]]
    copies: dict[str, float]
    sources: dict[str, str]


def fit_profile(table: GpuTable, like: Gpu, pcie_bytes_per_s: float | None = None) -> Fitted:
    """Fit what the rows tell about a GPU of the catalogue, `like`.

    pcie_bytes_per_s: raw bandwidth of the bus in one direction; from the table's comments if None.
    Raises InputError where the rows do not tell the GPU's own three figures.
    """
    of = {kind: [r for r in table.rows if r.shape.kind == kind] for kind in _kinds(table.rows)}
    gemms = of.get("gemm", [])
    gpu, first = _own(_of_dtype(gemms, "bf16"), like)
    figures = {key: first.values[key] for key in ("launch_overhead_s", *_GPU)}
    kernels: dict[str, dict[str, float]] = {}
    told_of = _told("bf16 GEMM", first, _bounded(first))
    sources = dict.fromkeys((*_GPU, "launch_overhead"), told_of)
    told = []
    if "depth" in first.values:
        kernels["bf16"] = _figures(gpu, "bf16", ("depth", "fill"))
        told.append(f"bf16: {_told('bf16 GEMM', first)}")
    for family, rows, parameters in (
        ("fp8", _of_dtype(gemms, "fp8"), ("compute", "memory", "depth", "fill")),
        ("moe_bf16", of.get("moe", []), ("compute", "memory", "launches", "passes")),
    ):
        if rows and _shapes(rows) < SHAPES_PER_PARAMETER * len(parameters):
            sources[f"{family} rows"] = _too_few(rows, len(parameters))
        elif rows:
            gpu, found = _family(family, rows, gpu)
            written = ("launches", "quantise", "fill") if family == "fp8" else ("depth", "fill")
            kernels[family] = _figures(gpu, family, tuple(dict.fromkeys((*parameters, *written))))
            told.append(f"{family}: {_told(_KERNELS[family], found)}")
    if told:
        sources["kernels"] = "; ".join(told)
    for kind in ("grouped", "prefill", "decode", "d2d"):
        if kind in of:
            sources[kind] = _compared(of[kind], gpu)
    copies, about = _copies(of, table.about, like, pcie_bytes_per_s)
    return Fitted(like.name, figures, kernels, copies, {**sources, **about})


_KERNELS = {
    "fp8": "GEMM of FP8 inputs; launches and quantise are the catalogue's",
    "moe_bf16": "gather, grouped GEMM, activation, grouped GEMM, weighted sum",
}


def seconds(row: GpuRow, gpu: Gpu) -> float:
    """What the model says of a row that is no copy over a link (s)."""
    kind, _, of = row.shape
    if kind in ("gemm", "grouped", "moe"):
        return kernel_s(_kernel(row), _alone(gpu) if row.shape.dtype == "fp8" else gpu)
    plain = gemm_rates(gpu, "bf16")
    if kind == "d2d":
        return moved(plain, 2.0 * of["bytes"]).seconds
    width = of["heads"] * of["head_dim"]
    cache = of["batch"] * of["context"] * 2.0 * of["kv_heads"] * of["head_dim"] * ELEMENT
    causal = kind == "prefill"
    rows = of["batch"] * (of["context"] if causal else 1)
    keys = (of["context"] + 1) / 2 if causal else of["context"]
    return moved(plain, cache + 2 * rows * width * ELEMENT, 4.0 * width * keys * rows).seconds


def profile_text(found: Fitted, about: Mapping[str, str], table: str) -> str:
    """The profile as the text of its YAML file; table: the name of the rows' file."""
    machine = [
        f"{key} {about[key]}" for key in ("gpu", "driver", "torch", "clocks") if key in about
    ]
    lines = [
        f"# Fitted by tools/measure_gpu.py to {table}; docs/gpus.md says how to use it.",
        f"model: {found.model}",
        f"description: {_quoted('; '.join([f'measured: {table}', *machine]))}",
        *(f"{key}: {found.figures[key]:g}" for key in _GPU),
        f"launch_overhead: {found.figures['launch_overhead_s'] * 1e6:.4g} us",
    ]
    if found.kernels:
        lines.append("kernels:")
        lines += [f"  {name}: {_flow(values)}" for name, values in found.kernels.items()]
    if found.copies:
        lines.append(f"copy_efficiency: {_flow(found.copies)}")
    lines.append("sources:")
    lines += [f"  {key}: {_quoted(text)}" for key, text in found.sources.items()]
    return "\n".join(lines) + "\n"


def pcie_of(about: Mapping[str, str]) -> float | None:
    """Raw bandwidth (B/s, one direction) of the bus that a table's comments name: "gen 5 x 16"."""
    match = re.fullmatch(r"gen (\d+) x (\d+)", about.get("pcie", ""))
    if match is None or int(match[1]) not in LANE_GT_PER_S:
        return None
    return LANE_GT_PER_S[int(match[1])] * 1e9 / 8 * int(match[2])


def _own(rows: Sequence[GpuRow], like: Gpu) -> tuple[Gpu, Fit]:
    """The GPU's own figures: five of enough rows, three with the catalogue's depth and fill."""
    shapes = _shapes(rows)
    if shapes < 3 * SHAPES_PER_PARAMETER:
        raise InputError(
            f"{shapes} shapes of bf16 GEMM; {3 * SHAPES_PER_PARAMETER} or more tell the GPU's "
            f"efficiencies and launch_overhead"
        )
    kernels = [_kernel(row) for row in rows]
    every = shapes >= 5 * SHAPES_PER_PARAMETER
    found = fit_gpu(kernels, like) if every else fit_scales(kernels, like, like)
    own = {key: found.values[key] for key in ("launch_overhead_s", *_GPU)}
    gpu = like.model_copy(update=own)
    if every:
        gpu = _with(gpu, "bf16", {key: found.values[key] for key in ("depth", "fill")})
    return gpu, found


def _family(family: str, rows: Sequence[GpuRow], gpu: Gpu) -> tuple[Gpu, Fit]:
    """The GPU with a fitted family, and the fit."""
    kernels = [_kernel(row) for row in rows]
    if family == "moe_bf16":
        like = gpu.kernels["bf16"]
        gpu = _with(gpu, family, {"depth": like.depth, "fill": like.fill})
        found = fit_moe(kernels, gpu, ("compute", "memory"))
    else:
        start = {"compute": 0.95, "memory": 1.0, "depth": 0.3, "fill": 100.0}
        highest = {key: 1.0 / getattr(gpu, f"{key}_efficiency") for key in ("compute", "memory")}
        found = solve(kernels, start, highest, lambda values: _with(_alone(gpu), "fp8", values))
    return _with(gpu, family, found.values), found


def _alone(gpu: Gpu) -> Gpu:
    """The GPU with an FP8 GEMM that is given FP8: one launch, nothing to quantise."""
    return _with(gpu, "fp8", {"launches": 1.0, "quantise": None})


def _kernel(row: GpuRow) -> KernelRow:
    kind, dtype, of = row.shape
    if kind != "moe":
        shape = (of["m"], of["n"], of["k"], of.get("groups", 1))
        return KernelRow(row.where, "", "gemm", dtype, row.time_s, *shape)
    return KernelRow(
        row.where,
        "",
        _MOE,
        dtype,
        row.time_s,
        tokens=of["tokens"],
        hidden=of["hidden"],
        intermediate=of["intermediate"],
        top_k=of["top_k"],
        experts=of["experts"],
        distribution="balanced",
    )


def _with(gpu: Gpu, family: str, figures: Values | Mapping[str, float | None]) -> Gpu:
    kernel = gpu.kernels[family].model_copy(update=dict(figures))
    return gpu.model_copy(update={"kernels": {**gpu.kernels, family: kernel}})


def _copies(
    of: Mapping[str, list[GpuRow]],
    about: Mapping[str, str],
    like: Gpu,
    pcie_bytes_per_s: float | None,
) -> tuple[dict[str, float], dict[str, str]]:
    """Shares by kind of path, and their sources."""
    pcie = pcie_of(about) if pcie_bytes_per_s is None else pcie_bytes_per_s
    found: dict[str, float] = {}
    told: dict[str, str] = {}
    for kind, path, raw in (
        ("h2d", "pcie", pcie),
        ("d2h", "", pcie),
        ("peer", "nvlink", like.nvlink_bandwidth_bytes_per_s),
    ):
        rows = [row for row in of.get(kind, []) if row.shape.sizes["bytes"] >= LARGE_BYTES]
        if not rows:
            continue
        if raw is None:
            if path == "pcie":
                raise InputError(
                    f'{rows[0].where}: the table does not say which PCIe it is; give --pcie "64 '
                    f'GB/s", its raw bandwidth in one direction'
                )
            told[kind] = f"{len(rows)} rows, not fitted: {like.name} has no NVLink"
            continue
        rate = float(np.median([row.shape.sizes["bytes"] / row.time_s for row in rows]))
        share = rounded(rate / raw)
        if share > 1.0:
            raise InputError(
                f"{rows[0].where}: {kind} copies reach {rate / 1e9:.4g} GB/s, above the "
                f"{raw / 1e9:.4g} GB/s of the path; give its raw bandwidth"
            )
        error = error_of(
            [row.shape.sizes["bytes"] / (share * raw) for row in rows],
            [row.time_s for row in rows],
        )
        line = (
            f"{len(rows)} rows of 16 MiB and more, 1 parameter, error {error:.1%}: median "
            f"{rate / 1e9:.4g} of {raw / 1e9:.4g} GB/s, one direction at a time"
        )
        if path:
            found[path] = share
            told["copy_efficiency"] = "; ".join(
                [*filter(None, [told.get("copy_efficiency")]), f"{path}: {line}"]
            )
        else:
            told[kind] = f"share {share:g}, not used: {line}"
    return found, told


def _kinds(rows: Sequence[GpuRow]) -> list[str]:
    return list(dict.fromkeys(row.shape.kind for row in rows))


def _of_dtype(rows: Sequence[GpuRow], dtype: str) -> list[GpuRow]:
    return [row for row in rows if row.shape.dtype == dtype]


def _shapes(rows: Sequence[GpuRow]) -> int:
    return len({_key(row.shape) for row in rows})


def _key(shape: Shape) -> tuple[object, ...]:
    return shape.kind, shape.dtype, *shape.sizes.items()


def _figures(gpu: Gpu, family: str, names: Sequence[str]) -> dict[str, float]:
    """Figures of a family as they are written; those that it does not have are left out."""
    kernel = gpu.kernels[family]
    values = {name: getattr(kernel, name) for name in names}
    return {name: float(value) for name, value in values.items() if value is not None}


def _told(what: str, fit: Fit, more: str = "") -> str:
    return (
        f"fitted, {fit.rows} rows ({what}), {len(fit.values)} parameters, "
        f"error {fit.error:.1%}{more}"
    )


def _bounded(fit: Fit) -> str:
    """A fit that came up against an efficiency of 1."""
    at = [key for key in _GPU if fit.values[key] >= 0.999]
    return f"; {' and '.join(at)} at the bound 1: the catalogue's peak is too low" if at else ""


def _too_few(rows: Sequence[GpuRow], parameters: int) -> str:
    wanted = SHAPES_PER_PARAMETER * parameters
    return f"{_shapes(rows)} shapes, not fitted: {wanted} or more tell {parameters} parameters"


def _compared(rows: Sequence[GpuRow], gpu: Gpu) -> str:
    simulated = [seconds(row, gpu) for row in rows]
    measured = [row.time_s for row in rows]
    middle = float(np.median(np.array(simulated) / np.array(measured)))
    return (
        f"{len(rows)} rows, not fitted: simulated with these figures, error "
        f"{error_of(simulated, measured):.1%}, median simulated / measured {middle:.3g}"
    )


def _flow(values: Mapping[str, float]) -> str:
    return "{" + ", ".join(f"{key}: {value:g}" for key, value in values.items()) + "}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
