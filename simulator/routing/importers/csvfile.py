"""CSV of one row per token and layer: layer_id,"e e e"."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from simulator.errors import InputError
from simulator.routing.importers.assemble import Spill, trim, write_rows
from simulator.routing.importers.jsonl_shape import BYTE_ORDER_MARK, MAX_K, MAX_LINE_BYTES
from simulator.routing.importers.report import ImportReport, check_target, settle_experts
from simulator.routing.trace import MAX_EXPERTS, MAX_LAYERS, TraceWriter

Int64s = npt.NDArray[np.int64]

ROWS_AT_ONCE = 65_536


def import_csv(
    source: str | Path,
    target: str | Path,
    *,
    experts: int | None = None,
    model: str | None = None,
) -> ImportReport:
    """Convert rows `layer_id,"e e e"`, one per token and layer, to a routing trace.

    The n-th row of a layer is the n-th token, whatever the order of the layers; all tokens are one
    request. A first line without numbers is a header. -1 is padding, and a row of nothing else
    is a token that was not recorded in that layer. A last line that is cut short is dropped, and
    an engine's profiling run at the start is trimmed as in `import_jsonl`. Raises InputError with
    the line's number for any other row.
    """
    source, target = Path(source), Path(target)
    check_target(target)
    if not source.is_file():
        raise InputError(f"{source}: no such file")
    report = ImportReport()
    with Spill(target.parent) as spill:
        next_token = np.zeros(MAX_LAYERS, dtype=np.int64)
        for layer, rows in _rows(source, experts, report):
            token = _ordinals(layer, next_token)
            k = max(1, max(map(len, rows)))
            ids = np.full((len(rows), k), -1, dtype=np.int64)
            for at, row in enumerate(rows):
                ids[at, : len(row)] = row
            there = ids[:, 0] >= 0
            spill.add(np.zeros(int(there.sum()), np.int64), token[there], layer[there], ids[there])
        if not spill.records:
            raise InputError(f'{source}: no records; a line is layer_id,"e e e"')
        counts = next_token[spill.layers]
        if counts.min() != counts.max():
            report.notes.append(
                f"layers hold {counts.min()} to {counts.max()} rows: tokens after the shortest "
                "layer's end lack it"
            )
        report.k = spill.k
        settle_experts(source, report, spill.largest, experts, spill.layers)
        with TraceWriter(
            target,
            model=model or "unknown",
            layers=report.layers,
            experts=report.experts,
            k=report.k,
            origin=f"imported from {source.name}",
        ) as writer:
            write_rows(trim(spill.rows(report), 0, report), writer, spill.requests, report)
            if report.tokens == 0:
                raise InputError(f"{source}: holds nothing but an engine's profiling run")
    return report


def _ordinals(layer: Int64s, following: Int64s) -> Int64s:
    """The how-manieth row of its layer each row is; `following` int64 [layers] is carried on."""
    order = np.argsort(layer, kind="stable")
    values, first, counts = np.unique(layer[order], return_index=True, return_counts=True)
    within = np.arange(len(layer)) - np.repeat(first, counts)
    token = np.empty(len(layer), dtype=np.int64)
    token[order] = within + following[layer[order]]
    following[values] += counts
    return token


def _rows(
    source: Path, experts: int | None, report: ImportReport
) -> Iterator[tuple[Int64s, list[list[int]]]]:
    """Yield (layer [n], expert ids without padding per row), some ten thousand rows at a time."""
    layers: list[int] = []
    rows: list[list[int]] = []
    with source.open("rb") as file:
        number = 0
        while text := file.readline(MAX_LINE_BYTES):
            number += 1
            report.lines_read = number
            if not text.strip():
                report.blank_lines += 1
                continue
            if len(text) == MAX_LINE_BYTES:
                raise InputError(f"{source}:{number}: longer than {MAX_LINE_BYTES} bytes")
            if number == 1:
                text = text.removeprefix(BYTE_ORDER_MARK)
            first, comma, rest = text.partition(b",")
            try:
                layer = int(first)
                ids = [int(part) for part in rest.replace(b'"', b" ").split()]
                fault = _fault(layer, ids, bool(comma), experts)
            except ValueError:
                fault = f'{text[:60].decode("ascii", "replace").strip()!r} is not layer_id,"e e e"'
                if number == 1 and not any(byte in b"0123456789" for byte in text):
                    report.notes.append("first line taken as a header")
                    continue
            if not text.endswith(b"\n") and (fault or text.count(b'"') == 1):
                report.lines_cut = 1
                break
            if fault:
                raise InputError(f"{source}:{number}: {fault}")
            real = [expert for expert in ids if expert >= 0]
            report.padding_dropped += len(ids) - len(real)
            layers.append(layer)
            rows.append(real)
            if len(rows) == ROWS_AT_ONCE:
                yield np.array(layers, dtype=np.int64), rows
                layers, rows = [], []
    if rows:
        yield np.array(layers, dtype=np.int64), rows


def _fault(layer: int, ids: list[int], comma: bool, experts: int | None) -> str | None:
    if not comma or not ids:
        return 'needs layer_id,"e e e" with at least one expert'
    if not 0 <= layer < MAX_LAYERS:
        return f"layer {layer} is not 0..{MAX_LAYERS - 1}"
    if len(ids) > MAX_K:
        return f"{len(ids)} experts for one token, more than {MAX_K}"
    limit = MAX_EXPERTS if experts is None else experts
    wrong = next((expert for expert in ids if not -1 <= expert < limit), None)
    if wrong is not None:
        return f"expert {wrong} is not 0..{limit - 1} (nor -1, padding)"
    real = [expert for expert in ids if expert >= 0]
    if len(set(real)) != len(real):
        return f"{str(ids)[:80]} has an expert twice"
    return None
