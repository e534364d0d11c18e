"""Decode slots fed from a trace: who is in which slot, and the tokens read but not yet used.

A trace sorted by request gives the tokens of one request in a row, while a step needs one token
of every slot. The tokens in between wait in a pool, chained per request, so that memory is
bounded by the slots and the length of their requests, whatever the length of the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from simulator.errors import InputError
from simulator.routing.trace import TraceBlock, iter_blocks, iter_requests

Int16s = npt.NDArray[np.int16]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# Tokens that may wait for requests whose turn has not come (only interleaved files have many).
MAX_QUEUED_TOKENS = 2_000_000
# All waiting tokens together: what a laptop has to spare.
MAX_POOL_BYTES = 4 << 30
FIRST_POOL_TOKENS = 8192


@dataclass(frozen=True)
class RequestRows:
    """The requests of a trace in the order of their first rows, after a filter.

    ids: int32 [requests] the file's own numbers; rows: int64 [requests], each at least 1;
    wanted: the phase that passes the filter, None for all.
    """

    ids: Int32s
    rows: Int64s
    wanted: int | None

    @staticmethod
    def scan(path: Path, wanted: int | None) -> RequestRows:
        """Count the rows of every request by reading only the small columns."""
        ids: Int32s = np.empty(0, dtype=np.int32)
        rows: Int64s = np.empty(0, dtype=np.int64)
        for request, phase in iter_requests(path):
            if wanted is not None:
                request = request[phase == wanted]
            unique, first, count = np.unique(request, return_index=True, return_counts=True)
            order = np.argsort(first)
            ids, rows = _merge(ids, rows, unique[order], count[order])
        return RequestRows(ids, rows, wanted)


def _merge(ids: Int32s, rows: Int64s, more_ids: Int32s, more_rows: Int64s) -> tuple[Int32s, Int64s]:
    """Add counts to counts, keeping the order of first appearance."""
    all_ids, all_rows = np.concatenate((ids, more_ids)), np.concatenate((rows, more_rows))
    _, first, group = np.unique(all_ids, return_index=True, return_inverse=True)
    total = np.zeros(len(first), dtype=np.int64)
    np.add.at(total, group, all_rows)
    order = np.argsort(first)
    return all_ids[first[order]], total[order]


class TraceSlots:
    """Slots that each take the tokens of one request after another.

    `start` int64 [slots] is the request (index in `requests`) that each slot begins with. With
    `refill` a slot goes on with the next request that no slot has had, and after the last with the
    first again; without, all slots begin again together when every one has ended.
    """

    def __init__(
        self,
        path: Path,
        requests: RequestRows,
        start: Int64s,
        layers: int,
        k: int,
        refill: bool,
    ) -> None:
        self.wraps = 0
        self._path, self._requests, self._refill = path, requests, refill
        self._start = start
        self._sorter = np.argsort(requests.ids)
        self._sorted_ids = requests.ids[self._sorter]
        # Slots. A turn counts requests over all passes: turn t is request t mod total.
        count, total = len(start), len(requests.ids)
        self._turn = start.copy()
        self._left = requests.rows[start]
        self._new = np.ones(count, dtype=np.bool_)
        self._token = np.full(count, -1, dtype=np.int64)
        self._next_turn = count
        # The pass being read. head and tail: first and last waiting token of each request.
        self._pass = 0
        self._blocks = iter_blocks(path)
        self._head = np.full(total, -1, dtype=np.int64)
        self._tail = np.full(total, -1, dtype=np.int64)
        self._queued = 0
        self._waiting = np.zeros(total, dtype=np.int64)
        # The pool. free[:free_count] are the unused places.
        capacity = FIRST_POOL_TOKENS
        self._ids = np.empty((capacity, layers, k), dtype=np.int16)
        self._position = np.empty(capacity, dtype=np.int32)
        self._follower = np.full(capacity, -1, dtype=np.int64)
        self._free = np.arange(capacity, dtype=np.int64)
        self._free_count = capacity

    def step(self) -> tuple[Int64s, Int16s, Int32s, Bools]:
        """The next token of every busy slot, reading the file as far as that takes.

        Returns slot int64 [n] ascending, ids int16 [n, layers, k] (layer-major in memory),
        position int32 [n], new bool [n] (first of its request).
        """
        slot = np.flatnonzero(self._left > 0)
        while True:
            self._fetch_heads(slot)
            if (self._token[slot] >= 0).all():
                break
            self._read_block()
        token = self._token[slot]
        layers, k = self._ids.shape[1:]
        base = np.empty((layers, len(slot), k), dtype=np.int16)
        np.copyto(base, self._ids[token].transpose(1, 0, 2))
        self.wraps = max(self.wraps, int(self._turn[slot].max()) // len(self._head))
        return slot, base.transpose(1, 0, 2), self._position[token], self._new[slot]

    def request_of(self, slot: Int64s) -> Int64s:
        """Index in `requests` of the request that each of the slots [n] is at."""
        return self._turn[slot] % len(self._head)

    def advance(self, slot: Int64s) -> None:
        """Move the slots of the last step past their tokens, and on to new requests."""
        token = self._token[slot]
        follower = self._follower[token]
        self._free[self._free_count : self._free_count + len(slot)] = token
        self._free_count += len(slot)
        self._left[slot] -= 1
        self._new[slot] = False
        self._token[slot] = follower
        # More is to come from the file, so the request's chain is empty, not at its end. Only
        # requests of the pass being read can be in that state.
        starved = self.request_of(slot[(follower < 0) & (self._left[slot] > 0)])
        self._head[starved] = self._tail[starved] = -1
        ended = slot[self._left[slot] == 0]
        if self._refill:
            self._begin(ended, self._next_turn + np.arange(len(ended), dtype=np.int64))
        elif not self._left.any():
            passes = int(self._turn.max()) // len(self._head) + 1
            self._begin(
                np.arange(len(self._turn), dtype=np.int64),
                self._start + passes * len(self._head),
            )

    def _begin(self, slot: Int64s, turn: Int64s) -> None:
        """Put the requests of the turns [n] into the slots [n]."""
        request = turn % len(self._head)
        self._turn[slot] = turn
        self._left[slot] = self._requests.rows[request]
        self._new[slot] = True
        self._token[slot] = -1
        self._next_turn += len(slot)
        now = request[turn // len(self._head) == self._pass]
        self._queued -= int(self._waiting[now].sum())

    def _fetch_heads(self, slot: Int64s) -> None:
        """Give slots without a token the first waiting one of their request, if it is read."""
        hungry = slot[self._token[slot] < 0]
        hungry = hungry[self._turn[hungry] // len(self._head) == self._pass]
        self._token[hungry] = self._head[self.request_of(hungry)]

    def _read_block(self) -> None:
        block = next(self._blocks, None)
        if block is None:
            # Whoever is still at this pass has all its tokens chained, so heads can be forgotten.
            self._pass += 1
            self._blocks = iter_blocks(self._path)
            self._head.fill(-1)
            self._tail.fill(-1)
            self._waiting.fill(0)
            self._queued = 0
            return
        self._store(block)

    def _store(self, block: TraceBlock) -> None:
        """Put a block's tokens into the pool and chain them to their requests."""
        wanted = self._requests.wanted
        keep = np.flatnonzero(block.phase == wanted) if wanted is not None else slice(None)
        request_ids, position = block.request[keep], block.position[keep]
        n = len(request_ids)
        if n == 0:
            return
        request = self._sorter[np.searchsorted(self._sorted_ids, request_ids)]
        self._reserve(n)
        self._free_count -= n
        place = self._free[self._free_count : self._free_count + n].copy()
        self._ids[place] = block.experts[keep, : self._ids.shape[1]]
        self._position[place] = position
        self._follower[place] = -1

        order = np.argsort(request, kind="stable")
        request, place, position = request[order], place[order], position[order]
        same = request[1:] == request[:-1]
        late = np.flatnonzero(same & (position[1:] <= position[:-1]))
        first = np.flatnonzero(np.concatenate(([True], ~same)))
        last = np.concatenate((first[1:], [n])) - 1
        tail = self._tail[request[first]]
        chained = tail >= 0
        if len(late) or (position[first[chained]] <= self._position[tail[chained]]).any():
            raise InputError(
                f"{self._path}: positions of a request do not increase in rows "
                f"{block.first_row}..{block.first_row + len(block.request) - 1}; "
                "sort the file by request and position"
            )
        self._follower[place[:-1][same]] = place[1:][same]
        self._follower[tail[chained]] = place[first[chained]]
        self._head[request[first[~chained]]] = place[first[~chained]]
        self._tail[request[first]] = place[last]
        self._queue(request)

    def _queue(self, request: Int64s) -> None:
        """Count what waits for requests whose turn has not come, and refuse too much of it."""
        ahead = request[request + self._pass * len(self._head) >= self._next_turn]
        np.add.at(self._waiting, ahead, 1)
        self._queued += len(ahead)
        if self._queued > MAX_QUEUED_TOKENS:
            raise InputError(
                f"{self._path}: the requests are interleaved, and more than {MAX_QUEUED_TOKENS} "
                "tokens wait for their request's turn; sort the file by request and position"
            )

    def _reserve(self, n: int) -> None:
        """Make room for n more tokens, growing in place so that nothing is there twice."""
        old = len(self._free)
        if n <= self._free_count:
            return
        new = max(old + n, old + old // 2)
        if new * self._ids[0].nbytes > MAX_POOL_BYTES:
            raise InputError(
                f"{self._path}: the requests in the {len(self._turn)} slots have more than "
                f"{old} tokens waiting ({MAX_POOL_BYTES >> 30} GiB); lower the tokens per GPU"
            )
        self._ids.resize((new, *self._ids.shape[1:]), refcheck=False)
        self._position.resize(new, refcheck=False)
        self._follower.resize(new, refcheck=False)
        self._free.resize(new, refcheck=False)
        self._free[self._free_count : self._free_count + new - old] = np.arange(old, new)
        self._free_count += new - old
