"""A run: from the inputs to the tables of a run directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import simpy
from numpy.typing import NDArray

from simulator.cluster.graph import Graph, build_graph, gpus
from simulator.engine import core
from simulator.engine.caches import caches_of, notes_of
from simulator.engine.driver import Driver
from simulator.engine.fitting import ways_to_fit
from simulator.engine.foresight import Ahead
from simulator.engine.homes import Near, homes_of
from simulator.engine.layout import Layout, check_memory, gpu_memory, layout_of, memories_of
from simulator.engine.links import network_of, wires_of
from simulator.engine.parts import Cut, MicroBatch, cut
from simulator.engine.placed import near, placement_of, plain, refuse_placing
from simulator.engine.planned import simulate_plan
from simulator.engine.ranks import ranks_of
from simulator.engine.readout import read_fetches, read_spans
from simulator.engine.rebalance import Rebalancer, policy_of
from simulator.engine.roads import Roads, algorithm, roads_of, sending
from simulator.engine.shape import Shape
from simulator.engine.source import Report, routing_of
from simulator.engine.step import Machine, Step
from simulator.engine.tiers import Tiers, tiers_of
from simulator.engine.transport import token_bytes
from simulator.errors import InputError
from simulator.model import sizes
from simulator.model.compute import ComputeModel, beside
from simulator.model.footprint import RESERVED
from simulator.model.plan import needs_plan
from simulator.model.speculative import queries
from simulator.routing.batches import Batch
from simulator.runfiles import spans as tables
from simulator.runfiles.rundir import RunDir
from simulator.spec.choices import parse_choice
from simulator.spec.load import Inputs
from simulator.spec.schema import Workload

Progress = Callable[[int, int], None]


def simulate(inputs: Inputs, run: RunDir, seed: int, progress: Progress | None = None) -> Report:
    """Simulate every step and write spans, steps, accesses, loads and links into `run`.

    Raises InputError for inputs that do not go together (a model that does not fit, a trace of
    another model, GPUs that cannot reach each other).
    """
    workload = inputs.workload
    if needs_plan(workload):
        refuse_placing(workload, "a plan of layers has its experts in order")
        return simulate_plan(inputs, run, seed, progress)
    graph = build_graph(inputs.topology)
    names = gpus(graph)
    placement, distances, placed = None, None, ""
    if not plain(workload):
        _check_placing(workload)
        distances = near(inputs, graph, names)
        placement, placed = placement_of(inputs, distances, seed)
    layout = layout_of(workload, len(names), inputs.topology.name, placement)
    if workload.rebalance is not None and layout.offloaded:
        raise InputError(
            "rebalance: moves experts that stay on their GPUs, not those that are fetched to "
            "slots; write expert_slots: null or rebalance: null"
        )
    memories = memories_of(graph, names)
    advice = partial(ways_to_fit, inputs, graph)
    check_memory(workload, inputs.topology.gpu, layout, names, memories, graph, advice)
    roads = roads_of(inputs, graph, layout)
    tiers = _tiers(workload, graph, layout)
    batches, report = routing_of(inputs, layout.gpus, layout.ep, layout.offloaded, seed)
    report.notes += notes_of(workload, layout, roads)
    report.notes += [placed] if placed else []
    how = _cut(workload, layout, tiers, distances)
    machine = _machine(inputs, layout, roads, how, seed)
    rebalancer = None
    if distances is not None and workload.rebalance is not None:
        driver, free = machine.driver, _free(inputs, layout)
        rebalancer = Rebalancer(workload, layout, distances, roads, driver, how, free)
    route_bytes = _steps(workload, machine, batches, how, run, progress, rebalancer)
    report.notes += rebalancer.notes() if rebalancer is not None else []
    tables.write_links(
        run.links,
        [f"{a} -> {b}" for a, b in roads.routes.links],
        list(roads.routes.kinds),
        roads.routes.bandwidth_bytes_per_s,
        roads.routes.link_bytes(route_bytes),
    )
    report.solver = machine.driver.statistics()
    return report


def _machine(
    inputs: Inputs,
    layout: Layout,
    roads: Roads,
    how: Cut,
    seed: int,
) -> Machine:
    workload = inputs.workload
    model, traffic = workload.model, workload.traffic
    network = network_of(workload.network)
    wires = wires_of(roads.routes, weighted=network.coflow)
    whole = layout.ep if network.coflow else 0
    node = () if how.tiers is None else tuple(how.tiers.node.tolist())
    shape = Shape(how.microbatches, model.layers, how.chunks, layout.gpus, whole, node)
    driver = Driver(
        simpy.Environment(0.0),
        wires,
        3 * layout.gpus,
        shape.count,
        shape.edges,
        network.epsilon,
        layout.gpus // layout.ep if network.coflow else 0,
    )
    # Where batches overlap, a transport's kernels run beside all others, as in DeepSeek's prefill
    # (108 SMs compute, 24 communicate); without overlap a GPU computes and communicates in turn.
    overlapping = workload.overlap != "none" and layout.ep > 1 and not layout.fetch
    held = workload.transport.sms if overlapping else 0
    compute = ComputeModel(
        model,
        beside(inputs.topology.gpu, held),
        traffic.phase,
        traffic.context,
        workload.cuda_graphs,
        queries(traffic),
    )
    caches = caches_of(inputs, layout, roads, driver, shape, compute, seed)
    return Machine(
        driver=driver,
        shape=shape,
        compute=compute,
        wires=wires,
        between=roads.between,
        dense=model.moe.first_dense_layers,
        dispatch=sending(inputs, layout, roads, "dispatch"),
        combine=sending(inputs, layout, roads, "combine"),
        expert_bytes=sizes.expert_bytes(model),
        memories=caches.memories,
        resident_first=workload.expert_order == "resident-first",
        prefetcher=caches.prefetcher,
        clairvoyant=caches.clairvoyant,
        depth=caches.depth,
        foresights=caches.foresights,
        origin=roads.origin(),
    )


def _tiers(workload: Workload, graph: Graph, layout: Layout) -> Tiers | None:
    """How tokens go in two tiers, if the transport sends them so."""
    if layout.fetch or layout.gpus == 1 or algorithm(workload.transport, "dispatch") != "two-tier":
        return None
    return tiers_of(ranks_of(graph).node, layout.owner, layout.ep)


def _check_placing(workload: Workload) -> None:
    """Raise InputError for keys of placement that do not go with other keys."""
    if workload.expert_access == "fetch":
        refuse_placing(workload, "expert_access: fetch computes every expert where its tokens are")
    if workload.rebalance is not None:
        policy_of(workload)


def _free(inputs: Inputs, layout: Layout) -> list[float]:
    """Bytes free on each GPU beside what it always holds."""
    room = inputs.topology.gpu.hbm_capacity_bytes * (1.0 - RESERVED)
    kept = [gpu_memory(inputs.workload, layout, gpu) for gpu in range(layout.gpus)]
    return [room - sum(parts.values()) for parts in kept]


def _cut(workload: Workload, layout: Layout, tiers: Tiers | None, distances: Near | None) -> Cut:
    overlap = parse_choice(workload.overlap, "overlap")
    moe = workload.model.moe
    size = token_bytes(workload.transport, "dispatch", workload.model.hidden)
    least_loaded = workload.replica_choice == "least-loaded"
    homes, home_of = homes_of(layout.placement, moe.experts, distances, size, least_loaded)
    layers = workload.model.layers - moe.first_dense_layers
    return Cut(
        gpus=layout.gpus,
        experts=workload.model.moe.experts,
        homes=homes,
        home_of=np.broadcast_to(home_of, layers),
        ep=layout.ep,
        fetch=layout.fetch,
        deduplicate=workload.transport.deduplicate != "none",
        tiers=tiers,
        ordered=layout.offloaded,
        prefill=workload.traffic.phase == "prefill",
        microbatches=2 if overlap.name == "two-batch" else 1,
        chunks=int(overlap.argument or 1) if overlap.name == "chunked" else 1,
    )


def _steps(
    workload: Workload,
    machine: Machine,
    batches: Iterator[Batch],
    how: Cut,
    run: RunDir,
    progress: Progress | None,
    rebalancer: Rebalancer | None = None,
) -> NDArray[np.float64]:
    """Run warm-up and measured steps one after the other and write what they add up to.

    Returns the bytes per route [routes] of the measured steps.
    """
    traffic = workload.traffic
    env = machine.driver.env
    of = machine.shape
    steps = traffic.warmup_steps + traffic.steps
    starts, ends, tokens = [], [], []
    loads = np.zeros((of.layers, of.gpus, how.experts), dtype=np.int64)
    route_bytes = np.zeros(int(machine.driver.net.counts[core.ROUTES]))
    dense = np.full(machine.dense, -1, dtype=np.int32)

    def cutter(batch: Batch) -> list[MicroBatch]:
        return cut(batch, how if rebalancer is None else rebalancer.cut)

    ahead = Ahead(batches, cutter, steps, machine.foresights)
    with tables.SpanWriter(run.spans) as spans, tables.AccessWriter(run.accesses) as accesses:
        for index in range(steps):
            measured = index >= traffic.warmup_steps
            batch, microbatches = ahead.next()
            step = Step(machine, index, microbatches, np.concatenate([dense, batch.layer_of]))
            starts.append(env.now)
            done = step.run()
            if rebalancer is not None:
                rebalancer.begin(index)
            env.run(until=done)
            ends.append(env.now)
            tokens.append(batch.tokens)
            spans.extend(read_spans(step))
            if measured:
                route_bytes[: step.route_bytes.size] += step.route_bytes
            told = step.end(index == steps - 1)
            if told is not None and len(told.step):
                size = machine.expert_bytes
                spans.extend(read_fetches(told, machine.dense, size, machine.origin))
                if measured:
                    np.add.at(route_bytes, told.route, told.size * size)
            counts = step.accesses
            gpus, layers = np.nonzero(counts.any(axis=2))
            accesses.append(index, gpus, layers, *counts[gpus, layers].T)
            if measured:
                for microbatch in microbatches:
                    microbatch.add_rows(loads[machine.dense :])
            if rebalancer is not None:
                last = index == steps - 1
                moved, routes = rebalancer.ended(index, microbatches, last, machine.dense)
                spans.extend(moved)
                if measured:
                    np.add.at(route_bytes, routes, moved["bytes"])
            if progress is not None:
                progress(index + 1, steps)
    warmup = [i < traffic.warmup_steps for i in range(steps)]
    tables.write_steps(run.steps, list(range(steps)), starts, ends, tokens, warmup)
    at = np.nonzero(loads)
    tables.write_loads(run.loads, at[0], at[2], at[1], loads[at])
    return route_bytes
