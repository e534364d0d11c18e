"""Closed forms of the study `layerwise`: TP x PP and a group of GPUs per layer, from FLOPs, bytes
and rates.

    parameters  of a layer: 4 hidden attention_width + matrices hidden width
    layer       the longer of its FLOPs and its HBM bytes (weights, in decode KV too), on tp GPUs,
                and two all-reduces (ring 2 (n - 1) / n, in the switch (n + 1) / n of the tensor)
    flushed     a batch in m pieces through p stages: (m + p - 1) stages + (p - 1) sends
    steady      max(m, p) stages per batch: with m >= p pieces in flight no stage waits
    layer-wise  the same with one stage per layer and tp = GPUs / layers
    L2          what the SMs request of L2 and do not find there is read from HBM; side by side
                with computing

Nothing is fitted here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from simulator.results.summary import number
from simulator.studies.common.claims import Published, solve
from simulator.studies.large_ep.forms import ring_volume, switch_volume

ELEMENT_BYTES = 2.0  # BF16


class Point(NamedTuple):
    """All that the forms take; rates in SI units, of one direction, after efficiencies.

    width: of the FFN; matrices: of the FFN (2: up and down; 3: and a gate); keys: that a token
    attends to, on average; pieces: micro-batches or chunks of the batch; decode: every token has a
    KV cache of its own to read, and batches follow each other without a gap.
    """

    tokens: float
    hidden: float
    width: float
    matrices: float
    attention_width: float
    layers: float
    keys: float
    decode: bool
    tp: int
    stages: int
    pieces: float
    flops_per_s: float
    hbm_bytes_per_s: float
    allreduce_bytes_per_s: float
    send_bytes_per_s: float
    in_switch: bool


def layer_parameters(at: Point) -> float:
    """Weights of a layer."""
    return 4.0 * at.hidden * at.attention_width + at.matrices * at.hidden * at.width


def width_of(parameters: float, at: Point) -> float:
    """Width of the FFN at which the model has so many parameters, all else as it is."""
    return (parameters / at.layers - 4.0 * at.hidden * at.attention_width) / (
        at.matrices * at.hidden
    )


def layer_flops(at: Point) -> float:
    """FLOPs of one token in one layer, scores and weighted values of attention included."""
    return 2.0 * layer_parameters(at) + 4.0 * at.attention_width * at.keys


def tensor_bytes(at: Point) -> float:
    """Activations of the whole batch between two layers."""
    return at.tokens * at.hidden * ELEMENT_BYTES


def layer_bytes(at: Point) -> float:
    """HBM bytes of a piece in one layer, all GPUs of its group: weights, and in decode the KV."""
    cache = at.tokens / at.pieces * at.keys * 2.0 * at.attention_width if at.decode else 0.0
    return (layer_parameters(at) + cache) * ELEMENT_BYTES


def allreduce_sent(at: Point) -> float:
    """Bytes that a GPU sends per layer and batch, both all-reduces."""
    if at.tp == 1:
        return 0.0
    volume = switch_volume(at.tp) if at.in_switch else ring_volume(at.tp)
    return 2.0 * volume * tensor_bytes(at)


def layer_s(at: Point) -> float:
    """One piece in one layer."""
    compute_s = at.tokens / at.pieces * layer_flops(at) / (at.tp * at.flops_per_s)
    memory_s = layer_bytes(at) / (at.tp * at.hbm_bytes_per_s)
    reduce_s = allreduce_sent(at) / at.pieces / at.allreduce_bytes_per_s
    return max(compute_s, memory_s) + reduce_s


def batch_s(at: Point) -> float:
    """A batch: flushed in prefill; in decode, from one to the next."""
    stage_s = at.layers / at.stages * layer_s(at)
    send_s = tensor_bytes(at) / at.pieces / at.send_bytes_per_s if at.stages > 1 else 0.0
    if at.decode:
        return max(at.pieces * stage_s, at.stages * (stage_s + send_s))
    return (at.pieces + at.stages - 1.0) * stage_s + (at.stages - 1.0) * send_s


def gain(baseline: Point, proposed: Point) -> float:
    """Throughput of the second over the first, minus 1."""
    return batch_s(baseline) / batch_s(proposed) - 1.0


def cached_layer_s(compute_s: float, requested_s: float, hit_rate: float) -> float:
    """Time of GEMMs that compute for `compute_s` and whose requests to L2 would take `requested_s`
    from HBM if none hit.
    """
    return max(compute_s, (1.0 - hit_rate) * requested_s)


def hit_for(gain_: float, compute_s: float, requested_s: float, hit_rate: float) -> float | None:
    """Hit rate of a baseline against which `hit_rate` gives that gain; None if none does."""
    found = 1.0 - (1.0 + gain_) * cached_layer_s(compute_s, requested_s, hit_rate) / requested_s
    return found if 0.0 <= found <= 1.0 else None


def requested_bytes(m: float, n: float, k: float, tile: tuple[int, int]) -> float:
    """Bytes of A[m, k] and B[k, n] that tiles of C (rows, columns) ask L2 for: every tile its own
    rows of A and columns of B.
    """
    return m * n * k * ELEMENT_BYTES * (1.0 / tile[0] + 1.0 / tile[1])


# --- What would have to be true ----------------------------------------------------------

_GRID = [10.0 ** (step / 20.0) for step in range(-60, 61)]
Change = Callable[[Point, float], Point]

KNOBS: tuple[tuple[str, Change, Sequence[float], Callable[[Point], float]], ...] = (
    (
        "{} B parameters",
        lambda at, x: at._replace(width=width_of(x * 1e9, at)),
        [1.2 * 1.05**step for step in range(120)],
        lambda at: at.layers * layer_parameters(at) / 1e9,
    ),
    (
        "FLOP rate x {}",
        lambda at, x: at._replace(flops_per_s=at.flops_per_s * x),
        _GRID,
        lambda at: 1.0,
    ),
    (
        "all-reduce bandwidth x {}",
        lambda at, x: at._replace(allreduce_bytes_per_s=at.allreduce_bytes_per_s * x),
        _GRID,
        lambda at: 1.0,
    ),
)


def figures(baseline: Point, proposed: Point) -> dict[str, float]:
    """What both layouts give: token/s and ms per token of each, and what the second gains."""
    times = (batch_s(baseline), batch_s(proposed))
    saved = 1.0 - times[1] / times[0]
    return {
        "tps_base": baseline.tokens / times[0],
        "tps_layer": proposed.tokens / times[1],
        "gain": gain(baseline, proposed),
        "ms_base": 1e3 * times[0] / baseline.tokens,
        "ms_layer": 1e3 * times[1] / proposed.tokens,
        "time_saved": saved,
        "energy_saved": saved,  # at constant power
    }


def holds_at(baseline: Point, proposed: Point, figure: str, claim: Published, scale: float) -> str:
    """The nearest value of each single assumption at which one of `figures` is the claimed one."""
    found = []
    for told, change, grid, start in KNOBS:

        def value(x: float, change: Change = change) -> float:
            return figures(change(baseline, x), change(proposed, x))[figure] * scale

        x = solve(value, grid, claim, start(baseline))
        if x is not None:
            found.append(told.format(number(x)))
    return " or ".join(found) if found else "no value of any one assumption"
