"""What the L2 model says of the GEMMs of a layer in either layout."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from simulator.studies.layerwise.spec import Layerwise


class Cached(NamedTuple):
    """GEMMs of one layer on one GPU for a piece: share of the requests to L2 that hit; bytes that
    are requested, read from HBM and written; FLOPs.
    """

    hit_rate: float
    requested: float
    read: float
    written: float
    flops: float


def gemms(study: Layerwise, model: str, tp: int, rows: int) -> Iterator[tuple[int, int, int]]:
    """(m, n, k) of the matrices of a layer on one of `tp` GPUs: queries, keys and values; output;
    up (and gate); down.
    """
    given = study.assumptions
    attention = given.heads * given.head_dim // tp
    width = given.models[model].intermediate // tp
    yield rows, 3 * attention, given.hidden
    yield rows, given.hidden, attention
    yield rows, 2 * width, given.hidden
    yield rows, given.hidden, width


def cached(study: Layerwise, model: str, tp: int, rows: int, l2_bytes: float, order: str) -> Cached:
    """All GEMMs of a layer, `rows` tokens at a time."""
    from simulator.model.l2 import gemm_traffic

    tile = study.assumptions.l2.tile
    requested = read = written = flops = 0.0
    for m, n, k in gemms(study, model, tp, rows):
        found = gemm_traffic(m, n, k, l2_bytes, tile=tile, order=order)
        requested += found.requested
        read += found.read
        written += found.written
        flops += 2.0 * m * n * k
    return Cached(1.0 - read / requested, requested, read, written, flops)


def rows_of(tokens: int, pieces: str, hidden: int) -> int:
    """Tokens of a piece, told as `microbatches: 8` or `chunk: 12000000 B`."""
    what, _, value = pieces.partition(": ")
    if what == "chunk":
        return max(1, int(float(value.split()[0]) / (2.0 * hidden)))
    return max(1, tokens // int(value))
