"""Statistics of a trace against counts by hand and against laws of known overlap."""

from __future__ import annotations

import math

import numpy as np
import pytest

from simulator.routing.laws import markov, markov_overlap
from simulator.routing.stats import trace_statistics
from simulator.routing.trace import TraceWriter


def write(path, request, ids, experts):
    ids = np.asarray(ids, dtype=np.int16)
    request = np.asarray(request)
    position = np.arange(len(request))
    with TraceWriter(
        path, model="m", layers=ids.shape[1], experts=experts, k=ids.shape[2], origin="test"
    ) as writer:
        writer.write(request, position, np.ones(len(request)), ids)
    return path


def test_by_hand(tmp_path):
    # Layer 0: {0,1} {1,2} | {1,2} {2,1}; layer 1 has a gap in row 1, so only the last pair counts.
    ids = [[[0, 1], [3, 0]], [[1, 2], [-1, -1]], [[1, 2], [0, 1]], [[2, 1], [2, 3]]]
    path = write(tmp_path / "t.parquet", [0, 0, 4, 4], ids, 4)
    found = trace_statistics(path)
    assert (found["tokens"], found["requests"], found["uniform_overlap"]) == (4, 2, 0.5)
    # Loads 1, 4, 3, 0 and 2, 1, 1, 2.
    assert found["per_layer"] == [
        {
            "layer": 0, "recorded": 8, "max_over_mean": 2.0, "unused_experts": 1, "overlap": 0.75
        },
        {
            "layer": 1, "recorded": 6, "max_over_mean": 4 / 3, "unused_experts": 0, "overlap": 0.0
        },
    ]  # fmt: skip
    assert found["max_over_mean"] == pytest.approx((2 + 4 / 3) / 2, rel=1e-12)
    assert found["overlap"] == 0.375


def test_nothing_to_compare(tmp_path):
    path = write(tmp_path / "t.parquet", [0, 1], [[[-1, -1], [0, 1]]] * 2, 4)
    found = trace_statistics(path)
    assert [row["overlap"] for row in found["per_layer"]] == [None, None]
    assert [row["max_over_mean"] for row in found["per_layer"]] == [None, 2.0]
    assert found["overlap"] is None


def test_a_law_of_known_overlap_over_many_blocks(tmp_path):
    tokens, experts, k, stay = 20_000, 16, 4, 0.5
    start = np.full((1, 2, k), -1, dtype=np.int16)
    ids = markov(np.random.default_rng([1, 2]), tokens, 2, experts, k, stay, previous=start)
    found = trace_statistics(write(tmp_path / "t.parquet", np.zeros(tokens), ids, experts))
    assert found["per_layer"][0]["recorded"] == tokens * k
    # At most 1/2 off per token, so a standard error below 1 / (2 sqrt(2 tokens)).
    margin = 4.5 / (2 * math.sqrt(2 * tokens))
    assert abs(found["overlap"] - markov_overlap(stay, experts, k)) < margin
    assert found["overlap"] > found["uniform_overlap"] + 0.2
