"""How the GPUs of a topology may be wired: one class per ``kind`` of its ``build``."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from typing import Annotated, Literal

from pydantic import Field, Strict, model_validator

from simulator.spec.fields import (
    Bandwidth,
    Bytes,
    Count,
    GpuCount,
    Latency,
    NotNegative,
    Spec,
    refuse,
)
from simulator.spec.units import did_you_mean


class LinkRate(Spec):
    """Bandwidth of ONE direction and latency of a link."""

    bandwidth_bytes_per_s: Bandwidth = Field(alias="bandwidth")
    latency_s: Latency = Field(alias="latency")


class Dram(LinkRate):
    """Host memory: its bus (one direction) and its capacity."""

    capacity_bytes: Bytes = Field(alias="capacity")


class SwitchBuild(Spec):
    """GPUs behind one NVSwitch fabric; GPUs are dealt to the hosts contiguously, each host has a
    CPU and DRAM.
    """

    kind: Literal["switch"]
    gpus: GpuCount
    hosts: GpuCount = 1
    nvlink: LinkRate
    pcie: LinkRate
    dram: Dram

    @model_validator(mode="after")
    def _enough_gpus(self) -> SwitchBuild:
        if self.hosts > self.gpus:
            refuse("SwitchBuild", [(("hosts",), f"{self.hosts} hosts for {self.gpus} GPUs")])
        return self


class HgxRailBuild(Spec):
    """HGX nodes (NVSwitch inside, one NIC per GPU on a shared PCIe switch) under a rail-optimised
    leaf/spine network.

    ``ecmp``: a transfer takes one of the equal-cost paths (hashed) or is split over all (sprayed).
    """

    kind: Literal["hgx-rail"]
    nodes: GpuCount
    gpus_per_node: GpuCount
    nvlink: LinkRate
    pcie: LinkRate
    dram: Dram
    nic: LinkRate
    spines: GpuCount
    oversubscription: Annotated[float, Field(ge=1)] = 1.0
    ecmp: Literal["hashed", "sprayed"] = "hashed"


class NvlinkPairsBuild(Spec):
    """PCIe GPUs on CPU sockets; an NVLink bridge joins GPU 2i and GPU 2i+1 (an odd last GPU has
    none).
    """

    kind: Literal["nvlink-pairs"]
    gpus: GpuCount
    sockets: GpuCount
    bridge: LinkRate
    pcie: LinkRate
    socket_link: LinkRate
    dram: Dram

    @model_validator(mode="after")
    def _enough_gpus(self) -> NvlinkPairsBuild:
        if self.sockets > self.gpus:
            refuse(
                "NvlinkPairsBuild",
                [(("sockets",), f"{self.sockets} sockets for {self.gpus} GPUs")],
            )
        return self


class FatTreeBuild(Spec):
    """Nodes (NVSwitch inside) under a two-level fat tree without rails: all NICs of a node on one
    leaf, ``nodes_per_leaf`` nodes on each, all leaves on all spines.

    The GPUs of a node are dealt to its NICs contiguously and share a PCIe switch with theirs.
    """

    kind: Literal["fat-tree"]
    nodes: GpuCount
    gpus_per_node: GpuCount
    nics_per_node: GpuCount
    nodes_per_leaf: GpuCount
    nvlink: LinkRate
    pcie: LinkRate
    dram: Dram
    nic: LinkRate
    spines: GpuCount
    oversubscription: Annotated[float, Field(ge=1)] = 1.0
    ecmp: Literal["hashed", "sprayed"] = "hashed"

    @model_validator(mode="after")
    def _enough_gpus(self) -> FatTreeBuild:
        refuse("FatTreeBuild", _at_most(self, "nics_per_node", "gpus_per_node"))
        return self


class RacksBuild(Spec):
    """Racks that are one NVLink domain each (GB200 NVL72), ``gpus_per_cpu`` GPUs on every CPU.

    ``c2c`` is the link between a GPU and its CPU; ``dram`` the memory of one CPU. Each GPU has a
    NIC on its CPU (``pcie``); all NICs meet in one non-blocking network.
    """

    kind: Literal["racks"]
    racks: GpuCount
    gpus_per_rack: GpuCount
    gpus_per_cpu: GpuCount = 2
    nvlink: LinkRate
    c2c: LinkRate
    dram: Dram
    pcie: LinkRate
    nic: LinkRate

    @model_validator(mode="after")
    def _cpus_are_full(self) -> RacksBuild:
        if self.gpus_per_rack % self.gpus_per_cpu:
            found = f"{self.gpus_per_cpu} does not divide gpus_per_rack = {self.gpus_per_rack}"
            refuse("RacksBuild", [(("gpus_per_cpu",), found)])
        return self


class MeshPair(Spec):
    """Two GPUs (by number) and how many links join them."""

    source: NotNegative = Field(alias="from")
    target: NotNegative = Field(alias="to")
    links: Count = 1


class NvlinkMeshBuild(Spec):
    """GPUs joined to each other by NVLink (or xGMI) without a switch: DGX-1, AMD Instinct.

    ``link`` is ONE link; ``pairs`` says which GPUs are joined by how many, null: each pair by one.
    GPUs are dealt to sockets contiguously, on PCIe of their own.
    """

    kind: Literal["nvlink-mesh"]
    gpus: GpuCount
    sockets: GpuCount
    link: LinkRate
    pairs: Annotated[tuple[MeshPair, ...], Strict(False)] | None = None
    pcie: LinkRate
    socket_link: LinkRate
    dram: Dram

    @model_validator(mode="after")
    def _pairs_are_there(self) -> NvlinkMeshBuild:
        refuse("NvlinkMeshBuild", [*_at_most(self, "sockets", "gpus"), *self._faults()])
        return self

    def _faults(self) -> Iterable[tuple[tuple[str | int, ...], str]]:
        seen: set[tuple[int, int]] = set()
        for index, pair in enumerate(self.pairs or ()):
            ends = (pair.source, pair.target)
            for key, end in zip(("from", "to"), ends, strict=True):
                if end >= self.gpus:
                    yield ("pairs", index, key), f"no GPU {end}, there are {self.gpus}, from 0"
            if pair.source == pair.target:
                yield ("pairs", index, "to"), f"GPU {pair.target} is linked to itself"
            ordered = (min(ends), max(ends))
            if ordered in seen:
                yield ("pairs", index), f"GPU {ordered[0]} and GPU {ordered[1]} a second time"
            seen.add(ordered)

    def counted(self) -> list[tuple[int, int, int]]:
        """(GPU, GPU, links) of every pair that is joined."""
        if self.pairs is None:
            return [(a, b, 1) for a, b in combinations(range(self.gpus), 2)]
        return [(pair.source, pair.target, pair.links) for pair in self.pairs]


class PcieTreeBuild(Spec):
    """PCIe GPUs without NVLink, dealt contiguously to PCIe switches, these to the sockets."""

    kind: Literal["pcie-tree"]
    gpus: GpuCount
    sockets: GpuCount
    switches_per_socket: GpuCount = 1
    pcie: LinkRate
    socket_link: LinkRate
    dram: Dram

    @model_validator(mode="after")
    def _enough_gpus(self) -> PcieTreeBuild:
        switches = self.sockets * self.switches_per_socket
        if switches > self.gpus:
            found = f"{switches} PCIe switches in all for {self.gpus} GPUs"
            refuse("PcieTreeBuild", [(("switches_per_socket",), found)])
        return self


class EthernetBuild(Spec):
    """Plain nodes (GPUs and NICs on one CPU, no NVLink), every NIC on one Ethernet switch."""

    kind: Literal["ethernet"]
    nodes: GpuCount
    gpus_per_node: GpuCount = 1
    nics_per_node: GpuCount = 1
    pcie: LinkRate
    dram: Dram
    nic: LinkRate


class Node(Spec):
    """A node of an explicit graph. ``host`` groups GPUs with the CPU and DRAM of their machine."""

    name: Annotated[str, Field(min_length=1)]
    kind: Literal["gpu", "nvswitch", "pcie", "cpu", "dram", "nic", "leaf", "spine"]
    host: NotNegative | None = None
    capacity_bytes: Bytes | None = Field(default=None, alias="capacity")

    @model_validator(mode="after")
    def _capacity_is_dram(self) -> Node:
        if self.capacity_bytes is not None and self.kind != "dram":
            refuse("Node", [(("capacity",), f"only a dram node has one, not a {self.kind} node")])
        return self


class Link(LinkRate):
    """One direction of a link of an explicit graph, or both when ``both`` is true."""

    source: str = Field(alias="from")
    target: str = Field(alias="to")
    kind: Literal["nvlink", "pcie", "membus", "socket", "network"] | None = None
    both: bool = False


class ExplicitBuild(Spec):
    """Nodes and links, one by one."""

    kind: Literal["explicit"]
    nodes: Annotated[tuple[Node, ...], Strict(False)]
    links: Annotated[tuple[Link, ...], Strict(False)] = ()
    ecmp: Literal["hashed", "sprayed"] = "hashed"

    @model_validator(mode="after")
    def _graph_is_whole(self) -> ExplicitBuild:
        refuse("ExplicitBuild", self._faults())
        return self

    def _faults(self) -> Iterable[tuple[tuple[str | int, ...], str]]:
        first: dict[str, int] = {}
        for index, node in enumerate(self.nodes):
            if first.setdefault(node.name, index) != index:
                yield ("nodes", index, "name"), f"a second node named {node.name!r}"
        if not any(node.kind == "gpu" for node in self.nodes):
            yield ("nodes",), "no node of kind gpu"
        seen: set[tuple[str, str]] = set()
        for index, link in enumerate(self.links):
            for key, end in (("from", link.source), ("to", link.target)):
                if end not in first:
                    hint = did_you_mean(end, list(first))
                    yield ("links", index, key), f"no node is named {end!r}{hint}"
            if link.source == link.target:
                yield ("links", index, "to"), f"{link.target!r} is linked to itself"
                continue
            ends = [(link.source, link.target)]
            if link.both:
                ends.append((link.target, link.source))
            for a, b in ends:
                if (a, b) in seen:
                    yield ("links", index), f"a second link from {a!r} to {b!r}"
                seen.add((a, b))


def _at_most(build: Spec, key: str, bound: str) -> list[tuple[tuple[str | int, ...], str]]:
    """The fault that one count of a build exceeds another of it, if it does."""
    few, many = getattr(build, key), getattr(build, bound)
    return [((key,), f"{few} is more than {bound} = {many}")] if few > many else []
