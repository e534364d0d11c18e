"""One step's batch, cut into what the streams work on, with all that routing decides beforehand.

A step is one or two *micro-batches*; each is cut into *chunks* for its expert layers (one unless
`chunked:n`). Every chunk of a micro-batch has one `LayerTable` for each recorded layer and homes of
experts that occur together: layers of the model that have both in common share it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.engine.homes import Homes
from simulator.engine.tiers import Tiers
from simulator.routing.batches import Batch
from simulator.routing.traffic import (
    expert_sequence,
    pick_slots,
    rows_of_experts,
    traffic,
    traffic_fetch,
)

Int32s = NDArray[np.int32]


class Need(NamedTuple):
    """Experts in the order of first need: GPU g needs experts[ptr[g]:ptr[g + 1]].

    ptr: int32 [gpus + 1]; experts: int16 [needed]; rows: int32 [needed], of each of them.
    """

    ptr: Int32s
    experts: NDArray[np.int16]
    rows: Int32s


NOBODY = Need(np.zeros(1, dtype=np.int32), np.zeros(0, dtype=np.int16), np.zeros(0, dtype=np.int32))


@dataclass(frozen=True)
class LayerTable:
    """What one recorded layer of one chunk computes and sends.

    rows: int32 [gpus, experts]; pairs: int32 [gpus, gpus], tokens sent from row to column (in two
    tiers: those handed on too), the diagonal zero; tokens: [gpus], that come to each GPU's
    experts, its own included (once per expert where dispatch does not deduplicate); need: `NOBODY`
    if nobody asks for the order.
    """

    rows: Int32s
    pairs: Int32s
    tokens: list[int]
    need: Need = NOBODY

    @cached_property
    def order(self) -> list[list[int]]:
        """Experts per GPU in the order of first need."""
        return [part.tolist() for part in np.split(self.need.experts, self.need.ptr[1:-1])]

    @cached_property
    def rows_of(self) -> list[list[int]]:
        """The rows as lists."""
        rows: list[list[int]] = self.rows.tolist()
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
    chunks: list[list[LayerTable]]
    table_of: list[int]

    def expert_rows(self, layer: int) -> Int32s:
        """Rows int32 [gpus, experts] of a MoE layer (counted from 0), all chunks together."""
        tables = [chunk[self.table_of[layer]].rows for chunk in self.chunks]
        total: Int32s = tables[0] if len(tables) == 1 else np.sum(tables, axis=0, dtype=np.int32)
        return total


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


def cut(batch: Batch, how: Cut) -> list[MicroBatch]:
    """The micro-batches of a step; each GPU's tokens are dealt evenly, earlier ones first."""
    held = np.bincount(batch.source_gpu, minlength=how.gpus)
    first = np.concatenate(([0], np.cumsum(held)[:-1]))
    place = np.arange(batch.source_gpu.size) - first[batch.source_gpu]
    piece = place * (how.microbatches * how.chunks) // held[batch.source_gpu]
    # What layers have in common: (recorded layer, homes), in order.
    key = batch.layer_of.astype(np.int64) * len(how.homes) + how.home_of
    keys, table_of = np.unique(key, return_inverse=True)
    wanted = [divmod(one, len(how.homes)) for one in keys.tolist()]
    found = []
    for index in range(how.microbatches):
        mine = piece // how.chunks == index
        chunks = []
        for chunk in range(how.chunks):
            chosen = np.flatnonzero(piece == index * how.chunks + chunk)
            ids = np.ascontiguousarray(batch.ids[chosen].transpose(1, 0, 2))
            source_gpu = batch.source_gpu[chosen]
            chunks.append([_table(ids[r], source_gpu, how, how.homes[h]) for r, h in wanted])
        rows = np.bincount(batch.source_gpu[mine], minlength=how.gpus)
        sampled = rows
        if how.prefill:  # sequences, as many as begin here, one at least where there are tokens
            begins = batch.source_gpu[mine & batch.new_sequence]
            sampled = np.maximum(np.bincount(begins, minlength=how.gpus), np.minimum(rows, 1))
        tables = table_of.ravel().tolist()
        of = (batch.ids[mine], batch.source_gpu[mine], batch.request[mine])
        found.append(MicroBatch(*of, rows, sampled, chunks, tables))
    return found


def _table(ids: NDArray[np.int16], source_gpu: Int32s, how: Cut, homes: Homes) -> LayerTable:
    copies = homes.copies
    owner = homes.owner
    if how.fetch:
        rows = traffic_fetch(ids, source_gpu, how.gpus, how.experts)
        pairs = np.zeros((how.gpus, how.gpus), dtype=np.int32)
        tokens = np.bincount(source_gpu, minlength=how.gpus)
    else:
        if copies is not None:
            ids, owner = pick_slots(ids, source_gpu, copies, how.ep), copies.owner
        rows, pairs = traffic(ids, source_gpu, owner, how.ep, how.gpus, how.deduplicate)
        tokens = pairs.sum(axis=0, dtype=np.int64)
        if how.tiers is not None:
            pairs = how.tiers.sent(ids, source_gpu, pairs, owner)
        np.fill_diagonal(pairs, 0)
    need = NOBODY
    ptr = experts = None
    if how.ordered:
        placed = (None, 1) if how.fetch else (owner, how.ep)
        ptr, experts = expert_sequence(ids, source_gpu, rows, *placed)
        if copies is not None and not how.fetch:
            experts = copies.expert_of[experts].astype(np.int16)
    if copies is not None and not how.fetch:
        rows = rows_of_experts(rows, copies, how.ep)
    if ptr is not None and experts is not None:
        gpu = np.repeat(np.arange(how.gpus), np.diff(ptr))
        need = Need(ptr, experts, rows[gpu, experts])
    return LayerTable(rows, pairs, tokens.tolist(), need)
