"""What a transport makes of a collective operation: bytes on the wire, and time.

    time = launch + per_peer (n - 1) + network_latency, if any message crosses the network
           + for each phase: what the network says + the path latencies of `Phase.waits`

A message puts more bytes on links of raw bandwidth than it has (`simulator.engine.costs`), so that
inefficiency shares links fairly with what else is on them.

Up to EXACT_FLOWS flows the network is max-min fair and exact. Beyond, where all flows that share
links are equal, the slowest link decides: no flow is ever slower than an equal share of that link,
and none of those on it ends before all of its bytes have passed. That is exact but for the spread
of the path latencies, `Time.slack_s`. What is left over (many unequal flows) is taken as one
coflow, which ends when the slowest link has carried its bytes after the longest latency of a flow
on it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.graph import Graph, build_graph, memory_of_host
from simulator.cluster.routes import NETWORK, RouteTable, routes_between
from simulator.engine.collectives import (
    COLLECTIVES,
    UNIFORM,
    Counts,
    Phase,
    counted,
)
from simulator.engine.costs import efficiencies, fixed_s, half_size, on_wire
from simulator.engine.ranks import Ranks, ranks_of
from simulator.errors import InputError
from simulator.spec.schema import Gpu, Topology
from simulator.spec.transport import Transport
from simulator.spec.units import did_you_mean

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]

AUTO = "auto"
EXACT_FLOWS = 20_000  # a few seconds of the exact solver


class Cluster(NamedTuple):
    """Where operations run."""

    graph: Graph
    ranks: Ranks
    gpu: Gpu


class Time(NamedTuple):
    """How long an operation takes (s), and how the network was solved.

    `exact`; `bound`: between `seconds` and `seconds + slack_s`; `coflow`: approximate.
    """

    seconds: float
    network: Literal["exact", "bound", "coflow"] = "exact"
    slack_s: float = 0.0


class Wires(NamedTuple):
    """A phase on the links: the flows that cross any, [flows], each with a route of its own.

    message_bytes, messages, efficiency, waits: float64; even: what decides if all flows that share
    links are equal; None if they are few, or unequal.
    """

    routes: RouteTable
    message_bytes: Floats
    messages: Floats
    efficiency: Floats
    waits: Floats
    even: tuple[Even, ...] | None


class Even(NamedTuple):
    """Equal flows that share links with no others, `flow` being one of them.

    load: float64 [links], seconds that one byte of each keeps the link busy; first_s: float64
    [links], least latency of the flows on it; lone: float64 [flows], seconds per byte of a flow
    alone; latency_s: float64 [flows].
    """

    flow: int
    load: Floats
    first_s: Floats
    lone: Floats
    latency_s: Floats


class Operation(NamedTuple):
    """An operation laid on the wires; its messages are scaled by the size when it is timed.

    half_size_bytes: of each message (`costs.half_size`).
    """

    op: str
    algorithm: str
    fixed_s: float
    half_size_bytes: float
    phases: tuple[Wires, ...]


def cluster_of(topology: Topology, count: int | None = None) -> Cluster:
    """The first `count` GPUs of a topology (all if None); raises InputError for a wrong count."""
    graph = build_graph(topology)
    return Cluster(graph, ranks_of(graph, count), topology.gpu)


def algorithms(cluster: Cluster, transport: Transport, op: str, asked: str = AUTO) -> list[str]:
    """The algorithms to choose from: the one that was asked for, or all that can be (`auto`).

    Raises InputError for an operation that the transport has no costs for, and an algorithm that it
    does not list or the wiring does not allow.
    """
    if op not in COLLECTIVES:
        raise InputError(
            f"no operation {op!r}{did_you_mean(op, list(COLLECTIVES))}; "
            f"known: {', '.join(COLLECTIVES)}"
        )
    listed = [name for name in transport.costs_of(op) if name in COLLECTIVES[op]]
    if asked != AUTO:
        if asked not in COLLECTIVES[op]:
            hint = did_you_mean(asked, list(COLLECTIVES[op]))
            raise InputError(
                f"no algorithm {asked!r} of {op}{hint}; known: {', '.join(COLLECTIVES[op])}"
            )
        if asked not in listed:
            raise InputError(
                f"transport {transport.name} has no costs for {op} by {asked!r}; "
                f"it has {', '.join(listed)}"
            )
        if hindrance := _hindrance(cluster, transport, asked):
            raise InputError(f"{op} by {asked!r} on {cluster.graph.name}: {hindrance}")
        return [asked]
    found = [name for name in listed if not _hindrance(cluster, transport, name)]
    if not found:
        raise InputError(
            f"transport {transport.name}: none of its algorithms of {op} ({', '.join(listed)}) "
            f"goes with {cluster.ranks.size} ranks on {cluster.graph.name}"
        )
    return found


def _hindrance(cluster: Cluster, transport: Transport, algorithm: str) -> str:
    """What keeps these ranks from using an algorithm; empty if nothing does."""
    if algorithm == "nvls" and cluster.ranks.switch is None:
        return "its ranks are not all on one NVSwitch"
    if algorithm == "nvls" and not cluster.gpu.in_switch_reduction:
        return f"the NVSwitch of {cluster.gpu.name} does not reduce"
    if algorithm == "nvls" and transport.path != "fastest":
        return f"transport {transport.name} does not use NVLink"
    return ""


def lay_even(cluster: Cluster, transport: Transport, op: str, algorithm: str) -> Operation:
    """An even operation of one byte, to be timed with its size (`UNIFORM`)."""
    return lay(cluster, transport, op, algorithm, COLLECTIVES[op][algorithm](cluster.ranks, 1.0))


def lay_tokens(
    cluster: Cluster, transport: Transport, op: str, algorithm: str, counts: Counts, hidden: int
) -> Operation:
    """Dispatch or combine of tokens of `hidden` elements, to be timed with size 1."""
    size = token_bytes(transport, op, hidden)
    return lay(
        cluster, transport, op, algorithm, COLLECTIVES[op][algorithm](cluster.ranks, counts, size)
    )


def token_bytes(transport: Transport, op: str, hidden: int) -> float:
    """Bytes of one token on the wire."""
    if op == "dispatch":
        return hidden * transport.dispatch_bytes_per_element + transport.dispatch_header_bytes
    return hidden * transport.combine_bytes_per_element + transport.combine_header_bytes


def count_tokens(
    cluster: Cluster, transport: Transport, ids: NDArray[np.int16], source: Ints, owner: Ints
) -> Counts:
    """`counted` by the transport's deduplication."""
    return counted(cluster.ranks, ids, source, owner, transport.deduplicate)


def lay(
    cluster: Cluster, transport: Transport, op: str, algorithm: str, phases: list[Phase]
) -> Operation:
    """Put the phases of an operation on routes; raises InputError where no path joins two ranks."""
    cost, scale = transport.costs_of(op)[algorithm], transport.scale_of(cluster.gpu.name)
    ranks = cluster.ranks.size
    found = [
        (_routes(cluster, transport, ends), ends.source != ends.target, phase)
        for phase in phases
        for ends in _stages(cluster, transport, phase)
    ]
    crossing = any((routes.kind_of == NETWORK).any() for routes, _, _ in found)
    wires = tuple(
        _wires(
            routes,
            moving,
            phase,
            efficiencies(cost, scale, (op, algorithm), ranks, routes, crossing),
        )
        for routes, moving, phase in found
    )
    before_s = fixed_s(cost, scale, ranks, crossing)
    return Operation(op, algorithm, before_s, half_size(cost, op, algorithm, ranks), wires)


def time_of(operation: Operation, size_bytes: float = 1.0) -> Time:
    """How long an operation takes when its messages are `size_bytes` times what was laid."""
    seconds, slack_s, networks = operation.fixed_s, 0.0, set()
    for wires in operation.phases:
        found = _network_time(wires, size_bytes, operation.half_size_bytes)
        seconds += found.seconds + float(wires.waits @ wires.routes.latency_s)
        slack_s += found.slack_s
        networks.add(found.network)
    if "coflow" in networks:
        return Time(seconds, "coflow")
    return Time(seconds, "bound", slack_s) if slack_s else Time(seconds)


def collective_time(
    cluster: Cluster, transport: Transport, op: str, algorithm: str = AUTO, size_bytes: float = 1.0
) -> float:
    """Seconds of an even operation (`UNIFORM`); `auto` is the fastest algorithm that there is.

    size_bytes: as nccl-tests counts it (`simulator.engine.collectives`). Raises InputError as
    `algorithms` does. To time many sizes, lay the operation once (`lay_even`, `time_of`).
    """
    if op not in UNIFORM:
        raise InputError(f"{op!r} has no size; known: {', '.join(UNIFORM)}")
    return min(
        time_of(lay_even(cluster, transport, op, name), size_bytes).seconds
        for name in algorithms(cluster, transport, op, algorithm)
    )


# --- routes ------------------------------------------------------------------------------


class _Ends(NamedTuple):
    """From where to where flows go: nodes by number, int32 [flows]."""

    nodes: list[str]
    source: Ints
    target: Ints


def _stages(cluster: Cluster, transport: Transport, phase: Phase) -> list[_Ends]:
    """The stages of a phase, one after the other: one, or three if staged through host memory.

    These lead to the memory of the own host, to that of the other's, and from there on.
    """
    nodes = [*cluster.ranks.names, *phase.extra]
    if transport.path != "host":
        return [_Ends(nodes, phase.source, phase.target)]
    memories = [memory_of_host(cluster.graph, name) for name in nodes]
    if None in memories:
        raise InputError(
            f"transport {transport.name} goes through host memory, and "
            f"{nodes[memories.index(None)]} of {cluster.graph.name} has none"
        )
    names = [name for name in memories if name is not None]
    distinct = list(dict.fromkeys(names))
    beside = np.array([len(nodes) + distinct.index(name) for name in names], dtype=np.int32)
    nodes += distinct
    stops = [phase.source, beside[phase.source], beside[phase.target], phase.target]
    return [_Ends(nodes, a, b) for a, b in pairwise(stops)]


def _routes(cluster: Cluster, transport: Transport, ends: _Ends) -> RouteTable:
    moving = ends.source != ends.target  # within one memory nothing is sent
    return routes_between(
        cluster.graph,
        ends.nodes,
        ends.source[moving],
        ends.target[moving],
        "network" if transport.path == "network" else None,
    )


def _wires(
    routes: RouteTable, moving: NDArray[np.bool_], phase: Phase, efficiency: Floats
) -> Wires:
    wires = Wires(
        routes,
        phase.message_bytes[moving],
        phase.messages[moving],
        efficiency,
        phase.waits[moving],
        None,
    )
    return wires if routes.count <= EXACT_FLOWS else wires._replace(even=_evened(wires))


# --- time --------------------------------------------------------------------------------


def _network_time(wires: Wires, scale: float, half_size_bytes: float) -> Time:
    """What the network says, from the start of the first message to the end of the last."""
    routes = wires.routes
    if routes.count == 0:
        return Time(0.0)
    size = on_wire(wires.message_bytes * scale, wires.messages, half_size_bytes, wires.efficiency)
    if routes.count <= EXACT_FLOWS:
        # Slow to import, and large clusters do without.
        from simulator.engine.transfers import finish_times

        every = np.arange(routes.count, dtype=np.int32)
        return Time(float(finish_times(routes, every, size, np.zeros(routes.count)).max()))
    if wires.even is not None:
        return _bound(wires.even, size)
    latest_s = np.zeros(len(routes.links))
    np.maximum.at(latest_s, routes.crossed, np.repeat(routes.latency_s, np.diff(routes.ptr)))
    busy_s = routes.link_bytes(size) / routes.bandwidth_bytes_per_s
    return Time(float((latest_s + busy_s).max()), "coflow")


def _bound(groups: tuple[Even, ...], size: Floats) -> Time:
    """The least and the most that groups of equal flows take (module docstring)."""
    least_s = most_s = 0.0
    for even in groups:
        each = float(size[even.flow])
        used = even.load > 0.0
        shared_s = (even.first_s[used] + each * even.load[used]).max()
        alone_s = (even.latency_s + each * even.lone).max()
        least_s = max(least_s, float(shared_s), float(alone_s))
        most_s = max(most_s, float(even.latency_s.max() + each * even.load.max()))
    # What rounding leaves between them is no slack.
    slack_s = most_s - least_s
    return Time(least_s, "bound", slack_s) if slack_s > 1e-12 * most_s else Time(least_s)


def _evened(wires: Wires) -> tuple[Even, ...] | None:
    """The groups of equal flows, None if unequal flows share a link."""
    routes = wires.routes
    key = np.stack([wires.message_bytes, wires.messages, wires.efficiency], axis=1)
    _, flow, group = np.unique(key, axis=0, return_index=True, return_inverse=True)
    if len(flow) > len(routes.links):
        return None
    per_byte = 1.0 / routes.bandwidth_bytes_per_s
    each = per_byte[routes.crossed]
    if routes.fraction is not None:
        each = each * routes.fraction
    lone = np.maximum.reduceat(each, routes.ptr[:-1])
    first_s = np.full(len(routes.links), np.inf)
    np.minimum.at(first_s, routes.crossed, np.repeat(routes.latency_s, np.diff(routes.ptr)))
    found = []
    taken = np.zeros(len(routes.links), dtype=np.bool_)
    for number, first in enumerate(flow.tolist()):
        mine = group.ravel() == number
        load = routes.link_bytes(mine.astype(np.float64)) * per_byte
        if (taken & (load > 0.0)).any():
            return None
        taken |= load > 0.0
        found.append(Even(first, load, first_s, lone[mine], routes.latency_s[mine]))
    return tuple(found)
