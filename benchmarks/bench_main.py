"""The main job: units simulated per second, where the time goes, and the whole process."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator

import numpy as np
import simpy

from simulator.engine import core, memory_kernel
from simulator.engine.simulate import simulate
from simulator.runfiles.rundir import open_run
from simulator.runfiles.tables import iter_spans
from simulator.spec.load import load_inputs

LANES = 32  # micro-batches x GPUs of the main job: as many simpy processes as it has strands
STEPS = 96  # enough for decisions in compiled code (`simulator.engine.memories.WORTH`)
ROUNDS = 5


def run() -> list[tuple[str, float, str]]:
    """Figures of the main job (exact network), each a ratio within this process or this call."""
    units_per_s, solver_share = _units("exact")
    coflow_per_s, _ = _units("coflow")
    alone, many = _timeouts(1), _timeouts(LANES)
    whole = _whole_process()
    _check_spans()
    return [
        (
            "main job, exact network: units / s over timeouts / s, 1 process",
            units_per_s / alone,
            ">= 0.01",
        ),
        (f"main job, exact network: the same, {LANES} processes", units_per_s / many, ">= 0.01"),
        (
            "main job, coflow: units / s over timeouts / s, 1 process",
            coflow_per_s / alone,
            ">= 0.12",
        ),
        ("main job, exact: thousand units simulated per s of CPU", units_per_s / 1e3, ""),
        ("main job, exact: share of CPU in the compiled core and memories", solver_share, ""),
        ("main job, whole process / importing its libraries", whole, "<= 3"),
    ]


def _units(network: str) -> tuple[float, float]:
    """(Layer x GPU x micro-batch) units per second of CPU, and the compiled core's share of it."""
    inputs = load_inputs(
        "nvswitch16",
        "moe128",
        ["traffic.warmup_steps=0", f"traffic.steps={STEPS}", f"network={network}"],
    )
    units = STEPS * inputs.workload.model.layers * 16 * 2
    inside = 0.0

    def timed(function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            nonlocal inside
            begun = time.process_time()
            answer = function(*arguments)
            inside += time.process_time() - begun
            return answer

        return call

    seconds, shares = [], []
    for _ in range(ROUNDS + 1):  # the first warms up
        with open_run(None) as directory:
            begun = time.process_time()
            simulate(inputs, directory, seed=0)
            seconds.append(time.process_time() - begun)
    within = [(core, "advance"), (core, "add")]
    within += [(memory_kernel, name) for name in ("advance", "end_of_step")]
    kept = [getattr(module, name) for module, name in within]
    for (module, name), function in zip(within, kept, strict=True):
        setattr(module, name, timed(function))
    try:
        with open_run(None) as directory:
            begun = time.process_time()
            simulate(inputs, directory, seed=0)
            shares.append(inside / (time.process_time() - begun))
    finally:
        for (module, name), function in zip(within, kept, strict=True):
            setattr(module, name, function)
    return units / statistics.median(seconds[1:]), shares[0]


def _timeouts(processes: int, total: int = 400_000) -> float:
    """Bare simpy timeouts per second of CPU, dealt to this many processes."""

    def wait(env: simpy.Environment, times: int, delay: float) -> Generator[simpy.Event]:
        for _ in range(times):
            yield env.timeout(delay)

    rates = []
    for _ in range(ROUNDS):
        env = simpy.Environment()
        for index in range(processes):
            env.process(wait(env, total // processes, 1.0 + index / processes))
        begun = time.process_time()
        env.run()
        rates.append(total / (time.process_time() - begun))
    return statistics.median(rates)


def _whole_process() -> float:
    """Wall time of the main job, whole process, over that of importing its libraries."""
    job = ["-m", "simulator", "--topology", "nvswitch16", "--workload", "moe128"]
    imports = ["-c", "import simpy, networkx, numpy, numba"]
    ratios = []
    for _ in range(2 * ROUNDS + 1):
        ratios.append(_wall(job) / _wall(imports))
    return statistics.median(ratios[1:])


def _wall(arguments: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - begun


def _check_spans() -> None:
    """No span of zero length, none twice."""
    with open_run(None) as directory:
        simulate(load_inputs("nvswitch16", "moe128"), directory, seed=0)
        blocks = list(iter_spans(directory.spans))
    spans = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    keys = ("step", "microbatch", "chunk", "layer", "gpu", "stream", "kind", "expert", "start_s")
    rows = list(zip(*(spans[key].tolist() for key in keys), strict=True))
    if len(set(rows)) != len(rows) or (spans["end_s"] <= spans["start_s"]).any():
        raise AssertionError("a span of no length, or one twice")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        for figure in run():
            print(figure)
