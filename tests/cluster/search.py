"""Routes by networkx alone, pair by pair: what the compiled search must find."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from zlib import crc32

import networkx as nx

CLASS = {"nvlink": 0, "pcie": 1, "membus": 2, "socket": 3, "network": 4}


def side(kind: str, edge_kind: str, way: str) -> str:
    if kind in ("gpu", "dram"):
        return way
    if kind == "nic":
        return f"{'net' if edge_kind == 'network' else 'host'}-{way}"
    return ""


def plane(graph: nx.DiGraph, path_class: int, ends: Iterable[str]) -> nx.DiGraph:
    """What routes up to this class may use; nodes are (name, side), ends and NICs split."""
    kinds = dict(graph.nodes(data="kind"))
    split = nx.DiGraph()
    for node, kind in kinds.items():
        if kind == "nic":
            split.add_edge((node, "host-in"), (node, "net-out"), cost=1024)
            split.add_edge((node, "net-in"), (node, "host-out"), cost=1024)
    for a, b, kind in graph.edges(data="kind"):
        through_cpu = kind == "pcie" and "cpu" in (kinds[a], kinds[b])
        of_class = 2 if through_cpu else CLASS[kind]
        if of_class <= path_class:
            split.add_edge(
                (a, side(kinds[a], kind, "out")),
                (b, side(kinds[b], kind, "in")),
                cost=1024 + (of_class in (2, 3)),
            )
    for node in ends:
        if kinds[node] not in ("gpu", "dram"):
            for edge_kind in ("pcie", "network"):
                split.add_edge(
                    (node, "out"), (node, side(kinds[node], edge_kind, "out")), cost=1024
                )
                split.add_edge((node, side(kinds[node], edge_kind, "in")), (node, "in"), cost=1024)
    return split


def ways_back(
    graph: nx.DiGraph, source: str, ends: Iterable[str], targets: Iterable[str]
) -> dict[str, dict[tuple[str, str], list[tuple[str, str]]] | None]:
    """Per target: the nodes before each on shortest ways from the source; None: no way."""
    found = dict.fromkeys(targets)
    for path_class in range(5):
        split = plane(graph, path_class, ends)
        if (source, "out") not in split:
            continue
        before, _ = nx.dijkstra_predecessor_and_distance(split, (source, "out"), weight="cost")
        for target in found:
            if found[target] is None and (target, "in") in before:
                found[target] = before
    return found


def hashed(before: dict, source: str, target: str) -> list[tuple[str, str]]:
    """The links of the way that the checksum of the two names takes."""
    checksum = crc32(f"{source}>{target}".encode())
    here, names = (target, "in"), [target]
    while here != (source, "out"):
        ways = sorted(before[here])
        checksum, which = divmod(checksum, len(ways))
        here = ways[which]
        if here[0] != names[-1]:
            names.append(here[0])
    names.reverse()
    return list(pairwise(names))


def sprayed(before: dict, source: str, target: str) -> dict[tuple[str, str], float]:
    """Link -> part of a transfer, counted path by path from the source: a path's part is the
    product of 1 / (links that lead on) at its nodes.
    """
    on_way = {(target, "in")}
    ahead = [(target, "in")]
    after: dict[tuple[str, str], set[tuple[str, str]]] = {}
    while ahead:
        here = ahead.pop()
        for prior in before[here]:
            after.setdefault(prior, set()).add(here)
            if prior not in on_way:
                on_way.add(prior)
                ahead.append(prior)

    def next_hops(here: tuple[str, str]) -> list[tuple[str, str]]:
        hops = []
        for there in after.get(here, ()):
            hops += next_hops(there) if there[0] == here[0] and there[1] != "in" else [there]
        return hops

    parts: dict[tuple[str, str], float] = {}

    def go(here: tuple[str, str], part: float) -> None:
        hops = next_hops(here)
        for there in hops:
            share = part / len(hops)
            if there[0] != here[0]:
                link = (here[0], there[0])
                parts[link] = parts.get(link, 0.0) + share
            go(there, share)

    go((source, "out"), 1.0)
    return parts
