"""The tables that the DeepEP authors publish, as measurements.

Low-latency rows give a time. Normal rows give a bandwidth: logical bytes over time, where a token
counts once per GPU on one node and once per node (its own included) on several, as
tests/test_internode.py of DeepEP counts them. That count, of uniform routing under the limit of
four nodes per token, turns the bandwidth into a time.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

from simulator.errors import InputError
from simulator.spec.document import read_text
from simulator.studies.validation.measured import GPUS_PER_NODE, Measurement
from simulator.studies.validation.simulated import distinct

HIDDEN, TOP_K, EXPERTS = 7168, 8, 256
TOKENS = {"normal": 4096, "low-latency": 128, "low-latency-rdma": 128}
GROUPS = 4
ELEMENT_BYTES = {"dispatch": 1.0 + 4 / 128, "combine": 2.0}  # FP8 with its scales; BF16
KERNELS = {
    "V1_normal": "normal",
    "V1_lowlatency": "low-latency",
    "V1_lowlatency_pureRDMA": "low-latency-rdma",
}


class Published(NamedTuple):
    """A published row: `kernels` is normal, low-latency or low-latency-rdma."""

    kernels: str
    measured: Measurement


def read_published(path: Path, shown: str) -> list[Published]:
    """The rows of a table with kernels (or table), ep, phase, latency_us, bandwidth_GBps.

    Raises InputError for what is no such table.
    """
    lines = read_text(path, shown).splitlines()
    kept = [(i, line) for i, line in enumerate(lines, 1) if line and not line.startswith("#")]
    reader = csv.DictReader(line for _, line in kept)
    found = []
    for (number, _), row in zip(kept[1:], reader, strict=True):
        try:
            kernels = row.get("kernels") or KERNELS[row["table"]]
            ranks, phase = int(row["ep"]), row["phase"]
            if row["latency_us"]:
                time_s = float(row["latency_us"]) * 1e-6
            else:
                time_s = logical_bytes(ranks, phase) / (float(row["bandwidth_GBps"]) * 1e9)
        except (KeyError, ValueError) as error:
            raise InputError(f"{shown}:{number}: not a row of DeepEP's tables: {error}") from None
        measured = Measurement(
            f"{shown}:{number}",
            "h800",
            phase,
            ranks,
            time_s,
            tokens=TOKENS[kernels],
            hidden=HIDDEN,
            top_k=TOP_K,
            experts=EXPERTS,
            groups=GROUPS if kernels == "normal" else 0,
        )
        found.append(Published(kernels, measured))
    return found


def logical_bytes(ranks: int, phase: str) -> float:
    """Bytes that a published bandwidth of the normal kernels counts for one rank."""
    nodes = -(-ranks // GPUS_PER_NODE)
    to_gpus, to_nodes = distinct(ranks, EXPERTS, TOP_K, nodes, GROUPS)
    count = to_nodes if nodes > 1 else to_gpus
    return TOKENS["normal"] * count * HIDDEN * ELEMENT_BYTES[phase]


def published_topology(row: Measurement) -> str:
    """The H800 topology of a published row; one node is the first of two, so that it has NICs."""
    return f"h800x{max(row.ranks, 2 * GPUS_PER_NODE)}-rail"
