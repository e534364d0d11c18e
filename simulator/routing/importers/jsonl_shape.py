"""The two shapes of routing records in JSON lines, and what can be wrong with a record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from simulator.routing.trace import MAX_EXPERTS, MAX_LAYERS

MAX_LINE_BYTES = 1 << 20
# Some editors and shells begin a text file with it.
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MAX_TOKEN = 2**31 - 1
MAX_K = 1024
# The first lines may be a header; the shape of the records is taken from the first that is one.
SNIFFED_LINES = 100


class Shape(NamedTuple):
    """The keys of a record: which request (None: not told), and its experts."""

    request: str | None
    experts: str
    typed: bool

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys that a record must have."""
        first = () if self.request is None else (self.request,)
        return (*first, "layer", self.experts, "token_idx")


def shape_of(record: object) -> Shape | None:
    """The shape of a record, None for a header line or anything else."""
    if not isinstance(record, dict) or not ("layer" in record and "token_idx" in record):
        return None
    for name in ("experts", "topk_ids"):
        if name in record:
            request = next((key for key in ("problem_id", "req_id") if key in record), None)
            return Shape(request, name, record.get("type") == "route")
    return None


def sniff(path: Path) -> tuple[Shape | None, dict[str, Any], dict[str, Any]]:
    """The shape of a file's records, its header lines merged, and its first record.

    A line that is no JSON ends the search.
    """
    header: dict[str, Any] = {}
    with path.open("rb") as file:
        for number in range(SNIFFED_LINES):
            text = file.readline(MAX_LINE_BYTES)
            if number == 0:
                text = text.removeprefix(BYTE_ORDER_MARK)
            if not text:
                break
            if not text.strip():
                continue
            try:
                record = json.loads(text)
            except (ValueError, RecursionError):
                break
            shape = shape_of(record)
            if shape is not None:
                return shape, header, record
            if not isinstance(record, dict):
                break
            header |= record
    return None, header, {}


def fault_of(record: object, shape: Shape, experts: int | None) -> str | None:
    """What is wrong with a record, or None."""
    if not isinstance(record, dict):
        return f"must be a JSON object with {', '.join(shape.keys)}"
    missing = [key for key in shape.keys if key not in record]
    if missing:
        return f"'{missing[0]}' is missing; a record has {', '.join(shape.keys)}"
    if shape.request is not None:
        named = record[shape.request]
        if not isinstance(named, (int, str, type(None))):
            return f"{shape.request}: {_short(named)} is neither a number nor a text"
    for key, largest in (("layer", MAX_LAYERS - 1), ("token_idx", MAX_TOKEN)):
        if not _whole(record[key], 0, largest):
            return f"{key}: {_short(record[key])} is not a whole number 0..{largest}"
    chosen = record[shape.experts]
    name = shape.experts
    if not isinstance(chosen, list) or not chosen:
        return f"{name}: {_short(chosen)} is not a list of at least one expert"
    if len(chosen) > MAX_K:
        return f"{name}: {len(chosen)} experts for one token, more than {MAX_K}"
    for expert in chosen:
        if not _whole(expert, -1, MAX_EXPERTS - 1):
            return f"{name}: {_short(expert)} is not a whole number 0..{MAX_EXPERTS - 1}"
        if experts is not None and expert >= experts:
            return f"expert {expert}, but the model has {experts} experts"
    real = [expert for expert in chosen if expert >= 0]
    if len(set(real)) != len(real):
        return f"{name}: {_short(chosen)} has an expert twice"
    return None


def _whole(value: object, smallest: int, largest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and smallest <= value <= largest


def _short(value: object) -> str:
    return repr(value)[:80]
