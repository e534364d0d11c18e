"""Routes of a big cluster: from the loaded graph to the paths of all pairs of 1,024 GPUs."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

from simulator.cluster.graph import Graph, build_graph, gpus
from simulator.cluster.routes import RouteTable, routes_between
from simulator.spec.load import load_topology

TOPOLOGY = "h100x1024-rail"
ROUNDS = 7


def run() -> list[tuple[str, float, str]]:
    """Time over that of one bincount of the bytes per link; peak memory of a process of its own."""
    graph = build_graph(load_topology(TOPOLOGY))
    find = all_pairs(graph)
    table = find()  # may compile
    each = np.ones(len(table.crossed))
    count_s = fastest(lambda: np.bincount(table.crossed, weights=each))
    paths_s = fastest(find)
    child = subprocess.run(
        [sys.executable, "-m", __name__], check=True, capture_output=True, text=True
    )
    return [
        ("1,024 GPUs on rails, bincount of the bytes per link (ms)", 1e3 * count_s, ""),
        ("1,024 GPUs on rails, paths from the loaded graph (ms)", 1e3 * paths_s, ""),
        ("1,024 GPUs on rails, paths from the loaded graph / bincount", paths_s / count_s, "<= 7"),
        ("1,024 GPUs on rails, peak RSS of the process (MiB)", float(child.stdout), "<= 1024"),
    ]


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


def main() -> None:
    """The child: paths and bytes per link of one all-to-all; prints its peak RSS in MiB."""
    table = all_pairs(build_graph(load_topology(TOPOLOGY)))()
    table.link_bytes(np.ones(table.count))
    # Linux counts it in KiB.
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    main()
