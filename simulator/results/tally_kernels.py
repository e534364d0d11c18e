"""Compiled: sums over spans in any order, for `simulator.results.tally` and `energy`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.compiled import allocation_free, inlined
from simulator.runfiles.spans import COMM, COMPUTE, DEMAND, PREFETCH

Floats = NDArray[np.float64]
Longs = NDArray[np.int64]

PREFETCHES, USED, WASTED, FETCHES, LENT, MEASURED = range(6)
COUNTS = 6


class Spans(NamedTuple):
    """Columns [n] of the file, with its dtypes; `stream` and `kind` as codes of int8."""

    step: NDArray[np.int32]
    gpu: NDArray[np.int32]
    stream: NDArray[np.int8]
    kind: NDArray[np.int8]
    start_s: Floats
    end_s: Floats
    peer: NDArray[np.int32]
    bytes: Floats
    used: NDArray[np.bool_]


class Clock(NamedTuple):
    """The measured steps, in order: arrays [steps]; done_s: the time of those before each."""

    step: Longs
    start_s: Floats
    end_s: Floats
    done_s: Floats


class Found(NamedTuple):
    """What `count` finds.

    busy_s: [streams, gpus], within measured steps; of the spans of measured steps: bytes_by_kind
    [kinds], and wasted_bytes [n] of each prefetch that was not used; measured: [n]; counts:
    [COUNTS].
    """

    busy_s: Floats
    bytes_by_kind: Floats
    wasted_bytes: Floats
    measured: NDArray[np.bool_]
    counts: Longs


@allocation_free
def count(spans: Spans, clock: Clock, found: Found) -> None:
    """Add up `spans`, each on one of the GPUs of `found`, which is given zeros."""
    counts = found.counts
    at = 0
    for row in range(len(spans.step)):
        gpu, kind = spans.gpu[row], spans.kind[row]
        number = spans.step[row]
        if clock.step[at] != number:
            at = _last_until(clock.step, number)
        before_s = _measured_before(clock, at, spans.start_s[row])
        within_s = _measured_before(clock, at, spans.end_s[row]) - before_s
        found.busy_s[spans.stream[row], gpu] += within_s
        measured = clock.step[at] == number
        found.measured[row] = measured
        if not measured:
            continue
        counts[MEASURED] += 1
        found.bytes_by_kind[kind] += spans.bytes[row]
        if kind == PREFETCH:
            counts[PREFETCHES] += 1
            if spans.used[row]:
                counts[USED] += 1
            else:
                found.wasted_bytes[counts[WASTED]] = spans.bytes[row]
                counts[WASTED] += 1
        if kind in (PREFETCH, DEMAND):
            counts[FETCHES] += 1
            counts[LENT] += spans.peer[row] >= 0


@inlined
def _last_until(values: NDArray[np.generic], value: float) -> int:
    """The last of the sorted values [n > 0] that is at most `value`; the first if none is."""
    low, high = 0, len(values)
    while low < high:
        middle = (low + high) >> 1
        if values[middle] <= value:
            low = middle + 1
        else:
            high = middle
    return max(low - 1, 0)


@inlined
def _measured_before(clock: Clock, guess: int, t: float) -> float:
    """Seconds of measured steps before `t`, which may lie in step `guess`."""
    at = guess
    last = len(clock.step) - 1
    if t < clock.start_s[at] or (at < last and t >= clock.start_s[at + 1]):
        at = _last_until(clock.start_s, t)
        if t < clock.start_s[at]:
            return 0.0
    return float(clock.done_s[at] + (min(t, clock.end_s[at]) - clock.start_s[at]))


class Drawn(NamedTuple):
    """Columns [n] of spans, as `Spans`, and which of them count."""

    gpu: NDArray[np.int32]
    stream: NDArray[np.int8]
    kind: NDArray[np.int8]
    start_s: Floats
    end_s: Floats
    bytes: Floats
    flops: Floats


@allocation_free
def draw(
    spans: Drawn,
    measured: NDArray[np.bool_],
    j_per_flop: Floats,
    hbm_j_per_byte: float,
    most_w: float,
    sums: Floats,
) -> None:
    """Add to `sums` [4, gpus] J of FLOPs and of HBM bytes, J cut off, seconds in kernels cut off.

    j_per_flop: [kinds]; most_w: what a kernel may draw beside idle power.
    """
    for row in range(len(spans.gpu)):
        if not measured[row]:
            continue
        gpu, stream = spans.gpu[row], spans.stream[row]
        passes = 2.0 if stream == COMM else 1.0
        hbm_j = passes * spans.bytes[row] * hbm_j_per_byte
        if stream != COMPUTE:
            sums[1, gpu] += hbm_j
            continue
        compute_j = spans.flops[row] * j_per_flop[spans.kind[row]]
        asked_j = compute_j + hbm_j
        length_s = spans.end_s[row] - spans.start_s[row]
        most_j = most_w * length_s
        if asked_j > most_j * (1 + 1e-12):
            share = most_j / asked_j
            compute_j *= share
            hbm_j *= share
            sums[2, gpu] += asked_j * (1 - share)
            sums[3, gpu] += length_s
        sums[0, gpu] += compute_j
        sums[1, gpu] += hbm_j
