"""Big clusters: routes of all pairs of 1,024 GPUs, and an unequal all-to-all as one coflow."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.graph import Graph, build_graph, gpus
from simulator.cluster.routes import RouteTable, routes_between
from simulator.engine.transfers import coflow_times
from simulator.spec.load import load_topology

TOPOLOGY = "h100x1024-rail"
Floats = NDArray[np.float64]
ROUNDS = 7


def run() -> list[tuple[str, float, str]]:
    """Time over that of one bincount of the bytes per link; peak memory of a process of its own."""
    graph = build_graph(load_topology(TOPOLOGY))
    find = all_pairs(graph)
    table = find()  # may compile
    size_bytes = unequal(table.count)
    each = np.repeat(size_bytes, np.diff(table.ptr))
    count_s = fastest(lambda: np.bincount(table.crossed, weights=each))
    paths_s = fastest(find)
    coflow_s = fastest(lambda: coflow(table, size_bytes))
    peaks = {}
    for name in (TOPOLOGY, "2048"):
        begun = time.perf_counter()
        child = subprocess.run(
            [sys.executable, "-m", __name__, name], check=True, capture_output=True, text=True
        )
        peaks[name] = (float(child.stdout), time.perf_counter() - begun)
    return [
        ("1,024 GPUs on rails, bincount of the bytes per link (ms)", 1e3 * count_s, ""),
        ("1,024 GPUs on rails, paths from the loaded graph (ms)", 1e3 * paths_s, ""),
        ("1,024 GPUs on rails, paths from the loaded graph / bincount", paths_s / count_s, "<= 7"),
        ("1,024 GPUs, coflow, paths given / bincount", coflow_s / count_s, "<= 3"),
        (
            "1,024 GPUs, coflow, paths from the loaded graph / bincount",
            (paths_s + coflow_s) / count_s,
            "<= 10",
        ),
        ("1,024 GPUs, coflow, peak RSS of the process (MiB)", peaks[TOPOLOGY][0], "<= 1024"),
        ("2,048 GPUs, coflow of 4.2 M transfers, whole process (s)", peaks["2048"][1], "<= 120"),
        ("2,048 GPUs, coflow, peak RSS of the process (MiB)", peaks["2048"][0], ""),
    ]


def unequal(count: int) -> Floats:
    """Gamma-distributed sizes of 1 MB on average, float64 [count]."""
    return np.random.default_rng(7).gamma(2.0, 5e5, size=count)


def coflow(table: RouteTable, size_bytes: Floats) -> Floats:
    """When all arrive, as one collective."""
    route = np.arange(table.count, dtype=np.int32)
    return coflow_times(table, route, size_bytes, np.zeros(table.count))


def all_pairs(graph: Graph) -> Callable[[], RouteTable]:
    """What finds the routes from every GPU to every other."""
    names = gpus(graph)
    ends = np.nonzero(~np.eye(len(names), dtype=np.bool_))
    source, target = (end.astype(np.int32) for end in ends)
    return lambda: routes_between(graph, names, source, target)


def fastest(work: Callable[[], object]) -> float:
    """Seconds of the fastest of several rounds: both sides of the ratio are shorter than what
    others on the machine take from them.
    """
    took_s = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        work()
        took_s.append(time.perf_counter() - begun)
    return min(took_s)


def main(name: str) -> None:
    """The child: one all-to-all from the file to its end; prints its peak RSS in MiB."""
    changes = ("build.nodes=256",) if name == "2048" else ()
    table = all_pairs(build_graph(load_topology(TOPOLOGY, changes)))()
    coflow(table, unequal(table.count))
    # From /proc: getrusage counts what the parent had at the fork as the child's.
    status = Path("/proc/self/status").read_text()
    print(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024)


if __name__ == "__main__":
    main(sys.argv[1])
