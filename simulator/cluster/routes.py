"""Routes through the graph, and the flat table of them that the network's solvers read.

A route minimises its path class (NVLink < PCIe switch < root complex < socket link < network),
then its hops, then how many of them lead through root complexes and sockets (a GPU far away is
reached from its own NIC, not from a neighbour's). Among equals the topology's `ecmp` decides:
`hashed` takes one of them by a checksum of the two names, as ECMP per flow does; `sprayed` splits
the transfer evenly at every node over the links that lead on, as ECMP per packet does. GPUs, DRAM
and NICs do not forward the traffic of others: a NIC passes only between its host and the network.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from simulator.cluster import paths, planes
from simulator.cluster.graph import Graph
from simulator.cluster.limits import Limits, limits
from simulator.errors import InputError

KINDS = ("nvlink", "pcie", "network")  # what `kind_of` numbers
NVLINK, PCIE, NETWORK = planes.NVLINK, planes.PCIE, planes.NETWORK

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]


@dataclass(frozen=True)
class RouteTable:
    """Routes, and the links that they cross.

    Links: links, names (source, target) in the order in which the routes first cross them; kinds;
    bandwidth_bytes_per_s float64 [links], as the file has it.

    Routes: those of route r are crossed[ptr[r] : ptr[r + 1]], int32, from its source on; ptr int64
    [routes + 1]. fraction float64 [crossings]: the part of a transfer that the link carries; None:
    all of it, everywhere. latency_s float64 [routes]; of a sprayed route the longest of its paths.
    kind_of int8 [routes]: NETWORK if any of its links is of that kind, else NVLINK if all are, else
    PCIE. forks int32 [crossings, 2] if there are fractions: the places that a crossing joins.

    index: (source, target) -> route, of a `route_table`; empty in a `routes_between`.
    """

    links: tuple[tuple[str, str], ...]
    kinds: tuple[str, ...]
    bandwidth_bytes_per_s: Floats
    latency_s: Floats
    ptr: Longs
    crossed: Ints
    fraction: Floats | None
    kind_of: NDArray[np.int8]
    forks: Ints | None = field(repr=False)
    index: dict[tuple[str, str], int] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Number of routes."""
        return len(self.latency_s)

    @cached_property
    def all_links(self) -> tuple[Ints, ...]:
        """Per route the links that it crosses, int32; for tables that are not large."""
        bounds = self.ptr.tolist()
        return tuple(self.crossed[a:b] for a, b in pairwise(bounds))

    @cached_property
    def _limits(self) -> Limits:
        return limits(self)

    @property
    def bind_ptr(self) -> Longs:
        """int64 [routes + 1]: where the links that can limit a route lie in bind_link."""
        return self._limits.ptr

    @property
    def bind_link(self) -> Ints:
        """int32: the links that can limit each route, route after route."""
        return self._limits.link

    @property
    def bind_weight(self) -> Floats | None:
        """float64, beside bind_link: what part of `capacity_bytes_per_s` a byte/s of the route
        takes; None: all of it is 1.
        """
        return self._limits.weight

    @property
    def capacity_bytes_per_s(self) -> Floats:
        """float64 [links]: bandwidth_bytes_per_s / the fraction that all routes have of the link,
        where that is one and the same.
        """
        return self._limits.capacity_bytes_per_s

    def link_bytes(self, route_bytes: Floats) -> Floats:
        """Bytes per link [links] from bytes per route [routes]."""
        each = np.repeat(route_bytes, np.diff(self.ptr))
        if self.fraction is not None:
            each *= self.fraction
        return _sums(self.crossed, each, len(self.links))

    def hops(self) -> Floats:
        """Links from end to end [routes]; where the ways of a sprayed route differ, their mean."""
        if self.fraction is None:
            return np.diff(self.ptr).astype(np.float64)
        route = np.repeat(np.arange(self.count), np.diff(self.ptr))
        return _sums(route, self.fraction, self.count)


def routes_between(
    graph: Graph,
    nodes: Sequence[str],
    source: Ints,
    target: Ints,
    via: str | None = None,
) -> RouteTable:
    """Routes from nodes[source[r]] to nodes[target[r]], in this order; source, target: [routes].

    via="network": only routes that leave through a NIC of the source's host, cross the network and
    enter by a NIC of the target's host, also within one host (RDMA without NVLink). Raises
    InputError, naming both ends, for a pair without a path.
    """
    if via not in (None, "network"):
        raise ValueError(f"via: {via!r} is neither None nor 'network'")
    found = paths.search(graph, nodes, np.column_stack((source, target)), via is not None)
    if not found.joined.all():
        lost = int(np.argmin(found.joined))
        raise InputError(_no_path(graph, nodes[source[lost]], nodes[target[lost]], via))
    if found.twice >= 0:
        a, b = nodes[source[found.twice]], nodes[target[found.twice]]
        raise InputError(
            f"{graph.name}: the way from {a} to {b} over the network crosses a link twice: give "
            "their NICs links in both directions"
        )
    return RouteTable(
        links=found.links,
        kinds=found.kinds,
        bandwidth_bytes_per_s=found.bandwidth_bytes_per_s,
        latency_s=found.latency_s,
        ptr=found.ptr,
        crossed=found.crossed,
        fraction=found.fraction,
        kind_of=found.kind,
        forks=found.forks,
    )


def route_table(graph: Graph, pairs: Iterable[tuple[str, str]]) -> RouteTable:
    """Routes of `pairs` (source, target node names), each once, with their `index`.

    Raises InputError, naming both ends, where a pair has no path.
    """
    index, nodes, ends = _numbered(pairs)
    return replace(routes_between(graph, nodes, ends[:, 0], ends[:, 1]), index=index)


def joined(one: RouteTable, other: RouteTable) -> RouteTable:
    """The routes of both tables of a graph, those of `one` first; without `index`."""
    links = {link: number for number, link in enumerate(one.links)}
    place = np.array([links.setdefault(link, len(links)) for link in other.links], dtype=np.int32)
    new = place >= len(one.links)

    def of_links(mine: Floats, theirs: Floats) -> Floats:
        return np.concatenate([mine, theirs[new]])

    sprayed = one.fraction is not None or other.fraction is not None
    parts = [_forked(table) for table in (one, other)] if sprayed else []
    return RouteTable(
        links=tuple(links),
        kinds=one.kinds + tuple(k for k, is_new in zip(other.kinds, new, strict=True) if is_new),
        bandwidth_bytes_per_s=of_links(one.bandwidth_bytes_per_s, other.bandwidth_bytes_per_s),
        latency_s=np.concatenate([one.latency_s, other.latency_s]),
        ptr=np.concatenate([one.ptr, one.ptr[-1] + other.ptr[1:]]),
        crossed=np.concatenate([one.crossed, place[other.crossed]]),
        fraction=np.concatenate([part[0] for part in parts]) if sprayed else None,
        kind_of=np.concatenate([one.kind_of, other.kind_of]),
        forks=np.concatenate([part[1] for part in parts]) if sprayed else None,
    )


def _forked(table: RouteTable) -> tuple[Floats, Ints]:
    """Fractions and forks of a table's crossings, also where no route forks."""
    if table.fraction is not None and table.forks is not None:
        return table.fraction, table.forks
    step = np.arange(len(table.crossed)) - np.repeat(table.ptr[:-1], np.diff(table.ptr))
    return np.ones(len(table.crossed)), np.stack([step, step + 1], axis=1).astype(np.int32)


def unreachable(graph: Graph, pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those of `pairs` (source, target) that no path joins, each once."""
    index, nodes, ends = _numbered(pairs)
    reached = paths.search(graph, nodes, ends, False).joined
    return [
        pair
        for pair, joins in zip(index, reached.tolist(), strict=True)
        if pair[0] != pair[1] and not joins
    ]


def _sums(index: Ints | Longs, value: Floats, count: int) -> Floats:
    """Sum of the values of each index, [count]."""
    return np.asarray(np.bincount(index, weights=value, minlength=count), dtype=np.float64)


def _numbered(
    pairs: Iterable[tuple[str, str]],
) -> tuple[dict[tuple[str, str], int], list[str], Ints]:
    """Each pair once with its number, the nodes in them, and their numbers int32 [pairs, 2]."""
    index = {pair: route for route, pair in enumerate(dict.fromkeys(pairs))}
    node = {name: n for n, name in enumerate(dict.fromkeys(end for pair in index for end in pair))}
    ends = [(node[a], node[b]) for a, b in index]
    return index, list(node), np.array(ends, dtype=np.int32).reshape(-1, 2)


def _no_path(graph: Graph, source: str, target: str, via: str | None) -> str:
    if via is None:
        return (
            f"{graph.name}: {target} cannot be reached from {source}: no path of links joins them "
            "(GPUs, NICs and DRAM do not forward traffic)"
        )
    hosts_with_nics = {data["host"] for _, data in graph.nodes(data=True) if data["kind"] == "nic"}
    for end in (source, target):
        host = graph.nodes[end]["host"]
        if host not in hosts_with_nics:
            return (
                f"{graph.name}: no way from {source} to {target} over the network: the host of "
                f"{end} (host {host}) has no NIC"
            )
    return (
        f"{graph.name}: no way from {source} to {target} over the network: it must lead from a NIC "
        "of the one's host to a NIC of the other's, and reach both without NVLink"
    )
