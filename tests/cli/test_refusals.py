"""What the user must change is one line on stderr and exit status 2, and nothing is written."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli.running import SMALL, Call, Done, listing

from simulator.routing.trace import METADATA_KEY, TraceWriter

PLAIN = ("--topology", "nvswitch16", "--workload", "moe128", "--routing", "zipf:0.8")


def refusal(done: Done) -> str:
    """The one line that was said."""
    assert done.status == 2, done
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1, done.err
    return done.err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        # Unknown names.
        (("--topology", "nvswitch61", *PLAIN[2:]), "did you mean 'nvswitch16'?"),
        ((*PLAIN[:2], "--workload", "moe182", *PLAIN[4:]), "did you mean 'moe128'?"),
        ((*PLAIN, "--routing", "zpif:0.8"), "did you mean 'zipf'?"),
        ((*PLAIN, "--set", "gpu=H101-SXM"), "did you mean 'H100-SXM'?"),
        ((*PLAIN, "--set", "overlap=two-bacth"), "did you mean 'two-batch'?"),
        ((*PLAIN, "--topology", "nowhere/x.yaml"), "no such file"),
        # Keys that are not there.
        ((*PLAIN, "--set", "traffic.stepz=1"), "did you mean 'steps'?"),
        ((*PLAIN, "--set", "steps=1"), "did you mean 'traffic.steps'?"),
        ((*PLAIN, "--set", "name=x"), "write topology.name or workload.name"),
        ((*PLAIN, "--set", "traffic.steps"), "write key.path=value"),
        # Units and bounds.
        ((*PLAIN, "--set", "build.nvlink.bandwidth=450"), "450 has no unit"),
        ((*PLAIN, "--set", "build.nvlink.bandwidth=450 GB"), "'GB' is not a unit of bandwidth"),
        ((*PLAIN, "--set", "build.nvlink.bandwidth=0 GB/s"), "build.nvlink.bandwidth"),
        ((*PLAIN, "--set", "build.nvlink.bandwidth=-450 GB/s"), "is negative"),
        ((*PLAIN, "--set", "traffic.steps=0"), "traffic.steps"),
        ((*PLAIN, "--set", "parallel.ep=3"), "does not divide the 16 GPUs"),
        # A model that does not fit: by how much, on which GPU.
        ((*PLAIN, "--set", "traffic.context=2000000"), "GiB too much"),
        ((*PLAIN, "--set", "traffic.context=2000000"), "gpu0"),
        # Arguments.
        (("lst",), "no command 'lst' (did you mean 'list'?)"),
        ((*PLAIN, "--sed", "1"), "unknown flag --sed (did you mean '--seed'?)"),
        (("--topolgy=nvswitch16", "--workload", "moe128"), "(did you mean '--topology'?)"),
        ((*PLAIN, "extra"), "unexpected argument 'extra'"),
        ((*PLAIN, "--seed", "-1"), "'-1' is not a whole number from 0"),
        ((*PLAIN, "--seed", "1.5"), "'1.5' is not a whole number from 0"),
        ((*PLAIN, "--trace-steps", "few"), "'few' is not a whole number from 0"),
        ((*PLAIN, "--topology"), "--topology: expected one argument"),
        (("--topology", "nvswitch16"), "--workload is required: a path, or one of deepseek-v3"),
        (("list", "topologie"), "did you mean 'topologies'?"),
        (("show", "cluster", "x"), "no 'cluster'; known: topology, workload, gpu"),
        (("show", "gpu", "H100"), "did you mean 'H100-SXM'?"),
        (("show", "gpu", "H100-SXM", "--set", "tdp=1 W"), "show topology NAME --set"),
        (("show", "topology", "nvswitch16", "--set", "traffic.steps=1"), "unknown key 'traffic'"),
        (("show", "topology"), "show topology: give its name, or a path"),
        (("analyze", "nowhere"), "result.json: is missing"),
        (("import", "jsnl", "a", "-o", "b"), "did you mean 'jsonl'?"),
        (("import", "jsonl", "a", "-o", "b"), "a: no such file"),
        (("routing-stats", "nowhere.parquet"), "no such file"),
    ],
)
def test_one_line_and_nothing_written(
    call: Call, tmp_path: Path, argv: tuple[str, ...], said: str
) -> None:
    keep = ("--out", "run") if argv[0].startswith("--") and argv[-1] != "--topology" else ()
    assert said in refusal(call(*keep, *argv))
    assert listing(tmp_path) == []


def test_the_excess_is_the_sum_of_what_is_needed(call: Call) -> None:
    line = refusal(call(*PLAIN, "--set", "traffic.context=2000000"))
    needs, listed, has, excess = re.search(
        r"needs ([\d.]+) GiB \((.*)\) and has ([\d.]+) GiB .*: ([\d.]+) GiB too much", line
    ).groups()
    parts = [float(number) for number in re.findall(r"[\d.]+(?=,|$)", listed)]
    assert sum(parts) == pytest.approx(float(needs), abs=0.1 * len(parts))
    assert float(needs) - float(has) == pytest.approx(float(excess), abs=0.11)


def test_every_fault_of_both_files_is_told_at_once(call: Call) -> None:
    done = call("--topology", "nvswitch61", "--workload", "moe182")
    assert done.status == 2
    assert [line.partition(" (")[0] for line in done.err.splitlines()] == [
        "error: no topology 'nvswitch61'",
        "error: no workload 'moe182'",
    ]
    done = call()
    assert [line.partition(":")[2][:24] for line in done.err.splitlines()] == [
        " --topology is required:",
        " --workload is required:",
    ]


def write_trace(path: Path, experts: int = 128, tokens: int = 400) -> Path:
    rng = np.random.default_rng(1)
    ids = rng.permuted(np.tile(np.arange(experts), (tokens * 2, 1)), axis=1)[:, :4]
    with TraceWriter(
        path, model="small", layers=2, experts=experts, k=4, origin="a test"
    ) as writer:
        position = np.arange(tokens) % 10
        writer.write(np.arange(tokens) // 10, position, np.ones(tokens), ids.reshape(tokens, 2, 4))
    return path


def write_trace_without_tokens(path: Path) -> None:
    about = {"version": 1, "model": "m", "layers": 2, "experts": 128, "k": 4}
    about |= {"origin": "a test", "requests": 0, "tokens": 0}
    schema = pa.schema(
        [
            pa.field("request", pa.int32(), nullable=False),
            pa.field("position", pa.int32(), nullable=False),
            pa.field("phase", pa.int8(), nullable=False),
            pa.field("experts", pa.list_(pa.int16(), 8), nullable=False),
        ],
        metadata={METADATA_KEY: json.dumps(about).encode()},
    )
    pq.write_table(schema.empty_table(), path)


def run_on_trace(call: Call, trace: str, *more: str) -> Done:
    settings = ("--set", "model.layers=2", "--set", "traffic.steps=1")
    names = ("--topology", "nvswitch16", "--workload", "moe128")
    return call(*names, "--routing", trace, *settings, "--out", "run", *more)


def test_more_experts_than_the_trace_has(call: Call, tmp_path: Path) -> None:
    write_trace(tmp_path / "t.parquet", experts=64)
    line = refusal(run_on_trace(call, "t.parquet"))
    assert "the model has 128 experts, more than the 64 of the trace" in line
    assert listing(tmp_path) == ["t.parquet"]


@pytest.mark.parametrize("share", [0.3, 0.7, 0.99])
def test_a_trace_cut_in_the_middle(call: Call, tmp_path: Path, share: float) -> None:
    path = write_trace(tmp_path / "t.parquet")
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    assert "t.parquet: cut short" in refusal(run_on_trace(call, "t.parquet"))
    assert listing(tmp_path) == ["t.parquet"]


def test_an_empty_trace(call: Call, tmp_path: Path) -> None:
    (tmp_path / "t.parquet").touch()
    assert "t.parquet: the file is empty" in refusal(run_on_trace(call, "t.parquet"))
    write_trace_without_tokens(tmp_path / "u.parquet")
    assert "u.parquet: the trace has no tokens" in refusal(run_on_trace(call, "u.parquet"))
    assert listing(tmp_path) == ["t.parquet", "u.parquet"]


def test_tokens_that_the_trace_does_not_have(call: Call, tmp_path: Path) -> None:
    write_trace(tmp_path / "t.parquet")
    done = run_on_trace(call, "t.parquet", "--set", "routing.tokens=prompt")
    assert "has no prompt tokens" in refusal(done)
    assert listing(tmp_path) == ["t.parquet"]


EXPLICIT = """
name: split
gpu: H100-SXM
build:
  kind: explicit
  nodes: [{name: a, kind: gpu}, {name: b, kind: gpu}, {name: s, kind: nvswitch}]
  links:
    - {from: a, to: s, bandwidth: 450 GB/s, latency: 1 us, both: true}
    - {from: s, to: b, bandwidth: 450 GB/s, latency: 1 us}
"""


def test_gpus_that_cannot_reach_each_other(call: Call, tmp_path: Path) -> None:
    (tmp_path / "split.yaml").write_text(EXPLICIT)
    settings = ("--set", "model.layers=2", "--set", "expert_slots=null", "--set", "prefetch=none")
    done = call("--topology", "split.yaml", *PLAIN[2:], *settings, "--out", "run")
    assert "a cannot be reached from b" in refusal(done)
    assert listing(tmp_path) == ["split.yaml"]


def test_a_fault_in_a_file_says_where(call: Call, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(EXPLICIT.replace("450 GB/s, latency: 1 us}", "0 B/s}"))
    done = call("--topology", "mine.yaml", *PLAIN[2:], "--out", "run")
    assert done.status == 2
    assert all(line.startswith("error: mine.yaml:9:") for line in done.err.splitlines())
    assert listing(tmp_path) == ["mine.yaml"]


def test_a_directory_that_holds_another_run(call: Call, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text("dear to me")
    line = refusal(call(*SMALL, "--out", "run"))
    assert "--out run: the directory is not empty" in line
    assert listing(tmp_path) == ["run", "run/result.json"]
    assert (tmp_path / "run" / "result.json").read_text() == "dear to me"
    assert "is not a directory" in refusal(call(*SMALL, "--out", "run/result.json"))
    assert (tmp_path / "run" / "result.json").read_text() == "dear to me"


def test_a_trace_is_never_written_over(call: Call, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("{}\n")
    (tmp_path / "out.parquet").write_text("dear to me")
    line = refusal(call("import", "jsonl", "in.jsonl", "-o", "out.parquet"))
    assert "out.parquet: exists already" in line
    assert (tmp_path / "out.parquet").read_text() == "dear to me"


def test_a_recording_with_a_fault_leaves_no_trace(call: Call, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"problem_id": 1, "layer": 0}\n')
    line = refusal(call("import", "jsonl", "in.jsonl", "-o", "out.parquet"))
    assert "in.jsonl:1: 'experts' is missing" in line
    assert listing(tmp_path) == ["in.jsonl"]


@pytest.mark.parametrize("text", ["{}", "{", '{"context": {}}'])
def test_analyzing_what_is_no_run(call: Call, tmp_path: Path, text: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text(text)
    assert "result.json" in refusal(call("analyze", "run"))
