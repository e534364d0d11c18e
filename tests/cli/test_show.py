"""Lists, inputs in full, imports and statistics: figures against hand counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli.running import Call, listing

from simulator.cli import COMMANDS
from simulator.routing.trace import iter_blocks, read_info
from simulator.spec.catalogue import names
from simulator.spec.find import shipped


def test_the_help_names_every_command(call: Call) -> None:
    done = call("-h")
    assert (done.status, done.err) == (0, "")
    assert all(f"  {name} " in done.out for name in COMMANDS)
    assert call("--help").out == call("help").out == done.out
    assert call("--version").out == "simulator 0.1.0\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(call: Call, name: str) -> None:
    done = call(name, "-h")
    assert (done.status, done.err) == (0, "")
    assert f"example: python -m simulator {COMMANDS[name].example}" in done.out


def test_lists(call: Call, tmp_path: Path) -> None:
    everything = call("list").out.split()
    for name in (*shipped("topology"), *shipped("workload"), *shipped("trace"), *names()):
        assert name in everything
    assert "synthetic:0.8" in call("list", "policies").out
    rows = json.loads(call("list", "topologies", "--json").out)
    assert [row["name"] for row in rows] == list(shipped("topology"))
    assert all(row["list"] == "topologies" and row["description"] for row in rows)
    assert listing(tmp_path) == []


def test_lists_fit_a_terminal(call: Call) -> None:
    assert max(map(len, call("list").out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("what", "name"),
    [("topology", name) for name in shipped("topology")]
    + [("workload", name) for name in shipped("workload")]
    + [("gpu", name) for name in names()],
)
def test_everything_shipped_can_be_shown(call: Call, what: str, name: str) -> None:
    done = call("show", what, name)
    assert (done.status, done.err) == (0, "")
    assert name in done.out
    assert max(map(len, done.out.splitlines())) <= 80
    json.loads(call("show", what, name, "--json").out)


def test_a_topology_in_figures(call: Call) -> None:
    # 16 GPUs to one switch, each to its host's CPU, and two memories: two directions each.
    found = json.loads(call("show", "topology", "nvswitch16", "--json").out)
    assert found["gpus"] == 16
    assert {
        (row["kind"], row["links"], row["bandwidth_bytes_per_s"]) for row in found["links"]
    } == {
        ("nvlink", 32, 450e9),
        ("pcie", 32, 64e9),
        ("membus", 4, 614.4e9),
    }
    changed = ("--set", "build.nvlink.bandwidth=900 GB/s", "--set", "build.gpus=4")
    text = call("show", "topology", "nvswitch16", *changed).out
    assert "    8  nvlink  gpu - nvswitch   900 GB/s   468 ns" in text.splitlines()


def test_the_nodes_of_a_topology_are_named(call: Call, tmp_path: Path) -> None:
    assert (
        "nodes   nvswitch, cpu0-1, dram0-1, gpu0-15" in call("show", "topology", "nvswitch16").out
    )
    names = ("gpu0", "gpu2", "gpu1", "gpu9", "gpu", "gpu01")
    nodes = "".join(f"    - {{name: {name}, kind: gpu}}\n" for name in names)
    (tmp_path / "own.yaml").write_text(
        f"name: own\ngpu: H100-SXM\nbuild:\n  kind: explicit\n  nodes:\n{nodes}"
    )
    done = call("show", "topology", "own.yaml")
    assert (done.status, done.err) == (0, "")
    assert "nodes   gpu0-2, gpu9, gpu, gpu01" in done.out


def test_a_workload_in_figures(call: Call) -> None:
    # By hand from the file: FFN 3 x 3072 x 3008, attention 3072 x 128 x (2 x 24 + 2 x 4), gate
    # 3072 x 128, 36 layers, 128 experts of which 4 work, two vocabulary matrices.
    ffn, attention, gate = 3 * 3072 * 3008, 3072 * 128 * 56, 3072 * 128
    vocabulary = 2 * 128_256 * 3072
    found = json.loads(call("show", "workload", "moe128", "--set", "traffic.steps=7", "--json").out)
    assert found["parameters"] == 36 * (128 * ffn + attention + gate) + vocabulary
    assert found["active_parameters_per_token"] == 36 * (4 * ffn + attention + gate) + vocabulary
    assert found["expert_bytes"] == 2 * ffn
    assert found["expert_bytes_all_layers"] == 36 * 2 * ffn
    assert found["kv_bytes_per_token"] == 36 * 2 * 4 * 128 * 2
    assert found["workload"]["traffic"]["steps"] == 7
    text = call("show", "workload", "moe128").out
    assert "weights   129 B parameters, 5.59 B active per token" in text
    assert "expert    55.4 MB in one layer, 2.00 GB in all" in text


def test_memory_on_a_topology(call: Call) -> None:
    law = ("--topology", "nvswitch16", "--set", "routing.source=uniform")
    law += ("--set", "traffic.tokens_per_gpu=8", "--set", "traffic.context=2048")
    found = json.loads(call("show", "workload", "moe128", *law, "--json").out)
    # 8 experts per GPU and layer, of which 4 have a slot; 8 sequences of 2048 tokens.
    parts = found["memory_bytes_per_gpu"]
    assert parts["experts"] == 4 * 36 * 2 * 3 * 3072 * 3008
    assert parts["KV cache"] == 8 * 2048 * 36 * 2 * 4 * 128 * 2
    text = call("show", "workload", "moe128", *law).out
    assert "together" in text
    assert "left" in text
    peer = ("--set", "expert_home=peer")
    kept = json.loads(call("show", "workload", "moe128", *law, *peer, "--json").out)
    # 4 slots and all 8 experts of the neighbour, of which any 4 may be away.
    assert kept["memory_bytes_per_gpu"]["experts"] == 3 * parts["experts"]
    tight = call("show", "workload", "moe128", *law, "--set", "traffic.context=200000")
    assert tight.status == 0
    assert "DOES NOT FIT, too much by" in tight.out


RECORDS = [
    # Request, layer, token, experts.
    *(("a", 0, 0, [0, 1]), ("a", 1, 0, [2, 3]), ("a", 0, 1, [1, 2]), ("a", 1, 1, [2, 3])),
    *(("b", 0, 0, [0, 3]), ("b", 1, 0, [0, 1])),
]


def write_recording(path: Path) -> None:
    keys = ("problem_id", "layer", "token_idx", "experts")
    lines = [json.dumps(dict(zip(keys, record, strict=True))) for record in RECORDS]
    path.write_text("\n".join(lines) + "\n")


def test_a_recording_is_imported(call: Call, tmp_path: Path) -> None:
    write_recording(tmp_path / "in.jsonl")
    names = ("--experts", "8", "--model", "mine")
    done = call("import", "jsonl", "in.jsonl", "-o", "out.parquet", *names)
    assert (done.status, done.err) == (0, "")
    assert "read 6 lines, 0 of them blank" in done.out
    assert "kept 6 records: 2 requests, 3 tokens, 2 layers, top-2 of 8 experts" in done.out
    info = read_info(tmp_path / "out.parquet")
    assert (info.model, info.layers, info.experts, info.k) == ("mine", 2, 8, 2)
    (block,) = iter_blocks(tmp_path / "out.parquet")
    assert block.experts.tolist() == [[[0, 1], [2, 3]], [[1, 2], [2, 3]], [[0, 3], [0, 1]]]
    assert listing(tmp_path) == ["in.jsonl", "out.parquet"]


def test_statistics_of_a_recording(call: Call, tmp_path: Path) -> None:
    write_recording(tmp_path / "in.jsonl")
    done = call("routing-stats", "in.jsonl", "--json")
    assert done.status == 0
    assert "kept 6 records" in done.err, "what an import on the way did is a diagnostic"
    found = json.loads(done.out)
    assert (found["tokens"], found["requests"], found["experts"]) == (3, 2, 4)
    first, second = found["per_layer"]
    # Layer 0: loads 2, 2, 1, 1 of 4 experts; a's second token shares one of two with its first.
    assert (first["max_over_mean"], first["overlap"]) == (2 / 1.5, 0.5)
    assert (second["max_over_mean"], second["overlap"]) == (2 / 1.5, 1.0)
    text = call("routing-stats", "in.jsonl").out.splitlines()
    assert text[0] == "3 tokens of 2 requests; 2 layers, top-2 of 4 experts"
    assert text[1] == "load      hottest expert 1.33 x the mean (1 if uniform)"
    shared = "overlap   75.0 % of a token's experts were the last token's (50.0 % if uniform)"
    assert text[2] == shared
    # Gini: 8 / (2 x 16 x 1.5); entropy: 2 / 3 x log2 3 + 1 / 3 x log2 6.
    assert text[-2].split()[:8] == ["0", "6", "1.33", "0", "0.167", "1.92", "50.0", "%"]
    assert max(map(len, text)) <= 80
    assert listing(tmp_path) == ["in.jsonl"]
