"""The compiled search finds the routes that a plain one over networkx finds."""

from __future__ import annotations

from itertools import pairwise, permutations

import networkx as nx
import numpy as np
import pytest
from cluster import search
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster.graph import build_graph, gpus
from simulator.cluster.routes import (
    KINDS,
    RouteTable,
    joined,
    route_table,
    routes_between,
    unreachable,
)
from simulator.errors import InputError
from simulator.spec.find import shipped
from simulator.spec.load import gpu_count, load_topology

SMALL = [name for name in shipped("topology") if gpu_count(load_topology(name)) <= 64]
NODE_KINDS = ("gpu", "nvswitch", "pcie", "cpu", "dram", "nic", "leaf", "spine")
EDGE_KINDS = ("nvlink", "pcie", "membus", "socket", "network")


def links_of(table: RouteTable, route: int) -> list[tuple[str, str]]:
    return [table.links[link] for link in table.crossed[table.ptr[route] : table.ptr[route + 1]]]


def between(graph: nx.DiGraph, pairs: list[tuple[str, str]], via: str | None = None) -> RouteTable:
    nodes = list(graph.nodes)
    number = {name: n for n, name in enumerate(nodes)}
    ends = np.array([(number[a], number[b]) for a, b in pairs], dtype=np.int32).reshape(-1, 2)
    return routes_between(graph, nodes, ends[:, 0], ends[:, 1], via=via)


def check(graph: nx.DiGraph, pairs: list[tuple[str, str]]) -> None:
    """Every route, its latency and its kind, and the order of the links."""
    ends = dict.fromkeys(node for pair in pairs for node in pair)
    wanted = {}
    for source in dict.fromkeys(source for source, _ in pairs):
        targets = [b for a, b in pairs if a == source]
        found = search.ways_back(graph, source, ends, targets)
        wanted |= {(source, target): before for target, before in found.items()}
    apart = [pair for pair in dict.fromkeys(pairs) if wanted[pair] is None]
    assert unreachable(graph, pairs) == [(a, b) for a, b in apart if a != b]
    there = [pair for pair in pairs if wanted[pair] is not None]
    if apart:
        with pytest.raises(InputError, match="cannot be reached from"):
            routes_between_names(graph, ends, pairs)
    table = routes_between_names(graph, ends, there)
    assert table.count == len(there)
    expected = [search.hashed(wanted[pair], *pair) for pair in there]
    assert [links_of(table, route) for route in range(table.count)] == expected
    assert list(table.links) == list(dict.fromkeys(link for route in expected for link in route))
    for route, links in enumerate(expected):
        data = [graph.edges[link] for link in links]
        kinds = {d["kind"] for d in data}
        kind = "network" if "network" in kinds else "nvlink" if kinds <= {"nvlink"} else "pcie"
        assert KINDS[table.kind_of[route]] == kind
        assert table.latency_s[route] == pytest.approx(sum(d["latency_s"] for d in data), rel=1e-12)
    assert table.fraction is None


def routes_between_names(
    graph: nx.DiGraph, ends: dict[str, None], pairs: list[tuple[str, str]]
) -> RouteTable:
    nodes = list(ends)
    number = {name: n for n, name in enumerate(nodes)}
    source = np.array([number[a] for a, _ in pairs], dtype=np.int32)
    target = np.array([number[b] for _, b in pairs], dtype=np.int32)
    return routes_between(graph, nodes, source, target)


@pytest.mark.parametrize("name", SMALL)
def test_every_small_shipped_topology(name: str):
    graph = build_graph(load_topology(name))
    graph.graph["ecmp"] = "hashed"  # what the oracle knows
    names = gpus(graph)
    memories = [node for node, kind in graph.nodes(data="kind") if kind == "dram"]
    pairs = list(permutations(names, 2)) + [(memory, gpu) for memory in memories for gpu in names]
    if len(pairs) > 800:
        picked = np.random.default_rng(3).permutation(len(pairs))[:800]
        pairs = [pairs[pick] for pick in picked]
    check(graph, pairs)


@pytest.mark.parametrize("spines", [3, 16])
def test_many_spines(spines: int):
    graph = build_graph(load_topology("h100x16-rail", [f"build.spines={spines}"]))
    check(graph, list(permutations(gpus(graph), 2)))


def random_graph(seed: int) -> nx.DiGraph:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 14))
    graph = nx.DiGraph(name="random")
    for number in rng.permutation(count):
        kind = NODE_KINDS[rng.integers(len(NODE_KINDS))]
        graph.add_node(f"{kind[:1]}{number}é", kind=kind, host=int(rng.integers(2)))
    few = rng.random() < 0.5
    for a, b in permutations(graph, 2):
        if rng.random() < 0.4:
            kind = EDGE_KINDS[rng.integers(2 if few else 5)]
            graph.add_edge(
                a, b, kind=kind, bandwidth_bytes_per_s=float(rng.integers(1, 9)),
                latency_s=float(rng.integers(5)) * 1e-6,
            )  # fmt: skip
    return graph


@settings(max_examples=150)
@given(seed=st.integers(0, 2**32 - 1))
def test_random_graphs_with_any_node_as_an_end(seed: int):
    graph = random_graph(seed)
    pairs = [(a, b) for a in graph for b in graph]
    picked = np.random.default_rng([seed, 1]).permutation(len(pairs))
    check(graph, [pairs[pick] for pick in picked[: len(pairs) // 2 + 1]])


def test_routes_come_in_the_order_asked_for_also_twice():
    graph = build_graph(load_topology("h100x16-rail"))
    pairs = [("gpu9", "gpu0"), ("gpu0", "gpu9"), ("gpu9", "gpu1"), ("gpu9", "gpu0")]
    table = between(graph, pairs)
    found = [links_of(table, route) for route in range(4)]
    assert [(links[0][0], links[-1][1]) for links in found] == pairs
    assert found[0] == found[3]


def test_no_routes_and_no_links():
    graph = build_graph(load_topology("h100x4"))
    table = between(graph, [])
    assert (table.count, table.links, table.crossed.size) == (0, (), 0)
    assert table.bind_ptr.tolist() == [0]
    assert table.link_bytes(np.zeros(0)).size == 0


def test_a_route_of_more_links_than_were_made_room_for():
    chain = ["gpu0", *(f"s{number}" for number in range(300)), "gpu1"]
    graph = nx.DiGraph(name="chain")
    graph.add_nodes_from(chain, kind="nvswitch", host=0)
    graph.add_nodes_from(("gpu0", "gpu1"), kind="gpu")
    for a, b in pairwise(chain):
        for link in ((a, b), (b, a)):
            graph.add_edge(*link, kind="nvlink", bandwidth_bytes_per_s=1e9, latency_s=1e-6)
    table = route_table(graph, [("gpu0", "gpu1"), ("gpu1", "gpu0")])
    assert links_of(table, 0) == list(pairwise(chain))
    assert links_of(table, 1) == list(pairwise(chain[::-1]))
    assert table.hops().tolist() == [301, 301]
    # All links alike: one limits.
    assert np.diff(table.bind_ptr).tolist() == [1, 1]


def test_the_table_of_names_and_that_of_numbers_are_the_same():
    graph = build_graph(load_topology("h100x16-rail"))
    pairs = list(permutations(gpus(graph), 2))
    named, numbered = route_table(graph, pairs), between(graph, pairs)
    assert named.links == numbered.links
    assert np.array_equal(named.crossed, numbered.crossed)
    assert list(named.index) == pairs
    assert np.array_equal(named.bind_ptr, numbered.bind_ptr)
    assert np.array_equal(named.bind_link, numbered.bind_link)
    assert numbered.bind_weight is None
    assert np.array_equal(numbered.capacity_bytes_per_s, numbered.bandwidth_bytes_per_s)


@pytest.mark.parametrize("ecmp", ["hashed", "sprayed"])
def test_two_tables_joined_are_one_table(ecmp: str):
    over = ["build.spines=2", "build.oversubscription=4"]
    graph = build_graph(load_topology("h100x16-rail", over))
    graph.graph["ecmp"] = ecmp
    first = [("gpu0", "gpu1"), ("gpu8", "gpu9"), ("dram0", "gpu3")]  # none forks
    second = list(permutations(gpus(graph), 2))
    both, one = (
        joined(between(graph, first), between(graph, second)),
        between(graph, first + second),
    )
    assert both.links == one.links
    for name in ("ptr", "crossed", "latency_s", "kind_of", "bind_ptr", "bind_link",
                 "capacity_bytes_per_s", "bandwidth_bytes_per_s"):  # fmt: skip
        assert np.array_equal(getattr(both, name), getattr(one, name)), name
    assert (both.fraction is None) == (one.fraction is None) == (ecmp == "hashed")
    if both.fraction is not None and one.fraction is not None:
        assert np.array_equal(both.fraction, one.fraction)
    assert both.bind_weight is None
