"""The what-ifs, scenarios and findings of `mlperf-summarization`, as tables and sentences."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from simulator.results.summary import duration, number, percent
from simulator.studies.common.claims import read_published
from simulator.studies.common.report import Cell, Chart, Table, Value
from simulator.studies.mlperf.figures import (
    LIMIT,
    balance_gains,
    batch_gains,
    node_gains,
    service_figures,
)
from simulator.studies.mlperf.runs import STATIC, Run
from simulator.studies.mlperf.spec import Mlperf
from simulator.studies.mlperf.what_ifs import AWARE, Runs, p99, tpot_s, ttft_s
from simulator.studies.repeats import mean_and_half


def what_if_tables(study: Mlperf, runs: Runs) -> list[Table]:
    """What the text would try, each as a simulation."""
    return [
        _summary(study, runs),
        _batches(runs),
        _balance(runs),
        _retries(runs),
        _parallel(runs),
        _arrivals(study, runs),
        _scenarios(study, runs),
    ]


def _summary(study: Mlperf, runs: Runs) -> Table:
    dtype = next(iter(runs.batches))[0]
    rows: list[tuple[Cell, ...]] = []
    once, often = (batch_gains(runs, dtype, at) for at in (True, False))
    expected = {4: "2-4 x", 8: "2-4 x"}
    for batch in [batch for of, batch in runs.batches if of == dtype and batch > 1]:
        pair = [_times(gains[f"batch_gain@{batch}"]) for gains in (once, often)]
        rows.append((f"batch {batch}", expected.get(batch, "-"), *pair))
    filled, base = runs.memory, runs.batches[dtype, 1][1]
    used = filled.used_bytes / runs.once.used_bytes - 1.0
    share = study.what_ifs.memory_share
    told = f"{share:.0%} of memory (batch {filled.batch}): samples/s"
    rows.append((told, "-", "-", _times(filled.delivered_per_s / base.delivered_per_s)))
    rows.append(("  memory used at most", "+50-100 %", "-", _more(used)))
    of_nodes = runs.balance_once
    gained = of_nodes[AWARE].delivered_per_s / of_nodes[STATIC].delivered_per_s - 1.0
    often_gained = balance_gains(runs)[1.0]
    rows.append(("performance-aware balancing", "+10-15 %", _more(gained), _more(often_gained)))
    warm, cold = runs.warm, runs.whole
    rows.append(
        ("warm-up or pre-loading: samples/s", "-",
         _more(warm.delivered_per_s / cold.delivered_per_s - 1.0), "+0.0 %")
    )  # fmt: skip
    saved = [run.latency_s(0).mean() for run in (warm, cold)]
    rows.append(("  mean latency of jw2", "-", _more(float(saved[0] / saved[1]) - 1.0), "-"))
    nodes = [node_gains(runs, at) for at in (True, False)]
    for many in [many for many in runs.nodes if many > 2]:
        rows.append((f"{many} nodes", "linear", *(_times(gains[many]) for gains in nodes)))
    for other in [of for of, batch in runs.batches if batch == 1 and of != dtype]:
        pair = [
            _times(runs.batches[other, 1][at].delivered_per_s
                   / runs.batches[dtype, 1][at].delivered_per_s)
            for at in (0, 1)
        ]  # fmt: skip
        rows.append((f"{other.upper()}, batch 1", "-", *pair))
    said = (
        "What-ifs, samples/s delivered against batch 1, static shares, no failures. as run: ten "
        "samples per node with the cold start; often: many, warm"
    )
    return Table("what-ifs", said, ("what if", "expected", "as run", "often"), rows)


def _times(gain: Value) -> str:
    return "-" if gain is None else f"{float(gain):.2f} x"


def _more(share: float) -> str:
    return f"{100.0 * (share or 0.0):+.1f} %"


def _batches(runs: Runs) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (
            dtype.upper(), batch, float(once.delivered_per_s), float(often.delivered_per_s),
            1e3 * float(once.latency_s().mean()), 1e3 * float(often.latency_s().mean()),
        )
        for (dtype, batch), (once, often) in runs.batches.items()
    ]  # fmt: skip
    said = "Batches, samples/s and mean latency in ms of both nodes, failures off"
    columns = ("weights", "batch", "as run/s", "often/s", "as run, ms", "often, ms")
    return Table("batches", said, columns, rows)


def _balance(runs: Runs) -> Table:
    gains = balance_gains(runs)
    rows: list[tuple[Cell, ...]] = [
        (
            f"{ratio:g}",
            *(runs.balance[ratio, how].delivered_per_s for how in (STATIC, AWARE)),
            100.0 * gain, 50.0 * (ratio - 1.0),
        )
        for ratio, gain in gains.items()
    ]  # fmt: skip
    said = (
        "Balancing, samples/s by how many times slower jw2 is (the nodes as measured: 1). The form "
        "is (ratio - 1) / 2: static shares end with the slower node, else both work to the end"
    )
    columns = ("slower", "static", "performance-aware", "gain, %", "form, %")
    return Table("balance", said, columns, rows)


def _retries(runs: Runs) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for tries, of in runs.attempts.items():
        served, half = mean_and_half([100.0 * float(run.done.mean()) for run in of])
        rate, off = mean_and_half([run.delivered_per_s for run in of])
        made = float(np.mean([run.attempts for run in of]))
        rows.append(
            (tries, f"{served:.1f} ± {half or 0:.1f}", f"{rate:.2f} ± {off or 0:.2f}", made)
        )
    said = (
        "Retries, failures at random on jw2, shares static: samples served, samples/s delivered "
        "until all is done, attempts for 20 samples"
    )
    columns = ("attempts", "served, %", "samples/s", "attempts made")
    return Table("retries", said, columns, rows)


def _parallel(runs: Runs) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (
            link, plan, 1e3 * split.prefill_s, 1e3 * split.decode_s, 1e3 * split.latency_s,
            split.samples_per_s, split.bytes_per_gpu / 2.0**30,
        )
        for (link, plan), split in runs.parallel.items()
    ]  # fmt: skip
    said = (
        "Two samples on two nodes as replicas, tensor or pipeline parallel: from steps of the plan "
        "engine, not from serving (prefill step + tokens after the first x decode step); GPUs at "
        "the simulator's own speed, so replicas are faster here than the nodes as measured"
    )
    columns = ("network", "plan", "prefill", "decode", "sample, ms", "per s", "GiB")
    return Table("parallel", said, columns, rows)


def _arrivals(study: Mlperf, runs: Runs) -> Table:
    adaptive = study.what_ifs.adaptive
    rows: list[tuple[Cell, ...]] = []
    for rate in sorted({rate for _, rate in runs.arrivals} & {*study.what_ifs.rates}):
        pair = [runs.arrivals.get((batch, rate)) for batch in (1, adaptive)]
        rows.append((f"{rate:g}", *_waits(pair[0]), *_waits(pair[1])))
    said = (
        "Poisson arrivals on both warm nodes, the one with fewer samples takes the next: P99 of "
        f"TTFT and TPOT, mean latency; batch 1 against up to {adaptive} (adaptive: a sample joins "
        "at the next step). Above its capacity a row grows with the length of the run"
    )
    columns = ("samples/s", "TTFT, 1", "TPOT", "latency", f"TTFT, {adaptive}", "TPOT", "latency")
    return Table("arrivals", said, columns, rows)


def _waits(run: Run | None) -> tuple[str, str, str]:
    if run is None:
        return ("-", "-", "-")
    latency = float((run.end_s - run.arrival_s)[run.done].mean())
    return duration(p99(ttft_s(run))), duration(p99(tpot_s(run))), duration(latency)


def _scenarios(study: Mlperf, runs: Runs) -> Table:
    adaptive = study.what_ifs.adaptive
    dtype = next(iter(runs.batches))[0]
    single = runs.single.latency_s()
    rows: list[tuple[Cell, ...]] = [
        ("SingleStream (one node)", "P90 latency", duration(float(np.percentile(single, 90))), "-"),
    ]
    offline = [runs.batches.get((dtype, batch)) for batch in (1, adaptive)]
    at_once = ["-" if pair is None else number(pair[1].delivered_per_s) for pair in offline]
    rows.append(("Offline", "samples/s", *at_once))
    for name, limit in study.limits.items():
        told = f"P99 {limit.ttft_s * 1e3:g}/{limit.tpot_s * 1e3:g} ms: samples/s"
        least = min(study.what_ifs.rates)
        found = [runs.server.get((name, of)) for of in (1, adaptive)]
        shown = [f"below {least:g}" if rate is None else number(rate) for rate in found]
        called = "Server" if name == LIMIT else f"Server ({name})"
        rows.append((called, told, *shown))
    said = f"MLPerf scenarios of this service, warm but for SingleStream; batch 1 and {adaptive}"
    return Table("scenarios", said, ("scenario", "metric", "batch 1", f"batch {adaptive}"), rows)


def charts(study: Mlperf, runs: Runs) -> list[Chart]:
    """Throughput by batch, and P99 of the time to the first token by rate."""
    by_batch: dict[str, list[tuple[float, float]]] = {}
    for (dtype, batch), (_, often) in runs.batches.items():
        by_batch.setdefault(dtype.upper(), []).append((float(batch), often.delivered_per_s))
    expected = read_published("2-4")
    base = by_batch[next(iter(by_batch))][0][1]
    by_batch["published"] = [(4.0, expected.low * base), (8.0, expected.high * base)]
    by_rate: dict[str, list[tuple[float, float]]] = {}
    for (batch, rate), run in runs.arrivals.items():
        by_rate.setdefault(f"batch {batch}", []).append((rate, p99(ttft_s(run))))
    return [
        Chart("batches", "Samples/s of two nodes by batch", "batch", "samples/s", by_batch),
        Chart("arrivals", "P99 of TTFT by rate", "samples/s", "P99 of TTFT (s)", by_rate),
    ]


def findings(study: Mlperf, runs: Runs) -> Iterable[str]:
    """What the runs say, in sentences."""
    once = service_figures(runs.once)
    warm = [runs.warm.latency_s(node).mean() for node in (0, 1)]
    value = {name: read_published(text).low for name, text in study.printed.items()}
    after = [
        (count * value[f"latency_{node}"] - value[f"high_{node}"]) / (count - 1.0)
        for node, count in (("jw2", value["completed"]), ("jw3", value["samples"]))
    ]
    yield (
        f"The printed means without the first samples: {after[0]:.0f} ms on jw2, {after[1]:.0f} ms "
        f"on jw3. What is between the nodes is the cold start, and that one mean is over "
        f"{value['completed']:.0f} samples, the other over {value['samples']:.0f}."
    )
    yield (
        f"Speed factors that give the warm rates: "
        f"{', '.join(f'{runs.bench.factor(node):.3f}' for node in study.inputs.each)} of the "
        f"simulated GPU's time ({runs.bench.tokens_per_s:.1f} token/s at batch 1). Without a cold "
        f"start the nodes differ by {percent(abs(float(warm[0] / warm[1]) - 1.0))} in latency."
    )
    for plan in ("TP 2", "PP 2"):
        faster = [
            link
            for link, of in runs.parallel
            if of == plan
            and runs.parallel[link, plan].latency_s
            < 0.99 * runs.parallel[link, "replicas"].latency_s
        ]
        where = " and ".join(faster) if faster else "none of the networks tried"
        yield f"{plan} answers a sample at least 1 % faster than replicas over: {where}."
    lost = 1.0 - runs.once.delivered_per_s / runs.whole.delivered_per_s
    yield (
        f"Delivered: {runs.once.delivered_per_s:.2f} samples/s with jw2 stopping after "
        f"{int((runs.once.done & (runs.once.node == 0)).sum())}, {runs.whole.delivered_per_s:.2f} "
        f"if none fail ({percent(lost)} less); {once['rate_both']:.2f} is the sum of 1 / latency."
    )
