"""Foreign recordings of routing -> routing trace. Each reader says what it kept and dropped."""

from __future__ import annotations

import atexit
import itertools
import json
import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.errors import InputError
from simulator.routing.trace import MAX_EXPERTS, MAX_IDS_PER_TOKEN, MAX_LAYERS, UNKNOWN, TraceWriter

Int16s = npt.NDArray[np.int16]
Int64s = npt.NDArray[np.int64]

JSONL_KEYS = ("problem_id", "layer", "experts", "token_idx")
# An engine measures its memory with made-up tokens, which all take the same experts. No text of
# this length does.
PROFILING_TOKENS = 1000
# A model has a round number of experts, and the highest one may not have been chosen.
EXPERTS_STEP = 4
MAX_LINE_BYTES = 1 << 20


@dataclass
class ImportReport:
    """What an import made of a file: counts of lines, records, tokens and requests."""

    lines_read: int = 0
    blank_lines: int = 0
    records_kept: int = 0
    records_replaced: int = 0
    records_trimmed: int = 0
    requests: int = 0
    requests_trimmed: int = 0
    tokens: int = 0
    tokens_trimmed: int = 0
    tokens_incomplete: int = 0
    layers: int = 0
    experts: int = 0
    k: int = 0
    experts_from: str = ""
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report in words, one fact per line."""
        out = [
            f"read {self.lines_read} lines, {self.blank_lines} of them blank",
            f"kept {self.records_kept} records: {self.requests} requests, {self.tokens} tokens, "
            f"{self.layers} layers, top-{self.k} of {self.experts} experts ({self.experts_from})",
        ]
        if self.tokens_incomplete:
            out.append(f"{self.tokens_incomplete} tokens lack the experts of some layers (-1)")
        if self.records_replaced:
            out.append(
                f"dropped {self.records_replaced} records that a later one of the same request, "
                "layer and token replaces"
            )
        if self.tokens_trimmed:
            out.append(
                f"dropped {self.tokens_trimmed} tokens ({self.records_trimmed} records, "
                f"{self.requests_trimmed} whole requests) at the start: an engine's profiling run, "
                "the same experts for every token"
            )
        return out + self.notes


@dataclass
class _Span:
    """Where the records of one problem lie, and in which order it came."""

    number: int
    last_line: int


@dataclass
class _Open:
    """Records of a problem in the order read: token, layer, k experts each (padded with -1)."""

    token: array[int] = field(default_factory=lambda: array("i"))
    layer: array[int] = field(default_factory=lambda: array("i"))
    experts: array[int] = field(default_factory=lambda: array("h"))


def import_jsonl(
    source: str | Path,
    target: str | Path,
    *,
    experts: int | None = None,
    model: str | None = None,
) -> ImportReport:
    """Convert a JSON-lines log, one record per (problem, layer, token), to a routing trace.

    A line is {"problem_id", "layer", "experts": [..], "token_idx"}, further keys are ignored. Each
    problem becomes a request (numbered in the order in which they end), `token_idx` its position,
    phase unknown, the experts kept in the order listed. What a token lacks is -1. Without `experts`
    their number is the largest id + 1, rounded up to a multiple of 4. A made-up run at the start of
    at least 1,000 successive tokens with the same experts in all layers is dropped, and so is a
    record that a later one of the same problem, layer and token replaces.

    Two passes; a problem is held in memory from its first line to its last. Raises InputError with
    the line's number for a line that is not such a record, and for a file without records.
    """
    source, target = Path(source), Path(target)
    if target.exists():
        raise InputError(f"{target}: exists already; remove it or write another file")
    report = ImportReport()
    spans: dict[object, _Span] = {}
    largest = -1
    dataset: object = None
    for line, record in _records(source, report):
        key = record["problem_id"]
        span = spans.setdefault(key, _Span(len(spans), line))
        span.last_line = line
        report.layers = max(report.layers, record["layer"] + 1)
        report.k = max(report.k, len(record["experts"]))
        top = max(record["experts"])
        if experts is not None and top >= experts:
            raise InputError(f"{source}:{line}: expert {top}, but the model has {experts} experts")
        largest = max(largest, top)
        dataset = dataset or record.get("dataset")
    if not spans:
        raise InputError(f"{source}: no records; a line is {{{', '.join(JSONL_KEYS)}}}")
    if report.layers * report.k > MAX_IDS_PER_TOKEN:
        raise InputError(f"{source}: layers x k = {report.layers * report.k} is too large")
    report.experts_from = "as given"
    if experts is None:
        experts = -(-(largest + 1) // EXPERTS_STEP) * EXPERTS_STEP
        report.experts_from = f"largest id {largest} + 1, rounded up to a multiple of 4"
    report.experts = experts
    with TraceWriter(
        target,
        model=model or "unknown",
        layers=report.layers,
        experts=experts,
        k=report.k,
        origin=f"imported from {source.name}",
        extra={"dataset": dataset} if isinstance(dataset, str) else None,
    ) as writer:
        for number, position, ids in _requests(source, spans, report):
            writer.write(
                np.full(len(position), number), position, np.full(len(position), UNKNOWN), ids
            )
        if report.tokens == 0:
            raise InputError(f"{source}: holds nothing but an engine's profiling run")
    return report


IMPORTERS: dict[str, Callable[..., ImportReport]] = {"jsonl": import_jsonl}


def recognise(path: str | Path) -> str | None:
    """Which kind of recording a file is: "parquet", a key of IMPORTERS, or None."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with path.open("rb") as file:
        if file.read(4) == b"PAR1":
            return "parquet"
        file.seek(0)
        for _ in range(100):
            text = file.readline(MAX_LINE_BYTES)
            if not text.strip():
                if not text:
                    break
                continue
            try:
                record = json.loads(text)
            except (ValueError, RecursionError):
                break
            right = isinstance(record, dict) and all(key in record for key in JSONL_KEYS)
            return "jsonl" if right else None
    return None


def open_trace(path: str | Path, say: Callable[[str], object] | None = None) -> Path:
    """A routing trace to read for any recording that is recognised.

    A Parquet file is given back as it is. Another kind is converted to a temporary trace, deleted
    when the process ends, and `say` gets the lines of its ImportReport. Raises InputError for
    a file of no known kind.
    """
    path = Path(path)
    kind = recognise(path)
    if kind == "parquet":
        return path
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty; a routing trace is a Parquet file")
    if kind is None:
        raise InputError(
            f"{path}: not a routing trace (Parquet) nor a recording that can be imported "
            f"({', '.join(IMPORTERS)})"
        )
    folder = Path(tempfile.mkdtemp(prefix="routing-trace-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    target = folder / f"{path.stem}.parquet"
    report = IMPORTERS[kind](path, target)
    if say is not None:
        for line in report.lines():
            say(line)
    return target


def _records(source: Path, report: ImportReport | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, checked record) of every line that is not blank."""
    if not source.is_file():
        raise InputError(f"{source}: no such file")
    with source.open("rb") as file:
        number = 0
        while text := file.readline(MAX_LINE_BYTES):
            number += 1
            if report is not None:
                report.lines_read = number
            if not text.strip():
                if report is not None:
                    report.blank_lines += 1
                continue
            if len(text) == MAX_LINE_BYTES:
                raise InputError(f"{source}:{number}: longer than {MAX_LINE_BYTES} bytes")
            try:
                record = json.loads(text)
            except (ValueError, RecursionError) as error:
                cut = "" if text.endswith(b"\n") else " (the file may be cut short)"
                raise InputError(f"{source}:{number}: not JSON: {error}{cut}") from error
            fault = _fault(record)
            if fault:
                raise InputError(f"{source}:{number}: {fault}")
            yield number, record


def _fault(record: object) -> str | None:
    """What is wrong with a record, or None."""
    if not isinstance(record, dict):
        return f"must be a JSON object with {', '.join(JSONL_KEYS)}"
    missing = [key for key in JSONL_KEYS if key not in record]
    if missing:
        return f"'{missing[0]}' is missing; a record has {', '.join(JSONL_KEYS)}"
    if not isinstance(record["problem_id"], (int, str, type(None))):
        return f"problem_id: {record['problem_id']!r} is neither a number nor a text"
    for key, largest in (("layer", MAX_LAYERS - 1), ("token_idx", 2**31 - 1)):
        if not _whole(record[key], largest):
            return f"{key}: {record[key]!r} is not a whole number 0..{largest}"
    chosen = record["experts"]
    if not isinstance(chosen, list) or not chosen:
        return f"experts: {chosen!r} is not a list of at least one expert"
    for expert in chosen:
        if not _whole(expert, MAX_EXPERTS - 1):
            return f"experts: {expert!r} is not a whole number 0..{MAX_EXPERTS - 1}"
    if len(set(chosen)) != len(chosen):
        return f"experts: {chosen} has an expert twice"
    return None


def _whole(value: object, largest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= largest


def _requests(
    source: Path, spans: dict[object, _Span], report: ImportReport
) -> Iterator[tuple[int, Int64s, Int16s]]:
    """Yield (request, position [n], ids int16 [n, layers, k]) as problems end in the file."""
    opened: dict[object, _Open] = {}
    # A request that is trimmed away takes no number, so that the numbers have no gap.
    written = 0
    for line, record in _records(source, None):
        key = record["problem_id"]
        rows = opened.setdefault(key, _Open())
        rows.token.append(record["token_idx"])
        rows.layer.append(record["layer"])
        chosen = record["experts"]
        rows.experts.extend(chosen + [-1] * (report.k - len(chosen)))
        if line < spans[key].last_line:
            continue
        position, ids = _assemble(opened.pop(key), report)
        if spans[key].number == 0:
            position, ids = _trim(position, ids, report)
        if len(position) == 0:
            continue
        report.tokens += len(position)
        report.tokens_incomplete += int((ids[:, :, 0] < 0).any(axis=1).sum())
        report.records_kept += int((ids[:, :, 0] >= 0).sum())
        report.requests += 1
        yield written, position, ids
        written += 1


def _assemble(rows: _Open, report: ImportReport) -> tuple[Int64s, Int16s]:
    """Put the records of a problem in place: positions [n] ascending, ids [n, layers, k]."""
    token = np.array(rows.token, dtype=np.int64)
    layer = np.array(rows.layer, dtype=np.int64)
    experts = np.array(rows.experts, dtype=np.int16).reshape(-1, report.k)
    position, row = np.unique(token, return_inverse=True)
    place = row * report.layers + layer
    # Of records for the same place the last one holds: an engine's made-up run comes first.
    unique, from_end = np.unique(place[::-1], return_index=True)
    report.records_replaced += len(place) - len(unique)
    ids = np.full((len(position) * report.layers, report.k), -1, dtype=np.int16)
    ids[unique] = experts[len(place) - 1 - from_end]
    return position, ids.reshape(len(position), report.layers, report.k)


def _trim(position: Int64s, ids: Int16s, report: ImportReport) -> tuple[Int64s, Int16s]:
    """Drop every run of PROFILING_TOKENS or more tokens whose expert sets are all the same."""
    sets = np.sort(ids, axis=2)
    changes = np.flatnonzero((sets[1:] != sets[:-1]).any(axis=(1, 2))) + 1
    bounds = np.concatenate(([0], changes, [len(ids)]))
    keep = np.ones(len(ids), dtype=np.bool_)
    for start, end in itertools.pairwise(bounds.tolist()):
        if end - start >= PROFILING_TOKENS:
            keep[start:end] = False
    report.tokens_trimmed += int((~keep).sum())
    report.records_trimmed += int((ids[~keep, :, 0] >= 0).sum())
    report.requests_trimmed += int(not keep.any())
    return position[keep], ids[keep]
