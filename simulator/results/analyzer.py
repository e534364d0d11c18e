"""The figures of a run, from its files alone.

Only measured steps count (`warmup` false in `steps.parquet`). Time is the sum of their durations;
a copy that reaches beyond them counts for the part that lies within. Spans are read in blocks of
whole steps, so memory does not grow with the length of the run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from simulator.errors import InputError
from simulator.results import timeline
from simulator.results.cost import Prices, cost_figures
from simulator.results.energy import EnergyRates, energy_figures
from simulator.results.tally import SPAN_COLUMNS, Steps, Tally, measured_steps, tally
from simulator.runfiles.rundir import RunDir
from simulator.runfiles.spans import (
    ACCESS_SCHEMA,
    ALLGATHER,
    ALLREDUCE,
    COMBINE,
    DEMAND,
    DISPATCH,
    LINK_SCHEMA,
    LOAD_SCHEMA,
    PREFETCH,
    REBALANCE,
    REDUCESCATTER,
    SEND,
    SPAN_SCHEMA,
    STREAMS,
)
from simulator.runfiles.tables import (
    Columns,
    Part,
    iter_spans,
    iter_table,
    joined,
    parts_of_steps,
    read_table,
)
from simulator.runfiles.values import Limits

T = TypeVar("T")

_COLUMNS = [name for name in SPAN_SCHEMA.names if name in {*SPAN_COLUMNS, *timeline.COLUMNS}]

_THREADS = 2
_AHEAD = 4
"""Results that are under way while the next block is read."""

_MOVES = {
    "dispatch and combine": (DISPATCH, COMBINE),
    "tensor-parallel collectives": (ALLREDUCE, ALLGATHER, REDUCESCATTER),
    "sends between stages": (SEND,),
}

_LIMITS = {
    "compute": "computing on the GPUs",
    "communication": "moving tokens between the GPUs ({moved})",
    "fetch_stall": "fetching weights from {fetch_from}",
    "idle": "waiting with nothing under way",
}


@dataclass(frozen=True)
class Context:
    """What the figures need and no table holds.

    gpus: how many the cluster has; experts: per MoE layer; peak_flops_per_s: of one GPU at the
    dtype of the model; fetch_from: words for where expert weights come from; energy, prices: None
    leaves these figures out; tokens_per_row: tokens gained per row of a step, below 1 where some
    rows are guesses (speculative decoding).
    """

    gpus: int
    experts: int
    peak_flops_per_s: float
    fetch_from: str = "host memory over PCIe"
    energy: EnergyRates | None = None
    prices: Prices | None = None
    tokens_per_row: float = 1.0


def analyze(run_dir: Path, context: Context) -> dict[str, object]:
    """All figures of the run in `run_dir`; fractions are 0..1, what does not apply is None.

    Needs the five tables, not `result.json`. What each key means stands in the functions below and
    in `simulator.results.timeline`. overlap_achieved: of the time of all comm spans, the share in
    which the same GPU was computing. mfu: FLOPs of compute spans over what the GPUs could have
    done in the time. steps_without_spans: measured steps that count as idle because they have no
    compute, comm or send span; only there if there are any. Errors: InputError naming the file if
    one is missing, damaged or contradicts another, or holds a value that no run writes; InputError
    if no step was measured.
    """
    files = RunDir(run_dir)
    steps = measured_steps(files.steps)
    totals, times, seen = _read(files.spans, steps, context)
    empty_s = float(np.sum((steps.end_s - steps.start_s)[~seen]))
    times.breakdown_s[:, -1] += empty_s
    times.path_s[-1] += empty_s

    time_s = float(np.sum(steps.end_s - steps.start_s))
    links = read_table(files.links, LINK_SCHEMA)
    loads = read_table(files.loads, LOAD_SCHEMA)
    return {
        **_speed(steps, time_s, context),
        **_breakdown(times.breakdown_s, len(steps.step), time_s),
        **_bottleneck(times.path_s, time_s, context, totals),
        **_streams(totals, time_s),
        "overlap_achieved": times.overlapped_s / times.comm_s if times.comm_s else None,
        **_links(links, time_s),
        **_cache(files.accesses, steps),
        **_traffic(totals),
        "load_imbalance": _load_imbalance(loads, context),
        "gpu_load": _gpu_load(loads, context),
        "mfu": totals.flops / (context.peak_flops_per_s * context.gpus * time_s),
        **({} if seen.all() else {"steps_without_spans": int(np.count_nonzero(~seen))}),
        **_energy_and_cost(totals, links, steps, time_s, context),
    }


def analyze_dir(run_dir: Path) -> dict[str, object]:
    """The figures of a finished run: `analyze` with the `context` that `result.json` holds.

    Errors: as `analyze`, and InputError if `result.json` is missing, no JSON or has no context.
    """
    files = RunDir(run_dir)
    result = files.load_result()
    try:
        context = _context(result["context"])
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{files.result}: 'context' is missing or not of this version") from error
    return analyze(run_dir, context)


def _context(given: dict[str, Any]) -> Context:
    """The context as `result.json` holds it: mappings in place of the dataclasses."""
    energy, prices = given.get("energy"), given.get("prices")
    nested = {
        "energy": None if energy is None else EnergyRates(**energy),
        "prices": None if prices is None else Prices(**prices),
    }
    return Context(**{**given, **nested})


class _InOrder:
    """Work for a few threads, whose results are taken in the order in which it was given.

    The compiled passes let other threads run: while two blocks are worked on the next one is read.
    """

    def __init__(self, pool: Executor) -> None:
        self._pool = pool
        self._waiting: deque[tuple[Future[Any], Callable[[Any], None]]] = deque()

    def give(self, take: Callable[[T], None], work: Callable[..., T], *given: object) -> None:
        """Let `take` have what `work` makes of `given`; waits if too much is under way."""
        self._waiting.append((self._pool.submit(work, *given), take))
        self.finish(_AHEAD)

    def finish(self, but: int = 0) -> None:
        """Wait until only `but` results are still to be taken."""
        while len(self._waiting) > but:
            future, take = self._waiting.popleft()
            take(future.result())


def _read(
    path: Path, steps: Steps, context: Context
) -> tuple[Tally, timeline.BlockTimes, npt.NDArray[np.bool_]]:
    """One pass over the spans at `path`: their sums, the times of the steps, which have spans."""
    from simulator.results.timeline_kernels import Tables

    gpus, rates = context.gpus, context.energy
    total, times = Tally(gpus, rates), timeline.BlockTimes.none(gpus)
    limits = Limits(gpus, steps.last)
    seen = np.zeros(len(steps.step), dtype=bool)
    rooms: SimpleQueue[Tables] = SimpleQueue()
    for _ in range(_THREADS):
        rooms.put(Tables())

    def accounted(parts: list[Part]) -> timeline.BlockTimes:
        tables = rooms.get()
        try:
            block = joined(parts, tables.room)
            keep, index = _lookup(steps.step, block["step"])
            if not np.all(keep):
                block, index = {name: values[keep] for name, values in block.items()}, index[keep]
            if not len(index):
                return timeline.BlockTimes.none(gpus)
            here = index[np.append(True, index[1:] != index[:-1])]
            seen[here] = True
            of = (steps.step[here], steps.start_s[here], steps.end_s[here])
            return timeline.analyze_steps(block, *of, gpus, path, tables)
        finally:
            rooms.put(tables)

    with ThreadPoolExecutor(_THREADS) as pool:
        work = _InOrder(pool)

        def counted() -> Iterator[Columns]:
            for block in iter_spans(path, _COLUMNS, limits=limits):
                work.give(total.add, tally, block, steps, gpus, rates)
                yield {name: block[name] for name in timeline.COLUMNS}

        for parts in parts_of_steps(counted(), path):
            work.give(times.add, accounted, parts)
        work.finish()
    return total, times, seen


def _lookup(
    keys: npt.NDArray[np.int64], values: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Which of `values` [n] are in the sorted `keys`, and at which index (arrays [n])."""
    if keys[-1] - keys[0] == len(keys) - 1:
        # Without gaps, as most runs have them, the place is the distance from the first.
        place = values.astype(np.int64) - keys[0]
        index = np.clip(place, 0, len(keys) - 1)
        return place == index, index
    index = np.minimum(np.searchsorted(keys, values), len(keys) - 1)
    return keys[index] == values, index


def _gained(steps: Steps, context: Context) -> float:
    """Tokens gained in the measured steps."""
    rows = int(np.sum(steps.tokens))
    return rows if context.tokens_per_row == 1.0 else rows * context.tokens_per_row


def _speed(steps: Steps, time_s: float, context: Context) -> dict[str, object]:
    """Tokens per second over the measured steps, and how long a step takes."""
    tokens = _gained(steps, context)
    length_s = steps.end_s - steps.start_s
    return {
        "gpus": context.gpus,
        "steps": len(steps.step),
        "tokens": tokens,
        "simulated_time_s": time_s,
        "throughput_tokens_per_s": tokens / time_s,
        "throughput_tokens_per_s_per_gpu": tokens / time_s / context.gpus,
        "step_time_s": {
            "mean": float(np.mean(length_s)),
            "p50": float(np.median(length_s)),
            "min": float(np.min(length_s)),
            "max": float(np.max(length_s)),
        },
    }


def _breakdown(seconds: npt.NDArray[np.float64], steps: int, time_s: float) -> dict[str, object]:
    """Mean over GPUs [gpus, parts]: fractions of the time, and seconds per step."""
    mean_s = np.mean(seconds, axis=0)
    return {
        "breakdown": dict(zip(timeline.PARTS, (mean_s / time_s).tolist(), strict=True)),
        "breakdown_s": dict(zip(timeline.PARTS, (mean_s / steps).tolist(), strict=True)),
    }


def _bottleneck(
    path_s: npt.NDArray[np.float64], time_s: float, context: Context, totals: Tally
) -> dict[str, object]:
    """What a step's critical path consists of, the largest part by name, and that in words."""
    fractions = dict(zip(timeline.PATH_PARTS, (path_s / time_s).tolist(), strict=True))
    name = max(fractions, key=lambda part: fractions[part])
    moved = [what for what, kinds in _MOVES.items() if totals.bytes_by_kind[list(kinds)].any()]
    how = ", ".join(moved or list(_MOVES)[:1])
    words = _LIMITS[name].format(fetch_from=context.fetch_from, moved=how)
    return {
        "critical_path": fractions,
        "bottleneck": name,
        "bottleneck_sentence": f"{words}: {100 * fractions[name]:.0f} % of a step",
    }


def _streams(totals: Tally, time_s: float) -> dict[str, object]:
    """Busy fraction of each stream: mean over GPUs, and of the busiest GPU."""
    figures: dict[str, object] = {}
    for name, busy_s in zip(STREAMS, totals.busy_s, strict=True):
        figures[f"{name}_utilization"] = float(np.mean(busy_s)) / time_s
        figures[f"{name}_max_utilization"] = float(np.max(busy_s)) / time_s
    return figures


def _links(links: Columns, time_s: float) -> dict[str, object]:
    """Bytes over bandwidth and time: by kind of link, and the busiest link."""
    if not len(links["link"]):
        return {"links": {}, "hottest_link": None, "hottest_link_utilization": None}
    used = links["bytes"] / (links["bandwidth_bytes_per_s"] * time_s)
    hottest = int(np.argmax(used))
    kinds: dict[str, object] = {}
    for kind in sorted(set(links["kind"])):
        mine = links["kind"] == kind
        kinds[kind] = {
            "links": int(np.count_nonzero(mine)),
            "bytes": float(np.sum(links["bytes"][mine])),
            "mean_utilization": float(np.mean(used[mine])),
            "max_utilization": float(np.max(used[mine])),
        }
    return {
        "links": kinds,
        "hottest_link": str(links["link"][hottest]),
        "hottest_link_utilization": float(used[hottest]),
    }


def _cache(path: Path, steps: Steps) -> dict[str, object]:
    """Accesses of measured steps: resident (hit), in flight (late hit) or not asked for (miss).

    prefetch_recall: of all of them, those whose expert had been predicted, resident or not (None
    where nothing was); prefetches_cancelled: asked for ahead and never begun.
    """
    names = {"hit": "cache_hit_rate", "late": "cache_late_hit_rate", "miss": "cache_miss_rate"}
    counts = dict.fromkeys([*names, "foreseen", "cancelled"], 0)
    for block in iter_table(path, ACCESS_SCHEMA):
        measured, _ = _lookup(steps.step, block["step"])
        for name in counts:
            counts[name] += int(np.sum(block[name][measured]))
    total = sum(counts[name] for name in names)
    rates = {rate: counts[name] / total if total else None for name, rate in names.items()}
    foreseen, cancelled = counts["foreseen"], counts["cancelled"]
    recall = foreseen / total if total and foreseen + cancelled else None
    return {
        "cache_accesses": total,
        **rates,
        "prefetch_recall": recall,
        "prefetches_cancelled": cancelled,
    }


def _traffic(totals: Tally) -> dict[str, object]:
    """Bytes by purpose (all measured steps, all GPUs), what of the prefetches was of use, and which
    part of the fetches came from another GPU.
    """
    return {
        "dispatch_bytes": float(totals.bytes_by_kind[DISPATCH]),
        "combine_bytes": float(totals.bytes_by_kind[COMBINE]),
        "demand_bytes": float(totals.bytes_by_kind[DEMAND]),
        "prefetch_bytes": float(totals.bytes_by_kind[PREFETCH]),
        "allreduce_bytes": float(totals.bytes_by_kind[ALLREDUCE]),
        "allgather_bytes": float(totals.bytes_by_kind[ALLGATHER]),
        "reducescatter_bytes": float(totals.bytes_by_kind[REDUCESCATTER]),
        "send_bytes": float(totals.bytes_by_kind[SEND]),
        "rebalance_bytes": float(totals.bytes_by_kind[REBALANCE]),
        "wasted_prefetch_bytes": totals.wasted_bytes,
        "prefetches": totals.prefetches,
        "fetches": totals.fetches,
        "peer_fetch_share": totals.lent / totals.fetches if totals.fetches else None,
        "prefetch_accuracy": (
            totals.prefetches_used / totals.prefetches if totals.prefetches else None
        ),
    }


def _energy_and_cost(
    totals: Tally, links: Columns, steps: Steps, time_s: float, context: Context
) -> dict[str, object]:
    """`energy` and `cost`, each None if the context holds no figures for it."""
    tokens = _gained(steps, context)
    energy: dict[str, Any] | None = None
    cost: dict[str, Any] | None = None
    if totals.energy is not None and context.energy is not None:
        count = len(steps.step)
        energy = energy_figures(totals.energy, context.energy, links, time_s, count, tokens)
    if context.prices is not None:
        power_w = None if energy is None else energy["power_w"]
        cost = cost_figures(context.prices, context.gpus, tokens / time_s, power_w)
    return {"energy": energy, "cost": cost}


def _load_imbalance(loads: Columns, context: Context) -> dict[str, object]:
    """Largest over mean rows, mean over the MoE layers: among GPUs, and among experts."""
    return {
        "gpus": _max_over_mean(loads, "gpu", context.gpus),
        "experts": _max_over_mean(loads, "expert", context.experts),
    }


def _gpu_load(loads: Columns, context: Context) -> dict[str, object]:
    """Rows of the busiest GPU over the mean, layer by layer: the numbers of the layers, the ratio
    in each, and `balancedness`, the mean over layers of mean over busiest (1 is even).
    """
    layers, ratio = _by_layer(loads, "gpu", context.gpus)
    return {
        "layers": layers.tolist(),
        "max_over_mean": ratio.tolist(),
        "balancedness": float(np.mean(1.0 / ratio)) if len(ratio) else None,
    }


def _max_over_mean(loads: Columns, by: str, count: int) -> float | None:
    """Mean over layers of the largest over the mean of `count` sums; None without any rows."""
    _, ratio = _by_layer(loads, by, count)
    return float(np.mean(ratio)) if len(ratio) else None


def _by_layer(
    loads: Columns, by: str, count: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Layers that have rows, and the largest over the mean of `count` sums in each, [layers]."""
    if not len(loads["layer"]):
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    if int(loads[by].max()) >= count:
        raise InputError(f"loads.parquet: {by} {int(loads[by].max())}, but the run had {count}")
    layers, layer = np.unique(loads["layer"], return_inverse=True)
    sums = np.bincount(
        layer * count + loads[by], weights=loads["rows"], minlength=len(layers) * count
    ).reshape(len(layers), count)
    some = sums.sum(axis=1) > 0
    sums = sums[some]
    return layers[some].astype(np.int64), sums.max(axis=1) / sums.mean(axis=1)
