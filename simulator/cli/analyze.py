"""`analyze`: the figures of a finished run, of recorded traces, or of what a study left."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator.cli.arguments import Parser, add_json
from simulator.errors import InputError
from simulator.results.text import lay_out

if TYPE_CHECKING:
    from simulator.results.any_run import Read


def arguments(parser: Parser) -> None:
    """The arguments of `analyze`."""
    parser.add_argument(
        "run",
        metavar="RUN",
        help="the directory given to --out (of run, serve or study), or recorded traces of "
        "PyTorch's profiler: a folder with one file per rank, or one file",
    )
    parser.add_argument(
        "--baseline", metavar="RUN2", help="another run; print what RUN saves against it"
    )
    parser.add_argument(
        "--cpu",
        action="store_true",
        help="of traces: take operators on the CPU for kernels, where no GPU was recorded",
    )
    add_json(parser, "print the summary as one JSON object")


def run(options: Namespace) -> None:
    """Print the figures anew, from the files alone."""
    from simulator.cli.output import print_json, width
    from simulator.studies.prophet.files import is_study, read_study, render_files

    path = Path(options.run)
    if is_study(path):
        left = read_study(path)
        if options.json:
            print_json(left)
        else:
            print(render_files(left, lay_out))
        return

    from simulator.results.any_run import read_any

    read = read_any(path, options.cpu)
    if options.baseline is not None:
        _add_saving(read, Path(options.baseline))
    if options.json:
        told = {"faults": read.faults} if read.faults else {}
        print_json(read.summary | told)
    else:
        print(_text(read, width()), end="")
    if read.faults:
        sys.stdout.flush()
        raise InputError("\n".join(read.faults))


def _add_saving(read: Read, baseline: Path) -> None:
    """Add to the summary what it saves."""
    from simulator.results.any_run import read_any
    from simulator.results.cost import saving

    other = read_any(baseline)
    for one in (read, other):
        if one.kind != "run" or not one.whole:
            raise InputError(f"--baseline: {one.path} is no whole run of steps; use compare")
    read.summary["saving"] = saving(read.summary, other.summary)


def _text(read: Read, width: int) -> str:
    if not read.whole:
        return _partial(read.summary)
    if read.kind == "trace":
        from simulator.results.trace_summary import render

        return render(read.summary, width)
    if read.kind == "serving":
        from simulator.results.serving_summary import render as render_serving

        return render_serving(read.summary, read.notes, width)
    from simulator.results.summary import render as render_run

    return render_run(read.summary, read.notes, width)


def _partial(summary: Mapping[str, Any]) -> str:
    """What is left of a run, figure by figure."""
    from simulator.results.compare import flat
    from simulator.results.compare_text import shown

    rows = [[key, shown(key, value)] for key, value in flat(summary).items()]
    return lay_out(["what can be read", ""], rows) + "\n"
