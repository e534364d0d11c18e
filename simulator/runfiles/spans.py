"""The tables of a run: spans as they happen, and the four small tables beside them.

Every table is one Parquet file with the columns of `docs/architecture.md`, compressed with zstd
level 1, with checksums. The same rows give the same bytes: nothing in a file depends on time,
process or threads.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

STREAMS = ("compute", "comm", "copy")
COMPUTE, COMM, COPY = range(3)

KINDS = (
    "attention",
    "ffn",
    "experts",
    "lm_head",
    "dispatch",
    "combine",
    "demand",
    "prefetch",
    "allreduce",
    "allgather",
    "reducescatter",
    "send",
    "rebalance",
)
ATTENTION, FFN, EXPERTS, LM_HEAD, DISPATCH, COMBINE, DEMAND, PREFETCH = range(8)
ALLREDUCE, ALLGATHER, REDUCESCATTER, SEND, REBALANCE = range(8, 13)

BLOCK_ROWS = 65_536
"""Rows of one row group: what a writer holds in memory, about 6 MB."""

_WORD = pa.dictionary(pa.int32(), pa.string())

SPAN_SCHEMA = pa.schema(
    [
        pa.field("step", pa.int32(), nullable=False),
        pa.field("microbatch", pa.int16(), nullable=False),
        pa.field("chunk", pa.int16(), nullable=False),
        pa.field("layer", pa.int16(), nullable=False),
        pa.field("gpu", pa.int32(), nullable=False),
        pa.field("stream", _WORD, nullable=False),
        pa.field("kind", _WORD, nullable=False),
        pa.field("start_s", pa.float64(), nullable=False),
        pa.field("end_s", pa.float64(), nullable=False),
        pa.field("ready_s", pa.float64(), nullable=False),
        pa.field("peer", pa.int32(), nullable=False),
        pa.field("fetch_wait_s", pa.float64(), nullable=False),
        pa.field("expert", pa.int32(), nullable=False),
        pa.field("bytes", pa.float64(), nullable=False),
        pa.field("flops", pa.float64(), nullable=False),
        pa.field("rows", pa.int32(), nullable=False),
        pa.field("used", pa.bool_(), nullable=False),
    ]
)

# One packed record per span, in the order of the schema. Packing into a preallocated buffer costs
# a third of a list of tuples, and a flush reads the columns as strided views of it.
_RECORD = struct.Struct("=ihhhibbdddididdi?")
_RECORD_SIZE = _RECORD.size
RECORD = np.dtype(
    [
        (field.name, "i1" if field.type == _WORD else field.type.to_pandas_dtype())
        for field in SPAN_SCHEMA
    ]
)

# Columns of few different values; zstd alone makes the others as small, and takes half the time.
_DICTIONARY_COLUMNS = ["microbatch", "stream", "kind", "bytes", "flops"]


# How tables are written. By the checksums, readers notice damage (`tables`).
WRITING: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": 1,
    "write_page_checksum": True,
}


class TableStream:
    """What writers of tables share: they are context managers, and `close()` writes what is held.

    A writer has `_flush`, which empties its block into `_writer`. The file is complete only when it
    is closed.
    """

    _writer: pq.ParquetWriter

    def _flush(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Write what is held and finish the file; a second call does nothing."""
        if self._writer.is_open:
            self._flush()
            self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class SpanWriter(TableStream):
    """Streams spans to one Parquet file, a row group per `BLOCK_ROWS`; memory stays one block.

    Use it as a context manager, or call `close()`; the file is complete only after that.
    """

    def __init__(self, path: Path) -> None:
        """Open `path` for writing (OSError if that cannot be done)."""
        self._buffer = bytearray(BLOCK_ROWS * _RECORD.size)
        self._pack = _RECORD.pack_into
        self._offset = 0
        self._limit = len(self._buffer)
        self._flushed_rows = 0
        self._writer = pq.ParquetWriter(
            path,
            SPAN_SCHEMA,
            **WRITING,
            use_dictionary=_DICTIONARY_COLUMNS,
            # A fifth of the time of writing, were it for all columns; by step, readers can skip.
            write_statistics=["step"],
        )

    def append(
        self,
        step: int,
        microbatch: int,
        chunk: int,
        layer: int,
        gpu: int,
        stream: int,
        kind: int,
        start_s: float,
        end_s: float,
        ready_s: float,
        peer: int = -1,
        fetch_wait_s: float = 0.0,
        expert: int = -1,
        bytes_: float = 0.0,
        flops: float = 0.0,
        rows: int = 0,
        used: bool = False,
    ) -> None:
        """Add one span; `stream` and `kind` are indices into `STREAMS` and `KINDS`.

        A prefetch is appended when its fate (`used`) is known; rows are never changed afterwards.
        Errors: ValueError if the span takes no time (a caller drops those); struct.error if a
        number does not fit its column.
        """
        if not end_s > start_s:
            raise ValueError(
                f"span of no length: {KINDS[kind]} of layer {layer} on GPU {gpu}, "
                f"start_s={start_s!r}, end_s={end_s!r}"
            )
        # fmt: off
        self._pack(
            self._buffer, self._offset, step, microbatch, chunk, layer, gpu, stream, kind,
            start_s, end_s, ready_s, peer, fetch_wait_s, expert, bytes_, flops, rows, used,
        )
        # fmt: on
        self._offset += _RECORD_SIZE
        if self._offset == self._limit:
            self._flush()

    def extend(self, records: np.ndarray) -> None:
        """Add spans in this order: a structured array [n] of dtype `RECORD`.

        Errors: ValueError if one takes no time.
        """
        bad = np.flatnonzero(~(records["end_s"] > records["start_s"]))
        if bad.size:
            raise ValueError(f"span of no length: {records[bad[0]]}")
        plain = np.ascontiguousarray(records).view(np.uint8).data
        done = 0
        while done < len(plain):
            piece = plain[done : done + self._limit - self._offset]
            self._buffer[self._offset : self._offset + len(piece)] = piece
            self._offset += len(piece)
            done += len(piece)
            if self._offset == self._limit:
                self._flush()

    def __len__(self) -> int:
        """Spans appended so far."""
        return self._flushed_rows + self._offset // _RECORD_SIZE

    def _flush(self) -> None:
        count = self._offset // _RECORD_SIZE
        if not count:
            return
        block = np.frombuffer(self._buffer, dtype=RECORD, count=count)
        columns: list[Any] = []
        for field in SPAN_SCHEMA:
            values = np.ascontiguousarray(block[field.name])
            if field.name == "stream":
                columns.append(_words(values, STREAMS))
            elif field.name == "kind":
                columns.append(_words(values, KINDS))
            else:
                columns.append(_arrow(values, field.type))
        self._writer.write_batch(pa.record_batch(columns, schema=SPAN_SCHEMA))
        self._flushed_rows += count
        self._offset = 0


def _words(codes: np.ndarray, words: Sequence[str]) -> pa.DictionaryArray:
    """Codes int [n] as a dictionary column; ValueError for a code outside `words`."""
    if len(codes) and not 0 <= int(codes.min()) <= int(codes.max()) < len(words):
        raise ValueError(f"span code outside 0..{len(words) - 1} ({', '.join(words)})")
    return pa.DictionaryArray.from_arrays(_arrow(codes, pa.int32()), _arrow(words, pa.string()))


LINK_SCHEMA = pa.schema(
    [
        pa.field("link", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("bandwidth_bytes_per_s", pa.float64(), nullable=False),
        pa.field("bytes", pa.float64(), nullable=False),
    ]
)

STEP_SCHEMA = pa.schema(
    [
        pa.field("step", pa.int32(), nullable=False),
        pa.field("start_s", pa.float64(), nullable=False),
        pa.field("end_s", pa.float64(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("warmup", pa.bool_(), nullable=False),
    ]
)

ACCESS_SCHEMA = pa.schema(
    [
        pa.field("step", pa.int32(), nullable=False),
        pa.field("gpu", pa.int32(), nullable=False),
        pa.field("layer", pa.int16(), nullable=False),
        pa.field("hit", pa.int64(), nullable=False),
        pa.field("late", pa.int64(), nullable=False),
        pa.field("miss", pa.int64(), nullable=False),
        pa.field("foreseen", pa.int64(), nullable=False),
        pa.field("cancelled", pa.int64(), nullable=False),
    ]
)

LOAD_SCHEMA = pa.schema(
    [
        pa.field("layer", pa.int16(), nullable=False),
        pa.field("expert", pa.int32(), nullable=False),
        pa.field("gpu", pa.int32(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
    ]
)

Column = Sequence[Any] | np.ndarray


class AccessWriter(TableStream):
    """Streams `accesses.parquet`: counts of (micro-batch, expert) accesses, step by step.

    Use it as a context manager, or call `close()`; memory stays one block.
    """

    def __init__(self, path: Path) -> None:
        """Open `path` for writing (OSError if that cannot be done)."""
        self._held: list[tuple[Column, ...]] = []
        self._rows = 0
        self._writer = pq.ParquetWriter(path, ACCESS_SCHEMA, **WRITING)

    def append(
        self,
        step: int,
        gpu: Column,
        layer: Column,
        hit: Column,
        late: Column,
        miss: Column,
        foreseen: Column | None = None,
        cancelled: Column | None = None,
    ) -> None:
        """Add the rows of one step (arguments [rows]). foreseen: accesses that had been predicted;
        cancelled: prefetches never begun; None: none.
        """
        none = np.zeros(len(gpu), dtype=np.int64)
        more = (none if column is None else column for column in (foreseen, cancelled))
        self._held.append((np.full(len(gpu), step), gpu, layer, hit, late, miss, *more))
        self._rows += len(gpu)
        if self._rows >= BLOCK_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            columns = [np.concatenate(pieces) for pieces in zip(*self._held, strict=True)]
            table = pa.Table.from_batches([batch(ACCESS_SCHEMA, columns)])
            self._writer.write_table(table, row_group_size=self._rows)
        self._held.clear()
        self._rows = 0


def write_links(
    path: Path, link: Column, kind: Column, bandwidth_bytes_per_s: Column, bytes_: Column
) -> None:
    """Write `links.parquet`: one row per directed link that a route uses (all arguments [links]).

    `link` reads "a -> b"; `bytes_` counts what crossed it in the measured steps (no warm-up).
    """
    write(path, LINK_SCHEMA, (link, kind, bandwidth_bytes_per_s, bytes_))


def write_steps(
    path: Path, step: Column, start_s: Column, end_s: Column, tokens: Column, warmup: Column
) -> None:
    """Write `steps.parquet`: one row per step of the run, warm-up included (arguments [steps])."""
    write(path, STEP_SCHEMA, (step, start_s, end_s, tokens, warmup))


def write_loads(path: Path, layer: Column, expert: Column, gpu: Column, rows: Column) -> None:
    """Write `loads.parquet`: rows computed, summed over the measured steps (arguments [n])."""
    write(path, LOAD_SCHEMA, (layer, expert, gpu, rows))


def write(path: Path, schema: pa.Schema, columns: Sequence[Column]) -> None:
    """Write one table; ValueError if the columns differ in length or hold nulls."""
    table = pa.Table.from_batches([batch(schema, columns)])
    pq.write_table(table, path, **WRITING)


def batch(schema: pa.Schema, columns: Sequence[Column]) -> pa.RecordBatch:
    """Columns [rows] as a batch of a schema; ValueError for what it cannot hold."""
    arrays = [_arrow(column, field.type) for column, field in zip(columns, schema, strict=True)]
    made = pa.record_batch(arrays, schema=schema)
    made.validate(full=True)
    return made


def _arrow(values: Column, kind: pa.DataType) -> pa.Array:
    """`values` [n] as an array of `kind` (text, boolean or number) without nulls.

    Made from buffers: `pa.array` imports pandas wherever it is installed, for the third of a second
    that a small run takes in all. Errors: ValueError for what `kind` cannot hold.
    """
    count = len(values)
    if pa.types.is_string(kind):
        texts = [str(value).encode() for value in values]
        ends = np.cumsum([0, *map(len, texts)], dtype=np.int32)
        buffers = [pa.py_buffer(ends), pa.py_buffer(b"".join(texts))]
        return pa.Array.from_buffers(kind, count, [None, *buffers])
    given = np.asarray(values)
    held = np.ascontiguousarray(given, dtype=kind.to_pandas_dtype())
    # A number that does not fit its column would be cut off in silence.
    if held.dtype != given.dtype and not np.array_equal(held, given):
        raise ValueError(f"a column of {kind} cannot hold {given.dtype} values exactly")
    if pa.types.is_boolean(kind):
        held = np.packbits(held, bitorder="little")
    return pa.Array.from_buffers(kind, count, [None, pa.py_buffer(held)])
