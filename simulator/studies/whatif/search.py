"""Points chosen by optuna: tree-structured Parzen estimator (Bergstra et al., 2011) over the axes.

Points are asked for in batches of a size that the study states, and told in the order in which they
were asked for: the same study asks for the same points, on however many workers, and after
`--resume` too, when the table answers for those that are done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from simulator.errors import InputError
from simulator.studies.whatif.points import Choice, Row
from simulator.studies.whatif.spec import Axis, Study

if TYPE_CHECKING:
    import optuna

Rows = Callable[[Sequence[Choice]], list[Row]]

ASKS = 20
"""Times as many points as are wanted may be asked for, the same ones again among them."""


def search(study: Study, rows_of: Rows) -> list[Choice]:
    """The points of a search, in the order in which they were first asked for.

    rows_of: gives the rows of points. Raises InputError if optuna is not there.
    """
    try:
        import optuna
    except ImportError:
        raise InputError(
            "search: needs optuna: pip install 'moe-cluster-simulator[optimize]'"
        ) from None
    assert study.search is not None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=study.search.seed)
    directions = ["minimize" if sign > 0 else "maximize" for _, sign in study.objectives]
    asked = optuna.create_study(sampler=sampler, directions=directions)
    wanted = min(study.search.trials, study.size)
    seen: dict[Choice, None] = {}
    asks = 0
    while len(seen) < wanted and asks < ASKS * wanted:
        trials, choices = [], []
        for _ in range(study.search.batch):
            trials.append(asked.ask())
            choices.append(_choice(study.axes, trials[-1]))
        asks += len(trials)
        fresh = [choice for choice in dict.fromkeys(choices) if choice not in seen]
        seen |= dict.fromkeys(fresh[: wanted - len(seen)])
        known = [choice for choice in choices if choice in seen]
        rows = dict(zip(known, rows_of(known), strict=True))
        for trial, choice in zip(trials, choices, strict=True):
            _answer(asked, trial, study, rows.get(choice))
    return list(seen)


def _choice(axes: Sequence[Axis], trial: optuna.Trial) -> Choice:
    """Axes of rising numbers are asked for as numbers, so that neighbours count as near."""
    picked = []
    for axis in axes:
        places = range(len(axis.values))
        numbers = [value.number for value in axis.values]
        rising = all(a is not None and b is not None and a < b for a, b in pairwise(numbers))
        if rising:
            picked.append(trial.suggest_int(axis.name, 0, len(places) - 1))
        else:
            picked.append(trial.suggest_categorical(axis.name, list(places)))
    return tuple(int(place) for place in picked)


def _answer(asked: optuna.Study, trial: optuna.Trial, study: Study, row: Row | None) -> None:
    import optuna

    figures = row["figures"] if row is not None and row["status"] == "ok" else None
    values = [] if figures is None else [m.number(figures) for m, _ in study.objectives]
    over = [] if figures is None else [bound.over(figures) for bound in study.constraints]
    if figures is None or None in values or None in over:
        asked.tell(trial, state=optuna.trial.TrialState.FAIL)
        return
    for bound, gap in zip(study.constraints, over, strict=True):
        trial.set_constraint(bound.text, gap)
    asked.tell(trial, [value for value in values if value is not None])
