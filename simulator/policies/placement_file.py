"""Placements as JSON files, ours and EPLB's.

Ours: {"policy": name, "gpus": 72, "expert_of": [layers][physical], "gpu_of": [physical]}. EPLB's:
{"phy2log": [layers][physical]}, with equal numbers of slots per GPU and, where it is there, the
number of GPUs as "num_gpus".
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from simulator.errors import InputError
from simulator.policies.placement_types import (
    IntArray,
    Placement,
    Target,
    check_answer,
    even_shares,
)
from simulator.spec.document import read_bounded

MAX_FILE_BYTES = 256 << 20
MAX_GPUS = 1 << 20
SUFFIX = ".json"
"""How the name of a placement file ends; a policy's name does not."""


def read_placement(
    path: str | Path,
    gpus: int | None = None,
    layers: int | None = None,
    experts: int | None = None,
) -> Placement:
    """The placement in a file.

    gpus, layers, experts: how many there must be; None: as the file says (the experts up to the
    highest that it names). One layer in the file stands for all. Raises InputError, naming file and
    key, for a file that cannot be read and a placement that does not fit.
    """
    shown = str(path)
    data = _parse(Path(path), shown)
    key = next((name for name in ("expert_of", "phy2log") if name in data), None)
    if key is None:
        raise InputError(
            f"{shown}: neither expert_of nor phy2log is there; write "
            '{"policy", "gpus", "expert_of": [layers][physical], "gpu_of": [physical]}'
        )
    expert_of = _matrix(data[key], shown, key)
    told = _gpus(data, shown, "gpus" if key == "expert_of" else "num_gpus", gpus)
    physical = expert_of.shape[1]
    if key == "expert_of":
        if "gpu_of" not in data:
            raise InputError(f"{shown}: gpu_of: is not there; write the GPU of each slot")
        gpu_of = _matrix([data["gpu_of"]], shown, "gpu_of")[0]
    elif physical % told:
        raise InputError(f"{shown}: phy2log: {physical} slots do not divide over {told} GPUs")
    else:
        gpu_of = even_shares(physical, told)
    if layers is not None and len(expert_of) == 1:
        expert_of = np.tile(expert_of, (layers, 1))
    if layers is not None and len(expert_of) != layers:
        raise InputError(f"{shown}: {key}: {len(expert_of)} layers; wanted the {layers} MoE layers")
    if experts is None:
        experts = int(expert_of.max()) + 1
    target = Target(told, physical, 1, np.zeros(told, np.int32))
    found = Placement(expert_of, gpu_of)
    check_answer(found, (len(expert_of), experts), target, shown)
    return found


def write_placement(path: str | Path, policy: str, placement: Placement, gpus: int) -> None:
    """Write a file that read_placement reads; raises InputError if it exists or cannot be written.

    The file appears whole: it is written under another name first.
    """
    text = json.dumps(
        {
            "policy": policy,
            "gpus": gpus,
            "gpu_of": placement.gpu_of.tolist(),
            "expert_of": placement.expert_of.tolist(),
        }
    )
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    if os.path.lexists(target):
        raise InputError(f"{path}: exists already; remove it or write another file")
    try:
        partial.write_text(text + "\n", encoding="utf-8")
        os.replace(partial, target)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        with suppress(OSError):
            partial.unlink()


def _parse(path: Path, shown: str) -> dict[str, Any]:
    raw = read_bounded(path, shown, MAX_FILE_BYTES)
    try:
        data = json.loads(raw)
    except json.JSONDecodeError as error:
        raise InputError(f"{shown}:{error.lineno}: not JSON: {error.msg}") from None
    except (UnicodeDecodeError, RecursionError, ValueError):
        raise InputError(f"{shown}: not JSON") from None
    if not isinstance(data, dict):
        raise InputError(f"{shown}: must be one JSON object with expert_of and gpu_of, or phy2log")
    return data


def _matrix(value: Any, shown: str, key: str) -> IntArray:
    """Rows of whole numbers, int32 [rows, columns]."""
    fault = InputError(f"{shown}: {key}: must be lists of whole numbers, all of one length")
    try:
        found = np.array(value)
    except (ValueError, OverflowError, RecursionError):
        raise fault from None
    if found.ndim != 2 or not found.size or found.dtype != np.int64:
        raise fault
    if found.min() < 0 or found.max() > np.iinfo(np.int32).max:
        raise InputError(
            f"{shown}: {key}: names {found.min()} to {found.max()}; write numbers from 0"
        )
    return found.astype(np.int32)


def _gpus(data: dict[str, Any], shown: str, key: str, wanted: int | None) -> int:
    told = data.get(key, wanted)
    if told is None:
        raise InputError(f"{shown}: {key}: is not there; write the number of GPUs")
    if not isinstance(told, int) or isinstance(told, bool) or not 1 <= told <= MAX_GPUS:
        raise InputError(f"{shown}: {key}: {told!r} is not a number of GPUs")
    if wanted is not None and told != wanted:
        raise InputError(f"{shown}: {key}: is for {told} GPUs; wanted {wanted}")
    return told
