"""Transfers alone: when each arrives, and what each link carried. No simpy, no operations around.

All transfers are known beforehand, so the event core runs once, from the first to the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.graph import Graph
from simulator.cluster.routes import RouteTable, route_table
from simulator.engine import core, links
from simulator.engine.links import EXACT, Network, Wires

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]
Buffers = tuple[Floats, Ints, NDArray[np.int64]]


class Transfers(NamedTuple):
    """When transfers arrived, and what the links on their routes carried meanwhile.

    finish_s: float64 [transfers]. Per directed link that a transfer crossed, in the order in which
    the transfers first name them: links (source, target); kinds; bandwidth_bytes_per_s, bytes
    float64 [links]; busy_s float64 [links], time with at least one transfer on the link; and
    utilization float64 [links], bytes over bandwidth x the time from first start to last finish.
    """

    finish_s: Floats
    links: tuple[tuple[str, str], ...]
    kinds: tuple[str, ...]
    bandwidth_bytes_per_s: Floats
    bytes: Floats
    busy_s: Floats
    utilization: Floats


def transfers(
    graph: Graph,
    sources: Sequence[str],
    targets: Sequence[str],
    size_bytes: Floats,
    start_s: Floats,
    network: Network = EXACT,
    collective: Sequence[str] | None = None,
) -> Transfers:
    """Let transfers share the raw bandwidth of the links on their routes, max-min fairly.

    sources, targets: node names [transfers]; size_bytes, start_s: float64 [transfers]. A transfer
    waits its path's latency, then moves its bytes; one from a node to itself arrives at its start.
    With `network.coflow`, transfers of one start and one name in `collective` (default: all alike)
    are one collective. Raises InputError where no path joins source and target.
    """
    moving = np.array([a != b for a, b in zip(sources, targets, strict=True)], dtype=np.bool_)
    pairs = [(a, b) for a, b in zip(sources, targets, strict=True) if a != b]
    routes = route_table(graph, pairs)
    route = np.array([routes.index[pair] for pair in pairs], dtype=np.int32)
    finish_s = start_s.astype(np.float64)
    if network.coflow:
        number: dict[str, int] = {}
        named = [number.setdefault(name, len(number)) for name in collective or ()]
        finish_s[moving] = coflow_times(
            routes,
            route,
            size_bytes[moving],
            start_s[moving],
            np.array(named)[moving] if named else None,
        )
    else:
        finish_s[moving] = finish_times(
            routes, route, size_bytes[moving], start_s[moving], network.epsilon
        )

    link, transfer, fraction = _crossings(routes, route)
    begin_s = start_s[moving] + routes.latency_s[route]
    carried = np.zeros(len(routes.links))
    np.add.at(carried, link, size_bytes[moving][transfer] * fraction)
    span_s = float(finish_s.max() - start_s.min()) if finish_s.size else 0.0
    capacity_bytes = routes.bandwidth_bytes_per_s * span_s
    return Transfers(
        finish_s=finish_s,
        links=routes.links,
        kinds=routes.kinds,
        bandwidth_bytes_per_s=routes.bandwidth_bytes_per_s,
        bytes=carried,
        busy_s=_busy(link, begin_s[transfer], finish_s[moving][transfer], len(routes.links)),
        utilization=np.divide(carried, capacity_bytes, np.zeros_like(carried), where=span_s > 0.0),
    )


LINK_COLUMNS = ("link", "kind", "bandwidth_bytes_per_s", "bytes", "busy_s", "utilization")

LinkRow = tuple[str, str, float, float, float, float]


def link_rows(found: Transfers) -> list[LinkRow]:
    """A row of LINK_COLUMNS for each link; its name is "source -> target"."""
    names = [f"{source} -> {target}" for source, target in found.links]
    numbers = (found.bandwidth_bytes_per_s, found.bytes, found.busy_s, found.utilization)
    columns = (column.tolist() for column in numbers)
    return list(zip(names, found.kinds, *columns, strict=True))


def finish_times(
    routes: RouteTable, route: Ints, size_bytes: Floats, start_s: Floats, epsilon: float = 0.0
) -> Floats:
    """When transfers on these routes arrive (s), float64 [transfers].

    route: int32 [transfers], row of `routes`; size_bytes, start_s: float64 [transfers]; epsilon:
    what would end within that fraction of its time ends together (0: exact).
    """
    buffers = laid(links.wires_of(routes), route, size_bytes, start_s, epsilon)
    core.advance(*buffers, np.inf)
    return _ends(buffers)


def coflow_times(
    routes: RouteTable,
    route: Ints,
    size_bytes: Floats,
    start_s: Floats,
    collective: NDArray[np.int64] | None = None,
) -> Floats:
    """As `finish_times`, transfers of one start and one number in `collective` (None: all alike)
    being one collective.

    It waits the longest latency of its routes; then its transfers progress in proportion.
    """
    wires = links.all_wires_of(routes)
    group = _groups(start_s, collective)
    if group.any():
        order = np.argsort(group, kind="stable")
        route, size_bytes, start_s = route[order], size_bytes[order], start_s[order]
    ptr = np.append(0, np.cumsum(np.bincount(group)))
    flows = links.merged(wires, ptr, route, size_bytes)
    numbers = np.arange(flows.flows, dtype=np.int32)
    buffers = laid(
        links.wires_of_merged(wires, flows), numbers, flows.size_bytes, start_s[ptr[:-1]]
    )
    core.advance(*buffers, np.inf)
    return _ends(buffers)[group]


def _groups(start_s: Floats, collective: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """The group of each transfer, int64 [transfers]."""
    count = len(start_s)
    key = np.zeros(count, dtype=np.int64)
    for column in (start_s, collective):
        if column is not None and count and (column != column[0]).any():
            _, number = np.unique(column, return_inverse=True)
            _, key = np.unique(key * (int(number.max()) + 1) + number, return_inverse=True)
    return key


def _ends(buffers: Buffers) -> Floats:
    end_s = core.views(*buffers).op_f[:, core.END]
    if (end_s < 0.0).any():
        raise AssertionError(f"{np.count_nonzero(end_s < 0.0)} transfers never arrived")
    return end_s.copy()


def laid(
    wires: Wires, route: Ints, size_bytes: Floats, start_s: Floats, epsilon: float = 0.0
) -> Buffers:
    """The core's buffers with a fetch for each transfer, which waits until its start."""
    count = len(route)
    sizes = [0] * core.SIZES
    for table in (core.OPS, core.LAID, core.FLOWS):
        sizes[table] = count
    sizes[core.EVENTS] = 2 * count
    sizes[core.WORK] = 4 * count  # all may queue, start and end at one instant
    at_once = np.bincount(route, minlength=wires.routes)
    links.size(sizes, wires, at_once)
    buffers = core.buffers(sizes)
    net = core.views(*buffers)
    links.connect(net, wires, at_once, epsilon)
    net.more_head[:] = -1
    net.op_f[:] = -1.0
    net.op_f[:, core.DURATION] = size_bytes
    net.op_f[:, core.DELAY] = start_s
    net.op_i[:, core.KIND] = core.FETCH
    net.op_i[:, core.STREAM] = -1
    net.op_i[:, core.WAITS] = 1
    net.op_i[:, core.ROW] = route
    net.free[:] = np.arange(count - 1, -1, -1)
    net.counts[core.N_FREE] = count
    core.start(*buffers, np.arange(count, dtype=np.int32), 0.0)
    return buffers


def _crossings(routes: RouteTable, route: Ints) -> tuple[Ints, NDArray[np.int64], Floats]:
    """Every link of every transfer: link int32, transfer int64 and the part of it that takes this
    link float64, all [crossings].
    """
    number = np.diff(routes.ptr)[route]
    transfer = np.repeat(np.arange(len(route)), number)
    before = np.concatenate(([0], np.cumsum(number)[:-1])) if len(route) else np.zeros(0)
    at = np.arange(len(transfer)) + (routes.ptr[route] - before).astype(np.int64)[transfer]
    fraction = np.ones(len(at)) if routes.fraction is None else routes.fraction[at]
    return routes.crossed[at], transfer, fraction


def _busy(link: Ints, begin_s: Floats, end_s: Floats, links: int) -> Floats:
    """Length of the union of the times (begin, end) of each link, float64 [links]."""
    order = np.lexsort((begin_s, link))
    begin_s, end_s = begin_s[order], end_s[order]
    first = np.searchsorted(link[order], np.arange(links + 1))
    busy_s = np.zeros(links)
    for row in range(links):
        begins = begin_s[first[row] : first[row + 1]]
        ends = np.maximum.accumulate(end_s[first[row] : first[row + 1]])
        idle_s = np.maximum(begins[1:] - ends[:-1], 0.0).sum()
        busy_s[row] = ends[-1] - begins[0] - idle_s
    return busy_s
