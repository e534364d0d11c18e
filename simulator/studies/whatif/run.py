"""A study run: its points handed out, their rows kept as they come, nothing done twice."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Future, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from simulator.errors import InputError
from simulator.studies.whatif.identity import identity
from simulator.studies.whatif.metrics import absent
from simulator.studies.whatif.points import Case, Choice, Row, case_of, check, choices_of, run_case
from simulator.studies.whatif.pool import Maker, Pool
from simulator.studies.whatif.search import search
from simulator.studies.whatif.spec import Study
from simulator.studies.whatif.table import Say, Table, open_table, unwritable

Progress = Callable[[int, int], None]

LOOK_S = 5.0
"""How often it is looked whether a pool that gives no answer can still give one."""

ALONE = 2
"""How often a process may die under a point that is run alone, before the point is given up."""

DIED = f"the process that ran it died, {ALONE} times while it was alone (out of memory?)"


@dataclass(frozen=True)
class Point:
    """A point of the table: its number, its value on each axis, and what became of it."""

    number: int
    choice: Choice
    row: Row


@dataclass(frozen=True)
class Found:
    """What a study gave, its points in the order of the study, whatever order they were done in.

    ran: how many were run now; kept: how many were there before.
    """

    study: Study
    points: list[Point]
    ran: int
    kept: int


def run_study(
    study: Study,
    out: Path,
    make: Maker,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    say: Say | None = None,
) -> Found:
    """Run what is not done yet of a study, and return all of it; rows are kept in `out`.

    InputError, one line per fault: values that no run can use, an `out` that holds something
    else, a metric that no summary has, a scheduler that does not answer, a full disk. What was
    done until then is in `out`.
    """
    check(study)
    with open_table(out, identity(study), resume, say) as table:
        kept = len(table.rows)
        _check_metrics(study, table.rows.values())
        total = min(study.search.trials, study.size) if study.search is not None else None
        with _Runner(study, table, make, progress, total).ready() as runner:
            if study.search is not None:
                choices = search(study, runner.rows_of)
            else:
                choices = list(choices_of(study))
            rows = runner.rows_of(choices)
        points = [
            Point(number, choice, row)
            for number, (choice, row) in enumerate(zip(choices, rows, strict=True))
        ]
        return Found(study, points, runner.ran, kept)


class _Runner:
    """Hands cases to a pool that is made when the first is needed, and anew when it broke."""

    def __init__(
        self,
        study: Study,
        table: Table,
        make: Maker,
        progress: Progress | None,
        total: int | None,
    ) -> None:
        self.study = study
        self.table = table
        self.make = make
        self.progress = progress
        self.total = total
        self.ran = 0
        self._stack = ExitStack()
        self._pool: Pool | None = None

    @contextmanager
    def ready(self) -> Iterator[_Runner]:
        """Ends the pool at the end."""
        with self._stack:
            yield self

    def rows_of(self, choices: Sequence[Choice]) -> list[Row]:
        """The rows of points, those that are not there yet run first."""
        each = [case_of(self.study, choice) for choice in choices]
        keys = [case.key for case in each]
        cases = dict(zip(keys, each, strict=True))
        missing = [case for key, case in cases.items() if key not in self.table.rows]
        done = len(self.table.rows) if self.total is not None else len(cases) - len(missing)
        self._run(missing, done, self.total or len(cases))
        return [self.table.rows[key] for key in keys]

    def _run(self, missing: Iterable[Case], done: int, total: int) -> None:
        todo = deque(missing)
        suspects: dict[str, int] = {}  # how often a process died under each that was alone
        under_way: dict[Future[Row], Case] = {}
        self._tell(done, total)
        while todo or under_way:
            pool = self._pool or self._new_pool()
            ahead = 1 if suspects else pool.ahead
            try:
                while todo and len(under_way) < ahead:
                    under_way[pool.executor.submit(run_case, todo[0])] = todo[0]
                    todo.popleft()
                ended, _ = wait(under_way, LOOK_S, return_when=FIRST_COMPLETED)
                if not ended and not pool.alive():
                    raise CancelledError
                good = [future for future in ended if future.exception() is None]
                self._keep([future.result() for future in good])
                for future in good:
                    suspects.pop(under_way.pop(future).key, None)
                done += len(good)
                self._tell(done, total)
                for future in ended:
                    future.result()  # raises what went wrong
            except BrokenExecutor:
                # Whose fault it was is seen when those that were under way run one by one.
                self._drop_pool()
                lost = list(under_way.values())
                under_way.clear()
                if len(lost) == 1 and lost[0].key in suspects:
                    suspects[lost[0].key] += 1
                    if suspects[lost[0].key] == ALONE:
                        del suspects[lost[0].key]
                        self._keep([_died(lost.pop())])
                        done += 1
                for case in lost:
                    suspects.setdefault(case.key, 0)
                todo.extendleft(reversed(lost))
            except CancelledError:
                raise InputError(self._gone("the scheduler went away")) from None
            except OSError as error:
                if error.errno is None:
                    raise InputError(self._gone(f"a worker cannot be reached: {error}")) from None
                place = Path(error.filename or "the temporary directory of a worker")
                raise unwritable(place, error, self.done) from None
            except Exception as error:
                if type(error).__name__ != "KilledWorker":  # of dask, which need not be there
                    raise
                for future in [one for one in under_way if one.done() and one.exception()]:
                    self._keep([_died(under_way.pop(future))])
                    done += 1

    @property
    def done(self) -> int:
        """How many points are in the table."""
        return len(self.table.rows)

    def _keep(self, rows: Sequence[Row]) -> None:
        if rows:
            first = not any(row["status"] == "ok" for row in self.table.rows.values())
            self.table.append(rows)
            self.ran += len(rows)
            if first:
                _check_metrics(self.study, rows)

    def _new_pool(self) -> Pool:
        self._pool = self._stack.enter_context(self.make())
        return self._pool

    def _drop_pool(self) -> None:
        self._pool = None
        self._stack.close()

    def _gone(self, what: str) -> str:
        return f"{what}; {self.done} points are kept in {self.table.path}: go on with --resume"

    def _tell(self, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(done, total)


def _died(case: Case) -> Row:
    told: Row = {"key": case.key, "status": "error", "reason": DIED, "notes": []}
    return told | {"seconds": 0.0, "figures": {}}


def _check_metrics(study: Study, rows: Iterable[Row]) -> None:
    """InputError for a metric that the first summary there is does not have."""
    figures = next((row["figures"] for row in rows if row["status"] == "ok"), None)
    if figures is None:
        return
    told = [absent(metric, figures, study.kind) for metric in study.metrics]
    if any(told):
        lines = [f"{line}; then go on with --resume" for line in told if line]
        raise InputError("\n".join(lines))
