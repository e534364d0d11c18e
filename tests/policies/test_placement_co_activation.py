"""Experts that fire together share a node."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.policies.co_activation import LOAD_SLACK
from simulator.policies.placement import (
    Placement,
    Target,
    balanced,
    co_activation,
    copies_of,
    even_nodes,
    gpu_loads,
    place,
)


def target(gpus: int, physical: int, nodes: int, together: np.ndarray | None) -> Target:
    return Target(gpus, physical, nodes, even_nodes(gpus, nodes), together=together)


def counted(ids: np.ndarray, experts: int) -> np.ndarray:
    """Tokens that took both, [1, experts, experts], from ids [tokens, k]."""
    taken = np.zeros((len(ids), experts))
    np.put_along_axis(taken, ids, 1.0, axis=1)
    return (taken.T @ taken)[None]


def met(found: Placement, where: Target) -> float:
    """Pairs of a token that meet within a node, every copy with an even share."""
    assert where.together is not None
    held, node = found.expert_of[0], where.node_of[found.gpu_of]
    n = copies_of(found, where.together.shape[1])[0]
    total = 0.0
    for i in range(len(held)):
        for j in range(i):
            if node[i] == node[j] and held[i] != held[j]:
                both = where.together[0, held[i], held[j]]
                total += both / (n[held[i]] * n[held[j]])
    return total


@given(nodes=st.integers(2, 4), size=st.integers(2, 8), seed=st.integers(0, 1 << 16))
def test_planted_groups_are_found(nodes: int, size: int, seed: int):
    rng = np.random.default_rng(seed)
    experts = nodes * size
    order = rng.permutation(experts).reshape(nodes, size)
    # Each token takes two experts of one group.
    group = rng.integers(0, nodes, 4000)
    ids = np.stack([rng.permutation(size)[:2] for _ in range(4000)])
    ids = order[group[:, None], ids]
    together = counted(ids, experts)
    # Equal loads: no limit is in the way.
    where = target(nodes * 2, experts, nodes, together)
    found = co_activation(np.ones((1, experts)), where)
    node = where.node_of[found.gpu_of]
    on_node = {frozenset(found.expert_of[0][node == n].tolist()) for n in range(nodes)}
    assert on_node == {frozenset(mine.tolist()) for mine in order}


@given(
    experts=st.integers(8, 24),
    more=st.integers(0, 8),
    nodes=st.sampled_from([2, 4]),
    seed=st.integers(0, 1 << 16),
)
def test_loads_stay_within_the_slack(experts: int, more: int, nodes: int, seed: int):
    rng = np.random.default_rng(seed)
    loads = rng.random((1, experts)) ** 3
    together = rng.random((1, experts, experts))
    physical = -(-(experts + more) // 4) * 4
    where = target(4, physical, nodes, together)
    found = co_activation(loads, where)
    copies = copies_of(found, experts)[0]
    limit = loads.sum() / nodes * (1 + LOAD_SLACK)
    # By load alone: heaviest first to the node with the fewest copies, and the fewest tokens.
    on_node = np.zeros(nodes)
    held: list[list[int]] = [[] for _ in range(nodes)]
    each = sorted(((loads[0, e] / copies[e], e) for e in range(experts)), key=lambda c: -c[0])
    for tokens, expert in ((t, e) for t, e in each for _ in range(copies[e])):
        best = min(
            (n for n in range(nodes) if len(held[n]) < physical // nodes),
            key=lambda n: (
                held[n].count(expert) >= 4 // nodes,
                held[n].count(expert),
                on_node[n] + tokens > limit,
                on_node[n],
            ),
        )
        held[best].append(expert)
        on_node[best] += tokens
    most = gpu_loads(loads, found, 4).reshape(nodes, -1).sum(axis=1).max()
    assert most <= max(limit, on_node.max()) + 1e-9


@given(seed=st.integers(0, 1 << 16))
def test_more_meet_than_by_load_alone(seed: int):
    rng = np.random.default_rng(seed)
    loads = rng.random((1, 32))
    where = target(8, 40, 4, rng.random((1, 32, 32)) ** 4)
    assert met(co_activation(loads, where), where) > met(balanced(loads, where), where)


def test_one_node_is_balanced_by_load():
    rng = np.random.default_rng(0)
    loads = rng.random((3, 16))
    where = target(4, 20, 1, rng.random((3, 16, 16)))
    found = gpu_loads(loads, co_activation(loads, where), 4)
    assert found.max(axis=1) == pytest.approx(
        gpu_loads(loads, balanced(loads, where), 4).max(axis=1)
    )


@pytest.mark.parametrize(
    ("together", "words"),
    [
        (None, "give a recording of tokens"),
        (np.ones((1, 4, 5)), r"shape \(1, 4, 5\); wanted \(1, 4, 4\)"),
    ],
)
def test_without_tokens_it_is_refused(together: np.ndarray | None, words: str):
    with pytest.raises(InputError, match=words):
        place("co-activation", np.ones((1, 4)), target(2, 4, 2, together))
