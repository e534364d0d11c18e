"""The traffic kernel against plain Python, and the laws that hold for any ids."""

from __future__ import annotations

import itertools
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.routing.laws import uniform
from simulator.routing.traffic import (
    Copies,
    expert_sequence,
    pick_slots,
    rows_of_experts,
    traffic,
    traffic_fetch,
)


@st.composite
def cases(draw):
    """Random (ids, source_gpu, owner, ep, gpus), some ids missing, some GPUs without tokens."""
    groups, ep = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    experts = draw(st.integers(1, 9))
    k, tokens = draw(st.integers(1, experts)), draw(st.integers(0, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ids = np.argsort(rng.random((tokens, experts)), axis=1)[:, :k].astype(np.int16)
    ids[rng.random(ids.shape) < draw(st.sampled_from([0.0, 0.2]))] = -1
    source_gpu = np.sort(rng.integers(0, groups * ep, tokens)).astype(np.int32)
    owner = rng.integers(0, ep, experts).astype(np.int32)
    return ids, source_gpu, owner, ep, groups * ep


def by_hand(ids, source_gpu, owner, ep, gpus, deduplicate):
    rows = np.zeros((gpus, len(owner)), dtype=int)
    pairs = np.zeros((gpus, gpus), dtype=int)
    for token, source in zip(ids.tolist(), source_gpu.tolist(), strict=True):
        targets = []
        for expert in token:
            if expert >= 0:
                target = source // ep * ep + int(owner[expert])
                rows[target, expert] += 1
                targets.append(target)
        for target in set(targets) if deduplicate else targets:
            pairs[source, target] += 1
    return rows, pairs


@given(cases(), st.booleans())
def test_as_counted_by_hand(case, deduplicate):
    rows, pairs = traffic(*case, deduplicate)
    expected_rows, expected_pairs = by_hand(*case, deduplicate)
    assert rows.dtype == pairs.dtype == np.int32
    assert np.array_equal(rows, expected_rows)
    assert np.array_equal(pairs, expected_pairs)


@given(cases())
def test_tokens_are_conserved(case):
    ids, source_gpu, _, _, gpus = case
    k = ids.shape[1]
    rows, pairs = traffic(*case, True)
    recorded = int((ids >= 0).sum())
    assert rows.sum() == recorded
    per_gpu = np.bincount(source_gpu, minlength=gpus)
    routed = np.bincount(source_gpu[(ids >= 0).any(axis=1)], minlength=gpus)
    assert (pairs.sum(axis=1) >= routed).all()
    assert (pairs.sum(axis=1) <= per_gpu * k).all()
    assert (pairs <= per_gpu[:, None]).all(), "no token goes to a GPU twice"
    assert traffic(*case, False)[1].sum() == recorded


@given(cases(), st.integers(0, 2**32 - 1))
def test_renaming_gpus_renames_the_matrices(case, seed):
    ids, source_gpu, owner, ep, gpus = case
    # A permutation within groups (the owners move too) and of whole groups.
    rng = np.random.default_rng(seed)
    inner, outer = rng.permutation(ep), rng.permutation(gpus // ep)
    name = np.array([outer[g // ep] * ep + inner[g % ep] for g in range(gpus)])
    renamed = name[source_gpu].astype(np.int32)
    order = np.argsort(renamed, kind="stable")
    rows, pairs = traffic(*case, True)
    rows2, pairs2 = traffic(
        ids[order], renamed[order], inner[owner].astype(np.int32), ep, gpus, True
    )
    assert np.array_equal(rows2[name], rows)
    assert np.array_equal(pairs2[np.ix_(name, name)], pairs)


@given(cases())
def test_the_order_of_first_needs(case):
    ids, source_gpu, owner, ep, gpus = case
    for rows, where, of in (
        (traffic(*case, True)[0], ep, owner),
        (traffic_fetch(ids, source_gpu, gpus, len(owner)), 1, None),
    ):
        ptr, experts = expert_sequence(ids, source_gpu, rows, of, where)
        expected: list[list[int]] = [[] for _ in range(gpus)]
        for token, source in zip(ids.tolist(), source_gpu.tolist(), strict=True):
            for expert in token:
                target = source if of is None else source // ep * ep + int(of[expert])
                if expert >= 0 and expert not in expected[target]:
                    expected[target].append(expert)
        assert [experts[a:b].tolist() for a, b in itertools.pairwise(ptr)] == expected


@given(cases())
def test_fetch_computes_where_the_token_is(case):
    ids, source_gpu, owner, _, gpus = case
    rows = traffic_fetch(ids, source_gpu, gpus, len(owner))
    for gpu in range(gpus):
        mine = ids[source_gpu == gpu]
        assert rows[gpu].tolist() == np.bincount(mine[mine >= 0], minlength=len(owner)).tolist()


@given(cases(), st.booleans(), st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_layers_together_are_the_layers_one_by_one(case, deduplicate, layers, seed):
    ids, source_gpu, owner, ep, gpus = case
    rng = np.random.default_rng(seed)
    every = rng.permuted(np.broadcast_to(ids, (layers, *ids.shape)), axis=2)
    rows, pairs = traffic(every, source_gpu, owner, ep, gpus, deduplicate)
    ptr, order = expert_sequence(every, source_gpu, rows, owner, ep)
    each = [by_hand(one, source_gpu, owner, ep, gpus, deduplicate) for one in every]
    assert rows.tolist() == [one.tolist() for one, _ in each]
    assert pairs.tolist() == [one.tolist() for _, one in each]
    assert len(ptr) == layers * gpus + 1
    for layer in range(layers):
        alone = expert_sequence(every[layer], source_gpu, rows[layer], owner, ep)
        mine = ptr[layer * gpus : (layer + 1) * gpus + 1]
        assert (mine - mine[0]).tolist() == alone[0].tolist()
        assert order[mine[0] : mine[-1]].tolist() == alone[1].tolist()


def test_one_token_worked_out():
    # GPU 3 is in group 1 (GPUs 2, 3). Experts 0, 1 are on its GPU 2, expert 2 on its GPU 3.
    ids = np.array([[1, 2, 0]], dtype=np.int16)
    source = np.array([3], dtype=np.int32)
    owner = np.array([0, 0, 1], dtype=np.int32)
    rows, pairs = traffic(ids, source, owner, 2, 4)
    assert rows.tolist() == [[0, 0, 0], [0, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert pairs.tolist() == [[0] * 4, [0] * 4, [0] * 4, [0, 0, 1, 1]]
    assert traffic(ids, source, owner, 2, 4, False)[1][3].tolist() == [0, 0, 2, 1]
    ptr, experts = expert_sequence(ids, source, rows, owner, 2)
    assert (ptr.tolist(), experts.tolist()) == ([0, 0, 0, 2, 3], [1, 0, 2])


def test_outputs_given_are_used_again():
    ids = np.array([[0, 1], [1, 2]], dtype=np.int16)
    source = np.array([0, 1], dtype=np.int32)
    owner = np.array([0, 1, 1], dtype=np.int32)
    rows, pairs = np.full((2, 3), 7, dtype=np.int32), np.full((2, 2), 7, dtype=np.int32)
    again = traffic(ids, source, owner, 2, 2, True, rows, pairs)
    assert again[0] is rows
    assert again[1] is pairs
    assert rows.tolist() == [[1, 0, 0], [0, 2, 1]]
    assert pairs.tolist() == [[1, 1], [0, 1]]


def test_one_layer_of_a_layer_major_batch_is_taken_as_it_is():
    base = np.array([[[0, 1], [1, 0]], [[1, 2], [2, 0]]], dtype=np.int16)
    ids = base.transpose(1, 0, 2)
    source, owner = np.zeros(2, dtype=np.int32), np.zeros(3, dtype=np.int32)
    assert traffic(ids[:, 1], source, owner, 1, 1)[0].tolist() == [[1, 1, 2]]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"source_gpu": np.array([1, 0], dtype=np.int32)}, "must not decrease"),
        ({"source_gpu": np.array([0, 2], dtype=np.int32)}, "0..gpus-1"),
        ({"source_gpu": np.array([-1, 0], dtype=np.int32)}, "0..gpus-1"),
        ({"source_gpu": np.array([0], dtype=np.int32)}, "do not fit"),
        ({"source_gpu": np.array([0, 1])}, "int32"),
        ({"ids": np.array([[0], [5]], dtype=np.int16)}, "not below the number of experts"),
        ({"owner": np.array([0, 2], dtype=np.int32)}, "values 0..1"),
        ({"owner": np.array([0, -1], dtype=np.int32)}, "values 0..1"),
        ({"gpus": 3}, "EP groups of 2"),
        ({"rows": np.zeros((3, 3), dtype=np.int32)}, "expected int32"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change, what):
    right = {
        "ids": np.array([[0], [1]], dtype=np.int16),
        "source_gpu": np.array([0, 1], dtype=np.int32),
        "owner": np.array([0, 1], dtype=np.int32),
        "ep": 2,
        "gpus": 2,
    }
    traffic(**right)
    with pytest.raises(ValueError, match=what):
        traffic(**right | change)


def test_rows_of_other_ids_are_refused():
    ids, source = np.array([[0]], dtype=np.int16), np.zeros(1, dtype=np.int32)
    with pytest.raises(ValueError, match="hold 1"):
        expert_sequence(ids, source, np.array([[1, 1]], dtype=np.int32))


@pytest.mark.parametrize(("experts", "k", "gpus"), [(256, 8, 32), (256, 8, 8), (128, 4, 16)])
def test_under_uniform_routing_a_token_visits_a_gpu_as_often_as_theory_says(experts, k, gpus):
    """With E / n of E experts on a GPU, a token of k visits it with probability
    1 - C(E - E / n, k) / C(E, k); the mean over many tokens lies within four standard errors.
    """
    each = 4000
    ids = uniform(np.random.default_rng(5), gpus * each, 1, experts, k)[:, 0]
    source = np.repeat(np.arange(gpus, dtype=np.int32), each)
    owner = np.repeat(np.arange(gpus, dtype=np.int32), experts // gpus)
    pairs = traffic(np.ascontiguousarray(ids), source, owner, gpus, gpus)[1]
    wanted = 1.0 - comb(experts - experts // gpus, k) / comb(experts, k)
    error = (wanted * (1.0 - wanted) / (gpus * gpus * each)) ** 0.5
    assert abs(pairs.mean() / each - wanted) < 4.0 * error
    # Without deduplication it is the mean number of choices.
    all_of_them = traffic(np.ascontiguousarray(ids), source, owner, gpus, gpus, False)[1]
    assert all_of_them.sum() == gpus * each * k


# --- experts with copies ------------------------------------------------------------------


@st.composite
def copied(draw):
    """Random (ids, source_gpu, copies, ep): every expert on one or more GPUs of each group."""
    groups, ep = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    experts = draw(st.integers(1, 9))
    k, tokens = draw(st.integers(1, experts)), draw(st.integers(0, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ids = np.argsort(rng.random((tokens, experts)), axis=1)[:, :k].astype(np.int16)
    ids[rng.random(ids.shape) < draw(st.sampled_from([0.0, 0.2]))] = -1
    source_gpu = np.sort(rng.integers(0, groups * ep, tokens)).astype(np.int32)
    held = [rng.permutation(ep)[: rng.integers(1, ep + 1)] for _ in range(experts)]
    expert_of = np.repeat(np.arange(experts), [len(h) for h in held]).astype(np.int32)
    owner = np.concatenate(held).astype(np.int32)
    order = rng.permutation(len(owner))
    expert_of, owner = expert_of[order], owner[order]
    slots = np.argsort(expert_of, kind="stable").astype(np.int16)
    ptr = np.concatenate(([0], np.cumsum(np.bincount(expert_of, minlength=experts))))
    nearest = np.array(
        [
            [rng.choice(slots[ptr[e] : ptr[e + 1]]) for e in range(experts)]
            for _ in range(groups * ep)
        ]
    )
    least = draw(st.booleans())
    given_ = (expert_of, owner, nearest.astype(np.int16), ptr.astype(np.int32), slots, least)
    return ids, source_gpu, Copies(*given_), ep


def picked_by_hand(ids, source_gpu, copies, ep):
    """The GPU of each choice, token after token."""
    rows = [0] * len(copies.nearest)
    found = []
    for token, source in zip(ids.tolist(), source_gpu.tolist(), strict=True):
        first = source // ep * ep
        targets = []
        for expert in token:
            if expert < 0:
                targets.append(None)
                continue
            best = first + int(copies.owner[copies.nearest[source, expert]])
            if copies.least_loaded:
                a, b = int(copies.ptr[expert]), int(copies.ptr[expert + 1])
                others = [first + int(copies.owner[slot]) for slot in copies.slots[a:b]]
                least = min(rows[gpu] for gpu in others)
                if rows[best] > least:
                    best = next(gpu for gpu in others if rows[gpu] == least)
                rows[best] += 1
            targets.append(best)
        found.append(targets)
    return found


@given(copied(), st.booleans())
def test_copies_as_counted_by_hand(case, deduplicate):
    ids, source_gpu, copies, ep = case
    gpus, experts = copies.nearest.shape
    slots = pick_slots(*case)
    counted = traffic(slots, source_gpu, copies.owner, ep, gpus, deduplicate)
    rows, pairs = rows_of_experts(counted[0], copies, ep), counted[1]
    wanted_rows = np.zeros((gpus, experts), dtype=int)
    wanted_pairs = np.zeros((gpus, gpus), dtype=int)
    needed: list[list[int]] = [[] for _ in range(gpus)]
    targets = picked_by_hand(*case)
    for token, there, source in zip(ids.tolist(), targets, source_gpu.tolist(), strict=True):
        sent = [gpu for gpu in there if gpu is not None]
        for expert, gpu in zip(token, there, strict=True):
            if gpu is not None:
                wanted_rows[gpu, expert] += 1
                if expert not in needed[gpu]:
                    needed[gpu].append(expert)
        for gpu in set(sent) if deduplicate else sent:
            wanted_pairs[source, gpu] += 1
    assert rows.tolist() == wanted_rows.tolist()
    assert pairs.tolist() == wanted_pairs.tolist()
    assert rows.sum() == (ids >= 0).sum(), "every choice is computed once"
    ptr, order = expert_sequence(slots, source_gpu, counted[0], copies.owner, ep)
    in_order = copies.expert_of[order]
    assert [in_order[a:b].tolist() for a, b in itertools.pairwise(ptr)] == needed


@given(copied(), st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_copies_of_layers_together_are_those_of_each(case, layers, seed):
    ids, source_gpu, copies, ep = case
    rng = np.random.default_rng(seed)
    every = rng.permuted(np.broadcast_to(ids, (layers, *ids.shape)), axis=2)
    slots = pick_slots(every, source_gpu, copies, ep)
    rows = traffic(slots, source_gpu, copies.owner, ep, len(copies.nearest))[0]
    found = rows_of_experts(rows, copies, ep)
    for layer in range(layers):
        assert slots[layer].tolist() == pick_slots(every[layer], source_gpu, copies, ep).tolist()
        assert found[layer].tolist() == rows_of_experts(rows[layer], copies, ep).tolist()


def test_the_least_loaded_of_two_copies_worked_out():
    # Expert 0 in slots 0 (GPU 0) and 2 (GPU 1), expert 1 in slot 1 (GPU 0); all tokens on GPU 0.
    copies = Copies(
        np.array([0, 1, 0], dtype=np.int32),
        np.array([0, 0, 1], dtype=np.int32),
        np.array([[0, 1], [2, 1]], dtype=np.int16),
        np.array([0, 2, 3], dtype=np.int32),
        np.array([0, 2, 1], dtype=np.int16),
        True,
    )
    ids = np.array([[0, 1], [0, -1], [0, 1], [0, -1]], dtype=np.int16)
    source = np.zeros(4, dtype=np.int32)
    # GPU 0 has 0, then 2 rows: the second token goes to GPU 1 (0 < 2), the third too (1 < 2); then
    # GPU 0 gets expert 1 again, and GPU 1 has fewer (2 < 3).
    assert pick_slots(ids, source, copies, 2).tolist() == [[0, 1], [2, -1], [2, 1], [2, -1]]
    near = copies._replace(least_loaded=False)
    assert pick_slots(ids, source, near, 2)[:, 0].tolist() == [0, 0, 0, 0]
    assert pick_slots(ids, source + np.int32(1), near, 2)[:, 0].tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ("ids", "source", "what"),
    [
        ([[0], [5]], [0, 1], "not below the number of experts"),
        ([[0], [1]], [1, 0], "must not decrease"),
        ([[0], [1]], [0, 2], "0..gpus-1"),
    ],
)
def test_ids_that_do_not_fit_the_copies_are_refused(ids, source, what):
    copies = Copies(
        np.array([0, 1, 0], dtype=np.int32),
        np.array([0, 0, 1], dtype=np.int32),
        np.array([[0, 1], [2, 1]], dtype=np.int16),
        np.array([0, 2, 3], dtype=np.int32),
        np.array([0, 2, 1], dtype=np.int16),
        False,
    )
    with pytest.raises(ValueError, match=what):
        pick_slots(np.array(ids, dtype=np.int16), np.array(source, dtype=np.int32), copies, 2)
