"""The decisions of expert memories as compiled code, taken between two runs of the event core.

What `simulator.engine.memory` decides for one GPU, in its order and to the same result, for all
GPUs of a run: for memories with slots of equal experts per layer, filled from one source each, with
an eviction policy of `simulator.policies.eviction` that looks only at the past. A *stay* is an
expert in a slot from its fetch to its end.

State lies in arrays, as the tuple `Tables` (S: GPU, layer and slot as one number; E: experts;
K: micro-batches x chunks, the most kernels that use a stay in one step):

    of        int64 [FIXED]         what stays the same for a run (SHARED: K)
    at        int64 [PLACES]        lengths, and what is under decision
    slot_of   int32 [gpus, layers, E]       S of an expert, -1: not there
    held      int32 [S, 4]          expert (-1: free), fetch while not known to be over (else
                                    -1), its row in `stay_i` (-1: told), kernels
    kernels   int32 [S, K]          those that use it in this step
    last_use  int64 [S]             number of the last access (of the GPU)
    filled    int32 [gpus, layers]  slots taken
    uses      int64 [gpus]          accesses and prefetches so far
    added_s   float64 [gpus]        when a fetch was added last
    route     int32 [gpus, E]       of the weights, -1: held for good; wire_bytes float64 [routes]
    reached   int32 [gpus, microbatches]    the layer whose tokens came last
    asked     int16 [gpus, microbatches, layers, slots]     experts predicted, and how many
    asked_n   int32 [gpus, microbatches, layers]            (-1: nothing was)
    foreseen  int16 [gpus, microbatches, slots]             the same of the layer reached
    foreseen_n int32 [gpus, microbatches]
    wish_i    int32 [gpus, wishes, 5]       prefetches not begun: micro-batch, layer, expert, layer
                                    in which it was asked for, 1 = at once; wish_f: when (s)
    wishes    int32 [gpus]
    often     int64 [gpus, layers, E]       lfu: accesses so far; accessed int64 [gpus, layers]
    list_of   int8  [gpus, layers, E]       arc: the list (T1, T2, B1, B2) of an expert, -1: none
    stamp     int64 [gpus, layers, E]       arc: the order within the lists
    ahead     bool  [gpus, layers, E]       arc: fetched ahead and not used since
    arc_i     int64 [gpus, layers, 9]       arc: lengths of the lists, clock, from B2, forget, and
                                    what room was made for: expert (-1), list
    arc_f     float64 [gpus, layers]        arc: what T1 should take
    order, rows  int32 [asked for]          of this step: experts in the order of first need, rows
    ptr       int64 [tables * gpus + 1]     which of them belong to a table and GPU
    came      int64 [tables, gpus]          tokens there
    table_of  int32 [microbatches, chunks, layers]
    alone     float64 [most rows + 1, 3]    an expert by itself: seconds, FLOPs, bytes
    price_key int64 [2^n, 4], price float64 [2^n, 3]      the same of grouped kernels, hashed
    kernel_i  int32 [kernels, 8], kernel_f float64 [kernels, 3]     out: operation, expert, rows,
                                    micro-batch, chunk, layer, GPU, peer; tokens there (s), FLOPs,
                                    bytes
    stay_i    int32 [stays, 10], stay_f float64 [stays, 3]  step, micro-batch, layer, GPU, 1 =
                                    prefetch, expert, used, 1 = evicted, fetch, S; asked for, start
                                    and end of the fetch (s)
    accesses  int64 [gpus, step layers, 5]  out: hits, late hits, misses, foreseen, cancelled
    ids       int32 [ops]           numbers free for operations
    mine, mine_rows, fetches, own  int32 [E]        of one decision
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.compiled import inlined, on_top_of
from simulator.engine import core
from simulator.engine.shape import CHUNK, PER_CHUNK
from simulator.policies.eviction import AHEAD, HIT, LATE, MISS

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Shorts = NDArray[np.int16]

# of
GPUS, LAYERS, EXPERTS, SLOTS, SHARED, MICROBATCHES, KINDS, ALL_LAYERS, DENSE = range(9)
GATES, RESIDENT_FIRST, POLICY, HALVE, TILE, DEPTH = range(9, 15)
FIXED = 15
LRU, LFU, ARC = range(3)
# at
IDS, STAYS, KERNELS, FOUND, NEXT, PRICING, STEP = range(7)
OP, MICROBATCH, CHUNK_AT, LAYER, GPU, GROUPED, FETCHES, COMING, RESIDENTS = range(7, 16)
ROWS, TILES, CAME = range(16, 19)
PLACES = 19
# held; wish_i
EXPERT, FETCH, STAY, USED_BY = range(4)
W_MICROBATCH, W_LAYER, W_EXPERT, W_SINCE, W_AT_ONCE = range(5)
# stay_i, stay_f
S_STEP, S_MICROBATCH, S_LAYER, S_GPU, S_PREFETCH, S_EXPERT, S_USES, S_GONE, S_FETCH, S_SLOT = range(
    10
)
ASKED_S, START_S, END_S = range(3)
# arc_i
T1, T2, B1, B2, CLOCK, FROM_B2, FORGET, INTO, INTO_LIST = range(9)
FORESEEN, CANCELLED = 3, 4  # places in `accesses`

ROOM, PRICE = -1, -2  # answers: tables are too small; the price of a grouped kernel is not known


class Tables(NamedTuple):
    """The memories of a run (module docstring)."""

    of: Longs
    at: Longs
    slot_of: Ints
    held: Ints
    kernels: Ints
    last_use: Longs
    filled: Ints
    uses: Longs
    added_s: Floats
    route: Ints
    wire_bytes: Floats
    reached: Ints
    asked: Shorts
    asked_n: Ints
    foreseen: Shorts
    foreseen_n: Ints
    wish_i: Ints
    wish_f: Floats
    wishes: Ints
    often: Longs
    accessed: Longs
    list_of: NDArray[np.int8]
    stamp: Longs
    ahead: NDArray[np.bool_]
    arc_i: Longs
    arc_f: Floats
    order: Ints
    rows: Ints
    ptr: Longs
    came: Longs
    table_of: Ints
    alone: Floats
    price_key: Longs
    price: Floats
    kernel_i: Ints
    kernel_f: Floats
    stay_i: Ints
    stay_f: Floats
    accesses: Longs
    ids: Ints
    mine: Ints
    mine_rows: Ints
    fetches: Ints
    own: Ints


# --- eviction


@inlined
def _seen(m: Tables, gpu: int, layer: int, expert: int, what: int) -> None:
    """Tell the policy of an access or a prefetch, before room is made for it."""
    policy = m.of[POLICY]
    if policy == LFU and what != AHEAD:
        halve = m.of[HALVE]
        if halve > 0 and m.accessed[gpu, layer] > 0 and m.accessed[gpu, layer] % halve == 0:
            for other in range(m.of[EXPERTS]):
                m.often[gpu, layer, other] >>= 1
        m.accessed[gpu, layer] += 1
        m.often[gpu, layer, expert] += 1
    elif policy == ARC:
        _arc_seen(m, gpu, layer, expert, what)


@inlined
def _arc_put(m: Tables, gpu: int, layer: int, expert: int, which: int) -> None:
    """Put an expert at the young end of a list of ARC, -1: of none, out of that in which it is."""
    arc_i = m.arc_i
    was = m.list_of[gpu, layer, expert]
    if was >= 0:
        arc_i[gpu, layer, was] -= 1
    m.list_of[gpu, layer, expert] = which
    if which >= 0:
        arc_i[gpu, layer, which] += 1
        arc_i[gpu, layer, CLOCK] += 1
        m.stamp[gpu, layer, expert] = arc_i[gpu, layer, CLOCK]


@inlined
def _arc_oldest(m: Tables, gpu: int, layer: int, which: int) -> int:
    """The expert at the old end of a list of ARC that is not empty."""
    oldest = -1
    for expert in range(m.of[EXPERTS]):
        if m.list_of[gpu, layer, expert] == which and (
            oldest < 0 or m.stamp[gpu, layer, expert] < m.stamp[gpu, layer, oldest]
        ):
            oldest = expert
    return oldest


@inlined
def _arc_seen(m: Tables, gpu: int, layer: int, expert: int, what: int) -> None:
    arc_i = m.arc_i
    arc_f = m.arc_f
    capacity = m.of[SLOTS]
    into = arc_i[gpu, layer, INTO]
    if into >= 0:
        _arc_put(m, gpu, layer, into, arc_i[gpu, layer, INTO_LIST])
        arc_i[gpu, layer, INTO] = -1
    arc_i[gpu, layer, FROM_B2] = 0
    arc_i[gpu, layer, FORGET] = 0
    which = m.list_of[gpu, layer, expert]
    if what in (HIT, LATE):
        _arc_put(m, gpu, layer, expert, T1 if m.ahead[gpu, layer, expert] else T2)
        m.ahead[gpu, layer, expert] = False
        return
    arc_i[gpu, layer, INTO] = expert
    b1 = arc_i[gpu, layer, B1]
    b2 = arc_i[gpu, layer, B2]
    if what == AHEAD:
        m.ahead[gpu, layer, expert] = True
        if which in (B1, B2):
            _arc_put(m, gpu, layer, expert, -1)
    elif which == B1:
        arc_f[gpu, layer] = min(arc_f[gpu, layer] + max(b2 / b1, 1.0), float(capacity))
        _arc_put(m, gpu, layer, expert, -1)
        arc_i[gpu, layer, INTO_LIST] = T2
        return
    elif which == B2:
        arc_f[gpu, layer] = max(arc_f[gpu, layer] - max(b1 / b2, 1.0), 0.0)
        _arc_put(m, gpu, layer, expert, -1)
        arc_i[gpu, layer, FROM_B2] = 1
        arc_i[gpu, layer, INTO_LIST] = T2
        return
    arc_i[gpu, layer, INTO_LIST] = T1
    b1 = arc_i[gpu, layer, B1]
    b2 = arc_i[gpu, layer, B2]
    t1 = arc_i[gpu, layer, T1]
    if t1 + b1 >= capacity:
        if b1 > 0:
            _arc_put(m, gpu, layer, _arc_oldest(m, gpu, layer, B1), -1)
        else:
            arc_i[gpu, layer, FORGET] = 1
    elif b2 > 0 and t1 + b1 + b2 + arc_i[gpu, layer, T2] >= 2 * capacity:
        _arc_put(m, gpu, layer, _arc_oldest(m, gpu, layer, B2), -1)


@inlined
def _arc_victim(m: Tables, net: core.Net, gpu: int, layer: int, idle: bool) -> int:
    """As `_Arc.choose` of `simulator.policies.eviction`."""
    arc_i = m.arc_i
    first = (gpu * m.of[LAYERS] + layer) * m.of[SLOTS]
    once = -1
    again = -1
    for slot in range(first, first + m.of[SLOTS]):
        expert = m.held[slot, EXPERT]
        if idle and not _is_idle(m, net, gpu, layer, slot):
            continue
        stamp = m.stamp[gpu, layer, expert]
        if m.list_of[gpu, layer, expert] == T1:
            if once < 0 or stamp < m.stamp[gpu, layer, m.held[once, EXPERT]]:
                once = slot
        elif again < 0 or stamp < m.stamp[gpu, layer, m.held[again, EXPERT]]:
            again = slot
    t1 = arc_i[gpu, layer, T1]
    aim = m.arc_f[gpu, layer]
    more = t1 > aim or (arc_i[gpu, layer, FROM_B2] == 1 and t1 == aim)
    if once >= 0 and (more or arc_i[gpu, layer, FORGET] == 1 or again < 0):
        expert = m.held[once, EXPERT]
        m.ahead[gpu, layer, expert] = False
        _arc_put(m, gpu, layer, expert, -1 if arc_i[gpu, layer, FORGET] == 1 else B1)
        return once
    _arc_put(m, gpu, layer, m.held[again, EXPERT], B2)
    return again


@inlined
def _victim(m: Tables, net: core.Net, gpu: int, layer: int, idle: bool) -> int:
    """The slot whose expert goes, among all of a full layer or its idle ones (one at least)."""
    if m.of[POLICY] == ARC:
        return _arc_victim(m, net, gpu, layer, idle)
    counted = m.of[POLICY] == LFU
    first = (gpu * m.of[LAYERS] + layer) * m.of[SLOTS]
    found = -1
    least = np.int64(0)
    for slot in range(first, first + m.of[SLOTS]):
        if idle and not _is_idle(m, net, gpu, layer, slot):
            continue
        count = m.often[gpu, layer, m.held[slot, EXPERT]] if counted else np.int64(0)
        if found < 0 or count < least or (count == least and m.last_use[slot] < m.last_use[found]):
            found = slot
            least = count
    return found


@inlined
def _is_idle(m: Tables, net: core.Net, gpu: int, layer: int, slot: int) -> bool:
    """Whether an expert may go for a prefetch: loaded, unused and not predicted for its layer."""
    held = m.held
    expert = held[slot, EXPERT]
    if not _loaded(m, net, slot):
        return False
    for k in range(held[slot, USED_BY]):
        if net.op_f[m.kernels[slot, k], core.END] < 0.0:
            return False
    for microbatch in range(m.of[MICROBATCHES]):
        for i in range(m.asked_n[gpu, microbatch, layer]):
            if m.asked[gpu, microbatch, layer, i] == expert:
                return False
    return True


# --- slots


@inlined
def _loaded(m: Tables, net: core.Net, slot: int) -> bool:
    fetch = m.held[slot, FETCH]
    return fetch < 0 or bool(net.op_f[fetch, core.END] >= 0.0)


@inlined
def _operation(m: Tables, net: core.Net, kind: int, stream: int, row: int, amount: float) -> int:
    """A new operation."""
    m.at[IDS] -= 1
    op: int = m.ids[m.at[IDS]]
    core.prepare(net, op, kind, stream, row, amount)
    return op


@inlined
def _empty(m: Tables, gpu: int, layer: int, slot: int) -> None:
    """Take an expert out of its slot."""
    held = m.held
    m.slot_of[gpu, layer, held[slot, EXPERT]] = -1
    stay = held[slot, STAY]
    if stay >= 0:
        m.stay_i[stay, S_GONE] = 1
        m.stay_i[stay, S_SLOT] = -1
    held[slot, EXPERT] = -1
    m.filled[gpu, layer] -= 1


@inlined
def _place(
    m: Tables,
    net: core.Net,
    gpu: int,
    layer: int,
    expert: int,
    microbatch: int,
    prefetch: int,
    asked_s: float,
) -> int:
    """Put an expert into a free slot, with the fetch that brings it; gives the slot."""
    held = m.held
    stay_i = m.stay_i
    route = m.route[gpu, expert]
    stream = 2 * m.of[GPUS] + gpu
    fetch = _operation(m, net, core.FETCH, stream, route, m.wire_bytes[route])
    slot = (gpu * m.of[LAYERS] + layer) * m.of[SLOTS]
    while held[slot, EXPERT] >= 0:
        slot += 1
    stay = m.at[STAYS]
    m.at[STAYS] += 1
    stay_i[stay, S_STEP] = m.at[STEP]
    stay_i[stay, S_MICROBATCH] = microbatch
    stay_i[stay, S_LAYER] = layer
    stay_i[stay, S_GPU] = gpu
    stay_i[stay, S_PREFETCH] = prefetch
    stay_i[stay, S_EXPERT] = expert
    stay_i[stay, S_USES] = 0
    stay_i[stay, S_GONE] = 0
    stay_i[stay, S_FETCH] = fetch
    stay_i[stay, S_SLOT] = slot
    m.stay_f[stay, ASKED_S] = asked_s
    held[slot, EXPERT] = expert
    held[slot, FETCH] = fetch
    held[slot, STAY] = stay
    held[slot, USED_BY] = 0
    m.last_use[slot] = m.uses[gpu]
    m.slot_of[gpu, layer, expert] = slot
    m.filled[gpu, layer] += 1
    return int(slot)


# --- tokens reach their experts


@inlined
def _arrived(m: Tables, gpu: int, microbatch: int, layer: int) -> None:
    """What the micro-batch asked for ahead, up to this layer, no longer matters."""
    wish_i = m.wish_i
    kept = 0
    for i in range(m.wishes[gpu]):
        if wish_i[gpu, i, W_MICROBATCH] != microbatch or wish_i[gpu, i, W_LAYER] > layer:
            _move(m, gpu, i, kept)
            kept += 1
        else:
            _cancel(m, gpu, wish_i[gpu, i, W_LAYER])
    m.wishes[gpu] = kept
    if m.reached[gpu, microbatch] != layer:
        m.reached[gpu, microbatch] = layer
        n = m.asked_n[gpu, microbatch, layer]
        for i in range(n):
            m.foreseen[gpu, microbatch, i] = m.asked[gpu, microbatch, layer, i]
        m.foreseen_n[gpu, microbatch] = max(n, 0)
        m.asked_n[gpu, microbatch, layer] = -1


@inlined
def _move(m: Tables, gpu: int, a: int, b: int) -> None:
    """Move a wish to another place."""
    for column in range(5):
        m.wish_i[gpu, b, column] = m.wish_i[gpu, a, column]
    m.wish_f[gpu, b] = m.wish_f[gpu, a]


@inlined
def _cancel(m: Tables, gpu: int, layer: int) -> None:
    m.accesses[gpu, m.of[DENSE] + layer, CANCELLED] += 1


@inlined
def _in_order(m: Tables, net: core.Net, gpu: int, layer: int, first: int, count: int) -> None:
    """Experts and rows into `mine`: as they stand, or what is here, what is coming, the rest."""
    mine = m.mine
    mine_rows = m.mine_rows
    n = 0
    for part in range(3 if m.of[RESIDENT_FIRST] else 1):
        for i in range(first, first + count):
            expert = m.order[i]
            slot = m.slot_of[gpu, layer, expert]
            belongs = 0
            if slot < 0 and m.route[gpu, expert] >= 0:
                belongs = 2
            elif slot >= 0 and not _loaded(m, net, slot):
                belongs = 1
            if belongs == part or not m.of[RESIDENT_FIRST]:
                mine[n] = expert
                mine_rows[n] = m.rows[i]
                n += 1


@inlined
def _use(m: Tables, net: core.Net, count: int, now: float) -> None:
    """Access the experts in `mine`: resident ones are one kernel, the others wait for a fetch."""
    at = m.at
    held = m.held
    gpu = at[GPU]
    layer = at[LAYER]
    microbatch = at[MICROBATCH]
    grouped = _operation(m, net, core.TIMED, gpu, 0, 0.0)
    at[GROUPED] = grouped
    at[FETCHES] = 0
    at[COMING] = 0
    at[RESIDENTS] = 0
    at[ROWS] = 0
    at[TILES] = 0
    late = 0
    tile = m.of[TILE]
    for i in range(count):
        expert = m.mine[i]
        rows = m.mine_rows[i]
        here = m.route[gpu, expert] < 0
        own = grouped
        slot = -1
        if not here:
            m.uses[gpu] += 1
            slot = int(m.slot_of[gpu, layer, expert])
            if slot >= 0 and _loaded(m, net, slot):
                _seen(m, gpu, layer, expert, HIT)
                here = True
        if here:
            at[RESIDENTS] += 1
            at[ROWS] += rows
            at[TILES] += -(-rows // tile)
        else:
            own = _operation(m, net, core.TIMED, gpu, 0, m.alone[rows, 0])
            if slot >= 0:
                _seen(m, gpu, layer, expert, LATE)
                late += 1
            else:
                _seen(m, gpu, layer, expert, MISS)
                gone = -1
                before = -1
                used_by = 0
                if m.filled[gpu, layer] == m.of[SLOTS]:
                    gone = _victim(m, net, gpu, layer, False)
                    before = held[gone, FETCH]
                    used_by = held[gone, USED_BY]
                    _empty(m, gpu, layer, gone)
                slot = _place(m, net, gpu, layer, expert, microbatch, 0, now)
                fetch = held[slot, FETCH]
                if gone >= 0:  # it comes when all that still uses its slot has ended
                    for k in range(used_by):
                        core.hold(net, m.kernels[gone, k], fetch)
                    if before >= 0:
                        core.hold(net, before, fetch)
                m.fetches[at[FETCHES]] = fetch
                at[FETCHES] += 1
            core.hold(net, held[slot, FETCH], own)
            m.own[at[COMING]] = own
            m.mine[at[COMING]] = expert  # what stood there has had its turn
            m.mine_rows[at[COMING]] = rows
            at[COMING] += 1
        if slot >= 0:
            m.last_use[slot] = m.uses[gpu]
            if held[slot, STAY] >= 0:
                m.stay_i[held[slot, STAY], S_USES] += 1
            m.kernels[slot, held[slot, USED_BY]] = own
            held[slot, USED_BY] += 1
    if at[FETCHES]:
        m.added_s[gpu] = now
    accesses = m.accesses
    at_layer = m.of[DENSE] + layer
    accesses[gpu, at_layer, HIT] += at[RESIDENTS]
    accesses[gpu, at_layer, LATE] += late
    accesses[gpu, at_layer, MISS] += at[COMING] - late


@inlined
def _begin(m: Tables, net: core.Net, op: int, now: float) -> bool:
    """Tokens are there (`op`): decide which experts are here and fetch the rest; whether there was
    room in the tables.
    """
    at = m.at
    of = m.of
    gpus = of[GPUS]
    gpu = op % gpus
    rest = op // gpus
    chunk = (rest % of[KINDS] - CHUNK) // PER_CHUNK
    rest = rest // of[KINDS]
    layer = rest % of[ALL_LAYERS] - of[DENSE]
    microbatch = rest // of[ALL_LAYERS]
    table = m.table_of[microbatch, chunk, layer]
    first = m.ptr[table * gpus + gpu]
    count = m.ptr[table * gpus + gpu + 1] - first
    # An operation for each kernel and fetch, one for the grouped kernel, one for a prefetch.
    if not _has_room(m, net, 2 * count + 2, count + 1, count * (of[SHARED] + 3) + 1):
        return False
    at[OP] = op
    at[MICROBATCH] = microbatch
    at[CHUNK_AT] = chunk
    at[LAYER] = layer
    at[GPU] = gpu
    _arrived(m, gpu, microbatch, layer)
    foreseen = 0
    for i in range(first, first + count):
        for j in range(m.foreseen_n[gpu, microbatch]):
            if m.foreseen[gpu, microbatch, j] == m.order[i]:
                foreseen += 1
    m.accesses[gpu, of[DENSE] + layer, FORESEEN] += foreseen
    _in_order(m, net, gpu, layer, first, count)
    _use(m, net, count, now)
    at[CAME] = min(m.came[table, gpu], at[ROWS])
    return True


@inlined
def _has_room(m: Tables, net: core.Net, ops: int, stays: int, edges: int) -> bool:
    counts = net.counts
    return bool(
        m.at[IDS] >= ops
        and m.at[STAYS] + stays <= m.stay_i.shape[0]
        and counts[core.N_MORE] + edges <= counts[core.MORE]
    )


@inlined
def _price(m: Tables, rows: int, active: int, tiles: int, came: int) -> int:
    """Where the price of a grouped kernel stands or is to stand (then its first key is -1)."""
    key = m.price_key
    mask = key.shape[0] - 1
    i = (rows * 31 + active * 1009 + tiles * 9176 + came * 40503) & mask
    while key[i, 0] >= 0 and not (
        key[i, 0] == rows and key[i, 1] == active and key[i, 2] == tiles and key[i, 3] == came
    ):
        i = (i + 1) & mask
    return int(i)


@inlined
def _write_kernel(
    m: Tables, peer: int, op: int, expert: int, rows: int, now: float, flops: float, moved: float
) -> None:
    at = m.at
    kernel_i = m.kernel_i
    kernel_f = m.kernel_f
    row = at[KERNELS]
    at[KERNELS] += 1
    kernel_i[row, 0] = op
    kernel_i[row, 1] = expert
    kernel_i[row, 2] = rows
    kernel_i[row, 3] = at[MICROBATCH]
    kernel_i[row, 4] = at[CHUNK_AT]
    kernel_i[row, 5] = m.of[DENSE] + at[LAYER]
    kernel_i[row, 6] = at[GPU]
    kernel_i[row, 7] = peer
    kernel_f[row, 0] = now
    kernel_f[row, 1] = flops
    kernel_f[row, 2] = moved


@inlined
def _let_go(m: Tables, net: core.Net, now: float) -> bool:
    """Start what was decided; whether the price of the grouped kernel is known."""
    at = m.at
    op = at[OP]
    experts = op + m.of[GPUS]  # the kind after RECEIVE_DISPATCH
    cause = net.op_i[op, core.CAUSE]
    peer = cause % m.of[GPUS] if cause >= 0 else -1
    grouped = at[GROUPED]
    price = 0
    if at[RESIDENTS]:
        price = _price(m, at[ROWS], at[RESIDENTS], at[TILES], at[CAME])
        if m.price_key[price, 0] < 0:
            return False
    for i in range(at[FETCHES]):
        core.let_go(net, m.fetches[i], now)
    if at[RESIDENTS]:
        net.op_f[grouped, core.DURATION] = m.price[price, 0]
        core.hold(net, grouped, experts)
        core.let_go(net, grouped, now)
        flops, moved = m.price[price, 1], m.price[price, 2]
        _write_kernel(m, peer, grouped, -1, at[ROWS], now, flops, moved)
    else:
        m.ids[at[IDS]] = grouped
        at[IDS] += 1
    for i in range(at[COMING]):
        own = m.own[i]
        rows = m.mine_rows[i]
        core.hold(net, own, experts)
        core.let_go(net, own, now)
        _write_kernel(m, peer, own, m.mine[i], rows, now, m.alone[rows, 1], m.alone[rows, 2])
    core.let_go(net, experts, now)
    return True


# --- prefetches


@inlined
def _idle(m: Tables, net: core.Net, gpu: int, now: float) -> None:
    """Begin the next prefetch if the copy stream is idle, else be called again when it is."""
    wish_i = m.wish_i
    held = m.held
    stream = 2 * m.of[GPUS] + gpu
    while True:
        wish = -1
        for i in range(m.wishes[gpu]):
            reached = m.reached[gpu, wish_i[gpu, i, W_MICROBATCH]]
            if wish_i[gpu, i, W_AT_ONCE] == 1 or (
                wish_i[gpu, i, W_SINCE] <= reached < wish_i[gpu, i, W_LAYER]
            ):
                wish = i
                break
        if wish < 0:
            return
        if net.stream_i[stream, core.RUNNING] >= 0 or m.added_s[gpu] == now:
            net.stream_i[stream, core.TELL_IDLE] = 1
            return
        microbatch = wish_i[gpu, wish, W_MICROBATCH]
        layer = wish_i[gpu, wish, W_LAYER]
        expert = wish_i[gpu, wish, W_EXPERT]
        asked_s = m.wish_f[gpu, wish]
        m.wishes[gpu] -= 1
        for i in range(wish, m.wishes[gpu]):
            _move(m, gpu, i + 1, i)
        if m.slot_of[gpu, layer, expert] >= 0:
            continue
        if m.filled[gpu, layer] == m.of[SLOTS]:
            some = False
            first = (gpu * m.of[LAYERS] + layer) * m.of[SLOTS]
            for slot in range(first, first + m.of[SLOTS]):
                if _is_idle(m, net, gpu, layer, slot):
                    some = True
                    break
            if not some:
                _cancel(m, gpu, layer)
                continue
            _seen(m, gpu, layer, expert, AHEAD)
            _empty(m, gpu, layer, _victim(m, net, gpu, layer, True))
        else:
            _seen(m, gpu, layer, expert, AHEAD)
        m.uses[gpu] += 1
        slot = _place(m, net, gpu, layer, expert, microbatch, 1, asked_s)
        m.added_s[gpu] = now
        core.let_go(net, held[slot, FETCH], now)


@inlined
def _wish(
    m: Tables,
    gpu: int,
    microbatch: int,
    since: int,
    layer: int,
    wanted: Shorts,
    count: int,
    at_once: bool,
    now: float,
) -> None:
    """Put wishes for a layer in place of those that they replace."""
    wish_i = m.wish_i
    new = 0
    for i in range(count):
        expert = wanted[gpu, i]
        if m.slot_of[gpu, layer, expert] < 0 and m.route[gpu, expert] >= 0:
            m.mine[new] = expert
            new += 1
    kept = 0
    place = -1
    for i in range(m.wishes[gpu]):
        other = wish_i[gpu, i, W_LAYER]
        if wish_i[gpu, i, W_MICROBATCH] != microbatch or (since < other and other != layer):
            if place < 0 and wish_i[gpu, i, W_MICROBATCH] == microbatch and other > layer:
                place = kept  # what is needed sooner is fetched sooner
            _move(m, gpu, i, kept)
            kept += 1
        else:
            again = False
            for j in range(new):
                again |= m.mine[j] == wish_i[gpu, i, W_EXPERT]
            if other != layer or not again:
                _cancel(m, gpu, other)
    place = kept if place < 0 else place
    for i in range(kept - 1, place - 1, -1):
        _move(m, gpu, i, i + new)
    for i in range(new):
        wish_i[gpu, place + i, W_MICROBATCH] = microbatch
        wish_i[gpu, place + i, W_LAYER] = layer
        wish_i[gpu, place + i, W_EXPERT] = m.mine[i]
        wish_i[gpu, place + i, W_SINCE] = since
        wish_i[gpu, place + i, W_AT_ONCE] = at_once
        m.wish_f[gpu, place + i] = now
    m.wishes[gpu] = kept + new
    for i in range(count):
        m.asked[gpu, microbatch, layer, i] = wanted[gpu, i]
    m.asked_n[gpu, microbatch, layer] = count


# --- what Python calls


@inlined
def _decide(m: Tables, net: core.Net, op: int) -> int:
    """Decide on an end: tokens that came, or a copy stream (-1 - stream) that fell idle."""
    now = net.clock[core.PRESENT]
    if op < 0:
        if not _has_room(m, net, 1, 1, 0):
            return ROOM
        _idle(m, net, -1 - op - 2 * m.of[GPUS], now)
        return 0
    if m.at[PRICING] == 0:
        if not _begin(m, net, op, now):
            return ROOM
        m.at[PRICING] = 1
    if not _let_go(m, net, now):
        return PRICE
    m.at[PRICING] = 0
    _idle(m, net, m.at[GPU], now)
    return 0


@on_top_of(core)
def advance(
    floats: core.Floats, ints: core.Ints, counts: core.Longs, limit: float, m: Tables
) -> int:
    """As `core.advance`, with all decisions but those of Python taken on the way: gates and the end
    of the step. Gives `ROOM` or `PRICE` where Python must see to that and call again.
    """
    net = core.inlined_views(floats, ints, counts)
    at = m.at
    while True:
        while at[NEXT] < at[FOUND]:
            need = _decide(m, net, net.ended[at[NEXT]])
            if need < 0:
                return need
            at[NEXT] += 1
        found = core.advance(floats, ints, counts, limit)
        for i in range(found):
            if net.ended[i] >= m.of[GATES]:
                return found
        if found == 0:
            return 0
        at[FOUND] = found
        at[NEXT] = 0


@on_top_of(core)
def decide(floats: core.Floats, ints: core.Ints, counts: core.Longs, op: int, m: Tables) -> int:
    """Decide on one end; gives 0, `ROOM` or `PRICE` as `advance` does."""
    return _decide(m, core.inlined_views(floats, ints, counts), op)


@on_top_of(core)
def prefetch(
    floats: core.Floats,
    ints: core.Ints,
    counts: core.Longs,
    microbatch: int,
    since: int,
    layer: int,
    wanted: Shorts,
    number: Ints,
    at_once: NDArray[np.bool_],
    m: Tables,
) -> None:
    """In layer `since`, ask for experts of a `layer` ahead: wanted int16 [gpus, slots], the first
    `number` [gpus] of each; at_once bool [gpus]: without waiting for tokens.
    """
    net = core.inlined_views(floats, ints, counts)
    now = net.clock[core.PRESENT]
    for gpu in range(m.of[GPUS]):
        known = m.of[DEPTH] > 1 and m.asked_n[gpu, microbatch, layer] >= 0
        if number[gpu] > 0 or known:
            count = number[gpu]
            _wish(m, gpu, microbatch, since, layer, wanted, count, at_once[gpu], now)
            _idle(m, net, gpu, now)


@on_top_of(core)
def find_price(m: Tables, rows: int, active: int, tiles: int, came: int) -> int:
    """Where the price of a grouped kernel is to stand."""
    return _price(m, rows, active, tiles, came)


@on_top_of(core)
def end_of_step(
    floats: core.Floats,
    ints: core.Ints,
    counts: core.Longs,
    last: bool,
    told_i: Ints,
    told_f: Floats,
    m: Tables,
) -> int:
    """Give the stays whose fate is known, in `told_i` and `told_f` (as `stay_i`, `stay_f`), and how
    many; all kernels have ended. A prefetch that waits for its use stays unless this is the `last`.
    """
    net = core.inlined_views(floats, ints, counts)
    op_f = net.op_f
    stay_i = m.stay_i
    stay_f = m.stay_f
    held = m.held
    told = 0
    kept = 0
    for stay in range(m.at[STAYS]):
        fetch = stay_i[stay, S_FETCH]
        slot = stay_i[stay, S_SLOT]
        loaded = fetch < 0 or op_f[fetch, core.END] >= 0.0
        if loaded and fetch >= 0:
            stay_f[stay, START_S] = op_f[fetch, core.START]
            stay_f[stay, END_S] = op_f[fetch, core.END]
            stay_i[stay, S_FETCH] = -1
            if slot >= 0:
                held[slot, FETCH] = -1
        if loaded and (stay_i[stay, S_USES] > 0 or stay_i[stay, S_GONE] == 1 or last):
            for column in range(stay_i.shape[1]):
                told_i[told, column] = stay_i[stay, column]
            for column in range(stay_f.shape[1]):
                told_f[told, column] = stay_f[stay, column]
            told += 1
            if slot >= 0:
                held[slot, STAY] = -1
        else:
            for column in range(stay_i.shape[1]):
                stay_i[kept, column] = stay_i[stay, column]
            for column in range(stay_f.shape[1]):
                stay_f[kept, column] = stay_f[stay, column]
            if slot >= 0:
                held[slot, STAY] = kept
            kept += 1
    m.at[STAYS] = kept
    for gpu in range(m.of[GPUS]):
        for i in range(m.wishes[gpu]):
            _cancel(m, gpu, m.wish_i[gpu, i, W_LAYER])
        m.wishes[gpu] = 0
    m.asked_n[:] = -1
    m.foreseen_n[:] = 0
    m.reached[:] = -1
    held[:, USED_BY] = 0
    return told
