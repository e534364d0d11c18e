"""Which resident expert makes room.

An eviction policy is made once per run and GPU from a `Setup`. It is asked to `choose` among the
residents of a pool whenever an expert needs room, and, if it wants to be, told of every access
(`seen`). It sees the past only; those listed in `ORACLES` are also handed the next uses.

    def mine(setup: Setup) -> Eviction:
        return Eviction(lambda residents, coming: 0)  # whatever stands first

is a policy of one's own, written `eviction: package.module:mine`. The policies here choose as those
of the same name in `simulator.policies.caching` do, which replays a trace without times.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from simulator.errors import InputError

HIT, LATE, MISS, AHEAD = range(4)
"""What `seen` is told: resident, under way, not there, or fetched ahead of any use."""

NEVER = 2**62
"""Next use of an expert that is not used again as far as is known."""

AGE_AFTER = 128
"""Accesses of a cache after which `lfu-aging` halves its counts, per slot of the cache (ours)."""

NextUse = Callable[[int, int], int]
"""(layer, expert) -> place of its next access in the order of accesses, `NEVER` if there is none"""


class Setup(NamedTuple):
    """What a policy may know beforehand.

    layers: MoE layers; experts, slots: per layer; pooled: the slots of all layers are one pool, not
    one for each layer; next_use: of the GPU, for those in `ORACLES`, else None.
    """

    layers: int
    experts: int
    slots: int
    pooled: bool
    next_use: NextUse | None = None


class Resident(Protocol):
    """What a policy sees of an expert that may go: times count accesses of the GPU."""

    @property
    def layer(self) -> int:
        """Its MoE layer."""

    @property
    def expert(self) -> int:
        """Which expert of the layer."""

    @property
    def last_use(self) -> int:
        """Number of the last access, or of the prefetch that brought it."""

    @property
    def uses(self) -> int:
        """Accesses since it came."""

    @property
    def size(self) -> float:
        """Its size, relative to a slot."""


class Coming(NamedTuple):
    """The expert that needs room. ahead: it is fetched before its use."""

    layer: int
    expert: int
    ahead: bool


Choose = Callable[[Sequence[Resident], Coming], int]
"""The index of the resident that goes; it is asked again until there is room."""

Seen = Callable[[int, int, int], None]
"""Told (layer, expert, what) of each access and prefetch, before room is made for it."""


class Eviction(NamedTuple):
    """A policy as the engine calls it."""

    choose: Choose
    seen: Seen | None = None


Maker = Callable[[Setup], Eviction]


def made(maker: Maker, setup: Setup) -> Eviction:
    """The policy that `maker` makes; InputError where a function of the user's makes none, and
    when it chooses what is no index of a resident.
    """
    policy: object = maker(setup)
    if maker in EVICTIONS.values() and isinstance(policy, Eviction):
        return policy
    name = getattr(maker, "__name__", maker)
    if not isinstance(policy, Eviction):
        raise InputError(
            f"eviction {name}: returned {policy!r:.40}; write a function that returns an Eviction "
            "of simulator.policies.eviction"
        )
    choose = policy.choose

    def checked(residents: Sequence[Resident], coming: Coming) -> int:
        count = len(residents)
        chosen: object = choose(residents, coming)
        if not isinstance(chosen, int | np.integer) or not 0 <= chosen < count:
            raise InputError(
                f"eviction {name}: chose {chosen!r:.40} of {count} residents; return the index of "
                "one"
            )
        return int(chosen)

    return policy._replace(choose=checked)


def lru(_: Setup) -> Eviction:
    """The least recently used."""

    def choose(residents: Sequence[Resident], _: Coming) -> int:
        oldest = residents[0]
        for resident in residents:
            if resident.last_use < oldest.last_use:
                oldest = resident
        return residents.index(oldest)

    return Eviction(choose)


def lfu(setup: Setup) -> Eviction:
    """The least often used since the start of the run, among equals the least recently used."""
    return _by_count(setup, 0)


def lfu_aging(setup: Setup) -> Eviction:
    """As `lfu`, all counts halved after every `AGE_AFTER` accesses per slot of a cache."""
    capacity = setup.slots * setup.layers if setup.pooled else setup.slots
    return _by_count(setup, AGE_AFTER * capacity)


def _by_count(setup: Setup, halve_every: int) -> Eviction:
    counts = np.zeros((setup.layers, setup.experts), dtype=np.int64).tolist()
    accesses = [0] * setup.layers  # of each cache; one for all layers if pooled

    def seen(layer: int, expert: int, what: int) -> None:
        if what == AHEAD:
            return
        cache = 0 if setup.pooled else layer
        if halve_every and accesses[cache] and accesses[cache] % halve_every == 0:
            for at in range(setup.layers) if setup.pooled else (layer,):
                counts[at] = [count >> 1 for count in counts[at]]
        accesses[cache] += 1
        counts[layer][expert] += 1

    def choose(residents: Sequence[Resident], _: Coming) -> int:
        ranks = [(counts[r.layer][r.expert], r.last_use) for r in residents]
        return ranks.index(min(ranks))

    return Eviction(choose, seen)


def least_stale(setup: Setup) -> Eviction:
    """What the running pass reaches last: of the layer passed most recently, the least recently
    used; the layer it is at comes last. With a cache per layer this is LRU.
    """

    def choose(residents: Sequence[Resident], coming: Coming) -> int:
        ranks = [((coming.layer - r.layer - 1) % setup.layers, r.last_use) for r in residents]
        return ranks.index(min(ranks))

    return Eviction(choose)


def belady(setup: Setup) -> Eviction:
    """What is next used last. It needs the future: the bound for demand fetches of equal sizes."""
    next_use = setup.next_use
    assert next_use is not None

    def choose(residents: Sequence[Resident], _: Coming) -> int:
        ranks = [(-next_use(r.layer, r.expert), r.last_use) for r in residents]
        return ranks.index(min(ranks))

    return Eviction(choose)


Item = tuple[int, int]


class _Arc:
    """One cache of ARC: T1 and T2 hold what is resident, seen once and again, B1 and B2 what has
    left either; each from the oldest on.

    N. Megiddo and D. S. Modha, "ARC: A Self-Tuning, Low Overhead Replacement Cache", FAST 2003,
    figure 4; lengths count experts, whatever their sizes. One fetched ahead has not been seen yet.
    """

    def __init__(self, capacity: float) -> None:
        self.capacity = capacity
        self.aim = 0.0  # what T1 should take
        self.lists: tuple[OrderedDict[Item, None], ...] = tuple(OrderedDict() for _ in range(4))
        self.ahead: set[Item] = set()
        self.from_b2 = False
        self.forget = False
        self._into: tuple[Item, int] | None = None

    def _settle(self) -> None:
        """Put in what room was made for since."""
        if self._into is not None:
            item, which = self._into
            self.lists[which][item] = None
            self._into = None

    def seen(self, item: Item, what: int) -> None:
        self._settle()
        t1, t2, b1, b2 = self.lists
        self.from_b2 = self.forget = False
        if what in (HIT, LATE):
            first = item in self.ahead
            self.ahead.discard(item)
            t1.pop(item, None)
            t2.pop(item, None)
            (t1 if first else t2)[item] = None
            return
        if what == AHEAD:
            self.ahead.add(item)
            b1.pop(item, None)
            b2.pop(item, None)
        elif item in b1:
            self.aim = min(self.aim + max(len(b2) / len(b1), 1.0), self.capacity)
            del b1[item]
            self._into = (item, 1)
            return
        elif item in b2:
            self.aim = max(self.aim - max(len(b1) / len(b2), 1.0), 0.0)
            del b2[item]
            self.from_b2 = True
            self._into = (item, 1)
            return
        if len(t1) + len(b1) >= self.capacity:
            self.forget = not b1
            if b1:
                b1.popitem(last=False)
        elif b2 and sum(map(len, self.lists)) >= 2 * self.capacity:
            b2.popitem(last=False)
        self._into = (item, 0)

    def choose(self, residents: Sequence[Resident]) -> int:
        t1, t2, b1, b2 = self.lists
        at = {(r.layer, r.expert): index for index, r in enumerate(residents)}
        once = next((item for item in t1 if item in at), None)
        again = next((item for item in t2 if item in at), None)
        more = len(t1) > self.aim or (self.from_b2 and len(t1) == self.aim)
        if once is not None and (more or self.forget or again is None):
            del t1[once]
            self.ahead.discard(once)
            if not self.forget:  # T1 alone fills the cache: what leaves it is not remembered
                b1[once] = None
            return at[once]
        assert again is not None
        del t2[again]
        b2[again] = None
        return at[again]


def arc(setup: Setup) -> Eviction:
    """Adaptive replacement: between recency and frequency, by what was missed after it left."""
    if setup.pooled:
        caches = [_Arc(setup.slots * setup.layers)] * setup.layers
    else:
        caches = [_Arc(setup.slots) for _ in range(setup.layers)]
    return Eviction(
        lambda residents, coming: caches[coming.layer].choose(residents),
        lambda layer, expert, what: caches[layer].seen((layer, expert), what),
    )


EVICTIONS: dict[str, Maker] = {
    "lru": lru,
    "lfu": lfu,
    "lfu-aging": lfu_aging,
    "arc": arc,
    "least-stale": least_stale,
    "belady": belady,
}
ORACLES = frozenset({"belady"})
