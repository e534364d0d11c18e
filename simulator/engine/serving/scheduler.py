"""Who is in the next step: continuous batching with chunked prefill on every rank, compiled.

Each rank has a list of running requests in the order of their admission, a queue of waiting ones
(by priority, then first come, first served), and a KV cache of blocks. A step gives every running
request the tokens it still lacks (one, if it generates), as far as the token budget goes, and then
admits from the queue. Who needs a block when none is free takes it from the last admitted, which
goes back to the front of the queue (*preemption*): its KV is computed again, or was copied to host
memory and back (`swap`). Known prefixes are not computed again: blocks of prompts stay in the
cache, unused ones until their room is needed, least recently used first.

The order of decisions is that of vLLM's scheduler (V1): running before waiting, no admission in a
step that preempted.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.compiled import allocation_free, inlined
from simulator.engine.serving.timing import DECODE, PREFILL

Floats = NDArray[np.float64]
Int16s = NDArray[np.int16]
Int32s = NDArray[np.int32]
Int64s = NDArray[np.int64]

NOWHERE, WAITING, RUNNING, HANDED_ON, ENDED = range(5)  # `Ledger.state`

# Inter-token latencies are counted in bins of one percent, from one microsecond on.
BINS = 2400
BINS_PER_FACTOR = 1.0 / np.log(1.01)
FIRST_BIN_S = 1e-6


class Ledger(NamedTuple):
    """All requests of a run; arrays [requests].

    prompt, output: tokens; priority: larger is more urgent; row, rows: where its recorded choices
    begin and how many tokens they are (taken again from the start where a request is longer);
    done: tokens whose KV there is; made: tokens generated; blocks: KV blocks of its own; shared:
    prompt tokens in shared prefix blocks; state; next: in a queue; admitted_s, first_s, last_s:
    first admission, first and last token (-1: not yet); preempted: how often; reused: prompt tokens
    found in the cache; largest_gap_s: between two tokens.
    block_ptr int64 [requests + 1] and block int32: its prefix blocks, numbered from 0.
    """

    prompt: Int32s
    output: Int32s
    priority: Int16s
    row: Int64s
    rows: Int32s
    done: Int32s
    made: Int32s
    blocks: Int32s
    shared: Int32s
    state: NDArray[np.int8]
    next: Int32s
    admitted_s: Floats
    first_s: Floats
    last_s: Floats
    preempted: Int32s
    reused: Int32s
    largest_gap_s: Floats
    block_ptr: Int64s
    block: Int32s


class Ranks(NamedTuple):
    """What the ranks of a group hold.

    running int32 [ranks, most] and chunk int32 [ranks, most], the tokens of each in the step;
    busy (how many run), head, waiting int32 [ranks]; free int64 [ranks], KV blocks; gaps int64
    [BINS];
    holders and older, newer int32 [ranks, prefixes (+ 1)]: who uses a prefix block (-1: it is not
    there), and the unused ones from the least to the most recently used (index 0 of the lists is
    their end, block b is b + 1); swapped int64 [ranks]: tokens copied to or from host memory in
    this step; totals int64 [6]: preemptions, prompt tokens, generated tokens, KV blocks ever in
    use at once, prefix blocks found, prefix blocks looked for; now int64 [5]: tokens generated in
    the step that is planned, most tokens that a rank swaps in it; after the last step: requests
    that wait and that run, KV blocks in use.
    """

    running: Int32s
    chunk: Int32s
    busy: Int32s
    head: Int32s
    waiting: Int32s
    free: Int64s
    gaps: Int64s
    holders: Int32s
    older: Int32s
    newer: Int32s
    swapped: Int64s
    totals: Int64s
    now: Int64s


PREEMPTIONS, PROMPT_TOKENS, GENERATED_TOKENS, PEAK_BLOCKS, FOUND, LOOKED_FOR = range(6)
N_GENERATED, N_SWAPPED, N_WAITING, N_RUNNING, N_BLOCKS = range(5)


class Limits(NamedTuple):
    """Limits of a rank: tokens per step, blocks in all, tokens per KV block and per prefix block
    (0: no reuse); chunked: a prompt may be cut; swap: preempted KV goes to host memory; hand_on: a
    request leaves with its first token (its KV goes elsewhere).
    """

    tokens: int
    blocks: int
    block_tokens: int
    prefix_tokens: int
    chunked: bool
    swap: bool
    hand_on: bool


def ranks_for(ranks: int, most: int, limits: Limits, prefixes: int) -> Ranks:
    """Empty ranks for up to `most` requests at once, with `prefixes` different prefix blocks."""
    prefixes = prefixes if limits.prefix_tokens else 0
    return Ranks(
        running=np.full((ranks, most), -1, dtype=np.int32),
        chunk=np.zeros((ranks, most), dtype=np.int32),
        busy=np.zeros(ranks, dtype=np.int32),
        head=np.full(ranks, -1, dtype=np.int32),
        waiting=np.zeros(ranks, dtype=np.int32),
        free=np.full(ranks, limits.blocks, dtype=np.int64),
        gaps=np.zeros(BINS, dtype=np.int64),
        holders=np.full((ranks, prefixes), -1, dtype=np.int32),
        older=np.zeros((ranks, prefixes + 1), dtype=np.int32),
        newer=np.zeros((ranks, prefixes + 1), dtype=np.int32),
        swapped=np.zeros(ranks, dtype=np.int64),
        totals=np.zeros(6, dtype=np.int64),
        now=np.zeros(5, dtype=np.int64),
    )


# --- KV blocks


@inlined
def _unlink(ranks: Ranks, rank: int, block: int) -> None:
    older, newer = ranks.older[rank], ranks.newer[rank]
    before, after = older[block + 1], newer[block + 1]
    newer[before] = after
    older[after] = before


@inlined
def _append(ranks: Ranks, rank: int, block: int) -> None:
    """Make an unused block the most recently used."""
    older, newer = ranks.older[rank], ranks.newer[rank]
    last = older[0]
    newer[last] = block + 1
    older[block + 1] = last
    newer[block + 1] = 0
    older[0] = block + 1


@allocation_free
def make_room(ranks: Ranks, limits: Limits, rank: int, needed: int) -> bool:
    """Have `needed` blocks free, dropping unused prefixes if need be."""
    each = limits.prefix_tokens // limits.block_tokens
    while ranks.free[rank] < needed:
        oldest = ranks.newer[rank, 0] if ranks.holders.shape[1] else 0
        if oldest == 0:
            return False
        _unlink(ranks, rank, oldest - 1)
        ranks.holders[rank, oldest - 1] = -1
        ranks.free[rank] += each
    return True


@inlined
def _blocks_for(of: Ledger, limits: Limits, request: int, tokens: int) -> int:
    """Own blocks of a request with KV of so many tokens."""
    own = max(tokens - int(of.shared[request]), 0)
    return int((own + limits.block_tokens - 1) // limits.block_tokens)


@inlined
def _grow(of: Ledger, ranks: Ranks, limits: Limits, rank: int, request: int, tokens: int) -> bool:
    """Give a request blocks for KV of so many tokens, if there are any."""
    more = _blocks_for(of, limits, request, tokens) - of.blocks[request]
    if more <= 0:
        return True
    if not make_room(ranks, limits, rank, more):
        return False
    of.blocks[request] += more
    ranks.free[rank] -= more
    used = limits.blocks - ranks.free[rank]
    ranks.totals[PEAK_BLOCKS] = max(ranks.totals[PEAK_BLOCKS], used)
    return True


@inlined
def _hold_prefix(of: Ledger, ranks: Ranks, limits: Limits, rank: int, request: int) -> None:
    """Take the leading blocks of the prompt that are in the cache."""
    first, end = of.block_ptr[request], of.block_ptr[request + 1]
    # At least one token is computed, else there is nothing to sample from.
    end = min(end, first + (of.prompt[request] - 1) // limits.prefix_tokens)
    ranks.totals[LOOKED_FOR] += end - first
    for at in range(first, end):
        block = of.block[at]
        if ranks.holders[rank, block] < 0:
            break
        if ranks.holders[rank, block] == 0:
            _unlink(ranks, rank, block)
        ranks.holders[rank, block] += 1
        of.shared[request] += limits.prefix_tokens
        ranks.totals[FOUND] += 1


@inlined
def _share_prefix(of: Ledger, ranks: Ranks, limits: Limits, rank: int, request: int) -> None:
    """The whole prompt is computed: let others use its blocks."""
    each = limits.prefix_tokens // limits.block_tokens
    first, end = of.block_ptr[request], of.block_ptr[request + 1]
    end = min(end, first + of.prompt[request] // limits.prefix_tokens)
    for at in range(first + of.shared[request] // limits.prefix_tokens, end):
        block = of.block[at]
        if ranks.holders[rank, block] >= 0:
            break  # another request computed the same meanwhile; it keeps its own
        ranks.holders[rank, block] = 1
        of.shared[request] += limits.prefix_tokens
        of.blocks[request] -= each


@inlined
def _free(of: Ledger, ranks: Ranks, limits: Limits, rank: int, request: int) -> None:
    """Give back all blocks of a request; those of its prefix stay until their room is needed."""
    ranks.free[rank] += of.blocks[request]
    of.blocks[request] = 0
    if limits.prefix_tokens:
        first = of.block_ptr[request]
        held = of.shared[request] // limits.prefix_tokens
        for at in range(first + held - 1, first - 1, -1):  # the end of a prefix goes first
            block = of.block[at]
            ranks.holders[rank, block] -= 1
            if ranks.holders[rank, block] == 0:
                _append(ranks, rank, block)
    of.shared[request] = 0


@allocation_free
def has_room(ranks: Ranks, limits: Limits, rank: int, tokens: int) -> bool:
    """Whether KV of so many tokens would find blocks, unused prefixes given up."""
    needed = (tokens + limits.block_tokens - 1) // limits.block_tokens
    unused = 0
    at = ranks.newer[rank, 0] if ranks.holders.shape[1] else 0
    while at != 0 and ranks.free[rank] + unused < needed:
        unused += limits.prefix_tokens // limits.block_tokens
        at = ranks.newer[rank, at]
    return bool(ranks.free[rank] + unused >= needed)


@allocation_free
def set_aside(of: Ledger, ranks: Ranks, limits: Limits, rank: int, request: int) -> bool:
    """Keep blocks for a request whose KV is to come, and for its next token; False if too few."""
    return _grow(of, ranks, limits, rank, request, of.prompt[request] + of.made[request])


@allocation_free
def give_back(
    of: Ledger, ranks: Ranks, limits: Limits, rank: int, request: int, blocks: int, shared: int
) -> None:
    """Free what a request had on a rank that it has left: own blocks, tokens in shared ones."""
    here_blocks, here_shared = of.blocks[request], of.shared[request]
    of.blocks[request], of.shared[request] = blocks, shared
    _free(of, ranks, limits, rank, request)
    of.blocks[request], of.shared[request] = here_blocks, here_shared


# --- queues


@allocation_free
def enqueue(of: Ledger, ranks: Ranks, rank: int, request: int, front: bool) -> None:
    """Put a request into a rank's queue: behind those of its priority, or before (`front`)."""
    mine = of.priority[request]
    before, at = -1, ranks.head[rank]
    while at >= 0 and (of.priority[at] > mine or (of.priority[at] == mine and not front)):
        before, at = at, of.next[at]
    of.next[request] = at
    if before < 0:
        ranks.head[rank] = request
    else:
        of.next[before] = request
    of.state[request] = WAITING
    ranks.waiting[rank] += 1


@allocation_free
def withdraw(of: Ledger, ranks: Ranks, limits: Limits, rank: int, request: int) -> bool:
    """Take a request away from its rank, waiting or running; False if it is not there."""
    before, at = -1, ranks.head[rank]
    while at >= 0 and at != request:
        before, at = at, of.next[at]
    if at == request:
        if before < 0:
            ranks.head[rank] = of.next[request]
        else:
            of.next[before] = of.next[request]
        ranks.waiting[rank] -= 1
    else:
        place = -1
        for i in range(ranks.busy[rank]):
            if ranks.running[rank, i] == request:
                place = i
        if place < 0:
            return False
        _leave(ranks, rank, place)
    _free(of, ranks, limits, rank, request)
    of.done[request] = 0
    of.state[request] = NOWHERE
    return True


@inlined
def _leave(ranks: Ranks, rank: int, place: int) -> None:
    for i in range(place + 1, ranks.busy[rank]):
        ranks.running[rank, i - 1] = ranks.running[rank, i]
        ranks.chunk[rank, i - 1] = ranks.chunk[rank, i]
    ranks.busy[rank] -= 1


@inlined
def _preempt(of: Ledger, ranks: Ranks, limits: Limits, rank: int) -> int:
    """Put the least urgent, last admitted request back; its place among the running."""
    victim = ranks.busy[rank] - 1
    for i in range(ranks.busy[rank] - 1, -1, -1):
        if of.priority[ranks.running[rank, i]] < of.priority[ranks.running[rank, victim]]:
            victim = i
    request = ranks.running[rank, victim]
    _leave(ranks, rank, victim)
    if limits.swap:
        ranks.swapped[rank] += of.done[request]
    else:
        of.done[request] = 0
    _free(of, ranks, limits, rank, request)
    of.preempted[request] += 1
    ranks.totals[PREEMPTIONS] += 1
    enqueue(of, ranks, rank, request, True)
    return int(victim)


# --- a step


@inlined
def _plan_rank(of: Ledger, ranks: Ranks, limits: Limits, rank: int, now_s: float) -> int:
    """Choose the tokens of a rank's next step; how many."""
    budget = limits.tokens
    ranks.swapped[rank] = 0
    preempted = False
    i = 0
    while i < ranks.busy[rank]:
        request = ranks.running[rank, i]
        lacking = of.prompt[request] + of.made[request] - of.done[request]
        wanted = min(lacking, budget)
        if wanted < lacking and not limits.chunked:
            wanted = 0
        kept = True
        while kept and not _grow(of, ranks, limits, rank, request, of.done[request] + wanted):
            preempted = True
            victim = _preempt(of, ranks, limits, rank)
            if victim == i:
                kept = False
            elif victim < i:  # what it was given stays unused: the step is not planned again
                i -= 1
        if not kept:
            continue
        ranks.chunk[rank, i] = wanted
        budget -= wanted
        i += 1
    while not preempted and budget > 0 and ranks.busy[rank] < ranks.running.shape[1]:
        request = ranks.head[rank]
        if request < 0:
            break
        fresh = of.done[request] == 0
        if fresh and limits.prefix_tokens:
            _hold_prefix(of, ranks, limits, rank, request)
        start = max(of.done[request], of.shared[request])
        lacking = of.prompt[request] + of.made[request] - start
        wanted = min(lacking, budget)
        if (wanted < lacking and not limits.chunked) or not _grow(
            of, ranks, limits, rank, request, start + wanted
        ):
            if fresh:
                _free(of, ranks, limits, rank, request)
            break
        ranks.head[rank] = of.next[request]
        ranks.waiting[rank] -= 1
        if limits.swap and not fresh and of.preempted[request] > 0:
            ranks.swapped[rank] += of.done[request]
        if fresh:
            of.reused[request] += of.shared[request]
        of.done[request] = start
        of.state[request] = RUNNING
        if of.admitted_s[request] < 0.0:
            of.admitted_s[request] = now_s
        place = ranks.busy[rank]
        ranks.running[rank, place] = request
        ranks.chunk[rank, place] = wanted
        ranks.busy[rank] += 1
        budget -= wanted
    return int(limits.tokens - budget)


@allocation_free
def plan(
    of: Ledger,
    ranks: Ranks,
    limits: Limits,
    window: int,
    halves: int,
    now_s: float,
    token: Int64s,
    ends: Int64s,
    phase: Floats,
) -> int:
    """Choose the tokens of a group's next step and lay them out as `timing.Work` has them.

    token, ends, phase: of that; window: keys of windowed layers (0: none). Returns the tokens.
    """
    phase[:] = 0.0
    filled = 0
    ranks.now[N_GENERATED] = ranks.now[N_SWAPPED] = 0
    for rank in range(len(ranks.busy)):
        _plan_rank(of, ranks, limits, rank, now_s)
        ranks.now[N_SWAPPED] = max(ranks.now[N_SWAPPED], ranks.swapped[rank])
        tokens = 0
        for i in range(ranks.busy[rank]):
            tokens += ranks.chunk[rank, i]
        first = filled
        for half in range(halves + 1):  # dealt evenly, earlier ones first, as `parts.cut`
            ends[rank, half] = first + (half * tokens + halves - 1) // halves
        half = 0
        for i in range(ranks.busy[rank]):
            request = ranks.running[rank, i]
            chunk = ranks.chunk[rank, i]
            if chunk == 0:
                continue
            start = of.done[request]
            known = of.prompt[request] + of.made[request]
            which = DECODE if chunk == 1 and of.made[request] > 0 else PREFILL
            ranks.now[N_GENERATED] += 1 if which == DECODE else 0
            row, rows = of.row[request], of.rows[request]
            in_half = 0
            for j in range(chunk):
                while filled >= ends[rank, half + 1]:
                    _attend(phase[half, rank, which], start + j, in_half, window)
                    in_half = 0
                    half += 1
                token[filled] = row + (start + j) % rows
                filled += 1
                in_half += 1
            _attend(phase[half, rank, which], start + chunk, in_half, window)
            if start + chunk == known:
                phase[half, rank, DECODE, 5] += 1.0
    return int(filled)


@inlined
def _attend(phase: Floats, end: int, rows: int, window: int) -> None:
    """Add `rows` tokens that end at position `end` of a request, one after the other."""
    if rows == 0:
        return
    # Position p attends to p + 1 keys: itself and all before.
    first = end - rows
    pairs = 0.5 * rows * (first + 1.0 + end)
    phase[0] += rows
    phase[1] += pairs
    phase[2] += end
    if window > 0:
        inside = min(max(window - first, 0), rows)  # those that do not see as far as the window
        phase[3] += 0.5 * inside * (first + 1.0 + first + inside) + float(rows - inside) * window
        phase[4] += min(end, window + rows - 1)
    else:
        phase[3] += pairs
        phase[4] += end


@inlined
def _bin(gap_s: float) -> int:
    """Where a gap between two tokens is counted."""
    return int(min(np.log(max(gap_s, FIRST_BIN_S) / FIRST_BIN_S) * BINS_PER_FACTOR, BINS - 1.0))


@allocation_free
def repeatable(of: Ledger, ranks: Ranks, limits: Limits, most: int) -> int:
    """How many steps like the one planned can follow one another, it among them, at most `most`:
    nobody waits, all generate, nobody ends before the last, and their KV finds room.
    """
    for rank in range(len(ranks.busy)):
        if ranks.waiting[rank]:
            return 1
        for i in range(ranks.busy[rank]):
            request = ranks.running[rank, i]
            if ranks.chunk[rank, i] != 1 or of.made[request] == 0:
                return 1
            most = min(most, of.output[request] - of.made[request])
    for rank in range(len(ranks.busy)):
        for i in range(ranks.busy[rank]):
            request = ranks.running[rank, i]
            while most > 1 and not _grow(of, ranks, limits, rank, request, of.done[request] + most):
                most //= 2
    return int(most)


@allocation_free
def finish(
    of: Ledger,
    ranks: Ranks,
    limits: Limits,
    now_s: float,
    repeated: int,
    each_s: float,
    ended: Int32s,
    ended_rank: Int32s,
) -> int:
    """The step is over: count its tokens; how many requests ended (or are handed on), in `ended`.

    repeated: it stands for so many steps of `each_s` (`repeatable`). A request that is handed on
    keeps its blocks until `withdraw`.
    """
    found = 0
    more = repeated - 1
    ranks.now[N_WAITING:] = 0
    for rank in range(len(ranks.busy)):
        i = 0
        while i < ranks.busy[rank]:
            request = ranks.running[rank, i]
            chunk = ranks.chunk[rank, i]
            ranks.chunk[rank, i] = 0
            of.done[request] += chunk
            known = of.prompt[request] + of.made[request]
            if more and chunk:
                of.done[request] += more
                of.made[request] += more
                known += more
                ranks.totals[GENERATED_TOKENS] += more
                ranks.gaps[_bin(each_s)] += more
                of.last_s[request] += more * each_s
            if of.made[request] == 0:
                ranks.totals[PROMPT_TOKENS] += chunk
            if chunk == 0 or of.done[request] < known:
                i += 1
                continue
            if of.made[request] == 0 and limits.prefix_tokens:
                _share_prefix(of, ranks, limits, rank, request)
            if of.output[request] > 0:
                of.made[request] += 1
                ranks.totals[GENERATED_TOKENS] += 1
            if of.first_s[request] < 0.0:
                of.first_s[request] = now_s
            else:
                gap_s = now_s - of.last_s[request]
                of.largest_gap_s[request] = max(of.largest_gap_s[request], gap_s)
                ranks.gaps[_bin(gap_s)] += 1
            of.last_s[request] = now_s
            over = of.made[request] >= of.output[request]
            if not over and not limits.hand_on:
                i += 1
                continue
            ended[found] = request
            ended_rank[found] = rank
            found += 1
            _leave(ranks, rank, i)
            if over:
                _free(of, ranks, limits, rank, request)
                of.state[request] = ENDED
            else:
                of.state[request] = HANDED_ON
        ranks.now[N_WAITING] += ranks.waiting[rank]
        ranks.now[N_RUNNING] += ranks.busy[rank]
        ranks.now[N_BLOCKS] += limits.blocks - ranks.free[rank]
    return found
