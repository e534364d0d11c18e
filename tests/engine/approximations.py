"""What the approximate networks get wrong, against the exact one: the table of docs/transfers.md.

    python tests/engine/approximations.py      prints the table

Three kinds of case, each on one switch (16 GPUs) and on rails (32 GPUs): an all-to-all whose sizes
are what tokens of the shipped recording send to their experts; one with gamma-distributed sizes;
and two of these that overlap, the second beginning when half of the first has arrived, while every
GPU fetches weights from host memory and, on rails, from another node.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import networkx as nx
import numpy as np

from simulator.cluster.graph import build_graph, gpus, memory_of_host
from simulator.engine.links import Network, network_of
from simulator.engine.transfers import transfers
from simulator.routing.batches import replay
from simulator.routing.traffic import traffic
from simulator.spec.find import find
from simulator.spec.load import load_topology

MODES = ("epsilon:0.01", "epsilon:0.1", "coflow")
CLUSTERS = {"switch": ("nvswitch16", ()), "rails": ("h100x32-rail", ())}
HIDDEN_BYTES = 2 * 3072
SEEDS = 3
STEP = 50


class Moves(NamedTuple):
    """Transfers: ends, bytes, start (s), collective ("" for each on its own)."""

    sources: list[str]
    targets: list[str]
    size_bytes: np.ndarray
    start_s: np.ndarray
    collective: list[str]


class Errors(NamedTuple):
    """|approximate / exact - 1|: of the last arrival; of each GPU's last arrival, mean and worst;
    of each collective among others, and of each fetch beside them, worst.
    """

    makespan: float
    gpu_mean: float
    gpu_worst: float


def recorded(number: int, seed: int) -> np.ndarray:
    """Bytes float64 [gpus, gpus] of 8 tokens per GPU in layer 4 of the shipped recording."""
    batches = replay(find("trace", "moe128-python"), number, 8, "decode", 8, "cycle", "any", seed)
    for _ in range(STEP):  # all begin alike
        batch = next(batches)
    owner = np.arange(128, dtype=np.int32) // np.int32(128 // number)
    ids = np.ascontiguousarray(batch.ids[:, 4])
    _, pairs = traffic(ids, batch.source_gpu, owner, number, number, True)
    return pairs * float(HIDDEN_BYTES)


def drawn(number: int, seed: int) -> np.ndarray:
    """Gamma-distributed bytes of the same mean as `recorded`, float64 [gpus, gpus]."""
    mean = 8 * 4 / number * HIDDEN_BYTES
    return np.random.default_rng(seed).gamma(2.0, mean / 2.0, size=(number, number))


def all_to_all(names: list[str], sizes: np.ndarray, start_s: float, name: str) -> Moves:
    a, b = np.nonzero(sizes * (1 - np.eye(len(names))))
    return Moves(
        [names[i] for i in a],
        [names[i] for i in b],
        sizes[a, b],
        np.full(len(a), start_s),
        [name] * len(a),
    )


def fetches(graph: nx.DiGraph, names: list[str]) -> Moves:
    """Every GPU fetches 1 MB from its host, and half of them 1 MB from a GPU of the next node."""
    hosts = [memory_of_host(graph, name) for name in names]
    per_host = sum(graph.nodes[name]["host"] == 0 for name in names)
    far = [names[(i + per_host) % len(names)] for i in range(len(names))][::2]
    sources = [host for host in hosts if host is not None] + far
    targets = names + names[::2]
    count = len(sources)
    return Moves(
        sources, targets, np.full(count, 1e6), np.zeros(count), [f"fetch{i}" for i in range(count)]
    )


def together(*parts: Moves) -> Moves:
    return Moves(
        [s for part in parts for s in part.sources],
        [t for part in parts for t in part.targets],
        np.concatenate([part.size_bytes for part in parts]),
        np.concatenate([part.start_s for part in parts]),
        [c for part in parts for c in part.collective],
    )


def ends(graph: nx.DiGraph, moves: Moves, network: Network) -> np.ndarray:
    return transfers(graph, *moves[:4], network, moves.collective).finish_s


def last(keys: list[str], finish_s: np.ndarray) -> np.ndarray:
    """The last of the times of each key, by first appearance."""
    place = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    found = np.zeros(len(place))
    np.maximum.at(found, [place[key] for key in keys], finish_s)
    return found


def errors(keys: list[str], approximate: np.ndarray, exact: np.ndarray) -> Errors:
    off = np.abs(last(keys, approximate) / last(keys, exact) - 1.0)
    return Errors(float(abs(approximate.max() / exact.max() - 1.0)), off.mean(), off.max())


def measure(mode: str) -> Iterator[tuple[str, str, Errors]]:
    """(cluster, case, worst errors over the seeds) of each case."""
    network = network_of(mode)
    for cluster, (topology, changes) in CLUSTERS.items():
        graph = build_graph(load_topology(topology, changes))
        names = gpus(graph)
        for case, sizes in (("recorded", recorded), ("gamma", drawn)):
            found: dict[str, list[Errors]] = {}
            for seed in range(SEEDS):
                first = all_to_all(names, sizes(len(names), seed), 0.0, "first")
                exact = ends(graph, first, network_of("exact"))
                told = errors(first.targets, ends(graph, first, network), exact)
                found.setdefault(f"{case}, alone", []).append(told)
                half_s = float(np.median(exact))
                second = all_to_all(names, sizes(len(names), seed + 100), half_s, "second")
                moves = together(first, second, fetches(graph, names))
                exact, near = (ends(graph, moves, n) for n in (network_of("exact"), network))
                keys = [f"{c} {t}" for c, t in zip(moves.collective, moves.targets, strict=True)]
                whole = np.array([not c.startswith("fetch") for c in moves.collective])
                for what, chosen in (("two overlapping", whole), ("fetches beside", ~whole)):
                    kept = [key for key, yes in zip(keys, chosen, strict=True) if yes]
                    told = errors(kept, near[chosen], exact[chosen])
                    found.setdefault(f"{case}, {what}", []).append(told)
            for name, some in found.items():
                yield cluster, name, Errors(*np.max(some, axis=0).tolist())


def table() -> list[str]:
    """The rows of the table as Markdown."""
    rows = [
        "| network | cluster | case | makespan | per-GPU finish, mean | worst |",
        "|---|---|---|---|---|---|",
    ]
    for mode in MODES:
        for cluster, case, told in measure(mode):
            figures = " | ".join(f"{100 * value:.1f} %" for value in told)
            rows.append(f"| `{mode}` | {cluster} | {case} | {figures} |")
    return rows


if __name__ == "__main__":
    print("\n".join(table()))
