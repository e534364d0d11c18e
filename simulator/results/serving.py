"""Figures of a serving run, from its tables alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.results.serving_faults import fault_figures
from simulator.runfiles.serving import OUTCOMES, REQUEST_SCHEMA, STEP_SCHEMA
from simulator.runfiles.tables import Columns, iter_table, read_table

Floats = NDArray[np.float64]

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True)
class ServingContext:
    """What the figures need beside the tables.

    gpus, groups; kv_blocks: of one GPU; warmup_s: requests that arrive before are not counted;
    slo: limits in seconds by name (ttft_s, tpot_s, e2e_s; None: no limit); gap_counts: how many
    gaps between successive tokens of a request fell into each bin, gap_first_s and gap_factor: the
    first bin's lower edge and the ratio of neighbours; totals: counts kept while it ran;
    usd_per_hour: of all GPUs; lost: requests that failed because of faults (None: no timeline);
    kv_tokens: what the KV cache of a GPU holds; prompt_tokens: the longest prompt that a step takes
    where none is cut (both None: not known, or no limit).
    """

    gpus: int
    groups: int
    kv_blocks: int
    warmup_s: float
    slo: Mapping[str, float | None]
    gap_counts: Sequence[int]
    gap_first_s: float
    gap_factor: float
    totals: Mapping[str, float]
    usd_per_hour: float
    lost: int | None = None
    kv_tokens: int | None = None
    prompt_tokens: int | None = None


def analyze_serving(folder: Path, of: ServingContext) -> dict[str, Any]:
    """The summary of a serving run; None stands for what cannot be said (no request finished).

    Little's law holds by counting: the time integral of the requests in the system is the sum of
    their times in it (`littles_law` gives both sides, from steps of the event times).
    """
    table = read_table(folder / "requests.parquet", REQUEST_SCHEMA)
    outcome = table["outcome"]
    counted = table["arrival_s"] >= of.warmup_s
    finished = counted & (outcome == OUTCOMES.index("finished"))
    end_s = float(table["end_s"].max())
    first_s = float(max(table["arrival_s"].min(), of.warmup_s))
    span_s = end_s - first_s
    latencies = latencies_of(table, finished)
    good = within(latencies, of.slo)
    generated = int(table["generated"][finished].sum())
    prompt = int(table["prompt"][finished].sum())
    steps = _steps(folder, of)
    hours_usd = of.usd_per_hour * span_s / 3600.0
    counts = {
        name: int((counted & (outcome == number)).sum())
        for number, name in enumerate(OUTCOMES)
        if name != "pending"
    }
    tokens_in_s, tokens_out_s = _rate(prompt, span_s), _rate(generated, span_s)
    broken = {}
    if of.lost is not None:
        broken = fault_figures(folder, of.gpus, of.groups, of.lost, of.warmup_s)
    return {
        "requests": int(counted.sum()),
        **counts,
        "rejections": _rejections(table, counted, of),
        "not_counted": int((~counted).sum()),
        "duration_s": span_s,
        "requests_per_s": _rate(int(finished.sum()), span_s),
        "prompt_tokens_per_s": tokens_in_s,
        "generated_tokens_per_s": tokens_out_s,
        "tokens_per_s_per_gpu": None if tokens_out_s is None else tokens_out_s / of.gpus,
        "goodput_requests_per_s": _rate(int(good.sum()), span_s),
        "goodput_share": _share(int(good.sum()), int(counted.sum())),
        "slo": dict(of.slo),
        "latency": {name: _spread(values) for name, values in latencies.items()}
        | {"itl_s": _gap_spread(of)},
        "queue": _spread((table["admitted_s"] - table["arrival_s"])[finished]),
        "attempts": int(table["attempts"][counted].sum()),
        "retries": int(np.maximum(table["attempts"][counted] - 1, 0).sum()),
        "wasted_tokens": int(table["wasted"][counted].sum()),
        "prefix_tokens_reused": int(table["reused"][counted].sum()),
        "preempted_requests": int((table["preempted"][counted] > 0).sum()),
        **of.totals,
        **steps,
        "littles_law": littles_law(table),
        "usd_per_1m_generated": _per_million(hours_usd, generated),
        "usd_per_1m_tokens": _per_million(hours_usd, generated + prompt),
        "gpus": of.gpus,
        "groups": of.groups,
        **broken,
    }


def _rejections(
    table: Columns, counted: NDArray[np.bool_], of: ServingContext
) -> list[dict[str, Any]]:
    """Why requests were rejected: for each reason how many, the limit, and the longest of them in
    tokens. One that is too long for two reasons is counted under the first.
    """
    left = counted & (table["outcome"] == OUTCOMES.index("rejected"))
    prompt = table["prompt"].astype(np.int64)
    found: list[dict[str, Any]] = []
    for reason, tokens, limit in (
        ("kv_memory", prompt + table["output"], of.kv_tokens),
        ("step_tokens", prompt, of.prompt_tokens),
    ):
        mine = left & (tokens > limit) if limit is not None else np.zeros_like(left)
        if mine.any():
            most = int(tokens[mine].max())
            count = int(mine.sum())
            found.append({"reason": reason, "requests": count, "limit": limit, "longest": most})
        left &= ~mine
    return found


def littles_law(table: Columns) -> dict[str, float]:
    """Both sides of Little's law over the whole run: mean number in the system from the event
    times, and arrival rate times mean time in the system.
    """
    arrival_s, end_s = table["arrival_s"], table["end_s"]
    start_s, stop_s = float(arrival_s.min()), float(end_s.max())
    duration_s = stop_s - start_s
    if duration_s <= 0.0:
        return {"mean_in_system": 0.0, "rate_times_time": 0.0}
    times = np.concatenate([arrival_s, end_s])
    change = np.concatenate([np.ones(len(arrival_s)), -np.ones(len(end_s))])
    order = np.argsort(times, kind="stable")
    there = np.cumsum(change[order])
    area = float((there[:-1] * np.diff(times[order])).sum())
    rate = len(arrival_s) / duration_s
    return {
        "mean_in_system": area / duration_s,
        "rate_times_time": rate * float((end_s - arrival_s).mean()),
    }


def latencies_of(table: Columns, finished: NDArray[np.bool_]) -> dict[str, Floats]:
    """TTFT, TPOT (NaN for requests of one token) and E2E of the finished ones."""
    arrival_s, first_s = table["arrival_s"][finished], table["first_s"][finished]
    last_s, generated = table["last_s"][finished], table["generated"][finished]
    more = generated > 1
    # NaN where there is none, so that all are of the same requests.
    tpot_s = np.full(len(first_s), np.nan)
    tpot_s[more] = (last_s - first_s)[more] / (generated[more] - 1)
    return {
        "ttft_s": first_s - arrival_s,
        "tpot_s": tpot_s,
        "e2e_s": table["end_s"][finished] - arrival_s,
    }


def within(latencies: Mapping[str, Floats], slo: Mapping[str, float | None]) -> NDArray[np.bool_]:
    """Which finished requests keep all limits; one without a second token keeps that of TPOT."""
    good = np.ones(len(latencies["e2e_s"]), dtype=np.bool_)
    for name, values in latencies.items():
        limit = slo.get(name)
        if limit is not None:
            good &= np.isnan(values) | (values <= limit)
    return good


def _steps(folder: Path, of: ServingContext) -> dict[str, Any]:
    """Steps, their tokens and durations, and how busy the groups were."""
    number, tokens, longest = 0, 0, 0.0
    busy_s = np.zeros(of.groups)
    work = np.zeros(of.groups, dtype=np.int64)
    waiting = used = 0
    start_s, end_s = math.inf, 0.0
    for block in iter_table(folder / "steps.parquet", STEP_SCHEMA):
        took_s = block["end_s"] - block["start_s"]
        number += int(block["steps"].sum())
        done = block["prompt"].astype(np.int64) + block["generated"]
        tokens += int(done.sum())
        longest = max(longest, float((took_s / block["steps"]).max(initial=0.0)))
        busy_s += np.bincount(block["group"], took_s, minlength=of.groups)
        work += np.bincount(block["group"], done, minlength=of.groups).astype(np.int64)
        waiting = max(waiting, int(block["waiting"].max(initial=0)))
        used = max(used, int(block["used_blocks"].max(initial=0)))
        start_s = min(start_s, float(block["start_s"].min(initial=math.inf)))
        end_s = max(end_s, float(block["end_s"].max(initial=0.0)))
    span_s = end_s - start_s if number else 0.0
    per_group_blocks = of.kv_blocks * (of.gpus // of.groups)
    return {
        "steps": number,
        "mean_step_tokens": tokens / number if number else None,
        "mean_step_s": float(busy_s.sum()) / number if number else None,
        "longest_step_s": longest if number else None,
        "busy_share": [float(busy) / span_s if span_s else 0.0 for busy in busy_s],
        "work_share": [float(mine) / tokens if tokens else 0.0 for mine in work],
        "longest_queue": waiting,
        "peak_kv_share": used / per_group_blocks,
    }


def _spread(values: Floats) -> dict[str, float] | None:
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    found = {f"p{p}": float(q) for p, q in zip(PERCENTILES, _quantiles(values), strict=True)}
    return {"mean": float(values.mean()), **found, "max": float(values.max())}


def _quantiles(values: Floats) -> Floats:
    return np.asarray(np.percentile(values, PERCENTILES), dtype=np.float64)


def _gap_spread(of: ServingContext) -> dict[str, float] | None:
    """Gaps between tokens, to the width of a bin (their geometric middle is given)."""
    counts = np.asarray(of.gap_counts, dtype=np.int64)
    total = int(counts.sum())
    if not total:
        return None
    middle = of.gap_first_s * of.gap_factor ** (np.arange(len(counts)) + 0.5)
    up_to = np.cumsum(counts)
    found = {f"p{p}": float(middle[np.searchsorted(up_to, p / 100.0 * total)]) for p in PERCENTILES}
    last = float(middle[np.flatnonzero(counts)[-1]])
    return {"mean": float((middle * counts).sum() / total), **found, "max": last}


def _rate(number: int, span_s: float) -> float | None:
    return number / span_s if span_s > 0.0 else None


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _per_million(usd: float, tokens: int) -> float | None:
    return usd / tokens * 1e6 if tokens else None
