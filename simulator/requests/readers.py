"""Recorded requests: four kinds of file, told apart by what stands in their first line.

| kind | file | time | source |
|---|---|---|---|
| azure | CSV | date and time of day | Azure LLM inference traces 2023 and 2024 |
| vidur | CSV | seconds | the traces of the Vidur simulator |
| burstgpt | CSV | seconds | BurstGPT, HPMLL |
| mooncake | JSON lines | milliseconds | Mooncake, with hashes of 512-token blocks |
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from simulator.errors import InputError
from simulator.requests import columns
from simulator.requests.mooncake import read_mooncake
from simulator.requests.requests import Requests
from simulator.requests.rows import Rows
from simulator.spec.requests import MAX_REQUESTS, MAX_TOKENS

Bools = npt.NDArray[np.bool_]
Int64s = npt.NDArray[np.int64]

MAX_FILE_BYTES = 4 << 30
MAX_HEADER_BYTES = 1 << 16
# 300 years; beyond it a typing error is likelier, and microseconds would be lost.
MAX_TIME_S = 1e10


NOT_TEXT = {
    b"\x1f\x8b": "is compressed (gzip); unpack it first",
    b"\x28\xb5\x2f\xfd": "is compressed (zstd); unpack it first",
    b"PK\x03\x04": "is compressed (zip); unpack it first",
    b"PAR1": "is a Parquet file; write it as CSV",
    b"\xff\xfe": "is UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "is UTF-16 text; save it as UTF-8",
}
"""How files begin that often stand where one of recorded requests should."""


class CsvKind(NamedTuple):
    """The columns of a kind of CSV file, and how its time is written.

    `failed_without_output`: a request without output is one that failed when it was recorded.
    """

    time: str
    prompt: str
    output: str
    read_time: columns.Read
    written: str
    failed_without_output: bool = False


CSV_KINDS = {
    "azure": CsvKind(
        "TIMESTAMP",
        "ContextTokens",
        "GeneratedTokens",
        columns.moment,
        "a time such as 2023-11-16 18:15:46.6805900",
    ),
    "vidur": CsvKind(
        "arrived_at",
        "num_prefill_tokens",
        "num_decode_tokens",
        columns.number,
        "a number of seconds",
    ),
    "burstgpt": CsvKind(
        "Timestamp",
        "Request tokens",
        "Response tokens",
        columns.number,
        "a number of seconds",
        failed_without_output=True,
    ),
}
"""A further kind of CSV file is one entry here."""

MOONCAKE = "mooncake"


def read_requests(
    path: str | Path,
    *,
    skip_bad: bool = False,
    sort: bool = False,
    block_tokens: int | None = None,
) -> Requests:
    """Read a recorded file of any known kind; times count from its first request.

    skip_bad: leave rows out that cannot be used, count them in a note, and sort rows whose time
    goes backwards; sort: only the last. block_tokens: tokens per prefix block, where the file has
    blocks of another size than its kind. A request without output is given one token, since the
    prompt's pass makes it. Raises InputError with one line, which names the first bad line.
    """
    path = Path(path).expanduser()
    kind, header = recognise(path)
    if kind == MOONCAKE:
        rows = read_mooncake(path, block_tokens)
    else:
        rows = _read_csv(path, header, CSV_KINDS[kind])
    if block_tokens is not None and not rows.block_tokens:
        raise InputError(f"{path}: block_tokens: a {kind} file has no prefix blocks; leave it out")
    return _checked(path, kind, rows, skip_bad, skip_bad or sort)


def recognise(path: Path) -> tuple[str, list[str]]:
    """The kind of a recorded file, and the columns that its first line names (empty for JSON)."""
    first = _first_line(path)
    if first.lstrip().startswith("{"):
        return MOONCAKE, []
    # Not stripped by the csv module: blanks after a comma.
    header = [name.strip() for name in next(csv.reader([first]), [])]
    for name, kind in CSV_KINDS.items():
        wanted = (kind.time, kind.prompt, kind.output)
        if set(wanted) <= set(header):
            twice = [column for column in wanted if header.count(column) > 1]
            if twice:
                raise InputError(f"{path}:1: column {twice[0]!r} stands there twice")
            return name, header
    known = "; ".join(
        f"{name} ({','.join((kind.time, kind.prompt, kind.output))})"
        for name, kind in CSV_KINDS.items()
    )
    raise InputError(
        f"{path}:1: {columns.shown(first)} is not the first line of recorded requests; known: "
        f'{known}; mooncake ({{"timestamp": .., "input_length": .., "output_length": ..}})'
    )


def _first_line(path: Path) -> str:
    """The first line, for JSON the first that is not blank; without a byte order mark."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(MAX_HEADER_BYTES)
    except OSError as error:
        raise InputError(f"requests {str(path)!r}: {error.strerror or error}") from None
    if size > MAX_FILE_BYTES:
        raise InputError(f"{path}: {size:,} bytes, at most {MAX_FILE_BYTES >> 30} GiB are read")
    for mark, what in NOT_TEXT.items():
        if start.startswith(mark):
            raise InputError(f"{path}: {what}")
    text = start.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")
    if not text.strip():
        raise InputError(f"{path}: the file is empty" if not size else f"{path}: only blank lines")
    if text.lstrip().startswith("{"):
        text = text.lstrip()
    return re.split(r"\r\n|\r|\n", text, maxsplit=1)[0]


def _read_csv(path: Path, header: list[str], kind: CsvKind) -> Rows:
    wanted: dict[str, tuple[columns.Read, str]] = {
        kind.time: (kind.read_time, kind.written),
        kind.prompt: (columns.whole, "a whole number of tokens"),
        kind.output: (columns.whole, "a whole number of tokens"),
    }
    table = columns.read_table(path, header, wanted)
    time, prompt, output = table.values
    names = (kind.time, kind.prompt, kind.output)
    if kind.read_time is columns.moment:
        good = np.flatnonzero(~table.bad)
        # Nanoseconds since 1970 are more than float64 can hold; since the first request they fit.
        time = (time - time[good[0]]) / 1e9 if len(good) else time.astype(np.float64)
        relative = False
    else:
        relative = True
    rows = Rows.plain(time, prompt, output, table.lines, names)
    return rows._replace(
        bad=table.bad,
        first_bad=table.first_bad,
        broken=table.broken,
        relative=relative,
        failed_without_output=kind.failed_without_output,
    )


def _faults(rows: Rows) -> Iterator[tuple[Bools, Callable[[int], str]]]:
    """What makes a row unusable: [rows], and the words for row i. The first that holds is told."""
    time, prompt, output = rows.names
    at, tokens, made = rows.time_s, rows.prompt_tokens, rows.output_tokens
    yield rows.bad, lambda i: rows.first_bad
    if rows.relative:
        yield at < 0, lambda i: f"{time}: {at[i]:g} s is negative"
    yield ~(np.abs(at) <= MAX_TIME_S), lambda i: f"{time}: more than {MAX_TIME_S:g} s"
    yield tokens == 0, lambda i: f"{prompt}: a prompt of 0 tokens"
    yield tokens < 0, lambda i: f"{prompt}: {tokens[i]} is negative"
    yield tokens > MAX_TOKENS, lambda i: f"{prompt}: {tokens[i]} is more than {MAX_TOKENS:,} tokens"
    yield made < 0, lambda i: f"{output}: {made[i]} is negative"
    yield made > MAX_TOKENS, lambda i: f"{output}: {made[i]} is more than {MAX_TOKENS:,} tokens"
    if rows.failed_without_output:
        yield made == 0, lambda i: f"{output}: 0, a request that failed when it was recorded"
    if rows.block_tokens:
        blocks = np.diff(rows.block_ptr)
        size = rows.block_tokens
        yield (
            blocks * size >= np.maximum(tokens, 0) + size,
            lambda i: (
                f"hash_ids: {blocks[i]} blocks of {size} tokens are more than the prompt's "
                f"{tokens[i]} tokens"
            ),
        )


def _checked(path: Path, kind: str, rows: Rows, skip_bad: bool, sort: bool) -> Requests:
    """Requests of the rows that can be used; refuses, skips or sorts what the user chose."""
    faults = list(_faults(rows))
    bad = np.logical_or.reduce([mask for mask, _ in faults])
    count = int(bad.sum()) + len(rows.broken)
    first = rows.broken[:1]
    if bad.any():
        row = int(np.argmax(bad))
        words = next(words for mask, words in faults if mask[row])
        first.append((int(rows.lines[row]), words(row)))
    notes = []
    if count:
        line, what = min(first)
        if not skip_bad:
            more = f"; {count:,} bad rows in all" if count > 1 else ""
            raise InputError(f"{path}:{line}: {what}{more}; skip_bad leaves such rows out")
        notes.append(
            f"{count:,} of {len(bad) + len(rows.broken):,} rows left out, the first in line "
            f"{line}: {what}"
        )
    if not len(bad) and not count:
        raise InputError(f"{path}: no requests in it")
    kept = np.flatnonzero(~bad)
    if not len(kept):
        raise InputError(f"{path}: no row is left; {notes[0]}")
    if len(kept) > MAX_REQUESTS:
        raise InputError(f"{path}: {len(kept):,} requests, at most {MAX_REQUESTS:,} are read")
    time = rows.time_s[kept]
    back = np.flatnonzero(np.diff(time) < 0) + 1
    if len(back):
        if not sort:
            row, before = kept[back[0]], kept[back[0] - 1]
            step = rows.time_s[before] - rows.time_s[row]
            raise InputError(
                f"{path}:{rows.lines[row]}: {rows.names[0]}: {step:g} s before the request in line "
                f"{rows.lines[before]}; sort the file, or write sort: true"
            )
        kept = kept[np.argsort(time, kind="stable")]
        notes.append(f"sorted by time: {_counted(len(back))} stood after a later one")
    return _requests(rows.take(kept), f"{path.name} ({kind})", notes)


def _requests(rows: Rows, source: str, notes: list[str]) -> Requests:
    output = rows.output_tokens
    without = int((output == 0).sum())
    if without:
        notes.append(
            f"{_counted(without)} without output, given 1 token: the prompt's pass makes it"
        )
    n = len(output)
    return Requests(
        arrival_s=rows.time_s - rows.time_s[0],
        prompt_tokens=rows.prompt_tokens.astype(np.int32),
        output_tokens=np.maximum(output, 1).astype(np.int32),
        priority=np.zeros(n, dtype=np.int16),
        block_ptr=rows.block_ptr,
        block_hash=rows.block_hash,
        block_tokens=rows.block_tokens if len(rows.block_hash) else 0,
        source=source,
        notes=notes,
    )


def _counted(count: int) -> str:
    return "1 request" if count == 1 else f"{count:,} requests"
