"""Links that can never be full are left out of the solver's routes; that is exact."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from engine.harness import Send, finish_times
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster.graph import build_graph, gpus, memory_of_host
from simulator.cluster.routes import MAX_HOPS, RouteTable, route_table
from simulator.spec.load import load_topology

CLUSTERS = ["nvswitch16", "a100x2", "a6000x10", "h100x16-rail"]
EFFICIENCY = {"nvlink": 0.7, "pcie": 0.8, "network": 0.9}


def routes(name: str) -> RouteTable:
    graph = build_graph(load_topology(name))
    names = gpus(graph)
    pairs = [(a, b) for a in names for b in names if a != b]
    pairs += [(memory, g) for g in names if (memory := memory_of_host(graph, g))]
    return route_table(graph, pairs, EFFICIENCY)


TABLES = {name: routes(name) for name in CLUSTERS}


def with_every_link(table: RouteTable) -> RouteTable:
    binding = np.zeros_like(table.binding)
    for route, links in enumerate(table.all_links):
        assert links.size <= MAX_HOPS
        binding[route, 0] = links.size
        binding[route, 1 : 1 + links.size] = links
    return replace(table, binding=binding)


@pytest.mark.parametrize("name", CLUSTERS)
def test_what_is_kept_are_links_of_the_route(name: str):
    table = TABLES[name]
    for row, links in zip(table.binding, table.all_links, strict=True):
        kept = row[1 : 1 + row[0]].tolist()
        assert 1 <= len(kept) <= links.size
        assert kept == [link for link in links.tolist() if link in kept]


@pytest.mark.parametrize("name", CLUSTERS)
@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), equal=st.booleans())
def test_random_traffic_takes_the_same_time_with_and_without_them(
    name: str, seed: int, equal: bool
):
    rng = np.random.default_rng(seed)
    table = TABLES[name]
    pairs = list(table.index)
    sends: list[Send] = [
        (
            *pairs[pick],
            1e6 if equal else float(10 ** rng.uniform(3, 8)),
            0.0 if equal else float(rng.uniform(0, 1e-3)),
        )
        for pick in rng.integers(0, len(pairs), rng.integers(1, 80))
    ]
    found, whole = finish_times(table, sends), finish_times(with_every_link(table), sends)
    assert found == pytest.approx(whole, rel=1e-9)
