"""A batch cut into micro-batches, and what each computes and sends in every stage of a plan.

The tokens of a batch are dealt in order to the replicas of the stage that has most; stages with
fewer take several portions each. Within a replica they are dealt evenly to micro-batches and
chunks, earlier ones first, and, where each rank has tokens of its own, to its ranks.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.model.plan import Plan, Stage
from simulator.policies.placement import contiguous_owner
from simulator.routing.batches import Batch
from simulator.routing.traffic import traffic

Int32s = NDArray[np.int32]
Longs = NDArray[np.int64]


class ExpertTable(NamedTuple):
    """What a layer of a chunk computes and sends on the GPUs of a stage.

    rows: int32 [gpus, experts]; tokens: int64 [gpus], that come to each GPU's experts; pairs: int32
    [gpus, gpus], tokens sent from row to column, the diagonal zero.
    """

    rows: Int32s
    tokens: Longs
    pairs: Int32s


class Portion(NamedTuple):
    """A micro-batch: token numbers int64, in order; holder int64 [tokens], the replica of the stage
    that has most; part int64 [tokens], the chunk of each in expert layers.
    """

    token: Longs
    holder: Longs
    part: Longs


def portions(plan: Plan, batch: Batch) -> list[Portion]:
    """The micro-batches of a batch whose tokens come from `plan.gpus` GPUs."""
    holder = batch.source_gpu.astype(np.int64) * plan.replicas // plan.gpus
    pieces = plan.microbatches * plan.chunks
    piece = _dealt(holder, plan.replicas, pieces)
    order = np.argsort(piece // plan.chunks, kind="stable")
    ends = np.cumsum(np.bincount(piece // plan.chunks, minlength=plan.microbatches))
    return [
        Portion(mine, holder[mine], piece[mine] % plan.chunks)
        for mine in np.split(order, ends[:-1])
    ]


def _dealt(holder: Longs, holders: int, pieces: int) -> Longs:
    """The piece of each token: those of a holder are dealt evenly, earlier ones first."""
    if pieces == 1:
        return np.zeros(len(holder), dtype=np.int64)
    held = np.bincount(holder, minlength=holders)
    first = np.concatenate(([0], np.cumsum(held)[:-1]))
    place = np.arange(len(holder)) - first[holder]
    return np.asarray(place * pieces // held[holder])


def replica_of(plan: Plan, stage: Stage, portion: Portion) -> Longs:
    """The replica of a stage that works on each token, int64 [tokens], not decreasing."""
    return portion.holder * stage.degrees.dp // plan.replicas


def rank_of(stage: Stage, replica: Longs) -> Longs:
    """The GPU of a stage that has each token where ranks have tokens of their own."""
    of = stage.degrees
    return replica * of.tp + _dealt(replica, of.dp, of.tp)


def replica_rows(plan: Plan, stage: Stage, portion: Portion) -> Longs:
    """Tokens of each replica of a stage, int64 [replicas]."""
    return np.bincount(replica_of(plan, stage, portion), minlength=stage.degrees.dp)


def sampled_rows(plan: Plan, stage: Stage, portion: Portion, batch: Batch, all_: bool) -> Longs:
    """Tokens of each replica that need logits: all, or one per sequence that begins here, one at
    least where there are tokens.
    """
    rows = replica_rows(plan, stage, portion)
    if all_:
        return rows
    begins = replica_of(plan, stage, portion)[batch.new_sequence[portion.token]]
    found = np.bincount(begins, minlength=stage.degrees.dp)
    return np.maximum(found, np.minimum(rows, 1))


def expert_table(
    plan: Plan, stage: Stage, portion: Portion, chunk: int, ids: NDArray[np.int16], once: bool
) -> ExpertTable:
    """What one recorded layer, ids int16 [tokens, k] of the batch, makes of a chunk.

    once: a token goes once to each GPU, however many of its experts are there.
    """
    of = stage.degrees
    experts = stage.model.moe.experts
    mine = portion if plan.chunks == 1 else _chunk(portion, chunk)
    replica = replica_of(plan, stage, mine)
    chosen = np.ascontiguousarray(ids[mine.token])
    owner = _owner(experts, of.ep)
    if not of.dispatches:
        source = (replica * of.ep).astype(np.int32)
        rows, pairs = traffic(chosen, source, owner, of.ep, of.dp * of.ep, once)
        tokens = pairs.sum(axis=0, dtype=np.int64)
        gpus = len(of.gpus)
        of_gpu = np.arange(gpus) // of.expert_tp
        return ExpertTable(rows[of_gpu], tokens[of_gpu], np.zeros((gpus, gpus), dtype=np.int32))
    return _dispatched(stage, rank_of(stage, replica), chosen, owner, once)


def _dispatched(
    stage: Stage, source: Longs, ids: NDArray[np.int16], owner: Int32s, once: bool
) -> ExpertTable:
    """Tokens go from their rank to every shard of the owners of their experts."""
    of = stage.degrees
    shards, gpus = of.expert_tp, len(of.gpus)
    owners = gpus // shards
    shard = source % shards
    rows = np.zeros((owners, len(owner)), dtype=np.int32)
    pairs = np.zeros((gpus, gpus), dtype=np.int32)
    for s in range(shards):
        some = shard == s if shards > 1 else slice(None)  # all of them, without a copy
        from_ = (source[some] // shards).astype(np.int32)
        more, sent = traffic(np.ascontiguousarray(ids[some]), from_, owner, of.ep, owners, once)
        rows += more
        # The source stands at its owner's shard s; the targets are all shards.
        pairs[s::shards] = np.repeat(sent, shards, axis=1)
    tokens = pairs.sum(axis=0, dtype=np.int64)
    np.fill_diagonal(pairs, 0)
    return ExpertTable(np.repeat(rows, shards, axis=0), tokens, pairs)


def _chunk(portion: Portion, chunk: int) -> Portion:
    keep = portion.part == chunk
    return Portion(*(column[keep] for column in portion))


@cache
def _owner(experts: int, ep: int) -> Int32s:
    return contiguous_owner(experts, ep)


def passed_tokens(
    plan: Plan, before: Stage, after: Stage, portion: Portion
) -> tuple[Longs, Longs, Longs]:
    """Tokens that go from GPU to GPU between two stages: source, target (GPUs of either, sorted by
    source) and tokens, int64 [transfers].
    """
    a, b = before.degrees, after.degrees
    ra, rb = (replica_of(plan, stage, portion) for stage in (before, after))
    if plan.sequence_parallel:
        shared = _crossed(rank_of(before, ra), rank_of(after, rb), len(a.gpus), len(b.gpus))
        source, target = np.nonzero(shared)
        return source, target, shared[source, target]
    shared = _crossed(ra, rb, a.dp, b.dp)
    from_, to = np.nonzero(shared)
    rank = np.arange(b.tp)
    source = (from_[:, None] * a.tp + rank * a.tp // b.tp).ravel()
    target = (to[:, None] * b.tp + rank).ravel()
    tokens = np.repeat(shared[from_, to], b.tp)
    order = np.argsort(source, kind="stable")
    return source[order], target[order], tokens[order]


def _crossed(a: Longs, b: Longs, of_a: int, of_b: int) -> Longs:
    return np.bincount(a * of_b + b, minlength=of_a * of_b).reshape(of_a, of_b)
