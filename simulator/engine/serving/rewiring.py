"""Wires of a group over the graph that is left, and how long weights take from host memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.graph import Graph, memory_of_host
from simulator.cluster.routes import RouteTable, routes_between
from simulator.engine.homes import Near, slowest_s
from simulator.engine.layout import Layout
from simulator.engine.roads import Roads, algorithm, sending
from simulator.engine.serving.costs import wires_of_group
from simulator.engine.serving.damage import Link
from simulator.engine.serving.timing import Wires
from simulator.engine.tiers import landing_of
from simulator.spec.load import Inputs

Floats = NDArray[np.float64]
Int32s = NDArray[np.int32]


class Wired(NamedTuple):
    """A group's wires; near: distances between its ranks that are alive; links that it needs."""

    wires: Wires
    near: Near
    links: frozenset[Link]


def wired(
    inputs: Inputs,
    graph: Graph,
    names: Sequence[str],
    node: Int32s,
    layout: Layout,
    first: int,
    alive: Int32s,
    delay_s: Sequence[float],
) -> Wired:
    """The wires of the group whose GPUs begin at `first`, among its ranks that are alive.

    node: int32 [gpus]; alive: int32, sorted; delay_s: fixed times of dispatch and combine, which a
    fault does not change. Raises InputError for GPUs that no path joins any more.
    """
    workload = inputs.workload
    members = first + alive
    count = len(members)
    source, target = np.repeat(members, count), np.tile(members, count)
    apart = source != target
    via = "network" if workload.transport.path == "network" else None
    routes = routes_between(graph, names, source[apart], target[apart], via)
    between = np.full((len(names), len(names)), -1, dtype=np.int32)
    between[source[apart], target[apart]] = np.arange(routes.count, dtype=np.int32)
    none = np.full((len(names), len(names)), -1, dtype=np.int32)
    ones = np.ones(routes.count)
    slowest = slowest_s(routes)
    roads = Roads(routes, between, none[0], none, ones, slowest)
    tiered = layout.ep > 1 and algorithm(workload.transport, "dispatch") == "two-tier"
    sends = [
        replace(sending(inputs, layout, roads, op), delay_s=fixed)
        for op, fixed in zip(("dispatch", "combine"), delay_s, strict=True)
    ]
    wires = wires_of_group(roads, layout, sends[0], sends[1], node, first, tiered)
    if count < layout.ep:
        wires = wires._replace(landing=_landing(wires.node, alive))
    near = Near(node[members], np.zeros((count, count)), np.zeros((count, count)))
    near.latency_s[~np.eye(count, dtype=np.bool_)] = routes.latency_s
    near.seconds_per_byte[~np.eye(count, dtype=np.bool_)] = slowest
    return Wired(wires, near, frozenset(routes.links))


def _landing(node: Int32s, alive: Int32s) -> Int32s:
    """As `landing_of`, by way of ranks that are alive; int32 [ranks, nodes of the group]."""
    here, local = np.unique(node[alive], return_inverse=True)
    found = np.full((len(node), int(node.max()) + 1), -1, dtype=np.int32)
    landing = landing_of(local.ravel().astype(np.int32), len(alive))
    found[np.ix_(alive, here)] = np.where(landing >= 0, alive[landing], -1)
    return found


def load_seconds(
    graph: Graph, names: Sequence[str], size_bytes: Mapping[int, float], share: Floats
) -> float | None:
    """How long GPUs take to load so many bytes (by their number) from the memory of their hosts,
    all at once: as long as the busiest link. None: one of them has no memory that it can reach.

    share: float64 [kinds], of the raw bandwidth that copies reach, by kind of path.
    """
    wanted = {gpu: size for gpu, size in size_bytes.items() if size > 0.0}
    if not wanted:
        return 0.0
    memories = [memory_of_host(graph, names[gpu]) for gpu in wanted]
    found = [memory for memory in memories if memory is not None]
    if len(found) < len(memories):
        return None
    nodes = [*found, *(names[gpu] for gpu in wanted)]
    count = np.int32(len(found))
    every = np.arange(count, dtype=np.int32)
    routes: RouteTable = routes_between(graph, nodes, every, every + count)
    wire_bytes: Floats = np.array(list(wanted.values())) / share[routes.kind_of]
    busy_s = routes.link_bytes(wire_bytes) / routes.bandwidth_bytes_per_s
    return float(busy_s.max() + routes.latency_s.max())
