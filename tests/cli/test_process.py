"""What only whole processes show: other directories, hash seeds, closed pipes, start-up."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli.running import SMALL, Call, listing

ROOT = Path(__file__).resolve().parents[2]

# A small run needs none of these, and each would take a good part of its time.
# Not "scipy": numba looks at its version where it is installed (10 ms); its parts are slow.
UNWANTED = ("pandas", "plotly", "tqdm", "pyarrow.dataset", "matplotlib", "scipy.optimize")


def python(code: list[str], cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    return subprocess.run(
        [sys.executable, *code],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_two_processes_in_other_directories_give_the_same_bytes(tmp_path: Path) -> None:
    runs = []
    for hash_seed in ("1", "2"):
        cwd = tmp_path / hash_seed
        cwd.mkdir()
        done = python(["-m", "simulator", *SMALL, "--out", "run"], cwd, PYTHONHASHSEED=hash_seed)
        assert done.returncode == 0, done.stderr
        assert listing(cwd)[0] == "run"
        runs.append((done.stdout, {f.name: f.read_bytes() for f in (cwd / "run").iterdir()}))
    (shown, files), (shown_again, files_again) = runs
    assert shown == shown_again
    assert {"result.json", "spans.parquet", "trace_rank15.json.gz"} <= set(files)
    assert sorted(files) == sorted(files_again)
    assert [name for name in files if files[name] != files_again[name]] == []


def test_a_run_loads_nothing_that_it_does_not_need(tmp_path: Path) -> None:
    code = (
        "import sys; from simulator.cli import main; status = main(sys.argv[1:]);"
        f"print(status, *[m for m in {UNWANTED!r} if m in sys.modules], file=sys.stderr)"
    )
    done = python(["-c", code, *SMALL], tmp_path)
    assert done.stderr.splitlines()[-1] == "0"


def test_a_refusal_loads_no_engine(tmp_path: Path) -> None:
    code = (
        "import sys; from simulator.cli import main; status = main(sys.argv[1:]);"
        "print(status, *[m for m in ('numba', 'networkx', 'pyarrow') if m in sys.modules])"
    )
    done = python(["-c", code, *SMALL, "--set", "traffic.stepz=1"], tmp_path)
    assert done.stdout.split() == ["2"]


def test_a_reader_that_has_gone_is_no_error(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as stdout:
        done = subprocess.run(
            [sys.executable, "-m", "simulator", "list", "topologies"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert done.stderr == ""
    assert done.returncode == 141


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    """Of stdout, as on a pipe into a file."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "simulator", "list", "topologies"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
        )
    assert done.returncode == 2
    assert done.stderr == "error: cannot be written: No space left on device\n"


def test_a_disk_that_fills_during_a_run_is_one_line_and_nothing_is_left(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as pq

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "Error writing bytes to file")  # as pyarrow says it

    monkeypatch.setattr(pq.ParquetWriter, "write_batch", full)
    done = call(*SMALL, "--out", "run")
    assert (done.status, done.out) == (2, "")
    assert done.err == "error: run: cannot be written: No space left on device\n"
    assert listing(tmp_path) == []
    done = call(*SMALL)
    assert done.status == 2
    assert "simulator-run-" in done.err
