"""Caches replayed: hand counts, a slow simulation of every policy, optimality, theory, figures."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from scipy.optimize import brentq

from simulator.errors import InputError
from simulator.policies import caching, eviction
from simulator.policies.caching import POLICIES, WHOLE, Caches, of_equal_size

A, B, C, D = range(4)
NEVER = 10**9


def hits_of(name: str, sequence: Sequence[int], capacity: int, items: int = 4) -> list[bool]:
    """Which accesses of one cache are hits."""
    asked = np.array([sequence], dtype=np.int32)
    starts = np.array([0, len(sequence)])
    hit, _ = POLICIES[name](asked, starts, True, of_equal_size(1, items, capacity))
    return [bool(flag) for flag in hit[0]]


# --- hand counts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sequence", "capacity", "expected"),
    [
        # C drives out B, which was used before A was used again.
        ("lru", [A, B, A, C, B, A], 2, "..h..."),
        ("lru", [A, B, C, A, B, C], 2, "......"),
        ("lru", [A, A, A, A], 1, ".hhh"),
        # A was used twice, B once: B goes for C, C (once, older than none) for B, A stays.
        ("lfu", [A, B, A, C, B, A], 2, "..h..h"),
        # A has three uses and stays; B, C and D drive each other out.
        ("lfu", [A, A, A, B, C, B, D, A], 2, ".hh....h"),
        # Never again before latest: C is not used again, so it makes room.
        ("belady", [A, B, C, A, B, D, A, B], 2, "...h..h."),
        # One cache, one layer: nothing of another layer can go first.
        ("least-stale", [A, B, A, C, B, A], 2, "..h..."),
        # A, seen twice, is in T2; B and C pass through T1 and leave it alone.
        ("arc", [A, A, B, C, D, A], 2, ".h...h"),
    ],
)
def test_hand_counted(name: str, sequence: list[int], capacity: int, expected: str) -> None:
    """Short sequences followed with pencil and paper."""
    assert "".join("h" if hit else "." for hit in hits_of(name, sequence, capacity)) == expected


def test_lfu_counts_outlive_eviction() -> None:
    """A, evicted with two uses, comes back with three and outranks B with two."""
    sequence = [A, A, B, B, C, A, D, A]
    # C (1) drives out A (2, older than B); A (3) drives out C (1); D (1) drives out B (2).
    assert hits_of("lfu", sequence, 2) == [False, True, False, True, False, False, False, True]


def test_lfu_aging_forgets() -> None:
    """Halved counts let a new favourite stay that plain counting throws out."""
    asked = np.array([[A] * 6 + [B, B, C, B, C, B]], dtype=np.int32)
    starts, caches = np.array([0, 12]), of_equal_size(1, 3, 1)
    for halve_every in (1, 3, 6):
        hit, _ = caching.lfu_aging(asked, starts, True, caches, halve_every=halve_every)
        assert hit[0].tolist() == slow_hits(
            "lfu-aging", asked[0], np.ones(3, int), 1, halve_every=halve_every
        )
    two = of_equal_size(1, 4, 2)
    sequence = np.array([[A] * 8 + [B] * 4 + [C, D, C, D, C, D]], dtype=np.int32)
    plain, _ = caching.lfu(sequence, np.array([0, 18]), True, two)
    aged, _ = caching.lfu_aging(sequence, np.array([0, 18]), True, two, halve_every=2)
    assert plain[0, 12:].sum() == 0
    assert aged[0, 12:].sum() == 4


def test_least_stale_takes_the_layer_just_passed() -> None:
    """Three layers of two experts, a pool of four: at layer 2 what is in layer 1 goes first."""
    experts = 2
    sequence = [0, 2, 4, 1, 3, 5, 0]  # layer 0, 1, 2, then 0, 1, 2 with the other expert, then 0
    asked = np.array([sequence], dtype=np.int32)
    caches = of_equal_size(1, 3 * experts, 4, groups=3)
    hit, _ = caching.least_stale(asked, np.array([0, 7]), True, caches)
    # Item 3 (layer 1) drives out layer 0, the least recently used: 0. Item 5 (layer 2) drives out
    # layer 1: 2. So 0 misses, and 4, 1, 3 and 5 are there.
    assert hit[0].tolist() == [False] * 7
    after, _ = caching.least_stale(
        np.array([[*sequence[:6], 4, 1, 3, 5]], dtype=np.int32), np.array([0, 10]), True, caches
    )
    assert after[0].tolist() == [False] * 6 + [True] * 4


# --- a slow simulation ---------------------------------------------------------------------------


def slow_hits(
    name: str,
    sequence: Sequence[int],
    sizes: Sequence[int],
    capacity: int,
    groups: int = 1,
    halve_every: int = 0,
) -> list[bool]:
    """One cache from empty, by sorted lists: what each policy says in words, in plain Python."""
    if name == "arc":
        return slow_arc(sequence, sizes, capacity)
    per_group = len(sizes) // groups
    held: list[int] = []
    last: dict[int, int] = {}
    count: dict[int, int] = {}
    hits, accesses = [], 0
    for now, item in enumerate(sequence):
        if item < 0:
            hits.append(False)
            continue
        if halve_every and accesses and accesses % halve_every == 0:
            count = {other: uses // 2 for other, uses in count.items()}
        accesses += 1
        count[item] = count.get(item, 0) + 1
        hits.append(item in held)
        if item not in held:
            if sizes[item] > capacity:
                continue
            while sum(sizes[other] for other in held) + sizes[item] > capacity:
                held.sort(key=lambda other: last[other])
                if name.startswith("lfu"):
                    held.sort(key=lambda other: count[other])
                elif name == "least-stale":
                    layer = item // per_group
                    held.sort(key=lambda other: (other // per_group - layer) % groups)
                    # Ascending by when the pass reaches it; of what it reaches last the oldest.
                    farthest = (held[-1] // per_group - layer) % groups
                    held.sort(key=lambda other: (other // per_group - layer) % groups != farthest)
                elif name == "belady":
                    rest = list(sequence[now + 1 :])
                    held.sort(
                        key=lambda other: rest.index(other) if other in rest else NEVER,
                        reverse=True,
                    )
                held.pop(0)
            held.append(item)
        last[item] = now
    return hits


def slow_arc(sequence: Sequence[int], sizes: Sequence[int], capacity: int) -> list[bool]:
    """ARC as published, on Python lists (oldest first), lengths as sums of sizes."""
    t1, t2, b1, b2 = [], [], [], []
    target = 0.0
    hits = []

    def total(*lists: list[int]) -> int:
        return sum(sizes[item] for each in lists for item in each)

    def replace(item: int) -> None:
        while total(t1, t2) + sizes[item] > capacity:
            exact = item in b2 and total(t1) == target
            if t1 and (total(t1) > target or exact or not t2):
                b1.append(t1.pop(0))
            else:
                b2.append(t2.pop(0))

    for item in sequence:
        hits.append(item in t1 or item in t2)
        if item < 0 or sizes[item] > capacity:
            continue
        if hits[-1]:
            (t1 if item in t1 else t2).remove(item)
            t2.append(item)
        elif item in b1:
            target = min(target + max(total(b2) / total(b1), 1.0) * sizes[item], float(capacity))
            replace(item)
            b1.remove(item)
            t2.append(item)
        elif item in b2:
            target = max(target - max(total(b1) / total(b2), 1.0) * sizes[item], 0.0)
            replace(item)
            b2.remove(item)
            t2.append(item)
        else:
            while total(t1, b1) + sizes[item] > capacity:
                (b1 or t1).pop(0)
            while total(t1, t2, b1, b2) + sizes[item] > 2 * capacity:
                b2.pop(0)
            replace(item)
            t1.append(item)
    return hits


def random_case(
    rng: np.random.Generator, unequal: bool, groups: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Accesses [caches, n] with gaps, starts, sizes [caches, items] and a capacity."""
    caches, n = int(rng.integers(1, 4)), int(rng.integers(1, 120))
    items = int(rng.integers(2, 10)) * groups
    weight = 1.0 / np.arange(1, items + 1) ** rng.uniform(0.0, 1.5)
    asked = rng.choice(items, (caches, n), p=weight / weight.sum()).astype(np.int32)
    asked[rng.random((caches, n)) < 0.05] = -1
    inner = np.flatnonzero(rng.random(n) < 0.03)
    starts = np.concatenate(([0], inner[inner > 0], [n])).astype(np.int64)
    largest = 5 if unequal else 1
    sizes = rng.integers(1, largest + 1, (caches, items)).astype(np.int64)
    return asked, starts, sizes, int(rng.integers(1, items * largest))


@pytest.mark.parametrize("unequal", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("name", POLICIES)
def test_kernels_equal_a_slow_simulation(name: str, groups: int, unequal: bool) -> None:
    """Access by access, with gaps, resets, unequal sizes and items that do not fit."""
    rng = np.random.default_rng([1, groups, unequal])
    for _ in range(120):
        asked, starts, sizes, capacity = random_case(rng, unequal, groups)
        caches = Caches(sizes, capacity, groups)
        halve_every = int(rng.integers(1, 12)) if name == "lfu-aging" else 0
        policy = POLICIES[name]
        if halve_every:
            policy = caching.policy_named(f"lfu-aging:{halve_every}")
        hit, _ = policy(asked, starts, True, caches)
        for cache, row in enumerate(asked.tolist()):
            expected = [
                flag
                for first, end in pairwise(starts.tolist())
                for flag in slow_hits(
                    name, row[first:end], sizes[cache].tolist(), capacity, groups, halve_every
                )
            ]
            assert hit[cache].tolist() == expected


@pytest.mark.parametrize("name", POLICIES)
def test_large_caches_equal_a_slow_simulation(name: str) -> None:
    """More slots than the kernels look through at once, and counts that are halved often."""
    rng = np.random.default_rng(12)
    items, n = 160, 800
    for capacity, skew in ((70, 0.4), (130, 0.0)):
        weight = 1.0 / np.arange(1, items + 1) ** skew
        asked = rng.choice(items, (1, n), p=weight / weight.sum()).astype(np.int32)
        sizes = rng.integers(1, 3, (1, items))
        halve_every = 90 if name == "lfu-aging" else 0
        policy = caching.policy_named(f"{name}:{halve_every}" if halve_every else name)
        hit, _ = policy(asked, np.array([0, n]), True, Caches(sizes, capacity, 4))
        row = asked[0].tolist()
        assert hit[0].tolist() == slow_hits(name, row, sizes[0].tolist(), capacity, 4, halve_every)


@pytest.mark.parametrize("name", [name for name in POLICIES if name not in WHOLE])
def test_block_by_block_is_the_same(name: str) -> None:
    """What a cache holds goes on over any cut into calls."""
    rng = np.random.default_rng(2)
    for _ in range(40):
        asked, _, sizes, capacity = random_case(rng, True)
        n = asked.shape[1]
        caches = Caches(sizes, capacity)
        whole, _ = POLICIES[name](asked, np.array([0, n]), True, caches)
        cuts = sorted({0, n, *rng.integers(0, n + 1, 3).tolist()})
        parts, state = [], None
        for first, end in pairwise(cuts):
            block = np.ascontiguousarray(asked[:, first:end])
            hit, state = POLICIES[name](
                block, np.array([0, end - first]), first == 0, caches, state
            )
            parts.append(hit)
        assert np.array_equal(np.concatenate(parts, axis=1), whole)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("name", [name for name in eviction.EVICTIONS if name not in WHOLE])
def test_the_policies_of_a_run_choose_the_same(name: str, groups: int) -> None:
    """What the engine calls one expert at a time agrees with the compiled loop of that name."""
    rng = np.random.default_rng(3)
    replay = caching.replayed(eviction.EVICTIONS[name])
    for _ in range(40):
        asked, starts, sizes, _ = random_case(rng, False, groups)
        items = sizes.shape[1]
        capacity = int(rng.integers(1, items // groups + 1)) * groups
        caches = Caches(sizes, capacity, groups)
        expected, _ = POLICIES[name](asked, starts, True, caches)
        assert np.array_equal(replay(asked, starts, True, caches)[0], expected)


# --- optimality and laws -------------------------------------------------------------------------


def most_hits(sequence: Sequence[int], capacity: int) -> int:
    """The most hits that any choice of victims gives: every one is tried."""
    best = {frozenset[int](): 0}
    for item in sequence:
        after: dict[frozenset[int], int] = {}
        for held, hits in best.items():
            if item in held:
                found = [(held, hits + 1)]
            elif len(held) < capacity:
                found = [(held | {item}, hits)]
            else:
                found = [(held - {victim} | {item}, hits) for victim in sorted(held)]
            for contents, count in found:
                after[contents] = max(after.get(contents, -1), count)
        best = after
    return max(best.values())


def test_belady_is_optimal() -> None:
    """Equal to the best of all choices."""
    rng = np.random.default_rng(4)
    for _ in range(60):
        items = int(rng.integers(3, 7))
        sequence = rng.integers(0, items, 30).tolist()
        capacity = int(rng.integers(1, items))
        assert sum(hits_of("belady", sequence, capacity, items)) == most_hits(sequence, capacity)


def test_no_demand_policy_beats_belady() -> None:
    """1,000 random traces of equal sizes, with skew, gaps and resets, per layer and pooled."""
    rng = np.random.default_rng(5)
    compared = 0
    for trace in range(1000):
        groups = 1 + 2 * (trace % 2)
        asked, starts, sizes, _ = random_case(rng, False, groups)
        capacity = int(rng.integers(1, sizes.shape[1] + 1))
        caches = Caches(sizes, capacity, groups)
        bound = POLICIES["belady"](asked, starts, True, caches)[0].sum(axis=1)
        for name, policy in POLICIES.items():
            hits = policy(asked, starts, True, caches)[0].sum(axis=1)
            assert (hits <= bound).all(), name
            compared += len(hits)
    assert compared >= 1000 * len(POLICIES)


def test_a_larger_lru_cache_holds_all_that_a_smaller_one_does() -> None:
    """Every hit of a cache is one of each larger cache: the contents are nested."""
    rng = np.random.default_rng(6)
    for _ in range(60):
        asked, starts, sizes, _ = random_case(rng, False)
        items = sizes.shape[1]
        flags = [
            caching.lru(asked, starts, True, of_equal_size(len(asked), items, capacity))[0]
            for capacity in range(1, items + 1)
        ]
        for smaller, larger in pairwise(flags):
            assert not (smaller & ~larger).any()
        # All fit: only first uses are misses.
        first, _ = caching.first_uses(asked, starts, True, items)
        assert np.array_equal(flags[-1], (asked >= 0) & ~first)


@pytest.mark.parametrize("name", POLICIES)
def test_what_fits_as_a_whole_is_missed_once(name: str) -> None:
    """With room for all items, hits are all but the first uses."""
    rng = np.random.default_rng(7)
    asked, starts, sizes, _ = random_case(rng, False)
    hit, _ = POLICIES[name](asked, starts, True, Caches(sizes, sizes.shape[1]))
    first, _ = caching.first_uses(asked, starts, True, sizes.shape[1])
    assert np.array_equal(hit, (asked >= 0) & ~first)


@pytest.mark.parametrize("skew", [0.0, 0.6, 1.0, 1.4])
@pytest.mark.parametrize(("experts", "capacity"), [(64, 8), (128, 32), (256, 16), (256, 128)])
def test_lru_is_ches_approximation(skew: float, experts: int, capacity: int) -> None:
    """Independent references: H. Che, Y. Tung and Z. Wang, IEEE JSAC 20(7), 2002, within 0.01."""
    weight = 1.0 / np.arange(1, experts + 1) ** skew
    weight /= weight.sum()
    time = brentq(lambda t: np.sum(1 - np.exp(-weight * t)) - capacity, 1e-6, 1e9)
    expected = float(np.sum(weight * (1 - np.exp(-weight * time))))
    rng = np.random.default_rng([8, experts, capacity])
    n, warm_up = 300_000, 20_000
    asked = rng.choice(experts, (1, n), p=weight).astype(np.int32)
    hit, _ = caching.lru(asked, np.array([0, n]), True, of_equal_size(1, experts, capacity))
    assert hit[0, warm_up:].mean() == pytest.approx(expected, abs=0.01)


def test_lfu_under_independent_references_keeps_the_favourites() -> None:
    """Its hit rate goes to the sum of the largest probabilities."""
    experts, capacity, n = 64, 16, 400_000
    weight = 1.0 / np.arange(1, experts + 1)
    weight /= weight.sum()
    asked = np.random.default_rng(9).choice(experts, (1, n), p=weight).astype(np.int32)
    hit, _ = caching.lfu(asked, np.array([0, n]), True, of_equal_size(1, experts, capacity))
    # A newcomer always enters, so that one slot is spent on what was missed last.
    kept = weight[: capacity - 1].sum()
    below = weight[capacity - 1 :]
    expected = kept + (below**2).sum() / below.sum()
    assert hit[0, n // 2 :].mean() == pytest.approx(expected, abs=0.01)


# --- the functions for others --------------------------------------------------------------------


def test_belady_and_static_hits() -> None:
    """Counted per layer and capacity; int16 will do. The static choice has a place of its own for
    what it does not keep, so that it is below Belady's policy with one slot more.
    """
    rng = np.random.default_rng(10)
    accesses = rng.integers(-1, 8, (3, 400)).astype(np.int16)
    reset = rng.random(400) < 0.02
    capacities = [1, 2, 4, 5, 8]
    found = caching.belady_hits(accesses, reset, capacities, 8)
    static = caching.static_hits(accesses, reset, capacities, 8)
    starts = [0, *(np.flatnonzero(reset[1:]) + 1).tolist(), 400]
    for layer in range(3):
        row = accesses[layer].tolist()
        parts = [row[first:end] for first, end in pairwise(starts)]
        assert found[2, layer] == sum(sum(slow_hits("belady", p, [1] * 8, 4)) for p in parts)
        counts = [sorted((p.count(e) for e in range(8)), reverse=True)[:4] for p in parts]
        assert static[2, layer] == sum(max(uses - 1, 0) for part in counts for uses in part)
    assert (static[[0, 2]] <= found[[1, 3]]).all()
    assert np.array_equal(static[4], found[4])
    assert (np.diff(found, axis=0) >= 0).all()


def test_names() -> None:
    """Known ones, an argument, the nearest one, and a policy of the user's."""
    assert caching.policy_named("lru") is caching.lru
    for text, part in [
        ("lur", "did you mean 'lru'"),
        ("lfu-aging:0", "whole number from 1"),
        ("lfu-aging:x", "whole number from 1"),
        ("lru:4", "takes no argument"),
        ("no.such:thing", "cannot be imported"),
    ]:
        with pytest.raises(InputError, match=part):
            caching.policy_named(text)
    own = caching.policy_named("simulator.policies.eviction:lru")
    asked, starts, sizes, capacity = random_case(np.random.default_rng(11), True)
    caches = Caches(sizes, capacity)
    expected, _ = caching.lru(asked, starts, True, caches)
    assert np.array_equal(own(asked, starts, True, caches)[0], expected)


def test_a_policy_that_chooses_nobody_is_told() -> None:
    """An index that is none of the residents' is the user's to mend."""
    policy = caching.replayed(lambda _: eviction.Eviction(lambda residents, _: len(residents)))
    asked = np.array([[0, 1]], dtype=np.int32)
    with pytest.raises(InputError, match="chose 1 of 1 residents"):
        policy(asked, np.array([0, 2]), True, of_equal_size(1, 2, 1))


@pytest.mark.parametrize(("capacity", "groups"), [(0, 1), (2, 3)])
def test_impossible_caches(capacity: int, groups: int) -> None:
    """No capacity, and layers that do not divide the items."""
    with pytest.raises(ValueError, match=r"must be 1 or more|cannot be those"):
        of_equal_size(1, 4, capacity, groups)
