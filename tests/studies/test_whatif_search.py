"""Searches: the same on however many workers and after a break, and better than chance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from studies.whatif_helpers import BASE, inline_of, overrides_of, row_of, study_of

from simulator.errors import InputError
from simulator.studies.whatif.judge import front, ranked
from simulator.studies.whatif.metrics import metric_of
from simulator.studies.whatif.points import Case, Row
from simulator.studies.whatif.run import run_study
from simulator.studies.whatif.texts import as_csv

pytest.importorskip("optuna", reason="optuna is not installed ([optimize])")

# 30 x 30 x 2 points; the best, 1, is at tokens 20, context 7 with lru.
AXES = f"""\
axes:
  - {{name: tokens, key: traffic.tokens_per_gpu, values: {list(range(1, 31))}}}
  - {{name: context, key: traffic.context, values: {list(range(1, 31))}}}
  - {{name: eviction, values: [lfu, lru]}}
"""
ONE = "objectives: [{metric: step_time, direction: minimize}]\n"
TWO = ONE.replace("]", ", {metric: tokens_per_s, direction: maximize}]")


class Bowl:
    """Made-up figures: a bowl; one corner cannot be run."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.asked: list[str] = []
        self.stop_after = stop_after

    def __call__(self, case: Case) -> Row:
        if len(self.asked) == self.stop_after:
            raise KeyboardInterrupt
        self.asked.append(case.key)
        given = overrides_of(case)
        x, y = given["traffic.tokens_per_gpu"], given["traffic.context"]
        if x > 25 and y > 25:
            return row_of(case, None, "does not fit")
        time = 1.0 + (x - 20) ** 2 + (y - 7) ** 2 + 50 * (given["eviction"] == "lfu")
        return row_of(case, {"step_time_s.mean": time, "throughput_tokens_per_s": float(x)})

    def pool(self) -> Any:
        return inline_of(self)


def text(goals: str, trials: int, more: str = "") -> str:
    return BASE + AXES + goals + f"search: {{trials: {trials}, seed: 5}}\n" + more


def test_a_search_comes_nearer_than_chance(tmp_path: Path) -> None:
    """The best of 100 out of 1,800: of random points 1 in 20 draws would have one below 4.

    27 of the 1,800 points lie below 10: half of all random draws of 100 miss them by 2 and more;
    fewer than 3 points lie below 2.5.
    """
    bowl = Bowl()
    found = run_study(study_of(tmp_path, text(ONE, 100)), tmp_path / "out", bowl.pool)
    assert len(found.points) == len(set(bowl.asked)) == len(bowl.asked) == 100
    best = ranked(found, metric_of("step_time", "run"), 1.0)[0]
    assert best.row["figures"]["step_time_s.mean"] <= 3.0
    # It asks mostly where it is good: the mean of the later half is far below that of chance.
    times = [p.row["figures"].get("step_time_s.mean") for p in found.points[50:]]
    known = [time for time in times if time is not None]
    assert sum(known) / len(known) < 100.0


def test_a_search_goes_on_where_it_was(tmp_path: Path) -> None:
    study = study_of(tmp_path, text(TWO, 24, "constraints: [step_time < 200 s]\n"))
    whole = Bowl()
    expected = as_csv(run_study(study, tmp_path / "whole", whole.pool))
    for stop in (1, 6, 13, 23):
        first, second = Bowl(stop), Bowl()
        with pytest.raises(KeyboardInterrupt):
            run_study(study, tmp_path / f"out{stop}", first.pool)
        found = run_study(study, tmp_path / f"out{stop}", second.pool, resume=True)
        assert first.asked + second.asked == whole.asked
        assert as_csv(found) == expected


def test_more_trials_begin_with_those_there_are(tmp_path: Path) -> None:
    run_study(study_of(tmp_path, text(ONE, 12)), tmp_path / "out", Bowl().pool)
    again = Bowl()
    found = run_study(study_of(tmp_path, text(ONE, 20)), tmp_path / "out", again.pool, resume=True)
    assert (len(again.asked), found.kept, len(found.points)) == (8, 12, 20)


def test_a_small_grid_is_searched_whole(tmp_path: Path) -> None:
    axes = "axes:\n  - {name: tokens, key: traffic.tokens_per_gpu, values: [19, 20, 21]}\n"
    axes += "  - {name: context, key: traffic.context, values: [7, 8]}\n"
    axes += "  - {name: eviction, values: [lru]}\n"
    study = study_of(tmp_path, BASE + axes + ONE + "search: {trials: 50}\n")
    bowl = Bowl()
    found = run_study(study, tmp_path / "out", bowl.pool)
    assert len(bowl.asked) == len(found.points) == 6


def test_a_constraint_is_heeded(tmp_path: Path) -> None:
    """The fastest that is at most 10 tokens: without the bound the search would go to 20."""
    study = study_of(tmp_path, text(ONE, 80, "constraints: [tokens_per_s <= 10]\n"))
    found = run_study(study, tmp_path / "out", Bowl().pool)
    best = ranked(found, metric_of("step_time", "run"), 1.0)[0]
    assert best.row["figures"]["throughput_tokens_per_s"] <= 10
    # The best there is 1 + 100.
    assert best.row["figures"]["step_time_s.mean"] <= 110.0


def test_the_front_of_two_objectives_is_found(tmp_path: Path) -> None:
    """From 20 tokens to 30 more tokens take longer: the front runs there."""
    found = run_study(study_of(tmp_path, text(TWO, 80)), tmp_path / "out", Bowl().pool)
    tokens = [p.row["figures"]["throughput_tokens_per_s"] for p in front(found)]
    assert min(tokens) >= 18
    assert max(tokens) >= 29


def test_other_objectives_are_another_search(tmp_path: Path) -> None:
    run_study(study_of(tmp_path, text(ONE, 6)), tmp_path / "out", Bowl().pool)
    with pytest.raises(InputError, match="search was changed"):
        run_study(study_of(tmp_path, text(TWO, 6)), tmp_path / "out", Bowl().pool, resume=True)
