"""Prefill here, decode there: a request's KV goes from one group to another over the graph.

A decode rank first sets the blocks aside; until it has them, the KV stays where it was computed.
Transfers share links max-min fairly with one another, not with the all-to-alls of the groups.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import simpy
from numpy.typing import NDArray

from simulator.cluster.graph import Graph
from simulator.cluster.routes import routes_between, unreachable
from simulator.engine import core
from simulator.engine.driver import Driver
from simulator.engine.links import Wires, wires_of
from simulator.engine.serving import scheduler
from simulator.engine.serving.service import Service
from simulator.policies.dispatch import Dispatcher, View

KEPT_ROADS = 64
ON_A_ROUTE = 8  # transfers at once; more wait for one of them (our assumption)


class Mover:
    """Transfers on a graph as time goes on. State: the event core, and who waits for a route."""

    def __init__(self, env: simpy.Environment, wires: Wires, on_a_route: int = ON_A_ROUTE) -> None:
        none = np.zeros((0, 2), dtype=np.int32)
        self._driver = Driver(env, wires, 0, 1, none, at_once=on_a_route)
        self._driver.on_end = self._ended
        self._on_a_route = on_a_route
        self._number = np.zeros(wires.routes, dtype=np.int64)
        self._waiting: dict[int, deque[tuple[float, Callable[[], None]]]] = {}
        self._running: dict[int, tuple[int, Callable[[], None]]] = {}

    def send(self, route: int, size_bytes: float, done: Callable[[], None]) -> None:
        """Send so many bytes (as they count on the wire) over a route; `done` is called then."""
        if self._number[route] >= self._on_a_route:
            self._waiting.setdefault(route, deque()).append((size_bytes, done))
            return
        self._number[route] += 1
        driver = self._driver
        driver.room(len(self._running) + 1)
        op = driver.ids(1)[0]
        self._running[op] = (route, done)
        driver.add([op, core.FETCH, -1, route], [size_bytes], [])
        driver.net.op_i[op, core.TELL] = 1

    def _ended(self, ops: list[int]) -> None:
        for op in ops:
            route, done = self._running.pop(op)
            self._driver.release(op)
            self._number[route] -= 1
            waiting = self._waiting.get(route)
            if waiting:
                self.send(route, *waiting.popleft())
            done()


class KvRoads(NamedTuple):
    """How KV goes over a graph. route: int32 [workers, workers], from one worker to another, -1
    where none goes or nothing joins them; wire_bytes: float64 [routes], what a byte puts on the
    links; mover: moves it.
    """

    mover: Mover
    route: NDArray[np.int32]
    wire_bytes: NDArray[np.float64]


def joined(
    graph: Graph, names: Sequence[str], source: NDArray[np.int64], target: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which pairs of GPUs a path joins, bool [pairs]."""
    ends = zip(source.tolist(), target.tolist(), strict=True)
    pairs = [(names[a], names[b]) for a, b in ends]
    cut = set(unreachable(graph, pairs))
    return np.array([pair not in cut for pair in pairs], dtype=np.bool_)


def kv_roads(
    env: simpy.Environment,
    graph: Graph,
    names: Sequence[str],
    source: NDArray[np.int64],
    target: NDArray[np.int64],
    share: NDArray[np.float64],
) -> KvRoads:
    """From source to target, workers int64 [routes]; InputError where no path joins them.

    share: float64 [kinds], of the raw bandwidth that copies reach, by kind of path.
    """
    count = len(names)
    routes = routes_between(graph, names, source.astype(np.int32), target.astype(np.int32))
    route = np.full((count, count), -1, dtype=np.int32)
    route[source, target] = np.arange(len(source), dtype=np.int32)
    return KvRoads(Mover(env, wires_of(routes)), route, 1.0 / share[routes.kind_of])


class _Held(NamedTuple):
    """KV of a request where it was computed: worker, own blocks, tokens in shared blocks."""

    worker: int
    blocks: int
    shared: int


class Handover:
    """State: the requests whose KV waits to go, or is on its way.

    lay: the roads over a graph; kv_bytes: of so many tokens; dispatcher: chooses among the groups
    that decode (bool [groups] `decodes`). `moved_bytes` and `transfers` count what was sent.
    """

    def __init__(
        self,
        service: Service,
        graph: Graph,
        lay: Callable[[Graph], KvRoads],
        kv_bytes: Callable[[int], float],
        dispatcher: Dispatcher,
        decodes: NDArray[np.bool_],
    ) -> None:
        self._service = service
        self._lay = lay
        self._roads = lay(graph)
        self._kept = {id(graph): (graph, self._roads)}
        self._kv_bytes = kv_bytes
        self._dispatch = dispatcher
        self._decodes = decodes
        self._waiting: deque[int] = deque()
        self._held: dict[int, _Held] = {}
        self._target: dict[int, int] = {}
        self._number: dict[int, int] = {}
        self.moved_bytes = 0.0
        self.transfers = 0
        service.on_handed = self.take_over
        service.on_taken = self.cancel
        service.on_over = self.deal

    def take_over(self, request: int, worker: int) -> None:
        """A request has its first token: its KV is to go to a group that decodes."""
        ledger = self._service.ledger
        self._held[request] = _Held(
            worker, int(ledger.blocks[request]), int(ledger.shared[request])
        )
        ledger.blocks[request] = ledger.shared[request] = 0
        self._waiting.append(request)
        self.deal()

    def rewire(self, graph: Graph) -> None:
        """What begins from now on goes over this graph; what is on its way keeps its route."""
        if id(graph) not in self._kept:
            if len(self._kept) >= KEPT_ROADS:
                self._kept.clear()
            self._kept[id(graph)] = graph, self._lay(graph)  # the graph too, or its id is reused
        self._roads = self._kept[id(graph)][1]
        self.deal()

    def deal(self) -> None:
        """Begin the transfers for which there is room, first come, first served; those that no path
        joins to any open worker let others pass.
        """
        service = self._service
        cut_off: list[int] = []
        while self._waiting:
            request = self._waiting[0]
            opened = service.taking(self._decodes)
            reached = opened & (self._roads.route[self._held[request].worker] >= 0)
            if opened.any() and not reached.any():
                cut_off.append(self._waiting.popleft())
                continue
            view = service.view(request)._replace(open=reached)
            worker = self._dispatch(self._with_room(view, request))
            if worker < 0:
                break
            group, rank = service.at_rank(worker)
            kept = service.groups[group]
            if not scheduler.set_aside(service.ledger, kept.ranks, kept.of.limits, rank, request):
                break
            self._waiting.popleft()
            self._target[request] = worker
            self._send(request, worker)
        self._waiting.extendleft(reversed(cut_off))

    def cancel(self, request: int) -> None:
        """The request is taken away: its KV counts no more, here or there."""
        held = self._held.pop(request, None)
        if held is None:
            return
        if request in self._waiting:
            self._waiting.remove(request)
        self._number.pop(request, None)
        target = self._target.pop(request, None)
        if target is not None:
            self._free(target, request, int(self._service.ledger.blocks[request]), 0)
        self._service.ledger.blocks[request] = 0
        self._free(held.worker, request, held.blocks, held.shared)

    def bound_for(self, workers: NDArray[np.bool_]) -> list[int]:
        """Requests whose KV is on its way to one of these workers, bool [workers]."""
        return sorted(request for request, worker in self._target.items() if workers[worker])

    def _with_room(self, view: View, request: int) -> View:
        """The view with only those workers open that could set the blocks aside now."""
        service = self._service
        tokens = int(service.ledger.prompt[request]) + 1
        room = [
            scheduler.has_room(group.ranks, group.of.limits, rank, tokens)
            for group in service.groups
            for rank in range(group.of.ranks)
        ]
        return view._replace(open=view.open & np.array(room))

    def _send(self, request: int, worker: int) -> None:
        held = self._held[request]
        mover, routes, wire_bytes = self._roads
        route = int(routes[held.worker, worker])
        size_bytes = self._kv_bytes(int(self._service.ledger.done[request]))
        self.moved_bytes += size_bytes
        self.transfers += 1
        number = self._number[request] = self.transfers

        def arrived() -> None:
            service = self._service
            if self._number.get(request) != number:  # it was taken away meanwhile
                return
            del self._number[request]
            before = self._held.pop(request)
            del self._target[request]
            self._free(before.worker, request, before.blocks, before.shared)
            service.place(request, worker)
            service.poke(int(service.group_of[before.worker]))
            self.deal()

        mover.send(route, size_bytes * float(wire_bytes[route]), arrived)

    def _free(self, worker: int, request: int, blocks: int, shared: int) -> None:
        group, rank = self._service.at_rank(worker)
        of = self._service.groups[group]
        scheduler.give_back(
            self._service.ledger, of.ranks, of.of.limits, rank, request, blocks, shared
        )
