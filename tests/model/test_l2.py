"""The L2 model against a fully associative LRU cache that is simulated block by block."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from itertools import product

import numpy as np
import pytest

from simulator.errors import InputError
from simulator.model.l2 import gemm_traffic, streamed_traffic

Access = tuple[Hashable, float, bool]


class Lru:
    """Bytes read into a fully associative LRU cache; a block larger than it passes through."""

    def __init__(self, capacity: float) -> None:
        self.capacity, self.used = capacity, 0.0
        self.held: OrderedDict[Hashable, float] = OrderedDict()

    def touch(self, block: Hashable, size: float) -> bool:
        if block in self.held:
            self.held.move_to_end(block)
            return True
        while self.held and self.used + size > self.capacity:
            self.used -= self.held.popitem(last=False)[1]
        if size <= self.capacity:
            self.held[block] = size
            self.used += size
        return False


def tile_order(order: str, rows: int, columns: int) -> list[tuple[int, int]]:
    if order == "row":
        return [(i, j) for i in range(rows) for j in range(columns)]
    if order == "column":
        return [(i, j) for j in range(columns) for i in range(rows)]
    band = int(order.partition(":")[2])
    return [
        (i, j)
        for first in range(0, rows, band)
        for j in range(columns)
        for i in range(first, min(first + band, rows))
    ]


def simulated(m, n, k, l2_bytes, tile, element_bytes, sms, order) -> tuple[float, float]:
    """Bytes read from HBM, and bytes asked for."""
    rows, columns, steps = (-(-size // part) for size, part in zip((m, n, k), tile, strict=True))

    def length(index: int, part: int, size: int) -> int:
        return min(part, size - index * part)

    cache = Lru(l2_bytes)
    read = asked = 0.0
    order_of_tiles = tile_order(order, rows, columns)
    for start in range(0, len(order_of_tiles), sms):
        wave = order_of_tiles[start : start + sms]
        for step in range(steps):
            depth = length(step, tile[2], k)
            for i, j in wave:
                for name, size in (
                    (("A", i, step), length(i, tile[0], m) * depth * element_bytes[0]),
                    (("B", step, j), length(j, tile[1], n) * depth * element_bytes[1]),
                ):
                    asked += size
                    read += 0.0 if cache.touch(name, size) else size
        for i, j in wave:
            size = length(i, tile[0], m) * length(j, tile[1], n) * element_bytes[2]
            cache.touch(("C", i, j), size)
    return read, asked


ORDERS = ("row", "column", "grouped:2", "grouped:3", "grouped:8")


def shapes(count: int, seed: int, ragged: bool) -> Iterator[dict[str, object]]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        tile = tuple(int(x) for x in rng.integers(2, 9, 3))
        counts = [int(x) for x in (*rng.integers(1, 14, 2), rng.integers(1, 9))]
        sizes = [
            max(1, c * part - (int(rng.integers(0, part)) if ragged else 0))
            for c, part in zip(counts, tile, strict=True)
        ]
        bytes_of_all = 2.0 * (sizes[0] * sizes[2] + sizes[2] * sizes[1] + sizes[0] * sizes[1])
        yield {
            "m": sizes[0],
            "n": sizes[1],
            "k": sizes[2],
            "tile": tile,
            "element_bytes": (2.0, 2.0, 2.0),
            "sms": int(rng.integers(1, 30)),
            "order": ORDERS[int(rng.integers(len(ORDERS)))],
            "l2_bytes": float(bytes_of_all * rng.uniform(0.0, 1.1) ** 2),
        }


def test_equal_square_blocks_give_exactly_what_the_cache_does():
    """With blocks of one size a byte-wise LRU is the stack algorithm: no error at all."""
    rng = np.random.default_rng(5)
    for _ in range(250):
        side = int(rng.integers(1, 5))
        rows, columns, steps = (int(x) for x in (*rng.integers(1, 14, 2), rng.integers(1, 9)))
        case = {
            "tile": (side, side, side),
            "element_bytes": (1.0, 1.0, 1.0),
            "sms": int(rng.integers(1, 30)),
            "order": ORDERS[int(rng.integers(len(ORDERS)))],
            "l2_bytes": float(side * side * rng.integers(0, rows * columns + 40)),
        }
        found = gemm_traffic(rows * side, columns * side, steps * side, **case)
        read, asked = simulated(rows * side, columns * side, steps * side, **case)
        assert found.read == pytest.approx(read, rel=1e-12), case
        assert found.requested == asked


def test_whole_tiles_give_exactly_what_the_cache_does():
    """Blocks of A, B and C of three sizes, every tile whole: no error in any of 300 shapes."""
    for case in shapes(300, seed=7, ragged=False):
        read, asked = simulated(**case)
        found = gemm_traffic(**case)
        assert found.requested == pytest.approx(asked)
        assert found.read == pytest.approx(read, rel=1e-12), case


def test_ragged_edges_are_close():
    """Error of the bytes from HBM as a share of those asked for; 9 of 10 shapes have none."""
    errors = []
    for case in shapes(400, seed=11, ragged=True):
        read, asked = simulated(**case)
        found = gemm_traffic(**case)
        assert found.requested == pytest.approx(asked)
        errors.append(abs(found.read - read) / asked)
    assert np.mean(errors) < 0.001
    assert np.quantile(errors, 0.9) < 1e-9
    assert np.quantile(errors, 0.99) < 0.03
    assert np.max(errors) < 0.10


@pytest.mark.parametrize("order", ORDERS)
def test_an_endless_cache_reads_everything_once(order):
    found = gemm_traffic(1000, 700, 300, 1e12, order=order, tile=(64, 64, 32), sms=7)
    assert found.read == pytest.approx(2.0 * (1000 * 300 + 300 * 700))
    assert found.read == pytest.approx(found.compulsory)
    assert found.written == 2.0 * 1000 * 700
    assert gemm_traffic(
        1000, 700, 300, found.enough_bytes, order=order, tile=(64, 64, 32), sms=7
    ).read == pytest.approx(found.compulsory)


@pytest.mark.parametrize("order", ORDERS)
def test_below_one_set_of_blocks_nothing_is_reused(order):
    block = 2.0 * 64 * 32
    found = gemm_traffic(640, 640, 320, 2 * block - 1, order=order, tile=(64, 64, 32), sms=7)
    assert found.read == pytest.approx(found.requested)
    assert found.hit_rate == pytest.approx(0.0, abs=1e-12)


def test_more_cache_never_reads_more():
    for order in ORDERS:
        read = [
            gemm_traffic(2048, 1536, 512, size, order=order, sms=16, tile=(128, 128, 64)).read
            for size in np.linspace(0, 8e6, 60)
        ]
        assert np.all(np.diff(read) <= 1e-6)


def test_row_order_keeps_a_and_column_order_keeps_b():
    """One SM, room for one operand's panel and a few blocks: the other operand is read again."""
    m = n = 640
    k, part = 320, 64
    panel = 2.0 * part * k
    room = 3 * panel
    by_row = gemm_traffic(m, n, k, room, order="row", tile=(part, part, part), sms=1)
    by_column = gemm_traffic(m, n, k, room, order="column", tile=(part, part, part), sms=1)
    whole = 2.0 * m * k
    assert by_row.read == pytest.approx(whole + 10 * whole)
    assert by_column.read == pytest.approx(10 * whole + whole)
    square = gemm_traffic(m, n, k, 8 * panel, order="grouped:2", tile=(part, part, part), sms=1)
    assert square.read == pytest.approx(whole + 5 * whole)


def test_an_unknown_order_is_refused():
    for order in ("rows", "grouped", "grouped:0", "grouped:x"):
        with pytest.raises(InputError, match="write row, column or grouped:8"):
            gemm_traffic(64, 64, 64, 1e6, order=order)
    with pytest.raises(ValueError, match="m=0"):
        gemm_traffic(0, 64, 64, 1e6)


def streamed(tiles, tile, chunks, chunk, other, capacity, outer) -> dict[str, int]:
    """Unit blocks from HBM, by what they hold."""
    cache = Lru(capacity)
    missed = {"weights": 0, "chunks": 0, "other": 0}
    passes = list(product(range(tiles), range(chunks)))
    if outer == "chunks":
        passes = [(t, c) for c, t in product(range(chunks), range(tiles))]
    for t, c in passes:
        blocks = [("weights", t, x) for x in range(tile)]
        blocks += [("chunks", c, x) for x in range(chunk)]
        blocks += [("other", 0, x) for x in range(other)]
        for block in blocks:
            missed[block[0]] += not cache.touch(block, 1.0)
    return missed


@pytest.mark.parametrize("outer", ["weights", "chunks"])
def test_streamed_chunks_give_exactly_what_the_cache_does(outer):
    rng = np.random.default_rng(3)
    for _ in range(300):
        tiles, chunks = (int(x) for x in rng.integers(1, 6, 2))
        tile, chunk, other = (int(x) for x in rng.integers(1, 7, 3))
        room = int(rng.integers(1, 2 * tiles * tile + chunks * chunk + other + 3))
        found = streamed_traffic(tiles, tile, chunks, chunk, other, room, outer=outer)
        read = streamed(tiles, tile, chunks, chunk, other, room, outer)
        assert {name: getattr(found, name) for name in read} == read
        assert found.hit_rate == pytest.approx(
            1 - sum(read.values()) / (tiles * chunks * (tile + chunk + other))
        )


def test_the_layer_wise_claim_stands_or_falls_with_two_megabytes():
    """32 + 12 + 4 + 2 MB in 50 MB: the weights stay; in 48 MB each chunk reads them again."""
    sizes = {"tiles": 1, "tile_bytes": 32e6, "chunks": 100, "chunk_bytes": 12e6}
    fits = streamed_traffic(**sizes, other_bytes=6e6, l2_bytes=50e6)
    assert fits.working_set_bytes == 50e6
    assert fits.weights == 32e6
    assert fits.hit_rate == pytest.approx(1 - (32 + 1200 + 6) / 5000)
    over = streamed_traffic(**sizes, other_bytes=6e6, l2_bytes=48e6)
    assert over.hit_rate == 0.0
    assert over.weights == 100 * 32e6
    handed = streamed_traffic(**sizes, other_bytes=6e6, l2_bytes=50e6, chunks_arrive_in_l2=True)
    assert handed.hit_rate == pytest.approx(1 - (32 + 6) / 5000)


def test_tiles_worked_on_in_pieces_give_the_same(monkeypatch):
    cases = list(shapes(40, seed=23, ragged=True))
    whole = [gemm_traffic(**case) for case in cases]
    monkeypatch.setattr("simulator.model.l2.BLOCK_TILES", 7)
    for case, found in zip(cases, whole, strict=True):
        assert gemm_traffic(**case) == pytest.approx(found, rel=1e-12)
        assert found.compulsory * (1 - 1e-12) <= found.read <= found.requested * (1 + 1e-12)
