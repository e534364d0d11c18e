"""Values that no run writes: one line that names the file, row, column and value, everywhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from results.runs import hostile_result, write_result, write_serving, write_tables

from simulator.cli import main
from simulator.errors import InputError
from simulator.results.analyzer import Context, analyze
from simulator.results.chrome import export
from simulator.results.report_scan import Steps, scan
from simulator.results.trace_summary import read_spans
from simulator.runfiles.rundir import RunDir
from simulator.runfiles.spans import SPAN_SCHEMA, STEP_SCHEMA, write_steps
from simulator.runfiles.tables import iter_spans, read_table
from simulator.runfiles.values import Limits, gpus_of

ROW = 2
"""Of the spans of `write_tables`: attention of GPU 0 in the measured step, 10 s to 12 s."""

WRONG = [
    ("start_s", np.nan, "row 2: start_s is nan"),
    ("end_s", np.nan, "row 2: end_s is nan"),
    ("end_s", np.inf, "row 2: end_s is inf"),
    ("start_s", -np.inf, "row 2: start_s is -inf"),
    ("end_s", 9.0, "row 2: end_s is 9.0, which is not after start_s 10.0"),
    ("end_s", 1e300, "row 2: end_s is 1e+300"),
    ("gpu", -1, "row 2: gpu is -1, but a run writes"),
    ("gpu", 2, "row 2: gpu is 2, but the run had 2 GPUs"),
    ("gpu", 2**31 - 1, "row 2: gpu is 2147483647, but the run had 2 GPUs"),
    ("step", -1, "row 2: step is -1, but a run writes"),
    ("step", 5, "row 2: step is 5, but the last step was 1"),
]
EXACT = [
    ("layer", -1, "row 2: layer is -1"),
    ("bytes", -1.0, "row 2: bytes is -1.0"),
    ("bytes", np.nan, "row 2: bytes is nan"),
    ("flops", -1.0, "row 2: flops is -1.0"),
    ("flops", np.inf, "row 2: flops is inf"),
    ("fetch_wait_s", np.nan, "row 2: fetch_wait_s is nan"),
    ("microbatch", -2, "row 2: microbatch is -2"),
    ("chunk", -1, "row 2: chunk is -1"),
    ("peer", -2, "row 2: peer is -2"),
    ("rows", -1, "row 2: rows is -1"),
    ("ready_s", np.nan, "row 2: ready_s is nan"),
    ("expert", -2, "row 2: expert is -2"),
]
CONTEXT = Context(gpus=2, experts=4, peak_flops_per_s=1.0)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = write_tables(tmp_path / "run")
    context = {"gpus": 2, "experts": 4, "peak_flops_per_s": 1.0}
    write_result(made, hostile_result(context=context, summary=analyze(made.path, CONTEXT)))
    return made


def put(path: Path, name: str, value: Any) -> None:
    """Put a value into row ROW of a column, in a file that is whole otherwise."""
    table = pq.read_table(path)
    at = table.schema.get_field_index(name)
    values = table.column(at).to_pylist()
    values[ROW if len(values) > ROW else -1] = value
    field = table.schema.field(at)
    pq.write_table(table.set_column(at, field, pa.array(values, type=field.type)), path)


def analyzed(run: RunDir) -> None:
    analyze(run.path, CONTEXT)


def scanned(run: RunDir) -> None:
    steps = Steps(
        np.array([0, 1]), np.array([0.0, 10.0]), np.array([10.0, 20.0]), np.array([False, True])
    )
    found = scan(run.spans, steps, 2)
    if found.fault:
        raise InputError(found.fault)


def compared(run: RunDir) -> None:
    read_spans(run.path)


def exported(run: RunDir) -> None:
    (run.path / "out").mkdir()
    export(run.path, run.path / "out", range(2), np.array([1]), gpus=2)


@pytest.mark.parametrize(("name", "value", "said"), WRONG)
@pytest.mark.parametrize("read", [analyzed, scanned, compared, exported])
def test_every_reader_of_spans_refuses(
    run: RunDir, read: Callable[[RunDir], None], name: str, value: Any, said: str
) -> None:
    put(run.spans, name, value)
    with pytest.raises(InputError) as raised:
        read(run)
    assert f"{run.spans}: {said}" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("name", "value", "said"), [*WRONG, *EXACT])
def test_every_column_is_checked(run: RunDir, name: str, value: Any, said: str) -> None:
    put(run.spans, name, value)
    with pytest.raises(InputError) as raised:
        list(iter_spans(run.spans, limits=Limits(2, 1)))
    assert said in str(raised.value)


def test_the_row_counts_from_the_start_of_the_file(run: RunDir) -> None:
    put(run.spans, "gpu", -1)
    with pytest.raises(InputError, match="row 2: gpu is -1"):
        list(iter_spans(run.spans, SPAN_SCHEMA.names, 2))


@pytest.mark.parametrize("command", ["analyze", "report", "compare", "export"])
@pytest.mark.parametrize(("name", "value", "said"), [WRONG[0], WRONG[4], WRONG[6], WRONG[8]])
def test_commands_end_with_2_and_say_it(
    run: RunDir,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    name: str,
    value: Any,
    said: str,
) -> None:
    put(run.spans, name, value)
    more = {"compare": [str(run.path)], "export": ["-o", str(tmp_path / "x")]}.get(command, [])
    status = main([command, str(run.path), *more])
    err = capsys.readouterr().err
    assert (status, "Traceback" in err) == (2, False)
    assert said in err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("command", ["report", "export"])
def test_without_a_result_a_gpu_beyond_the_spans_is_none(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    run.result.unlink()
    put(run.spans, "gpu", 2**31 - 1)
    more = {"export": ["-o", str(tmp_path / "x")]}.get(command, [])
    assert main([command, str(run.path), *more]) == 2
    assert "2147483647" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("table", "name", "value"),
    [
        ("steps", "start_s", np.nan), ("steps", "end_s", -1.0), ("steps", "step", -1),
        ("steps", "tokens", -4), ("links", "bytes", np.nan), ("links", "bytes", -1.0),
        ("loads", "rows", -1), ("loads", "layer", -1), ("accesses", "hit", -1),
    ],
)  # fmt: skip
def test_other_tables_too(run: RunDir, table: str, name: str, value: Any) -> None:
    put(run.path / f"{table}.parquet", name, value)
    with pytest.raises(InputError, match=rf"{table}.parquet: row \d: {name} is {value}") as raised:
        analyzed(run)
    assert "\n" not in str(raised.value)


def test_an_empty_table_has_no_wrong_value(tmp_path: Path) -> None:
    write_steps(tmp_path / "steps.parquet", [], [], [], [], [])
    assert len(read_table(tmp_path / "steps.parquet", STEP_SCHEMA)["step"]) == 0


def test_how_many_gpus_a_result_names(run: RunDir) -> None:
    assert gpus_of(run.path) == 2
    for context in (None, 3, {}, {"gpus": "2"}, {"gpus": -1}, {"gpus": True}):
        run.result.write_text(json.dumps({"context": context}))
        assert gpus_of(run.path) is None
    run.result.write_text("[1]")
    assert gpus_of(run.path) is None
    run.result.unlink()
    assert gpus_of(run.path) is None


def test_export_of_a_serving_run_that_lost_its_requests(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served = write_serving(tmp_path / "served")
    write_result(served, hostile_result(serving_context={"gpus": 1}))
    served.requests.unlink()
    assert main(["export", str(served.path), "-o", str(tmp_path / "x")]) == 2
    err = capsys.readouterr().err
    assert "served: a serving run keeps no spans, so there is nothing to export" in err
    assert err.count("\n") == 1


def test_steps_without_spans_are_told(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ([0, 1, 2], [0.0, 10.0, 20.0], [10.0, 20.0, 30.0], [4, 4, 4], [True, False, False])
    write_steps(run.steps, *rows)
    assert analyze(run.path, CONTEXT)["steps_without_spans"] == 1
    assert main(["analyze", str(run.path)]) == 0
    told = "1 of 2 measured steps has no spans: counted as idle"
    assert told in capsys.readouterr().out
    main(["report", str(run.path)])
    assert f"<li>{told}</li>" in (run.path / "report.html").read_text()
    pq.write_table(SPAN_SCHEMA.empty_table(), run.spans)
    assert main(["analyze", str(run.path)]) == 0
    assert "2 of 2 measured steps have no spans" in capsys.readouterr().out
    assert main(["report", str(run.path)]) == 2
    assert "spans.parquet: holds no span" in capsys.readouterr().err


def test_a_whole_run_says_nothing_of_it(run: RunDir) -> None:
    assert "steps_without_spans" not in analyze(run.path, CONTEXT)
    main(["report", str(run.path)])
    assert "no spans" not in (run.path / "report.html").read_text()
