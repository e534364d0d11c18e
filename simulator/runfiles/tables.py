"""Reading the tables of a run back: whole small tables, and spans in bounded blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from simulator.errors import InputError
from simulator.runfiles.spans import BLOCK_ROWS, COPY, KINDS, SEND, SPAN_SCHEMA, STREAMS

Columns = dict[str, npt.NDArray[Any]]
"""Column name -> array [rows]."""


def read_table(path: Path, schema: pa.Schema) -> Columns:
    """The columns of `schema` in the file at `path`.

    Errors: InputError if the file is missing, damaged or lacks a column.
    """
    with _open(path, schema.names) as file:
        try:
            table = file.read(columns=schema.names)
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(path, error) from error
    return {name: _values(path, name, table.column(name).combine_chunks()) for name in schema.names}


def iter_table(path: Path, schema: pa.Schema, block_rows: int = BLOCK_ROWS) -> Iterator[Columns]:
    """As `read_table`, in blocks of at most `block_rows` rows."""
    for batch in _batches(path, schema.names, block_rows):
        yield {name: _values(path, name, batch.column(name)) for name in schema.names}


def iter_spans(
    path: Path, columns: Sequence[str] = SPAN_SCHEMA.names, block_rows: int = BLOCK_ROWS
) -> Iterator[Columns]:
    """Blocks of at most `block_rows` spans in file order; `stream`, `kind` as int8 codes.

    The codes are indices into `STREAMS` and `KINDS`. Errors: InputError if the file is missing,
    damaged, lacks a column or holds a word that is not among them.
    """
    words = {"stream": STREAMS, "kind": KINDS}
    for batch in _batches(path, columns, block_rows):
        yield {
            name: _codes(path, name, batch.column(name), words[name])
            if name in words
            else _values(path, name, batch.column(name))
            for name in columns
        }


def _batches(path: Path, columns: Sequence[str], block_rows: int) -> Iterator[pa.RecordBatch]:
    with _open(path, columns) as file:
        batches = file.iter_batches(batch_size=block_rows, columns=list(columns))
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (OSError, pa.ArrowException) as error:
                raise _unreadable(path, error) from error
            yield batch


def whole_steps(blocks: Iterator[Columns], path: Path) -> Iterator[Columns]:
    """The compute, comm and send spans of `blocks`, regrouped so that no step is cut in two.

    Fetches are left out: the fate of a prefetch may be known only in a later step. Memory is a
    block and one step. Errors: InputError (naming `path`) if steps are out of order.
    """
    held: list[Columns] = []
    last_step = -(2**31)
    for block in blocks:
        mine = block["stream"] != COPY
        if "kind" in block:
            mine = mine | (block["kind"] == SEND)
        part = {name: values[mine] for name, values in block.items()}
        step = part["step"]
        if not len(step):
            continue
        if step[0] < last_step or np.any(np.diff(step) < 0):
            raise InputError(f"{path}: spans of a step lie among those of a later one; run again")
        last_step = int(step[-1])
        cut = int(np.searchsorted(step, last_step, side="left"))
        if cut or (held and held[0]["step"][-1] != last_step):
            held.append({name: values[:cut] for name, values in part.items()})
            yield _joined(held)
            held = []
        held.append({name: values[cut:] for name, values in part.items()})
    if held:
        yield _joined(held)


def _joined(parts: Sequence[Columns]) -> Columns:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _open(path: Path, columns: Sequence[str]) -> pq.ParquetFile:
    try:
        # Reading ahead would keep all of the file in memory by the end.
        file = pq.ParquetFile(path, pre_buffer=False)
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
