"""Shipped files load, every figure has a source, models have their published size."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.errors import InputError
from simulator.spec import catalogue
from simulator.spec.find import find, shipped
from simulator.spec.load import gpu_count, load_topology, load_workload
from simulator.spec.schema import Gpu, Topology

ROOT = Path(__file__).resolve().parents[2]


def test_the_names_are_those_of_the_files():
    names = shipped("topology")
    assert sorted(names) == sorted(p.stem for p in (ROOT / "topologies").glob("*.yaml"))
    # Numbers stand by their size, not by their digits.
    sizes = ["h100x4", "h100x16-fat-tree", "h100x16-rail", "h100x32-rail", "h100x1024-rail"]
    assert [name for name in names if name in sizes] == sizes
    assert list(shipped("workload")) == sorted(p.stem for p in (ROOT / "workloads").glob("*.yaml"))
    assert {"nvswitch16", "a100x2", "a100x8", "h100x4", "a6000x10", "h100x16-rail"} <= set(
        shipped("topology")
    )
    assert {"moe128", "mixtral-8x7b", "qwen3-235b-a22b", "gpt-oss-120b", "deepseek-v3"} <= set(
        shipped("workload")
    )


@pytest.mark.parametrize("name", shipped("topology"))
def test_every_topology_loads_and_names_its_sources(name):
    topology = load_topology(name)
    assert topology.name == name
    assert topology.description
    assert topology.sources
    assert gpu_count(topology) >= 1


@pytest.mark.parametrize("name", shipped("workload"))
def test_every_workload_loads_and_names_its_sources(name):
    workload = load_workload(name)
    assert workload.name == name
    assert workload.description
    assert workload.sources


def test_the_main_job_is_what_the_card_says():
    topology, work = load_topology("nvswitch16"), load_workload("moe128")
    build = topology.build
    assert (build.gpus, build.hosts, topology.gpu.name) == (16, 2, "H100-SXM")
    assert build.nvlink.bandwidth_bytes_per_s == 450e9
    assert build.pcie.bandwidth_bytes_per_s == 64e9
    assert build.dram.bandwidth_bytes_per_s == pytest.approx(2 * 8 * 4800e6 * 8)
    model = work.model
    assert (model.moe.experts, model.moe.top_k, model.layers) == (128, 4, 36)
    per_expert = 3 * model.hidden * model.moe.intermediate * 2 * model.layers
    assert per_expert == pytest.approx(2.0e9, rel=0.01)
    assert (work.expert_slots, work.prefetch, work.overlap) == (4, "learned", "two-batch")
    assert (work.routing.source, work.routing.tokens) == ("moe128-python", "generated")


@pytest.mark.parametrize(
    ("name", "gpu", "price", "nvlink"),
    [("a100x2", "A100-SXM-80GB", 3.0, 300e9), ("a100x8", "A100-SXM-80GB", 3.0, 300e9),
     ("h100x4", "H100-SXM", 4.0, 450e9)],
)  # fmt: skip
def test_the_clusters_of_the_prophet_study(name, gpu, price, nvlink):
    topology = load_topology(name)
    assert (topology.gpu.name, topology.gpu.price_per_hour) == (gpu, price)
    assert topology.build.nvlink.bandwidth_bytes_per_s == nvlink
    assert topology.gpu.nvlink_bandwidth_bytes_per_s == nvlink


def test_the_bridged_cluster_and_the_rails():
    pairs = load_topology("a6000x10")
    assert pairs.gpu.price_per_hour == 1.5
    assert pairs.build.bridge.bandwidth_bytes_per_s == 56.25e9
    rail = load_topology("h100x16-rail").build
    assert rail.nic.bandwidth_bytes_per_s == 50e9
    assert (rail.oversubscription, rail.ecmp) == (1.0, "hashed")


def mixtral() -> int:
    attention = 2 * 4096 * 4096 + 2 * 4096 * 1024
    return 32 * (attention + 8 * 3 * 4096 * 14336 + 4096 * 8) + 2 * 32000 * 4096


def qwen3() -> int:
    attention = 2 * 4096 * 8192 + 2 * 4096 * 512
    return 94 * (attention + 128 * 3 * 4096 * 1536 + 4096 * 128) + 2 * 151936 * 4096


def gpt_oss() -> int:
    attention = 2 * 2880 * 4096 + 2 * 2880 * 512
    return 36 * (attention + 128 * 3 * 2880 * 2880 + 2880 * 128) + 2 * 201088 * 2880


def deepseek() -> int:
    attention = 7168 * 1536 + 1536 * 128 * 192 + 7168 * 576 + 512 * 128 * 256 + 128 * 128 * 7168
    sparse = 257 * 3 * 7168 * 2048 + 7168 * 256
    return 61 * attention + 3 * 3 * 7168 * 18432 + 58 * sparse + 2 * 129280 * 7168


def counted(name: str) -> int:
    """Parameters of a shipped model, counted from its own file: matrices, no norms and biases."""
    model = load_workload(name).model
    a, moe = model.attention, model.moe
    if a.kind == "gqa":
        attention = 2 * model.hidden * a.head_dim * (a.heads + a.kv_heads)
    else:
        down = model.hidden * (a.q_lora_rank + a.kv_lora_rank + a.qk_rope_head_dim)
        query = a.q_lora_rank * (a.qk_nope_head_dim + a.qk_rope_head_dim)
        keys = a.kv_lora_rank * (a.qk_nope_head_dim + a.v_head_dim)
        attention = down + a.heads * (query + keys + a.v_head_dim * model.hidden)
    shared = moe.shared_experts * moe.shared_intermediate
    sparse = 3 * model.hidden * (moe.experts * moe.intermediate + shared)
    sparse += model.hidden * moe.experts
    dense = 3 * model.hidden * model.dense_intermediate
    first = moe.first_dense_layers
    layers = model.layers * attention + first * dense + (model.layers - first) * sparse
    return layers + 2 * model.vocab * model.hidden


@pytest.mark.parametrize(
    ("name", "by_hand", "published"),
    [
        ("mixtral-8x7b", mixtral(), 46.7e9),
        ("qwen3-235b-a22b", qwen3(), 235.1e9),
        ("gpt-oss-120b", gpt_oss(), 116.8e9),
        ("deepseek-v3", deepseek(), 671.0e9),
    ],
)
def test_a_model_has_its_published_number_of_parameters(name, by_hand, published):
    assert counted(name) == by_hand
    assert by_hand == pytest.approx(published, rel=0.01)


FIGURES = set(Gpu.model_fields) - {"name", "sources"}


@pytest.mark.parametrize("name", catalogue.names())
def test_every_figure_of_the_catalogue_has_a_source(name):
    entry = catalogue.entries()[name]
    keys = {Gpu.model_fields[field].alias or field for field in FIGURES}
    optional = {"nvlink_bandwidth", "in_switch_reduction", "kernels", "copy_efficiency", "profile"}
    optional |= {"l2_bandwidth"}  # known for few; left out, nothing is bound by it
    assert set(entry["sources"]) == set(entry) - {"sources"}
    assert set(entry) - {"sources"} >= keys - optional
    assert all(isinstance(text, str) and text for text in entry["sources"].values())


@pytest.mark.parametrize("name", catalogue.names())
def test_a_catalogue_entry_is_a_possible_gpu(name):
    gpu = Topology.model_validate(
        {
            "name": "t",
            "gpu": name,
            "build": {
                "kind": "explicit",
                "nodes": [{"name": "g", "kind": "gpu"}],
            },
        }
    ).gpu
    assert gpu.name == name
    assert gpu.idle_power_w < gpu.tdp_w
    rates = gpu.flops_per_s
    if "fp8" in rates:
        assert rates["fp8"] == pytest.approx(2 * rates["fp16"], rel=0.02)
    assert gpu.l2_bytes < gpu.hbm_capacity_bytes


def test_the_catalogue_is_the_one_that_was_promised():
    assert set(catalogue.names()) == {
        "A100-SXM-40GB", "A100-SXM-80GB", "A6000", "L40S", "H100-SXM", "H800-SXM", "H20",
        "H200-SXM", "B200", "GB200", "V100-SXM2-32GB", "MI300X",
    }  # fmt: skip


def test_a_gpu_that_is_measured_nowhere_says_so():
    measured = {"H100-SXM", "A100-SXM-80GB"}
    for name, entry in catalogue.entries().items():
        for key in ("compute_efficiency", "memory_efficiency", "launch_overhead"):
            text = entry["sources"][key]
            if name in measured:
                assert text.startswith("fitted, gemm_h100_a100.csv")
            else:
                nearest = text.removeprefix("assumed equal to ").removesuffix("; not measured")
                assert nearest in measured
                assert entry[key] == catalogue.entries()[nearest][key]


def test_a_gpu_may_be_written_out_in_full():
    entry = {k: v for k, v in catalogue.entries()["H20"].items() if k != "sources"}
    build = {"kind": "explicit", "nodes": [{"name": "g", "kind": "gpu"}]}
    topology = Topology.model_validate(
        {"name": "t", "gpu": {"name": "own", **entry}, "build": build}
    )
    assert topology.gpu.name == "own"
    assert topology.gpu.sms == 78


def test_names_and_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find("topology", "nvswitch16") == ROOT / "topologies" / "nvswitch16.yaml"
    own = tmp_path / "own.yaml"
    own.write_text((ROOT / "topologies" / "h100x4.yaml").read_text())
    assert find("topology", "own.yaml") == Path("own.yaml")
    assert load_topology(str(own)).name == "h100x4"


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        (
            "topology",
            "nvswich16",
            "no topology 'nvswich16' (did you mean 'nvswitch16'?); known: "
            + ", ".join(shipped("topology"))
            + ", or a path",
        ),
        (
            "workload",
            "zzz",
            "no workload 'zzz'; known: " + ", ".join(shipped("workload")) + ", or a path",
        ),
        ("topology", "own.yaml", "topology 'own.yaml': no such file"),
        ("topology", "sub/own", "topology 'sub/own': no such file"),
        ("trace", "t.parquet", "trace 't.parquet': no such file"),
        ("workload", "./", "no workload './'; known: "
         + ", ".join(shipped("workload")) + ", or a path"),
        ("topology", "", "no topology ''; known: " + ", ".join(shipped("topology"))
         + ", or a path"),
    ],
)  # fmt: skip
def test_an_unknown_name(kind, name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        find(kind, name)
    assert str(caught.value) == message
