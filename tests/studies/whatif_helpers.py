"""Small studies, and points that are made up instead of run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from simulator.studies.whatif.points import Case, Row
from simulator.studies.whatif.pool import Pool
from simulator.studies.whatif.run import Found, Point
from simulator.studies.whatif.spec import Study, read_study

BASE = """\
name: small
question: What is fastest?
base:
  topology: nvswitch16
  workload: moe128
  routing: zipf:0.8
  set: {model.layers: 2, traffic.steps: 1, traffic.warmup_steps: 0, expert_slots: null,
    prefetch: none, overlap: none}
"""
AXES = """\
axes:
  - {name: tokens, key: traffic.tokens_per_gpu, values: [1, 2, 4]}
  - {name: EP, key: parallel.ep, values: [16, 8, 5]}
"""
"""9 points; 5 does not divide 16 GPUs, so that 3 of them fail."""


def study_of(folder: Path, text: str) -> Study:
    """A study from its text."""
    path = folder / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return read_study(path, "study.yaml")


def overrides_of(case: Case) -> dict[str, Any]:
    """What a case sets."""
    return {key: json.loads(value) for key, _, value in (o.partition("=") for o in case.overrides)}


def row_of(case: Case, figures: Mapping[str, Any] | None, reason: str = "") -> Row:
    """A row as `run_case` makes it."""
    status = "ok" if figures is not None else "failed"
    told: Row = {"key": case.key, "status": status, "reason": reason, "notes": []}
    return told | {"seconds": 0.25, "figures": dict(figures or {})}


def found_of(study: Study, figures: Callable[[tuple[int, ...]], Mapping[str, Any] | None]) -> Found:
    """A whole grid whose figures are given by the numbers of the values."""
    from simulator.studies.whatif.points import case_of, choices_of

    points = [
        Point(n, choice, row_of(case_of(study, choice), figures(choice), "made to fail"))
        for n, choice in enumerate(choices_of(study))
    ]
    return Found(study, points, len(points), 0)


@contextmanager
def inline_of(run: Callable[[Case], Row]) -> Iterator[Pool]:
    """A pool that answers each case by `run`, at once."""

    class Answers(Executor):
        def submit(self, fn: Callable[..., Row], /, *args: Any, **_: Any) -> Future[Row]:
            future: Future[Row] = Future()
            try:
                future.set_result(run(*args))
            except Exception as error:
                future.set_exception(error)
            return future

    yield Pool(Answers(), 1)
