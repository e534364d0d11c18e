"""`serve`: requests on a cluster."""

from __future__ import annotations

from argparse import Namespace

from simulator.cli.arguments import Parser, add_json, add_plotlyjs, add_set, whole
from simulator.cli.pages import report_plotlyjs
from simulator.errors import InputError


def arguments(parser: Parser) -> None:
    """The arguments of `serve`."""
    parser.add_argument("--topology", metavar="T", help="the cluster: a shipped name or a path")
    parser.add_argument("--workload", metavar="W", help="the model: a shipped name or a path")
    parser.add_argument(
        "--requests",
        metavar="FILE|LAW",
        help="which requests, in place of the workload's: a recording (Azure, Mooncake, Vidur, "
        "BurstGPT) or a law such as poisson:10",
    )
    parser.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave out rows of a recording that cannot be used, and say how many",
    )
    parser.add_argument(
        "--routing", metavar="TRACE|LAW", help="which experts tokens take, as for run"
    )
    add_set(parser)
    parser.add_argument(
        "--seed", type=whole, default=0, metavar="N", help="of all random draws (default 0)"
    )
    parser.add_argument(
        "--repeat",
        type=whole,
        default=1,
        metavar="N",
        help="so many seeds, from --seed on: figures with 95 %% confidence intervals (default 1)",
    )
    parser.add_argument(
        "--rates",
        metavar="R1,R2,...",
        help="serve at each of these rates (requests/s), and find the highest that keeps the "
        "objectives (serving.slo)",
    )
    parser.add_argument(
        "--faults", metavar="FILE", help="what breaks meanwhile: a YAML file with a list faults"
    )
    parser.add_argument(
        "--html",
        metavar="FILE",
        help="write the run over time (tokens/s, queues, faults) as a page",
    )
    parser.add_argument("--out", metavar="DIR", help="keep the files of the run in this directory")
    add_plotlyjs(parser, "of the report in --out")
    add_json(parser, "print the summary as one JSON object")


def run(options: Namespace) -> None:
    """Serve, and print the summary."""
    from simulator.api import serve
    from simulator.cli.output import print_json, progress_bar, say, width

    absent = [
        f"--{kind} is required: a path, or a shipped name (list {kind}s)".replace("ys)", "ies)")
        for kind in ("topology", "workload")
        if getattr(options, kind) is None
    ]
    if absent:
        raise InputError("\n".join(absent))
    if options.skip_bad:
        options.overrides = [*options.overrides, "requests.skip_bad=true"]
    if options.repeat < 1:
        raise InputError("--repeat 0: at least one run")
    plotlyjs = report_plotlyjs(options.out, options.plotlyjs)
    if options.repeat > 1 and options.out is not None:
        raise InputError("--repeat goes without --out: each run would leave its own files")
    if options.html is not None:
        from simulator.cli.flows import check_fresh

        if options.repeat > 1 or options.rates is not None:
            raise InputError("--html is of one run: leave --repeat and --rates out")
        check_fresh(options.html)
    if options.rates is not None:
        _rates(options)
        return
    given = {
        "requests": options.requests,
        "overrides": options.overrides,
        "routing": options.routing,
        "faults": options.faults,
        "say": say,
    }
    if options.repeat > 1:
        from simulator.studies.repeats import over_seeds, render

        with progress_bar("run") as progress:
            found = over_seeds(
                options.topology, options.workload, options.seed, options.repeat, progress, **given
            )
        if options.json:
            print_json(found)
        else:
            print(render(found), end="")
        return
    with progress_bar("request") as progress:
        served = serve(
            options.topology,
            options.workload,
            seed=options.seed,
            out=options.out,
            html=options.html,
            plotlyjs=plotlyjs,
            progress=progress,
            **given,
        )
    if options.json:
        print_json(served.summary)
    else:
        print(served.render(width()), end="")
    if served.path is not None:
        say(f"kept in {served.path}")


def _rates(options: Namespace) -> None:
    """Print the curve over rates of arrival."""
    from simulator.api import announced_compilation
    from simulator.cli.output import print_json, progress_bar, say
    from simulator.studies.saturation import Served, curve, render

    if options.repeat > 1 or options.out is not None or options.faults is not None:
        raise InputError("--rates goes without --repeat, --out and --faults")
    rates = _numbers(options.rates)
    where = (options.topology, options.workload, options.requests, tuple(options.overrides))
    with announced_compilation(say), progress_bar("rate") as progress:
        found = curve(Served(*where, options.routing, options.seed), rates, progress)
    if options.json:
        print_json(found.rows)
    else:
        print(render(found), end="")


def _numbers(text: str) -> list[float]:
    """Rates with commas between them; InputError for what is none."""
    found = []
    for part in text.split(","):
        try:
            rate = float(part)
        except ValueError:
            rate = 0.0
        if not 0.0 < rate <= 1e6:
            raise InputError(f"--rates {text!r}: {part!r} is no rate in requests/s; write 5,10,20")
        found.append(rate)
    return found
