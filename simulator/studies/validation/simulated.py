"""One measurement simulated: the same operation on a topology, as `collective` times it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import comb
from zlib import crc32

import numpy as np

from simulator.engine.collectives import Counts
from simulator.engine.transport import (
    Cluster,
    Operation,
    algorithms,
    cluster_of,
    lay_even,
    lay_tokens,
    time_of,
)
from simulator.errors import InputError
from simulator.spec.load import load_topology
from simulator.spec.transport import Transport
from simulator.spec.units import did_you_mean
from simulator.studies.validation.measured import Measurement

SHARE = 1 << 16  # tokens per rank that are laid; a row's tokens are a multiple of them
DRAWN = 20_000  # tokens drawn where the average has no closed form
SEED = 0

# Of names in tables and of device names in nccl-tests' output; the first that fits.
SYSTEMS = (
    ("h100", "dgx-h100"),
    ("a100", "dgx-a100"),
    ("h200", "h200x8"),
    ("h800", "h800x8"),
    ("gb200", "gb200-nvl72"),
    ("b200", "b200x8"),
    ("mi300", "mi300x8"),
    ("hopper", "dgx-h100"),
)
NODES = {"dgx-h100": "h100x{}-rail", "h800x8": "h800x{}-rail"}
"""Topologies of several of these nodes, by their GPUs."""

TopologyOf = Callable[[Measurement], str]


def topology_by_system(row: Measurement) -> str:
    """The shipped topology of a row, by what its table calls the system; raises InputError."""
    for word, topology in SYSTEMS:
        if word in row.system.lower():
            several = NODES.get(topology, topology)
            return several.format(row.ranks) if row.ranks > 8 else topology
    hint = did_you_mean(row.system.lower(), [word for word, _ in SYSTEMS])
    raise InputError(
        f"{row.where}: no topology is known for the system {row.system!r}{hint}; "
        "give one with --topology"
    )


@cache
def cluster(topology: str, ranks: int) -> Cluster:
    """The first GPUs of a topology (shipped name or path); raises InputError."""
    return cluster_of(load_topology(topology), ranks)


def laid(row: Measurement, topology: str, transport: Transport, algorithm: str) -> Operation:
    """The operation of a row on the wires, to be timed with `scale_of(row)`."""
    where = cluster(topology, row.ranks)
    if row.tokens == 0:
        return lay_even(where, transport, row.operation, algorithm)
    counts = expected(row, len(where.ranks.members), transport.deduplicate)
    return lay_tokens(where, transport, row.operation, algorithm, counts, row.hidden)


def scale_of(row: Measurement) -> float:
    """What the messages of `laid` are to be scaled with."""
    return row.size_bytes if row.tokens == 0 else row.tokens / SHARE


def simulated_s(row: Measurement, topology: str, transport: Transport) -> float:
    """Seconds that the operation of a row takes; raises InputError where it cannot run."""
    where = cluster(topology, row.ranks)
    return min(
        time_of(laid(row, topology, transport, name), scale_of(row)).seconds
        for name in algorithms(where, transport, row.operation)
    )


def expected(row: Measurement, nodes: int, deduplicate: str) -> Counts:
    """What uniform routing sends on average when every rank has SHARE tokens.

    Reported times are means over ranks and repetitions, so none of them is that of one draw with
    its busiest rank. Raises InputError where the experts do not share out evenly.
    """
    ranks = row.ranks
    if row.experts % ranks:
        raise InputError(
            f"{row.where}: {row.experts} experts do not share out evenly on {ranks} ranks"
        )
    to_gpus, to_nodes = distinct(ranks, row.experts, row.top_k, nodes, row.groups)
    if deduplicate == "none":
        to_gpus = to_nodes = float(row.top_k)
    elif deduplicate == "gpu":
        to_nodes = to_gpus
    return Counts(
        np.full((ranks, ranks), round(SHARE * to_gpus / ranks), dtype=np.int32),
        np.full((ranks, nodes), round(SHARE * to_nodes / nodes), dtype=np.int32),
        SHARE * row.top_k,
        deduplicate != "none",
    )


@cache
def distinct(ranks: int, experts: int, top_k: int, nodes: int, groups: int) -> tuple[float, float]:
    """(GPUs, nodes) that a token goes to on average, its own included, under uniform routing.

    groups: the nodes that a token may go to, those of its best experts (0: all), as DeepSeek-V3
    limits them; their average is that of a seeded draw.
    """
    if not 0 < groups < nodes:
        all_sets = comb(experts, top_k)
        return (
            ranks * (1.0 - comb(experts - experts // ranks, top_k) / all_sets),
            nodes * (1.0 - comb(experts - experts // nodes, top_k) / all_sets),
        )
    name = f"distinct/{ranks}/{experts}/{top_k}/{nodes}/{groups}"
    rng = np.random.default_rng([SEED, crc32(name.encode())])
    score = rng.random((DRAWN, nodes, experts // nodes))
    best = np.argsort(score.max(axis=2), axis=1)[:, -groups:]
    kept = np.zeros((DRAWN, nodes), dtype=np.bool_)
    np.put_along_axis(kept, best, True, axis=1)
    limited = np.where(kept[:, :, None], score, -1.0).reshape(DRAWN, experts)
    chosen = np.argpartition(limited, -top_k, axis=1)[:, -top_k:]
    hit = np.zeros((DRAWN, ranks), dtype=np.bool_)
    np.put_along_axis(hit, chosen // (experts // ranks), True, axis=1)
    to_nodes = hit.reshape(DRAWN, nodes, ranks // nodes).any(axis=2)
    return float(hit.sum(axis=1).mean()), float(to_nodes.sum(axis=1).mean())
