"""What an import read, kept and dropped, and the checks that all readers share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from simulator.errors import InputError
from simulator.routing.trace import MAX_IDS_PER_TOKEN
from simulator.spec.units import counted

Int16s = npt.NDArray[np.int16]

# An engine measures its memory with made-up tokens, which all take the same experts. No text of
# this length does.
PROFILING_TOKENS = 1000
# A model has a round number of experts, and the highest one may not have been chosen.
EXPERTS_STEP = 4


@dataclass
class ImportReport:
    """What an import made of a file: counts of records, layers, tokens and requests.

    `unit` names what the file is read in (lines, arrays, forward passes), `units_read` counts
    them; `drawn_tokens` > 0 where the tokens were drawn from loads and not recorded.
    """

    unit: str = "lines"
    lines_read: int = 0
    blank_lines: int = 0
    lines_cut: int = 0
    records_kept: int = 0
    records_replaced: int = 0
    records_trimmed: int = 0
    padding_dropped: int = 0
    requests: int = 0
    requests_trimmed: int = 0
    tokens: int = 0
    tokens_trimmed: int = 0
    tokens_incomplete: int = 0
    tokens_empty: int = 0
    layers: int = 0
    experts: int = 0
    k: int = 0
    experts_from: str = ""
    drawn: bool = False
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report in words, one fact per line."""
        blank = f", {self.blank_lines} of them blank" if self.unit == "lines" else ""
        verb = "drew" if self.drawn else "kept"
        out = [
            f"read {self.lines_read} {self.unit}{blank}",
            f"{verb} {counted(self.records_kept, 'record')}: "
            f"{counted(self.requests, 'request')}, {counted(self.tokens, 'token')}, "
            f"{counted(self.layers, 'layer')}, top-{self.k} of {self.experts} experts "
            f"({self.experts_from})",
        ]
        if self.lines_cut:
            out.append("dropped the last line: the file is cut short; what comes before is kept")
        if self.tokens_incomplete:
            out.append(
                f"without experts in some layers (-1): {counted(self.tokens_incomplete, 'token')}"
            )
        if self.tokens_empty:
            out.append(
                f"dropped {counted(self.tokens_empty, 'token')} without any expert (padding)"
            )
        if self.padding_dropped:
            places = counted(self.padding_dropped, "place")
            out.append(f"dropped {places} of padding (-1) within the experts")
        if self.records_replaced:
            out.append(
                f"dropped {self.records_replaced} records that a later one of the same request, "
                "layer and token replaces"
            )
        if self.tokens_trimmed:
            out.append(
                f"dropped {self.tokens_trimmed} tokens ({self.records_trimmed} records, "
                f"{self.requests_trimmed} whole requests) at the start: an engine's profiling run, "
                "the same experts for every token"
            )
        return out + self.notes

    def count(self, ids: Int16s) -> None:
        """Add rows that are kept, ids int16 [n, layers, k]."""
        recorded = ids[:, :, 0] >= 0
        self.tokens += len(ids)
        self.tokens_incomplete += int((~recorded.all(axis=1)).sum())
        self.records_kept += int(recorded.sum())


def settle_experts(
    source: Path, report: ImportReport, largest: int, given: int | None, layers: list[int]
) -> None:
    """Fill in the report's number of experts, and its layers from those that hold any expert.

    `layers` are their numbers in the file, ascending. Raises InputError where too few experts are
    given, or where a token would hold too many ids.
    """
    report.layers = len(layers)
    if given is None:
        report.experts = -(-(largest + 1) // EXPERTS_STEP) * EXPERTS_STEP
        report.experts_from = f"largest id {largest} + 1, rounded up to a multiple of 4"
    elif largest >= given:
        raise InputError(f"{source}: expert {largest}, but the model has {given} experts")
    else:
        report.experts, report.experts_from = given, "as given"
    if report.layers * report.k > MAX_IDS_PER_TOKEN:
        raise InputError(f"{source}: layers x k = {report.layers * report.k} is too large")
    if layers != list(range(len(layers))):
        empty = sorted(set(range(layers[-1] + 1)) - set(layers))
        names = ", ".join(map(str, empty[:12])) + (", ..." if len(empty) > 12 else "")
        report.notes.append(
            f"layers without any expert left out: {names}; the trace's layer 0 is the file's "
            f"{layers[0]}"
        )


def check_target(target: Path) -> None:
    """Raise InputError where a file is there already, before anything is read."""
    if target.exists():
        raise InputError(f"{target}: exists already; remove it or write another file")


def one_line(error: BaseException) -> str:
    """An error's text in one line of at most 160 characters."""
    return " ".join(str(error).split())[:160]
