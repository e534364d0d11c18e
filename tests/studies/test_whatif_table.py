"""What is kept of a study, and that nothing is lost or done twice whatever happens to it."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from studies.whatif_helpers import AXES, BASE, inline_of, overrides_of, row_of, study_of

from simulator.errors import InputError
from simulator.studies.whatif import run as running
from simulator.studies.whatif.points import Case, Row, run_case
from simulator.studies.whatif.pool import Pool, inline, processes
from simulator.studies.whatif.run import run_study
from simulator.studies.whatif.texts import as_csv

STEP = "step_time_s.mean"


class Made:
    """Answers cases with made-up figures and counts them."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.asked: list[str] = []
        self.stop_after = stop_after

    def __call__(self, case: Case) -> Row:
        if self.stop_after is not None and len(self.asked) == self.stop_after:
            raise KeyboardInterrupt
        self.asked.append(case.key)
        given = overrides_of(case)
        if given["parallel.ep"] == 5:
            return row_of(case, None, "5 does not divide 16")
        return row_of(case, {STEP: given["traffic.tokens_per_gpu"] / given["parallel.ep"]})

    def pool(self) -> Any:
        return inline_of(self)


TEXT = BASE + AXES + "metrics: [step_time]\n"


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_a_study_that_was_interrupted_goes_on_where_it_was(tmp_path: Path) -> None:
    """For every point at which it may stop: no point lost, none repeated, the same table."""
    study = study_of(tmp_path, TEXT)
    whole = Made()
    expected = as_csv(run_study(study, tmp_path / "whole", whole.pool))
    assert len(whole.asked) == 9
    for stop in range(9):
        out = tmp_path / f"stopped{stop}"
        first, second = Made(stop), Made()
        with pytest.raises(KeyboardInterrupt):
            run_study(study, out, first.pool)
        found = run_study(study, out, second.pool, resume=True)
        assert first.asked + second.asked == whole.asked
        assert (found.kept, found.ran) == (stop, 9 - stop)
        assert as_csv(found) == expected
        assert [row["key"] for row in lines(out)] == whole.asked
    third = Made()
    run_study(study, tmp_path / "whole", third.pool, resume=True)
    assert third.asked == []


def test_the_table_is_the_same_whatever_the_order_of_completion(tmp_path: Path) -> None:
    study = study_of(tmp_path, TEXT)
    orders = []
    tables = []
    for turn in (0, -1, 4):
        made = Made()

        @contextmanager
        def pool(made: Made = made, turn: int = turn) -> Any:
            yield Pool(Shuffled(made, turn), 9)

        found = run_study(study, tmp_path / f"out{turn}", pool)
        orders.append([row["key"] for row in lines(tmp_path / f"out{turn}")])
        tables.append(as_csv(found))
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(orders[2])
    assert len(set(tables)) == 1


class Shuffled(Executor):
    """Answers nothing until it has all nine, and then those after number `turn` first."""

    def __init__(self, made: Made, turn: int) -> None:
        self.made = made
        self.turn = turn
        self.held: list[tuple[Future[Row], Case]] = []

    def submit(self, fn: Callable[..., Row], /, *args: Any, **_: Any) -> Future[Row]:
        future: Future[Row] = Future()
        self.held.append((future, args[0]))
        if len(self.held) == 9:
            order = self.held[self.turn :] + self.held[: self.turn]
            for one, case in reversed(order) if self.turn else order:
                one.set_result(self.made(case))
        return future


def test_a_torn_last_line_is_dropped_and_told(tmp_path: Path) -> None:
    study, out = study_of(tmp_path, TEXT), tmp_path / "out"
    run_study(study, out, Made().pool)
    path = out / "results.jsonl"
    whole = path.read_bytes()
    last = whole[: whole[:-1].rfind(b"\n") + 1]
    for torn in (whole[:-1], whole[: len(last) + 5], last + b"\0\0\0\n", last):
        path.write_bytes(torn)
        said: list[str] = []
        again = Made()
        run_study(study, out, again.pool, resume=True, say=said.append)
        assert len(again.asked) == 1
        assert path.read_bytes() == whole
        assert [line for line in said if "torn" in line] == said
        assert len(said) == (torn != last)


def test_damage_in_the_middle_is_refused(tmp_path: Path) -> None:
    study, out = study_of(tmp_path, TEXT), tmp_path / "out"
    run_study(study, out, Made().pool)
    path = out / "results.jsonl"
    rows = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*rows[:3], rows[3][:40] + "\n", *rows[4:]]))
    with pytest.raises(InputError, match=r"results\.jsonl:4: is no row of a study"):
        run_study(study, out, Made().pool, resume=True)


def test_a_failed_point_is_not_tried_again_and_a_broken_one_is(tmp_path: Path) -> None:
    study, out = study_of(tmp_path, TEXT), tmp_path / "out"

    def broken(case: Case) -> Row:
        row = made(case)
        if overrides_of(case)["parallel.ep"] == 8:
            row |= {"status": "error", "reason": "internal error"}
        return row

    made = Made()
    found = run_study(study, out, lambda: inline_of(broken))
    assert [point.row["status"] for point in found.points] == ["ok", "error", "failed"] * 3
    again = Made()
    found = run_study(study, out, again.pool, resume=True)
    assert len(again.asked) == 3
    assert [point.row["status"] for point in found.points] == ["ok", "ok", "failed"] * 3


@pytest.mark.parametrize("written", [0, 30])
def test_a_full_disk_is_one_line_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    """The disk takes four rows, and of the fifth nothing or a part."""
    study, out = study_of(tmp_path, TEXT), tmp_path / "out"
    real, calls = os.write, []

    def write(descriptor: int, data: Any) -> int:
        calls.append(len(data))
        if len(calls) == 5 and written:
            return real(descriptor, bytes(data)[:written])
        if len(calls) >= 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data)

    monkeypatch.setattr("simulator.studies.whatif.table.os.write", write)
    first = Made()
    with pytest.raises(InputError) as told:
        run_study(study, out, first.pool)
    monkeypatch.undo()
    assert str(told.value) == (
        f"{out}/results.jsonl: cannot be written: No space left on device; 4 points are kept: "
        "free some space, then go on with --resume"
    )
    second = Made()
    said: list[str] = []
    found = run_study(study, out, second.pool, resume=True, say=said.append)
    assert said == []
    assert first.asked[:4] + second.asked == [row["key"] for row in lines(out)]
    assert as_csv(found) == as_csv(run_study(study, tmp_path / "whole", Made().pool))


def test_a_full_disk_of_a_worker_stops_the_study(tmp_path: Path) -> None:
    study, out = study_of(tmp_path, TEXT), tmp_path / "out"
    made = Made()

    def full(case: Case) -> Row:
        if len(made.asked) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/x/spans.parquet")
        return made(case)

    with pytest.raises(InputError, match=r"spans\.parquet: cannot be written: .* 3 points"):
        run_study(study, out, lambda: inline_of(full))
    assert len(lines(out)) == 3


# --- Whose directory --------------------------------------------------------------------


def refused(tmp_path: Path, text: str, resume: bool = True) -> str:
    with pytest.raises(InputError) as told:
        run_study(study_of(tmp_path, text), tmp_path / "out", Made().pool, resume=resume)
    return str(told.value).removeprefix(f"--out {tmp_path}/out: ")


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("name: small", "name: other", "is of another study: name was small, and is other"),
        ("values: [1, 2, 4]", "values: [1, 2]", "is of another study: axes was changed"),
        ("model.layers: 2", "model.layers: 4", "is of another study: base was changed"),
        ("name: small", "name: small\nseed: 4", "is of another study: seed was 0, and is 4"),
        ("metrics:", "random: {points: 3}\nmetrics:", "is of another study: random was changed"),
    ],
)
def test_the_directory_of_another_study_is_refused(
    tmp_path: Path, old: str, new: str, line: str
) -> None:
    run_study(study_of(tmp_path, TEXT), tmp_path / "out", Made().pool)
    before = (tmp_path / "out" / "results.jsonl").read_bytes()
    assert refused(tmp_path, TEXT.replace(old, new)) == f"{line}; give another name"
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == before


def test_what_is_only_told_of_the_points_may_change(tmp_path: Path) -> None:
    run_study(study_of(tmp_path, TEXT), tmp_path / "out", Made().pool)
    again = Made()
    text = TEXT.replace("What is fastest?", "Why?") + "constraints: [step_time < 1 s]\n"
    found = run_study(study_of(tmp_path, text), tmp_path / "out", again.pool, resume=True)
    assert again.asked == []
    assert found.study.question == "Why?"


def test_a_study_without_resume_is_refused(tmp_path: Path) -> None:
    run_study(study_of(tmp_path, TEXT), tmp_path / "out", Made().pool)
    line = "holds points of this study; go on with --resume, or give another name"
    assert refused(tmp_path, TEXT, resume=False) == line


def test_a_changed_file_is_refused_by_name(tmp_path: Path) -> None:
    from simulator.spec.find import find

    mine = tmp_path / "mine.yaml"
    mine.write_bytes(find("topology", "nvswitch16").read_bytes())
    text = TEXT.replace("nvswitch16", "mine.yaml")
    run_study(study_of(tmp_path, text), tmp_path / "out", Made().pool)
    run_study(study_of(tmp_path, text), tmp_path / "out", Made().pool, resume=True)
    mine.write_text(mine.read_text().replace("450 GB/s", "400 GB/s"))
    line = "is of another study: mine.yaml has another content; give another name"
    assert refused(tmp_path, text) == line


def test_a_directory_that_is_not_of_a_study_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("all of it")
    line = "holds 'thesis.tex', which is not of a study; give another name"
    assert refused(tmp_path, TEXT) == line
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]


def test_a_directory_in_which_nothing_was_done_is_free(tmp_path: Path) -> None:
    """As after a scheduler that did not answer: the study may be another one then."""
    with pytest.raises(KeyboardInterrupt):
        run_study(study_of(tmp_path, TEXT), tmp_path / "out", Made(0).pool)
    again = Made()
    run_study(study_of(tmp_path, TEXT.replace("small", "other")), tmp_path / "out", again.pool)
    assert len(again.asked) == 9


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    study = study_of(tmp_path, TEXT)
    told: list[str] = []

    def inner(case: Case) -> Row:
        if not told:
            told.append(refused(tmp_path, TEXT))
        return Made()(case)

    run_study(study, tmp_path / "out", lambda: inline_of(inner))
    assert told == ["another process is writing there now"]


def test_a_metric_that_no_summary_has_stops_the_study_at_its_first_point(tmp_path: Path) -> None:
    text = TEXT.replace("[step_time]", "[step_time_s.maen]")
    made = Made()
    with pytest.raises(InputError) as told:
        run_study(study_of(tmp_path, text), tmp_path / "out", made.pool)
    assert str(told.value) == (
        "metric 'step_time_s.maen': a summary has no such figure (did you mean "
        "'step_time_s.mean'?); then go on with --resume"
    )
    assert len(made.asked) == 1
    again = Made()
    run_study(study_of(tmp_path, TEXT), tmp_path / "out", again.pool, resume=True)
    assert len(again.asked) == 8


# --- Processes --------------------------------------------------------------------------


def test_processes_give_what_one_process_gives(tmp_path: Path) -> None:
    study = study_of(tmp_path, TEXT)
    alone = run_study(study, tmp_path / "alone", inline)
    both = run_study(study, tmp_path / "both", lambda: processes(2))
    assert as_csv(alone) == as_csv(both)
    assert [point.row["status"] for point in alone.points] == ["ok", "ok", "failed"] * 3


def dies(case: Case) -> Row:
    """Ends the process that runs one of the points; and of another, the first time."""
    given = overrides_of(case)
    once = Path(os.environ["WHATIF_TEST_ONCE"])
    if given["parallel.ep"] == 8 and given["traffic.tokens_per_gpu"] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if given["parallel.ep"] == 16 and given["traffic.tokens_per_gpu"] == 4 and not once.exists():
        once.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return run_case(case)


def test_a_process_that_dies_costs_its_point_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed once: run again. Killed again when it was alone: a row that says so."""
    monkeypatch.setenv("WHATIF_TEST_ONCE", str(tmp_path / "once"))
    monkeypatch.setattr(running, "run_case", dies)
    study = study_of(tmp_path, TEXT)
    found = run_study(study, tmp_path / "out", lambda: processes(2))
    status = [point.row["status"] for point in found.points]
    assert status == ["ok", "ok", "failed", "ok", "error", "failed", "ok", "ok", "failed"]
    assert found.points[4].row["reason"].startswith("the process that ran it died")
    keys = [row["key"] for row in lines(tmp_path / "out")]
    assert len(keys) == len(set(keys)) == 9


def test_a_broken_pool_is_made_anew(tmp_path: Path) -> None:
    made = Made()
    breaks = iter([True, False, True, *[False] * 20])
    pools: list[int] = []

    def answer(case: Case) -> Row:
        if next(breaks):
            raise BrokenProcessPool("gone")
        return made(case)

    @contextmanager
    def pool() -> Any:
        pools.append(1)
        with inline_of(answer) as inner:
            yield inner

    found = run_study(study_of(tmp_path, TEXT), tmp_path / "out", pool)
    assert len(pools) == 3
    assert len(found.points) == len(set(made.asked)) == len(made.asked) == 9
