"""A graph with the `changes` of its topology: factors on links, and links that are gone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from simulator.errors import InputError
from simulator.spec.units import did_you_mean

if TYPE_CHECKING:
    import networkx as nx

    from simulator.spec.changes import Change

    Graph = nx.DiGraph[Any]

LINK_KINDS = ("nvlink", "pcie", "membus", "socket", "network")
_SHOWN = 8


def change(graph: Graph, changes: Mapping[str, Change]) -> None:
    """Change the links of a graph in place, in the order in which `changes` stand.

    A node whose links are gone stays, out of reach. Raises InputError for what the graph does not
    have, and for a GPU without links: a cluster of fewer GPUs is another build.
    """
    for name, wanted in changes.items():
        links = _links(graph, name)
        if wanted.removed:
            graph.remove_edges_from(links)
            continue
        for link in links:
            graph.edges[link]["bandwidth_bytes_per_s"] *= wanted.bandwidth
            graph.edges[link]["latency_s"] *= wanted.latency
    for node, data in graph.nodes(data=True):
        if changes and data["kind"] == "gpu" and not graph.degree(node):
            raise InputError(
                f"topology {graph.name}: changes: {node} has no link left; build fewer GPUs instead"
            )


def _links(graph: Graph, name: str) -> list[tuple[Any, Any]]:
    """The links that a key of `changes` means, (source, target)."""
    both = "<->" in name
    if both or "->" in name:
        a, b = (part.strip() for part in name.split("<->" if both else "->", 1))
        for end in (a, b):
            if end not in graph:
                raise _absent(graph, name, end, [str(node) for node in graph])
        found = [(a, b), (b, a)] if both else [(a, b)]
        for source, target in found:
            if not graph.has_edge(source, target):
                there = ", ".join(f"{source} -> {other}" for other in graph.successors(source))
                raise InputError(
                    f"topology {graph.name}: changes.{name}: no link {source} -> {target}; "
                    f"there are {there or 'none from it'}"
                )
        return found
    if name in LINK_KINDS:
        of_kind = [(a, b) for a, b, data in graph.edges(data=True) if data["kind"] == name]
        if not of_kind:
            kinds = {str(data["kind"]) for _, _, data in graph.edges(data=True)}
            raise InputError(
                f"topology {graph.name}: changes.{name}: no link is of that kind; there are "
                f"{', '.join(sorted(kinds))}"
            )
        return of_kind
    if name not in graph:
        raise _absent(graph, name, name, [*LINK_KINDS, *map(str, graph)])
    return [*graph.in_edges(name), *graph.out_edges(name)]


def _absent(graph: Graph, key: str, word: str, known: list[str]) -> InputError:
    more = ", ..." if len(known) > _SHOWN else ""
    hint = did_you_mean(word, known) or f"; known: {', '.join(known[:_SHOWN])}{more}"
    write = "" if "->" in key else "; a link is written 'nic0 -> leaf0', both ways 'nic0 <-> leaf0'"
    return InputError(
        f"topology {graph.name}: changes.{key}: nothing is named {word!r}{hint}{write}"
    )
