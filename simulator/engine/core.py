"""The event core: operations on streams and flows on links, as one compiled kernel.

*Operations.* An operation becomes ready when all it waits for has ended, a fixed delay later joins
the queue of its stream (first ready, first served; stream -1 has no queue), runs, and ends. It is
one of: a *timed* operation (a kernel; of no duration it is only a point where others meet), a
*send* (the transfers of one GPU in one collective; ends with the last of them), or a *fetch* (one
transfer). An operation's end counts down the `waits` of those that depend on it; so does the end
of a send's transfer for the operation that receives it.

*Flows.* A transfer waits its path's latency, then moves its bytes at the rate that max-min
fairness gives it among the transfers sharing each link (progressive filling: Bertsekas & Gallager,
Data Networks, 2nd ed., section 6.5.2). All that changes at one instant is one solve, and only the
transfers that shared links connect to a change are solved again.

The core moves on its own until an operation ends of which the outside wants to hear, or to the
next event outside. Its state lies in three buffers, so that a call passes few arrays; `views`
gives them names and shapes, as the tuple `Net`:

    op_f    float64 [ops, 5]     when ready, start, end (s; -1 before), duration (s) or fetch bytes,
                                 delay (s) between ready and the queue
    op_i    int32   [ops, 9]     kind, stream, waits, next in stream, row (send: of the send table;
                                 fetch: route), first receiver, transfers left, cause, 1 = tell
    edge_ptr, edge_to  int32 [laid ops + 1], [edges]      who waits for an operation, laid at start
    more_head int32 [ops], more int32 [MORE, 2]           the same, added later: to, next
    stream_i int32  [streams, 3] running operation, last queued, 1 = tell when it falls idle
    send_ptr, send_i  int32 [rows + 1], [sends, 2]        send table: target GPU, route
    send_f  float64 [sends]      bytes
    flow_f  float64 [flows, 3]   bytes left, rate (B/s), time to which `bytes left` refers (s)
    flow_i  int32   [flows, 6]   route, operation, receiver, place in `active`, mark, source GPU
    finish  float64 [flows]      when it ends at the present rate (s), by place in `active`
    hops    int32   [flows * HOPS, 2]   next and previous flow-hop on the same link
    link_f  float64 [links, 2]   capacity (B/s), capacity left in the present solve
    link_i  int32   [links, 3]   first flow-hop, unfrozen flows in the present solve, mark
    route_i int32   [routes, 1 + HOPS]  number of links, links
    route_f float64 [routes]     latency (s)
    heap_f, heap_i  float64, int32 [events, 3]  times; kind, item and number of what will happen
    active, free    int32 [flows]   flows on the wire; unused rows
    dirty   int32   [links]      links whose flows changed since the last solve
    work    int32   [WORK, 3]    what is still to do in this instant: action, operation, cause
    ended   int32   [ops + streams]  out: operations that ended, or -1 - stream that fell idle
    clock   float64 [2]          present; next event (inf: none)
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

HOPS = 12  # most links of one route

READY, START, END, DURATION, DELAY = 0, 1, 2, 3, 4
KIND, STREAM, WAITS, NEXT, ROW, RECEIVER, LEFT, CAUSE, TELL = 0, 1, 2, 3, 4, 5, 6, 7, 8
TIMED, SEND, FETCH = 0, 1, 2
RUNNING, LAST, TELL_IDLE = 0, 1, 2
BYTES, RATE, SINCE = 0, 1, 2
F_ROUTE, F_OP, F_RECEIVER, F_PLACE, F_MARK, F_SOURCE = 0, 1, 2, 3, 4, 5
CAPACITY, SPARE = 0, 1
L_HEAD, L_COUNT, L_MARK = 0, 1, 2

# counts: sizes of the tables, then the core's own integers
OPS, LAID, EDGES, MORE, STREAMS, ROWS, SENDS, FLOWS, LINKS, ROUTES, EVENTS, WORK = range(12)
SIZES = 12
N_ACTIVE, N_HEAP, N_MARK, N_DIRTY, N_FREE, N_SEQUENCE, N_ENDED, N_MORE, N_WORK = range(12, 21)
N_SOLVES, N_RATES = 21, 22
COUNTS = 23

# Actions on an operation, and kinds of event: one thing less to wait for; queue it on its stream;
# start it; it has ended; its transfers, or one of them, go on the wire.
COUNT, JOIN, START_IT, FINISH, BEGIN, FLOW = 0, 1, 2, 3, 4, 5
MANY = 1 << 30  # solves or events after which their numbers start again, between two steps
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
    finish: Floats
    hops: Ints
    link_f: Floats
    link_i: Ints
    route_i: Ints
    route_f: Floats
    heap_f: Floats
    heap_i: Ints
    active: Ints
    free: Ints
    dirty: Ints
    work: Ints
    ended: Ints
    clock: Floats
    counts: Longs


def buffers(sizes: list[int]) -> tuple[Floats, Ints, Longs]:
    """Zeroed buffers for tables of these sizes (in the order OPS, LAID, ..., WORK)."""
    ops, laid, edges, more, streams, rows, sends, flows, links, routes, events, work = sizes
    floats = np.zeros(5 * ops + sends + 4 * flows + 2 * links + routes + events + 2)
    ints = np.zeros(
        11 * ops + laid + 1 + edges + 2 * more + 4 * streams + rows + 1 + 2 * sends
        + (8 + 2 * HOPS) * flows + 4 * links + (1 + HOPS) * routes + 3 * events
        + 3 * work,
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
    f1 = 5 * ops
    f2 = f1 + sends
    f3 = f2 + 3 * flows
    f4 = f3 + flows
    f5 = f4 + 2 * links
    f6 = f5 + routes
    f7 = f6 + events
    i1 = 9 * ops
    i2 = i1 + laid + 1
    i3 = i2 + edges
    i4 = i3 + ops
    i5 = i4 + 2 * more
    i6 = i5 + 3 * streams
    i7 = i6 + rows + 1
    i8 = i7 + 2 * sends
    i9 = i8 + 6 * flows
    i10 = i9 + 2 * HOPS * flows
    i11 = i10 + 3 * links
    i12 = i11 + (1 + HOPS) * routes
    i13 = i12 + 3 * events
    i14 = i13 + flows
    i15 = i14 + flows
    i16 = i15 + links
    i17 = i16 + 3 * work
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
        flow_f=floats[f2:f3].reshape(flows, 3),
        flow_i=ints[i8:i9].reshape(flows, 6),
        finish=floats[f3:f4],
        hops=ints[i9:i10].reshape(flows * HOPS, 2),
        link_f=floats[f4:f5].reshape(links, 2),
        link_i=ints[i10:i11].reshape(links, 3),
        route_i=ints[i11:i12].reshape(routes, 1 + HOPS),
        route_f=floats[f5:f6],
        heap_f=floats[f6:f7],
        heap_i=ints[i12:i13].reshape(events, 3),
        active=ints[i13:i14],
        free=ints[i14:i15],
        dirty=ints[i15:i16],
        work=ints[i16:i17].reshape(work, 3),
        ended=ints[i17 : i17 + ops + streams],
        clock=floats[f7 : f7 + 2],
        counts=counts,
    )


_views = inlined(views)  # for the functions below; Python calls the plain one


@inlined
def _push(net: Net, time: float, kind: int, item: int) -> None:
    """Add an event; those of one time come out in the order in which they went in."""
    heap_f = net.heap_f
    heap_i = net.heap_i
    counts = net.counts
    i = counts[N_HEAP]
    counts[N_HEAP] += 1
    counts[N_SEQUENCE] += 1
    while i > 0:
        parent = (i - 1) // 2
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
def _sooner(net: Net, a: int, time: float, sequence: int) -> bool:
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
    n = counts[N_HEAP]
    if n > 0:
        time = heap_f[n]
        last_kind = heap_i[n, 0]
        last_item = heap_i[n, 1]
        sequence = heap_i[n, 2]
        i = 0
        while True:
            child = 2 * i + 1
            if child >= n:
                break
            if child + 1 < n and _sooner(net, child + 1, heap_f[child], heap_i[child, 2]):
                child += 1
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
def _touch(net: Net, link: int) -> None:
    """Note that a flow came to or left this link, so that its part of the network is re-solved."""
    link_i = net.link_i
    dirty = net.dirty
    counts = net.counts
    if link_i[link, L_MARK] >= 0:
        link_i[link, L_MARK] = -1
        dirty[counts[N_DIRTY]] = link
        counts[N_DIRTY] += 1


@inlined
def _enter(net: Net, flow: int, now: float) -> None:
    """Put a flow on its links; its rate comes with the next solve."""
    flow_f = net.flow_f
    flow_i = net.flow_i
    finish = net.finish
    hops = net.hops
    link_i = net.link_i
    route_i = net.route_i
    active = net.active
    counts = net.counts
    route = flow_i[flow, F_ROUTE]
    place = counts[N_ACTIVE]
    counts[N_ACTIVE] += 1
    active[place] = flow
    flow_i[flow, F_PLACE] = place
    flow_f[flow, RATE] = 0.0
    flow_f[flow, SINCE] = now
    finish[place] = np.inf
    for h in range(route_i[route, 0]):
        link = route_i[route, 1 + h]
        hop = flow * HOPS + h
        head = link_i[link, L_HEAD]
        hops[hop, 0] = head
        hops[hop, 1] = -1
        if head >= 0:
            hops[head, 1] = hop
        link_i[link, L_HEAD] = hop
        _touch(net, link)


@inlined
def _leave(net: Net, flow: int) -> None:
    flow_i = net.flow_i
    finish = net.finish
    hops = net.hops
    link_i = net.link_i
    route_i = net.route_i
    active = net.active
    free = net.free
    counts = net.counts
    route = flow_i[flow, F_ROUTE]
    for h in range(route_i[route, 0]):
        link = route_i[route, 1 + h]
        hop = flow * HOPS + h
        after = hops[hop, 0]
        before = hops[hop, 1]
        if before >= 0:
            hops[before, 0] = after
        else:
            link_i[link, L_HEAD] = after
        if after >= 0:
            hops[after, 1] = before
        _touch(net, link)
    place = flow_i[flow, F_PLACE]
    last = counts[N_ACTIVE] - 1
    counts[N_ACTIVE] = last
    moved = active[last]
    active[place] = moved
    finish[place] = finish[last]
    flow_i[moved, F_PLACE] = place
    free[counts[N_FREE]] = flow
    counts[N_FREE] += 1


@inlined
def _solve(net: Net, now: float) -> None:
    """Max-min rates of the part of the network that the dirty links reach, by progressive filling.

    `dirty` grows from the changed links into all links of the part.
    """
    flow_f = net.flow_f
    flow_i = net.flow_i
    finish = net.finish
    hops = net.hops
    link_f = net.link_f
    link_i = net.link_i
    route_i = net.route_i
    dirty = net.dirty
    counts = net.counts
    counts[N_MARK] += 1
    mark = counts[N_MARK]
    links = counts[N_DIRTY]
    flows = 0
    for i in range(links):
        link_i[dirty[i], L_MARK] = mark
    i = 0
    while i < links:  # breadth first over links and the flows on them
        link = dirty[i]
        i += 1
        n = 0
        hop = link_i[link, L_HEAD]
        while hop >= 0:
            n += 1
            flow = hop // HOPS
            if flow_i[flow, F_MARK] != mark:
                flow_i[flow, F_MARK] = mark
                flows += 1
                route = flow_i[flow, F_ROUTE]
                for h in range(route_i[route, 0]):
                    other = route_i[route, 1 + h]
                    if link_i[other, L_MARK] != mark:
                        link_i[other, L_MARK] = mark
                        dirty[links] = other
                        links += 1
            hop = hops[hop, 0]
        link_i[link, L_COUNT] = n
        link_f[link, SPARE] = link_f[link, CAPACITY]
    counts[N_DIRTY] = 0
    counts[N_SOLVES] += 1
    counts[N_RATES] += flows
    live = 0
    for i in range(links):
        if link_i[dirty[i], L_COUNT] > 0:
            dirty[live] = dirty[i]
            live += 1
    left = flows
    while left > 0:
        share = np.inf
        tightest = -1
        i = 0
        while i < live:
            link = dirty[i]
            n = link_i[link, L_COUNT]
            if n == 0:
                live -= 1
                dirty[i] = dirty[live]
                continue
            s = link_f[link, SPARE] / n
            if s < share:
                share = s
                tightest = link
            i += 1
        if share < 0.0:
            share = 0.0
        hop = link_i[tightest, L_HEAD]
        while hop >= 0:
            flow = hop // HOPS
            if flow_i[flow, F_MARK] == mark:
                flow_i[flow, F_MARK] = -mark  # frozen
                left -= 1
                route = flow_i[flow, F_ROUTE]
                for h in range(route_i[route, 0]):
                    other = route_i[route, 1 + h]
                    link_f[other, SPARE] -= share
                    link_i[other, L_COUNT] -= 1
                if flow_f[flow, RATE] != share:
                    flow_f[flow, BYTES] -= flow_f[flow, RATE] * (now - flow_f[flow, SINCE])
                    flow_f[flow, SINCE] = now
                    flow_f[flow, RATE] = share
                    if flow_f[flow, BYTES] <= 0.0:
                        finish[flow_i[flow, F_PLACE]] = now
                    else:
                        finish[flow_i[flow, F_PLACE]] = now + flow_f[flow, BYTES] / share
            hop = hops[hop, 0]


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
    flow_i[flow, F_MARK] = 0
    flow_i[flow, F_SOURCE] = source
    return flow


@inlined
def _todo(net: Net, action: int, op: int, cause: int) -> None:
    work = net.work
    counts = net.counts
    at = counts[N_WORK]
    counts[N_WORK] = at + 1
    work[at, 0] = action
    work[at, 1] = op
    work[at, 2] = cause


@inlined
def _count_down(net: Net, op: int, cause: int, now: float) -> None:
    """One thing less for an operation to wait for; the last makes it ready."""
    op_f = net.op_f
    op_i = net.op_i
    op_i[op, WAITS] -= 1
    if op_i[op, WAITS] > 0:
        return
    op_f[op, READY] = now
    if op_i[op, KIND] != SEND:  # a send's cause is its GPU, for those who receive from it
        op_i[op, CAUSE] = cause
    if op_f[op, DELAY] > 0.0:
        _push(net, now + op_f[op, DELAY], JOIN, op)
    else:
        _todo(net, JOIN, op, -1)


@inlined
def _join_stream(net: Net, op: int) -> None:
    """Queue an operation, or have it start if its stream is free."""
    op_i = net.op_i
    stream_i = net.stream_i
    stream = op_i[op, STREAM]
    if stream >= 0:
        op_i[op, NEXT] = -1
        last = stream_i[stream, LAST]
        stream_i[stream, LAST] = op
        if last >= 0:
            op_i[last, NEXT] = op
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
    op_f[op, START] = now
    kind = op_i[op, KIND]
    row = op_i[op, ROW]
    if kind == TIMED:
        if op_f[op, DURATION] > 0.0:
            _push(net, now + op_f[op, DURATION], FINISH, op)
        else:
            _todo(net, FINISH, op, -1)
    elif kind == FETCH:
        op_i[op, LEFT] = 1
        flow = _lay(net, op, row, op_f[op, DURATION], -1, -1)
        _push(net, now + route_f[row], FLOW, flow)
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
    net.op_f[op, END] = now
    if op_i[op, TELL]:
        ended[counts[N_ENDED]] = op
        counts[N_ENDED] += 1
    stream = op_i[op, STREAM]
    # Only a point of meeting hands on what it waited for; a kernel is a cause of its own.
    cause = -1
    if stream < 0 and op_i[op, KIND] == TIMED:
        cause = op_i[op, CAUSE]
    if op < counts[LAID]:
        for e in range(edge_ptr[op], edge_ptr[op + 1]):
            _todo(net, COUNT, edge_to[e], cause)
    item = more_head[op]
    more_head[op] = -1
    while item >= 0:
        _todo(net, COUNT, more[item, 0], cause)
        item = more[item, 1]
    if stream >= 0:
        after = op_i[op, NEXT]
        stream_i[stream, RUNNING] = after
        if after >= 0:
            _todo(net, START_IT, after, -1)
        else:
            stream_i[stream, LAST] = -1
            if stream_i[stream, TELL_IDLE]:
                stream_i[stream, TELL_IDLE] = 0
                ended[counts[N_ENDED]] = -1 - stream
                counts[N_ENDED] += 1


@allocation_free
def start(floats: Floats, ints: Ints, counts: Longs, ops: Ints, now: float) -> None:
    """Take one thing to wait for from each of `ops` int32 [n], at `now` (s), in their order."""
    net = _views(floats, ints, counts)
    for op in ops:
        _push(net, max(now, net.clock[0]), COUNT, op)


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
    net = _views(floats, ints, counts)
    op_f = net.op_f
    op_i = net.op_i
    more_head = net.more_head
    more = net.more
    now = max(now, net.clock[0])
    for i in range(real.size):
        op = whole[4 * i]
        op_i[op, KIND] = whole[4 * i + 1]
        op_i[op, STREAM] = whole[4 * i + 2]
        op_i[op, ROW] = whole[4 * i + 3]
        op_i[op, TELL] = 0
        op_i[op, WAITS] = 1
        op_f[op, START] = -1.0
        op_f[op, END] = -1.0
        op_f[op, DURATION] = real[i]
        op_f[op, DELAY] = 0.0
        more_head[op] = -1
    for i in range(edges.size // 2):
        before = edges[2 * i]
        after = edges[2 * i + 1]
        if op_f[before, END] < 0.0:
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
            op_i[after, WAITS] += 1
    for i in range(real.size):
        _push(net, now, COUNT, whole[4 * i])
    if release >= 0:
        _push(net, now, COUNT, release)


@allocation_free
def advance(floats: Floats, ints: Ints, counts: Longs, limit: float) -> int:
    """Run until something of which the outside wants to hear, or past `limit` (s).

    Returns how many such ends there were, all at one instant; `ended` holds them. `clock` holds
    the core's present and its next event (inf if none).
    """
    net = _views(floats, ints, counts)
    op_i = net.op_i
    send_ptr = net.send_ptr
    flow_i = net.flow_i
    finish = net.finish
    heap_f = net.heap_f
    active = net.active
    work = net.work
    clock = net.clock
    while counts[N_ENDED] == 0:
        if counts[N_DIRTY] > 0:
            _solve(net, clock[0])
        now = np.inf
        if counts[N_HEAP] > 0:
            now = heap_f[0]
        for place in range(counts[N_ACTIVE]):
            now = min(now, finish[place])
        if now > limit or now == np.inf:
            clock[1] = now
            return 0
        now = max(now, clock[0])
        clock[0] = now
        instant = now * (1.0 + SAME_INSTANT)
        place = 0
        while place < counts[N_ACTIVE]:
            if finish[place] > instant:
                place += 1
                continue
            flow = active[place]
            receiver = flow_i[flow, F_RECEIVER]
            op = flow_i[flow, F_OP]
            _leave(net, flow)
            if receiver >= 0:
                _todo(net, COUNT, receiver, flow_i[flow, F_SOURCE])
            op_i[op, LEFT] -= 1
            if op_i[op, LEFT] == 0:
                _todo(net, FINISH, op, -1)
        done = 0
        while True:  # what follows at this instant, first come, first served
            if done < counts[N_WORK]:
                action = work[done, 0]
                item = work[done, 1]
                cause = work[done, 2]
                done += 1
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
    clock[1] = clock[0]
    found = int(counts[N_ENDED])
    counts[N_ENDED] = 0
    return found
