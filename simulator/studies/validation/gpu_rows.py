"""The table that tools/measure_gpu.py writes: one time per shape, comments about the machine.

Columns that a kind has no use for are empty. `gemm`: [m, k] times weights [k, n]; `grouped`: m rows
over `groups` matrices in equal parts; `moe`: a fused MoE of `tokens`, each on top_k of `experts`,
evenly spread; `prefill`, `decode`: attention of `batch` sequences over `context` keys, prefill with
a causal mask; `h2d`, `d2h`, `d2d`, `peer`: copies host to device, back, within one GPU, to another.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, TextIO

from simulator.errors import InputError
from simulator.spec.document import read_text
from simulator.spec.units import did_you_mean

_ATTENTION = ("batch", "context", "heads", "kv_heads", "head_dim")
SIZES: dict[str, tuple[str, ...]] = {
    "gemm": ("m", "n", "k"),
    "grouped": ("m", "n", "k", "groups"),
    "moe": ("tokens", "hidden", "intermediate", "top_k", "experts"),
    "prefill": _ATTENTION,
    "decode": _ATTENTION,
    "h2d": ("bytes",),
    "d2h": ("bytes",),
    "d2d": ("bytes",),
    "peer": ("bytes",),
}
"""Kind -> the columns that it needs."""

DTYPES = {"gemm": ("bf16", "fp8")}
"""Kind -> its dtypes; "bf16" alone where not named, none for copies."""

COPIES = ("h2d", "d2h", "d2d", "peer")
NUMBERS = tuple(dict.fromkeys(name for names in SIZES.values() for name in names))
COLUMNS = ("kind", "dtype", *NUMBERS, "time_us")


class Shape(NamedTuple):
    """What is timed. sizes: as `SIZES` names them for the kind."""

    kind: str
    dtype: str
    sizes: Mapping[str, int]

    @property
    def name(self) -> str:
        """The shape in words."""
        told = ", ".join(f"{key} {value}" for key, value in self.sizes.items())
        return " ".join(part for part in (self.kind, self.dtype, told) if part)


class GpuRow(NamedTuple):
    """A measured time. where: "file:line"."""

    where: str
    shape: Shape
    time_s: float


class GpuTable(NamedTuple):
    """The rows of a table, and what its comments `# key: value` say."""

    about: dict[str, str]
    rows: list[GpuRow]


def dtypes_of(kind: str) -> tuple[str, ...]:
    """The dtypes of a kind; one empty name for copies."""
    return ("",) if kind in COPIES else DTYPES.get(kind, ("bf16",))


def write_table(
    stream: TextIO, about: Iterable[tuple[str, str]], rows: Iterable[tuple[Shape, float]]
) -> None:
    """Write comments and rows of (shape, seconds), each row as soon as it is there."""
    for key, value in about:
        stream.write(f"# {key}: {' '.join(value.split())}\n")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for shape, time_s in rows:
        numbers = [shape.sizes.get(name, "") for name in NUMBERS]
        writer.writerow([shape.kind, shape.dtype, *numbers, f"{time_s * 1e6:.3f}"])
        stream.flush()


def read_table(path: Path, shown: str) -> GpuTable:
    """Read such a table; InputError with file and line for what is none."""
    about: dict[str, str] = {}
    rows: list[GpuRow] = []
    header = False
    for at, line in enumerate(read_text(path, shown).splitlines(), 1):
        where = f"{shown}:{at}"
        if line.startswith("#"):
            key, _, value = line[1:].partition(":")
            about.setdefault(key.strip(), value.strip())
        elif line.strip() and not header:
            header = True
            if tuple(line.strip().split(",")) != COLUMNS:
                raise InputError(
                    f"{where}: not the columns that tools/measure_gpu.py writes: "
                    f"{','.join(COLUMNS)}"
                )
        elif line.strip():
            rows.append(_row(where, next(csv.reader([line]))))
    if not rows:
        raise InputError(f"{shown}: no rows; give a table that tools/measure_gpu.py wrote")
    return GpuTable(about, rows)


def _row(where: str, cells: list[str]) -> GpuRow:
    if len(cells) != len(COLUMNS):
        raise InputError(f"{where}: {len(cells)} cells, not {len(COLUMNS)}")
    given = dict(zip(COLUMNS, cells, strict=True))
    kind, dtype = given["kind"], given["dtype"]
    if kind not in SIZES:
        known = list(SIZES)
        hint = did_you_mean(kind, known)
        raise InputError(f"{where}: unknown kind {kind!r}{hint}; known: {', '.join(known)}")
    if dtype not in dtypes_of(kind):
        told = ", ".join(dtypes_of(kind)) or "none"
        raise InputError(f"{where}: {kind}: dtype {dtype!r}, not one of: {told}")
    sizes = {}
    for name in SIZES[kind]:
        text = given[name]
        if not re.fullmatch("[1-9][0-9]{0,17}", text):
            raise InputError(f"{where}: {name}: must be a whole number from 1, not {text!r}")
        sizes[name] = int(text)
    _check(where, kind, sizes)
    try:
        time_s = float(given["time_us"]) * 1e-6
    except ValueError:
        time_s = math.nan
    if not 0.0 < time_s < math.inf:
        raise InputError(f"{where}: time_us: must be a number above 0, not {given['time_us']!r}")
    return GpuRow(where, Shape(kind, dtype, sizes), time_s)


def _check(where: str, kind: str, sizes: Mapping[str, int]) -> None:
    for part, whole in (("groups", "m"), ("kv_heads", "heads")):
        if part in sizes and sizes[whole] % sizes[part]:
            raise InputError(
                f"{where}: {kind}: {part} {sizes[part]} does not divide {whole} {sizes[whole]}"
            )
    if kind == "moe" and sizes["top_k"] > sizes["experts"]:
        raise InputError(f"{where}: moe: top_k {sizes['top_k']} of {sizes['experts']} experts")
