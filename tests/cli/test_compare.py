"""`compare`, `export` and `analyze` of traces, as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli.running import SMALL, Call, listing

TRACE = [
    {"ph": "X", "cat": "kernel", "name": "gemm", "pid": 0, "tid": 7, "ts": 0, "dur": 30,
     "args": {"device": 0, "stream": 7}},
    {"ph": "X", "cat": "kernel", "name": "ncclDevKernel_AllReduce", "pid": 0, "tid": 8, "ts": 20,
     "dur": 20, "args": {"device": 0, "stream": 8}},
]  # fmt: skip


def widest(text: str) -> int:
    return max(map(len, text.splitlines()))


def test_a_recorded_trace_is_analyzed(call: Call, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(json.dumps({"traceEvents": TRACE}))
    done = call("analyze", "t.json", "--json")
    assert (done.status, done.err) == (0, "")
    found = json.loads(done.out)
    assert found["breakdown"] == pytest.approx(
        {"compute": 0.75, "exposed_communication": 0.25, "exposed_copies": 0, "idle": 0}
    )
    text = call("analyze", "t.json").out
    assert widest(text) <= 80
    assert "50.0 % of communication ran under compute" in text


def test_two_runs_are_compared(call: Call, kept: Path) -> None:
    done = call("run", *SMALL, "--set", "expert_slots=6", "--out", "more")
    assert done.status == 0
    done = call("compare", str(kept), "more")
    assert (done.status, done.err) == (0, "")
    assert widest(done.out.split("\n", 2)[2]) <= 80
    assert "workload.expert_slots: 4 -> 6" in done.out
    rows = json.loads(call("compare", str(kept), "more", "--json").out)
    inputs = [row for row in rows if row["section"] == "input"]
    assert [(row["figure"], row["a"], row["b"]) for row in inputs] == [
        ("workload.expert_slots", 4, 6)
    ]


def test_the_comparison_is_drawn(call: Call, kept: Path) -> None:
    done = call("compare", str(kept), str(kept), "--html", "c.html", "--plotlyjs", "directory")
    assert (done.status, done.err) == (0, "")
    assert done.out == call("compare", str(kept), str(kept)).out
    assert listing(Path()) == ["c.html", "plotly.min.js"]
    assert Path("c.html").stat().st_size < 500_000
    before = Path("c.html").read_bytes()
    done = call("compare", str(kept), str(kept), "--html", "c.html")
    assert done.status == 2
    assert done.err == "error: c.html: exists already; remove it or write another file\n"
    assert Path("c.html").read_bytes() == before
    text = call("compare", str(kept), str(kept), "--html", "d.html", "--json")
    assert json.loads(text.out)
    assert "<script src" not in Path("d.html").read_text()


def test_traces_are_exported_and_compared_with_their_run(call: Call, kept: Path) -> None:
    done = call("export", str(kept), "-o", "traces", "--ranks", "0-3")
    assert (done.status, done.out) == (0, "traces\n")
    assert listing(Path("traces")) == [f"trace_rank{rank}.json.gz" for rank in range(4)]
    done = call("compare", str(kept), "traces")
    assert (done.status, done.err) == (0, "")
    assert "(recorded)" in done.out


STUDY = ("report.html", "results.jsonl", "study.json")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("export", "RUN", "-o", "x", "--steps", "7-8"), "the run has steps 0 to 0"),
        (("export", "RUN", "-o", "x", "--steps", "3-1"), "the last is before the first"),
        (("export", "RUN", "-o", "x", "--steps", "one"), "write the first and the last"),
        (("export", "RUN", "-o", "x", "--max-spans", "1"), "beyond the limit of 1"),
        (("export", "RUN", "-o", "full"), "not empty"),
        (("export", "nowhere", "-o", "x"), "nowhere: is no directory of a run"),
        (("export", "full/a.json", "-o", "x"), "full/a.json: is no directory of a run"),
        (("export", "empty", "-o", "x"), "steps.parquet: is missing"),
        (("report", "full/a.json"), "full/a.json: is no directory of a run"),
        (("report", "empty"), "empty: is no directory of a run"),
        (("analyze", "full"), "is no trace"),
        (("analyze", "empty"), "holds no *.json"),
        (("analyze", "full/a.json"), "is no trace"),
        (("analyze", "full/a.json", "--baseline", "RUN"), "is no trace"),
        (("analyze", "RUN", "--baseline", "full"), "is no trace"),
        (("compare", "RUN", "nowhere"), "result.json: is missing"),
        (("compare", "RUN"), "required"),
        (("compare", "RUN", "RUN", "--html", "full"), "full: exists already"),
        (("compare", "RUN", "RUN", "--html", "no/c.html"), "there is no directory no"),
        (("compare", "RUN", "RUN", "--plotlyjs", "cdn"), "--plotlyjs goes with --html FILE"),
        (("compare", "RUN", "RUN", "--html", "c", "--plotlyjs", "cnd"), "did you mean 'cdn'?"),
        (("compare", "RUN", "full", "--html", "c"), "is no trace"),
        (("compare", "RUN", "study"), "study: holds a what-if study, no run; what its points gave"),
        (("analyze", "study"), "study: holds a what-if study, no run"),
        (("report", "study"), "study: is no directory of a run"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    call: Call, kept: Path, tmp_path: Path, argv: tuple[str, ...], said: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "full" / "a.json").write_text('{"not": "a trace"}')
    (tmp_path / "study").mkdir()
    for name in STUDY:
        (tmp_path / "study" / name).write_text("{}")
    done = call(*(str(kept) if word == "RUN" else word for word in argv))
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert said in done.err
    there = ["empty", "full", "full/a.json", "study", *(f"study/{name}" for name in STUDY)]
    assert listing(tmp_path) == there


def test_a_trace_that_was_cut_off_is_compared_and_it_says_so(call: Call) -> None:
    text = json.dumps({"traceEvents": TRACE})
    Path("t.json").write_text(text)
    Path("cut.json").write_text(text[: text.index(', {"ph"') + 9])
    done = call("compare", "t.json", "cut.json", "--html", "c.html", "--plotlyjs", "cdn")
    assert (done.status, done.err) == (0, "")
    assert "note: B: cut.json: the file was cut off" in done.out
    assert "B: cut.json: the file was cut off" in Path("c.html").read_text()
    assert widest(done.out) <= 80


def test_a_run_that_was_cut_off_tells_what_is_left(call: Call, kept: Path, tmp_path: Path) -> None:
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "steps.parquet").write_bytes((kept / "steps.parquet").read_bytes())
    done = call("analyze", "cut")
    assert done.status == 2
    assert "throughput_tokens_per_s" in done.out
    assert widest(done.out) <= 80
    assert [line.split(":")[1].strip() for line in done.err.splitlines()] == [
        "cut/result.json", "cut/spans.parquet", "cut/links.parquet", "cut/accesses.parquet"
    ]  # fmt: skip
    found = json.loads(call("analyze", "cut", "--json").out)
    assert len(found["faults"]) == 4
