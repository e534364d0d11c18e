"""Files that hold arrays (.npy, .npz, .safetensors), read within bounds and without unpickling.

Whatever a file claims about itself (shapes, sizes, number of members) is compared with the bytes
that are there before memory is allocated from it.
"""

from __future__ import annotations

import ast
import io
import json
import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.errors import InputError
from simulator.routing.importers.report import one_line

Array = npt.NDArray[Any]

# A member of a zip file that is larger than this and shrank by more than this factor is taken as a
# bomb: expert ids shrink some 4 to 30 times.
BOMB_BYTES = 64 << 20
BOMB_RATIO = 200
MAX_MEMBERS = 200_000
MAX_ARRAY_BYTES = 16 << 30
MAX_HEADER_BYTES = 16 << 20
MAX_NPY_HEADER = 1 << 16
NPY_TYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")
READ_BYTES = 4 << 20
# What zipfile raises for a damaged file; NotImplementedError for methods and flags unknown to it,
# RuntimeError for an encrypted member.
ZIP_FAULTS = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    OSError,
    EOFError,
    ValueError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    IndexError,
    OverflowError,
)
SAFETENSORS_TYPES = {
    "U8": "<u1",
    "I8": "<i1",
    "U16": "<u2",
    "I16": "<i2",
    "U32": "<u4",
    "I32": "<i4",
    "U64": "<u8",
    "I64": "<i8",
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
}


def open_zip(path: Path) -> zipfile.ZipFile:
    """A zip file whose directory is sound and promises no bomb."""
    try:
        box = zipfile.ZipFile(path)
    except ZIP_FAULTS as error:
        raise InputError(f"{path}: damaged or cut short zip file: {one_line(error)}") from error
    members = box.infolist()
    fault = None
    if len(members) > MAX_MEMBERS:
        fault = f"holds {len(members)} members, more than {MAX_MEMBERS}"
    for member in members:
        ratio = member.file_size / max(1, member.compress_size)
        if member.file_size > BOMB_BYTES and ratio > BOMB_RATIO:
            fault = (
                f"{member.filename[:80]!r} would grow {ratio:.0f} times to "
                f"{member.file_size >> 20} MiB: a zip bomb; save it uncompressed"
            )
        elif member.file_size > MAX_ARRAY_BYTES:
            fault = f"{member.filename[:80]!r} claims {member.file_size} bytes"
    total, size = sum(member.compress_size for member in members), path.stat().st_size
    if fault is None and total > size:
        # Members that overlap make a bomb without a large ratio.
        fault = f"claims {total} bytes of members in {size}"
    if fault is not None:
        box.close()
        raise InputError(f"{path}: {fault}")
    return box


def member_bytes(path: Path, box: zipfile.ZipFile, name: str) -> bytes:
    """The content of a member, never more than the directory says."""
    try:
        size = box.getinfo(name).file_size
        with box.open(name) as file:
            parts, read = [], 0
            while part := file.read(min(READ_BYTES, size - read + 1)):
                read += len(part)
                if read > size:
                    raise InputError(f"{path}: {name!r} is longer than the zip directory says")
                parts.append(part)
    except (KeyError, *ZIP_FAULTS) as error:
        raise InputError(f"{path}: {name!r} cannot be read: {one_line(error)}") from error
    return b"".join(parts)


def npy_header(file: Any, where: str, size: int) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, Fortran order and type of an .npy file of `size` bytes; the file stands at its data.

    The format: magic, version, length of the header, the header as a Python literal. Raises
    InputError for a damaged header, Python objects, and a claim that `size` does not bear.
    """
    magic, major = file.read(6), int.from_bytes(file.read(1), "little")
    file.read(1)
    length = int.from_bytes(file.read(2 if major == 1 else 4), "little")
    if magic != b"\x93NUMPY" or major not in (1, 2, 3) or not 0 < length <= MAX_NPY_HEADER:
        raise InputError(f"{where}: damaged .npy header, or cut short")
    try:
        header = ast.literal_eval(file.read(length).decode().strip())
        descr, fortran, shape = (header[key] for key in ("descr", "fortran_order", "shape"))
    except (ValueError, TypeError, SyntaxError, KeyError, RecursionError, MemoryError) as error:
        raise InputError(f"{where}: damaged .npy header: {one_line(error)}") from error
    if not isinstance(descr, str) or NPY_TYPE.fullmatch(descr) is None:
        raise InputError(f"{where}: holds {str(descr)[:60]!r}, not numbers")
    if not isinstance(shape, tuple) or not all(type(n) is int and n < 2**62 for n in shape):
        raise InputError(f"{where}: damaged .npy header: shape {str(shape)[:60]}")
    dtype = np.dtype(descr)
    if any(length < 0 for length in shape):
        raise InputError(f"{where}: shape {list(shape)} has a negative length")
    claimed, held = math.prod(shape) * dtype.itemsize, size - file.tell()
    if claimed != held:
        what = "cut short" if claimed > held else "longer than its header says"
        raise InputError(
            f"{where}: {what}: shape {list(shape)} of {dtype} needs {claimed} bytes, "
            f"{max(0, held)} are there"
        )
    return shape, bool(fortran), dtype


def read_npy(path: Path) -> Array:
    """An .npy file as a memory map (read as it is used), or an empty array."""
    with path.open("rb") as file:
        shape, fortran, dtype = npy_header(file, str(path), os.fstat(file.fileno()).st_size)
        offset = file.tell()
    order: Any = "F" if fortran else "C"
    if math.prod(shape) == 0 or not shape:
        return np.empty(shape if shape else (0,), dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape, order=order)


def npz_names(path: Path) -> list[str]:
    """The arrays of an .npz file, in file order."""
    with open_zip(path) as box:
        names = [name for name in box.namelist() if name.endswith(".npy")]
    if len(set(names)) != len(names):
        raise InputError(f"{path}: holds two arrays of one name")
    return [name.removesuffix(".npy") for name in names]


def iter_npz(path: Path) -> Iterator[tuple[str, Array]]:
    """Yield (name, array) of an .npz file in file order, one at a time in memory."""
    with open_zip(path) as box:
        for name in box.namelist():
            if not name.endswith(".npy"):
                continue
            raw = member_bytes(path, box, name)
            file = io.BytesIO(raw)
            shape, fortran, dtype = npy_header(file, f"{path}: {name}", len(raw))
            flat = np.frombuffer(raw, dtype=dtype, offset=file.tell())
            yield name.removesuffix(".npy"), flat.reshape(shape, order="F" if fortran else "C")


def read_safetensors(path: Path) -> dict[str, Array]:
    """The arrays of a .safetensors file by name, memory-mapped (layout: an 8-byte length, a JSON
    header with dtype, shape and data_offsets per tensor, the data).
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise InputError(
                    f"{path}: cut short or no .safetensors file: its header claims {length} bytes"
                )
            header = json.loads(file.read(length))
    except (ValueError, RecursionError, OSError) as error:
        raise InputError(f"{path}: damaged .safetensors header: {one_line(error)}") from error
    if not isinstance(header, dict):
        raise InputError(f"{path}: damaged .safetensors header: no JSON object")
    start = 8 + length
    # One map for all tensors: a map each would take a file descriptor each.
    data: Array = np.memmap(path, np.uint8, "r")
    arrays: dict[str, Array] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        where = f"{path}: tensor {name[:60]!r}"
        if not isinstance(entry, dict):
            raise InputError(f"{where}: its header entry is not an object")
        dtype, shape, span = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
        if not isinstance(dtype, str) or dtype not in SAFETENSORS_TYPES:
            raise InputError(f"{where}: type {str(dtype)[:40]!r} is not one of counts")
        kind = np.dtype(SAFETENSORS_TYPES[dtype])
        lengths, offsets = _sizes(shape), _sizes(span)
        if lengths is None or offsets is None or len(offsets) != 2:
            raise InputError(f"{where}: damaged shape or offsets")
        begin, end = offsets
        if math.prod(lengths) * kind.itemsize != end - begin or start + end > size:
            raise InputError(f"{where}: cut short, or its shape does not fit its bytes")
        arrays[name] = data[start + begin : start + end].view(kind).reshape(lengths)
    return arrays


def _sizes(value: object) -> list[int] | None:
    """A list of whole numbers from 0, else None."""
    right = isinstance(value, list) and all(
        type(item) is int and 0 <= item < 2**62 for item in value
    )
    return value if isinstance(value, list) and right else None
