"""`report RUN`: the page beside a run, windows of steps, and what is refused."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from cli.running import SMALL, Call, listing


def test_a_kept_run_has_its_report(kept: Path) -> None:
    text = (kept / "report.html").read_text()
    summary = json.loads((kept / "result.json").read_text())["summary"]
    assert summary["bottleneck_sentence"] in text
    assert "could be read" not in text.partition("</head>")[2]
    assert "moe128 on nvswitch16" in text
    assert 4e6 < len(text) < 8e6
    for name in ("parts", "cluster", "timeline", "layers", "loads", "memory-parts", "energy-parts"):
        assert f'<div id="{name}"' in text
    # Nothing is loaded from elsewhere, and nothing tells where the run lies on this machine.
    assert not re.search(r'(src|href)="(https?:)?//', text.partition("</head>")[2])
    assert "<script src" not in text
    assert str(kept.parent) not in text


def test_the_command_in_it_gives_the_run_again(kept: Path, call: Call) -> None:
    text = (kept / "report.html").read_text()
    found = re.search(r'<pre id="command">(.*?)</pre>', text)
    assert found is not None
    words = shlex.split(found[1].replace("&#x27;", "'"))
    assert words[:3] == ["python", "-m", "simulator"]
    done = call(*words[3:], "--json")
    assert json.loads(done.out) == json.loads((kept / "result.json").read_text())["summary"]


def test_report_writes_beside_and_elsewhere(kept: Path, call: Call, tmp_path: Path) -> None:
    shutil.copytree(kept, tmp_path / "run")
    (tmp_path / "run" / "report.html").unlink()
    done = call("report", "run")
    assert (done.status, done.out.strip()) == (0, "run/report.html")
    # The same page as the run itself wrote.
    assert (tmp_path / "run" / "report.html").read_bytes() == (kept / "report.html").read_bytes()
    done = call("report", "run", "--plotlyjs", "directory", "-o", "small.html", "--steps", "0")
    assert (done.status, done.out.strip()) == (0, "small.html")
    assert (tmp_path / "small.html").stat().st_size < 1.5e6
    assert (tmp_path / "plotly.min.js").is_file()


def test_a_serving_run_has_its_report(call: Call, tmp_path: Path) -> None:
    given = ("--topology", "h100x16-rail", "--workload", "moe128-serving")
    small = ("--set", "model.layers=2", "--set", "requests.limit=20", "--seed", "3")
    assert call("serve", *given, *small, "--out", "run").status == 0
    text = (tmp_path / "run" / "report.html").read_text()
    assert "20 of 20 requests finished" in text
    assert "could be read" not in text.partition("</head>")[2]
    for name in ("cdf-ttft", "cdf-tpot", "cdf-e2e", "cdf-itl", "queue-time", "kv-time", "groups"):
        assert f'<div id="{name}"' in text
    command = "serve --topology h100x16-rail --workload moe128-serving --set model.layers=2"
    assert command in text
    done = call("report", "run", "--steps", "1-2", "-o", "x.html")
    assert done.status == 2
    assert "--steps: a serving run has no spans to show" in done.err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("nowhere",), "nowhere: is no directory of a run"),
        (("run", "--steps", "2-1"), "--steps 2-1: ends before it begins; write 1-2"),
        (("run", "--steps", "x"), "--steps 'x': write the first and the last step, as in 5-8"),
        (("run", "--steps", "4-9"), "--steps 4-9: the run has steps 0 to 0"),
        (("run", "--plotlyjs", "inlin"), "--plotlyjs: no 'inlin' (did you mean 'inline'?)"),
        (("run", "-o", "there.html"), "there.html"),
        (("empty",), "is no directory of a run; give one kept with --out"),
        ((), "required"),
    ],
)
def test_what_is_refused(
    kept: Path, call: Call, tmp_path: Path, argv: tuple[str, ...], message: str
) -> None:
    (tmp_path / "run").symlink_to(kept)
    (tmp_path / "there.html").write_text("dear to me")
    (tmp_path / "empty").mkdir()
    before = listing(kept), (kept / "report.html").read_bytes()
    done = call("report", *argv)
    assert done.status == 2
    assert message in done.err
    assert len(done.err.splitlines()) == 1
    assert done.out == ""
    assert (listing(kept), (kept / "report.html").read_bytes()) == before
    assert (tmp_path / "there.html").read_text() == "dear to me"


@pytest.mark.parametrize("how", ["missing", "cut"])
@pytest.mark.parametrize("name", ["result.json", "spans.parquet", "steps.parquet", "loads.parquet"])
def test_of_a_damaged_run_it_shows_the_rest_and_says_so(
    call: Call, kept: Path, tmp_path: Path, name: str, how: str
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for path in kept.iterdir():
        if path.suffix in (".parquet", ".json"):
            (run / path.name).write_bytes(path.read_bytes())
    whole = (run / name).read_bytes()
    if how == "cut":
        (run / name).write_bytes(whole[: len(whole) // 2])
    else:
        (run / name).unlink()
    done = call("report", "run", "--plotlyjs", "cdn")
    assert (done.status, done.out) == (2, "run/report.html\n")
    assert done.err.startswith(f"error: run: {name}: ")
    assert done.err.count("\n") == 1
    assert "could be read" in (run / "report.html").read_text()


@pytest.mark.parametrize("value", [5, "x", [1], {"a": 1}])
@pytest.mark.parametrize(
    "key", ["summary", "input", "given", "versions", "memory", "notes", "context"]
)
def test_entries_of_the_result_that_no_run_writes(
    call: Call, kept: Path, tmp_path: Path, key: str, value: object
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for path in kept.glob("*.parquet"):
        (run / path.name).symlink_to(path)
    result = json.loads((kept / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | {key: value}))
    # Some say enough and some do not; none is a fault of the program.
    for command in (
        ("report", "run", "--plotlyjs", "cdn"),
        ("analyze", "run"),
        ("compare", "run", str(kept), "--html", f"{key}.html", "--plotlyjs", "cdn"),
    ):
        done = call(*command)
        assert done.status in (0, 2)
        assert done.out
        for line in done.err.splitlines():
            assert line.startswith("error: ")
            assert "run" in line


def test_a_run_can_leave_the_library_out_of_its_report(call: Call) -> None:
    for how, size in (("cdn", 1_000_000), ("directory", 1_000_000), ("inline", 10_000_000)):
        done = call("run", *SMALL, "--out", how, "--plotlyjs", how, "--trace-steps", "0")
        assert done.status == 0
        assert 100_000 < Path(how, "report.html").stat().st_size < size
        assert Path(how, "plotly.min.js").exists() == (how == "directory")
    assert "cdn.plot.ly" in Path("cdn", "report.html").read_text()
    assert 'src="plotly.min.js"' in Path("directory", "report.html").read_text()
    results = {Path(how, "result.json").read_bytes() for how in ("cdn", "directory", "inline")}
    assert len(results) == 1
    # The directory is still a run, and its report can be written anew.
    assert call("report", "directory", "--plotlyjs", "directory").status == 0
    assert call("analyze", "directory").status == 0


@pytest.mark.parametrize("command", ["run", "serve"])
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--plotlyjs", "cdn"), "--plotlyjs goes with --out DIR"),
        (("--out", "x", "--plotlyjs", "inlin"), "--plotlyjs: no 'inlin' (did you mean 'inline'?)"),
        (("--out", "x", "--plotlyjs", ""), "--plotlyjs: no ''; write inline, cdn, directory"),
    ],
)
def test_where_the_library_of_a_run_cannot_come_from(
    call: Call, tmp_path: Path, command: str, flags: tuple[str, ...], message: str
) -> None:
    done = call(command, *SMALL, *flags)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert message in done.err
    assert done.err.count("\n") == 1
    assert listing(tmp_path) == []


def test_a_run_that_is_not_kept_loads_no_charts() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from simulator.cli import main; "
        f"main(['run', *{SMALL!r}, '--json']); "
        "print([name for name in sys.modules if name.startswith(('plotly', 'pandas', "
        "'simulator.results.report'))], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip().splitlines()[-1] == "[]"


def test_the_layers_add_up_to_what_the_analyzer_finds(kept: Path) -> None:
    from simulator.results.report_read import read_run
    from simulator.results.report_scan import LAYER_PARTS
    from simulator.runfiles.spans import STREAMS

    run = read_run(kept)
    assert run.scan is not None
    steps = int(run.scan.steps.measured.sum())
    per_step = run.scan.layer_s.sum(axis=0) / (steps * run.gpus)
    parts = dict(zip(LAYER_PARTS, per_step.tolist(), strict=True))
    told = run.summary["breakdown_s"]
    kernels = sum(parts[name] for name in ("attention", "ffn", "experts", "lm_head"))
    assert kernels == pytest.approx(told["compute"], rel=1e-9)
    assert parts["weights"] == pytest.approx(told["fetch_stall"], rel=1e-9)
    # What a GPU waits for its peers is waiting for their tokens; idle comes after the last kernel.
    waited = told["exposed_communication"] + told["peer_wait"]
    assert parts["tokens"] == pytest.approx(waited, rel=1e-9)
    for stream, busy_s in zip(STREAMS, run.scan.busy_s, strict=True):
        share = busy_s / run.summary["simulated_time_s"]
        assert share.mean() == pytest.approx(run.summary[f"{stream}_utilization"], rel=1e-9)
        assert share.max() == pytest.approx(run.summary[f"{stream}_max_utilization"], rel=1e-9)
