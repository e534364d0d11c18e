"""`report RUN`: the page beside a run, windows of steps, and what is refused."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from cli.running import SMALL, Call, listing

from simulator.cli.report import PLOTLYJS
from simulator.results import page


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
        (("empty",), "nothing of a run can be read there"),
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


def test_the_library_can_come_as_pages_say() -> None:
    assert sorted(PLOTLYJS) == sorted(page.PLOTLYJS)


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
