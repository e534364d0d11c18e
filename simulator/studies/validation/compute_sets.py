"""The measured kernel times that `validate` simulates, as sets beside those of `sets`.

Calibration rows are those that were fitted (the shipped tables hold them whole); with the full
tables all others of their table are blind. Rows of different kernel sources are never
in one set. What a set must reach stands in limits.yaml.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from simulator.studies.validation.compute_fit import family_of, gpu_of, kernel_s
from simulator.studies.validation.compute_tables import KernelRow, read_kernels

DATA = Path(__file__).with_name("data")
CUTLASS = "moe_torch_flow_cutlass"
MIXTRAL_8X22B = (6144, 16384)  # hidden, intermediate

# Shipped tables: name -> file. The first of a pair holds the fitted rows.
GEMM = "gemm_h100_a100.csv"
MOE = "moe_gemm_h100_a100.csv"
ALONE = "deepgemm_h800_fp8.csv"


class KernelSet(NamedTuple):
    """Rows that belong together. kind: calibration, blind or apart; parameters: fitted to them."""

    key: str
    title: str
    kind: str
    parameters: int
    rows: tuple[KernelRow, ...]


class _Choice(NamedTuple):
    """A set: its shipped table, the full one, and which of the full one's rows are in it."""

    key: str
    title: str
    kind: str
    parameters: int
    shipped: str
    full: str
    keep: Callable[[KernelRow], bool]


def _of(system: str, source: str, dtype: str) -> Callable[[KernelRow], bool]:
    return lambda row: (row.system, row.source, row.dtype) == (system, source, dtype)


def _balanced(row: KernelRow) -> bool:
    return row.distribution == "balanced"


def _large(row: KernelRow) -> bool:
    return (row.hidden, row.intermediate * row.tp) == MIXTRAL_8X22B


def _calibration_counts(row: KernelRow) -> bool:
    """MXFP4: every second token count, 1, 4, 16, ... is fitted."""
    return int(math.log2(row.tokens)) % 2 == 0


def _gemm_choices() -> list[_Choice]:
    found = []
    for dtype, parameters in (("bf16", 5), ("fp8", 6), ("fp8_block", 6)):
        keep = _of("h100_sxm", "gemm", dtype)
        table = f"gemm_h100_{dtype}.csv"
        title = f"GEMM {dtype}, H100"
        key = f"gemm-h100-{dtype.replace('_', '-')}"
        found += [
            _Choice(f"{key}-calibration", title, "calibration", parameters, table, "", keep),
            _Choice(
                f"{key}-blind",
                f"{title}, rows not fitted",
                "blind",
                0,
                f"gemm_h100_{dtype}_blind.csv",
                GEMM,
                keep,
            ),
        ]
    a100 = _of("a100_sxm", "gemm", "bf16")
    named = "gemm_a100_named.csv"
    found += [
        _Choice(
            "gemm-a100-calibration", "GEMM bf16, A100, 12 rows, three scales", "calibration", 3,
            named, "", a100,
        ),
        _Choice("gemm-a100-blind", "GEMM bf16, A100", "blind", 0, "gemm_a100.csv", GEMM, a100),
        _Choice(
            "gemm-h800-blind", "GEMM and grouped GEMM fp8_block, H800, DeepGEMM, kernel alone",
            "blind", 0, "deepgemm_h800.csv", ALONE, lambda row: row.kernel_only,
        ),
    ]  # fmt: skip
    return found


def _moe_choices() -> list[_Choice]:
    found = []
    for dtype in ("bf16", "fp8"):
        keep = _of("h100_sxm", CUTLASS, dtype)
        title, key, table = f"fused MoE {dtype}, H100", f"moe-h100-{dtype}", f"moe_h100_{dtype}"

        def rest(row: KernelRow, keep: Callable[[KernelRow], bool] = keep) -> bool:
            return keep(row) and _balanced(row) and not _large(row)

        def large(row: KernelRow, keep: Callable[[KernelRow], bool] = keep) -> bool:
            return keep(row) and _balanced(row) and _large(row)

        def skewed(row: KernelRow, keep: Callable[[KernelRow], bool] = keep) -> bool:
            return keep(row) and not _balanced(row)

        models = "Mixtral-8x7B, Qwen3"
        found += [
            _Choice(
                f"{key}-calibration", f"{title}, balanced, {models}", "calibration", 2,
                f"{table}.csv", "", rest,
            ),
            _Choice(
                f"{key}-rows", f"{title}, balanced, {models}, rows not fitted", "blind", 0,
                f"{table}_blind.csv",
                MOE, rest,
            ),
            *_with_tuned(f"{key}-8x22b", f"{title}, balanced, Mixtral-8x22B", f"{table}_8x22b.csv",
                         large),
            *_with_tuned(f"{key}-skewed", f"{title}, power-law loads", f"{table}_skewed.csv",
                         skewed),
        ]  # fmt: skip
    vllm = "vllm_gptossmxfp4moe_triton_oaitritonmxfp4expertsmonolithic"
    for name, source, parameters in (("vllm", vllm, 4), ("trtllm", "moe_torch_flow", 4)):
        keep = _of("h100_sxm", source, "mxfp4")
        key, table = f"moe-h100-mxfp4-{name}", f"moe_h100_mxfp4_{name}"
        title = f"fused MoE mxfp4, H100, {name}, gpt-oss"

        def fitted(row: KernelRow, keep: Callable[[KernelRow], bool] = keep) -> bool:
            return keep(row) and _balanced(row) and _calibration_counts(row)

        def other(row: KernelRow, keep: Callable[[KernelRow], bool] = keep) -> bool:
            return keep(row) and _balanced(row) and not _calibration_counts(row)

        def drawn(row: KernelRow, keep: Callable[[KernelRow], bool] = keep) -> bool:
            return keep(row) and not _balanced(row)

        found += [
            _Choice(
                f"{key}-calibration", f"{title}, half of the token counts", "calibration",
                parameters, f"{table}.csv", MOE, fitted,
            ),
            _Choice(
                f"{key}-blind", f"{title}, the other half", "blind", 0, f"{table}_blind.csv", MOE,
                other,
            ),
            _Choice(
                f"{key}-skewed", f"{title}, power-law loads", "blind", 0, f"{table}_skewed.csv",
                MOE, drawn,
            ),
        ]  # fmt: skip
    a100 = _of("a100_sxm", "moe_torch_flow", "bf16")
    found += [
        _Choice(
            "moe-a100-calibration", "fused MoE bf16, A100, 12 rows, three scales", "calibration",
            3, "moe_a100_named.csv", "", a100,
        ),
        _Choice(
            "moe-a100-blind", "fused MoE bf16, A100, power-law loads", "blind", 0, "moe_a100.csv",
            MOE, a100,
        ),
    ]  # fmt: skip
    return found


def _with_tuned(
    key: str, title: str, shipped: str, keep: Callable[[KernelRow], bool]
) -> list[_Choice]:
    """A blind set, and once more without the rows that took longer than more work did."""
    told = f"{title}, without rows slower than more work"
    return [
        _Choice(f"{key}-blind", title, "blind", 0, shipped, MOE, keep),
        _Choice(
            f"{key}-tuned", told, "apart", 0, shipped, MOE, lambda row: keep(row) and not row.slower
        ),
    ]


def kernel_sets(reference: Path | None = None) -> list[KernelSet]:
    """All sets, from the shipped tables, or with every row of a folder that has the full ones.

    A calibration set stays the rows that were fitted. Raises InputError where a table of the folder
    is missing or is none.
    """
    choices = _gemm_choices() + _moe_choices()
    fitted = {
        _identity(row)
        for choice in choices
        if choice.kind == "calibration"
        for row in _table(None, choice.shipped)
    }
    found = []
    for choice in choices:
        if reference is None or not choice.full or choice.kind == "calibration":
            rows = _table(None, choice.shipped)
        else:
            rows = tuple(
                row for row in _table(reference, choice.full) if _identity(row) not in fitted
            )
        kept = tuple(row for row in rows if choice.keep(row))
        if kept:
            found.append(KernelSet(choice.key, choice.title, choice.kind, choice.parameters, kept))
    return found


def calibration_rows(name: str) -> tuple[KernelRow, ...]:
    """The rows of a shipped table, "gemm_h100_bf16.csv" say."""
    return _table(None, name)


def kernel_names(rows: KernelSet) -> str:
    """The kernel families that a set is simulated with."""
    return ", ".join(dict.fromkeys(family_of(row) for row in rows.rows))


def simulated_kernels(rows: Sequence[KernelRow]) -> list[float]:
    """What the model says of each row (s)."""
    return [kernel_s(row, gpu_of(row.system)) for row in rows]


def _identity(row: KernelRow) -> KernelRow:
    return row._replace(where="", time_s=0.0, slower=False)


@cache
def _table(folder: Path | None, name: str) -> tuple[KernelRow, ...]:
    if folder is None:
        return tuple(read_kernels(DATA / name, name))
    return tuple(read_kernels(folder / name, str(folder / name)))
