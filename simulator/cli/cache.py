"""`cache TRACE`: hit rates of expert caches on a recording, without times."""

from __future__ import annotations

import argparse
import csv
import json
import math
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator.cli.arguments import Parser, add_plotlyjs
from simulator.errors import InputError

if TYPE_CHECKING:
    from simulator.studies.cache_rates import Named, Rates

MAX_CAPACITIES = 64
MAX_POLICIES = 64
MAX_SIZES_BYTES = 64 << 20
# Sizes are read to six decimals; more than this and a typing error is likelier.
SMALLEST_SIZE, LARGEST_SIZE = 1e-6, 1e6


def arguments(parser: Parser) -> None:
    """`cache`."""
    parser.add_argument(
        "trace", metavar="TRACE", help="a shipped name, or a path of a trace or a recording"
    )
    parser.add_argument(
        "--capacity",
        metavar="LIST",
        required=True,
        help="experts per layer that a cache holds, as in 2,4,6",
    )
    parser.add_argument(
        "--policy",
        metavar="LIST",
        default="all",
        help="who leaves: lru, lfu, lfu-aging[:N], arc, least-stale, belady, or "
        "package.module:function; as in lru,belady (default: all)",
    )
    parser.add_argument(
        "--pool",
        metavar="POOL",
        default="layer",
        help="layer: a cache for each layer (default); global: one for all, of capacity x layers",
    )
    parser.add_argument(
        "--reset",
        metavar="WHEN",
        default="request",
        help="when caches are emptied: request (default: at the start of each) or never",
    )
    parser.add_argument(
        "--sizes",
        metavar="FILE",
        help="sizes of the experts, CSV or JSON, [experts] or [layers, experts]; --capacity is "
        "then in the same unit",
    )
    parser.add_argument("--layers", metavar="LIST", help="only these, as in 0,4-7")
    parser.add_argument(
        "--phase",
        metavar="PHASE",
        default="any",
        help="only tokens of this phase: any (default), prompt or generated",
    )
    parser.add_argument("--per-layer", action="store_true", help="a row for each layer")
    parser.add_argument("-o", metavar="FILE", dest="output", help="also write the rows as CSV")
    parser.add_argument(
        "--html", metavar="FILE", help="also draw hit rate over capacity, as a web page"
    )
    add_plotlyjs(parser, "of the page of --html")
    parser.add_argument("--json", action="store_true", help="print a list of rows")


def run(options: argparse.Namespace) -> None:
    """Replay a trace on caches and print their hit rates."""
    from simulator.cli.flows import check_fresh, write_fresh
    from simulator.cli.output import print_json, progress_bar, say
    from simulator.spec.find import find

    pool = _one_of("--pool", options.pool, ("layer", "global"))
    reset = _one_of("--reset", options.reset, ("request", "never"))
    phase = _one_of("--phase", options.phase, ("any", "prompt", "generated"))
    capacities = _capacities(options.capacity, whole=options.sizes is None)
    layers = None if options.layers is None else _layers(options.layers)
    _check_plotlyjs(options)
    check_fresh(options.output, options.html)
    found = find("trace", options.trace)

    # Slow to import, so after what is likely to be refused.
    from simulator.api import announced_compilation
    from simulator.routing.importers import open_trace
    from simulator.studies.cache_rates import hit_rates

    policies = _policies(options.policy)
    sizes = None if options.sizes is None else _sizes(Path(options.sizes))
    path = open_trace(found, say)
    with announced_compilation(say), progress_bar("token") as progress:
        rates = hit_rates(
            path,
            policies,
            capacities,
            pool=pool,  # type: ignore[arg-type]
            reset=reset,  # type: ignore[arg-type]
            sizes=sizes,
            layers=layers,
            phase=phase,  # type: ignore[arg-type]
            progress=progress,
        )
    for note in rates.notes:
        say(f"note: {note}")
    rows = table(rates, options.per_layer, options.sizes is not None)
    if options.output is not None:
        write_fresh(options.output, list(rows[0]), (list(row.values()) for row in rows))
    if options.html is not None:
        from simulator.results.cache_page import render_cache_page
        from simulator.results.page import write_page

        where = options.plotlyjs or "inline"
        overall = table(rates, False, options.sizes is not None)
        lines = [headline(rates, pool, reset, phase), *rates.notes]
        page = render_cache_page(Path(options.trace).name, lines, overall, where)
        write_page(Path(options.html), page, where)
    if options.json:
        print_json(rows)
    else:
        print(render(rows, headline(rates, pool, reset, phase)))


def table(rates: Rates, per_layer: bool, sized: bool) -> list[dict[str, Any]]:
    """Flat rows, one for each policy and capacity, and with `per_layer` for each layer."""
    rows: list[dict[str, Any]] = []
    for at, policy in enumerate(rates.policies):
        for index, capacity in enumerate(rates.capacities):
            parts = range(len(rates.layers)) if per_layer else [slice(None)]
            for part in parts:
                accesses, first, hits = (
                    int(counts[part].sum())
                    for counts in (rates.accesses, rates.first, rates.hits[at, index])
                )
                row: dict[str, Any] = {"policy": policy}
                row["capacity"] = capacity if sized else int(capacity)
                if per_layer:
                    row["layer"] = int(rates.layers[part])
                row |= {"accesses": accesses, "hits": hits}
                # A layer of which nothing is recorded has no rate.
                row["hit_rate"] = hits / accesses if accesses else None
                row["cold_miss_rate"] = first / accesses if accesses else None
                rows.append(row)
    return rows


def headline(rates: Rates, pool: str, reset: str, phase: str) -> str:
    """What was replayed, in a line."""
    caches = "a cache for each layer" if pool == "layer" else "one pool for all layers"
    emptied = "emptied at each request" if reset == "request" else "never emptied"
    of = "" if phase == "any" else f" of {phase} tokens"
    layers = f"{len(rates.layers)} layer{'s' if len(rates.layers) > 1 else ''}"
    return f"{int(rates.accesses.sum()):,} accesses{of} in {layers}; {caches}, {emptied}"


def render(rows: Sequence[dict[str, Any]], above: str) -> str:
    """The rows as text."""
    from simulator.results.text import lay_out

    def shown(name: str, value: Any) -> str:
        if value is None:
            return "-"
        if name in ("hit_rate", "cold_miss_rate"):
            return f"{value:.4f}"
        if name == "capacity":
            return f"{value:g}"
        return f"{value:,}" if isinstance(value, int) and name != "layer" else str(value)

    cells = [[shown(name, value) for name, value in row.items()] for row in rows]
    header = list(rows[0])
    return f"{above}\n\n{lay_out(header, cells, right=range(1, len(header)))}"


def _policies(text: str) -> list[Named]:
    from simulator.policies.caching import POLICIES, policy_named

    names: list[str] = []
    for part in text.split(","):
        word = part.strip()
        for name in POLICIES if word == "all" else [word]:
            if name not in names:
                names.append(name)
    if len(names) > MAX_POLICIES:
        raise InputError(f"--policy: {len(names)} of them; write {MAX_POLICIES} at most")
    return [(name, policy_named(name)) for name in names]


def _capacities(text: str, whole: bool) -> list[float]:
    """The numbers of --capacity, ascending, each once."""
    found: set[float] = set()
    for part in text.split(","):
        word = part.strip()
        value = _number(word)
        if whole and not (word.isascii() and word.isdigit() and len(word) <= 9 and value >= 1):
            raise InputError(
                f"--capacity: {word!r} is not a whole number from 1; write for example 2,4,8"
            )
        if not SMALLEST_SIZE <= value <= 1e9:
            raise InputError(
                f"--capacity: {word!r} is not a number from {SMALLEST_SIZE:g} to 1e+09; write for "
                "example 2.5,4"
            )
        found.add(value)
    if len(found) > MAX_CAPACITIES:
        raise InputError(f"--capacity: {len(found)} of them; write {MAX_CAPACITIES} at most")
    return sorted(found)


def _number(word: str) -> float:
    """A plain number, NaN if it is none."""
    try:
        return float(word) if word.isascii() and "_" not in word else math.nan
    except ValueError:
        return math.nan


def _layers(text: str) -> list[int]:
    """The numbers of --layers, ascending, each once; the trace says which ones there are."""
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        ends = (first, last if dash else first)
        if not all(end.isascii() and end.isdigit() and len(end) <= 4 for end in ends):
            raise InputError(f"--layers: {part.strip()!r} is no layer; write for example 0,4-7")
        if int(ends[0]) > int(ends[1]):
            raise InputError(f"--layers: {part.strip()!r} goes down; write {ends[1]}-{ends[0]}")
        found.update(range(int(ends[0]), int(ends[1]) + 1))
    return sorted(found)


def _one_of(flag: str, given: str, known: Sequence[str]) -> str:
    from simulator.spec.units import did_you_mean

    if given not in known:
        hint = did_you_mean(given, list(known))
        raise InputError(f"{flag}: no {given!r}{hint}; write {' or '.join(known)}")
    return given


def _check_plotlyjs(options: argparse.Namespace) -> None:
    if options.plotlyjs is None:
        return
    from simulator.results.page import PLOTLYJS

    if options.html is None:
        raise InputError("cache: --plotlyjs goes with --html FILE")
    _one_of("--plotlyjs", options.plotlyjs, PLOTLYJS)


def _sizes(path: Path) -> Any:
    """Sizes as written, float64 [experts] or [layers, experts]: JSON, or CSV without a header."""
    import numpy as np

    from simulator.spec.document import read_bounded

    raw = read_bounded(path, str(path), MAX_SIZES_BYTES)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; write CSV or JSON") from None
    told = "write a size for each expert, or a row of them for each layer"
    if text.lstrip().startswith(("[", "{")):
        try:
            rows = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: not JSON: {error}") from None
        if not isinstance(rows, list) or not rows:
            raise InputError(f"{path}: not a list; {told}")
        if not all(isinstance(row, list) for row in rows):
            rows = [rows]
        rows = [[value if _is_number(value) else math.nan for value in row] for row in rows]
    else:
        rows = [
            [_number(word.strip()) for word in row]
            for row in csv.reader(StringIO(text, newline=""))
            if row
        ]
    if not rows:
        raise InputError(f"{path}: is empty; {told}")
    for at, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise InputError(
                f"{path}: row {at + 1} has {len(row)} sizes, row 1 has {len(rows[0])}; {told}"
            )
        for column, value in enumerate(row):
            if not SMALLEST_SIZE <= value <= LARGEST_SIZE:
                raise InputError(
                    f"{path}: row {at + 1}, column {column + 1}: not a size; write a number from "
                    f"{SMALLEST_SIZE:g} to {LARGEST_SIZE:g}"
                )
    sizes = np.array(rows, dtype=np.float64)
    # One row, or one column, is a size for each expert.
    return sizes.reshape(-1) if 1 in sizes.shape else sizes


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
