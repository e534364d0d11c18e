"""Foreign recordings of routing -> routing trace. Each reader says what it kept and dropped."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from simulator.errors import InputError
from simulator.routing.importers.arrays import import_huggingface, import_vllm
from simulator.routing.importers.csvfile import import_csv
from simulator.routing.importers.drawn import import_loads
from simulator.routing.importers.jsonl import import_jsonl
from simulator.routing.importers.recognise import recognise
from simulator.routing.importers.report import ImportReport
from simulator.routing.importers.sglang import import_sglang
from simulator.routing.trace import MAX_EXPERTS

__all__ = [
    "IMPORTERS",
    "OPTIONS",
    "ImportReport",
    "import_any",
    "import_csv",
    "import_huggingface",
    "import_jsonl",
    "import_loads",
    "import_sglang",
    "import_vllm",
    "open_trace",
    "recognise",
]

IMPORTERS: dict[str, Callable[..., ImportReport]] = {
    "jsonl": import_jsonl,
    "csv": import_csv,
    "sglang": import_sglang,
    "vllm": import_vllm,
    "huggingface": import_huggingface,
    "tensorrt-llm": import_loads,
    "loads": import_loads,
}
"""By the kind of recording: functions of (source, target, experts=, model=, and what OPTIONS names)
that write a routing trace.
"""

OPTIONS: dict[str, tuple[str, ...]] = {
    "huggingface": ("k",),
    "sglang": ("k", "tokens", "seed"),
    "vllm": ("k", "tokens", "seed"),
    "tensorrt-llm": ("k", "tokens", "seed"),
    "loads": ("k", "tokens", "seed"),
}
"""What a reader takes beside the experts and the model: experts per token, and for loads, from
which tokens are drawn, how many of them and the seed.
"""


def import_any(
    kind: str,
    source: str | Path,
    target: str | Path,
    *,
    experts: int | None = None,
    model: str | None = None,
    **options: int | None,
) -> ImportReport:
    """Convert a recording of a kind of IMPORTERS, or of the kind that "auto" recognises.

    Options that are None are left to the reader. Raises InputError for an option that the kind
    does not take, and for a file of no known kind.
    """
    source = Path(source)
    found = kind
    if kind == "auto":
        found = _known_kind(source)
        if found == "parquet":
            raise InputError(f"{source}: is a routing trace already")
    given = {name: value for name, value in options.items() if value is not None}
    unknown = sorted(set(given) - set(OPTIONS.get(found, ())))
    if unknown:
        flag = {"k": "top-k"}.get(unknown[0], unknown[0])
        raise InputError(f"import {found}: --{flag} does not go with it; leave it out")
    if not source.is_file() and not (source.is_dir() and found in ("tensorrt-llm", "loads")):
        raise InputError(f"{source}: {'is a directory' if source.is_dir() else 'no such file'}")
    if experts is not None and not 1 <= experts <= MAX_EXPERTS:
        raise InputError(f"--experts {experts}: must be 1 to {MAX_EXPERTS}")
    try:
        report = IMPORTERS[found](source, target, experts=experts, model=model, **given)
    except OSError as error:  # no right to read, a full disk
        raise InputError(f"{source}: {error}") from error
    if kind == "auto":
        report.notes.insert(0, f"recognised as {found}")
    return report


def open_trace(path: str | Path, say: Callable[[str], object] | None = None) -> Path:
    """A routing trace to read for any recording that is recognised.

    A Parquet file is given back as it is. Another kind is converted to a temporary trace, deleted
    when the process ends, and `say` gets the lines of its ImportReport. Raises InputError for
    a file of no known kind.
    """
    path = Path(path)
    kind = _known_kind(path)
    if kind == "parquet":
        return path
    folder = Path(tempfile.mkdtemp(prefix="routing-trace-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    target = folder / f"{path.stem}.parquet"
    report = import_any(kind, path, target)
    if say is not None:
        for line in report.lines():
            say(line)
    return target


def _known_kind(path: Path) -> str:
    try:
        kind = recognise(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    if kind is None:
        if path.is_file() and path.stat().st_size == 0:
            raise InputError(f"{path}: the file is empty; a routing trace is a Parquet file")
        raise InputError(
            f"{path}: not a routing trace (Parquet) nor a recording that can be imported "
            f"({', '.join(IMPORTERS)}); import KIND says what it lacks"
        )
    return kind
