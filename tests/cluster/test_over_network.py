"""Routes that must lead over the network (RDMA only)."""

from __future__ import annotations

from itertools import permutations

import networkx as nx
import numpy as np
import pytest
from cluster.test_paths import between, links_of

from simulator.cluster.graph import build_graph, gpus
from simulator.cluster.routes import NETWORK, routes_between
from simulator.errors import InputError
from simulator.spec.load import load_topology


def path(graph: nx.DiGraph, source: str, target: str) -> list[str]:
    links = links_of(between(graph, [(source, target)], "network"), 0)
    return [links[0][0], *(b for _, b in links)]


def rails() -> nx.DiGraph:
    return build_graph(load_topology("h800x16-rail"))


def test_on_one_node_it_leads_out_of_one_nic_and_in_by_the_other():
    found = path(rails(), "gpu0", "gpu1")
    assert found[:4] == ["gpu0", "pcie0", "nic0", "leaf0"]
    assert found[4].startswith("spine")
    assert found[5:] == ["leaf1", "nic1", "pcie1", "gpu1"]


def test_on_a_rail_and_across_rails_it_is_the_way_without_it():
    graph = rails()
    pairs = [
        (a, b) for a, b in permutations(gpus(graph), 2) if (int(a[3:]) < 8) != (int(b[3:]) < 8)
    ]
    table, plain = between(graph, pairs, "network"), between(graph, pairs)
    assert path(graph, "gpu0", "gpu8") == [
        "gpu0", "pcie0", "nic0", "leaf0", "nic8", "pcie8", "gpu8",
    ]  # fmt: skip
    assert np.array_equal(table.latency_s, plain.latency_s)
    assert [len(links) for links in table.all_links] == [len(links) for links in plain.all_links]


def test_every_pair_uses_the_nics_of_its_own_gpus_and_no_nvlink():
    graph = rails()
    pairs = list(permutations(gpus(graph), 2))
    table = between(graph, pairs, "network")
    assert (table.kind_of == NETWORK).all()
    assert set(table.kinds) == {"pcie", "network"}
    for route, (a, b) in enumerate(pairs):
        nodes = {node for link in links_of(table, route) for node in link}
        assert {node for node in nodes if node.startswith("nic")} == {f"nic{a[3:]}", f"nic{b[3:]}"}
    # All to all: each NIC sends and receives for its GPU alone.
    sent = dict(zip(table.links, table.link_bytes(np.ones(table.count)), strict=True))
    assert all(sent[f"nic{g}", f"leaf{g % 8}"] == 15 for g in range(16))


def test_two_gpus_of_one_nic_go_to_the_leaf_and_back():
    graph = build_graph(load_topology("k8s-2node", ["build.gpus_per_node=2"]))
    assert path(graph, "gpu0", "gpu1") == [
        "gpu0", "cpu0", "nic0", "leaf0", "nic0", "cpu0", "gpu1",
    ]  # fmt: skip
    assert path(graph, "dram0", "gpu1")[:3] == ["dram0", "cpu0", "nic0"]
    assert path(graph, "cpu0", "nic1") == ["cpu0", "nic0", "leaf0", "nic1"]


def test_sprayed_over_two_nics_of_a_host():
    """Two equal NICs: each carries a half out, and of what comes in."""
    graph = build_graph(load_topology("k8s-2node", ["build.nics_per_node=2"]))
    graph.graph["ecmp"] = "sprayed"
    table = between(graph, [("gpu0", "gpu1")], "network")
    assert table.fraction is not None
    parts = dict(zip(links_of(table, 0), table.fraction.tolist(), strict=True))
    halves = [("cpu0", "nic0"), ("cpu0", "nic1"), ("nic0", "leaf0"), ("nic1", "leaf0")]
    halves += [("leaf0", "nic2"), ("leaf0", "nic3"), ("nic2", "cpu1"), ("nic3", "cpu1")]
    assert parts == {("gpu0", "cpu0"): 1.0, ("cpu1", "gpu1"): 1.0} | dict.fromkeys(halves, 0.5)
    # Two NICs of 25 Gb/s are one of 50 Gb/s.
    assert table.bind_weight is None
    assert table.capacity_bytes_per_s[table.bind_link].min() == pytest.approx(2 * 25e9 / 8)


# --- errors ------------------------------------------------------------------------------


def refused(graph: nx.DiGraph, source: str, target: str) -> str:
    with pytest.raises(InputError) as caught:
        between(graph, [(source, target)], "network")
    return str(caught.value)


def test_a_host_without_a_nic():
    graph = build_graph(load_topology("nvswitch16"))
    assert refused(graph, "gpu0", "gpu15") == (
        "nvswitch16: no way from gpu0 to gpu15 over the network: the host of gpu0 (host 0) has no "
        "NIC"
    )


def test_a_nic_that_the_network_does_not_reach():
    graph = build_graph(load_topology("k8s-2node"))
    graph.remove_edge("leaf0", "nic1")
    assert refused(graph, "gpu0", "gpu1") == (
        "k8s-2node: no way from gpu0 to gpu1 over the network: it must lead from a NIC of the "
        "one's host to a NIC of the other's, and reach both without NVLink"
    )
    assert path(graph, "gpu1", "gpu0") == ["gpu1", "cpu1", "nic1", "leaf0", "nic0", "cpu0", "gpu0"]


def test_the_nic_of_another_host_is_no_way_out():
    graph = build_graph(load_topology("k8s-2node"))
    for node in ("nic0", "nic1"):
        graph.nodes[node]["host"] = 7
    assert "the host of gpu0 (host 0) has no NIC" in refused(graph, "gpu0", "gpu1")


def test_a_link_that_would_be_crossed_twice():
    """Out by n1 only, in by n2 only, both behind p -> q."""
    graph: nx.DiGraph = nx.DiGraph(name="made")
    kinds = {"gpu0": "gpu", "gpu1": "gpu", "p": "pcie", "q": "pcie", "n1": "nic", "n2": "nic"}
    for node, kind in {**kinds, "leaf": "leaf"}.items():
        graph.add_node(node, kind=kind, host=0)
    for text in ("gpu0 p", "p q", "q n1", "n1 leaf", "leaf n2", "n2 p", "q gpu1"):
        a, b = text.split()
        kind = "network" if "leaf" in text else "pcie"
        graph.add_edge(a, b, kind=kind, bandwidth_bytes_per_s=1e9, latency_s=0.0)
    assert refused(graph, "gpu0", "gpu1") == (
        "made: the way from gpu0 to gpu1 over the network crosses a link twice: give their NICs "
        "links in both directions"
    )


def test_only_the_network_can_be_named():
    graph = build_graph(load_topology("h100x4"))
    ends = np.zeros(0, dtype=np.int32)
    with pytest.raises(ValueError, match="via: 'nvlink' is neither None nor 'network'"):
        routes_between(graph, gpus(graph), ends, ends, via="nvlink")
