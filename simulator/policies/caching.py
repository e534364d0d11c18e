"""Caches of experts replayed over recorded accesses, without times: what is there when asked for.

A policy of `POLICIES` takes accesses of caches [caches, n] in the order in which they came, and
says which were hits. What the caches hold goes from call to call, so that a recording can be
read block by block. The hit rate counts first uses as misses. An item is an expert of a layer (a
cache for each layer) or expert + experts x layer (one pool for all layers).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from simulator.errors import InputError
from simulator.policies import eviction
from simulator.spec.units import did_you_mean

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

State = Any  # what a policy keeps between calls: its own business
MAX_AGING = 10**12


@dataclass(frozen=True)
class Caches:
    """Caches of equal capacity.

    sizes: int64 [caches, items]; capacity: in the same unit; groups: layers that share a cache
    (items is a multiple of it); unit: what a slot is in that unit.
    """

    sizes: Int64s
    capacity: int
    groups: int = 1
    unit: int = 1

    def __post_init__(self) -> None:
        caches, items = self.sizes.shape
        if self.capacity < 1 or self.sizes.size == 0 or self.sizes.min() < 1:
            raise ValueError("capacity and sizes must be 1 or more")
        if items % self.groups or items >= 2**31 - self.groups or caches < 1:
            raise ValueError(f"{items} items cannot be those of {self.groups} layers")

    @property
    def most(self) -> int:
        """How many items can be in a cache at once."""
        return int(min(self.sizes.shape[1], max(1, self.capacity // int(self.sizes.min()))))

    @property
    def slots(self) -> int:
        """Items of one slot that a cache holds."""
        return max(1, self.capacity // self.unit)


def of_equal_size(caches: int, items: int, capacity: int, groups: int = 1) -> Caches:
    """Caches that hold `capacity` of `items` items each."""
    return Caches(np.ones((caches, items), dtype=np.int64), capacity, groups)


class Policy(Protocol):
    """One way of choosing what leaves.

    accesses int32 [caches, n], C-contiguous, -1 = nothing; starts int64 [segments + 1]: where
    segments begin, each with empty caches, and n at the end; the first one goes on from `state`
    unless `fresh`. Returns hit bool [caches, n] and the state for the next call. Those of
    `WHOLE` see a segment as a whole: they are called with fresh only, and keep no state.
    """

    def __call__(
        self, accesses: Int32s, starts: Int64s, fresh: bool, caches: Caches, state: State = None
    ) -> tuple[Bools, State]:
        """Replay accesses."""
        ...


def lru(
    accesses: Int32s, starts: Int64s, fresh: bool, caches: Caches, state: State = None
) -> tuple[Bools, State]:
    """The least recently used leaves."""
    from simulator.policies.caching_kernels import lru_pass

    held: State = _lists(caches, 1) if state is None else state
    hit = np.empty(accesses.shape, dtype=np.bool_)
    lru_pass(accesses, starts, fresh, caches.sizes, caches.capacity, *(*held, hit))
    return hit, held


def least_stale(
    accesses: Int32s, starts: Int64s, fresh: bool, caches: Caches, state: State = None
) -> tuple[Bools, State]:
    """What the running pass reaches last leaves: of the layer passed most recently, the least
    recently used. The layer that is running comes last. With a cache for each layer, LRU.
    """
    from simulator.policies.caching_kernels import least_stale_pass

    held: State = _lists(caches, caches.groups) if state is None else state
    hit = np.empty(accesses.shape, dtype=np.bool_)
    least_stale_pass(
        accesses, starts, fresh, caches.sizes, caches.capacity, caches.groups, *(*held, hit)
    )
    return hit, held


def _lists(caches: Caches, ends: int) -> tuple[Int32s, Int32s, Int64s]:
    count, items = caches.sizes.shape
    links = (np.empty((count, items + ends), dtype=np.int32) for _ in range(2))
    return *links, np.empty(count, dtype=np.int64)  # type: ignore[return-value]


def lfu(
    accesses: Int32s, starts: Int64s, fresh: bool, caches: Caches, state: State = None
) -> tuple[Bools, State]:
    """The least often used since the caches were emptied leaves, among equals the least recently
    used. Counts outlive eviction.
    """
    return _by_count(accesses, starts, fresh, caches, state, 0)


def lfu_aging(
    accesses: Int32s,
    starts: Int64s,
    fresh: bool,
    caches: Caches,
    state: State = None,
    halve_every: int | None = None,
) -> tuple[Bools, State]:
    """As `lfu`, all counts of a cache halved, rounded down, after every `halve_every` of its
    accesses since it was emptied (default: `eviction.AGE_AFTER` for each slot).
    """
    if halve_every is None:
        halve_every = eviction.AGE_AFTER * caches.slots
    return _by_count(accesses, starts, fresh, caches, state, halve_every)


def _by_count(
    accesses: Int32s, starts: Int64s, fresh: bool, caches: Caches, state: State, halve_every: int
) -> tuple[Bools, State]:
    from simulator.policies.caching_kernels import GROUP, lfu_pass

    count, items = caches.sizes.shape
    slots, groups = caches.most, -(-caches.most // GROUP)
    held = state
    if held is None:
        held = (
            np.empty((count, items), dtype=np.int64),
            np.empty((count, items), dtype=np.int32),
            np.empty((count, slots), dtype=np.int32),
            np.empty((count, slots), dtype=np.int32),
            np.empty((count, slots), dtype=np.int64),
            np.empty((count, slots), dtype=np.int64),
            np.empty((count, groups), dtype=np.int64),
            np.empty((count, groups), dtype=np.int64),
            np.empty(count, dtype=np.int64),
            np.empty((count, 2), dtype=np.int64),
        )
    hit = np.empty(accesses.shape, dtype=np.bool_)
    lfu_pass(accesses, starts, fresh, caches.sizes, caches.capacity, halve_every, *(*held, hit))
    return hit, held


def arc(
    accesses: Int32s, starts: Int64s, fresh: bool, caches: Caches, state: State = None
) -> tuple[Bools, State]:
    """Adaptive replacement (Megiddo and Modha, FAST 2003): between recency and frequency, by what
    is missed after it has left. With unequal sizes, lengths of its lists are sums of sizes.
    """
    from simulator.policies.caching_kernels import arc_pass

    count, items = caches.sizes.shape
    held = state
    if held is None:
        held = (
            np.empty((count, items + 4), dtype=np.int32),
            np.empty((count, items + 4), dtype=np.int32),
            np.empty((count, items), dtype=np.int8),
            np.empty((count, 4), dtype=np.int64),
            np.empty(count, dtype=np.float64),
        )
    hit = np.empty(accesses.shape, dtype=np.bool_)
    arc_pass(accesses, starts, fresh, caches.sizes, caches.capacity, *(*held, hit))
    return hit, held


def belady(
    accesses: Int32s, starts: Int64s, fresh: bool, caches: Caches, state: State = None
) -> tuple[Bools, State]:
    """What is asked for again last, or never, leaves: with equal sizes no policy that fetches on
    demand has more hits (L. A. Belady, IBM Systems Journal 5(2), 1966). With unequal sizes it is
    a heuristic.
    """
    from simulator.policies.caching_kernels import belady_pass

    if not fresh:
        raise ValueError("belady needs whole segments")
    if accesses.shape[1] + caches.sizes.shape[1] >= 2**31:
        raise ValueError(f"{accesses.shape[1]} accesses at once are too many; below 2^31 in all")
    hit = np.empty(accesses.shape, dtype=np.bool_)
    belady_pass(accesses, starts, caches.sizes, caches.capacity, caches.most, hit)
    return hit, None


POLICIES: dict[str, Policy] = {
    "lru": lru,
    "lfu": lfu,
    "lfu-aging": lfu_aging,
    "arc": arc,
    "least-stale": least_stale,
    "belady": belady,
}
WHOLE = frozenset({"belady"})


def policy_named(text: str, known: Mapping[str, Policy] = POLICIES) -> Policy:
    """The policy that a name stands for; lfu-aging may have its accesses between halvings behind a
    colon, and "package.module:function" is a maker of `simulator.policies.eviction`.

    Raises InputError with the nearest name.
    """
    if text in known:
        return known[text]
    name, colon, argument = text.partition(":")
    if colon and name == "lfu-aging":
        if not (argument.isascii() and argument.isdigit() and 1 <= int(argument) <= MAX_AGING):
            raise InputError(
                f"policy {text!r}: write the accesses after which counts are halved, a whole "
                "number from 1, as in lfu-aging:512"
            )
        return partial(lfu_aging, halve_every=int(argument))
    if colon and name in known:
        raise InputError(f"policy {text!r}: {name} takes no argument; write {name}")
    if colon and argument.isidentifier():
        from simulator.policies.pick import pick

        return replayed(pick("policy", {}, text))
    raise InputError(
        f"no policy {text!r}{did_you_mean(name, list(known))}; known: {', '.join(known)}, "
        "or package.module:function"
    )


@dataclass
class _Held:
    """A resident as a policy of the user sees it (`eviction.Resident`)."""

    layer: int
    expert: int
    last_use: int
    uses: int
    size: float


def replayed(make: eviction.Maker) -> Policy:
    """A policy of the engine's kind as one of this module; at the speed of Python.

    It is made anew for each cache whenever that is emptied, and never given the future.
    """

    def replay(
        accesses: Int32s, starts: Int64s, fresh: bool, caches: Caches, state: State = None
    ) -> tuple[Bools, State]:
        count = len(caches.sizes)
        state = [None] * count if state is None else state
        hit = np.zeros(accesses.shape, dtype=np.bool_)
        for cache in range(count):
            for at, (first, end) in enumerate(pairwise(starts)):
                if at > 0 or fresh:
                    state[cache] = (eviction.made(make, _setup(caches)), {}, [0])
                _replay(accesses[cache, first:end], hit[cache, first:end], caches, cache, state)
        return hit, state

    return replay


def _setup(caches: Caches) -> eviction.Setup:
    count, items = caches.sizes.shape
    pooled = caches.groups > 1
    layers = caches.groups if pooled else count
    slots = max(1, caches.slots // caches.groups)
    return eviction.Setup(layers, items // caches.groups, slots, pooled)


def _replay(asked: Int32s, hit: Bools, caches: Caches, cache: int, state: State) -> None:
    """Play one segment, or a part of one, of one cache."""
    policy, held, clock = state[cache]
    experts = caches.sizes.shape[1] // caches.groups
    sizes = caches.sizes[cache]
    room = caches.capacity - sum(int(sizes[item]) for item in held)
    for at, item in enumerate(asked.tolist()):
        if item < 0:
            continue
        clock[0] += 1
        layer, expert = divmod(item, experts) if caches.groups > 1 else (cache, item)
        hit[at] = item in held
        if policy.seen is not None:
            policy.seen(layer, expert, eviction.HIT if hit[at] else eviction.MISS)
        if hit[at]:
            held[item].last_use = clock[0]
            held[item].uses += 1
            continue
        size = int(sizes[item])
        if size > caches.capacity:
            continue
        while room < size:
            items = list(held)
            chosen = policy.choose(list(held.values()), eviction.Coming(layer, expert, False))
            del held[items[chosen]]
            room += int(sizes[items[chosen]])
        held[item] = _Held(layer, expert, clock[0], 1, size / caches.unit)
        room -= size


def first_uses(
    accesses: Int32s, starts: Int64s, fresh: bool, items: int, state: State = None
) -> tuple[Bools, State]:
    """Which accesses [caches, n] are the first of their item since the caches were emptied."""
    from simulator.policies.caching_kernels import count_first

    known = np.empty((len(accesses), items), dtype=np.bool_) if state is None else state
    first = np.empty(accesses.shape, dtype=np.bool_)
    count_first(accesses, starts, fresh, known, first)
    return first, known


def segment_starts(reset: npt.NDArray[np.bool_]) -> Int64s:
    """Where segments begin, and n: from reset bool [n], whether caches are emptied before that
    access. The first access begins a segment whether it says so or not.
    """
    inner = np.flatnonzero(reset[1:]) + 1
    return np.concatenate(([0], inner, [len(reset)])).astype(np.int64)


def belady_hits(
    accesses: npt.NDArray[np.integer[Any]],
    reset: npt.NDArray[np.bool_],
    capacities: Sequence[int],
    experts: int,
) -> Int64s:
    """Hits of Belady's policy, int64 [capacities, layers]: the most that any policy can have that
    fetches on demand, and keeps what it has just fetched.

    accesses: int16 or int32 [layers, n], the experts asked for in each layer, -1 = nothing; reset:
    bool [n], whether all caches are emptied before that access; capacities: experts per layer.
    """
    asked = np.ascontiguousarray(accesses, dtype=np.int32)
    starts = segment_starts(reset)
    hits = np.zeros((len(capacities), len(asked)), dtype=np.int64)
    for at, capacity in enumerate(capacities):
        hit, _ = belady(asked, starts, True, of_equal_size(len(asked), experts, capacity))
        hits[at] = counted(hit)
    return hits


def static_hits(
    accesses: npt.NDArray[np.integer[Any]],
    reset: npt.NDArray[np.bool_],
    capacities: Sequence[int],
    experts: int,
) -> Int64s:
    """Hits, int64 [capacities, layers], of keeping the experts that a segment uses most, known
    beforehand; their first use is a miss. Arguments as for `belady_hits`. The others pass
    through a place of their own, so that this can be above Belady's policy of as many slots (and
    not above that of one slot more).
    """
    hits = np.zeros((len(capacities), len(accesses)), dtype=np.int64)
    starts = segment_starts(reset)
    for first, end in pairwise(starts):
        for layer, row in enumerate(accesses[:, first:end]):
            counts = np.sort(np.bincount(row[row >= 0], minlength=experts))[::-1]
            gained = np.concatenate(([0], np.cumsum(np.maximum(counts - 1, 0))))
            hits[:, layer] += gained[np.minimum(capacities, experts)]
    return hits


def counted(flags: Bools) -> Int64s:
    """How many are set in each row, int64 [rows]."""
    # Row by row: along an axis of an array numpy takes ten times as long.
    return np.array([np.count_nonzero(row) for row in flags], dtype=np.int64)
