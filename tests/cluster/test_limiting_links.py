"""Links that can never be full are left out of the solver's routes; that is exact."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from cluster.test_paths import between, random_graph
from engine.harness import Send, finish_times
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster.graph import build_graph, gpus, memory_of_host
from simulator.cluster.routes import Limits, RouteTable, route_table, unreachable
from simulator.spec.load import load_topology

CLUSTERS = ["nvswitch16", "a100x2", "a6000x10", "h100x16-rail"]


def routes(name: str) -> RouteTable:
    graph = build_graph(load_topology(name))
    names = gpus(graph)
    pairs = [(a, b) for a in names for b in names if a != b]
    pairs += [(memory, g) for g in names if (memory := memory_of_host(graph, g))]
    return route_table(graph, pairs)


TABLES = {name: routes(name) for name in CLUSTERS}


def with_every_link(table: RouteTable) -> RouteTable:
    whole = replace(table)
    # What a cached property holds once it is known.
    whole.__dict__["_limits"] = Limits(table.ptr, table.crossed, None, table.bandwidth_bytes_per_s)
    return whole


def kept_of(table: RouteTable) -> set[int]:
    return set(table.bind_link.tolist())


@pytest.mark.parametrize("name", CLUSTERS)
def test_what_is_kept_are_links_of_the_route(name: str):
    table = TABLES[name]
    for route, links in enumerate(table.all_links):
        kept = table.bind_link[table.bind_ptr[route] : table.bind_ptr[route + 1]].tolist()
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


# --- the compiled choice against a plain one ----------------------------------------------


def limiting(table: RouteTable) -> set[int]:
    """A link is left out if all its routes go on to (or come from) links that together carry no
    more; one that is left out has those that vouch for it in its place, and none vouches for
    itself.
    """
    rates = table.bandwidth_bytes_per_s
    after: list[set[int]] = [set() for _ in rates]
    before: list[set[int]] = [set() for _ in rates]
    for route in table.all_links:
        for one, other in zip([-1, *route], [*route, -1], strict=True):
            if one >= 0:
                after[one].add(int(other))
            if other >= 0:
                before[other].add(int(one))
    vouchers: dict[int, set[int]] = {}

    def resolved(links: set[int]) -> set[int]:
        found: set[int] = set()
        for link in links:
            found |= resolved(vouchers[link]) if link in vouchers else {link}
        return found

    for link in range(rates.size):
        sets = [resolved(others) for others in (after[link], before[link])]
        sets = [found for found in sets if found.isdisjoint((-1, link))]
        if sets:
            least = min(sets, key=lambda found: float(rates[sorted(found)].sum()))
            if rates[sorted(least)].sum() <= rates[link]:
                vouchers[link] = least
    used = {int(link) for route in table.all_links for link in route}
    return used - set(vouchers)


@pytest.mark.parametrize(
    "name", [*CLUSTERS, "h100x32-rail", "h800x32-rail", "a6000x10-pcie", "gb200-nvl72", "k8s-2node"]
)
def test_the_same_links_are_kept_on_shipped_topologies(name: str):
    table = routes(name)
    assert kept_of(table) == limiting(table)


@settings(max_examples=100)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_same_links_are_kept_on_random_graphs(seed: int):
    """Whole rates, so that sums of them are exact."""
    graph = random_graph(seed)
    pairs = list(permutations(graph, 2))
    apart = set(unreachable(graph, pairs))
    pairs = [pair for pair in pairs if pair not in apart]
    table = between(graph, pairs)
    assert kept_of(table) == limiting(table)
