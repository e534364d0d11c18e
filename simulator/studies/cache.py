"""`study cache`: eviction x prefetch in full runs of one workload, all with the same routing.

The oracles are there as the bound. Speed-up is against LRU without prefetch, on the same tokens.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path

from simulator.errors import InputError
from simulator.policies import eviction, prefetch
from simulator.spec.choices import parse_choice
from simulator.spec.load import load_inputs

Progress = Callable[[int, int], None]

BASELINE = ("lru", "none")
EVICTIONS = tuple(eviction.EVICTIONS)
PREFETCHERS = ("none", "popularity", "markov", "history", "oracle")
QUICK_EVICTIONS = ("lru", "lfu", "belady")
QUICK_PREFETCHERS = ("none", "markov", "oracle")


@dataclass(frozen=True)
class Question:
    """What is run. overrides: "key.path=value" each; routing: None for the workload's."""

    topology: str
    workload: str
    overrides: tuple[str, ...]
    routing: str | None
    seed: int
    evictions: tuple[str, ...]
    prefetchers: tuple[str, ...]

    @property
    def cases(self) -> list[tuple[str, str]]:
        """(eviction, prefetch), the one that others are compared with first."""
        grid = [(e, p) for e in self.evictions for p in self.prefetchers]
        return list(dict.fromkeys([BASELINE, *grid]))


@dataclass(frozen=True)
class Row:
    """A run. oracle: it saw the future; hit, late, miss: shares of the accesses; stall_s: of a
    GPU per step, mean; unused_bytes: prefetched and never used, per step, all GPUs; used: share of
    the prefetches (precision), foreseen: of the accesses (recall), None where nobody predicts;
    cancelled: prefetches never begun; from_peers: share of the fetches; speed_up: against LRU
    without prefetch.
    """

    eviction: str
    prefetch: str
    oracle: bool
    hit: float
    late: float
    miss: float
    stall_s: float
    unused_bytes: float
    used: float | None
    foreseen: float | None
    cancelled: int
    from_peers: float | None
    tokens_per_s: float
    speed_up: float


@dataclass(frozen=True)
class Found:
    """The rows in the order of the cases, and what the runs noted."""

    question: Question
    rows: list[Row]
    notes: list[str]


def question(
    topology: str,
    workload: str,
    overrides: Sequence[str],
    routing: str | None,
    seed: int,
    evictions: Sequence[str],
    prefetchers: Sequence[str],
) -> Question:
    """Check what is asked; InputError for unknown names and for a run without a cache."""
    for name in evictions:
        parse_choice(name, "eviction")
    for name in prefetchers:
        parse_choice(name, "prefetch")
    for given in overrides:
        key = given.partition("=")[0].strip().removeprefix("workload.")
        if key in ("eviction", "prefetch"):
            raise InputError(f"study cache: --set {given}: write --{key} {given.partition('=')[2]}")
    inputs = load_inputs(topology, workload, list(overrides), routing)
    if inputs.workload.expert_slots is None:
        raise InputError(
            f"study cache: {inputs.workload.name} keeps every expert on its GPUs; set how many it "
            "keeps, as in --set expert_slots=4"
        )
    return Question(
        topology, workload, tuple(overrides), routing, seed, tuple(evictions), tuple(prefetchers)
    )


def run_study(
    asked: Question, progress: Progress | None = None, workers: int | None = None
) -> Found:
    """Run every case, in processes (as many as there are cores; none for 1)."""
    cases = asked.cases
    done: dict[tuple[str, str], tuple[Row, list[str]]] = {}

    def keep(case: tuple[str, str], outcome: tuple[Row, list[str]]) -> None:
        done[case] = outcome
        if progress is not None:
            progress(len(done), len(cases))

    # The first run here: what has to be compiled is then compiled once, not in each process.
    keep(cases[0], _run(asked, *cases[0]))
    workers = min(workers or len(os.sched_getaffinity(0)), len(cases) - 1)
    if workers <= 1:
        for case in cases[1:]:
            keep(case, _run(asked, *case))
    else:
        with ProcessPoolExecutor(workers) as pool:
            futures = {pool.submit(_run, asked, *case): case for case in cases[1:]}
            try:
                for future in as_completed(futures):
                    keep(futures[future], future.result())
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    base = done[cases[0]][0].tokens_per_s
    rows = [_compared(done[case][0], base) for case in cases]
    notes = list(dict.fromkeys(note for case in cases for note in done[case][1]))
    return Found(asked, rows, notes)


def _compared(row: Row, base: float) -> Row:
    return Row(**{**asdict(row), "speed_up": row.tokens_per_s / base})


def _run(asked: Question, evict: str, ahead: str) -> tuple[Row, list[str]]:
    from simulator.api import simulate

    found = simulate(
        asked.topology,
        asked.workload,
        overrides=[*asked.overrides, f"eviction={evict}", f"prefetch={ahead}"],
        routing=asked.routing,
        seed=asked.seed,
        trace_steps=0,
    )
    summary = found.summary
    if not summary["cache_accesses"] or not summary["fetches"] + summary["prefetches"]:
        raise InputError(
            "study cache: no expert was fetched: expert_slots holds all that a GPU serves; lower it"
        )
    name = ahead.partition(":")[0]
    row = Row(
        eviction=evict,
        prefetch=ahead,
        oracle=evict in eviction.ORACLES or name in prefetch.ORACLES,
        hit=summary["cache_hit_rate"],
        late=summary["cache_late_hit_rate"],
        miss=summary["cache_miss_rate"],
        stall_s=summary["breakdown_s"]["fetch_stall"],
        unused_bytes=summary["wasted_prefetch_bytes"] / summary["steps"],
        used=summary["prefetch_accuracy"],
        foreseen=summary["prefetch_recall"],
        cancelled=summary["prefetches_cancelled"],
        from_peers=summary["peer_fetch_share"],
        tokens_per_s=summary["throughput_tokens_per_s"],
        speed_up=1.0,
    )
    return row, found.notes


def flat(found: Found) -> list[dict[str, object]]:
    """The rows as mappings."""
    return [asdict(row) for row in found.rows]


def render(found: Found) -> str:
    """The table, the bound, and the notes, in lines of at most 80 columns."""
    from simulator.results.summary import number
    from simulator.results.text import lines_of

    asked = found.question
    lines = lines_of(
        f"Eviction x prefetch of {asked.workload} on {asked.topology}"
        + (f", routing {Path(asked.routing).name}" if asked.routing else "")
        + "; the same tokens in every run."
    )
    lines += [
        "hit, late (under way when needed), miss: % of the accesses; stall: waiting for",
        "weights, ms per step and GPU; unused: prefetched in vain, per step; used: % of",
        "the prefetches; seen: % of the accesses predicted; x: against lru and none.",
        "",
        _table(found.rows),
        "",
    ]
    real = [row for row in found.rows if not row.oracle]
    best = max(real, key=lambda row: row.tokens_per_s)
    told = (
        f"Best without an oracle: {best.eviction} with {best.prefetch}, "
        f"{number(best.tokens_per_s, 4)} tokens/s ({best.speed_up:.2f} x)."
    )
    if len(real) < len(found.rows):
        bound = max(found.rows, key=lambda row: row.tokens_per_s)
        told += (
            f" Best of all: {bound.eviction} with {bound.prefetch}, "
            f"{number(bound.tokens_per_s, 4)} tokens/s ({bound.speed_up:.2f} x)."
        )
    lines += lines_of(told)
    lines += ["", "Notes"] if found.notes else []
    for note in found.notes:
        lines += lines_of(note, first="- ", then="  ")
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[Row]) -> str:
    """Runs in groups of one eviction each; oracles carry a star."""
    from simulator.results.summary import number, size

    head = ("eviction", "hit", "late", "miss", "stall", "unused", "used", "seen", "tok/s", "x")
    cells: list[tuple[str, ...]] = [head]
    last = None
    for row in sorted(rows, key=lambda r: [o.eviction for o in rows].index(r.eviction)):
        if row.eviction != last:
            star = "*" if row.eviction in eviction.ORACLES else ""
            cells.append((row.eviction + star, *[""] * (len(head) - 1)))
            last = row.eviction
        star = "*" if row.prefetch.partition(":")[0] in prefetch.ORACLES else ""
        cells.append(
            (
                f"  {row.prefetch}{star}",
                *(f"{100 * share:.1f}" for share in (row.hit, row.late, row.miss)),
                number(1e3 * row.stall_s),
                size(row.unused_bytes) if row.prefetch != "none" else "-",
                *("-" if v is None else f"{100 * v:.0f}" for v in (row.used, row.foreseen)),
                number(row.tokens_per_s, 4),
                f"{row.speed_up:.2f}",
            )
        )
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = []
    for row_cells in cells:
        first, *rest = row_cells
        numbers = (cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *numbers]).rstrip())
    lines.append("* sees the future, as no policy can; fetching all of it is not always best")
    return "\n".join(lines)


def refuse_existing(out: Path) -> None:
    """Raise InputError unless `out` can be made as a new directory."""
    if out.exists():
        raise InputError(f"--out {out}: is there already; name a directory that is not")
    if not out.parent.is_dir():
        raise InputError(f"--out {out}: {out.parent} is no directory")


def write(found: Found, out: Path) -> None:
    """`cache.csv`, `cache.json` and `cache.txt` in the new directory `out`."""
    refuse_existing(out)
    rows = flat(found)
    text = StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    made = {
        "cache.csv": text.getvalue(),
        "cache.json": json.dumps(rows, sort_keys=True, indent=1, allow_nan=False) + "\n",
        "cache.txt": render(found),
    }
    part = out.with_name(f".{out.name}.part")
    part.mkdir()
    for name, content in made.items():
        (part / name).write_text(content, encoding="utf-8")
    part.rename(out)
