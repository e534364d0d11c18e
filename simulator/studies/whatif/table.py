"""The durable table of a study: one JSON line for each point that is done, on disk before the next.

OUT/study.json       what the study is (`simulator.studies.whatif.identity`)
OUT/results.jsonl    a row for each point, in the order in which they were done
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from simulator.errors import InputError
from simulator.studies.whatif.identity import difference
from simulator.studies.whatif.points import Row

STUDY, RESULTS = "study.json", "results.jsonl"
_PARTIAL = ".partial"

Say = Callable[[str], object]


class Table:
    """The rows that are done, and the file that they are appended to."""

    def __init__(self, path: Path, descriptor: int, rows: dict[str, Row], size: int) -> None:
        self.path = path
        self.rows = rows
        self._descriptor = descriptor
        self._size = size

    def append(self, rows: Sequence[Row]) -> None:
        """Write rows and wait until the disk has them. InputError if it cannot take them: what was
        there before is there still.
        """
        text = "".join(json.dumps(row, sort_keys=True, allow_nan=False) + "\n" for row in rows)
        left = memoryview(text.encode())
        length = len(left)
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
            os.fsync(self._descriptor)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
            raise unwritable(self.path, error, len(self.rows)) from None
        self._size += length
        self.rows.update((row["key"], row) for row in rows)


def unwritable(path: Path, error: OSError, done: int) -> InputError:
    """What to tell when the disk takes no more."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    then = "free some space, then go on with --resume" if full else "go on with --resume"
    return InputError(
        f"{path}: cannot be written: {error.strerror}; {done} points are kept: {then}"
    )


@contextmanager
def open_table(
    out: Path, identity: Mapping[str, Any], resume: bool, say: Say | None = None
) -> Iterator[Table]:
    """The table in the directory `out`, made if it is not there.

    Raises InputError, before anything is written, if `out` holds something else: another study,
    this one without `resume`, or files that are none of ours; and while another process writes.
    """
    path = out / RESULTS
    descriptor = _lock(path, out)
    try:
        if os.fstat(descriptor).st_size:
            _same(out, identity, resume)
        else:
            # Nothing was done yet: the directory is free.
            try:
                write_over(out / STUDY, json.dumps(identity, indent=1, allow_nan=False) + "\n")
            except OSError as error:
                raise unwritable(out / STUDY, error, 0) from None
        rows, size = _read(path, descriptor, say)
        yield Table(path, descriptor, rows, size)
    finally:
        os.close(descriptor)


def _lock(path: Path, out: Path) -> int:
    """Make the directory if it is not there, and hold its table for this process alone."""
    try:
        if out.exists() and not out.is_dir():
            raise InputError(f"--out {out}: is not a directory; give another name")
        there = {entry.name for entry in out.iterdir()} if out.exists() else set()
        if not there <= {STUDY + _PARTIAL, RESULTS} and STUDY not in there:
            other = min(there - {RESULTS})
            raise InputError(
                f"--out {out}: holds {other!r}, which is not of a study; give another name"
            )
        out.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be used: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise InputError(f"--out {out}: another process is writing there now") from None
    return descriptor


def _same(out: Path, identity: Mapping[str, Any], resume: bool) -> None:
    """InputError unless `out` holds this study, and it is to go on."""
    try:
        old = json.loads((out / STUDY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        old = None
    if not isinstance(old, dict):
        raise InputError(f"{out / STUDY}: cannot be read as a study; give another --out")
    # As a file would have it: tuples become lists.
    differs = difference(old, json.loads(json.dumps(identity)))
    if differs is not None:
        raise InputError(f"--out {out}: is of another study: {differs}; give another name")
    if not resume:
        raise InputError(
            f"--out {out}: holds points of this study; go on with --resume, or give another name"
        )


def _read(path: Path, descriptor: int, say: Say | None) -> tuple[dict[str, Row], int]:
    """The rows of the file and its size; a last line that was torn is taken away and told of.

    Rows that ended in an internal error are not kept: their points are tried again.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    whole = raw.rfind(b"\n") + 1
    rows: dict[str, Row] = {}
    lines = raw[:whole].splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        row = _row(line)
        if row is None and number == len(lines):
            whole -= len(line)
        elif row is None:
            raise InputError(f"{path}:{number}: is no row of a study; mend it, or take it out")
        elif row["status"] == "error":
            rows.pop(row["key"], None)
        else:
            rows[row["key"]] = row
    if whole < len(raw):
        os.ftruncate(descriptor, whole)
        if say is not None:
            say(f"{path}: the last line was torn and is dropped; its point is run again")
    return rows, whole


def _row(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    wanted: dict[str, type] = {"key": str, "status": str, "reason": str, "notes": list}
    wanted |= {"seconds": float, "figures": dict}
    if not isinstance(row, dict):
        return None
    ok = all(isinstance(row.get(name), kind) for name, kind in wanted.items())
    return row if ok else None


def write_over(path: Path, text: str) -> None:
    """Write a file whole or not at all, in place of an older one; raises OSError."""
    partial = path.with_name(path.name + _PARTIAL)
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except OSError:
        with suppress(OSError):
            partial.unlink()
        raise
