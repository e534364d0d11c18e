"""`routing-stats TRACE`: the figures of a recording as text, as JSON and as a page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator.cli.arguments import Parser, add_plotlyjs
from simulator.cli.pages import check_html
from simulator.errors import InputError

if TYPE_CHECKING:
    from simulator.routing.stats import Counts, Progress

MAX_CAPACITIES = 32


def arguments(parser: Parser) -> None:
    """`routing-stats`."""
    parser.add_argument(
        "trace",
        metavar="TRACE",
        help="a shipped name, or a path of a trace, a recording or a file of expert loads",
    )
    parser.add_argument(
        "--capacity",
        metavar="LIST",
        help="experts per layer that a cache holds, as in 2,4,8, for the best possible hit rates "
        "(default: powers of two below the number of experts)",
    )
    parser.add_argument(
        "--html", metavar="FILE", help="also draw the figures, as a web page in this file"
    )
    add_plotlyjs(parser, "of the page of --html")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> None:
    """Print what a recording looks like, and draw it with --html."""
    from simulator.cli.output import print_json, progress_bar, say
    from simulator.spec.find import find

    asked = None if options.capacity is None else _capacities(options.capacity)
    check_html("routing-stats", options.html, options.plotlyjs)
    # Some engines leave a folder with a file of loads for each GPU.
    folder = Path(options.trace).expanduser()
    path = folder if folder.is_dir() else find("trace", options.trace)

    from simulator.api import announced_compilation
    from simulator.routing.stats import describe

    with announced_compilation(say), progress_bar("token") as progress:
        trace, counts = _counted(path, asked, progress)
        found = describe(counts)
        _add_hit_rates(found, trace, asked, progress)
    if options.html is not None:
        _draw(options, found, counts)
    if options.json:
        print_json(found)
    else:
        print(render(found))


def _counted(
    path: Path, asked: Sequence[int] | None, progress: Progress | None
) -> tuple[Path | None, Counts]:
    """The trace to read (None for a file of loads), and its counts.

    asked: capacities, ascending; raises InputError if they cannot be of this file.
    """
    from simulator.cli.output import say
    from simulator.routing.importers import open_trace
    from simulator.routing.loads import is_load_file, loads_of
    from simulator.routing.stats import count_trace, counts_of_loads
    from simulator.routing.trace import read_info

    if is_load_file(path):
        if asked is not None:
            raise InputError(f"--capacity: {path} has loads and no tokens; leave it out")
        return None, counts_of_loads(loads_of(path, say))
    trace = open_trace(path, say)
    experts = read_info(trace).experts
    if asked is not None and asked[-1] > experts:
        raise InputError(f"--capacity {asked[-1]}: a layer has {experts} experts; write fewer")
    return trace, count_trace(trace, progress)


def _add_hit_rates(
    found: dict[str, Any],
    trace: Path | None,
    asked: Sequence[int] | None,
    progress: Progress | None,
) -> None:
    """Add `capacities`, and for each its `best_hit_rates`, over all layers and layer by layer."""
    from simulator.routing.stats import default_capacities

    rates: list[Any] | None = None
    by_layer: list[list[float | None]] | None = None
    capacities = None
    if trace is not None:
        capacities = default_capacities(found["experts"]) if asked is None else list(asked)
        hits = _best_hits(trace, capacities, found, progress)
        accesses = [row["recorded"] for row in found["per_layer"]]
        rates = [sum(row) / sum(accesses) if sum(accesses) else None for row in hits]
        by_layer = [
            [row[layer] / accesses[layer] if accesses[layer] else None for row in hits]
            for layer in range(len(accesses))
        ]
    found["capacities"], found["best_hit_rates"] = capacities, rates
    for at, layer_row in enumerate(found["per_layer"]):
        layer_row["best_hit_rates"] = None if by_layer is None else by_layer[at]


def _best_hits(
    trace: Path, capacities: Sequence[int], found: dict[str, Any], progress: Progress | None
) -> list[list[int]]:
    """Hits of Belady's policy [capacities][layers], caches emptied at the start of a request."""
    import numpy as np

    from simulator.policies.caching import belady_hits
    from simulator.routing.stats import whole_requests

    total = np.zeros((len(capacities), found["layers"]), dtype=np.int64)
    done = 0
    for ids, starts in whole_requests(trace, found["notes"]):
        rows, layers, k = ids.shape
        accesses = np.ascontiguousarray(ids.transpose(1, 0, 2)).reshape(layers, rows * k)
        reset = np.zeros(rows * k, dtype=np.bool_)
        reset[::k] = starts
        total += belady_hits(accesses, reset, capacities, found["experts"])
        done += rows
        if progress is not None:
            progress(done, found["tokens"])
    return [[int(hits) for hits in row] for row in total]


def render(found: dict[str, Any]) -> str:
    """The figures as text: in a few lines, then layer by layer."""
    from simulator.results.summary import number, percent
    from simulator.results.text import lay_out, wrapped

    lines = [headline(found)]
    # A number and its unit stay together.
    lines += [
        wrapped(text.replace(" %", "\xa0%"), f"{label:<10}").replace("\xa0", " ")
        for label, text in told(found)
    ]
    lines += [wrapped(note, "note      ") for note in found["notes"]]
    columns: tuple[tuple[str, str, Any], ...] = (
        ("layer", "layer", str),
        ("recorded", "recorded", lambda value: f"{value:,}"),
        ("max/mean", "max_over_mean", number),
        ("unused", "unused_experts", str),
        ("Gini", "gini", number),
        ("entropy", "entropy_bits", number),
        ("overlap", "overlap", percent),
        ("to_next", "mutual_information_bits", number),
    )
    # A column that no layer fills tells nothing.
    columns = tuple(
        column
        for column in columns
        if any(row[column[1]] is not None for row in found["per_layer"])
    )
    rows = [[tell(row[key]) for _, key, tell in columns] for row in found["per_layer"]]
    table = lay_out([name for name, _, _ in columns], rows, right=range(len(columns)))
    return "\n".join([*lines, "", table])


def told(found: dict[str, Any]) -> list[tuple[str, str]]:
    """(Word, sentence) of each figure that is there."""
    from math import log2

    from simulator.results.summary import number, percent

    load = f"hottest expert {number(found['max_over_mean'])} x the mean (1 if uniform)"
    lines = [("load", load)]
    if found["overlap"] is not None:
        text = f"{percent(found['overlap'])} of a token's experts were the last token's "
        lines.append(("overlap", text + f"({percent(found['uniform_overlap'])} if uniform)"))
    text = f"Gini {number(found['gini'])}; entropy {number(found['entropy_bits'])} of "
    text += f"{number(log2(found['experts']))} bits; hottest tenth of the experts "
    text += f"{percent(found['hottest_tenth_share'])} of the load "
    lines.append(("skew", text + f"({percent(found['uniform_hottest_tenth_share'])} if uniform)"))
    if found["mutual_information_bits"] is not None:
        text = f"an expert tells {number(found['mutual_information_bits'])} bits of one in the "
        text += f"next layer, {percent(found['mutual_information_share'])} of its entropy "
        lines.append(("layers", text + "(0 if layers are independent)"))
    if found["capacities"] and None not in found["best_hit_rates"]:
        pairs = zip(found["capacities"], found["best_hit_rates"], strict=True)
        rates = ", ".join(f"{percent(rate)} with {capacity}" for capacity, rate in pairs)
        text = "best possible hit rate by the experts that a layer's cache holds: "
        lines.append(("cache", text + rates))
    return lines


def headline(found: dict[str, Any]) -> str:
    """How much was recorded of what."""
    top = "" if found["k"] is None else f"top-{found['k']} of "
    of = f"{found['layers']} layers, {top}{found['experts']} experts"
    if found["tokens"] is None:
        return f"loads without tokens; {of}"
    return f"{found['tokens']:,} tokens of {found['requests']:,} requests; {of}"


def _draw(options: argparse.Namespace, found: dict[str, Any], counts: Counts) -> None:
    from simulator.results.page import write_page
    from simulator.results.routing_page import render_routing_page

    where = options.plotlyjs or "inline"
    name = Path(options.trace).name
    lines = [("figures", headline(found))]
    lines += [("figures", f"{label}: {text}") for label, text in told(found)]
    lines += [("quiet", note) for note in found["notes"]]
    page = render_routing_page(name, lines, found, counts.loads, where)
    write_page(Path(options.html), page, where)


def _capacities(text: str) -> list[int]:
    """The numbers of --capacity, ascending, each once."""
    found = set()
    for part in text.split(","):
        word = part.strip()
        if not (word.isascii() and word.isdigit() and len(word) <= 9 and int(word) > 0):
            raise InputError(
                f"--capacity: {word!r} is not a whole number from 1; write for example 2,4,8"
            )
        found.add(int(word))
    if len(found) > MAX_CAPACITIES:
        raise InputError(f"--capacity: {len(found)} of them; write {MAX_CAPACITIES} at most")
    return sorted(found)
