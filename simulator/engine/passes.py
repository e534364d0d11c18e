"""What each operation of a program is, filled in from the batches: times, bytes, transfers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.engine import core
from simulator.engine.links import Merged, Wires
from simulator.engine.plan_pass import SYNCS, ChunkOps, ExchangeOps, LayerOps, StageOps, SyncOps
from simulator.engine.plan_roads import PlanRoads
from simulator.engine.plan_sends import NOTHING_SENT, Sends, Table
from simulator.engine.plan_weights import Weights
from simulator.engine.portions import (
    ExpertTable,
    Portion,
    expert_table,
    passed_tokens,
    portions,
    replica_rows,
    sampled_rows,
)
from simulator.engine.program import Program
from simulator.engine.step import Sending
from simulator.model import kernels
from simulator.model.compute import (
    NORM_PASSES,
    NOTHING,
    ComputeModel,
    Work,
    beside,
    gemm_rates,
)
from simulator.model.plan import Plan, Stage
from simulator.model.sizes import ACTIVATION_BYTES, dtype_of
from simulator.model.speculative import queries
from simulator.routing.batches import Batch
from simulator.spec.load import Inputs

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]


class Filled(NamedTuple):
    """A program ready to run.

    op_f float64 [end + 1, 5], op_i int32 [end + 1, 9] and sends as the core has them; collectives
    that are one flow; mover: the operation that moves what each sends, itself or the collective's,
    int64 [end]; rows and active (experts with rows) int64, flops and bytes float64 [end];
    route_bytes float64 [rounds, routes]; loads int64 [rounds, layers, gpus, experts], rows (None:
    no experts).
    """

    op_f: Floats
    op_i: Ints
    sends: Table
    collectives: Merged | None
    mover: Longs
    rows: Longs
    active: Longs
    flops: Floats
    bytes: Floats
    route_bytes: Floats
    loads: Longs | None


class Filler:
    """Fills programs in; keeps the kernel times of each stage from batch to batch."""

    def __init__(
        self,
        inputs: Inputs,
        plan: Plan,
        program: Program,
        roads: PlanRoads,
        weights: Weights,
        wires: Wires,
    ) -> None:
        workload = inputs.workload
        traffic = workload.traffic
        self._plan = plan
        self._program = program
        self._roads = roads
        self._weights = weights
        self._wires = wires
        self._traffic = traffic
        self._whole = workload.model
        self._once = workload.transport.deduplicate != "none"
        # As in the step engine; sends between stages are left to the copy engines.
        overlapping = workload.overlap != "none"
        held = [
            workload.transport.sms if overlapping and stage.communicates else 0
            for stage in plan.stages
        ]
        self._compute = [
            ComputeModel(
                stage.model,
                beside(inputs.topology.gpu, sms),
                traffic.phase,
                traffic.context,
                workload.cuda_graphs,
                queries(traffic),
            )
            for stage, sms in zip(plan.stages, held, strict=True)
        ]
        self._gpu = inputs.topology.gpu

    def fill(self, batches: list[Batch]) -> Filled:
        """The program with these batches, one per round."""
        program, plan, roads = self._program, self._plan, self._roads
        count = program.end + 1
        self._op_f = np.full((count, 5), -1.0)
        self._op_f[:, core.DURATION : core.DELAY + 1] = 0.0
        self._op_i = np.zeros((count, 9), dtype=np.int32)
        self._op_i[:, core.STREAM] = -1
        self._op_i[:, core.CAUSE] = -1
        self._op_i[:, core.WAITS] = program.waits
        self._op_i[program.end, core.TELL] = 1
        self._rows = np.zeros(program.end, dtype=np.int64)
        self._active = np.zeros(program.end, dtype=np.int64)
        self._work = np.zeros((program.end, 2))
        self._mover = np.arange(program.end)
        self._sends = Sends(self._wires)
        rounds, experts, layers = program.rounds, self._whole.moe.experts, self._whole.layers
        self._route_bytes = np.zeros((rounds, roads.routes.count))
        self._loads = (
            np.zeros((rounds, layers, plan.gpus, experts), dtype=np.int64) if experts else None
        )
        for round_, batch in enumerate(batches):
            for index, portion in enumerate(portions(plan, batch)):
                self._pass(round_, index, portion, batch)
        return Filled(
            self._op_f,
            self._op_i,
            self._sends.table(),
            self._sends.collectives(),
            self._mover,
            self._rows,
            self._active,
            self._work[:, 0],
            self._work[:, 1],
            self._route_bytes,
            self._loads,
        )

    def _pass(self, round_: int, index: int, portion: Portion, batch: Batch) -> None:
        plan, program = self._plan, self._program
        base = (round_ * plan.microbatches + index) * program.size
        for number, (stage, ops) in enumerate(zip(plan.stages, program.stages, strict=True)):
            rows = replica_rows(plan, stage, portion)
            kept: dict[tuple[int, int], ExpertTable] = {}
            for layer in ops.layers:
                self._layer(round_, base, number, layer, rows, portion, batch, kept)
            if stage.last:
                sampled = sampled_rows(plan, stage, portion, batch, self._traffic.phase == "decode")
                compute = self._compute[number]
                head = [
                    compute.lm_head(r) if r and stage.model.vocab else NOTHING
                    for r in sampled.tolist()
                ]
                if stage.model.vocab:
                    self._kernels(stage, base + ops.head, head, sampled)
            else:
                self._pass_on(round_, base, number, portion, ops, program.stages[number + 1])

    def _layer(
        self,
        round_: int,
        base: int,
        number: int,
        ops: LayerOps,
        rows: Longs,
        portion: Portion,
        batch: Batch,
        kept: dict[tuple[int, int], ExpertTable],
    ) -> None:
        stage, compute = self._plan.stages[number], self._compute[number]
        dense = stage.model.moe.first_dense_layers
        sparse = ops.layer >= dense
        near = ops.layer in compute.windowed
        counts = rows.tolist()
        if stage.model.attention.heads:
            work = [compute.attention(r, sparse, near) for r in counts]
        else:
            work = [self._gate(stage, compute, r) if sparse else NOTHING for r in counts]
        self._kernels(stage, base + ops.attention, work, rows)
        if not sparse:
            ffn = [compute.dense_ffn(r) for r in counts]
            self._kernels(stage, base + ops.ffn, ffn, rows)
        elif not stage.degrees.dispatches:
            ffn = [compute.shared_experts(r) for r in counts]
            self._kernels(stage, base + ops.ffn, ffn, rows)
        else:  # each rank on its own tokens
            mine = np.diff(-(-rows[:, None] * np.arange(stage.degrees.tp + 1) // stage.degrees.tp))
            shared = [compute.shared_experts(r) for r in mine.ravel().tolist()]
            self._fill(stage, base + ops.ffn, shared, mine.ravel())
        for chunk, part in enumerate(ops.chunks):
            recorded = int(batch.layer_of[ops.layer - dense])
            table = kept.get((chunk, recorded))
            if table is None:
                ids = batch.ids[:, recorded]
                table = expert_table(self._plan, stage, portion, chunk, ids, self._once)
                kept[chunk, recorded] = table
            self._experts(round_, base, number, ops.layer, part, table)
            if part.dispatch is not None and part.combine is not None:
                like = (base, number, chunk, recorded)
                to, fro = self._roads.dispatch[number], self._roads.combine[number]
                self._tokens(round_, base, stage, to, part.dispatch, table.pairs, (*like, 0))
                self._tokens(round_, base, stage, fro, part.combine, table.pairs.T, (*like, 1))
        for sync in ops.syncs:
            self._sync(round_, base, number, sync, rows)
        if ops.fetch.size:
            self._fetch(
                round_, stage, base + ops.fetch, self._weights.size_bytes[number, ops.layer]
            )

    def _fetch(self, round_: int, stage: Stage, fetches: Ints, size_bytes: Floats) -> None:
        """Weights come from host memory, size_bytes [gpus]."""
        gpus = np.array(stage.gpus)
        route = self._weights.from_host[gpus]
        self._op_i[fetches, core.KIND] = core.FETCH
        self._op_i[fetches, core.STREAM] = 2 * self._plan.gpus + gpus
        self._op_i[fetches, core.ROW] = route
        self._op_f[fetches, core.DURATION] = size_bytes * self._weights.wire_bytes[route]
        self._work[fetches, 1] = size_bytes
        np.add.at(self._route_bytes[round_], route, size_bytes)

    def _gate(self, stage: Stage, compute: ComputeModel, rows: int) -> Work:
        """The norm and the router of a layer without attention."""
        if rows == 0:
            return NOTHING
        model = stage.model
        norm = kernels.moved(compute.plain, NORM_PASSES * rows * model.hidden * ACTIVATION_BYTES)
        rates = gemm_rates(self._gpu, dtype_of(model, "gate"))
        return kernels.together(norm, kernels.gemm(rates, rows, model.moe.experts, model.hidden))

    def _kernels(self, stage: Stage, ops: Ints, work: list[Work], rows: Longs) -> None:
        """Kernels of all ranks of each replica, work and rows [replicas]."""
        tp = stage.degrees.tp
        every = [one for one in work for _ in range(tp)]
        self._fill(stage, ops, every, np.repeat(rows, tp))

    def _fill(self, stage: Stage, ops: Ints, work: list[Work], rows: Longs) -> None:
        """Kernels of each GPU, work and rows [gpus]."""
        table = np.array(work)
        self._op_f[ops, core.DURATION] = table[:, 0]
        self._op_i[ops, core.STREAM] = np.where(table[:, 0] > 0.0, stage.gpus, -1)
        self._work[ops] = table[:, 1:]
        self._rows[ops] = rows

    def _experts(
        self, round_: int, base: int, number: int, layer: int, ops: ChunkOps, table: ExpertTable
    ) -> None:
        stage, compute = self._plan.stages[number], self._compute[number]
        gpus = np.array(stage.gpus)
        work = [
            compute.experts_by_rows(rows, tokens)
            for rows, tokens in zip(table.rows.tolist(), table.tokens, strict=True)
        ]
        self._fill(stage, base + ops.experts, work, table.rows.sum(axis=1))
        self._active[base + ops.experts] = np.count_nonzero(table.rows, axis=1)
        if self._loads is not None:
            self._loads[round_, layer, gpus] += table.rows

    def _tokens(
        self,
        round_: int,
        base: int,
        stage: Stage,
        sending: Sending | None,
        ops: ExchangeOps,
        pairs: Ints,
        like: tuple[int, ...],
    ) -> None:
        """Dispatch or combine of pairs [gpus, gpus] tokens; those of one `like` are the same."""
        assert sending is not None  # the stage dispatches
        source, target = np.nonzero(pairs)
        gpus = np.array(stage.gpus)
        route = self._roads.route(gpus[source], gpus[target])
        tokens = pairs[source, target]
        wire = sending.on_wire(tokens, route)
        np.add.at(self._route_bytes[round_], route, tokens * sending.token_bytes)
        sent = pairs.sum(axis=1)
        sends = base + ops.send
        self._work[sends, 1] = sent * sending.token_bytes
        self._rows[sends] = sent
        if self._program.whole:
            delays = np.full(len(ops.move), sending.delay_s)
            ends = base + ops.end
            self._as_one_flow(
                stage, sends, base + ops.move, ends, (route, wire, source), delays, like
            )
            return
        row = self._sends.add(len(gpus), source, target, route, wire)
        receives = base + ops.receive
        self._send(sends, gpus, self._plan.gpus + gpus, sent > 0, row, receives[0])
        self._op_f[sends, core.DELAY] = np.where(sent > 0, sending.delay_s, 0.0)
        self._op_i[receives, core.WAITS] += np.count_nonzero(pairs, axis=0)

    def _as_one_flow(
        self,
        stage: Stage,
        sends: Ints,
        moves: Ints,
        ends: Ints,
        transfers: tuple[Ints, Floats, Longs],
        delays: Floats,
        like: tuple[int, ...],
    ) -> None:
        """Collectives of all groups, each one flow: transfers are the route int32, the bytes on the
        wire float64 and the sender int64 of each, sorted by sender; delays float64 [groups].
        """
        route, wire, sender = transfers
        members = len(sends) // len(moves)
        gpus = np.array(stage.gpus)
        cuts = np.searchsorted(sender, np.arange(1, len(moves)) * members)
        parts = zip(np.split(route, cuts), np.split(wire, cuts), strict=True)
        row = np.array(
            [self._sends.whole((*like, group), *part) for group, part in enumerate(parts)]
        )
        some = row != NOTHING_SENT
        self._send(
            moves, self._plan.gpus + ends, self._plan.gpus + gpus[::members], some, row, ends
        )
        self._op_f[moves, core.DELAY] = np.where(some, delays, 0.0)
        self._op_i[ends, core.WAITS] += some
        busy = np.bincount(sender, minlength=len(sends)) > 0
        self._mover[sends[busy]] = np.repeat(moves, members)[busy]

    def _send(
        self,
        sends: Ints,
        cause: NDArray[np.integer],
        stream: NDArray[np.integer],
        some: NDArray[np.bool_],
        row: NDArray[np.integer],
        receiver: int | NDArray[np.integer],
    ) -> None:
        """Make sends of operations [senders] that have something to send."""
        op_i = self._op_i
        op_i[sends, core.KIND] = np.where(some, core.SEND, core.TIMED)
        op_i[sends, core.STREAM] = np.where(some, stream, -1)
        op_i[sends, core.ROW] = row
        op_i[sends, core.RECEIVER] = receiver
        op_i[sends, core.CAUSE] = cause

    def _sync(self, round_: int, base: int, number: int, ops: SyncOps, rows: Longs) -> None:
        """A tensor-parallel collective of rows [replicas] tokens."""
        stage, plan = self._plan.stages[number], self._plan
        tp = stage.degrees.tp
        of = self._roads.syncs[number][ops.op]
        size = rows.astype(np.float64) * (stage.model.hidden * ACTIVATION_BYTES)
        some = rows[of.replica] > 0
        wire, moved = of.on_wire(size)[some], of.payload(size)[some]
        owner, route = of.owner[some].astype(np.int64), of.route[some]
        gpus = np.array(stage.gpus)
        np.add.at(self._route_bytes[round_], route, moved)
        sends = base + ops.send
        own = of.own[some]
        self._work[sends, 1] = np.bincount(owner[own], moved[own], minlength=len(gpus))
        self._rows[sends] = np.repeat(rows, tp)
        if self._program.whole:
            like = (number, SYNCS[ops.op], *rows.tolist())
            ends = base + ops.end
            transfers = (route, wire, owner)
            self._as_one_flow(stage, sends, base + ops.move, ends, transfers, of.delay_s, like)
            return
        row = self._sends.add(len(gpus), owner, np.zeros_like(owner), route, wire)
        ends = np.repeat(base + ops.end, tp)
        # Its cause is the end itself: who came last is looked up when all is over.
        working = np.bincount(owner, minlength=len(gpus)) > 0
        self._send(sends, plan.gpus + ends, plan.gpus + gpus, working, row, ends)
        self._op_f[sends, core.DELAY] = np.where(working, np.repeat(of.delay_s, tp), 0.0)
        arriving = np.bincount(of.replica[some], minlength=len(ops.end))
        self._op_i[base + ops.end, core.WAITS] += arriving

    def _pass_on(
        self, round_: int, base: int, number: int, portion: Portion, ops: StageOps, after: StageOps
    ) -> None:
        """Activations go to the next stage on the copy streams, or, where these are taken up by
        weights, on the communication streams.
        """
        plan = self._plan
        stream = plan.gpus if plan.streams else 2 * plan.gpus
        stage, following = plan.stages[number], plan.stages[number + 1]
        source, target, tokens = passed_tokens(plan, stage, following, portion)
        gpus, targets = np.array(stage.gpus), np.array(following.gpus)
        apart = gpus[source] != targets[target]
        source, target, tokens = source[apart], target[apart], tokens[apart]
        passing = self._roads.passing[number]
        if passing is None:
            return
        size = tokens * (stage.model.hidden * ACTIVATION_BYTES)
        route = self._roads.route(gpus[source], targets[target])
        wire = passing.on_wire(size, route)
        np.add.at(self._route_bytes[round_], route, size)
        row = self._sends.add(len(gpus), source, target, route, wire)
        sent = np.bincount(source, size, minlength=len(gpus))
        sends = base + ops.send
        self._send(sends, gpus, stream + gpus, sent > 0, row, base + after.enter[0])
        self._op_f[sends, core.DELAY] = np.where(sent > 0, passing.delay_s, 0.0)
        enters = base + after.enter
        self._op_i[enters, core.WAITS] += np.bincount(target, minlength=len(targets))
        self._work[sends, 1] = sent
        self._rows[sends] = np.bincount(source, tokens, minlength=len(gpus)).astype(np.int64)
