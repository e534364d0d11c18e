"""Predictors of the next layer's experts: what they are given, and how right they are."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from engine.harness import run, small, write_trace

from simulator.policies import prefetch
from simulator.policies.prefetch import ORACLES, PREFETCHERS, Future, Past, Setup


def setup(gpus: int = 2, experts: int = 8, **changes: Any) -> Setup:
    """Every GPU serves a contiguous share; all GPUs are one group."""
    owner = np.arange(experts) * gpus // experts
    given = {
        "layers": 3,
        "experts": experts,
        "serves": np.tile(owner[None, :] == np.arange(gpus)[:, None], (3, 1, 1)),
        "group": np.zeros(gpus, dtype=np.int32),
        "slots": experts,
        "argument": None,
        "rng": np.random.default_rng(1),
    }
    return Setup(**(given | changes))


def rows_of(ids: np.ndarray, serves: np.ndarray) -> np.ndarray:
    """Rows int32 [gpus, experts] of tokens that travel to the experts' GPUs."""
    taken = np.bincount(ids.ravel(), minlength=serves.shape[1])
    return np.where(serves, taken, 0).astype(np.int32)


def past(ids: np.ndarray, serves: np.ndarray, layer: int = 0, before: Any = None) -> Past:
    tokens = np.zeros(len(ids), dtype=np.int32)
    rows = rows_of(ids, serves[layer])
    return Past(0, layer, ids.astype(np.int16), before, rows, tokens, np.arange(len(ids)))


# --- every predictor ---------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(PREFETCHERS))
def test_every_predictor_names_experts_that_the_gpu_serves_each_once(name: str):
    rng = np.random.default_rng(3)
    made = setup(argument=0.5 if name == "synthetic" else None)
    predict = PREFETCHERS[name](made)
    before = None
    for step in range(40):
        ids = np.stack([rng.permutation(8)[:3] for _ in range(5)])
        following = np.stack([rng.permutation(8)[:3] for _ in range(5)])
        future = Future(rows_of(following, made.serves[0])) if name in ORACLES else None
        layer = step % 2
        answers = predict(past(ids, made.serves, layer, before if layer else None), future)
        before = ids.astype(np.int16)
        assert len(answers) == 2
        for gpu, experts in enumerate(answers):
            assert len(set(experts)) == len(experts)
            assert all(made.serves[0, gpu, expert] for expert in experts)


@pytest.mark.parametrize("name", sorted(PREFETCHERS))
def test_a_micro_batch_without_tokens_asks_for_nothing(name: str):
    """As the second one of two where a recording has a single request left."""
    made = setup(argument=0.5 if name == "synthetic" else None)
    predict = PREFETCHERS[name](made)
    none = np.zeros((0, 3), dtype=np.int16)
    future = Future(rows_of(none, made.serves[0])) if name in ORACLES else None
    assert predict(past(none, made.serves), future) == [[], []]
    assert predict(past(none, made.serves, 1, none), future) == [[], []]


@pytest.mark.parametrize("name", sorted(PREFETCHERS))
@pytest.mark.parametrize("access", ["dispatch", "fetch"])
def test_only_oracles_are_handed_the_future(
    name: str, access: str, monkeypatch: pytest.MonkeyPatch
):
    """And what all are handed of the past is this layer and the one before."""
    seen: list[tuple[Past, Future | None]] = []
    make = PREFETCHERS[name]

    def spy(given: Setup) -> Any:
        predict = make(given)

        def told(before: Past, future: Future | None) -> Any:
            seen.append((before, future))
            return predict(before, future)

        return told

    monkeypatch.setitem(prefetch.PREFETCHERS, name, spy)
    case = {
        "model.layers": 4,
        "traffic.steps": 2,
        "expert_slots": 1,
        "expert_access": access,
        "prefetch": "synthetic:0.5" if name == "synthetic" else name,
    }
    run(small(case))
    if name == "none":
        assert not seen
        return
    # In the last layer there is nothing to foresee, but the way to it is to be learned.
    assert len(seen) == 2 * (3 if name in ORACLES else 4)
    last = None
    for told, future in seen:
        assert (future is not None) == (name in ORACLES)
        assert np.bincount(told.ids.ravel(), minlength=8).tolist() == told.rows.sum(0).tolist()
        assert (told.before is None) == (told.layer == 0)
        if told.layer:
            assert np.array_equal(told.before, last)
        last = told.ids


def test_the_future_of_an_oracle_is_the_next_layer(monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[Past, Future]] = []

    def spy(given: Setup) -> Any:
        return lambda told, future: seen.append((told, future)) or [[] for _ in given.serves]

    monkeypatch.setitem(prefetch.PREFETCHERS, "oracle", spy)
    run(small({"model.layers": 4, "expert_slots": 1, "prefetch": "oracle"}))
    for (_, future), (following, _) in pairwise(seen):
        assert np.array_equal(future.rows, following.rows)


# --- the oracle and the synthetic one ----------------------------------------------------


def test_the_oracle_names_what_is_needed_most_first():
    made = setup()
    future = Future(np.array([[3, 0, 5, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 2, 0, 2]], np.int32))
    told = past(np.zeros((1, 1), dtype=int), made.serves)
    assert PREFETCHERS["oracle"](made)(told, future) == [[2, 0, 3], [5, 7]]


@pytest.mark.parametrize("accuracy", [0.0, 0.25, 0.8, 1.0])
def test_the_synthetic_predictor_is_right_as_often_as_stated(accuracy: float):
    """The number of right names is binomial: within the 1e-4 quantiles of its normal limit."""
    made = setup(gpus=1, experts=64, argument=accuracy)
    predict = PREFETCHERS["synthetic"](made)
    rng = np.random.default_rng(7)
    told = past(np.zeros((1, 1), dtype=int), made.serves)
    named = right = needed = 0
    for _ in range(500):
        wanted = rng.permutation(64)[:8]
        rows = np.zeros((1, 64), dtype=np.int32)
        rows[0, wanted] = rng.integers(1, 5, 8)
        (answer,) = predict(told, Future(rows))
        named += len(answer)
        right += len(set(answer) & set(wanted.tolist()))
        needed += 8
    assert named == needed, "for each that it misses it names another"
    spread = (needed * accuracy * (1 - accuracy)) ** 0.5
    assert abs(right - needed * accuracy) <= NormalDist().inv_cdf(1 - 5e-5) * spread


# --- the learned one ---------------------------------------------------------------------


def test_the_learned_predictor_learns_a_routing_that_repeats_itself():
    """Expert e of layer l is followed by e + l + 1 (mod 8): right once it has been seen thrice."""
    made = setup(layers=3)
    predict = PREFETCHERS["markov"](made)
    first = np.arange(8)[:, None]
    for step in range(6):
        ids, before = first, None
        for layer in range(3):
            answers = predict(past(ids, made.serves, layer, before), None)
            following = (ids + layer + 1) % 8
            if layer < 2:
                needed = [set(np.flatnonzero(row)) for row in rows_of(following, made.serves[0])]
                if step >= 3:
                    assert [set(answer) for answer in answers] == needed
                elif step == 0:
                    assert answers == [[], []], "nothing is known yet"
            before, ids = ids.astype(np.int16), following


def test_the_learned_predictor_asks_for_no_more_than_the_slots():
    made = setup(gpus=1, slots=2)
    predict = PREFETCHERS["markov"](made)
    ids = np.arange(8)[:, None]
    for _ in range(9):
        predict(past(ids, made.serves, 0), None)
        predict(past(ids, made.serves, 1, ids.astype(np.int16)), None)
    assert [len(answer) for answer in predict(past(ids, made.serves, 0), None)] == [2]


def test_where_weights_travel_a_gpu_is_predicted_from_its_own_tokens():
    """GPU 0 takes expert 0 and GPU 1 expert 4 in layer 0; each is followed by the next one."""
    everything = np.ones((3, 2, 8), dtype=bool)
    made = setup(serves=everything, group=np.arange(2, dtype=np.int32))
    predict = PREFETCHERS["markov"](made)
    ids = np.array([[0], [4]], dtype=np.int16)
    rows = np.zeros((2, 8), dtype=np.int32)
    rows[0, 0] = rows[1, 4] = 1
    after = np.roll(rows, 1, axis=1)
    of = (np.arange(2, dtype=np.int32), np.arange(2, dtype=np.int32))
    for _ in range(5):
        answers = predict(Past(0, 0, ids, None, rows, *of), None)
        predict(Past(0, 1, ids + np.int16(1), ids, after, *of), None)
    assert answers == [[1], [5]]


def test_experts_that_were_not_recorded_teach_nothing():
    made = setup()
    predict = PREFETCHERS["markov"](made)
    nothing = np.full((4, 2), -1, dtype=np.int16)
    rows = np.zeros((2, 8), dtype=np.int32)
    of = (np.zeros(4, dtype=np.int32), np.arange(4, dtype=np.int32))
    for _ in range(5):
        predict(Past(0, 0, nothing, None, rows, *of), None)
        assert predict(Past(0, 1, nothing, nothing, rows, *of), None) == [[], []]


def test_in_the_engine_a_learned_routing_leaves_no_miss_but_in_the_first_layer(tmp_path: Path):
    """A cyclic routing, one slot too few to keep all: after a few steps the later layers hit."""
    steps, layers = 24, 4
    step = np.arange(steps)[:, None]
    ids = (step + np.arange(layers)[None, :] * 3)[:, :, None] % 4
    trace = write_trace(tmp_path / "cyclic.parquet", ids, 4, [0] * steps)
    case = {
        "topology.build.gpus": 1,
        "model.layers": layers,
        "model.moe": "{experts: 4, top_k: 1, intermediate: 48}",
        "traffic": f"{{tokens_per_gpu: 1, context: 32, steps: {steps}}}",
        "expert_slots": 2,
        "prefetch": "markov",
    }
    table = run(small(case, trace)).accesses
    known = table["step"] >= 16  # each of the four transitions has been seen four times
    first = table["layer"] == 0
    assert table["miss"][known & first].all(), "nothing comes before the first layer"
    assert not table["miss"][known & ~first].any()


# --- further ahead, popularity, history --------------------------------------------------


def test_the_learned_predictor_follows_two_transitions():
    """Expert e is followed by e + 1 in layer 1 and that by e + 3 (in all) in layer 2."""
    made = setup(layers=3, gpus=1)
    predict = PREFETCHERS["markov"](made)
    for _ in range(8):
        ids, before = np.arange(8)[:, None], None
        for layer in range(3):
            told = past(ids, made.serves, layer, before)
            predict(told, None)
            before, ids = ids.astype(np.int16), (ids + layer + 1) % 8
    # What was seen 8 times is trusted by 8/9: two tokens make up for the doubt, 2 x (8/9)^2 rows.
    told = past(np.array([[2], [2]]), made.serves, 0)._replace(ahead=2)
    assert predict(told, None) == [[5]]


def test_popularity_names_what_was_taken_most_in_the_layer_asked_for():
    made = setup(gpus=2, slots=2)
    predict = PREFETCHERS["popularity"](made)
    first, second = np.array([[0], [4], [4]]), np.array([[6], [6], [6], [1], [5], [5], [2], [1]])
    assert predict(past(first, made.serves, 0), None) == [[], []], "nothing is known of layer 1"
    predict(past(second, made.serves, 1, None), None)
    assert predict(past(first, made.serves, 0), None) == [[1, 2], [6, 5]]
    assert predict(past(second, made.serves, 1), None) == [[], []], "nor of layer 2"


def test_history_names_what_the_last_tokens_of_the_request_took_there():
    """Two requests on two GPUs to which the weights travel; request 7 moves to the other GPU."""
    made = setup(
        serves=np.ones((3, 2, 8), dtype=bool), group=np.arange(2, dtype=np.int32), argument=2
    )
    predict = PREFETCHERS["history"](made)

    def step(requests: list[int], taken: list[list[int]]) -> list[list[int]]:
        """Layer 0 takes 0; then `taken` in layer 1. Gives what was predicted for it."""
        gpus = np.arange(len(requests), dtype=np.int32)
        of = (gpus, np.array(requests, dtype=np.int32))
        rows = np.zeros((2, 8), dtype=np.int32)
        zeros = np.zeros((len(requests), 2), dtype=np.int16)
        answer = predict(Past(0, 0, zeros, None, rows, *of), None)
        predict(Past(0, 1, np.array(taken, dtype=np.int16), zeros, rows, *of), None)
        return answer

    assert step([7, 9], [[1, 2], [3, 4]]) == [[], []]
    assert step([7, 9], [[2, 5], [3, 6]]) == [[1, 2], [3, 4]]
    assert step([9, 7], [[0, 1], [0, 1]]) == [[3, 4, 6], [2, 1, 5]], "3 and 2 were taken twice"
    assert step([8, 7], [[0, 1], [6, 7]]) == [[], [0, 1, 2, 5]], "two tokens back, no further"
    assert step([8, 7], [[0, 1], [6, 7]]) == [[0, 1], [0, 1, 6, 7]]


def test_history_keeps_the_last_tokens_of_a_prompt_and_forgets_old_requests():
    made = setup(gpus=1, argument=2)
    predict = PREFETCHERS["history"](made)

    def layer_one(request: np.ndarray, ids: np.ndarray) -> list[list[int]]:
        of = (np.zeros(len(request), dtype=np.int32), request.astype(np.int32))
        rows = np.zeros((1, 8), dtype=np.int32)
        zeros = np.zeros((len(request), 1), dtype=np.int16)
        answer = predict(Past(0, 0, zeros, None, rows, *of), None)
        predict(Past(0, 1, ids.astype(np.int16), zeros, rows, *of), None)
        return answer

    layer_one(np.full(5, 3), np.array([[1], [2], [3], [4], [5]]))
    assert layer_one(np.array([3]), np.array([[6]])) == [[4, 5]], "the last two of the prompt"
    assert layer_one(np.array([3]), np.array([[6]])) == [[5, 6]]
    for other in range(100, 104):  # four times as many as a batch holds have come since
        assert layer_one(np.array([other]), np.array([[0]])) == [[]]
    assert layer_one(np.array([3]), np.array([[0]])) == [[]]
