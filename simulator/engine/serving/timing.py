"""The compiled core of serving: who is in a step, how long it takes, and what comes of it.

A *group* is the GPUs of one expert-parallel group; each is a *rank* with attention, KV cache and
queue of its own (data-parallel attention), and all step together. A step takes the tokens that
every rank's scheduler picks, follows each through the recorded routing to the GPUs of its experts,
and goes through the layers as `simulator.engine.step` does, with collectives in closed form:

- One micro-batch: a rank sends when it is ready and goes on when it has all that it waits for. On a
  link that one rank alone sends over, its transfers share evenly from the start; a link that
  several use carries what comes in the order in which the sends began; a collective finds all links
  free. `tests/serving/test_closed_form.py` holds it against the same in plain simpy, and against
  the step engine with the exact network.
- Two micro-batches: a collective starts when all ranks are ready, takes as long as its slowest
  link, and all receive together, as the step engine has it with `network: coflow`;
  `tests/serving/test_against_step.py` holds the two against each other.

Functions that call each other are in this one file, as numba's cache wants it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.compiled import allocation_free, inlined
from simulator.model.kernels import LEAST_TILE, TILE_COLUMNS

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float64]
Int16s = NDArray[np.int16]
Int32s = NDArray[np.int32]
Int64s = NDArray[np.int64]

# Places in `Costs.plain`, `Costs.moe` and `Wires.sends`.
FLOPS, BANDWIDTH, LAUNCH, FLOOR, INSIDE_FLOOR = 0, 1, 2, 3, 5
(
    MOE_FLOPS, MOE_BANDWIDTH, MOE_LAUNCH, MOE_PASSES, MOE_WEIGHT, MOE_INPUT, MOE_HIDDEN,
    MOE_INTERMEDIATE, MOE_FILL, MOE_TILE, MOE_SPARE, MOE_FLOOR, MOE_L2,
) = range(13)  # fmt: skip
TOKEN_BYTES, HALF_SIZE, PACKED, DELAY = range(4)
DECODE, PREFILL = range(2)
DENSE, SPARSE = range(2)
CAME, TOTAL, SHIFT, TILES, ACTIVE = range(5)  # `Work.sums`
READY, SHARED, FROM, GOT, SPENT, TAKEN, ROWS = range(7)  # `Work.ready_s`
# `Work.lanes`: what each operation waits for, layers, what runs, how many are queued.
LAYER, RUNNING, QUEUED, LANES = 16, 18, 19, 20


class Costs(NamedTuple):
    """What a rank's kernels take, in tables by rows (tokens) where they depend on nothing else.

    fixed_s float64 [2, rows + 1]: attention without scores (dense layers, MoE layers);
    ffn_s float64 [2, rows + 1]: dense FFN, shared experts; head_s float64 [rows + 1];
    inside_s float64 [2, rows + 1]: what a phase adds beside its scores (decode, prefill);
    scores float64 [2, 3]: FLOPs per (query, key) pair, bytes per key, bytes per query;
    plain float64 [7] and moe float64 [13]: figures of the kernels (places above; the floors are
    what the host takes to launch attention in dense and MoE layers, and more for either phase);
    windowed uint8 [layers]; window: keys of a windowed layer (0: none);
    evaluation int32 [layers]: which recorded layer's routing a layer has (-1: dense).
    """

    fixed_s: Floats
    ffn_s: Floats
    head_s: Floats
    inside_s: Floats
    scores: Floats
    plain: Floats
    moe: Floats
    windowed: Bytes
    window: int
    evaluation: Int32s


class Wires(NamedTuple):
    """How the ranks of a group reach each other.

    latency_s float64 [ranks, ranks] from row to column. How long a byte from row to column keeps
    links busy, the first axis being dispatch and combine: own_s float64 [2, ranks, ranks], the
    slowest of the links that no other pair uses; out_s float64 [2, outs, ranks, ranks], links that
    the sender alone uses, one of each sender in each plane; in_s float64 [2, ins, ranks, ranks], of
    the receiver alone, likewise; shared int32 and shared_s float64 [2, crossings], all others
    (numbered from 0), of pair `row * ranks + column` from shared_ptr int64 [ranks * ranks + 1] on.
    sends float64 [2, 4] of dispatch and combine (places above); few_bytes float64 [2, few], what so
    few tokens for one rank put on the wire; once: a token goes once to a GPU,
    not once per expert; node int32 [ranks] and landing int32 [ranks, nodes]: for sending in two
    tiers (`tiered`).
    """

    latency_s: Floats
    own_s: Floats
    out_s: Floats
    in_s: Floats
    shared_ptr: Int64s
    shared: Int32s
    shared_s: Floats
    sends: Floats
    few_bytes: Floats
    once: bool
    tiered: bool
    node: Int32s
    landing: Int32s


class Routing(NamedTuple):
    """Recorded choices and where experts are.

    ids int16 [tokens, recorded, k]; recorded int32 [evaluations], the recorded layer of each;
    copy int16 [evaluations, classes, experts], which copy a rank of a class takes; kind int32
    [ranks], its class; gpu int16 [copies], where a copy is.
    """

    ids: Int16s
    recorded: Int32s
    copy: Int16s
    kind: Int32s
    gpu: Int16s


class Work(NamedTuple):
    """Room for one step of a group with `halves` micro-batches (`work_for`).

    token int64 [tokens]: rows of `ids`, by rank; ends int64 [ranks, halves + 1]: where each rank's
    tokens of each micro-batch begin and end; phase float64 [halves, ranks, 2, 6]: per phase rows,
    pairs, keys, the same two within the window, and rows that need logits (in DECODE's place).
    One micro-batch: of every evaluation's dispatch and combine, from row to column, float64
    [evaluations, 2, ranks, ranks]: sent, bytes; reach_s, when the first byte is there (-inf:
    nothing is sent); alone_s, when all is there if the receiver's links and shared ones are free;
    and into_s float64 [evaluations, 2, ins, ranks, ranks], how long it keeps the receiver's busy.
    Two: sends_s float64 [2, evaluations, 2], whole collectives (-1: nothing is sent).
    """

    token: Int64s
    ends: Int64s
    phase: Floats
    attention_s: Floats
    ffn_s: Floats
    head_s: Floats
    experts_s: Floats
    sends_s: Floats
    sent: Floats
    reach_s: Floats
    alone_s: Floats
    into_s: Floats
    pairs: Int32s
    nodes: Int32s
    counts: Int32s
    chosen: Int32s
    sums: Int64s
    stamps: Int64s
    ready_s: Floats
    free_s: Floats
    order: Int64s
    heap_s: Floats
    heap_i: Int64s
    lanes: Int64s
    queue: Int64s
    todo: Int64s


def work_for(
    ranks: int,
    tokens: int,
    wires: Wires,
    routing: Routing,
    halves: int,
) -> Work:
    """Room for steps of up to `tokens` tokens per rank."""
    evaluations = max(len(routing.recorded), 1)
    nodes = wires.landing.shape[1]
    alone = (evaluations if halves == 1 else 0, 2, ranks, ranks)
    ins = wires.in_s.shape[1]
    links = int(wires.shared.max(initial=-1)) + 1
    return Work(
        token=np.zeros(ranks * tokens, dtype=np.int64),
        ends=np.zeros((ranks, halves + 1), dtype=np.int64),
        phase=np.zeros((halves, ranks, 2, 6)),
        attention_s=np.zeros((halves, 4, ranks)),
        ffn_s=np.zeros((halves, 2, ranks)),
        head_s=np.zeros((halves, ranks)),
        experts_s=np.zeros((halves, evaluations, ranks)),
        sends_s=np.zeros((halves, evaluations, 2)),
        sent=np.zeros(alone),
        reach_s=np.zeros(alone),
        alone_s=np.zeros(alone),
        into_s=np.zeros((*alone[:2], ins, *alone[2:])),
        pairs=np.zeros((evaluations + 1, ranks, ranks), dtype=np.int32),
        nodes=np.zeros((evaluations, ranks, nodes), dtype=np.int32),
        counts=np.zeros((evaluations, len(routing.gpu)), dtype=np.int32),
        chosen=np.zeros((evaluations, routing.copy.shape[2]), dtype=np.int32),
        sums=np.zeros((5, ranks), dtype=np.int64),
        stamps=np.zeros(ranks + nodes, dtype=np.int64),
        ready_s=np.zeros((ROWS, ranks)),
        free_s=np.zeros(max(ins * ranks, links)),
        order=np.tile(np.arange(ranks), (*alone[:2], 1)),
        heap_s=np.zeros(4 * ranks + 16),
        heap_i=np.zeros((4 * ranks + 16, 2), dtype=np.int64),
        lanes=np.zeros((LANES, ranks + 1), dtype=np.int64),
        queue=np.zeros((ranks + 1, 8), dtype=np.int64),
        todo=np.zeros(64 * (ranks + 1), dtype=np.int64),
    )


# --- how long a step takes


@inlined
def _ridge(a: float, b: float) -> float:
    larger = max(a, b)
    if larger == 0.0:
        return 0.0
    ratio = min(a, b) / larger
    square = ratio * ratio
    return float(larger * np.sqrt(np.sqrt(1.0 + square * square)))


@inlined
def tile_shift(moe: Floats, mean_rows: float) -> int:
    """Which power of two `kernels.tile_of` is."""
    wanted = mean_rows if 2.0 * mean_rows > moe[MOE_SPARE] else 2.0 * mean_rows
    most, shift = int(moe[MOE_TILE]), 0
    while 1 << shift < min(max(wanted, LEAST_TILE), most):
        shift += 1
    return shift


@inlined
def moe_seconds(
    moe: Floats, tokens: float, rows: float, tile: float, tiles: float, active: float
) -> float:
    """`kernels.fused_moe` and its floor; the arguments as there."""
    if rows == 0.0:
        return 0.0
    hidden, wide, given = moe[MOE_HIDDEN], moe[MOE_INTERMEDIATE], moe[MOE_INPUT]
    seconds = moe[MOE_LAUNCH]
    for part in range(2):
        n = 2.0 * wide if part == 0 else hidden
        k = hidden if part == 0 else wide
        read = active * n * k * moe[MOE_WEIGHT] + rows * (k * given + n * 2.0)
        products = tiles * n * (k + moe[MOE_FILL])
        computed = 2.0 * tile * products / moe[MOE_FLOPS]
        fed = products * (moe[MOE_WEIGHT] + tile * given / TILE_COLUMNS)
        seconds += _ridge(max(computed, fed / moe[MOE_L2]), read / moe[MOE_BANDWIDTH])
    quantised = 2.0 + given if given < 2.0 else 0.0
    passes = (
        tokens * hidden * (2.0 + quantised)
        + rows * hidden * (2.0 * given + 2.0)
        + rows * wide * (4.0 + given)
    )
    return float(max(seconds + passes / moe[MOE_PASSES], moe[MOE_FLOOR]))


@inlined
def _attention_seconds(costs: Costs, phase: Floats, kind: int, near: bool) -> float:
    """Attention of one rank in one layer; phase float64 [2, 6]."""
    rows = int(phase[DECODE, 0] + phase[PREFILL, 0])
    if rows == 0:
        return 0.0
    seconds = costs.fixed_s[kind, rows]
    floor = costs.plain[FLOOR + kind]
    for which in range(2):
        mine = phase[which, 0]
        if mine > 0.0:
            pairs, keys = (phase[which, 3], phase[which, 4]) if near else (
                phase[which, 1], phase[which, 2]
            )  # fmt: skip
            of = costs.scores[which]
            moved = keys * of[1] + mine * of[2]
            seconds += costs.inside_s[which, int(mine)] + costs.plain[LAUNCH]
            seconds += _ridge(of[0] * pairs / costs.plain[FLOPS], moved / costs.plain[BANDWIDTH])
            floor += costs.plain[INSIDE_FLOOR + which]
    return float(max(seconds, floor))


@inlined
def _wire_bytes(wires: Wires, which: int, count: int) -> float:
    """What so many tokens for one rank put on the wire."""
    token_bytes, half = wires.sends[which, TOKEN_BYTES], wires.sends[which, HALF_SIZE]
    if wires.sends[which, PACKED] > 0.0:
        size = token_bytes * count
        return float(size + np.sqrt(half * size)) if half > 0.0 else size
    return float((token_bytes + np.sqrt(half * token_bytes)) * count)


@inlined
def _dot(a: Floats, b: Floats) -> float:
    """Sum of products: four sums, so that one addition need not wait for another."""
    end = len(a) // 4 * 4
    sum0 = sum1 = sum2 = sum3 = 0.0
    for i in range(0, end, 4):
        sum0 += a[i] * b[i]
        sum1 += a[i + 1] * b[i + 1]
        sum2 += a[i + 2] * b[i + 2]
        sum3 += a[i + 3] * b[i + 3]
    for i in range(end, len(a)):
        sum0 += a[i] * b[i]
    return float(sum0 + sum1 + (sum2 + sum3))


@inlined
def _whole_seconds(wires: Wires, which: int, tokens: Int32s, work: Work) -> float:
    """A lone dispatch (0) or combine (1, the same pairs backwards) of tokens int32 [ranks, ranks],
    after its delay, as long as its slowest link; -1 if nothing is sent.
    """
    longest, slowest = -1.0, 0.0
    ranks = len(tokens)
    sizes, busy_s, few = work.ready_s[SPENT], work.free_s, wires.few_bytes[which]
    outs, ins = wires.out_s.shape[1], wires.in_s.shape[1]
    busy_s[:] = 0.0
    for a in range(ranks):
        some = False
        for b in range(ranks):
            count = tokens[a, b] if which == 0 else tokens[b, a]
            sizes[b] = 0.0
            if count > 0 and a != b:
                some = True
                sizes[b] = few[count] if count < len(few) else _wire_bytes(wires, which, count)
                longest = max(longest, wires.latency_s[a, b])
                slowest = max(slowest, sizes[b] * wires.own_s[which, a, b])
        if not some:
            continue
        for lane in range(outs):
            slowest = max(slowest, _dot(sizes, wires.out_s[which, lane, a]))
        for lane in range(ins):
            for b in range(ranks):
                busy_s[lane * ranks + b] += sizes[b] * wires.in_s[which, lane, a, b]
    for at in range(ins * ranks):
        slowest = max(slowest, busy_s[at])
    if len(wires.shared):
        busy_s[:] = 0.0
        for a in range(ranks):
            for b in range(ranks):
                count = tokens[a, b] if which == 0 else tokens[b, a]
                if count > 0 and a != b:
                    size = _wire_bytes(wires, which, count)
                    first = a * ranks + b
                    for at in range(wires.shared_ptr[first], wires.shared_ptr[first + 1]):
                        busy_s[wires.shared[at]] += size * wires.shared_s[which, at]
        for at in range(len(busy_s)):
            slowest = max(slowest, busy_s[at])
    return -1.0 if longest < 0.0 else float(longest + slowest)


@inlined
def _taken(spent: Floats, alone: Floats) -> None:
    """How long a link carries each transfer of one sender, if longer than `alone`: while others go
    on they take as much of it, and shorter ones end before; spent: float64, alone on the link.
    """
    ranks = len(spent)
    for b in range(ranks):
        mine, total = spent[b], 0.0
        for other in range(ranks):
            total += spent[other] if spent[other] < mine else mine
        alone[b] = total if total > alone[b] else alone[b]


@inlined
def _sends(wires: Wires, which: int, tokens: Int32s, work: Work, at: int) -> None:
    """Every rank's transfers of a dispatch or combine as if it were alone; as `_whole_seconds`."""
    ranks = len(tokens)
    spent, few = work.ready_s[SPENT], wires.few_bytes[which]
    for a in range(ranks):
        sizes, reach, alone = (
            work.sent[at, which, a], work.reach_s[at, which, a], work.alone_s[at, which, a],
        )  # fmt: skip
        for b in range(ranks):
            count = tokens[a, b] if which == 0 else tokens[b, a]
            size, sizes[b], reach[b], alone[b] = 0.0, 0.0, -np.inf, 0.0
            if count > 0 and a != b:
                size = few[count] if count < len(few) else _wire_bytes(wires, which, count)
                reach[b] = wires.latency_s[a, b]
                sizes[b], alone[b] = size, size * wires.own_s[which, a, b]
        for lane in range(wires.out_s.shape[1]):
            for b in range(ranks):
                spent[b] = sizes[b] * wires.out_s[which, lane, a, b]
            _taken(spent, alone)
        for b in range(ranks):
            alone[b] += reach[b]
        for lane in range(wires.in_s.shape[1]):
            into, pace = work.into_s[at, which, lane, a], wires.in_s[which, lane, a]
            for b in range(ranks):
                into[b] = sizes[b] * pace[b]


@inlined
def _count(wires: Wires, routing: Routing, work: Work, half: int) -> None:
    """Rows of every copy, and tokens from rank to rank and to nodes, in every evaluation.

    Token by token: the choices of one, in all layers, lie side by side. Places are unsigned where
    it counts: numba need not look whether they count from the end.
    """
    ranks, evaluations = len(routing.kind), len(routing.recorded)
    ids, counts, chosen, pairs, nodes = (
        routing.ids, work.counts, work.chosen, work.pairs, work.nodes,
    )  # fmt: skip
    k, experts = ids.shape[2], chosen.shape[1]
    last, last_node = work.stamps[:ranks], work.stamps[ranks:]
    few = ranks <= 64 and not wires.tiered
    last[:] = -1
    last_node[:] = -1
    counts[:] = 0
    pairs[:] = 0
    nodes[:] = 0
    stamp = 0
    for rank in range(ranks):
        first, end = work.ends[rank, half], work.ends[rank, half + 1]
        kind = routing.kind[rank]
        kindu, ranku = np.uint64(kind), np.uint64(rank)
        if wires.once and few:
            for i in range(first, end):
                row = np.uint64(work.token[i])
                for at in range(evaluations):
                    u = np.uint64(at)
                    recorded = np.uint64(routing.recorded[u])
                    seen = np.uint64(0)
                    for choice in range(k):
                        expert = ids[row, recorded, np.uint64(choice)]
                        if expert < 0:
                            continue
                        place = np.uint64(routing.copy[u, kindu, np.uint64(expert)])
                        counts[u, place] += 1
                        target = np.uint64(routing.gpu[place])
                        bit = np.uint64(1) << target
                        pairs[u, ranku, target] += (seen & bit) == np.uint64(0)
                        seen |= bit
        elif wires.once:
            for i in range(first, end):
                row = np.uint64(work.token[i])
                for at in range(evaluations):
                    u = np.uint64(at)
                    recorded = np.uint64(routing.recorded[u])
                    stamp += 1
                    for choice in range(k):
                        expert = ids[row, recorded, np.uint64(choice)]
                        if expert < 0:
                            continue
                        place = np.uint64(routing.copy[u, kindu, np.uint64(expert)])
                        counts[u, place] += 1
                        target = np.uint64(routing.gpu[place])
                        pairs[u, ranku, target] += last[target] != stamp
                        last[target] = stamp
                        if wires.tiered:
                            node = np.uint64(wires.node[target])
                            nodes[u, ranku, node] += last_node[node] != stamp
                            last_node[node] = stamp
        elif end > first:
            for i in range(first, end):
                row = np.uint64(work.token[i])
                for at in range(evaluations):
                    u = np.uint64(at)
                    recorded = np.uint64(routing.recorded[u])
                    for choice in range(k):
                        expert = ids[row, recorded, np.uint64(choice)]
                        if expert >= 0:
                            chosen[u, np.uint64(expert)] += 1
            for at in range(evaluations):
                u = np.uint64(at)
                target, together = np.uint64(routing.gpu[0]), 0
                for expert in range(experts):
                    e = np.uint64(expert)
                    count = chosen[u, e]
                    chosen[u, e] = 0
                    place = np.uint64(routing.copy[u, kindu, e])
                    counts[u, place] += count
                    to = np.uint64(routing.gpu[place])
                    if to != target:  # neighbours are often on one GPU
                        pairs[u, ranku, target] += together
                        target, together = to, 0
                    together += count
                pairs[u, ranku, target] += together


@inlined
def _evaluate(
    costs: Costs, wires: Wires, routing: Routing, work: Work, speed: Floats, half: int
) -> None:
    """Experts' times and both all-to-alls of every recorded layer, for one micro-batch."""
    ranks = len(speed)
    evaluations, nodes = len(routing.recorded), work.nodes.shape[2]
    sums, two = work.sums, work.pairs[evaluations]
    _count(wires, routing, work, half)
    for at in range(evaluations):
        counts, pairs = work.counts[at], work.pairs[at]
        sums[:] = 0
        if wires.once:
            for a in range(ranks):
                for b in range(ranks):
                    sums[CAME, b] += pairs[a, b]
        for place in range(len(routing.gpu)):
            count, its = counts[np.uint64(place)], np.uint64(routing.gpu[np.uint64(place)])
            sums[TOTAL, its] += count
            sums[ACTIVE, its] += count > 0
        for gpu in range(ranks):
            sums[SHIFT, gpu] = tile_shift(costs.moe, sums[TOTAL, gpu] / max(sums[ACTIVE, gpu], 1))
        for place in range(len(routing.gpu)):
            count, its = counts[np.uint64(place)], np.uint64(routing.gpu[np.uint64(place)])
            shift = sums[SHIFT, its]
            sums[TILES, its] += (count + (1 << shift) - 1) >> shift
        for gpu in range(ranks):
            if not wires.once:
                sums[CAME, gpu] = sums[TOTAL, gpu]
            work.experts_s[half, at, gpu] = speed[gpu] * moe_seconds(
                costs.moe, float(sums[CAME, gpu]), float(sums[TOTAL, gpu]),
                float(1 << sums[SHIFT, gpu]), float(sums[TILES, gpu]), float(sums[ACTIVE, gpu]),
            )  # fmt: skip
        carried = pairs
        if wires.tiered:
            two[:] = 0
            for a in range(ranks):
                for b in range(ranks):
                    if pairs[a, b]:
                        two[wires.landing[a, wires.node[b]], b] += pairs[a, b]
            for a in range(ranks):
                two[a, a] = 0
            for a in range(ranks):
                for node in range(nodes):
                    if node != wires.node[a] and work.nodes[at, a, node]:
                        two[a, wires.landing[a, node]] += work.nodes[at, a, node]
            carried = two
        for which in range(2):
            if len(work.alone_s):
                _sends(wires, which, carried, work, at)
            else:
                work.sends_s[half, at, which] = _whole_seconds(wires, which, carried, work)


@allocation_free
def step_seconds(
    costs: Costs, wires: Wires, routing: Routing, work: Work, speed: Floats, halves: int
) -> float:
    """Seconds of the step whose tokens and phases stand in `work`.

    speed: float64 [ranks], factors on each rank's compute times.
    """
    ranks = len(speed)
    for half in range(halves):
        for rank in range(ranks):
            phase = work.phase[half, rank]
            rows = int(phase[DECODE, 0] + phase[PREFILL, 0])
            for kind in range(2):
                for near in range(2):
                    work.attention_s[half, 2 * kind + near, rank] = speed[rank] * (
                        _attention_seconds(costs, phase, kind, near == 1)
                    )
                work.ffn_s[half, kind, rank] = speed[rank] * costs.ffn_s[kind, rows]
            work.head_s[half, rank] = speed[rank] * costs.head_s[int(phase[DECODE, 5])]
        _evaluate(costs, wires, routing, work, speed, half)
    if halves == 1:
        return _one_batch(costs, wires, work, ranks)
    return _two_batches(costs, wires, work, ranks)


@inlined
def _one_batch(costs: Costs, wires: Wires, work: Work, ranks: int) -> float:
    ready, shared, start, got = (
        work.ready_s[READY], work.ready_s[SHARED], work.ready_s[FROM], work.ready_s[GOT],
    )  # fmt: skip
    ready[:] = 0.0
    for layer in range(len(costs.evaluation)):
        at = costs.evaluation[layer]
        kind = DENSE if at < 0 else SPARSE
        variant = 2 * kind + costs.windowed[layer]
        for rank in range(ranks):
            end = ready[rank] + work.attention_s[0, variant, rank]
            ready[rank] = start[rank] = end
            shared[rank] = end + work.ffn_s[0, kind, rank]
        if at >= 0:
            _exchange(wires, work, at, 0)
            if wires.tiered:  # all of a node wait for what lands there
                _latest_of_node(wires, work, got)
            for rank in range(ranks):
                end = max(ready[rank], got[rank])
                takes = work.experts_s[0, at, rank]
                if takes > 0.0:
                    end = max(end, shared[rank]) + takes
                ready[rank] = start[rank] = end
            if wires.tiered:  # and send back when all of it have worked
                _latest_of_node(wires, work, start)
            _exchange(wires, work, at, 1)
            for rank in range(ranks):
                ready[rank] = max(ready[rank], got[rank])
        for rank in range(ranks):
            ready[rank] = max(ready[rank], shared[rank])
    longest = 0.0
    for rank in range(ranks):
        longest = max(longest, ready[rank] + work.head_s[0, rank])
    return longest


@inlined
def _latest_of_node(wires: Wires, work: Work, times: Floats) -> None:
    """Give every rank the latest time of its node; times: float64 [ranks]."""
    latest = work.ready_s[TAKEN]
    latest[:] = -np.inf
    for rank in range(len(wires.node)):
        node = wires.node[rank]
        latest[node] = max(latest[node], times[rank])
    for rank in range(len(wires.node)):
        times[rank] = latest[wires.node[rank]]


@inlined
def _later(start: Floats, a: int, b: int) -> bool:
    return bool(start[a] > start[b] or (start[a] == start[b] and a > b))


@inlined
def _exchange(wires: Wires, work: Work, at: int, which: int) -> None:
    """A dispatch or combine: from when each rank has what it sends (`FROM`, which its delay is
    added to) to when each has received all (`GOT`, -inf where nothing comes).
    """
    start, got, order = work.ready_s[FROM], work.ready_s[GOT], work.order[at, which]
    ranks = len(order)
    reach_s, alone_s = work.reach_s[at, which], work.alone_s[at, which]
    into_s, free, ins = work.into_s[at, which], work.free_s, wires.in_s.shape[1]
    got[:] = -np.inf
    free[:] = -np.inf
    for rank in range(ranks):
        start[rank] += wires.sends[which, DELAY]
    for i in range(1, ranks):  # mostly the order of the time before
        rank, to = order[i], i
        while to > 0 and _later(start, order[to - 1], rank):
            order[to] = order[to - 1]
            to -= 1
        order[to] = rank
    for i in range(ranks):
        a = order[i]
        begun = start[a]
        for b in range(ranks):
            there = begun + alone_s[a, b]
            got[b] = there if there > got[b] else got[b]
        for lane in range(ins):
            for b in range(ranks):
                there, last = begun + reach_s[a, b], free[lane * ranks + b]
                free[lane * ranks + b] = (there if there > last else last) + into_s[lane, a, b]
    for lane in range(ins):
        for b in range(ranks):
            last = free[lane * ranks + b]
            got[b] = last if last > got[b] else got[b]
    if len(wires.shared):
        _exchange_shared(wires, work, at, which)


@inlined
def _exchange_shared(wires: Wires, work: Work, at: int, which: int) -> None:
    """What links do to it that several ranks use to reach several."""
    start, got, free, size = (
        work.ready_s[FROM],
        work.ready_s[GOT],
        work.free_s,
        work.sent[at, which],
    )
    ranks = work.order.shape[2]
    free[:] = -np.inf
    for i in range(ranks):
        a = work.order[at, which, i]
        for b in range(ranks):
            if size[a, b] > 0.0:
                there, pair = start[a] + wires.latency_s[a, b], a * ranks + b
                for h in range(wires.shared_ptr[pair], wires.shared_ptr[pair + 1]):
                    link = wires.shared[h]
                    free[link] = max(free[link], there) + size[a, b] * wires.shared_s[which, h]
    for a in range(ranks):
        for b in range(ranks):
            if size[a, b] > 0.0:
                pair = a * ranks + b
                for h in range(wires.shared_ptr[pair], wires.shared_ptr[pair + 1]):
                    got[b] = max(got[b], free[wires.shared[h]])


# Two micro-batches share the streams, so their operations are queued one by one, in the order of
# `simulator.engine.core`: what follows at an instant is done first come, first served. An operation
# is known by micro-batch, kind and rank (`ranks` for a collective); an action is on an operation.
_ATTENTION, _SHARED, _EXPERTS, _HEAD, _DISPATCH, _COMBINE, _DISPATCHED, _COMBINED = range(8)
_COUNT, _JOIN, _START, _FINISH = range(4)
_SAME_INSTANT = 2e-15  # times nearer than this fraction of the clock are one instant (rounding)


@inlined
def _push(work: Work, size: int, time_s: float, order: int, code: int) -> int:
    heap, names = work.heap_s, work.heap_i
    at = size
    while at > 0:
        up = (at - 1) // 2
        if heap[up] < time_s or (heap[up] == time_s and names[up, 0] < order):
            break
        heap[at] = heap[up]
        names[at, 0], names[at, 1] = names[up, 0], names[up, 1]
        at = up
    heap[at] = time_s
    names[at, 0], names[at, 1] = order, code
    return size + 1


@inlined
def _pop(work: Work, size: int) -> int:
    """Take the first away (read it before); the number left."""
    heap, names = work.heap_s, work.heap_i
    size -= 1
    time_s, order, code = heap[size], names[size, 0], names[size, 1]
    at = 0
    while True:
        down = 2 * at + 1
        if down >= size:
            break
        if down + 1 < size and (
            heap[down + 1] < heap[down]
            or (heap[down + 1] == heap[down] and names[down + 1, 0] < names[down, 0])
        ):
            down += 1
        if time_s < heap[down] or (time_s == heap[down] and order < names[down, 0]):
            break
        heap[at] = heap[down]
        names[at, 0], names[at, 1] = names[down, 0], names[down, 1]
        at = down
    heap[at] = time_s
    names[at, 0], names[at, 1] = order, code
    return size


@inlined
def _action(action: int, half: int, kind: int, rank: int) -> int:
    """An action on an operation, as one number."""
    return rank << 6 | half << 5 | kind << 2 | action


@inlined
def _takes(costs: Costs, work: Work, half: int, kind: int, rank: int, layer: int) -> float:
    """Seconds of an operation on its stream; below 0 for what needs none."""
    if kind == _HEAD:
        return float(work.head_s[half, rank])
    at = costs.evaluation[layer]
    sparse = DENSE if at < 0 else SPARSE
    if kind == _ATTENTION:
        return float(work.attention_s[half, 2 * sparse + costs.windowed[layer], rank])
    if kind == _SHARED:
        return float(work.ffn_s[half, sparse, rank])
    if at < 0 or kind >= _DISPATCHED:
        return -1.0
    if kind == _EXPERTS:
        return float(work.experts_s[half, at, rank])
    return float(work.sends_s[half, at, kind - _DISPATCH])


@inlined
def _two_batches(costs: Costs, wires: Wires, work: Work, ranks: int) -> float:
    layers = len(costs.evaluation)
    lanes, queue, todo = work.lanes, work.queue, work.todo
    ring = len(todo)  # several per operation in flight
    first, last = 0, 0
    size, order, now = 0, 0, 0.0
    lanes[:] = 1  # waits; the first attentions wait for the start alone
    lanes[LAYER : LAYER + 2] = -1
    lanes[LAYER : LAYER + 2, ranks] = 0  # of the collectives
    lanes[RUNNING] = -1  # by stream; the last one: communication
    lanes[QUEUED] = 0
    for half in range(2):
        lanes[8 * half + _DISPATCH, ranks] = lanes[8 * half + _COMBINE, ranks] = ranks
        lanes[8 * half + _DISPATCHED] = lanes[8 * half + _COMBINED] = 2
        for rank in range(ranks):
            todo[last] = _action(_COUNT, half, _ATTENTION, rank)
            last += 1
    while True:
        while True:
            if first != last:
                item = todo[first]
                first = first + 1 if first + 1 < ring else 0
            elif size > 0 and work.heap_s[0] <= now * (1.0 + _SAME_INSTANT):
                item = work.heap_i[0, 1]
                size = _pop(work, size)
            else:
                break
            action, half, kind, rank = item & 3, item >> 5 & 1, item >> 2 & 7, item >> 6
            code = item - action
            waits = 8 * half + kind
            follows = -1
            if action == _COUNT:
                lanes[waits, rank] -= 1
                if lanes[waits, rank] > 0:
                    continue
                if kind in (_DISPATCH, _COMBINE):
                    lanes[waits, rank] = ranks
                    at = costs.evaluation[lanes[LAYER + half, ranks]]
                    delay_s = wires.sends[kind - _DISPATCH, DELAY]
                    if (
                        at >= 0
                        and delay_s > 0.0
                        and work.sends_s[half, at, kind - _DISPATCH] >= 0.0
                    ):
                        size = _push(work, size, now + delay_s, order, code + _JOIN)
                        order += 1
                        continue
                elif kind == _ATTENTION:
                    lanes[waits, rank] = 2
                    lanes[LAYER + half, rank] += 1
                    if lanes[LAYER + half, rank] == layers:
                        code = _action(0, half, _HEAD, rank)
                elif kind >= _DISPATCHED:
                    lanes[waits, rank] = 2
                else:
                    lanes[waits, rank] = 1
                follows = code + _JOIN
            elif action == _JOIN:
                seconds = _takes(costs, work, half, kind, rank, lanes[LAYER + half, rank])
                if seconds < 0.0 or (seconds == 0.0 and rank < ranks):
                    follows = code + _START
                elif lanes[RUNNING, rank] < 0:
                    lanes[RUNNING, rank] = code
                    follows = code + _START
                else:
                    queue[rank, lanes[QUEUED, rank]] = code
                    lanes[QUEUED, rank] += 1
            elif action == _START:
                seconds = _takes(costs, work, half, kind, rank, lanes[LAYER + half, rank])
                if seconds > 0.0 or (seconds == 0.0 and rank == ranks):
                    # What was sent arrives before all else that happens at an instant.
                    turn = -1 if rank == ranks else order
                    size = _push(work, size, now + seconds, turn, code + _FINISH)
                    order += 1
                else:
                    follows = code + _FINISH
            else:
                if kind == _ATTENTION:
                    todo[last] = _action(_COUNT, half, _SHARED, rank)
                    last = last + 1 if last + 1 < ring else 0
                    todo[last] = _action(_COUNT, half, _DISPATCH, ranks)
                    last = last + 1 if last + 1 < ring else 0
                    follows = _action(_COUNT, half, _DISPATCHED, rank)
                elif kind in (_DISPATCH, _COMBINE):
                    for other in range(ranks):
                        todo[last] = _action(_COUNT, half, kind - _DISPATCH + _DISPATCHED, other)
                        last = last + 1 if last + 1 < ring else 0
                    lanes[LAYER + half, ranks] += kind == _COMBINE
                elif kind == _DISPATCHED:
                    follows = _action(_COUNT, half, _EXPERTS, rank)
                elif kind == _EXPERTS:
                    todo[last] = _action(_COUNT, half, _COMBINE, ranks)
                    last = last + 1 if last + 1 < ring else 0
                    follows = _action(_COUNT, half, _COMBINED, rank)
                elif kind != _HEAD:  # both the FFN and what was combined let the next layer begin
                    follows = _action(_COUNT, half, _ATTENTION, rank)
                if lanes[RUNNING, rank] == code:
                    if follows >= 0:
                        todo[last] = follows
                        last = last + 1 if last + 1 < ring else 0
                        follows = -1
                    lanes[RUNNING, rank] = -1
                    if lanes[QUEUED, rank]:
                        lanes[RUNNING, rank] = queue[rank, 0]
                        for i in range(1, lanes[QUEUED, rank]):
                            queue[rank, i - 1] = queue[rank, i]
                        lanes[QUEUED, rank] -= 1
                        follows = lanes[RUNNING, rank] + _START
            if follows >= 0:
                todo[last] = follows
                last = last + 1 if last + 1 < ring else 0
        if size == 0:
            return now
        now = work.heap_s[0]
