"""Records (request, token, layer, experts) in any order -> the rows of a trace, in bounded memory.

Records are written to a temporary file as they come, then sorted on disk into buckets of about a
million records (an external counting sort by request and token), and each bucket is put together in
memory. What stays in memory grows with the number of requests (some 200 bytes each), not records.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from simulator.errors import InputError
from simulator.routing.importers.report import PROFILING_TOKENS, ImportReport
from simulator.routing.trace import UNKNOWN, TraceWriter

Int16s = npt.NDArray[np.int16]
Int64s = npt.NDArray[np.int64]
Records = npt.NDArray[Any]
Rows = tuple[Int64s, Int64s, Int16s]

BUCKET_RECORDS = 1 << 18
# A request longer than a bucket is cut at multiples of this many tokens.
TOKENS_SHIFT = 10
# Ids in memory at once while a bucket is put together (8 MiB).
ROW_IDS = 1 << 21


def record_type(k: int) -> np.dtype[Any]:
    """A record of k experts as it lies in the temporary file."""
    return np.dtype([("request", "<i4"), ("token", "<i4"), ("layer", "<i2"), ("ids", "<i2", (k,))])


class Spill:
    """Records on disk until all are known; use as a context manager, which removes the files.

    After the last `add`, `layers` (those with records, ascending), `largest` (the largest expert
    id), `k` and `requests` hold for all records.
    """

    def __init__(self, folder: Path, bucket_records: int = BUCKET_RECORDS) -> None:
        self._folder = folder
        self._bucket_records = bucket_records
        self._segments: list[tuple[int, int]] = []
        self._counts: dict[int, int] = {}
        self._last = np.full(1024, -1, dtype=np.int64)
        self._seen_layers: set[int] = set()
        self.records = 0
        self.requests = 0
        self.largest = -1
        self.k = 0

    def __enter__(self) -> Spill:
        try:
            self._file: IO[bytes] = tempfile.TemporaryFile(dir=self._folder, prefix="import-")
        except OSError as error:
            raise InputError(f"{self._folder}: cannot be written to: {error}") from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    @property
    def layers(self) -> list[int]:
        """The numbers of the layers that have records, ascending."""
        return sorted(self._seen_layers)

    def add(self, request: Int64s, token: Int64s, layer: Int64s, ids: Int64s) -> None:
        """Append records: request (numbered from 0), token, layer [n] and ids [n, k], -1 at the
        end of a row where a record has fewer experts than k.
        """
        if len(request) == 0:
            return
        records = np.empty(len(request), dtype=record_type(ids.shape[1]))
        records["request"], records["token"] = request, token
        records["layer"], records["ids"] = layer, ids
        self._file.write(records.tobytes())
        self._segments.append((len(records), ids.shape[1]))
        top = int(request.max()) + 1
        while top > len(self._last):
            self._last = np.concatenate([self._last, np.full_like(self._last, -1)])
        # Of an index that comes twice numpy keeps the last value.
        self._last[request] = self.records + np.arange(len(request))
        keys, counts = np.unique(_key(request, token), return_counts=True)
        for key, count in zip(keys.tolist(), counts.tolist(), strict=True):
            self._counts[key] = self._counts.get(key, 0) + count
        self._seen_layers.update(np.unique(layer).tolist())
        self.records += len(records)
        self.requests = max(self.requests, top)
        self.largest = max(self.largest, int(ids.max()))
        self.k = max(self.k, ids.shape[1])

    def rows(self, report: ImportReport) -> Iterator[Rows]:
        """Yield (request, position [n], ids int16 [n, layers, k]), by request and position.

        Requests are renumbered in the order in which they end. Of two records of one request,
        token and layer the later one holds; `report` counts the other.
        """
        ended = np.argsort(self._last[: self.requests], kind="stable")
        rank = np.empty(self.requests, dtype=np.int64)
        rank[ended] = np.arange(self.requests)
        place = np.full(max(self.layers) + 1, -1, dtype=np.int64)
        place[self.layers] = np.arange(len(self.layers))
        for bucket in self._buckets(rank):
            yield from self._assembled(bucket, rank, place, report)

    def _buckets(self, rank: Int64s) -> Iterator[Records]:
        """Yield the records in buckets: all of a request and stretch of tokens in one, in order."""
        keys = np.fromiter(self._counts.keys(), dtype=np.int64, count=len(self._counts))
        counts = np.fromiter(self._counts.values(), dtype=np.int64, count=len(self._counts))
        order = np.lexsort((keys & 0xFFFFFFFF, rank[keys >> 32]))
        ends = np.cumsum(counts[order])
        # A new bucket begins with the key that passes a multiple of the size.
        bucket_of = (ends - 1) // self._bucket_records
        by_key = np.argsort(keys[order], kind="stable")
        sorted_keys, bucket_of_key = keys[order][by_key], bucket_of[by_key]
        sizes = np.bincount(bucket_of, weights=counts[order]).astype(np.int64)
        start = np.concatenate(([0], np.cumsum(sizes)))
        kind = record_type(self.k)
        if np.count_nonzero(sizes) == 1:
            yield np.concatenate(list(self._read()))
            return
        filled = start[:-1].copy()
        with tempfile.TemporaryFile(dir=self._folder, prefix="import-") as out:
            for records in self._read():
                key = _key(records["request"].astype(np.int64), records["token"])
                bucket = bucket_of_key[np.searchsorted(sorted_keys, key)]
                by_bucket = np.argsort(bucket, kind="stable")
                records, bucket = records[by_bucket], bucket[by_bucket]
                edges = np.flatnonzero(np.diff(bucket)) + 1
                for piece in np.split(np.arange(len(bucket)), edges):
                    number = int(bucket[piece[0]])
                    out.seek(int(filled[number]) * kind.itemsize)
                    out.write(records[piece[0] : piece[-1] + 1].tobytes())
                    filled[number] += len(piece)
            for number in range(len(sizes)):
                out.seek(int(start[number]) * kind.itemsize)
                raw = out.read(int(sizes[number]) * kind.itemsize)
                yield np.frombuffer(raw, dtype=kind)

    def _read(self) -> Iterator[Records]:
        """Yield the records as they were added, all with k experts."""
        kind = record_type(self.k)
        self._file.seek(0)
        for count, k in self._segments:
            narrow = record_type(k)
            records: Records = np.frombuffer(self._file.read(count * narrow.itemsize), dtype=narrow)
            if k < self.k:
                wide = np.empty(count, dtype=kind)
                for name in ("request", "token", "layer"):
                    wide[name] = records[name]
                wide["ids"] = -1
                wide["ids"][:, :k] = records["ids"]
                records = wide
            yield records

    def _assembled(
        self, records: Records, rank: Int64s, place: Int64s, report: ImportReport
    ) -> Iterator[Rows]:
        if len(records) == 0:
            return
        key = (rank[records["request"]] << 32) | records["token"].astype(np.int64)
        order = np.argsort(key, kind="stable")
        key = key[order]
        new = np.concatenate(([True], key[1:] != key[:-1]))
        first = np.flatnonzero(new)
        row_of = np.cumsum(new) - 1
        layer = place[records["layer"][order]]
        layers = len(self.layers)
        step = max(1, ROW_IDS // (layers * self.k))
        for begin in range(0, len(first), step):
            end = min(begin + step, len(first))
            low = first[begin]
            high = first[end] if end < len(first) else len(key)
            spot = (row_of[low:high] - begin) * layers + layer[low:high]
            ids = np.full(((end - begin) * layers, self.k), -1, dtype=np.int16)
            ids[spot] = records["ids"][order[low:high]]
            there = np.zeros(len(ids), dtype=np.bool_)
            there[spot] = True
            report.records_replaced += len(spot) - int(there.sum())
            keys = key[first[begin:end]]
            yield keys >> 32, keys & 0xFFFFFFFF, ids.reshape(end - begin, layers, self.k)

    def first_rank(self) -> int:
        """The number that the request of the first record gets."""
        return int((self._last[: self.requests] < self._last[0]).sum())


def trim(rows: Iterator[Rows], first: int, report: ImportReport) -> Iterator[Rows]:
    """Drop an engine's profiling run: 1,000 or more tokens in a row with the same experts.

    Looked for from request `first` on, and where nothing but such a run came before. `report`
    counts.
    """
    kept = 0
    # The last run of a block may go on in the next: it is put before it.
    held: list[Rows] = []
    for block in itertools.chain(rows, [None]):
        whole = [*held, block] if block is not None else held
        held = []
        if not whole:
            return
        request, position, ids = (np.concatenate(parts) for parts in zip(*whole, strict=True))
        inside = request == first
        if kept and not inside.any():
            yield request, position, ids
            continue
        sets = np.sort(ids, axis=2)
        changes = (sets[1:] != sets[:-1]).any(axis=(1, 2))
        starts = np.concatenate(([0], np.flatnonzero(changes) + 1))
        lengths = np.diff(np.concatenate((starts, [len(ids)])))
        long = lengths >= PROFILING_TOKENS
        drop = long & inside[starts]
        if kept == 0:
            leading = len(long) if long.all() else int(np.argmin(long))
            drop[:leading] = True
        gone = np.zeros(len(ids), dtype=np.bool_)
        for at in np.flatnonzero(drop).tolist():
            begin, end = int(starts[at]), int(starts[at] + lengths[at])
            gone[begin : _run_end(request, begin, end)] = True
        if block is not None and (inside[starts[-1]] or (kept == 0 and drop[:-1].all())):
            # Of a run that is long already the end will do, to tell where it ends.
            at = int(starts[-1])
            later = max(at, len(ids) - PROFILING_TOKENS)
            held = [(request[later:], position[later:], ids[later:])]
            request, position, ids, gone = (part[:later] for part in (request, position, ids, gone))
            gone[at:] = True
        _count_trimmed(ids[gone], report)
        if not gone.all():
            kept += int((~gone).sum())
            yield request[~gone], position[~gone], ids[~gone]


def _run_end(request: Int64s, begin: int, end: int) -> int:
    """Where a run of equal tokens ends: not within a request that only begins like it."""
    if end == len(request) or request[end] != request[end - 1]:
        return end
    first = int(np.searchsorted(request, request[end]))
    return first if first > begin else end


def _count_trimmed(ids: Int16s, report: ImportReport) -> None:
    report.tokens_trimmed += len(ids)
    report.records_trimmed += int((ids[:, :, 0] >= 0).sum())


def write_rows(
    rows: Iterator[Rows], writer: TraceWriter, requests: int, report: ImportReport
) -> None:
    """Write (request, position, ids) as they come by request, numbered without gaps.

    `requests` is how many there were before any was trimmed away; `report` counts what is kept.
    """
    last = -1
    for request, position, ids in rows:
        new = request != np.concatenate(([last], request[:-1]))
        last = int(request[-1])
        number = report.requests + np.cumsum(new) - 1
        report.requests += int(new.sum())
        report.count(ids)
        writer.write(number, position, np.full(len(request), UNKNOWN), ids)
    report.requests_trimmed = requests - report.requests


def _key(request: Int64s, token: npt.NDArray[np.signedinteger[Any]]) -> Int64s:
    """Of a request and stretch of tokens."""
    return (request << 32) | (token.astype(np.int64) >> TOKENS_SHIFT)
