"""`export`: a run as Kineto-style traces, one per GPU, for Perfetto and HolisticTraceAnalysis."""

from __future__ import annotations

import re
from argparse import Namespace
from pathlib import Path

from simulator.cli.arguments import Parser, whole
from simulator.errors import InputError


def arguments(parser: Parser) -> None:
    """The arguments of `export`."""
    parser.add_argument("run", metavar="RUN", help="the directory of a run kept with --out")
    parser.add_argument(
        "-o",
        "--out",
        required=True,
        metavar="DIR",
        help="a new directory for trace_rank0.json.gz and so on",
    )
    parser.add_argument(
        "--steps", metavar="A-B", help="first and last step (default: the measured ones)"
    )
    parser.add_argument(
        "--ranks", metavar="A-B", help="first and last GPU (default: all that the run had)"
    )
    parser.add_argument(
        "--max-spans",
        type=whole,
        metavar="N",
        help="end before the step that would pass so many spans (default 4000000)",
    )


def run(options: Namespace) -> None:
    """Write the traces and say where they are."""
    import numpy as np

    from simulator.cli.output import say
    from simulator.results.chrome import MOST_SPANS, export
    from simulator.runfiles.rundir import RunDir, open_run
    from simulator.runfiles.spans import STEP_SCHEMA
    from simulator.runfiles.tables import read_table
    from simulator.runfiles.values import gpus_of

    path = Path(options.run)
    files = RunDir(path)
    asked = None if options.steps is None else _range("--steps", options.steps)
    ranks = None if options.ranks is None else _range("--ranks", options.ranks)
    most = MOST_SPANS if options.max_spans is None else options.max_spans
    if not path.is_dir():
        raise InputError(f"{path}: is no directory of a run; give one kept with --out")
    if files.requests.exists() or "serving_context" in files.read_result():
        raise InputError(f"{path}: a serving run keeps no spans, so there is nothing to export")
    table = read_table(files.steps, STEP_SCHEMA)
    if asked is None:
        steps = table["step"][~table["warmup"]]
        if not len(steps):
            raise InputError(f"{files.steps}: no step was measured; choose some with --steps")
    else:
        have = np.sort(table["step"])
        steps = have[(have >= asked.start) & (have < asked.stop)]
        if not len(steps) or steps[0] != asked.start or steps[-1] != asked.stop - 1:
            span = f"{have[0]} to {have[-1]}" if len(have) else "none"
            raise InputError(f"--steps {options.steps}: the run has steps {span}")
    gpus = gpus_of(path)
    if ranks is None:
        ranks = range(_gpus_in(files.spans, gpus))
    try:
        with open_run(Path(options.out)) as new:
            found = export(path, new.path, ranks, steps, most, gpus)
    except OSError as error:
        raise InputError(f"{options.out}: cannot be written: {error.strerror}") from error
    say(
        f"{found.spans:,} spans of steps {found.first} to {found.last}, {len(found.paths):,} traces"
    )
    if found.cut is not None:
        say(
            f"note: steps {found.last + 1} to {found.cut} were left out: more than {most:,} spans "
            "(--max-spans)"
        )
    print(options.out)


def _gpus_in(path: Path, gpus: int | None) -> int:
    """How many GPUs the spans at `path` name; gpus: how many there can be, if that is known."""
    from simulator.runfiles.tables import iter_spans
    from simulator.runfiles.values import Limits

    highest = count = 0
    for block in iter_spans(path, ["gpu"], limits=Limits(gpus)):
        highest, count = max(highest, int(block["gpu"].max(initial=0))), count + len(block["gpu"])
    # Each GPU of a run has a span.
    if gpus is None and highest >= max(count, 1):
        raise InputError(f"{path}: GPU {highest} in a run of {count:,} spans; is it damaged?")
    return highest + 1


def _range(flag: str, text: str) -> range:
    """First and last, both within, of "5-8" or "5"."""
    found = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", text.strip(), re.ASCII)
    if found is None:
        raise InputError(f"{flag} {text!r}: write the first and the last, as in 5-8")
    first = int(found[1])
    last = first if found[2] is None else int(found[2])
    if last < first:
        raise InputError(f"{flag} {text!r}: the last is before the first")
    return range(first, last + 1)
