"""Statistics of a trace against counts by hand, closed forms, and laws of known figures."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from simulator.routing import stats
from simulator.routing.kernels import count_pairs
from simulator.routing.laws import markov, markov_overlap
from simulator.routing.loads import Loads
from simulator.routing.stats import (
    MEANS,
    count_trace,
    counts_of_loads,
    default_capacities,
    describe,
    entropy_bits,
    gini,
    mutual_information_bits,
    trace_statistics,
    whole_requests,
)
from simulator.routing.trace import TraceWriter, iter_blocks, read_info

SHIPPED = Path(__file__).resolve().parents[2] / "traces" / "moe128-python.parquet"


def write(path: Path, request: npt.ArrayLike, ids: npt.ArrayLike, experts: int) -> Path:
    ids = np.asarray(ids, dtype=np.int16)
    request = np.asarray(request)
    position = np.arange(len(request))
    with TraceWriter(
        path, model="m", layers=ids.shape[1], experts=experts, k=ids.shape[2], origin="test"
    ) as writer:
        writer.write(request, position, np.ones(len(request)), ids)
    return path


def drawn(tokens: int, layers: int, experts: int, k: int, stay: float) -> npt.NDArray[np.int16]:
    """Layers that know nothing of each other; in each, experts of the last token stay."""
    start = np.full((1, layers, k), -1, dtype=np.int16)
    return markov(np.random.default_rng([1, 2]), tokens, layers, experts, k, stay, previous=start)


def test_by_hand(tmp_path: Path) -> None:
    # Layer 0: {0,1} {1,2} | {1,2} {2,1}; layer 1 has a gap in row 1, so only the last pair counts.
    ids = [[[0, 1], [3, 0]], [[1, 2], [-1, -1]], [[1, 2], [0, 1]], [[2, 1], [2, 3]]]
    path = write(tmp_path / "t.parquet", [0, 0, 4, 4], ids, 4)
    found = trace_statistics(path)
    assert (found["tokens"], found["requests"], found["uniform_overlap"]) == (4, 2, 0.5)
    # One of four experts is the hottest tenth, rounded up.
    assert found["uniform_hottest_tenth_share"] == 0.25
    first, second = found["per_layer"]
    # Loads 1, 4, 3, 0 and 2, 1, 1, 2. Gini: sum of all |a - b| / (2 x 16 x mean).
    expected = {
        "layer": 0,
        "recorded": 8,
        "max_over_mean": 2.0,
        "unused_experts": 1,
        "gini": 2 * (3 + 2 + 1 + 1 + 4 + 3) / (2 * 16 * 2),
        "entropy_bits": 3 / 8 + 4 / 8 + 3 / 8 * math.log2(8 / 3),
        "entropy_share": (3 / 8 + 4 / 8 + 3 / 8 * math.log2(8 / 3)) / 2,
        "hottest_tenth_share": 0.5,
        "overlap": 0.75,
    }
    assert {name: first[name] for name in expected} == pytest.approx(expected, rel=1e-12)
    assert (second["recorded"], second["max_over_mean"], second["overlap"]) == (6, 4 / 3, 0.0)
    assert found["max_over_mean"] == pytest.approx((2 + 4 / 3) / 2, rel=1e-12)
    assert found["overlap"] == 0.375
    # Pairs of the rows 0, 2 and 3: rows 0, 1, 2 of layer 0 with columns of layer 1.
    pairs = count_trace(path).pairs
    assert pairs is not None
    assert pairs.tolist() == [[[1, 0, 0, 1], [2, 1, 1, 2], [1, 1, 1, 1], [0, 0, 0, 0]]]
    assert first["mutual_information_raw_bits"] == mutual_information_bits(pairs[0])
    assert second["mutual_information_raw_bits"] is None
    for name in MEANS:
        there = [row[name] for row in found["per_layer"] if row[name] is not None]
        assert found[name] == pytest.approx(sum(there) / len(there), rel=1e-12)


def test_nothing_to_compare(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", [0, 1], [[[-1, -1], [0, 1]]] * 2, 4)
    found = trace_statistics(path)
    empty, full = found["per_layer"]
    assert [row["overlap"] for row in found["per_layer"]] == [None, None]
    assert [row["max_over_mean"] for row in found["per_layer"]] == [None, 2.0]
    assert (found["overlap"], found["mutual_information_bits"]) == (None, None)
    assert (empty["recorded"], empty["unused_experts"]) == (0, 4)
    nothing = ("gini", "entropy_bits", "entropy_share", "hottest_tenth_share")
    assert [empty[name] for name in nothing] == [None] * 4
    assert (full["gini"], full["entropy_bits"], full["hottest_tenth_share"]) == (0.5, 1.0, 0.5)


def test_one_token_and_one_layer(tmp_path: Path) -> None:
    found = trace_statistics(write(tmp_path / "t.parquet", [7], [[[0, 2], [1, 3]]], 4))
    first = found["per_layer"][0]
    # All tokens alike: what a layer took tells nothing new of the next.
    assert first["mutual_information_raw_bits"] == 0.0
    assert (found["mutual_information_bits"], found["mutual_information_share"]) == (0.0, 0.0)
    single = trace_statistics(write(tmp_path / "u.parquet", [7], [[[0]]], 1))
    assert single["per_layer"][0]["entropy_share"] is None, "one expert: there is no choice"
    assert (single["mutual_information_bits"], single["notes"]) == (None, [])


@pytest.mark.parametrize("experts", [1, 2, 8, 256])
def test_equal_loads_and_a_single_expert(experts: int) -> None:
    equal = np.full(experts, 12.5)
    assert gini(equal) == pytest.approx(0.0, abs=1e-12)
    assert entropy_bits(equal) == pytest.approx(math.log2(experts), rel=1e-12)
    one = np.zeros(experts)
    one[experts // 2] = 3.0
    assert gini(one) == pytest.approx(1 - 1 / experts, rel=1e-12)
    assert entropy_bits(one) == 0.0
    assert (gini(0 * one), entropy_bits(0 * one)) == (None, None)


def test_skew_of_random_loads_against_the_definitions() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        load = rng.integers(0, 1000, rng.integers(1, 40)).astype(float) + 1
        apart = np.abs(load[:, None] - load[None, :]).mean()
        assert gini(load) == pytest.approx(apart / (2 * load.mean()), rel=1e-9, abs=1e-12)
        share = load / load.sum()
        by_sum = -sum(p * math.log2(p) for p in share)
        assert entropy_bits(load) == pytest.approx(by_sum, rel=1e-9, abs=1e-12)
        assert gini(load) == pytest.approx(gini(7 * load[::-1]), rel=1e-9, abs=1e-12)


def test_information_of_known_tables() -> None:
    # A binary symmetric channel with a quarter of errors: 1 - h(1/4).
    h = -0.25 * math.log2(0.25) - 0.75 * math.log2(0.75)
    assert mutual_information_bits([[3, 1], [1, 3]]) == pytest.approx(1 - h, rel=1e-12)
    assert mutual_information_bits(np.outer([1, 2, 3], [4, 5, 6])) == pytest.approx(0, abs=1e-12)
    assert mutual_information_bits(np.diag([1, 1, 2])) == pytest.approx(1.5, rel=1e-12)
    assert mutual_information_bits(np.zeros((3, 3))) is None


def test_a_map_from_layer_to_layer_tells_all(tmp_path: Path) -> None:
    experts, tokens = 16, 20_000
    first = np.minimum(np.random.default_rng(5).geometric(0.2, tokens) - 1, experts - 1)
    ids = np.stack([first, (5 * first + 3) % experts], axis=1)[:, :, None]
    found = trace_statistics(write(tmp_path / "t.parquet", np.zeros(tokens), ids, experts))
    row, following = found["per_layer"]
    assert row["mutual_information_raw_bits"] == pytest.approx(following["entropy_bits"], rel=1e-9)
    # The correction takes away no more than the bias, (16 - 1)^2 / (2 tokens ln 2) = 0.008 bits.
    assert row["mutual_information_share"] == pytest.approx(1.0, abs=0.01)


def test_pairs_of_experts_that_go_together(tmp_path: Path) -> None:
    # Both layers take {0,1} or {2,3}: an expert tells one bit, which pair, of the two in the next.
    pair = np.random.default_rng(6).integers(0, 2, 4000)
    ids = np.stack([2 * pair, 2 * pair + 1], axis=1)[:, None, :].repeat(2, axis=1)
    row = trace_statistics(write(tmp_path / "t.parquet", np.zeros(4000), ids, 4))["per_layer"][0]
    assert row["mutual_information_raw_bits"] == pytest.approx(1.0, abs=1e-3)
    assert row["mutual_information_share"] == pytest.approx(0.5, abs=2e-3)


@pytest.mark.parametrize(("k", "stay"), [(1, 0.0), (4, 0.0), (1, 0.8), (4, 0.8)])
def test_independent_layers_tell_nothing(tmp_path: Path, k: int, stay: float) -> None:
    tokens, experts = 20_000, 16
    ids = drawn(tokens, 6, experts, k, stay)
    found = trace_statistics(write(tmp_path / "t.parquet", np.zeros(tokens), ids, experts))
    rows = found["per_layer"][:-1]
    raw = np.mean([row["mutual_information_raw_bits"] for row in rows])
    # The expectation for independent tokens (Miller and Madow for k = 1): degrees of freedom of
    # the choices, (experts / k - 1)^2, over 2 tokens ln 2. Tokens that stay alike have less to
    # tell: (1 + r) / (1 - r) times the bias, r the product of both layers' correlations.
    keep = stay if k == 1 else None
    bias = (experts / k - 1) ** 2 / (2 * tokens * math.log(2))
    if keep is not None:
        r = keep**2
        assert raw == pytest.approx(bias * (1 + r) / (1 - r), rel=0.15)
    elif stay == 0.0:
        assert raw == pytest.approx(bias, rel=0.3)
    else:
        assert raw > 2 * bias
    # The mean of five differences of two such estimates, each about 15 % of its mean apart.
    assert abs(found["mutual_information_bits"]) < 0.25 * raw


def test_counts_over_many_blocks_against_numpy(tmp_path: Path) -> None:
    tokens, experts, k = 20_000, 16, 4
    ids = drawn(tokens, 3, experts, k, 0.5)
    ids[::7, 1] = -1
    seen = []
    path = write(tmp_path / "t.parquet", np.arange(tokens) // 100, ids, experts)
    counts = count_trace(path, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (tokens, tokens)
    assert len(seen) > 1
    there = (ids[:, :, :, None] == np.arange(experts)).any(axis=2).astype(np.int64)
    assert np.array_equal(counts.loads, there.sum(axis=0))
    assert counts.pairs is not None
    assert counts.rotated is not None
    for layer in range(2):
        assert np.array_equal(counts.pairs[layer], there[:, layer].T @ there[:, layer + 1])
    # The same choices in other company; which of them meet a gap differs.
    assert counts.rotated.sum() == pytest.approx(counts.pairs.sum(), rel=0.01)
    assert not np.array_equal(counts.rotated, counts.pairs)


def test_a_law_of_known_overlap_over_many_blocks(tmp_path: Path) -> None:
    tokens, experts, k, stay = 20_000, 16, 4, 0.5
    ids = drawn(tokens, 2, experts, k, stay)
    found = trace_statistics(write(tmp_path / "t.parquet", np.zeros(tokens), ids, experts))
    assert found["per_layer"][0]["recorded"] == tokens * k
    # At most 1/2 off per token, so a standard error below 1 / (2 sqrt(2 tokens)).
    margin = 4.5 / (2 * math.sqrt(2 * tokens))
    assert abs(found["overlap"] - markov_overlap(stay, experts, k)) < margin
    assert found["overlap"] > found["uniform_overlap"] + 0.2


def test_the_shipped_trace_as_its_recorder_measured_it() -> None:
    told = read_info(SHIPPED).extra["statistics"]
    found = trace_statistics(SHIPPED)
    for name in ("max_over_mean", "overlap"):
        assert [row[name] for row in found["per_layer"]] == pytest.approx(told[name], abs=1e-4)
    # It measured what a first choice tells of the next first choice, with a bias by shuffling.
    pairs, rotated = np.zeros((2, 7, 128, 128), dtype=np.int64)
    for block in iter_blocks(SHIPPED):
        first = np.ascontiguousarray(block.experts[:, :, :1])
        count_pairs(first, 0, pairs)
        count_pairs(first, len(first) // 2, rotated)
    for layer, bits in enumerate(told["next_layer_bits"]):
        raw, bias = mutual_information_bits(pairs[layer]), mutual_information_bits(rotated[layer])
        assert raw is not None
        assert bias is not None
        # Tokens shuffled at random are less alike than those half a block apart.
        assert raw - bias == pytest.approx(bits, abs=0.08)
        assert raw == pytest.approx(bits + told["next_layer_bits_bias"][layer], abs=0.01)


def test_tables_that_are_too_large_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "t.parquet", [0, 0], [[[0], [1]], [[1], [0]]], 100)
    need = 2 * 100 * 100 * 8
    monkeypatch.setattr(stats, "MAX_PAIR_BYTES", need)
    assert trace_statistics(path)["per_layer"][0]["mutual_information_raw_bits"] == 1.0
    monkeypatch.setattr(stats, "MAX_PAIR_BYTES", need - 1)
    found = trace_statistics(path)
    assert found["mutual_information_bits"] is None
    assert len(found["notes"]) == 1
    assert "100 experts in 2 layers" in found["notes"][0]
    assert found["per_layer"][0]["entropy_bits"] == 1.0


def test_loads_without_tokens() -> None:
    counts = np.array([[4.0, 4.0, 0.0, 0.0], [1.5, 1.0, 1.0, 1.0]])
    loads = Loads(counts, np.array([3, 4], dtype=np.int32), "x.json", None, ["3 dense layers"])
    found = describe(counts_of_loads(loads))
    assert (found["tokens"], found["requests"], found["k"], found["overlap"]) == (None,) * 4
    assert (found["layers"], found["experts"]) == (2, 4)
    assert [row["layer"] for row in found["per_layer"]] == [3, 4]
    assert [row["recorded"] for row in found["per_layer"]] == [8, 4.5]
    assert [row["gini"] for row in found["per_layer"]] == pytest.approx([0.5, 3 * 0.5 / 18])
    assert found["mutual_information_bits"] is None
    assert found["notes"][0] == "3 dense layers"
    assert "no tokens" in found["notes"][1]


def test_default_capacities_are_below_the_experts() -> None:
    assert [default_capacities(experts) for experts in (1, 2, 3, 8, 9, 128)] == [
        [1], [1], [2], [2, 4], [2, 4, 8], [4, 8, 16, 32, 64]
    ]  # fmt: skip


@pytest.mark.parametrize("limit", [1, 40, 10_000])
def test_requests_come_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    rng = np.random.default_rng(8)
    request = np.repeat(np.arange(300), rng.integers(1, 60, 300))
    ids = rng.integers(0, 8, (len(request), 1, 1))
    path = write(tmp_path / "t.parquet", request, ids, 8)
    monkeypatch.setattr(stats, "BLOCK_IDS", limit)
    notes: list[str] = []
    parts = list(whole_requests(path, notes))
    assert np.array_equal(np.concatenate([part for part, _ in parts]), ids)
    starts = np.concatenate([begun for _, begun in parts])
    assert np.array_equal(np.flatnonzero(starts), np.flatnonzero(np.diff(request, prepend=-1)))
    assert all(begun[0] for _, begun in parts)
    assert notes == []


def test_a_request_too_long_to_hold_is_cut_and_said(tmp_path: Path) -> None:
    tokens = 30_000
    path = write(tmp_path / "t.parquet", np.zeros(tokens), np.zeros((tokens, 1, 1)), 2)
    notes: list[str] = []
    parts = list(whole_requests(path, notes, max_request_ids=10_000))
    assert sum(len(ids) for ids, _ in parts) == tokens
    # Blocks of 8,192 rows are taken whole.
    assert [int(begun.sum()) for _, begun in parts] == [1, 1]
    assert len(notes) == 1
    assert "10,000" in notes[0]
