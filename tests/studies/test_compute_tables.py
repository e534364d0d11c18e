"""The kernel tables: what is read, which loads stand behind a row, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from simulator.errors import InputError
from simulator.studies.validation.compute_sets import DATA, calibration_rows, kernel_sets
from simulator.studies.validation.compute_tables import DRAWS, KernelRow, loads, read_kernels

TABLES = sorted(
    path.name for path in DATA.glob("*.csv") if path.name.startswith(("gemm", "moe", "deepgemm"))
)


@pytest.mark.parametrize("name", TABLES)
def test_a_shipped_table_is_small_and_says_where_it_is_from(name: str):
    head = [line for line in (DATA / name).read_text().splitlines() if line.startswith("#")]
    assert any(line.startswith("# Source: github") for line in head)
    assert any("Licence:" in line for line in head)
    assert any(line.startswith("# Rule") for line in head)
    assert 12 <= len(read_kernels(DATA / name, name)) <= 60


def test_a_gemm_row():
    row = calibration_rows("gemm_h100_bf16.csv")[0]
    assert (row.system, row.source, row.dtype, row.m) == ("h100_sxm", "gemm", "bf16", 1)


def test_time_of_a_kernel_alone():
    """2 x 64 x 2112 x 7168 FLOPs at 206 TFLOP/s."""
    row = calibration_rows("deepgemm_h800.csv")[0]
    assert row.time_s == pytest.approx(2 * 64 * 2112 * 7168 / 206e12, rel=1e-12)
    grouped = [row for row in calibration_rows("deepgemm_h800.csv") if row.groups == 4]
    assert {row.m for row in grouped} == {4 * 8192, 4 * 256}
    assert all(row.kernel_only for row in grouped)


def moe(tokens: int, distribution: str, **changes: object) -> KernelRow:
    row = KernelRow("here", "h100_sxm", "s", "bf16", 1.0, tokens=tokens, hidden=8, intermediate=8)
    return row._replace(distribution=distribution, top_k=8, experts=128, **changes)


@pytest.mark.parametrize(
    ("tokens", "ep", "wanted"),
    [(1, 1, [1] + [0] * 15), (16, 1, [1] * 16), (16, 4, [1] * 32), (1024, 64, [64, 64]),
     (2, 1, [1] + [0] * 7)],
)  # fmt: skip
def test_balanced_loads(tokens: int, ep: int, wanted: list[int]):
    """Eight choices 16 experts apart; two tokens eight apart; from 16 tokens on all are taken."""
    (counts,) = loads(moe(tokens, "balanced", ep=ep))
    assert len(counts) == 128 // ep
    assert counts[: len(wanted)].tolist() == wanted


@pytest.mark.parametrize("tokens", [1, 7, 64, 4096])
@pytest.mark.parametrize("ep", [1, 8, 128])
@pytest.mark.parametrize("alpha", ["1.01", "1.2"])
@pytest.mark.parametrize("system", ["h100_sxm", "a100_sxm"])
def test_skewed_loads_are_those_of_the_most_loaded_rank(
    tokens: int, ep: int, alpha: str, system: str
):
    drawn = loads(moe(tokens, f"power_law_{alpha}", ep=ep, system=system))
    assert len(drawn) == DRAWS
    for counts in drawn:
        assert len(counts) == 128 // ep
        assert counts.min() >= 0
        assert counts.max() <= tokens
        assert counts.sum() >= tokens * 8 / ep
        if ep == 1:
            assert counts.sum() == tokens * 8
    assert loads(moe(tokens, f"power_law_{alpha}", ep=ep, system=system))[0] is drawn[0]


def test_a_larger_exponent_is_more_skewed():
    largest = [
        np.mean([counts.max() for counts in loads(moe(4096, f"power_law_{alpha}"))])
        for alpha in ("1.01", "1.2", "2")
    ]
    assert largest == sorted(largest)


HEAD = (
    "system,kernel_source,moe_dtype,num_tokens,hidden_size,inter_size,topk,num_experts,"
    "moe_tp_size,moe_ep_size,distribution,time_us"
)


def table(path: Path, *times: tuple[int, int, float]) -> Path:
    """Rows of (TP, EP, us), one shape."""
    rows = [f"h,s,bfloat16,4,8,64,2,8,{tp},{ep},balanced,{us}" for tp, ep, us in times]
    path.write_text("\n".join([HEAD, *rows]) + "\n")
    return path


def test_a_row_slower_than_more_work_is_told(tmp_path: Path):
    """TP4 took 1.4 times as long as TP2 with twice the work; TP8 is only a little slower."""
    path = table(
        tmp_path / "t.csv", (1, 1, 300), (2, 1, 100), (4, 1, 140), (8, 1, 120), (1, 2, 150)
    )
    rows = read_kernels(path, "t.csv")
    assert [(row.tp, row.slower) for row in rows] == [
        (1, False), (2, False), (4, True), (8, False), (1, False),
    ]  # fmt: skip
    assert [row.intermediate for row in rows] == [64, 32, 16, 8, 64]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "t.csv: empty; give a table of kernel times"),
        ("a,b\n1,2\n", "t.csv:1: no columns of a table of kernel times"),
        ("# note\nsystem,gemm_dtype,m,n,k,time_us\nh,fp8,1,2\n", "t.csv:3: cannot be read: 'k'"),
        ("system,gemm_dtype,m,n,k,time_us\nh,fp8,1,2,x,1\n",
         "t.csv:2: cannot be read: invalid literal for int() with base 10: 'x'"),
        ("system,gemm_dtype,m,n,k,time_us\nh,fp8,1,2,3,0\n", "t.csv:2: a time must be above 0"),
    ],
)  # fmt: skip
def test_what_is_no_table_is_refused(tmp_path: Path, text: str, message: str):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        read_kernels(path, "t.csv")
    assert str(refused.value) == message


def test_sets_hold_one_kernel_source_each_and_no_fitted_row_is_blind():
    sets = kernel_sets()
    fitted = {
        row._replace(where="", time_s=0.0)
        for s in sets
        if s.kind == "calibration"
        for row in s.rows
    }
    for found in sets:
        assert found.rows
        assert len({(row.dtype, row.system) for row in found.rows}) == 1
        if not found.key.startswith("gemm-h800"):
            assert len({row.source for row in found.rows}) == 1
        if found.kind == "blind":
            assert not fitted & {row._replace(where="", time_s=0.0) for row in found.rows}
        assert (found.parameters > 0) == (found.kind == "calibration")


def test_shapes_and_loads_of_the_calibration_rows():
    """Balanced Mixtral-8x7B and Qwen3 on the H100; no Mixtral-8x22B, no skewed row."""
    rows = calibration_rows("moe_h100_bf16.csv") + calibration_rows("moe_h100_fp8.csv")
    assert {row.distribution for row in rows} == {"balanced"}
    assert {(row.hidden, row.intermediate * row.tp) for row in rows} == {
        (4096, 14336), (2048, 768), (4096, 1536),
    }  # fmt: skip
