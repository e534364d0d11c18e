"""Where experts live: what every policy keeps to, and answers that are known."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.policies.placement import (
    ALIASES,
    PLACEMENTS,
    Placement,
    Target,
    balanced,
    contiguous,
    contiguous_owner,
    copies_of,
    even_nodes,
    expert_parallel_degree,
    gpu_loads,
    place,
)
from simulator.policies.placement_figures import balance_of, moved_experts


def target(gpus: int, physical: int, nodes: int = 1, experts: int = 0, layers: int = 1) -> Target:
    """With everything that a policy may want to know; seeds are fixed."""
    rng = np.random.default_rng(5)
    cost = rng.uniform(1e-11, 1e-10, (gpus, gpus))
    together = rng.integers(0, 50, (layers, experts, experts)).astype(np.float64)
    node_of = (np.arange(gpus) * nodes // gpus).astype(np.int32)
    return Target(gpus, physical, nodes, node_of, 1, cost, cost, together, 7168.0)


@pytest.mark.parametrize("name", [*PLACEMENTS, *ALIASES])
@given(
    gpus=st.integers(1, 12),
    nodes=st.integers(1, 4),
    experts=st.integers(1, 40),
    more=st.integers(0, 30),
    skew=st.sampled_from([0.0, 1.0, 6.0]),
    seed=st.integers(0, 1 << 16),
)
def test_what_every_policy_keeps_to(
    name: str, gpus: int, nodes: int, experts: int, more: int, skew: float, seed: int
):
    physical = max(experts, gpus) + more
    if name == "eplb":
        physical = -(-physical // gpus) * gpus
    assume(physical <= experts * gpus and nodes <= gpus)
    rng = np.random.default_rng(seed)
    loads = np.floor(1000 * rng.random((2, experts)) ** skew)
    where = target(gpus, physical, nodes, experts, layers=2)
    if name == "eplb":
        where = where._replace(node_of=even_nodes(gpus, 1), nodes=1)
    found = place(name, loads, where)
    assert found.expert_of.dtype == found.gpu_of.dtype == np.int32
    assert found.expert_of.shape == (2, physical)
    shares = np.bincount(found.gpu_of, minlength=gpus)
    assert (np.diff(found.gpu_of) >= 0).all()
    assert len(shares) == gpus
    assert shares.max() - shares.min() <= 1
    copies = copies_of(found, experts)
    assert copies.sum() == 2 * physical
    assert copies.min() >= 1
    if name != "eplb":  # as published, it may put two copies on one GPU
        for layer in found.expert_of:
            assert len(set(zip(layer.tolist(), found.gpu_of.tolist(), strict=True))) == physical
    assert gpu_loads(loads, found, gpus).sum(axis=1) == pytest.approx(loads.sum(axis=1))
    for factor in (0.5, 1024.0):
        again = place(name, loads * factor, where)
        assert np.array_equal(again.expert_of, found.expert_of)


def test_contiguous_by_hand():
    found = contiguous(np.ones((2, 8)), target(4, 8))
    assert found.expert_of.tolist() == [list(range(8))] * 2
    assert found.gpu_of.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    more = contiguous(np.ones((1, 5)), target(4, 7))
    assert more.expert_of.tolist() == [[0, 1, 2, 3, 4, 0, 1]]
    assert more.gpu_of.tolist() == [0, 1, 1, 2, 2, 3, 3]
    assert sorted(np.bincount(contiguous_owner(128, 10)).tolist()) == [12] * 2 + [13] * 8


def test_round_robin_by_hand():
    found = place("round-robin", np.ones((1, 8)), target(4, 8))
    assert found.expert_of.tolist() == [[0, 4, 1, 5, 2, 6, 3, 7]]
    # The second copies of 0 and 1 go one GPU further than the first.
    more = place("round-robin", np.ones((1, 4)), target(4, 6))
    assert more.expert_of.tolist() == [[0, 1, 0, 2, 1, 3]]
    assert more.gpu_of.tolist() == [0, 1, 1, 2, 2, 3]


def test_balanced_by_hand():
    # 9 | 7 6 | 5 4 | 3: with two per GPU the heaviest meets the lightest.
    found = balanced(np.array([[9.0, 3.0, 7.0, 4.0, 6.0, 5.0]]), target(3, 6))
    assert found.expert_of.tolist() == [[0, 1, 2, 3, 4, 5]]
    assert gpu_loads(np.array([[9.0, 3.0, 7.0, 4.0, 6.0, 5.0]]), found, 3).tolist() == [
        [12, 11, 11]
    ]
    # One copy more: of the expert with 9, so that copies carry 4.5 each and never meet.
    more = balanced(np.array([[9.0, 3.0, 7.0, 4.0, 6.0]]), target(3, 6))
    assert copies_of(more, 5).tolist() == [[2, 1, 1, 1, 1]]


def ways(items: list[int], shares: list[int]) -> Iterator[list[tuple[int, ...]]]:
    """All ways to deal items to shares of these sizes."""
    if not shares:
        yield []
        return
    for mine in combinations(items, shares[0]):
        rest = [item for item in items if item not in mine]
        for others in ways(rest, shares[1:]):
            yield [mine, *others]


@pytest.mark.parametrize(("experts", "gpus"), [(4, 2), (6, 2), (6, 3), (9, 3)])
@given(seed=st.integers(0, 1 << 16))
def test_balanced_is_within_the_bound_of_the_best(experts: int, gpus: int, seed: int):
    loads = np.random.default_rng(seed).integers(0, 30, (1, experts)).astype(np.float64)
    found = balanced(loads, target(gpus, experts))
    shares = np.bincount(found.gpu_of).tolist()
    best = min(
        max(loads[0, list(mine)].sum() for mine in dealt)
        for dealt in ways(list(range(experts)), shares)
    )
    worst = gpu_loads(loads, found, gpus).max()
    assert worst >= best
    assert worst <= best * (4 / 3 - 1 / (3 * gpus)) + 1e-9
    if experts == 2 * gpus:  # the heaviest with the lightest is best
        assert worst == best


@pytest.mark.parametrize("name", ["balanced", "eplb", "topology-aware"])
@given(
    experts=st.integers(1, 4),
    more=st.integers(0, 4),
    seed=st.integers(0, 1 << 16),
)
def test_copies_make_the_most_loaded_copy_as_light_as_can_be(
    name: str, experts: int, more: int, seed: int
):
    slots = experts + more
    loads = np.random.default_rng(seed).integers(1, 40, (1, experts)).astype(np.float64)
    found = place(name, loads, target(slots, slots, experts=experts))
    best = min(
        max(load / n for load, n in zip(loads[0], copies, strict=True))
        for copies in product(range(1, more + 2), repeat=experts)
        if sum(copies) == slots
    )
    assert (loads / copies_of(found, experts)).max() == pytest.approx(best)


@pytest.mark.parametrize("name", PLACEMENTS)
@pytest.mark.parametrize(
    ("loads", "where", "words"),
    [
        (np.ones((2, 8)), target(4, 7), "7 physical experts for 8 experts"),
        (np.ones((2, 8)), target(9, 8), "8 physical experts on 9 GPUs"),
        (np.full((2, 8), np.nan), target(4, 8), "negative or NaN"),
        (np.full((2, 8), np.inf), target(4, 8), "negative or NaN"),
        (-np.ones((2, 8)), target(4, 8), "negative or NaN"),
        (np.ones((0, 8)), target(4, 8), r"shape \(0, 8\)"),
        (np.ones(8), target(4, 8), r"shape \(8,\)"),
        (np.ones((1, 8)), target(4, 8)._replace(gpus=0), "0 GPUs"),
        (np.ones((1, 8)), target(4, 8)._replace(node_of=even_nodes(3, 1)), "nodes of 3 GPUs"),
    ],
)
def test_what_cannot_be_placed_is_refused(name: str, loads: np.ndarray, where: Target, words: str):
    with pytest.raises(InputError, match=words) as told:
        place(name, loads, where)
    assert "\n" not in str(told.value)


def test_unknown_policies_are_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"no policy 'linaer'.*did you mean 'linear'.*eplb"):
        place("linaer", np.ones((1, 4)), target(2, 4))
    with pytest.raises(InputError, match="cannot be imported"):
        place("no.such.module:f", np.ones((1, 4)), target(2, 4))
    with pytest.raises(InputError, match=r"4 does not divide 10 GPUs.*such as 2"):
        even_nodes(10, 4)


def only_first(loads: np.ndarray, where: Target) -> Placement:
    return Placement(np.zeros((len(loads), where.physical), np.int32), even_nodes(where.gpus, 1))


def backwards(loads: np.ndarray, where: Target) -> Placement:
    found = contiguous(loads, where)
    return Placement(found.expert_of, found.gpu_of[::-1].copy())


def fifth(loads: np.ndarray, where: Target) -> Placement:
    found = contiguous(loads, where)
    return Placement(found.expert_of + np.int32(1), found.gpu_of)


def as_floats(loads: np.ndarray, where: Target) -> Placement:
    found = contiguous(loads, where)
    return Placement(found.expert_of.astype(np.float64), found.gpu_of)  # type: ignore[arg-type]


def cyclic(loads: np.ndarray, where: Target) -> Placement:
    found = contiguous(loads, where)
    return Placement(found.expert_of[:, ::-1].copy(), found.gpu_of)


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (only_first, "no GPU holds expert 1 of layer 0"),
        (backwards, "never decrease"),
        (fifth, "names expert 4; there are 0 to 3"),
        (as_floats, "must be int32"),
    ],
)
def test_answers_of_ones_own_policy_are_checked(
    policy: object, words: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(PLACEMENTS, "mine", policy)
    with pytest.raises(InputError, match=words):
        place("mine", np.ones((2, 4)), target(4, 4))


def test_ones_own_policy_by_module_and_function():
    found = place(f"{__name__}:cyclic", np.ones((1, 4)), target(2, 4))
    assert found.expert_of.tolist() == [[3, 2, 1, 0]]


def test_figures_by_hand():
    loads = np.array([[8.0, 2.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    before = contiguous(loads, target(2, 4))
    balance = balance_of(loads, before, 2)
    assert balance.max_over_mean == pytest.approx([10 / 6, 1.0])
    assert balance.balancedness == pytest.approx((6 / 10 + 1.0) / 2)
    after = Placement(np.array([[0, 2, 1, 3], [1, 0, 2, 3]], np.int32), before.gpu_of)
    # Layer 0: GPU 0 gets 2 and GPU 1 gets 1; layer 1: the same experts in another order.
    assert moved_experts(before, after, 4, 2).tolist() == [2, 0]
    copied = Placement(
        np.array([[0, 1, 2, 2, 3, 0], [0, 1, 1, 2, 3, 3]], np.int32), even_nodes(2, 2).repeat(3)
    )
    assert gpu_loads(loads, copied, 2).tolist() == [[6.5, 5.5], [2.0, 2.0]]
    assert moved_experts(before, copied, 4, 2).tolist() == [2, 0]
    with pytest.raises(InputError, match=r"layer 1 .* has no tokens"):
        balance_of(np.array([[1.0, 1.0], [0.0, 0.0]]), contiguous(loads[:, :2], target(2, 2)), 2)


@pytest.mark.parametrize(
    ("gpus", "experts", "wanted"),
    [(16, 128, 16), (16, 8, 8), (10, 8, 5), (7, 6, 1), (12, 9, 6), (1, 3, 1), (64, 64, 64)],
)
def test_as_many_gpus_share_the_experts_as_divide_and_have_one(
    gpus: int, experts: int, wanted: int
):
    assert expert_parallel_degree(gpus, experts) == wanted
