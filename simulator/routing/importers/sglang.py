"""SGLang's expert-distribution recorder (`per_token`, `per_pass`, `stat`), .pt files.

Layout of a detailed dump: {"records": [one per forward pass], "last_physical_to_logical_map"}; a
record has `topk_ids_of_layer` int32 [layers, tokens, k] padded with -1, `input_ids` and `positions`
[tokens], `extend_seq_lens` (tokens per request of a prefill, None in a decode), `forward_mode`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from simulator.errors import InputError
from simulator.routing.importers.drawn import import_loads
from simulator.routing.importers.report import ImportReport, check_target
from simulator.routing.importers.torchfile import read_torch
from simulator.routing.importers.writing import Part, write_parts
from simulator.routing.trace import GENERATED, PROMPT

Array = npt.NDArray[Any]
Int64s = npt.NDArray[np.int64]

MAX_POSITION = 2**31 - 1


class _Stretch(NamedTuple):
    """Successive tokens of one request in one pass: where they are in it, and their positions."""

    record: int
    begin: int
    position: Int64s
    phase: int


def import_sglang(
    source: str | Path,
    target: str | Path,
    *,
    experts: int | None = None,
    model: str | None = None,
    k: int | None = None,
    tokens: int | None = None,
    seed: int = 0,
) -> ImportReport:
    """Convert a dump of SGLang's expert-distribution recorder to a routing trace.

    `per_token` and `per_pass`: a prefill pass is split into its requests by `extend_seq_lens`, in
    a decode pass each token is a request's. The recorder does not write which request is which:
    a stretch that begins at position p > 0 goes on with the request, of those not in this pass yet,
    that has been waiting longest at p - 1, else it is a request of its own. With redundant
    experts the physical ids are turned into logical ones by the dump's last map. Layers without
    experts (dense ones) and padding are left out; the report says all of it.
    `stat` (`logical_count`): drawn from (`import_loads`; k, tokens and seed are for that).
    Raises InputError for another file, and for records that are not as above.
    """
    from simulator.routing.importers.recognise import recognise

    source, target = Path(source), Path(target)
    check_target(target)
    if recognise(source) == "loads":
        return import_loads(
            source, target, experts=experts, model=model, k=k, tokens=tokens, seed=seed
        )
    data = read_torch(source)
    records = data.get("records") if isinstance(data, dict) else None
    if not isinstance(records, list) or not records:
        raise InputError(f"{source}: no 'records': not a dump of SGLang's recorder")
    if k is not None or tokens is not None:
        raise InputError(
            f"{source}: holds recorded tokens; --top-k and --tokens are for drawing from loads"
        )
    report = ImportReport(unit="forward passes", lines_read=len(records))
    ids = [_ids(source, number, record) for number, record in enumerate(records)]
    ids = _logical(source, data.get("last_physical_to_logical_map"), ids, report)
    requests = _linked(source, records, ids, report)

    def parts() -> Iterator[Part]:
        for number, stretches in enumerate(requests):
            for stretch in stretches:
                count = len(stretch.position)
                held = ids[stretch.record][:, stretch.begin : stretch.begin + count]
                yield Part(
                    number,
                    stretch.position,
                    np.full(count, stretch.phase, np.int8),
                    held.transpose(1, 0, 2),
                    f"record {stretch.record}",
                )

    return write_parts(source, target, parts, report, experts=experts, model=model)


def _ids(source: Path, number: int, record: Any) -> Array:
    """The expert ids of a record, integers [layers, tokens, k]."""
    found = record.get("topk_ids_of_layer") if isinstance(record, dict) else None
    if not isinstance(found, np.ndarray) or found.ndim != 3 or found.dtype.kind not in "iu":
        raise InputError(
            f"{source}: record {number}: no topk_ids_of_layer of whole numbers [layers, tokens, k]"
        )
    return found


def _linked(
    source: Path, records: list[Any], ids: list[Array], report: ImportReport
) -> list[list[_Stretch]]:
    """The stretches of each request, in order."""
    requests: list[list[_Stretch]] = []
    waiting: dict[int, list[int]] = {}
    linked = padded = 0
    for number, record in enumerate(records):
        there = ids[number].shape[1]
        position, lengths = _positions(source, number, record, there)
        padded += there - len(position)
        prefill = lengths is not None
        bounds = np.cumsum([0, *(lengths if lengths is not None else [1] * len(position))])
        moved: list[tuple[int, int]] = []
        for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            if begin == end:
                continue
            own = position[begin:end]
            first = int(own[0])
            queue = waiting.get(first, [])
            # One token at a later position in a prefill pass is a decode mixed in.
            phase = PROMPT if prefill and not (end - begin == 1 and first > 0) else GENERATED
            if first > 0 and queue:
                request = queue.pop(0)
                linked += 1
            else:
                request = len(requests)
                requests.append([])
            requests[request].append(_Stretch(number, begin, own, phase))
            moved.append((int(own[-1]) + 1, request))
        for following, request in moved:
            waiting.setdefault(following, []).append(request)
    if linked:
        report.notes.append(
            f"{linked} stretches of tokens joined to the request that they follow by position (the "
            "recorder does not name requests)"
        )
    if padded:
        report.notes.append(f"dropped {padded} tokens of padding at the end of forward passes")
    return requests


def _positions(
    source: Path, number: int, record: dict[str, Any], there: int
) -> tuple[Int64s, list[int] | None]:
    """The positions of a pass's tokens and, in a prefill, the tokens of each request."""
    where = f"{source}: record {number}"
    lengths = record.get("extend_seq_lens")
    if isinstance(lengths, np.ndarray):
        lengths = lengths.tolist()
    if lengths is not None and (
        not isinstance(lengths, list)
        or not all(type(length) is int and 0 <= length <= there for length in lengths)
    ):
        raise InputError(f"{where}: extend_seq_lens is not a list of numbers of tokens")
    lengths = lengths or None
    given = record.get("positions", record.get("input_ids"))
    count = len(given) if isinstance(given, (list, np.ndarray)) else there
    count = min(count, there) if lengths is None else sum(lengths)
    if count > there:
        raise InputError(f"{where}: extend_seq_lens sum to {count}, but there are {there} tokens")
    raw = record.get("positions")
    try:
        position = np.array(raw if raw is not None else [], dtype=np.int64)
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{where}: positions are not whole numbers") from error
    if position.ndim != 1 or len(position) < count:
        if raw is not None:
            raise InputError(f"{where}: {position.shape} positions for {count} tokens")
        position = np.concatenate([np.arange(length) for length in lengths or [1] * count])
    position = position[:count]
    if count and not 0 <= position.min() <= position.max() <= MAX_POSITION:
        raise InputError(f"{where}: a position is not 0..{MAX_POSITION}")
    begins = np.zeros(count + 1, dtype=np.bool_)
    begins[np.cumsum([0, *(lengths or [1] * count)])] = True
    within = ~begins[1:count]
    if (np.diff(position)[within] <= 0).any():
        raise InputError(f"{where}: positions within a request do not go up")
    return position, lengths


def _logical(source: Path, mapping: Any, ids: list[Array], report: ImportReport) -> list[Array]:
    """Ids of logical experts, by the map int [layers, physical] where it is not the identity."""
    if not isinstance(mapping, np.ndarray) or mapping.ndim != 2 or mapping.dtype.kind not in "iu":
        return ids
    layers, physical = mapping.shape
    if (mapping == np.arange(physical)).all():
        return ids
    out = []
    for number, found in enumerate(ids):
        if found.size and (found.shape[0] != layers or found.max() >= physical):
            raise InputError(
                f"{source}: record {number}: ids do not fit the map of {physical} physical experts "
                f"in {layers} layers"
            )
        layer = np.arange(found.shape[0])[:, np.newaxis, np.newaxis]
        out.append(np.where(found >= 0, mapping[layer, np.maximum(found, 0)], -1))
    report.notes.append(
        f"physical experts ({physical} per layer) turned into logical ones by the dump's last map"
    )
    return out
