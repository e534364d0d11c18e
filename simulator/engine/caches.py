"""The expert memories of a run and its prefetcher, as a workload asks for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.routes import RouteTable
from simulator.engine import foresight
from simulator.engine.driver import Driver
from simulator.engine.foresight import Foresight
from simulator.engine.layout import Layout
from simulator.engine.memories import Laid, Memories, suits
from simulator.engine.memory import ExpertMemory, Pool, Sources
from simulator.engine.one_by_one import OneByOne
from simulator.engine.roads import Roads
from simulator.engine.shape import Shape
from simulator.errors import InputError
from simulator.model import sizes
from simulator.model.compute import ComputeModel
from simulator.policies import eviction, prefetch
from simulator.policies.pick import pick
from simulator.spec.choices import parse_choice
from simulator.spec.load import Inputs
from simulator.spec.schema import Workload


class Caches(NamedTuple):
    """memories: None if every GPU keeps all that it serves; foresights: what an oracle of eviction
    is told, one per GPU, none for others; prefetcher: None if nobody predicts;
    clairvoyant: whether it is told the truth; depth: for how many layers ahead it is asked.
    """

    memories: OneByOne | Memories | None = None
    foresights: Sequence[Foresight] = ()
    prefetcher: prefetch.Prefetcher | None = None
    clairvoyant: bool = False
    depth: int = 1


def caches_of(
    inputs: Inputs,
    layout: Layout,
    roads: Roads,
    driver: Driver,
    shape: Shape,
    compute: ComputeModel,
    seed: int,
) -> Caches:
    """The caches of a run on a layout; raises InputError for experts that no pool can hold."""
    if not layout.offloaded:
        return Caches()
    workload = inputs.workload
    pool = _pool(workload)
    maker = pick("eviction", eviction.EVICTIONS, workload.eviction)
    predictor, predicting, depth = _predictor(workload, layout, pool, seed)
    routes = _routes(layout, roads)
    wire_bytes = roads.copy_wire_bytes * pool.expert_bytes
    yields = workload.prefetch_yields == "shared-links"
    lend = bool((roads.from_peer >= 0).any())
    told = predictor in {prefetch.PREFETCHERS[name] for name in prefetch.ORACLES}
    known = predictor is None or predictor in prefetch.PREFETCHERS.values()
    steps = workload.traffic.warmup_steps + workload.traffic.steps
    units = steps * shape.layers * shape.gpus * shape.microbatches
    if known and suits(maker, pool, lend, yields, units):
        first = workload.expert_order == "resident-first"
        laid = Laid(maker, pool, routes, wire_bytes, first, predictor, predicting, depth)
        memories = Memories(driver, shape, compute, laid)
        if predictor is None or memories.predicts:
            return Caches(memories)
        return Caches(memories, (), prefetch.made(predictor, predicting), told, depth)
    seeing = maker in {eviction.EVICTIONS[name] for name in eviction.ORACLES}
    foresights = [Foresight(pool.layers) for _ in range(layout.gpus if seeing else 0)]
    every = eviction.Setup(pool.layers, workload.model.moe.experts, pool.slots, pool.pooled)
    links = _links_of(roads.routes) if yields else None
    each = []
    for gpu in range(layout.gpus):
        future = foresights[gpu] if seeing else None
        setup = every if future is None else every._replace(next_use=future.next_use)
        sources = Sources([routes[gpu].tolist()] * pool.layers, wire_bytes.tolist(), links)
        stream = 2 * layout.gpus + gpu
        evict = eviction.made(maker, setup)
        each.append(ExpertMemory(driver, stream, pool, sources, evict, future))
    _introduce(each, roads, links)
    prefetcher = None if predictor is None else prefetch.made(predictor, predicting)
    return Caches(OneByOne(each, depth), foresights, prefetcher, told, depth)


def notes_of(workload: Workload, layout: Layout, roads: Roads) -> list[str]:
    """What a reader of the figures must know of the caches."""
    notes: list[str] = []
    if not layout.offloaded:
        return notes
    steps = workload.traffic.warmup_steps + workload.traffic.steps
    name = workload.eviction
    if name in eviction.ORACLES and steps > foresight.WINDOW + 1:
        notes.append(
            f"eviction {name} sees {foresight.WINDOW} steps ahead of {steps}: what is not used "
            "again within them counts as never used"
        )
    if name in eviction.ORACLES and workload.model.moe.expert_sizes is not None:
        notes.append(f"eviction {name}: with experts of unequal sizes a heuristic, not a bound")
    if workload.expert_home == "peer-or-host" and not (roads.from_peer >= 0).any():
        notes.append(
            "expert_home peer-or-host: no two GPUs of a node that serve the same experts are "
            "joined by NVLink; all come from host memory"
        )
    return notes


def _pool(workload: Workload) -> Pool:
    model = workload.model
    assert workload.expert_slots is not None
    given = model.moe.expert_sizes
    pool = Pool(
        layers=model.layers - model.moe.first_dense_layers,
        slots=workload.expert_slots,
        pooled=workload.expert_pool == "global",
        sizes=None if given is None or set(given) == {1.0} else given,
        budget_bytes=workload.prefetch_budget_bytes,
        expert_bytes=sizes.expert_bytes(model),
    )
    if given is not None and max(given) > pool.most:
        raise InputError(
            f"model.moe.expert_sizes: an expert of size {max(given):g} does not fit into "
            f"{pool.most} slots; raise expert_slots or set expert_pool=global"
        )
    return pool


def _routes(layout: Layout, roads: Roads) -> NDArray[np.int32]:
    """Route of each expert's weights to each GPU int32 [gpus, experts], -1 if held for good."""
    experts = layout.serves.shape[-1]
    return np.array([roads.fetched(layout, g, experts) for g in range(layout.gpus)], dtype=np.int32)


def _links_of(routes: RouteTable) -> Callable[[int], frozenset[int]]:
    """The links that each route crosses."""

    @cache
    def links(route: int) -> frozenset[int]:
        return frozenset(routes.crossed[routes.ptr[route] : routes.ptr[route + 1]].tolist())

    return links


def _introduce(
    memories: Sequence[ExpertMemory], roads: Roads, links: Callable[[int], frozenset[int]] | None
) -> None:
    """Tell memories of those that may lend to them, and of those that share links with them."""
    over: list[frozenset[int]] = []
    for gpu, memory in enumerate(memories):
        near = np.flatnonzero(roads.from_peer[:, gpu] >= 0)
        routes = roads.from_peer[near, gpu]
        order = np.lexsort((near, roads.slowest_s[routes]))
        memory.lenders = [(memories[near[i]], int(routes[i])) for i in order.tolist()]
        if links is not None:
            own = {route for layer in memory.sources.routes for route in layer if route >= 0}
            own |= {route for _, route in memory.lenders}
            over.append(frozenset().union(*(links(route) for route in sorted(own))))
    for gpu, mine in enumerate(over):
        memories[gpu].neighbours = [
            memories[other]
            for other, theirs in enumerate(over)
            if other != gpu and not mine.isdisjoint(theirs)
        ]


def _predictor(
    workload: Workload, layout: Layout, pool: Pool, seed: int
) -> tuple[prefetch.Maker | None, prefetch.Setup, int]:
    """The maker of the prefetcher, what it may know, and for how many layers ahead it is asked."""
    choice = parse_choice(workload.prefetch, "prefetch")
    every = np.arange(layout.gpus, dtype=np.int32)
    experts = workload.model.moe.experts
    setup = prefetch.Setup(
        layers=pool.layers,
        experts=experts,
        serves=layout.serves,
        group=every if layout.fetch else every // np.int32(layout.ep),
        slots=min(pool.most, experts),
        argument=choice.argument,
        rng=np.random.default_rng([seed, crc32(b"prefetch")]),
    )
    if choice.name == "none":
        return None, setup, 1
    depth = workload.prefetch_depth
    if choice.name == "oracle" and choice.argument is not None:
        depth = int(choice.argument)
    return pick("prefetch", prefetch.PREFETCHERS, choice.name), setup, depth
