"""Graphs: every shipped topology builds, with the parts and links that its file says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import networkx as nx
import pytest

from simulator.cluster.graph import Graph, build_graph, gpus, memory_of_host
from simulator.cluster.routes import route_table
from simulator.spec.find import shipped
from simulator.spec.load import gpu_count, load_topology


def graph_of(name: str, *overrides: str) -> Graph:
    return build_graph(load_topology(name, overrides))


def kinds(graph: Graph) -> Counter[str]:
    return Counter(kind for _, kind in graph.nodes(data="kind"))


@pytest.mark.parametrize("name", shipped("topology"))
def test_every_shipped_topology_builds_and_is_connected(name: str):
    topology = load_topology(name)
    graph = build_graph(topology)
    names = gpus(graph)
    assert len(names) == gpu_count(topology)
    assert [graph.nodes[node]["index"] for node in names] == list(range(len(names)))
    assert nx.is_strongly_connected(graph)
    for _, _, data in graph.edges(data=True):
        assert data["bandwidth_bytes_per_s"] > 0
        assert data["latency_s"] >= 0
    assert all(memory_of_host(graph, node) is not None for node in names)
    last = names[-1]
    pairs = [(names[0], last), (last, names[0])] if len(names) > 1 else []
    assert route_table(graph, pairs).count == len(pairs)


def test_the_switch_of_the_main_job():
    graph = graph_of("nvswitch16")
    assert kinds(graph) == {"gpu": 16, "nvswitch": 1, "cpu": 2, "dram": 2}
    assert graph.number_of_edges() == 2 * (16 + 16 + 2)
    assert graph.edges["gpu3", "nvswitch"]["bandwidth_bytes_per_s"] == 450e9
    assert [memory_of_host(graph, f"gpu{g}") for g in (0, 7, 8, 15)] == ["dram0"] * 2 + [
        "dram1"
    ] * 2
    assert graph.nodes["dram1"]["capacity_bytes"] == 2 * 2**40


def test_hosts_that_do_not_divide_the_gpus_differ_by_one():
    graph = graph_of("nvswitch16", "build.gpus=7", "build.hosts=3")
    held = Counter(graph.nodes[node]["host"] for node in gpus(graph))
    assert sorted(held.values()) == [2, 2, 3]
    assert [graph.nodes[node]["host"] for node in gpus(graph)] == sorted(held.elements())


def test_rails():
    graph = graph_of("h100x16-rail", "build.spines=2", "build.oversubscription=4")
    assert kinds(graph) == {
        "gpu": 16, "nvswitch": 2, "pcie": 16, "nic": 16, "cpu": 2, "dram": 2, "leaf": 8, "spine": 2,
    }  # fmt: skip
    for rail in range(8):
        below = [node for node in graph.predecessors(f"leaf{rail}") if node.startswith("nic")]
        assert below == [f"nic{rail}", f"nic{rail + 8}"]
        up = [graph.edges[f"leaf{rail}", f"spine{s}"]["bandwidth_bytes_per_s"] for s in (0, 1)]
        # Two NICs of 50 GB/s below, a quarter of that to both spines together.
        assert up == [12.5e9, 12.5e9]


def test_pairs_and_sockets():
    graph = graph_of("a6000x10")
    assert kinds(graph) == {"gpu": 10, "cpu": 2, "dram": 2}
    bridges = {(a, b) for a, b, kind in graph.edges(data="kind") if kind == "nvlink" and a < b}
    assert bridges == {(f"gpu{2 * i}", f"gpu{2 * i + 1}") for i in range(5)}
    assert [memory_of_host(graph, f"gpu{g}") for g in (0, 4, 5, 9)] == ["dram0"] * 2 + ["dram1"] * 2


def test_an_odd_last_gpu_has_no_bridge():
    graph = graph_of("a6000x10", "build.gpus=5")
    assert not graph.has_edge("gpu3", "gpu4")
    assert list(graph.successors("gpu4")) == ["cpu1"]


EXPLICIT = """
name: made
gpu: H100-SXM
build:
  kind: explicit
  nodes:
    - {name: b, kind: gpu, host: 1}
    - {name: s, kind: nvswitch}
    - {name: a, kind: gpu}
    - {name: c, kind: cpu, host: 1}
    - {name: m, kind: dram, host: 1, capacity: 3 GiB}
    - {name: n, kind: nic}
    - {name: l, kind: leaf}
    - {name: d, kind: cpu}
  links:
    - {from: a, to: s, bandwidth: 1 GB/s, latency: 1 us, both: true}
    - {from: s, to: b, bandwidth: 2 GB/s, latency: 2 us}
    - {from: m, to: c, bandwidth: 3 GB/s, latency: 3 us}
    - {from: c, to: b, bandwidth: 4 GB/s, latency: 4 us}
    - {from: d, to: c, bandwidth: 5 GB/s, latency: 5 us}
    - {from: n, to: l, bandwidth: 6 GB/s, latency: 6 us}
    - {from: d, to: n, bandwidth: 7 GB/s, latency: 7 us, kind: nvlink}
"""


def test_an_explicit_graph_is_as_written(tmp_path: Path):
    (tmp_path / "made.yaml").write_text(EXPLICIT)
    graph = graph_of(str(tmp_path / "made.yaml"))
    assert gpus(graph) == ["b", "a"], "numbered as they stand"
    assert {(a, b): kind for a, b, kind in graph.edges(data="kind")} == {
        ("a", "s"): "nvlink", ("s", "a"): "nvlink", ("s", "b"): "nvlink", ("m", "c"): "membus",
        ("c", "b"): "pcie", ("d", "c"): "socket", ("n", "l"): "network", ("d", "n"): "nvlink",
    }  # fmt: skip
    assert graph.edges["s", "b"]["bandwidth_bytes_per_s"] == 2e9
    assert graph.edges["s", "b"]["latency_s"] == 2e-6
    assert memory_of_host(graph, "b") == "m"
    assert memory_of_host(graph, "a") is None
    assert graph.nodes["m"]["capacity_bytes"] == 3 * 2**30
