"""A serving run: from the inputs to the tables of a run directory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
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
from simulator.engine.serving import scheduler
from simulator.engine.serving.dense import layout_for
from simulator.engine.serving.faults import Timeline
from simulator.engine.serving.group import Group
from simulator.engine.serving.handover import Handover, KvRoads, joined, kv_roads
from simulator.engine.serving.pool import Pool, pool_of
from simulator.engine.serving.service import Service, Told, Tries
from simulator.engine.serving.setups import ledger_of, refuse, sends, setups_of
from simulator.errors import InputError
from simulator.model import sizes
from simulator.policies import dispatch
from simulator.policies.pick import pick
from simulator.requests.load import load_requests
from simulator.requests.requests import Requests
from simulator.runfiles import serving as tables
from simulator.runfiles.incidents import write_incidents
from simulator.runfiles.rundir import RunDir
from simulator.spec.choices import parse_choice
from simulator.spec.load import Inputs

Progress = Callable[[int, int], None]


@dataclass
class Report:
    """What a serving run says beside its tables. groups: replicas of the model, of `ep` GPUs;
    lost: requests that failed because of faults, None without a timeline.
    """

    gpus: int
    ep: int
    groups: int
    kv_blocks: int
    routing: dict[str, object]
    notes: list[str] = field(default_factory=list)
    totals: dict[str, float] = field(default_factory=dict)
    gaps: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    lost: int | None = None


def serve(inputs: Inputs, run: RunDir, seed: int, progress: Progress | None = None) -> Report:
    """Serve all requests and write `requests.parquet` and `steps.parquet` into `run`.

    Raises InputError for inputs that do not go together, and for what serving does not model.
    """
    workload = inputs.workload
    refuse(workload)
    assert workload.requests is not None
    requests = load_requests(workload.requests, seed, inputs.requests_dir)
    cluster = cluster_of(inputs, requests, seed)
    of = cluster.service.of
    notes = [*requests.notes, *cluster.pool.notes]
    if workload.network != "coflow" and sends(workload):
        from simulator.engine.serving.exact import ask  # it needs what is in this module

        ask(inputs, cluster, workload.network, share=1.0, follow=True)
        notes.append(
            f"network {workload.network}: every step transfer by transfer, a hundred times slower "
            "than network: coflow"
        )
    with tables.StepWriter(run.steps) as steps:

        def told(step: Told) -> None:
            steps.append(
                step.group, step.step.start_s, step.step.end_s, step.step.prompt,
                step.step.generated, step.waiting, step.running, step.used_blocks,
                step.step.repeated,
            )  # fmt: skip

        cluster.service.on_step = told
        whole_blocks = cluster.service.groups[0].of.limits.blocks
        timeline = timeline_of(inputs, cluster, seed)
        if timeline is not None:
            timeline.begin()
        arrive(cluster, requests, progress)
        cluster.service.env.run()
        while timeline is not None and cluster.service.left and timeline.end():
            cluster.service.env.run()
    if left := cluster.service.left:
        choice = workload.serving.dispatch
        if parse_choice(choice, "dispatch").name in dispatch.DISPATCHERS:
            raise AssertionError(f"{left} requests are still there at the end")
        raise InputError(
            f"serving.dispatch: {choice} holds {left:,} requests back to the end, where nothing "
            "happens any more that it could wait for; return an open worker"
        )
    ledger = cluster.service.ledger
    tables.write_requests(
        run.requests, of.arrival_s, ledger.prompt, ledger.output, ledger.priority, of.outcome,
        of.attempts, cluster.service.served_by, ledger.admitted_s, ledger.first_s, ledger.last_s,
        of.finish_s, ledger.made, of.wasted, ledger.reused, ledger.preempted, ledger.largest_gap_s,
    )  # fmt: skip
    if timeline is not None:
        notes += timeline.notes
        write_incidents(run.path, timeline.log)
    groups = cluster.service.groups
    totals = np.sum([group.ranks.totals for group in groups], axis=0).tolist()
    handover = cluster.handover
    moved: dict[str, float] = {
        "kv_transfers": 0 if handover is None else handover.transfers,
        "kv_moved_bytes": 0.0 if handover is None else handover.moved_bytes,
    }
    return Report(
        gpus=cluster.layout.gpus,
        ep=cluster.layout.ep,
        groups=len(groups),
        kv_blocks=whole_blocks,
        routing={"source": workload.routing.source},
        notes=notes,
        totals={name: totals[place] for name, place in TOTALS.items()} | moved,
        gaps=np.sum([group.ranks.gaps for group in groups], axis=0),
        lost=None if timeline is None else timeline.lost,
    )


TOTALS = {
    "preemptions": scheduler.PREEMPTIONS,
    "prompt_tokens_computed": scheduler.PROMPT_TOKENS,
    "tokens_generated": scheduler.GENERATED_TOKENS,
    "prefix_blocks_found": scheduler.FOUND,
    "prefix_blocks_looked_for": scheduler.LOOKED_FOR,
}


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


def timeline_of(inputs: Inputs, cluster: Cluster, seed: int) -> Timeline | None:
    """What breaks in a run, None if nothing does; InputError for what is not in the graph."""
    if not inputs.workload.faults:
        return None
    return Timeline(
        inputs,
        cluster.graph,
        cluster.names,
        cluster.layout,
        cluster.pool,
        cluster.service,
        cluster.handover,
        seed,
    )


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


def arrive(cluster: Cluster, requests: Requests, progress: Progress | None) -> None:
    """Have all requests come at their times, or one for each that ends (closed concurrency)."""
    service = cluster.service
    number = len(requests)
    ended = 0
    coming: Iterator[int] = iter(range(number))

    def end(_: int) -> None:
        nonlocal ended
        ended += 1
        if progress is not None and (ended % 64 == 0 or ended == number):
            progress(ended, number)
        if requests.concurrency is not None:
            following = next(coming, None)
            if following is not None:
                service.at(service.env.now, lambda: service.submit(following))

    service.on_end = end
    if requests.concurrency is not None:
        for _ in range(min(requests.concurrency, number)):
            first = next(coming)
            service.at(0.0, lambda request=first: service.submit(request))  # type: ignore[misc]
        return

    def next_one(request: int) -> None:
        if request + 1 < number:
            service.at(float(requests.arrival_s[request + 1]), lambda: next_one(request + 1))
        service.submit(request)

    service.at(float(requests.arrival_s[0]), lambda: next_one(0))
