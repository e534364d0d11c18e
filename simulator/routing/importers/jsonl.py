"""JSON lines, one record per request, layer and token, in the two shapes met in public logs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from simulator.errors import InputError
from simulator.routing.importers.assemble import Spill, trim, write_rows
from simulator.routing.importers.jsonl_shape import (
    BYTE_ORDER_MARK,
    MAX_K,
    MAX_LINE_BYTES,
    MAX_TOKEN,
    Shape,
    fault_of,
    sniff,
)
from simulator.routing.importers.report import (
    ImportReport,
    check_target,
    one_line,
    settle_experts,
)
from simulator.routing.trace import MAX_EXPERTS, MAX_LAYERS, TraceWriter
from simulator.spec.units import counted

Int64s = npt.NDArray[np.int64]

CHUNK_BYTES = 4 << 20


class Columns(NamedTuple):
    """Records as arrays: request (numbered), token, layer int64 [n], ids int64 [n, k]."""

    request: Int64s
    token: Int64s
    layer: Int64s
    ids: Int64s


@dataclass
class _State:
    """What the reading of one file carries from chunk to chunk."""

    source: Path
    shape: Shape
    experts: int | None
    report: ImportReport
    request_of: dict[object, int] = field(default_factory=dict)
    # Without a key for the request: number of the current one, and where its first layer is.
    current: int = -1
    first_layer: int = -1
    last_token: int = -1
    text_requests: bool = False


def import_jsonl(
    source: str | Path,
    target: str | Path,
    *,
    experts: int | None = None,
    model: str | None = None,
) -> ImportReport:
    """Convert a JSON-lines log, one record per request, layer and token, to a routing trace.

    A line is {"problem_id", "layer", "token_idx", "experts": [..]} or {"type": "route", "req_id",
    "layer", "token_idx", "topk_ids": [..]}; further keys are ignored, and so are header lines of
    another type, but for their model's name. Each problem or req_id becomes a request (numbered in
    the order in which they end), `token_idx` its position, phase unknown, the experts kept in the
    order listed. Where lines name no request, one begins whenever the token goes back in the layer
    of its first line. What a token lacks is -1. Without `experts` their number is the largest id
    + 1, rounded up to a multiple of 4. A made-up run at the start of at least 1,000 successive
    tokens with the same experts in all layers is dropped, and so is a record that a later one of
    the same request, layer and token replaces, and a last line that is cut short.

    One pass over the text, memory bounded however the records lie (see `Spill`). Raises InputError
    with the line's number for a line that is not such a record, and for a file without records.
    """
    source, target = Path(source), Path(target)
    check_target(target)
    if not source.is_file():
        raise InputError(f"{source}: no such file")
    report = ImportReport()
    shape, header, first = sniff(source)
    state = _State(source, shape or Shape("problem_id", "experts", False), experts, report)
    with Spill(target.parent) as spill:
        for columns in _columns(state):
            spill.add(*columns)
        if not spill.records:
            raise InputError(
                f"{source}: no records; a line is {{{', '.join(state.shape.keys)}}} or "
                "{type: route, req_id, token_idx, layer, topk_ids}"
            )
        report.k = spill.k
        settle_experts(source, report, spill.largest, experts, spill.layers)
        named = header.get("model_id") or header.get("model")
        dataset = first.get("dataset")
        with TraceWriter(
            target,
            model=model or (named if isinstance(named, str) else "unknown"),
            layers=report.layers,
            experts=report.experts,
            k=report.k,
            origin=f"imported from {source.name}",
            extra={"dataset": dataset} if isinstance(dataset, str) else None,
        ) as writer:
            rows = trim(spill.rows(report), spill.first_rank(), report)
            write_rows(rows, writer, spill.requests, report)
            if report.tokens == 0:
                raise InputError(f"{source}: holds nothing but an engine's profiling run")
    return report


def _columns(state: _State) -> Iterator[Columns]:
    """Yield the records of the file, chunk by chunk."""
    for first_line, text in _chunks(state.source):
        try:
            columns = _fast(state, text)
        except UnicodeDecodeError:  # Arrow does not look into the texts until they are asked for
            columns = None
        if columns is None:
            columns = _slow(state, text, first_line)
        newlines = text.count(b"\n")
        state.report.lines_read += newlines + (not text.endswith(b"\n"))
        yield columns


def _chunks(source: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (number of the first line, whole lines) of some megabytes each."""
    line = 1
    with source.open("rb") as file:
        rest = b""
        while True:
            begins = file.tell() == 0
            read = file.read(CHUNK_BYTES)
            text = rest + (read.removeprefix(BYTE_ORDER_MARK) if begins else read)
            cut = text.rfind(b"\n") + 1 if read else len(text)
            rest = text[cut:]
            text = text[:cut]
            _check_lengths(source, text, rest, line)
            if text:
                yield line, text
            line += text.count(b"\n")
            if not read:
                return


def _check_lengths(source: Path, text: bytes, rest: bytes, line: int) -> None:
    ends = np.flatnonzero(np.frombuffer(text, dtype=np.uint8) == 10)
    lengths = np.diff(np.concatenate(([-1], ends, [len(text) - 1])))
    long = np.flatnonzero(lengths > MAX_LINE_BYTES)
    if len(long) or len(rest) > MAX_LINE_BYTES:
        at = line + (int(long[0]) if len(long) else len(ends))
        raise InputError(f"{source}:{at}: longer than {MAX_LINE_BYTES} bytes")


def _fast(state: _State, text: bytes) -> Columns | None:
    """The records of well-formed lines, by Arrow; None where a line needs a closer look."""
    import pyarrow as pa
    import pyarrow.json as pj

    # A cut last line, and depth (Arrow's reader has no bound of its own), are for the slow path.
    if not text.endswith(b"\n") or b"[[[[" in text or b'":{"' * 4 in text:
        return None
    shape = state.shape
    fields = [("layer", pa.int64()), ("token_idx", pa.int64())]
    fields.append((shape.experts, pa.list_(pa.int64())))
    if shape.typed:
        fields.append(("type", pa.string()))
    requests = (pa.string(), pa.int64()) if state.text_requests else (pa.int64(), pa.string())
    table = None
    for kind in requests if shape.request is not None else requests[:1]:
        known = fields if shape.request is None else [*fields, (shape.request, kind)]
        try:
            table = pj.read_json(
                pa.BufferReader(text),
                read_options=pj.ReadOptions(use_threads=False, block_size=len(text) + 1),
                parse_options=pj.ParseOptions(
                    explicit_schema=pa.schema(known), unexpected_field_behavior="ignore"
                ),
            )
        except (pa.ArrowException, UnicodeDecodeError):
            continue
        state.text_requests = kind == pa.string()
        break
    if table is None or table.num_rows != text.count(b"\n"):
        return None
    table = table.combine_chunks()
    if any(column.null_count for column in table.columns):
        return None
    if shape.typed and not _all_equal(table.column("type"), "route"):
        return None
    arrays = {name: _chunk(table.column(name)) for name in shape.keys}
    layer, token = _numbers(arrays["layer"]), _numbers(arrays["token_idx"])
    lists = arrays[shape.experts]
    if lists.flatten().null_count:
        return None
    values = _numbers(lists.flatten())
    counts = np.diff(_numbers(lists.offsets))
    k = int(counts.max())
    if counts.min() < 1 or k > MAX_K:
        return None
    if counts.min() == k:
        ids: Int64s = values.reshape(-1, k)
    else:
        ids = np.full((len(counts), k), -1, dtype=np.int64)
        ids[np.arange(k) < counts[:, np.newaxis]] = values
        if values.min() < 0:
            return None
    low, high = int(ids.min()), int(ids.max())
    limit = MAX_EXPERTS if state.experts is None else state.experts
    if (low < 0 and counts.min() == k) or high >= limit or _twice(ids):
        return None
    if not (layer.min() >= 0 and layer.max() < MAX_LAYERS):
        return None
    if not (token.min() >= 0 and token.max() <= MAX_TOKEN):
        return None
    if shape.request is None:
        request = _unnamed(state, layer, token)
    else:
        request = _numbered(state, arrays[shape.request])
    return Columns(request, token, layer, ids)


def _chunk(column: Any) -> Any:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _numbers(array: Any) -> Int64s:
    """An Arrow array without missing values as numpy, without a copy."""
    return np.asarray(np.from_dlpack(array), dtype=np.int64)


def _all_equal(column: Any, value: str) -> bool:
    return bool(column.unique().to_pylist() == [value])


def _twice(ids: Int64s) -> bool:
    """Whether a row of ids [n, k] holds an id twice (-1 apart)."""
    if ids.shape[1] == 1:
        return False
    ordered = np.sort(ids, axis=1)
    return bool(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any())


def _numbered(state: _State, column: Any) -> Int64s:
    """The number of each record's request, in the order of their first records."""
    coded = column.dictionary_encode()
    known = [
        state.request_of.setdefault(value, len(state.request_of))
        for value in coded.dictionary.to_pylist()
    ]
    number: Int64s = np.array(known, dtype=np.int64)[np.from_dlpack(coded.indices)]
    return number


def _unnamed(state: _State, layer: Int64s, token: Int64s) -> Int64s:
    """Number the requests of lines that name none: one begins where its first layer's token does
    not go up.
    """
    if len(layer) and state.first_layer < 0:
        state.first_layer = int(layer[0])
    at = np.flatnonzero(layer == state.first_layer)
    before = np.concatenate(([state.last_token], token[at][:-1]))
    begins = np.zeros(len(layer), dtype=np.int64)
    begins[at] = token[at] <= before
    if state.current < 0 and len(layer):
        state.current = 0
    request = state.current + np.cumsum(begins)
    if len(at):
        state.last_token = int(token[at[-1]])
    if len(request):
        state.current = int(request[-1])
    return request


def _slow(state: _State, text: bytes, first_line: int) -> Columns:
    """The records line by line, each checked; InputError names the first line that is wrong."""
    report, shape = state.report, state.shape
    requests: list[int] = []
    tokens: list[int] = []
    layers: list[int] = []
    chosen: list[list[int]] = []
    headers = 0
    for number, line in enumerate(_split(text), first_line):
        if not line.strip():
            report.blank_lines += 1
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            if not line.endswith(b"\n"):
                report.lines_cut = 1
                continue
            raise InputError(f"{state.source}:{number}: not JSON: {one_line(error)}") from error
        if shape.typed and isinstance(record, dict) and record.get("type") != "route":
            headers += 1
            continue
        fault = fault_of(record, shape, state.experts)
        if fault:
            raise InputError(f"{state.source}:{number}: {fault}")
        ids = [expert for expert in record[shape.experts] if expert >= 0]
        report.padding_dropped += len(record[shape.experts]) - len(ids)
        if not ids:
            continue
        if shape.request is not None:
            key = record[shape.request]
            requests.append(state.request_of.setdefault(key, len(state.request_of)))
        tokens.append(record["token_idx"])
        layers.append(record["layer"])
        chosen.append(ids)
    if headers:
        report.notes.append(
            f"not taken as records, of another type than 'route': {counted(headers, 'line')}"
        )
    k = max(map(len, chosen), default=1)
    out = np.full((len(chosen), k), -1, dtype=np.int64)
    for row, ids in enumerate(chosen):
        out[row, : len(ids)] = ids
    layer, token = np.array(layers, dtype=np.int64), np.array(tokens, dtype=np.int64)
    if shape.request is None:
        return Columns(_unnamed(state, layer, token), token, layer, out)
    return Columns(np.array(requests, dtype=np.int64), token, layer, out)


def _split(text: bytes) -> Iterator[bytes]:
    """Lines by newline alone, which is what counts them."""
    *lines, rest = text.split(b"\n")
    yield from (line + b"\n" for line in lines)
    if rest:
        yield rest
