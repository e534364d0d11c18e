"""One step through all layers: filled in from the batch, run by the core, read out as spans.

Each GPU has a compute, a communication and a copy stream, first come, first served. A GPU goes on
as soon as *its* tokens have arrived; GPUs meet only through the transfers between them and at the
end of the step. simpy is woken where something must be decided: when tokens reach experts that
may have to be fetched, when all gates of a layer have spoken (prefetch), when a copy stream falls
idle, and at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy
from numpy.typing import NDArray

from simulator.engine import core, links, shape
from simulator.engine.costs import on_wire
from simulator.engine.driver import Driver
from simulator.engine.foresight import Foresight
from simulator.engine.links import Merged, Wires, merged
from simulator.engine.memories import Memories
from simulator.engine.memory import HIT, LATE, MISS
from simulator.engine.one_by_one import OneByOne
from simulator.engine.parts import MicroBatch, Tables, joined
from simulator.engine.shape import Shape
from simulator.engine.slots import Told
from simulator.model.compute import NOTHING, ComputeModel, Work
from simulator.policies.prefetch import Future, Past, Prefetcher

Floats = NDArray[np.float64]
Int32s = NDArray[np.int32]


@dataclass(frozen=True)
class Sending:
    """What dispatch, or combine, makes of tokens.

    token_bytes: of one token; efficiency: float64 [routes], of large messages on each; packed: all
    tokens for a GPU are one message, else each is one; delay_s: from the data to the first message.
    """

    token_bytes: float
    efficiency: Floats
    half_size_bytes: float
    packed: bool
    delay_s: float

    def on_wire(self, tokens: NDArray[np.int32], routes: Int32s) -> Floats:
        """Bytes that so many tokens put on the links of these routes, float64 [transfers]."""
        messages = np.ones(len(tokens)) if self.packed else tokens.astype(np.float64)
        message_bytes = self.token_bytes * (tokens / messages)
        return on_wire(message_bytes, messages, self.half_size_bytes, self.efficiency[routes])


@dataclass(frozen=True)
class Machine:
    """All that stays the same from step to step.

    between: int32 [gpus, gpus] routes; dense: how many layers come before the first MoE layer;
    expert_bytes: of the weights of one expert (of size 1) in one layer; depth: for how many layers
    ahead the prefetcher is asked;
    foresights: what an oracle of eviction is told, one per GPU, or none; origin: int32 [routes],
    the GPU at which each begins, -1: host memory;
    memories: of all GPUs, None if every expert that a GPU serves is always resident.
    Streams: compute of GPU g is g, communication gpus + g, copy 2 gpus + g.
    """

    driver: Driver
    shape: Shape
    compute: ComputeModel
    wires: Wires
    between: Int32s
    dense: int
    dispatch: Sending
    combine: Sending
    expert_bytes: float
    memories: OneByOne | Memories | None
    resident_first: bool
    prefetcher: Prefetcher | None
    clairvoyant: bool
    depth: int
    foresights: Sequence[Foresight]
    origin: Int32s


FORESEEN, CANCELLED = 3, 4  # places of those predicted, and of prefetches never begun, in accesses

# Operation, expert (-1: the resident ones), rows, micro-batch, chunk, layer, GPU, and the GPU whose
# transfer came last; when the tokens were there, FLOPs, bytes.
ExpertKernel = tuple[int, int, int, int, int, int, int, int, float, float, float]


class Step:
    """One step. State: the expert kernels added while it runs, and its accesses int64 [gpus,
    layers, 5]: hits, late hits, misses, how many of all had been predicted, prefetches never begun.

    `work` float64
    [microbatches, layers, kinds, gpus, 2]: FLOPs and HBM bytes (sends: 0 and bytes sent); `rows`
    int64 [microbatches, layers, kinds, gpus]; the heads' beside them.
    """

    def __init__(
        self,
        machine: Machine,
        index: int,
        microbatches: list[MicroBatch],
        layer_of: NDArray[np.int32],
    ) -> None:
        self.machine = machine
        self.index = index
        self.microbatches = microbatches
        self.layer_of: list[int] = layer_of.tolist()
        self.table_of = [-1] * machine.dense + microbatches[0].table_of
        of = machine.shape
        self._kernels: list[ExpertKernel] = []
        self.accesses = np.zeros((of.gpus, of.layers, 5), dtype=np.int64)
        self.work = np.zeros((of.microbatches, of.layers, of.kinds, of.gpus, 2))
        self.rows = np.zeros((of.microbatches, of.layers, of.kinds, of.gpus), dtype=np.int64)
        self.head_work = np.zeros((of.microbatches, of.gpus, 2))
        self.head_rows = np.array([batch.sampled for batch in microbatches])
        self.route_bytes: Floats
        self._done = machine.driver.env.event()

    def kernels(self) -> tuple[Int32s, Floats]:
        """The expert kernels added: int32 [kernels, 8], float64 [kernels, 3] (`ExpertKernel`)."""
        if isinstance(self.machine.memories, Memories):
            return self.machine.memories.kernels()
        table = np.array(self._kernels).reshape(-1, 11)
        return table[:, :8].astype(np.int32), table[:, 8:]

    def end(self, last: bool) -> Told | None:
        """The fetches whose fate is known now that the step has ended; `last`: of the run."""
        memories = self.machine.memories
        if memories is None:
            return None
        told = memories.end_of_step(last)
        if isinstance(memories, OneByOne):
            self.accesses[:, self.machine.dense :, CANCELLED] = memories.cancelled()
        return told

    def run(self) -> simpy.Event:
        """Let the step begin; the event comes when it has ended."""
        driver = self.machine.driver
        self._lay()
        driver.on_end = self._ended
        driver.start(self.machine.shape.grid[:, 0, shape.ATTENTION].ravel())
        return self._done

    # --- before: what each operation is in this step

    def _lay(self) -> None:
        m = self.machine
        of = m.shape
        op_f = np.full((of.count, 5), -1.0)
        op_f[:, core.DURATION : core.DELAY + 1] = 0.0
        op_i = np.zeros((of.count, 9), dtype=np.int32)
        op_i[:, core.STREAM] = -1
        op_i[:, core.CAUSE] = -1
        op_i[:, core.WAITS] = of.waits
        grid_f = op_f[: of.gates].reshape(*of.grid.shape, 5)
        grid_i = op_i[: of.gates].reshape(*of.grid.shape, 9)
        op_i[of.end, core.TELL] = 1
        if m.prefetcher is not None or (isinstance(m.memories, Memories) and m.memories.predicts):
            gates = op_i[of.gates : of.heads].reshape(of.microbatches, of.layers, 9)
            gates[:, m.dense :, core.TELL] = 1
        gpus = np.arange(of.gpus, dtype=np.int32)
        compute = m.compute
        kinds = ((slice(m.dense), False), (slice(m.dense, None), True))
        for index, batch in enumerate(self.microbatches):
            rows = batch.rows.tolist()
            for layers, sparse in kinds[m.dense == 0 :]:
                attention = [compute.attention(r, sparse) for r in rows]
                ffn = [compute.shared_experts(r) if sparse else compute.dense_ffn(r) for r in rows]
                self._fill(grid_f, grid_i, (index, layers, shape.ATTENTION), attention, rows)
                self._fill(grid_f, grid_i, (index, layers, shape.SHARED), ffn, rows)
            for layer in compute.windowed:
                near = [compute.attention(r, layer >= m.dense, True) for r in rows]
                where = (index, slice(layer, layer + 1), shape.ATTENTION)
                self._fill(grid_f, grid_i, where, near, rows)
            heads = of.heads + index * of.gpus + gpus
            sampled = batch.sampled.tolist()
            work = np.array([compute.lm_head(r) if r else NOTHING for r in sampled])
            op_f[heads, core.DURATION] = work[:, 0]
            op_i[heads, core.STREAM] = np.where(work[:, 0] > 0.0, gpus, -1)
            self.head_work[index] = work[:, 1:]
        sends = _Sends(m.between, m.wires, of)
        parts = [(batch, tables) for batch in self.microbatches for tables in batch.chunks]
        together = joined([tables for _, tables in parts])
        often = np.concatenate(
            [np.bincount(batch.table_of, minlength=len(tables)) for batch, tables in parts]
        )
        dispatched = sends.add(together.pairs, m.dispatch, often, of.abroad)
        combined = sends.add(together.pairs.transpose(0, 2, 1), m.combine, often, None)
        done = 0
        for index, batch in enumerate(self.microbatches):
            for chunk, tables in enumerate(batch.chunks):
                mine = slice(done, done + len(tables))
                done += len(tables)
                self._lay_chunk(
                    grid_f, grid_i, index, chunk, tables, dispatched[mine], combined[mine]
                )
        self.route_bytes = sends.route_bytes
        m.driver.lay(op_f, op_i, *sends.table(), sends.collectives())
        if isinstance(m.memories, Memories):
            recorded = self.layer_of[m.dense :]
            m.memories.lay(self.index, self.microbatches, together, recorded, self.accesses)

    def _fill(
        self,
        grid_f: Floats,
        grid_i: Int32s,
        where: tuple[int, slice, int],
        work: Sequence[Work],
        rows: Sequence[int] | NDArray[np.int64],
    ) -> None:
        """Make kernels of what takes time, one per GPU: `where` is (micro-batch, layers, kind)."""
        table = np.array(work)
        gpus = np.arange(len(work), dtype=np.int32)
        grid_f[where][..., core.DURATION] = table[:, 0]
        grid_i[where][..., core.STREAM] = np.where(table[:, 0] > 0.0, gpus, -1)
        self.work[where] = table[:, 1:]
        self.rows[where] = rows

    def _lay_chunk(
        self,
        grid_f: Floats,
        grid_i: Int32s,
        index: int,
        chunk: int,
        tables: Tables,
        dispatched: Int32s,
        combined: Int32s,
    ) -> None:
        """The expert part of a chunk: what tables say, put where layers have them.

        dispatched, combined: int32 [tables, gpus], rows of the send table.
        """
        m = self.machine
        of = m.shape
        table_of = np.array(self.table_of[m.dense :])
        sparse = slice(m.dense, None)
        gpus = np.arange(of.gpus, dtype=np.int32)
        there = (shape.SEND_DISPATCH, shape.RECEIVE_DISPATCH, of.abroad)
        back = (shape.SEND_COMBINE, shape.RECEIVE_COMBINE, None)
        ways = (
            (tables.pairs, m.dispatch, dispatched, *there),
            (tables.pairs.transpose(0, 2, 1), m.combine, combined, *back),
        )
        for pairs, sending, row, send, receive, landed in ways:
            kind, receiver = of.kind(chunk, send), of.kind(chunk, receive)
            sent = pairs.sum(axis=2)
            sends_some = sent > 0
            block = np.tile(grid_i[index, m.dense, kind], (len(tables), 1, 1))
            block[..., core.ROW] = row
            if of.whole:
                sender = sends_some.reshape(len(tables), -1, of.whole).any(axis=2)
                sends_some[:, :: of.whole] |= sender
            else:
                block[..., core.CAUSE] = gpus
                waits = np.count_nonzero(pairs, axis=1)
                if landed is not None:
                    landing = np.count_nonzero(np.where(landed, pairs, 0), axis=1)
                    waits -= landing
                    where_landed = of.kind(chunk, shape.LANDED)
                    grid_i[index, sparse, where_landed, :, core.WAITS] += landing[table_of]
                grid_i[index, sparse, receiver, :, core.WAITS] += waits[table_of]
            block[sends_some, core.KIND] = core.SEND
            block[..., core.STREAM] = np.where(sends_some, of.gpus + gpus, -1)
            grid_i[index, sparse, kind] = block[table_of]
            first = -1 if of.whole else of.grid[index, sparse, receiver, :1]
            grid_i[index, sparse, kind, :, core.RECEIVER] = first
            delay_s = np.where(sends_some, sending.delay_s, 0.0)
            grid_f[index, sparse, kind, :, core.DELAY] = delay_s[table_of]
            self.work[index, sparse, kind, :, 1] = (sent * sending.token_bytes)[table_of]
            self.rows[index, sparse, kind] = sent[table_of]
        total = tables.rows.sum(axis=2)
        if m.memories is not None:
            # The experts wait until somebody has decided.
            arrive, some = of.kind(chunk, shape.RECEIVE_DISPATCH), (total > 0)[table_of]
            grid_i[index, sparse, arrive, :, core.TELL] = some
            grid_i[index, sparse, arrive + 1, :, core.WAITS] += some
            return
        active = np.count_nonzero(tables.rows, axis=2)
        for number, rows_of in enumerate(tables.rows_of):
            layers = m.dense + np.flatnonzero(table_of == number)
            self.accesses[:, layers, HIT] += active[number][:, None]
            work = [
                m.compute.experts_by_rows(rows, tokens)
                for rows, tokens in zip(rows_of, tables.tokens[number].tolist(), strict=True)
            ]
            for layer in layers.tolist():
                where = (index, slice(layer, layer + 1), of.kind(chunk, shape.EXPERTS))
                self._fill(grid_f, grid_i, where, work, total[number])

    # --- while it runs: decisions

    def _ended(self, ops: list[int]) -> None:
        of = self.machine.shape
        memories = self.machine.memories
        for op in ops:
            if op == of.end:
                self._done.succeed()
            elif isinstance(memories, Memories) and memories.decides(op):
                memories.decide(op)
            elif op >= of.gates:
                self._predict(*divmod(op - of.gates, of.layers))
            elif isinstance(memories, OneByOne):
                if op < 0:
                    memories.each[-1 - op - 2 * of.gpus].idle()
                else:
                    self._tokens_arrived(op, memories)

    def _tokens_arrived(self, op: int, memories: OneByOne) -> None:
        """Tokens are there: decide which experts are there, fetch the rest, queue the kernels.

        Resident experts are one grouped kernel; each fetched one is a kernel when it is there.
        """
        m = self.machine
        driver = m.driver
        index, layer, kind, gpu = m.shape.place(op)
        chunk = (kind - shape.CHUNK) // shape.PER_CHUNK
        tables, at_table = self.microbatches[index].chunks[chunk], self.table_of[layer]
        memory = memories.each[gpu]
        at = layer - m.dense
        memory.arrived(index, at)
        order = tables.order[at_table][gpu]
        if m.resident_first:
            order = memory.resident_first(at, order)
        grouped = driver.ids(1)[0]
        access = memory.use(self.index, index, at, order, grouped)
        resident, coming = access.resident, access.coming
        counts = self.accesses[gpu, layer]
        counts[HIT] += len(resident)
        counts[LATE] += access.late
        counts[MISS] += len(coming) - access.late
        counts[FORESEEN] += access.foreseen
        rows = tables.rows_of[at_table][gpu]
        now = driver.env.now
        cause: int = driver.net.op_i.item(op, core.CAUSE)
        peer = cause % m.shape.gpus if cause >= 0 else -1
        experts = op + m.shape.gpus  # the kind after RECEIVE_DISPATCH
        whole, edges = access.fetches, access.edges
        real = access.sizes
        where = (index, chunk, layer, gpu, peer)
        if resident:
            mine = [rows[expert] for expert in resident]
            count = sum(mine)
            work = m.compute.experts_by_rows(
                mine, min(int(tables.tokens[at_table, gpu]), count), resident
            )
            whole += (grouped, core.TIMED, gpu, 0)
            real.append(work.seconds)
            edges += (grouped, experts)
            self._kernels.append((grouped, -1, count, *where, now, work.flops, work.bytes))
        alone = m.compute.expert
        for expert, kernel in zip(coming, access.kernels, strict=True):
            count = rows[expert]
            seconds, flops, moved = alone(count, expert)
            whole += (kernel, core.TIMED, gpu, 0)
            real.append(seconds)
            edges += (kernel, experts)
            self._kernels.append((kernel, expert, count, *where, now, flops, moved))
        driver.add(whole, real, edges, experts)
        memory.idle()

    def _predict(self, index: int, layer: int) -> None:
        """All gates of a layer have spoken: ask for experts of the layers to come."""
        m = self.machine
        assert m.prefetcher is not None
        assert m.memories is not None
        batch = self.microbatches[index]
        ids = batch.ids
        here = self.layer_of[layer]
        before = ids[:, self.layer_of[layer - 1]] if layer > m.dense else None
        at = layer - m.dense
        rows = batch.expert_rows(at)
        of = (batch.source_gpu, batch.request)
        past = Past(index, at, ids[:, here], before, rows, *of)
        idle = rows.sum(axis=1) == 0
        left = m.shape.layers - 1 - layer
        if not left and not m.clairvoyant:  # nothing follows, but the way here is to be learned
            m.prefetcher(past, None)
        for ahead in range(1, min(m.depth, left) + 1):
            target = at + ahead
            future = Future(batch.expert_rows(target)) if m.clairvoyant else None
            wanted = m.prefetcher(past._replace(ahead=ahead), future)
            if isinstance(m.memories, Memories):
                m.memories.prefetch(index, at, target, wanted, idle)
            else:
                m.memories.prefetch(self.index, index, at, target, wanted, idle)


class _Sends:
    """The core's send table while it grows: a row per (all-to-all, sender)."""

    def __init__(self, between: Int32s, wires: Wires, of: Shape) -> None:
        self.route_bytes = np.zeros(wires.routes)
        self._flows: list[Merged] = []
        self._of = of
        self._between = between
        self._wires = wires
        self._ptr = [np.zeros(1, dtype=np.int64)]
        self._rows: list[Int32s] = []
        self._sizes: list[Floats] = []
        self._count = 0
        self._transfers = 0

    def add(
        self,
        pairs: Int32s,
        sending: Sending,
        often: NDArray[np.int64],
        landed: NDArray[np.bool_] | None,
    ) -> Int32s:
        """The sends of `pairs` [tables, gpus, gpus] tokens; returns rows int32 [tables, gpus].

        A table happens `often` int64 [tables], which is what the bytes per route count. Those of
        `landed` [gpus, gpus] are awaited where tokens land, not where they are received.
        """
        of = self._of
        table, source, target = np.nonzero(pairs)
        route = self._between[source, target]
        tokens = pairs[table, source, target]
        crossed = tokens * (sending.token_bytes * often[table])
        self.route_bytes += np.bincount(route, crossed, minlength=len(self.route_bytes))
        sizes = sending.on_wire(tokens, route)
        if of.whole:
            groups = of.gpus // of.whole
            each = np.bincount(table * groups + source // of.whole, minlength=len(pairs) * groups)
            rows = self._append_whole(route, sizes, each).reshape(len(pairs), groups)
            return np.repeat(rows, of.whole, axis=1)
        if landed is not None:
            target += (shape.LANDED - shape.RECEIVE_DISPATCH) * of.gpus * landed[source, target]
        each = np.bincount(table * of.gpus + source, minlength=len(pairs) * of.gpus)
        return self._append(target, route, sizes, each).reshape(len(pairs), of.gpus)

    def _append_whole(self, route: Int32s, sizes: Floats, each: NDArray[np.int64]) -> Int32s:
        """As `_append`, of collectives: all transfers of a row are one flow."""
        some = each > 0
        flows = merged(self._wires, np.append(0, np.cumsum(each[some])), route, sizes)
        before = sum(earlier.flows for earlier in self._flows)
        self._flows.append(flows)
        numbers = self._wires.routes + before + np.arange(flows.flows)
        return self._append(0, numbers, flows.size_bytes, some)

    def _append(
        self,
        target: NDArray[np.int64] | int,
        route: NDArray[Any],
        sizes: Floats,
        each: NDArray[Any],
    ) -> Int32s:
        """Transfers, so many in `each` new row; returns the rows' numbers."""
        sends = np.empty((len(sizes), 2), dtype=np.int32)
        sends[:, 0], sends[:, 1] = target, route
        self._rows.append(sends)
        self._sizes.append(sizes)
        self._ptr.append(self._transfers + np.cumsum(each))
        self._transfers += len(sizes)
        first = self._count
        self._count += len(each)
        return np.arange(first, self._count, dtype=np.int32)

    def table(self) -> tuple[Int32s, Int32s, Floats]:
        """send_ptr int32 [rows + 1], send_i int32 [sends, 2], send_f float64 [sends]."""
        rows = np.concatenate([np.zeros((0, 2), dtype=np.int32), *self._rows])
        sizes = np.concatenate([np.zeros(0), *self._sizes])
        return np.concatenate(self._ptr).astype(np.int32), rows, sizes

    def collectives(self) -> Merged | None:
        """The collectives that are one flow, None if there are none."""
        return links.joined(self._flows) if self._flows else None
