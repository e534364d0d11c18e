"""Measured kernel times: readers of the GEMM and fused-MoE tables, and the loads behind their rows.

Three shapes are told apart by their header: GEMM (system, gemm_dtype, m, n, k, time_us); GEMM of a
kernel alone (kind, groups, m_per_group, n, k, tflops); fused MoE (kernel_source, moe_dtype,
num_tokens, ..., distribution, time_us). Lines that begin with # are comments.
"""

from __future__ import annotations

import csv
import zlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.errors import InputError
from simulator.spec.document import read_text

Ints = NDArray[np.int64]

DTYPES = {
    "bfloat16": "bf16",
    "fp8": "fp8",
    "fp8_block": "fp8_block",
    "w4a16_mxfp4": "mxfp4",
}
"""Names of dtypes in the tables -> ours."""

# What takes this much longer than a row with more work on the GPU was not run at its best.
SLOWER = 1.3
DRAWS = 32  # of skewed loads per row; the tables give the mean over five of their own


class KernelRow(NamedTuple):
    """One time that somebody measured.

    where: "file:line"; system, source: as the table names machine and kernel. GEMM: m, n, k and
    groups (matrices of weights, m over all). Fused MoE: tokens that enter the layer over all EP
    ranks, hidden, intermediate (of one TP rank), top_k, experts; ep, tp ranks; distribution.
    kernel_only: without launch and quantise. slower: took 1.3 times as long as one with more work.
    """

    where: str
    system: str
    source: str
    dtype: str
    time_s: float
    m: int = 0
    n: int = 0
    k: int = 0
    groups: int = 1
    tokens: int = 0
    hidden: int = 0
    intermediate: int = 0
    top_k: int = 0
    experts: int = 0
    tp: int = 1
    ep: int = 1
    distribution: str = ""
    kernel_only: bool = False
    slower: bool = False

    @property
    def name(self) -> str:
        """The row in words."""
        if not self.tokens:
            groups = f"{self.groups} x " if self.groups > 1 else ""
            return f"{self.dtype} {groups}{self.m // self.groups} x {self.n} x {self.k}"
        shape = f"{self.hidden} x {self.intermediate * self.tp}, top-{self.top_k} of {self.experts}"
        where = f"TP{self.tp} EP{self.ep}, {self.tokens} tokens, {self.distribution}"
        return f"{self.dtype} MoE {shape}, {where}"


def read_kernels(path: Path, shown: str) -> list[KernelRow]:
    """All rows of a table; InputError with file and line where one cannot be read."""
    lines = read_text(path, shown).splitlines()
    kept = [(at, line) for at, line in enumerate(lines, 1) if line and not line.startswith("#")]
    if not kept:
        raise InputError(f"{shown}: empty; give a table of kernel times")
    header = kept[0][1].split(",")
    reader = next((read for key, read in _READERS.items() if key in header), None)
    if reader is None:
        raise InputError(f"{shown}:{kept[0][0]}: no columns of a table of kernel times")
    rows = []
    for at, line in kept[1:]:
        cells = dict(zip(header, next(csv.reader([line])), strict=False))
        try:
            row = reader(f"{shown}:{at}", cells)
        except (KeyError, ValueError) as error:
            raise InputError(f"{shown}:{at}: cannot be read: {error}") from None
        if not row.time_s > 0.0:
            raise InputError(f"{shown}:{at}: a time must be above 0")
        rows.append(row)
    unique = list({row._replace(where="", time_s=0.0): row for row in rows}.values())
    return unique if "slower" in header else _marked(unique)


def _gemm(where: str, cells: dict[str, str]) -> KernelRow:
    m, n, k = (int(cells[key]) for key in "mnk")
    dtype = DTYPES[cells["gemm_dtype"]]
    return KernelRow(where, cells["system"], "gemm", dtype, _us(cells), m, n, k)


def _alone(where: str, cells: dict[str, str]) -> KernelRow:
    groups, rows, n, k = (int(cells[key]) for key in ("groups", "m_per_group", "n", "k"))
    time_s = 2.0 * groups * rows * n * k / (float(cells["tflops"]) * 1e12)
    source = f"DeepGEMM {cells['readme_commit']} {cells['kind']}"
    of = KernelRow(where, "h800_sxm", source, "fp8_block", time_s, groups * rows, n, k, groups)
    return of._replace(kernel_only=True)


def _moe(where: str, cells: dict[str, str]) -> KernelRow:
    keys = ("num_tokens", "hidden_size", "inter_size", "topk", "num_experts")
    tokens, hidden, intermediate, top_k, experts = (int(cells[key]) for key in keys)
    tp, ep = int(cells["moe_tp_size"]), int(cells["moe_ep_size"])
    return KernelRow(
        where,
        cells["system"],
        cells["kernel_source"],
        DTYPES[cells["moe_dtype"]],
        _us(cells),
        tokens=tokens,
        hidden=hidden,
        intermediate=intermediate // tp,
        top_k=top_k,
        experts=experts,
        tp=tp,
        ep=ep,
        distribution=cells["distribution"],
        slower=cells.get("slower") == "1",
    )


_READERS = {"gemm_dtype": _gemm, "m_per_group": _alone, "moe_dtype": _moe}


def _us(cells: dict[str, str]) -> float:
    return float(cells["time_us"]) * 1e-6


def _marked(rows: list[KernelRow]) -> list[KernelRow]:
    """Rows with `slower` told: more work is the same with no more ranks in either direction."""
    same: dict[tuple[object, ...], list[KernelRow]] = {}

    def key(row: KernelRow) -> tuple[object, ...]:
        shape = (row.hidden, row.intermediate * row.tp, row.top_k, row.experts)
        return row.system, row.source, row.dtype, row.distribution, row.tokens, *shape

    for row in rows:
        if row.tokens:
            same.setdefault(key(row), []).append(row)
    return [
        row._replace(
            slower=any(
                other.tp <= row.tp and other.ep <= row.ep and row.time_s > SLOWER * other.time_s
                for other in same[key(row)]
            )
        )
        if row.tokens
        else row
        for row in rows
    ]


def loads(row: KernelRow) -> list[Ints]:
    """Rows of each expert on the timed GPU, int64 [experts / ep], for each draw (one if balanced).

    The tables time EP rank 0, which in skewed rows is the most loaded one. Balanced: the choices of
    a token lie experts / top_k apart. Power law: weights x^-alpha by inverse sampling, from 1 to
    0.8 tokens (0.01 to 2 where there are no more choices than experts), scaled to tokens x top_k
    and rounded; what rounding lost goes one by one to the ranks, there to the least loaded expert
    (in the older tables of the A100: to the most loaded experts of all); no expert above `tokens`.
    So the collector of these tables draws them, as we read its code.
    """
    shape = (row.tokens, row.experts, row.top_k, row.ep)
    if row.distribution == "balanced":
        return [_balanced(*shape)]
    alpha = float(row.distribution.removeprefix("power_law_"))
    return _skewed(*shape, alpha, row.system.startswith("a100"))


@cache
def _balanced(tokens: int, experts: int, top_k: int, ep: int) -> Ints:
    stride = -(-experts // top_k)
    first = np.arange(tokens) if tokens >= stride else np.arange(tokens) * stride // tokens
    chosen = (first[:, None] + np.arange(top_k)[None, :] * stride) % experts
    return np.bincount(chosen.ravel(), minlength=experts)[: experts // ep].astype(np.int64)


@cache
def _skewed(
    tokens: int, experts: int, top_k: int, ep: int, alpha: float, older: bool
) -> list[Ints]:
    seed = zlib.crc32(f"{tokens} {experts} {top_k} {ep} {alpha:g}".encode())
    rng = np.random.default_rng([0, seed])
    low, high = (1.0, 0.8 * tokens) if tokens * top_k > experts else (0.01, 2.0)
    power = 1.0 - alpha
    found = []
    for _ in range(DRAWS):
        drawn = rng.random(experts)
        weights = ((high**power - low**power) * drawn + low**power) ** (1.0 / power)
        wanted = np.rint(weights / weights.sum() * tokens * top_k).astype(np.int64)
        if older:
            _complete(wanted, tokens * top_k)
        counts = np.minimum(wanted, tokens).reshape(ep, -1)
        missing = tokens * top_k - int(counts.sum())
        for rank in range(ep):
            share = abs(missing) // ep + (rank < abs(missing) % ep)
            counts[rank] = _raised(counts[rank], share if missing > 0 else -share, tokens)
        found.append(counts[counts.sum(axis=1).argmax()])
    return found


def _complete(counts: Ints, total: int) -> None:
    """Make the counts add up: one more for the most, one less for the least loaded experts."""
    order = np.argsort(-counts, kind="stable")
    missing = total - int(counts.sum())
    for step in range(abs(missing)):
        at = order[step % len(order)] if missing > 0 else order[-1 - step % len(order)]
        counts[at if missing > 0 or counts[at] > 0 else counts.argmax()] += np.sign(missing)


def _raised(counts: Ints, amount: int, most: int) -> Ints:
    """`amount` rows more for the least loaded experts, none above `most`; if negative, fewer."""
    if amount < 0:
        return most - _raised(most - counts, -amount, most)
    amount = min(amount, int((most - counts).sum()))
    low, high = int(counts.min()), most
    while low < high:  # the highest level that `amount` reaches
        level = (low + high + 1) // 2
        if int(np.maximum(level - counts, 0).sum()) <= amount:
            low = level
        else:
            high = level - 1
    raised = np.maximum(counts, low)
    left = amount - int((raised - counts).sum())
    raised[np.flatnonzero(raised == low)[:left]] += 1
    return raised
