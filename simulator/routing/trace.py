"""Routing traces, format version 1: one Parquet file, one row per token (see traces/README.md).

Reading streams: a block of rows is in memory, never the file. Everything that a file claims about
itself is checked before memory is allocated from it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from simulator.errors import InputError

Int16s = npt.NDArray[np.int16]
Int32s = npt.NDArray[np.int32]
Int8s = npt.NDArray[np.int8]

VERSION = 1
METADATA_KEY = b"moe_routing_trace"
PROMPT, GENERATED, UNKNOWN = 0, 1, 2

# What a file may claim. Expert ids are int16, so 32,767 experts have ids 0 to 32,766.
MAX_LAYERS = 4096
MAX_EXPERTS = 32_767
MAX_IDS_PER_TOKEN = 65_536
# A block and a row group hold at most this many ids (8 MiB as int16), however long a row is.
BLOCK_IDS = 1 << 22
# Without a read buffer Arrow takes in whole column chunks; a mapped file would count as resident.
READ_BUFFER_BYTES = 1 << 18

# What pyarrow raises for a damaged file (the last for names that are no text any more).
READ_FAULTS = (pa.ArrowException, OSError, UnicodeDecodeError)

FIXED_KEYS = ("version", "model", "layers", "experts", "k", "origin", "requests", "tokens")


@dataclass(frozen=True)
class TraceInfo:
    """What a trace says about itself.

    `layers`, `experts` and `k` are the recorded model's; `requests` and `tokens` count the file's;
    `extra` holds the further keys of the metadata ("training", "statistics", ...).
    """

    model: str
    layers: int
    experts: int
    k: int
    origin: str
    requests: int
    tokens: int
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TraceBlock:
    """Consecutive rows of a trace.

    `request`, `position` int32 [n], `phase` int8 [n],
    `experts` int16 [n, layers, k] in gate order, -1 = not recorded; `first_row` counts from 0.
    """

    first_row: int
    request: Int32s
    position: Int32s
    phase: Int8s
    experts: Int16s


def read_info(path: str | Path) -> TraceInfo:
    """Read and check a trace's metadata and columns, but none of its rows.

    Raises InputError if the file is missing, empty, cut short, not Parquet, not a routing trace,
    of another version, without rows, or at odds with its own columns.
    """
    file, info = _open(Path(path))
    file.close()
    return info


def iter_blocks(path: str | Path, block_rows: int = 8192) -> Iterator[TraceBlock]:
    """Yield the rows of a trace in file order, at most `block_rows` at a time, checked.

    Raises InputError, naming the row (counted from 0), for an id outside [-1, experts), an expert
    twice in one layer, a negative request or position, an unknown phase, a missing value,
    positions of adjacent rows of one request that do not increase, and rows that cannot be read.
    """
    path = Path(path)
    info = read_info(path)
    seen = np.full(info.experts, -1, dtype=np.int64)
    row = 0
    last_request, last_position = -1, -1
    rows = max(1, min(block_rows, BLOCK_IDS // (info.layers * info.k)))
    for request, position, phase, flat in _iter_columns(
        path, ("request", "position", "phase", "experts"), rows
    ):
        block = TraceBlock(row, request, position, phase, flat.reshape(-1, info.layers, info.k))
        _check_block(path, info, block, seen)
        _check_order(path, block, last_request, last_position)
        row += len(request)
        last_request, last_position = int(request[-1]), int(position[-1])
        yield block


def iter_requests(path: str | Path, block_rows: int = 65_536) -> Iterator[tuple[Int32s, Int8s]]:
    """Yield (request int32 [n], phase int8 [n]) of all rows in file order, without the experts."""
    columns = _iter_columns(Path(path), ("request", "phase"), block_rows)
    yield from ((request, phase) for request, phase in columns)


class TraceWriter:
    """Write a trace block by block; the file gets its name only when closed without an error.

    Use as a context manager. Until the end the rows go to a file beside it, which is removed when
    the block ends with an exception. Raises InputError if `path` is there already, or if rows
    break the format's rules.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        model: str,
        layers: int,
        experts: int,
        k: int,
        origin: str,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self._path = Path(path)
        if self._path.exists():
            raise InputError(f"{self._path}: exists already; remove it or write another file")
        self._fixed = {"model": model, "origin": origin, "layers": layers, "experts": experts}
        self._fixed["k"] = k
        self._extra = dict(extra or {})
        clash = sorted(set(self._extra) & set(FIXED_KEYS))
        if clash:
            raise ValueError(f"extra metadata may not name {', '.join(clash)}")
        # One row that is not there yet stands in for the counts, so that the checks are the same.
        self._info = _parse_info(self._path, self._metadata(1, 1))
        self._schema = _schema(layers, k)
        self._group_rows = max(1, min(131_072, BLOCK_IDS // (layers * k)))
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = 0
        self._rows = 0
        self._requests: npt.NDArray[np.int32] = np.empty(0, dtype=np.int32)
        self._seen = np.full(experts, -1, dtype=np.int64)
        self._part = self._path.with_name(f"{self._path.name}.{os.getpid()}.part")

    def __enter__(self) -> TraceWriter:
        try:
            self._writer = pq.ParquetWriter(
                self._part, self._schema, compression="zstd", write_page_checksum=True
            )
        except OSError as error:
            raise InputError(f"{self._path}: cannot be written: {error}") from error
        return self

    def write(
        self,
        request: npt.ArrayLike,
        position: npt.ArrayLike,
        phase: npt.ArrayLike,
        experts: npt.ArrayLike,
    ) -> None:
        """Append rows: request, position, phase [n] and experts [n, layers, k]."""
        info = self._info
        block = TraceBlock(
            self._rows,
            np.array(request, dtype=np.int32),
            np.array(position, dtype=np.int32),
            np.array(phase, dtype=np.int8),
            np.array(experts, dtype=np.int16, order="C"),
        )
        rows = len(block.request)
        if block.experts.shape != (rows, info.layers, info.k) or not (
            len(block.position) == len(block.phase) == rows
        ):
            raise ValueError(
                f"experts {block.experts.shape} do not fit {rows} rows of "
                f"{info.layers} layers x {info.k}"
            )
        if rows == 0:
            return
        _check_block(self._path, info, block, self._seen)
        ids = pa.FixedSizeListArray.from_arrays(
            pa.array(block.experts.reshape(-1)), type=self._schema.field("experts").type
        )
        columns = [pa.array(block.request), pa.array(block.position), pa.array(block.phase), ids]
        self._pending.append(pa.RecordBatch.from_arrays(columns, schema=self._schema))
        self._pending_rows += rows
        self._rows += rows
        if self._pending_rows >= self._group_rows:
            self._flush()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        done = False
        try:
            if kind is None:
                self._flush()
                counts = self._metadata(len(self._requests), self._rows)
                self._writer.add_key_value_metadata({METADATA_KEY: counts})
            self._writer.close()
            if kind is None:
                os.replace(self._part, self._path)
                done = True
        finally:
            if not done:
                self._part.unlink(missing_ok=True)

    def _flush(self) -> None:
        if self._pending:
            table = pa.Table.from_batches(self._pending)
            self._requests = np.union1d(self._requests, table.column("request").to_numpy())
            self._writer.write_table(table, row_group_size=self._group_rows)
            self._pending, self._pending_rows = [], 0

    def _metadata(self, requests: int, tokens: int) -> bytes:
        counted = {"version": VERSION, **self._fixed, "requests": requests, "tokens": tokens}
        return json.dumps({**counted, **self._extra}).encode()


def _schema(layers: int, k: int) -> pa.Schema:
    return pa.schema(
        [
            pa.field("request", pa.int32(), nullable=False),
            pa.field("position", pa.int32(), nullable=False),
            pa.field("phase", pa.int8(), nullable=False),
            pa.field("experts", pa.list_(pa.int16(), layers * k), nullable=False),
        ]
    )


def _open(path: Path) -> tuple[pq.ParquetFile, TraceInfo]:
    """Open a trace for streaming and check all that its footer says."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with path.open("rb") as raw:
        head = raw.read(4)
        size = raw.seek(0, os.SEEK_END)
        raw.seek(max(0, size - 4))
        tail = raw.read(4)
    if size == 0:
        raise InputError(f"{path}: the file is empty; a routing trace is a Parquet file")
    if head != b"PAR1":
        raise InputError(f"{path}: not a Parquet file, so not a routing trace (see traces/README)")
    if tail != b"PAR1" or size < 12:
        raise InputError(f"{path}: cut short: the end of the file is missing; copy it again")
    try:
        file = pq.ParquetFile(
            path,
            buffer_size=READ_BUFFER_BYTES,
            pre_buffer=False,
            page_checksum_verification=True,
        )
    except READ_FAULTS as error:
        raise InputError(f"{path}: damaged Parquet file: {_one_line(error)}") from error
    try:
        raw_metadata = (file.metadata.metadata or {}).get(METADATA_KEY)
        if raw_metadata is None:
            key = METADATA_KEY.decode()
            raise InputError(f"{path}: Parquet, but no routing trace: no metadata key '{key}'")
        info = _parse_info(path, raw_metadata)
        _check_schema(path, info, file.schema_arrow)
        if file.metadata.num_rows != info.tokens:
            raise InputError(
                f"{path}: metadata says {info.tokens} tokens, the file has "
                f"{file.metadata.num_rows} rows; write it again"
            )
    except InputError:
        file.close()
        raise
    return file, info


def _parse_info(path: Path, raw: bytes) -> TraceInfo:
    where = f"{path}: metadata '{METADATA_KEY.decode()}'"
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON: {_one_line(error)}") from error
    if not isinstance(data, dict):
        raise InputError(f"{where}: must be a JSON object")
    if data.get("version") != VERSION:
        raise InputError(
            f"{where}: version {data.get('version')!r} cannot be read, only version {VERSION}"
        )
    for key in ("model", "origin"):
        if not isinstance(data.get(key), str):
            raise InputError(f"{where}: '{key}' must be a text, not {data.get(key)!r}")
    experts = _count(where, data, "experts", MAX_EXPERTS)
    layers = _count(where, data, "layers", MAX_LAYERS)
    k = _count(where, data, "k", experts)
    if layers * k > MAX_IDS_PER_TOKEN:
        raise InputError(f"{where}: layers x k = {layers * k} is above {MAX_IDS_PER_TOKEN}")
    if data.get("tokens") == 0:
        raise InputError(f"{path}: the trace has no tokens; record one with at least one")
    tokens = _count(where, data, "tokens", 2**62)
    requests = _count(where, data, "requests", tokens)
    extra = {key: value for key, value in data.items() if key not in FIXED_KEYS}
    return TraceInfo(
        data["model"], layers, experts, k, data["origin"], requests, tokens, extra=extra
    )


def _count(where: str, data: dict[str, Any], key: str, largest: int) -> int:
    value = data.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= largest:
        raise InputError(f"{where}: '{key}' must be a whole number 1..{largest}, not {value!r}")
    return value


def _check_schema(path: Path, info: TraceInfo, schema: pa.Schema) -> None:
    for expected in _schema(info.layers, info.k):
        indices = schema.get_all_field_indices(expected.name)
        if len(indices) != 1:
            raise InputError(f"{path}: {len(indices)} columns '{expected.name}', expected one")
        actual = schema.field(indices[0]).type
        if expected.name == "experts":
            right = (
                pa.types.is_fixed_size_list(actual)
                and actual.value_type == pa.int16()
                and actual.list_size == info.layers * info.k
            )
        else:
            right = actual == expected.type
        if not right:
            raise InputError(
                f"{path}: column '{expected.name}' is {actual}, expected {expected.type}"
            )


def _iter_columns(path: Path, names: tuple[str, ...], rows: int) -> Iterator[list[Any]]:
    """Yield the named columns of a trace as writable arrays, lists flattened, block by block."""
    file, info = _open(path)
    row = 0
    try:
        batches = file.iter_batches(batch_size=rows, columns=list(names), use_threads=False)
        while True:
            try:
                batch = next(batches, None)
            except READ_FAULTS as error:
                raise InputError(
                    f"{path}: row {row} or later cannot be read: {_one_line(error)}"
                ) from error
            if batch is None:
                break
            if batch.num_rows == 0:
                continue
            arrays = []
            for name in names:
                column = batch.column(name)
                values = column
                if name == "experts":  # not `flatten`, which imports pyarrow.compute
                    size = column.type.list_size
                    values = column.values.slice(column.offset * size, len(column) * size)
                if column.null_count or values.null_count:
                    raise InputError(f"{path}: rows {row} and on: a value of '{name}' is missing")
                # A copy: Arrow's memory is read-only, and goes back before the next block comes.
                # Not by `to_numpy`, which imports pandas wherever it is installed.
                arrays.append(np.from_dlpack(values).copy())
            row += batch.num_rows
            del batch, column, values
            yield arrays
    finally:
        file.close()
    if row != info.tokens:
        raise InputError(f"{path}: ends after row {row} of {info.tokens}; copy it again")


def _check_block(
    path: Path, info: TraceInfo, block: TraceBlock, seen: npt.NDArray[np.int64]
) -> None:
    """Raise InputError for the first row that breaks a rule; `seen` int64 [experts] is scratch."""
    from simulator.routing.kernels import first_bad_id

    for name, values, largest in (
        ("request", block.request, None),
        ("position", block.position, None),
        ("phase", block.phase, UNKNOWN),
    ):
        bad = values < 0
        if largest is not None:
            bad = bad | (values > largest)
        if bad.any():
            at = int(np.argmax(bad))
            bound = "negative" if largest is None else f"not in 0..{largest}"
            raise InputError(f"{path}: row {block.first_row + at}: {name} {values[at]} is {bound}")
    seen.fill(-1)
    at = int(first_bad_id(block.experts, seen))
    if at >= 0:
        row, rest = divmod(at, info.layers * info.k)
        layer, choice = divmod(rest, info.k)
        expert = int(block.experts[row, layer, choice])
        what = (
            f"expert {expert} twice"
            if 0 <= expert < info.experts
            else f"expert {expert}, but the trace has {info.experts} experts"
        )
        raise InputError(f"{path}: row {block.first_row + row}: layer {layer} has {what}")


def _check_order(path: Path, block: TraceBlock, last_request: int, last_position: int) -> None:
    request = np.concatenate(([last_request], block.request))
    position = np.concatenate(([last_position], block.position))
    bad = (request[1:] == request[:-1]) & (position[1:] <= position[:-1])
    if bad.any():
        at = int(np.argmax(bad))
        raise InputError(
            f"{path}: row {block.first_row + at}: position {position[at + 1]} of request "
            f"{request[at]} comes after position {position[at]}; sort by request and position"
        )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
