"""Topology -> `nx.DiGraph`: GPUs, switches, NICs, sockets and memories, joined by directed links.

Node attributes: `kind` (gpu, nvswitch, pcie, cpu, dram, nic, leaf, spine), `host` (int), GPUs also
`index` (0, 1, ...: the GPU's number everywhere else). Edge attributes: `kind` (nvlink, pcie,
membus, socket, network), `bandwidth_bytes_per_s` (one direction), `latency_s`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import networkx as nx

if TYPE_CHECKING:
    from simulator.spec.schema import Link, Topology

if TYPE_CHECKING:
    Graph = nx.DiGraph[Any]
else:
    Graph = nx.DiGraph


def build_graph(topology: Topology) -> Graph:
    """The graph of a topology."""
    graph: Graph = nx.DiGraph(name=topology.name)
    BUILDERS[topology.build.kind](graph, topology.build)
    return graph


def gpus(graph: Graph) -> list[str]:
    """GPU node names in index order."""
    found = [(data["index"], node) for node, data in graph.nodes(data=True) if "index" in data]
    return [node for _, node in sorted(found)]


def memory_of_host(graph: Graph, gpu: str) -> str | None:
    """The DRAM node from which a GPU fetches: on its host, nearest socket first; None if none."""
    host = graph.nodes[gpu]["host"]
    memories = [
        node
        for node, data in graph.nodes(data=True)
        if data["kind"] == "dram" and data["host"] == host
    ]
    if len(memories) <= 1:
        return memories[0] if memories else None
    socket = graph.nodes[gpu].get("socket")
    near: list[str] = [node for node in memories if graph.nodes[node].get("socket") == socket]
    return (near or memories)[0]


def switch(graph: Graph, build: Any) -> None:
    """All GPUs on one NVSwitch fabric; GPUs dealt to hosts contiguously; PCIe to the host's CPU."""
    graph.add_node("nvswitch", kind="nvswitch", host=0)
    for index in range(build.gpus):
        host = index * build.hosts // build.gpus
        if f"cpu{host}" not in graph:
            _memory(graph, host, 0, build.dram, f"cpu{host}", f"dram{host}")
        graph.add_node(f"gpu{index}", kind="gpu", host=host, index=index, socket=0)
        _both(graph, f"gpu{index}", "nvswitch", "nvlink", build.nvlink)
        _both(graph, f"gpu{index}", f"cpu{host}", "pcie", build.pcie)


def hgx_rail(graph: Graph, build: Any) -> None:
    """HGX nodes (NVSwitch inside, one NIC per GPU) on a leaf per rail and spines over the leaves.

    A leaf's links to all spines together carry its NICs' bandwidth / oversubscription.
    """
    for node in range(build.nodes):
        graph.add_node(f"nvswitch{node}", kind="nvswitch", host=node)
        _memory(graph, node, 0, build.dram, f"cpu{node}", f"dram{node}")
        for local in range(build.gpus_per_node):
            index = node * build.gpus_per_node + local
            gpu, pcie, nic, leaf = f"gpu{index}", f"pcie{index}", f"nic{index}", f"leaf{local}"
            graph.add_node(gpu, kind="gpu", host=node, index=index, socket=0)
            graph.add_node(pcie, kind="pcie", host=node)
            graph.add_node(nic, kind="nic", host=node)
            if leaf not in graph:
                graph.add_node(leaf, kind="leaf", host=-1)
            _both(graph, gpu, f"nvswitch{node}", "nvlink", build.nvlink)
            _both(graph, gpu, pcie, "pcie", build.pcie)
            _both(graph, nic, pcie, "pcie", build.pcie)
            _both(graph, pcie, f"cpu{node}", "pcie", build.pcie)
            _both(graph, nic, leaf, "network", build.nic)
    uplink = build.nic.bandwidth_bytes_per_s * build.nodes / build.oversubscription / build.spines
    for spine in range(build.spines):
        graph.add_node(f"spine{spine}", kind="spine", host=-1)
        for local in range(build.gpus_per_node):
            for a, b in ((f"leaf{local}", f"spine{spine}"), (f"spine{spine}", f"leaf{local}")):
                _link(graph, a, b, "network", uplink, build.nic.latency_s)


def nvlink_pairs(graph: Graph, build: Any) -> None:
    """PCIe GPUs dealt to sockets contiguously; GPU 2i and 2i+1 joined by an NVLink bridge."""
    sockets = [f"cpu{s}" for s in range(build.sockets)]
    for s, cpu in enumerate(sockets):
        _memory(graph, 0, s, build.dram, cpu, f"dram{s}")
    for s, cpu in enumerate(sockets):
        for other in sockets[s + 1 :]:
            _both(graph, cpu, other, "socket", build.socket_link)
    for index in range(build.gpus):
        s = index * build.sockets // build.gpus
        graph.add_node(f"gpu{index}", kind="gpu", host=0, index=index, socket=s)
        _both(graph, f"gpu{index}", sockets[s], "pcie", build.pcie)
        if index % 2 == 1:
            _both(graph, f"gpu{index - 1}", f"gpu{index}", "nvlink", build.bridge)


def explicit(graph: Graph, build: Any) -> None:
    """Nodes and links as written; GPUs are numbered in the order in which they stand."""
    index = 0
    for node in build.nodes:
        graph.add_node(node.name, kind=node.kind, host=node.host or 0)
        if node.kind == "gpu":
            graph.nodes[node.name]["index"] = index
            index += 1
        if node.capacity_bytes is not None:
            graph.nodes[node.name]["capacity_bytes"] = node.capacity_bytes
    for link in build.links:
        ends = [(link.source, link.target)]
        if link.both:
            ends.append((link.target, link.source))
        for a, b in ends:
            kind = link.kind or _kind(graph.nodes[a]["kind"], graph.nodes[b]["kind"])
            _link(graph, a, b, kind, link.bandwidth_bytes_per_s, link.latency_s)


BUILDERS: dict[str, Callable[[Graph, Any], None]] = {
    "switch": switch,
    "hgx-rail": hgx_rail,
    "nvlink-pairs": nvlink_pairs,
    "explicit": explicit,
}


def _kind(a: str, b: str) -> str:
    """What a link between these kinds of node is, where the file does not say."""
    ends = {a, b}
    if ends & {"leaf", "spine"} or ends == {"nic"}:
        return "network"
    if "dram" in ends:
        return "membus"
    if ends == {"cpu"}:
        return "socket"
    if ends <= {"gpu", "nvswitch"}:
        return "nvlink"
    return "pcie"


def _memory(graph: Graph, host: int, socket: int, dram: Any, cpu: str, memory: str) -> None:
    graph.add_node(cpu, kind="cpu", host=host, socket=socket)
    graph.add_node(
        memory, kind="dram", host=host, socket=socket, capacity_bytes=dram.capacity_bytes
    )
    _both(graph, memory, cpu, "membus", dram)


def _both(graph: Graph, a: str, b: str, kind: str, link: Link) -> None:
    for source, target in ((a, b), (b, a)):
        _link(graph, source, target, kind, link.bandwidth_bytes_per_s, link.latency_s)


def _link(
    graph: Graph, source: str, target: str, kind: str, bandwidth: float, latency: float
) -> None:
    graph.add_edge(source, target, kind=kind, bandwidth_bytes_per_s=bandwidth, latency_s=latency)
