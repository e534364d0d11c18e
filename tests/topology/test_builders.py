"""Every kind of wiring against hand counts, and the refusals of the new ones."""

from __future__ import annotations

import re
import time
from collections import Counter
from itertools import permutations
from pathlib import Path

import pytest
from pydantic import BaseModel

from simulator.cluster.graph import BUILDERS, build_graph, gpus, memory_of_host
from simulator.cluster.routes import route_table
from simulator.errors import InputError
from simulator.spec import builds, fields
from simulator.spec.faults import key_of
from simulator.spec.find import shipped
from simulator.spec.load import gpu_count, load_topology

ROOT = Path(__file__).resolve().parents[2]

RATE = "{bandwidth: %s GB/s, latency: 100 ns}"
DRAM = "{bandwidth: 200 GB/s, latency: 100 ns, capacity: 1 TiB}"
NODES = f"nvlink: {RATE % 400}, pcie: {RATE % 60}, dram: {DRAM}, nic: {RATE % 50}"
HOST = f"pcie: {RATE % 60}, socket_link: {RATE % 20}, dram: {DRAM}"


def load(tmp_path: Path, build: str):
    path = tmp_path / "t.yaml"
    path.write_text(f"name: t\ngpu: H100-SXM\nbuild: {{{build}}}\n")
    topology = load_topology(str(path))
    return topology, build_graph(topology)


def kinds(graph) -> Counter[str]:
    return Counter(data["kind"] for _, data in graph.nodes(data=True))


def link_kinds(graph) -> Counter[str]:
    return Counter(data["kind"] for *_, data in graph.edges(data=True))


def path_of(graph, source: str, target: str) -> list[tuple[str, str]]:
    table = route_table(graph, [(source, target)])
    return [table.links[link] for link in table.all_links[0]]


FAT = "kind: fat-tree, nodes: 5, gpus_per_node: 4, nics_per_node: 2, nodes_per_leaf: 2, spines: 3"


def test_fat_tree(tmp_path):
    topology, graph = load(tmp_path, f"{FAT}, oversubscription: 2, {NODES}")
    assert gpu_count(topology) == len(gpus(graph)) == 20
    assert kinds(graph) == {
        "gpu": 20, "nvswitch": 5, "cpu": 5, "dram": 5, "pcie": 10, "nic": 10, "leaf": 3, "spine": 3,
    }  # fmt: skip
    # GPU to NVSwitch; NIC to leaf, leaf to spine; GPU and NIC to PCIe switch, that to CPU.
    assert link_kinds(graph) == {
        "nvlink": 2 * 20, "network": 2 * (10 + 9), "pcie": 2 * (20 + 10 + 10), "membus": 10,
    }  # fmt: skip
    # GPUs 0 and 1 share NIC 0, 2 and 3 share NIC 1, both on the leaf of nodes 0 and 1.
    assert graph.has_edge("gpu1", "pcie0")
    assert graph.has_edge("gpu2", "pcie1")
    assert graph.has_edge("nic0", "leaf0")
    assert graph.has_edge("nic3", "leaf0")
    assert graph.has_edge("nic4", "leaf1")
    # 2 nodes x 2 NICs x 50 GB/s, half of it upwards, over three spines.
    up = graph.edges["leaf0", "spine2"]["bandwidth_bytes_per_s"]
    assert up == pytest.approx(4 * 50e9 / 2 / 3)
    assert path_of(graph, "gpu0", "gpu6") == [
        ("gpu0", "pcie0"), ("pcie0", "nic0"), ("nic0", "leaf0"),
        ("leaf0", "nic3"), ("nic3", "pcie3"), ("pcie3", "gpu6"),
    ]  # fmt: skip
    assert len(path_of(graph, "gpu0", "gpu8")) == 8
    assert path_of(graph, "gpu0", "gpu3") == [("gpu0", "nvswitch0"), ("nvswitch0", "gpu3")]


def test_racks(tmp_path):
    build = f"kind: racks, racks: 2, gpus_per_rack: 6, gpus_per_cpu: 3, c2c: {RATE % 200}, {NODES}"
    topology, graph = load(tmp_path, build)
    assert gpu_count(topology) == len(gpus(graph)) == 12
    assert kinds(graph) == {"gpu": 12, "nvswitch": 2, "cpu": 4, "dram": 4, "nic": 12, "leaf": 1}
    assert link_kinds(graph) == {"nvlink": 24, "pcie": 24 + 24, "network": 24, "membus": 8}
    assert graph.edges["gpu5", "cpu1"]["bandwidth_bytes_per_s"] == 200e9
    assert memory_of_host(graph, "gpu5") == "dram1"
    # Within a rack over NVLink, never over the CPU that two GPUs share; between racks over NICs.
    assert path_of(graph, "gpu0", "gpu1") == [("gpu0", "nvswitch0"), ("nvswitch0", "gpu1")]
    between = [end for _, end in path_of(graph, "gpu0", "gpu6")]
    assert [between[-4], *between[-2:]] == ["leaf0", "cpu2", "gpu6"]
    assert between[-3] in {"nic6", "nic7", "nic8"}, "a NIC of the CPU"
    assert between[0] == "cpu0"


def test_mesh_all_to_all_and_by_pairs(tmp_path):
    build = f"kind: nvlink-mesh, gpus: 5, sockets: 2, link: {RATE % 25}, {HOST}"
    topology, graph = load(tmp_path, build)
    assert gpu_count(topology) == 5
    assert link_kinds(graph) == {"nvlink": 5 * 4, "pcie": 10, "membus": 4, "socket": 2}
    assert all(len(path_of(graph, a, b)) == 1 for a, b in permutations(gpus(graph), 2))
    pairs = "pairs: [{from: 0, to: 1, links: 2}, {from: 4, to: 0}]"
    _, graph = load(tmp_path, f"{build}, {pairs}")
    assert link_kinds(graph)["nvlink"] == 4
    assert graph.edges["gpu1", "gpu0"]["bandwidth_bytes_per_s"] == 50e9
    assert graph.edges["gpu0", "gpu4"]["bandwidth_bytes_per_s"] == 25e9
    # GPUs forward nothing: 1 and 4 meet over their sockets (3 and 4 are on the second).
    assert path_of(graph, "gpu1", "gpu4") == [
        ("gpu1", "cpu0"), ("cpu0", "cpu1"), ("cpu1", "gpu4"),
    ]  # fmt: skip


def test_pcie_tree(tmp_path):
    build = f"kind: pcie-tree, gpus: 6, sockets: 2, switches_per_socket: 2, {HOST}"
    topology, graph = load(tmp_path, build)
    assert gpu_count(topology) == 6
    assert kinds(graph) == {"gpu": 6, "pcie": 4, "cpu": 2, "dram": 2}
    # Six GPUs on four switches: 2, 1, 2, 1.
    on = Counter(s for a, s in graph.edges if a.startswith("gpu"))
    assert [on[f"pcie{number}"] for number in range(4)] == [2, 1, 2, 1]
    assert path_of(graph, "gpu0", "gpu1") == [("gpu0", "pcie0"), ("pcie0", "gpu1")]
    assert len(path_of(graph, "gpu0", "gpu5")) == 5
    assert [memory_of_host(graph, gpu) for gpu in ("gpu2", "gpu3")] == ["dram0", "dram1"]


def test_ethernet(tmp_path):
    rates = f"pcie: {RATE % 16}, dram: {DRAM}, nic: {RATE % 3}"
    build = f"kind: ethernet, nodes: 3, gpus_per_node: 2, nics_per_node: 2, {rates}"
    topology, graph = load(tmp_path, build)
    assert gpu_count(topology) == 6
    assert kinds(graph) == {"gpu": 6, "cpu": 3, "dram": 3, "nic": 6, "leaf": 1}
    assert path_of(graph, "gpu2", "gpu3") == [("gpu2", "cpu1"), ("cpu1", "gpu3")]
    assert len(path_of(graph, "gpu0", "gpu5")) == 6
    _, single = load(tmp_path, f"kind: ethernet, nodes: 2, {rates}")
    assert len(gpus(single)) == kinds(single)["nic"] == 2


@pytest.mark.parametrize("name", shipped("topology"))
def test_every_shipped_graph_is_whole(name):
    topology = load_topology(name)
    # Of this process: other tests run beside it.
    began = time.process_time()
    graph = build_graph(topology)
    assert time.process_time() - began < 1.0
    names = gpus(graph)
    assert names == [f"gpu{index}" for index in range(gpu_count(topology))]
    assert all(memory_of_host(graph, gpu) is not None for gpu in names)
    for a, b, data in graph.edges(data=True):
        assert data["bandwidth_bytes_per_s"] == graph.edges[b, a]["bandwidth_bytes_per_s"]


@pytest.mark.parametrize(
    ("name", "count", "nvlink"),
    [("dgx-h100", 8, 450e9), ("dgx-a100", 8, 300e9), ("h200x8", 8, 450e9), ("b200x8", 8, 900e9),
     ("h800x8", 8, 200e9), ("h800x16-rail", 16, 200e9), ("gb200-nvl72", 72, 900e9),
     *((f"h100x{n}-rail", n, 450e9) for n in (32, 64, 128, 256, 512, 1024)),
     *((f"h800x{n}-rail", n, 200e9) for n in (32, 64, 128, 256))],
)  # fmt: skip
def test_shipped_nvswitch_machines(name, count, nvlink):
    topology = load_topology(name)
    assert gpu_count(topology) == count
    assert topology.build.nvlink.bandwidth_bytes_per_s == nvlink
    assert topology.gpu.nvlink_bandwidth_bytes_per_s == nvlink
    if name.endswith("-rail"):
        assert topology.build.nic.bandwidth_bytes_per_s == 50e9


def test_shipped_machines_without_nvswitch():
    mesh = build_graph(load_topology("mi300x8"))
    out = [d["bandwidth_bytes_per_s"] for *_, d in mesh.out_edges("gpu3", data=True)
           if d["kind"] == "nvlink"]  # fmt: skip
    assert out == [64e9] * 7
    assert sum(out) == load_topology("mi300x8").gpu.nvlink_bandwidth_bytes_per_s
    assert "nvlink" not in link_kinds(build_graph(load_topology("a6000x10-pcie")))
    two = build_graph(load_topology("k8s-2node"))
    assert [d["bandwidth_bytes_per_s"] for *_, d in two.edges(data=True)
            if d["kind"] == "network"] == [25e9 / 8] * 4  # fmt: skip


MESH = f"kind: nvlink-mesh, gpus: 4, sockets: 1, link: {RATE % 25}, {HOST}, pairs: "


@pytest.mark.parametrize(
    ("build", "fault"),
    [
        (MESH + "[{from: 0, to: 4}]", "build.pairs.0.to: no GPU 4, there are 4, from 0"),
        (MESH + "[{from: 2, to: 2}]", "build.pairs.0.to: GPU 2 is linked to itself"),
        (MESH + "[{from: 2, to: 1}, {from: 1, to: 2}]",
         "build.pairs.1: GPU 1 and GPU 2 a second time"),
        (MESH + "[{from: 0, to: 1, links: 0}]", "build.pairs.0.links: must be >= 1, not 0"),
        (MESH.replace("sockets: 1", "sockets: 5") + "null",
         "build: sockets: 5 is more than gpus = 4"),
        (f"{FAT}, {NODES}".replace("nics_per_node: 2", "nics_per_node: 5"),
         "nics_per_node: 5 is more than gpus_per_node = 4"),
        (f"kind: racks, racks: 1, gpus_per_rack: 5, c2c: {RATE % 1}, {NODES}",
         "gpus_per_cpu: 2 does not divide gpus_per_rack = 5"),
        (f"kind: pcie-tree, gpus: 3, sockets: 2, switches_per_socket: 2, {HOST}",
         "switches_per_socket: 4 PCIe switches in all for 3 GPUs"),
    ],
)  # fmt: skip
def test_refusals(tmp_path, build, fault):
    with pytest.raises(InputError) as caught:
        load(tmp_path, build)
    (line,) = str(caught.value).split("\n")
    assert "t.yaml:3:" in line
    assert line.endswith(fault.removeprefix("build: "))


def test_every_builder_has_its_class_and_every_key_its_place_in_the_reference():
    page = (ROOT / "docs" / "inputs.md").read_text()
    named = {w for code in re.findall(r"`([^`\n]+)`", page) for w in re.findall(r"\w+", code)}
    classes = [
        value
        for value in vars(builds).values()
        if isinstance(value, type) and issubclass(value, BaseModel) and value is not fields.Spec
    ]
    for model in classes:
        for name in model.model_fields:
            assert key_of(name, model) in named, (model, name)
    assert all(f"kind `{kind}`" in page for kind in BUILDERS)
