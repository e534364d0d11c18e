"""Recorded routing for `large-ep`: a shipped recording folded to fewer experts, expert placement by
bandwidth and latency, and a balanced gate.

The recording has 128 experts and four choices per token. Neighbouring experts are taken as one, so
that any number that divides 128 can stand in; a token's choices stay in the order of the gate.
Every GPU holds requests of its own, repeated until it has its tokens: GPUs differ in what they ask
for.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.errors import InputError

Int16s = NDArray[np.int16]
Floats = NDArray[np.float64]


class Recorded(NamedTuple):
    """choices: int16 [tokens, layers, choices], different experts in gate order, filled up with the
    first others where folding left too few; request: int32 [tokens]; experts: how many.
    """

    choices: Int16s
    request: NDArray[np.int32]
    experts: int


def fold(trace: Path, experts: int, layers: int, choices: int) -> Recorded:
    """A recording with its experts folded to `experts`, and its first `layers` layers.

    Raises InputError if it has fewer layers or no multiple of `experts`.
    """
    from simulator.routing.trace import iter_blocks, read_info

    info = read_info(trace)
    if info.experts % experts or info.layers < layers:
        raise InputError(
            f"{trace.name}: {info.experts} experts in {info.layers} layers cannot be folded to "
            f"{experts} in {layers}"
        )
    found, request = [], []
    for block in iter_blocks(trace):
        found.append(block.experts[:, :layers] // np.int16(info.experts // experts))
        request.append(block.request)
    ids = np.concatenate(found)
    return Recorded(_different(ids, experts, choices), np.concatenate(request), experts)


def _different(ids: Int16s, experts: int, choices: int) -> Int16s:
    """The first `choices` different experts of each token and layer, in order [.., choices]."""
    tokens, layers, given = ids.shape
    # A place for each expert: where it is first chosen; those not chosen come after, in order.
    rank = np.full((tokens, layers, experts), given, dtype=np.int16)
    for place in range(given - 1, -1, -1):
        np.put_along_axis(rank, ids[:, :, place : place + 1].astype(np.int64), place, axis=2)
    order = np.argsort(rank, axis=2, kind="stable")[:, :, :choices]
    return order.astype(np.int16)


def deal(recorded: Recorded, gpus: int, tokens_per_gpu: int) -> Int16s:
    """Choices int16 [gpus, tokens_per_gpu, layers, choices]: request r is on GPU r mod gpus, and
    each GPU repeats its own.
    """
    found = []
    for gpu in range(gpus):
        mine = np.flatnonzero(recorded.request % gpus == gpu)
        if not mine.size:
            raise InputError(f"the recording has no request for GPU {gpu} of {gpus}")
        found.append(recorded.choices[np.resize(mine, tokens_per_gpu)])
    return np.stack(found)


def balanced(choices: Int16s, experts: int, top_k: int) -> tuple[Int16s, float]:
    """Ids int16 [gpus, tokens, layers, top_k] with equal loads, and the share of choices changed.

    Per GPU and layer no expert takes more than its even share, rounded up: a token that comes to a
    full one takes the next of its own choices that has room, at last the emptiest expert. That is
    a gate whose scores are lowered until loads are even.
    """
    from simulator.studies.large_ep.kernels import even_out

    gpus, tokens, layers, given = choices.shape
    flat = np.ascontiguousarray(choices.transpose(0, 2, 1, 3)).reshape(-1, tokens, given)
    out = np.empty((gpus * layers, tokens, top_k), dtype=np.int16)
    moved = even_out(flat, experts, out)
    ids = out.reshape(gpus, layers, tokens, top_k).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(ids), moved / out.size


def demand(ids: Int16s, experts: int) -> Floats:
    """Choices of an expert by a GPU, mean over layers: float64 [gpus, experts]."""
    gpus, _, layers, _ = ids.shape
    return np.stack(
        [np.bincount(ids[gpu].ravel(), minlength=experts) / layers for gpu in range(gpus)]
    )


def place(
    wanted: Floats, bandwidth_bytes_per_s: Floats, latency_s: Floats, token_bytes: float
) -> NDArray[np.int64]:
    """GPU of each expert, int64 [experts], by the published greedy: expert by expert, the free GPU
    of least expected cost.

    wanted: float64 [gpus, experts]; the matrices float64 [gpus, gpus] are of the best path. The
    cost of expert e on GPU g is the time in which all that others want of it arrives and goes back.
    Every GPU takes experts / gpus of them.
    """
    gpus, experts = wanted.shape
    room = np.full(gpus, experts // gpus)
    found = np.zeros(experts, dtype=np.int64)
    with np.errstate(divide="ignore"):
        seconds_per_byte = np.where(np.eye(gpus, dtype=bool), 0.0, 1.0 / bandwidth_bytes_per_s)
    for expert in range(experts):
        asked = wanted[:, expert, None]
        cost = (2.0 * asked * token_bytes * seconds_per_byte + (asked > 0) * latency_s).sum(axis=0)
        free = np.flatnonzero(room)
        found[expert] = free[np.argmin(cost[free])]
        room[found[expert]] -= 1
    return found


def matrices(topology: str, overrides: tuple[str, ...]) -> tuple[Floats, Floats]:
    """Bandwidth (bytes/s) of the best path between GPUs and its latency (s), float64 [gpus, gpus];
    the diagonal is infinite and 0.
    """
    from simulator.cluster.graph import build_graph, gpus
    from simulator.cluster.routes import routes_between
    from simulator.spec.load import load_topology

    graph = build_graph(load_topology(topology, overrides))
    names = gpus(graph)
    count = len(names)
    source, target = np.divmod(np.arange(count * count, dtype=np.int32), np.int32(count))
    apart = source != target
    routes = routes_between(graph, names, source[apart], target[apart])
    bandwidth = np.full((count, count), np.inf)
    latency_s = np.zeros((count, count))
    share = np.ones(len(routes.crossed)) if routes.fraction is None else routes.fraction
    of_link = routes.bandwidth_bytes_per_s[routes.crossed] / share
    bandwidth[source[apart], target[apart]] = np.minimum.reduceat(of_link, routes.ptr[:-1])
    latency_s[source[apart], target[apart]] = routes.latency_s
    return bandwidth, latency_s


def write(path: Path, ids: Int16s, experts: int, origin: str) -> None:
    """A routing trace whose rows are the GPUs' tokens one GPU after the other."""
    from simulator.routing.trace import PROMPT, TraceWriter

    layers, k = ids.shape[2:]
    with TraceWriter(
        path, model="moe128-python, folded", layers=layers, experts=experts, k=k, origin=origin
    ) as writer:
        for gpu, rows in _blocks(ids):
            count = len(rows)
            request = np.full(count, gpu, dtype=np.int32)
            position = np.arange(count, dtype=np.int32)
            writer.write(request, position, np.full(count, PROMPT, dtype=np.int8), rows)


def _blocks(ids: Int16s) -> Iterator[tuple[int, Int16s]]:
    yield from enumerate(ids)
