"""Steps of a group by the step engine, transfer by transfer: the compiled time held against it.

Slow (seconds where the compiled core takes milliseconds): for `network: exact`, checks, benchmarks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import simpy
from numpy.typing import NDArray

from simulator.engine.driver import Driver
from simulator.engine.links import network_of, wires_of
from simulator.engine.parts import MicroBatch, Tables, joined
from simulator.engine.ranks import ranks_of
from simulator.engine.roads import algorithm, sending
from simulator.engine.serving.cluster import Cluster
from simulator.engine.serving.group import Group, Setup
from simulator.engine.serving.scheduler import Ledger
from simulator.engine.serving.timing import DECODE, PREFILL, Routing
from simulator.engine.shape import ATTENTION, Shape
from simulator.engine.step import Machine, Step
from simulator.engine.tiers import Tiers, tiers_of
from simulator.model.attention import Asked
from simulator.model.compute import ComputeModel, Work, beside
from simulator.routing.traffic import traffic
from simulator.spec.load import Inputs

Floats = NDArray[np.float64]
Int32s = NDArray[np.int32]


class Engine:
    """The step engine for the GPUs of one group, with a network of one's choice."""

    def __init__(self, inputs: Inputs, cluster: Cluster, group: int, network: str) -> None:
        workload, layout, roads = inputs.workload, cluster.layout, cluster.roads
        of = cluster.service.groups[group].of
        ep = of.ranks
        mine = slice(group * ep, (group + 1) * ep)
        chosen = network_of(network)
        self.tiers: Tiers | None = None
        if ep > 1 and algorithm(workload.transport, "dispatch") == "two-tier":
            _, node = np.unique(ranks_of(cluster.graph).node[mine], return_inverse=True)
            self.tiers = tiers_of(node.astype(np.int32), layout.owner, ep)
        nodes = () if self.tiers is None else tuple(self.tiers.node.tolist())
        whole = ep if chosen.coflow else 0
        shape = Shape(of.halves, workload.model.layers, 1, ep, whole, nodes)
        wires = wires_of(roads.routes, weighted=chosen.coflow)
        held = workload.transport.sms if of.halves == 2 else 0
        compute = ComputeModel(
            workload.model, beside(inputs.topology.gpu, held), "decode", 1, workload.cuda_graphs
        )
        self.deduplicate = workload.transport.deduplicate != "none"
        self.evaluation = of.costs.evaluation
        self.machine = Machine(
            driver=Driver(
                simpy.Environment(0.0), wires, 3 * ep, shape.count, shape.edges, chosen.epsilon,
                1 if chosen.coflow else 0,
            ),
            shape=shape,
            compute=compute,
            wires=wires,
            between=np.ascontiguousarray(roads.between[mine, mine]),
            dense=workload.model.moe.first_dense_layers,
            dispatch=sending(inputs, layout, roads, "dispatch"),
            combine=sending(inputs, layout, roads, "combine"),
            expert_bytes=0.0,
            memories=None,
            resident_first=False,
            prefetcher=None,
            clairvoyant=False,
            depth=0,
            foresights=(),
            origin=roads.origin(),
        )  # fmt: skip

    def seconds(self, group: Group) -> float:
        """How long the step takes whose tokens stand in the group's `work` (all speeds 1)."""
        env = self.machine.driver.env
        began = env.now
        halves = [self._microbatch(group, half) for half in range(group.of.halves)]
        phases = group.work.phase.copy()
        step = _Mixed(self.machine, halves, self.evaluation, phases)
        env.run(until=step.run())
        return float(env.now - began)

    def _microbatch(self, group: Group, half: int) -> MicroBatch:
        work, routing = group.work, group.routing
        spans = [work.token[ends[half] : ends[half + 1]] for ends in work.ends.tolist()]
        rows = np.array([len(span) for span in spans])
        source = np.repeat(np.arange(len(spans), dtype=np.int32), rows)
        ids = routing.ids[np.concatenate(spans)]
        tables = [self._table(ids, source, routing, at) for at in range(len(routing.recorded))]
        return MicroBatch(
            ids=ids,
            source_gpu=source,
            request=np.zeros_like(source),
            rows=rows,
            sampled=work.phase[half, :, DECODE, 5].astype(np.int64),
            chunks=[joined(tables)],
            table_of=self.evaluation[self.machine.dense :].tolist(),
        )

    def _table(self, ids: NDArray[np.int16], source: Int32s, routing: Routing, at: int) -> Tables:
        """What one evaluated layer computes and sends, counted from the copies taken."""
        ep = len(routing.kind)
        chosen = ids[:, routing.recorded[at]]
        copies = routing.copy[at, routing.kind[source][:, None], chosen]
        taken = np.ascontiguousarray(np.where(chosen >= 0, copies, np.int16(-1)))
        gpu = routing.gpu.astype(np.int32)
        rows, pairs = traffic(taken, source, gpu, ep, ep, self.deduplicate)
        tokens = pairs.sum(axis=0, dtype=np.int64)
        if self.tiers is not None:
            pairs = self.tiers.sent(taken, source, pairs, gpu)
        np.fill_diagonal(pairs, 0)
        return Tables(rows[None], pairs[None], tokens[None])


class _Mixed(Step):
    """A step whose attention is of decodes and prompts of different lengths together.

    phases: float64 [halves, ranks, 2, 6], as `timing.Work` has it.
    """

    def __init__(
        self, machine: Machine, halves: list[MicroBatch], evaluation: Int32s, phases: Floats
    ) -> None:
        super().__init__(machine, 0, halves, evaluation)
        self._phases = phases

    def _fill(
        self,
        grid_f: Floats,
        grid_i: Int32s,
        where: tuple[int, slice, int],
        work: Sequence[Work],
        rows: Sequence[int] | NDArray[np.int64],
    ) -> None:
        half, layers, kind = where
        if kind == ATTENTION:
            first, last, _ = layers.indices(self.machine.shape.layers)
            if first == last:
                return
            gate, near = first >= self.machine.dense, first in self.machine.compute.windowed
            near = near and last == first + 1
            work = [
                self.machine.compute.mixed_attention(*asked_of(phase, near), gate)
                for phase in self._phases[half]
            ]
        super()._fill(grid_f, grid_i, where, work, rows)


def asked_of(phase: Floats, near: bool) -> tuple[Asked, Asked]:
    """What decodes and prompts of a rank ask of a layer; phase: float64 [2, 6], as `timing.Work`
    has it; near: the layer attends to its window only.
    """
    pairs, keys = (3, 4) if near else (1, 2)
    found = [
        Asked(int(of[0]), float(of[pairs]), float(of[keys]), which == DECODE)
        for which, of in ((DECODE, phase[DECODE]), (PREFILL, phase[PREFILL]))
    ]
    return found[0], found[1]


class ExactGroup(Group):
    """A group that asks an engine how long its steps take.

    share: of the steps, drawn at random, of which it asks; follow: they take what the engine says;
    found: (compiled, engine's) seconds of each.
    """

    def __init__(
        self, of: Setup, ledger: Ledger, engine: Engine, share: float, follow: bool, seed: int
    ) -> None:
        super().__init__(of, ledger)
        self.found: list[tuple[float, float]] = []
        self._engine, self._share, self._follow = engine, share, follow
        self._rng = np.random.default_rng(seed)

    def seconds(self) -> float:
        """As `Group.seconds`."""
        timed = super().seconds()
        if self._rng.random() >= self._share:
            return timed
        seconds = self._engine.seconds(self)
        self.found.append((timed, seconds))
        return seconds if self._follow else timed


def ask(inputs: Inputs, cluster: Cluster, network: str, share: float, follow: bool) -> None:
    """Have all groups of a cluster that has not begun ask the step engine (`ExactGroup`)."""
    groups = cluster.service.groups
    assert isinstance(groups, list)
    for number, group in enumerate(groups):
        engine = Engine(inputs, cluster, number, network)
        groups[number] = ExactGroup(group.of, group.ledger, engine, share, follow, number)
