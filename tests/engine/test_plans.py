"""Plans through the engine against closed forms, hand counts, and the step engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import closed_forms
import numpy as np
import pytest
from engine import harness
from engine.harness import Run, run, small

from simulator.engine.planned import simulate_plan
from simulator.errors import InputError
from simulator.spec.load import Inputs

REL = 1e-9
DENSE = {
    "model.moe": "null",
    "model.dense_intermediate": 4096,
    "model.hidden": 1024,
    "model.layers": 4,
    "model.vocab": 0,
    "model.attention": "{kind: gqa, heads: 8, kv_heads: 8, head_dim: 128}",
    "traffic.phase": "prefill",
    "traffic.tokens_per_gpu": 64,
}
"""A dense model without LM head, whose layers are all alike."""


def planned(parallel: str, overrides: Mapping[str, object] | None = None) -> Run:
    return run(small({**DENSE, **(overrides or {}), "parallel": parallel}))


def length(found: Run) -> float:
    return float(found.steps["end_s"][-1] - found.steps["start_s"][-1])


def table(found: Run) -> dict[str, np.ndarray]:
    """The spans in an order that does not depend on times."""
    names = ("kind", "chunk", "layer", "gpu", "microbatch", "step")
    order = np.lexsort([found.spans[name] for name in names])
    return {name: values[order] for name, values in found.spans.items()}


# --- a plan of EP and DP is what the step engine runs -------------------------------------

ALIKE: list[dict[str, object]] = [
    {},
    {"parallel.ep": 2},
    {"parallel.ep": 1},
    {"overlap": "two-batch", "traffic.tokens_per_gpu": 8},
    {"overlap": "chunked:3", "traffic.tokens_per_gpu": 9},
    {"model.moe": "{experts: 7, top_k: 2, intermediate: 48}", "traffic.phase": "prefill"},
    {"transport.deduplicate": "none", "traffic.steps": 2, "traffic.warmup_steps": 1},
    {
        "model.layers": 3,
        "model.dense_intermediate": 128,
        "model.moe": "{experts: 8, top_k: 2, intermediate: 48, first_dense_layers: 1,"
        " shared_experts: 1, shared_intermediate: 32}",
        "traffic.steps": 3,
    },
]


@pytest.mark.parametrize("overrides", ALIKE, ids=str)
def test_a_plan_of_ep_and_dp_is_the_step_engines(
    overrides: dict[str, object], monkeypatch: pytest.MonkeyPatch
):
    inputs = small(overrides, "zipf:1.0")
    wanted = run(inputs)
    monkeypatch.setattr(harness, "simulate_into", simulate_plan)
    found = run(inputs)
    assert found.steps["end_s"] == pytest.approx(wanted.steps["end_s"], rel=REL)
    mine, theirs = table(found), table(wanted)
    assert len(mine["gpu"]) == len(theirs["gpu"]) > 0
    for name, values in theirs.items():
        if values.dtype.kind == "f":
            assert mine[name] == pytest.approx(values, rel=REL, abs=1e-15), name
        else:
            assert mine[name].tolist() == values.tolist(), name
    for name in ("accesses", "loads", "links"):
        other = getattr(wanted, name)
        for column, values in getattr(found, name).items():
            assert values.tolist() == other[column].tolist(), (name, column)


def test_tp_and_pp_of_one_are_the_plain_run():
    overrides = {"traffic.tokens_per_gpu": 5}
    plain = run(small(overrides))
    ones = run(small({**overrides, "parallel": "{tp: 1, pp: 1, microbatches: 1}"}))
    assert ones.end_s == pytest.approx(plain.end_s, rel=REL)
    assert ones.span_bytes == plain.span_bytes


# --- pipelines ----------------------------------------------------------------------------


def stage_s(found: Run) -> float:
    """Seconds of one micro-batch in one stage, from the kernels of the first."""
    first = found.where(gpu=0, microbatch=0, stream="compute", step=0)
    return float((first["end_s"] - first["start_s"]).sum())


# Sends that take next to no time: the closed form knows of none.
INSTANT = {
    "topology.build.nvlink": "{bandwidth: 100000 TB/s, latency: 0 s}",
    "transport.costs.sendrecv.direct": "{launch: 0 s}",
}


@pytest.mark.parametrize(("microbatches", "stages"), [(1, 2), (4, 2), (8, 4), (3, 4)])
def test_a_flushed_pipeline_is_slower_by_its_bubble(microbatches: int, stages: int):
    overrides = {**INSTANT, "traffic.tokens_per_gpu": 24 * microbatches}
    found = planned(f"{{pp: {stages}, microbatches: {microbatches}}}", overrides)
    full_s = microbatches * stage_s(found)
    wanted = closed_forms.pipeline_slowdown(microbatches, stages)
    assert length(found) / full_s == pytest.approx(wanted, rel=1e-6)


def test_an_interleaved_pipeline_has_a_smaller_bubble():
    overrides = {**INSTANT, "model.layers": 8}
    found = planned("{pp: 2, interleave: 4, microbatches: 4}", overrides)
    one = found.where(gpu=0, microbatch=0, stream="compute", step=0)
    full_s = 4 * float((one["end_s"] - one["start_s"]).sum())
    assert sorted(set(one["layer"].tolist())) == [0, 2, 4, 6]
    wanted = closed_forms.pipeline_slowdown(4, 2, 4)
    assert length(found) / full_s == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(("microbatches", "stages"), [(2, 2), (4, 4), (6, 4)])
def test_steady_decode_has_no_bubble(microbatches: int, stages: int):
    """As many micro-batches in flight as stages: a step takes as long as a stage needs for all."""
    overrides = {
        **INSTANT,
        "traffic.phase": "decode",
        "traffic.steps": 3,
        "traffic.tokens_per_gpu": 12,
    }
    found = planned(f"{{pp: {stages}, microbatches: {microbatches}}}", overrides)
    measured = ~found.steps["warmup"]
    lengths = (found.steps["end_s"] - found.steps["start_s"])[measured]
    mine = found.where(gpu=0, stream="compute", step=int(found.steps["step"][measured][0]))
    busy_s = float((mine["end_s"] - mine["start_s"]).sum())
    assert len(lengths) == 3
    assert lengths == pytest.approx([busy_s] * 3, rel=1e-6)


def test_fewer_micro_batches_than_stages_leave_a_steady_bubble():
    overrides = {**INSTANT, "traffic.phase": "decode", "traffic.tokens_per_gpu": 12}
    found = planned("{pp: 4, microbatches: 2}", overrides)
    mine = found.where(gpu=0, stream="compute", step=1)
    busy_s = float((mine["end_s"] - mine["start_s"]).sum())
    assert length(found) == pytest.approx(2 * busy_s, rel=1e-6)


@pytest.mark.parametrize("nvlink", ["450 GB/s", "2 GB/s", "400 MB/s"])
def test_chunks_pass_groups_as_a_pipeline(nvlink: str):
    """Layer-wise: each layer on a GPU of its own; computing and sending overlap chunk by chunk."""
    stages = ", ".join(f"{{layers: {i}, gpus: {i}}}" for i in range(4))
    overrides = {"topology.build.nvlink": f"{{bandwidth: {nvlink}, latency: 700 ns}}"}
    found = planned(f"{{stages: [{stages}], chunk: 64 KiB}}", overrides)
    chunks = 4 * 64 * 1024 * 2 // 65536
    sends = found.where(kind="send")
    assert len(sends["gpu"]) == 3 * chunks
    assert set(sends["bytes"].tolist()) == {65536.0}
    cost = small().workload.transport.costs["sendrecv"]["direct"]
    wire = closed_forms.on_wire(65536.0, cost.half_size_bytes, cost.efficiency.nvlink)
    bandwidth = float(nvlink.split()[0]) * (1e9 if "GB" in nvlink else 1e6)
    on_link_s = closed_forms.lone_transfer(wire, bandwidth, 2 * 700e-9)
    service = [stage_s(found), on_link_s] * 3 + [stage_s(found)]
    wanted = closed_forms.chain_of_servers(chunks, service, [cost.launch_s] * 3)
    assert length(found) == pytest.approx(wanted, rel=REL)


# --- tensor parallelism -------------------------------------------------------------------


@pytest.mark.parametrize("tp", [2, 4])
def test_sharded_kernels_do_a_share_of_the_work(tp: int):
    one, many = planned("{microbatches: 2}"), planned(f"{{tp: {tp}, microbatches: 2}}")
    for kind in ("attention", "ffn"):
        whole = one.where(kind=kind, gpu=0, layer=0, microbatch=0)
        part = many.where(kind=kind, gpu=0, layer=0, microbatch=0)
        # A replica of tp GPUs has the tokens of tp GPUs.
        assert part["rows"].tolist() == [tp * int(whole["rows"][0])]
        assert part["flops"] == pytest.approx(whole["flops"], rel=REL)
    assert one.spans["flops"].sum() == pytest.approx(many.spans["flops"].sum(), rel=REL)


@pytest.mark.parametrize("tp", [4, 2])
def test_a_ring_sends_its_share(tp: int):
    found = planned(f"{{tp: {tp}, allreduce: ring}}")
    sends = found.where(kind="allreduce")
    size = tp * 64 * 1024 * 2.0
    wanted = closed_forms.ring_allreduce_sent(tp, size)
    # Four layers, after attention and after the FFN.
    assert len(sends["gpu"]) == 4 * 2 * 4
    assert sends["bytes"] == pytest.approx([wanted] * 32, rel=REL)


def test_a_ring_takes_what_the_collective_command_says():
    from simulator.engine.transport import cluster_of, collective_time

    found = planned("{tp: 4, allreduce: ring}")
    inputs = small({**DENSE, "parallel": "{tp: 4}"})
    cluster = cluster_of(inputs.topology)
    size = 4 * 64 * 1024 * 2.0
    wanted = collective_time(cluster, inputs.workload.transport, "allreduce", "ring", size)
    sends = found.where(kind="allreduce", gpu=0)
    assert sends["end_s"] - sends["ready_s"] == pytest.approx([wanted] * 8, rel=REL)
    kernels = found.where(stream="compute", gpu=0)
    busy_s = float((kernels["end_s"] - kernels["start_s"]).sum())
    assert length(found) == pytest.approx(busy_s + 8 * wanted, rel=REL)


def test_sequence_parallel_moves_as_much_in_halves():
    whole = planned("{tp: 4, allreduce: ring}")
    halves = planned("{tp: 4, sequence_parallel: true}")
    sent = whole.where(kind="allreduce")["bytes"].sum()
    gathered = halves.where(kind="allgather")["bytes"].sum()
    scattered = halves.where(kind="reducescatter")["bytes"].sum()
    assert gathered == pytest.approx(sent / 2, rel=REL)
    assert scattered == pytest.approx(sent / 2, rel=REL)
    assert halves.spans["flops"].sum() == pytest.approx(whole.spans["flops"].sum(), rel=REL)


@pytest.mark.parametrize(
    "parallel",
    [
        "{tp: 2, allreduce: ring}",
        "{tp: 4, allreduce: ring}",
        "{tp: 2, pp: 2, microbatches: 3}",
        "{pp: 4, microbatches: 4}",
        "{stages: [{layers: 0-1, gpus: '0', tp: 1}, {layers: 2-3, gpus: 1-3}]}",
    ],
)
def test_bytes_on_links_are_those_of_the_spans(parallel: str):
    """On one switch each byte crosses two links."""
    found = planned(parallel)
    sent = found.where(stream="comm")["bytes"].sum() + found.where(kind="send")["bytes"].sum()
    assert found.links["bytes"].sum() == pytest.approx(2 * sent, rel=REL)
    assert sent > 0


# --- experts ------------------------------------------------------------------------------

MOE = {
    "model.attention": "{kind: gqa, heads: 4, kv_heads: 2, head_dim: 16}",
    "traffic.tokens_per_gpu": 16,
}


@pytest.mark.parametrize(
    ("parallel", "shards"),
    [
        ("{tp: 4}", 4),
        ("{tp: 4, ep: 4}", 1),
        ("{tp: 4, ep: 2}", 2),
        ("{tp: 2}", 2),
        ("{tp: 2, ep: 4}", 1),
        ("{tp: 2, ep: 2, sequence_parallel: true}", 2),
        ("{tp: 2, ep: 1}", 2),
        ("{pp: 2, ep: 2}", 1),
    ],
)
def test_all_rows_are_computed_once_by_each_shard(parallel: str, shards: int):
    """Every token reaches its two experts in both layers, on every GPU that shares the expert."""
    inputs = small({**MOE, "parallel": parallel})
    found = run(inputs)
    measured = ~found.steps["warmup"]
    steps = found.steps["step"][measured]
    keep = np.isin(found.spans["step"], steps) & (found.spans["kind"] == "experts")
    tokens = int(found.steps["tokens"][measured].sum())
    flops = 6.0 * 64 * 48 * 2 * 2 * tokens
    assert found.spans["flops"][keep].sum() == pytest.approx(flops, rel=REL)
    assert found.loads["rows"].sum() == tokens * 2 * 2 * shards


def test_experts_within_a_tensor_parallel_group_need_no_dispatch():
    found = run(small({**MOE, "parallel": "{tp: 4, ep: 4}"}))
    assert set(found.spans["kind"].tolist()) == {"attention", "experts", "lm_head", "allreduce"}


def test_tokens_go_to_every_shard_of_an_expert():
    """One token with one expert: dispatch sends it to the two shards, if these are elsewhere."""
    inputs = small(
        {
            **MOE,
            "model.moe": "{experts: 2, top_k: 2, intermediate: 48}",
            "model.layers": 1,
            "parallel": "{tp: 2, ep: 2}",
        }
    )
    found = run(inputs)
    # Both experts are asked for by every token: each of 64 goes to all 4 GPUs but its own.
    assert found.where(kind="dispatch")["rows"].sum() == 64 * 3
    assert found.where(kind="combine")["rows"].sum() == 64 * 3
    assert len(found.where(kind="allgather")["gpu"]) == 4


def test_a_model_without_attention_has_only_its_gate():
    found = run(small({"model.attention": "null", "model.vocab": 0, "model.hidden": 64}))
    attention = found.where(kind="attention")
    assert attention["flops"] == pytest.approx(2.0 * attention["rows"] * 8 * 64, rel=REL)
    assert not len(found.where(kind="lm_head")["gpu"])


@pytest.mark.parametrize(
    ("topology", "parallel"),
    [
        ("h100x16-rail", "{tp: 16, allreduce: ring}"),
        ("h100x16-rail", "{tp: 8, pp: 2, allreduce: nvls}"),
        ("h100x16-fat-tree", "{tp: 2, ep: 8}"),
        ("a6000x10", "{pp: 5, tp: 2, sequence_parallel: true}"),
    ],
)
def test_plans_run_on_any_wiring(topology: str, parallel: str):
    """Across nodes and over PCIe; the parts of a step still add up."""
    overrides = {"model.attention": "{kind: gqa, heads: 16, kv_heads: 16, head_dim: 4}"}
    overrides |= {"model.layers": "5", "parallel": parallel, "traffic.tokens_per_gpu": "8"}
    found = run(small(overrides, topology=topology))
    experts = found.where(kind="experts")
    assert experts["flops"].sum() > 0
    assert found.links["bytes"].sum() > 0
    assert (found.steps["end_s"] > found.steps["start_s"]).all()


def test_a_kernel_that_awaits_the_others_names_the_last_of_them():
    """GPU 0 has more layers' work behind it: in a pipeline the second stage waits for the first."""
    found = planned("{pp: 2, microbatches: 2, ep: null}")
    first = found.where(gpu=2, kind="attention", layer=2, microbatch=0)
    assert first["peer"].tolist() == [0]
    again = found.where(gpu=2, kind="attention", layer=3, microbatch=0)
    assert again["peer"].tolist() == [-1]


# --- laws ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parallel",
    [
        "{tp: 2, pp: 2, microbatches: 5}",
        "{pp: 2, interleave: 2, microbatches: 4}",
        "{stages: [{layers: 0-1, gpus: 0-2}, {layers: 2-3, gpus: 3}], microbatches: 3}",
    ],
)
def test_every_token_passes_every_layer_once(parallel: str):
    found = planned(parallel)
    for layer in range(4):
        spans = found.where(kind="ffn", layer=layer)
        tp = 2 if "tp: 2" in parallel else 1
        assert spans["rows"].sum() == 4 * 64 * tp
    # One kernel at a time on a stream.
    for gpu in range(4):
        mine = found.where(gpu=gpu, stream="compute")
        order = np.argsort(mine["start_s"])
        assert (mine["start_s"][order][1:] >= mine["end_s"][order][:-1] * (1 - 1e-12)).all()


def test_the_same_run_gives_the_same_bytes():
    first, second = (planned("{tp: 2, pp: 2, microbatches: 3}") for _ in range(2))
    assert first.span_bytes == second.span_bytes


def test_the_figures_of_a_planned_run_add_up(tmp_path: Path):
    from simulator.api import simulate

    sets = [f"{key}={value}" for key, value in {**harness.SMALL, **DENSE}.items()]
    result = simulate(
        "nvswitch16",
        "moe128",
        overrides=[*sets, "parallel={tp: 2, pp: 2, microbatches: 4}", "traffic.steps=2"],
        routing="uniform",
        out=tmp_path / "run",
    )
    assert sum(result.summary["breakdown"].values()) == pytest.approx(1.0)
    assert sum(result.summary["critical_path"].values()) == pytest.approx(1.0)
    assert result.summary["tokens"] == 2 * 4 * 64
    assert 0 < result.summary["mfu"] < 1


# --- refusals -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"parallel": "{tp: 2}", "expert_slots": 2}, "expert_slots: goes with parallel: {ep: N}"),
        (
            {"parallel": "{tp: 2}", "expert_access": "fetch"},
            "expert_access: fetch goes with parallel",
        ),
        ({"parallel": "{tp: 4, allreduce: tree}"}, "transport nccl has no costs for allreduce by"),
        (
            {"parallel": "{tp: 2}", "traffic.tokens_per_gpu": 10_000_000},
            "moe128 does not fit: gpu0 (H100-SXM) needs ",
        ),
        (
            {**DENSE, "parallel": "{pp: 2, chunk: 1 B}", "traffic.tokens_per_gpu": 10_000},
            "parallel: 40000 micro-batches; at most 32767",
        ),
    ],
)
def test_what_a_plan_cannot_do_is_refused(overrides: dict[str, object], said: str):
    with pytest.raises(InputError) as error:
        run(small(overrides))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_memory_is_told_by_part():
    inputs: Inputs = small({"parallel": "{tp: 2}", "traffic.tokens_per_gpu": 10_000_000})
    with pytest.raises(InputError, match=r"dense weights .*experts .*KV cache .*activations .*buf"):
        run(inputs)
