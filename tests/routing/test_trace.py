"""The trace format: what is written is read, and what is broken is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from simulator.errors import InputError
from simulator.routing.trace import METADATA_KEY, TraceWriter, iter_blocks, read_info

LAYERS, EXPERTS, K = 3, 8, 2


def some_ids(tokens: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.argsort(rng.random((tokens, LAYERS, EXPERTS)))[:, :, :K].astype(np.int16)


def write(path: Path, tokens: int = 50, **extra: object) -> np.ndarray:
    ids = some_ids(tokens)
    with TraceWriter(
        path, model="m", layers=LAYERS, experts=EXPERTS, k=K, origin="test", extra=extra
    ) as writer:
        for first in range(0, tokens, 7):
            rows = np.arange(first, min(first + 7, tokens))
            writer.write(rows // 10, rows % 10, rows % 3, ids[rows])
    return ids


def raw(path: Path, metadata: object = None, **columns: object) -> None:
    """Write a trace without the writer's checks; what is given replaces what would be right."""
    tokens = 4
    ids = columns.pop("ids", some_ids(tokens))
    size = columns.pop("size", LAYERS * K)
    table = {
        "request": pa.array([0, 0, 1, 1], pa.int32()),
        "position": pa.array([0, 1, 0, 1], pa.int32()),
        "phase": pa.array([0, 1, 0, 1], pa.int8()),
        "experts": pa.FixedSizeListArray.from_arrays(pa.array(np.ravel(ids)), size),
        **columns,
    }
    data = {"version": 1, "model": "m", "layers": LAYERS, "experts": EXPERTS, "k": K}
    data |= {"origin": "test", "requests": 2, "tokens": tokens}
    text = metadata if isinstance(metadata, str) else json.dumps(data | (metadata or {}))
    table = pa.table({name: column for name, column in table.items() if column is not None})
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: text}), path)


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        list(iter_blocks(path))
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(str(path))
    return text.removeprefix(str(path))


@pytest.mark.parametrize("block_rows", [1, 7, 10_000])
def test_what_is_written_is_read(tmp_path, block_rows):
    path = tmp_path / "t.parquet"
    ids = write(path, statistics={"skew": 2})
    info = read_info(path)
    assert (info.model, info.layers, info.experts, info.k, info.origin) == ("m", 3, 8, 2, "test")
    assert (info.requests, info.tokens) == (5, 50)
    assert info.extra == {"statistics": {"skew": 2}}
    blocks = list(iter_blocks(path, block_rows))
    assert [block.first_row for block in blocks] == list(range(0, 50, block_rows))
    assert np.array_equal(np.concatenate([b.experts for b in blocks]), ids)
    assert np.concatenate([b.request for b in blocks]).tolist() == [t // 10 for t in range(50)]
    assert np.concatenate([b.position for b in blocks]).tolist() == [t % 10 for t in range(50)]
    assert np.concatenate([b.phase for b in blocks]).tolist() == [t % 3 for t in range(50)]
    assert {b.experts.dtype for b in blocks} == {np.dtype(np.int16)}


def test_the_file_is_what_the_readme_says(tmp_path):
    path = tmp_path / "t.parquet"
    ids = write(path)
    table = pq.read_table(path)
    assert [str(f.type) for f in table.schema][:3] == ["int32", "int32", "int8"]
    assert table.column_names == ["request", "position", "phase", "experts"]
    assert table.column("experts")[3].as_py() == ids[3].ravel().tolist()
    metadata = json.loads(pq.ParquetFile(path).metadata.metadata[b"moe_routing_trace"])
    assert metadata == {
        "version": 1, "model": "m", "layers": 3, "experts": 8, "k": 2, "origin": "test",
        "requests": 5, "tokens": 50,
    }  # fmt: skip


def test_the_file_appears_only_when_all_went_well(tmp_path):
    path = tmp_path / "t.parquet"

    def fail_on_the_way() -> None:
        with TraceWriter(
            path, model="m", layers=LAYERS, experts=EXPERTS, k=K, origin="test"
        ) as writer:
            writer.write([0], [0], [0], some_ids(1))
            assert not path.exists()
            raise KeyError

    with pytest.raises(KeyError):
        fail_on_the_way()
    assert list(tmp_path.iterdir()) == []
    write(path)
    assert [p.name for p in tmp_path.iterdir()] == ["t.parquet"]
    before = path.read_bytes()
    with pytest.raises(InputError, match="exists already"):
        write(path)
    assert path.read_bytes() == before


def test_the_writer_keeps_the_rules(tmp_path):
    for ids, what in (([[[8, 0]] * 3], "expert 8"), ([[[1, 1]] * 3], "expert 1 twice")):
        path = tmp_path / "t.parquet"
        with (
            pytest.raises(InputError, match=what),
            TraceWriter(
                path, model="m", layers=LAYERS, experts=EXPERTS, k=K, origin="test"
            ) as writer,
        ):
            writer.write([0], [0], [0], ids)
        assert list(tmp_path.iterdir()) == []


def test_no_token_at_all(tmp_path):
    path = tmp_path / "t.parquet"
    with TraceWriter(path, model="m", layers=LAYERS, experts=EXPERTS, k=K, origin="test"):
        pass
    assert refused(path) == ": the trace has no tokens; record one with at least one"


def test_missing_empty_foreign(tmp_path):
    path = tmp_path / "t.parquet"
    assert refused(path) == ": no such file"
    path.write_bytes(b"")
    assert refused(path) == ": the file is empty; a routing trace is a Parquet file"
    path.write_bytes(b"hello, world")
    assert "not a Parquet file" in refused(path)
    pq.write_table(pa.table({"a": [1]}), path)
    assert "no metadata key 'moe_routing_trace'" in refused(path)


def test_cut_in_the_middle(tmp_path):
    path = tmp_path / "t.parquet"
    write(path)
    whole = path.read_bytes()
    for length in (4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "cut short" in refused(path)
    # A hole in the footer, with both ends in place.
    path.write_bytes(whole[:-60] + whole[-8:])
    assert "damaged" in refused(path) or "metadata" in refused(path)


def test_a_page_overwritten(tmp_path):
    path = tmp_path / "t.parquet"
    write(path, 5000)
    whole = bytearray(path.read_bytes())
    column = pq.ParquetFile(path).metadata.row_group(0).column(3)
    start = column.data_page_offset
    whole[start : start + 400] = b"\xff" * 400
    path.write_bytes(whole)
    assert "cannot be read" in refused(path)
    # One bit: noticed by the checksum of the page.
    write(path.with_name("again.parquet"), 5000)
    whole = bytearray(path.with_name("again.parquet").read_bytes())
    whole[start + 200] ^= 1
    path.write_bytes(whole)
    assert "cannot be read" in refused(path)


def test_damage_anywhere_is_never_a_crash(tmp_path):
    path = tmp_path / "t.parquet"
    write(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refusals = []
    for at in rng.integers(0, len(whole), 400).tolist():
        damaged = bytearray(whole)
        damaged[at] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            list(iter_blocks(path))
        except InputError as error:
            refusals.append(str(error))
    assert len(refusals) > 200
    assert all(text.startswith(str(path)) and "\n" not in text for text in refusals)


@pytest.mark.parametrize(
    ("metadata", "what"),
    [
        ({"version": 2}, "version 2 cannot be read, only version 1"),
        ({"version": None}, "version None"),
        ("not json", "not JSON"),
        ("[1]", "must be a JSON object"),
        ({"k": 0}, "'k' must be a whole number 1..8, not 0"),
        ({"k": 9}, "'k' must be a whole number 1..8, not 9"),
        ({"k": True}, "'k' must be"),
        ({"layers": 10**9}, "'layers' must be a whole number 1..4096, not 1000000000"),
        ({"experts": 40_000}, "'experts' must be a whole number 1..32767, not 40000"),
        ({"layers": 4096, "experts": 100, "k": 99}, "layers x k = 405504 is above 65536"),
        ({"layers": 4}, "column 'experts' is fixed_size_list"),
        ({"tokens": 5}, "metadata says 5 tokens, the file has 4 rows"),
        ({"requests": 0}, "'requests' must be"),
        ({"model": None}, "'model' must be a text"),
    ],
)
def test_metadata_that_lies(tmp_path, metadata, what):
    path = tmp_path / "t.parquet"
    raw(path, metadata)
    assert what in refused(path)
    with pytest.raises(InputError):
        read_info(path)


def test_columns_that_are_wrong(tmp_path):
    path = tmp_path / "t.parquet"
    raw(path)
    assert sum(len(block.request) for block in iter_blocks(path)) == 4
    raw(path, phase=None)
    assert "0 columns 'phase', expected one" in refused(path)
    raw(path, request=pa.array([0, 0, 1, 1], pa.int64()))
    assert "column 'request' is int64, expected int32" in refused(path)
    raw(path, position=pa.array([0, 1, None, 1], pa.int32()))
    assert "a value of 'position' is missing" in refused(path)
    raw(path, request=pa.array([0, 0, -1, 1], pa.int32()))
    assert "row 2: request -1 is negative" in refused(path)
    raw(path, phase=pa.array([0, 0, 1, 3], pa.int8()))
    assert "row 3: phase 3 is not in 0..2" in refused(path)
    raw(path, position=pa.array([0, 1, 1, 1], pa.int32()))
    assert "row 3: position 1 of request 1 comes after position 1" in refused(path)


def test_ids_that_are_wrong(tmp_path):
    path = tmp_path / "t.parquet"
    for value, what in ((8, "expert 8, but the trace has 8 experts"), (-2, "expert -2")):
        ids = some_ids(4)
        ids[2, 1, 0] = value
        raw(path, ids=ids)
        assert "row 2: layer 1 has " + what in refused(path)
    ids = some_ids(4)
    ids[3, 2] = 5
    raw(path, ids=ids)
    assert "row 3: layer 2 has expert 5 twice" in refused(path)
    ids[3, 2] = -1
    raw(path, ids=ids)
    assert (next(iter_blocks(path)).experts[3, 2] == -1).all(), "-1 may come twice"


def test_order_is_checked_across_blocks(tmp_path):
    path = tmp_path / "t.parquet"
    raw(path, position=pa.array([0, 0, 0, 1], pa.int32()))
    with pytest.raises(InputError, match="row 1: position 0 of request 0 comes after"):
        list(iter_blocks(path, block_rows=1))
