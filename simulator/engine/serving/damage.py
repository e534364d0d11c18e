"""What a fault hits: GPUs and links of the graph, and the graph that is left."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from simulator.cluster.graph import Graph, gpus
from simulator.errors import InputError
from simulator.spec.incidents import Fault
from simulator.spec.units import did_you_mean

Link = tuple[str, str]

KINDS = {
    "gpu": ("gpu",),
    "nic": ("nic",),
    "switch": ("nvswitch", "pcie", "cpu", "leaf", "spine"),
}
"""Kinds of graph nodes that `what` names."""


class Part(NamedTuple):
    """What a fault hits. gpus: their numbers; links: (source, target), in the graph's order."""

    gpus: tuple[int, ...]
    links: tuple[Link, ...]


class Damage(NamedTuple):
    """What is broken now. gpus: numbers of those that are down; dead: links without transfers;
    share: of their bandwidth that links have left, where it is not all.
    """

    gpus: frozenset[int]
    dead: frozenset[Link]
    share: tuple[tuple[Link, float], ...]


WHOLE = Damage(frozenset(), frozenset(), ())


def part_of(graph: Graph, fault: Fault, told: str) -> Part:
    """What a fault hits; InputError, beginning with `told`, for what is not in the graph."""
    if fault.what == "link":
        return Part((), _links(graph, fault.name, told))
    whole = fault.what == "node"
    nodes = _host(graph, fault.name, told) if whole else [_node(graph, fault, told)]
    here = set(nodes)
    links = tuple((a, b) for a, b in graph.edges if a in here or b in here)
    index = [graph.nodes[name]["index"] for name in nodes if graph.nodes[name]["kind"] == "gpu"]
    return Part(tuple(sorted(index)), links)


def _node(graph: Graph, fault: Fault, told: str) -> str:
    wanted = KINDS[fault.what]
    known = [name for name, data in graph.nodes(data=True) if data["kind"] in wanted]
    if fault.name in known:
        return fault.name
    if fault.name in graph:
        kind = graph.nodes[fault.name]["kind"]
        what = next((what for what, kinds in KINDS.items() if kind in kinds), None)
        hint = f"; write what: {what}" if what else ""
        raise InputError(f"{told}{fault.name!r} is a {kind}, not a {fault.what}{hint}")
    raise InputError(
        f"{told}{graph.name} has no {fault.what} {fault.name!r}"
        f"{did_you_mean(fault.name, known) or _some(known)}"
    )


def _host(graph: Graph, name: str, told: str) -> list[str]:
    hosts: dict[str, list[str]] = {}
    for node, data in graph.nodes(data=True):
        if data["host"] >= 0:
            hosts.setdefault(f"node{data['host']}", []).append(node)
    if name not in hosts:
        known = list(hosts)
        raise InputError(
            f"{told}{graph.name} has no node {name!r}{did_you_mean(name, known) or _some(known)}"
        )
    return hosts[name]


def _links(graph: Graph, name: str, told: str) -> tuple[Link, ...]:
    both = "<->" in name
    ends = tuple(part.strip() for part in name.split("<->" if both else "->"))
    if len(ends) != 2 or not all(ends):
        raise InputError(f"{told}{name!r} is not a link; write for example 'gpu0 -> nvswitch0'")
    for end in ends:
        if end not in graph:
            known = [str(node) for node in graph]
            raise InputError(
                f"{told}{graph.name} has no {end!r}{did_you_mean(end, known) or _some(known)}"
            )
    found = [ends, ends[::-1]] if both else [ends]
    for a, b in found:
        if not graph.has_edge(a, b):
            there = [f"{a} -> {other}" for other in graph.successors(a)]
            raise InputError(f"{told}{graph.name} has no link '{a} -> {b}'{_some(there)}")
    return tuple((a, b) for a, b in found)


def _some(known: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(known[:most]) + (", ..." if len(known) > most else "")
    return f"; there are {shown}" if known else "; there are none"


def damage_of(active: Iterable[tuple[Fault, Part]], away: Iterable[int]) -> Damage:
    """What all faults that last do together; away: GPUs that are down beside (they load)."""
    lost = set(away)
    dead: set[Link] = set()
    share: dict[Link, float] = {}
    for fault, part in active:
        if fault.do == "down":
            lost.update(part.gpus)
            dead.update(part.links)
        elif fault.do == "degrade":
            assert fault.factor is not None
            for link in part.links:
                share[link] = share.get(link, 1.0) * fault.factor
    left = {link: part for link, part in share.items() if link not in dead}
    return Damage(frozenset(lost), frozenset(dead), tuple(sorted(left.items())))


def damaged(graph: Graph, damage: Damage) -> Graph:
    """The graph without what is down, and with the bandwidth that is left."""
    if damage == WHOLE:
        return graph
    found = graph.copy()
    # Ends of links are what a route needs: a node without any is out of reach.
    names = gpus(graph)
    found.remove_edges_from(damage.dead)
    for index in damage.gpus:
        found.remove_edges_from([*found.in_edges(names[index]), *found.out_edges(names[index])])
    for (a, b), share in damage.share:
        if found.has_edge(a, b):
            found.edges[a, b]["bandwidth_bytes_per_s"] *= share
    return found
