"""Routes through the graph, and the flat table of them that the network kernel reads.

A route minimises its path class (NVLink < PCIe switch < root complex < socket link < network),
then its hops, then how many of them lead through root complexes and sockets (a GPU far away is
reached from its own NIC, not from a neighbour's); among equals the topology's rule chooses
(`hashed`: one of them by a checksum of the two names, as ECMP does). GPUs, DRAM and NICs do not
forward the traffic of others: a NIC passes only between its host and the network.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from zlib import crc32

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from simulator.cluster.graph import Graph
from simulator.errors import InputError

MAX_HOPS = 12  # links of one route; the widest shipped cluster has 8

Side = tuple[str, str]  # a node and the side of it that a path enters or leaves

HOP = 1024  # what a hop costs; one through a root complex or socket costs one more

NVLINK, PCIE_SWITCH, ROOT_COMPLEX, SOCKET, NETWORK = range(5)
_EDGE_CLASS = {
    "nvlink": NVLINK,
    "pcie": PCIE_SWITCH,
    "membus": ROOT_COMPLEX,
    "socket": SOCKET,
    "network": NETWORK,
}


@dataclass(frozen=True)
class RouteTable:
    """Routes of the pairs that a run uses.

    links: names (source, target) in a fixed order; bandwidth_bytes_per_s float64 [links], after
    the transport's efficiency; raw_bandwidth_bytes_per_s float64 [links], as the file has it;
    kinds: link kinds. latency_s float64 [routes]. binding int32 [routes, 1 + MAX_HOPS]: number of
    links that can limit the route, then these links. all_links: per route every link it crosses,
    int32. index: (source, target) -> route.
    """

    links: tuple[tuple[str, str], ...]
    kinds: tuple[str, ...]
    raw_bandwidth_bytes_per_s: NDArray[np.float64]
    bandwidth_bytes_per_s: NDArray[np.float64]
    latency_s: NDArray[np.float64]
    binding: NDArray[np.int32]
    all_links: tuple[NDArray[np.int32], ...]
    index: dict[tuple[str, str], int]

    @property
    def count(self) -> int:
        """Number of routes."""
        return len(self.all_links)

    def link_bytes(self, route_bytes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Bytes per link [links] from bytes per route [routes]."""
        total = np.zeros(len(self.links), dtype=np.float64)
        for route, links in enumerate(self.all_links):
            total[links] += route_bytes[route]
        return total


def route_table(
    graph: Graph, pairs: Iterable[tuple[str, str]], efficiency: dict[str, float]
) -> RouteTable:
    """Routes of `pairs` (source, target node names); `efficiency` scales bandwidth by link kind.

    Raises InputError, naming both ends, where a pair has no path.
    """
    wanted = list(dict.fromkeys(pairs))
    ends = dict.fromkeys(node for pair in wanted for node in pair)
    paths = _paths(graph, wanted, ends)
    links: dict[tuple[str, str], int] = {}
    for path in paths:
        for link in pairwise(path):
            links.setdefault(link, len(links))
    data = [graph.edges[link] for link in links]
    raw = np.array([d["bandwidth_bytes_per_s"] for d in data], dtype=np.float64)
    kinds = tuple(str(d["kind"]) for d in data)
    usable = raw * np.array([efficiency.get(kind, 1.0) for kind in kinds])
    latency = np.array([d["latency_s"] for d in data], dtype=np.float64)
    crossed = tuple(
        np.array([links[link] for link in pairwise(path)], dtype=np.int32) for path in paths
    )
    limiting = _limiting(crossed, usable)
    binding = np.zeros((len(paths), 1 + MAX_HOPS), dtype=np.int32)
    for route, route_links in enumerate(crossed):
        kept = route_links[limiting[route_links]]
        if kept.size > MAX_HOPS:
            raise InputError(f"the route {wanted[route]} crosses more than {MAX_HOPS} links")
        binding[route, 0] = kept.size
        binding[route, 1 : 1 + kept.size] = kept
    return RouteTable(
        links=tuple(links),
        kinds=kinds,
        raw_bandwidth_bytes_per_s=raw,
        bandwidth_bytes_per_s=usable,
        latency_s=np.array([latency[route].sum() for route in crossed], dtype=np.float64),
        binding=binding,
        all_links=crossed,
        index={pair: route for route, pair in enumerate(wanted)},
    )


def unreachable(graph: Graph, pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those of `pairs` (source, target) that no path joins, each once."""
    wanted = list(dict.fromkeys(pairs))
    plane = _plane(graph, NETWORK, dict.fromkeys(node for pair in wanted for node in pair))
    reached = {
        source: nx.descendants(plane, (source, "out")) if (source, "out") in plane else set()
        for source in dict.fromkeys(source for source, _ in wanted)
    }
    return [(a, b) for a, b in wanted if a != b and (b, "in") not in reached[a]]


def _plane(graph: Graph, path_class: int, ends: Iterable[str]) -> Graph:
    """The part of the graph that routes up to this class may use, with end points split.

    Nodes are (name, side). A node that forwards has one side, ""; GPUs and memories have "out"
    (to start from) and "in" (to end at); a NIC has "host" and "net", joined both ways, so that
    traffic passes through it only between its host and the network. Of a node that forwards, and is
    among `ends`, "out" leads to it and it leads to "in".
    """
    plane: Graph = nx.DiGraph()
    for node, data in graph.nodes(data=True):
        if data["kind"] == "nic":
            plane.add_edge((node, "host-in"), (node, "net-out"), cost=HOP)
            plane.add_edge((node, "net-in"), (node, "host-out"), cost=HOP)
    for source, target, data in graph.edges(data=True):
        kind = str(data["kind"])
        edge_class = _EDGE_CLASS[kind]
        if kind == "pcie" and "cpu" in (graph.nodes[source]["kind"], graph.nodes[target]["kind"]):
            edge_class = ROOT_COMPLEX
        if edge_class <= path_class:
            plane.add_edge(
                (source, _side(graph, source, kind, "out")),
                (target, _side(graph, target, kind, "in")),
                cost=HOP + (edge_class in (ROOT_COMPLEX, SOCKET)),
            )
    for node in ends:
        kind = graph.nodes[node]["kind"]
        if kind not in ("gpu", "dram"):
            for edge_kind in ("pcie", "network") if kind == "nic" else ("",):
                outward, inward = (_side(graph, node, edge_kind, way) for way in ("out", "in"))
                plane.add_edge((node, "out"), (node, outward), cost=HOP)
                plane.add_edge((node, inward), (node, "in"), cost=HOP)
    return plane


def _side(graph: Graph, node: str, edge_kind: str, way: str) -> str:
    kind = graph.nodes[node]["kind"]
    if kind in ("gpu", "dram"):
        return way
    if kind == "nic":
        return f"{'net' if edge_kind == 'network' else 'host'}-{way}"
    return ""


def _paths(graph: Graph, wanted: list[tuple[str, str]], ends: Iterable[str]) -> list[list[str]]:
    """The nodes along each pair's route; one search per source and plane serves all its targets."""
    planes: list[Graph] = []
    for path_class in range(NETWORK + 1):
        plane = _plane(graph, path_class, ends)
        if not planes or plane.number_of_edges() > planes[-1].number_of_edges():
            planes.append(plane)
    targets: dict[str, list[str]] = {}
    for source, target in wanted:
        targets.setdefault(source, []).append(target)
    found: dict[tuple[str, str], list[str]] = {}
    for source, left in targets.items():
        for plane in planes:
            if left and (source, "out") in plane:
                before, _ = nx.dijkstra_predecessor_and_distance(
                    plane, (source, "out"), weight="cost"
                )
                reached = [target for target in left if (target, "in") in before]
                found |= {(source, target): _walk(before, source, target) for target in reached}
                left = [target for target in left if (target, "in") not in before]
        if left:
            raise InputError(
                f"{graph.name}: {left[0]} cannot be reached from {source}: no path of links joins "
                "them (GPUs, NICs and DRAM do not forward traffic)"
            )
    return [found[pair] for pair in wanted]


def _walk(before: dict[Side, list[Side]], source: str, target: str) -> list[str]:
    """One of the equally short ways back from target to source: at each fork by the checksum."""
    checksum = crc32(f"{source}>{target}".encode())
    here = (target, "in")
    names = [target]
    while here != (source, "out"):
        ways = sorted(before[here])
        checksum, which = divmod(checksum, len(ways))
        here = ways[which]
        if here[0] != names[-1]:
            names.append(here[0])
    return names[::-1]


def _limiting(
    crossed: tuple[NDArray[np.int32], ...], bandwidth: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Which links can limit any route, bool [links]; exact, whatever the traffic.

    A link whose routes all go on to (or come from) links that together carry no more than it
    does can never be the one that is full. If such a link is itself dropped, those that vouch for
    it stand in its place; no link vouches for itself.
    """
    after: list[set[int]] = [set() for _ in bandwidth]
    before: list[set[int]] = [set() for _ in bandwidth]
    for route in crossed:
        for i, link in enumerate(route.tolist()):
            after[link].add(int(route[i + 1]) if i + 1 < route.size else -1)
            before[link].add(int(route[i - 1]) if i > 0 else -1)
    vouchers: dict[int, set[int]] = {}
    for link in range(bandwidth.size):
        sets = [_resolved(others, vouchers) for others in (after[link], before[link])]
        sets = [found for found in sets if found.isdisjoint((-1, link))]
        if sets:
            least = min(sets, key=lambda found: float(bandwidth[sorted(found)].sum()))
            if bandwidth[sorted(least)].sum() <= bandwidth[link]:
                vouchers[link] = least
    limiting = np.ones(bandwidth.size, dtype=np.bool_)
    limiting[list(vouchers)] = False
    return limiting


def _resolved(links: set[int], vouchers: dict[int, set[int]]) -> set[int]:
    """The links, each that is dropped replaced by those that vouch for it."""
    found: set[int] = set()
    ahead = list(links)
    while ahead:
        link = ahead.pop()
        if link in vouchers:
            ahead += vouchers[link]
        else:
            found.add(link)
    return found
