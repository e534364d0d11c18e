"""`whatif`: what it prints, the files that it leaves, and every refusal."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from cli.running import Call, listing

from simulator.spec.find import shipped

STUDY = """\
name: my study
question: How many GPUs should share the experts?
base:
  topology: nvswitch16
  workload: moe128
  routing: zipf:0.8
  set: {model.layers: 2, traffic.steps: 1, traffic.warmup_steps: 0, prefetch: none}
axes:
  - {name: EP, key: parallel.ep, values: [16, 8, 5]}
  - {name: slots, key: expert_slots, values: [4, 8]}
objectives: [{metric: step_time, direction: minimize}]
metrics: [hit_rate, bottleneck]
"""
FILES = ["report.html", "report.md", "report.tex", "results.jsonl", "study.json", "table.csv"]


@pytest.fixture
def study(tmp_path: Path) -> str:
    (tmp_path / "study.yaml").write_text(STUDY)
    return "study.yaml"


def test_table_answer_and_files(call: Call, study: str, tmp_path: Path) -> None:
    done = call("whatif", study, "--workers", "1")
    assert done.status == 0
    assert listing(tmp_path / "whatif-my-study") == FILES
    lines = done.out.splitlines()
    assert lines[0] == "How many GPUs should share the experts?"
    assert lines[2].split() == ["EP", "slots", "step_time", "hit_rate", "bottleneck", "note"]
    assert max(map(len, lines)) <= 80
    assert "Of 6 points 4 could be run. The lowest mean time of a step is " in " ".join(lines)
    assert done.err == ("kept in whatif-my-study: report.html, report.md, report.tex, table.csv\n")
    with (tmp_path / "whatif-my-study" / "table.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["status"] for row in rows] == ["ok", "ok", "ok", "ok", "failed", "failed"]
    page = (tmp_path / "whatif-my-study" / "report.html").read_text()
    assert "python -m simulator whatif study.yaml --out whatif-my-study" in page


def test_json_is_the_table(call: Call, study: str) -> None:
    rows = json.loads(call("whatif", study, "--json", "--out", "out").out)
    keys = {"EP", "slots", "step_time_s", "hit_rate", "bottleneck", "status", "reason"}
    assert all(set(row) == keys for row in rows)
    assert [(row["EP"], row["slots"]) for row in rows] == [
        (ep, slots) for ep in (16, 8, 5) for slots in (4, 8)
    ]
    assert rows[0]["step_time_s"] > rows[1]["step_time_s"]
    assert rows[4]["step_time_s"] is None
    assert "5 does not divide" in rows[4]["reason"]


def test_resume_runs_nothing_again_and_prints_the_same(call: Call, study: str) -> None:
    first = call("whatif", study, "--out", "out")
    again = call("whatif", study, "--out", "out", "--resume")
    assert again.status == 0
    assert again.out == first.out
    assert again.err.startswith("6 points kept from before, 0 run now\n")


def test_set_changes_the_base_and_is_part_of_the_study(call: Call, study: str) -> None:
    slow = ("whatif", study, "--out", "out", "--set", "build.nvlink.bandwidth=1 GB/s", "--json")
    rows = json.loads(call(*slow).out)
    fast = json.loads(call("whatif", study, "--out", "fast", "--json").out)
    assert all(a["step_time_s"] > b["step_time_s"] for a, b in zip(rows[:4], fast, strict=False))
    done = call("whatif", study, "--out", "out", "--resume")
    assert done.status == 2
    assert done.err == (
        "error: --out out: is of another study: base was changed; give another name\n"
    )


def test_long_tables_show_the_best(call: Call, tmp_path: Path) -> None:
    text = STUDY.replace("[4, 8]", "[8]").replace("[16, 8, 5]", "[16, 8]")
    text += "constraints: [hit_rate > 0.1]\n"
    text = text.replace(
        "objectives:",
        f"  - {{name: ctx, key: traffic.context, values: {list(range(1, 16))}}}\nobjectives:",
    )
    (tmp_path / "long.yaml").write_text(text)
    done = call("whatif", "long.yaml", "--workers", "1")
    assert done.status == 0
    assert "The best 24 of 30 points (table.csv has all):" in done.out


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (("whatif",), "error: the following arguments are required: STUDY"),
        (("whatif", "ep-degre"), "error: no study 'ep-degre' (did you mean 'ep-degree'?)"),
        (("whatif", "none.yaml"), "error: study 'none.yaml': no such file"),
        (("whatif", "study.yaml", "--workers", "0"), "error: --workers 0: at least one process"),
        (
            ("whatif", "study.yaml", "--workers", "2", "--scheduler", "tcp://x:1"),
            "error: --workers: goes without --scheduler, which has workers of its own",
        ),
        (
            ("whatif", "study.yaml", "--set", "traffic.stepz=1"),
            "error: study.yaml: base: --set traffic.stepz: unknown key 'stepz'",
        ),
        (("whatif", "study.yaml", "--set", "x"), "error: --set 'x': write key.path=value"),
        (("whatif", "study.yaml", "--out", "study.yaml"), "error: --out study.yaml: is not a"),
        (("whatif", "empty.yaml"), "error: empty.yaml:1:1: empty, expected key: value lines"),
    ],
)
def test_refusals(call: Call, study: str, tmp_path: Path, argv: tuple[str, ...], line: str) -> None:
    (tmp_path / "empty.yaml").touch()
    before = listing(tmp_path)
    done = call(*argv)
    assert done.status == 2
    assert done.err.startswith(line), done.err
    assert len(done.err.splitlines()) == 1
    assert listing(tmp_path) == before


def test_where_nothing_runs_the_exit_status_is_2(call: Call, study: str, tmp_path: Path) -> None:
    (tmp_path / "none.yaml").write_text(STUDY.replace("[16, 8, 5]", "[5, 7]"))
    done = call("whatif", "none.yaml", "--out", "out")
    assert done.status == 2
    assert "error: no point could be run; the first: --set parallel.ep: 5 does not" in done.err
    assert "None of 4 points could be run" in done.out
    assert listing(tmp_path / "out") == FILES


def test_studies_are_listed(call: Call) -> None:
    rows = json.loads(call("list", "studies", "--json").out)
    assert [row["name"] for row in rows] == list(shipped("study"))
    assert len(rows) >= 5
    assert all(row["description"].endswith("?") for row in rows)


def test_a_shipped_study_is_found_by_name(call: Call, tmp_path: Path) -> None:
    """The smallest of them, cut to a fraction; its answer names its first axis."""
    done = call("whatif", "wiring", "--out", "out", "--set", "model.layers=2")
    assert done.status == 0
    assert re.search(r"The best of\s+each\s+wiring: \S+\s+with\s+NVSwitch", done.out)
    assert listing(tmp_path / "out") == FILES
