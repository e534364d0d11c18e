"""Who goes when an expert needs room: the policies of `simulator.policies.eviction`, compiled."""

from __future__ import annotations

import numpy as np

from simulator.compiled import inlined
from simulator.engine import core
from simulator.engine import memory_tables as t
from simulator.policies.eviction import AHEAD, HIT, LATE


@inlined
def seen(m: t.Tables, gpu: int, layer: int, expert: int, what: int) -> None:
    """Tell the policy of an access or a prefetch, before room is made for it."""
    policy = m.of[t.POLICY]
    if policy == t.LFU and what != AHEAD:
        halve = m.of[t.HALVE]
        if halve > 0 and m.accessed[gpu, layer] > 0 and m.accessed[gpu, layer] % halve == 0:
            for other in range(m.of[t.EXPERTS]):
                m.often[gpu, layer, other] >>= 1
        m.accessed[gpu, layer] += 1
        m.often[gpu, layer, expert] += 1
    elif policy == t.ARC:
        _arc_seen(m, gpu, layer, expert, what)


@inlined
def _arc_put(
    arc_i: t.Longs,
    list_of: t.Tiny,
    stamp: t.Longs,
    gpu: int,
    layer: int,
    expert: int,
    which: int,
) -> None:
    """Put an expert at the young end of a list of ARC, -1: of none, out of that in which it is."""
    was = list_of[gpu, layer, expert]
    if was >= 0:
        arc_i[gpu, layer, was] -= 1
    list_of[gpu, layer, expert] = which
    if which >= 0:
        arc_i[gpu, layer, which] += 1
        arc_i[gpu, layer, t.CLOCK] += 1
        stamp[gpu, layer, expert] = arc_i[gpu, layer, t.CLOCK]


@inlined
def _arc_oldest(list_of: t.Tiny, stamp: t.Longs, gpu: int, layer: int, which: int) -> int:
    """The expert at the old end of a list of ARC that is not empty."""
    oldest = -1
    for expert in range(list_of.shape[2]):
        if list_of[gpu, layer, expert] == which and (
            oldest < 0 or stamp[gpu, layer, expert] < stamp[gpu, layer, oldest]
        ):
            oldest = expert
    return oldest


@inlined
def _arc_seen(m: t.Tables, gpu: int, layer: int, expert: int, what: int) -> None:
    arc_i = m.arc_i
    list_of = m.list_of
    stamp = m.stamp
    arc_f = m.arc_f
    capacity = m.of[t.SLOTS]
    into = arc_i[gpu, layer, t.INTO]
    if into >= 0:
        _arc_put(arc_i, list_of, stamp, gpu, layer, into, arc_i[gpu, layer, t.INTO_LIST])
        arc_i[gpu, layer, t.INTO] = -1
    arc_i[gpu, layer, t.FROM_B2] = 0
    arc_i[gpu, layer, t.FORGET] = 0
    which = list_of[gpu, layer, expert]
    if what in (HIT, LATE):
        _arc_put(
            arc_i, list_of, stamp, gpu, layer, expert, t.T1 if m.ahead[gpu, layer, expert] else t.T2
        )
        m.ahead[gpu, layer, expert] = False
        return
    arc_i[gpu, layer, t.INTO] = expert
    b1 = arc_i[gpu, layer, t.B1]
    b2 = arc_i[gpu, layer, t.B2]
    if what == AHEAD:
        m.ahead[gpu, layer, expert] = True
        if which in (t.B1, t.B2):
            _arc_put(arc_i, list_of, stamp, gpu, layer, expert, -1)
    elif which == t.B1:
        arc_f[gpu, layer] = min(arc_f[gpu, layer] + max(b2 / b1, 1.0), float(capacity))
        _arc_put(arc_i, list_of, stamp, gpu, layer, expert, -1)
        arc_i[gpu, layer, t.INTO_LIST] = t.T2
        return
    elif which == t.B2:
        arc_f[gpu, layer] = max(arc_f[gpu, layer] - max(b1 / b2, 1.0), 0.0)
        _arc_put(arc_i, list_of, stamp, gpu, layer, expert, -1)
        arc_i[gpu, layer, t.FROM_B2] = 1
        arc_i[gpu, layer, t.INTO_LIST] = t.T2
        return
    arc_i[gpu, layer, t.INTO_LIST] = t.T1
    b1 = arc_i[gpu, layer, t.B1]
    b2 = arc_i[gpu, layer, t.B2]
    t1 = arc_i[gpu, layer, t.T1]
    if t1 + b1 >= capacity:
        if b1 > 0:
            _arc_put(
                arc_i, list_of, stamp, gpu, layer, _arc_oldest(list_of, stamp, gpu, layer, t.B1), -1
            )
        else:
            arc_i[gpu, layer, t.FORGET] = 1
    elif b2 > 0 and t1 + b1 + b2 + arc_i[gpu, layer, t.T2] >= 2 * capacity:
        _arc_put(
            arc_i, list_of, stamp, gpu, layer, _arc_oldest(list_of, stamp, gpu, layer, t.B2), -1
        )


@inlined
def _arc_victim(m: t.Tables, net: core.Net, gpu: int, layer: int, idle: bool) -> int:
    """As `_Arc.choose` of `simulator.policies.eviction`."""
    arc_i = m.arc_i
    list_of = m.list_of
    stamp = m.stamp
    first = (gpu * m.of[t.LAYERS] + layer) * m.of[t.SLOTS]
    once = -1
    again = -1
    for slot in range(first, first + m.of[t.SLOTS]):
        expert = m.held[slot, t.EXPERT]
        if idle and not is_idle(m, net, gpu, layer, slot):
            continue
        since = stamp[gpu, layer, expert]
        if list_of[gpu, layer, expert] == t.T1:
            if once < 0 or since < stamp[gpu, layer, m.held[once, t.EXPERT]]:
                once = slot
        elif again < 0 or since < stamp[gpu, layer, m.held[again, t.EXPERT]]:
            again = slot
    t1 = arc_i[gpu, layer, t.T1]
    aim = m.arc_f[gpu, layer]
    more = t1 > aim or (arc_i[gpu, layer, t.FROM_B2] == 1 and t1 == aim)
    if once >= 0 and (more or arc_i[gpu, layer, t.FORGET] == 1 or again < 0):
        expert = m.held[once, t.EXPERT]
        m.ahead[gpu, layer, expert] = False
        _arc_put(
            arc_i,
            list_of,
            stamp,
            gpu,
            layer,
            expert,
            -1 if arc_i[gpu, layer, t.FORGET] == 1 else t.B1,
        )
        return once
    _arc_put(arc_i, list_of, stamp, gpu, layer, m.held[again, t.EXPERT], t.B2)
    return again


@inlined
def victim(m: t.Tables, net: core.Net, gpu: int, layer: int, idle: bool) -> int:
    """The slot whose expert goes, among all of a full layer or its idle ones (one at least)."""
    if m.of[t.POLICY] == t.ARC:
        return _arc_victim(m, net, gpu, layer, idle)
    counted = m.of[t.POLICY] == t.LFU
    first = (gpu * m.of[t.LAYERS] + layer) * m.of[t.SLOTS]
    found = -1
    least = np.int64(0)
    for slot in range(first, first + m.of[t.SLOTS]):
        if idle and not is_idle(m, net, gpu, layer, slot):
            continue
        count = m.often[gpu, layer, m.held[slot, t.EXPERT]] if counted else np.int64(0)
        if found < 0 or count < least or (count == least and m.last_use[slot] < m.last_use[found]):
            found = slot
            least = count
    return found


@inlined
def is_idle(m: t.Tables, net: core.Net, gpu: int, layer: int, slot: int) -> bool:
    """Whether an expert may go for a prefetch: loaded, unused and not predicted for its layer."""
    held = m.held
    expert = held[slot, t.EXPERT]
    if not loaded(held, net.op_f, slot):
        return False
    for k in range(held[slot, t.USED_BY]):
        if net.op_f[m.kernels[slot, k], core.END] < 0.0:
            return False
    for microbatch in range(m.of[t.MICROBATCHES]):
        for i in range(m.asked_n[gpu, microbatch, layer]):
            if m.asked[gpu, microbatch, layer, i] == expert:
                return False
    return True


@inlined
def loaded(held: t.Ints, op_f: t.Floats, slot: int) -> bool:
    """Whether the fetch of the expert in a slot is over."""
    fetch = held[slot, t.FETCH]
    return fetch < 0 or bool(op_f[fetch, core.END] >= 0.0)
