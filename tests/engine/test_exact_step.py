"""Whole steps through the engine against closed forms, to 1e-9."""

from __future__ import annotations

import math
from pathlib import Path

import closed_forms
import numpy as np
import pytest
from engine.harness import Run, run, small, write_trace

from simulator.routing.batches import synthesize
from simulator.spec.load import Inputs

REL = 1e-9


def rates(inputs: Inputs) -> closed_forms.Rates:
    gpu = inputs.topology.gpu
    family = gpu.kernels["bf16"]
    return closed_forms.Rates(
        gpu.flops_per_s["bf16"] * gpu.compute_efficiency,
        gpu.hbm_bandwidth_bytes_per_s * gpu.memory_efficiency,
        gpu.launch_overhead_s,
        gpu.launch_overhead_s * family.depth,
        family.fill,
    )


def grouped(inputs: Inputs) -> closed_forms.GroupedRates:
    gpu = inputs.topology.gpu
    family = gpu.kernels["moe_bf16"]
    return closed_forms.GroupedRates(
        gpu.flops_per_s["bf16"] * gpu.compute_efficiency * family.compute,
        gpu.hbm_bandwidth_bytes_per_s * gpu.memory_efficiency * family.memory,
        gpu.launch_overhead_s * family.launches,
        family.fill,
        family.tile,
        gpu.hbm_bandwidth_bytes_per_s * family.passes,
        l2_bytes_per_s=gpu.l2_bandwidth_bytes_per_s or math.inf,
        depth_s=gpu.launch_overhead_s * family.depth,
    )


def seconds(spans: dict[str, np.ndarray]) -> np.ndarray:
    return spans["end_s"] - spans["start_s"]


# --- all-to-all --------------------------------------------------------------------------


def equal_all_to_all(path: Path, gpus: int, each: int) -> Path:
    """One layer; GPU g's tokens, `each` to every other GPU's one expert (prefill order)."""
    ids = [(g + 1 + t) % gpus for g in range(gpus) for _ in range(each) for t in range(gpus - 1)]
    requests = np.repeat(np.arange(gpus), each * (gpus - 1))
    return write_trace(path, np.array(ids).reshape(-1, 1, 1), gpus, requests.tolist())


@pytest.mark.parametrize(("gpus", "each"), [(2, 1), (4, 3), (16, 2)])
def test_an_equal_all_to_all_takes_alpha_and_its_bytes(tmp_path: Path, gpus: int, each: int):
    inputs = small(
        {
            "topology.build.gpus": gpus,
            "model.layers": 1,
            "model.moe": f"{{experts: {gpus}, top_k: 1, intermediate: 48}}",
            "traffic.phase": "prefill",
            "traffic.tokens_per_gpu": each * (gpus - 1),
            "transport.dispatch_bytes_per_element": 1.5,
        },
        equal_all_to_all(tmp_path / "trace.parquet", gpus, each),
    )
    found = run(inputs)
    build, transport = inputs.topology.build, inputs.workload.transport
    cost = transport.costs["alltoall"]["direct"]
    bandwidth = build.nvlink.bandwidth_bytes_per_s
    alpha = cost.launch_s + 2 * build.nvlink.latency_s
    for kind, element_bytes in (("dispatch", 1.5), ("combine", 2.0)):
        spans = found.where(kind=kind)
        message = each * 64 * element_bytes
        share, own = cost.efficiency.nvlink, cost.own_piece
        wire = closed_forms.on_wire(message, cost.half_size_bytes, share, gpus - 1, own)
        wanted = closed_forms.all_to_all(gpus, wire, bandwidth, alpha)
        assert len(spans["gpu"]) == gpus
        assert spans["end_s"] - spans["ready_s"] == pytest.approx([wanted] * gpus, rel=REL)
        launched = spans["ready_s"] + cost.launch_s
        assert spans["start_s"] == pytest.approx(launched, rel=REL)
        assert spans["bytes"].tolist() == [(gpus - 1) * message] * gpus
    # Experts begin when the dispatch ends, and the head when the combine ends.
    assert found.where(kind="experts")["start_s"] == pytest.approx(
        found.where(kind="dispatch")["end_s"], rel=REL
    )
    assert found.where(kind="lm_head")["start_s"] == pytest.approx(
        found.where(kind="combine")["end_s"], rel=REL
    )


def test_a_step_is_the_sum_of_what_follows_one_another(tmp_path: Path):
    """Equal GPUs, no overlap: attention, dispatch, experts, combine, head."""
    inputs = small(
        {
            "model.layers": 1,
            "model.moe": "{experts: 4, top_k: 1, intermediate: 48}",
            "traffic.phase": "prefill",
            "traffic.tokens_per_gpu": 3,
        },
        equal_all_to_all(tmp_path / "trace.parquet", 4, 1),
    )
    found = run(inputs)
    one = [seconds(found.where(kind=kind, gpu=2)).sum() for kind in ("attention", "experts")]
    sends = [
        (spans := found.where(kind=kind, gpu=2))["end_s"] - spans["ready_s"]
        for kind in ("dispatch", "combine")
    ]
    head = seconds(found.where(kind="lm_head", gpu=2)).sum()
    assert found.end_s == pytest.approx(sum(one) + float(sum(sends).sum()) + head, rel=REL)


# --- overlap -----------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [1, 2, 3, 8])
@pytest.mark.parametrize("nvlink", ["20 GB/s", "400 MB/s", "2 GB/s"])
def test_chunks_overlap_as_a_pipeline_of_two_stages(tmp_path: Path, chunks: int, nvlink: str):
    """Two GPUs send all tokens to each other: f on the wire and c in experts per chunk."""
    tokens = 4 * chunks
    ids = np.repeat([1, 0], tokens).reshape(-1, 1, 1)
    trace = write_trace(tmp_path / "trace.parquet", ids, 2, np.repeat([0, 1], tokens).tolist())
    inputs = small(
        {
            "topology.build.gpus": 2,
            "topology.build.nvlink": f"{{bandwidth: {nvlink}, latency: 700 ns}}",
            "model.layers": 1,
            "model.hidden": 1024,
            "model.moe": "{experts: 2, top_k: 1, intermediate: 2048}",
            "traffic.phase": "prefill",
            "traffic.tokens_per_gpu": tokens,
            "overlap": f"chunked:{chunks}",
            "transport.sms": 0,
        },
        trace,
    )
    found = run(inputs)
    cost = inputs.workload.transport.costs["alltoall"]["direct"]
    link = inputs.topology.build.nvlink
    sent = closed_forms.on_wire(
        4 * 1024 * 2.0, cost.half_size_bytes, cost.efficiency.nvlink, 1, cost.own_piece
    )
    wire = closed_forms.lone_transfer(sent, link.bandwidth_bytes_per_s, 2 * 700e-9)
    compute = closed_forms.fused_moe(grouped(inputs), 4, [4], 1024, 2048)
    wanted = cost.launch_s + closed_forms.pipeline(wire, compute, chunks)
    for gpu in (0, 1):
        begun = found.where(kind="attention", gpu=gpu)["end_s"].max()
        experts = found.where(kind="experts", gpu=gpu)
        assert sorted(experts["chunk"]) == list(range(chunks))
        assert experts["end_s"].max() - begun == pytest.approx(wanted, rel=REL)


@pytest.mark.parametrize("experts", [1, 2, 5])
@pytest.mark.parametrize("pcie", ["64 GB/s", "2 TB/s", "4 TB/s"])
def test_demand_fetches_overlap_with_computing_as_a_pipeline(
    tmp_path: Path, experts: int, pcie: str
):
    """One token takes `experts` experts, none resident: f each on the copy stream, c to compute."""
    ids = np.arange(experts).reshape(1, 1, experts)
    trace = write_trace(tmp_path / "trace.parquet", ids, 8, [0])
    inputs = small(
        {
            "topology.build.gpus": 1,
            "topology.build.pcie": f"{{bandwidth: {pcie}, latency: 500 ns}}",
            "topology.build.dram": "{bandwidth: 9 TB/s, latency: 100 ns, capacity: 1 TiB}",
            "model.layers": 1,
            "model.hidden": 1024,
            "model.moe": f"{{experts: 8, top_k: {experts}, intermediate: 2048}}",
            "traffic.tokens_per_gpu": 1,
            "expert_slots": 7,
        },
        trace,
    )
    found = run(inputs)
    pcie_rate = (
        inputs.topology.build.pcie.bandwidth_bytes_per_s * inputs.workload.copy_efficiency.pcie
    )
    fetch = closed_forms.lone_transfer(3 * 1024 * 2048 * 2.0, pcie_rate, 600e-9)
    compute = closed_forms.gated_ffn(rates(inputs), 1, 1024, 2048)
    begun = found.where(kind="attention")["end_s"].max()
    kernels = found.where(kind="experts")
    assert kernels["expert"].tolist() == list(range(experts))
    wanted = closed_forms.pipeline(fetch, compute, experts)
    assert kernels["end_s"].max() - begun == pytest.approx(wanted, rel=REL)
    copies = found.where(kind="demand")
    assert copies["end_s"] - begun == pytest.approx(fetch * np.arange(1, experts + 1), rel=REL)
    assert copies["ready_s"] == pytest.approx([begun] * experts, rel=REL)


def test_two_batches_compute_while_the_other_communicates():
    """Two GPUs, one layer: while the first half's tokens are under way, the second half attends."""
    trace_like = {
        "topology.build.gpus": 2,
        "model.layers": 1,
        "traffic.tokens_per_gpu": 8,
        "overlap": "two-batch",
    }
    found = run(small(trace_like))
    for gpu in (0, 1):
        first = found.where(gpu=gpu, microbatch=0, kind="attention")
        second = found.where(gpu=gpu, microbatch=1, kind="attention")
        sent = found.where(gpu=gpu, microbatch=0, kind="dispatch")
        assert first["rows"].tolist() == second["rows"].tolist() == [4]
        assert second["start_s"] == first["end_s"] == sent["ready_s"]
        assert sent["end_s"] > second["start_s"]


# --- no network, or a free one -----------------------------------------------------------


def free_network(gpus: int, **more: object) -> dict[str, object]:
    return {
        "topology.build.gpus": gpus,
        "topology.build.nvlink": "{bandwidth: 1000000000 PB/s, latency: 0 s}",
        "transport.costs.alltoall.direct.launch": "0 s",
        **{key.replace("__", "."): value for key, value in more.items()},
    }


@pytest.mark.parametrize("gpus", [1, 2, 4])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_with_a_free_network_a_step_is_pure_compute(gpus: int, seed: int):
    """Infinite bandwidth, no latency, no overhead: only kernels, by the rooflines of the shapes."""
    inputs = small(free_network(gpus, model__layers=3, traffic__tokens_per_gpu=5))
    found = run(inputs, seed)
    of, moe = rates(inputs), grouped(inputs)
    batch = next(synthesize("uniform", gpus, 5, "decode", 3, 8, 2, seed))
    owner = np.repeat(np.arange(gpus), 8 // gpus).tolist()
    experts, sends = [], []
    for layer in range(3):
        ids = batch.ids[:, layer].tolist()
        source = batch.source_gpu.tolist()
        rows = np.array(closed_forms.rows_per_expert(ids, source, owner, gpus, gpus))
        pairs = np.array(closed_forms.tokens_between(ids, source, owner, gpus, gpus))
        came = pairs.sum(axis=0).tolist()
        experts.append(
            [
                closed_forms.fused_moe(moe, tokens, r.tolist(), 64, 48)
                for tokens, r in zip(came, rows, strict=True)
            ]
        )
        sends.append([(int(a), int(b)) for a, b in np.argwhere(pairs) if a != b])
    attention = closed_forms.gqa_attention(of, 5, 64, 4, 2, 16, 32, 8)
    head = closed_forms.lm_head(of, 5, 64, 256)
    wanted = closed_forms.free_network_step([attention] * gpus, [head] * gpus, experts, sends)
    assert found.end_s == pytest.approx(wanted, rel=REL)


def test_one_gpu_moves_nothing():
    found = run(small({"topology.build.gpus": 1, "traffic.steps": 3, "model.layers": 3}))
    assert set(found.spans["stream"]) == {"compute"}
    assert not len(found.links["link"]), "no link is used, so none is listed"
    assert found.end_s == pytest.approx(seconds(found.spans).sum(), rel=REL)


def test_one_gpu_with_offloaded_experts_moves_them_over_pcie_only():
    found = run(small({"topology.build.gpus": 1, "traffic.steps": 3, "expert_slots": 2}))
    assert set(found.spans["stream"]) == {"compute", "copy"}
    assert found.links["link"].tolist() == ["dram0 -> cpu0", "cpu0 -> gpu0"]
    copied = found.where(stream="copy")["bytes"].sum()
    assert found.links["bytes"].tolist() == [copied, copied]


@pytest.mark.parametrize("steps", [1, 4])
def test_on_one_gpu_a_step_is_the_sum_of_its_kernels(steps: int):
    inputs = small(
        {
            "topology.build.gpus": 1,
            "model.layers": 4,
            "model.dense_intermediate": 80,
            "model.moe": "{experts: 8, top_k: 2, intermediate: 48, first_dense_layers: 1,"
            " shared_experts: 2, shared_intermediate: 40}",
            "traffic.steps": steps,
        }
    )
    found = run(inputs)
    of, moe = rates(inputs), grouped(inputs)
    generator = synthesize("uniform", 1, 4, "decode", 3, 8, 2, 0)
    for step in range(steps):
        ids = next(generator).ids
        wanted = closed_forms.gqa_attention(of, 4, 64, 4, 2, 16, 32, 0)
        wanted += closed_forms.gated_ffn(of, 4, 64, 80)
        wanted += closed_forms.lm_head(of, 4, 64, 256)
        for layer in range(3):
            wanted += closed_forms.gqa_attention(of, 4, 64, 4, 2, 16, 32, 8)
            wanted += closed_forms.gated_ffn(of, 4, 64, 2 * 40)
            rows = np.bincount(ids[:, layer].ravel(), minlength=8).tolist()
            wanted += closed_forms.fused_moe(moe, 4, rows, 64, 48)
        took = found.steps["end_s"][step] - found.steps["start_s"][step]
        assert took == pytest.approx(wanted, rel=REL)


def kinds_of(found: Run) -> set[str]:
    return set(found.spans["kind"])


def test_a_kernel_too_short_for_the_clock_is_no_span_and_no_fault():
    """Next to seconds of fetching, 1e-20 s of computing do not move the clock."""
    found = run(
        small(
            {
                "gpu.flops": "{bf16: 1000000000 EFLOP/s}",
                "gpu.hbm_bandwidth": "1000000000 PB/s",
                "gpu.launch_overhead": "0 s",
                "topology.build.pcie": "{bandwidth: 1 kB/s, latency: 1 us}",
                "expert_slots": 1,
            }
        )
    )
    assert (found.spans["end_s"] > found.spans["start_s"]).all()
    assert {"demand", "dispatch"} <= kinds_of(found)


def test_windowed_layers_read_less_of_the_cache():
    """Layers 0, 2 (dense and sparse) attend to 8 of 32 tokens, 1 and 3 to all."""
    inputs = small(
        {
            "topology.build.gpus": 1,
            "model.layers": 4,
            "model.dense_intermediate": 80,
            "model.moe": "{experts: 8, top_k: 2, intermediate: 48, first_dense_layers: 1}",
            "model.sliding_window": "{tokens: 8, full_every: 2}",
        }
    )
    found = run(inputs)
    of = rates(inputs)
    for layer, keys, gate in ((0, 8, 0), (1, 32, 8), (2, 8, 8), (3, 32, 8)):
        wanted = closed_forms.gqa_attention(of, 4, 64, 4, 2, 16, keys, gate)
        spans = found.where(kind="attention", layer=layer)
        assert seconds(spans) == pytest.approx([wanted], rel=REL)


def test_without_cuda_graphs_the_host_launches_every_kernel():
    """Seven kernels of attention, two of the head: 5 us each, longer than they run."""
    found = run(small({"topology.build.gpus": 1, "model.layers": 1, "cuda_graphs": False}))
    assert seconds(found.where(kind="attention")) == pytest.approx([35e-6], rel=REL)
    assert seconds(found.where(kind="lm_head")) == pytest.approx([10e-6], rel=REL)
