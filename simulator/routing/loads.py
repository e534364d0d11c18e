"""Loads: tokens per expert of each layer, from a load file or counted from a recording."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from simulator.errors import InputError

Floats = npt.NDArray[np.float64]
Int32s = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Loads:
    """Tokens per expert.

    `counts` float64 [layers, experts], MoE layers only, each with at least one token; `layers`
    int32 [layers], their numbers in the file; `source` names the file; `k` experts per token where
    the file tells it; `notes` say what was left out or worked out.
    """

    counts: Floats
    layers: Int32s
    source: str
    k: int | None = None
    notes: list[str] = field(default_factory=list)


def is_load_file(path: str | Path) -> bool:
    """Whether a file (or folder) holds expert loads without tokens; InputError if it is missing."""
    from simulator.routing.importers.recognise import recognise

    return recognise(path) == "loads"


def law_of(source: str, path: Path | None) -> str | None:
    """The law to draw from: `source` where there is no file, "loads:PATH" for a load file, and None
    for a recording of tokens.
    """
    if path is None:
        return source
    return f"loads:{path}" if is_load_file(path) else None


def loads_of(
    path: str | Path,
    say: Callable[[str], object] | None = None,
    *,
    model: str | None = None,
) -> Loads:
    """The loads of a load file (windows are summed), or of any recording of routing (counted).

    Layers without any token (dense layers, in the files of some engines) are left out, and this is
    noted. `say` gets the lines that an import says; `model` chooses in a table of several models.
    Raises InputError for a file of no known kind,
    and for counts that are negative, not finite, or zero everywhere.
    """
    from simulator.routing.importers.loadfiles import read_load_file

    path = Path(path)
    if not is_load_file(path):
        return _counted(path, say)
    found = read_load_file(path, model)
    counts = checked_counts(path, found.windows).sum(axis=0)
    notes = list(found.notes)
    if len(found.windows) > 1:
        notes.append(f"{path.name}: {len(found.windows)} windows of loads, summed")
    return _without_empty(path, counts, found.layers, found.k, notes)


def load_windows(path: str | Path) -> Floats | None:
    """The loads of each window of a load file, float64 [windows, layers, experts], as loads_of
    counts its layers; None for a recording of tokens. Raises InputError as loads_of does.
    """
    from simulator.routing.importers.loadfiles import read_load_file

    path = Path(path)
    if not is_load_file(path):
        return None
    windows = checked_counts(path, read_load_file(path).windows)
    return windows[:, windows.sum(axis=(0, 2)) > 0]


def checked_counts(path: Path, windows: Floats) -> Floats:
    """The windows [windows, layers, experts] if they are loads; InputError in one line if not."""
    if windows.size == 0:
        raise InputError(f"{path}: the loads are empty: shape {list(windows.shape)}")
    bad = ~np.isfinite(windows) | (windows < 0)
    if bad.any():
        window, layer, expert = (int(at) for at in np.argwhere(bad)[0])
        value = float(windows[window, layer, expert])
        raise InputError(
            f"{path}: window {window}, layer {layer}, expert {expert}: a load of {value:g}; "
            "loads are counts of tokens, 0 or more"
        )
    if not windows.any():
        raise InputError(f"{path}: all loads are zero; record while tokens are served")
    return windows


def _without_empty(
    path: Path, counts: Floats, layers: Int32s, k: int | None, notes: list[str]
) -> Loads:
    kept = counts.sum(axis=1) > 0
    if not kept.all():
        empty = ", ".join(str(int(layer)) for layer in layers[~kept][:12])
        more = ", ..." if int((~kept).sum()) > 12 else ""
        notes.append(
            f"{path.name}: layers without tokens left out, taken as dense: {empty}{more}; "
            f"{int(kept.sum())} of {len(kept)} kept"
        )
    return Loads(counts[kept], layers[kept].astype(np.int32), str(path), k, notes)


def _counted(path: Path, say: Callable[[str], object] | None) -> Loads:
    """Count the experts of every token of a recording."""
    from simulator.routing.importers import open_trace
    from simulator.routing.trace import iter_blocks, read_info

    trace = open_trace(path, say)
    info = read_info(trace)
    counts = np.zeros((info.layers, info.experts), dtype=np.float64)
    for block in iter_blocks(trace):
        for layer in range(info.layers):
            ids = block.experts[:, layer].reshape(-1)
            counts[layer] += np.bincount(ids[ids >= 0], minlength=info.experts)
    if not counts.any():
        raise InputError(f"{path}: no token has an expert")
    note = f"{path.name}: loads counted from {info.tokens:,} tokens"
    layers = np.arange(info.layers, dtype=np.int32)
    return _without_empty(path, counts, layers, info.k, [note])
