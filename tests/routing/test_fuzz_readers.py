"""Damaged and hostile recordings: one clear line or a stated partial result, nothing executed.

Every mutation is seeded: a failure names the file, the mutation and its number, and repeats.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import struct
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routing import torch_files

from simulator.errors import InputError
from simulator.routing.importers import IMPORTERS, OPTIONS, import_any, recognise
from simulator.routing.loads import load_windows, loads_of
from simulator.routing.trace import TraceWriter, iter_blocks, read_info

SEED = 20_26
MUTATIONS = 260
# What all of it may add to the process: no reader holds more than its small file.
MEMORY_MIB = 400


def jsonl(key: str, experts: str, typed: bool) -> bytes:
    rng = np.random.default_rng(1)
    lines = ['{"type": "meta", "model_id": "m"}'] if typed else []
    for token in range(12):
        for layer in range(3):
            record: dict[str, Any] = {"type": "route"} if typed else {}
            record |= {key: token // 6} if key else {}
            chosen = rng.permutation(8)[:2].tolist()
            lines.append(json.dumps(record | {"layer": layer, "token_idx": token, experts: chosen}))
    return ("\n".join(lines) + "\n").encode()


def ids(tokens: int = 12) -> np.ndarray:
    rng = np.random.default_rng(2)
    return rng.permuted(np.tile(np.arange(8), (tokens, 3, 1)), axis=2)[:, :, :2].astype(np.int32)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(compressed: bool, **arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


def pt(tmp: Path, data: Any) -> bytes:
    torch_files.save(tmp / "made.pt", data)
    return (tmp / "made.pt").read_bytes()


def safetensors(arrays: dict[str, np.ndarray]) -> bytes:
    header, body = {}, b""
    for name, array in arrays.items():
        span = [len(body), len(body) + array.nbytes]
        header[name] = {"dtype": "I64", "shape": list(array.shape), "data_offsets": span}
        body += array.tobytes()
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def trace(tmp: Path) -> bytes:
    path = tmp / "made.parquet"
    with TraceWriter(path, model="m", layers=3, experts=8, k=2, origin="test") as writer:
        writer.write(np.zeros(12), np.arange(12), np.full(12, 2), ids())
    return path.read_bytes()


def seeds(tmp: Path) -> dict[str, bytes]:
    """A small sound file of every format that is read."""
    counts = np.arange(48, dtype=np.int64).reshape(2, 3, 8)
    taken = ids().transpose(1, 0, 2)
    records = [
        torch_files.forward_pass([*range(8), *range(4)], taken, [8, 4]),
        torch_files.forward_pass([8, 4], taken[:, :2].copy(), None),
    ]
    table = "model,kind,domain,list_index,expert,token_count\n" + "".join(
        f"m,expert_counts,d{w},{la},{e},{counts[w, la, e]}\n"
        for w in range(2)
        for la in range(3)
        for e in range(8)
    )
    rows = "".join(f'{la},"{a} {b}"\n' for token in ids() for la, (a, b) in enumerate(token))
    return {
        "problem.jsonl": jsonl("problem_id", "experts", False),
        "route.jsonl": jsonl("req_id", "topk_ids", True),
        "unnamed.jsonl": jsonl("", "experts", False),
        "rows.csv": rows.encode(),
        "counts.csv": table.encode(),
        "counts.json": json.dumps({"logical_count": counts.tolist()}).encode(),
        "routed.npy": npy(ids()),
        "routed.npz": npz(False, a=ids(), b=ids(5)),
        "packed.npz": npz(True, a=ids(), b=ids(5)),
        "logits.npz": npz(False, l0=np.random.default_rng(0).normal(size=(9, 8)).astype("f4")),
        "loads.npy": npy(counts),
        "tokens.pt": pt(tmp, {"records": records}),
        "stat.pt": pt(tmp, {"logical_count": counts}),
        "rank0.safetensors": safetensors(
            {f"{i}_{la}": counts[i, la] for i in (0, 1) for la in (0, 2)}
        ),
        "trace.parquet": trace(tmp),
    }


def truncated(rng: np.random.Generator, data: bytes) -> bytes:
    return data[: int(rng.integers(0, len(data)))]


def flipped(rng: np.random.Generator, data: bytes) -> bytes:
    out = bytearray(data)
    for at in rng.integers(0, len(data), int(rng.integers(1, 9))).tolist():
        out[at] ^= 1 << int(rng.integers(0, 8))
    return bytes(out)


def overwritten(rng: np.random.Generator, data: bytes) -> bytes:
    at, length = int(rng.integers(0, len(data))), int(rng.integers(1, 17))
    filler = bytes([int(rng.choice([0, 0xFF, 0x30, 0x5B, 0x2D]))]) * length
    return data[:at] + filler + data[at + length :]


def spliced(rng: np.random.Generator, data: bytes) -> bytes:
    start, end = sorted(rng.integers(0, len(data), 2).tolist())
    at = int(rng.integers(0, len(data)))
    return data[:at] + data[start:end] + data[at:]


def renumbered(rng: np.random.Generator, data: bytes) -> bytes:
    """Another number in place of a digit: negative, huge, a fraction, NaN, text."""
    digits = [at for at, byte in enumerate(data) if 0x30 <= byte <= 0x39]
    if not digits:
        return flipped(rng, data)
    at = int(rng.choice(digits))
    wrong = [b"-1", b"-7", b"99999", b"9" * 30, b"1.5", b"NaN", b"1e999", b'"x"', b"null", b"true"]
    return data[:at] + wrong[int(rng.integers(0, len(wrong)))] + data[at + 1 :]


PLAIN = (truncated, flipped, overwritten, spliced, renumbered)


def inside(rng: np.random.Generator, data: bytes) -> bytes:
    """One member of a zip file mutated, its checksum right: past zip's own check."""
    mutate = PLAIN[int(rng.integers(0, len(PLAIN)))]
    if not data.startswith(b"PK"):
        return mutate(rng, mutate(rng, data) or data)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as box, zipfile.ZipFile(out, "w") as changed:
        names = box.namelist()
        # A .pt file's pickle is what there is to mutate, half of the time.
        pickled = [name for name in names if name.endswith("data.pkl")]
        chosen = str(rng.choice(pickled if pickled and rng.random() < 0.5 else names))
        for name in names:
            content = box.read(name)
            changed.writestr(name, mutate(rng, content) if name == chosen else content)
    return out.getvalue()


MUTATIONS_OF = (*PLAIN, inside, inside)


def clear(error: InputError) -> bool:
    """Whether an error is one line of a length that can be read."""
    return "\n" not in str(error) and len(str(error)) < 700


def survive(tmp: Path, name: str, data: bytes, outcomes: Counter[str], where: str) -> None:
    """Read a file in every way; anything but an InputError of one line or a result is a failure."""
    path, target = tmp / name, tmp / "out.parquet"
    path.write_bytes(data)

    def convert(kind: str) -> None:
        target.unlink(missing_ok=True)
        few = {"tokens": 20} if "tokens" in OPTIONS.get(kind, ()) else {}
        if kind == "auto" and recognise(path) == "loads":
            few = {"tokens": 20}
        report = import_any(kind, path, target, **few)
        info = read_info(target)
        assert report.tokens == info.tokens > 0, where
        assert sum(len(block.request) for block in iter_blocks(target)) == info.tokens, where
        assert all(line and "\n" not in line for line in report.lines()), where

    def count() -> None:
        loads = loads_of(path)
        assert np.isfinite(loads.counts).all(), where
        assert (loads.counts.sum(axis=1) > 0).all(), where
        windows = load_windows(path)
        assert windows is None or windows.shape[1:] == loads.counts.shape, where

    def attempt(act: Callable[[], None]) -> None:
        try:
            act()
        except InputError as error:
            outcomes["refused"] += clear(error)
        except Exception as error:
            raise AssertionError(f"{where}: {type(error).__name__}: {error}") from error
        else:
            outcomes["read"] += 1

    own = {"csv": "csv", "jsonl": "jsonl", "npy": "vllm", "npz": "vllm", "pt": "sglang"}
    kind = own.get(name.rpartition(".")[2], "loads")
    for act in (lambda: convert("auto"), lambda: convert(kind), count):
        attempt(act)
    outcomes["inputs"] += 1
    assert outcomes["read"] + outcomes["refused"] == 3 * outcomes["inputs"], where
    assert list(tmp.glob("*.part")) == [], where


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


NAMES = (
    *("problem.jsonl", "route.jsonl", "unnamed.jsonl", "rows.csv", "counts.csv", "counts.json"),
    *("routed.npy", "routed.npz", "packed.npz", "logits.npz", "loads.npy", "tokens.pt", "stat.pt"),
    *("rank0.safetensors", "trace.parquet"),
)


@pytest.mark.parametrize("name", NAMES)
def test_mutated_files(tmp_path, sound_files, name, record_property, capsys):
    data = sound_files[name]
    outcomes: Counter[str] = Counter()
    survive(tmp_path, name, data, outcomes, f"{name} as it is")
    assert outcomes["read"] >= 1, "the sound file is read"
    before = peak_mib()
    for number in range(MUTATIONS):
        rng = np.random.default_rng([SEED, NAMES.index(name), number])
        mutate = MUTATIONS_OF[number % len(MUTATIONS_OF)]
        survive(tmp_path, name, mutate(rng, data), outcomes, f"{name}, {mutate.__name__} {number}")
    assert peak_mib() - before < MEMORY_MIB
    assert outcomes["refused"] > 0
    record_property("inputs_tried", outcomes["inputs"])
    with capsys.disabled():
        print(f"\n  fuzz {name}: {dict(outcomes)}", end="")


@settings(max_examples=150)
@given(data=st.binary(max_size=300), kind=st.sampled_from(["auto", *IMPORTERS]))
def test_any_bytes(tmp_path_factory, data, kind):
    tmp = tmp_path_factory.mktemp("any")
    (tmp / "file").write_bytes(data)
    with pytest.raises(InputError) as caught:
        import_any(kind, tmp / "file", tmp / "out.parquet")
    assert "\n" not in str(caught.value)
    assert [item.name for item in tmp.iterdir()] == ["file"]


def hostile(tmp: Path) -> dict[str, bytes]:
    """Files made to execute, to exhaust memory, or to overflow the stack."""
    SIGN.unlink(missing_ok=True)

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {SIGN}",)

    evil = io.BytesIO()
    with zipfile.ZipFile(evil, "w") as box:
        box.writestr("archive/data.pkl", pickle.dumps({"records": [Evil()]}, protocol=2))
    objects = io.BytesIO()
    np.save(objects, np.array([Evil()], dtype=object), allow_pickle=True)
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as box:
        head = npy(np.zeros((1, 2, 3), dtype=np.int32))[:128]
        head = head.replace(b"(1, 2, 3), }       ", b"(16777216, 1, 1), }")
        with box.open("a.npy", "w") as member:
            member.write(head)
            for _ in range(64):
                member.write(bytes(1 << 20))
            member.write(b"more")
    torch_bomb = io.BytesIO()
    with (
        zipfile.ZipFile(torch_bomb, "w", zipfile.ZIP_DEFLATED) as box,
        box.open("archive/data.pkl", "w") as member,
    ):
        for _ in range(300):
            member.write(bytes(1 << 20))
    deep = b"[" * 200_000
    laughs = b"\x80\x02](" + b"".join(b"]q\x01(h\x00h\x00e" for _ in range(9)) + b"e."
    nested = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    wide = b"\x80\x02X\xff\xff\xff\x7fabc."
    memo = b"\x80\x02}r\xff\xff\xff\x7fq\x00."
    files = {
        "evil.pt": evil.getvalue(),
        "objects.npy": objects.getvalue(),
        "bomb.npz": bomb.getvalue(),
        "bomb.pt": torch_bomb.getvalue(),
        "deep.jsonl": deep,
        "deep2.jsonl": b'{"layer": 0, "token_idx": 0, "experts": [1]}\n'
        + b'{"layer":'
        + deep
        + b"\n",
        "deep3.jsonl": b'{"layer": 0, "token_idx": 0, "experts": [1]}\n'
        + b'{"layer": 0, "token_idx": 1, "experts": [1], "x": '
        + b'{"a": ' * 100_000
        + b"\n" * 2,
        "deep.json": b'{"logical_count": ' + deep + b"]" * 200_000 + b"}",
        "long.jsonl": b'{"layer": 0, "token_idx": 0, "experts": [' + b"1," * (1 << 20) + b"1]}\n",
        "huge.npy": npy(ids()).replace(b"(12, 3, 2)", b"(10**9,99)"),
        "huge2.npy": npy(ids()).replace(b"(12, 3, 2), }", b"(999999999999, 3, 2), }"[:13]),
        "header.npy": b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + b"{" * 100,
        "length.safetensors": struct.pack("<Q", 2**40) + b'{"',
        "length2.safetensors": struct.pack("<Q", 200)
        + b'{"0_0": {"dtype": "I64", "shape": [1000000'
        b'000000], "data_offsets": [0, 8000000000000]}}'.ljust(200)
        + bytes(64),
    }
    for name, pickled in (("laughs", laughs), ("nested", nested), ("wide", wide), ("memo", memo)):
        box_bytes = tmp / f"{name}.pt"
        torch_files.write_zip(box_bytes, pickled)
        files[f"{name}.pt"] = box_bytes.read_bytes()
    return files


SIGN = Path(tempfile.gettempdir()) / f"executed-by-a-reader-{os.getpid()}"

HOSTILE = (
    *("evil.pt", "objects.npy", "bomb.npz", "bomb.pt", "deep.jsonl", "deep2.jsonl", "deep3.jsonl"),
    *("deep.json", "long.jsonl", "huge.npy", "huge2.npy", "header.npy", "length.safetensors"),
    *("length2.safetensors", "laughs.pt", "nested.pt", "wide.pt", "memo.pt"),
)


@pytest.fixture(scope="module")
def hostile_files(tmp_path_factory) -> dict[str, bytes]:
    return hostile(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def sound_files(tmp_path_factory) -> dict[str, bytes]:
    return seeds(tmp_path_factory.mktemp("sound"))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(tmp_path, hostile_files, name):
    data = hostile_files[name]
    before = peak_mib()
    outcomes: Counter[str] = Counter()
    for kind in ("auto", *IMPORTERS):
        path = tmp_path / name
        path.write_bytes(data)
        try:
            import_any(kind, path, tmp_path / "out.parquet")
        except InputError as error:
            outcomes["refused"] += clear(error)
    assert outcomes["refused"] == len(IMPORTERS) + 1
    assert not SIGN.exists()
    assert peak_mib() - before < MEMORY_MIB


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -1.0])
@pytest.mark.parametrize("form", ["npy", "npz", "json", "pt", "all zero"])
def test_loads_that_are_no_counts(tmp_path, bad, form):
    counts = np.ones((2, 3, 8))
    counts[1, 2, 5] = bad
    path = tmp_path / f"loads.{form}"
    if form == "all zero":
        np.save(tmp_path / "zero.npy", np.zeros((2, 3, 100), dtype=np.int64))
        with pytest.raises(InputError, match="all loads are zero"):
            loads_of(tmp_path / "zero.npy")
        return
    if form == "json":
        path.write_text(json.dumps({"logical_count": counts.tolist()}))
    elif form == "pt":
        torch_files.save(path, {"logical_count": counts})
    else:
        path.write_bytes(npy(counts) if form == "npy" else npz(True, logical_count=counts))
    with pytest.raises(InputError) as caught:
        import_any("loads", path, tmp_path / "out.parquet")
    # An array of floats that are no counts reads as logits, which "loads" then says.
    said = str(caught.value)
    assert "window 1, layer 2, expert 5: a load of" in said or "no file of expert loads" in said
