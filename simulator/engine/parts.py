"""One step's batch, cut into what the streams work on, with all that routing decides beforehand.

A step is one or two *micro-batches*; each is cut into *chunks* for its expert layers (one unless
`chunked:n`). The `Tables` of a chunk have one table for each recorded layer and homes of experts
that occur together: layers of the model that have both in common share it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.compiled import allocation_free
from simulator.engine.homes import Homes
from simulator.engine.tiers import Tiers
from simulator.routing.batches import Batch
from simulator.routing.traffic import (
    Copies,
    expert_sequence,
    pick_slots,
    rows_of_experts,
    traffic,
    traffic_fetch,
)

Int32s = NDArray[np.int32]


class Need(NamedTuple):
    """Experts in the order of first need: place i needs experts[ptr[i]:ptr[i + 1]].

    ptr: int32 [places + 1]; experts: int16 [needed]; rows: int32 [needed], of each of them.
    """

    ptr: Int32s
    experts: NDArray[np.int16]
    rows: Int32s


NOBODY = Need(np.zeros(1, dtype=np.int32), np.zeros(0, dtype=np.int16), np.zeros(0, dtype=np.int32))


@dataclass(frozen=True)
class Tables:
    """What recorded layers of one chunk compute and send, one after the other.

    rows: int32 [tables, gpus, experts]; pairs: int32 [tables, gpus, gpus], tokens sent from row to
    column (in two tiers: those handed on too), the diagonals zero; tokens: int64 [tables, gpus],
    that come to each GPU's experts, its own included (once per expert where dispatch does not
    deduplicate); need: its places are tables x GPUs, `NOBODY` if nobody asks for the order.
    """

    rows: Int32s
    pairs: Int32s
    tokens: NDArray[np.int64]
    need: Need = NOBODY

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def order(self) -> list[list[list[int]]]:
        """Experts per table and GPU in the order of first need."""
        each = [part.tolist() for part in np.split(self.need.experts, self.need.ptr[1:-1])]
        gpus = self.rows.shape[1]
        return [each[first : first + gpus] for first in range(0, len(each), gpus)]

    @cached_property
    def rows_of(self) -> list[list[list[int]]]:
        """The rows as lists."""
        rows: list[list[list[int]]] = self.rows.tolist()
        return rows


@dataclass(frozen=True)
class MicroBatch:
    """Tokens that go through the layers together.

    ids: int16 [tokens, recorded layers, k]; source_gpu, request: int32 [tokens], where each is and
    of which request; rows: tokens per GPU int64 [gpus]; sampled: those that
    need logits int64 [gpus]; chunks: per chunk its tables; table_of: the table of each MoE layer.
    """

    ids: NDArray[np.int16]
    source_gpu: Int32s
    request: Int32s
    rows: NDArray[np.int64]
    sampled: NDArray[np.int64]
    chunks: list[Tables]
    table_of: list[int]

    def expert_rows(self, layer: int) -> Int32s:
        """Rows int32 [gpus, experts] of a MoE layer (counted from 0), all chunks together."""
        rows: Int32s = self._rows_of_tables[self.table_of[layer]]
        return rows

    def add_rows(self, loads: NDArray[np.int64]) -> None:
        """Add the rows of all MoE layers to `loads` int64 [MoE layers, gpus, experts]."""
        _add_rows(loads, self._rows_of_tables, np.array(self.table_of))

    @cached_property
    def _rows_of_tables(self) -> Int32s:
        """Rows int32 [tables, gpus, experts], all chunks together."""
        rows = [chunk.rows for chunk in self.chunks]
        return rows[0] if len(rows) == 1 else np.sum(rows, axis=0, dtype=np.int32)


@dataclass(frozen=True)
class Cut:
    """How batches are cut: fixed for a run, but for the homes where experts are moved.

    homes: where experts are, for each way in which they are in some MoE layer; home_of: int32 [MoE
    layers], which of these each has; ep: GPUs of a group; fetch: weights travel instead of tokens;
    tiers: how tokens go in two tiers, if they do;
    ordered: whether the order of first need matters; prefill: only a sequence's last token needs
    logits, not every token.
    """

    gpus: int
    experts: int
    homes: tuple[Homes, ...]
    home_of: Int32s
    ep: int
    fetch: bool
    deduplicate: bool
    tiers: Tiers | None
    ordered: bool
    prefill: bool
    microbatches: int
    chunks: int


@allocation_free
def _add_rows(loads: NDArray[np.int64], rows: Int32s, table_of: NDArray[np.int64]) -> None:
    layers, gpus, experts = loads.shape
    for layer in range(layers):
        table = table_of[layer]
        for gpu in range(gpus):
            for expert in range(experts):
                loads[layer, gpu, expert] += rows[table, gpu, expert]


def cut(batch: Batch, how: Cut) -> list[MicroBatch]:
    """The micro-batches of a step; each GPU's tokens are dealt evenly, earlier ones first."""
    held = np.bincount(batch.source_gpu, minlength=how.gpus)
    first = np.concatenate(([0], np.cumsum(held)[:-1]))
    place = np.arange(batch.source_gpu.size) - first[batch.source_gpu]
    piece = place * (how.microbatches * how.chunks) // held[batch.source_gpu]
    # What layers have in common: (homes, recorded layer), in order.
    recorded = batch.ids.shape[1]
    key = how.home_of.astype(np.int64) * recorded + batch.layer_of
    keys, table_of = np.unique(key, return_inverse=True)
    layers_of = [keys[keys // recorded == at] % recorded for at in range(len(how.homes))]
    found = []
    for index in range(how.microbatches):
        mine = piece // how.chunks == index
        chunks = []
        for chunk in range(how.chunks):
            chosen = np.flatnonzero(piece == index * how.chunks + chunk)
            ids = np.ascontiguousarray(batch.ids[chosen].transpose(1, 0, 2))
            source_gpu = batch.source_gpu[chosen]
            each = zip(how.homes, layers_of, strict=True)
            tables = [_tables(ids[layers], source_gpu, how, homes) for homes, layers in each]
            chunks.append(joined(tables))
        rows = np.bincount(batch.source_gpu[mine], minlength=how.gpus)
        sampled = rows
        if how.prefill:  # sequences, as many as begin here, one at least where there are tokens
            begins = batch.source_gpu[mine & batch.new_sequence]
            sampled = np.maximum(np.bincount(begins, minlength=how.gpus), np.minimum(rows, 1))
        of = (batch.ids[mine], batch.source_gpu[mine], batch.request[mine])
        found.append(MicroBatch(*of, rows, sampled, chunks, table_of.ravel().tolist()))
    return found


def _tables(ids: NDArray[np.int16], source_gpu: Int32s, how: Cut, homes: Homes) -> Tables:
    """The tables of layers with the same homes; ids: int16 [layers, tokens, k]."""
    copies = homes.copies
    owner = homes.owner
    if how.fetch:
        rows = traffic_fetch(ids, source_gpu, how.gpus, how.experts)
        pairs = np.zeros((len(ids), how.gpus, how.gpus), dtype=np.int32)
        here = np.bincount(source_gpu, minlength=how.gpus)
        tokens = np.broadcast_to(here, (len(ids), how.gpus))
    else:
        if copies is not None:
            ids, owner = pick_slots(ids, source_gpu, copies, how.ep), copies.owner
        rows, pairs = traffic(ids, source_gpu, owner, how.ep, how.gpus, how.deduplicate)
        tokens = pairs.sum(axis=1, dtype=np.int64)
        if how.tiers is not None:
            sent = [
                how.tiers.sent(mine, source_gpu, needed, owner)
                for mine, needed in zip(ids, pairs, strict=True)
            ]
            pairs = np.array(sent).reshape(pairs.shape)
        gpu = np.arange(how.gpus)
        pairs[:, gpu, gpu] = 0
    placed = (None, 1) if how.fetch else (owner, how.ep)
    order = expert_sequence(ids, source_gpu, rows, *placed) if how.ordered else None
    slots = None if how.fetch else copies
    if slots is not None:
        rows = rows_of_experts(rows, slots, how.ep)
    return Tables(rows, pairs, tokens, NOBODY if order is None else _need(order, rows, slots))


def _need(order: tuple[Int32s, NDArray[np.int16]], rows: Int32s, copies: Copies | None) -> Need:
    """What is needed in this order (of slots, where experts have copies)."""
    ptr, experts = order
    if copies is not None:
        experts = copies.expert_of[experts].astype(np.int16)
    place = np.repeat(np.arange(len(ptr) - 1), np.diff(ptr))
    return Need(ptr, experts, rows.reshape(-1, rows.shape[2])[place, experts])


def joined(each: list[Tables]) -> Tables:
    """Tables one after the other."""
    if len(each) == 1:
        return each[0]
    first = np.cumsum([0, *(int(tables.need.ptr[-1]) for tables in each)])
    ptr = [tables.need.ptr[1:] + ahead for tables, ahead in zip(each, first, strict=False)]
    need = Need(
        np.concatenate([NOBODY.ptr, *ptr]).astype(np.int32),
        np.concatenate([tables.need.experts for tables in each]),
        np.concatenate([tables.need.rows for tables in each]),
    )
    return Tables(
        np.concatenate([tables.rows for tables in each]),
        np.concatenate([tables.pairs for tables in each]),
        np.concatenate([tables.tokens for tables in each]),
        need,
    )
