"""Weighted flows against brute force; epsilon and coflow against the exact network and the page."""

from __future__ import annotations

from pathlib import Path

import closed_forms
import numpy as np
import pytest
from engine import approximations
from engine.harness import graph_of, routes_of, star
from engine.test_exact_network import NETWORKS, random_sends
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.api import simulate
from simulator.engine import core
from simulator.engine.links import Wires, network_of, wires_of
from simulator.engine.transfers import coflow_times, finish_times, laid, transfers

REL = 1e-9
PAGE = Path(__file__).parents[2] / "docs" / "transfers.md"
seeds = st.integers(0, 2**32 - 1)


def run(wires: Wires, route: np.ndarray, sizes: np.ndarray, starts: np.ndarray) -> np.ndarray:
    buffers = laid(wires, route, sizes, starts)
    core.advance(*buffers, np.inf)
    return core.views(*buffers).op_f[:, core.END]


@settings(max_examples=150)
@given(network=st.sampled_from(sorted(NETWORKS)), seed=seeds, equal=st.booleans())
def test_weights_of_one_are_no_weights(network: str, seed: int, equal: bool):
    rng = np.random.default_rng(seed)
    graph = NETWORKS[network](rng, 1e-4)
    sends = random_sends(rng, equal)
    routes = routes_of(graph, sends)
    route = np.array([routes.index[send[:2]] for send in sends], dtype=np.int32)
    sizes, starts = (np.array([send[i] for send in sends]) for i in (2, 3))
    plain = run(wires_of(routes), route, sizes, starts)
    assert run(wires_of(routes, weighted=True), route, sizes, starts) == pytest.approx(
        plain, rel=REL
    )


@settings(max_examples=150)
@given(seed=seeds)
def test_weighted_flows_are_those_of_a_brute_force_simulation(seed: int):
    """Random weights on random sets of links, all begun at once, and later ones."""
    rng = np.random.default_rng(seed)
    links, flows = int(rng.integers(1, 7)), int(rng.integers(1, 25))
    capacity = 10 ** rng.uniform(6, 9, links)
    uses = [
        {int(link): float(rng.choice([0.25, 0.5, 1.0, 7.0])) for link in rng.permutation(links)[:n]}
        for n in rng.integers(1, links + 1, flows)
    ]
    sizes = 10 ** rng.uniform(3, 7, flows)
    starts = rng.uniform(0, 5e-3, flows) * rng.integers(0, 2, flows)
    wires = Wires(
        capacity,
        np.cumsum([0, *map(len, uses)]),
        np.array([link for use in uses for link in use], dtype=np.int32),
        np.array([weight for use in uses for weight in use.values()]),
        np.zeros(flows),
    )
    found = run(wires, np.arange(flows, dtype=np.int32), sizes, starts)

    left, now = sizes.copy(), 0.0
    finish = np.full(flows, -1.0)
    while (finish < 0).any():
        active = [f for f in range(flows) if finish[f] < 0 and starts[f] <= now]
        rates = closed_forms.weighted_max_min_rates(
            dict(enumerate(capacity.tolist())), [uses[f] for f in active]
        )
        ends = [now + left[f] / rate for f, rate in zip(active, rates, strict=True)]
        following = starts[(finish < 0) & (starts > now)]
        instant = min([*ends, *following.tolist()])
        for f, rate, end in zip(active, rates, ends, strict=True):
            left[f] -= rate * (instant - now)
            if end <= instant * (1 + 1e-14):
                finish[f] = instant
        now = instant
    assert found == pytest.approx(finish, rel=REL)


@settings(max_examples=50)
@given(network=st.sampled_from(sorted(NETWORKS)), seed=seeds)
def test_a_lone_coflow_takes_as_long_as_its_slowest_link(network: str, seed: int):
    rng = np.random.default_rng(seed)
    graph = NETWORKS[network](rng, 0.0)
    sends = [(a, b, size, 0.0) for a, b, size, _ in random_sends(rng, equal=False)]
    routes = routes_of(graph, sends)
    route = np.array([routes.index[send[:2]] for send in sends], dtype=np.int32)
    sizes = np.array([send[2] for send in sends])
    carried = np.zeros(len(routes.links))
    for row, size in zip(route.tolist(), sizes.tolist(), strict=True):
        carried[routes.all_links[row]] += size
    slowest_s = (carried / routes.bandwidth_bytes_per_s).max()
    found = coflow_times(routes, route, sizes, np.zeros(len(sends)))
    assert found == pytest.approx(np.full(len(sends), slowest_s), rel=REL)
    assert slowest_s <= finish_times(routes, route, sizes, np.zeros(len(sends))).max() * (1 + REL)


def test_two_coflows_share_a_link_by_the_mean_rate_of_their_transfers():
    """Into gpu3 at 1 GB/s: the first collective has two transfers of 1 MB there, the second one.
    All have the same rate, a third of the link, until all end after 3 ms.
    """
    graph = star(4, 1e9, 0.0)
    sources, targets = ["gpu0", "gpu1", "gpu2"], ["gpu3"] * 3
    sizes, starts = np.full(3, 1e6), np.zeros(3)
    found = transfers(graph, sources, targets, sizes, starts, network_of("coflow"), ["a", "a", "b"])
    assert found.finish_s == pytest.approx([3e-3] * 3, rel=REL)
    # With 0.5 MB, the second moves half as much in all: at a third of the link it needs 1.5 ms;
    # then the first has the link and 1 MB to go.
    sizes[2] = 0.5e6
    found = transfers(graph, sources, targets, sizes, starts, network_of("coflow"), ["a", "a", "b"])
    assert found.finish_s == pytest.approx([2.5e-3, 2.5e-3, 1.5e-3], rel=REL)


def test_a_coflow_waits_the_longest_latency_and_its_own_start():
    graph = graph_of(
        [("gpu0", "gpu1", 1e9, 1e-3), ("gpu0", "gpu2", 1e9, 5e-3), ("gpu2", "gpu0", 1e9, 0.0)]
    )
    ends = (["gpu0", "gpu0", "gpu0"], ["gpu1", "gpu2", "gpu2"])
    sizes, starts = np.array([1e6, 1e6, 2e6]), np.array([0.0, 0.0, 0.1])
    found = transfers(graph, *ends, sizes, starts, network_of("coflow"))
    assert found.finish_s == pytest.approx([6e-3, 6e-3, 0.107], rel=REL)


@settings(max_examples=50)
@given(network=st.sampled_from(sorted(NETWORKS)), seed=seeds)
def test_epsilon_of_zero_is_exact_and_no_link_is_overdrawn_by_more_than_epsilon(
    network: str, seed: int
):
    """With epsilon 0 it is exact; with 0.05 the last arrival is at most that much too early."""
    rng = np.random.default_rng(seed)
    graph = NETWORKS[network](rng, 1e-5)
    sends = [(a, b, size, 0.0) for a, b, size, _ in random_sends(rng, equal=False)]
    routes = routes_of(graph, sends)
    route = np.array([routes.index[send[:2]] for send in sends], dtype=np.int32)
    sizes = np.array([send[2] for send in sends])
    exact = finish_times(routes, route, sizes, np.zeros(len(sends)))
    assert np.array_equal(exact, finish_times(routes, route, sizes, np.zeros(len(sends)), 0.0))
    near = finish_times(routes, route, sizes, np.zeros(len(sends)), 0.05)
    carried = np.zeros(len(routes.links))
    for row, size in zip(route.tolist(), sizes.tolist(), strict=True):
        carried[routes.all_links[row]] += size
    # Nothing moves faster than its links; a transfer lacks at most a twentieth of its time.
    slowest_s = (carried / routes.bandwidth_bytes_per_s).max()
    assert near.max() >= slowest_s / 1.05 * (1 - REL)


def test_the_page_states_the_errors_that_are_measured():
    text = PAGE.read_text(encoding="utf-8")
    assert "\n".join(approximations.table()) in text


@pytest.mark.parametrize(
    ("topology", "workload", "largest"),
    [
        ("nvswitch16", "moe128", 0.01),
        ("h800x16-rail", "deepseek-v3", 0.01),
        ("h800x32-rail", "deepseek-v3", 0.02),
    ],
)
def test_a_step_with_coflows_takes_as_long_as_the_page_says(
    topology: str, workload: str, largest: float
):
    seconds = [
        simulate(topology, workload, overrides=[f"network={name}", "traffic.steps=1"]).summary[
            "simulated_time_s"
        ]
        for name in ("exact", "coflow")
    ]
    assert seconds[1] == pytest.approx(seconds[0], rel=largest)
    assert seconds[1] != seconds[0]
