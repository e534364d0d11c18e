"""Requests that are there as arrays [tokens, layers, k] -> a routing trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from simulator.errors import InputError
from simulator.routing.importers.report import ImportReport, check_target, settle_experts
from simulator.routing.trace import MAX_EXPERTS, MAX_IDS_PER_TOKEN, MAX_LAYERS, TraceWriter

Array = npt.NDArray[Any]
Int64s = npt.NDArray[np.int64]
Int16s = npt.NDArray[np.int16]

# Ids held at once while a request is checked or written (32 MiB as int64).
PIECE_IDS = 1 << 22


class Part(NamedTuple):
    """Tokens of a request, in order: position, phase [n], ids integers [n, layers, k], -1 where
    nothing was recorded. `request` is its number from 0; the parts of one request follow each
    other. `where` names it in the file.
    """

    request: int
    position: Int64s
    phase: npt.NDArray[np.int8]
    ids: Array
    where: str


def write_parts(
    source: Path,
    target: Path,
    parts: Callable[[], Iterator[Part]],
    report: ImportReport,
    *,
    experts: int | None,
    model: str | None,
) -> ImportReport:
    """Write a trace of all parts, in two passes over `parts()`: checked first, written then.

    Layers and places of k that no token fills are left out, and so are tokens without an expert;
    the report counts. Raises InputError for ids that are no experts, or twice in a layer, and where
    nothing is left.
    """
    check_target(target)
    largest, k, count = -1, 0, 0
    recorded: Array = np.zeros(0, dtype=np.bool_)
    for part in parts():
        count += 1
        for piece in _pieces(source, part):
            ids = checked_ids(f"{source}: {piece.where}", piece.ids, experts)
            if len(recorded) == 0:
                recorded = np.zeros(ids.shape[1], dtype=np.bool_)
            if ids.shape[1] != len(recorded):
                raise InputError(
                    f"{source}: {piece.where} has {ids.shape[1]} layers, others {len(recorded)}"
                )
            largest = max(largest, int(ids.max()) if ids.size else -1)
            recorded |= (ids >= 0).any(axis=(0, 2))
            k = max(k, int((ids >= 0).sum(axis=2).max(initial=0)))
    if largest < 0:
        raise InputError(f"{source}: no token has an expert ({count} {report.unit} read)")
    layers = np.flatnonzero(recorded)
    report.k = k
    settle_experts(source, report, largest, experts, layers.tolist())
    with TraceWriter(
        target,
        model=model or "unknown",
        layers=report.layers,
        experts=report.experts,
        k=k,
        origin=f"imported from {source.name}",
    ) as writer:
        last = -1
        for part in parts():
            for piece in _pieces(source, part):
                ids = np.asarray(piece.ids[:, layers]).astype(np.int16)
                ids = _to_the_left(ids, report)[:, :, :k]
                # Some parts may hold fewer experts per token than others.
                ids = np.pad(ids, ((0, 0), (0, 0), (0, k - ids.shape[2])), constant_values=-1)
                there = (ids[:, :, 0] >= 0).any(axis=1)
                report.tokens_empty += int((~there).sum())
                if not there.any():
                    continue
                if part.request != last:
                    last = part.request
                    report.requests += 1
                ids = ids[there]
                report.count(ids)
                number = np.full(len(ids), report.requests - 1)
                writer.write(number, piece.position[there], piece.phase[there], ids)
    return report


def checked_ids(where: str, ids: Array, experts: int | None) -> Array:
    """The ids [n, layers, k], if they are experts or -1, each once per layer; else InputError."""
    from simulator.routing.kernels import first_bad_id

    limit = MAX_EXPERTS if experts is None else experts
    low, high = (int(ids.min()), int(ids.max())) if ids.size else (0, -1)
    if low < -1 or high >= limit:
        token, layer, choice = (int(at) for at in np.argwhere((ids < -1) | (ids >= limit))[0])
        raise InputError(
            f"{where}: token {token}, layer {layer}: expert {int(ids[token, layer, choice])} is "
            f"not one of 0..{limit - 1} (nor -1, padding)"
        )
    seen = np.full(max(1, high + 1), -1, dtype=np.int64)
    at = int(first_bad_id(np.ascontiguousarray(ids, dtype=np.int16), seen))
    if at >= 0:
        row, choice = divmod(at, ids.shape[2])
        token, layer = divmod(row, ids.shape[1])
        raise InputError(
            f"{where}: token {token}, layer {layer}: expert {int(ids[token, layer, choice])} twice"
        )
    return ids


def _pieces(source: Path, part: Part) -> Iterator[Part]:
    """A part cut so that a piece holds a bounded number of ids."""
    ids = part.ids
    if ids.ndim != 3 or ids.dtype.kind not in "iu" or 0 in ids.shape[1:]:
        raise InputError(
            f"{source}: {part.where} is {ids.dtype} {list(ids.shape)}, "
            "expected whole numbers [tokens, layers, k]"
        )
    layers, k = ids.shape[1:]
    if layers > MAX_LAYERS or layers * k > MAX_IDS_PER_TOKEN:
        raise InputError(f"{source}: {part.where}: {layers} layers x {k} experts is too large")
    step = max(1, PIECE_IDS // (layers * k))
    for start in range(0, len(ids), step):
        cut = slice(start, start + step)
        yield part._replace(
            position=part.position[cut], phase=part.phase[cut], ids=np.asarray(ids[cut])
        )


def _to_the_left(ids: Int16s, report: ImportReport) -> Int16s:
    """Ids with -1 at the end of each row of k; padding within a row that has experts is counted."""
    absent = ids < 0
    report.padding_dropped += int((absent & ~absent.all(axis=2, keepdims=True)).sum())
    if not (absent[:, :, :-1] & ~absent[:, :, 1:]).any():
        return ids
    order = np.argsort(absent, axis=2, kind="stable")
    return np.take_along_axis(ids, order, axis=2)
