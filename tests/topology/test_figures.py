"""Bisection, diameter and hottest link by hand, and a cut against every cut there is."""

from __future__ import annotations

from itertools import permutations

import networkx as nx
import numpy as np
import pytest

from simulator.cluster.figures import ALL_ROUTES_GPUS, Figures, bisection, figures
from simulator.cluster.graph import build_graph, gpus
from simulator.cluster.routes import route_table
from simulator.spec.load import load_topology


def of(name: str, *overrides: str) -> Figures:
    topology = load_topology(name, [f"build.{text}" for text in overrides])
    found = figures(build_graph(topology), topology.build.kind != "explicit")
    assert isinstance(found, Figures)
    return found


@pytest.mark.parametrize(
    ("name", "gb_per_s"),
    [
        ("nvswitch16", 8 * 450), ("dgx-a100", 4 * 300), ("gb200-nvl72", 36 * 900),
        # Four GPUs of each half, a link between every two.
        ("mi300x8", 4 * 4 * 64),
        # GPU 4 and 5 have a bridge, all else goes from socket to socket.
        ("a6000x10", 56.25 + 67.2),
        # One PCIe link between a switch and its socket; the socket link could take more.
        ("a6000x10-pcie", 32),
        ("k8s-2node", 25 / 8),
        # Half of the NICs; PCIe and NVLink within the nodes do not cross.
        ("h100x16-rail", 8 * 50), ("h100x128-rail", 64 * 50), ("h800x256-rail", 128 * 50),
        ("h100x1024-rail", 512 * 50),
    ],
)  # fmt: skip
def test_bisection(name, gb_per_s):
    assert of(name).bisection_bytes_per_s == pytest.approx(gb_per_s * 1e9, rel=1e-12)


def test_a_fat_tree_is_as_wide_as_its_oversubscription_lets_it_be(tmp_path):
    rate = "{bandwidth: %d GB/s, latency: 1 us}"
    path = tmp_path / "fat.yaml"
    path.write_text(f"""\
name: fat
gpu: H100-SXM
build:
  kind: fat-tree
  nodes: 4
  gpus_per_node: 2
  nics_per_node: 2
  nodes_per_leaf: 2
  nvlink: {rate % 450}
  pcie: {rate % 64}
  dram: {{bandwidth: 600 GB/s, latency: 1 us, capacity: 1 TiB}}
  nic: {rate % 50}
  spines: 2
  oversubscription: 4
""")
    # Leaf 0 has four NICs of 50 GB/s and a quarter of that upwards.
    found = of(str(path))
    assert found.bisection_bytes_per_s == 50e9
    assert of(str(path), "oversubscription=1").bisection_bytes_per_s == 200e9
    # gpu - pcie - nic - leaf - spine - leaf - nic - pcie - gpu.
    assert (found.longest_links, found.longest_latency_s) == (8, pytest.approx(8e-6))
    # 16 of the 4 x 4 pairs of one half with the other climb from leaf 0, over two spines by a hash.
    assert found.hottest_kind == "network"
    assert set(found.hottest_link) & {"spine0", "spine1"}
    assert 8 <= found.hottest_bytes <= 16
    assert found.hottest_seconds_per_byte == pytest.approx(found.hottest_bytes / 25e9)


def test_sprayed_routes_share_out_what_a_hash_does_not():
    """Each GPU of a rail sends to the seven other rails of the other node, over four spines."""
    graph = build_graph(load_topology("h100x16-rail", ["build.spines=4"]))
    graph.graph["ecmp"] = "sprayed"
    found = figures(graph, True)
    assert isinstance(found, Figures)
    # A leaf's two GPUs send 14 others' worth over 4 links of 25 GB/s; a NIC sends 8 at 50 GB/s.
    assert found.hottest_bytes == pytest.approx(8)
    assert found.hottest_seconds_per_byte == pytest.approx(8 / 50e9)
    assert found.longest_links == 8
    assert found.longest_latency_s == pytest.approx(4 * 250e-9 + 4 * 500e-9)


def test_diameter():
    switch = of("nvswitch16")
    assert (switch.longest_links, switch.longest_route) == (2, ("gpu0", "gpu1"))
    assert switch.longest_latency_s == pytest.approx(936e-9)
    rail = of("h100x16-rail")
    # Another rail: four PCIe links of 250 ns, four of the network of 500 ns.
    assert rail.longest_links == 8
    assert rail.longest_latency_s == pytest.approx(4 * 250e-9 + 4 * 500e-9)
    pairs = of("a6000x10")
    assert (pairs.longest_links, pairs.longest_latency_s) == (3, pytest.approx(1070e-9))


def test_hottest_link():
    switch = of("nvswitch16")
    assert switch.hottest_bytes == 15
    assert switch.hottest_seconds_per_byte == pytest.approx(15 / 450e9)
    # 25 ordered pairs one way between the sockets, less GPU 4 -> 5 over its bridge.
    pairs = of("a6000x10")
    assert (pairs.hottest_kind, pairs.hottest_bytes) == ("socket", 24)
    rail = of("h100x16-rail")
    assert (rail.hottest_bytes, rail.hottest_seconds_per_byte) == (8, pytest.approx(8 / 50e9))


@pytest.mark.parametrize("nodes", [4, 6])
def test_the_first_gpus_routes_tell_what_all_routes_tell(monkeypatch, nodes):
    every = of("h100x16-rail", f"nodes={nodes}")
    monkeypatch.setattr("simulator.cluster.figures.ALL_ROUTES_GPUS", 1)
    first = of("h100x16-rail", f"nodes={nodes}")
    assert every.all_routes
    assert not first.all_routes
    assert first.bisection_bytes_per_s == every.bisection_bytes_per_s
    assert first.hottest_bytes == every.hottest_bytes == 8 * (nodes - 1)
    assert first.longest_latency_s == every.longest_latency_s
    assert first.longest_links == every.longest_links


def test_the_graph_of_two_hosts_gives_the_routes_of_the_whole():
    topology = load_topology("h100x16-rail", ["build.nodes=9", "build.spines=2"])
    graph = build_graph(topology)
    assert len(gpus(graph)) > ALL_ROUTES_GPUS
    apart = figures(graph, hosts_apart=True)
    whole = figures(graph, hosts_apart=False)
    assert apart == whole


def test_one_gpu_and_gpus_apart():
    graph = build_graph(load_topology("k8s-2node", ["build.nodes=1"]))
    assert figures(graph, True) is None
    graph = build_graph(load_topology("k8s-2node"))
    graph.remove_edge("leaf0", "nic1")
    assert figures(graph, True) == ("gpu0", "gpu1")


@pytest.mark.parametrize("seed", range(20))
def test_the_cut_is_the_smallest_of_all(seed):
    """Random small graphs, every subset of the switches tried."""
    random = np.random.default_rng([seed, 7])
    graph = nx.DiGraph()
    for index in range(4):
        graph.add_node(f"gpu{index}", kind="gpu", host=0, index=index)
    inner = [f"s{index}" for index in range(5)]
    graph.add_nodes_from(inner, kind="pcie", host=0)
    for a, b in permutations(graph, 2):
        if random.random() < 0.35:
            rate = float(random.integers(1, 20))
            graph.add_edge(a, b, kind="pcie", bandwidth_bytes_per_s=rate, latency_s=0.0)
    one, other = ["gpu0", "gpu1"], ["gpu2", "gpu3"]

    def smallest(left: list[str]) -> float:
        cuts = []
        for mask in range(2 ** len(inner)):
            side = {*left, *(node for i, node in enumerate(inner) if mask >> i & 1)}
            cuts.append(
                sum(
                    d["bandwidth_bytes_per_s"]
                    for a, b, d in graph.edges(data=True)
                    if a in side and b not in side
                )
            )
        return min(cuts)

    expected = min(smallest(one), smallest(other))
    assert bisection(graph, one, other, ("pcie",)) == expected


def test_a_nic_does_not_join_two_networks_nor_two_hosts():
    graph = nx.DiGraph()
    for index, kind in enumerate(("gpu", "gpu")):
        graph.add_node(f"gpu{index}", kind=kind, host=0, index=index)
    graph.add_node("nic", kind="nic", host=0)
    for gpu in ("gpu0", "gpu1"):
        for a, b in ((gpu, "nic"), ("nic", gpu)):
            graph.add_edge(a, b, kind="pcie", bandwidth_bytes_per_s=5.0, latency_s=0.0)
    assert bisection(graph, ["gpu0"], ["gpu1"], ("pcie",)) == 0
    assert figures(graph, False) == ("gpu0", "gpu1")
    graph.add_edge("gpu0", "gpu1", kind="nvlink", bandwidth_bytes_per_s=3.0, latency_s=0.0)
    graph.add_edge("gpu1", "gpu0", kind="nvlink", bandwidth_bytes_per_s=2.0, latency_s=0.0)
    found = figures(graph, False)
    assert isinstance(found, Figures)
    assert found.bisection_bytes_per_s == 2.0
    assert route_table(graph, [("gpu0", "gpu1")]).kinds == ("nvlink",)
