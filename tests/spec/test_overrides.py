"""--set, --routing and what a run is told of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from simulator.errors import InputError
from simulator.spec.load import (
    gpu_count,
    load_inputs,
    load_topology,
    load_workload,
    resolved,
)
from simulator.spec.transport import load_transport

ROOT = Path(__file__).resolve().parents[2]

GRAPH = """\
name: graph
gpu: {model: A6000, price: $2/h}
build:
  kind: explicit
  nodes: [{name: g0, kind: gpu}, {name: g1, kind: gpu}]
  links: [{from: g0, to: g1, bandwidth: 1 GB/s, latency: 1 us}]
"""


def inputs(*overrides: str, routing: str | None = "uniform"):
    return load_inputs("nvswitch16", "moe128", overrides, routing)


def test_without_overrides_the_file_stands():
    given = inputs()
    assert given.topology == load_topology("nvswitch16")
    assert given.workload.traffic == load_workload("moe128").traffic


def test_quantities_counts_names_lists_and_mappings():
    given = inputs(
        "build.nvlink.bandwidth=900 GB/s",
        "topology.name=mine",
        "traffic.steps=7",
        "workload.sources=[a, b]",
        "overlap=chunked:3",
        "prefetch=synthetic:0.8",
        "expert_slots=null",
        "transport={deduplicate: none}",
        "build.hosts = 4",
    )
    assert given.topology.build.nvlink.bandwidth_bytes_per_s == 900e9
    assert given.topology.build.nvlink.latency_s == 468e-9
    assert given.topology.name == "mine"
    assert given.topology.build.hosts == 4
    work = given.workload
    assert (work.traffic.steps, work.traffic.context) == (7, 2048)
    assert work.sources == ("a", "b")
    assert (work.overlap, work.prefetch, work.expert_slots) == ("chunked:3", "synthetic:0.8", None)
    assert work.transport.deduplicate == "none"


def test_a_later_override_wins():
    assert inputs("traffic.steps=2", "traffic.steps=3").workload.traffic.steps == 3


def test_a_mapping_that_the_file_leaves_out_is_made():
    work = inputs("copy_efficiency.pcie=0.5").workload
    assert work.copy_efficiency.pcie == 0.5
    assert work.copy_efficiency.nvlink == load_workload("moe128").copy_efficiency.nvlink


def test_a_transport_is_named_and_single_keys_of_it_are_set():
    given = inputs("transport=deepep-ll", "transport.costs.dispatch.direct.launch=1 us")
    shipped = load_transport("deepep-ll")
    cost = given.workload.transport.costs["dispatch"]["direct"]
    assert given.workload.transport.name == "deepep-ll"
    assert cost.launch_s == 1e-6
    assert cost.efficiency == shipped.costs["dispatch"]["direct"].efficiency
    assert given.workload.transport.costs["combine"] == shipped.costs["combine"]
    assert inputs().workload.transport == load_transport("nccl")


def test_a_transport_may_be_a_file_beside_the_workload(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("name: mine\ncosts: {alltoall: {direct: {launch: 9 us}}}\n")
    workload = Path(__file__).parents[2] / "workloads" / "moe128.yaml"
    text = workload.read_text(encoding="utf-8") + "transport: mine.yaml\n"
    (tmp_path / "w.yaml").write_text(text, encoding="utf-8")
    found = load_workload(str(tmp_path / "w.yaml")).transport
    assert (found.name, found.costs["alltoall"]["direct"].launch_s) == ("mine", 9e-6)


def test_a_single_field_of_a_gpu_that_is_named_only():
    catalogue = load_topology("nvswitch16").gpu
    gpu = inputs("topology.gpu.hbm_bandwidth=2 TB/s", "gpu.flops.bf16=1 PFLOP/s").topology.gpu
    assert gpu.hbm_bandwidth_bytes_per_s == 2e12
    assert gpu.flops_per_s == {**catalogue.flops_per_s, "bf16": 1e15}
    assert gpu.hbm_capacity_bytes == catalogue.hbm_capacity_bytes
    assert gpu.name == "H100-SXM"
    assert "instead of the catalogue's" in gpu.sources["hbm_bandwidth"]
    assert "datasheet" in gpu.sources["sms"] or "whitepaper" in gpu.sources["sms"]
    assert inputs("gpu=H20").topology.gpu.name == "H20"
    assert inputs("gpu=H20", "gpu.tdp=100 W").topology.gpu.tdp_w == 100
    assert inputs("gpu.model=H20").topology.gpu.name == "H20"


def test_list_items_by_index_or_name(tmp_path):
    path = tmp_path / "graph.yaml"
    path.write_text(GRAPH)
    changed = load_topology(
        str(path), ["build.links.0.bandwidth=5 GB/s", "topology.build.nodes.g1.host=1"]
    )
    assert changed.build.links[0].bandwidth_bytes_per_s == 5e9
    assert [node.host for node in changed.build.nodes] == [None, 1]
    assert changed.gpu.price_per_hour == 2.0
    for part in ("g2", "2", "-1"):
        with pytest.raises(InputError) as caught:
            load_topology(str(path), [f"build.nodes.{part}.host=1"])
        assert str(caught.value) == (
            f"--set build.nodes.{part}: no item '{part}'; the list has 2 items"
        )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps", "--set 'steps': write key.path=value, for example traffic.steps=8"),
        ("=3", "--set '=3': write key.path=value, for example traffic.steps=8"),
        ("a..b=3", "--set 'a..b=3': write key.path=value, for example traffic.steps=8"),
        ("topology=x", "--set topology: name a key below it, for example topology.name"),
        ("steps=3", "--set steps: unknown key 'steps' (did you mean 'traffic.steps'?)"),
        (
            "nvlink.bandwidth=1 GB/s",
            "--set nvlink.bandwidth: unknown key 'nvlink' (did you mean 'build.nvlink'?)",
        ),
        (
            "nvlink=0.5",
            "--set nvlink: unknown key 'nvlink' (did you mean 'build.nvlink'?)",
        ),
        (
            "faults.0.what=nic",
            "--set faults.0.what: the file has no list faults; write it whole, as in "
            '--set faults="[{...}]"',
        ),
        ("trafic.steps=3", "--set trafic.steps: unknown key 'trafic' (did you mean 'traffic'?)"),
        (
            "zzz=3",
            "--set zzz: unknown key 'zzz'; known: name, description, sources, gpu, build, "
            "changes, model, "
            "traffic, parallel, routing, placement, placement_loads, placement_groups, "
            "redundant_experts, replica_choice, rebalance, expert_access, expert_slots, "
            "expert_pool, expert_home, eviction, expert_order, prefetch, prefetch_depth, "
            "prefetch_budget, prefetch_yields, overlap, network, cuda_graphs, copy_efficiency, "
            "transport, requests, serving, faults, energy, cost",
        ),
        ("name=x", "--set name: both files have it; write topology.name or workload.name"),
        (
            "workload.traffic.step=3",
            "--set traffic.step: unknown key 'step' (did you mean 'steps'?)",
        ),
        (
            "traffic.zzz=3",
            "--set traffic.zzz: unknown key 'zzz'; known here: phase, tokens_per_gpu, context, "
            "steps, warmup_steps, speculative",
        ),
        (
            "workload.gpu=H20",
            "--set gpu: unknown key 'gpu'; known here: name, description, sources, model, "
            "traffic, parallel, routing, placement, placement_loads, placement_groups, "
            "redundant_experts, replica_choice, rebalance, expert_access, expert_slots, "
            "expert_pool, expert_home, eviction, expert_order, prefetch, prefetch_depth, "
            "prefetch_budget, prefetch_yields, overlap, network, cuda_graphs, copy_efficiency, "
            "transport, requests, serving, faults, energy, cost",
        ),
        (
            "gpu.hbm_bandwith=2 TB/s",
            "--set gpu.hbm_bandwith: unknown key 'hbm_bandwith' (did you mean 'hbm_bandwidth'?)",
        ),
        (
            "build.spines=2",
            "--set build.spines: unknown key 'spines'; known here: kind, gpus, hosts, nvlink, "
            "pcie, dram",
        ),
        ("build.gpus.x=2", "--set build.gpus.x: build.gpus has no keys below it"),
        ("traffic.steps=0", "--set traffic.steps: must be >= 1, not 0"),
        ("traffic.steps=[1", "--set traffic.steps: not valid YAML: did not find expected ',' or "
         "']'"),
        (
            "build.nvlink.bandwidth=450",
            '--set build.nvlink.bandwidth: 450 has no unit; write for example "450 GB/s"',
        ),
        ("build.nvlink={bandwidth: 1 GB/s}", "--set build.nvlink.latency: required, but not given"),
        ("parallel.ep=5", "--set parallel.ep: 5 does not divide the 16 GPUs of nvswitch16"),
    ],
)  # fmt: skip
def test_refuses(override, message):
    with pytest.raises(InputError) as caught:
        inputs(override)
    assert str(caught.value) == message


def test_a_wrong_kind_under_set_names_both_places():
    with pytest.raises(InputError) as caught:
        inputs("build.kind=hgx-rail")
    lines = str(caught.value).split("\n")
    assert lines[0].endswith("nvswitch16.yaml:13:3: build.nodes: required, but not given")
    assert lines[-1].endswith(
        "nvswitch16.yaml:15:3: build.hosts: unknown key; known here: kind, nodes, gpus_per_node, "
        "nvlink, pcie, dram, nic, spines, oversubscription, ecmp"
    )


def test_one_file_alone_takes_only_its_own_keys():
    assert load_topology("nvswitch16", ["name=x", "topology.build.gpus=32"]).build.gpus == 32
    assert load_workload("moe128", ["name=x"]).name == "x"
    with pytest.raises(InputError, match=r"^--set workload\.name: unknown key 'name'"):
        load_topology("nvswitch16", ["workload.name=x"])


def test_the_routing_option_replaces_the_source():
    assert inputs(routing="zipf:1.2").workload.routing.source == "zipf:1.2"
    assert inputs(routing="zipf:1.2").workload.routing.tokens == "generated"
    with pytest.raises(InputError) as caught:
        inputs(routing="markov:2")
    assert str(caught.value) == (
        "--routing: routing.source: 'markov:2': '2' is not a number from 0 to 1; "
        "write for example 'markov:0.5'"
    )


def test_a_trace_is_looked_for_beside_the_file_and_then_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    text = (ROOT / "workloads" / "mixtral-8x7b.yaml").read_text()
    work = tmp_path / "sub" / "w.yaml"
    work.write_text(text.replace("source: uniform", "source: t.parquet"))
    with pytest.raises(InputError) as caught:
        load_inputs("h100x4", "sub/w.yaml")
    assert str(caught.value) == (
        "sub/w.yaml:15:19: routing.source: trace 't.parquet': no such file"
    )
    (tmp_path / "t.parquet").touch()
    assert load_inputs("h100x4", "sub/w.yaml").trace_path == Path("t.parquet")
    (tmp_path / "sub" / "t.parquet").touch()
    assert load_inputs("h100x4", "sub/w.yaml").trace_path == Path("sub/t.parquet")
    assert load_workload("sub/w.yaml").routing.source == "t.parquet"


def test_a_name_that_is_neither_trace_nor_law():
    with pytest.raises(InputError) as caught:
        inputs(routing="unifrom")
    assert str(caught.value).startswith(
        "--routing: routing.source: no trace or law 'unifrom' (did you mean 'uniform'?); "
        "known: uniform, zipf, power-law, markov"
    )


def test_gpus_are_counted_in_every_kind_of_build(tmp_path):
    assert gpu_count(load_topology("nvswitch16", ["build.gpus=10"])) == 10
    (tmp_path / "graph.yaml").write_text(GRAPH)
    assert gpu_count(load_topology(str(tmp_path / "graph.yaml"))) == 2
    assert gpu_count(load_topology("h100x16-rail")) == 16
    assert gpu_count(load_topology("a6000x10")) == 10


def test_what_is_resolved_is_json_with_every_default_and_no_path_of_the_machine():
    given = inputs("traffic.steps=7")
    told = resolved(given)
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["topology"]["gpu"]["hbm_bandwidth_bytes_per_s"] == 3.35e12
    assert told["topology"]["build"]["nvlink"] == {
        "bandwidth_bytes_per_s": 450e9,
        "latency_s": 468e-9,
    }
    assert told["workload"]["traffic"]["steps"] == 7
    assert told["workload"]["routing"] == {
        "source": "uniform",
        "layer_map": "cycle",
        "tokens": "generated",
    }
    assert told["workload"]["transport"]["costs"]["alltoall"]["direct"]["launch_s"] == 7.133e-6
    assert (told["topology_given"], told["workload_given"]) == ("nvswitch16", "moe128")
    assert str(ROOT) not in json.dumps(told)
    assert str(given.topology_path).endswith("nvswitch16.yaml")


def test_what_is_resolved_does_not_depend_on_the_hash_seed():
    code = (
        "import json; from simulator.spec.load import *; "
        "print(json.dumps(resolved(load_inputs('h100x16-rail', 'deepseek-v3', ['gpu=B200']))))"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(told) == 1


def test_the_loader_starts_without_the_heavy_libraries():
    code = (
        "import sys, simulator.spec.load; "
        "print([m for m in ('numpy', 'pandas', 'networkx', 'numba', 'simpy', 'pyarrow', 'plotly')"
        " if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True, text=True
    )
    assert done.stdout == "[]\n"
