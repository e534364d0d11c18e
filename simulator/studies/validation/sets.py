"""The measured rows that `validate` simulates: calibration and blind, each with its transport.

A set is calibration (its rows, or their transcribed subset, were fitted), blind (never looked at by
a fit), or apart (told, but not part of either: sizes or machines that the fit is not meant for).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from simulator.errors import InputError
from simulator.spec.document import read_document
from simulator.studies.validation.measured import Measurement, read_measured
from simulator.studies.validation.published import published_topology, read_published
from simulator.studies.validation.simulated import TopologyOf, topology_by_system

LEAST_BYTES = 65536.0  # of the NCCL rows that are fitted; smaller ones are told apart
LEAST_TOKENS, MOST_TOKENS = 64, 16384  # per rank, of the normal-kernel rows that are fitted
NORMAL_SMS = 24  # as the published rows
LEAST_REPEATED = 128  # ranks from which the published column with NVLink has that without

DATA = Path(__file__).with_name("data")
LIMITS = Path(__file__).with_name("limits.yaml")
NCCL_FILES = ("alltoall", "all_reduce", "all_gather", "reduce_scatter")
# What the full folder calls its tables.
FULL = {
    "nccl": ("nccl_h100_a100.csv",),
    "low-latency": ("deepep_low_latency_hopper.csv",),
    "normal": ("deepep_normal_hopper.csv",),
    "published": ("deepep_published.csv",),
}
SHIPPED = {
    "nccl": tuple(f"nccl_{name}.csv" for name in NCCL_FILES),
    "nvl72": ("nccl_gb200_nvl72.csv",),
    "low-latency": ("deepep_low_latency.csv",),
    "normal": ("deepep_normal.csv",),
    "published": ("deepep_published.csv",),
}


class Limit(NamedTuple):
    """What is asked of a set: `goal` is hoped for, above `limit` the command fails."""

    limit: float
    goal: float | None
    explanation: str


class Set(NamedTuple):
    """Rows that belong together. kind: calibration, blind or apart."""

    key: str
    title: str
    kind: str
    transport: str
    rows: tuple[Measurement, ...]
    topology_of: TopologyOf


class _Choice(NamedTuple):
    key: str
    title: str
    kind: str
    transport: str
    table: str
    keep: Callable[[Measurement], bool]


def _large(row: Measurement) -> bool:
    return row.size_bytes >= LEAST_BYTES


def _fitted_nccl(row: Measurement) -> bool:
    return row.ranks == 8 or (row.ranks == 2 and row.system.startswith("h100"))


def _step(row: Measurement) -> bool:
    return LEAST_TOKENS <= row.tokens <= MOST_TOKENS


_CHOICES = (
    _Choice(
        "nccl-calibration",
        "NCCL, H100 x 2 and x 8, A100 x 8, >= 64 KiB",
        "calibration",
        "nccl",
        "nccl",
        lambda row: _large(row) and _fitted_nccl(row),
    ),
    _Choice(
        "nccl-blind",
        "NCCL, H100 x 4 and A100 x 4, >= 64 KiB",
        "blind",
        "nccl",
        "nccl",
        lambda row: _large(row) and row.ranks == 4,
    ),
    _Choice(
        "nccl-blind-pair",
        "NCCL, A100 x 2, >= 64 KiB",
        "blind",
        "nccl",
        "nccl",
        lambda row: _large(row) and row.ranks == 2 and not _fitted_nccl(row),
    ),
    _Choice(
        "nccl-small",
        "NCCL, all GPUs, < 64 KiB",
        "apart",
        "nccl",
        "nccl",
        lambda row: not _large(row),
    ),
    _Choice(
        "mnnvl-calibration",
        "NCCL, GB200 NVL72, all-reduce over 72 GPUs",
        "calibration",
        "mnnvl",
        "nvl72",
        lambda row: True,
    ),
    _Choice(
        "deepep-ll-calibration",
        "DeepEP low latency, Hopper, 1 and 2 nodes",
        "calibration",
        "deepep-ll",
        "low-latency",
        lambda row: True,
    ),
    _Choice(
        "deepep-ll-blind",
        "DeepEP low latency, H800, EP16 to EP64, NVLink and RDMA",
        "blind",
        "deepep-ll",
        "low-latency published",
        lambda row: 8 < row.ranks < LEAST_REPEATED,
    ),
    _Choice(
        "deepep-ll-repeated",
        "DeepEP low latency, H800, EP128 and EP256, as the column with NVLink repeats them",
        "apart",
        "deepep-ll",
        "low-latency published",
        lambda row: row.ranks >= LEAST_REPEATED,
    ),
    _Choice(
        "deepep-ll-rdma-blind",
        "DeepEP low latency, H800, EP8 to EP256, RDMA only",
        "blind",
        "deepep-ll-rdma",
        "low-latency-rdma published",
        lambda row: True,
    ),
    _Choice(
        "deepep-ll-apart",
        "DeepEP low latency, H800, EP8 (NVLink of another GPU model)",
        "apart",
        "deepep-ll",
        "low-latency published",
        lambda row: row.ranks == 8,
    ),
    _Choice(
        "deepep-normal-calibration",
        "DeepEP normal, Hopper, 1 and 2 nodes, 64 to 16384 tokens",
        "calibration",
        "deepep-normal",
        "normal",
        _step,
    ),
    _Choice(
        "deepep-normal-blind",
        "DeepEP normal, H800, EP32 and EP64",
        "blind",
        "deepep-normal",
        "normal published",
        lambda row: row.ranks > 16,
    ),
    _Choice(
        "deepep-normal-apart",
        "DeepEP normal, H800, EP8 and EP16 (NVLink of another GPU model)",
        "apart",
        "deepep-normal",
        "normal published",
        lambda row: row.ranks <= 16,
    ),
    _Choice(
        "deepep-normal-sizes",
        "DeepEP normal, Hopper, fewer and more tokens",
        "apart",
        "deepep-normal",
        "normal",
        lambda row: not _step(row),
    ),
)


def sets(reference: Path | None = None) -> list[Set]:
    """All sets, from the shipped tables, or with every row of a folder that has the full ones.

    Raises InputError where a table of the folder is missing or is none.
    """
    return [
        Set(
            choice.key,
            choice.title,
            choice.kind,
            choice.transport,
            tuple(row for row in _rows(choice.table, reference) if choice.keep(row)),
            published_topology if choice.table.endswith("published") else topology_by_system,
        )
        for choice in _CHOICES
    ]


def calibration(transport: str) -> Set:
    """The shipped calibration rows of a transport, those of the reference GPU model first."""
    for found in sets():
        if found.kind == "calibration" and found.transport == transport:
            rows = sorted(found.rows, key=lambda row: row.system.startswith("a100"))
            return found._replace(rows=tuple(rows))
    raise InputError(f"no rows were calibrated for transport {transport!r}")


@cache
def _rows(table: str, reference: Path | None) -> tuple[Measurement, ...]:
    kernels, _, published = table.partition(" ")
    if published:
        return tuple(
            row.measured
            for path, shown in _files(published, reference)
            for row in read_published(path, shown)
            if row.kernels == kernels
        )
    rows = tuple(
        row for path, shown in _files(table, reference) for row in read_measured(path, shown)
    )
    return tuple(row for row in rows if row.sms in (0, NORMAL_SMS))


def _files(table: str, reference: Path | None) -> Sequence[tuple[Path, str]]:
    if reference is None or table not in FULL:
        return [(DATA / name, name) for name in SHIPPED[table]]
    return [(reference / name, str(reference / name)) for name in FULL[table]]


def limits() -> dict[str, Limit]:
    """Error limits and goals by set, and what the model lacks where it is far off."""
    data = read_document(LIMITS).data
    return {
        key: Limit(float(entry["limit"]), entry.get("goal"), entry.get("explanation", ""))
        for key, entry in data.items()
    }
