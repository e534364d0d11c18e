"""Reading the tables of a run back: whole small tables, and spans in bounded blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from simulator.errors import InputError
from simulator.runfiles.spans import (
    BLOCK_ROWS,
    COPY,
    KINDS,
    RECORD,
    SEND,
    SPAN_SCHEMA,
    STREAMS,
)
from simulator.runfiles.values import Limits, check_spans, check_table

Columns = dict[str, npt.NDArray[Any]]
"""Column name -> array [rows]."""


def read_table(path: Path, schema: pa.Schema) -> Columns:
    """The columns of `schema` in the file at `path`.

    Errors: InputError if the file is missing, damaged, lacks a column or holds a value that no run
    writes (`values.check_table`).
    """
    with _open(path, schema.names) as file:
        try:
            table = file.read(columns=schema.names)
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(path, error) from error
    found = {
        name: _values(path, name, table.column(name).combine_chunks()) for name in schema.names
    }
    check_table(path, found)
    return found


def iter_table(path: Path, schema: pa.Schema, block_rows: int = BLOCK_ROWS) -> Iterator[Columns]:
    """As `read_table`, in blocks of at most `block_rows` rows."""
    first = 0
    for batch in _batches(path, schema.names, block_rows):
        block = {name: _values(path, name, batch.column(name)) for name in schema.names}
        check_table(path, block, first)
        first += len(batch)
        yield block


def iter_spans(
    path: Path,
    columns: Sequence[str] = SPAN_SCHEMA.names,
    block_rows: int = BLOCK_ROWS,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    threads: bool = True,
) -> Iterator[Columns]:
    """Blocks of at most `block_rows` spans in file order; `stream`, `kind` as int8 codes.

    The codes are indices into `STREAMS` and `KINDS`. threads: whether columns are read side by
    side, which takes more memory: each thread keeps its own. Errors: InputError if the file is
    missing, damaged, lacks a column, or holds a word that is not among them, a value that no run
    writes, or one beyond `limits` (`values.check_spans`).
    """
    words = {"stream": STREAMS, "kind": KINDS}
    first = 0
    for batch in _batches(path, columns, block_rows, threads):
        block = {
            name: _codes(path, name, batch.column(name), words[name])
            if name in words
            else _values(path, name, batch.column(name))
            for name in columns
        }
        check_spans(path, block, first, limits)
        first += len(batch)
        yield block


def _batches(
    path: Path, columns: Sequence[str], block_rows: int, threads: bool = True
) -> Iterator[pa.RecordBatch]:
    with _open(path, columns) as file:
        batches = file.iter_batches(
            batch_size=block_rows, columns=list(columns), use_threads=threads
        )
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (OSError, pa.ArrowException) as error:
                raise _unreadable(path, error) from error
            yield batch


Room = Callable[[str, int, Any], npt.NDArray[Any]]
"""An array for a name, a length and a type, to be filled."""


def _new(_: str, count: int, kind: Any) -> npt.NDArray[Any]:
    return np.empty(count, kind)


def for_kernel(spans: Columns, names: Sequence[str]) -> list[npt.NDArray[Any]]:
    """Columns of spans as a compiled function takes them: contiguous, read-only, with the dtypes of
    `RECORD`, so that it is compiled but once.
    """
    columns = [np.ascontiguousarray(spans[name], RECORD[name]).view() for name in names]
    for column in columns:
        column.flags.writeable = False
    return columns


def whole_steps(blocks: Iterator[Columns], path: Path) -> Iterator[Columns]:
    """The compute, comm and send spans of `blocks`, regrouped so that no step is cut in two.

    Fetches are left out: the fate of a prefetch may be known only in a later step. Memory is a
    block and one step. Errors: InputError (naming `path`) if steps are out of order.
    """
    for parts in parts_of_steps(blocks, path):
        yield joined(parts)


Part = tuple[Columns, npt.NDArray[np.int64]]
"""Columns [n], and which of their rows."""


def parts_of_steps(blocks: Iterator[Columns], path: Path) -> Iterator[list[Part]]:
    """As `whole_steps`, still to be `joined`."""
    held: list[Part] = []
    last_step = -(2**31)
    for block in blocks:
        mine = block["stream"] != COPY
        if "kind" in block:
            mine |= block["kind"] == SEND
        rows = np.flatnonzero(mine)
        if not len(rows):
            continue
        step = block["step"][rows]
        if step[0] < last_step or np.any(step[1:] < step[:-1]):
            raise InputError(f"{path}: spans of a step lie among those of a later one; run again")
        cut = int(np.searchsorted(step, step[-1], side="left"))
        if cut or (held and last_step != step[-1]):
            yield [*held, (block, rows[:cut])]
            held = []
        last_step = int(step[-1])
        # A copy, which does not keep the rest of the block.
        rest = {name: values[rows[cut:]] for name, values in block.items()}
        held.append((rest, np.arange(len(rows) - cut)))
    if held:
        yield held


def joined(parts: Sequence[Part], room: Room = _new) -> Columns:
    """The rows of `parts` one after another, in arrays that `room` gives, or in new ones."""
    ends = np.cumsum([len(rows) for _, rows in parts]).tolist()
    result = {}
    for name, values in parts[0][0].items():
        column = result[name] = room(name, ends[-1], values.dtype)
        for (block, rows), end in zip(parts, ends, strict=True):
            # All rows are there: clipping them only spares a copy of the result.
            np.take(block[name], rows, out=column[end - len(rows) : end], mode="clip")
    return result


def _open(path: Path, columns: Sequence[str]) -> pq.ParquetFile:
    try:
        # Reading ahead would keep all of the file in memory by the end.
        file = pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error
    missing = [name for name in columns if name not in file.schema_arrow.names]
    if missing:
        file.close()
        raise InputError(f"{path}: column {missing[0]!r} is missing; is this file of a run?")
    return file


def _unreadable(path: Path, error: Exception) -> InputError:
    """One line for what the Parquet reader said, which may be several."""
    if isinstance(error, FileNotFoundError):
        return InputError(f"{path}: is missing; is this the directory of a finished run?")
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(f"{path}: cannot be read, it is damaged or cut short ({reason})")


def _codes(path: Path, name: str, column: Any, words: Sequence[str]) -> npt.NDArray[np.int8]:
    """A column of words as indices into `words`."""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    known = column.dictionary.to_pylist()
    unknown = sorted(set(known) - set(words))
    if unknown:
        raise InputError(f"{path}: column {name!r} holds {unknown[0]!r}, which no run writes")
    mapping = np.array([words.index(word) for word in known], dtype=np.int8)
    codes: npt.NDArray[np.int8] = mapping[_values(path, name, column.indices)]
    return codes


def _values(path: Path, name: str, column: pa.Array) -> npt.NDArray[Any]:
    """A column [n] of numbers, booleans or text (then objects).

    Not by `to_numpy`, which imports pandas wherever it is installed, for the third of a second that
    a small run takes in all.
    """
    if column.null_count:
        raise InputError(f"{path}: column {name!r} lacks a value, which no run writes")
    if pa.types.is_boolean(column.type):
        end = column.offset + len(column)
        bits = np.frombuffer(column.buffers()[1] or b"", dtype=np.uint8)
        return np.unpackbits(bits, count=end, bitorder="little")[column.offset :].astype(np.bool_)
    if pa.types.is_primitive(column.type):
        return np.from_dlpack(column)
    return np.array(column.to_pylist(), dtype=np.object_)
