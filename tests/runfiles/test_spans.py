from __future__ import annotations

import contextlib
import math
import struct
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.runfiles import spans as module
from simulator.runfiles.spans import (
    ATTENTION,
    COMPUTE,
    COPY,
    DEMAND,
    EXPERTS,
    KINDS,
    SPAN_SCHEMA,
    STREAMS,
    AccessWriter,
    SpanWriter,
    write_links,
    write_loads,
    write_steps,
)
from simulator.runfiles.tables import iter_spans


def test_the_columns_of_the_contract() -> None:
    page = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.split("## Spans")[1].split("\n\n")[2]
    documented: list[tuple[str, str]] = []
    for line in table.splitlines()[2:]:
        names, kind = [cell.strip() for cell in line.strip("|").split("|")][:2]
        documented += [(name.strip("` "), kind) for name in names.split(",")]
    types = {
        "double": "float64",
        "dictionary<values=string, indices=int32, ordered=0>": "dict string",
    }
    written = [(f.name, types.get(str(f.type), str(f.type))) for f in SPAN_SCHEMA]
    assert written == documented


def test_codes_match_the_words() -> None:
    for code, word in enumerate(STREAMS + KINDS):
        number = getattr(module, word.upper())
        assert number == (code if code < len(STREAMS) else code - len(STREAMS))


def test_a_span_comes_back_as_it_was_given(tmp_path: Path) -> None:
    path = tmp_path / "spans.parquet"
    with SpanWriter(path) as writer:
        writer.append(
            3, 1, 2, 60, 15, COMPUTE, EXPERTS, 1.5, 2.25, 1.0, 7, 0.5, 127, 1e9, 3e12, 4096, False
        )
        writer.append(3, 1, 0, 60, 15, COPY, DEMAND, 0.1, 0.3, 0.1, expert=5, bytes_=8, used=True)
        assert len(writer) == 2
    rows = pq.read_table(path).to_pylist()
    assert rows[0] == {
        "step": 3,
        "microbatch": 1,
        "chunk": 2,
        "layer": 60,
        "gpu": 15,
        "stream": "compute",
        "kind": "experts",
        "start_s": 1.5,
        "end_s": 2.25,
        "ready_s": 1.0,
        "peer": 7,
        "fetch_wait_s": 0.5,
        "expert": 127,
        "bytes": 1e9,
        "flops": 3e12,
        "rows": 4096,
        "used": False,
    }
    assert (rows[1]["stream"], rows[1]["kind"], rows[1]["used"]) == ("copy", "demand", True)
    assert (rows[1]["peer"], rows[1]["fetch_wait_s"], rows[1]["rows"]) == (-1, 0.0, 0)


@pytest.mark.parametrize("end_s", [1.0, 0.5, math.nan])
def test_a_span_of_no_length_is_refused(tmp_path: Path, end_s: float) -> None:
    with SpanWriter(tmp_path / "spans.parquet") as writer:
        with pytest.raises(ValueError, match="experts of layer 4 on GPU 2"):
            writer.append(0, 0, 0, 4, 2, COMPUTE, EXPERTS, 1.0, end_s, 1.0)
        assert len(writer) == 0


def test_a_number_too_large_for_its_column_is_refused(tmp_path: Path) -> None:
    with SpanWriter(tmp_path / "spans.parquet") as writer, pytest.raises(struct.error):
        writer.append(0, 0, 0, 40_000, 0, COMPUTE, EXPERTS, 0.0, 1.0, 0.0)


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    writer = SpanWriter(tmp_path / "spans.parquet")
    writer.append(0, 0, 0, 0, 0, COMPUTE, len(KINDS), 0.0, 1.0, 0.0)
    with pytest.raises(ValueError, match="span code outside"):
        writer.close()


def write_many(path: Path, count: int) -> None:
    times = np.random.default_rng(1).random(count).cumsum()
    with SpanWriter(path) as writer:
        for i in range(count):
            writer.append(i // 9, 0, 0, i % 7, i % 3, i % 3, i % 8, times[i], times[i] + 1, 0.0)


def test_blocks_become_row_groups_and_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK_ROWS", 100)
    path = tmp_path / "spans.parquet"
    write_many(path, 250)
    file = pq.ParquetFile(path)
    assert [file.metadata.row_group(i).num_rows for i in range(3)] == [100, 100, 50]
    blocks = list(iter_spans(path, block_rows=64))
    assert max(len(block["gpu"]) for block in blocks) <= 64
    kind = np.concatenate([block["kind"] for block in blocks])
    assert kind.tolist() == [i % 8 for i in range(250)]
    start = np.concatenate([block["start_s"] for block in blocks])
    assert start.tolist() == np.random.default_rng(1).random(250).cumsum().tolist()


def test_the_same_spans_give_the_same_bytes(tmp_path: Path) -> None:
    write_many(tmp_path / "a.parquet", 70_000)
    write_many(tmp_path / "b.parquet", 70_000)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_no_spans_is_a_readable_file(tmp_path: Path) -> None:
    SpanWriter(tmp_path / "spans.parquet").close()
    assert pq.read_table(tmp_path / "spans.parquet").num_rows == 0
    assert list(iter_spans(tmp_path / "spans.parquet")) == []


def test_the_small_tables(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_links(path, ["a -> b"], ["nvlink"], np.array([450e9]), np.array([7.0]))
    assert pq.read_table(path).to_pylist() == [
        {"link": "a -> b", "kind": "nvlink", "bandwidth_bytes_per_s": 450e9, "bytes": 7.0}
    ]
    write_steps(path, [4], [0.5], [1.5], np.array([64]), np.array([True]))
    assert pq.read_table(path).to_pylist() == [
        {"step": 4, "start_s": 0.5, "end_s": 1.5, "tokens": 64, "warmup": True}
    ]
    with AccessWriter(path) as accesses:
        accesses.append(4, np.array([1]), np.array([2]), np.array([5]), np.array([6]), [7])
        accesses.append(5, [0], [1], [2], [3], [4], foreseen=[5], cancelled=[6])
    first = {"step": 4, "gpu": 1, "layer": 2, "hit": 5, "late": 6, "miss": 7}
    assert pq.read_table(path).to_pylist() == [
        first | {"foreseen": 0, "cancelled": 0},
        {"step": 5, "gpu": 0, "layer": 1, "hit": 2, "late": 3, "miss": 4}
        | {"foreseen": 5, "cancelled": 6},
    ]
    write_loads(path, np.array([2]), np.array([9]), np.array([1]), np.array([30]))
    assert pq.read_table(path).to_pylist() == [{"layer": 2, "expert": 9, "gpu": 1, "rows": 30}]


def test_accesses_are_streamed_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_ROWS", 100)
    path = tmp_path / "accesses.parquet"
    with AccessWriter(path) as accesses:
        for step in range(7):
            accesses.append(step, *[np.arange(30)] * 5)
        accesses.append(7, *[[]] * 5)
    file = pq.ParquetFile(path)
    assert [file.metadata.row_group(i).num_rows for i in range(2)] == [120, 90]
    assert file.read().column("step").to_pylist() == [step for step in range(7) for _ in range(30)]


def test_columns_of_unequal_length_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="length"):
        write_loads(tmp_path / "t.parquet", [1, 2], [1], [1], [1])


@given(st.floats(0.0, 1.0), st.integers(1, 255))
def test_no_byte_gone_wrong_changes_what_is_read(
    tmp_path_factory: pytest.TempPathFactory, where: float, flip: int
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "spans.parquet"
    with SpanWriter(path) as writer:
        for step in range(300):
            writer.append(step, 0, 0, 0, 0, COMPUTE, ATTENTION, step + 0.125, step + 0.75, 0.0)
    (right,) = iter_spans(path)
    data = bytearray(path.read_bytes())
    footer = int.from_bytes(data[-8:-4], "little") + 8
    data[4 + int(where * (len(data) - footer - 5))] ^= flip
    path.write_bytes(data)
    with contextlib.suppress(InputError):  # noticed; else it was of no use
        (found,) = iter_spans(path)
        for name, column in right.items():
            assert found[name].tolist() == column.tolist()
