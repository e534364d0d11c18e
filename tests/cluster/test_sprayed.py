"""Sprayed routes: what part of a transfer each link carries, and which links can limit it."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise, permutations

import networkx as nx
import numpy as np
import pytest
from cluster import search
from cluster.test_paths import between, links_of, random_graph
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster.graph import Graph, build_graph, gpus
from simulator.cluster.routes import NETWORK, RouteTable, route_table
from simulator.spec.load import load_topology

Link = tuple[str, str]


def sprayed(graph: nx.DiGraph) -> nx.DiGraph:
    graph.graph["ecmp"] = "sprayed"
    return graph


def rails(*overrides: str) -> Graph:
    return build_graph(load_topology("h100x16-rail", (*overrides, "build.ecmp=sprayed")))


def parts_of(table: RouteTable, route: int) -> dict[Link, float]:
    begin, end = table.ptr[route], table.ptr[route + 1]
    parts = np.ones(end - begin) if table.fraction is None else table.fraction[begin:end]
    return dict(zip(links_of(table, route), parts.tolist(), strict=True))


def wired(links: list[tuple[str, str, float, float]], ends: dict[str, str]) -> nx.DiGraph:
    """Links (a, b, GB/s, us), one way; nodes are switches but for `ends`, node -> kind."""
    graph: nx.DiGraph = nx.DiGraph(name="made")
    for node in dict.fromkeys(node for a, b, _, _ in links for node in (a, b)):
        graph.add_node(node, kind=ends.get(node, "leaf"), host=0)
    for a, b, rate, late in links:
        graph.add_edge(
            a, b, kind="network", bandwidth_bytes_per_s=rate * 1e9, latency_s=late * 1e-6
        )
    return sprayed(graph)


# --- by hand -----------------------------------------------------------------------------


@pytest.mark.parametrize("spines", [2, 3])
def test_every_spine_of_a_leaf_carries_the_same_part(spines: int):
    graph = rails(f"build.spines={spines}", "build.oversubscription=4")
    table = route_table(graph, list(permutations(gpus(graph), 2)))
    expected = {
        ("gpu0", "pcie0"): 1.0, ("pcie0", "nic0"): 1.0, ("nic0", "leaf0"): 1.0,
        ("leaf1", "nic9"): 1.0, ("nic9", "pcie9"): 1.0, ("pcie9", "gpu9"): 1.0,
    }  # fmt: skip
    for spine in range(spines):
        expected["leaf0", f"spine{spine}"] = 1 / spines
        expected[f"spine{spine}", "leaf1"] = 1 / spines
    route = table.index["gpu0", "gpu9"]
    assert parts_of(table, route) == pytest.approx(expected, rel=1e-12)
    assert table.kind_of[route] == NETWORK
    assert table.hops()[route] == pytest.approx(8)
    assert table.latency_s[route] == pytest.approx(4 * 250e-9 + 4 * 500e-9, rel=1e-12)
    # On a rail there is one way, and inside a node too.
    assert set(parts_of(table, table.index["gpu0", "gpu8"]).values()) == {1.0}
    assert len(parts_of(table, table.index["gpu0", "gpu1"])) == 2

    # The fabric is symmetrical: all links up of a leaf are one link, and so are those down.
    assert table.bind_weight is None
    found = table.bind_link[table.bind_ptr[route] : table.bind_ptr[route + 1]]
    kinds = [[graph.nodes[node]["kind"] for node in table.links[link]] for link in found]
    assert kinds.count(["leaf", "spine"]) == kinds.count(["spine", "leaf"]) == 1
    up = found[kinds.index(["leaf", "spine"])]
    # Two NICs of 50 GB/s below a leaf, a quarter of that upwards, over all spines together.
    assert table.capacity_bytes_per_s[up] == pytest.approx(2 * 50e9 / 4, rel=1e-12)
    assert table.bandwidth_bytes_per_s[up] == pytest.approx(2 * 50e9 / 4 / spines, rel=1e-12)


def test_without_oversubscription_no_spine_limits_anything():
    pairs = [(f"gpu{g}", f"gpu{8 + (g + 1) % 8}") for g in range(8)]
    table = route_table(rails("build.spines=3"), pairs)
    assert table.bind_weight is None
    kept = {node for link in table.bind_link for node in table.links[link]}
    assert not any(node.startswith("spine") for node in kept)


LOPSIDED = [
    # a forks to s and t; s goes on over x alone, t over x and y: all of three hops.
    ("gpu0", "a", 10, 1), ("a", "s", 4, 1), ("a", "t", 4, 2), ("s", "x", 4, 1), ("t", "x", 4, 1),
    ("t", "y", 4, 5), ("x", "b", 4, 1), ("y", "b", 4, 1), ("b", "gpu1", 10, 1),
]  # fmt: skip


def test_parts_flow_from_the_source_on():
    graph = wired(LOPSIDED, {"gpu0": "gpu", "gpu1": "gpu"})
    table = route_table(graph, [("gpu0", "gpu1")])
    assert parts_of(table, 0) == {
        ("gpu0", "a"): 1.0, ("a", "s"): 0.5, ("a", "t"): 0.5, ("s", "x"): 0.5, ("t", "x"): 0.25,
        ("t", "y"): 0.25, ("x", "b"): 0.75, ("y", "b"): 0.25, ("b", "gpu1"): 1.0,
    }  # fmt: skip
    # The longest way: gpu0, a, t, y, b, gpu1.
    assert table.latency_s[0] == pytest.approx((1 + 2 + 5 + 1 + 1) * 1e-6)
    assert table.hops()[0] == pytest.approx(5)
    assert table.link_bytes(np.array([8.0])).sum() == 40.0
    # Alone, the route is limited by one link: x -> b, three quarters at 4 GB/s.
    assert table.bind_weight is None
    rate = min(table.capacity_bytes_per_s[table.bind_link])
    assert table.bind_ptr.tolist() == [0, 1]
    assert rate == pytest.approx(4e9 / 0.75, rel=1e-12)


def test_unequal_parts_of_one_link_are_weights():
    """A second GPU hangs on s: it has all of s -> x, where the first has a half."""
    links = [*LOPSIDED, ("gpu2", "s", 10, 1)]
    graph = wired(links, {"gpu0": "gpu", "gpu1": "gpu", "gpu2": "gpu"})
    table = route_table(graph, [("gpu0", "gpu1"), ("gpu2", "gpu1")])
    assert parts_of(table, 1) == dict.fromkeys(
        [("gpu2", "s"), ("s", "x"), ("x", "b"), ("b", "gpu1")], 1.0
    )
    assert table.bind_weight is not None
    weights = [
        {table.links[table.bind_link[at]]: float(table.bind_weight[at]) for at in range(a, b)}
        for a, b in pairwise(table.bind_ptr)
    ]
    assert weights[0]["x", "b"] == 0.75
    assert weights[1]["x", "b"] == 1.0
    assert table.capacity_bytes_per_s[table.links.index(("x", "b"))] == 4e9
    # Every part that all routes have of a link is put into its capacity.
    assert table.capacity_bytes_per_s[table.links.index(("t", "y"))] == 16e9


def test_one_way_only_is_as_hashed():
    graph = build_graph(load_topology("nvswitch16"))
    pairs = list(permutations(gpus(graph), 2))
    hashed = route_table(graph, pairs)
    table = route_table(sprayed(graph), pairs)
    assert table.fraction is None
    assert np.array_equal(table.crossed, hashed.crossed)
    assert np.array_equal(table.bind_link, hashed.bind_link)


# --- laws --------------------------------------------------------------------------------


def joined(graph: nx.DiGraph, seed: int) -> list[tuple[str, str]]:
    pairs = [
        (a, b)
        for a in graph
        for b, found in search.ways_back(graph, a, graph.nodes, graph.nodes).items()
        if a != b and found is not None
    ]
    return [pairs[pick] for pick in np.random.default_rng([seed, 2]).permutation(len(pairs))[:40]]


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1))
def test_parts_are_those_counted_path_by_path_and_none_is_lost(seed: int):
    graph = sprayed(random_graph(seed))
    pairs = joined(graph, seed)
    table = between(graph, pairs)
    for route, (source, target) in enumerate(pairs):
        before = search.ways_back(graph, source, graph.nodes, [target])[target]
        assert before is not None
        parts = parts_of(table, route)
        assert parts == pytest.approx(search.sprayed(before, source, target), rel=1e-12)
        gain: dict[str, float] = defaultdict(float)
        for (a, b), part in parts.items():
            gain[a] -= part
            gain[b] += part
        balance = {node: (node == target) - (node == source) for node in gain}
        assert gain == pytest.approx(balance, abs=1e-12)


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1))
def test_new_names_change_nothing(seed: int):
    graph = sprayed(random_graph(seed))
    pairs = joined(graph, seed)
    names = list(graph.nodes)
    new = [f"n{n}" for n in np.random.default_rng([seed, 3]).permutation(len(names))]
    to = dict(zip(names, new, strict=True))
    other = nx.relabel_nodes(graph, to)
    before, after = between(graph, pairs), between(other, [(to[a], to[b]) for a, b in pairs])
    for route in range(len(pairs)):
        renamed = {(to[a], to[b]): part for (a, b), part in parts_of(before, route).items()}
        assert parts_of(after, route) == pytest.approx(renamed, rel=1e-12)
    assert after.latency_s == pytest.approx(before.latency_s, rel=1e-12)


def max_min(use: np.ndarray, capacity: np.ndarray) -> np.ndarray:
    """Max-min fair rates [routes] by filling all at once; use: float64 [routes, links]."""
    rates = np.zeros(len(use))
    rising = use.sum(axis=1) > 0
    while rising.any():
        load = use[rising].sum(axis=0)
        left = capacity - rates @ use
        room = np.where(load > 0, left / np.where(load > 0, load, 1.0), np.inf)
        rates[rising] += room.min()
        full = room <= room.min() * (1 + 1e-9) + 1e-12
        rising &= ~(use[:, full] > 0).any(axis=1)
    return rates


def dense(ptr: np.ndarray, link: np.ndarray, weight: np.ndarray | None, links: int) -> np.ndarray:
    use = np.zeros((len(ptr) - 1, links))
    route = np.repeat(np.arange(len(ptr) - 1), np.diff(ptr))
    np.add.at(use, (route, link), 1.0 if weight is None else weight)
    return use


def check_limits(table: RouteTable, seed: int) -> None:
    """Any of the routes get the same rates from all links and from those that can limit."""
    rng = np.random.default_rng(seed)
    count = len(table.links)
    whole = dense(table.ptr, table.crossed, table.fraction, count)
    kept = dense(table.bind_ptr, table.bind_link, table.bind_weight, count)
    for _ in range(5):
        some = rng.integers(0, table.count, rng.integers(1, 2 * table.count + 1))
        expected = max_min(whole[some], table.bandwidth_bytes_per_s)
        found = max_min(kept[some], table.capacity_bytes_per_s)
        assert found == pytest.approx(expected, rel=1e-9)


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1))
def test_links_left_out_never_limit_on_random_graphs(seed: int):
    graph = sprayed(random_graph(seed))
    pairs = joined(graph, seed)
    if pairs:
        check_limits(between(graph, pairs), seed)


@pytest.mark.parametrize("over", ["1", "2.5"])
@pytest.mark.parametrize("spines", [2, 3])
@pytest.mark.parametrize("via", [None, "network"])
def test_links_left_out_never_limit_on_rails(over: str, spines: int, via: str | None):
    graph = rails(f"build.spines={spines}", f"build.oversubscription={over}")
    table = between(graph, list(permutations(gpus(graph), 2)), via)
    assert table.bind_weight is None
    check_limits(table, spines)


@pytest.mark.parametrize("name", ["h100x16-rail", "h800x32-rail", "k8s-2node", "gb200-nvl72"])
def test_symmetrical_fabrics_need_no_weights(name: str):
    graph = sprayed(build_graph(load_topology(name)))
    assert between(graph, list(permutations(gpus(graph), 2))).bind_weight is None
