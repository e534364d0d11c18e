"""`show requests`: what a recording or a law asks for: rate, lengths, reuse of prefixes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from simulator.errors import InputError
from simulator.results.summary import duration, number
from simulator.results.text import lay_out, wrapped

Shown = tuple[dict[str, Any], str]

SEED = 0
COLUMNS = ("mean", "cv", "min", "p50", "p90", "p99", "max")


def shown(name: str, on: str | None, overrides: Sequence[str]) -> Shown:
    """Statistics of a recorded file or a law; overrides: keys of `RequestsSpec` as "key=value".

    What is drawn is drawn with seed 0. Raises InputError with one line per fault.
    """
    if on is not None:
        raise InputError("show requests: --topology goes with show workload; leave it out")
    from simulator.requests.describe import describe
    from simulator.requests.load import load_requests
    from simulator.spec.document import SET, Document, parse_value
    from simulator.spec.faults import validated
    from simulator.spec.requests import RequestsSpec

    document = Document({"source": name}, {(): "show requests"})
    for text in overrides:
        key, equals, value = text.partition("=")
        key = key.strip().removeprefix("requests.")
        if not equals or not key:
            raise InputError(f"{SET} {text}: write key=value, as in --set limit=1000")
        document.put((key,), parse_value(value, f"{SET} {key}"), SET)
    found = describe(load_requests(validated(RequestsSpec, document), SEED))
    return found, _text(found)


def _text(found: dict[str, Any]) -> str:
    lines = [
        wrapped(f"{found['source']}: {found['requests']:,} requests", ""),
        "",
        lay_out(None, [("arrivals", _arrivals(found)), *_extras(found)]),
        "",
        lay_out(
            ("tokens", *COLUMNS, "total"),
            [_row(kind, found[f"{kind}_tokens"]) for kind in ("prompt", "output")],
            right=range(1, len(COLUMNS) + 2),
        ),
    ]
    if found["notes"]:
        lines += ["", "notes", *(wrapped(note, "- ") for note in found["notes"])]
    return "\n".join(lines)


def _arrivals(found: dict[str, Any]) -> str:
    if not found["open"]:
        return f"closed: {found['concurrency']:,} at a time"
    if found["rate_per_s"] is None:
        return "all at once"
    told = f"{number(found['rate_per_s'], 4)} per second over {duration(found['duration_s'])}"
    if found["peak_rate_per_s"] is not None:
        told += f", at most {number(found['peak_rate_per_s'], 4)} per second in a minute"
    return f"{told}; CV of the gaps {found['gap_cv']:.2f}"


def _extras(found: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    if len(found["priorities"]) > 1:
        counts = (f"{level}: {count:,}" for level, count in found["priorities"].items())
        rows.append(("priorities", ", ".join(counts)))
    if found["prefix_reuse"] is not None:
        rows.append(
            (
                "prefixes",
                f"blocks of {found['block_tokens']} tokens; {found['prefix_reuse']:.1%} of the "
                "prompt tokens stand in a block that came before",
            )
        )
    return rows


def _row(kind: str, figures: dict[str, float]) -> tuple[str, ...]:
    cells = [f"{figures[c]:.2f}" if c == "cv" else f"{figures[c]:,.0f}" for c in COLUMNS]
    return (kind, *cells, f"{figures['total']:,}")
