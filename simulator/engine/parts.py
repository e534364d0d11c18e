"""One step's batch, cut into what the streams work on, with all that routing decides beforehand.

A step is one or two *micro-batches*; each is cut into *chunks* for its expert layers (one unless
`chunked:n`). Every chunk of a micro-batch has one `LayerTable` per recorded layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.engine.tiers import Tiers
from simulator.routing.batches import Batch
from simulator.routing.traffic import expert_sequence, traffic, traffic_fetch

Int32s = NDArray[np.int32]


@dataclass(frozen=True)
class LayerTable:
    """What one recorded layer of one chunk computes and sends.

    rows: int32 [gpus, experts]; pairs: int32 [gpus, gpus], tokens sent from row to column (in two
    tiers: those handed on too), the diagonal zero; tokens: [gpus], that come to each GPU's
    experts, its own included (once per expert where dispatch does not deduplicate); order: experts
    per GPU in the order of first need, rows_of: rows as lists (both empty if nobody asks).
    """

    rows: Int32s
    pairs: Int32s
    tokens: list[int]
    order: list[list[int]]
    rows_of: list[list[int]]


@dataclass(frozen=True)
class MicroBatch:
    """Tokens that go through the layers together.

    ids: int16 [tokens, recorded layers, k]; rows: tokens per GPU int64 [gpus]; sampled: those that
    need logits int64 [gpus]; chunks: per chunk the tables of the recorded layers.
    """

    ids: NDArray[np.int16]
    rows: NDArray[np.int64]
    sampled: NDArray[np.int64]
    chunks: list[list[LayerTable]]

    def expert_rows(self, recorded: int) -> Int32s:
        """Rows int32 [gpus, experts] of a recorded layer, all chunks together."""
        tables = [chunk[recorded].rows for chunk in self.chunks]
        total: Int32s = tables[0] if len(tables) == 1 else np.sum(tables, axis=0, dtype=np.int32)
        return total


@dataclass(frozen=True)
class Cut:
    """How batches are cut: fixed for a run.

    owner: int32 [experts] GPU within the group of `ep`; fetch: weights travel instead of tokens;
    tiers: how tokens go in two tiers, if they do;
    ordered: whether the order of first need matters; prefill: only a sequence's last token needs
    logits, not every token.
    """

    gpus: int
    experts: int
    owner: Int32s
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
    found = []
    for index in range(how.microbatches):
        mine = piece // how.chunks == index
        chunks = []
        for chunk in range(how.chunks):
            chosen = np.flatnonzero(piece == index * how.chunks + chunk)
            ids = batch.ids[chosen].transpose(1, 0, 2)
            source_gpu = batch.source_gpu[chosen]
            chunks.append([_table(np.ascontiguousarray(i), source_gpu, how) for i in ids])
        rows = np.bincount(batch.source_gpu[mine], minlength=how.gpus)
        sampled = rows
        if how.prefill:  # sequences, as many as begin here, one at least where there are tokens
            begins = batch.source_gpu[mine & batch.new_sequence]
            sampled = np.maximum(np.bincount(begins, minlength=how.gpus), np.minimum(rows, 1))
        found.append(MicroBatch(batch.ids[mine], rows, sampled, chunks))
    return found


def _table(ids: NDArray[np.int16], source_gpu: Int32s, how: Cut) -> LayerTable:
    if how.fetch:
        rows = traffic_fetch(ids, source_gpu, how.gpus, how.experts)
        pairs = np.zeros((how.gpus, how.gpus), dtype=np.int32)
        tokens = np.bincount(source_gpu, minlength=how.gpus)
    else:
        rows, pairs = traffic(ids, source_gpu, how.owner, how.ep, how.gpus, how.deduplicate)
        tokens = pairs.sum(axis=0, dtype=np.int64)
        if how.tiers is not None:
            pairs = how.tiers.sent(ids, source_gpu, pairs)
        np.fill_diagonal(pairs, 0)
    order: list[list[int]] = []
    rows_of: list[list[int]] = []
    if how.ordered:
        rows_of = rows.tolist()
        owner = (None, 1) if how.fetch else (how.owner, how.ep)
        ptr, experts = expert_sequence(ids, source_gpu, rows, *owner)
        order = [part.tolist() for part in np.split(experts, ptr[1:-1])]
    return LayerTable(rows, pairs, tokens.tolist(), order, rows_of)
