"""Two runs side by side: what differs in the figures, in the inputs, and why a step takes longer.

A and B are each a run, a serving run or recorded traces (`any_run`). Differences are B - A, ratios
B / A. Of two runs the parts of the breakdown explain the step time: they add up to it. A run is
compared with traces in the terms of the traces, which know kernels and not what they waited for;
a serving run, which keeps no kernels, with either in what both have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from simulator.errors import InputError
from simulator.results import timeline
from simulator.results.any_run import Read
from simulator.results.intervals import PARTS
from simulator.results.trace_summary import read_spans, summarize
from simulator.runfiles.rundir import RunDir
from simulator.runfiles.spans import LINK_SCHEMA
from simulator.runfiles.tables import read_table

MOST_LINKS = 8

_ALIKE = 1e-9
"""Figures closer than this fraction are the same: sums of floats in another order."""

HEADLINES = {
    "run": (
        "throughput_tokens_per_s",
        "throughput_tokens_per_s_per_gpu",
        "step_time_s.mean",
        "step_time_s.max",
        "gpus",
        "steps",
        "tokens",
        "overlap_achieved",
        "mfu",
        "compute_utilization",
        "comm_utilization",
        "copy_utilization",
        "hottest_link_utilization",
        "load_imbalance.gpus",
        "load_imbalance.experts",
        "energy.joules_per_step",
        "cost.usd_per_million_tokens",
    ),
    "serving": (
        "requests",
        "finished",
        "failed",
        "rejected",
        "requests_per_s",
        "generated_tokens_per_s",
        "tokens_per_s_per_gpu",
        "goodput_requests_per_s",
        "goodput_share",
        *(f"latency.{name}.{of}" for name in ("ttft_s", "tpot_s", "itl_s", "e2e_s")
          for of in ("mean", "p50", "p90", "p95", "p99")),
        "queue.mean",
        "queue.p99",
        "mean_step_s",
        "mean_step_tokens",
        "peak_kv_share",
        "preemptions",
        "retries",
        "wasted_tokens",
        "usd_per_1m_generated",
        "gpus",
        "groups",
    ),
    "trace": (
        "step_time_s.mean",
        "step_time_s.max",
        "steps",
        "gpus",
        "kernels",
        "window_s",
        "busy.compute",
        "busy.communication",
        "busy.copies",
        "overlap_achieved",
    ),
    "mixed": (
        "tokens_per_s",
        "tokens_per_s_per_gpu",
        "step_time_s.mean",
        "tokens_per_step",
        "gpus",
        "cost.usd_per_million_tokens",
    ),
}  # fmt: skip

PROSE = (".description", ".sources")
"""Keys of inputs that no figure depends on."""

CACHE = (
    "cache_hit_rate",
    "cache_late_hit_rate",
    "cache_miss_rate",
    "cache_accesses",
    "prefetch_accuracy",
    "prefetch_recall",
    "demand_bytes",
    "prefetch_bytes",
    "wasted_prefetch_bytes",
)


@dataclass(frozen=True)
class Row:
    """One figure of A and B: None where one has none; difference and ratio where both have."""

    section: str
    figure: str
    a: Any
    b: Any

    @property
    def difference(self) -> float | None:
        """B - A of two numbers."""
        if not (_is_number(self.a) and _is_number(self.b)):
            return None
        return float(self.b - self.a)

    @property
    def ratio(self) -> float | None:
        """B / A of two numbers, None if A is 0."""
        return self.b / self.a if self.difference is not None and self.a else None

    @property
    def same(self) -> bool:
        """Whether A and B are alike."""
        if self.difference is None:
            return bool(self.a == self.b)
        return math.isclose(self.a, self.b, rel_tol=_ALIKE, abs_tol=1e-15)


@dataclass
class Comparison:
    """What `compare` found. kind: of the figures; summaries: of A and B in the terms of `kind`;
    rows by section: figures, breakdown (seconds of a step per part), cache, links, input.
    """

    a: Read
    b: Read
    kind: str
    summaries: tuple[Mapping[str, Any], Mapping[str, Any]]
    rows: list[Row] = field(default_factory=list)

    def of(self, section: str) -> list[Row]:
        """The rows of a section."""
        return [row for row in self.rows if row.section == section]


def compare(a: Read, b: Read) -> Comparison:
    """Put two side by side. Errors: InputError if a run's spans are needed and damaged."""
    kinds = {a.kind, b.kind}
    kind: str = a.kind if len(kinds) == 1 else "mixed" if "serving" in kinds else "trace"
    first, second = (_summary(read, kind) for read in (a, b))
    found = Comparison(a, b, kind, (first, second))
    left, right = flat(first), flat(second)
    found.rows += _rows("figures", HEADLINES[kind], left, right)
    if kind in ("run", "trace"):
        parts = PARTS if kind == "trace" else timeline.PARTS
        found.rows += _rows("breakdown", [f"breakdown_s.{part}" for part in parts], left, right)
    if kind == "run":
        found.rows += _rows("cache", CACHE, left, right)
        found.rows += _links(a.path, b.path, left, right)
    found.rows += _inputs(a, b)
    return found


def _summary(read: Read, kind: str) -> Mapping[str, Any]:
    """The figures of `read` in the terms of `kind`."""
    if read.kind == "run" and kind == "trace":
        return summarize(read_spans(read.path))
    return _common(read) if kind == "mixed" else read.summary


def _common(read: Read) -> dict[str, Any]:
    """What runs, serving runs and traces all have, or most of them, under the same names."""
    of = flat(read.summary)
    if read.kind == "serving":
        step_s, tokens = of.get("mean_step_s"), of.get("mean_step_tokens")
        usd, rate = of.get("usd_per_1m_generated"), of.get("generated_tokens_per_s")
    else:
        step_s, rate = of.get("step_time_s.mean"), of.get("throughput_tokens_per_s")
        usd = of.get("cost.usd_per_million_tokens")
        tokens = of["tokens"] / of["steps"] if of.get("tokens") and of.get("steps") else None
    gpus = of.get("gpus")
    return {
        "tokens_per_s": rate,
        "tokens_per_s_per_gpu": rate / gpus if rate is not None and gpus else None,
        "step_time_s": {"mean": step_s},
        "tokens_per_step": tokens,
        "gpus": gpus,
        "cost": {"usd_per_million_tokens": usd},
    }


def flat(given: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; lists of mappings are left out, other lists kept as text."""
    found: dict[str, Any] = {}
    for key, value in given.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}.")
        elif isinstance(value, list):
            if not any(isinstance(one, Mapping) for one in value):
                found[name] = ", ".join(map(str, value))
        else:
            found[name] = value
    return found


def _rows(
    section: str, names: Any, left: Mapping[str, Any], right: Mapping[str, Any]
) -> Iterator[Row]:
    """Rows of those of `names` that A or B has."""
    for name in names:
        row = Row(section, name, left.get(name), right.get(name))
        if row.a is not None or row.b is not None:
            yield row


def _links(a: Path, b: Path, left: Mapping[str, Any], right: Mapping[str, Any]) -> Iterator[Row]:
    """How busy links were: means of the kinds, then those of both whose use changed most."""
    kinds = dict.fromkeys(
        key
        for key in (*left, *right)
        if key.startswith("links.") and key.endswith(".mean_utilization")
    )
    yield from _rows("links", kinds, left, right)
    used = []
    for path, figures in ((a, left), (b, right)):
        try:
            table = read_table(RunDir(path).links, LINK_SCHEMA)
        except InputError:
            return
        time_s = figures.get("simulated_time_s")
        if not time_s:
            return
        share = table["bytes"] / (table["bandwidth_bytes_per_s"] * time_s)
        used.append(dict(zip(table["link"].tolist(), share.tolist(), strict=True)))
    both = [name for name in used[0] if name in used[1]]
    change = np.array([abs(used[1][name] - used[0][name]) for name in both])
    for at in np.argsort(-change, kind="stable")[:MOST_LINKS]:
        if change[at] > _ALIKE:
            yield Row("links", both[at], used[0][both[at]], used[1][both[at]])


def _inputs(a: Read, b: Read) -> Iterator[Row]:
    """Keys of the resolved inputs that differ, and other words of the commands."""
    if a.input is None or b.input is None:
        return
    left, right = ({**read.asked, **_every(read.input)} for read in (a, b))
    for key in dict.fromkeys((*left, *right)):
        if left.get(key) != right.get(key) and not any(part in key for part in PROSE):
            yield Row("input", key, left.get(key), right.get(key))


def _every(given: Any, before: str = "") -> dict[str, Any]:
    """As `flat`, with the members of lists by number."""
    if isinstance(given, Mapping):
        pairs = [(str(key), value) for key, value in given.items()]
    elif isinstance(given, list):
        pairs = [(str(index), value) for index, value in enumerate(given)]
    else:
        return {before: given}
    found: dict[str, Any] = {}
    for key, value in pairs:
        found |= _every(value, f"{before}.{key}" if before else key)
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def json_rows(found: Comparison) -> list[dict[str, Any]]:
    """All rows as flat mappings."""
    return [
        {
            "section": row.section,
            "figure": row.figure,
            "a": row.a,
            "b": row.b,
            "difference": row.difference,
            "ratio": row.ratio,
        }
        for row in found.rows
    ]
