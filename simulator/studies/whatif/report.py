"""The files that tell what a study found: table.csv, report.md, report.tex, report.html."""

from __future__ import annotations

import shlex
from pathlib import Path

from simulator.results.colours import Figure
from simulator.results.whatif_page import (
    Dimension,
    front_figure,
    parallel_figure,
    render_whatif_page,
    share_figure,
)
from simulator.studies.whatif.answer import answer, best_rows, goals_of, notes, told_point
from simulator.studies.whatif.judge import can_run, effects, front, is_full, keeps
from simulator.studies.whatif.metrics import Metric
from simulator.studies.whatif.run import Found
from simulator.studies.whatif.table import unwritable, write_over
from simulator.studies.whatif.texts import MOST_ROWS, as_csv, as_latex, as_markdown, right_columns

FILES = ("table.csv", "report.md", "report.tex", "report.html")
_UNITS = {"s": "s", "B": "B", "J": "J", "W": "W", "1/s": "1/s", "$": "$", "share": "share"}


def write_report(found: Found, out: Path, command: str) -> None:
    """Write `FILES` into `out`, in place of older ones; raises InputError."""
    texts = (as_csv(found), as_markdown(found), as_latex(found), as_html(found, command))
    for name, text in zip(FILES, texts, strict=True):
        try:
            write_over(out / name, text)
        except OSError as error:
            raise unwritable(out / name, error, len(found.points)) from None


def as_html(found: Found, command: str, plotlyjs: str = "inline") -> str:
    """The page; command: what runs the study again."""
    header, rows, cut = best_rows(found, MOST_ROWS)
    return render_whatif_page(
        found.study.name,
        found.study.question,
        answer(found),
        _pictures(found),
        (header, rows, right_columns(rows)),
        [*([cut] if cut else []), *notes(found)],
        command,
        plotlyjs,
    )


def command_line(study: str, overrides: list[str], out: Path) -> str:
    """What runs a study again, as it is typed."""
    sets = [word for text in overrides for word in ("--set", text)]
    words = ["python", "-m", "simulator", "whatif", study, *sets, "--out", str(out)]
    return shlex.join(words)


def _pictures(found: Found) -> list[tuple[str, str, Figure]]:
    """(heading, how to read it, figure): what there is something to show of."""
    if not any(map(can_run, found.points)):
        return []
    goals = [metric for metric, _ in goals_of(found)]
    pictures = []
    if len(found.study.objectives) > 1:
        note = "A point of the front is not beaten in both by any other. Point at it for its name."
        pictures.append(("Pareto front", note, _front(found)))
    numbers = [metric for metric in found.study.metrics if metric.unit != "text"]
    if numbers:
        note = "A line is a point. Drag along an axis to pick lines out, drag its name to move it."
        colour = _dimension(found, goals[0]) if goals else None
        axes = [
            Dimension(
                axis.name,
                [float(point.choice[at]) for point in found.points],
                [value.label for value in axis.values],
            )
            for at, axis in enumerate(found.study.axes)
        ]
        of = [dim for dim in (_dimension(found, m) for m in numbers) if _has_values(dim)]
        if colour is not None and not _has_values(colour):
            colour = None
        pictures.append(("Along the axes", note, parallel_figure([*axes, *of], colour)))
    shares = {metric.name: effects(found, metric) for metric in goals}
    told = {name: [effect.share for effect in of] for name, of in shares.items() if of}
    if told and len(found.study.axes) > 1:
        note = "Share of the variance over all points that each axis explains alone" + (
            "." if is_full(found) else "; not all points of the grid are there: shares may overlap."
        )
        names = [axis.name for axis in found.study.axes]
        pictures.append(("Which axis matters", note, share_figure(names, told)))
    return pictures


def _has_values(dimension: Dimension) -> bool:
    return any(value is not None for value in dimension.values)


def _front(found: Found) -> Figure:
    (one, _), (other, _) = found.study.objectives[:2]
    best = {point.number for point in front(found)}
    return front_figure(
        _dimension(found, one),
        _dimension(found, other),
        [told_point(found, point) for point in found.points],
        [keeps(found, point) for point in found.points],
        [point.number in best for point in found.points],
    )


def _dimension(found: Found, metric: Metric) -> Dimension:
    values = [metric.number(point.row["figures"]) for point in found.points]
    return Dimension(metric.name.replace("_", " "), values, (), _UNITS.get(metric.unit, ""))
