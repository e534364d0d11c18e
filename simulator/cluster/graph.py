"""Topology -> `nx.DiGraph`: GPUs, switches, NICs, sockets and memories, joined by directed links.

Node attributes: `kind` (gpu, nvswitch, pcie, cpu, dram, nic, leaf, spine), `host` (int), GPUs also
`index` (0, 1, ...: the GPU's number everywhere else). Edge attributes: `kind` (nvlink, pcie,
membus, socket, network), `bandwidth_bytes_per_s` (one direction), `latency_s`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import networkx as nx

from simulator.cluster.changes import change

if TYPE_CHECKING:
    from simulator.spec.builds import LinkRate
    from simulator.spec.schema import Topology

if TYPE_CHECKING:
    Graph = nx.DiGraph[Any]
else:
    Graph = nx.DiGraph


def build_graph(topology: Topology) -> Graph:
    """The graph of a topology; raises InputError for changes of what it does not have."""
    graph: Graph = nx.DiGraph(name=topology.name, ecmp=getattr(topology.build, "ecmp", "hashed"))
    BUILDERS[topology.build.kind](graph, topology.build)
    change(graph, topology.changes)
    return graph


def gpus(graph: Graph) -> list[str]:
    """GPU node names in index order."""
    found = [(data["index"], node) for node, data in graph.nodes(data=True) if "index" in data]
    return [node for _, node in sorted(found)]


def memory_of_host(graph: Graph, gpu: str) -> str | None:
    """The DRAM node from which a GPU fetches: on its host, the fewest links away; None if none."""
    host = graph.nodes[gpu]["host"]
    near, seen = [gpu], {gpu}
    while near:
        further = []
        for node in near:
            for other in graph.predecessors(node):
                kind = graph.nodes[other]["kind"]
                if other in seen or graph.nodes[other]["host"] != host:
                    continue
                if kind == "dram":
                    return str(other)
                seen.add(other)
                if kind in ("cpu", "pcie"):
                    further.append(other)
        near = further
    return None


def switch(graph: Graph, build: Any) -> None:
    """All GPUs on one NVSwitch fabric; GPUs dealt to hosts contiguously; PCIe to the host's CPU."""
    graph.add_node("nvswitch", kind="nvswitch", host=0)
    for index in range(build.gpus):
        host = index * build.hosts // build.gpus
        if f"cpu{host}" not in graph:
            _memory(graph, host, 0, build.dram, f"cpu{host}", f"dram{host}")
        _gpu(graph, index, host, 0)
        _both(graph, f"gpu{index}", "nvswitch", "nvlink", build.nvlink)
        _both(graph, f"gpu{index}", f"cpu{host}", "pcie", build.pcie)


def hgx_rail(graph: Graph, build: Any) -> None:
    """HGX nodes (NVSwitch inside, one NIC per GPU) on a leaf per rail and spines over the leaves.

    A leaf's links to all spines together carry its NICs' bandwidth / oversubscription.
    """
    rails = build.gpus_per_node
    for node in range(build.nodes):
        _hgx_node(graph, build, node, rails, [f"leaf{rail}" for rail in range(rails)])
    _spines(graph, build, dict.fromkeys((f"leaf{rail}" for rail in range(rails)), build.nodes))


def fat_tree(graph: Graph, build: Any) -> None:
    """HGX nodes whose NICs are all on the node's leaf, and spines over the leaves.

    A leaf's links to all spines together carry the NICs' bandwidth of ``nodes_per_leaf`` nodes /
    oversubscription, also where the last leaf has fewer nodes.
    """
    nics = build.nics_per_node
    leaves = [f"leaf{node // build.nodes_per_leaf}" for node in range(build.nodes)]
    for node, leaf in enumerate(leaves):
        _hgx_node(graph, build, node, nics, [leaf] * nics)
    _spines(graph, build, dict.fromkeys(leaves, build.nodes_per_leaf * nics))


def racks(graph: Graph, build: Any) -> None:
    """Racks of one NVSwitch fabric each; every CPU is a host with its DRAM and its GPUs' NICs.

    The link between GPU and CPU stands where PCIe stands elsewhere, and so has its kind.
    """
    for index in range(build.racks * build.gpus_per_rack):
        rack, host = index // build.gpus_per_rack, index // build.gpus_per_cpu
        fabric, cpu, nic = f"nvswitch{rack}", f"cpu{host}", f"nic{index}"
        if fabric not in graph:
            graph.add_node(fabric, kind="nvswitch", host=-1)
        if cpu not in graph:
            _memory(graph, host, 0, build.dram, cpu, f"dram{host}")
        _gpu(graph, index, host, 0)
        _both(graph, f"gpu{index}", fabric, "nvlink", build.nvlink)
        _both(graph, f"gpu{index}", cpu, "pcie", build.c2c)
        _nic(graph, nic, host, cpu, build.pcie, "leaf0", build.nic)


def nvlink_pairs(graph: Graph, build: Any) -> None:
    """PCIe GPUs dealt to sockets contiguously; GPU 2i and 2i+1 joined by an NVLink bridge."""
    _gpus_on_sockets(graph, build)
    for index in range(1, build.gpus, 2):
        _both(graph, f"gpu{index - 1}", f"gpu{index}", "nvlink", build.bridge)


def nvlink_mesh(graph: Graph, build: Any) -> None:
    """GPUs joined pair by pair, links of a pair as one; each on PCIe to its socket."""
    _gpus_on_sockets(graph, build)
    link = build.link
    for a, b, links in build.counted():
        for source, target in ((f"gpu{a}", f"gpu{b}"), (f"gpu{b}", f"gpu{a}")):
            rate = links * link.bandwidth_bytes_per_s
            _link(graph, source, target, "nvlink", rate, link.latency_s)


def pcie_tree(graph: Graph, build: Any) -> None:
    """GPUs on PCIe switches, these on sockets, both dealt contiguously."""
    _sockets(graph, build)
    switches = build.sockets * build.switches_per_socket
    for number in range(switches):
        graph.add_node(f"pcie{number}", kind="pcie", host=0)
        socket = number // build.switches_per_socket
        _both(graph, f"pcie{number}", f"cpu{socket}", "pcie", build.pcie)
    for index in range(build.gpus):
        number = index * switches // build.gpus
        _gpu(graph, index, 0, number // build.switches_per_socket)
        _both(graph, f"gpu{index}", f"pcie{number}", "pcie", build.pcie)


def ethernet(graph: Graph, build: Any) -> None:
    """Nodes of one CPU with its GPUs and NICs on PCIe; every NIC on the one switch."""
    for node in range(build.nodes):
        cpu = f"cpu{node}"
        _memory(graph, node, 0, build.dram, cpu, f"dram{node}")
        for index in range(node * build.gpus_per_node, (node + 1) * build.gpus_per_node):
            _gpu(graph, index, node, 0)
            _both(graph, f"gpu{index}", cpu, "pcie", build.pcie)
        for number in range(node * build.nics_per_node, (node + 1) * build.nics_per_node):
            _nic(graph, f"nic{number}", node, cpu, build.pcie, "leaf0", build.nic)


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
    "fat-tree": fat_tree,
    "racks": racks,
    "nvlink-pairs": nvlink_pairs,
    "nvlink-mesh": nvlink_mesh,
    "pcie-tree": pcie_tree,
    "ethernet": ethernet,
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


def _gpu(graph: Graph, index: int, host: int, socket: int) -> None:
    graph.add_node(f"gpu{index}", kind="gpu", host=host, index=index, socket=socket)


def _nic(
    graph: Graph, nic: str, host: int, inside: str, pcie: LinkRate, leaf: str, network: LinkRate
) -> None:
    """A NIC between a node of its host and a leaf, which is made when its first NIC comes."""
    graph.add_node(nic, kind="nic", host=host)
    if leaf not in graph:
        graph.add_node(leaf, kind="leaf", host=-1)
    _both(graph, nic, inside, "pcie", pcie)
    _both(graph, nic, leaf, "network", network)


def _hgx_node(graph: Graph, build: Any, node: int, nics: int, leaves: list[str]) -> None:
    """One node: GPUs on its NVSwitch, and with their NIC on a PCIe switch; NIC i on leaves[i]."""
    size, fabric, cpu = build.gpus_per_node, f"nvswitch{node}", f"cpu{node}"
    graph.add_node(fabric, kind="nvswitch", host=node)
    _memory(graph, node, 0, build.dram, cpu, f"dram{node}")
    for local in range(size):
        gpu, nic = f"gpu{node * size + local}", local * nics // size
        pcie = f"pcie{node * nics + nic}"
        _gpu(graph, node * size + local, node, 0)
        _both(graph, gpu, fabric, "nvlink", build.nvlink)
        first = pcie not in graph
        if first:
            graph.add_node(pcie, kind="pcie", host=node)
        _both(graph, gpu, pcie, "pcie", build.pcie)
        if first:
            name = f"nic{node * nics + nic}"
            _nic(graph, name, node, pcie, build.pcie, leaves[nic], build.nic)
            _both(graph, pcie, cpu, "pcie", build.pcie)


def _spines(graph: Graph, build: Any, leaves: dict[str, int]) -> None:
    """Joins every leaf to every spine; ``leaves`` says how many NICs a leaf is made for."""
    for spine in range(build.spines):
        graph.add_node(f"spine{spine}", kind="spine", host=-1)
        for leaf, nics in leaves.items():
            share = nics * build.nic.bandwidth_bytes_per_s / build.oversubscription / build.spines
            for a, b in ((leaf, f"spine{spine}"), (f"spine{spine}", leaf)):
                _link(graph, a, b, "network", share, build.nic.latency_s)


def _gpus_on_sockets(graph: Graph, build: Any) -> None:
    """One host: GPUs dealt to sockets contiguously, each on PCIe of its own."""
    _sockets(graph, build)
    for index in range(build.gpus):
        socket = index * build.sockets // build.gpus
        _gpu(graph, index, 0, socket)
        _both(graph, f"gpu{index}", f"cpu{socket}", "pcie", build.pcie)


def _sockets(graph: Graph, build: Any) -> None:
    """The CPUs of one host with their DRAM, each joined to each."""
    cpus = [f"cpu{socket}" for socket in range(build.sockets)]
    for socket, cpu in enumerate(cpus):
        _memory(graph, 0, socket, build.dram, cpu, f"dram{socket}")
    for socket, cpu in enumerate(cpus):
        for other in cpus[socket + 1 :]:
            _both(graph, cpu, other, "socket", build.socket_link)


def _memory(graph: Graph, host: int, socket: int, dram: Any, cpu: str, memory: str) -> None:
    graph.add_node(cpu, kind="cpu", host=host, socket=socket)
    graph.add_node(
        memory, kind="dram", host=host, socket=socket, capacity_bytes=dram.capacity_bytes
    )
    _both(graph, memory, cpu, "membus", dram)


def _both(graph: Graph, a: str, b: str, kind: str, link: LinkRate) -> None:
    for source, target in ((a, b), (b, a)):
        _link(graph, source, target, kind, link.bandwidth_bytes_per_s, link.latency_s)


def _link(
    graph: Graph, source: str, target: str, kind: str, bandwidth: float, latency: float
) -> None:
    graph.add_edge(source, target, kind=kind, bandwidth_bytes_per_s=bandwidth, latency_s=latency)
