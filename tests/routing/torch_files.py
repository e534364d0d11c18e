""".pt files for the tests, made without torch: the zip and pickle that torch.save writes."""

from __future__ import annotations

import io
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

STORAGE_OF = {
    "uint8": "ByteStorage",
    "int8": "CharStorage",
    "int16": "ShortStorage",
    "int32": "IntStorage",
    "int64": "LongStorage",
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
}


def _rebuild_tensor_v2(*arguments: object) -> None:
    raise AssertionError("only its name is written")


def save(path: Path, data: Any) -> None:
    """Write `data`, whose numpy arrays become tensors, as torch.save would."""
    storages: list[bytes] = []
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in STORAGE_OF.values():
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    _rebuild_tensor_v2.__module__ = "torch._utils"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2  # type: ignore[attr-defined]

    class Storage:
        def __init__(self, array: np.ndarray) -> None:
            self.array = array

    class Pickler(pickle._Pickler):  # type: ignore[name-defined]
        def persistent_id(self, value: object) -> object:
            if not isinstance(value, Storage):
                return None
            storages.append(np.ascontiguousarray(value.array).tobytes())
            kind = getattr(torch, STORAGE_OF[str(value.array.dtype)])
            return ("storage", kind, str(len(storages) - 1), "cpu", value.array.size)

        def reducer_override(self, value: object) -> object:
            if not isinstance(value, np.ndarray):
                return NotImplemented
            strides = tuple(step // value.itemsize for step in np.ascontiguousarray(value).strides)
            arguments = (Storage(value), 0, value.shape, strides, False, OrderedDict())
            return _rebuild_tensor_v2, arguments

    file = io.BytesIO()
    with patch.dict(sys.modules, {"torch": torch, "torch._utils": utils}):
        Pickler(file, protocol=2).dump(data)
    write_zip(path, file.getvalue(), storages)


def write_zip(path: Path, pickled: bytes, storages: list[bytes] | None = None) -> None:
    """A .pt file of a given pickle."""
    with zipfile.ZipFile(path, "w") as box:
        box.writestr("archive/data.pkl", pickled)
        box.writestr("archive/byteorder", "little")
        for key, content in enumerate(storages or []):
            box.writestr(f"archive/data/{key}", content)
        box.writestr("archive/version", "3\n")


def forward_pass(positions: list[int], ids: np.ndarray, lengths: list[int] | None) -> dict:
    """A record of SGLang's recorder; ids int32 [layers, tokens, k]."""
    return {
        "forward_pass_id": 0,
        "rank": 0,
        "gatherer_key": "primary",
        "input_ids": list(range(len(positions))),
        "positions": positions,
        "extend_seq_lens": lengths,
        "forward_mode": 1 if lengths else 2,
        "topk_ids_of_layer": ids,
        "misc_objects": [],
    }
