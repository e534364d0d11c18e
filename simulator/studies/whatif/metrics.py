"""Figures of a run by name, and bounds on them."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from simulator.errors import InputError
from simulator.results.summary import duration, number, percent, size
from simulator.spec.units import did_you_mean, parse_quantity

Unit = Literal["s", "share", "B", "$", "J", "W", "1/s", "", "text"]
Figures = Mapping[str, float | str | None]
"""A summary with its mappings and short lists laid flat: "latency.ttft_s.p99" -> 0.05."""

MOST_ITEMS = 16  # longer lists (one value per GPU, say) are not kept


class Metric(NamedTuple):
    """A figure: its name in a study, its path in a summary, its unit, in words."""

    name: str
    path: str
    unit: Unit
    text: str

    @property
    def column(self) -> str:
        """The name of its column, with the unit where there is one."""
        return f"{self.name}_s" if self.unit == "s" and self.name != self.path else self.name

    def of(self, figures: Figures) -> float | str | None:
        """Its value, None where a run has no such figure."""
        return figures.get(self.path)

    def number(self, figures: Figures) -> float | None:
        """Its value if that is a number."""
        value = figures.get(self.path)
        return None if value is None or isinstance(value, str) else float(value)

    def told(self, value: float | str | None) -> str:
        """A value for the reader, with its unit."""
        if value is None or isinstance(value, str):
            return value or "-"
        shown = _TOLD.get(self.unit, number)(value)
        return f"${shown}" if self.unit == "$" else shown


_TOLD: Mapping[Unit, Callable[[float], str]] = {"s": duration, "share": percent, "B": size}


def _latencies() -> dict[str, tuple[str, Unit, str]]:
    words = {
        "ttft": "time to the first token",
        "tpot": "mean time per token after the first, of a request",
        "itl": "time between two tokens",
        "e2e": "time to the last token",
    }
    return {
        f"{name}_{which}": (f"latency.{name}_s.{which}", "s", f"{text}, {which}")
        for name, text in words.items()
        for which in ("mean", "p50", "p90", "p95", "p99", "max")
    }


_ENTRIES: dict[str, dict[str, tuple[str, Unit, str]]] = {
    "run": {
        "tokens_per_s": ("throughput_tokens_per_s", "1/s", "tokens per second of the cluster"),
        "tokens_per_s_per_gpu": (
            "throughput_tokens_per_s_per_gpu",
            "1/s",
            "tokens per second and GPU",
        ),
        "step_time": ("step_time_s.mean", "s", "mean time of a step"),
        "usd_per_1m_tokens": ("cost.usd_per_million_tokens", "$", "$ per million tokens"),
        "usd_per_hour": ("cost.usd_per_hour", "$", "price of all GPUs for an hour"),
        "joules_per_token": ("energy.joules_per_token", "J", "energy of a token"),
        "power": ("energy.power_w", "W", "mean power of the cluster"),
        "mfu": ("mfu", "share", "model FLOPs utilisation"),
        "compute": ("breakdown.compute", "share", "share of the time that GPUs compute"),
        "exposed_communication": (
            "breakdown.exposed_communication",
            "share",
            "share of the time that GPUs wait for communication",
        ),
        "fetch_stall": ("breakdown.fetch_stall", "share", "share of the time spent on fetches"),
        "peer_wait": ("breakdown.peer_wait", "share", "share of the time spent waiting for peers"),
        "overlap": ("overlap_achieved", "share", "share of communication that is hidden"),
        "hit_rate": ("cache_hit_rate", "share", "expert was resident when it was needed"),
        "miss_rate": ("cache_miss_rate", "share", "expert had not been asked for"),
        "gpu_imbalance": ("load_imbalance.gpus", "", "tokens of the fullest GPU over the mean"),
        "hottest_link_use": ("hottest_link_utilization", "share", "use of the busiest link"),
        "gpus": ("gpus", "", "GPUs of the cluster"),
        "bottleneck": ("bottleneck", "text", "what limits a step"),
    },
    "serve": {
        **_latencies(),
        "goodput_per_s": ("goodput_requests_per_s", "1/s", "requests per second within the SLO"),
        "goodput_share": ("goodput_share", "share", "share of the requests within the SLO"),
        "requests_per_s": ("requests_per_s", "1/s", "finished requests per second"),
        "generated_per_s": ("generated_tokens_per_s", "1/s", "generated tokens per second"),
        "tokens_per_s_per_gpu": (
            "tokens_per_s_per_gpu",
            "1/s",
            "generated tokens per second and GPU",
        ),
        "usd_per_1m_generated": ("usd_per_1m_generated", "$", "$ per million generated tokens"),
        "usd_per_1m_tokens": ("usd_per_1m_tokens", "$", "$ per million tokens, prompts included"),
        "busy_share": ("busy_share.0", "share", "share of the time that the first group is busy"),
        "kv_peak": ("peak_kv_share", "share", "largest share of the KV cache in use"),
        "preemptions": ("preemptions", "", "requests that were put back"),
        "failed": ("failed", "", "requests that were given up"),
        "gpus": ("gpus", "", "GPUs of the cluster"),
    },
}

METRICS: dict[str, dict[str, Metric]] = {
    kind: {name: Metric(name, *entry) for name, entry in entries.items()}
    for kind, entries in _ENTRIES.items()
}
"""The useful figures of a run and of a serving run; any dotted path into a summary is one too."""


def metric_of(name: str, kind: str) -> Metric:
    """A metric by name or dotted path; InputError for a word that is neither.

    Whether a path exists is known once a run has been made (`absent`).
    """
    known = METRICS[kind]
    if name in known:
        return known[name]
    if not re.fullmatch(r"[A-Za-z]\w*(\.[^.\s]+)*", name):
        raise InputError(f"{name!r} is no metric; known: {', '.join(known)}, or a dotted path")
    return Metric(name, name, _unit_of(name), "")


def _unit_of(path: str) -> Unit:
    """The unit that a key of a summary tells in its name."""
    parts = path.split(".")
    if parts[-1].startswith(("bytes",)) or parts[-1].endswith("_bytes"):
        return "B"
    timed = any(part.endswith("_s") and not part.endswith("_per_s") for part in parts)
    return "s" if timed else ""


def absent(metric: Metric, figures: Figures, kind: str) -> str | None:
    """What to tell the user if a summary should have a metric and has not; None if all is well.

    Links are named by what a cluster is made of: one without a kind of link is no mistake.
    """
    if metric.path in figures or metric.name in METRICS[kind] or metric.path.startswith("links."):
        return None
    # Where there was nothing to measure, a whole part of a summary is null.
    head = metric.path
    while "." in head:
        head = head.rpartition(".")[0]
        if head in figures and figures[head] is None:
            return None
    hint = did_you_mean(metric.name, [*METRICS[kind], *figures])
    hint = hint or f"; known: {', '.join(METRICS[kind])}"
    return f"metric {metric.name!r}: a summary has no such figure{hint}"


def flat(summary: Mapping[str, Any]) -> dict[str, float | str | None]:
    """A summary's numbers and short texts by dotted path; lists by index, long ones left out."""
    found: dict[str, float | str | None] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                walk(inner, f"{path}.{key}" if path else str(key))
        elif isinstance(value, list | tuple):
            if len(value) <= MOST_ITEMS:
                for at, inner in enumerate(value):
                    walk(inner, f"{path}.{at}")
        elif value is None or isinstance(value, str):
            found[path] = value
        elif isinstance(value, bool):
            found[path] = float(value)
        elif isinstance(value, int | float) and math.isfinite(value):
            found[path] = value

    walk(summary, "")
    return found


class Bound(NamedTuple):
    """A constraint: a metric, a comparison and a bound in SI units; `text` as it was written."""

    metric: Metric
    sign: str
    bound: float
    text: str

    def over(self, figures: Figures) -> float | None:
        """By how much it is missed, as a share of the bound: 0 or less if it is kept; None where
        the figure is missing.
        """
        value = self.metric.number(figures)
        if value is None:
            return None
        scale = abs(self.bound) or 1.0
        gap = (value - self.bound) / scale
        return gap if self.sign.startswith("<") else -gap

    def kept(self, figures: Figures) -> bool:
        """Whether it is kept; not by a run without the figure."""
        value = self.metric.number(figures)
        return value is not None and _SIGNS[self.sign](value, self.bound)


_SIGNS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_BOUND = re.compile(r"\s*(?P<metric>[^<>=\s]+)\s*(?P<sign><=|>=|<|>)\s*(?P<bound>\S.*?)\s*")


def read_bound(text: str, kind: str) -> Bound:
    """Reads "ttft_p99 < 500 ms"; raises InputError for anything else."""
    match = _BOUND.fullmatch(text)
    if match is None:
        raise InputError(f"{text!r}: write a metric and its bound, as in 'ttft_p99 < 500 ms'")
    metric, bound = metric_of(match["metric"], kind), match["bound"]
    if metric.unit == "s":
        value = parse_quantity(bound, "time")
    elif metric.unit == "B":
        value = parse_quantity(bound, "bytes")
    else:
        value = _plain(bound, metric)
    return Bound(metric, match["sign"], value, f"{metric.name} {match['sign']} {bound}")


def _plain(text: str, metric: Metric) -> float:
    percent_given = metric.unit == "share" and text.endswith("%")
    digits = text.rstrip("%").strip() if percent_given else text.removeprefix("$").strip()
    try:
        value = float(digits)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or metric.unit == "text":
        example = "0.95 or 95 %" if metric.unit == "share" else "20"
        raise InputError(f"{text!r} is no bound of {metric.name}; write for example {example}")
    return value / 100.0 if percent_given else value
