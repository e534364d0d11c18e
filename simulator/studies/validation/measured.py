"""Readers of measured tables: what others timed, one `Measurement` per number.

Four shapes are told apart by their header: nccl-tests' own text; a CSV of NCCL times (system,
op_name, num_gpus, message_bytes, time_us); CSVs of DeepEP's low-latency kernels (nodes, hidden,
tokens_per_rank, topk, experts, dispatch_us, combine_us) and of its normal ones (the same with
dispatch_transmit_us, dispatch_sms, ...). Lines that begin with # are comments.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from simulator.errors import InputError
from simulator.spec.document import read_text
from simulator.spec.units import did_you_mean

MAX_FAULTS = 10
GPUS_PER_NODE = 8  # of the DeepEP tables, which count nodes
LARGEST = 1e15  # of any number of a table; beyond, a typing error is likelier

OPERATIONS = {
    "all_reduce": "allreduce",
    "all_gather": "allgather",
    "reduce_scatter": "reducescatter",
    "alltoall": "alltoall",
    "sendrecv": "sendrecv",
}
"""Names of operations in NCCL tables -> ours."""


class Measurement(NamedTuple):
    """One time that somebody measured.

    where: "file:line"; system: as the table names it, "" if it does not; size_bytes: nccl-tests'
    size, 0 for dispatch and combine; tokens: per rank; groups: nodes that a token may go to, 0 for
    any; sms: SMs of the kernel, 0 if not told.
    """

    where: str
    system: str
    operation: str
    ranks: int
    time_s: float
    size_bytes: float = 0.0
    tokens: int = 0
    hidden: int = 0
    top_k: int = 0
    experts: int = 0
    groups: int = 0
    sms: int = 0


class _Faults:
    """Lines to tell the user. State: those found so far."""

    def __init__(self, shown: str) -> None:
        self._shown = shown
        self._lines: list[str] = []

    def add(self, line: int, what: str) -> None:
        if len(self._lines) < MAX_FAULTS:
            self._lines.append(f"{self._shown}:{line}: {what}")

    def tell(self) -> None:
        if self._lines:
            raise InputError("\n".join(self._lines))


def read_measured(path: Path, shown: str, operation: str | None = None) -> list[Measurement]:
    """All measurements of a table, in its order.

    shown: the file's name in messages; operation: of an nccl-tests output that does not say which
    it timed. Raises InputError with "file:line: column: value" for each of the first faults.
    """
    if not path.is_file():
        raise InputError(f"{shown}: no such file")
    lines = read_text(path, shown).splitlines()
    head = next((line for line in lines if line.strip() and not line.lstrip().startswith("#")), "")
    if any(re.match(r"#\s+size\s+count\s+type", line) for line in lines):
        return _nccl_tests(lines, shown, operation)
    header = [name.strip() for name in head.split(",")]
    for columns, read in _SHAPES:
        if set(columns) <= set(header):
            return list(_rows(lines, shown, header, columns, read))
    raise InputError(_no_shape(shown, header))


def _no_shape(shown: str, header: list[str]) -> str:
    """Say what is missing for the shape that the header is nearest to."""
    if len(header) < 2:
        return f"{shown}: no table of measurements: neither nccl-tests' output nor a known CSV"
    columns, _ = max(_SHAPES, key=lambda shape: len(set(shape[0]) & set(header)))
    missing = [name for name in columns if name not in header]
    hint = did_you_mean(missing[0], [name for name in header if name not in columns])
    return f"{shown}: no column {missing[0]!r}{hint}; the header needs {', '.join(columns)}"


class _Fields:
    """The fields of one row by column; numbers are checked. State: faults told so far."""

    def __init__(self, row: dict[str, str], line: int, faults: _Faults) -> None:
        self._row, self._line, self._faults = row, line, faults

    def text(self, column: str) -> str:
        return self._row.get(column, "").strip()

    def number(self, column: str, low: float = 0.0, above: bool = True) -> float:
        """A number > low (>= low unless `above`)."""
        text = self.text(column)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value <= LARGEST):
            self._faults.add(self._line, f"{column}: {text!r} is not a number")
        elif value < low or (above and value == low):
            self._faults.add(
                self._line, f"{column}: {text} must be {'>' if above else '>='} {low:g}"
            )
        else:
            return value
        return 1.0

    def whole(self, column: str, low: int = 1) -> int:
        """A whole number >= low."""
        value = self.number(column, low, above=False)
        if value != int(value):
            self._faults.add(self._line, f"{column}: {self.text(column)} is not a whole number")
        return int(value)

    def refuse(self, column: str, what: str) -> None:
        self._faults.add(self._line, f"{column}: {what}")


def _rows(
    lines: list[str],
    shown: str,
    header: list[str],
    columns: tuple[str, ...],
    read: Callable[[_Fields, str], list[Measurement]],
) -> list[Measurement]:
    faults = _Faults(shown)
    twice = [name for name in columns if header.count(name) > 1]
    found: list[Measurement] = []
    headed = False
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if not headed:
            headed = True
            if twice:
                faults.add(number, f"column {twice[0]!r} is there twice")
                faults.tell()
            continue
        values = next(csv.reader([line]))
        if len(values) != len(header):
            faults.add(number, f"{len(values)} fields where the header has {len(header)}")
            continue
        fields = _Fields(dict(zip(header, values, strict=True)), number, faults)
        found += read(fields, f"{shown}:{number}")
    faults.tell()
    if not found:
        raise InputError(f"{shown}: there is no row below the header")
    return found


def _nccl_row(fields: _Fields, where: str) -> list[Measurement]:
    operation = OPERATIONS.get(fields.text("op_name"))
    if operation is None:
        hint = did_you_mean(fields.text("op_name"), list(OPERATIONS))
        known = ", ".join(OPERATIONS)
        fields.refuse("op_name", f"{fields.text('op_name')!r} is none of {known}{hint}")
    return [
        Measurement(
            where,
            fields.text("system"),
            operation or "alltoall",
            fields.whole("num_gpus", 2),
            fields.number("time_us") * 1e-6,
            size_bytes=fields.number("message_bytes"),
        )
    ]


def _deepep_row(fields: _Fields, where: str, suffix: str = "_us") -> list[Measurement]:
    shape = {
        "tokens": fields.whole("tokens_per_rank"),
        "hidden": fields.whole("hidden"),
        "top_k": fields.whole("topk"),
        "experts": fields.whole("experts"),
    }
    if shape["top_k"] > shape["experts"]:
        fields.refuse("topk", f"{shape['top_k']} of {shape['experts']} experts")
    ranks = GPUS_PER_NODE * fields.whole("nodes")
    return [
        Measurement(
            where,
            fields.text("system") or "hopper",
            phase,
            ranks,
            fields.number(phase + suffix) * 1e-6,
            sms=fields.whole(f"{phase}_sms") if fields.text(f"{phase}_sms") else 0,
            **shape,
        )
        for phase in ("dispatch", "combine")
    ]


def _deepep_normal_row(fields: _Fields, where: str) -> list[Measurement]:
    return _deepep_row(fields, where, "_transmit_us")


_TOKENS = ("nodes", "hidden", "tokens_per_rank", "topk", "experts")
_SHAPES: tuple[tuple[tuple[str, ...], Callable[[_Fields, str], list[Measurement]]], ...] = (
    (("op_name", "num_gpus", "message_bytes", "time_us"), _nccl_row),
    ((*_TOKENS, "dispatch_us", "combine_us"), _deepep_row),
    ((*_TOKENS, "dispatch_transmit_us", "combine_transmit_us"), _deepep_normal_row),
)


def _nccl_tests(lines: list[str], shown: str, operation: str | None) -> list[Measurement]:
    """The out-of-place times of nccl-tests' output; NCCL's own log lines in between are passed."""
    faults = _Faults(shown)
    ranks, device = 0, ""
    back = 0  # the time column, counted from the end of a row
    found: list[Measurement] = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        if line.startswith("#"):
            started = re.match(r"#\s*Collective test starting:\s*(\w+?)_perf", line)
            if started and operation is None:
                operation = OPERATIONS.get(started[1])
                if operation is None:
                    faults.add(number, f"{started[1]}_perf is none of {', '.join(OPERATIONS)}")
                    faults.tell()
            named = re.match(r"#\s+Rank\s+\d+\s.*?\bdevice\s+\d+\s+\[[^\]]*\]\s*(.*)", line)
            if named:
                ranks, device = ranks + 1, named[1].strip()
            if words[1:4] == ["size", "count", "type"] and "time" in words:
                back = len(words) - words.index("time")
            continue
        if not words[0].isdigit():
            continue
        if len(words) < back + 3:
            faults.add(
                number, f"{len(words)} fields; nccl-tests writes size, count, type, ... time"
            )
            continue
        fields = _Fields({"size": words[0], "time": words[-back]}, number, faults)
        if words[0] != "0":  # fewer elements than ranks: nothing was sent
            size_bytes, time_us = fields.number("size"), fields.number("time")
            where = f"{shown}:{number}"
            found.append(
                Measurement(where, device, operation or "", ranks, time_us * 1e-6, size_bytes)
            )
    faults.tell()
    if not operation:
        raise InputError(
            f"{shown}: does not say which operation was timed; give it with --op, "
            f"one of {', '.join(OPERATIONS.values())}"
        )
    if not ranks:
        raise InputError(
            f"{shown}: no line '#  Rank  0 ...', which nccl-tests prints above its table for each "
            "GPU; give its whole output"
        )
    if ranks < 2:
        raise InputError(f"{shown}: lists 1 rank ('#  Rank  0 ...'); needs at least 2")
    if not found:
        raise InputError(f"{shown}: there is no row below the header")
    return [row._replace(operation=operation) for row in found]


def comments(path: Path) -> Iterator[str]:
    """What the comment lines of a table say, without their #."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            yield line.lstrip("# ").rstrip()
