"""Which links can limit a route; the solvers need not look at the others.

A link whose traffic goes on to (or comes from) links that together can carry no more than it can is
never the one that is full. Where routes are sprayed, parts that are the same on all routes go into
the link's capacity, and of links with proportional parts the tightest stays.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.compiled import allocation_free, compiled

if TYPE_CHECKING:
    from simulator.cluster.routes import RouteTable

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Bools = NDArray[np.bool_]

ROUNDING = 1e-12  # fractions and capacities nearer than this are the same number


class Limits(NamedTuple):
    """The `bind_...` arrays and `capacity_bytes_per_s` of a `RouteTable`."""

    ptr: Longs
    link: Ints
    weight: Floats | None
    capacity_bytes_per_s: Floats


def limits(table: RouteTable) -> Limits:
    """The links that can limit each route of a table, and what they carry of it."""
    kept = _limiting(table)
    capacity, fraction = table.bandwidth_bytes_per_s, table.fraction
    weight = None
    if fraction is not None:
        # Where all routes have the same part of a link, it is a smaller link that each has all of.
        least, most = np.full(len(kept), np.inf), np.zeros(len(kept))
        np.minimum.at(least, table.crossed, fraction)
        np.maximum.at(most, table.crossed, fraction)
        alike = most - least <= ROUNDING * most
        capacity = np.where(alike, capacity / most, capacity)
        weight = np.where(alike[table.crossed], 1.0, fraction)
        kept &= ~_outdone(table, kept, weight, capacity)
    chosen = kept[table.crossed]
    ptr = np.concatenate(([0], np.cumsum(chosen)))[table.ptr]
    if weight is not None:
        weight = None if (weight[chosen] == 1.0).all() else weight[chosen]
    return Limits(ptr, table.crossed[chosen], weight, capacity)


def _limiting(table: RouteTable) -> NDArray[np.bool_]:
    """Which links can limit any route by what the links before and after them carry, bool [links].

    Works on the pairs of links that meet at a node, so on ports x ports of its largest switch.
    """
    count = len(table.links)
    node = {
        name: n for n, name in enumerate(dict.fromkeys(end for link in table.links for end in link))
    }
    tail = np.array([node[a] for a, _ in table.links], dtype=np.int64)
    head = np.array([node[b] for _, b in table.links], dtype=np.int64)
    onward = np.bincount(tail, minlength=len(node))
    start = np.cumsum(onward) - onward
    by_tail = np.argsort(tail, kind="stable")
    place = np.empty(count, dtype=np.int32)
    place[by_tail] = np.arange(count) - start[tail[by_tail]]
    first = np.concatenate(([0], np.cumsum(onward[head])))
    after, before = np.zeros((2, first[-1]))
    begins, ends = np.zeros((2, count), dtype=np.bool_)
    whole = table.fraction is None
    _neighbours(
        table.ptr,
        table.crossed,
        np.zeros(0) if table.fraction is None else table.fraction,
        np.zeros((0, 2), dtype=np.int32) if table.forks is None else table.forks,
        whole,
        first,
        place,
        after,
        before,
        begins,
        ends,
        np.zeros(int(np.diff(table.ptr).max(initial=0))),
    )
    pair = np.flatnonzero(after)
    one = np.searchsorted(first, pair, side="right") - 1
    other = by_tail[start[head[one]] + pair - first[one]]
    order = np.argsort(other, kind="stable")
    ptr = np.zeros((2, count + 1), dtype=np.int64)
    ptr[0, 1:] = np.cumsum(np.bincount(one, minlength=count))
    ptr[1, 1:] = np.cumsum(np.bincount(other, minlength=count))
    ptr[1] += pair.size
    return _limiting_links(
        ptr,
        np.concatenate((other, one[order])).astype(np.int32),
        np.concatenate((after[pair], before[pair][order])),
        ~np.stack((ends, begins)),
        table.bandwidth_bytes_per_s,
        whole,
    )


def _outdone(
    table: RouteTable, kept: NDArray[np.bool_], weight: Floats, capacity_bytes_per_s: Floats
) -> NDArray[np.bool_]:
    """Links of which all routes have parts as of another, tighter one, bool [links].

    weight: float64 [crossings]. Of links that are just as tight the first stays.
    """
    out = np.zeros(len(kept), dtype=np.bool_)
    chosen = kept[table.crossed]
    link = table.crossed[chosen]
    order = np.argsort(link, kind="stable")
    route = np.repeat(np.arange(table.count), np.diff(table.ptr))[chosen][order]
    parts = weight[chosen][order]
    bounds = np.searchsorted(link[order], np.arange(len(kept) + 1)).tolist()
    tightest: dict[bytes, list[int]] = {}
    for this in np.flatnonzero(kept).tolist():
        mine = slice(bounds[this], bounds[this + 1])
        alike = tightest.setdefault(blake2b(route[mine].tobytes(), digest_size=16).digest(), [])
        for at, that in enumerate(alike):
            ratio = parts[mine] / parts[bounds[that] : bounds[that + 1]]
            if np.ptp(ratio) <= ROUNDING * ratio[0]:
                looser = capacity_bytes_per_s[this] >= capacity_bytes_per_s[that] * ratio[0]
                out[this if looser else that] = True
                alike[at] = that if looser else this
                break
        else:
            alike.append(this)
    return out


@allocation_free
def _neighbours(
    ptr: Longs,
    crossed: Ints,
    fraction: Floats,
    forks: Ints,
    whole: bool,
    first: Longs,
    place: Ints,
    after: Floats,
    before: Floats,
    begins: Bools,
    ends: Bools,
    within: Floats,
) -> None:
    """Which links follow each other on a route, and what part of a node's traffic they take.

    The pair (a, b) of links is at first[a] + place[b] of after and before float64 [pairs], 0 where
    no route has it: the most that any route has of a (after) or of b (before) among all that goes
    through the node between them. begins, ends: bool [links], routes begin or end with it. whole:
    all fractions are 1, and fraction and forks empty. within: room for one route's crossings.
    """
    for route in range(ptr.size - 1):
        begin, end = ptr[route], ptr[route + 1]
        if whole:
            if end > begin:
                begins[crossed[begin]] = True
                ends[crossed[end - 1]] = True
            for at in range(begin, end - 1):
                pair = first[crossed[at]] + place[crossed[at + 1]]
                after[pair] = before[pair] = 1.0
            continue
        for at in range(begin, end):
            within[at - begin] = 0.0
            last = True
            for other in range(begin, end):
                if forks[other, 1] == forks[at, 1]:
                    within[at - begin] += fraction[other]
                if forks[other, 0] == forks[at, 1]:
                    last = False
            if last:
                ends[crossed[at]] = True
        for at in range(begin, end):
            fed = False
            for other in range(begin, end):
                if forks[other, 1] == forks[at, 0]:
                    fed = True
                    pair = first[crossed[other]] + place[crossed[at]]
                    total = within[other - begin]
                    after[pair] = max(after[pair], min(1.0, fraction[other] / total))
                    before[pair] = max(before[pair], min(1.0, fraction[at] / total))
            if not fed:
                begins[crossed[at]] = True


@compiled
def _limiting_links(
    ptr: Longs, to: Ints, part: Floats, passes: Bools, capacity: Floats, whole: bool
) -> Bools:
    """Which links can limit any route, bool [links]; exact, whatever the traffic.

    ptr int64 [2, links + 1], to int32, part float64: the links after and the links before each,
    with what part of their traffic is at most the link's. passes: bool [2, links], all that
    crosses it goes on, comes from another link. A link's traffic is at most the sum of the parts
    of those after it (or before it). If they can carry no more than it can, it is never the one
    that is full, and they vouch for it. One that is itself dropped is replaced by those that vouch
    for it; no link vouches for itself.
    """
    links = capacity.size
    kept = np.ones(links, dtype=np.bool_)
    given, given_end = np.zeros(links, dtype=np.int64), np.zeros(links, dtype=np.int64)
    voucher, voucher_part = np.empty(links + 1, dtype=np.int32), np.empty(links + 1)
    vouchers = 0
    total = np.zeros(links)
    stamp = np.full(links, -1, dtype=np.int64)
    touched, best = np.empty((2, links), dtype=np.int32), np.empty((2, links))
    stack, stack_part = np.empty(links + 1, dtype=np.int32), np.empty(links + 1)
    for link in range(links):
        count, least, chosen = np.zeros(2, dtype=np.int64), np.inf, -1
        for side in range(2):
            if not passes[side, link]:
                continue
            mark = 2 * link + side
            for at in range(ptr[side, link], ptr[side, link + 1]):
                stack[0], stack_part[0], height = to[at], part[at], 1
                while height > 0:
                    height -= 1
                    other, share = stack[height], stack_part[height]
                    known = stamp[other] == mark
                    stamp[other] = mark
                    if kept[other]:
                        if not known:
                            touched[side, count[side]] = other
                            count[side] += 1
                            total[other] = 0.0
                        total[other] = min(1.0, total[other] + share)
                    elif not (whole and known):
                        needed = height + given_end[other] - given[other]
                        if needed > stack.size:
                            stack = np.append(stack, np.empty(needed, dtype=np.int32))
                            stack_part = np.append(stack_part, np.empty(needed))
                        for index in range(given[other], given_end[other]):
                            stack[height] = voucher[index]
                            stack_part[height] = share * voucher_part[index]
                            height += 1
            if stamp[link] == mark:
                continue
            together = 0.0
            for index in range(count[side]):
                other = touched[side, index]
                best[side, index] = total[other]
                together += total[other] * capacity[other]
            if together < least:
                least, chosen = together, side
        if chosen >= 0 and least <= capacity[link] * (1.0 + ROUNDING):
            kept[link] = False
            needed = vouchers + count[chosen]
            if needed > voucher.size:
                voucher = np.append(voucher, np.empty(needed, dtype=np.int32))
                voucher_part = np.append(voucher_part, np.empty(needed))
            given[link] = vouchers
            for index in range(count[chosen]):
                voucher[vouchers] = touched[chosen, index]
                voucher_part[vouchers] = best[chosen, index]
                vouchers += 1
            given_end[link] = vouchers
    return kept
