"""What faults did to a serving run: availability, requests lost, tokens/s before, during, after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.runfiles.incidents import read_incidents
from simulator.runfiles.serving import REQUEST_SCHEMA, STEP_SCHEMA
from simulator.runfiles.tables import Columns, iter_table, read_table

Floats = NDArray[np.float64]
Row = dict[str, Any]

MOST_WINDOWS = 20
"""Faults whose windows are told; the first ones."""


class Spell(NamedTuple):
    """A fault from its begin to its end (None: for good)."""

    fault: int
    what: str
    name: str
    do: str
    begin_s: float
    end_s: float | None

    @property
    def label(self) -> str:
        """What happened, in words."""
        words = {"down": "down", "degrade": "degraded", "slow": "slow"}
        return f"{self.name} {words[self.do]}"


def spells_of(rows: Sequence[Row]) -> list[Spell]:
    """Every fault that began, by time."""
    found: list[Spell] = []
    lasting: dict[int, list[int]] = {}
    for row in rows:
        if row["kind"] == "begin" and row["do"] != "up":
            lasting.setdefault(row["fault"], []).append(len(found))
            kept = (row["fault"], row["what"], row["name"], row["do"])
            found.append(Spell(*kept, row["time_s"], None))
        elif row["kind"] == "end":
            at = lasting[row["fault"]].pop(0)
            found[at] = found[at]._replace(end_s=row["time_s"])
    return found


def fault_figures(folder: Path, gpus: int, groups: int, lost: int, warmup_s: float = 0.0) -> Row:
    """Figures of a run with faults.

    `availability`: share of the time from 0 to the last end of a request in which groups were up
    (mean over groups); `availability_gpus`: in which GPUs took part in a group that was up. A
    window of a fault ends where anything else begins or ends, and with the last arrival (later the
    cluster runs empty), or the last end of a request where faults begin after it: `before` it,
    `during` it, `after` its end; generated tokens/s, None where there is no such time. The warm-up
    is in none.
    """
    rows = read_incidents(folder)
    table = read_table(folder / "requests.parquet", REQUEST_SCHEMA)
    end_s = float(table["end_s"].max())
    spells = spells_of(rows)
    last_s = float(table["arrival_s"].max())
    if any(spell.begin_s >= last_s for spell in spells):
        last_s = end_s
    made = Made(folder, "generated", firsts_s=first_tokens(table))
    cuts = {
        warmup_s,
        last_s,
        *(time for spell in spells for time in (spell.begin_s, spell.end_s or 0)),
    }
    edges = sorted(time for time in cuts if warmup_s <= time <= last_s)
    windows = []
    for spell in spells[:MOST_WINDOWS]:
        windows.append(
            {
                "what": spell.what,
                "name": spell.name,
                "do": spell.do,
                "begin_s": spell.begin_s,
                "end_s": spell.end_s,
                "before": made.rate(*_around(edges, spell.begin_s, before=True)),
                "during": made.rate(*_around(edges, spell.begin_s, before=False)),
                "after": None
                if spell.end_s is None
                else made.rate(*_around(edges, spell.end_s, before=False)),
            }
        )
    group_s, gpu_s = _up_seconds(rows, groups, gpus // groups, end_s)
    whole_s = end_s if end_s > 0.0 else 1.0
    return {
        "faults": len(spells),
        "lost_requests": lost,
        "availability": group_s / (groups * whole_s),
        "availability_gpus": gpu_s / (gpus * whole_s),
        "fault_windows": windows,
    }


def _around(edges: Sequence[float], time_s: float, before: bool) -> tuple[float, float]:
    """The time between a cut and the one before or after it."""
    near = [edge for edge in edges if (edge < time_s if before else edge > time_s)]
    if not near:
        return time_s, time_s
    return (near[-1], time_s) if before else (time_s, near[0])


def _up_seconds(rows: Sequence[Row], groups: int, ranks: int, end_s: float) -> tuple[float, float]:
    """Seconds of groups, and of GPUs, in which they were up."""
    since, there = [0.0] * groups, [ranks] * groups
    group_s = gpu_s = 0.0
    changes = [(row["time_s"], row["group"], row["gpus"]) for row in rows if row["kind"] == "group"]
    changes += [(end_s, group, 0) for group in range(groups)]
    for time_s, group, gpus in changes:
        took_s = max(min(time_s, end_s) - since[group], 0.0)
        group_s += took_s * (there[group] > 0)
        gpu_s += took_s * there[group]
        since[group], there[group] = min(time_s, end_s), gpus
    return group_s, gpu_s


def first_tokens(requests: Columns) -> Floats:
    """When each request had its first token, float64 [those that had one], sorted: the pass over
    the prompt makes it, so that it is not among those that a step generates.
    """
    first_s: Floats = requests["first_s"]
    return np.sort(first_s[first_s >= 0.0])


class Made:
    """Tokens of a column of the steps up to any time: those of a step come evenly over it."""

    def __init__(self, folder: Path, *columns: str, firsts_s: Floats | None = None) -> None:
        """columns: of `steps.parquet`, summed; firsts_s: of tokens that come beside, sorted."""
        self._firsts_s = np.zeros(0) if firsts_s is None else firsts_s
        steps = steps_of(folder, columns)
        took_s = steps["end_s"] - steps["start_s"]
        there = took_s > 0.0
        total = sum(steps[name][there].astype(np.float64) for name in columns)
        rate = total / took_s[there]
        time_s = np.concatenate([steps["start_s"][there], steps["end_s"][there]])
        change = np.concatenate([rate, -rate])
        order = np.argsort(time_s, kind="stable")
        self._time_s = np.append(time_s[order], np.inf)
        now = np.cumsum(change[order])
        grown = now[:-1] * np.diff(time_s[order]) if len(now) else np.zeros(0)
        self._made = np.concatenate([[0.0], np.cumsum(grown)])[: max(len(now), 1)]

    def up_to(self, time_s: Floats) -> Floats:
        """Tokens made until each time."""
        made = np.searchsorted(self._firsts_s, time_s, side="right").astype(np.float64)
        if len(self._time_s) > 1:
            made += np.interp(time_s, self._time_s[:-1], self._made)
        return made

    def rate(self, start_s: float, end_s: float) -> float | None:
        """Tokens/s between two times; None if there is no time between them."""
        if end_s <= start_s:
            return None
        first, last = self.up_to(np.array([start_s, end_s])).tolist()
        return max(float(last - first), 0.0) / (end_s - start_s)


def steps_of(folder: Path, columns: Sequence[str]) -> Columns:
    """Columns of the steps, and when they began and ended."""
    wanted = ("start_s", "end_s", *columns)
    blocks = list(iter_table(folder / "steps.parquet", STEP_SCHEMA))
    return {
        name: np.concatenate([np.zeros(0), *(block[name] for block in blocks)]) for name in wanted
    }
