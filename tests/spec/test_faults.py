"""Every fault of a file at once, with position, key and what to write: the texts are pinned."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.errors import InputError
from simulator.spec.load import load_inputs, load_topology, load_workload

SWITCH = """\
name: t
gpu: H100-SXM
build:
  kind: switch
  gpus: 4
  nvlink: {bandwidth: 450 GB/s, latency: 1 us}
  pcie: {bandwidth: 64 GB/s, latency: 1 us}
  dram: {bandwidth: 600 GB/s, latency: 1 us, capacity: 1 TiB}
"""

EXPLICIT = """\
name: t
gpu: H100-SXM
build:
  kind: explicit
  nodes:
    - {name: g0, kind: gpu}
    - {name: g1, kind: gpu}
    - {name: d0, kind: dram, capacity: 1 TiB}
  links:
    - {from: g0, to: g1, bandwidth: 1 GB/s, latency: 1 us, both: true}
"""

WORK = """\
name: w
model:
  name: m
  hidden: 64
  layers: 2
  vocab: 100
  dtype: bf16
  attention: {kind: gqa, heads: 4, kv_heads: 2, head_dim: 16}
  moe: {experts: 8, top_k: 2, intermediate: 32}
traffic: {tokens_per_gpu: 1, context: 10}
routing: {source: uniform}
"""


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def topology_fault(text: str) -> list[str]:
    Path("t.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        load_topology("t.yaml")
    return str(caught.value).split("\n")


def workload_fault(text: str) -> list[str]:
    Path("w.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        load_workload("w.yaml")
    return str(caught.value).split("\n")


def test_the_files_themselves_are_right():
    Path("t.yaml").write_text(SWITCH)
    Path("e.yaml").write_text(EXPLICIT)
    Path("w.yaml").write_text(WORK)
    inputs = load_inputs("t.yaml", "w.yaml")
    assert inputs.topology.build.nvlink.bandwidth_bytes_per_s == 450e9
    assert inputs.trace_path is None
    assert load_inputs("e.yaml", "w.yaml").topology.build.links[0].source == "g0"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: t", "nam: t", "t.yaml:1:1: nam: unknown key (did you mean 'name'?)"),
        ("name: t", "name: 3", "t.yaml:1:7: name: must be text, not 3"),
        ("name: t", "name: t\nsources: x", "t.yaml:2:10: sources: must be a list, not 'x'"),
        ("name: t", "name: t\nsources: [1]", "t.yaml:2:11: sources.0: must be text, not 1"),
        ("name: t\n", "", "t.yaml:1:1: name: required, but not given"),
        (
            "H100-SXM",
            "H100-SMX",
            "t.yaml:2:6: gpu: no GPU 'H100-SMX' in the catalogue (did you mean 'H100-SXM'?); "
            "known: H100-SXM, H800-SXM, H20, H200-SXM, B200, GB200, A100-SXM-80GB, "
            "A100-SXM-40GB, A6000, L40S, V100-SXM2-32GB, MI300X",
        ),
        (
            "H100-SXM",
            "{model: H100-SXM, hbm_bandwith: 1 TB/s}",
            "t.yaml:2:24: gpu.hbm_bandwith: unknown key (did you mean 'hbm_bandwidth'?)",
        ),
        (
            "H100-SXM",
            "{model: H100-SXM, memory_efficiency: 1.5}",
            "t.yaml:2:43: gpu.memory_efficiency: must be <= 1, not 1.5",
        ),
        (
            "H100-SXM",
            "{model: H100-SXM, compute_efficiency: 0}",
            "t.yaml:2:44: gpu.compute_efficiency: must be > 0, not 0",
        ),
        (
            "H100-SXM",
            "{model: H100-SXM, flops: {bf61: 1 TFLOP/s}}",
            "t.yaml:2:32: gpu.flops.bf61: unknown dtype (did you mean 'bf16'?); "
            "known: fp64, fp32, tf32, bf16, fp16, fp8, int8, fp4",
        ),
        (
            "H100-SXM",
            "{model: H100-SXM, flops: {bf16: 1 TB/s}}",
            "t.yaml:2:38: gpu.flops.bf16: 'TB/s' is not a unit of flops, which is a unit of "
            'bandwidth; write for example "989 TFLOP/s"',
        ),
        ("gpu: H100-SXM", "gpu: 3", "t.yaml:2:6: gpu: must be a mapping (key: value), not 3"),
        (
            "kind: switch",
            "kind: swich",
            "t.yaml:4:9: build.kind: 'swich' is not one of switch, hgx-rail, fat-tree, "
            "racks, nvlink-pairs, nvlink-mesh, pcie-tree, ethernet, explicit "
            "(did you mean 'switch'?)",
        ),
        (
            "  kind: switch\n",
            "",
            "t.yaml:4:3: build: 'kind' is required: one of switch, hgx-rail, fat-tree, "
            "racks, nvlink-pairs, nvlink-mesh, pcie-tree, ethernet, explicit",
        ),
        ("gpus: 4", "gpus: 0", "t.yaml:5:9: build.gpus: must be >= 1, not 0"),
        ("gpus: 4", "gpus: 4.5", "t.yaml:5:9: build.gpus: must be a whole number, not 4.5"),
        ("gpus: 4", "gpus: '4'", "t.yaml:5:9: build.gpus: must be a whole number, not '4'"),
        ("gpus: 4", "gpus: true", "t.yaml:5:9: build.gpus: must be a whole number, not True"),
        ("gpus: 4", "gpus:", "t.yaml:5:8: build.gpus: must be a whole number, not nothing"),
        ("gpus: 4", "gpus: 70000", "t.yaml:5:9: build.gpus: must be <= 65536, not 70000"),
        ("gpus: 4", "gpus: 4\n  hosts: 5", "t.yaml:6:10: build.hosts: 5 hosts for 4 GPUs"),
        (
            "450 GB/s",
            "450",
            't.yaml:6:23: build.nvlink.bandwidth: 450 has no unit; write for example "450 GB/s"',
        ),
        ("450 GB/s", "0 GB/s", "t.yaml:6:23: build.nvlink.bandwidth: must be > 0, not '0 GB/s'"),
        (
            "450 GB/s",
            "-1 GB/s",
            "t.yaml:6:23: build.nvlink.bandwidth: '-1 GB/s' is negative; a bandwidth cannot be",
        ),
        (
            "450 GB/s",
            ".nan",
            't.yaml:6:23: build.nvlink.bandwidth: nan is not finite; write for example "450 GB/s"',
        ),
        (", capacity: 1 TiB", "", "t.yaml:8:9: build.dram.capacity: required, but not given"),
        (
            "  nvlink: {bandwidth: 450 GB/s, latency: 1 us}",
            "  nvlink: 450 GB/s",
            "t.yaml:6:11: build.nvlink: must be a mapping (key: value), not '450 GB/s'",
        ),
        (
            "latency: 1 us}\n  pcie",
            "latency: 1 us, kind: x}\n  pcie",
            "t.yaml:6:48: build.nvlink.kind: unknown key; known here: bandwidth, latency",
        ),
    ],
)
def test_a_switch_topology(old, new, message):
    assert old in SWITCH
    assert topology_fault(SWITCH.replace(old, new, 1)) == [message]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "name: g1",
            "name: g0",
            [
                "t.yaml:7:14: build.nodes.1.name: a second node named 'g0'",
                "t.yaml:10:22: build.links.0.to: no node is named 'g1'",
            ],
        ),
        (
            "to: g1",
            "to: g0",
            ["t.yaml:10:22: build.links.0.to: 'g0' is linked to itself"],
        ),
        (
            "to: g1",
            "to: zzz",
            ["t.yaml:10:22: build.links.0.to: no node is named 'zzz'"],
        ),
        (
            "both: true",
            "both: yes",
            ["t.yaml:10:66: build.links.0.both: must be true or false, not 'yes'"],
        ),
        (
            "kind: dram",
            "kind: cpu",
            ["t.yaml:8:39: build.nodes.2.capacity: only a dram node has one, not a cpu node"],
        ),
        (
            "kind: dram",
            "kind: drma",
            [
                "t.yaml:8:24: build.nodes.2.kind: 'drma' is not one of gpu, nvswitch, pcie, cpu, "
                "dram, nic, leaf, spine (did you mean 'dram'?)"
            ],
        ),
        (
            "both: true}",
            "both: true}\n    - {from: g1, to: g0, bandwidth: 1 GB/s, latency: 1 us}",
            ["t.yaml:11:7: build.links.1: a second link from 'g1' to 'g0'"],
        ),
        (
            "both: true}",
            "kind: nvlnk}",
            [
                "t.yaml:10:66: build.links.0.kind: 'nvlnk' is not one of nvlink, pcie, membus, "
                "socket, network (did you mean 'nvlink'?)"
            ],
        ),
        ("name: d0", "name: ''", ["t.yaml:8:14: build.nodes.2.name: must not be empty"]),
    ],
)
def test_an_explicit_topology(old, new, message):
    assert old in EXPLICIT
    assert topology_fault(EXPLICIT.replace(old, new, 1)) == message


def test_a_graph_without_gpus():
    text = EXPLICIT.replace("kind: gpu", "kind: cpu")
    assert topology_fault(text) == ["t.yaml:6:5: build.nodes: no node of kind gpu"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("top_k: 2", "top_k: 9", "w.yaml:9:28: model.moe.top_k: 9 of 8 experts"),
        ("experts: 8", "experts: 40000", "w.yaml:9:18: model.moe.experts: must be <= 32767, not "
         "40000"),
        ("kv_heads: 2", "kv_heads: 3", "w.yaml:8:46: model.attention.kv_heads: 3 does not divide "
         "heads = 4"),
        ("kind: gqa", "kind: gqqa", "w.yaml:8:21: model.attention.kind: 'gqqa' is not one of gqa, "
         "mla (did you mean 'gqa'?)"),
        ("dtype: bf16", "dtype: bf61", "w.yaml:7:10: model.dtype: 'bf61' is not one of fp32, "
         "bf16, fp16, fp8, fp8_block, int8, int4, fp4, mxfp4, nvfp4 (did you mean 'bf16'?)"),
        ("intermediate: 32", "intermediate: 32, shared_experts: 1",
         "w.yaml:9:8: model.moe.shared_intermediate: give shared_experts and shared_intermediate "
         "together"),
        ("intermediate: 32", "intermediate: 32, first_dense_layers: 1",
         "w.yaml:3:3: model.dense_intermediate: required, because moe.first_dense_layers "
         "is not 0"),
        ("layers: 2", "layers: 5000", "w.yaml:5:11: model.layers: must be <= 4096, not 5000"),
        ("context: 10", "context: 10, phase: decod", "w.yaml:10:50: traffic.phase: 'decod' is "
         "not one of decode, prefill (did you mean 'decode'?)"),
        ("tokens_per_gpu: 1", "tokens_per_gpu: 0", "w.yaml:10:27: traffic.tokens_per_gpu: must "
         "be >= 1, not 0"),
        ("context: 10", "context: 10, warmup_steps: -1", "w.yaml:10:57: traffic.warmup_steps: "
         "must be >= 0, not -1"),
        ("source: uniform", "source: 'zipf:'", "w.yaml:11:19: routing.source: 'zipf:': '' is "
         "not a number from 0 to 100; write for example 'zipf:1.2'"),
        ("source: uniform", "source: uniform:1", "w.yaml:11:19: routing.source: 'uniform:1': "
         "'uniform' takes no argument; write 'uniform'"),
        ("source: uniform", "source: markov:1.5", "w.yaml:11:19: routing.source: 'markov:1.5': "
         "'1.5' is not a number from 0 to 1; write for example 'markov:0.5'"),
        ("source: uniform", "source: ''", "w.yaml:11:19: routing.source: must not be empty"),
        ("name: w", "name: w\noverlap: chunked", "w.yaml:2:10: overlap: 'chunked' needs a "
         "number; write for example 'chunked:4'"),
        ("name: w", "name: w\noverlap: chunked:2.5", "w.yaml:2:10: overlap: 'chunked:2.5': "
         "'2.5' is not a whole number from 1 to 1024; write for example 'chunked:4'"),
        ("name: w", "name: w\noverlap: two-batches", "w.yaml:2:10: overlap: 'two-batches' is "
         "not a known overlap (did you mean 'two-batch'?); known: none, two-batch, chunked:4"),
        ("name: w", "name: w\nprefetch: oracel", "w.yaml:2:11: prefetch: 'oracel' is not a "
         "known prefetch (did you mean 'oracle'?); known: none, popularity, markov, learned, "
         "history:4, oracle:2, synthetic:0.8, or package.module:function"),
        ("name: w", "name: w\nprefetch: synthetic:nan", "w.yaml:2:11: prefetch: "
         "'synthetic:nan': 'nan' is not a number from 0 to 1; write for example "
         "'synthetic:0.8'"),
        ("name: w", "name: w\neviction: lur", "w.yaml:2:11: eviction: 'lur' is not a known "
         "eviction (did you mean 'lru'?); known: lru, lfu, lfu-aging, arc, least-stale, belady, "
         "or package.module:function"),
        ("name: w", "name: w\nexpert_slots: 0", "w.yaml:2:15: expert_slots: must be >= 1, not 0"),
        ("name: w", "name: w\nexpert_acess: fetch", "w.yaml:2:1: expert_acess: unknown key (did "
         "you mean 'expert_access'?)"),
        ("name: w", "name: w\ncopy_efficiency: {nvlink: 0}", "w.yaml:2:27: "
         "copy_efficiency.nvlink: must be > 0, not 0"),
        ("name: w", "name: w\ntransport: {path: fast}", "w.yaml:2:19: transport.path: 'fast' is "
         "not one of fastest, network, host (did you mean 'fastest'?)"),
        ("name: w", "name: w\ntransport: ncl", "w.yaml:2:12: transport: no transport 'ncl' (did "
         "you mean 'nccl'?); known: deepep-ll, deepep-ll-rdma, deepep-normal, mnnvl, mpi, nccl, or "
         "a path"),
        ("name: w", "name: w\ntransport: {dispatch_bytes_per_element: .inf}", "w.yaml:2:41: "
         "transport.dispatch_bytes_per_element: must be a finite number, not inf"),
        ("name: w", "name: w\ntransport: {name: ncl}", "w.yaml:2:19: transport.name: no transport "
         "'ncl' (did you mean 'nccl'?); known: deepep-ll, deepep-ll-rdma, deepep-normal, mnnvl, "
         "mpi, nccl, or a path"),
        ("name: w", "name: w\noverlap: my.module:mine", "w.yaml:2:10: overlap: 'my.module:mine' is "
         "not a known overlap; known: none, two-batch, chunked:4"),
    ],
)  # fmt: skip
def test_a_workload(old, new, message):
    assert old in WORK
    assert workload_fault(WORK.replace(old, new, 1)) == [message]


def test_a_model_of_dense_layers_only():
    text = WORK.replace("intermediate: 32", "intermediate: 32, first_dense_layers: 2")
    assert workload_fault(text)[0] == (
        "w.yaml:9:69: model.moe.first_dense_layers: 2 of 2 layers leaves no MoE layer"
    )


def test_own_functions_are_accepted_by_name():
    text = WORK.replace("source: uniform", "source: my.laws:mine")
    Path("w.yaml").write_text(f"{text}prefetch: mod:fn\neviction: a.b.c:d\n")
    work = load_workload("w.yaml")
    assert (work.prefetch, work.eviction) == ("mod:fn", "a.b.c:d")


def test_all_faults_of_both_files_come_at_once():
    Path("t.yaml").write_text(SWITCH.replace("gpus: 4", "gpus: 0").replace("64 GB/s", "64"))
    Path("w.yaml").write_text(WORK.replace("hidden: 64", "hidden: x").replace("vocab", "vocap"))
    with pytest.raises(InputError) as caught:
        load_inputs("t.yaml", "w.yaml")
    assert str(caught.value).split("\n") == [
        "t.yaml:5:9: build.gpus: must be >= 1, not 0",
        't.yaml:7:21: build.pcie.bandwidth: 64 has no unit; write for example "64 GB/s"',
        "w.yaml:4:11: model.hidden: must be a whole number, not 'x'",
        "w.yaml:6:3: model.vocap: unknown key (did you mean 'vocab'?)",
    ]


@pytest.mark.parametrize(
    ("ep", "message"),
    [
        (3, "w.yaml:12:16: parallel.ep: 3 does not divide the 16 GPUs of t"),
        (16, "w.yaml:12:16: parallel.ep: 16 GPUs, but a layer has 8 experts; write 8 or less"),
    ],
)
def test_expert_parallelism_that_does_not_fit_the_cluster(ep, message):
    Path("t.yaml").write_text(SWITCH.replace("gpus: 4", "gpus: 16"))
    Path("w.yaml").write_text(f"{WORK}parallel: {{ep: {ep}}}\n")
    with pytest.raises(InputError) as caught:
        load_inputs("t.yaml", "w.yaml")
    assert str(caught.value) == message
