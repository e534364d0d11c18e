"""`whatif`: one question asked many ways."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from simulator.cli.arguments import Parser, add_json, add_set, whole
from simulator.errors import InputError
from simulator.results.text import WIDTH, lay_out, wrapped
from simulator.spec.units import counted

if TYPE_CHECKING:
    from simulator.studies.whatif.run import Found

MOST_ROWS = 24
"""Of longer tables so many points are shown, the best; all are in the files."""


def arguments(parser: Parser) -> None:
    """The arguments of `whatif`."""
    parser.add_argument(
        "study", metavar="STUDY", help="a shipped study (list studies), or the path of one"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="results and report (default: whatif-NAME, NAME the study's)"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on in DIR: run what is not there yet"
    )
    parser.add_argument(
        "--workers", type=whole, metavar="N", help="processes (default: one per core)"
    )
    parser.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="run on this dask.distributed cluster, as in tcp://10.0.0.1:8786",
    )
    add_set(parser)
    add_json(parser, "print the table as a list of rows as JSON")


def run(options: Namespace) -> None:
    """Run a study, print what it says and keep its files."""
    import re
    from pathlib import Path

    from simulator.cli.output import print_json, progress_bar, say
    from simulator.spec.find import find
    from simulator.studies.whatif.pool import maker
    from simulator.studies.whatif.spec import read_study

    make = maker(options.workers, options.scheduler)
    path = find("study", options.study)
    study = read_study(
        path, options.study if options.study != path.stem else path.name, options.overrides
    )
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", study.name).strip("-.") or "study"
    out = Path(options.out) if options.out is not None else Path(f"whatif-{stem}")

    from simulator.api import announced_compilation
    from simulator.studies.whatif.answer import flat_rows
    from simulator.studies.whatif.report import command_line, write_report
    from simulator.studies.whatif.run import run_study
    from simulator.studies.whatif.table import RESULTS

    try:
        with announced_compilation(say), progress_bar("point") as progress:
            found = run_study(study, out, make, resume=options.resume, progress=progress, say=say)
        write_report(found, out, command_line(options.study, options.overrides, out))
    except KeyboardInterrupt:
        kept = out / RESULTS
        if not kept.exists():
            raise
        say(f"interrupted; what was done is kept in {kept}: go on with --resume")
        raise SystemExit(130) from None
    if options.json:
        print_json(flat_rows(found))
    else:
        print(render(found))
    if found.kept:
        say(f"{counted(found.kept, 'point')} kept from before, {found.ran:,} run now")
    say(f"kept in {out}: report.html, report.md, report.tex, table.csv")
    broken = [point for point in found.points if point.row["status"] == "error"]
    if broken:
        say(
            f"failed: {len(broken)} points ended in an internal error (--resume tries them again); "
            f"the first: {broken[0].row['reason']}"
        )
        raise SystemExit(1)
    if not any(point.row["status"] == "ok" for point in found.points):
        raise InputError(f"no point could be run; the first: {found.points[0].row['reason']}")


def render(found: Found) -> str:
    """The table, which axis matters, and the answer, in at most 80 columns."""
    from simulator.studies.whatif.answer import answer, best_rows, notes
    from simulator.studies.whatif.texts import sensitivity_rows

    header, rows, cut = best_rows(found, MOST_ROWS)
    parts = [wrapped(found.study.question, ""), *([cut] if cut else [])]
    parts.append(_fitted(header, rows))
    sensitivity = sensitivity_rows(found)
    if sensitivity and len(found.study.axes) > 1:
        parts.append("Share of the variance that each axis explains:")
        parts.append(_fitted(sensitivity[0], sensitivity[1:]))
    parts.append(wrapped(answer(found), ""))
    told = notes(found)
    if told:
        parts.append("\n".join(wrapped(note, "note: ") for note in told))
    return "\n\n".join(parts)


def _fitted(header: list[str], rows: list[list[str]]) -> str:
    """A table of at most 80 columns: empty columns go, then whole columns move to further tables,
    the first column (what a row is) standing before each.
    """
    from simulator.studies.whatif.texts import right_columns

    right = right_columns(rows)
    full = [at for at in range(len(header)) if at == 0 or any(row[at] for row in rows)]
    widths = {at: max(len(line[at]) for line in [header, *rows]) for at in full}
    last_free = full[-1] if header[full[-1]] == "note" else -1
    tables: list[list[int]] = [[full[0]]]
    for at in full[1:]:
        room = 24 if at == last_free else widths[at]
        taken = sum(min(widths[one], 40) + 2 for one in tables[-1])
        if taken + room > WIDTH and len(tables[-1]) > 1:
            tables.append([full[0]])
        tables[-1].append(at)
    return "\n\n".join(
        lay_out(
            [header[at] for at in part],
            [[row[at] for at in part] for row in rows],
            right=[place for place, at in enumerate(part) if at in right],
        )
        for part in tables
    )
