"""Serving: CPU seconds and memory of long traces, steps per second of a large group, and what the
network model of serving does to its figures.
"""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.bench_main import _timeouts
from simulator.api import serve
from simulator.engine.serving.cluster import Cluster, cluster_of
from simulator.engine.serving.exact import Engine, ExactGroup, ask
from simulator.engine.serving.simulate import arrive
from simulator.requests.load import load_requests
from simulator.requests.requests import plain_requests
from simulator.spec.load import Inputs, load_inputs

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "reference" / "requests"
AZURE = FOLDER / "AzureLLMInferenceTrace_conv_2023.csv"
# Where the trace is not there: its rate and means, lognormal lengths.
LAW = ("requests.source=poisson:5.5", "requests.prompt=lognormal:1155:1.1",
       "requests.output=lognormal:211:0.8")  # fmt: skip
MOE128 = ("expert_slots=null", "prefetch=none", "overlap=none", "network=coflow")
EIGHT = ("h100x64-rail", "moe128", *MOE128, "parallel.ep=8")
REFERENCE = 0.5e6  # simpy timeouts per second on the machine that the goals are written for
DENSE_RATE, OWN_RATE, ONE_REPLICA_RATE = 9.0, 1.0, 2.5

# Name: system, rate scale, requests.
RUNS: dict[str, tuple[tuple[str, ...], float, int]] = {
    "10k": (EIGHT, DENSE_RATE, 10_000),
    "100k": (EIGHT, DENSE_RATE, 100_000),
    "own": ((*EIGHT, "serving.decode_run=64"), OWN_RATE, 10_000),
    "all": (("dgx-h100", "moe128", *MOE128), ONE_REPLICA_RATE, 19_366),
}


def run() -> list[tuple[str, float, str]]:
    """Figures of serving; those of speed in the time of a machine with 0.5 M timeouts per s."""
    rate = _timeouts(1)
    slow = rate / REFERENCE
    found = {name: _child(name) for name in RUNS}
    ten, hundred, own, whole = (found[name] for name in RUNS)
    trace = "Azure trace" if AZURE.is_file() else "lognormal lengths"
    layers = load_inputs(*EIGHT[:2]).workload.model.layers
    step_s, exact_s = large_group()
    figures = [
        (f"10,000 requests, {trace} x {DENSE_RATE:g}: tokens per step", ten["tokens"], ">= 64"),
        ("the same, CPU s x timeouts/s / 0.5 M", ten["cpu_s"] * slow, "<= 30"),
        ("the same, thousand steps, all evaluated", ten["steps"] / 1e3, ""),
        ("the same, MoE layers timed per step (recorded layers repeat)", float(layers), ""),
        ("the same at its own rate, decode runs of up to 64, CPU s x timeouts/s / 0.5 M",
         own["cpu_s"] * slow, "<= 60"),
        ("the same at its own rate, thousand steps (runs counted in full)", own["steps"] / 1e3, ""),
        ("100,000 requests / 10,000, CPU s", hundred["cpu_s"] / ten["cpu_s"], "<= 11"),
        ("100,000 requests / 10,000, peak RSS", hundred["peak_mib"] / ten["peak_mib"], "<= 2"),
        ("100,000 requests, peak RSS (MiB)", hundred["peak_mib"], ""),
        ("19,366 requests on one 8-GPU replica, CPU s", whole["cpu_s"], ""),
        ("the same, longest queue (a share of all requests)", whole["queue"] / 19_366, "<= 0.01"),
        ("DeepSeek-V3 EP72 decode step, coflow: steps/s over timeouts/s x 1e5",
         1e5 / step_s / rate, ">= 4"),
        ("the same, steps per s", 1.0 / step_s, ""),
        ("the same, exact network, steps per s", 1.0 / exact_s, ">= 0.2"),
    ]  # fmt: skip
    return figures + accuracy()


def accuracy() -> list[tuple[str, float, str]]:
    """The step times of serving, and what comes of them, against the exact network."""
    figures = []
    multi = ("h100x32-rail", "deepseek-v3", "transport=deepep-ll", "parallel.ep=32")
    for name, system, scale, requests, steps in (
        ("EP8", EIGHT, DENSE_RATE, 2000, 500),
        ("EP32 over 4 nodes", multi, 20.0, 300, 60),
    ):
        errors = step_errors(system, scale, requests, steps)
        middle, high = np.percentile(errors, [50, 99])
        figures += [
            (f"{name}: step time against exact network, median error (%)", 100 * middle, ""),
            (f"{name}: the same, P99 (%), {len(errors)} steps", 100 * high, ""),
        ]
    for name, error in latency_errors(EIGHT, DENSE_RATE, 300).items():
        figures.append((f"EP8: {name} against exact network, error (%)", 100 * error, "<= 2"))
    return figures


def step_errors(
    system: tuple[str, ...], scale: float, requests: int, steps: int
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """|compiled / exact - 1| of about so many steps, drawn at random from a run."""
    inputs = _inputs(system, scale, requests)
    plain = _served(inputs, None)
    count = sum(told[1] for told in plain[1])
    cluster, _ = _served(inputs, min(1.0, steps / count))
    found = [pair for group in cluster.service.groups for pair in _found(group)]
    timed, exact = np.array(found).T
    return np.asarray(np.abs(timed / exact - 1.0))


def latency_errors(system: tuple[str, ...], scale: float, requests: int) -> dict[str, float]:
    """Relative errors of TTFT and TPOT when every step takes what the exact network says."""
    inputs = _inputs(system, scale, requests)
    found = []
    for share in (None, 1.0):
        cluster, _ = _served(inputs, share, follow=True)
        ledger, of = cluster.service.ledger, cluster.service.of
        more = ledger.made > 1
        tpot_s = (ledger.last_s - ledger.first_s)[more] / (ledger.made[more] - 1)
        ttft_s = ledger.first_s - of.arrival_s
        found.append([*np.percentile(ttft_s, [50, 99]), *np.percentile(tpot_s, [50, 99])])
    names = ("TTFT P50", "TTFT P99", "TPOT P50", "TPOT P99")
    errors = np.abs(np.array(found[0]) / np.array(found[1]) - 1.0)
    return dict(zip(names, errors.tolist(), strict=True))


def large_group() -> tuple[float, float]:
    """CPU s of a decode step of DeepSeek-V3, EP72 on 9 nodes, two micro-batches of 128 tokens per
    GPU: as served (the fastest of many), and by the exact network.
    """
    tokens, context = 256, 2048
    given = [
        "build.nodes=9", "parallel.ep=72", "overlap=two-batch", "transport=deepep-ll",
        "network=coflow", "requests.source=offline", "requests.limit=1", "requests.prompt=fixed:1",
        "requests.output=fixed:1", f"serving.max_batched_tokens={tokens}",
    ]  # fmt: skip
    inputs = load_inputs("h100x64-rail", "deepseek-v3", given)
    many = np.full(72 * tokens, context)
    cluster = cluster_of(inputs, plain_requests(np.zeros(len(many)), many, many, "decode"), 0)
    group = cluster.service.groups[0]
    ledger = group.ledger
    ledger.made[:], ledger.done[:], ledger.prompt[:] = 1, context - 1, context - 1
    ledger.row[:] = np.random.default_rng(0).integers(0, len(group.routing.ids), len(many))
    ledger.rows[:] = 1
    for request in range(len(many)):
        group.enqueue(request, request % 72)
    took_s = []
    for _ in range(40):
        begun = time.process_time()
        group.start(0.0)
        took_s.append(time.process_time() - begun)
        group.finish()
    group.start(0.0)
    engine = Engine(inputs, cluster, 0, "exact")
    begun = time.process_time()
    engine.seconds(group)
    return min(took_s), time.process_time() - begun


def _inputs(system: tuple[str, ...], scale: float, requests: int) -> Inputs:
    source = [f"requests.source={AZURE}"] if AZURE.is_file() else list(LAW)
    given = ["network=coflow", *system[2:], *source, f"requests.limit={requests}"]
    return load_inputs(*system[:2], [*given, f"requests.rate_scale={scale}"])


def _served(
    inputs: Inputs, share: float | None, follow: bool = False
) -> tuple[Cluster, Iterator[tuple[int, int]]]:
    """A cluster that has served all; share: of the steps that the exact engine is asked."""
    assert inputs.workload.requests is not None
    requests = load_requests(inputs.workload.requests, 0, inputs.requests_dir)
    cluster = cluster_of(inputs, requests, 0)
    if share is not None:
        ask(inputs, cluster, "exact", share, follow)
    steps = [0] * len(cluster.service.groups)

    def count(told: Any) -> None:
        steps[told.group] += 1

    cluster.service.on_step = count
    arrive(cluster, requests, None)
    cluster.service.env.run()
    return cluster, iter(list(enumerate(steps)))


def _found(group: object) -> list[tuple[float, float]]:
    assert isinstance(group, ExactGroup)
    return group.found


def _child(name: str) -> dict[str, float]:
    """A run in a process of its own: CPU s without compiling, peak RSS, steps and their tokens."""
    begun = [
        sys.executable,
        "-m",
        __name__ if __name__ != "__main__" else "benchmarks.bench_serving",
    ]
    child = subprocess.run([*begun, name], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(child.stdout)
    return found


def _repeated(folder: Path, requests: int) -> Path:
    """The trace as often as it takes for so many requests, one copy after the other."""
    with AZURE.open(newline="") as file:
        header, *rows = csv.reader(file)
    times = [datetime.fromisoformat(row[0][:26]) for row in rows]
    span = times[-1] - times[0] + timedelta(seconds=1)
    path = folder / "repeated.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for index in range(requests):
            turn, row = divmod(index, len(rows))
            writer.writerow([f"{times[row] + turn * span:%Y-%m-%d %H:%M:%S.%f}0", *rows[row][1:]])
    return path


def _measure(name: str) -> dict[str, float]:
    system, scale, requests = RUNS[name]
    with TemporaryDirectory() as folder:
        path = _repeated(Path(folder), requests) if AZURE.is_file() else None
        source = list(LAW) if path is None else [f"requests.source={path}"]
        given = [*system[2:], *source, f"requests.rate_scale={scale}"]
        serve(*system[:2], overrides=[*given, "requests.limit=64"])  # compiles
        begun = time.process_time()
        of = serve(*system[:2], overrides=[*given, f"requests.limit={requests}"]).summary
        cpu_s = time.process_time() - begun
    status = Path("/proc/self/status").read_text()
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert peak is not None
    assert of["finished"] == requests
    return {
        "cpu_s": cpu_s,
        "peak_mib": int(peak[1]) / 1024,
        "steps": of["steps"],
        "tokens": of["mean_step_tokens"],
        "queue": of["longest_queue"],
        "e2e_p50_s": of["latency"]["e2e_s"]["p50"],
        "duration_s": of["duration_s"],
    }


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1])))
