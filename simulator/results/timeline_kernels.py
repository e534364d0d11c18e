"""Compiled: one pass over a block of whole steps, for `simulator.results.timeline`.

A step is worked through by itself, in tables that hold the spans of one GPU one after another, so
that what is searched lies close together. All of it is in one file because numba's cache on disk
knows of changes to the file of a compiled function only, not of those it calls.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.compiled import allocation_free, inlined
from simulator.runfiles.spans import (
    ATTENTION,
    COMBINE,
    COMM,
    COMPUTE,
    DISPATCH,
    LM_HEAD,
    SEND,
)
from simulator.runfiles.tables import Columns, for_kernel

Floats = NDArray[np.float64]
Longs = NDArray[np.int64]

FAULT, ROW, ON_PATHS, COMMS = range(4)
"""`Found.counts`."""

WELL, UNSORTED, NO_GPU, OUTSIDE, OVERLAP, NO_KERNEL = range(6)
"""What `account` says of a block: accounted for; or that a row is out of order, or wrong."""

COMPUTING, EXPOSED, FETCH_STALL, PEER_WAIT, IDLE = range(5)  # timeline.PARTS
_HALF = 1 << 15  # makes a number of 16 bits one that is not negative


class Spans(NamedTuple):
    """Columns [spans] of a block, the dtypes of the file; `stream` and `kind` as codes of int8."""

    microbatch: NDArray[np.int16]
    chunk: NDArray[np.int16]
    layer: NDArray[np.int16]
    gpu: NDArray[np.int32]
    stream: NDArray[np.int8]
    kind: NDArray[np.int8]
    start_s: Floats
    end_s: Floats
    ready_s: Floats
    peer: NDArray[np.int32]
    fetch_wait_s: Floats


class Steps(NamedTuple):
    """The steps of a block, in order: `bounds` [steps + 1] of their rows, start and end [steps]."""

    bounds: Longs
    start_s: Floats
    end_s: Floats


class Lanes(NamedTuple):
    """Compute spans of one step by GPU, then time, in seconds from the start of the step.

    first [gpus + 1]: where those of each GPU begin, and last: the one found last on each; row:
    of the block; awaiting: those that await a transfer, in the order of rows; feed: which one
    (`_feed`); maker: the span that made its data, -1 if there is none, and since: when that had
    ended; before_s: compute seconds of the block before each.
    """

    first: Longs
    last: Longs
    row: Longs
    awaiting: Longs
    peer: Longs
    feed: Longs
    maker: Longs
    begin: Floats
    end: Floats
    ready: Floats
    fetch_wait: Floats
    since: Floats
    before_s: Floats


class Feeds(NamedTuple):
    """Dispatches and combines of one step: a table of hashes by GPU (-1: free) and `_feed`. Of
    each, the one that ended last, and when its data had been made.
    """

    gpu: Longs
    feed: Longs
    end: Floats
    made: Floats


class Sends(NamedTuple):
    """Transfers of one step other than dispatch and combine, by GPU, then time, as `Lanes`; when
    their data had been made.
    """

    first: Longs
    last: Longs
    row: Longs
    begin: Floats
    end: Floats
    made: Floats


class Found(NamedTuple):
    """What `account` finds.

    breakdown_s: [gpus, parts]; of the spans on the paths: computed_s, sent_s and fetched_s [n],
    their compute, communication and fetch stall; of comm spans: comm_s, overlapped_s [n]; counts
    [4]: FAULT is `WELL` or what is wrong, with row ROW, and then how many spans these are.
    """

    breakdown_s: Floats
    computed_s: Floats
    sent_s: Floats
    fetched_s: Floats
    comm_s: Floats
    overlapped_s: Floats
    counts: Longs


class Tables:
    """Room to work in, kept from block to block."""

    def __init__(self) -> None:
        self._held: dict[str, NDArray[Any]] = {}

    def account(self, spans: Columns, steps: Steps, gpus: int, tolerance: float) -> Found:
        """`account`; what is found is good until the next one."""
        most, rows = int(np.max(np.diff(steps.bounds))), int(steps.bounds[-1])
        slots = max(1 << (2 * most).bit_length(), 2)

        def some(name: str, count: int, fields: Iterable[str], kind: Any) -> list[NDArray[Any]]:
            return [self.room(f"{name} {field}", count, kind) for field in fields]

        lanes = Lanes(
            *some("lanes", gpus + 1, Lanes._fields[:2], np.int64),
            *some("lanes", most, Lanes._fields[2:7], np.int64),
            *some("lanes", most + 1, Lanes._fields[7:], np.float64),
        )
        feeds = Feeds(
            *some("feeds", slots, Feeds._fields[:2], np.int64),
            *some("feeds", slots, Feeds._fields[2:], np.float64),
        )
        sends = Sends(
            *some("sends", gpus + 1, Sends._fields[:2], np.int64),
            *some("sends", most, Sends._fields[2:3], np.int64),
            *some("sends", most, Sends._fields[3:], np.float64),
        )
        seconds = some("found", rows, Found._fields[1:6], np.float64)
        found = Found._make([np.zeros((gpus, 5)), *seconds, np.zeros(4, np.int64)])
        given = Spans(*for_kernel(spans, Spans._fields))
        account(given, steps, gpus, tolerance, lanes, feeds, sends, found)
        return found

    def room(self, name: str, count: int, kind: Any) -> NDArray[Any]:
        """The array [count] of this name; what it held is lost."""
        held = self._held.get(name)
        if held is None or len(held) < count or held.dtype != kind:
            held = self._held[name] = np.empty(count, kind)
        return held[:count]


@allocation_free
def account(
    spans: Spans,
    steps: Steps,
    gpus: int,
    tolerance: float,
    lanes: Lanes,
    feeds: Feeds,
    sends: Sends,
    found: Found,
) -> None:
    """Account for every second of `steps`.

    spans: of compute, comm and sends, step by step; those of a stream in order of their start.
    """
    computed_s = 0.0
    for at in range(len(steps.start_s)):
        low, high, origin = steps.bounds[at], steps.bounds[at + 1], steps.start_s[at]
        step_s = steps.end_s[at] - origin
        slack = tolerance * step_s
        times = (origin - slack, steps.end_s[at] + slack)
        fault, row, slots = _count(spans, low, high, times, gpus, lanes, feeds, sends)
        if fault == WELL:
            awaiting = _lay(spans, low, high, origin, lanes, feeds, slots, sends)
            fault, row = _in_order(lanes, sends, slack)
        if fault != WELL:
            found.counts[FAULT], found.counts[ROW] = fault, row
            return
        _find_makers(lanes, awaiting, feeds, slots, sends, slack)
        _break_down(lanes, step_s, found.breakdown_s)
        _walk(lanes, slack, found)
        computed_s = _add_up(lanes, computed_s)
        _overlap(spans, low, high, origin, lanes, found)


@inlined
def _count(
    spans: Spans,
    low: int,
    high: int,
    times: tuple[float, float],
    gpus: int,
    lanes: Lanes,
    feeds: Feeds,
    sends: Sends,
) -> tuple[int, int, int]:
    """Make the tables ready for rows low..high, which must lie within `times`.

    Returns `WELL`, or what is wrong with which row; and how many slots of `feeds` are in use.
    """
    fault, wrong = WELL, -1
    feeding = 0
    lanes.first[:] = 0
    sends.first[:] = 0
    for row in range(low, high):
        gpu, kind = spans.gpu[row], spans.kind[row]
        if not 0 <= gpu < gpus or spans.peer[row] >= gpus:
            return NO_GPU, row, 0
        if (spans.start_s[row] < times[0] or spans.end_s[row] > times[1]) and fault == WELL:
            fault, wrong = OUTSIDE, row
        if spans.stream[row] == COMPUTE:
            lanes.first[gpu] += 1
            if kind > LM_HEAD and fault == WELL:
                fault, wrong = NO_KERNEL, row
        elif kind in (DISPATCH, COMBINE):
            feeding += 1
        elif spans.stream[row] == COMM or kind == SEND:
            sends.first[gpu] += 1
    _sum_before(lanes.first)
    _sum_before(sends.first)
    slots = 2
    while slots < 2 * feeding:
        slots *= 2
    feeds.gpu[:slots] = -1
    return fault, wrong, slots


@inlined
def _feed(combine: bool, layer: int, microbatch: int, chunk: int) -> int:
    """One number for what dispatched tokens, or combined ones, of all chunks, are known by."""
    if combine:
        chunk = -_HALF
    return ((layer + _HALF) * 2 + combine) << 32 | (microbatch + _HALF) << 16 | (chunk + _HALF)


@inlined
def _lay_lanes(spans: Spans, low: int, high: int, origin: float, lanes: Lanes) -> int:
    """Fill `lanes` with the compute spans of rows low..high; a row out of order, or -1.

    Experts, and what else runs on dispatched tokens, are fed by the dispatch of their own layer and
    chunk; attention and the LM head by the combine of the layer before.
    """
    first = lanes.first
    first[:] = 0
    for row in range(low, high):
        if spans.stream[row] == COMPUTE:
            first[spans.gpu[row]] += 1
    _sum_before(first)
    for row in range(low, high):
        if spans.stream[row] != COMPUTE:
            continue
        gpu = spans.gpu[row]
        at = first[gpu]
        first[gpu] += 1
        begin = spans.start_s[row] - origin
        combined = spans.kind[row] == ATTENTION or spans.kind[row] == LM_HEAD
        lanes.row[at] = row
        lanes.peer[at] = spans.peer[row]
        lanes.feed[at] = _feed(
            combined, spans.layer[row] - combined, spans.microbatch[row], spans.chunk[row]
        )
        lanes.begin[at] = begin
        lanes.end[at] = spans.end_s[row] - origin
        lanes.ready[at] = min(max(spans.ready_s[row] - origin, 0.0), begin)
        lanes.fetch_wait[at] = spans.fetch_wait_s[row]
    _step_back(first)
    for gpu in range(len(first) - 1):
        for at in range(first[gpu] + 1, first[gpu + 1]):
            if lanes.begin[at] < lanes.begin[at - 1]:
                return int(lanes.row[at])
    return -1


@inlined
def _lay(
    spans: Spans,
    low: int,
    high: int,
    origin: float,
    lanes: Lanes,
    feeds: Feeds,
    slots: int,
    sends: Sends,
) -> int:
    """Put rows low..high into the tables; how many compute spans await a transfer.

    Experts, and what else runs on dispatched tokens, are fed by the dispatch of their own layer and
    chunk; attention and the LM head by the combine of the layer before.
    """
    awaiting = 0
    for row in range(low, high):
        gpu, kind = spans.gpu[row], spans.kind[row]
        start_s, end_s, ready_s = spans.start_s[row], spans.end_s[row], spans.ready_s[row]
        layer, microbatch, chunk = spans.layer[row], spans.microbatch[row], spans.chunk[row]
        if spans.stream[row] == COMPUTE:
            at = lanes.first[gpu]
            lanes.first[gpu] += 1
            combined = kind in (ATTENTION, LM_HEAD)
            lanes.row[at] = row
            lanes.peer[at] = spans.peer[row]
            lanes.feed[at] = _feed(combined, layer - combined, microbatch, chunk)
            lanes.begin[at] = start_s - origin
            lanes.end[at] = end_s - origin
            lanes.ready[at] = min(max(ready_s - origin, 0.0), start_s - origin)
            lanes.fetch_wait[at] = spans.fetch_wait_s[row]
            if spans.peer[row] >= 0:
                lanes.awaiting[awaiting] = at
                awaiting += 1
        elif kind in (DISPATCH, COMBINE):
            feed = _feed(kind == COMBINE, layer, microbatch, chunk)
            slot = _slot(feeds, slots, gpu, feed)
            if feeds.gpu[slot] < 0:
                feeds.gpu[slot], feeds.feed[slot] = gpu, feed
            elif end_s < feeds.end[slot]:
                continue
            feeds.end[slot] = end_s
            feeds.made[slot] = min(ready_s, start_s) - origin
        elif spans.stream[row] == COMM or kind == SEND:
            at = sends.first[gpu]
            sends.first[gpu] += 1
            sends.row[at] = row
            sends.begin[at] = start_s - origin
            sends.end[at] = end_s - origin
            sends.made[at] = min(ready_s - origin, start_s - origin)
    _step_back(lanes.first)
    _step_back(sends.first)
    return awaiting


@inlined
def _sum_before(first: Longs) -> None:
    """Counts, of which the last is 0, to the sums of those before each."""
    total = 0
    for at in range(len(first)):
        count = first[at]
        first[at] = total
        total += count


@inlined
def _step_back(first: Longs) -> None:
    """Each to the place of the next, 0 to the first: what each was when it was counted up to the
    next, but for the last, which is the same.
    """
    for at in range(len(first) - 2, 0, -1):
        first[at] = first[at - 1]
    first[0] = 0


@inlined
def _slot(feeds: Feeds, slots: int, gpu: int, feed: int) -> int:
    """Where the feed of the GPU stands in the table, or else would stand."""
    mixed = np.uint64(feed) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ np.uint64(gpu)) * np.uint64(0xD6E8FEB86659FD93)
    slot = np.int64(mixed >> np.uint64(32)) & (slots - 1)
    while feeds.gpu[slot] >= 0 and (feeds.gpu[slot] != gpu or feeds.feed[slot] != feed):
        slot = (slot + 1) & (slots - 1)
    return int(slot)


@inlined
def _in_order(lanes: Lanes, sends: Sends, slack: float) -> tuple[int, int]:
    """`WELL`, or which row begins before the one ahead of it, or a kernel before that has ended."""
    fault, wrong = WELL, -1
    for gpu in range(len(lanes.first) - 1):
        for at in range(lanes.first[gpu] + 1, lanes.first[gpu + 1]):
            if lanes.begin[at] < lanes.begin[at - 1]:
                return UNSORTED, lanes.row[at]
            if lanes.end[at - 1] - lanes.begin[at] > slack and fault == WELL:
                fault, wrong = OVERLAP, lanes.row[at]
        for at in range(sends.first[gpu] + 1, sends.first[gpu + 1]):
            if sends.begin[at] < sends.begin[at - 1]:
                return UNSORTED, sends.row[at]
    return fault, wrong


@inlined
def _last_until(values: Floats, low: int, high: int, t: float) -> int:
    """The last of the sorted values[low:high] that is at most `t`; low - 1 if none is."""
    while low < high:
        middle = (low + high) >> 1
        if values[middle] <= t:
            low = middle + 1
        else:
            high = middle
    return low - 1


@inlined
def _last_near(values: Floats, low: int, high: int, guess: int, t: float) -> int:
    """As `_last_until`, faster the nearer it is to `guess` (low - 1 .. high - 1)."""
    stride = 1
    if guess >= low and values[guess] > t:
        high = guess
        while high - stride >= low and values[high - stride] > t:
            high -= stride
            stride *= 2
        low = max(low, high - stride + 1)
    else:
        low = guess + 1
        while low + stride <= high and values[low + stride - 1] <= t:
            low += stride
            stride *= 2
        high = min(high, low + stride - 1)
    return _last_until(values, low, high, t)


@inlined
def _forget(last: Longs, first: Longs) -> None:
    """Set what was found last on each GPU to before its first."""
    for gpu in range(len(last)):
        last[gpu] = first[gpu] - 1


@inlined
def _latest_end(lanes: Lanes, gpu: int, t: float, slack: float) -> int:
    """The last compute span of `gpu` that ended by `t`; -1 if there is none."""
    low = lanes.first[gpu]
    at = _last_until(lanes.end, low, lanes.first[gpu + 1], t + slack)
    return at if at >= low else -1


@inlined
def _find_makers(
    lanes: Lanes, awaiting: int, feeds: Feeds, slots: int, sends: Sends, slack: float
) -> None:
    """Find `maker` and `since` of the compute spans that await a transfer.

    The maker is the sender's last compute span before its data were there: launch and the wait for
    the comm stream are communication. A transfer that left no span took no bandwidth, only latency
    if anything: its maker is the last span before it was there.
    """
    some = sends.first[-1] > 0
    _forget(lanes.last, lanes.first)
    _forget(sends.last, sends.first)
    for index in range(awaiting):
        at = lanes.awaiting[index]
        peer = lanes.peer[at]
        ready = lanes.ready[at]
        slot = _slot(feeds, slots, peer, lanes.feed[at])
        silent = feeds.gpu[slot] < 0
        made = ready if silent else min(feeds.made[slot], ready)
        if silent and some:
            # The last one that the sender had begun by then, if that lasted until then.
            low = sends.first[peer]
            high = sends.first[peer + 1]
            last = _last_near(sends.begin, low, high, sends.last[peer], ready - slack)
            sends.last[peer] = last
            if last >= low and sends.end[last] >= ready - slack:
                made, silent = min(sends.made[last], ready), False
        # Rows are about in order of time, so that the maker is near the one found before.
        low, high = lanes.first[peer], lanes.first[peer + 1]
        maker = _last_near(lanes.end, low, high, lanes.last[peer], made + slack)
        lanes.last[peer] = maker
        since = made
        if maker >= low:
            since = lanes.end[maker]
        elif silent:
            since = 0.0
        lanes.maker[at] = maker if maker >= low else -1
        lanes.since[at] = min(max(since, 0.0), ready)


@inlined
def _break_down(lanes: Lanes, step_s: float, breakdown_s: Floats) -> None:
    """Add the seconds of each GPU and part to `breakdown_s` [gpus, parts].

    The gap before a span is cut at three instants that lie in order within it: the transfer is
    under way (before: peer wait), the tokens are there (before: exposed communication), the weights
    are missing (before: idle; after: fetch stall). Awaiting no transfer is idle.
    """
    for gpu in range(len(lanes.first) - 1):
        compute = exposed = fetch = waited = idle = done = free = 0.0
        for at in range(lanes.first[gpu], lanes.first[gpu + 1]):
            end = lanes.end[at]
            begin = max(lanes.begin[at], free)
            ready = min(max(lanes.ready[at], free), begin)
            fetching = max(begin - lanes.fetch_wait[at], ready)
            compute += end - begin
            fetch += begin - fetching
            if lanes.peer[at] >= 0:
                since = min(max(lanes.since[at], free), ready)
                exposed += ready - since
                waited += since - free
                idle += fetching - ready
            else:
                idle += (ready - free) + (fetching - ready)
            done = max(done, end)
            free = end
        idle += max(step_s - done, 0.0)
        breakdown_s[gpu, COMPUTING] += compute
        breakdown_s[gpu, EXPOSED] += exposed
        breakdown_s[gpu, FETCH_STALL] += fetch
        breakdown_s[gpu, PEER_WAIT] += waited
        breakdown_s[gpu, IDLE] += idle


@inlined
def _walk(lanes: Lanes, slack: float, found: Found) -> None:
    """Put the spans of the chain of waits that ends with the last compute span of the step after
    those found before.

    A span on the path that began as soon as its stream was free follows the span before it. Any
    other first waited `fetch_wait_s` for weights (fetch stall). If it had its tokens when that
    began, it follows the last span of its own GPU that had ended by then; if that was when they
    came, it waited for the transfer (communication) since the sender's span that had made them, and
    follows that one.
    """
    current, gpu = -1, -1
    for one in range(len(lanes.first) - 1):
        for at in range(lanes.first[one], lanes.first[one + 1]):
            # Of those that end together, the lowest GPU's last.
            if (
                current < 0
                or lanes.end[at] > lanes.end[current]
                or (one == gpu and lanes.end[at] == lanes.end[current])
            ):
                current, gpu = at, one
    while current >= 0:
        begin, ready = lanes.begin[current], lanes.ready[current]
        fetch = communication = 0.0
        if current > lanes.first[gpu] and begin - lanes.end[current - 1] <= slack:
            before = current - 1
        else:
            fetch = min(lanes.fetch_wait[current], begin - ready)
            if lanes.peer[current] >= 0 and begin - fetch - ready <= slack:
                communication = ready - lanes.since[current]
                before, gpu = lanes.maker[current], lanes.peer[current]
            else:
                before = _latest_end(lanes, gpu, begin - fetch, slack)
        on_paths = found.counts[ON_PATHS]
        found.computed_s[on_paths] = lanes.end[current] - begin
        found.sent_s[on_paths] = communication
        found.fetched_s[on_paths] = fetch
        found.counts[ON_PATHS] += 1
        # Strictly earlier, whatever the tolerance let in: the walk must come to an end.
        while before >= 0 and lanes.begin[before] >= begin:
            before = before - 1 if before > lanes.first[gpu] else -1
        current = before


@inlined
def _add_up(lanes: Lanes, computed_s: float) -> float:
    """Fill `before_s`, beginning with the compute seconds before the step; those after it."""
    count = lanes.first[-1]
    for at in range(count):
        lanes.before_s[at] = computed_s
        computed_s += lanes.end[at] - lanes.begin[at]
    lanes.before_s[count] = computed_s
    return computed_s


@inlined
def _overlap(spans: Spans, low: int, high: int, origin: float, lanes: Lanes, found: Found) -> None:
    """Put how long each comm span of rows low..high took, and how long its GPU was computing during
    that, after those found before.
    """
    _forget(lanes.last, lanes.first)
    for row in range(low, high):
        if spans.stream[row] == COMM:
            gpu, comms = spans.gpu[row], found.counts[COMMS]
            first, end = lanes.first[gpu], lanes.first[gpu + 1]
            start_s, end_s = spans.start_s[row] - origin, spans.end_s[row] - origin
            begun = _last_near(lanes.begin, first, end, lanes.last[gpu], start_s)
            last = _last_near(lanes.begin, first, end, begun, end_s)
            until_start = _busy_until(lanes, gpu, begun, start_s)
            found.comm_s[comms] = spans.end_s[row] - spans.start_s[row]
            found.overlapped_s[comms] = _busy_until(lanes, gpu, last, end_s) - until_start
            found.counts[COMMS] += 1
            lanes.last[gpu] = last


@inlined
def _busy_until(lanes: Lanes, gpu: int, last: int, t: float) -> float:
    """Compute seconds of `gpu` before `t`, by when it had begun its span `last`, and those of the
    block before its first span.
    """
    low = lanes.first[gpu]
    if last < low:
        return float(lanes.before_s[low])
    inside_s = min(t - lanes.begin[last], lanes.end[last] - lanes.begin[last])
    return float(lanes.before_s[last] + inside_s)
