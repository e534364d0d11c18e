"""Hit rates on traces: blocks, requests, pools, filters and sizes; figures computed by others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from simulator.errors import InputError
from simulator.policies.caching import POLICIES
from simulator.routing.importers import open_trace
from simulator.routing.trace import GENERATED, PROMPT, TraceWriter, iter_blocks
from simulator.spec.find import find
from simulator.studies import cache_rates
from simulator.studies.cache_rates import Rates, hit_rates

MIXTRAL = (
    Path(__file__).resolve().parents[2].parent
    / "shared/reference/routing/local_only/mixtral8x7b_gsm8k_routing.jsonl"
)
ALL = list(POLICIES.items())
LAYERS, EXPERTS, K = 3, 6, 2


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven requests of 1 to 40 tokens: half of them prompt, some layers not recorded."""
    rng = np.random.default_rng(1)
    path = tmp_path_factory.mktemp("traces") / "small.parquet"
    names = {"model": "m", "layers": LAYERS, "experts": EXPERTS, "k": K, "origin": "a test"}
    with TraceWriter(path, **names) as writer:
        for request in range(11):
            n = int(rng.integers(1, 41))
            ids = rng.permuted(np.tile(np.arange(EXPERTS), (n, LAYERS, 1)), axis=2)[:, :, :K]
            ids[rng.random((n, LAYERS)) < 0.1] = -1
            phase = np.where(np.arange(n) < n // 2, PROMPT, GENERATED)
            writer.write(np.full(n, request), np.arange(n), phase, ids)
    return path


def rows_of(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Request [n], phase [n] and ids [n, layers, k] of a whole trace."""
    blocks = list(iter_blocks(path))
    return tuple(
        np.concatenate([getattr(block, name) for block in blocks])
        for name in ("request", "phase", "experts")
    )


def lru_by_hand(
    request: np.ndarray, ids: np.ndarray, capacity: int, pooled: bool, reset: bool
) -> list[int]:
    """Hits per layer of LRU on lists, token by token, layer by layer, in gate order."""
    layers = ids.shape[1]
    held: list[list[tuple[int, int]]] = [[] for _ in range(layers)]
    hits, last = [0] * layers, -1
    for row in range(len(ids)):
        if reset and request[row] != last:
            held = [[] for _ in range(layers)]
        last = request[row]
        for layer in range(layers):
            cache = held[0 if pooled else layer]
            for expert in ids[row, layer].tolist():
                if expert < 0:
                    continue
                if (layer, expert) in cache:
                    hits[layer] += 1
                    cache.remove((layer, expert))
                elif len(cache) == capacity * (layers if pooled else 1):
                    cache.pop(0)
                cache.append((layer, expert))
    return hits


def same(one: Rates, other: Rates) -> bool:
    """Whether two results are equal in all that was counted."""
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("layers", "accesses", "first", "hits")
    )


@pytest.mark.parametrize("reset", ["request", "never"])
@pytest.mark.parametrize("pool", ["layer", "global"])
def test_accesses_come_token_by_token(trace: Path, pool: str, reset: str) -> None:
    """Against lists that are walked in the order that the definition says."""
    request, _, ids = rows_of(trace)
    rates = hit_rates(trace, [("lru", POLICIES["lru"])], [1, 2, 4], pool=pool, reset=reset)
    for at, capacity in enumerate([1, 2, 4]):
        expected = lru_by_hand(request, ids, capacity, pool == "global", reset == "request")
        assert rates.hits[0, at].tolist() == expected
    assert rates.accesses.tolist() == (ids >= 0).sum(axis=(0, 2)).tolist()
    segments = request if reset == "request" else np.zeros_like(request)
    for layer in range(LAYERS):
        pairs = {
            (segment, expert)
            for segment, row in zip(segments.tolist(), ids[:, layer].tolist(), strict=True)
            for expert in row
            if expert >= 0
        }
        assert rates.first[layer] == len(pairs)


@pytest.mark.parametrize("reset", ["request", "never"])
@pytest.mark.parametrize("pool", ["layer", "global"])
@pytest.mark.parametrize("rows", [1, 7, 50])
def test_blocks_do_not_show(
    trace: Path, monkeypatch: pytest.MonkeyPatch, pool: str, reset: str, rows: int
) -> None:
    """A trace read a few rows at a time gives the same, also where the future is needed."""
    whole = hit_rates(trace, ALL, [1, 3], pool=pool, reset=reset)
    monkeypatch.setattr(cache_rates, "BLOCK_ROWS", rows)
    assert same(hit_rates(trace, ALL, [1, 3], pool=pool, reset=reset), whole)


def test_filters(trace: Path) -> None:
    """Layers and phases are as if the rest had not been recorded."""
    request, phase, ids = rows_of(trace)
    lru = [("lru", POLICIES["lru"])]
    some = hit_rates(trace, lru, [2], layers=[0, 2])
    every = hit_rates(trace, lru, [2])
    assert some.layers.tolist() == [0, 2]
    assert np.array_equal(some.hits, every.hits[:, :, [0, 2]])
    kept = phase == GENERATED
    expected = lru_by_hand(request[kept], ids[kept], 2, False, True)
    assert hit_rates(trace, lru, [2], phase="generated").hits[0, 0].tolist() == expected


def test_sizes(trace: Path) -> None:
    """Sizes of one are no sizes; scaling sizes and capacity changes nothing."""
    plain = hit_rates(trace, ALL[:1] + ALL[-1:], [2, 3])
    ones = hit_rates(trace, ALL[:1] + ALL[-1:], [2, 3], sizes=np.ones(EXPERTS))
    assert same(plain, ones)
    rng = np.random.default_rng(2)
    sizes = rng.integers(1, 9, (LAYERS, EXPERTS)) / 4
    one = hit_rates(trace, ALL, [1.5, 3.0], sizes=sizes)
    assert same(one, hit_rates(trace, ALL, [3.0, 6.0], sizes=2 * sizes))
    assert any("larger than the cache" in note for note in one.notes)
    assert any("belady is a heuristic" in note for note in one.notes)
    with pytest.raises(InputError, match=r"3 sizes; the trace needs 6 .* or 3 x 6"):
        hit_rates(trace, ALL, [1.5], sizes=np.ones(3))


def test_what_cannot_be(trace: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Layers that are not there, no tokens left, nothing recorded, a future too long to hold."""
    lru = [("lru", POLICIES["lru"])]
    with pytest.raises(InputError, match="no layer 3: the trace has 0 to 2"):
        hit_rates(trace, lru, [2], layers=[3])
    with pytest.raises(InputError, match="must hold something"):
        hit_rates(trace, lru, [0])
    empty = tmp_path / "empty.parquet"
    with TraceWriter(empty, model="m", layers=1, experts=4, k=1, origin="a test") as writer:
        writer.write([0], [0], [PROMPT], [[[-1]]])
    with pytest.raises(InputError, match="no expert is recorded"):
        hit_rates(empty, lru, [2])
    with pytest.raises(InputError, match="no token is marked as generated"):
        hit_rates(empty, lru, [2], phase="generated")
    monkeypatch.setattr(cache_rates, "MAX_HELD_IDS", 60)
    with pytest.raises(InputError, match="belady must know the future of more than 60"):
        hit_rates(trace, ALL, [2])
    assert hit_rates(trace, lru, [2]).accesses.sum() > 60


def test_all_that_fits_is_told(trace: Path) -> None:
    """A capacity of all experts and more is no error, but said."""
    rates = hit_rates(trace, ALL, [EXPERTS - 1, EXPERTS, EXPERTS + 4])
    assert [note.split(":")[0] for note in rates.notes] == [
        f"capacity {EXPERTS} holds all {EXPERTS} experts of every layer",
        f"capacity {EXPERTS + 4} holds all {EXPERTS} experts of every layer",
    ]
    assert (rates.hits[:, 1:] == rates.accesses - rates.first).all()


@pytest.mark.parametrize("pool", ["layer", "global"])
def test_laws_on_the_shipped_trace(pool: str) -> None:
    """Belady is the bound, more room is no loss to LRU, and only repeats can be hits."""
    rates = hit_rates(find("trace", "moe128-python"), ALL, [4, 16, 64], pool=pool)
    hits = rates.hits.sum(axis=2)
    bound = hits[list(POLICIES).index("belady")]
    assert (hits <= bound).all()
    assert (np.diff(hits[0]) > 0).all()
    assert (np.diff(bound) > 0).all()
    assert (rates.hits <= rates.accesses - rates.first).all()
    assert hits.min() > 0


@pytest.mark.skipif(not MIXTRAL.is_file(), reason="needs ../shared/reference")
def test_mixtral_figures() -> None:
    """Hit rates computed by others from the same recording, to their three digits."""
    names = ["lru", "lfu", "belady"]
    rates = hit_rates(open_trace(MIXTRAL), [(name, POLICIES[name]) for name in names], [2, 4, 6])
    found = rates.hits.sum(axis=2) / rates.accesses.sum()
    expected = [[0.285, 0.571, 0.793], [0.276, 0.578, 0.807], [0.436, 0.740, 0.891]]
    assert np.abs(found - expected).max() < 0.0006
