"""How late answers are at each rate of arrival, and the rate beyond which they are too late."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

from simulator.errors import InputError
from simulator.results.summary import duration, number, percent

Progress = Callable[[int, int], None]

KEPT = 0.95
"""Share of the requests that must keep the objectives at a rate that is served (our choice)."""

HALVINGS = 5
"""The knee is found to a 32nd of the gap between the given rates around it."""

COLUMNS = (
    "rate_per_s",
    "finished_per_s",
    "ttft_p50_s",
    "ttft_p99_s",
    "tpot_p99_s",
    "e2e_p99_s",
    "goodput_per_s",
    "goodput_share",
    "busy_share",
)


class Served(NamedTuple):
    """What is served: the arguments of `api.serve`."""

    topology: str
    workload: str
    requests: str | None
    overrides: tuple[str, ...]
    routing: str | None
    seed: int


class Curve(NamedTuple):
    """rows: one per rate, `COLUMNS`, in order of the rate, those tried for the knee among them;
    knee_per_s: the highest rate that was served (None: not even the lowest); beyond: whether a
    higher one was seen to fail.
    """

    rows: list[dict[str, float | None]]
    knee_per_s: float | None
    beyond: bool


def curve(
    of: Served,
    rates: Sequence[float],
    progress: Progress | None = None,
    workers: int | None = None,
) -> Curve:
    """Serve at each rate (requests/s), the same requests faster or slower, and find the knee.

    Raises InputError for a workload without objectives, and requests that have no rate.
    """
    base = _own_rate(of)
    asked = sorted(set(rates))
    cases = [(of, rate, rate / base) for rate in asked]
    workers = min(workers or len(os.sched_getaffinity(0)), len(cases))
    total = len(cases) + HALVINGS
    found = _all(cases, workers, lambda done: progress(done, total) if progress else None)
    kept = [row for row in found if _served(row)]
    failed = [row for row in found if not _served(row)]
    if not kept or not failed:
        return Curve(found, _rate(kept[-1]) if kept else None, bool(failed))
    low, high = _rate(kept[-1]), _rate(failed[0])
    if low > high:  # by chance a higher rate was served; the first that fails is what counts
        below = [row for row in kept if _rate(row) < high]
        if not below:
            return Curve(found, None, True)
        low = _rate(below[-1])
    for turn in range(HALVINGS):
        middle = (low + high) / 2.0
        row = _one((of, middle, middle / base))
        found.append(row)
        low, high = (middle, high) if _served(row) else (low, middle)
        if progress:
            progress(len(cases) + turn + 1, total)
    found.sort(key=_rate)
    return Curve(found, low, True)


def render(found: Curve) -> str:
    """The curve as a table of at most 80 columns, and the knee in a sentence."""
    head = ("req/s", "done/s", "TTFT p50", "TTFT p99", "TPOT p99", "E2E p99", "good/s", "kept")
    lines = ["".join(f"{name:>9}" for name in head) + "   busy"]
    for row in found.rows:
        cells = [
            number(row["rate_per_s"]),
            number(row["finished_per_s"]),
            *(duration(row[f"{name}_s"]) for name in ("ttft_p50", "ttft_p99", "tpot_p99")),
            duration(row["e2e_p99_s"]),
            number(row["goodput_per_s"]),
            percent(row["goodput_share"]),
        ]
        lines.append("".join(f"{cell:>9}" for cell in cells) + f"{percent(row['busy_share']):>7}")
    lines.append("")
    if found.knee_per_s is None:
        lines.append(f"Knee: below the lowest rate; less than {KEPT:.0%} kept the objectives")
    elif not found.beyond:
        lines.append("Knee: above the highest rate; give higher ones to find it")
    else:
        lines.append(
            f"Knee: {number(found.knee_per_s)} requests/s, the highest rate at which {KEPT:.0%} of "
            "the requests\n      kept the objectives"
        )
    return "\n".join(lines) + "\n"


def _own_rate(of: Served) -> float:
    from simulator.requests.load import load_requests
    from simulator.spec.load import load_inputs

    inputs = load_inputs(of.topology, of.workload, of.overrides, of.routing, of.requests)
    asked = inputs.workload.requests
    if asked is None:
        raise InputError("requests: a workload that is served says which; give --requests")
    slo = inputs.workload.serving.slo
    if slo.ttft_s is None and slo.tpot_s is None and slo.e2e_s is None:
        raise InputError(
            "--rates finds the rate that keeps objectives; give some, for example "
            '--set serving.slo.ttft="500 ms" --set serving.slo.tpot="50 ms"'
        )
    found = load_requests(asked, of.seed, inputs.requests_dir)
    spread_s = float(found.arrival_s[-1] - found.arrival_s[0])
    if found.concurrency is not None or spread_s <= 0.0:
        raise InputError(f"--rates: {found.source} has no rate of arrival; give another source")
    return (len(found) - 1) / spread_s / asked.rate_scale


def _one(case: tuple[Served, float, float]) -> dict[str, float | None]:
    """Serve at one rate: the row of it."""
    from simulator.api import serve

    of, rate, scale = case
    scaled = (*of.overrides, f"requests.rate_scale={scale!r}")
    summary = serve(
        of.topology,
        of.workload,
        requests=of.requests,
        overrides=scaled,
        routing=of.routing,
        seed=of.seed,
    ).summary
    return {"rate_per_s": rate} | _figures(summary)


def _figures(summary: dict[str, Any]) -> dict[str, float | None]:
    latency = summary["latency"]

    def of(name: str, which: str) -> float | None:
        found = latency[name]
        return None if found is None else float(found[which])

    return {
        "finished_per_s": summary["requests_per_s"],
        "ttft_p50_s": of("ttft_s", "p50"),
        "ttft_p99_s": of("ttft_s", "p99"),
        "tpot_p99_s": of("tpot_s", "p99"),
        "e2e_p99_s": of("e2e_s", "p99"),
        "goodput_per_s": summary["goodput_requests_per_s"],
        "goodput_share": summary["goodput_share"],
        "busy_share": max(summary["busy_share"]),
    }


def _all(
    cases: Sequence[tuple[Served, float, float]], workers: int, tell: Callable[[int], None]
) -> list[dict[str, float | None]]:
    found = []
    if workers <= 1:
        rows: Iterable[dict[str, float | None]] = map(_one, cases)
        for row in rows:
            found.append(row)
            tell(len(found))
        return found
    with ProcessPoolExecutor(workers) as pool:
        for row in pool.map(_one, cases):
            found.append(row)
            tell(len(found))
    return found


def _rate(row: dict[str, float | None]) -> float:
    rate = row["rate_per_s"]
    assert rate is not None
    return rate


def _served(row: dict[str, float | None]) -> bool:
    share = row["goodput_share"]
    return share is not None and share >= KEPT
