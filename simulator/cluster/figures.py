"""What a topology can do, before anything runs on it: bisection bandwidth, the longest route, the
hottest link when every GPU sends to every other.

Raw bandwidths, as the file has them: no transport's efficiency is taken off.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import permutations

import networkx as nx
import numpy as np

from simulator.cluster.graph import Graph, gpus
from simulator.cluster.routes import RouteTable, route_table, unreachable

# Up to so many GPUs each route is looked at, beyond it those of the first GPU.
ALL_ROUTES_GPUS = 64

_SOURCE, _SINK = "source", "sink"


@dataclass(frozen=True)
class Figures:
    """Of a cluster of two GPUs or more that are all joined.

    bisection_bytes_per_s: one way between the first and the second half of the GPUs (by index; the
    middle one of an odd number is in the second), the smaller way. longest_route: (source, target)
    with the most links (of a sprayed route, the mean of its ways), and among these the highest
    latency. hottest_link: (source, target) of the link that takes longest when every GPU sends one
    byte to every other; hottest_bytes are those that it carries then, hottest_seconds_per_byte
    their time on it. all_routes: False if only the first GPU's routes were looked at (loads are
    then the mean over links that are alike).
    """

    bisection_bytes_per_s: float
    bisection_kinds: tuple[str, ...]
    longest_route: tuple[str, str]
    longest_links: int
    longest_latency_s: float
    hottest_link: tuple[str, str]
    hottest_kind: str
    hottest_bytes: float
    hottest_seconds_per_byte: float
    all_routes: bool


def figures(graph: Graph, hosts_apart: bool) -> Figures | tuple[str, str] | None:
    """The figures of a graph; a pair of GPUs that nothing joins, if there is one; None for one GPU.

    hosts_apart: no route between two hosts leads through a third (true of all that is built, not
    of an explicit graph): a route is then looked for among the nodes of its two hosts alone.
    """
    names = gpus(graph)
    if len(names) < 2:
        return None
    every = len(names) <= ALL_ROUTES_GPUS
    first = [(names[0], name) for name in names[1:]]
    pairs = list(permutations(names, 2)) if every else first
    apart = unreachable(graph, pairs)
    if apart:
        return apart[0]
    tables = [route_table(graph, pairs)] if every or not hosts_apart else _by_host(graph, first)
    kinds = tuple(sorted({kind for table in tables for kind in table.kinds}))
    longest = max(
        (
            (links, latency_s, pair)
            for table in tables
            for pair, links, latency_s in zip(
                table.index, table.hops().round(9).tolist(), table.latency_s.tolist(), strict=True
            )
        ),
        key=lambda found: found[:2],
    )
    loads = _loads(tables) if every else _mean_loads(graph, tables, len(names))
    hottest = max(loads, key=lambda link: loads[link] / _rate(graph, link))
    half = len(names) // 2
    return Figures(
        bisection_bytes_per_s=bisection(graph, names[:half], names[half:], kinds),
        bisection_kinds=kinds,
        longest_route=longest[2],
        longest_links=round(longest[0]),
        longest_latency_s=longest[1],
        hottest_link=hottest,
        hottest_kind=str(graph.edges[hottest]["kind"]),
        hottest_bytes=loads[hottest],
        hottest_seconds_per_byte=loads[hottest] / _rate(graph, hottest),
        all_routes=every,
    )


def bisection(graph: Graph, one: list[str], other: list[str], kinds: tuple[str, ...]) -> float:
    """The smallest cut (B/s) between two sets of GPUs, the smaller way, over links of these kinds.

    Exact, by maximum flow. GPUs and memories forward nothing, NICs only between host and network.
    """
    return float(min(_max_flow(graph, a, b, kinds) for a, b in ((one, other), (other, one))))


def _max_flow(graph: Graph, sources: list[str], sinks: list[str], kinds: tuple[str, ...]) -> int:
    ends = dict.fromkeys(sources, _SOURCE) | dict.fromkeys(sinks, _SINK)
    # Whole B/s: sums of them are exact.
    capacity: dict[tuple[object, object], int] = defaultdict(int)

    def side(node: str, kind: str, way: str) -> object:
        if graph.nodes[node]["kind"] == "nic":
            return node, "net" if kind == "network" else "host", way
        return ends.get(node, node)

    for source, target, data in graph.edges(data=True):
        if data["kind"] not in kinds or "dram" in (
            graph.nodes[source]["kind"],
            graph.nodes[target]["kind"],
        ):
            continue
        a, b = side(source, data["kind"], "out"), side(target, data["kind"], "in")
        if a != _SINK and b != _SOURCE and a != b:
            capacity[a, b] += round(data["bandwidth_bytes_per_s"])
    flow: Graph = nx.DiGraph()
    flow.add_nodes_from((_SOURCE, _SINK))
    flow.add_edges_from((a, b, {"capacity": c}) for (a, b), c in capacity.items())
    for node, data in graph.nodes(data=True):
        if data["kind"] == "nic":
            flow.add_edge((node, "host", "in"), (node, "net", "out"))
            flow.add_edge((node, "net", "in"), (node, "host", "out"))
    return int(nx.maximum_flow_value(flow, _SOURCE, _SINK))


def _by_host(graph: Graph, pairs: list[tuple[str, str]]) -> list[RouteTable]:
    """Routes from one GPU, those to each host looked for in the graph of the two hosts."""
    of_host: dict[int, list[str]] = defaultdict(list)
    for node, data in graph.nodes(data=True):
        of_host[data["host"]].append(node)
    wanted: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for pair in pairs:
        wanted[graph.nodes[pair[1]]["host"]].append(pair)
    home = graph.nodes[pairs[0][0]]["host"]
    return [
        route_table(
            graph.subgraph(
                [*of_host[-1], *of_host[home], *(of_host[host] if host != home else [])]
            ),
            those,
        )
        for host, those in wanted.items()
    ]


def _loads(tables: list[RouteTable]) -> dict[tuple[str, str], float]:
    """Bytes per link when one byte goes along each route."""
    total: dict[tuple[str, str], float] = defaultdict(float)
    for table in tables:
        loads = table.link_bytes(np.ones(table.count))
        for link, load in zip(table.links, loads.tolist(), strict=True):
            total[link] += load
    return total


def _mean_loads(graph: Graph, tables: list[RouteTable], count: int) -> dict[tuple[str, str], float]:
    """Bytes per link if every GPU loads the cluster as this one does: what links that are alike
    (kind, kinds of their ends, rate) carry in all, shared out among them. One link of each sort.
    """

    def sort(link: tuple[str, str]) -> tuple[str, str, str, float]:
        source, target = (graph.nodes[node]["kind"] for node in link)
        return graph.edges[link]["kind"], source, target, _rate(graph, link)

    number: dict[tuple[str, str, str, float], int] = defaultdict(int)
    for link in graph.edges:
        number[sort(link)] += 1
    total: dict[tuple[str, str, str, float], float] = defaultdict(float)
    shown: dict[tuple[str, str, str, float], tuple[str, str]] = {}
    for link, load in _loads(tables).items():
        total[sort(link)] += load * count
        shown.setdefault(sort(link), link)
    return {shown[alike]: load / number[alike] for alike, load in total.items()}


def _rate(graph: Graph, link: tuple[str, str]) -> float:
    return float(graph.edges[link]["bandwidth_bytes_per_s"])
