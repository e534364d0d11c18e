"""Memories that decide in compiled code against those that decide in Python, one GPU at a time."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from engine.harness import Run, run, small
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.engine import memories
from simulator.engine.memory import ExpertMemory
from simulator.policies import eviction
from simulator.policies.eviction import EVICTIONS
from simulator.policies.prefetch import PREFETCHERS
from simulator.spec.load import Inputs

COMPILED = sorted(name for name, maker in EVICTIONS.items() if maker in memories.POLICIES)
NAMED = {"synthetic": "synthetic:0.6", "history": "history:2"}
CASE: dict[str, object] = {
    "model.layers": 4,
    "model.moe": "{experts: 16, top_k: 2, intermediate: 48}",
    "traffic": "{tokens_per_gpu: 6, context: 32, steps: 5, warmup_steps: 1}",
    "expert_slots": 3,
}


def in_python(inputs: Inputs, seed: int = 0) -> Run:
    """The same run with every decision taken by `ExpertMemory`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memories, "POLICIES", {})
        return run(inputs, seed)


def compiled(inputs: Inputs, seed: int = 0) -> Run:
    """The run, which makes no `ExpertMemory`."""

    def refuse(*_: Any) -> None:
        raise AssertionError("decided in Python")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memories, "WORTH", 0)
        patch.setattr(ExpertMemory, "__init__", refuse)
        return run(inputs, seed)


def assert_same(a: Run, b: Run) -> None:
    assert a.span_bytes == b.span_bytes
    for name in ("spans", "steps", "accesses", "loads", "links"):
        theirs = getattr(b, name)
        for column, values in getattr(a, name).items():
            assert np.array_equal(values, theirs[column]), (name, column)
    assert a.report == b.report


@pytest.mark.parametrize("ahead", sorted(PREFETCHERS))
@pytest.mark.parametrize("evict", COMPILED)
def test_every_policy_and_prefetcher(evict: str, ahead: str):
    case = CASE | {"eviction": evict, "prefetch": NAMED.get(ahead, ahead), "overlap": "two-batch"}
    inputs = small(case, "zipf:1.0")
    assert_same(compiled(inputs), in_python(inputs))


def test_what_is_decided_in_compiled_code():
    """All but the oracle, in the usual case."""
    assert set(COMPILED) == set(EVICTIONS) - eviction.ORACLES


VARIED = list(
    itertools.product(
        ("exact", "epsilon:0.05", "coflow"),
        ("none", "two-batch", "chunked:2"),
        ("gate", "resident-first"),
    )
)


@pytest.mark.parametrize(("network", "overlap", "order"), VARIED)
def test_every_network_overlap_and_order(network: str, overlap: str, order: str):
    case = CASE | {
        "network": network,
        "overlap": overlap,
        "expert_order": order,
        "eviction": "lfu-aging",
        "prefetch": "synthetic:0.7",
        "prefetch_depth": 2,
    }
    inputs = small(case, "zipf:0.5")
    assert_same(compiled(inputs), in_python(inputs))


@settings(max_examples=25)
@given(
    evict=st.sampled_from(COMPILED),
    ahead=st.sampled_from(["none", "markov", "synthetic:0.3", "oracle", "history"]),
    access=st.sampled_from(["dispatch", "fetch"]),
    home=st.sampled_from(["host", "peer"]),
    overlap=st.sampled_from(["none", "two-batch", "chunked:3"]),
    slots=st.integers(1, 5),
    depth=st.integers(1, 3),
    tokens=st.integers(1, 9),
    dense=st.integers(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_many_cases(
    evict: str,
    ahead: str,
    access: str,
    home: str,
    overlap: str,
    slots: int,
    depth: int,
    tokens: int,
    dense: int,
    seed: int,
):
    case = CASE | {
        "model.moe": f"{{experts: 8, top_k: 2, intermediate: 48, first_dense_layers: {dense}}}",
        "model.dense_intermediate": 64,
        "traffic.tokens_per_gpu": tokens,
        "topology.build.gpus": 2,
        "expert_access": access,
        "expert_home": home if access == "fetch" else "host",
        "expert_slots": min(slots, 3) if access == "dispatch" else slots,
        "eviction": evict,
        "prefetch": ahead,
        "prefetch_depth": depth,
        "overlap": overlap,
    }
    inputs = small(case, "zipf:1.0")
    assert_same(compiled(inputs, seed), in_python(inputs, seed))


def test_times_of_kernels_are_asked_for_again_when_there_were_too_many(
    monkeypatch: pytest.MonkeyPatch,
):
    inputs = small(CASE | {"traffic.tokens_per_gpu": 40, "traffic.steps": 8}, "zipf:1.0")
    plain = compiled(inputs)
    monkeypatch.setattr(memories, "MOST_PRICES", 4)
    monkeypatch.setattr(memories, "FEW_PRICES", 4)
    assert_same(compiled(inputs), plain)


@pytest.mark.parametrize(
    "more",
    [
        {"eviction": "belady"},
        {"eviction": "simulator.policies.eviction:made_by_hand"},
        {"prefetch": "simulator.policies.prefetch:made_by_hand"},
        {"expert_pool": "global"},
        {"prefetch_budget": "1 MB", "prefetch": "markov"},
        {"prefetch_yields": "shared-links", "prefetch": "markov"},
    ],
)
def test_what_is_decided_in_python(more: dict[str, object], monkeypatch: pytest.MonkeyPatch):
    """Functions of the user's, the oracle, pools and what looks at other GPUs."""
    monkeypatch.setattr(
        eviction, "made_by_hand", lambda _: eviction.Eviction(lambda *_: 0), raising=False
    )
    from simulator.policies import prefetch

    monkeypatch.setattr(
        prefetch, "made_by_hand", lambda made: prefetch.nothing(made), raising=False
    )
    with pytest.raises(AssertionError, match="decided in Python"):
        compiled(small(CASE | more))
