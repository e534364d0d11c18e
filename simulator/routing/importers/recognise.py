"""Which kind of recording a file is, by its content."""

from __future__ import annotations

import re
from pathlib import Path

from simulator.errors import InputError
from simulator.routing.importers.jsonl_shape import BYTE_ORDER_MARK, sniff

HEAD_BYTES = 4096
CSV_ROUTE = re.compile(rb"^\s*\d+\s*,\s*\"?\s*-?\d+(\s+-?\d+)*\s*\"?\s*$")
CSV_NAMES = re.compile(rb"^[a-z_]+(,[a-z_]+)+$")
PACKED = {
    b"\x1f\x8b": "gunzip",
    b"\x28\xb5\x2f\xfd": "unzstd",
    b"\xfd7zXZ\0": "unxz",
    b"BZh": "bunzip2",
}
SAFETENSORS_HEAD = re.compile(rb"^.{6}\0\0\{\s*\"", re.DOTALL)


def recognise(path: str | Path) -> str | None:
    """Which kind of recording a file (or folder) is: "parquet", a key of IMPORTERS, or None.

    By the content and not the name. Load files of all makes are "loads". Raises InputError for
    a file that is not there, and for a zip or .pt file that cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        return "loads" if any(path.glob("*.safetensors")) else None
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES).removeprefix(BYTE_ORDER_MARK)
    for magic, tool in PACKED.items():
        if head.startswith(magic):
            raise InputError(f"{path}: is compressed; unpack it first, with {tool}")
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(b"PK"):
        return _zip_kind(path)
    if head.startswith(b"\x93NUMPY"):
        return _array_kind(path)
    if SAFETENSORS_HEAD.match(head):
        return "loads"
    if head.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        raise InputError(
            f"{path}: a bare pickle (or a .pt file from before torch 1.6), which could run any "
            "code and is not read; save it again with torch.save"
        )
    return _text_kind(path, head)


def _text_kind(path: Path, head: bytes) -> str | None:
    text = head.lstrip()
    if text[:1] in (b"{", b"["):
        if sniff(path)[0] is not None:
            return "jsonl"
        if text.startswith(b"["):
            return "loads" if b'"logical_count"' in head or _numbers(text) else None
        return "loads" if _holds(path, b'"logical_count"') else None
    lines = [line for line in head.splitlines()[:-1] or head.splitlines() if line.strip()]
    names = lines[0].strip().lower() if lines else b""
    if CSV_NAMES.match(names):
        columns = names.split(b",")
        if b"expert" in columns and (b"token_count" in columns or b"count" in columns):
            return "loads"
    if any(CSV_ROUTE.match(line) for line in lines[:2]):
        return "csv"
    return None


def _holds(path: Path, wanted: bytes) -> bool:
    """Whether a file of a size that is read at all holds some text; keys come in any order."""
    from simulator.routing.importers.loadfiles import MAX_JSON_BYTES

    with path.open("rb") as file:
        return wanted in file.read(MAX_JSON_BYTES)


def _numbers(text: bytes) -> bool:
    return re.match(rb"^\[\s*\[[\s\[]*[-\d]", text) is not None


def _zip_kind(path: Path) -> str | None:
    from simulator.routing.importers.boxes import npz_names, open_zip
    from simulator.routing.importers.loadfiles import logical_count_of
    from simulator.routing.importers.torchfile import read_torch

    with open_zip(path) as box:
        names = box.namelist()
    if any(name.split("/", 1)[-1] == "data.pkl" for name in names):
        data = read_torch(path)
        if isinstance(data, dict) and "records" in data:
            return "sglang"
        return "loads" if logical_count_of(data) is not None else None
    return _array_kind(path) if npz_names(path) else None


def _array_kind(path: Path) -> str | None:
    """Of an .npy or .npz file, by its first array: ids, counts or logits."""
    from simulator.routing.importers.arrays import iter_arrays, looks_routed

    # A request without tokens tells nothing.
    first = next((array for _, array in iter_arrays(path) if array.size), None)
    if first is None or first.ndim not in (2, 3):
        return None
    if looks_routed(first):
        return "vllm"
    if first.dtype.kind in "iu":
        return "loads"
    some = first[:256]
    whole = first.dtype.kind == "f" and (some >= 0).all() and (some == some.round()).all()
    if whole:
        return "loads"
    return "huggingface" if first.dtype.kind == "f" else None
