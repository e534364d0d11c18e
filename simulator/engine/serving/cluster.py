"""A cluster ready to serve: its groups, queues and dispatcher."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np
import simpy
from numpy.typing import NDArray

from simulator.cluster.graph import Graph, build_graph, gpus
from simulator.engine.costs import by_kind
from simulator.engine.layout import Layout
from simulator.engine.placed import near as near_to
from simulator.engine.placed import placement_of, plain
from simulator.engine.roads import Roads, roads_of
from simulator.engine.serving.dense import layout_for
from simulator.engine.serving.group import Group
from simulator.engine.serving.handover import Handover, KvRoads, joined, kv_roads
from simulator.engine.serving.pool import Pool, pool_of
from simulator.engine.serving.service import Service, Tries
from simulator.engine.serving.setups import ledger_of, setups_of
from simulator.errors import InputError
from simulator.model import sizes
from simulator.policies import dispatch
from simulator.policies.pick import pick
from simulator.requests.requests import Requests
from simulator.spec.choices import parse_choice
from simulator.spec.load import Inputs


@dataclass(frozen=True)
class Cluster:
    """A cluster ready to serve. handover: where some groups prefill and others decode."""

    service: Service
    handover: Handover | None
    pool: Pool
    layout: Layout
    roads: Roads
    graph: Graph
    names: list[str]


def cluster_of(inputs: Inputs, requests: Requests, seed: int) -> Cluster:
    """Groups, queues and dispatcher of a workload on a topology."""
    workload = inputs.workload
    graph = build_graph(inputs.topology)
    names = gpus(graph)
    near, placement, placed = None, None, ""
    if workload.model.moe.experts and not plain(workload):
        near = near_to(inputs, graph, names)
        placement, placed = placement_of(inputs, near, seed)
    layout = layout_for(workload, len(names), inputs.topology.name, placement)
    if layout.offloaded:
        raise InputError("expert_slots: serving keeps all experts resident; write null")
    roads = roads_of(inputs, graph, layout)
    pool = pool_of(inputs, seed)
    if placed:
        pool.notes.append(placed)
    ledger = ledger_of(requests, pool)
    setups = setups_of(inputs, graph, layout, roads, pool, requests, near)
    groups = [Group(setup, ledger) for setup in setups]
    asked = workload.serving
    if asked.prefill_groups >= len(groups) and asked.prefill_groups:
        raise InputError(
            f"serving.prefill_groups: {asked.prefill_groups} of {len(groups)} groups of "
            f"{layout.ep} GPUs leaves none to decode; write less"
        )
    for number, group in enumerate(groups):
        if asked.speed:
            group.speed[:] = of_group(asked.speed, number)
        group.delay_s = of_group(asked.cold_start_s, number)
    group_of = np.repeat(np.arange(len(groups), dtype=np.int32), layout.ep)
    if asked.shares and len(asked.shares) != len(groups):
        raise InputError(
            f"serving.shares: {len(asked.shares)} shares for {len(groups)} groups of "
            f"{layout.ep} GPUs; write one per group"
        )
    shares = np.array(asked.shares) if asked.shares else None
    maker = pick("dispatch", dispatch.DISPATCHERS, parse_choice(asked.dispatch, "dispatch").name)
    entry = np.ones(len(groups), dtype=np.bool_)
    if asked.prefill_groups:
        entry[asked.prefill_groups :] = False
    service = Service(
        simpy.Environment(0.0),
        groups,
        ledger,
        dispatch.made(maker, dispatch.Setup(group_of, shares)),
        Tries(
            asked.attempts,
            math.inf if asked.timeout_s is None else asked.timeout_s,
            np.array([of_group(asked.failure_probability, n) for n in range(len(groups))]),
            kept=asked.lost_kv == "resume",
        ),
        np.random.default_rng([seed, crc32(b"failures")]),
        entry,
    )
    handover = None
    if asked.prefill_groups:
        handing = dispatch.made(maker, dispatch.Setup(group_of, None))
        handover = connect(inputs, graph, names, service, entry, handing)
    return Cluster(service, handover, pool, layout, roads, graph, names)


def connect(
    inputs: Inputs,
    graph: Graph,
    names: list[str],
    service: Service,
    entry: NDArray[np.bool_],
    dispatcher: dispatch.Dispatcher,
) -> Handover:
    """Have groups that prefill hand the KV of their requests to those that do not.

    Raises InputError where no path joins them.
    """
    model = inputs.workload.model
    share = by_kind(inputs.workload.copy_efficiency)
    enters = entry[service.group_of]

    def lay(left: Graph) -> KvRoads:
        source, target = np.nonzero(enters[:, None] & ~enters[None, :])
        if left is not graph:
            pairs = np.stack([source, target])
            source, target = pairs[:, joined(left, names, source, target)]
        return kv_roads(service.env, left, names, source, target, share)

    def kv_bytes(tokens: int) -> float:
        return sizes.kept_tokens(model, tokens) * sizes.kv_bytes_per_token_layer(model)

    return Handover(service, graph, lay, kv_bytes, dispatcher, ~entry)


def of_group(given: Sequence[float], group: int) -> float:
    """What a list says of a group: the last entry holds for all that follow."""
    return given[min(group, len(given) - 1)]
