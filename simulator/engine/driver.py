"""The event core in simpy's time: it runs between simpy's events and wakes who listens."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappush

import numpy as np
import simpy
from numpy.typing import NDArray

from simulator.engine import core, links
from simulator.engine.links import Merged, Wires

LAST = 2  # simpy priority after all else of the same instant (URGENT is 0, NORMAL is 1)

AT_ONCE = 2  # transfers on one route: of a send and of a fetch

Ints = NDArray[np.int32]


class Driver:
    """Owns the core's buffers. State: the core, the free operation ids, and the next wake-up.

    `on_end` is called with the operations that ended and wanted to be told of (or -1 - stream for
    a stream that fell idle), at the instant at which they did. `advance` lets the core run up to a
    time (s) and gives how many there are: who decides in compiled code puts its own there.
    """

    def __init__(
        self,
        env: simpy.Environment,
        wires: Wires,
        streams: int,
        laid: int,
        edges: Ints,
        epsilon: float = 0.0,
        collectives: int = 0,
        at_once: int = AT_ONCE,
    ) -> None:
        """`laid`: operations of the fixed part; `edges` int32 [edges, 2]: (from, to) within it,
        sorted by from; `epsilon`: what would end within that fraction of its time ends together;
        `collectives`: how many may be on the wire at once as one flow each; `at_once`: transfers
        on one route at a time.
        """
        self.env = env
        self.on_end: Callable[[list[int]], None] = lambda _: None
        self.advance = self._advance
        self._version = 0
        self._poked = False
        sizes = [0] * core.SIZES
        sizes[core.LAID] = laid
        sizes[core.OPS] = laid + 256
        sizes[core.EDGES] = len(edges)
        sizes[core.MORE] = 256
        sizes[core.STREAMS] = streams
        sizes[core.FLOWS] = 256
        on_routes = np.full(wires.routes, at_once)
        links.size(sizes, wires, on_routes, collectives)
        self._wires = wires
        self._epsilon = epsilon
        self._collectives = collectives
        self._allocate(_with_room(sizes))
        net = self.net
        links.connect(net, wires, on_routes, epsilon, collectives)
        net.stream_i[:, : core.TELL_IDLE] = -1
        net.edge_ptr[1:] = np.cumsum(np.bincount(edges[:, 0], minlength=laid))
        net.edge_to[:] = edges[:, 1]
        net.more_head[:] = -1
        self._free_rows(0, 256)
        self._laid_free = np.arange(laid + 255, laid - 1, -1, dtype=np.int32)
        self._ids: list[int] = []  # free numbers beside those

    def lay(
        self,
        op_f: NDArray[np.float64],
        op_i: Ints,
        send_ptr: Ints,
        send_i: Ints,
        send_f: NDArray[np.float64],
        collectives: Merged | None = None,
    ) -> None:
        """Set the fixed part for a step: operations [laid, 5] and [laid, 9], the send table, and
        the collectives that are one flow; their routes follow those of the wires.

        Every operation of the step before has ended, but for fetches added and still running.
        """
        transfers = int(np.diff(send_ptr).max(initial=0))
        net = self.net
        net.counts[core.N_MORE] = 0
        waiting = net.counts[core.N_HEAP] + net.counts[core.N_SOON]
        if net.counts[core.N_SEQUENCE] > core.MANY and waiting == 0:
            net.counts[core.N_SEQUENCE] = 0
        self._need(
            {
                core.ROWS: len(send_ptr) - 1,
                core.SENDS: len(send_f),
                # One send per communication stream and one fetch per copy stream at a time.
                core.FLOWS: int(net.counts[core.STREAMS]) * (transfers + 1),
            }
        )
        laid = len(op_i)
        if collectives is not None:
            self._lay_routes(links.wires_of_merged(self._wires, collectives))
        free = (op_i[:, core.KIND] == core.FETCH) & (op_i[:, core.STREAM] < 0)
        if free.any():  # they do not wait for one another
            self._widen(op_i[free, core.ROW])
        net = self.net
        net.op_f[:laid] = op_f
        net.op_i[:laid] = op_i
        net.more_head[:laid] = -1
        net.send_ptr[: len(send_ptr)] = send_ptr
        net.send_i[: len(send_f)] = send_i
        net.send_f[: len(send_f)] = send_f
        # What was added and has ended is known to nobody any more: its numbers are free.
        live = net.op_f[laid:, core.END] < 0.0
        live &= net.op_i[laid:, core.KIND] == core.FETCH
        self._laid_free = (laid + np.flatnonzero(~live))[::-1].astype(np.int32)
        self._ids = []

    def _lay_routes(self, added: Wires) -> None:
        """Put routes after those of the wires, in place of what stood there."""
        routes, crossings = self._wires.routes, len(self._wires.link)
        self._need(
            {core.ROUTES: routes + added.routes, core.CROSSINGS: crossings + len(added.link)}
        )
        net = self.net
        assert added.weight is not None
        net.route_ptr[routes : routes + added.routes + 1] = crossings + added.ptr
        net.route_i[crossings : crossings + len(added.link)] = added.link
        net.route_w[crossings : crossings + len(added.link)] = added.weight
        net.route_f[routes : routes + added.routes] = added.latency_s

    def start(self, ops: Ints) -> None:
        """Take one thing to wait for from each of `ops`, now."""
        core.start(*self.buffers, ops, self.env.now)
        self.poke()

    def ids(self, number: int) -> list[int]:
        """Take numbers for operations to `add`; they are free again at the next `lay`."""
        if len(self._ids) < number:
            self._ids = self._laid_free.tolist() + self._ids
            self._laid_free = self._laid_free[:0]
        while len(self._ids) < number:
            have = int(self.net.counts[core.OPS])
            self._need({core.OPS: have + 1})
            self._ids += range(int(self.net.counts[core.OPS]) - 1, have - 1, -1)
        taken = self._ids[-number:]
        del self._ids[-number:]
        return taken

    def ids_left(self, least: int) -> Ints:
        """Take all free numbers, at least so many, int32."""
        found, self._laid_free = self._laid_free, self._laid_free[:0]
        more = self.ids(max(least - len(found), len(self._ids)))
        return np.concatenate([found, np.array(more, dtype=np.int32)])

    def release(self, op: int) -> None:
        """An added operation has ended and nothing waits for it: its number is free again."""
        self._ids.append(op)

    def room(self, flows: int = 0, edges: int = 0) -> None:
        """Make room for so many transfers at once, and so many edges more."""
        self._need({core.FLOWS: flows, core.MORE: int(self.net.counts[core.N_MORE]) + edges})

    def add(
        self,
        whole: list[int],
        real: list[float],
        edges: list[int],
        release: int = -1,
    ) -> None:
        """Add operations (see `core.add`; `whole` and `edges` row after row), now."""
        if self.net.counts[core.N_MORE] + len(edges) // 2 > self.net.counts[core.MORE]:
            self.room(edges=len(edges) // 2)
        core.add(
            *self.buffers,
            np.array(whole, dtype=np.int32),
            np.array(real, dtype=np.float64),
            np.array(edges, dtype=np.int32),
            release,
            self.env.now,
        )
        self.poke()

    def statistics(self) -> dict[str, int]:
        """Solves made and flow-rates computed in them so far."""
        counts = self.net.counts
        return {"solves": int(counts[core.N_SOLVES]), "rates": int(counts[core.N_RATES])}

    def poke(self) -> None:
        """Have the core run at the end of this instant, once for all that happens in it."""
        if not self._poked:
            self._poked = True
            self._at(self.env.now, self._run)

    def _advance(self, limit: float) -> int:
        return core.advance(*self.buffers, limit)

    def _at(self, time_s: float, callback: Callable[[simpy.Event], None]) -> None:
        event = simpy.Event(self.env)
        event._ok = True
        event._value = None
        event.callbacks = [callback]
        # Not by a delay: now + (time - now) is not always the time, and the core's must be simpy's.
        heappush(self.env._queue, (time_s, LAST, next(self.env._eid), event))  # type: ignore[misc]

    def _run(self, _: simpy.Event | None) -> None:
        """Let the core run to the next end to tell of, or to the next event outside it."""
        self._poked = False
        self._version += 1
        found = self.advance(self.env.peek())
        next_s = float(self.net.clock[1])
        if next_s == np.inf:
            return
        next_s = max(self.env.now, next_s)
        if found:
            ended = self.net.ended[:found].tolist()
            self._at(next_s, lambda _: self._deliver(ended))
        else:
            version = self._version
            self._at(next_s, lambda _: self._resume(version))

    def _resume(self, version: int) -> None:
        if version == self._version:
            self._run(None)

    def _deliver(self, ended: list[int]) -> None:
        self.on_end(ended)
        self.poke()

    def _need(self, wanted: dict[int, int]) -> None:
        """Make tables large enough, with room to spare, keeping what they hold."""
        old = self.net
        have = old.counts[: core.SIZES].tolist()
        sizes = [max(h, 2 * wanted[i] if wanted.get(i, 0) > h else h) for i, h in enumerate(have)]
        if sizes == have:
            return
        self._allocate(_with_room(sizes))
        net = self.net
        for name in net._fields:
            if name != "counts":
                before: NDArray[np.generic] = getattr(old, name)
                getattr(net, name)[: len(before)] = before
        net.counts[core.SIZES :] = old.counts[core.SIZES :]
        net.more_head[have[core.OPS] :] = -1
        self._free_rows(have[core.FLOWS], sizes[core.FLOWS] - have[core.FLOWS])

    def _widen(self, fetches: Ints) -> None:
        """Make room on the links for these fetches (routes) at once; nothing may be on them."""
        at_once = AT_ONCE + np.bincount(fetches, minlength=self._wires.routes)
        if self.net.counts[core.N_USED]:
            raise AssertionError("links cannot get more room while transfers are on them")
        wanted = [0] * core.SIZES
        links.size(wanted, self._wires, at_once, self._collectives)
        self._need({core.PLACES: wanted[core.PLACES]})
        links.connect(self.net, self._wires, at_once, self._epsilon, self._collectives)

    def _allocate(self, sizes: list[int]) -> None:
        self.buffers = core.buffers(sizes)
        self.net = core.views(*self.buffers)

    def _free_rows(self, first: int, number: int) -> None:
        free = int(self.net.counts[core.N_FREE])
        self.net.free[free : free + number] = np.arange(first + number - 1, first - 1, -1)
        self.net.counts[core.N_FREE] += number


def _with_room(sizes: list[int]) -> list[int]:
    """The sizes with room for all events and all work that there can be at one instant."""
    ops, flows = sizes[core.OPS], sizes[core.FLOWS]
    sizes[core.EVENTS] = 2 * ops + flows
    sizes[core.WORK] = 3 * ops + sizes[core.EDGES] + sizes[core.MORE] + 2 * flows
    return sizes
