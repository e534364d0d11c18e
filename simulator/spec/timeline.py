"""A file of faults, in place of a workload's own."""

from __future__ import annotations

from pathlib import Path

from simulator.errors import InputError
from simulator.spec.document import Document, read_document
from simulator.spec.units import did_you_mean

_PLACES = {"faults": ("faults",), "on_member_loss": ("serving", "on_member_loss")}


def read_timeline(path: Path, shown: str) -> Document:
    """The file: a list ``faults`` and, if wanted, ``on_member_loss`` (of ``serving``). What stands
    in them is checked with the workload. Raises InputError for other keys.
    """
    document = read_document(path, shown)
    for key in document.data:
        if key not in _PLACES:
            hint = did_you_mean(key, list(_PLACES)) or f"; known here: {', '.join(_PLACES)}"
            raise InputError(document.fault((key,), f"unknown key{hint}", key=True))
    if "faults" not in document.data:
        raise InputError(document.fault((), "faults: required, but not given"))
    return document


def put_timeline(document: Document, timeline: Document) -> None:
    """Puts a file of faults in place of those of a workload; marks stay those of the file."""
    for key, value in timeline.data.items():
        where = _PLACES[key]
        if len(where) > 1 and not isinstance(document.data.setdefault(where[0], {}), dict):
            continue  # told with the other faults
        document.put(where, value, timeline.mark((key,)))
        for marks, given in (
            (document.value_marks, timeline.value_marks),
            (document.key_marks, timeline.key_marks),
        ):
            for path, mark in given.items():
                if path[:1] == (key,):
                    marks[(*where, *path[1:])] = mark
