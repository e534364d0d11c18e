"""Placement by communication cost: the documented cost, and what follows from it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.policies.placement import (
    Target,
    balanced,
    copies_of,
    even_nodes,
    gpu_loads,
    topology_aware,
)
from simulator.policies.topology_aware import ROWS, token_cost_s


def target(cost: np.ndarray, physical: int, nodes: int = 1) -> Target:
    """On GPUs where a token of one byte takes cost[source, target] seconds."""
    gpus = len(cost)
    return Target(gpus, physical, nodes, even_nodes(gpus, nodes), 1, cost, bytes_per_token=1.0)


def two_levels(gpus: int, nodes: int, near: float, far: float) -> np.ndarray:
    node = even_nodes(gpus, nodes)
    cost = np.where(node[:, None] == node[None, :], near, far)
    np.fill_diagonal(cost, 0.0)
    return cost


def by_the_text(loads: np.ndarray, cost: np.ndarray, physical: int) -> list[set[int]]:
    """The experts of each GPU, by the rule as it is documented; nothing shared with the kernel."""
    gpus, experts = len(cost), len(loads)
    copies = [1] * experts
    order = list(range(experts))
    while len(order) < physical:
        free = [e for e in range(experts) if copies[e] < gpus]
        expert = max(free, key=lambda e: (loads[e] / copies[e], -e))
        copies[expert] += 1
        order.append(expert)
    order = sorted(order, key=lambda e: -loads[e] / copies[e])
    arrival = [sum(cost[s][g] for s in range(gpus)) / gpus for g in range(gpus)]
    held: list[set[int]] = [set() for _ in range(gpus)]
    tokens = [0.0] * gpus
    for expert in order:
        mine = loads[expert] / copies[expert]
        scores = {}
        for gpu in range(gpus):
            if len(held[gpu]) == physical // gpus or expert in held[gpu]:
                continue
            at = [other for other in range(gpus) if expert in held[other]] + [gpu]
            travel = sum(min(cost[s][g] for g in at) for s in range(gpus)) / gpus
            scores[gpu] = (tokens[gpu] + mine) * arrival[gpu] + loads[expert] * travel
        best = min(scores, key=lambda gpu: scores[gpu])
        held[best].add(expert)
        tokens[best] += mine
    return held


@given(
    gpus=st.integers(2, 6),
    experts=st.integers(4, 14),
    more=st.integers(0, 1),
    seed=st.integers(0, 1 << 16),
)
def test_as_the_text_says(gpus: int, experts: int, more: int, seed: int):
    rng = np.random.default_rng(seed)
    physical = (-(-max(experts, gpus) // gpus) + more) * gpus
    loads, cost = rng.random((1, experts)), rng.uniform(0.5, 2.0, (gpus, gpus))
    if physical > experts * 2:  # else the last slots may have no choice but two alike
        return
    found = topology_aware(loads, target(cost, physical))
    held = [set(gpu) for gpu in found.expert_of[0].reshape(gpus, -1).tolist()]
    try:
        wanted = by_the_text(loads[0], cost, physical)
    except ValueError:
        return  # no GPU without that expert has room: the kernel swaps, the text does not say how
    assert held == wanted


@given(
    gpus=st.integers(1, 8),
    experts=st.integers(1, 40),
    more=st.integers(0, 12),
    own=st.booleans(),
    seed=st.integers(0, 1 << 16),
)
def test_equal_costs_give_what_load_alone_gives(
    gpus: int, experts: int, more: int, own: bool, seed: int
):
    physical = min(max(experts, gpus) + more, experts * gpus)
    loads = np.random.default_rng(seed).random((2, experts))
    cost = two_levels(gpus, 1, 1.0, 1.0) if own else np.ones((gpus, gpus))
    where = target(cost, max(physical, gpus))
    by_cost, by_load = topology_aware(loads, where), balanced(loads, where)
    ours, wanted = (gpu_loads(loads, found, gpus) for found in (by_cost, by_load))
    assert ours.max(axis=1) == pytest.approx(wanted.max(axis=1), rel=1e-12)
    assert np.array_equal(copies_of(by_cost, experts), copies_of(by_load, experts))


@given(seed=st.integers(0, 1 << 16))
def test_gpus_under_other_numbers_get_the_same_experts(seed: int):
    rng = np.random.default_rng(seed)
    loads, cost = rng.random((1, 20)), rng.uniform(0.5, 2.0, (6, 6))
    order = rng.permutation(6)
    found = topology_aware(loads, target(cost, 24)).expert_of.reshape(6, 4)
    renamed = topology_aware(loads, target(cost[np.ix_(order, order)], 24)).expert_of.reshape(6, 4)
    assert [sorted(gpu) for gpu in renamed] == [sorted(found[gpu]) for gpu in order]


def test_a_second_copy_goes_to_the_other_node():
    loads = np.array([[8.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]])
    found = topology_aware(loads, target(two_levels(4, 2, 1.0, 9.0), 8, nodes=2))
    hot = found.gpu_of[found.expert_of[0] == 0]
    assert sorted(hot // 2) == [0, 1]


def test_more_tokens_have_a_copy_on_their_own_node_than_by_load_alone():
    loads = np.random.default_rng(2).random((5, 64)) ** 4
    where = target(two_levels(16, 4, 1.0, 9.0), 80, nodes=4)
    at_home, most = [], []
    for found in (topology_aware(loads, where), balanced(loads, where)):
        held = np.zeros((5, 64, 4), dtype=np.bool_)
        held[np.arange(5)[:, None], found.expert_of, where.node_of[found.gpu_of]] = True
        at_home.append((loads * held.mean(axis=2)).sum() / loads.sum())
        per_gpu = gpu_loads(loads, found, 16)
        most.append((per_gpu.max(axis=1) / per_gpu.mean(axis=1)).mean())
    assert at_home[0] > at_home[1] + 0.05
    assert most[0] < 1.05 * most[1]


def test_a_badly_wired_gpu_gets_fewer_tokens():
    rng = np.random.default_rng(3)
    loads = rng.random((10, 64)) ** 3
    cost = two_levels(8, 1, 1.0, 1.0)
    cost[:, 5] *= 4.0
    per_gpu = gpu_loads(loads, topology_aware(loads, target(cost, 64)), 8)
    others = np.delete(per_gpu, 5, axis=1)
    assert (per_gpu[:, 5] < others.min(axis=1)).all()


def test_the_cost_of_a_token_by_hand():
    seconds = np.array([[0.0, 2e-11], [1e-11, 0.0]])
    latency = np.array([[0.0, 3e-6], [2e-6, 0.0]])
    where = Target(2, 2, 1, even_nodes(2, 1), 1, seconds, latency, None, 1000.0)
    assert token_cost_s(where) == pytest.approx(
        np.array([[0.0, 2e-8 + 3e-6 / ROWS], [1e-8 + 2e-6 / ROWS, 0.0]])
    )


def test_without_a_topology_nvlink_and_nics_are_assumed():
    where = Target(4, 4, 2, even_nodes(4, 2))
    cost = token_cost_s(where)
    assert cost[0].tolist() == pytest.approx([0.0, 7168 / 450e9, 7168 / 50e9, 7168 / 50e9])
    assert np.array_equal(cost, cost.T)


def test_gpus_that_cost_nothing_to_reach_are_loaded_evenly():
    loads = np.random.default_rng(1).random((3, 12))
    found = topology_aware(loads, target(np.zeros((4, 4)), 12))
    assert np.array_equal(found.expert_of, balanced(loads, target(np.zeros((4, 4)), 12)).expert_of)
