"""Steps of one micro-batch: the compiled closed form against a plain one and the exact network."""

from __future__ import annotations

import numpy as np
import pytest
from serving.closed_form import ClosedForm
from serving.steps import SYSTEMS, decoding, served

from simulator.engine.serving.exact import Engine

MORE = {
    "pairs of GPUs share links": ("a6000x10-pcie", "moe128", "expert_slots=null", "prefetch=none"),
    "mesh": ("mi300x8", "moe128", "expert_slots=null", "prefetch=none"),
    "leaf to spine": (
        "h100x32-rail", "moe128", "expert_slots=null", "prefetch=none", "parallel.ep=32",
        "transport=nccl",
    ),
}  # fmt: skip
# How far the closed form may be from the exact network in the steps below, as documented.
FAR = {"low-latency": 0.02, "pairs of GPUs share links": 0.025, "leaf to spine": 0.035}


def mixed(system: tuple[str, ...], seed: int):
    """A group with prompts and decodes of unequal lengths, nothing on rank 1."""
    topology, workload, *given = system
    rng = np.random.default_rng(seed)
    prompt, output = rng.integers(1, 700, 96), rng.integers(2, 9, 96)
    inputs, cluster = served(topology, workload, prompt, output, *given, "overlap=none", tokens=192)
    last = len(cluster.service.groups) - 1
    group = cluster.service.groups[last]
    for request in range(96):
        group.enqueue(request, int(rng.choice(np.delete(np.arange(group.of.ranks), 1))))
    return inputs, cluster, group, last


@pytest.mark.parametrize("system", SYSTEMS | MORE)
def test_it_is_the_plain_closed_form_and_near_the_exact_network(system):
    inputs, cluster, group, number = mixed((SYSTEMS | MORE)[system], 11)
    exact, now = Engine(inputs, cluster, number, "exact"), 0.0
    for _ in range(6):
        end = group.start(now)
        plain = ClosedForm(group, exact).seconds()
        assert end - now == pytest.approx(plain, rel=1e-9)
        assert end - now == pytest.approx(exact.seconds(group), rel=FAR.get(system, 0.01))
        group.finish()
        now = end


@pytest.mark.parametrize("system", ["gqa", "mesh", "low-latency", "two tiers"])
def test_equal_ranks_make_it_exact_or_nearly(system):
    """Where all ranks are alike the closed form differs by the unequal routing alone."""
    topology, workload, *given = (SYSTEMS | MORE)[system]
    many = np.full(2048, 1024)
    inputs, cluster = served(topology, workload, many, many, *given, "overlap=none")
    decoding(cluster, 0, 64, 1024)
    group = cluster.service.groups[0]
    seconds = group.start(0.0)
    assert seconds == pytest.approx(Engine(inputs, cluster, 0, "exact").seconds(group), rel=5e-3)
