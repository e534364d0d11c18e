"""`study cache`: the grid of policies, its figures, files and refusals."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from simulator.api import simulate
from simulator.cli import main

SMALL = [
    "topology.build.gpus=2", "topology.build.hosts=1", "model.layers=3",
    "model.moe={experts: 8, top_k: 2, intermediate: 48}", "expert_slots=2", "overlap=none",
    "traffic={tokens_per_gpu: 2, context: 32, steps: 4, warmup_steps: 1}",
]  # fmt: skip


def call(*more: str) -> int:
    given = [part for value in SMALL for part in ("--set", value)]
    where = ["--topology", "nvswitch16", "--workload", "moe128", "--routing", "zipf:1.0"]
    return main(["study", "cache", *where, *given, *more])


def test_every_row_is_the_run_of_its_two_policies(capsys: pytest.CaptureFixture[str]):
    assert call("--eviction", "lfu,belady", "--prefetch", "none,oracle", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["eviction"], row["prefetch"], row["oracle"]) for row in rows] == [
        ("lru", "none", False),
        ("lfu", "none", False),
        ("lfu", "oracle", True),
        ("belady", "none", True),
        ("belady", "oracle", True),
    ]
    base = rows[0]["tokens_per_s"]
    for row in rows:
        overrides = [*SMALL, f"eviction={row['eviction']}", f"prefetch={row['prefetch']}"]
        own = simulate("nvswitch16", "moe128", overrides=overrides, routing="zipf:1.0").summary
        assert row["tokens_per_s"] == own["throughput_tokens_per_s"]
        assert row["speed_up"] == own["throughput_tokens_per_s"] / base
        assert row["hit"] + row["late"] + row["miss"] == pytest.approx(1.0)
        assert row["stall_s"] == own["breakdown_s"]["fetch_stall"]
        assert (row["used"] is None) == (row["prefetch"] == "none")


def test_the_files_and_the_text_say_the_same_by_one_process_and_by_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    texts = []
    for workers in ("1", "2"):
        out = tmp_path / workers
        assert call("--quick", "--out", str(out), "--workers", workers) == 0
        texts.append(capsys.readouterr().out)
        names = sorted(path.name for path in out.iterdir())
        assert names == ["cache.csv", "cache.json", "cache.txt"]
        assert (out / "cache.txt").read_text() == texts[-1]
        with (out / "cache.csv").open() as file:
            table = list(csv.DictReader(file))
        kept = json.loads((out / "cache.json").read_text())
        assert [float(row["hit"]) for row in table] == [row["hit"] for row in kept]
        assert len(kept) == 3 * 3
    assert texts[0] == texts[1]
    assert max(map(len, texts[0].splitlines())) <= 80
    assert "belady*" in texts[0]
    assert (tmp_path / "1/cache.csv").read_bytes() == (tmp_path / "2/cache.csv").read_bytes()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--eviction", "lur"], "'lur' is not a known eviction (did you mean 'lru'?)"),
        (["--prefetch", "none,oracel"], "'oracel' is not a known prefetch"),
        (["--set", "prefetch=oracle"], "--set prefetch=oracle: write --prefetch oracle"),
        (["--set", "expert_slots=null"], "keeps every expert on its GPUs"),
        (["--set", "expert_slots=4"], "no expert was fetched: expert_slots holds all"),
        (["--workers", "0"], "--workers 0: at least one process"),
    ],
)
def test_what_cannot_be_studied_is_one_line(
    more: list[str], said: str, capsys: pytest.CaptureFixture[str]
):
    assert call(*more) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert said in told[0]


def test_other_studies_refuse_its_options(capsys: pytest.CaptureFixture[str]):
    assert main(["study", "prophet", "--topology", "h100x4"]) == 2
    assert "--topology goes with study cache" in capsys.readouterr().err
    assert main(["study", "cache", "--topology", "h100x4"]) == 2
    assert "write --topology T and --workload W" in capsys.readouterr().err


def test_an_out_that_is_there_is_not_touched(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert call("--quick", "--out", str(tmp_path)) == 2
    assert "is there already" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
