"""Studies that are killed for real: processes on this machine, and a dask cluster on loopback."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from studies.whatif_helpers import BASE

from simulator.spec.units import counted

ROOT = Path(__file__).resolve().parents[2]
# 40 points, of which 10 fail; each takes some tens of milliseconds.
# Steps enough that many points are still to come when a few are there.
TEXT = (
    BASE.replace("traffic.steps: 1,", "traffic.steps: 30,")
    + """\
axes:
  - {name: tokens, key: traffic.tokens_per_gpu, values: [1, 2, 3, 4, 5]}
  - {name: context, key: traffic.context, values: [128, 1024]}
  - {name: EP, key: parallel.ep, values: [16, 8, 5, 4]}
objectives: [{metric: step_time, direction: minimize}]
"""
)
POINTS = 40


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def command(*more: str) -> list[str]:
    return [sys.executable, "-m", "simulator", "whatif", "study.yaml", *more]


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    """Start a study in a process group of its own."""
    return subprocess.Popen(
        command(*more),
        cwd=folder,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        # Where the tests run in the background, Ctrl-C is ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def finish(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(*more), cwd=folder, env=environment(), text=True, capture_output=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return done


def count(out: Path) -> int:
    path = out / "results.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for(ready: Callable[[], bool], what: str, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.02)


def keys(out: Path) -> list[str]:
    return [json.loads(line)["key"] for line in (out / "results.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study, done without a break."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "study.yaml").write_text(TEXT)
    finish(folder, "--out", "out")
    assert len(keys(folder / "out")) == POINTS
    return folder / "out"


def same(out: Path, whole: Path) -> None:
    """No point is lost and none is there twice; table and reports but for its name are the same."""
    assert len(keys(out)) == len(set(keys(out))) == POINTS
    assert set(keys(out)) == set(keys(whole))
    for name in ("table.csv", "report.md", "report.tex"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in listed.split()]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_kill_minus_nine_in_the_middle_then_resume(tmp_path: Path, whole: Path) -> None:
    (tmp_path / "study.yaml").write_text(TEXT)
    out = tmp_path / "out"
    study = start(tmp_path, "--out", "out", "--workers", "2")
    wait_for(lambda: count(out) >= 8, "8 points")
    workers = children(study.pid)
    assert len(workers) >= 2
    study.kill()
    study.wait()
    kept = count(out)
    assert 8 <= kept < POINTS
    assert not (out / "table.csv").exists()
    # Nobody is left behind who would go on computing, or hold the table.
    wait_for(lambda: not any(map(alive, workers)), "the workers to end", 20.0)
    done = finish(tmp_path, "--out", "out", "--resume", "--workers", "2")
    assert f"{kept} points kept from before, {POINTS - kept} run now" in done.stderr
    same(out, whole)


def test_interrupted_by_the_keyboard(tmp_path: Path, whole: Path) -> None:
    """As a terminal does it: the whole group gets the signal, with many points still to come."""
    (tmp_path / "study.yaml").write_text(TEXT)
    out = tmp_path / "out"
    study = start(tmp_path, "--out", "out", "--workers", "2")
    wait_for(lambda: count(out) >= 5, "5 points")
    os.killpg(study.pid, signal.SIGINT)
    _, told = study.communicate(timeout=60)
    assert study.returncode == 130
    lines = [line for line in told.splitlines() if "compiling" not in line]
    assert lines == ["interrupted; what was done is kept in out/results.jsonl: go on with --resume"]
    assert count(out) >= 5
    finish(tmp_path, "--out", "out", "--resume")
    same(out, whole)


# --- dask -------------------------------------------------------------------------------


@pytest.fixture
def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Cluster:
    """A scheduler and two workers, processes of their own."""

    def __init__(self, folder: Path, port: int) -> None:
        self.address = f"tcp://127.0.0.1:{port}"
        at = ("--host", "127.0.0.1", "--port", str(port), "--no-dashboard", "--no-jupyter")
        self.scheduler = self._process(folder / "scheduler.log", "scheduler", *at)
        of = (self.address, "--nthreads", "1", "--no-dashboard", "--no-nanny")
        self.workers = [
            self._process(folder / f"worker{n}.log", "worker", *of, "--name", f"w{n}")
            for n in range(2)
        ]

    def _process(self, log: Path, *words: str) -> subprocess.Popen[bytes]:
        with log.open("wb") as stream:
            return subprocess.Popen(
                [sys.executable, "-m", "distributed.cli.dask_" + words[0], *words[1:]],
                cwd=log.parent,
                env=environment(),
                stdout=stream,
                stderr=stream,
            )

    def close(self) -> None:
        """End all of it."""
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory, free_port: int) -> Iterator[Cluster]:
    pytest.importorskip("distributed", reason="dask.distributed is not installed ([distributed])")
    made = Cluster(tmp_path_factory.mktemp("cluster"), free_port)
    yield made
    made.close()


def test_a_cluster_whose_worker_is_killed(tmp_path: Path, whole: Path, cluster: Cluster) -> None:
    (tmp_path / "study.yaml").write_text(TEXT)
    out = tmp_path / "out"
    study = start(tmp_path, "--out", "out", "--scheduler", cluster.address)
    wait_for(lambda: count(out) >= 5, "5 points")
    cluster.workers[0].kill()
    _, told = study.communicate(timeout=200)
    assert study.returncode == 0, told
    same(out, whole)


def test_a_study_killed_on_a_cluster_goes_on_there(
    tmp_path: Path, whole: Path, cluster: Cluster
) -> None:
    (tmp_path / "study.yaml").write_text(TEXT)
    out = tmp_path / "out"
    study = start(tmp_path, "--out", "out", "--scheduler", cluster.address)
    wait_for(lambda: count(out) >= 5, "5 points")
    study.kill()
    study.wait()
    kept = count(out)
    assert kept < POINTS
    cluster.workers[1].kill()
    done = finish(tmp_path, "--out", "out", "--resume", "--scheduler", cluster.address)
    assert f"{counted(kept, 'point')} kept from before" in done.stderr
    same(out, whole)


def test_a_scheduler_that_goes_away_loses_nothing(
    tmp_path: Path, whole: Path, cluster: Cluster
) -> None:
    (tmp_path / "study.yaml").write_text(TEXT)
    out = tmp_path / "out"
    study = start(tmp_path, "--out", "out", "--scheduler", cluster.address)
    wait_for(lambda: count(out) >= 5, "5 points")
    cluster.scheduler.kill()
    _, told = study.communicate(timeout=120)
    assert study.returncode == 2, told
    (line,) = told.splitlines() if told.count("\n") == 1 else pytest.fail(told)
    assert line.startswith("error: ")
    assert line.endswith(f"{count(out)} points are kept in out/results.jsonl: go on with --resume")
    finish(tmp_path, "--out", "out", "--resume")
    same(out, whole)


def test_a_scheduler_that_does_not_answer(tmp_path: Path, free_port: int) -> None:
    """One that is not there, and one that takes the connection and says nothing: bounded time."""
    pytest.importorskip("distributed", reason="dask.distributed is not installed ([distributed])")
    from simulator.studies.whatif.pool import ANSWER_S

    (tmp_path / "study.yaml").write_text(TEXT)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        ports = (free_port, silent.getsockname()[1])
        studies = [
            start(tmp_path, "--out", f"out{n}", "--scheduler", f"tcp://127.0.0.1:{port}")
            for n, port in enumerate(ports)
        ]
        for study, port in zip(studies, ports, strict=True):
            _, told = study.communicate(timeout=ANSWER_S + 60)
            assert study.returncode == 2
            assert len(told.splitlines()) == 1
            assert told.startswith(f"error: --scheduler tcp://127.0.0.1:{port}: does not answer")


def test_a_scheduler_without_workers(
    tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("distributed", reason="dask.distributed is not installed ([distributed])")
    from simulator.errors import InputError
    from simulator.studies.whatif import pool

    monkeypatch.setattr(pool, "ANSWER_S", 5.0)
    made = Cluster(tmp_path, free_port)
    for worker in made.workers:
        worker.kill()
        worker.wait()
    try:
        with (
            pytest.raises(InputError, match="has no workers; start some"),
            pool.cluster(made.address),
        ):
            pass
    finally:
        made.close()
