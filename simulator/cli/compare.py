"""`compare`: two runs, serving runs or recorded traces side by side, the differences explained."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

from simulator.cli.arguments import Parser, add_json, add_plotlyjs
from simulator.cli.pages import check_html
from simulator.errors import InputError


def arguments(parser: Parser) -> None:
    """The arguments of `compare`."""
    what = "a run's or a serving run's directory, or recorded traces (a folder or a file)"
    parser.add_argument("a", metavar="A", help=what)
    parser.add_argument("b", metavar="B", help="as A; differences are B - A, ratios B / A")
    parser.add_argument(
        "--cpu",
        action="store_true",
        help="of traces: take operators on the CPU for kernels, where no GPU was recorded",
    )
    parser.add_argument(
        "--html", metavar="FILE", help="also draw the comparison, as a web page in this file"
    )
    add_plotlyjs(parser, "of the page of --html")
    add_json(parser, "print a list of rows as JSON")


def run(options: Namespace) -> None:
    """Print what differs, and why."""
    from simulator.cli.output import print_json
    from simulator.results.any_run import read_any
    from simulator.results.compare import compare, json_rows
    from simulator.results.compare_text import render

    plotlyjs = check_html("compare", options.html, options.plotlyjs)
    a, b = (read_any(Path(name), options.cpu) for name in (options.a, options.b))
    found = compare(a, b)
    if options.html is not None:
        from simulator.results.compare_page import render_comparison
        from simulator.results.page import write_page

        write_page(Path(options.html), render_comparison(found, plotlyjs), plotlyjs)
    if options.json:
        print_json(json_rows(found))
    else:
        print(render(found), end="")
    if faults := [*a.faults, *b.faults]:
        sys.stdout.flush()
        raise InputError("\n".join(faults))
