"""Placements of experts on clusters, tried out: how long dispatch and combine of a layer take.

Every policy is shown all loads of a file. Then a batch of tokens, the same for all policies, goes
through sampled layers, one dispatch and one combine each, alone on the network: messages, routes
and times are those of the `collective` command (`simulator.engine.transport`). What the experts
compute is not timed; its imbalance is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from simulator.engine.costs import on_wire
from simulator.engine.homes import Near, homes_of, near_of
from simulator.engine.placed import BLIND
from simulator.engine.transport import (
    Cluster,
    Operation,
    Time,
    algorithms,
    cluster_of,
    count_tokens,
    lay_tokens,
    time_of,
    token_bytes,
)
from simulator.errors import InputError
from simulator.policies.placement import (
    ALIASES,
    Placement,
    Target,
    contiguous,
    expert_parallel_degree,
    place,
)
from simulator.routing.loads import Loads
from simulator.routing.traffic import pick_slots, rows_of_experts, traffic
from simulator.spec.schema import Topology
from simulator.spec.transport import Transport

Floats = NDArray[np.float64]
Row = dict[str, Any]
Progress = Callable[[int, int], None]
Batch = tuple[NDArray[np.int16], NDArray[np.int32]]
"""Tokens: experts int16 [tokens, layers, k], source GPU int32 [tokens], not decreasing."""

OPS = ("dispatch", "combine")
NETWORKS = ("exact", "coflow")


class Asked(NamedTuple):
    """What is tried out.

    loads: what the policies see; together: float64 [layers, experts, experts] or None; layers: the
    numbers (in loads.counts) of those that are timed; draw: a batch for so many GPUs; redundant:
    copies beside one of each expert; groups: of experts, as EPLB takes them; expert_bytes: weights
    of an expert in one layer; moe_layers: of the model, for which those of the loads stand; hidden:
    elements of a token; ep: GPUs of a group, None for as many as there are.
    """

    loads: Loads
    together: Floats | None
    layers: Sequence[int]
    draw: Callable[[int], Batch]
    transport: Transport
    policies: Sequence[str]
    redundant: int
    groups: int
    least_loaded: bool
    expert_bytes: float
    moe_layers: int
    hidden: int
    ep: int | None
    network: str


class _Timed(NamedTuple):
    """One layer: seconds of dispatch and combine, and how the network was solved; bytes on each
    link by name, with its bandwidth; rows that each GPU computes [gpus].
    """

    seconds: tuple[float, float]
    network: str
    links: dict[tuple[str, str], tuple[float, float]]
    rows: NDArray[np.int64]


def rows(
    asked: Asked,
    topologies: Sequence[Topology],
    progress: Progress | None = None,
    left_out: Callable[[str], object] | None = None,
) -> Iterator[Row]:
    """A row for each topology and policy.

    dispatch_us, combine_us: means over the timed layers; alltoall_us their sum, alltoall_p99_us and
    alltoall_worst_us of the sums; hottest_link: the one that is busiest over all of them, its bytes
    and its share of the time; max_over_mean: rows of the busiest GPU, mean over layers;
    expert_GiB: weights of experts on the fullest GPU, all layers of the model; moved_bytes: weights
    that the GPUs of a group need beyond what they hold in order, one copy of each, all layers.
    Raises InputError for what does not fit together; but where `left_out` is given, a policy that
    has no answer is left out, and `left_out` told why.
    """
    total = len(topologies) * len(asked.policies) * len(asked.layers)
    done = 0

    def told() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    for topology in topologies:
        cluster, near = group_of(asked, topology)
        batch = asked.draw(near.ep)
        for policy in asked.policies:
            try:
                found = placed(asked, near, policy)
            except InputError as error:
                if left_out is None:
                    raise
                left_out(f"{topology.name}: {error}")
                continue
            yield _row(asked, topology.name, cluster, near, batch, policy, found, told)


def group_of(asked: Asked, topology: Topology) -> tuple[Cluster, Near]:
    """An expert-parallel group on the first GPUs of a topology, and its distances."""
    whole = cluster_of(topology)
    experts = asked.loads.counts.shape[1]
    ep = asked.ep or expert_parallel_degree(whole.ranks.size, experts)
    if ep > experts:
        raise InputError(f"--ep {ep}: more GPUs than the {experts} experts; write fewer")
    if ep > whole.ranks.size:
        raise InputError(f"--ep {ep}: {topology.name} has {whole.ranks.size} GPUs; write fewer")
    cluster = whole if ep == whole.ranks.size else cluster_of(topology, ep)
    via = "network" if asked.transport.path == "network" else None
    near = near_of(cluster.graph, list(cluster.ranks.names), cluster.ranks.node, ep, via)
    return cluster, near


def placed(asked: Asked, near: Near, policy: str) -> Placement:
    """A policy's answer; those that do not look at loads are given one slot for each expert."""
    from simulator.policies.placement_file import SUFFIX, read_placement

    counts = asked.loads.counts
    experts = counts.shape[1]
    if policy.endswith(SUFFIX):
        return read_placement(policy, near.ep, *counts.shape)
    copies = 0 if ALIASES.get(policy, policy) in BLIND else asked.redundant
    target = Target(
        gpus=near.ep,
        physical=experts + copies,
        nodes=int(near.node.max()) + 1,
        node_of=near.node,
        groups=asked.groups,
        seconds_per_byte=near.seconds_per_byte,
        latency_s=near.latency_s,
        together=asked.together,
        bytes_per_token=token_bytes(asked.transport, "dispatch", asked.hidden),
    )
    return place(policy, counts, target)


def _row(
    asked: Asked,
    topology: str,
    cluster: Cluster,
    near: Near,
    batch: Batch,
    policy: str,
    found: Placement,
    told: Callable[[], None],
) -> Row:
    from simulator.policies.placement_figures import moved_experts

    experts = asked.loads.counts.shape[1]
    timed = []
    for place_in_batch, layer in enumerate(asked.layers):
        timed.append(_layer(asked, cluster, near, batch, place_in_batch, found, layer))
        told()
    seconds = np.array([one.seconds for one in timed])
    both = seconds.sum(axis=1)
    link, sent, busy_s = _hottest(timed)
    per_gpu = np.stack([one.rows for one in timed])
    in_order = Target(near.ep, experts, 1, np.zeros(near.ep, dtype=np.int32))
    start = contiguous(asked.loads.counts, in_order)
    moved = float(moved_experts(start, found, experts, near.ep).mean()) * asked.moe_layers
    fullest = int(np.bincount(found.gpu_of, minlength=near.ep).max())
    return {
        "topology": topology,
        "gpus": near.ep,
        "nodes": int(near.node.max()) + 1,
        "policy": policy,
        "slots": found.expert_of.shape[1],
        "dispatch_us": 1e6 * float(seconds[:, 0].mean()),
        "combine_us": 1e6 * float(seconds[:, 1].mean()),
        "alltoall_us": 1e6 * float(both.mean()),
        "alltoall_p99_us": 1e6 * float(np.percentile(both, 99)),
        "alltoall_worst_us": 1e6 * float(both.max()),
        "worst_layer": int(asked.loads.layers[asked.layers[int(both.argmax())]]),
        "hottest_link": link,
        "hottest_link_bytes": sent,
        "hottest_link_busy": busy_s / float(both.sum()),
        "max_over_mean": float((per_gpu.max(axis=1) / per_gpu.mean(axis=1)).mean()),
        "expert_GiB": fullest * asked.moe_layers * asked.expert_bytes / 2**30,
        "moved_bytes": moved * asked.expert_bytes,
        "layers": len(timed),
        "network": "exact" if all(one.network == "exact" for one in timed) else "coflow",
    }


def _layer(
    asked: Asked,
    cluster: Cluster,
    near: Near,
    batch: Batch,
    place_in_batch: int,
    placement: Placement,
    layer: int,
) -> _Timed:
    experts = asked.loads.counts.shape[1]
    size = token_bytes(asked.transport, "dispatch", asked.hidden)
    one = Placement(placement.expert_of[[layer]], placement.gpu_of)
    homes = homes_of(one, experts, near, size, asked.least_loaded)[0][0]
    ids, source = np.ascontiguousarray(batch[0][:, place_in_batch]), batch[1]
    owner = homes.owner
    if homes.copies is not None:
        ids, owner = pick_slots(ids, source, homes.copies, near.ep), homes.copies.owner
    rows = traffic(ids, source, owner, near.ep, near.ep)[0]
    if homes.copies is not None:
        rows = rows_of_experts(rows, homes.copies, near.ep)
    counts = count_tokens(cluster, asked.transport, ids, source, owner)
    seconds, networks = [], []
    links: dict[tuple[str, str], tuple[float, float]] = {}
    for op in OPS:
        laid = [
            lay_tokens(cluster, asked.transport, op, name, counts, asked.hidden)
            for name in algorithms(cluster, asked.transport, op)
        ]
        times = [_time(operation, asked.network) for operation in laid]
        best = min(range(len(laid)), key=lambda number: times[number].seconds)
        seconds.append(times[best].seconds)
        networks.append(times[best].network)
        for link, (sent, bandwidth) in _link_bytes(laid[best]).items():
            links[link] = (links.get(link, (0.0, 0.0))[0] + sent, bandwidth)
    network = "exact" if set(networks) == {"exact"} else "coflow"
    return _Timed((seconds[0], seconds[1]), network, links, rows.sum(axis=1, dtype=np.int64))


def _time(operation: Operation, network: str) -> Time:
    """As `time_of`, or, as a coflow, until the slowest link has carried its bytes."""
    if network == "exact":
        return time_of(operation)
    seconds = operation.fixed_s
    for wires in operation.phases:
        routes = wires.routes
        half = operation.half_size_bytes
        size = on_wire(wires.message_bytes, wires.messages, half, wires.efficiency)
        latest_s = np.zeros(len(routes.links))
        np.maximum.at(latest_s, routes.crossed, np.repeat(routes.latency_s, np.diff(routes.ptr)))
        busy_s = routes.link_bytes(size) / routes.bandwidth_bytes_per_s
        seconds += float((latest_s + busy_s).max(initial=0.0))
        seconds += float(wires.waits @ routes.latency_s)
    return Time(seconds, "coflow")


def _link_bytes(operation: Operation) -> dict[tuple[str, str], tuple[float, float]]:
    """Bytes of tokens on each link that an operation uses, and the link's bandwidth (B/s)."""
    found: dict[tuple[str, str], tuple[float, float]] = {}
    for wires in operation.phases:
        sent = wires.routes.link_bytes(wires.message_bytes * wires.messages)
        each = zip(sent.tolist(), wires.routes.bandwidth_bytes_per_s.tolist(), strict=True)
        for link, (size, bandwidth) in zip(wires.routes.links, each, strict=True):
            found[link] = (found.get(link, (0.0, 0.0))[0] + size, bandwidth)
    return found


def _hottest(timed: Sequence[_Timed]) -> tuple[str, float, float]:
    """The link that is busiest over all layers: its name, bytes, and seconds at full bandwidth."""
    total: dict[tuple[str, str], tuple[float, float]] = {}
    for one in timed:
        for link, (sent, bandwidth) in one.links.items():
            total[link] = (total.get(link, (0.0, 0.0))[0] + sent, bandwidth)
    if not total:
        return "none", 0.0, 0.0
    link, (sent, bandwidth) = max(total.items(), key=lambda item: item[1][0] / item[1][1])
    return f"{link[0]} -> {link[1]}", sent, sent / bandwidth


def spaced(layers: int, wanted: int) -> list[int]:
    """So many of the layers, evenly spaced, the first and the last among them."""
    if wanted >= layers:
        return list(range(layers))
    if wanted == 1:
        return [layers // 2]
    return [round(i * (layers - 1) / (wanted - 1)) for i in range(wanted)]


def drawn(
    loads: Loads, layers: Sequence[int], tokens_per_gpu: int, k: int, seed: int
) -> Callable[[int], Batch]:
    """Batches of tokens drawn so that they have the loads of these layers."""
    from simulator.routing.systematic import draw_systematic, inclusion

    chance = inclusion(loads.counts[list(layers)], k)

    def draw(gpus: int) -> Batch:
        rng = np.random.default_rng([seed, crc32(b"placement what-if")])
        ids = np.empty((len(layers), gpus * tokens_per_gpu, k), dtype=np.int16)
        draw_systematic(rng, chance, ids)
        source = np.repeat(np.arange(gpus, dtype=np.int32), tokens_per_gpu)
        return ids.transpose(1, 0, 2), source

    return draw


def replayed(trace: Path, layers: Sequence[int], tokens_per_gpu: int) -> Callable[[int], Batch]:
    """Batches of the first tokens of a recording; layers: their numbers in it."""
    from simulator.routing.batches import replay

    def draw(gpus: int) -> Batch:
        batch = next(replay(trace, gpus, tokens_per_gpu, "prefill", max(layers) + 1))
        return batch.ids[:, list(layers)], batch.source_gpu

    return draw
