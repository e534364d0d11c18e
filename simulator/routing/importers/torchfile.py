"""PyTorch's .pt files, read without executing anything.

A .pt file is a zip with a pickle (`data.pkl`) that says how tensors lie in the other members. Where
torch is installed (2.6 or later: `weights_only` of earlier ones can be got round, CVE-2025-32434)
it reads the file with `weights_only=True`. Elsewhere the pickle is *interpreted* here: each opcode
that plain data needs is acted on, a name is looked up in a fixed list and never imported, and
anything else is refused. No object is ever built by code that the file names.
"""

from __future__ import annotations

import io
import math
import pickletools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.errors import InputError
from simulator.routing.importers.boxes import member_bytes, open_zip
from simulator.routing.importers.report import one_line

Array = npt.NDArray[Any]

SAFE_TORCH = (2, 6)
MAX_PICKLE_BYTES = 256 << 20
MAX_OPCODES = 50_000_000
MAX_DEPTH = 64
# Storage classes that hold numbers, by their element type.
STORAGES = {
    "ByteStorage": "u1",
    "CharStorage": "i1",
    "ShortStorage": "<i2",
    "IntStorage": "<i4",
    "LongStorage": "<i8",
    "HalfStorage": "<f2",
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "BoolStorage": "?",
}
REBUILD = ("torch._utils", "_rebuild_tensor_v2")
EMPTY_MAPS = {("collections", "OrderedDict")}


@dataclass(frozen=True)
class _Name:
    """A name of the allow-list, as a token: it is compared, never called."""

    module: str
    name: str


@dataclass(frozen=True)
class _Storage:
    """Numbers of a member of the zip, by its key."""

    dtype: np.dtype[Any]
    key: str


class _Mark:
    """Where a group of values on the stack begins."""


class _Refused(Exception):
    """What the pickle holds is not plain data."""


def read_torch(path: Path) -> Any:
    """What a .pt file holds, of dict, list, tuple, text, numbers and numpy arrays (for tensors).

    Raises InputError for a file that is no zip, cut short, a bomb, or holds anything else.
    """
    with open_zip(path) as box:
        names = [name for name in box.namelist() if name.split("/", 1)[-1] == "data.pkl"]
        if len(names) != 1:
            raise InputError(f"{path}: a zip file, but no .pt file of PyTorch (no data.pkl)")
        if box.getinfo(names[0]).file_size > MAX_PICKLE_BYTES:
            raise InputError(f"{path}: its data.pkl is larger than {MAX_PICKLE_BYTES >> 20} MiB")
        torch = _safe_torch()
        if torch is None:
            return _interpreted(path, box, names[0])
    return _by_torch(path, torch)


def _safe_torch() -> Any:
    try:
        import torch
    except Exception:  # an installation that is broken reads as none: its faults are of any kind
        return None
    parts = str(torch.__version__).split(".")[:2]
    version = tuple(int(part) for part in parts if part.isdigit())
    return torch if version >= SAFE_TORCH else None


def _by_torch(path: Path, torch: Any) -> Any:
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises pickle, runtime, key, type, ... errors alike
        what = one_line(error).partition(". ")[0]
        raise InputError(
            f"{path}: refused, nothing of it was executed: torch (weights_only=True): {what}"
        ) from error

    # What is referred to twice is converted once: lists of lists of ... would not end otherwise.
    done: dict[int, Any] = {}

    def plain(value: Any, depth: int = 0) -> Any:
        if depth > MAX_DEPTH:
            raise InputError(f"{path}: nested deeper than {MAX_DEPTH} levels")
        if id(value) not in done:
            done[id(value)] = value
            if isinstance(value, torch.Tensor):
                value = value.detach()
                value = value.float() if value.dtype == torch.bfloat16 else value
                made: Any = value.cpu().numpy()
            elif isinstance(value, dict):
                made = {key: plain(item, depth + 1) for key, item in value.items()}
            elif isinstance(value, (list, tuple)):
                made = [plain(item, depth + 1) for item in value]
            else:
                made = value
            done[id(value)] = made
        return done[id(value)]

    try:
        return plain(data)
    except (TypeError, RuntimeError) as error:
        raise InputError(f"{path}: holds a tensor of no numbers: {one_line(error)}") from error


def _interpreted(path: Path, box: zipfile.ZipFile, name: str) -> Any:
    folder = name.removesuffix("data.pkl")
    raw = member_bytes(path, box, name)
    order = f"{folder}byteorder"
    if order in box.namelist() and member_bytes(path, box, order).strip() != b"little":
        raise InputError(f"{path}: written on a big-endian machine; save it on another")
    held: dict[str, bytes] = {}

    def storage(wanted: _Storage) -> Array:
        member = f"{folder}data/{wanted.key}"
        if member not in held:
            held[member] = member_bytes(path, box, member)
        content = held[member]
        return np.frombuffer(
            content[: len(content) - len(content) % wanted.dtype.itemsize], dtype=wanted.dtype
        )

    try:
        return _Machine(storage).run(raw)
    except _Refused as error:
        raise InputError(f"{path}: refused, nothing of it was executed: {error}") from error
    except (
        ValueError,
        IndexError,
        KeyError,
        TypeError,
        OverflowError,
        RecursionError,
        UnicodeDecodeError,
        AttributeError,
        MemoryError,
    ) as error:
        raise InputError(f"{path}: damaged data.pkl: {one_line(error)}") from error


class _Machine:
    """The stack and the memo of one pickle."""

    def __init__(self, storage: Callable[[_Storage], Array]) -> None:
        self._storage = storage
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, raw: bytes) -> Any:
        """Go through the opcodes; gives what is on the stack at STOP."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(io.BytesIO(raw))):
            if count > MAX_OPCODES:
                raise _Refused(f"more than {MAX_OPCODES} opcodes")
            if opcode.name == "STOP":
                if len(self._stack) != 1:
                    raise ValueError("values are left over at its end")
                return self._stack[0]
            self._act(opcode.name, argument)
        raise ValueError("it does not end")

    def _act(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in VALUES:
            stack.append(argument)
        elif name in CONSTANTS:
            made = CONSTANTS[name]
            stack.append(made() if callable(made) else made)
        elif name in ("PROTO", "FRAME"):
            return
        elif name == "MARK":
            stack.append(_Mark())
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self._memo[int(argument)] = stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self._memo[int(argument)])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            if name == "GLOBAL":
                module, _, attribute = argument.partition(" ")
            else:
                attribute, module = stack.pop(), stack.pop()
            stack.append(_allowed(module, attribute))
        elif name == "BINPERSID":
            stack.append(_storage_of(stack.pop()))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(self._reduced(function, arguments))
        elif name == "APPEND":
            item = stack.pop()
            _list(stack[-1]).append(item)
        elif name == "APPENDS":
            items = self._marked()
            _list(stack[-1]).extend(items)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _dict(stack[-1])[key] = value
        elif name == "SETITEMS":
            items = self._marked()
            _dict(stack[-1]).update(zip(items[::2], items[1::2], strict=True))
        elif name == "DICT":
            items = self._marked()
            stack.append(dict(zip(items[::2], items[1::2], strict=True)))
        elif name == "LIST":
            stack.append(self._marked())
        elif name == "TUPLE":
            stack.append(tuple(self._marked()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            size = int(name[-1])
            if len(stack) < size:
                raise ValueError("a tuple of values that are not there")
            stack[-size:] = [tuple(stack[-size:])]
        else:
            raise _Refused(f"opcode {name} is not one of plain data")

    def _marked(self) -> list[Any]:
        """The values since the last mark, taken off the stack with it."""
        for at in range(len(self._stack) - 1, -1, -1):
            if isinstance(self._stack[at], _Mark):
                items = self._stack[at + 1 :]
                del self._stack[at:]
                return items
        raise ValueError("no mark on the stack")

    def _reduced(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise _Refused("a call of something that is no name of the list")
        if (function.module, function.name) in EMPTY_MAPS:
            if arguments not in ((), ([],)):
                raise _Refused("an OrderedDict made from other values")
            return {}
        if (function.module, function.name) != REBUILD:
            raise _Refused(f"a call of {function.module}.{function.name}")
        wanted, offset, shape, strides = arguments[:4]
        if not isinstance(wanted, _Storage):
            raise _Refused("a tensor without a storage")
        return _tensor(self._storage(wanted), offset, shape, strides)


VALUES = frozenset(
    {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
    | {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
)
CONSTANTS: dict[str, Any] = {
    "NONE": None,
    "NEWTRUE": True,
    "NEWFALSE": False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": (),
}


def _allowed(module: Any, attribute: Any) -> _Name:
    known = (
        (module, attribute) == REBUILD
        or (module, attribute) in EMPTY_MAPS
        or (module == "torch" and attribute in STORAGES)
    )
    if not known:
        raise _Refused(f"it names {str(module)[:60]}.{str(attribute)[:60]}")
    return _Name(module, attribute)


def _storage_of(value: Any) -> _Storage:
    """A persistent id of torch: ("storage", class, key, device, number of elements)."""
    if not (isinstance(value, tuple) and len(value) == 5 and value[0] == "storage"):
        raise _Refused("a persistent id that is no storage")
    name, key = value[1], value[2]
    if not isinstance(name, _Name) or name.name not in STORAGES or not isinstance(key, str):
        raise _Refused("a storage of no numbers")
    return _Storage(np.dtype(STORAGES[name.name]), key)


def _tensor(flat: Array, offset: Any, shape: Any, strides: Any) -> Array:
    """A view of a storage, if every element lies within it."""
    numbers = (offset, *shape, *strides)
    if (
        len(shape) != len(strides)
        or len(shape) > 8
        or not all(type(number) is int and 0 <= number < 2**48 for number in numbers)
    ):
        raise ValueError("a tensor of impossible shape")
    if math.prod(shape) == 0:
        return np.empty(shape if max(shape) < 2**31 else (0,), dtype=flat.dtype)
    last = offset + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    if last >= len(flat) or math.prod(shape) > len(flat):
        raise ValueError(f"a tensor of shape {list(shape)} beyond its storage of {len(flat)}")
    size = flat.dtype.itemsize
    return np.lib.stride_tricks.as_strided(
        flat[offset:], shape, [step * size for step in strides], writeable=False
    )


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("appends to something that is no list")
    return value


def _dict(value: Any) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise ValueError("sets an item of something that is no dict")
    return value
