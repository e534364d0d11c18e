"""Plans whose weights lie in host memory, against closed forms and the same plans without."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from engine import harness
from engine.harness import Run, run, small
from engine.test_plans import DENSE, MOE, REL, length, table

from simulator.errors import InputError
from simulator.model.plan import Plan, plan_of
from simulator.model.plan_memory import expert_shares, gpu_bytes, host_bytes
from simulator.policies.placement import contiguous_owner
from simulator.spec.load import gpu_count

LAYERS = 6
ALONE: dict[str, object] = {**DENSE, "model.layers": LAYERS, "topology.build.gpus": 1}
"""A dense model whose layers are all alike, on one GPU."""

LAYER_BYTES = 2.0 * (4 * 1024 * 1024 + 3 * 1024 * 4096)  # BF16: QKVO of 8 heads x 128, and the FFN
LATENCY_S = 600e-9  # dram -> cpu -> gpu of nvswitch16

SLOW = {"topology.build.pcie": "{bandwidth: 1 GB/s, latency: 500 ns}", "copy_efficiency.pcie": 0.5}
FAST = {"topology.build.pcie": "{bandwidth: 100 TB/s, latency: 500 ns}"}
FAST |= {"topology.build.dram": "{bandwidth: 100 TB/s, latency: 100 ns, capacity: 1 TiB}"}


def offloaded(parallel: str, *changes: Mapping[str, object]) -> Run:
    merged: dict[str, object] = {**ALONE}
    for change in changes:
        merged |= change
    return run(small({**merged, "parallel": parallel}))


def layer_s(found: Run, layer: int) -> float:
    mine = found.where(gpu=0, stream="compute", layer=layer, step=0)
    return float((mine["end_s"] - mine["start_s"]).sum())


# --- closed forms -------------------------------------------------------------------------


def test_a_slow_link_is_what_a_step_takes():
    """All layers come at 1 GB/s x 0.5, one after the other; then the last is computed."""
    found = offloaded("{offload: layers, resident_layers: 0}", SLOW)
    each_s = LATENCY_S + LAYER_BYTES / 0.5e9
    assert length(found) == pytest.approx(LAYERS * each_s + layer_s(found, LAYERS - 1), rel=REL)
    fetches = found.where(kind="prefetch")
    assert fetches["bytes"].tolist() == [LAYER_BYTES] * LAYERS
    assert fetches["end_s"] == pytest.approx(each_s * np.arange(1, LAYERS + 1), rel=REL)
    # Every layer waits for its own from the end of the one before.
    stalls = found.where(kind="attention")["fetch_wait_s"]
    wanted = [each_s] + [each_s - layer_s(found, layer) for layer in range(LAYERS - 1)]
    assert stalls == pytest.approx(wanted, rel=REL)
    assert found.where(kind="ffn")["fetch_wait_s"].tolist() == [0.0] * LAYERS


@pytest.mark.parametrize("kept", [0, 2, 3])
def test_a_slow_link_is_what_a_step_of_decoding_takes(kept: int):
    """Weights of the next step come while this one is computed: bytes / bandwidth, no more."""
    decoding = {"traffic.phase": "decode", "traffic.steps": 3}
    found = offloaded(f"{{offload: layers, resident_layers: {kept}}}", SLOW, decoding)
    measured = ~found.steps["warmup"]
    lengths = (found.steps["end_s"] - found.steps["start_s"])[measured]
    wanted = (LAYERS - kept) * (LATENCY_S + LAYER_BYTES / 0.5e9)
    assert lengths == pytest.approx([wanted] * 3, rel=REL)
    assert found.links["bytes"].tolist() == [3 * (LAYERS - kept) * LAYER_BYTES] * 2


@pytest.mark.parametrize(
    ("parallel", "kept"), [("microbatches: 4", 6), ("tp: 4, microbatches: 4", 6), ("pp: 2", 3)]
)
def test_behind_a_fast_link_a_step_is_as_without(parallel: str, kept: int):
    """Half of the layers stay, the first among them: the others come while these are computed."""
    wide = {**FAST, "topology.build.gpus": 4, "traffic.tokens_per_gpu": 256, "model.layers": 12}
    plain = offloaded(f"{{{parallel}}}", wide)
    found = offloaded(f"{{{parallel}, offload: layers, resident_layers: {kept}}}", wide)
    batches = 2 if "pp" in parallel else 4
    assert len(found.where(kind="prefetch")["gpu"]) == 4 * kept * batches
    assert length(found) == pytest.approx(length(plain), rel=REL)
    assert not found.spans["fetch_wait_s"].any()


def test_behind_a_fast_link_only_the_first_layer_is_waited_for():
    plain = offloaded("{microbatches: 1}", FAST)
    found = offloaded("{microbatches: 1, offload: layers, resident_layers: 0}", FAST)
    first_s = LATENCY_S + LAYER_BYTES / (1e14 * 0.856)
    stalls = found.where(kind="attention")["fetch_wait_s"]
    assert stalls[1:].tolist() == [0.0] * (LAYERS - 1)
    assert length(found) == pytest.approx(length(plain) + stalls[0], rel=REL)
    assert stalls[0] == pytest.approx(first_s, rel=0.2)  # copies reach their share of the link
    steady = [
        offloaded(f"{{microbatches: 1{more}}}", FAST, {"traffic.phase": "decode"})
        for more in (", pipeline: flushed", ", offload: layers, resident_layers: 0")
    ]
    assert length(steady[1]) == pytest.approx(length(steady[0]), rel=REL)


@pytest.mark.parametrize("switches", [1, 2])
def test_gpus_behind_one_pcie_switch_share_it(switches: int):
    """Two GPUs: one switch, or one each. The weights come at half of the link, or at all of it."""
    changes = {
        **{key: value for key, value in ALONE.items() if not key.startswith("topology")},
        "topology.build.gpus": 2,
        "topology.build.sockets": 1,
        "topology.build.switches_per_socket": switches,
        "copy_efficiency.pcie": 1.0,
        "traffic.phase": "decode",
        "parallel": "{dp: 2, offload: layers, resident_layers: 0}",
    }
    found = run(small(changes, topology="a6000x10-pcie"))
    latency_s = 100e-9 + 2 * 250e-9
    bandwidth = 32e9 * switches / 2
    wanted = LAYERS * (latency_s + LAYER_BYTES / bandwidth)
    assert length(found) == pytest.approx(wanted, rel=REL)


# --- laws ---------------------------------------------------------------------------------

HYBRIDS = [
    "{tp: 2, OFF}",
    "{tp: 2, ep: 4, OFF}",
    "{pp: 2, ep: 2, microbatches: 3, OFF}",
    "{pp: 2, interleave: 2, microbatches: 4, OFF}",
    "{stages: [{layers: 0-5, gpus: 0-2}, {layers: 6-7, gpus: 3}], microbatches: 3, OFF}",
]
SPARSE = {
    **MOE,
    "model.layers": 8,
    "model.dense_intermediate": 96,
    "model.moe": "{experts: 6, top_k: 2, intermediate: 48, first_dense_layers: 1,"
    " shared_experts: 1, shared_intermediate: 32}",
    "topology.build.pcie": "{bandwidth: 2 GB/s, latency: 500 ns}",
}


def both(parallel: str, what: str, changes: Mapping[str, object]) -> tuple[Run, Run]:
    """The runs of a plan with all that it may in host memory, and with nothing."""
    given = parallel.replace("OFF", f"offload: {what}, resident_layers: 0")
    bare = parallel.replace(", OFF", "")
    return tuple(run(small({**changes, "parallel": one}, "zipf:1.0")) for one in (given, bare))


@pytest.mark.parametrize("parallel", HYBRIDS)
@pytest.mark.parametrize("what", ["layers", "experts"])
@pytest.mark.parametrize("network", ["exact", "coflow"])
def test_weights_are_there_in_time_and_in_two_buffers(parallel: str, what: str, network: str):
    changes = {**SPARSE, "traffic.phase": "prefill", "network": network}
    found, plain = both(parallel, what, changes)
    uses = ("experts",) if what == "experts" else ("attention", "ffn", "experts")
    assert len(found.where(kind="prefetch")["gpu"])
    for gpu in range(4):
        fetches = found.where(kind="prefetch", gpu=gpu)
        mine = found.where(gpu=gpu, stream="compute")
        freed: list[float] = []
        for at in np.argsort(fetches["start_s"]).tolist():
            using = np.isin(mine["kind"], uses) & (mine["layer"] == fetches["layer"][at])
            using &= mine["microbatch"] == fetches["microbatch"][at]
            if len(freed) >= 2:  # its buffer is read no more
                assert fetches["start_s"][at] >= freed[-2] * (1 - REL)
            assert (mine["start_s"][using] >= fetches["end_s"][at] * (1 - REL)).all()
            freed.append(mine["end_s"][using].max(initial=0.0))
    # What is computed and sent is the same as without; only times differ.
    stays = table(found)["kind"] != "prefetch"
    for name in ("kind", "chunk", "layer", "gpu", "microbatch", "rows", "flops", "bytes"):
        assert table(found)[name][stays].tolist() == table(plain)[name].tolist(), name


@pytest.mark.parametrize("parallel", HYBRIDS)
@pytest.mark.parametrize("what", ["layers", "experts"])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_experts_are_asked_for_as_without(parallel: str, what: str, phase: str):
    """Nobody misses: what is not there yet is on its way."""
    changes = {**SPARSE, "traffic.phase": phase, "traffic.warmup_steps": 1, "traffic.steps": 2}
    found, plain = both(parallel, what, changes)
    counts = found.accesses["hit"] + found.accesses["late"]
    assert counts.tolist() == plain.accesses["hit"].tolist()
    assert not found.accesses["miss"].any()
    assert {name: found.loads[name].tolist() for name in found.loads} == {
        name: plain.loads[name].tolist() for name in plain.loads
    }
    if phase == "prefill":  # in decoding, some begin before the step that needs them
        steps = found.steps["step"][~found.steps["warmup"]]
        copies = np.isin(found.spans["step"], steps) & (found.spans["kind"] == "prefetch")
        carried = found.links["bytes"][found.links["kind"] == "membus"].sum()
        assert carried == pytest.approx(found.spans["bytes"][copies].sum(), rel=REL)


def test_a_gpu_with_fewer_experts_fetches_fewer():
    """Five experts on two GPUs: three and two."""
    changes = {**MOE, "model.layers": 4, "model.moe": "{experts: 5, top_k: 2, intermediate: 48}"}
    plan = "{ep: 2, offload: experts, resident_layers: 0}"
    found = run(small({**changes, "parallel": plan, "traffic.phase": "prefill"}))
    each = 3 * 64 * 48 * 2.0
    sizes = [set(found.where(kind="prefetch", gpu=gpu)["bytes"].tolist()) for gpu in range(4)]
    assert sizes[0] == sizes[2]
    assert sizes[1] == sizes[3]
    assert {*sizes[0], *sizes[1]} == {3 * each, 2 * each}


def test_experts_of_unequal_sizes_need_what_they_need():
    """Of 5, 1 + 2 and 1 + 4 + 3 of the usual size: the second GPU has most."""
    moe = "{experts: 5, top_k: 2, intermediate: 48, expert_sizes: [1, 2, 1, 4, 3]}"
    changes = {**MOE, "model.layers": 4, "model.moe": moe, "traffic.phase": "prefill"}
    each = 3 * 64 * 48 * 2.0
    parts, plan = parts_of("{ep: 2, microbatches: 1}", changes)
    assert [part["experts"] for part in parts] == [4 * 8 * each] * 4  # by the largest share
    given = {**changes, "parallel": "{ep: 2, offload: experts, resident_layers: 0}"}
    found = run(small(given))
    for gpu, share in enumerate((3, 8, 3, 8)):
        copied = found.where(kind="prefetch", gpu=gpu)["bytes"]
        assert copied.tolist() == [share * each] * 4
    for stage in plan.stages:
        owner = contiguous_owner(5, stage.degrees.ep)
        assert np.bincount(owner, [1, 2, 1, 4, 3]).tolist() == expert_shares(stage)


def test_experts_that_come_late_are_late_hits():
    slow = {**MOE, "model.layers": 4, "parallel": "{ep: 4, offload: experts, resident_layers: 0}"}
    for bandwidth, late in (("1 MB/s", True), ("100 TB/s", False)):
        pcie = f"{{bandwidth: {bandwidth}, latency: 0 s}}"
        found = run(small({**slow, "topology.build.pcie": pcie, "traffic.steps": 2}))
        steps = found.steps["step"][~found.steps["warmup"]]
        mine = np.isin(found.accesses["step"], steps)
        assert found.accesses["late"][mine].any() == late
        assert found.accesses["hit"][mine].any() != late


# --- memory -------------------------------------------------------------------------------


def parts_of(parallel: str, changes: Mapping[str, object]) -> tuple[list[dict[str, float]], Plan]:
    inputs = small({**changes, "parallel": parallel})
    plan = plan_of(inputs.workload, gpu_count(inputs.topology), inputs.topology.gpu)
    return gpu_bytes(plan, inputs.workload), plan


@pytest.mark.parametrize("parallel", HYBRIDS)
def test_what_a_gpu_keeps_and_what_comes_is_the_whole(parallel: str):
    whole, _ = parts_of(parallel.replace(", OFF", ""), SPARSE)
    for what in ("layers", "experts"):
        found, plan = parts_of(parallel.replace("OFF", f"offload: {what}"), SPARSE)
        for mine, all_ in zip(found, whole, strict=True):  # all fits: nothing is streamed
            assert mine == {**all_, "fetched": 0.0}
        assert not any(plan.streamed)
        given = parallel.replace("OFF", f"offload: {what}, resident_layers: 1")
        found, plan = parts_of(given, SPARSE)
        came = host_bytes(plan)
        for gpu, (mine, all_) in enumerate(zip(found, whole, strict=True)):
            place = next(at for at, stage in enumerate(plan.stages) if gpu in stage.gpus)
            kept = mine["dense weights"] + mine["experts"]
            assert kept + came[place] == pytest.approx(all_["dense weights"] + all_["experts"])


def test_as_few_layers_as_possible_come_from_host_memory():
    """Room for all but weights, and for four layers: two buffers, two resident, ten streamed."""
    from simulator.model.footprint import RESERVED

    changes = {**ALONE, "model.layers": 12}
    whole, _ = parts_of("{microbatches: 1}", changes)
    rest = sum(whole[0].values()) - whole[0]["dense weights"]
    for room, streamed in ((4.0, 10), (4.9, 10), (5.0, 9), (11.0, 3), (11.9, 3), (12.0, 0)):
        capacity = (rest + room * LAYER_BYTES) / (1.0 - RESERVED) + 1.0
        given = {**changes, "topology.gpu.hbm_capacity": f"{capacity:.0f} B"}
        parts, plan = parts_of("{microbatches: 1, offload: layers}", given)
        assert len(plan.streamed[0]) == streamed
        assert sum(parts[0].values()) <= capacity * (1.0 - RESERVED)
        # Evenly spread: runs of resident layers differ by one at most, and the first one stays.
        gaps = np.diff([-1, *plan.streamed[0]]) - 1
        assert not streamed or gaps.max() - gaps.min() <= 1
        run(small({**given, "parallel": "{microbatches: 1, offload: layers}"}))


@pytest.mark.parametrize("kept", [4, 5, 6, 100])
def test_two_layers_need_not_move(kept: int):
    _, plan = parts_of(f"{{offload: layers, resident_layers: {kept}}}", ALONE)
    assert plan.streamed == ((),)


# --- figures ------------------------------------------------------------------------------


def test_the_figures_tell_of_stalls_and_bytes(tmp_path: Path):
    from simulator.api import simulate

    changes = {**harness.SMALL, **ALONE, **SLOW, "traffic.phase": "decode", "traffic.steps": "2"}
    changes["parallel"] = "{offload: layers, resident_layers: 2}"
    result = simulate(
        "nvswitch16",
        "moe128",
        overrides=[f"{key}={value}" for key, value in changes.items()],
        routing="uniform",
        out=tmp_path / "run",
    )
    summary = result.summary
    assert sum(summary["breakdown"].values()) == pytest.approx(1.0)
    assert sum(summary["critical_path"].values()) == pytest.approx(1.0)
    assert summary["bottleneck"] == "fetch_stall"
    assert summary["prefetch_bytes"] == 2 * 4 * LAYER_BYTES
    assert summary["demand_bytes"] == summary["wasted_prefetch_bytes"] == 0
    assert summary["copy_utilization"] == pytest.approx(1.0)
    assert any("weights of 4 of 6 layers come from host memory" in note for note in result.notes)


def test_the_same_run_gives_the_same_bytes():
    changes = {**SPARSE, "parallel": "{pp: 2, offload: layers, resident_layers: 0}"}
    first, second = (run(small(changes)) for _ in range(2))
    assert first.span_bytes == second.span_bytes


# --- refusals -----------------------------------------------------------------------------

OFF = "{offload: layers, resident_layers: 0}"

# The weights are next to nothing there: to keep them elsewhere would not do.
ONLY_FEWER = "GiB too much; any of these would do: traffic.tokens_per_gpu="


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"parallel": OFF, "overlap": "two-batch"},
            "overlap: two-batch, but with parallel.offload",
        ),
        ({"parallel": OFF, "expert_home": "peer"}, "expert_home: peer, but parallel.offload"),
        ({"parallel": OFF, "expert_slots": 2}, "or write parallel.offload: experts, which streams"),
        ({"parallel": "{resident_layers: 2}"}, "parallel.resident_layers: needs offload"),
        ({"parallel": "{offload: weights}"}, "parallel.offload: 'weights' is not one of experts, "),
        ({"parallel": "{offload: layers, resident_layers: -1}"}, "parallel.resident_layers: "),
        (
            {"parallel": "{offload: experts}", "model.moe": "null", "model.dense_intermediate": 64},
            "parallel.offload: experts, but the model has none; write layers",
        ),
        (
            {"parallel": OFF, "model.layers": 8, "topology.build.dram.capacity": "100 KiB"},
            "moe128 does not fit: dram0 must hold ",
        ),
        (
            {"parallel": "{tp: 2}", "traffic.tokens_per_gpu": 10_000_000},
            ONLY_FEWER,
        ),
        (
            {"parallel": "{tp: 2, offload: layers}", "traffic.tokens_per_gpu": 10_000_000},
            "fetched 0.0) and has ",
        ),
        (
            {"parallel": "{tp: 2, offload: experts}", "traffic.tokens_per_gpu": 10_000_000},
            ONLY_FEWER,
        ),
        (
            {
                "parallel": "{tp: 2, offload: layers, resident_layers: 2}",
                "traffic.tokens_per_gpu": 10_000_000,
            },
            ONLY_FEWER,
        ),
    ],
)
def test_what_cannot_be_offloaded_is_refused(changes: dict[str, object], said: str):
    with pytest.raises(InputError) as error:
        run(small(changes))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


BARE = """\
name: bare
gpu: H100-SXM
build:
  kind: explicit
  nodes: [{name: g0, kind: gpu, host: 0}, {name: g1, kind: gpu, host: 0}]
  links: [{from: g0, to: g1, bandwidth: 100 GB/s, latency: 1 us, both: true}]
"""


def test_a_gpu_without_host_memory_has_nothing_to_fetch_from(tmp_path: Path):
    path = tmp_path / "bare.yaml"
    path.write_text(BARE)
    changes = {"model.layers": 8, "parallel": OFF}
    with pytest.raises(InputError, match="bare: g0 has no host memory to keep weights in; add a d"):
        run(small(changes, topology=path))
    assert run(small({"parallel": OFF}, topology=path)).report.gpus == 2  # two layers stay
