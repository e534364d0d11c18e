"""What the columns of a run can hold: a value that no run writes is refused before it is used.

A damaged file is mostly noticed by its checksums; one that another program wrote is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.errors import InputError
from simulator.runfiles.rundir import RunDir

_LONGEST_S = 1e9
"""Thirty years: times up to here are exact enough, and whole nanoseconds of them fit 64 bits."""

_MOST = 1e18
"""Bytes or FLOPs of one span: whole numbers of them fit 64 bits."""

_FINITE = float(np.finfo(np.float64).max)

_TIME = (0.0, _LONGEST_S)
_AMOUNT = (0.0, _MOST)
_COUNT = (0, None)
_NUMBER_OR_NONE = (-1, None)

Range = tuple[float, float | None]

SPANS: Mapping[str, Range] = {
    "step": _COUNT,
    "microbatch": _NUMBER_OR_NONE,
    "chunk": _COUNT,
    "layer": _COUNT,
    "gpu": _COUNT,
    "start_s": _TIME,
    "end_s": _TIME,
    "ready_s": (-_LONGEST_S, _LONGEST_S),
    "peer": _NUMBER_OR_NONE,
    "fetch_wait_s": _TIME,
    "expert": _NUMBER_OR_NONE,
    "bytes": _AMOUNT,
    "flops": _AMOUNT,
    "rows": _COUNT,
}
"""Column of `spans.parquet` -> least and largest value; None: what its type can hold."""

OTHERS: Mapping[str, Range] = {
    **dict.fromkeys(("step", "layer", "expert", "rows", "tokens", "group", "steps"), _COUNT),
    **dict.fromkeys(("hit", "late", "miss", "foreseen", "cancelled"), _COUNT),
    **dict.fromkeys(("bytes", "bandwidth_bytes_per_s"), (0.0, 1e30)),
    "start_s": _TIME,
}
"""As `SPANS`, of the other tables; their other numbers are finite."""


@dataclass(frozen=True)
class Limits:
    """What a run had: how many GPUs, and its last step; None: not known."""

    gpus: int | None = None
    last_step: int | None = None

    def largest(self, name: str) -> tuple[int | None, str]:
        """Of a column of spans: its largest value, and in words where that is from."""
        if name in ("gpu", "peer") and self.gpus is not None:
            return self.gpus - 1, f"the run had {self.gpus:,} GPU{'s' if self.gpus != 1 else ''}"
        if name == "step" and self.last_step is not None:
            return self.last_step, f"the last step was {self.last_step}"
        return None, ""


def gpus_of(run_dir: Path) -> int | None:
    """How many GPUs `result.json` in `run_dir` names; None if it cannot be read or names none."""
    context = RunDir(run_dir).read_result().get("context")
    found = context.get("gpus") if isinstance(context, dict) else None
    return found if type(found) is int and found > 0 else None


def check_spans(
    path: Path, columns: Mapping[str, npt.NDArray[Any]], first: int, limits: Limits
) -> None:
    """Refuse values of spans [n] that no run writes; `first`: row of the first of them in `path`.

    Errors: InputError with the file, the row (from 0), the column and the value.
    """
    if not len(next(iter(columns.values()), ())):
        return
    for name, values in columns.items():
        if name in SPANS:
            least, most = SPANS[name]
            largest, why = limits.largest(name)
            _check(path, name, values, first, (least, most if largest is None else largest), why)
    _check_order(path, columns, first)


def check_table(path: Path, columns: Mapping[str, npt.NDArray[Any]], first: int = 0) -> None:
    """As `check_spans`, of rows [n] of another table."""
    if not len(next(iter(columns.values()), ())):
        return
    for name, values in columns.items():
        if name in OTHERS:
            _check(path, name, values, first, OTHERS[name], "")
        elif values.dtype.kind == "f":
            _check(path, name, values, first, (-_FINITE, _FINITE), "")
    _check_order(path, columns, first)


def _check_order(path: Path, columns: Mapping[str, npt.NDArray[Any]], first: int) -> None:
    """Refuse rows that do not end after they start."""
    if "start_s" not in columns or "end_s" not in columns:
        return
    start_s, end_s = columns["start_s"], columns["end_s"]
    late = end_s > start_s
    if not late.all():
        row = int(np.argmin(late))
        raise InputError(
            f"{path}: row {first + row}: end_s is {end_s[row]}, which is not after start_s "
            f"{start_s[row]}; no run writes that"
        )


def _check(
    path: Path, name: str, values: npt.NDArray[Any], first: int, allowed: Range, why: str
) -> None:
    """Refuse the first of `values` [n] that is not within `allowed`, NaN too."""
    least, most = allowed
    if values.min() >= least and (most is None or values.max() <= most):
        return
    good = values >= least
    if most is not None:
        good &= values <= most
    row = int(np.argmin(good))
    said = f"at least {least:g}" if most is None else f"{least:g} to {most:g}"
    raise InputError(
        f"{path}: row {first + row}: {name} is {values[row]}, but "
        + (why if why and values[row] > least else f"a run writes {said}")
    )
