"""How long one kernel takes on a GPU: GEMM, grouped GEMM of a MoE layer, and passes over memory.

    c = 2 m n (k + fill) / (peak * compute_efficiency)
    b = (weights + inputs + outputs) / (HBM bandwidth * memory_efficiency)
    t = launch + (c^4 + b^4)^(1/4) + depth * log2(1 + k / 512) + 3 m k / (HBM bandwidth * quantise)

A roofline (Williams, Waterman, Patterson, CACM 52(4), 2009) whose ridge is rounded by a norm.
`fill` is what a tile costs before its first and after its last product, `depth` the latency of a
long sum. FP8 kernels first read their BF16 input (2 bytes) and write it in FP8 (1 byte).

A fused MoE is two grouped GEMMs at the same efficiencies, each expert's rows rounded up to whole
tiles, the weights read once per expert that has rows; launch holds sorting and permuting, and the
bytes that are moved besides (permute, activation, adding up) go at a share of the bandwidth.

The figures per family (`simulator.spec.kernels`) and per GPU (catalogue) are fitted; see
docs/models.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.spec.kernels import Kernel
from simulator.spec.schema import Gpu

NORM = 4.0  # how sharp the ridge is; among 2, 3, 4, 6 and no rounding the best over both dtypes
K_UNIT = 512.0
QUANTISE_BYTES = 3.0  # per element: BF16 read, FP8 written
# Launching from the host, one kernel after the other, with the framework's own work per operation;
# our assumption. A CUDA graph hides it.
HOST_LAUNCH_S = 5e-6

Floats = NDArray[np.float64]


class Work(NamedTuple):
    """One kernel's time (s), FLOPs and HBM bytes."""

    seconds: float
    flops: float
    bytes: float


NOTHING = Work(0.0, 0.0, 0.0)


class Rates(NamedTuple):
    """A family on a GPU, in SI units. input_bytes: per element of a GEMM's input."""

    flops_per_s: float
    bytes_per_s: float
    launch_s: float
    depth_s: float
    fill: float
    quantise_bytes_per_s: float
    passes_bytes_per_s: float
    tile: int
    kernels: int
    weight_bytes: float
    input_bytes: float


def rates(
    gpu: Gpu, kernel: Kernel, peak_flops_per_s: float, weight_bytes: float, input_bytes: float
) -> Rates:
    """A family on a GPU; no product of efficiencies goes above 1."""
    bandwidth = gpu.hbm_bandwidth_bytes_per_s
    return Rates(
        peak_flops_per_s * min(gpu.compute_efficiency * kernel.compute, 1.0),
        bandwidth * min(gpu.memory_efficiency * kernel.memory, 1.0),
        gpu.launch_overhead_s * kernel.launches,
        gpu.launch_overhead_s * kernel.depth,
        kernel.fill,
        bandwidth * kernel.quantise if kernel.quantise else math.inf,
        bandwidth * kernel.passes,
        kernel.tile,
        kernel.kernels,
        weight_bytes,
        input_bytes,
    )


def gemm(of: Rates, m: int, n: int, k: int, batch: int = 1) -> Work:
    """[m, k] times weights [k, n], output in 16 bit; `batch` such products in one kernel."""
    quantised = batch * m * k * QUANTISE_BYTES if of.quantise_bytes_per_s < math.inf else 0.0
    touched = batch * (of.weight_bytes * n * k + of.input_bytes * m * k + 2.0 * m * n)
    seconds = (
        of.launch_s
        + ridge(batch * 2.0 * m * n * (k + of.fill) / of.flops_per_s, touched / of.bytes_per_s)
        + of.depth_s * math.log2(1.0 + k / K_UNIT)
        + quantised / of.quantise_bytes_per_s
    )
    return Work(seconds, batch * 2.0 * m * n * k, touched + quantised)


def ridge(compute_s: float, memory_s: float) -> float:
    """The slower of computing and moving, rounded where both are equal."""
    larger = max(compute_s, memory_s)
    if larger == 0.0:
        return 0.0
    ratio: float = min(compute_s, memory_s) / larger
    return float(larger * (1.0 + ratio**NORM) ** (1.0 / NORM))


def moved(of: Rates, moved_bytes: float, flops: float = 0.0, launches: int = 1) -> Work:
    """A kernel that is no GEMM: a norm, an activation, attention over the cache."""
    seconds = launches * of.launch_s + ridge(flops / of.flops_per_s, moved_bytes / of.bytes_per_s)
    return Work(seconds, flops, moved_bytes)


def fused_moe(
    of: Rates,
    tokens: float,
    rows: float,
    padded_rows: float,
    active: float,
    hidden: int,
    intermediate: int,
) -> Work:
    """The experts of one layer on one GPU, gate and up in one matrix.

    tokens: that the layer was given; rows: (token, expert) pairs computed here; padded_rows: with
    each expert's rounded up to tiles (`padded`); active: experts that have rows, each as often as
    its weights are larger than usual.
    """
    seconds = of.launch_s
    read = 0.0
    for n, k in ((2 * intermediate, hidden), (hidden, intermediate)):
        bytes_ = active * n * k * of.weight_bytes + rows * (k * of.input_bytes + n * 2.0)
        computed = 2.0 * padded_rows * n * (k + of.fill) / of.flops_per_s
        seconds += ridge(computed, bytes_ / of.bytes_per_s)
        read += bytes_
    passes = passed_bytes(of, tokens, rows, hidden, intermediate)
    flops = 6.0 * rows * hidden * intermediate
    return Work(seconds + passes / of.passes_bytes_per_s, flops, read + passes)


def passed_bytes(of: Rates, tokens: float, rows: float, hidden: int, intermediate: int) -> float:
    """Bytes of a fused MoE beside its GEMMs.

    Tokens are read and written once; a row is gathered (read, written as the GEMM's input), read
    again to be added up, and passes the activation (gate and up read, one written).
    """
    return (
        tokens * hidden * 4.0
        + rows * hidden * (2.0 + of.input_bytes + 2.0)
        + rows * intermediate * (4.0 + of.input_bytes)
    )


def padded(rows: Sequence[int] | NDArray[np.integer], tile: int) -> int:
    """Rows of all experts, each rounded up to whole tiles."""
    counts = np.asarray(rows, dtype=np.int64)
    return int((-(-counts // tile)).sum()) * tile


def together(*parts: Work) -> Work:
    """Kernels one after the other."""
    return Work(
        sum(part.seconds for part in parts),
        sum(part.flops for part in parts),
        sum(part.bytes for part in parts),
    )
