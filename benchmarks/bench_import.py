"""Import of a large JSONL: speed beside a bare pass over its lines, and that memory is bounded."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SMALL_MB, LARGE_MB = 50, 200
LAYERS, EXPERTS, K = 32, 64, 4
# Requests whose lines are mixed, as in the log of an engine that batches them.
INTERLEAVED = 4
TOKENS = 200
# What a gigabyte may take.
MEMORY_GOAL = "<= 1.2"

# What a child runs: one import; prints seconds, records and its peak RSS in KiB, from /proc (see
# bench_routing).
IMPORT = r"""
import re, sys, time
from simulator.routing.importers import import_jsonl

start = time.perf_counter()
report = import_jsonl(sys.argv[1], sys.argv[2])
seconds = time.perf_counter() - start
peak = re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1]
print(seconds, report.records_kept, peak)
"""


def run() -> list[tuple[str, float, str]]:
    """Import a small and a large log: rows (figure, value, goal)."""
    seconds, peaks = [], []
    with tempfile.TemporaryDirectory() as folder:
        for size in (SMALL_MB, LARGE_MB):
            path = Path(folder) / f"log{size}.jsonl"
            records = generate(path, size * 10**6)
            target = Path(folder) / f"trace{size}.parquet"
            done = subprocess.run(
                [sys.executable, "-c", IMPORT, str(path), str(target)],
                capture_output=True,
                text=True,
                check=True,
            )
            took, kept, peak = done.stdout.split()
            if int(kept) != records:
                raise ValueError(f"{kept} of {records} records were kept")
            seconds.append(float(took))
            peaks.append(int(peak) / 1024)
        bare = time_lines(path)
    rate = LARGE_MB / seconds[1]
    return [
        (f"import of {LARGE_MB} MB of JSONL (MB/s)", rate, ">= 30"),
        ("import, time over a bare pass over the lines", seconds[1] / bare, ""),
        ("import of 1 GB at that speed (s)", 1000 / rate, ""),
        (f"peak RSS, import of {SMALL_MB} MB (MiB)", peaks[0], ""),
        (f"peak RSS, import of {LARGE_MB} MB (MiB)", peaks[1], ""),
        ("peak RSS, large over small log", peaks[1] / peaks[0], MEMORY_GOAL),
    ]


def time_lines(path: Path) -> float:
    """Seconds to read a file line by line and do nothing with them."""
    start = time.perf_counter()
    with path.open("rb") as file:
        for _ in file:
            pass
    return time.perf_counter() - start


def generate(path: Path, size: int) -> int:
    """Write a log of about `size` bytes, layer by layer, requests mixed; gives its records."""
    rng = np.random.default_rng(0)
    # One group of requests is made, and written again under other numbers.
    chosen = rng.permuted(np.tile(np.arange(EXPERTS), (TOKENS * LAYERS, 1)), axis=1)[:, :K]
    parts = [
        (
            f', "layer": {layer}, "experts": {ids.tolist()}, '
            f'"gating_probs": [0.412, 0.251, 0.203, 0.134], "token_idx": {token}}}\n'
        )
        for (layer, token), ids in zip(np.ndindex(LAYERS, TOKENS), chosen, strict=True)
    ]
    records = problem = 0
    with path.open("w") as file:
        while file.tell() < size:
            heads = [f'{{"problem_id": {problem + at}' for at in range(INTERLEAVED)]
            file.write("".join(head + part for part in parts for head in heads))
            problem += INTERLEAVED
            records += INTERLEAVED * len(parts)
    return records
