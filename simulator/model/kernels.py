"""How long one kernel takes on a GPU: GEMM, grouped GEMM of a MoE layer, and passes over memory.

    c = 2 m n (k + fill) / (peak * compute_efficiency)
    b = (weights + inputs + outputs) / (HBM bandwidth * memory_efficiency)
    t = launch + (c^4 + b^4)^(1/4) + depth * log2(1 + k / 512) + 3 m k / (HBM bandwidth * quantise)

A roofline (Williams, Waterman, Patterson, CACM 52(4), 2009) whose ridge is rounded by a norm.
`fill` is what a tile costs before its first and after its last product, `depth` the latency of a
long sum. FP8 kernels first read their BF16 input (2 bytes) and write it in FP8 (1 byte).

A fused MoE is two grouped GEMMs at the same efficiencies. Each expert's rows are cut into tiles of
as many rows as suit the mean load (`tile_of`), the last one filled up; every tile reads its rows
and its columns of the weights from L2, which for short tiles takes longer than the product:

    c = max(2 tiles tile n (k + fill) / (peak * compute_efficiency),
            tiles n (k + fill) (weight bytes + tile input bytes / 128) / L2 bandwidth)

From HBM the weights come once per expert that has rows; launch holds sorting and permuting, and the
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
LEAST_TILE = 16  # rows
TILE_COLUMNS = 128  # of the weights
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
    """A family on a GPU, in SI units. input_bytes: per element of a GEMM's input; tile, spare: rows
    (`tile_of`).
    """

    flops_per_s: float
    bytes_per_s: float
    l2_bytes_per_s: float
    launch_s: float
    depth_s: float
    fill: float
    quantise_bytes_per_s: float
    passes_bytes_per_s: float
    tile: int
    spare: int
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
        gpu.l2_bandwidth_bytes_per_s or math.inf,
        gpu.launch_overhead_s * kernel.launches,
        gpu.launch_overhead_s * kernel.depth,
        kernel.fill,
        bandwidth * kernel.quantise if kernel.quantise else math.inf,
        bandwidth * kernel.passes,
        kernel.tile,
        kernel.spare,
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
        + long_sum_s(of, k)
        + quantised / of.quantise_bytes_per_s
    )
    return Work(seconds, batch * 2.0 * m * n * k, touched + quantised)


def long_sum_s(of: Rates, k: int) -> float:
    """Latency of summing `k` products."""
    return of.depth_s * math.log2(1.0 + k / K_UNIT)


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


def tile_of(of: Rates, mean_rows: float) -> int:
    """Rows of a tile where experts have `mean_rows` on average: the power of two from 16 up to the
    family's most that holds them, or twice as many as far as `spare` rows hold these.
    """
    wanted = mean_rows if 2.0 * mean_rows > of.spare else 2.0 * mean_rows
    tile = LEAST_TILE
    while tile < wanted:
        tile *= 2
    return min(tile, of.tile)


def fused_moe(
    of: Rates,
    tokens: float,
    rows: float,
    tile: int,
    tiles: float,
    active: float,
    hidden: int,
    intermediate: int,
) -> Work:
    """The experts of one layer on one GPU, gate and up in one matrix.

    tokens: that the layer was given; rows: (token, expert) pairs computed here, in `tiles` of
    `tile` rows; active: experts that have rows, each as often as its weights are larger than usual.
    """
    seconds = of.launch_s
    read = 0.0
    for n, k in ((2 * intermediate, hidden), (hidden, intermediate)):
        bytes_ = active * n * k * of.weight_bytes + rows * (k * of.input_bytes + n * 2.0)
        products = tiles * n * (k + of.fill)
        computed = 2.0 * tile * products / of.flops_per_s
        fed = products * (of.weight_bytes + tile * of.input_bytes / TILE_COLUMNS)
        seconds += ridge(max(computed, fed / of.l2_bytes_per_s), bytes_ / of.bytes_per_s)
        seconds += long_sum_s(of, k)
        read += bytes_
    passes = passed_bytes(of, tokens, rows, hidden, intermediate)
    flops = 6.0 * rows * hidden * intermediate
    return Work(seconds + passes / of.passes_bytes_per_s, flops, read + passes)


def passed_bytes(of: Rates, tokens: float, rows: float, hidden: int, intermediate: int) -> float:
    """Bytes of a fused MoE beside its GEMMs.

    A token is written once, and quantised before where the GEMMs want fewer than 16 bits; a row is
    gathered (read, written as the GEMM's input), read again to be added up, and passes the
    activation (gate and up read, one written).
    """
    quantised = 2.0 + of.input_bytes if of.input_bytes < 2.0 else 0.0
    return (
        tokens * hidden * (2.0 + quantised)
        + rows * hidden * (2.0 * of.input_bytes + 2.0)
        + rows * intermediate * (4.0 + of.input_bytes)
    )


def tiles_of(rows: Sequence[int] | NDArray[np.integer], tile: int) -> int:
    """Tiles of all experts together, none of which two experts share."""
    counts = np.asarray(rows, dtype=np.int64)
    return int((-(-counts // tile)).sum())


def together(*parts: Work) -> Work:
    """Kernels one after the other."""
    return Work(
        sum(part.seconds for part in parts),
        sum(part.flops for part in parts),
        sum(part.bytes for part in parts),
    )
