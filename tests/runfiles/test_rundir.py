from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from simulator.errors import InputError
from simulator.runfiles.rundir import MARKER, RunDir, open_run


def listing(path: Path) -> list[str]:
    return sorted(str(p.relative_to(path)) for p in path.rglob("*"))


def test_a_run_appears_when_it_is_complete(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "run"
    with open_run(out) as run:
        run.spans.write_text("spans")
        assert not out.exists()
        assert run.path == tmp_path / "deep" / ".run.partial"
        run.write_result({"b": 1, "a": [0.1]})
    assert listing(tmp_path) == [
        "deep",
        "deep/run",
        "deep/run/result.json",
        "deep/run/spans.parquet",
    ]
    assert (out / "result.json").read_text() == '{\n "a": [\n  0.1\n ],\n "b": 1\n}\n'


def test_an_empty_directory_is_taken(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with open_run(tmp_path / "run") as run:
        run.write_result({})
    assert listing(tmp_path) == ["run", "run/result.json"]


def test_a_relative_name_survives_a_change_of_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with open_run(Path("run/")) as run:
        run.write_result({})
        monkeypatch.chdir(tmp_path / "elsewhere")
    assert listing(tmp_path) == ["elsewhere", "run", "run/result.json"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_nothing_stays_of_a_run_that_failed(tmp_path: Path, error: type[BaseException]) -> None:
    def failing_run() -> None:
        with open_run(tmp_path / "run") as run:
            run.spans.write_text("half")
            raise error

    with pytest.raises(error):
        failing_run()
    assert listing(tmp_path) == []


def test_a_directory_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").write_text("dear")
    with (
        pytest.raises(InputError, match=r"--out .*run: the directory is not empty"),
        open_run(tmp_path / "run"),
    ):
        pytest.fail("the run was begun")
    assert listing(tmp_path) == ["run", "run/mine"]


def test_a_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("dear")
    with pytest.raises(InputError, match="is not a directory"), open_run(tmp_path / "run"):
        pytest.fail("the run was begun")
    with pytest.raises(InputError, match="cannot be made"), open_run(tmp_path / "run" / "x"):
        pytest.fail("the run was begun")
    assert (tmp_path / "run").read_text() == "dear"


def test_what_was_put_there_during_the_run_is_left_alone(tmp_path: Path) -> None:
    def overtaken_run() -> None:
        with open_run(tmp_path / "run") as run:
            run.write_result({})
            (tmp_path / "run").mkdir()
            (tmp_path / "run" / "mine").write_text("dear")

    with pytest.raises(InputError, match="not empty"):
        overtaken_run()
    assert listing(tmp_path) == ["run", "run/mine"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_parent_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    with (
        pytest.raises(InputError, match="Permission denied"),
        open_run(tmp_path / "locked" / "run"),
    ):
        pytest.fail("the run was begun")


def test_no_room_for_the_name(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match="File name too long") as caught,
        open_run(tmp_path / ("x" * 300)),
    ):
        pytest.fail("the run was begun")
    assert "\n" not in str(caught.value)


KILLED = """
import os, signal, sys
from pathlib import Path
from simulator.runfiles.rundir import open_run
with open_run(Path(sys.argv[1])) as run:
    run.spans.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_run_left_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "run"
    child = subprocess.run(
        [sys.executable, "-c", KILLED, str(out)], cwd=Path(__file__).parents[2], check=False
    )
    assert child.returncode == -signal.SIGKILL
    assert listing(tmp_path) == [
        ".run.partial",
        ".run.partial/spans.parquet",
        f".run.partial/{MARKER}",
    ]
    with open_run(out) as run:
        assert not run.spans.exists()
        run.write_result({})
    assert listing(tmp_path) == ["run", "run/result.json"]


def test_a_run_under_way_is_not_disturbed(tmp_path: Path) -> None:
    with open_run(tmp_path / "run") as run:
        run.spans.write_text("half")
        with (
            pytest.raises(InputError, match="another run is writing there now"),
            open_run(tmp_path / "run"),
        ):
            pytest.fail("the second run was begun")
        assert run.spans.read_text() == "half"
        run.write_result({})
    assert listing(tmp_path) == ["run", "run/result.json", "run/spans.parquet"]


def test_a_partial_directory_of_someone_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".run.partial").mkdir()
    (tmp_path / ".run.partial" / "mine").write_text("dear")
    with pytest.raises(InputError, match="was not left by a run"), open_run(tmp_path / "run"):
        pytest.fail("the run was begun")
    assert listing(tmp_path) == [".run.partial", ".run.partial/mine"]


def test_without_a_name_nothing_is_kept() -> None:
    with open_run(None) as run:
        run.write_result({"x": 1})
        assert json.loads(run.result.read_text()) == {"x": 1}
    assert not run.path.exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_result_that_is_not_a_number(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        RunDir(tmp_path).write_result({"summary": {"x": value}})
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": NaN}', "cannot be read, it is damaged or cut short"),
        ('{"a": -Infinity}', "cannot be read, it is damaged or cut short"),
        ('{"a": 1e999}', "cannot be read, it is damaged or cut short"),
        ('{"a": 1e308}', "cannot be read, it is damaged or cut short"),
        ('{"a": 1', "cannot be read, it is damaged or cut short"),
        ("[1]", "is not the result of a run"),
        (None, "is missing; is this the directory of a finished run?"),
    ],
)
def test_a_result_that_no_run_writes(tmp_path: Path, text: str | None, said: str) -> None:
    run = RunDir(tmp_path)
    if text is not None:
        run.result.write_text(text)
    with pytest.raises(InputError) as caught:
        run.load_result()
    assert str(caught.value) == f"{tmp_path}/result.json: {said}"
    assert run.read_result() == {}
