"""`changes` of a topology: what they do to the links, and what is refused."""

from __future__ import annotations

import re

import pytest

from simulator.cluster.graph import build_graph
from simulator.errors import InputError
from simulator.spec.load import load_topology


def links(*changes: str):
    """(source, target) -> (bandwidth, latency) of h100x32-rail with two spines and changes."""
    overrides = ["build.spines=2", *(f"changes.{text}" for text in changes)]
    graph = build_graph(load_topology("h100x32-rail", overrides))
    return {
        (a, b): (data["bandwidth_bytes_per_s"], data["latency_s"], data["kind"])
        for a, b, data in graph.edges(data=True)
    }


WHOLE = links()


def test_a_kind_of_link_takes_factors():
    changed = links("network.bandwidth=0.5", "network.latency=3")
    assert list(changed) == list(WHOLE)
    for link, (rate, latency, kind) in WHOLE.items():
        times = (0.5, 3.0) if kind == "network" else (1.0, 1.0)
        assert changed[link] == (rate * times[0], latency * times[1], kind)


@pytest.mark.parametrize(
    ("change", "gone"),
    [
        ("spine0", {link for link in WHOLE if "spine0" in link}),
        ("nic3", {link for link in WHOLE if "nic3" in link}),
        ("leaf0 -> spine1", {("leaf0", "spine1")}),
        ("leaf0 <-> spine1", {("leaf0", "spine1"), ("spine1", "leaf0")}),
    ],
)
def test_what_is_removed_is_gone_and_the_rest_as_it_was(change, gone):
    assert len(gone) in (1, 2, 4, 16)
    changed = links(f"{change}.removed=true")
    assert changed == {link: of for link, of in WHOLE.items() if link not in gone}


def test_changes_come_one_after_the_other():
    changed = links("network.bandwidth=0.5", "nic0.bandwidth=0.5")
    assert changed["nic0", "leaf0"][0] == WHOLE["nic0", "leaf0"][0] / 4
    assert changed["nic1", "leaf1"][0] == WHOLE["nic1", "leaf1"][0] / 2


def test_half_the_network_is_a_nic_of_half_the_speed():
    """The same cluster said in two ways: the step takes the same time."""
    from simulator.api import simulate

    small = ["model.layers=2", "traffic.steps=1", "traffic.warmup_steps=0", "prefetch=none"]
    small += ["expert_slots=null", "overlap=none", "traffic.tokens_per_gpu=64"]

    def step(change: str) -> float:
        found = simulate(
            "h100x16-rail", "moe128", overrides=[*small, change], routing="zipf:0.5", trace_steps=0
        )
        return found.summary["step_time_s"]["mean"]

    slow = step("changes.network.bandwidth=0.5")
    assert slow == pytest.approx(step("build.nic.bandwidth=200 Gb/s"), rel=1e-9)
    assert slow > 1.05 * step("build.nic.bandwidth=400 Gb/s")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("spin0.removed=true", "changes.spin0: nothing is named 'spin0' (did you mean 'spine0'?)"),
        (
            "leaf0 -> spine9.removed=true",
            "changes.leaf0 -> spine9: nothing is named 'spine9' (did you",
        ),
        (
            "leaf0 -> leaf1.removed=true",
            "changes.leaf0 -> leaf1: no link leaf0 -> leaf1; there are leaf0 -> nic0",
        ),
        ("socket.bandwidth=2", "no link is of that kind; there are membus, network, nvlink, pcie"),
        ("gpu3.removed=true", "changes: gpu3 has no link left; build fewer GPUs instead"),
        ("network.bandwith=2", "unknown key 'bandwith' (did you mean 'bandwidth'?)"),
        ("network.bandwidth=0", "changes.network.bandwidth: must be > 0, not 0"),
        ("network={removed: true, latency: 2}", "removed: goes without bandwidth and latency"),
    ],
)
def test_what_the_graph_does_not_have_is_refused(change, line):
    with pytest.raises(InputError, match=re.escape(line)):
        links(change)
