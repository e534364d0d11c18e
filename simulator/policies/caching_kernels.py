"""Compiled loops over recorded accesses, one for each way of choosing what leaves a cache.

Shared by all of them: `accesses` int32 [caches, n], the item asked for, -1 = nothing recorded;
`starts` int64 [segments + 1], where segments begin and, last, n; `fresh`: whether the first segment
begins with empty caches (every other one does); `sizes` int64 [caches, items] and `capacity` in the
same unit; `hit` bool [caches, n], filled. The other arrays are what a cache holds, kept by the
caller from block to block and set up by the first segment that is fresh. On a miss items leave
until the new one fits; one that is larger than the capacity is not kept, and nothing leaves for it.

All in one file, since numba's cache on disk looks only at the file of a compiled function.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from simulator.compiled import compiled

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

# Lists of ARC (Megiddo and Modha): seen once, seen again, and what has left either.
T1, T2, B1, B2 = 0, 1, 2, 3
LANES = 32
# Slots that LFU looks through at once, and the rank of one that is not in use.
GROUP = 32
EMPTY = np.int64(2**62)


@compiled
def lru_pass(
    accesses: Int32s,
    starts: Int64s,
    fresh: bool,
    sizes: Int64s,
    capacity: int,
    after: Int32s,
    before: Int32s,
    room: Int64s,
    hit: Bools,
) -> None:
    """Least recently used: a list in order of use. State: its links int32 [caches, items + 1], the
    last entry being both ends, -1 = not in the cache; `room` int64 [caches].
    """
    caches, items = sizes.shape
    ends = items
    for cache in range(caches):
        asked, size, found = accesses[cache], sizes[cache], hit[cache]
        older, newer = after[cache], before[cache]
        left = room[cache]
        for segment in range(len(starts) - 1):
            if segment > 0 or fresh:
                older[:] = -1
                older[ends] = newer[ends] = ends
                left = capacity
            for at in range(starts[segment], starts[segment + 1]):
                item = asked[at]
                if item < 0:
                    found[at] = False
                    continue
                behind = older[item]
                newest = older[ends]
                if behind >= 0:
                    found[at] = True
                    if newest == item:
                        continue
                    ahead = newer[item]
                    older[ahead] = behind
                    newer[behind] = ahead
                else:
                    found[at] = False
                    if size[item] > capacity:
                        continue
                    while left < size[item]:
                        victim = newer[ends]
                        newer[ends] = newer[victim]
                        older[newer[victim]] = ends
                        older[victim] = -1
                        left += size[victim]
                    left -= size[item]
                    newest = older[ends]
                older[item] = newest
                newer[item] = ends
                newer[newest] = item
                older[ends] = item
        room[cache] = left


@compiled
def least_stale_pass(
    accesses: Int32s,
    starts: Int64s,
    fresh: bool,
    sizes: Int64s,
    capacity: int,
    groups: int,
    after: Int32s,
    before: Int32s,
    room: Int64s,
    hit: Bools,
) -> None:
    """What the running pass reaches last: of the layer passed most recently, the least recently
    used. Item i is of layer i // (items / groups). State: as for `lru_pass`, one list for
    each layer, so links [caches, items + groups].
    """
    caches, items = sizes.shape
    per_group = items // groups
    for cache in range(caches):
        asked, size, found = accesses[cache], sizes[cache], hit[cache]
        older, newer = after[cache], before[cache]
        left = room[cache]
        for segment in range(len(starts) - 1):
            if segment > 0 or fresh:
                older[:] = -1
                for ends in range(items, items + groups):
                    older[ends] = newer[ends] = ends
                left = capacity
            for at in range(starts[segment], starts[segment + 1]):
                item = asked[at]
                found[at] = item >= 0 and older[item] >= 0
                if item < 0:
                    continue
                group = item // per_group
                if found[at]:
                    older[newer[item]] = older[item]
                    newer[older[item]] = newer[item]
                else:
                    if size[item] > capacity:
                        continue
                    passed = group
                    while left < size[item]:
                        # Backwards from the layer before the running one, which comes last.
                        passed = passed - 1 if passed > 0 else groups - 1
                        ends = items + passed
                        while left < size[item] and newer[ends] != ends:
                            victim = newer[ends]
                            newer[ends] = newer[victim]
                            older[newer[victim]] = ends
                            older[victim] = -1
                            left += size[victim]
                    left -= size[item]
                ends = items + group
                older[item] = older[ends]
                newer[item] = ends
                newer[older[ends]] = item
                older[ends] = item
        room[cache] = left


@compiled
def arc_pass(
    accesses: Int32s,
    starts: Int64s,
    fresh: bool,
    sizes: Int64s,
    capacity: int,
    after: Int32s,
    before: Int32s,
    member: npt.NDArray[np.int8],
    total: Int64s,
    target: Floats,
    hit: Bools,
) -> None:
    """Adaptive replacement. State: links int32 [caches, items + 4] of the four lists, `member` int8
    [caches, items], the list that an item is in, -1 for none; `total` int64 [caches, 4], the
    sizes in each; `target` float64 [caches], what T1 should take.

    N. Megiddo and D. S. Modha, "ARC: A Self-Tuning, Low Overhead Replacement Cache", FAST 2003,
    figure 4, with sums of sizes for lengths, and steps of the target as large as the item.
    """
    caches, items = sizes.shape
    for cache in range(caches):
        asked, size, found = accesses[cache], sizes[cache], hit[cache]
        older, newer, inside = after[cache], before[cache], member[cache]
        length = total[cache]
        aim = target[cache]
        for segment in range(len(starts) - 1):
            if segment > 0 or fresh:
                inside[:] = -1
                length[:] = 0
                aim = 0.0
                for ends in range(items, items + 4):
                    older[ends] = newer[ends] = ends
            for at in range(starts[segment], starts[segment + 1]):
                item = asked[at]
                found[at] = False
                if item < 0:
                    continue
                was = inside[item]
                wanted = size[item]
                if was in (T1, T2):
                    found[at] = True
                elif wanted > capacity:
                    continue
                elif was == B1:
                    step = max(length[B2] / length[B1], 1.0)
                    aim = min(aim + step * wanted, float(capacity))
                elif was == B2:
                    step = max(length[B1] / length[B2], 1.0)
                    aim = max(aim - step * wanted, 0.0)
                else:
                    while length[T1] + length[B1] + wanted > capacity:
                        # Forgotten: from what has left, and only if there is none from the cache.
                        _drop_oldest(
                            B1 if length[B1] > 0 else T1, items, older, newer, inside, length, size
                        )
                    while length[T1] + length[T2] + length[B1] + length[B2] + wanted > 2 * capacity:
                        _drop_oldest(B2, items, older, newer, inside, length, size)
                into = T1 if was < 0 else T2
                if not found[at]:
                    while length[T1] + length[T2] + wanted > capacity:
                        from_once = length[T1] > 0 and (
                            length[T1] > aim or (was == B2 and length[T1] == aim) or length[T2] == 0
                        )
                        source = T1 if from_once else T2
                        victim = _drop_oldest(source, items, older, newer, inside, length, size)
                        _put_newest(victim, source + B1, items, older, newer, inside, length, size)
                if was >= 0:
                    older[newer[item]] = older[item]
                    newer[older[item]] = newer[item]
                    length[was] -= wanted
                _put_newest(item, into, items, older, newer, inside, length, size)
        target[cache] = aim


@compiled
def _drop_oldest(
    which: int,
    items: int,
    older: Int32s,
    newer: Int32s,
    inside: npt.NDArray[np.int8],
    length: Int64s,
    size: Int64s,
) -> int:
    """Take the oldest item out of one of ARC's lists."""
    ends = items + which
    victim = newer[ends]
    newer[ends] = newer[victim]
    older[newer[victim]] = ends
    inside[victim] = -1
    length[which] -= size[victim]
    return int(victim)


@compiled
def _put_newest(
    item: int,
    which: int,
    items: int,
    older: Int32s,
    newer: Int32s,
    inside: npt.NDArray[np.int8],
    length: Int64s,
    size: Int64s,
) -> None:
    """Put an item that is in none of ARC's lists at the front of one."""
    ends = items + which
    older[item] = older[ends]
    newer[item] = ends
    newer[older[ends]] = item
    older[ends] = item
    inside[item] = which
    length[which] += size[item]


@compiled
def lfu_pass(
    accesses: Int32s,
    starts: Int64s,
    fresh: bool,
    sizes: Int64s,
    capacity: int,
    halve_every: int,
    count: Int64s,
    place: Int32s,
    holder: Int32s,
    free: Int32s,
    rank: Int64s,
    used_at: Int64s,
    low_rank: Int64s,
    low_used: Int64s,
    room: Int64s,
    clock: Int64s,
    hit: Bools,
) -> None:
    """Least frequently used since the caches were emptied, among equals the least recently used.

    Counts outlive eviction; all are halved, rounded down, after every `halve_every` accesses of a
    cache (0: never). State: `count` int64 [caches, items]; `place` int32 [caches, items], the
    slot of an item, -1 = none; by slot [caches, slots] `holder` int32 (its item), `rank` (its
    count, EMPTY for none) and `used_at` int64; `free` int32 [caches, slots], slots not in use;
    `low_rank`, `low_used` int64 [caches, slots / GROUP, rounded up], no slot of the group is before
    these; `room` int64 [caches] and `clock` int64 [caches, 2]: accesses so far, slots not in use.
    """
    caches, items = sizes.shape
    slots = rank.shape[1]
    groups = low_rank.shape[1]
    for cache in range(caches):
        asked, size, found = accesses[cache], sizes[cache], hit[cache]
        slot_of, held_by, unused = place[cache], holder[cache], free[cache]
        ranks, used, counts = rank[cache], used_at[cache], count[cache]
        lowest, oldest = low_rank[cache], low_used[cache]
        left, time, spare = room[cache], clock[cache, 0], clock[cache, 1]
        for segment in range(len(starts) - 1):
            if segment > 0 or fresh:
                slot_of[:] = -1
                counts[:] = 0
                ranks[:] = EMPTY
                lowest[:] = EMPTY
                for slot in range(slots):
                    unused[slot] = slots - 1 - slot
                left, time, spare = capacity, 0, slots
            for at in range(starts[segment], starts[segment + 1]):
                item = asked[at]
                if item < 0:
                    found[at] = False
                    continue
                if halve_every > 0 and time > 0 and time % halve_every == 0:
                    # Order is kept but for ties, which age decides: so the bounds start again.
                    for other in range(items):
                        counts[other] >>= 1
                    for slot in range(slots):
                        if ranks[slot] != EMPTY:
                            ranks[slot] >>= 1
                    lowest[:] = -1
                time += 1
                counts[item] += 1
                slot = slot_of[item]
                found[at] = slot >= 0
                if slot >= 0:
                    ranks[slot] = counts[item]
                    used[slot] = time
                    continue
                if size[item] > capacity:
                    continue
                while left < size[item]:
                    # Ranks only grow, so a group's bound holds until the group is looked at again.
                    looked_at, group, worst = -1, 0, 0
                    while True:
                        for other in range(groups):
                            if lowest[other] < lowest[group] or (
                                lowest[other] == lowest[group] and oldest[other] < oldest[group]
                            ):
                                group = other
                        if group == looked_at:
                            break
                        looked_at, worst = group, group * GROUP
                        for other in range(worst + 1, min(worst + GROUP, slots)):
                            if ranks[other] < ranks[worst] or (
                                ranks[other] == ranks[worst] and used[other] < used[worst]
                            ):
                                worst = other
                        lowest[group] = ranks[worst]
                        oldest[group] = used[worst]
                    victim = held_by[worst]
                    slot_of[victim] = -1
                    ranks[worst] = EMPTY
                    left += size[victim]
                    unused[spare] = worst
                    spare += 1
                left -= size[item]
                spare -= 1
                slot = unused[spare]
                slot_of[item] = slot
                held_by[slot] = item
                ranks[slot] = counts[item]
                used[slot] = time
                group = slot // GROUP
                if ranks[slot] < lowest[group]:
                    lowest[group] = ranks[slot]
                    oldest[group] = time
        room[cache], clock[cache, 0], clock[cache, 1] = left, time, spare


@compiled
def belady_pass(
    accesses: Int32s, starts: Int64s, sizes: Int64s, capacity: int, slots: int, hit: Bools
) -> None:
    """What is asked for again last or never (Belady's MIN); every segment begins empty.

    Keeps no state: a segment must be here as a whole. slots: how many items can be there at once.
    n + items must be below 2^31.
    """
    caches, items = sizes.shape
    n = accesses.shape[1]
    following = np.empty(n, dtype=np.int32)
    seen = np.empty(items, dtype=np.int32)
    slot_of = np.empty(items, dtype=np.int32)
    # Many slots are looked through in whole vectors; what is not in use holds -1.
    wide = slots if slots <= 8 else -(-slots // LANES) * LANES
    waiting = np.empty(wide, dtype=np.int32)
    free = np.empty(slots, dtype=np.int32)
    for cache in range(caches):
        asked, size, found = accesses[cache], sizes[cache], hit[cache]
        for segment in range(len(starts) - 1):
            # Where an item is asked for next; past the end, and for each item another place, if
            # never again. So a place alone says which item it is.
            for item in range(items):
                seen[item] = n + item
                slot_of[item] = -1
            for at in range(starts[segment + 1] - 1, starts[segment] - 1, -1):
                item = asked[at]
                if item >= 0:
                    following[at] = seen[item]
                    seen[item] = at
            waiting[:] = -1
            for slot in range(slots):
                free[slot] = slots - 1 - slot
            left, unused = capacity, slots
            for at in range(starts[segment], starts[segment + 1]):
                item = asked[at]
                if item < 0:
                    found[at] = False
                    continue
                slot = slot_of[item]
                found[at] = slot >= 0
                if slot < 0:
                    if size[item] > capacity:
                        continue
                    while left < size[item]:
                        last = waiting[0]
                        for other in range(wide):
                            last = max(last, waiting[other])
                        victim = asked[last] if last < n else last - n
                        left += size[victim]
                        waiting[slot_of[victim]] = -1
                        free[unused] = slot_of[victim]
                        unused += 1
                        slot_of[victim] = -1
                    left -= size[item]
                    unused -= 1
                    slot = free[unused]
                    slot_of[item] = slot
                waiting[slot] = following[at]


@compiled
def count_first(accesses: Int32s, starts: Int64s, fresh: bool, known: Bools, first: Bools) -> None:
    """Fill `first` bool [caches, n]: whether the item had not been asked for in the segment before.

    State: `known` bool [caches, items], what was asked for so far.
    """
    for cache in range(len(accesses)):
        seen = known[cache]
        for segment in range(len(starts) - 1):
            if segment > 0 or fresh:
                seen[:] = False
            for at in range(starts[segment], starts[segment + 1]):
                item = accesses[cache, at]
                first[cache, at] = item >= 0 and not seen[item]
                if item >= 0:
                    seen[item] = True
