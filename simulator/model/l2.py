"""What of a GEMM's reads the L2 cache holds, and what goes to HBM.

The model of a tiled GEMM C[m, n] = A[m, k] B[k, n]: tiles of C are handed to the SMs in an order,
`sms` at a time (a wave). A wave walks over k in steps: in each step every tile reads one block of A
and one of B through L2; at the end of the wave each tile writes its part of C there. L2 is one
fully associative LRU cache.

A block of A was last read by the tile one column back in the same band of rows, one of B by the
tile above it, which in a new band is the last one of that column in the band before. So where a
block was last used is known from a tile's number, and so is what has been read since: in a
contiguous run of tiles the distinct rows and columns can be counted in closed form. A read hits if
those bytes (the stack distance) fit. Where all tiles are whole, the result is that of an LRU
simulation; at ragged edges it is off by what unequal blocks leave unused at the cache's end
(tests/model/test_l2.py tells the error).

Orders: `row` sweeps a row of tiles and then the next (A is reused soon, B late), `column` the other
way round, `grouped:g` a band of g rows, column by column (the swizzle of the Triton tutorial on
matrix multiplication).

Not modelled: sets and hashing, the two partitions of A100's and H100's L2 (their capacity is an
upper bound: data read from the far one may be held twice), SMs that run ahead of others.

Sources: Mattson et al., Evaluation techniques for storage hierarchies (IBM Systems Journal 9(2),
1970), for stack distances.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.errors import InputError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

BLOCK_TILES = 1 << 16
"""Tiles that are worked on at once; bounds the memory."""


class L2Traffic(NamedTuple):
    """Bytes of one GEMM. `requested`: read by the SMs through L2; `read`: of these from HBM;
    `written`: C; `compulsory`: A and B once. `hit_rate`: of requested bytes. `enough_bytes`: the
    capacity from which on only compulsory reads are left.
    """

    requested: float
    read: float
    written: float
    compulsory: float
    hit_rate: float
    enough_bytes: float


class _Grid(NamedTuple):
    """Tiles of C: rows x columns, in bands of `band` rows, worked on `wave` at a time."""

    rows: int
    columns: int
    band: int
    wave: int

    @property
    def tiles(self) -> int:
        return self.rows * self.columns


class _Sizes(NamedTuple):
    """Bytes of a full block of A and of B, how much less those of the last row and of the last
    column of tiles hold, and what a tile writes on average; steps along k, and the depth of the
    last one as a share of a full one.
    """

    a: float
    b: float
    a_short: float
    b_short: float
    c: float
    steps: int
    last: float


def gemm_traffic(
    m: int,
    n: int,
    k: int,
    l2_bytes: float,
    *,
    tile: tuple[int, int, int] = (128, 128, 64),
    element_bytes: tuple[float, float, float] = (2.0, 2.0, 2.0),
    sms: int = 132,
    order: str = "row",
) -> L2Traffic:
    """Traffic of C[m, n] = A[m, k] B[k, n].

    tile: rows and columns of C per tile, and depth of a step; element_bytes: of A, B and C; sms:
    tiles under way at once; order: `row`, `column` or `grouped:g`. Errors: InputError for an order
    that is none of these; ValueError for sizes below 1.
    """
    if min(m, n, k, sms, *tile) < 1 or l2_bytes < 0:
        raise ValueError(f"m={m}, n={n}, k={k}, tile={tile}, sms={sms}, l2_bytes={l2_bytes}")
    rows, columns, steps = (-(-size // part) for size, part in zip((m, n, k), tile, strict=True))
    grid = _Grid(rows, columns, band_of(order, rows), sms)
    height, width, depth = (min(part, size) for part, size in zip(tile, (m, n, k), strict=True))
    per_row, per_column = depth * element_bytes[0], depth * element_bytes[1]
    sizes = _Sizes(
        a=height * per_row,
        b=width * per_column,
        a_short=(rows * height - m) * per_row,
        b_short=(columns * width - n) * per_column,
        c=m * n * element_bytes[2] / grid.tiles,
        steps=steps,
        last=(k - (steps - 1) * depth) / depth,
    )
    a_bytes, b_bytes = m * k * element_bytes[0], k * n * element_bytes[1]
    heights = _parts(m, tile[0]) * k * element_bytes[0]
    widths = _parts(n, tile[1]) * k * element_bytes[1]
    read = enough = 0.0
    for start in range(0, grid.tiles, BLOCK_TILES):
        tiles = np.arange(start, min(start + BLOCK_TILES, grid.tiles))
        row, column = _place(grid, tiles)
        missed_a, far_a = _missed(grid, sizes, tiles, _last_a(grid, tiles), True, l2_bytes)
        missed_b, far_b = _missed(grid, sizes, tiles, _last_b(grid, tiles), False, l2_bytes)
        read += float(np.sum(missed_a * heights[row] + missed_b * widths[column]))
        enough = max(enough, far_a, far_b)
    requested = a_bytes * columns + b_bytes * rows
    return L2Traffic(
        requested=requested,
        read=read,
        written=m * n * element_bytes[2],
        compulsory=a_bytes + b_bytes,
        hit_rate=1.0 - read / requested,
        enough_bytes=enough,
    )


def band_of(order: str, rows: int) -> int:
    """Rows of tiles that an order works on together: 1 for `row`, all for `column`."""
    name, _, size = order.partition(":")
    if name == "grouped" and size.isascii() and size.isdigit() and int(size) >= 1:
        return min(int(size), rows)
    if order in ("row", "column"):
        return 1 if order == "row" else rows
    raise InputError(f"tile order {order!r}: write row, column or grouped:8")


def _parts(size: int, part: int) -> Floats:
    """How `size` is cut: full parts and what is left."""
    full, rest = divmod(size, part)
    return np.array([part] * full + ([rest] if rest else []), dtype=np.float64)


def _split(grid: _Grid, tiles: Ints) -> tuple[Ints, Ints, Ints]:
    """Band, place within it, and height of the band, of each tile; the last band may be lower."""
    band, place = np.divmod(tiles, grid.band * grid.columns)
    return band, place, np.minimum(grid.band, grid.rows - band * grid.band)


def _place(grid: _Grid, tiles: Ints) -> tuple[Ints, Ints]:
    """Row and column of each tile."""
    band, place, height = _split(grid, tiles)
    column, row = np.divmod(place, height)
    return band * grid.band + row, column


def _last_a(grid: _Grid, tiles: Ints) -> Ints:
    """The tile before that read the same blocks of A; -1 if none."""
    _, place, height = _split(grid, tiles)
    return np.where(place >= height, tiles - height, -1)


def _last_b(grid: _Grid, tiles: Ints) -> Ints:
    """The tile before that read the same blocks of B; -1 if none."""
    band, place, height = _split(grid, tiles)
    column, row = np.divmod(place, height)
    end_of_column = (band - 1) * grid.band * grid.columns + (column + 1) * grid.band - 1
    return np.where(row > 0, tiles - 1, np.where(band > 0, end_of_column, -1))


def _distinct(grid: _Grid, sizes: _Sizes, first: Ints, last: Ints) -> tuple[Floats, Floats]:
    """Bytes of the distinct blocks of A, and of B, that tiles first..last read in a full step
    (0, 0 where last < first).
    """
    some = last >= first
    last = np.maximum(first, last)
    band0, place0, height0 = _split(grid, first)
    band1, place1, height1 = _split(grid, last)
    column0, column1 = place0 // height0, place1 // height1
    rows_apart = (
        np.minimum(height0 * grid.columns - place0, height0)
        + np.maximum(band1 - band0 - 1, 0) * grid.band
        + np.minimum(place1 + 1, height1)
    )
    tail, head = grid.columns - column0, column1 + 1
    columns_apart = np.where(band1 - band0 > 1, grid.columns, np.minimum(tail + head, grid.columns))
    same = band0 == band1
    rows = np.where(same, np.minimum(last - first + 1, height0), rows_apart)
    columns = np.where(same, column1 - column0 + 1, columns_apart)
    # The last row of tiles stands at the bottom of the last band, the last column at each's end.
    bottom = (grid.rows - 1) // grid.band
    base = bottom * grid.band * grid.columns
    height = grid.rows - bottom * grid.band
    above_first = (np.maximum(first, base) - base + height - (height - 1) - 1) // height
    has_last_row = (band1 == bottom) & ((last - base + 1) // height > above_first)
    has_last_column = (column1 == grid.columns - 1) | ~same
    a = rows * sizes.a - has_last_row * sizes.a_short
    b = columns * sizes.b - has_last_column * sizes.b_short
    return np.where(some, a, 0.0), np.where(some, b, 0.0)


def _missed(
    grid: _Grid, sizes: _Sizes, tiles: Ints, before: Ints, of_a: bool, l2_bytes: float
) -> tuple[Floats, float]:
    """Share of a tile's bytes [tiles] of one operand that miss, and the longest stack distance.

    before: the tile that read them last, -1 if none.
    """
    known = before >= 0
    before = np.where(known, before, tiles)
    wave, wave_before = tiles // grid.wave, before // grid.wave
    start, start_before = wave * grid.wave, wave_before * grid.wave
    end = np.minimum(start + grid.wave, grid.tiles) - 1

    def per_step(first: Ints, last: Ints) -> Floats:
        a, b = _distinct(grid, sizes, np.minimum(first, grid.tiles - 1), last)
        return a + b

    # In the same step: after a block of A, its tile's block of B; before a block of B, its A.
    if of_a:
        a, _ = _distinct(grid, sizes, before, tiles)
        _, b = _distinct(grid, sizes, before, tiles - 1)
    else:
        a, _ = _distinct(grid, sizes, np.minimum(before + 1, tiles), tiles)
        _, b = _distinct(grid, sizes, before, tiles)
    in_step = a + b
    # Steps after it in its own wave, steps before it in the new one; waves between count in both.
    across = wave > wave_before
    later = np.where(across, per_step(start_before, start - 1), 0.0)
    earlier = np.where(across, per_step(start_before + grid.wave, end), 0.0)
    written = np.where(across, (start - start_before) * sizes.c, 0.0)
    full = sizes.steps - 1
    depth = full + sizes.last
    fixed = in_step + (depth - 1.0) * later + written
    slope = earlier - later
    at_last = in_step * sizes.last + full * earlier + written
    hits = _steps_below(fixed, slope, l2_bytes, full) + sizes.last * (at_last <= l2_bytes)
    missed = np.where(known, 1.0 - hits / depth, 1.0)
    longest = at_last
    if full:
        longest = np.maximum(longest, np.maximum(fixed, fixed + slope * (full - 1)))
    return missed, float(np.max(longest, where=known, initial=0.0))


def _steps_below(fixed: Floats, slope: Floats, limit: float, steps: int) -> Floats:
    """How many of 0..steps-1 have fixed + slope x step <= limit."""
    crossing = (limit - fixed) / np.where(slope == 0, 1.0, slope)
    crossing = np.clip(crossing, -1.0, float(steps))
    rising = np.floor(crossing) + 1.0
    falling = steps - np.ceil(crossing)
    flat = np.where(fixed <= limit, float(steps), 0.0)
    found = np.where(slope > 0, rising, np.where(slope < 0, falling, flat))
    return np.clip(found, 0.0, float(steps))


class Streamed(NamedTuple):
    """Bytes of a layer whose activations come in chunks. `weights`, `chunks`, `other`: from HBM;
    `requested`: touched in all; `hit_rate`: of these; `working_set_bytes`: what must fit in L2 for
    the inner loop to reuse what it holds on to.
    """

    weights: float
    chunks: float
    other: float
    requested: float
    hit_rate: float
    working_set_bytes: float


def streamed_traffic(
    tiles: int,
    tile_bytes: float,
    chunks: int,
    chunk_bytes: float,
    other_bytes: float,
    l2_bytes: float,
    *,
    outer: Literal["weights", "chunks"] = "weights",
    chunks_arrive_in_l2: bool = False,
) -> Streamed:
    """HBM traffic of a layer of `tiles` weight tiles over which `chunks` of activations stream.

    Each pass touches one tile, one chunk and `other_bytes` of buffers that stay the same, in this
    order, in a fully associative LRU cache. outer `weights`: a tile stays while all chunks pass
    (weight-stationary), so each chunk comes back for each tile; `chunks`: a chunk stays while all
    tiles pass. chunks_arrive_in_l2: a chunk's first touch hits, as if its sender had put it there.

    LRU keeps all of what is reused or nothing: one byte above the capacity, and every pass reads
    everything again.
    """
    if min(tiles, chunks) < 1 or min(tile_bytes, chunk_bytes, other_bytes, l2_bytes) < 0:
        raise ValueError(f"tiles={tiles}, chunks={chunks}, or a size below 0")
    held = tile_bytes + chunk_bytes + other_bytes
    fits = held <= l2_bytes
    if outer == "weights":
        # The last chunk is followed by the next tile alone, the others by both.
        back = tile_bytes + chunks * chunk_bytes + other_bytes
        early = back + (tile_bytes if chunks > 1 else 0.0)
        again = (chunks - 1) * (early > l2_bytes) + (back > l2_bytes)
        weight_touches = float(tiles if fits else tiles * chunks)
        chunk_touches = chunks + (tiles - 1.0) * again
    elif outer == "chunks":
        back = tiles * tile_bytes + chunk_bytes + other_bytes
        late = back + (chunk_bytes if tiles > 1 else 0.0)
        again = (back > l2_bytes) + (tiles - 1) * (late > l2_bytes)
        weight_touches = tiles + (chunks - 1.0) * again
        chunk_touches = float(chunks if fits else tiles * chunks)
    else:
        raise InputError(f"outer {outer!r}: write weights or chunks")
    passes = tiles * chunks
    if chunks_arrive_in_l2:
        chunk_touches -= chunks
    other = (1 if fits else passes) * other_bytes
    weights, moved = weight_touches * tile_bytes, chunk_touches * chunk_bytes
    requested = passes * held
    read = weights + moved + other
    return Streamed(
        weights=weights,
        chunks=moved,
        other=other,
        requested=requested,
        hit_rate=1.0 - read / requested if requested else 0.0,
        working_set_bytes=held,
    )
