"""Plans with `network: coflow` against the step engine, the slowest link, the exact network."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine import harness, plan_approximations
from engine.harness import run, small
from engine.test_plans import ALIKE, DENSE, MOE, REL, length, planned, table

from simulator.engine.planned import simulate_plan

PAGE = Path(__file__).parents[2] / "docs" / "plans.md"
COFLOW = {"network": "coflow"}
WIDE = "{experts: 20, top_k: 3, intermediate: 48}"


@pytest.mark.parametrize(
    ("overrides", "topology"),
    [
        *((overrides, "nvswitch16") for overrides in ALIKE),
        ({"parallel.ep": 8}, "h100x16-rail"),
        ({"overlap": "two-batch", "model.moe": WIDE}, "h100x16-fat-tree"),
        ({"overlap": "chunked:2", "model.moe": WIDE}, "a6000x10"),
    ],
    ids=str,
)
def test_a_plan_of_ep_and_dp_is_the_step_engines(
    overrides: dict[str, object], topology: str, monkeypatch: pytest.MonkeyPatch
):
    inputs = small({**overrides, **COFLOW}, "zipf:1.0", topology)
    wanted = run(inputs)
    monkeypatch.setattr(harness, "simulate_into", simulate_plan)
    found = run(inputs)
    assert found.steps["end_s"] == pytest.approx(wanted.steps["end_s"], rel=REL)
    mine, theirs = table(found), table(wanted)
    assert len(mine["gpu"]) == len(theirs["gpu"]) > 0
    for name, values in theirs.items():
        if values.dtype.kind == "f":
            assert mine[name] == pytest.approx(values, rel=REL, abs=1e-15), name
        elif name != "peer":  # of GPUs that are ready at once, either may be named
            assert mine[name].tolist() == values.tolist(), name
    for name in ("accesses", "loads", "links"):
        other = getattr(wanted, name)
        for column, values in getattr(found, name).items():
            assert values.tolist() == other[column].tolist(), (name, column)


# --- one collective alone, and many that are even ------------------------------------------

PURE = {
    "transport.costs.allreduce": "{ring: {launch: 0 s}, nvls: {launch: 0 s}}",
    "transport.costs.allgather": "{ring: {launch: 0 s}}",
    "transport.costs.reducescatter": "{ring: {launch: 0 s}}",
}
"""A transport that takes nothing of the links for itself: they carry the payload alone."""


@pytest.mark.parametrize(
    ("topology", "parallel"),
    [
        ("nvswitch16", "{tp: 4, allreduce: ring}"),
        ("nvswitch16", "{tp: 4, allreduce: nvls}"),
        ("nvswitch16", "{tp: 2}"),
        ("h100x16-rail", "{tp: 16, allreduce: ring}"),
        ("h100x16-rail", "{tp: 8, allreduce: nvls}"),
        ("h100x16-fat-tree", "{tp: 16, allreduce: ring}"),
        ("a6000x10", "{tp: 2}"),
    ],
)
def test_a_lone_all_reduce_takes_as_long_as_its_slowest_link(topology: str, parallel: str):
    """One layer without attention: the only collective is that after its FFN."""
    changes = {
        **DENSE,
        **PURE,
        **COFLOW,
        "model.layers": 1,
        "model.attention": "null",
        "model.hidden": 4096,
        "parallel": parallel,
    }
    found = run(small(changes, topology=topology))
    exact = run(small({**changes, "network": "exact"}, topology=topology))
    sends = found.where(kind="allreduce")
    slowest_s = (found.links["bytes"] / found.links["bandwidth_bytes_per_s"]).max()
    took_s = sends["end_s"] - sends["start_s"]
    # Beside the bytes, the latency of the longest way: some us for ms of bytes.
    assert slowest_s < took_s.min() < slowest_s + 20e-6
    assert took_s == pytest.approx([took_s[0]] * len(took_s), rel=REL)
    assert found.links["bytes"].tolist() == exact.links["bytes"].tolist()
    assert length(found) == pytest.approx(length(exact), rel=REL)


@pytest.mark.parametrize(
    "parallel",
    [
        "{tp: 4, allreduce: ring}",
        "{tp: 4, allreduce: nvls}",
        "{tp: 2}",
        "{tp: 4, sequence_parallel: true}",
        "{tp: 2, pp: 2, microbatches: 3}",
        "{pp: 4, microbatches: 4}",
        "{pp: 2, interleave: 2, microbatches: 4}",
    ],
)
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_even_collectives_are_as_in_the_exact_network(parallel: str, phase: str):
    changes = {"traffic.phase": phase}
    exact = planned(parallel, changes)
    found = planned(parallel, {**changes, **COFLOW})
    assert length(found) == pytest.approx(length(exact), rel=REL)
    mine, theirs = table(found), table(exact)
    for name, values in theirs.items():
        if values.dtype.kind == "f":
            assert mine[name] == pytest.approx(values, rel=REL, abs=1e-15), name
        elif name != "peer":
            assert mine[name].tolist() == values.tolist(), name


@pytest.mark.parametrize(
    ("parallel", "experts"), [("{tp: 2, ep: 2}", 2), ("{tp: 2, ep: 4}", 4), ("{pp: 2, ep: 2}", 2)]
)
def test_even_dispatch_is_as_in_the_exact_network(parallel: str, experts: int):
    """Every token asks for every expert, so that all GPUs send all others the same."""
    changes = {
        **MOE,
        "model.moe": f"{{experts: {experts}, top_k: {experts}, intermediate: 48}}",
        "parallel": parallel,
    }
    exact, found = run(small(changes)), run(small({**changes, **COFLOW}))
    assert len(found.where(kind="dispatch")["gpu"]) > 0
    assert length(found) == pytest.approx(length(exact), rel=REL)
    assert found.links["bytes"].tolist() == exact.links["bytes"].tolist()


def test_experts_wait_for_the_last_gpu_of_their_group():
    """Uneven tokens: all of a group begin a dispatch at once, when the last of them is ready."""
    changes = {**MOE, **COFLOW, "parallel": "{pp: 2, ep: 2}", "traffic.phase": "prefill"}
    found = run(small(changes, "zipf:1.5"))
    for layer, first in ((0, 0), (1, 2)):
        for batch in range(2):
            sends = found.where(kind="dispatch", layer=layer, microbatch=batch)
            group = sends["gpu"] // 2 == first // 2
            assert len(set(sends["start_s"][group].tolist())) == 1
            assert sends["start_s"][group].min() >= sends["ready_s"][group].max()


@pytest.mark.parametrize("case", plan_approximations.CASES, ids=str)
def test_a_step_of_a_shipped_plan_is_as_far_off_as_the_page_says(case: plan_approximations.Case):
    assert abs(plan_approximations.error(case)) <= max(case.most, REL)


def test_the_page_has_the_table():
    text = PAGE.read_text(encoding="utf-8")
    assert "\n".join(plan_approximations.table()) in text
