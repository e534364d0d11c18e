"""`incidents.json` of a serving run: what broke, and what became of the groups.

A list of rows by time, each with `time_s` and `kind`: `begin` or `end` of a fault (fault, its
number in the timeline; what, name, do), or `group` (group, its number; state: up, forming or down;
gpus that take part; way: how it goes on, or why it does not).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simulator.errors import InputError

NAME = "incidents.json"


def write_incidents(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the rows, one per line."""
    lines = ",\n".join(json.dumps(row, sort_keys=True, allow_nan=False) for row in rows)
    (folder / NAME).write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def read_incidents(folder: Path) -> list[dict[str, Any]]:
    """The rows, none if the run had no timeline; InputError for a file that is damaged."""
    path = folder / NAME
    if not path.is_file():
        return []
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [dict(row) for row in rows]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
