"""The expert memories of all GPUs of a run, with decisions taken in compiled code.

They do what one `simulator.engine.memory.ExpertMemory` per GPU does, as far as `suits` says.
State is in `simulator.engine.memory_tables`, decisions in `memory_kernel`; here is what needs
Python: room in the tables, the times of kernels, and each step's routing.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.engine import memory_kernel as kernel
from simulator.engine import memory_tables as t
from simulator.engine.driver import Driver
from simulator.engine.parts import MicroBatch, Tables
from simulator.engine.shape import Shape
from simulator.engine.slots import Pool, Told
from simulator.model.compute import ComputeModel
from simulator.model.kernels import Rates
from simulator.policies import eviction, prefetch

Floats = NDArray[np.float64]
Int32s = NDArray[np.int32]

POLICIES: dict[eviction.Maker, int] = {
    eviction.lru: t.LRU,
    eviction.lfu: t.LFU,
    eviction.lfu_aging: t.LFU,
    eviction.arc: t.ARC,
    eviction.least_stale: t.LRU,  # the same where every layer has slots of its own
}
PREDICTORS: dict[prefetch.Maker | None, int] = {
    prefetch.oracle: t.ORACLE,
    prefetch.popularity: t.POPULARITY,
    prefetch.markov: t.MARKOV,
}
# So many layers x GPUs x micro-batches x steps are worth it: when first used on a machine, the
# kernels take a minute of processor time to compile, which shorter runs, decided in Python to the
# same result, do not take themselves.
WORTH = 100_000
FEW_PRICES, MOST_PRICES = 64, 1 << 17  # places for the times of grouped kernels


def suits(maker: eviction.Maker, pool: Pool, lend: bool, yields: bool, units: int) -> bool:
    """Whether memories of this kind can be these, and are worth it; `lend`: GPUs lend experts to
    one another, `yields`: prefetches wait for other GPUs' fetches, `units`: of the whole run.
    """
    plain = not pool.pooled and pool.sizes is None and pool.budget_bytes is None
    return maker in POLICIES and plain and not lend and not yields and units >= WORTH


class Laid(NamedTuple):
    """How the memories work: what is known of them before the first step.

    routes: int32 [gpus, experts], of each expert's weights, -1: held for good; wire_bytes:
    float64 [routes], of an expert; predictor: its maker, None if there is none; predicting: what it
    may know; depth: for how many layers ahead it is asked.
    """

    maker: eviction.Maker
    pool: Pool
    routes: Int32s
    wire_bytes: Floats
    resident_first: bool
    predictor: prefetch.Maker | None
    predicting: prefetch.Setup
    depth: int


class Memories:
    """State: the tables of `memory_tables`. It has the driver's core run with its decisions."""

    def __init__(self, driver: Driver, shape: Shape, compute: ComputeModel, laid: Laid) -> None:
        self._driver = driver
        self._shape = shape
        self._compute = compute
        self._prices = 0
        self._most = 0  # experts that one GPU can be asked for at once
        self.tables = _tables(shape, compute.grouped, laid)
        driver.advance = self._advance

    def lay(
        self,
        step: int,
        microbatches: Sequence[MicroBatch],
        tables: Tables,
        recorded: Sequence[int],
        accesses: NDArray[np.int64],
    ) -> None:
        """Take a step's routing, after the driver has; tables: of all its chunks; recorded:
        [layers], the recorded layer of each MoE layer; accesses: int64 [gpus, all layers, 5], where
        they are counted.
        """
        of, m = self._shape, self.tables
        ptr, experts, rows = tables.need
        self._most = int(np.diff(ptr).max(initial=0))
        parts = of.microbatches * of.chunks
        nth = np.arange(parts, dtype=np.int32).reshape(of.microbatches, of.chunks, 1)
        table_of = np.array([batch.table_of for batch in microbatches], dtype=np.int32)
        table_of = nth * np.int32(len(tables) // parts) + table_of[:, None, :]
        kernels = int((np.diff(ptr[:: of.gpus]) + of.gpus)[table_of].sum())
        self.tables = m._replace(
            order=experts.astype(np.int32),
            rows=rows,
            ptr=ptr.astype(np.int64),
            came=tables.tokens.astype(np.int64),
            table_of=table_of,
            alone=self._alone(rows),
            kernel_i=_of_length(m.kernel_i, kernels, False),
            kernel_f=_of_length(m.kernel_f, kernels, False),
            accesses=accesses,
        )
        if m.of[t.PREDICTOR] == t.MARKOV:
            ids = [batch.ids for batch in microbatches]
            self.tables = self.tables._replace(
                tokens=np.concatenate(ids), token_ptr=np.cumsum([0, *map(len, ids)])
            )
            m.recorded[:] = recorded
        m.at[t.STEP] = step
        m.at[t.KERNELS] = 0
        m.at[t.IDS] = 0
        self._driver.room(edges=2 * kernels)  # about as many as a step adds: grown once, not often
        self._make_room()

    @property
    def predicts(self) -> bool:
        """Whether it decides what gates ask for; else there is no prefetcher, or it is Python's."""
        return bool(self.tables.of[t.PREDICTOR] != t.ELSEWHERE)

    def decides(self, op: int) -> bool:
        """Whether it decides on the end of an operation."""
        return bool(op < self.tables.of[t.FOR_PYTHON])

    def decide(self, op: int) -> None:
        """Decide on an operation that ended, or a copy stream (-1 - stream) that fell idle."""
        self._driver.net.ended[0] = op
        self.tables.at[t.NEXT], self.tables.at[t.FOUND] = 0, 1
        self._advance(-1.0)

    def prefetch(
        self,
        microbatch: int,
        since: int,
        layer: int,
        wanted: Sequence[Sequence[int]],
        at_once: NDArray[np.bool_],
    ) -> None:
        """In layer `since`, have each GPU ask for its `wanted` experts of a `layer` ahead, those of
        `at_once` bool [gpus] without waiting for tokens (see `ExpertMemory.prefetch`).
        """
        m = self.tables
        slots = int(m.of[t.SLOTS])
        m.idle[:] = at_once
        m.wanted_n[:] = [min(len(experts), slots) for experts in wanted]
        first = chain.from_iterable(experts[:slots] for experts in wanted)
        m.wanted[np.arange(slots) < m.wanted_n[:, None]] = np.fromiter(first, dtype=np.int16)
        m.at[t.TARGET] = layer
        of = self._shape
        self.decide(of.gates + microbatch * of.layers + of.layers - len(m.recorded) + since)

    def kernels(self) -> tuple[Int32s, Floats]:
        """The step's expert kernels so far (`memory_tables`: kernel_i, kernel_f)."""
        m = self.tables
        count = int(m.at[t.KERNELS])
        return m.kernel_i[:count], m.kernel_f[:count]

    def end_of_step(self, last: bool) -> Told:
        """As `ExpertMemory.end_of_step`, of all GPUs."""
        m = self.tables
        whole, times = np.empty_like(m.stay_i), np.empty_like(m.stay_f)
        count = kernel.end_of_step(*self._driver.buffers, last, whole, times, m)
        gpu, expert = whole[:count, t.S_GPU], whole[:count, t.S_EXPERT]
        return Told(
            step=whole[:count, t.S_STEP],
            microbatch=whole[:count, t.S_MICROBATCH],
            layer=whole[:count, t.S_LAYER],
            gpu=gpu,
            prefetch=whole[:count, t.S_PREFETCH] == 1,
            expert=expert,
            used=whole[:count, t.S_USES] > 0,
            route=m.route[gpu, expert],
            size=np.ones(count),
            asked_s=times[:count, t.ASKED_S],
            start_s=times[:count, t.START_S],
            end_s=times[:count, t.END_S],
        )

    def _advance(self, limit: float) -> int:
        while True:
            found = kernel.advance(*self._driver.buffers, limit, self.tables)
            if found >= 0:
                return found
            self._provide(found)

    def _provide(self, need: int) -> None:
        """See to what the compiled code lacks."""
        if need == t.ROOM:
            self._make_room()
        else:
            self._set_price()

    def _make_room(self) -> None:
        """Make the tables large enough for what can be decided at once: the tokens of one GPU, or a
        prefetch on each.
        """
        m, driver = self.tables, self._driver
        most, gpus = self._most, self._shape.gpus
        stays = int(m.at[t.STAYS]) + max(most, gpus) + 1
        if stays > len(m.stay_i):
            self.tables = m = m._replace(
                stay_i=_of_length(m.stay_i, stays, True), stay_f=_of_length(m.stay_f, stays, True)
            )
        driver.room(edges=most * (int(m.of[t.SHARED]) + 3) + 1)
        left = int(m.at[t.IDS])
        if left < max(2 * most + 2, gpus):
            ids = np.concatenate([m.ids[:left], driver.ids_left(max(2 * most + 2, gpus))])
            self.tables = m._replace(ids=ids)
            m.at[t.IDS] = len(ids)

    def _alone(self, rows: Int32s) -> Floats:
        """Times of an expert by itself, for all these numbers of rows."""
        counts = np.bincount(rows)
        known = _of_length(self.tables.alone, len(counts), True)
        for count in np.flatnonzero(counts):
            if known[count, 0] == 0.0:
                known[count] = self._compute.expert(int(count))
        return known

    def _set_price(self) -> None:
        """Enter the time of the grouped kernel under decision."""
        m = self.tables
        key = [int(m.at[i]) for i in (t.ROWS, t.RESIDENTS, t.TILES, t.CAME)]
        self._prices += 1
        if 2 * self._prices > len(m.price_key):
            self._prices = 1
            self.tables = m = m._replace(**_prices(min(4 * len(m.price_key), MOST_PRICES)))
        at = kernel.find_price(m, *key)
        m.price_key[at] = key
        rows, active, tiles, came = key
        tile = self._compute.tile_of(rows, active)
        m.price[at] = self._compute.experts_in_all(rows, active, tile, tiles, came)


def _tables(shape: Shape, grouped: Rates, laid: Laid) -> t.Tables:
    gpus, experts = laid.routes.shape
    layers, slots = laid.pool.layers, laid.pool.slots
    policy = POLICIES[laid.maker]
    shared = shape.microbatches * shape.chunks
    lfu = (gpus, layers, experts) if policy == t.LFU else (0, 0, 0)
    arc = (gpus, layers, experts) if policy == t.ARC else (0, 0, 0)
    made = laid.predicting
    groups = int(made.group.max()) + 1
    predictor = PREDICTORS.get(laid.predictor, t.ELSEWHERE)
    markov = (layers, experts, experts) if predictor == t.MARKOV else (0, 0, 0)
    taken = (layers, groups, experts) if predictor == t.POPULARITY else (0, 0, 0)
    aging = laid.maker is eviction.lfu_aging
    of = np.zeros(t.FIXED, dtype=np.int64)
    for at, value in (
        (t.GPUS, gpus),
        (t.LAYERS, layers),
        (t.EXPERTS, experts),
        (t.SLOTS, slots),
        (t.SHARED, shared),
        (t.MICROBATCHES, shape.microbatches),
        (t.KINDS, shape.kinds),
        (t.ALL_LAYERS, shape.layers),
        (t.DENSE, shape.layers - layers),
        (t.GATES, shape.gates),
        (t.RESIDENT_FIRST, laid.resident_first),
        (t.POLICY, policy),
        (t.HALVE, eviction.AGE_AFTER * slots if aging else 0),
        (t.TILE, grouped.tile),
        (t.SPARE, grouped.spare),
        (t.DEPTH, laid.depth),
        (t.PREDICTOR, predictor),
        (t.FOR_PYTHON, shape.heads if predictor else shape.gates),
    ):
        of[at] = value
    every = gpus * layers * slots
    wishes = shape.microbatches * laid.depth * slots
    held = np.full((every, 4), -1, dtype=np.int32)
    held[:, t.USED_BY] = 0
    arc_i = np.zeros((*arc[:2], 9), dtype=np.int64)
    arc_i[..., t.INTO] = -1

    def ints(*of_shape: int, fill: int = 0) -> Int32s:
        return np.full(of_shape, fill, dtype=np.int32)

    return t.Tables(
        of=of,
        at=np.zeros(t.PLACES, dtype=np.int64),
        slot_of=ints(gpus, layers, experts, fill=-1),
        held=held,
        kernels=ints(every, shared),
        last_use=np.zeros(every, dtype=np.int64),
        filled=ints(gpus, layers),
        uses=np.zeros(gpus, dtype=np.int64),
        added_s=np.full(gpus, -1.0),
        route=laid.routes,
        wire_bytes=laid.wire_bytes,
        reached=ints(gpus, shape.microbatches, fill=-1),
        asked=np.zeros((gpus, shape.microbatches, layers, slots), dtype=np.int16),
        asked_n=ints(gpus, shape.microbatches, layers, fill=-1),
        foreseen=np.zeros((gpus, shape.microbatches, slots), dtype=np.int16),
        foreseen_n=ints(gpus, shape.microbatches),
        wish_i=ints(gpus, wishes, 5),
        wish_f=np.zeros((gpus, wishes)),
        wishes=ints(gpus),
        often=np.zeros(lfu, dtype=np.int64),
        accessed=np.zeros(lfu[:2], dtype=np.int64),
        list_of=np.full(arc, -1, dtype=np.int8),
        stamp=np.zeros(arc, dtype=np.int64),
        ahead=np.zeros(arc, dtype=np.bool_),
        arc_i=arc_i,
        arc_f=np.zeros(arc[:2]),
        order=ints(0),
        rows=ints(0),
        ptr=np.zeros(1, dtype=np.int64),
        came=np.zeros((0, gpus), dtype=np.int64),
        table_of=ints(0, 0, 0),
        tokens=np.zeros((0, 0, 0), dtype=np.int16),
        token_ptr=np.zeros(1, dtype=np.int64),
        recorded=ints(layers),
        group=made.group,
        serves=np.ascontiguousarray(made.serves),
        pairs=np.zeros(markov, dtype=np.float32),
        took=np.zeros(markov[:2], dtype=np.float32),
        taken=np.zeros(taken, dtype=np.int64),
        expected=np.zeros((groups, experts)),
        after=np.zeros((groups, experts)),
        wanted=np.zeros((gpus, slots), dtype=np.int16),
        wanted_n=ints(gpus),
        idle=np.zeros(gpus, dtype=np.bool_),
        alone=np.zeros((1, 3)),
        **_prices(FEW_PRICES),
        kernel_i=ints(0, 8),
        kernel_f=np.zeros((0, 3)),
        stay_i=ints(0, 10),
        stay_f=np.zeros((0, 3)),
        accesses=np.zeros((0, 0, 5), dtype=np.int64),
        ids=ints(0),
        mine=ints(experts),
        mine_rows=ints(experts),
        fetches=ints(experts),
        own=ints(experts),
        rank=np.zeros(slots),
    )


def _prices(places: int) -> dict[str, NDArray[Any]]:
    """Empty tables for the times of grouped kernels."""
    key = np.full((places, 4), -1, dtype=np.int64)
    return {"price_key": key, "price": np.zeros((places, 3))}


def _of_length(table: NDArray[Any], rows: int, keep: bool) -> NDArray[Any]:
    """The table if it has so many rows, else one of twice as many, which keeps what it holds."""
    if len(table) >= rows:
        return table
    larger = np.zeros((2 * rows, *table.shape[1:]), dtype=table.dtype)
    if keep:
        larger[: len(table)] = table
    return larger
