"""Which expert makes room: each policy by hand, and against the caches that know no time."""

from __future__ import annotations

import inspect
from typing import NamedTuple

import numpy as np
import pytest

from simulator.errors import InputError
from simulator.policies import eviction
from simulator.policies.eviction import (
    AGE_AFTER,
    EVICTIONS,
    HIT,
    MISS,
    NEVER,
    ORACLES,
    Coming,
    Eviction,
    Setup,
    lru,
)
from simulator.policies.pick import pick


class Held(NamedTuple):
    expert: int
    last_use: int
    uses: int
    layer: int = 0
    size: float = 1.0


COMING = Coming(0, 99, False)


def hits(name: str, accesses: np.ndarray, slots: int, pooled: bool) -> list[bool]:
    """Accesses [n, 2] (layer, expert), each in its turn, through the policy of the engine."""
    layers, experts = int(accesses[:, 0].max()) + 1, int(accesses[:, 1].max()) + 1
    order = [tuple(pair) for pair in accesses.tolist()]
    now = 0

    def next_use(layer: int, expert: int) -> int:
        later = (at for at in range(now + 1, len(order)) if order[at] == (layer, expert))
        return next(later, NEVER)

    oracle = next_use if name in ORACLES else None
    policy = EVICTIONS[name](Setup(layers, experts, slots, pooled, oracle))
    held: dict[tuple[int, int], Held] = {}
    found = []
    for at, (layer, expert) in enumerate(order):
        now = at
        here = (layer, expert) in held
        found.append(here)
        if policy.seen is not None:
            policy.seen(layer, expert, HIT if here else MISS)
        rivals = [h for h in held.values() if pooled or h.layer == layer]
        if not here and len(rivals) == slots * (layers if pooled else 1):
            gone = rivals[policy.choose(rivals, Coming(layer, expert, False))]
            del held[gone.layer, gone.expert]
        uses = held[layer, expert].uses + 1 if here else 1
        held[layer, expert] = Held(expert, at, uses, layer)
    return found


def untimed(name: str, accesses: np.ndarray, slots: int, pooled: bool) -> list[bool]:
    """The same by `simulator.policies.caching`, which was written apart from the engine."""
    caching = pytest.importorskip("simulator.policies.caching")
    layers, experts = int(accesses[:, 0].max()) + 1, int(accesses[:, 1].max()) + 1
    replay = caching.POLICIES[name]
    if pooled:
        items = (accesses[:, 0] * experts + accesses[:, 1]).astype(np.int32)[None, :]
        caches = caching.of_equal_size(1, layers * experts, slots * layers, layers)
        starts = np.array([0, len(accesses)])
        return replay(np.ascontiguousarray(items), starts, True, caches)[0][0].tolist()
    found = np.zeros(len(accesses), dtype=bool)
    for layer in range(layers):
        mine = accesses[:, 0] == layer
        items = np.ascontiguousarray(accesses[mine, 1].astype(np.int32)[None, :])
        starts = np.array([0, items.shape[1]])
        found[mine] = replay(items, starts, True, caching.of_equal_size(1, experts, slots))[0][0]
    return found.tolist()


@pytest.mark.parametrize("pooled", [False, True], ids=["layer", "global"])
@pytest.mark.parametrize("name", sorted(EVICTIONS))
def test_every_policy_hits_where_the_one_without_times_does(name: str, pooled: bool):
    """Passes over the layers, in each some experts of a skewed choice, as a run makes them."""
    rng = np.random.default_rng(5)
    for slots in (1, 2, 4):
        layers, experts, k = 3, 9, 3
        skew = rng.dirichlet(np.full(experts, 0.4), size=layers)
        steps = [
            (layer, expert)
            for _ in range(220)
            for layer in range(layers)
            for expert in rng.choice(experts, size=k, replace=False, p=0.9 * skew[layer] + 0.1 / 9)
        ]
        accesses = np.array([*steps, (layers - 1, experts - 1)])
        mine = hits(name, accesses, slots, pooled)
        assert mine == untimed(name, accesses, slots, pooled)
        assert 0 < sum(mine) < len(mine)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("pooled", [False, True], ids=["layer", "global"])
def test_no_policy_hits_more_often_than_belady(seed: int, pooled: bool):
    rng = np.random.default_rng(seed)
    steps = [(layer, int(e)) for _ in range(60) for layer in (0, 1) for e in rng.permutation(7)[:2]]
    accesses, slots = np.array([*steps, (1, 6)]), int(rng.integers(1, 5))
    best = sum(hits("belady", accesses, slots, pooled))
    for name in EVICTIONS:
        assert sum(hits(name, accesses, slots, pooled)) <= best


def test_the_least_recently_used_goes():
    policy = lru(Setup(1, 9, 3, False))
    assert policy.choose([Held(4, 9, 1), Held(7, 2, 5), Held(1, 3, 0)], COMING) == 1
    assert policy.choose([Held(4, 9, 1)], COMING) == 0


def test_lfu_counts_since_the_start_and_takes_the_older_of_equals():
    policy = EVICTIONS["lfu"](Setup(1, 9, 3, False))
    for expert in (1, 1, 1, 2, 2, 3, 3):
        policy.seen(0, expert, HIT)
    policy.seen(0, 4, eviction.AHEAD)
    held = [Held(1, 1, 0), Held(2, 7, 0), Held(3, 6, 0)]
    assert policy.choose(held, COMING) == 2, "2 and 3 were taken twice, 3 longer ago"
    assert policy.choose([*held, Held(4, 9, 0)], COMING) == 3, "a prefetch is no use"


def test_lfu_with_aging_forgets():
    """Expert 1 is taken often, then 2 fewer times: after two halvings 2 leads."""
    policy = EVICTIONS["lfu-aging"](Setup(1, 9, 1, False))
    for expert, times in ((1, AGE_AFTER), (2, AGE_AFTER)):
        for _ in range(times):
            policy.seen(0, expert, HIT)
    held = [Held(1, 5, 0), Held(2, 1, 0)]
    assert policy.choose(held, COMING) == 0, f"{AGE_AFTER // 2} against {AGE_AFTER}"


def test_least_stale_takes_the_layer_that_the_pass_reaches_last():
    policy = EVICTIONS["least-stale"](Setup(4, 9, 2, True))
    held = [Held(0, 9, 1, layer=layer) for layer in range(4)]
    assert policy.choose(held, Coming(2, 5, False)) == 1, "just passed"
    assert policy.choose(held, Coming(0, 5, False)) == 3
    assert policy.choose([held[2], held[3]], Coming(2, 5, False)) == 1, "where it is comes last"
    twice = [Held(1, 4, 1, layer=1), Held(2, 3, 1, layer=1)]
    assert policy.choose(twice, Coming(2, 5, False)) == 1


@pytest.mark.parametrize("name", sorted(EVICTIONS))
def test_every_eviction_names_a_candidate(name: str):
    setup = Setup(1, 9, 8, False, (lambda layer, expert: expert % 4) if name in ORACLES else None)
    policy = EVICTIONS[name](setup)
    held = [Held(expert, (expert * 7) % 11, expert % 3) for expert in range(3, 9)]
    for expert in [*(one.expert for one in held), 0]:
        if policy.seen is not None:
            policy.seen(0, expert, MISS)
    while held:
        chosen = policy.choose(held, Coming(0, 0, False))
        assert 0 <= chosen < len(held)
        del held[chosen]


def first_of_all(_: Setup) -> Eviction:
    return Eviction(lambda residents, coming: 0)


def test_a_policy_of_ones_own_by_module_and_function():
    found = pick("eviction", EVICTIONS, "simulator.policies.eviction:lru")
    assert inspect.unwrap(found) is lru
    assert pick("eviction", EVICTIONS, "lru") is lru


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lur", "eviction: no 'lur'; known: lru"),
        ("no.such.module:f", "eviction: 'no.such.module:f' cannot be imported: No module named"),
        ("simulator.policies.eviction:nobody", "cannot be imported: module"),
    ],
)
def test_what_cannot_be_picked_is_one_line(name: str, said: str):
    with pytest.raises(InputError) as caught:
        pick("eviction", EVICTIONS, name)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
