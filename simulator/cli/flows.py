"""Transfers as CSV: read from a file with src, dst, bytes and start_s; written with finish_s."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

from simulator.errors import InputError
from simulator.spec.document import read_bounded
from simulator.spec.units import Dimension, did_you_mean, nearest, parse_quantity

COLUMNS = ("src", "dst", "bytes", "start_s")
COLLECTIVE = "collective"  # may be there: which transfers are one collective
FINISH = "finish_s"
MAX_FAULTS = 10
MAX_LINKS = 20  # of the table
MAX_FILE_BYTES = 256 << 20
# Beyond these a typing error is likelier than a transfer, and times would lose their meaning.
MAX_BYTES, MAX_START_S = 1e24, 1e12

_PLAIN = re.compile(r"(?P<sign>[+-]?)([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,5})?", re.ASCII)


class Flows(NamedTuple):
    """The rows of a file of transfers.

    header, rows: as written; lines: where each row stands; sources, targets: node names [rows];
    size_bytes, start_s: float64 [rows]; collectives: what the column COLLECTIVE says, else "".
    """

    header: list[str]
    rows: list[list[str]]
    lines: list[int]
    sources: list[str]
    targets: list[str]
    size_bytes: NDArray[np.float64]
    start_s: NDArray[np.float64]
    collectives: list[str]


class _Faults:
    """Lines to tell the user, at most MAX_FAULTS of them. State: those found so far."""

    def __init__(self, shown: str) -> None:
        self._shown = shown
        self._lines: list[str] = []

    def add(self, line: int, what: str) -> None:
        """Note a fault; raises all once there are more than are shown."""
        if len(self._lines) == MAX_FAULTS:
            self._lines.append(f"{self._shown}: there are more faults; these are the first")
            self.tell()
        self._lines.append(f"{self._shown}:{line}: {what}")

    def tell(self) -> None:
        """Raise InputError with all faults, if there are any."""
        if self._lines:
            raise InputError("\n".join(self._lines))


def read_flows(path: Path, nodes: Sequence[str], gpus: Sequence[str]) -> Flows:
    """The transfers in a CSV file whose header names src, dst, bytes, start_s, in any order.

    nodes: names that src and dst may have; gpus: names by GPU index, which may stand for them.
    bytes and start_s are plain numbers (B, s) or have a unit. Raises InputError with a line for
    each of the first faults.
    """
    faults = _Faults(str(path))
    records = _records(_text(path), str(path))
    line, header = next(records, (1, []))
    if not header:
        raise InputError(f"{path}:1: is empty; write the header {','.join(COLUMNS)} and rows")
    header = [name.strip() for name in header]
    column = _columns(header, f"{path}:{line}")
    readers: dict[str, Callable[[str], Any]] = {
        "src": _node_reader(nodes, gpus),
        "dst": _node_reader(nodes, gpus),
        "bytes": lambda text: _quantity(text, "bytes", MAX_BYTES, "4 MiB"),
        "start_s": lambda text: _quantity(text, "time", MAX_START_S, "2 us"),
    }
    rows: list[list[str]] = []
    lines: list[int] = []
    values: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for line, row in records:
        if len(row) != len(header):
            faults.add(line, f"{len(row)} fields where the header has {len(header)}")
            continue
        for name, read in readers.items():
            try:
                values[name].append(read(row[column[name]].strip()))
            except InputError as error:
                faults.add(line, f"{name}: {error}")
        rows.append(row)
        lines.append(line)
    faults.tell()
    if not rows:
        raise InputError(f"{path}:{line}: there is no row below the header")
    return Flows(
        header,
        rows,
        lines,
        values["src"],
        values["dst"],
        np.array(values["bytes"], dtype=np.float64),
        np.array(values["start_s"], dtype=np.float64),
        [row[header.index(COLLECTIVE)].strip() for row in rows]
        if COLLECTIVE in header
        else [""] * len(rows),
    )


def refuse_unreachable(path: Path, flows: Flows, unreachable: Sequence[tuple[str, str]]) -> None:
    """Raise InputError with a line for each of the first rows whose ends no path joins, if any."""
    faults = _Faults(str(path))
    apart = set(unreachable)
    for line, source, target in zip(flows.lines, flows.sources, flows.targets, strict=True):
        if (source, target) in apart:
            faults.add(
                line,
                f"{target} cannot be reached from {source}: no path of links joins them "
                "(GPUs, NICs and DRAM do not forward traffic)",
            )
    faults.tell()


def write_rows(stream: TextIO, header: Sequence[str], rows: Iterator[Sequence[object]]) -> None:
    """Write CSV; numbers in full, so that reading gives back the same."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)


def render_links(rows: Sequence[tuple[str, str, float, float, float, float]]) -> str:
    """A table of what the most used links carried, as text."""
    from simulator.results.summary import duration, percent, size
    from simulator.results.text import lay_out

    busiest = sorted(rows, key=lambda row: -row[5])[:MAX_LINKS]
    header = ("link", "kind", "bandwidth", "bytes", "busy", "used")
    cells = [
        (link, kind, f"{size(bandwidth)}/s", size(carried), duration(busy_s), percent(used))
        for link, kind, bandwidth, carried, busy_s, used in busiest
    ]
    table = lay_out(header, cells, right=range(2, 6))
    if len(rows) > MAX_LINKS:
        table += f"\n{len(rows) - MAX_LINKS} links more; --links FILE writes all"
    return table


def check_fresh(*paths: str | None) -> None:
    """Raise InputError if one of these files cannot be new: it exists, twice, or in no folder."""
    given = [path for path in paths if path is not None]
    faults = []
    for number, path in enumerate(given):
        parent = Path(path).parent
        if os.path.lexists(path):
            faults.append(f"{path}: exists already; remove it or write another file")
        elif not parent.is_dir():
            faults.append(f"{path}: there is no directory {parent}")
        elif Path(path) in map(Path, given[:number]):
            faults.append(f"{path}: is to be written twice; name another file")
    if faults:
        raise InputError("\n".join(faults))


def write_fresh(path: str, header: Sequence[str], rows: Iterator[Sequence[object]]) -> None:
    """Write a CSV file that must not exist; nothing is left of it if that fails."""
    try:
        with open(path, "x", encoding="utf-8", newline="") as stream:
            write_rows(stream, header, rows)
    except OSError as error:
        if not isinstance(error, FileExistsError):
            with suppress(OSError):
                os.unlink(path)
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None


def _text(path: Path) -> str:
    raw = read_bounded(path, str(path), MAX_FILE_BYTES)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: not UTF-8 text") from None


def _records(text: str, shown: str) -> Iterator[tuple[int, list[str]]]:
    """(Line, fields) of each record that is not blank."""
    reader = csv.reader(StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if any(field.strip() for field in row):
                yield reader.line_num, row
    except csv.Error as error:
        raise InputError(f"{shown}:{max(reader.line_num, 1)}: not CSV: {error}") from None


def _columns(header: list[str], where: str) -> dict[str, int]:
    """Where each column stands."""
    told = f"the header must name {', '.join(COLUMNS)}"
    faults = []
    for name in COLUMNS:
        if header.count(name) == 0:
            meant = nearest(name, [other for other in header if other not in COLUMNS])
            hint = "" if meant is None else f" (is {meant!r} meant? Write {name!r})"
            faults.append(f"no column {name!r}{hint}; {told}")
    faults += [
        f"column {name!r} is there {header.count(name)} times"
        for name in dict.fromkeys(header)
        if header.count(name) > 1
    ]
    if FINISH in header:
        faults.append(f"column {FINISH!r} is there already; it is what will be added")
    if faults:
        raise InputError("\n".join(f"{where}: {fault}" for fault in faults[:MAX_FAULTS]))
    return {name: header.index(name) for name in COLUMNS}


def _node_reader(nodes: Sequence[str], gpus: Sequence[str]) -> Callable[[str], str]:
    known = {name: name for name in nodes}
    by_number = {str(index): name for index, name in enumerate(gpus)}

    def read(text: str) -> str:
        found = known.get(text) or by_number.get(text)
        if found is None and not text:
            raise InputError("is empty; write a node's name or a GPU's index")
        if found is None and text.isdigit():
            raise InputError(f"no GPU {text}: there are 0 to {len(gpus) - 1}")
        if found is None:
            raise InputError(
                f"no node {text!r}{did_you_mean(text, list(nodes))}; "
                "write a node's name or a GPU's index"
            )
        return found

    return read


def _quantity(text: str, dimension: Dimension, largest: float, example: str) -> float:
    """A number in SI units, or with a unit."""
    plain = _PLAIN.fullmatch(text)
    if not text:
        raise InputError(f'is empty; write for example "{example}"')
    value = float(text) if plain else parse_quantity(text, dimension)
    if value < 0.0:
        raise InputError(f"{text} is negative; write 0 or more")
    if value > largest:
        raise InputError(f"{text} is too large; write {largest:g} at most")
    return abs(value)  # -0.0 is 0
