"""`serve --repeat N`: the same service over many seeds, as means with 95 % confidence intervals.

    from simulator.studies.repeats import over_seeds, render

    print(render(over_seeds("k8s-2node", "mlperf-summarization", 0, 10, None)))

A seed draws the arrivals, the lengths, the failures and the routing. The intervals are Student's:
figures of different seeds are independent, and their means near enough to normal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

Progress = Callable[[int, int], None]

CONFIDENCE = 0.95
SHOWN_TIMES = "_s"
# Not figures of the run but what it was given, and lists by group.
LEFT_OUT = ("slo", "littles_law", "gpus", "groups", "busy_share", "work_share")


def over_seeds(
    topology: str,
    workload: str,
    seed: int,
    repeat: int,
    progress: Progress | None,
    **given: Any,
) -> list[dict[str, object]]:
    """Serve with the seeds `seed` to `seed + repeat - 1`; a row per figure of the summary.

    A row: metric (`latency.ttft_s.p99`), runs (those that have the figure), mean, and the ends of
    its 95 % confidence interval, None for a single run. `given`: as for `simulator.api.serve`;
    progress is told of runs. Raises InputError as that does.
    """
    from simulator.api import serve

    found: dict[str, list[float]] = {}
    for number in range(repeat):
        served = serve(topology, workload, seed=seed + number, **given)
        for name, value in figures(served.summary):
            found.setdefault(name, []).append(value)
        if progress is not None:
            progress(number + 1, repeat)
    return [row_of(name, values) for name, values in found.items()]


def figures(summary: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a summary by name, a dot before each inner name; those that are None not."""
    for name, value in summary.items():
        if not before and name in LEFT_OUT:
            continue
        if isinstance(value, Mapping):
            yield from figures(value, f"{before}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{before}{name}", float(value)


def row_of(name: str, values: Sequence[float]) -> dict[str, object]:
    """Mean and interval of a figure, as `over_seeds` gives them."""
    mean, half = mean_and_half(values)
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return {"metric": name, "runs": len(values), "mean": mean, "ci95_low": low, "ci95_high": high}


def mean_and_half(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean of independent figures and half the width of its 95 % interval (None for one)."""
    mean, number = float(np.mean(values)), len(values)
    if number < 2:
        return mean, None
    spread = float(np.std(values, ddof=1))
    return mean, t_quantile(number - 1) * spread / math.sqrt(number)


def t_quantile(degrees: int, confidence: float = CONFIDENCE) -> float:
    """The t within which Student's distribution has so much probability, on both sides of 0."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.5 + 0.5 * confidence))


def render(rows: Sequence[Mapping[str, object]]) -> str:
    """The rows as a table of at most 80 columns; figures that are the same in all runs last."""
    from simulator.studies.common.report import Cell, Table, table_text

    runs = max((int(str(row["runs"])) for row in rows), default=0)
    lines: list[tuple[Cell, ...]] = []
    same: list[tuple[Cell, ...]] = []
    for row in rows:
        name, mean = str(row["metric"]), row["mean"]
        low, high = row["ci95_low"], row["ci95_high"]
        assert isinstance(mean, float)
        told = name if row["runs"] == runs else f"{name} ({row['runs']} runs)"
        if low == high and low is not None:
            same.append((told, _shown(name, mean)))
            continue
        between = ("-", "-")
        if isinstance(low, float) and isinstance(high, float):
            between = (_shown(name, low), _shown(name, high))
        lines.append((told, _shown(name, mean), *between))
    parts = [f"{runs} runs, mean and 95 % confidence interval (Student's t)"]
    if lines:
        parts.append(table_text(Table("", "", ("figure", "mean", "from", "to"), lines)))
    if same:
        parts.append(table_text(Table("", "", ("the same in all runs", ""), same)))
    return "\n\n".join(parts) + "\n"


def _shown(name: str, value: float) -> str:
    from simulator.results.summary import duration, number

    last = name.rpartition(".")[2]
    timed = last.endswith(SHOWN_TIMES) and not last.endswith("_per_s")
    if timed or name.startswith(("latency.", "queue.")):
        return duration(value)
    return number(value, 4)
