"""`fit` and `validate`: what is asked, checked; their tables."""

from __future__ import annotations

import os
from argparse import Namespace
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from simulator.cli.flows import check_fresh
from simulator.errors import InputError
from simulator.results.text import lay_out
from simulator.spec.units import counted

if TYPE_CHECKING:
    from simulator.spec.transport import Transport
    from simulator.studies.validation.fit import Fitted
    from simulator.studies.validation.measured import Measurement
    from simulator.studies.validation.verdicts import Verdict

LEAST = "64 KiB"  # below, times are launches and noise


def read_rows(options: Namespace) -> tuple[list[Measurement], int]:
    """The measurements to fit, and how many were left out because they are small."""
    from simulator.spec.units import parse_quantity
    from simulator.studies.validation.measured import OPERATIONS, read_measured

    if options.op is not None and options.op not in OPERATIONS.values():
        raise InputError(f"--op: {options.op!r} is none of {', '.join(OPERATIONS.values())}")
    try:
        least_bytes = parse_quantity(options.min_bytes, "bytes")
    except InputError as error:
        raise InputError(f"--min-bytes: {error}") from None
    rows = [row for name in options.measured for row in read_measured(Path(name), name, options.op)]
    several = sorted({row.sms for row in rows})
    if options.sms is not None:
        rows = [row for row in rows if row.sms == options.sms]
    if not rows or (options.sms is None and len(several) > 1):
        told = ", ".join(map(str, several))
        raise InputError(
            f"{', '.join(options.measured)}: kernels on {told} SMs; a transport is for one number "
            f"of them, give it with --sms"
        )
    kept = [row for row in rows if row.tokens or row.size_bytes >= least_bytes]
    if not kept:
        largest = max(row.size_bytes for row in rows)
        raise InputError(
            f"{', '.join(options.measured)}: the largest size is {largest:g} B, all below "
            f"{options.min_bytes}; give a smaller --min-bytes"
        )
    return kept, len(rows) - len(kept)


def like(options: Namespace, rows: list[Measurement]) -> Transport:
    """The transport whose keys other than costs are taken: by --like, or by the kind of rows."""
    from simulator.spec.transport import load_transport

    if options.like is not None:
        return load_transport(options.like)
    kinds = {
        "nccl" if not row.tokens else "deepep-normal" if row.sms else "deepep-ll" for row in rows
    }
    if len(kinds) > 1:
        raise InputError(
            f"the tables are of different kinds ({', '.join(sorted(kinds))}); fit them apart"
        )
    return load_transport(kinds.pop())


def name_of(output: str) -> str:
    """The name of a transport, after its file."""
    return Path(output).stem


def write(path: str, text: str) -> None:
    """Write a file that must not exist; nothing is left of it if that fails."""
    check_fresh(path)
    try:
        with open(path, "x", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        if not isinstance(error, FileExistsError):
            with suppress(OSError):
                os.unlink(path)
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None


def check_page(path: str, mark: str) -> None:
    """Raise InputError if a page may not be written: a file that does not begin with `mark`."""
    if not os.path.lexists(path):
        check_fresh(path)
        return
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            first = stream.readline().rstrip("\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if first != mark:
        raise InputError(
            f"{path}: exists already, and was not written by validate; write another file"
        )


def write_page(path: str, text: str) -> None:
    """Write a page anew."""
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None


def fit_rows(found: Fitted) -> list[dict[str, object]]:
    """The fitted costs as flat rows."""
    return [
        {
            "op": op,
            "algorithm": algorithm,
            "launch_us": cost.launch_s * 1e6,
            "per_peer_us": cost.per_peer_s * 1e6,
            "network_latency_us": cost.network_latency_s * 1e6,
            "half_size_bytes": cost.half_size_bytes,
            "nvlink": cost.efficiency.nvlink,
            "pcie": cost.efficiency.pcie,
            "network": cost.efficiency.network,
            "rows": found.rows,
            "parameters": found.parameters,
            "error": found.error,
        }
        for op, listed in found.transport.costs.items()
        for algorithm, cost in listed.items()
    ]


def render_fit(found: Fitted) -> str:
    """The fitted costs as a table, and the error."""
    from simulator.results.summary import percent, size

    header = ("op", "algorithm", "launch", "per peer", "network", "half size", "efficiency")
    cells = [
        (
            op,
            algorithm,
            f"{1e6 * cost.launch_s:.2f} us",
            f"{1e6 * cost.per_peer_s:.2f} us",
            f"{1e6 * cost.network_latency_s:.2f} us",
            size(round(cost.half_size_bytes)),
            f"{cost.efficiency.nvlink:.2f} {cost.efficiency.pcie:.2f} "
            f"{cost.efficiency.network:.2f}",
        )
        for op, listed in found.transport.costs.items()
        for algorithm, cost in listed.items()
    ]
    scales = [
        f"{gpu}: latency x {scale.latency:.3f}, efficiency x {scale.efficiency:.3f}"
        for gpu, scale in found.transport.scales.items()
    ]
    told = (
        f"{counted(found.rows, 'row')}, {counted(found.parameters, 'parameter')}, "
        f"error {percent(found.error)}; efficiency over nvlink, pcie, network"
    )
    return "\n".join([lay_out(header, cells, right=range(2, 7)), *scales, told])


def render_verdicts(verdicts: list[Verdict]) -> str:
    """A table of the sets: error, 95th percentile, worst row, noise floor, limit, verdict."""
    from simulator.studies.validation.page import percent

    header = ("set", "rows", "par.", "error", "95 %", "worst", "noise", "limit", "verdict")
    cells = [
        (
            verdict.set.key,
            str(len(verdict.rows)),
            str(verdict.parameters),
            percent(verdict.error),
            percent(verdict.p95),
            f"x {verdict.worst.ratio:.2f}",
            "-" if verdict.noise is None else percent(verdict.noise),
            percent(verdict.limit.limit),
            verdict.word,
        )
        for verdict in verdicts
    ]
    return lay_out(header, cells, right=range(1, 8))
