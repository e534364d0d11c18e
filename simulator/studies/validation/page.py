"""docs/validation.md: what `validate` found, as a page."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from simulator.studies.validation.measured import Measurement
from simulator.studies.validation.verdicts import FAR, Simulated, Verdict

MARK = "<!-- Written by: python -m simulator validate -o FILE. Do not edit. -->"

COLUMNS = (
    "set",
    "kind",
    "transport",
    "rows",
    "fitted parameters",
    "error",
    "95 %",
    "worst row",
    "noise floor",
    "goal",
    "limit",
    "verdict",
)

_INTRO = """# Validation

How far the simulator is from what others measured. Every figure below comes from a simulation: of
the collective operation, on the topology of the machine, with a shipped transport; or of the kernel
on the catalogue's GPU (`kernels`).

    error = exp(mean |ln(simulated / measured)|) - 1

over the rows of a set, each row once. **Calibration** rows were fitted, **blind** rows were never
seen by a fit, rows **apart** are told but belong to neither. *95 %* is the error that 95 % of the
rows stay below. The *noise floor* is the error of the best curve that does not fall with the size,
per operation and machine: a model that is monotone in the size cannot do better; 0 means that the
measured times rise from size to size. *goal* was set before anything was fitted; above *limit* the
command exits with status 1 (`simulator/studies/validation/limits.yaml`).

The rows are transcribed in `simulator/studies/validation/data/`, at most 60 per table, by a rule
that each file states with its source and licence. `validate --reference DIR` takes every row of a
folder that holds the full tables. [Transports](transports.md) tells how a time is made of a
transport's parameters, and how they are fitted; [models](models.md) tells the same of a kernel's.
"""

_HOW = """## How the rows are simulated

- NCCL: out-of-place nccl-tests times of one node, on `dgx-h100`, `dgx-a100` and `gb200-nvl72`, by
  the fastest algorithm that the transport lists and the wiring allows (`auto`). One fit takes the
  rows of H100 x 2, H100 x 8 and A100 x 8: the A100 has two factors of its own, on latency and on
  efficiency. Eight H100 reduce in the switch, two of them and the A100 in a ring.
- DeepEP: uniform routing, top-8 of 256 experts, hidden 7168. Times are means over ranks, so the
  expected traffic is sent, not that of one draw. Low latency: one message per (token, expert), a
  choice of an expert on the own GPU stays there. Hopper rows run on `dgx-h100` and
  `h100x16-rail`, published ones on `h800x16-rail` to `h800x256-rail`, the columns with and without
  NVLink on the same graph with `deepep-ll` and `deepep-ll-rdma`. EP8 is the first node of two. In
  the column with NVLink the times and bandwidths of EP128 and EP256 are those of the column from
  before, digit for digit: they were not measured again. They count once, without NVLink, and stand
  *apart* here; *with the repeated rows* is the whole column, as published.
- DeepEP normal: one message per (token, node) and then per (token, GPU). The published figures are
  logical bandwidths; a token counts once per node, its own included (once per GPU on one node), so
  time = tokens x that count x hidden x (1.03125 for dispatch, 2 for combine) / bandwidth. The count
  is that of uniform scores under DeepSeek's limit of four nodes per token. The published ones are
  the best of a sweep over chunk sizes (DeepEP's tests/test_internode.py), 24 SMs as in the fitted
  rows, and hold the launch and the notify kernel, which the fitted ones do not.
- GEMM: H100 and A100 times include launch (in a CUDA graph) and, in FP8, quantising the input;
  DeepGEMM's do not, and the H800 has the H100's figures at its own datasheet peaks.
- Fused MoE: one EP rank's experts with their real rows. In balanced rows the choices of a token lie
  evenly apart; in power-law rows the loads are drawn as the collector draws them, 32 times, and the
  most loaded rank is timed. The tile is that of the mean load over all ranks, whatever the rank's.
  Kernel sources are in no set together. Rows *slower than more work* took 1.3 times as long as a
  row of the same table with no more ranks, and so with more experts or wider ones on the GPU: no
  model of the work can give both, and the sets are told with and without.
  Left out: vLLM's fused MoE of the A100, whose ids in rows with EP go beyond the rank's experts (as
  we read its collector), and of the H100 in BF16 and FP8, which has slices of 24 and 48 columns.
"""


def render(verdicts: Sequence[Verdict]) -> str:
    """The page as Markdown."""
    parts = [MARK, "", _INTRO, _table(COLUMNS, [_summary(verdict) for verdict in verdicts]), ""]
    parts += [_HOW, "## Where it is far off", ""]
    for verdict in verdicts:
        parts += _far(verdict)
    parts += ["## By operation and machine", ""]
    parts.append(
        _table(("set", "operation", "system", "ranks", "rows", "error"), _groups(verdicts))
    )
    parts += ["", "## All-reduce and all-to-all on eight H100, size by size", "", _BY_SIZE, ""]
    header = (
        "size",
        *(f"{op} {what}" for op in _SHOWN for what in ("measured us", "simulated us")),
    )
    parts.append(_table(header, _by_size(verdicts)))
    parts += ["", "## DeepEP's published figures, row by row", ""]
    published = [verdict for verdict in verdicts if verdict.set.key in _PUBLISHED]
    header = ("transport", "EP", "phase", "measured us", "simulated us", "simulated / measured")
    parts.append(_table(header, [row for verdict in published for row in _each(verdict)]))
    return "\n".join(parts) + "\n"


_PUBLISHED = (
    "deepep-ll-apart",
    "deepep-ll-blind",
    "deepep-ll-repeated",
    "deepep-ll-rdma-blind",
    "deepep-normal-apart",
    "deepep-normal-blind",
)


def flat(verdict: Verdict) -> dict[str, object]:
    """A set as one row of plain values, for `--json`."""
    return {
        "set": verdict.set.key,
        "title": verdict.set.title,
        "kind": verdict.set.kind,
        "transport": verdict.set.transport,
        "rows": len(verdict.rows),
        "parameters": verdict.parameters,
        "error": verdict.error,
        "p95": verdict.p95,
        "worst_ratio": verdict.worst.ratio,
        "worst_row": named(verdict.worst.measured),
        "noise_floor": verdict.noise,
        "goal": verdict.limit.goal,
        "limit": verdict.limit.limit,
        "verdict": verdict.word,
    }


def _summary(verdict: Verdict) -> tuple[str, ...]:
    goal = verdict.limit.goal
    return (
        verdict.set.title,
        verdict.set.kind,
        verdict.set.transport or ("as above" if verdict.rows[0].topology else "kernels"),
        str(len(verdict.rows)),
        str(verdict.parameters),
        percent(verdict.error),
        percent(verdict.p95),
        f"{named(verdict.worst.measured)}: x {verdict.worst.ratio:.2f}",
        "-" if verdict.noise is None else percent(verdict.noise),
        "-" if goal is None else percent(goal),
        percent(verdict.limit.limit),
        verdict.word,
    )


def _far(verdict: Verdict) -> list[str]:
    """What the model lacks in a set, and its rows that are more than FAR off."""
    far = [row for row in verdict.rows if not 1.0 / (1.0 + FAR) <= row.ratio <= 1.0 + FAR]
    if not far and not verdict.limit.explanation:
        return []
    lines = [f"**{verdict.set.title}** ({verdict.set.kind}). {verdict.limit.explanation}".rstrip()]
    if far:
        lines += ["", f"Rows more than {FAR:.0%} off: {len(far)} of {len(verdict.rows)}.", ""]
        shown = sorted(far, key=lambda row: min(row.ratio, 1.0 / row.ratio))[:10]
        lines += [f"- {named(row.measured)}: simulated x {row.ratio:.2f}" for row in shown]
        if len(far) > len(shown):
            lines.append(f"- and {len(far) - len(shown)} nearer ones")
    return [*lines, ""]


def _groups(verdicts: Sequence[Verdict]) -> list[tuple[str, ...]]:
    from simulator.studies.validation.fit import error_of

    def key(row: Simulated) -> tuple[str, str, int]:
        return row.measured.operation, row.measured.system, row.measured.ranks

    found: list[tuple[str, ...]] = []
    for verdict in verdicts:
        if verdict.set.key in _PUBLISHED or not verdict.set.transport:
            continue
        for (operation, system, ranks), some in groupby(sorted(verdict.rows, key=key), key=key):
            rows = list(some)
            error = error_of(
                [row.simulated_s for row in rows], [row.measured.time_s for row in rows]
            )
            counts = (str(ranks), str(len(rows)))
            found.append((verdict.set.key, operation, system, *counts, percent(error)))
    return found


_SHOWN = ("allreduce", "alltoall")
_BY_SIZE = (
    "As `python -m simulator collective --topology dgx-h100 --op allreduce -b 1K -e 256M -f 4` "
    "tells them."
)


def _by_size(verdicts: Sequence[Verdict]) -> list[tuple[str, ...]]:
    found: dict[float, dict[str, Simulated]] = {}
    for verdict in verdicts:
        for row in verdict.rows:
            ours = row.measured.ranks == 8 and row.topology == "dgx-h100"
            if verdict.set.transport == "nccl" and ours:
                found.setdefault(row.measured.size_bytes, {})[row.measured.operation] = row
    return [
        (
            _size(size_bytes),
            *(
                f"{seconds * 1e6:.1f}"
                for op in _SHOWN
                for seconds in (rows[op].measured.time_s, rows[op].simulated_s)
            ),
        )
        for size_bytes, rows in sorted(found.items())
    ]


def _each(verdict: Verdict) -> list[tuple[str, ...]]:
    return [
        (
            verdict.set.transport,
            str(row.measured.ranks),
            row.measured.operation,
            f"{row.measured.time_s * 1e6:.0f}",
            f"{row.simulated_s * 1e6:.0f}",
            f"{row.ratio:.2f}",
        )
        for row in verdict.rows
    ]


def named(row: Measurement) -> str:
    """A row in words: operation, ranks, system, size."""
    if not row.tokens and not row.size_bytes:
        return f"{row.operation} on {row.system}"
    what = f"{row.tokens} tokens" if row.tokens else _size(row.size_bytes)
    return f"{row.operation}, {row.ranks} x {row.system}, {what}"


def _size(size_bytes: float) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size_bytes >= unit:
            return f"{size_bytes / unit:g} {name}"
    return f"{size_bytes:g} B"


def percent(share: float) -> str:
    """0.0689 -> 6.9 %."""
    return f"{100 * share:.1f} %"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
