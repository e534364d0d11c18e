"""What all commands print with: JSON, diagnostics, the width of the terminal, a progress bar."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def print_json(value: object) -> None:
    """A value on stdout, the same bytes for the same value."""
    print(json.dumps(value, sort_keys=True, indent=1, allow_nan=False))


def say(line: str) -> None:
    """A diagnostic."""
    print(line, file=sys.stderr, flush=True)


def width() -> int:
    """Columns of a summary: of the terminal between 80 and 120, else 80."""
    if not sys.stdout.isatty():
        return 80
    return min(max(shutil.get_terminal_size((80, 24)).columns, 80), 120)


@contextmanager
def progress_bar(unit: str = "step") -> Iterator[Callable[[int, int], None] | None]:
    """A function to be told of units done, which draws a bar; None if stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    bars: list[Any] = []

    def advance(done: int, total: int) -> None:
        if not bars:
            from tqdm import tqdm

            bars.append(tqdm(total=total, unit=unit, leave=False, dynamic_ncols=True))
        bars[0].update(done - bars[0].n)

    try:
        yield advance
    finally:
        for bar in bars:
            bar.close()
