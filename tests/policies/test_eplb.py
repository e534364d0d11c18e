"""EPLB's answers: the example of its README, its own on DeepSeek-V3, a plain transcription."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from policies import plain_eplb

from simulator.errors import InputError
from simulator.policies.eplb import eplb
from simulator.policies.placement import (
    Placement,
    Target,
    contiguous,
    copies_of,
    even_nodes,
    gpu_loads,
    place,
)

RECORDED = Path(__file__).resolve().parents[3] / "shared" / "reference" / "routing" / "local_only"


def target(gpus: int, physical: int, nodes: int = 1, groups: int = 1) -> Target:
    return Target(gpus, physical, nodes, even_nodes(gpus, nodes), groups)


def test_the_example_of_its_readme():
    loads = np.array(
        [
            [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
            [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
        ],
        dtype=np.float64,
    )
    found = eplb(loads, target(8, 16, nodes=2, groups=4))
    assert found.expert_of.tolist() == [
        [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
        [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
    ]
    assert found.gpu_of.tolist() == [gpu for gpu in range(8) for _ in range(2)]


@given(
    nodes=st.integers(1, 4),
    node_gpus=st.integers(1, 4),
    node_groups=st.integers(1, 3),
    size=st.integers(1, 4),
    more=st.integers(0, 3),
    split=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_as_a_plain_transcription(
    nodes: int, node_gpus: int, node_groups: int, size: int, more: int, split: bool, seed: int
):
    gpus = nodes * node_gpus
    groups = nodes * node_groups
    experts = groups * size
    slots = (-(-experts // gpus) + more) * gpus
    if split:  # nodes that do not divide the groups: the global policy
        nodes = gpus
    # Few different loads: ties everywhere.
    loads = np.random.default_rng(seed).integers(0, 12, (3, experts)).astype(np.float64)
    found = eplb(loads, target(gpus, slots, nodes, groups))
    for layer in range(3):
        wanted = plain_eplb.eplb(loads[layer].tolist(), slots, groups, nodes, gpus)
        assert found.expert_of[layer].tolist() == wanted


def test_gpus_that_are_numbered_across_nodes_keep_groups_within_a_node():
    loads = np.random.default_rng(0).integers(1, 99, (4, 32)).astype(np.float64)
    in_order = eplb(loads, target(8, 40, nodes=2, groups=4))
    across = target(8, 40, nodes=2, groups=4)._replace(node_of=np.arange(8, dtype=np.int32) % 2)
    found = eplb(loads, across)
    order = np.argsort(across.node_of, kind="stable")
    assert np.array_equal(
        found.expert_of.reshape(4, 8, 5)[:, order], in_order.expert_of.reshape(4, 8, 5)
    )
    for group in range(4):
        members = np.isin(found.expert_of, np.arange(8) + 8 * group)
        for layer in members:
            assert len(np.unique(across.node_of[found.gpu_of[layer]])) == 1


@pytest.mark.parametrize(
    ("physical", "gpus", "nodes", "groups", "words"),
    [
        (18, 8, 2, 4, "18 physical experts are no multiple of 8 GPUs; write 16"),
        (13, 8, 2, 4, "write 16"),
        (16, 8, 2, 5, "5 groups do not divide 12 experts"),
        (16, 8, 2, 0, "0 groups do not divide 12 experts"),
        (10, 5, 1, 1, "10 physical experts for 12 experts"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(
    physical: int, gpus: int, nodes: int, groups: int, words: str
):
    with pytest.raises(InputError, match=words):
        place("eplb", np.ones((1, 12)), target(gpus, physical, nodes, groups))


def test_uneven_nodes_are_refused():
    uneven = Target(4, 12, 2, np.array([0, 0, 0, 1], np.int32), groups=2)
    with pytest.raises(InputError, match="4 GPUs are not spread evenly over 2 nodes"):
        place("eplb", np.ones((1, 12)), uneven)
    # Groups that the nodes do not divide: the global policy does not ask for nodes.
    assert place("eplb", np.ones((1, 12)), uneven._replace(groups=3)).expert_of.shape == (1, 12)


def loads_of(name: str) -> np.ndarray:
    path = RECORDED / name
    if not path.is_file():
        pytest.skip(f"{path} is not there: recordings without a licence are not shipped")
    return np.array(json.loads(path.read_text())["logical_count"], dtype=np.float64)[3:]


@pytest.mark.parametrize("name", ["rep288_n9_g72", "rep288_n4_g32"])
def test_its_own_answers_to_the_loads_of_deepseek_v3(name: str):
    loads = loads_of("deepseek_v3_prefill_in4096.json")
    answer = json.loads((RECORDED / f"eplb_prefill_in4096_{name}.json").read_text())
    gpus, nodes, groups = (answer[f"num_{what}"] for what in ("gpus", "nodes", "groups"))
    found = eplb(loads, target(gpus, answer["num_replicas"], nodes, groups))
    theirs = Placement(np.array(answer["phy2log"], np.int32), found.gpu_of)
    assert np.array_equal(copies_of(found, 256), answer["logcnt"])
    ours, wanted = (gpu_loads(loads, placed, gpus) for placed in (found, theirs))
    assert ours.max(axis=1) == pytest.approx(wanted.max(axis=1), rel=1e-9)
    # The same slot by slot, but for experts of equal load: their order is that of an unstable sort.
    load_at = [np.take_along_axis(loads, p.expert_of, axis=1) for p in (found, theirs)]
    assert np.array_equal(*load_at)
    different = (found.expert_of != theirs.expert_of).any(axis=1)
    tied = np.array([len(np.unique(layer)) < 256 for layer in loads])
    assert not (different & ~tied).any()
    assert different.sum() <= 4


@pytest.mark.parametrize(
    ("gpus", "wanted"), [(8, 2.07), (16, 2.57), (32, 3.04), (64, 3.77), (128, 5.36)]
)
def test_linear_imbalance_of_deepseek_v3(gpus: int, wanted: float):
    loads = loads_of("deepseek_v3_prefill_in4096.json")
    per_gpu = gpu_loads(loads, contiguous(loads, target(gpus, 256)), gpus)
    assert (per_gpu.max(axis=1) / per_gpu.mean(axis=1)).mean() == pytest.approx(wanted, abs=0.005)
