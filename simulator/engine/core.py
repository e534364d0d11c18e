"""The event core: operations on streams and flows on links, as one compiled kernel.

*Operations.* An operation becomes ready when all it waits for has ended, a fixed delay later joins
the queue of its stream (first ready, first served; stream -1 has no queue), runs, and ends. It is
one of: a *timed* operation (a kernel; of no duration it is only a point where others meet), a
*send* (the transfers of one GPU in one collective; ends with the last of them), or a *fetch* (one
transfer). An operation's end counts down the `waits` of those that depend on it; so does the end
of a send's transfer for the operation that receives it.

*Flows.* A transfer waits its path's latency, then moves its bytes at the rate that max-min
fairness gives it among the transfers sharing each link (progressive filling: Bertsekas & Gallager,
Data Networks, 2nd ed., section 6.5.2). A *round* of it freezes all flows of a link that are not yet
frozen, at an equal share of what the others left of it; that is their max-min rate if no other
link of theirs then has less for each, so rounds need not go by rate over the whole network.
All that changes at one instant is one solve, which begins at the first round that the change can
reach. With `epsilon` above 0, a transfer that lacks
no more than that fraction of the time since it began ends together with the one that ends now.

*Weighted* flows (`counts[WEIGHTED]`): a flow of rate r takes w r of a link, with a weight w per
link: the share of a sprayed transfer that crosses it, or what a whole collective, as one flow at
the mean rate of its transfers, sends over it. These are solved from scratch, and only if the
change touches a link that others use.

The core moves on its own until an operation ends of which the outside wants to hear, or to the
next event outside. Its state lies in three buffers, so that a call passes few arrays; `views`
gives them names and shapes, as the tuple `Net`:

    op_f    float64 [ops, 5]     when ready, start, end (s; -1 before), duration (s) or fetch bytes,
                                 delay (s) between ready and the queue
    op_i    int32   [ops, 9]     kind, stream, waits, next in stream, row (send: of the send table;
                                 fetch: route), first receiver (-1: a whole collective), transfers
                                 left, cause, 1 = tell
    edge_ptr, edge_to  int32 [laid ops + 1], [edges]      who waits for an operation, laid at start
    more_head int32 [ops], more int32 [MORE, 2]           the same, added later: to, next
    stream_i int32  [streams, 3] running operation, last queued, 1 = tell when it falls idle
    send_ptr, send_i  int32 [rows + 1], [sends, 2]        send table: target GPU, route
    send_f  float64 [sends]      bytes
    flow_f  float64 [flows, 4]   bytes left, rate (B/s), time to which `bytes left` refers (s), when
                                 it ends at the present rate (s)
    began   float64 [flows]      when it came onto its links (s)
    flow_i  int32   [flows, 5]   route, operation, receiver, source GPU, place in `active`
    active  int32   [flows]      weighted: flows on links
    way     int32   [flows << SHIFT]  link and place in `line` of each link, then -1 (weighted: 1 =
                                 frozen in this solve)
    line    int32   [places]     flows on each link, as places in `way`: the frozen, in the order in
                                 which they froze, then those that are not
    trail, spare  int32, float64 [places]  what flows took from links as they froze, except from the
                                 link of the round: link, and what it had left before (B/s)
    link_f  float64 [links, 4]   capacity; share at this place of `turn`; weighted: left, weights
    room    float64 [2 links]    left of a link's capacity, and for how many flows; as it was before
                                 its round
    link_i  int32   [links, 5]   first place, end, place in `used`, 1 = in `fresh`, its round (only
                                 if that is still of this link)
    frozen  int32   [links]      end of the frozen ones
    round_f float64 [links, 3]   rounds of the last solve: rate (B/s), when the first flow ends (s),
                                 the same of all rounds so far
    round_i int32   [links, 3]   link, first place of the flows frozen on it, where its trail begins
    turn    int32   [2 links]    links in the order in which they are tried (weighted: a heap by the
                                 share of each flow left on them)
    used, fresh int32 [links]    links with flows on them; with flows that came since the last solve
    route_ptr, route_i  int32 [routes + 1], [crossings]   links of each route
    route_w float64 [crossings]  weighted: what a transfer's rate takes of the link, per B/s
    route_f float64 [routes]     latency (s)
    heap_f, heap_i  float64, int32 [events, 3]  times; kind, item and number of what will happen
    soon    int32   [events, 2]  operations let go between two calls, all at one time, and numbers
                                 in the same sequence: they need not go through the heap
    gone, free int32 [flows]     flows that end now; unused rows
    work    int32   [WORK, 3]    what is still to do in this instant: action, operation, cause
    ended   int32   [ops + streams]  out: operations that ended, or -1 - stream that fell idle
    clock   float64 [6]          present; next event (inf: none); since when links are busy;
                                 epsilon; weighted: when the first flow ends (-1: to be found out);
                                 when what is in `soon` happens
    counts  int64   [COUNTS]     sizes, lengths and statistics

All of it is in one file because numba's cache on disk knows of changes to the file of a compiled
function only, not of those it calls.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.compiled import allocation_free, inlined

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]

READY, START, END, DURATION, DELAY = 0, 1, 2, 3, 4
KIND, STREAM, WAITS, NEXT, ROW, RECEIVER, LEFT, CAUSE, TELL = 0, 1, 2, 3, 4, 5, 6, 7, 8
TIMED, SEND, FETCH = 0, 1, 2
RUNNING, LAST, TELL_IDLE = 0, 1, 2
BYTES, RATE, SINCE, ENDS = 0, 1, 2, 3
F_ROUTE, F_OP, F_RECEIVER, F_SOURCE, F_ACTIVE = 0, 1, 2, 3, 4
CAPACITY, SHARE, SPARE, LOAD = 0, 1, 2, 3  # SHARE: by place in `turn`; last two: weighted
L_FIRST, L_END, L_USED, L_NEW, L_ROUND = 0, 1, 2, 3, 4
R_SHARE, R_ENDS, R_FIRST_END = 0, 1, 2
R_LINK, R_FROM, R_TRAIL = 0, 1, 2

# counts: sizes of the tables, then the core's own integers
OPS, LAID, EDGES, MORE, STREAMS, ROWS, SENDS, FLOWS, LINKS, ROUTES, EVENTS, WORK, PLACES = range(13)
CROSSINGS, SHIFT = 13, 14  # SHIFT: log2 of the length of a flow's row in `way`
SIZES = 15
N_USED, N_HEAP, N_ROUNDS, N_NEW, N_FREE, N_SEQUENCE, N_ENDED, N_MORE, N_WORK = range(15, 24)
N_SOLVES, N_RATES, N_CHANGED, N_ACTIVE, WEIGHTED, N_TURNS, N_TRAIL, N_SOON = range(24, 32)
COUNTS = 32
PRESENT, NEXT_EVENT, BUSY_SINCE, EPSILON, FIRST_END, SOON_S = range(6)

# Actions on an operation, and kinds of event: one thing less to wait for; queue it on its stream;
# start it; it has ended; its transfers, or one of them, go on the wire.
COUNT, JOIN, START_IT, FINISH, BEGIN, FLOW = 0, 1, 2, 3, 4, 5
MANY = 1 << 30  # events after which their numbers start again, between two steps
ROUNDING = 1e-15  # a share less than another by this part of it is as much
SAME_INSTANT = 2e-15  # times nearer than this fraction of the clock are one instant (rounding)


class Net(NamedTuple):
    """The core's tables (module docstring)."""

    op_f: Floats
    op_i: Ints
    edge_ptr: Ints
    edge_to: Ints
    more_head: Ints
    more: Ints
    stream_i: Ints
    send_ptr: Ints
    send_i: Ints
    send_f: Floats
    flow_f: Floats
    flow_i: Ints
    active: Ints
    way: Ints
    line: Ints
    trail: Ints
    spare: Floats
    link_f: Floats
    room: Floats
    link_i: Ints
    frozen: Ints
    round_f: Floats
    round_i: Ints
    turn: Ints
    used: Ints
    fresh: Ints
    route_ptr: Ints
    route_i: Ints
    route_w: Floats
    route_f: Floats
    heap_f: Floats
    heap_i: Ints
    soon: Ints
    gone: Ints
    free: Ints
    work: Ints
    ended: Ints
    clock: Floats
    began: Floats
    counts: Longs


def buffers(sizes: list[int]) -> tuple[Floats, Ints, Longs]:
    """Zeroed buffers for tables of these sizes (in the order OPS, LAID, ..., SHIFT)."""
    ops, laid, edges, more, streams, rows, sends, flows, links, routes, events, work = sizes[:12]
    places, crossings, shift = sizes[12:]
    floats = np.zeros(
        5 * ops + sends + 5 * flows + places + 9 * links + routes + crossings + events + 6
    )
    ints = np.zeros(
        11 * ops + laid + 1 + edges + 2 * more + 4 * streams + rows + 1 + 2 * sends
        + 8 * flows + (flows << shift) + 2 * places + 13 * links + routes + 1 + crossings
        + 5 * events + 3 * work,
        dtype=np.int32,
    )  # fmt: skip
    counts = np.zeros(COUNTS, dtype=np.int64)
    counts[:SIZES] = sizes
    return floats, ints, counts


def views(floats: Floats, ints: Ints, counts: Longs) -> Net:
    """The tables in the buffers."""
    ops, laid, edges, more = counts[OPS], counts[LAID], counts[EDGES], counts[MORE]
    streams, rows, sends, flows = counts[STREAMS], counts[ROWS], counts[SENDS], counts[FLOWS]
    links, routes, events, work = counts[LINKS], counts[ROUTES], counts[EVENTS], counts[WORK]
    places, crossings, shift = counts[PLACES], counts[CROSSINGS], counts[SHIFT]
    f1 = 5 * ops
    f2 = f1 + sends
    f3 = f2 + 4 * flows
    f4 = f3 + places
    f5 = f4 + 4 * links
    f6 = f5 + 2 * links
    f7 = f6 + 3 * links
    f8 = f7 + routes
    f9 = f8 + crossings
    f10 = f9 + events
    i1 = 9 * ops
    i2 = i1 + laid + 1
    i3 = i2 + edges
    i4 = i3 + ops
    i5 = i4 + 2 * more
    i6 = i5 + 3 * streams
    i7 = i6 + rows + 1
    i8 = i7 + 2 * sends
    i9 = i8 + 5 * flows
    i10 = i9 + flows
    i11 = i10 + (flows << shift)
    i12 = i11 + places
    i13 = i12 + places
    i14 = i13 + 5 * links
    i15 = i14 + links
    i16 = i15 + 3 * links
    i17 = i16 + 2 * links
    i18 = i17 + links
    i19 = i18 + links
    i20 = i19 + routes + 1
    i21 = i20 + crossings
    i22 = i21 + 3 * events
    i23 = i22 + flows
    i24 = i23 + flows
    i25 = i24 + 3 * work
    i26 = i25 + ops + streams
    return Net(
        op_f=floats[:f1].reshape(ops, 5),
        op_i=ints[:i1].reshape(ops, 9),
        edge_ptr=ints[i1:i2],
        edge_to=ints[i2:i3],
        more_head=ints[i3:i4],
        more=ints[i4:i5].reshape(more, 2),
        stream_i=ints[i5:i6].reshape(streams, 3),
        send_ptr=ints[i6:i7],
        send_i=ints[i7:i8].reshape(sends, 2),
        send_f=floats[f1:f2],
        flow_f=floats[f2:f3].reshape(flows, 4),
        flow_i=ints[i8:i9].reshape(flows, 5),
        active=ints[i9:i10],
        way=ints[i10:i11],
        line=ints[i11:i12],
        trail=ints[i12:i13],
        spare=floats[f3:f4],
        link_f=floats[f4:f5].reshape(links, 4),
        room=floats[f5:f6],
        link_i=ints[i13:i14].reshape(links, 5),
        frozen=ints[i14:i15],
        round_f=floats[f6:f7].reshape(links, 3),
        round_i=ints[i15:i16].reshape(links, 3),
        turn=ints[i16:i17],
        used=ints[i17:i18],
        fresh=ints[i18:i19],
        route_ptr=ints[i19:i20],
        route_i=ints[i20:i21],
        route_w=floats[f8:f9],
        route_f=floats[f7:f8],
        heap_f=floats[f9:f10],
        heap_i=ints[i21:i22].reshape(events, 3),
        gone=ints[i22:i23],
        free=ints[i23:i24],
        work=ints[i24:i25].reshape(work, 3),
        ended=ints[i25:i26],
        soon=ints[i26:].reshape(events, 2),
        clock=floats[f10 : f10 + 6],
        began=floats[f10 + 6 : f10 + 6 + flows],
        counts=counts,
    )


def row_shift(hops: int) -> int:
    """SHIFT for routes of at most this many links."""
    return (2 * hops - 1).bit_length()


def connect(net: Net, capacity: Floats, flows: NDArray[np.int64]) -> None:
    """Set the links: capacity (B/s) and most flows at once, float64 and int64 [links].

    PLACES is their sum plus one for each link.
    """
    net.link_f[:, CAPACITY] = capacity
    net.link_i[:, L_FIRST] = np.cumsum(flows + 1) - (flows + 1)
    net.link_i[:, L_END] = net.link_i[:, L_FIRST]
    net.frozen[:] = net.link_i[:, L_FIRST]
    net.room[::2] = capacity
    net.room[1::2] = 0.0
    net.clock[FIRST_END] = np.inf


inlined_views = inlined(views)  # for compiled functions; Python calls the plain one


@inlined
def _push(net: Net, time: float, kind: int, item: int) -> None:
    """Add an event; those of one time come out in the order in which they went in."""
    heap_f = net.heap_f
    heap_i = net.heap_i
    counts = net.counts
    i = np.uint64(counts[N_HEAP])
    counts[N_HEAP] += 1
    counts[N_SEQUENCE] += 1
    while i > np.uint64(0):
        parent = np.uint64((i - np.uint64(1)) >> np.uint64(1))
        if heap_f[parent] <= time:
            break
        heap_f[i] = heap_f[parent]
        for c in range(3):
            heap_i[i, c] = heap_i[parent, c]
        i = parent
    heap_f[i] = time
    heap_i[i, 0] = kind
    heap_i[i, 1] = item
    heap_i[i, 2] = counts[N_SEQUENCE]


@inlined
def _sooner(net: Net, a: np.uint64, time: float, sequence: int) -> bool:
    heap_f = net.heap_f
    heap_i = net.heap_i
    if heap_f[a] != time:
        return bool(heap_f[a] < time)
    return bool(heap_i[a, 2] < sequence)


@inlined
def _pop(net: Net) -> tuple[int, int]:
    heap_f = net.heap_f
    heap_i = net.heap_i
    counts = net.counts
    kind = heap_i[0, 0]
    item = heap_i[0, 1]
    counts[N_HEAP] -= 1
    n = np.uint64(counts[N_HEAP])
    if n > np.uint64(0):
        time = heap_f[n]
        last_kind = heap_i[n, 0]
        last_item = heap_i[n, 1]
        sequence = heap_i[n, 2]
        i = np.uint64(0)
        while True:
            child = np.uint64((i << np.uint64(1)) | np.uint64(1))
            if child >= n:
                break
            other = np.uint64(child + np.uint64(1))
            if other < n and _sooner(net, other, heap_f[child], heap_i[child, 2]):
                child = other
            if not _sooner(net, child, time, sequence):
                break
            heap_f[i] = heap_f[child]
            for c in range(3):
                heap_i[i, c] = heap_i[child, c]
            i = child
        heap_f[i] = time
        heap_i[i, 0] = last_kind
        heap_i[i, 1] = last_item
        heap_i[i, 2] = sequence
    return kind, item


@inlined
def _before(net: Net, at: int) -> bool:
    """Whether the first event of the heap comes before this operation of `soon`."""
    return _sooner(net, np.uint64(0), net.clock[SOON_S], net.soon[at, 1])


@inlined
def _enter(net: Net, flow: int, now: float) -> None:
    """Put a flow on its links; its rate comes with the next solve."""
    flow_f = net.flow_f
    way = net.way
    line = net.line
    room = net.room
    link_i = net.link_i
    route_ptr = net.route_ptr
    route_i = net.route_i
    used = net.used
    fresh = net.fresh
    counts = net.counts
    clock = net.clock
    route = net.flow_i[flow, F_ROUTE]
    flow_f[flow, RATE] = 0.0
    flow_f[flow, SINCE] = now
    flow_f[flow, ENDS] = np.inf
    net.began[flow] = now
    if counts[WEIGHTED]:
        _enter_weighted(net, flow, now)
        return
    if counts[N_USED] == 0:
        clock[BUSY_SINCE] = now
    counts[N_CHANGED] = 1
    hop = flow << counts[SHIFT]
    beyond = (flow + 1) << counts[SHIFT]
    for h in range(route_ptr[route], route_ptr[route + 1]):
        link = route_i[h]
        at = link_i[link, L_END]
        if at == link_i[link, L_FIRST]:
            used[counts[N_USED]] = link
            link_i[link, L_USED] = counts[N_USED]
            counts[N_USED] += 1
        way[hop] = link
        way[hop + 1] = at
        line[at] = hop
        hop += 2
        link_i[link, L_END] = at + 1
        room[2 * link + 1] += 1.0
        if link_i[link, L_NEW] == 0:
            link_i[link, L_NEW] = 1
            fresh[counts[N_NEW]] = link
            counts[N_NEW] += 1
    while hop < beyond:
        way[hop] = -1
        hop += 2


@inlined
def _enter_weighted(net: Net, flow: int, now: float) -> None:
    """Put a weighted flow on its links, here counted in L_END; alone on all, it has its rate."""
    flow_f = net.flow_f
    flow_i = net.flow_i
    link_f = net.link_f
    link_i = net.link_i
    route_i = net.route_i
    route_w = net.route_w
    counts = net.counts
    route = flow_i[flow, F_ROUTE]
    flow_i[flow, F_ACTIVE] = counts[N_ACTIVE]
    net.active[counts[N_ACTIVE]] = flow
    counts[N_ACTIVE] += 1
    alone = True
    rate = np.inf
    for h in range(net.route_ptr[route], net.route_ptr[route + 1]):
        link = route_i[h]
        alone &= link_i[link, L_END] == link_i[link, L_FIRST]
        rate = min(rate, link_f[link, CAPACITY] / route_w[h])
        link_i[link, L_END] += 1
    if alone:
        ends = now + flow_f[flow, BYTES] / rate if rate > 0.0 else np.inf
        flow_f[flow, RATE] = rate
        flow_f[flow, ENDS] = ends
        net.clock[FIRST_END] = min(net.clock[FIRST_END], ends)
    else:
        counts[N_CHANGED] = 1


@inlined
def _thaw(net: Net, first: int) -> None:
    """Undo the rounds of the solve from `first` on."""
    frozen = net.frozen
    round_i = net.round_i
    counts = net.counts
    if first >= counts[N_ROUNDS]:
        return
    for r in range(first, counts[N_ROUNDS]):
        frozen[round_i[r, R_LINK]] = round_i[r, R_FROM]
    counts[N_ROUNDS] = first
    _give_back(net, round_i[first, R_TRAIL])


@inlined
def _give_back(net: Net, first: int) -> None:
    """Undo what flows took from links, from `first` of the trail on."""
    trail = net.trail
    spare = net.spare
    room = net.room
    frozen = net.frozen
    counts = net.counts
    for i in range(counts[N_TRAIL] - 1, first - 1, -1):
        at = np.uint64(i)
        link = np.uint64(trail[at])
        left = np.uint64(link << np.uint64(1))
        room[left] = spare[at]
        room[left | np.uint64(1)] += 1.0
        frozen[link] -= 1
    counts[N_TRAIL] = first


@inlined
def _round_of(net: Net, flow: int) -> int:
    """The round that froze a flow; if none did, as many as there are."""
    way = net.way
    link_i = net.link_i
    round_i = net.round_i
    counts = net.counts
    rounds: int = counts[N_ROUNDS]
    for hop in range(flow << counts[SHIFT], (flow + 1) << counts[SHIFT], 2):
        link = way[hop]
        if link < 0:
            break
        r: int = link_i[link, L_ROUND]
        if r < rounds and round_i[r, R_LINK] == link and way[hop + 1] >= round_i[r, R_FROM]:
            return r
    return rounds


@inlined
def _leave(net: Net, flow: int) -> None:
    """Take a flow off its links. The rounds before the one that froze it stay as they are: in these
    its links had more to give to each than the tightest.
    """
    way = net.way
    line = net.line
    room = net.room
    link_i = net.link_i
    used = net.used
    free = net.free
    counts = net.counts
    free[counts[N_FREE]] = flow
    counts[N_FREE] += 1
    if counts[WEIGHTED]:
        _leave_weighted(net, flow)
        return
    counts[N_CHANGED] = 1
    _thaw(net, _round_of(net, flow))
    for hop in range(flow << counts[SHIFT], (flow + 1) << counts[SHIFT], 2):
        link = way[hop]
        if link < 0:
            break
        end = link_i[link, L_END] - 1
        link_i[link, L_END] = end
        room[2 * link + 1] -= 1.0
        for at in range(way[hop + 1], end):  # the others keep their order: they freeze in it again
            moved = line[at + 1]
            line[at] = moved
            way[moved + 1] = at
        if end == link_i[link, L_FIRST]:
            counts[N_USED] -= 1
            last = used[counts[N_USED]]
            used[link_i[link, L_USED]] = last
            link_i[last, L_USED] = link_i[link, L_USED]


@inlined
def _leave_weighted(net: Net, flow: int) -> None:
    """Take a weighted flow off its links; where nobody else was, no rate changes."""
    flow_i = net.flow_i
    link_i = net.link_i
    active = net.active
    route_i = net.route_i
    counts = net.counts
    net.clock[FIRST_END] = -1.0
    counts[N_ACTIVE] -= 1
    last = active[counts[N_ACTIVE]]
    active[flow_i[flow, F_ACTIVE]] = last
    flow_i[last, F_ACTIVE] = flow_i[flow, F_ACTIVE]
    route = flow_i[flow, F_ROUTE]
    for h in range(net.route_ptr[route], net.route_ptr[route + 1]):
        link = route_i[h]
        link_i[link, L_END] -= 1
        if link_i[link, L_END] > link_i[link, L_FIRST]:
            counts[N_CHANGED] = 1


@inlined
def _first_changed(net: Net, link: int) -> int:
    """The first round that flows new on this link change: its own, or one that gave a flow more
    than the link now has for each.
    """
    flow_f = net.flow_f
    line = net.line
    link_i = net.link_i
    round_i = net.round_i
    counts = net.counts
    end = link_i[link, L_END]
    left = net.link_f[link, CAPACITY]
    for at in range(link_i[link, L_FIRST], net.frozen[link]):
        flow = line[at] >> counts[SHIFT]
        rate = flow_f[flow, RATE]
        if left < rate * (1.0 - ROUNDING) * (end - at):
            return _round_of(net, flow)
        left -= rate
    r: int = link_i[link, L_ROUND]
    if r < counts[N_ROUNDS] and round_i[r, R_LINK] == link:
        return r
    return counts[N_ROUNDS]  # type: ignore[no-any-return]


@inlined
def _sink(net: Net, i: int, n: int, link: int, share: float) -> None:
    """Put a link into the heap `turn` of n links, at place i or below."""
    turn = net.turn
    link_f = net.link_f
    while True:
        child = 2 * i + 1
        if child >= n:
            break
        if child + 1 < n and link_f[child + 1, SHARE] < link_f[child, SHARE]:
            child += 1
        if link_f[child, SHARE] >= share:
            break
        turn[i] = turn[child]
        link_f[i, SHARE] = link_f[child, SHARE]
        i = child
    turn[i] = link
    link_f[i, SHARE] = share


@inlined
def _solve(net: Net, now: float) -> None:
    """Max-min rates by progressive filling, from the first round that may have changed on.

    Links are tried in the order of their shares in the last solve. Where another link of a flow has
    less for each, what the round did is undone and that link tried. This comes to an end, as shares
    fall from one to the next: strictly, or two links that have the same but for rounding might take
    turns for ever.
    """
    link_i = net.link_i
    frozen = net.frozen
    round_f = net.round_f
    round_i = net.round_i
    fresh = net.fresh
    turn = net.turn
    room = net.room
    counts = net.counts
    for i in range(counts[N_NEW]):
        link_i[fresh[i], L_NEW] = 0
        _thaw(net, _first_changed(net, fresh[i]))
    turns = _turns(net)
    counts[N_NEW] = 0
    counts[N_CHANGED] = 0
    counts[N_SOLVES] += 1
    r = counts[N_ROUNDS]
    first_end = round_f[r - 1, R_FIRST_END] if r > 0 else np.inf
    for i in range(turns):
        link = turn[i]
        while frozen[turn[i]] < link_i[turn[i], L_END]:
            begin = frozen[link]
            end = link_i[link, L_END]
            share = max(room[2 * link] / (end - begin), 0.0)
            trail = counts[N_TRAIL]
            less, slack = _freeze(net, begin, end, share, ROUNDING), ROUNDING
            while less >= 0:
                _give_back(net, trail)
                if room[2 * less] / room[2 * less + 1] < share:
                    break
                slack *= 16.0  # rounding alone made it less while flows took from it
                less = _freeze(net, begin, end, share, slack)
            if less >= 0:
                link = less
                continue
            ends = _set_rates(net, begin, end, share, now)
            frozen[link] = end
            counts[N_RATES] += end - begin
            link_i[link, L_ROUND] = r
            round_i[r, R_LINK] = link
            round_i[r, R_FROM] = begin
            round_i[r, R_TRAIL] = trail
            round_f[r, R_SHARE] = share
            round_f[r, R_ENDS] = ends
            first_end = min(first_end, ends)
            round_f[r, R_FIRST_END] = first_end
            r += 1
            link = turn[i]
    counts[N_ROUNDS] = r
    counts[N_TURNS] = r


@inlined
def _turns(net: Net) -> int:
    """Put the links to try into `turn`: of the rounds undone, by share, then those with new flows.

    They mostly stand in that order already, so that sorting by insertion is quick.
    """
    link_f = net.link_f
    round_f = net.round_f
    round_i = net.round_i
    fresh = net.fresh
    turn = net.turn
    counts = net.counts
    turns = 0
    for r in range(counts[N_ROUNDS], counts[N_TURNS]):
        share = round_f[r, R_SHARE]
        at = turns
        while at > 0 and link_f[at - 1, SHARE] > share:
            link_f[at, SHARE] = link_f[at - 1, SHARE]
            turn[at] = turn[at - 1]
            at -= 1
        link_f[at, SHARE] = share
        turn[at] = round_i[r, R_LINK]
        turns += 1
    for i in range(counts[N_NEW]):
        turn[turns] = fresh[i]
        turns += 1
    return turns


# Places are unsigned where it counts: numba need not look whether they count from the end.
@inlined
def _freeze(net: Net, begin: int, end: int, share: float, slack: float) -> int:
    """Have the flows in these places of a link take their share from their other links.

    Stops at a link that has less for each, by more than the part `slack` (none if that is above 1),
    and gives its number; -1: there is none.
    """
    way = net.way
    line = net.line
    counts = net.counts
    shift = np.uint64(counts[SHIFT])
    two = counts[SHIFT] == 2
    bound = share * (1.0 - slack) if share > 0.0 and slack <= 1.0 else -np.inf
    trail = np.uint64(counts[N_TRAIL])
    less = -1
    for at in range(begin, end):
        mine = np.uint64(line[np.uint64(at)])
        if two:  # the usual case: straight to the one that is not this link's
            hop = np.uint64(mine ^ np.uint64(2))
            other = way[hop]
            if other >= 0:
                if not _take(net, hop, np.uint64(other), share, bound, trail):
                    less = other
                    break
                trail = np.uint64(trail + np.uint64(1))
            continue
        hop = np.uint64((mine >> shift) << shift)
        beyond = np.uint64(hop + (np.uint64(1) << shift))
        while hop < beyond:
            other = way[hop]
            if hop != mine and other >= 0:
                if not _take(net, hop, np.uint64(other), share, bound, trail):
                    less = other
                    break
                trail = np.uint64(trail + np.uint64(1))
            hop = np.uint64(hop + np.uint64(2))
        if less >= 0:
            break
    counts[N_TRAIL] = trail
    return less


@inlined
def _take(
    net: Net, hop: np.uint64, link: np.uint64, share: float, bound: float, trail: np.uint64
) -> bool:
    """Have a flow take its share from one of its links, at `hop` of `way`, and freeze it there.

    Does nothing and gives False if the link has less than `bound` for each.
    """
    way = net.way
    line = net.line
    room = net.room
    frozen = net.frozen
    left = np.uint64(link << np.uint64(1))
    flows = np.uint64(left | np.uint64(1))
    before = room[left]
    if before < bound * room[flows]:
        return False
    net.trail[trail] = link
    net.spare[trail] = before
    room[left] = before - share
    room[flows] -= 1.0
    to = np.uint64(frozen[link])
    frozen[link] = to + np.uint64(1)
    was = np.uint64(way[hop + np.uint64(1)])
    if was != to:
        moved = np.uint64(line[to])
        line[was] = moved
        way[moved + np.uint64(1)] = was
        line[to] = hop
        way[hop + np.uint64(1)] = to
    return True


@inlined
def _set_rates(net: Net, begin: int, end: int, rate: float, now: float) -> float:
    """Give the flows in these places of `line` a rate; returns when the first of them ends (s)."""
    flow_f = net.flow_f
    line = net.line
    shift = np.uint64(net.counts[SHIFT])
    slowness = 1.0 / rate if rate > 0.0 else np.inf
    ends = np.inf
    for at in range(begin, end):
        flow = np.uint64(np.uint64(line[np.uint64(at)]) >> shift)
        if flow_f[flow, RATE] != rate:
            left = flow_f[flow, BYTES] - flow_f[flow, RATE] * (now - flow_f[flow, SINCE])
            flow_f[flow, BYTES] = left
            flow_f[flow, SINCE] = now
            flow_f[flow, RATE] = rate
            flow_f[flow, ENDS] = now + left * slowness if left > 0.0 else now
        if flow_f[flow, ENDS] < ends:
            ends = flow_f[flow, ENDS]
    return ends


@inlined
def _solve_weighted(net: Net, now: float) -> None:
    """Max-min rates of weighted flows by progressive filling, all anew.

    A round freezes what is left on the link that has least for a weight of 1. Flows on a link stand
    in `line` as long as the solve lasts.
    """
    flow_f = net.flow_f
    flow_i = net.flow_i
    active = net.active
    done = net.way
    fill = net.frozen
    line = net.line
    link_f = net.link_f
    link_i = net.link_i
    turn = net.turn
    route_ptr = net.route_ptr
    route_i = net.route_i
    route_w = net.route_w
    counts = net.counts
    net.clock[FIRST_END] = -1.0
    counts[N_CHANGED] = 0
    counts[N_SOLVES] += 1
    counts[N_RATES] += counts[N_ACTIVE]
    live = 0
    for i in range(counts[N_ACTIVE]):
        flow = active[i]
        done[flow] = 0
        route = flow_i[flow, F_ROUTE]
        for h in range(route_ptr[route], route_ptr[route + 1]):
            link = route_i[h]
            at = fill[link]
            if at == link_i[link, L_FIRST]:
                turn[live] = link
                live += 1
                link_f[link, SPARE] = link_f[link, CAPACITY]
                link_f[link, LOAD] = 0.0
            line[at] = flow
            fill[link] = at + 1
            link_f[link, LOAD] += route_w[h]
    for i in range(live):
        link = turn[i]
        link_i[link, L_NEW] = fill[link] - link_i[link, L_FIRST]  # flows not frozen
        fill[link] = link_i[link, L_FIRST]
        link_f[i, SHARE] = link_f[link, SPARE] / link_f[link, LOAD]
    for i in range(live // 2 - 1, -1, -1):
        _sink(net, i, live, turn[i], link_f[i, SHARE])
    while live > 0:
        link = turn[0]
        share = link_f[0, SHARE]
        if link_i[link, L_NEW] > 0:
            now_share = link_f[link, SPARE] / link_f[link, LOAD]
            if now_share > share:  # shares only rise: look again when it is the least
                _sink(net, 0, live, link, now_share)
                continue
        live -= 1
        if live > 0:
            _sink(net, 0, live, turn[live], link_f[live, SHARE])
        if link_i[link, L_NEW] == 0:
            continue
        share = max(share, 0.0)
        for at in range(link_i[link, L_FIRST], link_i[link, L_END]):
            flow = line[at]
            if done[flow]:
                continue
            done[flow] = 1
            route = flow_i[flow, F_ROUTE]
            for h in range(route_ptr[route], route_ptr[route + 1]):
                other = route_i[h]
                link_f[other, SPARE] -= share * route_w[h]
                link_f[other, LOAD] -= route_w[h]
                link_i[other, L_NEW] -= 1
            if flow_f[flow, RATE] != share:
                left = flow_f[flow, BYTES] - flow_f[flow, RATE] * (now - flow_f[flow, SINCE])
                flow_f[flow, BYTES] = left
                flow_f[flow, SINCE] = now
                flow_f[flow, RATE] = share
                if left > 0.0:
                    flow_f[flow, ENDS] = now + left / share if share > 0.0 else np.inf
                else:
                    flow_f[flow, ENDS] = now


@inlined
def _first_end(net: Net) -> float:
    """When the first flow ends at the present rates (s); inf if none does."""
    flow_f = net.flow_f
    active = net.active
    round_f = net.round_f
    counts = net.counts
    rounds = counts[N_ROUNDS]
    clock = net.clock
    if clock[FIRST_END] < 0.0:
        clock[FIRST_END] = np.inf
        for i in range(counts[N_ACTIVE]):
            clock[FIRST_END] = min(clock[FIRST_END], flow_f[active[i], ENDS])
    first = round_f[rounds - 1, R_FIRST_END] if rounds > 0 else np.inf
    return float(min(first, clock[FIRST_END]))


@inlined
def _ending(net: Net, now: float, instant: float) -> int:
    """How many flows end now, put into `gone`: by `instant`, or almost (EPSILON)."""
    flow_f = net.flow_f
    active = net.active
    line = net.line
    link_i = net.link_i
    round_f = net.round_f
    round_i = net.round_i
    gone = net.gone
    clock = net.clock
    began = net.began
    counts = net.counts
    shift = counts[SHIFT]
    epsilon = clock[EPSILON]
    ends = 0
    # Flows that come on in this instant do not end in it: their rates are not known yet.
    some = epsilon > 0.0 or clock[FIRST_END] <= instant
    for i in range(counts[N_ACTIVE] if some else 0):
        flow = active[i]
        if flow_f[flow, ENDS] <= instant + epsilon * (now - began[flow]):
            gone[ends] = flow
            ends += 1
    latest = instant + epsilon * (now - clock[BUSY_SINCE])
    for r in range(counts[N_ROUNDS]):
        if round_f[r, R_ENDS] <= latest:
            link = round_i[r, R_LINK]
            for at in range(round_i[r, R_FROM], link_i[link, L_END]):
                flow = line[at] >> shift
                if flow_f[flow, ENDS] <= instant + epsilon * (now - began[flow]):
                    gone[ends] = flow
                    ends += 1
    return ends


@inlined
def _lay(net: Net, op: int, route: int, size: float, receiver: int, source: int) -> int:
    flow_f = net.flow_f
    flow_i = net.flow_i
    free = net.free
    counts = net.counts
    counts[N_FREE] -= 1
    flow: int = free[counts[N_FREE]]
    flow_f[flow, BYTES] = size
    flow_i[flow, F_ROUTE] = route
    flow_i[flow, F_OP] = op
    flow_i[flow, F_RECEIVER] = receiver
    flow_i[flow, F_SOURCE] = source
    return flow


@inlined
def _todo(net: Net, action: int, op: int, cause: int) -> None:
    work = net.work
    counts = net.counts
    at = np.uint64(counts[N_WORK])
    counts[N_WORK] += 1
    work[at, 0] = action
    work[at, 1] = op
    work[at, 2] = cause


@inlined
def _count_down(net: Net, op: int, cause: int, now: float) -> None:
    """One thing less for an operation to wait for; the last makes it ready."""
    op_f = net.op_f
    op_i = net.op_i
    at = np.uint64(op)
    op_i[at, WAITS] -= 1
    if op_i[at, WAITS] > 0:
        return
    op_f[at, READY] = now
    if op_i[at, KIND] != SEND or op_i[at, RECEIVER] < 0:
        op_i[at, CAUSE] = cause  # else its GPU, for those who receive from it
    if op_f[at, DELAY] > 0.0:
        _push(net, now + op_f[at, DELAY], JOIN, op)
    else:
        _todo(net, JOIN, op, -1)


@inlined
def _join_stream(net: Net, op: int) -> None:
    """Queue an operation, or have it start if its stream is free."""
    op_i = net.op_i
    stream_i = net.stream_i
    at = np.uint64(op)
    if op_i[at, STREAM] >= 0:
        stream = np.uint64(op_i[at, STREAM])
        op_i[at, NEXT] = -1
        last = stream_i[stream, LAST]
        stream_i[stream, LAST] = op
        if last >= 0:
            op_i[np.uint64(last), NEXT] = op
            return
        stream_i[stream, RUNNING] = op
    _todo(net, START_IT, op, -1)


@inlined
def _start(net: Net, op: int, now: float) -> None:
    op_f = net.op_f
    op_i = net.op_i
    send_ptr = net.send_ptr
    send_i = net.send_i
    route_f = net.route_f
    at = np.uint64(op)
    op_f[at, START] = now
    kind = op_i[at, KIND]
    row = op_i[at, ROW]
    if kind == TIMED:
        if op_f[at, DURATION] > 0.0:
            _push(net, now + op_f[at, DURATION], FINISH, op)
        else:
            _todo(net, FINISH, op, -1)
    elif kind == FETCH:
        op_i[at, LEFT] = 1
        flow = _lay(net, op, row, op_f[at, DURATION], -1, -1)
        _push(net, now + route_f[np.uint64(row)], FLOW, flow)
    else:
        first = send_ptr[row]
        last = send_ptr[row + 1]
        op_i[op, LEFT] = last - first
        latency = route_f[send_i[first, 1]]
        same = True
        for i in range(first, last):
            same &= route_f[send_i[i, 1]] == latency
        if same:  # the usual case: one event for all
            _push(net, now + latency, BEGIN, op)
        else:
            for i in range(first, last):
                _push(net, now + route_f[send_i[i, 1]], FLOW, _send_flow(net, op, i))


@inlined
def _send_flow(net: Net, op: int, i: int) -> int:
    op_i = net.op_i
    send_i = net.send_i
    receiver = op_i[op, RECEIVER] + send_i[i, 0]
    return _lay(net, op, send_i[i, 1], net.send_f[i], receiver, op_i[op, CAUSE])


@inlined
def _finish(net: Net, op: int, now: float) -> None:
    """An operation has ended: free its stream, tell the outside and those who wait for it."""
    op_i = net.op_i
    stream_i = net.stream_i
    ended = net.ended
    counts = net.counts
    edge_ptr = net.edge_ptr
    edge_to = net.edge_to
    more_head = net.more_head
    more = net.more
    at = np.uint64(op)
    net.op_f[at, END] = now
    if op_i[at, TELL]:
        ended[counts[N_ENDED]] = op
        counts[N_ENDED] += 1
    stream = op_i[at, STREAM]
    # Only a point of meeting hands on what it waited for, and a whole collective the operation for
    # which it waited; a kernel is a cause of its own.
    cause = -1
    if (stream < 0 and op_i[at, KIND] == TIMED) or (
        op_i[at, KIND] == SEND and op_i[at, RECEIVER] < 0
    ):
        cause = op_i[at, CAUSE]
    if op < counts[LAID]:
        for e in range(edge_ptr[at], edge_ptr[np.uint64(at + np.uint64(1))]):
            after = edge_to[np.uint64(e)]
            next_ = np.uint64(after)
            whole = op_i[next_, KIND] == SEND and op_i[next_, RECEIVER] < 0
            _todo(net, COUNT, after, op if whole else cause)
    item = more_head[at]
    more_head[at] = -1
    while item >= 0:
        _todo(net, COUNT, more[np.uint64(item), 0], cause)
        item = more[np.uint64(item), 1]
    if stream >= 0:
        of = np.uint64(stream)
        after = op_i[at, NEXT]
        stream_i[of, RUNNING] = after
        if after >= 0:
            _todo(net, START_IT, after, -1)
        else:
            stream_i[of, LAST] = -1
            if stream_i[of, TELL_IDLE]:
                stream_i[of, TELL_IDLE] = 0
                ended[counts[N_ENDED]] = -1 - stream
                counts[N_ENDED] += 1


@inlined
def prepare(net: Net, op: int, kind: int, stream: int, row: int, amount: float) -> None:
    """Make a new operation, which waits for one thing; amount: duration (s) or bytes."""
    op_f = net.op_f
    op_i = net.op_i
    at = np.uint64(op)
    op_i[at, KIND] = kind
    op_i[at, STREAM] = stream
    op_i[at, ROW] = row
    op_i[at, TELL] = 0
    op_i[at, WAITS] = 1
    op_f[at, START] = -1.0
    op_f[at, END] = -1.0
    op_f[at, DURATION] = amount
    op_f[at, DELAY] = 0.0
    net.more_head[at] = -1


@inlined
def hold(net: Net, before: int, after: int) -> None:
    """Have an operation wait for another, unless that has ended."""
    more_head = net.more_head
    more = net.more
    counts = net.counts
    if net.op_f[before, END] >= 0.0:
        return
    item = counts[N_MORE]
    counts[N_MORE] += 1
    more[item, 0] = after
    more[item, 1] = -1
    last = more_head[before]
    if last < 0:
        more_head[before] = item
    else:  # those who wait longest are let go first
        while more[last, 1] >= 0:
            last = more[last, 1]
        more[last, 1] = item
    net.op_i[after, WAITS] += 1


@inlined
def let_go(net: Net, op: int, now: float) -> None:
    """Take one thing to wait for from an operation at `now` (s); not while the core runs."""
    counts = net.counts
    clock = net.clock
    soon = net.soon
    at = counts[N_SOON]
    if at > 0 and clock[SOON_S] != now:
        _push(net, now, COUNT, op)
        return
    counts[N_SOON] = at + 1
    counts[N_SEQUENCE] += 1
    clock[SOON_S] = now
    soon[at, 0] = op
    soon[at, 1] = counts[N_SEQUENCE]


@allocation_free
def start(floats: Floats, ints: Ints, counts: Longs, ops: Ints, now: float) -> None:
    """Take one thing to wait for from each of `ops` int32 [n], at `now` (s), in their order."""
    net = inlined_views(floats, ints, counts)
    for op in ops:
        let_go(net, op, max(now, net.clock[PRESENT]))


@allocation_free
def add(
    floats: Floats,
    ints: Ints,
    counts: Longs,
    whole: Ints,
    real: Floats,
    edges: Ints,
    release: int,
    now: float,
) -> None:
    """Add operations while the core runs, and start them at `now` (s) as far as nothing holds them.

    `whole` int32 [4 n]: operation, kind, stream, row of each; `real` float64 [n]: duration (s) or
    bytes; `edges` int32 [2 m]: from, to of each. A `from` that has ended holds nothing. Then one
    thing to wait for is taken from the operation `release` (-1: none).
    """
    net = inlined_views(floats, ints, counts)
    now = max(now, net.clock[PRESENT])
    for i in range(real.size):
        prepare(net, whole[4 * i], whole[4 * i + 1], whole[4 * i + 2], whole[4 * i + 3], real[i])
    for i in range(edges.size // 2):
        hold(net, edges[2 * i], edges[2 * i + 1])
    for i in range(real.size):
        let_go(net, whole[4 * i], now)
    if release >= 0:
        let_go(net, release, now)


@allocation_free
def advance(floats: Floats, ints: Ints, counts: Longs, limit: float) -> int:
    """Run until something of which the outside wants to hear, or past `limit` (s).

    Returns how many such ends there were, all at one instant; `ended` holds them. `clock` holds
    the core's present and its next event (inf if none).
    """
    net = inlined_views(floats, ints, counts)
    op_i = net.op_i
    send_ptr = net.send_ptr
    flow_i = net.flow_i
    gone = net.gone
    heap_f = net.heap_f
    soon = net.soon
    work = net.work
    clock = net.clock
    while counts[N_ENDED] == 0:
        if counts[N_CHANGED] > 0:
            if counts[WEIGHTED]:
                _solve_weighted(net, clock[PRESENT])
            else:
                _solve(net, clock[PRESENT])
        now = _first_end(net)
        if counts[N_HEAP] > 0:
            now = min(now, heap_f[0])
        if counts[N_SOON] > 0:
            now = min(now, clock[SOON_S])
        if now > limit or now == np.inf:
            clock[NEXT_EVENT] = now
            return 0
        now = max(now, clock[PRESENT])
        clock[PRESENT] = now
        instant = now * (1.0 + SAME_INSTANT)
        ends = _ending(net, now, instant)
        for i in range(ends):
            flow = gone[i]
            receiver = flow_i[flow, F_RECEIVER]
            op = flow_i[flow, F_OP]
            _leave(net, flow)
            if receiver >= 0:
                _todo(net, COUNT, receiver, flow_i[flow, F_SOURCE])
            op_i[op, LEFT] -= 1
            if op_i[op, LEFT] == 0:
                _todo(net, FINISH, op, -1)
        done = 0
        let = 0
        soon_n = counts[N_SOON] if clock[SOON_S] <= instant else 0
        while True:  # what follows at this instant, first come, first served
            if done < counts[N_WORK]:
                at = np.uint64(done)
                action = work[at, 0]
                item = work[at, 1]
                cause = work[at, 2]
                done += 1
            elif let < soon_n and not (counts[N_HEAP] > 0 and _before(net, let)):
                action, item, cause = COUNT, int(soon[let, 0]), -1
                let += 1
            elif counts[N_HEAP] > 0 and heap_f[0] <= instant:
                action, item = _pop(net)
                cause = -1
            else:
                break
            if action == COUNT:
                _count_down(net, item, cause, now)
            elif action == JOIN:
                _join_stream(net, item)
            elif action == START_IT:
                _start(net, item, now)
            elif action == FINISH:
                _finish(net, item, now)
            else:
                first, last = 0, 1
                if action == BEGIN:
                    row = op_i[item, ROW]
                    first, last = send_ptr[row], send_ptr[row + 1]
                for i in range(first, last):
                    flow = _send_flow(net, item, i) if action == BEGIN else item
                    _enter(net, flow, now)
        counts[N_WORK] = 0
        if soon_n > 0:
            counts[N_SOON] = 0
    clock[NEXT_EVENT] = clock[PRESENT]
    found = int(counts[N_ENDED])
    counts[N_ENDED] = 0
    return found
