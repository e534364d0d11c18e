"""The exact network against SimGrid: unequal all-to-alls, both solving the same in this run."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import networkx as nx
import numpy as np

from simulator.cluster.graph import build_graph, gpus
from simulator.cluster.routes import route_table
from simulator.engine import core
from simulator.engine.links import wires_of
from simulator.engine.transfers import laid
from simulator.spec.load import load_topology
from tests.simgrid.oracle import Case, absent, ask, build

MEAN_BYTES = 1e6
LATENCY_S = 1e-6
# Name, topology, what is set in it, runs of SimGrid, goal of the ratio.
CASES = (
    ("64 GPUs on a switch", "nvswitch16", ("build.gpus=64",), 3, ">= 15"),
    ("128 GPUs on a switch", "nvswitch16", ("build.gpus=128",), 1, ">= 20"),
    ("32 GPUs on rails", "h100x16-rail", ("build.nodes=4",), 5, ">= 15"),
)


def run() -> list[tuple[str, float, str]]:
    """Milliseconds of the warm kernel, and SimGrid's own solve time over it where it is there."""
    figures = []
    reason = absent()
    if reason is not None:
        print(f"no ratios to SimGrid: {reason}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        program = None if reason else build(Path(folder))
        for name, topology, changes, runs, goal in CASES:
            case = all_to_all(topology, changes)
            ours_s, finish_s = ours(case)
            figures.append((f"exact all-to-all, {name} (ms)", 1e3 * ours_s, ""))
            if program is not None:
                answers = [answer for _ in range(runs) for answer in ask(program, [case])]
                worst = np.abs(finish_s / answers[0][1] - 1.0).max()
                if not worst <= 1e-9:
                    raise AssertionError(f"{name}: a finish time differs by {worst:.1e}")
                theirs_s = statistics.median(took_s for took_s, _ in answers)
                figures.append((f"SimGrid / exact, {name}", theirs_s / ours_s, goal))
    return figures


def all_to_all(topology: str, changes: tuple[str, ...]) -> Case:
    """Every GPU to every other from 0, gamma-distributed sizes; all routes of one latency."""
    graph = build_graph(load_topology(topology, changes))
    _level(graph)
    names = gpus(graph)
    pairs = [(a, b) for a in names for b in names if a != b]
    sizes = np.random.default_rng(7).gamma(2.0, MEAN_BYTES / 2.0, size=len(pairs))
    route = np.arange(len(pairs), dtype=np.int32)
    start_s = np.zeros(len(pairs))
    routes = route_table(graph, pairs)
    return Case(topology, routes, route, np.ceil(sizes), start_s)


def ours(case: Case, rounds: int = 3) -> tuple[float, np.ndarray]:
    """Seconds of the kernel from first to last transfer (median), and the finish times."""
    took_s = []
    for _ in range(rounds + 1):  # the first may compile
        buffers = laid(wires_of(case.routes), case.route, case.size_bytes, case.start_s)
        begun = time.perf_counter()
        core.advance(*buffers, np.inf)
        took_s.append(time.perf_counter() - begun)
    return statistics.median(took_s[1:]), core.views(*buffers).op_f[:, core.END]


def _level(graph: nx.DiGraph) -> None:
    for source, _, link in graph.edges(data=True):
        link["latency_s"] = LATENCY_S if graph.nodes[source]["kind"] == "gpu" else 0.0
