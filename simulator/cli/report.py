"""`report RUN`: a run directory as one HTML page."""

from __future__ import annotations

import re
import sys
from argparse import Namespace
from pathlib import Path

from simulator.cli.arguments import Parser, add_plotlyjs
from simulator.cli.pages import plotlyjs_of
from simulator.errors import InputError


def arguments(parser: Parser) -> None:
    """The arguments of `report`."""
    parser.add_argument("run", metavar="RUN", help="the directory of a run kept with --out")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="the page to write (default RUN/report.html)"
    )
    parser.add_argument(
        "--steps",
        metavar="A-B",
        help="the steps of the timeline (default: the first measured ones, as many as one page "
        "can show)",
    )
    add_plotlyjs(parser, "of the page")


def run(options: Namespace) -> None:
    """Write the report and say where it is."""
    from simulator.cli.flows import check_fresh

    plotlyjs = plotlyjs_of(options.plotlyjs)
    steps = None if options.steps is None else _steps(options.steps)
    path = Path(options.run)
    if not path.is_dir():
        raise InputError(f"{options.run}: is no directory of a run; give one kept with --out")
    if options.output is not None:
        check_fresh(options.output)

    from simulator.reporting import write_report

    faults: list[str] = []
    print(write_report(path, options.output, plotlyjs=plotlyjs, steps=steps, say=faults.append))
    if faults:
        sys.stdout.flush()
        raise InputError("\n".join(faults))


def _steps(text: str) -> tuple[int, int]:
    """First and last step of "5-8" or "5"."""
    found = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", text.strip())
    if found is None:
        raise InputError(f"--steps {text!r}: write the first and the last step, as in 5-8")
    first, last = int(found[1]), int(found[2] or found[1])
    if last < first:
        raise InputError(f"--steps {text}: ends before it begins; write {last}-{first}")
    return first, last
