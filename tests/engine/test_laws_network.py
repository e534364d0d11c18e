"""What holds of every network: the max-min certificate, bytes, scaling, order, pruning of links."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from engine.harness import Send, both_ways, finish_times, graph_of, lay_sends, routes_of
from engine.test_exact_network import NETWORKS, random_sends
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster.routes import Limits, RouteTable
from simulator.engine import core
from simulator.engine.driver import Driver

networks = st.sampled_from(sorted(NETWORKS))
seeds = st.integers(0, 2**32 - 1)


def flows_on_the_wire(driver: Driver) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Routes, rates (B/s) and bytes left (at the present of the clock) of the flows now active."""
    net = driver.net
    used = net.used[: net.counts[core.N_USED]]
    ranges = net.link_i[used][:, [core.L_FIRST, core.L_END]].tolist()
    active = np.unique(
        np.concatenate([np.zeros(0, int), *(net.line[a:b] for a, b in ranges)])
        >> net.counts[core.SHIFT]
    )
    rates = net.flow_f[active, core.RATE]
    left = net.flow_f[active, core.BYTES] - rates * (
        driver.env.now - net.flow_f[active, core.SINCE]
    )
    return net.flow_i[active, core.F_ROUTE].tolist(), rates, left


def check_certificate(routes: RouteTable, on_route: list[int], rates: np.ndarray) -> None:
    """No link above its capacity; every flow has a full link on which none is faster."""
    users: list[list[int]] = [[] for _ in routes.links]
    for flow, route in enumerate(on_route):
        for link in routes.all_links[route]:
            users[link].append(flow)
    load = np.array([rates[flows].sum() for flows in users])
    capacity = routes.bandwidth_bytes_per_s
    assert (load <= capacity * (1 + 1e-9)).all(), "a link carries more than it can"
    for flow, route in enumerate(on_route):
        assert rates[flow] > 0
        assert any(
            load[link] >= capacity[link] * (1 - 1e-9)
            and rates[flow] >= rates[users[link]].max() * (1 - 1e-9)
            for link in routes.all_links[route]
        ), f"flow {flow} could have more without taking it from a slower one"


@settings(max_examples=100)
@given(
    network=networks,
    seed=seeds,
    latency=st.sampled_from([0.0, 1e-3]),
    instants=st.lists(st.floats(1e-5, 2e-2), min_size=1, max_size=8),
)
def test_rates_are_max_min_fair_at_every_instant(
    network: str, seed: int, latency: float, instants: list[float]
):
    rng = np.random.default_rng(seed)
    graph = NETWORKS[network](rng, latency)
    sends = random_sends(rng, equal=False)
    routes = routes_of(graph, sends)
    driver = lay_sends(routes, sends)
    for instant in sorted(set(instants)):
        driver.env.run(until=instant)
        on_route, rates, left = flows_on_the_wire(driver)
        check_certificate(routes, on_route, rates)
        assert (left > -1e-6).all()


@settings(max_examples=100)
@given(network=networks, seed=seeds)
def test_every_byte_arrives_once(network: str, seed: int):
    """What the rates move between samples, and what is left, is what was sent."""
    rng = np.random.default_rng(seed)
    graph = NETWORKS[network](rng, 0.0)
    sends = [(a, b, size, 0.0) for a, b, size, _ in random_sends(rng, equal=False)]
    routes = routes_of(graph, sends)
    ends = sorted(set(finish_times(routes, sends).tolist()))
    driver = lay_sends(routes, sends)
    moved, before = 0.0, 0.0
    for end in ends:  # rates change only where a transfer ends
        driver.env.run(until=(before + end) / 2)
        moved += flows_on_the_wire(driver)[1].sum() * (end - before)
        before = end
    assert moved == pytest.approx(sum(send[2] for send in sends), rel=1e-9)


@settings(max_examples=100)
@given(
    network=networks,
    seed=seeds,
    k=st.sampled_from([0.125, 3.0, 1024.0, 1e6]),
)
def test_k_times_the_bandwidth_and_one_kth_of_the_latency_is_k_times_as_fast(
    network: str, seed: int, k: float
):
    rng = np.random.default_rng(seed)
    graph = NETWORKS[network](rng, 2e-4)
    sends = random_sends(rng, equal=False)
    routes = routes_of(graph, sends)
    faster = replace(
        routes,
        bandwidth_bytes_per_s=routes.bandwidth_bytes_per_s * k,
        latency_s=routes.latency_s / k,
    )
    sooner = [(a, b, size, start / k) for a, b, size, start in sends]
    assert finish_times(faster, sooner) * k == pytest.approx(finish_times(routes, sends), rel=1e-9)


@settings(max_examples=100)
@given(network=networks, seed=seeds)
def test_the_order_in_which_transfers_are_named_does_not_matter(network: str, seed: int):
    rng = np.random.default_rng(seed)
    graph = NETWORKS[network](rng, 1e-4)
    sends = random_sends(rng, equal=False)
    routes = routes_of(graph, sends)
    order = rng.permutation(len(sends))
    mixed = finish_times(routes, [sends[i] for i in order])
    assert mixed == pytest.approx(finish_times(routes, sends)[order], rel=1e-9)


@settings(max_examples=100)
@given(network=networks, seed=seeds)
def test_twice_the_same_is_the_same_to_the_last_bit(network: str, seed: int):
    def once() -> bytes:
        rng = np.random.default_rng(seed)
        graph = NETWORKS[network](rng, 1e-4)
        sends = random_sends(rng, equal=False)
        return finish_times(routes_of(graph, sends), sends).tobytes()

    assert once() == once()


@settings(max_examples=100)
@given(network=networks, seed=seeds, equal=st.booleans())
def test_no_link_has_carried_its_bytes_sooner_than_it_can(network: str, seed: int, equal: bool):
    """The cut bound, link by link."""
    rng = np.random.default_rng(seed)
    graph = NETWORKS[network](rng, 0.0)
    sends = [(a, b, size, 0.0) for a, b, size, _ in random_sends(rng, equal)]
    routes = routes_of(graph, sends)
    finish = finish_times(routes, sends)
    crossing: list[list[int]] = [[] for _ in routes.links]
    for flow, (a, b, _, _) in enumerate(sends):
        for link in routes.all_links[routes.index[a, b]]:
            crossing[link].append(flow)
    sizes = np.array([send[2] for send in sends])
    for link, flows in enumerate(crossing):
        bound = sizes[flows].sum() / routes.bandwidth_bytes_per_s[link]
        assert finish[flows].max() >= bound * (1 - 1e-9)


# --- links that can never be full are left out of the solver's routes ---------------------


def with_every_link(routes: RouteTable) -> RouteTable:
    whole = replace(routes)
    # What a cached property holds once it is known.
    every = Limits(routes.ptr, routes.crossed, None, routes.bandwidth_bytes_per_s)
    whole.__dict__["_limits"] = every
    return whole


def narrow_and_wide(rng: np.random.Generator) -> list[tuple[str, str, float, float]]:
    """A tree in which many links can never be full: GPUs behind wide or narrow switches."""
    links = []
    for group in range(4):
        up = float(rng.choice([1e9, 2e9, 4e9, 8e9]))
        links += both_ways(f"s{group}", "top", up, 0.0)
        for gpu in (2 * group, 2 * group + 1):
            links += both_ways(f"gpu{gpu}", f"s{group}", float(rng.choice([1e9, 2e9, 4e9])), 0.0)
    return links


@settings(max_examples=100)
@given(seed=seeds, equal=st.booleans())
def test_links_left_out_as_never_full_change_nothing(seed: int, equal: bool):
    rng = np.random.default_rng(seed)
    sends: list[Send] = random_sends(rng, equal)
    routes = routes_of(graph_of(narrow_and_wide(rng)), sends)
    whole = with_every_link(routes)
    assert finish_times(routes, sends) == pytest.approx(finish_times(whole, sends), rel=1e-9)


def test_links_are_left_out_at_all():
    """Where every GPU sends to every other through a wide root, its links are not all needed."""
    links = both_ways("s0", "top", 1e12, 0.0) + both_ways("s1", "top", 1e12, 0.0)
    for gpu in range(4):
        links += both_ways(f"gpu{gpu}", f"s{gpu // 2}", 1e9, 0.0)
    names = [f"gpu{g}" for g in range(4)]
    routes = routes_of(graph_of(links), [(a, b, 0.0, 0.0) for a in names for b in names if a != b])
    route = routes.index["gpu0", "gpu3"]
    bound = routes.bind_link[routes.bind_ptr[route] : routes.bind_ptr[route + 1]]
    kept = [routes.links[link] for link in bound]
    assert {("gpu0", "s0"), ("s1", "gpu3")} <= set(kept)
    assert len(kept) < 4


def test_more_operations_and_transfers_than_there_was_room_for():
    """Fetches added while the core runs, more than its tables held at first."""
    count = 700
    sends = [("gpu0", "gpu1", 1e6, 0.0)]
    links = [("gpu0", "a", 1e9, 0.0), ("a", "gpu1", 1e9, 0.0)]
    routes = routes_of(graph_of(links), sends)
    driver = lay_sends(routes, sends)
    driver.env.run(until=0.5e-3)
    ops = driver.ids(count)
    assert len(set(ops)) == count
    edges = [op for pair in pairwise(ops) for op in pair]
    whole = [number for op in ops for number in (op, core.FETCH, -1, 0)]
    driver.add(whole, [1e3] * count, edges)
    driver.env.run()
    ends = driver.net.op_f[ops, core.END]
    # One after another, each at half of the link until the first transfer has ended.
    assert driver.net.op_f[0, core.END] == pytest.approx(0.5e-3 + 2 * 0.5e-3, rel=1e-9)
    wanted = 0.5e-3 + np.where(
        np.arange(1, count + 1) <= 500,
        np.arange(1, count + 1) * 2e-6,
        1e-3 + (np.arange(1, count + 1) - 500) * 1e-6,
    )
    assert ends == pytest.approx(wanted, rel=1e-9)
