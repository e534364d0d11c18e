"""Floor 6: the command line. Arguments, printing and exit status; the work is done below.

Results go to stdout, all else to stderr. Exit status: 0, 1 when `validate` found a set above its
limit, 2 for what the user must change (one line per fault), 130 when interrupted.
"""

from __future__ import annotations

import atexit
import errno
import gc
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import NamedTuple

from simulator import __version__
from simulator.cli import (
    analyze,
    arguments,
    balance,
    cache,
    commands,
    compare,
    export,
    placement,
    report,
    routing_stats,
    serve,
    whatif,
)
from simulator.cli.arguments import PROGRAM, Parser
from simulator.errors import InputError
from simulator.results.text import lay_out

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Command(NamedTuple):
    """One command: its arguments, what it does, and what its help says."""

    arguments: Callable[[Parser], None]
    run: Callable[[Namespace], None]
    help: str
    example: str


COMMANDS = {
    "run": Command(
        arguments.run,
        commands.run,
        "simulate a workload on a topology (the word may be left out)",
        "--topology nvswitch16 --workload moe128 --set overlap=none --seed 1",
    ),
    "serve": Command(
        serve.arguments,
        serve.run,
        "requests on a cluster: TTFT, TPOT, goodput, queues",
        "serve --topology h100x16-rail --workload moe128-serving --requests requests.csv",
    ),
    "transfers": Command(
        arguments.transfers,
        commands.transfers,
        "when each transfer of a file arrives on links that all share",
        "transfers --topology h100x16-rail --flows flows.csv -o finished.csv",
    ),
    "collective": Command(
        arguments.collective,
        commands.collective,
        "how long a collective operation takes, size by size",
        "collective --topology dgx-h100 --op allreduce -b 8 -e 512M",
    ),
    "balance": Command(
        balance.arguments,
        balance.run,
        "how evenly placements of experts spread recorded loads",
        "balance moe128-python --replicas 144 --gpus 16 --policy linear,eplb",
    ),
    "placement": Command(
        placement.arguments,
        placement.run,
        "all-to-all time, hottest link and memory of expert placements",
        "placement moe128-python --topology nvswitch16,h100x16-rail",
    ),
    "fit": Command(
        arguments.fit,
        commands.fit,
        "a transport with parameters fitted to measured times",
        "fit all_reduce.txt --topology dgx-h100 -o mine.yaml",
    ),
    "validate": Command(
        arguments.validate,
        commands.validate,
        "how far simulated collectives are from measured ones",
        "validate --json",
    ),
    "study": Command(
        arguments.study,
        commands.study,
        "a published analysis simulated, every claim beside the finding",
        "study prophet --quick --out studies/prophet",
    ),
    "whatif": Command(
        whatif.arguments,
        whatif.run,
        "one question asked many ways: runs along axes, on all cores",
        "whatif ep-degree --out studies/ep-degree",
    ),
    "list": Command(
        arguments.list_,
        commands.list_,
        "what is shipped, by name: topologies, workloads, studies, ...",
        "list workloads",
    ),
    "show": Command(
        arguments.show,
        commands.show,
        "a topology, workload or GPU with every default filled in",
        "show workload moe128 --topology nvswitch16",
    ),
    "analyze": Command(
        analyze.arguments,
        analyze.run,
        "the summary of a kept run, or of traces of PyTorch's profiler",
        "analyze runs/first --json",
    ),
    "compare": Command(
        compare.arguments,
        compare.run,
        "two runs, simulated or recorded, side by side and explained",
        "compare runs/first runs/second",
    ),
    "export": Command(
        export.arguments,
        export.run,
        "traces of a kept run for Perfetto and HolisticTraceAnalysis",
        "export runs/first --steps 1-2 -o traces/first",
    ),
    "report": Command(
        report.arguments,
        report.run,
        "a kept run as one HTML page: what limits it, timeline, links",
        "report runs/first --steps 2-3 -o steps.html",
    ),
    "import": Command(
        arguments.import_,
        commands.import_,
        "recordings to routing traces, machine listings to topologies",
        "import jsonl routing.jsonl -o routing.parquet",
    ),
    "routing-stats": Command(
        routing_stats.arguments,
        routing_stats.run,
        "how skewed a routing trace is, and how much its tokens resemble",
        "routing-stats moe128-python",
    ),
    "cache": Command(
        cache.arguments,
        cache.run,
        "hit rates of expert caches, by policy and capacity",
        "cache moe128-python --capacity 8,16,32 --policy lru,lfu,belady",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command (default: the arguments of this process) and return the exit status."""
    if argv is None:
        # The libraries make some 200,000 objects that all stay: to look through them again and
        # again, and once more at exit, takes a tenth of a short run.
        gc.set_threshold(500_000)
        atexit.register(gc.disable)
    try:
        _dispatch(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except SystemExit as stop:
        # Help and version were printed.
        return int(stop.code or 0)
    except InputError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; no files were kept", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _silence()
        return 141
    except OSError as error:
        if error.errno not in _FULL:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}cannot be written: {os.strerror(error.errno)}", file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:
            _silence()
        return 2
    return 0


def _silence() -> None:
    """Nothing more to stdout, which takes no more; or Python complains when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(argv: list[str]) -> None:
    first = argv[0] if argv else ""
    if first in ("-h", "--help", "help"):
        print(_help())
        return
    if first == "--version":
        print(f"simulator {__version__}")
        return
    if first.startswith("-") or not argv:
        argv = ["run", *argv]
    elif first not in COMMANDS:
        from simulator.spec.units import did_you_mean

        hint = did_you_mean(first, list(COMMANDS))
        raise InputError(f"no command {first!r}{hint}; known: {', '.join(COMMANDS)}")
    name, *rest = argv
    command = COMMANDS[name]
    parser = Parser(name, command.help, command.example)
    command.arguments(parser)
    command.run(parser.read(rest))


def _help() -> str:
    return "\n".join(
        [
            f"usage: {PROGRAM} --topology T --workload W [options]",
            f"       {PROGRAM} COMMAND ...",
            "",
            "How fast a Mixture-of-Experts model runs on a GPU cluster, and what limits it.",
            "",
            "commands:",
            lay_out(None, [(name, command.help) for name, command in COMMANDS.items()], indent=2),
            "",
            "examples:",
            *(f"  {PROGRAM} {command.example}" for command in COMMANDS.values()),
            "",
            f"{PROGRAM} COMMAND -h tells more; --version prints the version.",
        ]
    )
