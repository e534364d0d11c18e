"""The decisions of expert memories as compiled code, taken between two runs of the event core.

What `simulator.engine.memory` decides for one GPU, in its order and to the same result, for all
GPUs of a run: for memories with slots of equal experts per layer, filled from one source each, with
an eviction policy of `simulator.policies.eviction` that looks only at the past. A *stay* is an
expert in a slot from its fetch to its end.

The tables are those of `simulator.engine.memory_tables`.
"""

from __future__ import annotations

from simulator.compiled import inlined, on_top_of
from simulator.engine import core, eviction_kernel, prediction_kernel
from simulator.engine import memory_tables as t
from simulator.engine.eviction_kernel import is_idle, loaded, seen, victim
from simulator.engine.prediction_kernel import learn, predict
from simulator.engine.shape import CHUNK, PER_CHUNK
from simulator.model.kernels import LEAST_TILE
from simulator.policies import cooccurrence
from simulator.policies.eviction import AHEAD, HIT, LATE, MISS

CALLED = (core, eviction_kernel, prediction_kernel, cooccurrence, t)  # files of what is called here

# --- slots


@inlined
def _operation(m: t.Tables, net: core.Net, kind: int, stream: int, row: int, amount: float) -> int:
    """A new operation."""
    m.at[t.IDS] -= 1
    op: int = m.ids[m.at[t.IDS]]
    core.prepare(net, op, kind, stream, row, amount)
    return op


@inlined
def _empty(m: t.Tables, gpu: int, layer: int, slot: int) -> None:
    """Take an expert out of its slot."""
    held = m.held
    m.slot_of[gpu, layer, held[slot, t.EXPERT]] = -1
    stay = held[slot, t.STAY]
    if stay >= 0:
        m.stay_i[stay, t.S_GONE] = 1
        m.stay_i[stay, t.S_SLOT] = -1
    held[slot, t.EXPERT] = -1
    m.filled[gpu, layer] -= 1


@inlined
def _place(
    m: t.Tables,
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
    stream = 2 * m.of[t.GPUS] + gpu
    fetch = _operation(m, net, core.FETCH, stream, route, m.wire_bytes[route])
    slot = (gpu * m.of[t.LAYERS] + layer) * m.of[t.SLOTS]
    while held[slot, t.EXPERT] >= 0:
        slot += 1
    stay = m.at[t.STAYS]
    m.at[t.STAYS] += 1
    stay_i[stay, t.S_STEP] = m.at[t.STEP]
    stay_i[stay, t.S_MICROBATCH] = microbatch
    stay_i[stay, t.S_LAYER] = layer
    stay_i[stay, t.S_GPU] = gpu
    stay_i[stay, t.S_PREFETCH] = prefetch
    stay_i[stay, t.S_EXPERT] = expert
    stay_i[stay, t.S_USES] = 0
    stay_i[stay, t.S_GONE] = 0
    stay_i[stay, t.S_FETCH] = fetch
    stay_i[stay, t.S_SLOT] = slot
    m.stay_f[stay, t.ASKED_S] = asked_s
    held[slot, t.EXPERT] = expert
    held[slot, t.FETCH] = fetch
    held[slot, t.STAY] = stay
    held[slot, t.USED_BY] = 0
    m.last_use[slot] = m.uses[gpu]
    m.slot_of[gpu, layer, expert] = slot
    m.filled[gpu, layer] += 1
    return int(slot)


# --- tokens reach their experts


@inlined
def _arrived(m: t.Tables, gpu: int, microbatch: int, layer: int) -> None:
    """What the micro-batch asked for ahead, up to this layer, no longer matters."""
    wish_i = m.wish_i
    kept = 0
    for i in range(m.wishes[gpu]):
        if wish_i[gpu, i, t.W_MICROBATCH] != microbatch or wish_i[gpu, i, t.W_LAYER] > layer:
            _move(wish_i, m.wish_f, gpu, i, kept)
            kept += 1
        else:
            _cancel(m.accesses, m.of[t.DENSE], gpu, wish_i[gpu, i, t.W_LAYER])
    m.wishes[gpu] = kept
    if m.reached[gpu, microbatch] != layer:
        m.reached[gpu, microbatch] = layer
        n = m.asked_n[gpu, microbatch, layer]
        for i in range(n):
            m.foreseen[gpu, microbatch, i] = m.asked[gpu, microbatch, layer, i]
        m.foreseen_n[gpu, microbatch] = max(n, 0)
        m.asked_n[gpu, microbatch, layer] = -1


@inlined
def _move(wish_i: t.Ints, wish_f: t.Floats, gpu: int, a: int, b: int) -> None:
    """Move a wish to another place."""
    for column in range(5):
        wish_i[gpu, b, column] = wish_i[gpu, a, column]
    wish_f[gpu, b] = wish_f[gpu, a]


@inlined
def _cancel(accesses: t.Longs, dense: int, gpu: int, layer: int) -> None:
    accesses[gpu, dense + layer, t.CANCELLED] += 1


@inlined
def _in_order(m: t.Tables, net: core.Net, gpu: int, layer: int, first: int, count: int) -> None:
    """Experts and rows into `mine`: as they stand, or what is here, what is coming, the rest."""
    mine = m.mine
    mine_rows = m.mine_rows
    n = 0
    for part in range(3 if m.of[t.RESIDENT_FIRST] else 1):
        for i in range(first, first + count):
            expert = m.order[i]
            slot = m.slot_of[gpu, layer, expert]
            belongs = 0
            if slot < 0 and m.route[gpu, expert] >= 0:
                belongs = 2
            elif slot >= 0 and not loaded(m.held, net.op_f, slot):
                belongs = 1
            if belongs == part or not m.of[t.RESIDENT_FIRST]:
                mine[n] = expert
                mine_rows[n] = m.rows[i]
                n += 1


@inlined
def _tiles(m: t.Tables) -> int:
    """Tiles of the grouped kernel of the resident experts, as `ComputeModel.experts_by_rows`."""
    residents = m.at[t.RESIDENTS]
    if residents == 0:
        return 0
    wanted = m.at[t.ROWS] / residents
    if 2.0 * wanted <= m.of[t.SPARE]:
        wanted = 2.0 * wanted
    tile = LEAST_TILE
    while tile < wanted:
        tile *= 2
    tile = min(tile, m.of[t.TILE])
    tiles = 0
    for i in range(1, residents + 1):
        tiles += -(-m.own[-i] // tile)
    return int(tiles)


@inlined
def _use(m: t.Tables, net: core.Net, count: int, now: float) -> None:
    """Access the experts in `mine`: resident ones are one kernel, the others wait for a fetch."""
    at = m.at
    held = m.held
    gpu = at[t.GPU]
    layer = at[t.LAYER]
    microbatch = at[t.MICROBATCH]
    grouped = _operation(m, net, core.TIMED, gpu, 0, 0.0)
    at[t.GROUPED] = grouped
    at[t.FETCHES] = 0
    at[t.COMING] = 0
    at[t.RESIDENTS] = 0
    at[t.ROWS] = 0
    late = 0
    for i in range(count):
        expert = m.mine[i]
        rows = m.mine_rows[i]
        own = grouped
        slot = -1
        what = HIT
        if m.route[gpu, expert] >= 0:  # else it is held for good
            m.uses[gpu] += 1
            slot = int(m.slot_of[gpu, layer, expert])
            if slot < 0:
                what = MISS
            elif not loaded(m.held, net.op_f, slot):
                what = LATE
            seen(m, gpu, layer, expert, what)
        if what == HIT:
            at[t.RESIDENTS] += 1
            at[t.ROWS] += rows
            m.own[-at[t.RESIDENTS]] = rows  # from the back; those that come stand in front
        else:
            own = _operation(m, net, core.TIMED, gpu, 0, m.alone[rows, 0])
            if what == LATE:
                late += 1
            else:
                gone = -1
                before = -1
                used_by = 0
                if m.filled[gpu, layer] == m.of[t.SLOTS]:
                    gone = victim(m, net, gpu, layer, False)
                    before = held[gone, t.FETCH]
                    used_by = held[gone, t.USED_BY]
                    _empty(m, gpu, layer, gone)
                slot = _place(m, net, gpu, layer, expert, microbatch, 0, now)
                fetch = held[slot, t.FETCH]
                if gone >= 0:  # it comes when all that still uses its slot has ended
                    for k in range(used_by):
                        core.hold(net, m.kernels[gone, k], fetch)
                    if before >= 0:
                        core.hold(net, before, fetch)
                m.fetches[at[t.FETCHES]] = fetch
                at[t.FETCHES] += 1
            core.hold(net, held[slot, t.FETCH], own)
            m.own[at[t.COMING]] = own
            m.mine[at[t.COMING]] = expert  # what stood there has had its turn
            m.mine_rows[at[t.COMING]] = rows
            at[t.COMING] += 1
        if slot >= 0:
            m.last_use[slot] = m.uses[gpu]
            if held[slot, t.STAY] >= 0:
                m.stay_i[held[slot, t.STAY], t.S_USES] += 1
            m.kernels[slot, held[slot, t.USED_BY]] = own
            held[slot, t.USED_BY] += 1
    if at[t.FETCHES]:
        m.added_s[gpu] = now
    at[t.TILES] = _tiles(m)
    accesses = m.accesses
    at_layer = m.of[t.DENSE] + layer
    accesses[gpu, at_layer, HIT] += at[t.RESIDENTS]
    accesses[gpu, at_layer, LATE] += late
    accesses[gpu, at_layer, MISS] += at[t.COMING] - late


@inlined
def _begin(m: t.Tables, net: core.Net, op: int, now: float) -> bool:
    """Tokens are there (`op`): decide which experts are here and fetch the rest; whether there was
    room in the tables.
    """
    at = m.at
    of = m.of
    gpus = of[t.GPUS]
    gpu = op % gpus
    rest = op // gpus
    chunk = (rest % of[t.KINDS] - CHUNK) // PER_CHUNK
    rest = rest // of[t.KINDS]
    layer = rest % of[t.ALL_LAYERS] - of[t.DENSE]
    microbatch = rest // of[t.ALL_LAYERS]
    table = m.table_of[microbatch, chunk, layer]
    first = m.ptr[table * gpus + gpu]
    count = m.ptr[table * gpus + gpu + 1] - first
    # An operation for each kernel and fetch, one for the grouped kernel, one for a prefetch.
    if not _has_room(m, net, 2 * count + 2, count + 1, count * (of[t.SHARED] + 3) + 1):
        return False
    at[t.OP] = op
    at[t.MICROBATCH] = microbatch
    at[t.CHUNK_AT] = chunk
    at[t.LAYER] = layer
    at[t.GPU] = gpu
    _arrived(m, gpu, microbatch, layer)
    foreseen = 0
    for i in range(first, first + count):
        for j in range(m.foreseen_n[gpu, microbatch]):
            if m.foreseen[gpu, microbatch, j] == m.order[i]:
                foreseen += 1
    m.accesses[gpu, of[t.DENSE] + layer, t.FORESEEN] += foreseen
    _in_order(m, net, gpu, layer, first, count)
    _use(m, net, count, now)
    at[t.CAME] = min(m.came[table, gpu], at[t.ROWS])
    return True


@inlined
def _has_room(m: t.Tables, net: core.Net, ops: int, stays: int, edges: int) -> bool:
    counts = net.counts
    return bool(
        m.at[t.IDS] >= ops
        and m.at[t.STAYS] + stays <= m.stay_i.shape[0]
        and counts[core.N_MORE] + edges <= counts[core.MORE]
    )


@inlined
def _price(m: t.Tables, rows: int, active: int, tiles: int, came: int) -> int:
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
    m: t.Tables, peer: int, op: int, expert: int, rows: int, now: float, flops: float, moved: float
) -> None:
    at = m.at
    kernel_i = m.kernel_i
    kernel_f = m.kernel_f
    row = at[t.KERNELS]
    at[t.KERNELS] += 1
    kernel_i[row, 0] = op
    kernel_i[row, 1] = expert
    kernel_i[row, 2] = rows
    kernel_i[row, 3] = at[t.MICROBATCH]
    kernel_i[row, 4] = at[t.CHUNK_AT]
    kernel_i[row, 5] = m.of[t.DENSE] + at[t.LAYER]
    kernel_i[row, 6] = at[t.GPU]
    kernel_i[row, 7] = peer
    kernel_f[row, 0] = now
    kernel_f[row, 1] = flops
    kernel_f[row, 2] = moved


@inlined
def _let_go(m: t.Tables, net: core.Net, now: float) -> bool:
    """Start what was decided; whether the price of the grouped kernel is known."""
    at = m.at
    op = at[t.OP]
    experts = op + m.of[t.GPUS]  # the kind after RECEIVE_DISPATCH
    cause = net.op_i[op, core.CAUSE]
    peer = cause % m.of[t.GPUS] if cause >= 0 else -1
    grouped = at[t.GROUPED]
    price = 0
    if at[t.RESIDENTS]:
        price = _price(m, at[t.ROWS], at[t.RESIDENTS], at[t.TILES], at[t.CAME])
        if m.price_key[price, 0] < 0:
            return False
    for i in range(at[t.FETCHES]):
        core.let_go(net, m.fetches[i], now)
    if at[t.RESIDENTS]:
        net.op_f[grouped, core.DURATION] = m.price[price, 0]
        core.hold(net, grouped, experts)
        core.let_go(net, grouped, now)
        flops, moved = m.price[price, 1], m.price[price, 2]
        _write_kernel(m, peer, grouped, -1, at[t.ROWS], now, flops, moved)
    else:
        m.ids[at[t.IDS]] = grouped
        at[t.IDS] += 1
    for i in range(at[t.COMING]):
        own = m.own[i]
        rows = m.mine_rows[i]
        core.hold(net, own, experts)
        core.let_go(net, own, now)
        _write_kernel(m, peer, own, m.mine[i], rows, now, m.alone[rows, 1], m.alone[rows, 2])
    core.let_go(net, experts, now)
    return True


# --- prefetches


@inlined
def _idle(m: t.Tables, net: core.Net, gpu: int, now: float) -> None:
    """Begin the next prefetch if the copy stream is idle, else be called again when it is."""
    wish_i = m.wish_i
    held = m.held
    stream = 2 * m.of[t.GPUS] + gpu
    while True:
        wish = -1
        for i in range(m.wishes[gpu]):
            reached = m.reached[gpu, wish_i[gpu, i, t.W_MICROBATCH]]
            if wish_i[gpu, i, t.W_AT_ONCE] == 1 or (
                wish_i[gpu, i, t.W_SINCE] <= reached < wish_i[gpu, i, t.W_LAYER]
            ):
                wish = i
                break
        if wish < 0:
            return
        if net.stream_i[stream, core.RUNNING] >= 0 or m.added_s[gpu] == now:
            net.stream_i[stream, core.TELL_IDLE] = 1
            return
        microbatch = wish_i[gpu, wish, t.W_MICROBATCH]
        layer = wish_i[gpu, wish, t.W_LAYER]
        expert = wish_i[gpu, wish, t.W_EXPERT]
        asked_s = m.wish_f[gpu, wish]
        m.wishes[gpu] -= 1
        for i in range(wish, m.wishes[gpu]):
            _move(wish_i, m.wish_f, gpu, i + 1, i)
        if m.slot_of[gpu, layer, expert] >= 0:
            continue
        full = m.filled[gpu, layer] == m.of[t.SLOTS]
        if full:
            some = False
            first = (gpu * m.of[t.LAYERS] + layer) * m.of[t.SLOTS]
            for slot in range(first, first + m.of[t.SLOTS]):
                if is_idle(m, net, gpu, layer, slot):
                    some = True
                    break
            if not some:
                _cancel(m.accesses, m.of[t.DENSE], gpu, layer)
                continue
        seen(m, gpu, layer, expert, AHEAD)
        if full:
            _empty(m, gpu, layer, victim(m, net, gpu, layer, True))
        m.uses[gpu] += 1
        slot = _place(m, net, gpu, layer, expert, microbatch, 1, asked_s)
        m.added_s[gpu] = now
        core.let_go(net, held[slot, t.FETCH], now)


@inlined
def _wish(
    m: t.Tables,
    gpu: int,
    microbatch: int,
    since: int,
    layer: int,
    now: float,
) -> None:
    """Put wishes for a layer, of what is `wanted`, in place of those that they replace."""
    wish_i = m.wish_i
    wanted = m.wanted
    count = m.wanted_n[gpu]
    new = 0
    for i in range(count):
        expert = wanted[gpu, i]
        if m.slot_of[gpu, layer, expert] < 0 and m.route[gpu, expert] >= 0:
            m.mine[new] = expert
            new += 1
    kept = 0
    place = -1
    for i in range(m.wishes[gpu]):
        other = wish_i[gpu, i, t.W_LAYER]
        if wish_i[gpu, i, t.W_MICROBATCH] != microbatch or (since < other and other != layer):
            if place < 0 and wish_i[gpu, i, t.W_MICROBATCH] == microbatch and other > layer:
                place = kept  # what is needed sooner is fetched sooner
            _move(wish_i, m.wish_f, gpu, i, kept)
            kept += 1
        else:
            again = False
            for j in range(new):
                again |= m.mine[j] == wish_i[gpu, i, t.W_EXPERT]
            if other != layer or not again:
                _cancel(m.accesses, m.of[t.DENSE], gpu, other)
    place = kept if place < 0 else place
    for i in range(kept - 1, place - 1, -1):
        _move(wish_i, m.wish_f, gpu, i, i + new)
    for i in range(new):
        wish_i[gpu, place + i, t.W_MICROBATCH] = microbatch
        wish_i[gpu, place + i, t.W_LAYER] = layer
        wish_i[gpu, place + i, t.W_EXPERT] = m.mine[i]
        wish_i[gpu, place + i, t.W_SINCE] = since
        wish_i[gpu, place + i, t.W_AT_ONCE] = m.idle[gpu]
        m.wish_f[gpu, place + i] = now
    m.wishes[gpu] = kept + new
    for i in range(count):
        m.asked[gpu, microbatch, layer, i] = wanted[gpu, i]
    m.asked_n[gpu, microbatch, layer] = count


# --- what Python calls


@inlined
def _decide(m: t.Tables, net: core.Net, op: int) -> int:
    """Decide on an end: tokens that came, a copy stream (-1 - stream) that fell idle, or a gate.

    Whatever ended, prefetches may begin then: of one GPU, or after a gate, for each layer that
    something is asked of, of all.
    """
    of = m.of
    at = m.at
    now = net.clock[core.PRESENT]
    gate = op >= of[t.GATES]
    first, last = 0, of[t.GPUS]
    layer, target, beyond = 0, 0, 1
    microbatch = 0
    if gate:
        if not _has_room(m, net, of[t.GPUS], of[t.GPUS], 0):
            return t.ROOM
        microbatch = (op - of[t.GATES]) // of[t.ALL_LAYERS]
        layer = (op - of[t.GATES]) % of[t.ALL_LAYERS] - of[t.DENSE]
        if of[t.PREDICTOR] == t.ELSEWHERE:  # Python has said what is wanted
            target, beyond = at[t.TARGET], at[t.TARGET] + 1
        else:
            learn(m, microbatch, layer)
            target, beyond = layer + 1, min(layer + of[t.DEPTH], of[t.LAYERS] - 1) + 1
    elif op < 0:
        if not _has_room(m, net, 1, 1, 0):
            return t.ROOM
        first = -1 - op - 2 * of[t.GPUS]
        last = first + 1
    else:
        if at[t.PRICING] == 0:
            if not _begin(m, net, op, now):
                return t.ROOM
            at[t.PRICING] = 1
        if not _let_go(m, net, now):
            return t.PRICE
        at[t.PRICING] = 0
        first = at[t.GPU]
        last = first + 1
    while target < beyond:
        if gate and of[t.PREDICTOR] != t.ELSEWHERE:
            predict(m, microbatch, target)
        for gpu in range(first, last):
            if gate:
                known = of[t.DEPTH] > 1 and m.asked_n[gpu, microbatch, target] >= 0
                if m.wanted_n[gpu] == 0 and not known:
                    continue
                _wish(m, gpu, microbatch, layer, target, now)
            _idle(m, net, gpu, now)
        target += 1
    return 0


@on_top_of(*CALLED)
def advance(
    floats: core.Floats, ints: core.Ints, counts: core.Longs, limit: float, m: t.Tables
) -> int:
    """As `core.advance`, with all decisions but those of Python taken on the way: on ends of
    operations from FOR_PYTHON on. Gives `ROOM` or `PRICE` where Python must see to that and call
    again. With a `limit` below 0 it decides on what stands in `ended` only.
    """
    net = core.inlined_views(floats, ints, counts)
    at = m.at
    while True:
        while at[t.NEXT] < at[t.FOUND]:
            need = _decide(m, net, net.ended[at[t.NEXT]])
            if need < 0:
                return need
            at[t.NEXT] += 1
        if limit < 0.0:
            return 0
        found = core.advance(floats, ints, counts, limit)
        for i in range(found):
            if net.ended[i] >= m.of[t.FOR_PYTHON]:
                return found
        if found == 0:
            return 0
        at[t.FOUND] = found
        at[t.NEXT] = 0


@on_top_of(*CALLED)
def find_price(m: t.Tables, rows: int, active: int, tiles: int, came: int) -> int:
    """Where the price of a grouped kernel is to stand."""
    return _price(m, rows, active, tiles, came)


@on_top_of(*CALLED)
def end_of_step(
    floats: core.Floats,
    ints: core.Ints,
    counts: core.Longs,
    last: bool,
    told_i: t.Ints,
    told_f: t.Floats,
    m: t.Tables,
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
    for stay in range(m.at[t.STAYS]):
        fetch = stay_i[stay, t.S_FETCH]
        slot = stay_i[stay, t.S_SLOT]
        loaded = fetch < 0 or op_f[fetch, core.END] >= 0.0
        if loaded and fetch >= 0:
            stay_f[stay, t.START_S] = op_f[fetch, core.START]
            stay_f[stay, t.END_S] = op_f[fetch, core.END]
            stay_i[stay, t.S_FETCH] = -1
            if slot >= 0:
                held[slot, t.FETCH] = -1
        if loaded and (stay_i[stay, t.S_USES] > 0 or stay_i[stay, t.S_GONE] == 1 or last):
            for column in range(stay_i.shape[1]):
                told_i[told, column] = stay_i[stay, column]
            for column in range(stay_f.shape[1]):
                told_f[told, column] = stay_f[stay, column]
            told += 1
            if slot >= 0:
                held[slot, t.STAY] = -1
        else:
            for column in range(stay_i.shape[1]):
                stay_i[kept, column] = stay_i[stay, column]
            for column in range(stay_f.shape[1]):
                stay_f[kept, column] = stay_f[stay, column]
            if slot >= 0:
                held[slot, t.STAY] = kept
            kept += 1
    m.at[t.STAYS] = kept
    for gpu in range(m.of[t.GPUS]):
        for i in range(m.wishes[gpu]):
            _cancel(m.accesses, m.of[t.DENSE], gpu, m.wish_i[gpu, i, t.W_LAYER])
        m.wishes[gpu] = 0
    m.asked_n[:] = -1
    m.foreseen_n[:] = 0
    m.reached[:] = -1
    held[:, t.USED_BY] = 0
    return told
