"""Columns of a CSV file as numbers, with the line of every row and what cannot be read.

Read in blocks as text, so that one wrong value costs one row and not the file. Quotes are not
interpreted (none of the known kinds needs them, and a lost quote would swallow the lines after it);
a pair of them around a value is taken off.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from simulator.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]
Read = Callable[[Any], tuple[npt.NDArray[Any], Bools]]
"""Text column -> values [rows] (0 where unreadable) and which could be read [rows]."""

BLOCK_BYTES = 8 << 20
_WHOLE = r'^\s*"?[+-]?[0-9]{1,15}(\.0*)?"?\s*$'
_NUMBER = r'^\s*"?[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?"?\s*$'
# Years that nanoseconds in int64 can hold. Seconds of up to nine digits; the recordings have seven.
_MOMENT = (
    r'^\s*"?(19[7-9]|20[0-9]|21[0-9])[0-9]-[0-9]{2}-[0-9]{2}[ T][0-9]{2}:[0-9]{2}:[0-9]{2}'
    r"(\.[0-9]{1,9})?"
)
_ZONE = r"(Z|[+-][0-9]{2}(:?[0-9]{2})?)"
_AROUND = ' \t"'
_TO_ASCII = bytes(byte if byte < 128 else ord("?") for byte in range(256))


class Table(NamedTuple):
    """Rows of a CSV file.

    `values`: one array [rows] per wanted column; `lines` int64 [rows]; `bad` bool [rows], with
    `first_bad` what is wrong in the first of them; `broken`: (line, what is wrong) of lines that
    are no rows.
    """

    values: list[npt.NDArray[Any]]
    lines: Int64s
    bad: Bools
    first_bad: str
    broken: list[tuple[int, str]]


class _Ascii(io.RawIOBase):
    """A file whose bytes beyond ASCII read as question marks. State: the file, with its position.

    No value holds them, and Arrow loses a broken line that is no UTF-8 without a word.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def readable(self) -> bool:
        """It is."""
        return True

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes, at most `size` of them."""
        return self._file.read(size).translate(_TO_ASCII)


def read_table(path: Path, header: Sequence[str], wanted: Mapping[str, tuple[Read, str]]) -> Table:
    """Read the columns `wanted` (name -> reader and what a value should be) of a CSV file.

    header: all columns of the file, whose first line it is. Blank lines are neither rows nor
    faults. Raises InputError for a line longer than a block.
    """
    import pyarrow as pa
    from pyarrow import csv

    broken: list[tuple[int, str]] = []

    def skip(row: Any) -> str:
        columns = "column" if row.actual_columns == 1 else "columns"
        what = f"{row.actual_columns} {columns}, the first line has {row.expected_columns}"
        broken.append((int(row.number), what))
        return "skip"

    # Names of our own: a file may repeat one that is not wanted.
    names = [str(number) for number in range(len(header))]
    picked = [names[list(header).index(name)] for name in wanted]
    blocks: list[_Block] = []
    try:
        with path.open("rb") as file:
            reader = csv.open_csv(
                _Ascii(file),
                csv.ReadOptions(
                    use_threads=False, block_size=BLOCK_BYTES, skip_rows=1, column_names=names
                ),
                csv.ParseOptions(
                    quote_char=False, ignore_empty_lines=False, invalid_row_handler=skip
                ),
                csv.ConvertOptions(
                    column_types=dict.fromkeys(names, pa.binary()),
                    include_columns=picked,
                    strings_can_be_null=False,
                    check_utf8=False,
                ),
            )
            blocks.extend(_block(batch, wanted) for batch in reader)
    except pa.ArrowInvalid as error:
        if "straddling" in str(error):
            limit = BLOCK_BYTES >> 20
            raise InputError(f"{path}: a line is longer than {limit} MiB") from None
        if "too short" not in str(error) and "Empty CSV" not in str(error):
            raise InputError(f"{path}: not a CSV file: {' '.join(str(error).split())}") from None
    return _joined(blocks, len(wanted), broken)


class _Block(NamedTuple):
    values: list[npt.NDArray[Any]]
    bad: Bools
    blank: Bools
    first_bad: str


def _block(batch: Any, wanted: Mapping[str, tuple[Read, str]]) -> _Block:
    import pyarrow.compute as pc

    rows = batch.num_rows
    values = []
    unread = []
    blank = np.ones(rows, dtype=bool)
    for column, (read, _) in zip(batch.columns, wanted.values(), strict=True):
        numbers, known = read(column)
        values.append(numbers)
        unread.append(~known)
        blank &= np.asarray(pc.equal(pc.binary_length(column), 0))
    bad = np.logical_or.reduce(unread) & ~blank
    first_bad = ""
    if bad.any():
        row = int(np.argmax(bad))
        at = next(index for index, mask in enumerate(unread) if mask[row])
        text = batch.column(at)[row].as_py().decode("utf-8", "replace")
        name, (_, what) = list(wanted.items())[at]
        first_bad = f"{name}: {shown(text)} is not {what}"
    return _Block(values, bad, blank, first_bad)


def _joined(blocks: list[_Block], columns: int, broken: list[tuple[int, str]]) -> Table:
    if not blocks:
        empty = np.empty(0, dtype=np.int64)
        return Table([empty] * columns, empty, np.empty(0, dtype=bool), "", broken)
    bad = np.concatenate([block.bad for block in blocks])
    blank = np.concatenate([block.blank for block in blocks])
    lines = np.arange(2, 2 + len(bad) + len(broken))
    if broken:
        lines = np.setdiff1d(lines, [line for line, _ in broken], assume_unique=True)
    values = [np.concatenate(parts) for parts in zip(*(b.values for b in blocks), strict=True)]
    first_bad = next((block.first_bad for block in blocks if block.first_bad), "")
    if blank.any():
        keep = ~blank
        return Table([v[keep] for v in values], lines[keep], bad[keep], first_bad, broken)
    return Table(values, lines, bad, first_bad, broken)


def whole(column: pa.Array) -> tuple[Int64s, Bools]:
    """Whole numbers of up to 15 digits, int64; "12.0" is one."""
    numbers, known = _numbers(column, _WHOLE)
    return numbers.astype(np.int64), known


def number(column: pa.Array) -> tuple[Floats, Bools]:
    """Numbers, float64; may be infinite where the text is too large for one."""
    return _numbers(column, _NUMBER)


def moment(column: pa.Array) -> tuple[Int64s, Bools]:
    """Dates with a time of day, int64 nanoseconds since 1970; with a zone, of UTC."""
    import pyarrow as pa
    import pyarrow.compute as pc

    known = np.zeros(len(column), dtype=bool)
    out = np.zeros(len(column), dtype=np.int64)
    for zone, kind in (("", pa.timestamp("ns")), (_ZONE, pa.timestamp("ns", "UTC"))):
        fits = _matching(column, _MOMENT + zone + r'"?\s*$')
        if not fits.any():
            continue
        texts = _texts(column, np.flatnonzero(fits))
        try:
            found = pc.cast(texts, kind)
        except pa.ArrowInvalid:
            # Some day, hour or zone that there is not: look at each.
            real = np.array([_is_moment(text) for text in texts.to_pylist()], dtype=bool)
            fits[np.flatnonzero(fits)[~real]] = False
            found = pc.cast(_texts(column, np.flatnonzero(fits)), kind)
        out[fits] = np.asarray(found.cast(pa.int64()))
        known |= fits
    return out, known


def shown(text: str) -> str:
    """A value for an error message: quoted, and cut if it is long."""
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _numbers(column: Any, pattern: str) -> tuple[Floats, Bools]:
    import pyarrow as pa
    import pyarrow.compute as pc

    known = _matching(column, pattern)
    out = np.zeros(len(column), dtype=np.float64)
    rows = np.flatnonzero(known)
    # Arrow knows no sign before a number but minus.
    texts = pc.utf8_ltrim(_texts(column, rows), "+")
    out[rows] = np.asarray(pc.cast(texts, pa.float64()))
    return out, known


def _matching(column: Any, pattern: str) -> Bools:
    import pyarrow.compute as pc

    return np.array(pc.match_substring_regex(column, pattern), dtype=bool)


def _texts(column: Any, rows: Int64s) -> Any:
    """These rows as text, without blanks and quotes around them; all are ASCII by their pattern."""
    import pyarrow as pa
    import pyarrow.compute as pc

    some = column if len(rows) == len(column) else column.take(pa.array(rows))
    return pc.utf8_trim(pc.cast(some, pa.string()), _AROUND + "\r\n\v\f")


def _is_moment(text: str) -> bool:
    zone = text[19:].lstrip(".0123456789").lstrip("+-Z").replace(":", "")
    try:
        datetime.fromisoformat(text[:19])
    except ValueError:
        return False
    return not zone or (int(zone[:2]) < 24 and int(zone[2:] or 0) < 60)
