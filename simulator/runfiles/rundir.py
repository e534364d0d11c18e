"""A run directory: complete under its name, or not there at all.

Files are written in a hidden sibling `.{name}.partial`, which is renamed to its final name when the
run has ended well; `result.json` is written last. Whatever goes wrong, nothing stays under `out`.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulator.errors import InputError

MARKER = "unfinished-run"
"""A file in a partial directory, by which a later run knows it for one of ours, and locked while
the run that made it lives."""

_MOST = 1e300
"""Of a run's figures, any unit."""


@dataclass(frozen=True)
class RunDir:
    """Where the files of a run are written: `path` is a directory that exists."""

    path: Path

    @property
    def spans(self) -> Path:
        """One row per kernel, send or fetch."""
        return self.path / "spans.parquet"

    @property
    def links(self) -> Path:
        """Bytes per directed link."""
        return self.path / "links.parquet"

    @property
    def steps(self) -> Path:
        """Start, end and tokens of each step."""
        return self.path / "steps.parquet"

    @property
    def accesses(self) -> Path:
        """Hits, late hits and misses of the expert caches."""
        return self.path / "accesses.parquet"

    @property
    def loads(self) -> Path:
        """Rows per layer, expert and GPU."""
        return self.path / "loads.parquet"

    @property
    def requests(self) -> Path:
        """What became of each request of a serving run."""
        return self.path / "requests.parquet"

    @property
    def result(self) -> Path:
        """What the run was, and its summary; its presence says that the run ended well."""
        return self.path / "result.json"

    def load_result(self) -> dict[str, Any]:
        """What `result.json` holds; InputError if it is missing, damaged or of something else."""
        path = self.result
        try:
            text = path.read_text(encoding="utf-8")
            found = json.loads(text, parse_float=_number, parse_constant=_number)
        except FileNotFoundError:
            raise InputError(
                f"{path}: is missing; is this the directory of a finished run?"
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{path}: cannot be read, it is damaged or cut short") from error
        if not isinstance(found, dict):
            raise InputError(f"{path}: is not the result of a run")
        return found

    def read_result(self) -> dict[str, Any]:
        """As `load_result`, {} if it cannot be read: for what is useful, not needed."""
        try:
            return self.load_result()
        except InputError:
            return {}

    def write_result(self, result: Mapping[str, object]) -> None:
        """Write `result.json`: sorted keys, indent 1; ValueError if a number is NaN or infinite."""
        text = json.dumps(result, sort_keys=True, indent=1, allow_nan=False)
        self.result.write_text(text + "\n", encoding="utf-8")


def _number(text: str) -> float:
    """A number of `result.json`; ValueError for NaN, infinity and what sums could make infinite."""
    value = float(text)
    if not abs(value) < _MOST:
        raise ValueError(text)
    return value


@contextmanager
def open_run(out: Path | None) -> Iterator[RunDir]:
    """A directory to write a run into, given its name `out` when the block ends well.

    Without `out` the directory is temporary and removed at the end. On any exception, an
    interruption included, the files are removed and `out` is as it was before.

    Errors: InputError if `out` holds something, cannot be made, or is in use by what is not ours.
    """
    if out is None:
        with tempfile.TemporaryDirectory(prefix="simulator-run-") as name, _named(Path(name)):
            yield RunDir(Path(name))
        return
    target = Path(os.path.abspath(out))
    _refuse_taken(out, target)
    partial = target.parent / f".{target.name}.partial"
    lock = _make_partial(out, partial)
    try:
        with _named(out):
            yield RunDir(partial)
        _refuse_taken(out, target)
        (partial / MARKER).unlink()
        try:
            # A rename onto an empty directory replaces it; onto a full one it fails.
            os.replace(partial, target)
        except OSError as error:
            raise InputError(f"--out {out}: cannot be put in place: {error.strerror}") from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        os.close(lock)


@contextmanager
def _named(out: Path) -> Iterator[None]:
    """Give an OSError that says of no file what it is about (pyarrow's, of a full disk) `out`."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(out)
        raise


def _refuse_taken(out: Path, target: Path) -> None:
    """InputError unless `target` is absent or an empty directory."""
    try:
        if target.is_dir() and not target.is_symlink():
            if any(target.iterdir()):
                raise InputError(
                    f"--out {out}: the directory is not empty; give another name or remove it"
                )
        elif os.path.lexists(target):
            raise InputError(f"--out {out}: is not a directory; give another name or remove it")
    except OSError as error:
        raise InputError(f"--out {out}: cannot be read: {error.strerror}") from error


def _make_partial(out: Path, partial: Path) -> int:
    """Make `partial` in place of what a killed run may have left; a descriptor that locks it."""
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(partial):
            if partial.is_symlink() or not (partial / MARKER).is_file():
                raise InputError(
                    f"--out {out}: {partial} is in the way and was not left by a run; remove it"
                )
            os.close(_lock(out, partial))
            shutil.rmtree(partial)
        partial.mkdir()
        return _lock(out, partial)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be made: {error.strerror}") from error


def _lock(out: Path, partial: Path) -> int:
    """Hold the marker of `partial` as long as the descriptor is open; a killed run lets go."""
    descriptor = os.open(partial / MARKER, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise InputError(f"--out {out}: another run is writing there now") from error
    return descriptor
