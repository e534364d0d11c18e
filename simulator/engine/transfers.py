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
from simulator.engine import core

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]


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
) -> Transfers:
    """Let transfers share the raw bandwidth of the links on their routes, max-min fairly.

    sources, targets: node names [transfers]; size_bytes, start_s: float64 [transfers]. A transfer
    waits its path's latency, then moves its bytes; one from a node to itself arrives at its start.
    Raises InputError where no path joins source and target.
    """
    moving = np.array([a != b for a, b in zip(sources, targets, strict=True)], dtype=np.bool_)
    pairs = [(a, b) for a, b in zip(sources, targets, strict=True) if a != b]
    routes = route_table(graph, pairs, {})
    route = np.array([routes.index[pair] for pair in pairs], dtype=np.int32)
    finish_s = start_s.astype(np.float64)
    finish_s[moving] = finish_times(routes, route, size_bytes[moving], start_s[moving])

    link, transfer = _crossings(routes, route)
    begin_s = start_s[moving] + routes.latency_s[route]
    carried = np.zeros(len(routes.links))
    np.add.at(carried, link, size_bytes[moving][transfer])
    span_s = float(finish_s.max() - start_s.min()) if finish_s.size else 0.0
    capacity_bytes = routes.raw_bandwidth_bytes_per_s * span_s
    return Transfers(
        finish_s=finish_s,
        links=routes.links,
        kinds=routes.kinds,
        bandwidth_bytes_per_s=routes.raw_bandwidth_bytes_per_s,
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


def finish_times(routes: RouteTable, route: Ints, size_bytes: Floats, start_s: Floats) -> Floats:
    """When transfers on these routes arrive (s), float64 [transfers].

    route: int32 [transfers], row of `routes`; size_bytes, start_s: float64 [transfers].
    """
    buffers = laid(routes, route, size_bytes, start_s)
    core.advance(*buffers, np.inf)
    end_s = core.views(*buffers).op_f[:, core.END]
    if (end_s < 0.0).any():
        raise AssertionError(f"{np.count_nonzero(end_s < 0.0)} transfers never arrived")
    return end_s.copy()


def laid(
    routes: RouteTable, route: Ints, size_bytes: Floats, start_s: Floats
) -> tuple[Floats, Ints, NDArray[np.int64]]:
    """The core's buffers with a fetch for each transfer, which waits until its start."""
    count = len(route)
    sizes = [0] * core.SIZES
    for table in (core.OPS, core.LAID, core.FLOWS):
        sizes[table] = count
    sizes[core.LINKS] = len(routes.links)
    sizes[core.ROUTES] = routes.count
    sizes[core.EVENTS] = 2 * count
    sizes[core.WORK] = 4 * count  # all may queue, start and end at one instant
    flows = np.bincount(route, minlength=routes.count)
    on_link = core.flows_on_links(routes.binding, flows, len(routes.links))
    sizes[core.PLACES] = int(on_link.sum()) + len(routes.links)
    buffers = core.buffers(sizes)
    net = core.views(*buffers)
    core.connect(net, routes.bandwidth_bytes_per_s, on_link)
    net.route_i[:] = routes.binding
    net.route_f[:] = routes.latency_s
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


def _crossings(routes: RouteTable, route: Ints) -> tuple[Ints, NDArray[np.int64]]:
    """Every link of every transfer: link int32 [crossings], transfer int64 [crossings]."""
    links = [routes.all_links[row] for row in route]
    number = [row.size for row in links]
    return (
        np.concatenate([np.zeros(0, dtype=np.int32), *links]),
        np.repeat(np.arange(len(links)), number),
    )


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
