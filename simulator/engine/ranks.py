"""The GPUs that take part in a collective operation, and where they stand.

A *node* is a set of ranks that reach each other without the network: those of one host, and those
that NVLink joins.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.graph import Graph, gpus
from simulator.errors import InputError

Ints = NDArray[np.int32]


class Ranks(NamedTuple):
    """The GPUs that take part, in the order of their ranks.

    names: of the GPUs [ranks]; node: int32 [ranks], 0, 1, ... in order of the first rank; nic:
    int32 [ranks], number within its node of the NIC beside the GPU, -1 if there is none; members:
    per node its ranks in order; links: int32 [ranks, ranks], NVLink links that join two GPUs
    without a switch; switch: the NVSwitch on which all ranks hang, if there is one.
    """

    names: tuple[str, ...]
    node: Ints
    nic: Ints
    members: tuple[tuple[int, ...], ...]
    links: Ints
    switch: str | None

    @property
    def size(self) -> int:
        """Number of ranks."""
        return len(self.names)


def ranks_of(graph: Graph, count: int | None = None) -> Ranks:
    """The first `count` GPUs (all if None) as ranks.

    Raises InputError for fewer than two, or more than there are.
    """
    names = gpus(graph)
    if count is None:
        count = len(names)
    if count > len(names):
        raise InputError(f"{count} ranks: {graph.name} has {len(names)} GPUs")
    if count < 2:
        raise InputError(f"a collective needs at least 2 ranks, not {count}")
    return ranks_among(graph, names[:count])


def ranks_among(graph: Graph, names: list[str]) -> Ranks:
    """These GPUs, at least two, as ranks in this order."""
    count = len(names)
    node = _nodes(graph, names)
    nodes = int(node.max()) + 1
    members = tuple(tuple(np.flatnonzero(node == n).tolist()) for n in range(nodes))
    nic = np.full(count, -1, dtype=np.int32)
    for ranks in members:
        _number_nics(graph, names, ranks, nic)
    fabric = [_switches(graph, name) for name in names]
    shared = sorted(set.intersection(*fabric))
    return Ranks(
        tuple(names), node, nic, members, _links(graph, names), shared[0] if shared else None
    )


def _switches(graph: Graph, name: str) -> set[str]:
    return {b for b in graph.successors(name) if graph.nodes[b]["kind"] == "nvswitch"}


def _nodes(graph: Graph, names: list[str]) -> Ints:
    """Node of each rank: joined are the GPUs of a host, and what NVLink joins."""
    group = {name: index for index, name in enumerate(names)}

    def root(name: str) -> int:
        index = group[name]
        while group[names[index]] != index:
            index = group[names[index]]
        return index

    first: dict[tuple[str, Any], str] = {}
    for name in names:
        keys: list[tuple[str, Any]] = [("host", graph.nodes[name]["host"])]
        keys += [("switch", switch) for switch in sorted(_switches(graph, name))]
        others = [first.setdefault(key, name) for key in keys]
        others += [
            b
            for b, edge in graph.succ[name].items()
            if b in group and str(edge["kind"]) == "nvlink"
        ]
        for other in others:
            low, high = sorted((root(name), root(other)))
            group[names[high]] = low
    roots = [root(name) for name in names]
    number = {found: i for i, found in enumerate(dict.fromkeys(roots))}
    return np.array([number[found] for found in roots], dtype=np.int32)


def _number_nics(graph: Graph, names: list[str], ranks: tuple[int, ...], nic: Ints) -> None:
    """Fill `nic` for the ranks of a node; equally near NICs are dealt to the GPUs in turn."""
    number: dict[str, int] = {}
    for local, rank in enumerate(ranks):
        near = _nearest_nics(graph, names[rank])
        if near:
            nic[rank] = number.setdefault(near[local % len(near)], len(number))


def _nearest_nics(graph: Graph, gpu: str) -> list[str]:
    """The NICs of a GPU's host that are the fewest links away, sorted."""
    ring, seen = [gpu], {gpu}
    while ring:
        after = []
        for name in ring:
            for other in graph.successors(name):
                kind = graph.nodes[other]["kind"]
                if other not in seen and kind in ("pcie", "cpu", "nic"):
                    seen.add(other)
                    after.append(other)
        found = [name for name in after if graph.nodes[name]["kind"] == "nic"]
        if found:
            return sorted(found, key=lambda name: (len(name), name))
        ring = after
    return []


def _links(graph: Graph, names: list[str]) -> Ints:
    """NVLink links from GPU to GPU, int32 [ranks, ranks], in units of the thinnest."""
    index = {name: i for i, name in enumerate(names)}
    found = {
        (index[a], index[b]): float(graph.edges[a, b]["bandwidth_bytes_per_s"])
        for a in names
        for b in graph.successors(a)
        if b in index and graph.edges[a, b]["kind"] == "nvlink"
    }
    links = np.zeros((len(names), len(names)), dtype=np.int32)
    for pair, bandwidth in found.items():
        links[pair] = round(bandwidth / min(found.values()))
    return links
