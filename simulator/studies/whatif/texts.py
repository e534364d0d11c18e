"""A study's table and answer as CSV, Markdown and LaTeX; all text of the user's is escaped."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence

from simulator.studies.whatif.answer import (
    answer,
    best_rows,
    columns,
    flat_rows,
    goals_of,
    notes,
)
from simulator.studies.whatif.judge import effects
from simulator.studies.whatif.run import Found

MOST_ROWS = 500
"""Of longer tables readers are shown the best; table.csv has all."""


def as_csv(found: Found) -> str:
    """The table in SI units."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns(found), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat_rows(found))
    return stream.getvalue()


def as_markdown(found: Found) -> str:
    """Question, answer, table and sensitivity."""
    header, rows, cut = best_rows(found, MOST_ROWS)
    parts = [
        f"# {_md(found.study.name)}",
        f"**{_md(found.study.question)}**",
        _md(answer(found)),
        *([cut] if cut else []),
        _md_table(header, rows),
    ]
    sensitivity = sensitivity_rows(found)
    if sensitivity:
        parts += ["## Which axis matters", _md_table(sensitivity[0], sensitivity[1:])]
    told = notes(found)
    if told:
        parts += ["## Notes", "\n".join(f"- {_md(note)}" for note in told)]
    return "\n\n".join(parts) + "\n"


def as_latex(found: Found) -> str:
    """Question and answer as text, then the tables; no packages are needed."""
    header, rows, cut = best_rows(found, MOST_ROWS)
    parts = [
        f"\\textbf{{{_tex(found.study.question)}}}",
        _tex(answer(found)),
        *([_tex(cut)] if cut else []),
        _tex_table(header, rows),
    ]
    sensitivity = sensitivity_rows(found)
    if sensitivity:
        parts.append(_tex_table(sensitivity[0], sensitivity[1:]))
    return "\n\n".join(parts) + "\n"


def sensitivity_rows(found: Found) -> list[list[str]]:
    """A header and a row for each axis: how much of the variance of each goal it explains, and
    whether the goal rises or falls with it; empty where there is nothing to tell.
    """
    goals = [metric for metric, _ in goals_of(found)]
    told = {metric: effects(found, metric) for metric in goals}
    goals = [metric for metric in goals if told[metric]]
    if not goals:
        return []
    rows = [["axis", *(metric.name for metric in goals)]]
    for at, axis in enumerate(found.study.axes):
        cells = []
        for metric in goals:
            effect = told[metric][at]
            cells.append(f"{100 * effect.share:.1f} % {effect.direction}".strip())
        rows.append([axis.name, *cells])
    return rows


def right_columns(rows: Sequence[Sequence[str]]) -> list[int]:
    """The columns that are set flush right: those of figures alone."""
    columns = zip(*rows, strict=True)
    return [at for at, cells in enumerate(columns) if all(map(_FIGURE.fullmatch, cells))]


_FIGURE = re.compile(r"|-|[<+-]?\$?\d\S*( [^\d\s]\S*)?")


def _md_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    right = right_columns(rows)
    rules = ["---:" if at in right else "---" for at in range(len(header))]
    lines = [[_md(cell) for cell in header], rules, *([_md(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _md(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    line = " ".join(text.split())
    return re.sub(r"([\\`*_{}\[\]<>#|~$])", r"\\\1", line)


_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
} | {sign: f"\\{sign}" for sign in "&%$#_{}"}


def _tex(text: str) -> str:
    """Text that LaTeX sets as it is."""
    return "".join(_TEX.get(sign, sign) for sign in " ".join(text.split()))


def _tex_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    right = right_columns(rows)
    columns = "".join("r" if at in right else "l" for at in range(len(header)))
    lines = [f"\\begin{{tabular}}{{{columns}}}", "\\hline"]
    lines += [" & ".join(map(_tex, header)) + r" \\", "\\hline"]
    lines += [" & ".join(map(_tex, row)) + r" \\" for row in rows]
    return "\n".join([*lines, "\\hline", "\\end{tabular}"])
