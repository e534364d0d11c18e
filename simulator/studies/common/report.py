"""What `large-ep` and `layerwise` show: claims judged, tables, notes; as text, CSV and Markdown."""

from __future__ import annotations

import csv
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from simulator.errors import InputError
from simulator.results.colours import Figure
from simulator.results.summary import number
from simulator.studies.common import claims as c
from simulator.studies.common.claims import Found, Judged, Published
from simulator.studies.common.figures import Panel, curve, figure, write_figures
from simulator.studies.common.spec import YES, Claim, Verdicts

WIDTH = 80
GAP = 2
PUBLISHED = "published"
FREE_PARAMETERS = (
    "Free parameters: rates of GEMMs and launches of the H100 (simulator/spec/gpus.yaml, fitted to "
    "published GEMM timings); launch, ramp and efficiency of NCCL (transports/nccl.yaml, fitted to "
    "nccl-tests); J per FLOP and byte (simulator/spec/energy.yaml, published figures); latencies "
    "and bandwidths of the topologies (their files). None was chosen with these claims in view."
)

Value = float | bool | None
Figures = Mapping[str, Value]
At = Callable[[Claim, Published], str]
Cell = str | float | int | None


@dataclass(frozen=True)
class Table:
    """A table of the study. columns: with their units; rows: a value per column, None for none;
    said: what stands above it.
    """

    name: str
    said: str
    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]]


@dataclass(frozen=True)
class Chart:
    """Lines on logarithmic axes: name of the line (at most five and `PUBLISHED`) -> (x, y)."""

    name: str
    title: str
    x: str
    y: str
    lines: dict[str, list[tuple[float, float]]]


@dataclass(frozen=True)
class Report:
    """All that a study found. shown: the readings in the text's claims table, with short names."""

    name: str
    title: str
    judged: list[Judged]
    shown: dict[str, str]
    tables: list[Table]
    charts: list[Chart]
    notes: list[str]


def judge(
    claims: Sequence[Claim],
    rule: Verdicts,
    form: Figures,
    form_at: At,
    simulated: Mapping[str, Figures],
    simulated_at: Callable[[str, Claim, Published], str],
) -> list[Judged]:
    """Every claim beside the closed form and each reading of the simulation.

    form_at, simulated_at: what would have to be true, for figures that are not reproduced.
    """
    found = []
    for claim in claims:
        judged_form = None
        if claim.figure in form:
            judged_form = _found(claim, rule, form[claim.figure], form_at, exact=True)
        readings = {}
        for name, figures in simulated.items():
            if claim.figure not in figures:
                continue
            value = figures[claim.figure]

            def at(of: Claim, published: Published, name: str = name) -> str:
                return simulated_at(name, of, published)

            readings[name] = _found(claim, rule, value, at, exact=False)
        found.append(Judged("", claim.text, claim.published, judged_form, readings))
    return found


def _found(claim: Claim, rule: Verdicts, value: Value, at: At, exact: bool) -> Found:
    if value is None:
        return Found(None, c.UNJUDGED, "")
    if claim.published == YES:
        return Found(float(value), c.REPRODUCED if value else c.NOT, "")
    published = c.read_published(claim.published)
    scaled = float(value) * claim.scale
    if exact:
        told = c.form_verdict(scaled, published)
    else:
        direction = rule.direction * claim.scale
        whole = claim.scale if claim.share else None
        told = c.verdict(scaled, published, rule.tolerance, claim.neutral, direction, whole)
    where = "" if told == c.REPRODUCED else at(claim, published)
    return Found(scaled, told, where)


# --- text --------------------------------------------------------------------------------


def render(report: Report) -> str:
    """The study as text of at most 80 columns."""
    parts = [_wrap(report.title), _claims_text(report)]
    parts += [f"{_wrap(table.said)}\n{table_text(table)}" for table in report.tables]
    parts.append("Notes\n" + "\n".join(_wrap(note, "- ") for note in report.notes))
    return "\n\n".join(parts) + "\n"


def _wrap(text: str, first: str = "") -> str:
    return textwrap.fill(text, WIDTH, initial_indent=first, subsequent_indent=" " * len(first))


def _told(found: Found | None, published: str) -> str:
    if published != YES:
        return c.told(found, published)
    if found is None or found.value is None:
        return "-  "
    return f"{'yes' if found.value else 'no'} {c.MARKS[found.verdict]} "


def _claims_text(report: Report) -> str:
    header = ("claim", "claimed", "form", *report.shown.values())
    rows = [
        (
            row.text,
            row.published,
            _told(row.form, row.published),
            *(_told(row.simulated.get(name), row.published) for name in report.shown),
        )
        for row in report.judged
    ]
    widths = [max(len(row[at]) for row in [header, *rows]) for at in range(len(header))]
    widths[0] = max(WIDTH - sum(GAP + width for width in widths[1:]), len(header[0]))
    lines = [_line(header, widths)]
    for row, judged in zip(rows, report.judged, strict=True):
        if len(row[0]) > widths[0]:
            lines += [_wrap(row[0]), _line(("", *row[1:]), widths)]
        else:
            lines.append(_line(row, widths))
        where = _where(judged, report.shown)
        if where:
            lines.append(_wrap(where, "    would be at: "))
    legend = "= reproduced   ~ direction only   x not reproduced   - no such figure"
    return "\n".join([legend, "", *lines, "", *c.counted(report.judged)])


def _where(row: Judged, shown: Mapping[str, str]) -> str:
    """What would have to be true, once for all that say the same."""
    found: dict[str, list[str]] = {}
    if row.form is not None and row.form.holds_at:
        found.setdefault(row.form.holds_at, []).append("form")
    for name, told in shown.items():
        given = row.simulated.get(name)
        if given is not None and given.holds_at:
            found.setdefault(given.holds_at, []).append(told)
    return "; ".join(f"{text} ({', '.join(names)})" for text, names in found.items())


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [row[0].ljust(widths[0])]
    cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
    return (" " * GAP).join(cells).rstrip()


def table_text(table: Table) -> str:
    """A table in columns; figures to three digits."""
    rows = [table.columns, *(tuple(shown(cell) for cell in row) for row in table.rows)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(table.columns))]
    left = [all(isinstance(row[at], str) for row in table.rows) for at in range(len(widths))]
    lines = [
        (" " * GAP)
        .join(
            cell.ljust(width) if flush else cell.rjust(width)
            for cell, width, flush in zip(row, widths, left, strict=True)
        )
        .rstrip()
        for row in rows
    ]
    return "\n".join(lines)


def shown(cell: Cell) -> str:
    """A cell as text."""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int):
        return f"{cell:,}"
    return number(cell)


# --- files -------------------------------------------------------------------------------


def flat(report: Report) -> list[dict[str, object]]:
    """The claims as flat rows, their keys the names of the columns."""
    rows = [c.flat(row) for row in report.judged]
    for row in rows:
        row["system"] = report.name
    return rows


def refuse_existing(out: Path) -> None:
    """Raise InputError unless `out` can be made as a new directory."""
    if out.exists():
        raise InputError(f"--out {out}: is there already; name a directory that is not")
    if not out.parent.is_dir():
        raise InputError(f"--out {out}: {out.parent} is no directory")


def write(report: Report, out: Path, say: Callable[[str], object]) -> list[Path]:
    """CSV of the claims and of each table, Markdown and figures into the new directory `out`; `say`
    is told if figures could not be drawn as PDF and PNG.
    """
    refuse_existing(out)
    out.mkdir()
    rows = flat(report)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    files = [_csv(out / "claims.csv", columns, ([row.get(n) for n in columns] for row in rows))]
    files += [_csv(out / f"{t.name}.csv", t.columns, t.rows) for t in report.tables]
    page = out / "SUMMARY.md"
    page.write_text(markdown(report), encoding="utf-8")
    folder = out / "figures"
    folder.mkdir()
    instead = write_figures({chart.name: drawn(chart) for chart in report.charts}, folder)
    if instead is not None:
        say(instead)
    return [*files, page, *sorted(folder.iterdir())]


def drawn(chart: Chart) -> Figure:
    """A chart in the look of all studies."""
    roles = ("first", "second", "third", "fourth", "form")
    names = [name for name in chart.lines if name != PUBLISHED]
    role = {PUBLISHED: PUBLISHED} | dict(zip(names, roles, strict=False))
    data = [
        curve(name, role[name], [x for x, _ in line], [y for _, y in line], 1)
        | {"showlegend": True}
        for name, line in chart.lines.items()
    ]
    return figure(chart.title, [Panel("", chart.x, chart.y, "log", "log")], data)


def _csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(["" if cell is None else cell for cell in row] for row in rows)
    return path


def markdown(report: Report) -> str:
    """The study as a page."""
    names = list(dict.fromkeys(name for row in report.judged for name in row.simulated))
    lines = [f"# {report.title}", "", "## Claims", ""]
    lines += _rule(("claim", "published", "closed form", *names, "verdict", "would be at"))
    for row in report.judged:
        cells = [row.text, row.published, _told(row.form, row.published).strip()]
        cells += [_told(row.simulated.get(name), row.published).strip() for name in names]
        where = _where(row, {name: name for name in names})
        lines.append("| " + " | ".join([*cells, row.verdict, where]) + " |")
    lines += ["", "= reproduced, ~ direction only, x not reproduced, - no such figure", ""]
    lines += [f"- {said}" for said in c.counted(report.judged)]
    for table in report.tables:
        lines += ["", f"## {table.name}", "", table.said, "", *_rule(table.columns)]
        lines += ["| " + " | ".join(shown(cell) for cell in row) + " |" for row in table.rows]
    lines += ["", "## Notes", "", *(f"- {note}" for note in report.notes)]
    return "\n".join(lines) + "\n"


def _rule(columns: Sequence[str]) -> list[str]:
    return ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
