"""Files of expert loads, without tokens: what each of them holds, as windows x layers x experts."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.errors import InputError
from simulator.routing.importers.boxes import read_safetensors
from simulator.routing.importers.jsonl_shape import BYTE_ORDER_MARK
from simulator.routing.importers.report import one_line
from simulator.routing.trace import MAX_EXPERTS, MAX_LAYERS

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Int32s = npt.NDArray[np.int32]

# A JSON number becomes some 60 bytes in memory before it is a float64: this bounds it at 2 GiB.
MAX_JSON_BYTES = 64 << 20
MAX_CSV_BYTES = 256 << 20
MAX_COUNTS = 1 << 28
COUNT_COLUMNS = ("token_count", "count")
# What engines call the loads in files of several arrays: SGLang, vLLM's EPLB.
COUNT_NAMES = ("logical_count", "expert_load_window", "expert_load_pass", "expert_load", "load")
TENSORRT_KEY = re.compile(r"(\d{1,9})_(\d{1,6})")
META_NAME = "meta_info.json"


@dataclass(frozen=True)
class RawLoads:
    """What a load file holds, unchecked: `windows` float64 [windows, layers, experts], `layers`
    int32 [layers] (their numbers), experts per token where it is told, and what is to be said.
    """

    windows: Floats
    layers: Int32s
    k: int | None = None
    notes: list[str] = field(default_factory=list)


def read_load_file(path: Path, model: str | None = None) -> RawLoads:
    """Read a load file that `recognise` calls "loads", whatever its make.

    `model` chooses in a table of several models. Raises InputError for what is no load file.
    """
    if path.is_dir():
        return read_tensorrt(path)
    with path.open("rb") as file:
        head = file.read(64).removeprefix(BYTE_ORDER_MARK)
    if head.startswith(b"PK"):
        return _zipped(path)
    if head.startswith(b"\x93NUMPY"):
        return _arrays(path)
    if head.lstrip()[:1] in (b"{", b"["):
        return read_json(path)
    if head[6:8] == b"\0\0":
        return read_tensorrt(path)
    return read_table(path, model)


def read_json(path: Path) -> RawLoads:
    """SGLang's {"logical_count": [layers][experts]} or [steps][layers][experts], or the list."""
    try:
        data = json.loads(_text(path, MAX_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {one_line(error)}") from error
    counts = data.get("logical_count") if isinstance(data, dict) else data
    if not isinstance(counts, list):
        raise InputError(f"{path}: no list 'logical_count'; not a file of expert loads")
    try:
        windows = np.array(counts)
    except (ValueError, OverflowError) as error:
        raise InputError(f"{path}: logical_count has rows of different lengths") from error
    return as_windows(path, "logical_count", windows)


def read_tensorrt(path: Path) -> RawLoads:
    """TensorRT-LLM's expert statistics: a folder of rank*.safetensors files with `meta_info.json`,
    or one such file. Keys "{iter}_{layer}" hold the counts [experts] of an iteration.

    The ranks of a folder are summed, unless all hold the same. What is missing counts as 0.
    """
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    folder = path if path.is_dir() else path.parent
    meta, notes = _meta(folder / META_NAME)
    tables = [_keyed(file) for file in files]
    keys = sorted({key for table in tables for key in table})
    widths = {len(counts) for table in tables for counts in table.values()}
    if not keys:
        raise InputError(f"{path}: no keys '{{iter}}_{{layer}}': not statistics of TensorRT-LLM")
    experts = meta.get("num_experts", max(widths))
    if widths != {experts}:
        raise InputError(
            f"{path}: counts of {', '.join(map(str, sorted(widths)[:4]))} experts, expected "
            f"{experts} in every key"
        )
    same = len(tables) > 1 and all(
        table.keys() == tables[0].keys()
        and all(np.array_equal(table[key], tables[0][key]) for key in table)
        for table in tables[1:]
    )
    if same:
        notes.append(f"{path.name}: all {len(tables)} ranks hold the same counts, taken once")
        tables = tables[:1]
    steps = sorted({step for step, _ in keys})
    layers = sorted({layer for _, layer in keys})
    _check_size(path, len(steps) * len(layers) * experts)
    windows = np.zeros((len(steps), len(layers), experts))
    step_at = {step: at for at, step in enumerate(steps)}
    layer_at = {layer: at for at, layer in enumerate(layers)}
    for table in tables:
        for (step, layer), counts in table.items():
            windows[step_at[step], layer_at[layer]] += counts
    missing = len(steps) * len(layers) - len(keys)
    if missing:
        notes.append(f"{path.name}: {missing} pairs of iteration and layer are missing, taken as 0")
    k = meta.get("num_experts_per_token")
    return RawLoads(windows, np.array(layers, dtype=np.int32), k, notes)


def read_table(path: Path, model: str | None = None) -> RawLoads:
    """A CSV table with the columns expert, a layer (layer or list_index) and token_count, as in
    OLMoE's expert_counts.csv; `domain` or `window` tells windows apart, `model` models.

    Of several models `model` chooses, else the one of the most experts is taken; of several kinds
    of counts of a model (`kind`) the first is. Both are noted.
    """
    rows = list(csv.DictReader(_text(path, MAX_CSV_BYTES).splitlines()))
    columns = {name: name for name in (rows[0] if rows else ()) if name is not None}
    layer = next((name for name in ("layer", "layer_id", "list_index") if name in columns), None)
    count = next((name for name in COUNT_COLUMNS if name in columns), None)
    if layer is None or count is None or "expert" not in columns:
        raise InputError(f"{path}: needs the columns expert, layer (or list_index) and token_count")
    window = next((name for name in ("window", "domain") if name in columns), None)
    of_model: dict[str, list[dict[str, Any]]] = {}
    kinds: dict[str, str] = {}
    notes = []
    other = 0
    for line, row in enumerate(rows, 2):
        if None in row.values() or None in row:
            if line == len(rows) + 1:
                notes.append(f"{path.name}: dropped the last line: the file is cut short")
                continue
            raise InputError(f"{path}:{line}: not as many values as columns")
        row["line"] = line
        name = row.get("model", "")
        if row.get("kind", "") != kinds.setdefault(name, row.get("kind", "")):
            other += 1
            continue
        of_model.setdefault(name, []).append(row)
    if not of_model:
        raise InputError(f"{path}: has no rows")
    tables = {name: _table(path, held, layer, count, window) for name, held in of_model.items()}
    if model is not None and "model" in columns and model not in tables:
        raise InputError(f"{path}: no model {model!r}; it holds {', '.join(tables)}")
    most = max(tables, key=lambda name: (tables[name].shape[2], tables[name].shape[0]))
    chosen = model if model in tables else most
    if other:
        notes.append(f"{path.name}: left out {other} rows of a second kind of counts of a model")
    if len(tables) > 1:
        sizes = ", ".join(f"{name} ({table.shape[2]} experts)" for name, table in tables.items())
        notes.append(f"{path.name}: holds loads of {sizes}; taken: {chosen}")
    windows = tables[chosen]
    return RawLoads(windows, np.arange(windows.shape[1], dtype=np.int32), None, notes)


def as_windows(path: Path, name: str, counts: Array) -> RawLoads:
    """An array of 2 or 3 dimensions as windows; InputError for another shape or type."""
    if counts.dtype.kind not in "iuf" or counts.ndim not in (2, 3) or counts.size == 0:
        raise InputError(
            f"{path}: {name} is {counts.dtype} {list(counts.shape)}, expected numbers "
            "[layers, experts] or [windows, layers, experts]"
        )
    _check_size(path, counts.size)
    if counts.shape[-1] > MAX_EXPERTS or counts.shape[-2] > MAX_LAYERS:
        raise InputError(
            f"{path}: {name} has {counts.shape[-2]} layers and {counts.shape[-1]} experts; at most "
            f"{MAX_LAYERS} and {MAX_EXPERTS}"
        )
    windows = counts.astype(np.float64)
    windows = windows[np.newaxis] if windows.ndim == 2 else windows
    return RawLoads(windows, np.arange(windows.shape[1], dtype=np.int32))


def logical_count_of(data: Any) -> Array | None:
    """The loads in what a .pt file holds: a tensor, or one under a name of COUNT_NAMES."""
    if isinstance(data, dict):
        data = next((data[name] for name in COUNT_NAMES if name in data), None)
    return data if isinstance(data, np.ndarray) and data.ndim in (2, 3) else None


def _zipped(path: Path) -> RawLoads:
    from simulator.routing.importers.boxes import npz_names
    from simulator.routing.importers.torchfile import read_torch

    if npz_names(path):
        return _arrays(path)
    counts = logical_count_of(read_torch(path))
    if counts is None:
        raise InputError(f"{path}: holds no loads ({', '.join(COUNT_NAMES[:3])})")
    return as_windows(path, "logical_count", counts)


def _arrays(path: Path) -> RawLoads:
    """One array, one of a name of COUNT_NAMES, or several [layers, experts], each a window."""
    from simulator.routing.importers.arrays import iter_arrays

    found = dict(iter_arrays(path))
    name = next((name for name in COUNT_NAMES if name in found), None)
    if name is None and len(found) == 1:
        name = next(iter(found))
    if name is not None:
        return as_windows(path, name, found[name])
    if len({array.shape for array in found.values()}) != 1:
        raise InputError(f"{path}: {len(found)} arrays of different shapes; name one load")
    return as_windows(path, "its arrays", np.stack(list(found.values())))


def _meta(path: Path) -> tuple[dict[str, int], list[str]]:
    """The whole numbers of meta_info.json, and what is to be said."""
    if not path.is_file():
        return {}, [f"no {META_NAME} beside it: experts per token are not known"]
    try:
        data = json.loads(_text(path, MAX_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {one_line(error)}") from error
    if not isinstance(data, dict):
        raise InputError(f"{path}: must be a JSON object")
    meta = {}
    for key in ("num_experts", "num_experts_per_token"):
        if key not in data:
            continue
        value = data[key]
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= MAX_EXPERTS:
            raise InputError(f"{path}: {key}: {str(value)[:60]} is not 1..{MAX_EXPERTS}")
        meta[key] = value
    return meta, []


def _keyed(path: Path) -> dict[tuple[int, int], Floats]:
    """Counts [experts] by (iteration, layer)."""
    table: dict[tuple[int, int], Floats] = {}
    for name, counts in read_safetensors(path).items():
        match = TENSORRT_KEY.fullmatch(name)
        if match is None or counts.ndim != 1 or not 0 < len(counts) <= MAX_EXPERTS:
            raise InputError(
                f"{path}: key {name[:60]!r} {list(counts.shape)}: expected counts [experts] under "
                "'{iter}_{layer}'"
            )
        table[int(match[1]), int(match[2])] = counts.astype(np.float64)
    return table


def _table(
    path: Path, rows: Iterable[dict[str, Any]], layer: str, count: str, window: str | None
) -> Floats:
    """Counts [windows, layers, experts] of one model's rows."""
    window_of: dict[str, int] = {}
    found = []
    for row in rows:
        at = window_of.setdefault(row[window] if window else "", len(window_of))
        where = f"{path}:{row['line']}"
        found.append(
            (
                at,
                _number(where, layer, row[layer], MAX_LAYERS, int),
                _number(where, "expert", row["expert"], MAX_EXPERTS, int),
                _number(where, count, row[count], 2**62, float),
            )
        )
    shape = [max(entry[at] for entry in found) + 1 for at in (0, 1, 2)]
    _check_size(path, shape[0] * shape[1] * shape[2])
    windows = np.zeros(shape)
    for at, layer_at, expert, value in found:
        windows[at, layer_at, expert] += value
    return windows


def _number(where: str, name: str, text: str, limit: int, kind: Callable[[str], Any]) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not 0 <= value < limit:
        raise InputError(f"{where}: {name}: {text[:40]!r} is not a number from 0 to {limit - 1}")
    return value


def _check_size(path: Path, counts: int) -> None:
    if counts > MAX_COUNTS:
        raise InputError(f"{path}: {counts} counts, more than {MAX_COUNTS}; sum some windows")


def _text(path: Path, limit: int) -> str:
    if path.stat().st_size > limit:
        raise InputError(f"{path}: larger than {limit >> 20} MiB; save it as .npy")
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not text: {one_line(error)}") from error
