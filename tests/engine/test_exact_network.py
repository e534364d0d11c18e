"""The network alone against closed forms and a brute-force fluid simulation, to 1e-9."""

from __future__ import annotations

import closed_forms
import networkx as nx
import numpy as np
import pytest
import simpy
from engine.harness import (
    Link,
    Send,
    both_ways,
    finish_times,
    graph_of,
    reference_times,
    routes_of,
    star,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.engine import core
from simulator.engine.driver import Driver
from simulator.engine.links import Wires, wires_of
from simulator.engine.transfers import laid

REL = 1e-9


def times(graph: nx.DiGraph, sends: list[Send]) -> np.ndarray:
    return finish_times(routes_of(graph, sends), sends)


def test_a_lone_transfer_takes_its_latency_and_its_bytes_over_the_bandwidth():
    found = times(star(2, 450e9, 468e-9), [("gpu0", "gpu1", 3e6, 0.25)])
    wanted = 0.25 + closed_forms.lone_transfer(3e6, 450e9, 2 * 468e-9)
    assert found == pytest.approx([wanted], rel=REL)


def test_a_lone_transfer_is_as_fast_as_its_slowest_link():
    links = [("gpu0", "a", 7e9, 1e-6), ("a", "b", 3e9, 2e-6), ("b", "gpu1", 5e9, 4e-6)]
    found = times(graph_of(links), [("gpu0", "gpu1", 1e7, 0.0)])
    assert found == pytest.approx([closed_forms.lone_transfer(1e7, 3e9, 7e-6)], rel=REL)


@pytest.mark.parametrize("count", [2, 3, 7, 100])
def test_equal_transfers_on_one_link_end_together(count: int):
    sends = [(f"gpu{i}", "gpu999", 1e6, 0.0) for i in range(count)]
    links = [(f"gpu{i}", "a", 1e9, 0.0) for i in range(count)] + [("a", "gpu999", 1e9, 3e-6)]
    wanted = closed_forms.equal_transfers(count, 1e6, 1e9, 3e-6)
    assert times(graph_of(links), sends) == pytest.approx([wanted] * count, rel=REL)


@pytest.mark.parametrize("capacities", [[1e9] * 4, [4e9, 1e9, 3e9], [2e9, 5e9, 2e9, 9e9, 7e9]])
def test_parking_lot(capacities: list[float]):
    """One flow over all links in a row, and one of its own on each."""
    links: list[Link] = []
    for i, capacity in enumerate(capacities):
        links.append((f"s{i}", f"s{i + 1}", capacity, 0.0))
        links += [(f"gpu{i}a", f"s{i}", 1e15, 0.0), (f"s{i + 1}", f"gpu{i}b", 1e15, 0.0)]
    links += [("gpuA", "s0", 1e15, 0.0), (f"s{len(capacities)}", "gpuB", 1e15, 0.0)]
    short = [1e7 * (1 + i) * capacity / 1e9 for i, capacity in enumerate(capacities)]
    sends: list[Send] = [("gpuA", "gpuB", 1e6, 0.0)]
    sends += [(f"gpu{i}a", f"gpu{i}b", size, 0.0) for i, size in enumerate(short)]
    first, others = closed_forms.parking_lot(capacities, 1e6, short)
    assert times(graph_of(links), sends) == pytest.approx([first, *others], rel=REL)


def test_transfers_that_begin_at_different_times_share_while_they_overlap():
    """By hand, on 1 GB/s: 3 MB from 0, 2 MB from 1 ms, 1 MB from 2 ms.

    Left at 1 ms: 2; halves until 2 ms: 1.5, 1.5; thirds for 3 ms, when the third has had its 1;
    then 0.5 and 0.5 at halves, for 1 ms.
    """
    links = [(f"gpu{i}", "a", 1e12, 0.0) for i in range(3)] + [("a", "gpu9", 1e9, 0.0)]
    sends = [("gpu0", "gpu9", 3e6, 0.0), ("gpu1", "gpu9", 2e6, 1e-3), ("gpu2", "gpu9", 1e6, 2e-3)]
    assert times(graph_of(links), sends) == pytest.approx([6e-3, 6e-3, 5e-3], rel=REL)


def test_the_latency_is_waited_before_the_link_is_shared():
    """A transfer with a long way does not slow others while it is under way to the link."""
    links = [("gpu0", "a", 1e12, 5e-3), ("gpu1", "a", 1e12, 0.0), ("a", "gpu9", 1e9, 0.0)]
    found = times(graph_of(links), [("gpu0", "gpu9", 1e6, 0.0), ("gpu1", "gpu9", 5e6, 0.0)])
    assert found == pytest.approx([6e-3, 5e-3], rel=REL)


def test_directions_of_a_link_do_not_share():
    found = times(star(2, 1e9, 0.0), [("gpu0", "gpu1", 1e6, 0.0), ("gpu1", "gpu0", 2e6, 0.0)])
    assert found == pytest.approx([1e-3, 2e-3], rel=REL)


def test_a_rate_rises_when_another_transfer_ends_only_where_no_link_is_full():
    """The transfer gpu1 -> gpu2 (1 MB) ends after 2 ms at half of 1 GB/s, as all begin.

    The one that shared the way into gpu2 and has its own way out then has 1 GB/s for the 2 MB that
    are left; so has the one that shared the way out of gpu1. Those two that share the way out of
    gpu3 do not change.
    """
    sends = [
        ("gpu1", "gpu2", 1e6, 0.0),
        ("gpu0", "gpu2", 3e6, 0.0),
        ("gpu1", "gpu4", 3e6, 0.0),
        ("gpu3", "gpu5", 3e6, 0.0),
        ("gpu3", "gpu6", 3e6, 0.0),
    ]
    wanted = [2e-3, 4e-3, 4e-3, 6e-3, 6e-3]
    assert times(star(7, 1e9, 0.0), sends) == pytest.approx(wanted, rel=REL)


@pytest.mark.parametrize("gpus", [2, 3, 8, 16])
def test_equal_all_to_all_as_sends(gpus: int):
    """Send operations: each ends, and each receiver is let go, after alpha + (n - 1) m / B."""
    graph = star(gpus, 450e9, 468e-9)
    names = [f"gpu{g}" for g in range(gpus)]
    pairs = [(a, b, 0.0, 0.0) for a in names for b in names if a != b]
    routes = routes_of(graph, pairs)
    # Operations: the sends of each GPU, then a point for each GPU where its transfers arrive.
    no_edges = np.zeros((0, 2), dtype=np.int32)
    driver = Driver(simpy.Environment(0.0), wires_of(routes), gpus, 2 * gpus, no_edges)
    op_f = np.full((2 * gpus, 5), -1.0)
    op_f[:, core.DURATION : core.DELAY + 1] = 0.0
    op_f[:gpus, core.DELAY] = 7e-6
    op_i = np.zeros((2 * gpus, 9), dtype=np.int32)
    op_i[:, core.STREAM] = [*range(gpus), *[-1] * gpus]
    op_i[:, core.WAITS] = [1] * gpus + [gpus - 1] * gpus
    op_i[:gpus, core.KIND] = core.SEND
    op_i[:gpus, core.ROW] = range(gpus)
    op_i[:gpus, core.RECEIVER] = gpus
    op_i[:gpus, core.CAUSE] = range(gpus)
    targets = [(b, routes.index[f"gpu{a}", f"gpu{b}"])
               for a in range(gpus) for b in range(gpus) if a != b]  # fmt: skip
    ptr = np.arange(gpus + 1, dtype=np.int32) * (gpus - 1)
    driver.lay(op_f, op_i, ptr, np.array(targets, dtype=np.int32), np.full(len(targets), 2e6))
    driver.start(np.arange(gpus, dtype=np.int32))
    driver.env.run()
    wanted = closed_forms.all_to_all(gpus, 2e6, 450e9, 7e-6 + 2 * 468e-9)
    ends = driver.net.op_f[: 2 * gpus, core.END]
    assert ends == pytest.approx([wanted] * 2 * gpus, rel=REL)
    assert driver.net.op_f[:gpus, core.START] == pytest.approx([7e-6] * gpus, rel=REL)
    assert driver.statistics()["solves"] <= 2, "what happens at one instant is one solve"


# --- random networks ---------------------------------------------------------------------


def mesh(rng: np.random.Generator, latency: float) -> nx.DiGraph:
    """Four switches, every two joined, two GPUs on each."""
    links: list[Link] = []
    for a in range(4):
        for b in range(a):
            links += both_ways(f"s{a}", f"s{b}", float(rng.uniform(1e9, 4e9)), latency)
        for gpu in (2 * a, 2 * a + 1):
            links += both_ways(f"gpu{gpu}", f"s{a}", float(rng.uniform(1e9, 4e9)), latency)
    return graph_of(links)


def ring(rng: np.random.Generator, latency: float) -> nx.DiGraph:
    """Eight switches in a ring, a GPU on each."""
    links: list[Link] = []
    for a in range(8):
        links += both_ways(f"s{a}", f"s{(a + 1) % 8}", float(rng.uniform(1e9, 4e9)), latency)
        links += both_ways(f"gpu{a}", f"s{a}", float(rng.uniform(2e9, 8e9)), latency)
    return graph_of(links)


def unequal_star(rng: np.random.Generator, latency: float) -> nx.DiGraph:
    """Every GPU's link of its own bandwidth, in and out."""
    links: list[Link] = []
    for gpu in range(8):
        links.append((f"gpu{gpu}", "s", float(rng.uniform(1e9, 9e9)), latency))
        links.append(("s", f"gpu{gpu}", float(rng.uniform(1e9, 9e9)), latency))
    return graph_of(links)


def two_tier(rng: np.random.Generator, latency: float) -> nx.DiGraph:
    """Two spines over four leaves with two GPUs each; uplinks carry less than the leaf's GPUs."""
    links: list[Link] = []
    for leaf in range(4):
        for spine in range(2):
            links += both_ways(
                f"leaf{leaf}", f"spine{spine}", float(rng.uniform(1e9, 2e9)), latency
            )
        for gpu in (2 * leaf, 2 * leaf + 1):
            links += both_ways(f"gpu{gpu}", f"leaf{leaf}", 2e9, latency * (1 + gpu))
    return graph_of(links)


NETWORKS = {"star": unequal_star, "two-tier": two_tier, "mesh": mesh, "ring": ring}


def random_sends(rng: np.random.Generator, equal: bool) -> list[Send]:
    """1 to 60 transfers between 8 GPUs; if not `equal`, half of them begin at 0 and half later."""
    sends: list[Send] = []
    for _ in range(rng.integers(1, 61)):
        a, b = rng.choice(8, 2, replace=False)
        size = 1e6 if equal else float(10 ** rng.uniform(3, 7))
        start = 0.0 if equal else float(rng.uniform(0, 5e-3) * rng.integers(0, 2))
        sends.append((f"gpu{a}", f"gpu{b}", size, start))
    return sends


@pytest.mark.parametrize("network", sorted(NETWORKS))
@settings(max_examples=150)
@given(
    seed=st.integers(0, 2**32 - 1),
    equal=st.booleans(),
    latency=st.sampled_from([0.0, 1e-6, 3e-3]),
)
def test_finish_times_are_those_of_a_brute_force_simulation(
    network: str, seed: int, equal: bool, latency: float
):
    rng = np.random.default_rng(seed)
    graph = NETWORKS[network](rng, latency)
    sends = random_sends(rng, equal)
    routes = routes_of(graph, sends)
    assert finish_times(routes, sends) == pytest.approx(reference_times(routes, sends), rel=REL)


@settings(max_examples=150)
@given(
    seed=st.integers(0, 2**32 - 1),
    longest=st.integers(1, 7),
    alike=st.booleans(),
    equal=st.booleans(),
)
def test_any_sets_of_links_are_those_of_a_brute_force_simulation(
    seed: int, longest: int, alike: bool, equal: bool
):
    """Routes of 1 to `longest` links, with links and sizes `alike` or not, many begun together."""
    rng = np.random.default_rng(seed)
    links, count = int(rng.integers(longest, 13)), int(rng.integers(1, 41))
    capacity = np.full(links, 1e9) if alike else 10 ** rng.uniform(8, 10, links)
    uses = [rng.permutation(links)[:n] for n in rng.integers(1, longest + 1, count)]
    sizes = np.full(count, 1e6) if equal else 10 ** rng.uniform(3, 7, count)
    starts = rng.integers(0, 4, count) * 1e-3
    wires = Wires(
        capacity,
        np.cumsum([0, *map(len, uses)]),
        np.concatenate(uses).astype(np.int32),
        None,
        np.zeros(count),
    )
    buffers = laid(wires, np.arange(count, dtype=np.int32), sizes, starts)
    core.advance(*buffers, np.inf)
    flows = [
        closed_forms.Flow(tuple(use.tolist()), size, start)
        for use, size, start in zip(uses, sizes.tolist(), starts.tolist(), strict=True)
    ]
    wanted = closed_forms.fluid(dict(enumerate(capacity.tolist())), flows)
    assert core.views(*buffers).op_f[:, core.END] == pytest.approx(wanted, rel=REL)


def test_very_unequal_sizes_and_bandwidths():
    """Fifteen orders of magnitude in one network."""
    rng = np.random.default_rng(5)
    links: list[Link] = []
    for gpu in range(8):
        links += both_ways(f"gpu{gpu}", "s", float(10 ** rng.uniform(3, 18)), 1e-7)
    sends = [
        (f"gpu{a}", f"gpu{b}", float(10 ** rng.uniform(0, 15)), 0.0)
        for a in range(8)
        for b in range(8)
        if a != b
    ]
    routes = routes_of(graph_of(links), sends)
    assert finish_times(routes, sends) == pytest.approx(reference_times(routes, sends), rel=REL)
