"""Where inputs lie: topologies, workloads, transports, traces and studies that are shipped by name,
others by path.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Literal

from simulator.errors import InputError
from simulator.spec.units import did_you_mean

Kind = Literal["topology", "workload", "transport", "trace", "study"]

_FOLDERS: dict[Kind, tuple[str, str]] = {
    "topology": ("topologies", ".yaml"),
    "workload": ("workloads", ".yaml"),
    "transport": ("transports", ".yaml"),
    "trace": ("traces", ".parquet"),
    "study": ("whatif", ".yaml"),
}
_PACKAGE = Path(__file__).resolve().parents[1]


@cache
def shipped(kind: Kind) -> tuple[str, ...]:
    """Names of what is shipped, sorted, numbers in them by their size."""
    folder, suffix = _folder(kind)
    return tuple(sorted((path.stem for path in folder.glob(f"*{suffix}")), key=_by_number))


def _by_number(name: str) -> list[str | int]:
    return [int(part) if part.isdigit() else part for part in re.split("([0-9]+)", name)]


def find(kind: Kind, name_or_path: str) -> Path:
    """The file of a shipped name, or the path itself; InputError with the nearest name if there is
    neither.
    """
    folder, suffix = _folder(kind)
    if name_or_path in shipped(kind):
        return folder / f"{name_or_path}{suffix}"
    path = Path(name_or_path).expanduser()
    if name_or_path and path.is_file():
        return path
    raise InputError(missing(kind, name_or_path))


def missing(kind: Kind, name_or_path: str, others: tuple[str, ...] = ()) -> str:
    """The line that says that there is no such name or file; ``others`` are further names that
    would do.
    """
    suffix = _FOLDERS[kind][1]
    path = Path(name_or_path)
    if len(path.parts) > 1 or path.suffix in (suffix, ".yml", ".yaml", ".parquet", ".jsonl"):
        what = "is a directory" if path.is_dir() else "no such file"
        return f"{kind} {name_or_path!r}: {what}"
    known = [*others, *shipped(kind)]
    hint = did_you_mean(name_or_path.partition(":")[0], known)
    what = f"{kind} or law" if others else kind
    return f"no {what} {name_or_path!r}{hint}; known: {', '.join(known)}, or a path"


def _folder(kind: Kind) -> tuple[Path, str]:
    name, suffix = _FOLDERS[kind]
    installed = _PACKAGE / "data" / name
    # An installed wheel carries the files inside the package; in a checkout they stand beside it.
    return (installed if installed.is_dir() else _PACKAGE.parent / name), suffix
