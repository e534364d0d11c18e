"""Every run of `mlperf-summarization`: as published, swept, what the text would try, scenarios."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from simulator.studies.common.runs import Progress
from simulator.studies.mlperf.parallel import Split, splits
from simulator.studies.mlperf.runs import (
    RANDOM,
    STATIC,
    STOPS,
    Ask,
    Bench,
    Run,
    batch_for,
    calibrate,
    over_seeds,
    serve,
)
from simulator.studies.mlperf.spec import Limit, Mlperf

AWARE = "performance-aware"
OPEN = "least-loaded"  # where samples come at random
SLOW_LINK = ("topology.build.nic.latency=1 ms", "topology.build.nic.bandwidth=1 Gb/s")
QUICK_SEEDS, QUICK_REQUESTS = 8, 200
HALVINGS = 4
BEYOND = 1.3  # of what a batch can do: rates above are not run


@dataclass(frozen=True)
class Runs:
    """All runs. once: as published, jw2 stops after five; whole: without failures; alone: each node
    by itself; far: over a slow network; random: failures at random; swept: `once` with an input
    changed, by (input, value); the rest by what is varied.
    """

    bench: Bench
    once: Run
    whole: Run
    alone: tuple[Run, Run]
    far: Run
    random: list[Run]
    swept: dict[tuple[str, float], Run]
    batches: dict[tuple[str, int], tuple[Run, Run]]
    memory: Run
    balance: dict[tuple[float, str], Run]
    balance_once: dict[str, Run]
    attempts: dict[int, list[Run]]
    warm: Run
    nodes: dict[int, tuple[Run, Run]]
    parallel: dict[tuple[str, str], Split]
    single: Run
    arrivals: dict[tuple[int, float], Run]
    server: dict[tuple[str, int], float | None]


def run_everything(
    study: Mlperf, quick: bool, progress: Progress | None = None, workers: int | None = None
) -> Runs:
    """Simulate all of it; quick: fewer seeds and samples, no dtypes but the first two."""
    done = 0
    total = 12

    def step() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    bench = calibrate(study)
    given, tried = study.assumptions, study.what_ifs
    seeds = QUICK_SEEDS if quick else given.seeds
    long = Ask(repeats=2 if quick else given.long, cold=False)
    once = serve(bench, Ask(failing=STOPS))
    step()
    random = over_seeds(bench, Ask(failing=RANDOM), seeds)
    step()
    swept = _swept(bench, quick)
    step()
    dtypes = tried.dtypes[:2] if quick else tried.dtypes
    batches = {
        (dtype, batch): (
            serve(bench, Ask(batch=batch, dtype=dtype)),
            serve(bench, replace(long, batch=batch, dtype=dtype, repeats=long.repeats * batch)),
        )
        for dtype in dtypes
        for batch in tried.batches
    }
    step()
    memory = _filled(bench)
    step()
    # Samples are dealt whole: so many that the last one makes no more than 2 % of the time.
    even = replace(long, repeats=max(long.repeats, 5))
    balance = {
        (ratio, how): serve(bench, replace(_balanced(even, how), slower=(ratio,)))
        for ratio in tried.speed_ratios
        for how in (STATIC, AWARE)
    }
    balance_once = {how: serve(bench, _balanced(Ask(), how)) for how in (STATIC, AWARE)}
    step()
    attempts = {
        tries: random
        if tries == 1
        else over_seeds(bench, Ask(failing=RANDOM, attempts=tries), seeds)
        for tries in tried.attempts
    }
    step()
    nodes = {
        many: (serve(bench, Ask(nodes=many)), serve(bench, replace(long, nodes=many)))
        for many in tried.nodes
    }
    step()
    parallel = splits(study, None, workers)
    step()
    single = serve(bench, Ask(nodes=1, repeats=given.long, closed=1))
    arrivals, server = _server(study, bench, quick, step)
    return Runs(
        bench=bench,
        once=once,
        whole=serve(bench, Ask()),
        alone=(
            serve(bench, Ask(nodes=1, failing=STOPS)),
            serve(bench, Ask(nodes=1, skip=1, failing=STOPS)),
        ),
        far=serve(bench, Ask(failing=STOPS, link=SLOW_LINK)),
        random=random,
        swept=swept,
        batches=batches,
        memory=memory,
        balance=balance,
        balance_once=balance_once,
        attempts=attempts,
        warm=serve(bench, Ask(cold=False)),
        nodes=nodes,
        parallel=parallel,
        single=single,
        arrivals=arrivals,
        server=server,
    )


def _balanced(ask: Ask, how: str) -> Ask:
    """Static shares get all samples at the start; what looks at speeds seen so far gets one per
    node, and one for each that ends.
    """
    return replace(ask, dispatch=how, closed=ask.nodes if how == AWARE else 0)


def _swept(bench: Bench, quick: bool) -> dict[tuple[str, float], Run]:
    """`once` with each input at each of its values; those that cannot be are left out."""
    from simulator.errors import InputError

    found = {}
    sweeps = bench.study.sweeps
    for name, values in (("warm", sweeps.warm), ("first", sweeps.first), ("failed", sweeps.failed)):
        for value in values[:: 2 if quick else 1]:
            ask = Ask(failing=STOPS)
            if name == "warm":
                ask = replace(ask, warm=value)
            elif name == "first":
                ask = replace(ask, first=value)
            else:
                ask = replace(ask, failed=value)
            try:
                found[name, value] = serve(bench, ask)
            except InputError:
                continue  # a first sample that is faster than the warm rate allows
    return found


def _filled(bench: Bench) -> Run:
    """As many samples at once as the memory takes, each node with five times that."""
    study = bench.study
    share = study.what_ifs.memory_share
    batch = batch_for(study, share)
    repeats = -(-5 * batch // len(study.assumptions.outputs))
    return serve(bench, Ask(batch=batch, repeats=repeats, cold=False, memory=share))


def _server(
    study: Mlperf, bench: Bench, quick: bool, step: Callable[[], None]
) -> tuple[dict[tuple[int, float], Run], dict[tuple[str, int], float | None]]:
    """Poisson arrivals: each rate at batch 1 and adaptive, and the largest rate within limits."""
    tried = study.what_ifs
    count = QUICK_REQUESTS if quick else study.assumptions.server_requests
    runs: dict[tuple[int, float], Run] = {}

    def at(batch: int, rate: float) -> Run:
        if (batch, rate) not in runs:
            ask = Ask(batch=batch, rate=rate, count=count, dispatch=OPEN, cold=False)
            runs[batch, rate] = serve(bench, ask)
        return runs[batch, rate]

    server: dict[tuple[str, int], float | None] = {}
    for batch in (1, tried.adaptive):
        most = BEYOND * serve(bench, Ask(batch=batch, repeats=batch, cold=False)).delivered_per_s
        rates = tuple(rate for rate in tried.rates if rate <= most)[:: 2 if quick else 1]
        for name, limit in study.limits.items():
            server[name, batch] = _largest_rate(partial(at, batch), limit, rates)
        step()
    return {key: runs[key] for key in sorted(runs)}, server


def within(run: Run, limit: Limit) -> bool:
    """Whether the P99 of TTFT and of TPOT keep their limits."""
    return p99(ttft_s(run)) <= limit.ttft_s and p99(tpot_s(run)) <= limit.tpot_s


def ttft_s(run: Run) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Of the samples that finished, from their arrival."""
    return np.asarray((run.first_s - run.arrival_s)[run.done])


def tpot_s(run: Run) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Time per token after the first, of the samples that finished."""
    return np.asarray(((run.end_s - run.first_s) / np.maximum(run.tokens - 1, 1))[run.done])


def p99(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    """The 99th percentile."""
    return float(np.percentile(values, 99))


def _largest_rate(
    at: Callable[[float], Run], limit: Limit, rates: tuple[float, ...]
) -> float | None:
    """The largest rate that keeps the limits, between the rates of the table; None if the least
    does not, and the largest if that does.
    """
    good = [rate for rate in sorted(rates) if within(at(rate), limit)]
    if not good:
        return None
    low = good[-1]
    above = [rate for rate in sorted(rates) if rate > low]
    if not above:
        return low
    high = above[0]
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        if within(at(middle), limit):
            low = middle
        else:
            high = middle
    return low
