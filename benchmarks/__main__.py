"""Run the benchmarks and print each figure beside its goal.

    python -m benchmarks [NAME ...] [--json] [--strict]

A benchmark is a module `benchmarks/bench_NAME.py` with a function `run()` that returns its figures
as `list[tuple[str, float, str]]`: what was measured (with its unit), the value, and the goal, as
in ">= 0.01" or "<= 3", or "" for a figure that only informs. Figures are ratios within one run
where they can be, so that they mean the same on every machine. A goal that is missed is reported
and does not fail the command unless `--strict` is given: a benchmark is not a test.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import operator
import sys
import textwrap
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
# Column widths: figure, value, goal, verdict; with two blanks between them 80 columns.
WIDTHS = (44, 10, 8, 12)


class Figure(NamedTuple):
    """One measured figure; `met` is None where there is no goal."""

    benchmark: str
    name: str
    value: float
    goal: str
    met: bool | None


def meets(value: float, goal: str) -> bool | None:
    """Compare a value with a goal such as ">= 0.01"; None when the goal is empty."""
    if not goal:
        return None
    sign, _, bound = goal.partition(" ")
    if sign not in COMPARE or not bound:
        raise ValueError(f"goal {goal!r}: write a comparison and a number, as in '>= 0.01'")
    return bool(COMPARE[sign](value, float(bound)))


def available() -> list[str]:
    """Name the benchmarks that are there, sorted."""
    folder = Path(__file__).parent
    return sorted(path.stem.removeprefix("bench_") for path in folder.glob("bench_*.py"))


def measure(names: list[str]) -> Iterator[Figure]:
    """Run the named benchmarks in turn and give their figures as they come."""
    for name in names:
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        for what, value, goal in importlib.import_module(f"benchmarks.bench_{name}").run():
            if not math.isfinite(value):
                raise ValueError(f"benchmark {name}: {what} is {value}, not a figure")
            yield Figure(name, what, float(value), goal, meets(value, goal))


def format_row(figure: str, value: str, goal: str, verdict: str) -> str:
    """Lay out one row of the table at 80 columns; a long figure takes more lines."""
    first, *rest = textwrap.wrap(figure, WIDTHS[0], subsequent_indent="  ") or [""]
    cells = (
        first.ljust(WIDTHS[0]),
        value.rjust(WIDTHS[1]),
        goal.ljust(WIDTHS[2]),
        verdict.ljust(WIDTHS[3]),
    )
    return "\n".join(["  ".join(cells).rstrip(), *rest])


def verdict_of(met: bool | None) -> str:
    """Say in words whether a goal is met; nothing where there is none."""
    return "" if met is None else "met" if met else "SHORT OF IT"


def main(arguments: list[str] | None = None) -> int:
    """Run what the arguments name (default all); return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure speed and memory against the goals."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(available()))
    parser.add_argument("--json", action="store_true", help="print a list of rows as JSON")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when short of a goal")
    options = parser.parse_args(arguments)

    there = available()
    names = [name.removeprefix("bench_") for name in options.names] or there
    for name in names:
        if name not in there:
            near = get_close_matches(name, there, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(there)}"
            parser.error(f"no benchmark {name}; {hint}")

    figures = []
    if not options.json:
        print(format_row("figure", "value", "goal", ""), flush=True)
    for figure in measure(names):
        figures.append(figure)
        if not options.json:
            value, verdict = f"{figure.value:.4g}", verdict_of(figure.met)
            print(format_row(figure.name, value, figure.goal, verdict), flush=True)
    if options.json:
        print(json.dumps([figure._asdict() for figure in figures], indent=2))
    return int(options.strict and any(figure.met is False for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
