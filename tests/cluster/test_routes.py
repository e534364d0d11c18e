"""Routes: their class, who forwards, what cannot be reached, which links can limit them."""

from __future__ import annotations

from itertools import pairwise

import networkx as nx
import numpy as np
import pytest

from simulator.cluster.graph import Graph, build_graph, gpus, memory_of_host
from simulator.cluster.routes import RouteTable, route_table
from simulator.errors import InputError
from simulator.spec.load import load_topology


def shipped(name: str, *overrides: str) -> Graph:
    return build_graph(load_topology(name, overrides))


def path(graph: Graph, source: str, target: str) -> list[str]:
    """The nodes of a route in order."""
    table = route_table(graph, [(source, target)])
    links = [table.links[link] for link in table.all_links[0]]
    assert all(a[1] == b[0] for a, b in pairwise(links))
    return [links[0][0], *(b for _, b in links)]


def made_of(nodes: dict[str, str], links: list[tuple[str, str, str]]) -> Graph:
    """Nodes name -> kind; links (a, b, kind) both ways, 1 GB/s and 1 us each."""
    graph: Graph = nx.DiGraph(name="made")
    for name, kind in nodes.items():
        graph.add_node(name, kind=kind, host=0)
    for a, b, kind in links:
        for ends in ((a, b), (b, a)):
            graph.add_edge(*ends, kind=kind, bandwidth_bytes_per_s=1e9, latency_s=1e-6)
    return graph


# --- classes -----------------------------------------------------------------------------


def test_gpus_behind_a_switch_use_it_across_hosts():
    assert path(shipped("nvswitch16"), "gpu0", "gpu15") == ["gpu0", "nvswitch", "gpu15"]


def test_a_bridged_pair_uses_its_bridge():
    graph = shipped("a6000x10")
    assert path(graph, "gpu0", "gpu1") == ["gpu0", "gpu1"]
    # This pair sits on two sockets, and has its bridge all the same.
    assert path(graph, "gpu4", "gpu5") == ["gpu4", "gpu5"]


def test_between_pairs_of_a_socket_the_way_leads_through_its_root_complex():
    assert path(shipped("a6000x10"), "gpu1", "gpu2") == ["gpu1", "cpu0", "gpu2"]


def test_between_sockets_it_leads_over_their_link():
    graph = shipped("a6000x10")
    assert path(graph, "gpu0", "gpu9") == ["gpu0", "cpu0", "cpu1", "gpu9"]
    assert graph.edges["cpu0", "cpu1"]["kind"] == "socket"


def test_a_bridge_is_no_way_to_a_third_gpu():
    """GPU 5 could reach GPU 0 over GPU 4 in fewer sockets, if GPUs forwarded."""
    assert path(shipped("a6000x10"), "gpu5", "gpu0") == ["gpu5", "cpu1", "cpu0", "gpu0"]


def test_inside_a_node_the_nics_are_not_used():
    assert path(shipped("h100x16-rail"), "gpu8", "gpu15") == ["gpu8", "nvswitch1", "gpu15"]


@pytest.mark.parametrize("local", range(8))
def test_on_a_rail_the_way_leads_over_one_leaf(local: int):
    a, b = local, 8 + local
    wanted = [f"gpu{a}", f"pcie{a}", f"nic{a}", f"leaf{local}"]
    wanted += [f"nic{b}", f"pcie{b}", f"gpu{b}"]
    assert path(shipped("h100x16-rail"), f"gpu{a}", f"gpu{b}") == wanted


def test_between_rails_it_leads_over_a_spine_from_the_gpus_own_nic():
    """Never over the CPU to the NIC of a neighbour, though that is as many hops."""
    graph = shipped("h100x16-rail")
    names = gpus(graph)
    for a in range(8):
        for b in range(8, 16):
            if a != b - 8:
                found = path(graph, names[a], names[b])
                assert found[2] == f"nic{a}"
                assert found[3:6] == [f"leaf{a}", "spine0", f"leaf{b - 8}"]
                assert found[6] == f"nic{b}"


def test_equal_ways_are_shared_out_among_the_spines():
    graph = shipped("h100x16-rail", "build.spines=4")
    names = gpus(graph)
    taken = [path(graph, a, b)[4] for a in names[:8] for b in names[8:] if a[3:] != b[3:]]
    spines = [spine for spine in taken if spine.startswith("spine")]
    assert set(spines) == {"spine0", "spine1", "spine2", "spine3"}
    assert path(graph, "gpu0", "gpu9") == path(graph, "gpu0", "gpu9")


def test_a_lower_class_wins_over_fewer_hops():
    """Four NVLink hops before one through the root complex."""
    nodes = {"gpu0": "gpu", "gpu1": "gpu", "a": "nvswitch", "b": "nvswitch", "c": "nvswitch"}
    chain = ["gpu0", "a", "b", "c", "gpu1"]
    links = [(x, y, "nvlink") for x, y in pairwise(chain)]
    links += [("gpu0", "cpu", "pcie"), ("cpu", "gpu1", "pcie")]
    assert path(made_of({**nodes, "cpu": "cpu"}, links), "gpu0", "gpu1") == chain


def test_a_pcie_switch_wins_over_the_root_complex():
    nodes = {"gpu0": "gpu", "gpu1": "gpu", "p": "pcie", "q": "pcie", "cpu": "cpu"}
    links = [("gpu0", "p", "pcie"), ("p", "q", "pcie"), ("q", "gpu1", "pcie")]
    links += [("gpu0", "cpu", "pcie"), ("cpu", "gpu1", "pcie")]
    assert path(made_of(nodes, links), "gpu0", "gpu1") == ["gpu0", "p", "q", "gpu1"]


# --- who forwards ------------------------------------------------------------------------


@pytest.mark.parametrize("between", ["gpu", "dram", "nic"])
def test_gpus_memories_and_nics_do_not_forward(between: str):
    kind = {"gpu": "nvlink", "dram": "membus", "nic": "pcie"}[between]
    nodes = {"gpu0": "gpu", "x": between, "gpu1": "gpu"}
    graph = made_of(nodes, [("gpu0", "x", kind), ("x", "gpu1", kind)])
    with pytest.raises(InputError) as caught:
        path(graph, "gpu0", "gpu1")
    assert str(caught.value) == (
        "made: gpu1 cannot be reached from gpu0: no path of links joins them "
        "(GPUs, NICs and DRAM do not forward traffic)"
    )


def test_a_nic_passes_between_its_host_and_the_network_only():
    nodes = {"gpu0": "gpu", "gpu1": "gpu", "n0": "nic", "n1": "nic", "n2": "nic", "leaf": "leaf"}
    links = [("gpu0", "n0", "pcie"), ("n1", "gpu1", "pcie")]
    # n2 has two ports: it is no switch between n0 and n1.
    ports = [("n0", "n2", "network"), ("n2", "n1", "network")]
    with pytest.raises(InputError, match="gpu1 cannot be reached from gpu0"):
        path(made_of(nodes, links + ports), "gpu0", "gpu1")
    wired = [("n0", "leaf", "network"), ("leaf", "n1", "network")]
    found = path(made_of(nodes, links + wired), "gpu0", "gpu1")
    assert found == ["gpu0", "n0", "leaf", "n1", "gpu1"]


@pytest.mark.parametrize(
    "between", ["nvswitch", "pcie", "cpu", "leaf", "spine"]
)  # fmt: skip
def test_switches_and_sockets_forward(between: str):
    kind = "network" if between in ("leaf", "spine") else "nvlink"
    nodes = {"gpu0": "gpu", "x": between, "gpu1": "gpu"}
    graph = made_of(nodes, [("gpu0", "x", kind), ("x", "gpu1", kind)])
    assert path(graph, "gpu0", "gpu1") == ["gpu0", "x", "gpu1"]


@pytest.mark.parametrize("name", ["nvswitch16", "a6000x10", "h100x16-rail", "h100x4"])
def test_no_shipped_route_leads_through_an_end_point(name: str):
    graph = shipped(name)
    names = gpus(graph)
    pairs = [(a, b) for a in names for b in names if a != b]
    pairs += [(memory, g) for g in names if (memory := memory_of_host(graph, g))]
    table = route_table(graph, pairs)
    for links in table.all_links:
        inner = [table.links[link][1] for link in links[:-1]]
        assert not {graph.nodes[node]["kind"] for node in inner} & {"gpu", "dram"}
        for a, b in pairwise(table.links[link] for link in links):
            if graph.nodes[a[1]]["kind"] == "nic":
                sides = {graph.edges[a]["kind"], graph.edges[b]["kind"]}
                assert sides == {"pcie", "network"}


def test_a_link_of_one_direction_is_no_way_back():
    graph = made_of({"gpu0": "gpu", "gpu1": "gpu"}, [])
    graph.add_edge("gpu0", "gpu1", kind="nvlink", bandwidth_bytes_per_s=1e9, latency_s=0.0)
    assert path(graph, "gpu0", "gpu1") == ["gpu0", "gpu1"]
    with pytest.raises(InputError, match="gpu0 cannot be reached from gpu1"):
        path(graph, "gpu1", "gpu0")


# --- the table ---------------------------------------------------------------------------


def all_pairs(name: str) -> RouteTable:
    graph = shipped(name)
    names = gpus(graph)
    return route_table(graph, [(a, b) for a in names for b in names if a != b])


@pytest.mark.parametrize("name", ["nvswitch16", "a6000x10", "h100x16-rail"])
def test_a_route_has_the_sum_of_its_latencies_and_its_links_their_bandwidth(name: str):
    table, graph = all_pairs(name), shipped(name)
    for (a, b), route in table.index.items():
        links = [table.links[link] for link in table.all_links[route]]
        assert (links[0][0], links[-1][1]) == (a, b)
        latency = sum(graph.edges[link]["latency_s"] for link in links)
        assert table.latency_s[route] == pytest.approx(latency, rel=1e-12)
    for link, kind, bandwidth in zip(
        table.links, table.kinds, table.bandwidth_bytes_per_s, strict=True
    ):
        assert kind == graph.edges[link]["kind"]
        assert bandwidth == graph.edges[link]["bandwidth_bytes_per_s"]


def test_bytes_of_a_route_are_bytes_of_each_of_its_links():
    table = all_pairs("a6000x10")
    sent = [0.0] * table.count
    sent[table.index["gpu0", "gpu9"]] = 5.0
    sent[table.index["gpu1", "gpu8"]] = 2.0
    carried = dict(zip(table.links, table.link_bytes(np.array(sent)), strict=True))
    assert {link: bytes_ for link, bytes_ in carried.items() if bytes_} == {
        ("gpu0", "cpu0"): 5.0,
        ("gpu1", "cpu0"): 2.0,
        ("cpu0", "cpu1"): 7.0,
        ("cpu1", "gpu9"): 5.0,
        ("cpu1", "gpu8"): 2.0,
    }


def test_a_pair_asked_for_twice_is_one_route():
    graph = shipped("h100x4")
    table = route_table(graph, [("gpu0", "gpu1"), ("gpu2", "gpu1"), ("gpu0", "gpu1")])
    assert table.count == 2
