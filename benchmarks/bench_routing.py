"""Routing: ids to byte matrices against a bare bincount, and the memory of a long replay."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

from simulator.engine.homes import Near, homes_of
from simulator.policies.placement import Placement
from simulator.routing.laws import uniform
from simulator.routing.trace import GENERATED, TraceWriter
from simulator.routing.traffic import Copies, pick_slots, rows_of_experts, traffic

TOKENS, TOP_K, EXPERTS, GPUS = 1_000_000, 8, 256, 64
COPIES = 64
REPEATS = 9

TRACE_LAYERS, TRACE_K, TRACE_EXPERTS = 36, 4, 128
REQUEST_TOKENS = 100
BLOCK_TOKENS = 8192
SHORT_ROWS, LONG_ROWS = 5_000_000, 50_000_000
REPLAY_GPUS, REPLAY_TOKENS_PER_GPU = 16, 64

# What a child runs: one whole pass through the trace; prints tokens and its peak RSS in KiB. The
# peak is read from /proc, since getrusage counts what the parent had at the fork as the child's.
REPLAY = r"""
import re, sys
import numpy as np
from simulator.routing.batches import ReplayState, replay
from simulator.routing.traffic import traffic

path, gpus, tokens_per_gpu, layers, experts = sys.argv[1], *map(int, sys.argv[2:6])
owner = np.arange(experts, dtype=np.int32) // np.int32(experts // gpus)
state, tokens = ReplayState(), 0
for batch in replay(path, gpus, tokens_per_gpu, "decode", layers, "cycle", "any", state=state):
    if state.wraps:
        break
    for layer in range(layers):
        traffic(batch.layer_ids(layer), batch.source_gpu, owner, gpus, gpus, True)
    tokens += batch.tokens
print(tokens, re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1])
"""


def run() -> list[tuple[str, float, str]]:
    """Measure both: rows (figure, value, goal)."""
    return [*measure_traffic(), *measure_replay()]


def measure_traffic() -> list[tuple[str, float, str]]:
    """Time the traffic kernel and a bare bincount in turn on the same ids (medians, seconds)."""
    drawn = uniform(np.random.default_rng(1), TOKENS, 1, EXPERTS, TOP_K)
    ids = np.ascontiguousarray(drawn[:, 0])
    wide = ids.reshape(-1).astype(np.int64)
    source_gpu = np.repeat(np.arange(GPUS, dtype=np.int32), TOKENS // GPUS)
    owner = np.arange(EXPERTS, dtype=np.int32) // np.int32(EXPERTS // GPUS)
    rows, _ = traffic(ids, source_gpu, owner, GPUS, GPUS, True)
    if not np.array_equal(rows.sum(axis=0), np.bincount(wide, minlength=EXPERTS)):
        raise ValueError("the kernel and the bincount count differently")
    bare: list[float] = []
    ours: list[float] = []
    copied: list[float] = []
    least: list[float] = []
    copies = _copies()
    loaded = copies._replace(least_loaded=True)
    for one in (copies, loaded):
        if not np.array_equal(_copied(ids, source_gpu, one).sum(axis=0), rows.sum(axis=0)):
            raise ValueError("with copies other choices are counted")
    for _ in range(REPEATS):
        bare.append(_seconds(lambda: np.bincount(wide)))
        ours.append(_seconds(lambda: traffic(ids, source_gpu, owner, GPUS, GPUS, True)))
        copied.append(_seconds(lambda: _copied(ids, source_gpu, copies)))
        least.append(_seconds(lambda: _copied(ids, source_gpu, loaded)))
    return [
        ("bincount of 8 M int64 ids (ms)", 1e3 * median(bare), ""),
        ("same ids to rows and deduplicated pairs (ms)", 1e3 * median(ours), ""),
        ("ids to matrices / bare bincount", median(ours) / median(bare), "<= 2"),
        (f"the same, {COPIES} copies, nearest / bare", median(copied) / median(bare), ""),
        (f"the same, {COPIES} copies, least loaded / bare", median(least) / median(bare), ""),
    ]


def _copies() -> Copies:
    """Experts in order on nodes of 8 GPUs, and a second copy of the first ones on other GPUs."""
    expert_of = np.concatenate([np.arange(EXPERTS), np.arange(COPIES)])
    gpu = np.concatenate([np.arange(EXPERTS) * GPUS // EXPERTS, np.arange(COPIES) % GPUS])
    order = np.argsort(gpu, kind="stable")
    placement = Placement(expert_of[None, order].astype(np.int32), gpu[order].astype(np.int32))
    node = np.arange(GPUS, dtype=np.int32) // 8
    cost = np.where(node[:, None] == node[None, :], 1.0, 2.0)
    homes, _ = homes_of(placement, EXPERTS, Near(node, cost, np.zeros_like(cost)), 1.0, False)
    if homes[0].copies is None:
        raise ValueError("no expert has copies")
    return homes[0].copies


def _copied(ids: np.ndarray, source_gpu: np.ndarray, copies: Copies) -> np.ndarray:
    slots = pick_slots(ids, source_gpu, copies, GPUS)
    return rows_of_experts(
        traffic(slots, source_gpu, copies.owner, GPUS, GPUS, True)[0], copies, GPUS
    )


def measure_replay() -> list[tuple[str, float, str]]:
    """Peak RSS of a process that replays a short trace, and of one that replays a long one."""
    peaks: list[float] = []
    rates: list[float] = []
    for rows in (SHORT_ROWS, LONG_ROWS):
        tokens = rows // TRACE_LAYERS
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.parquet"
            generate(path, tokens)
            sizes = (REPLAY_GPUS, REPLAY_TOKENS_PER_GPU, TRACE_LAYERS, TRACE_EXPERTS)
            start = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-c", REPLAY, str(path), *map(str, sizes)],
                capture_output=True,
                text=True,
                check=True,
                cwd=Path(__file__).parents[1],
            )
            seconds = time.perf_counter() - start
        replayed, peak_kib = map(int, done.stdout.split())
        # The pass ends when the first slot starts over, with the last requests still under way.
        slots = REPLAY_GPUS * REPLAY_TOKENS_PER_GPU
        if replayed < tokens - slots * REQUEST_TOKENS:
            raise ValueError(f"only {replayed} of {tokens} tokens were replayed")
        peaks.append(peak_kib / 1024)
        rates.append(replayed * TRACE_LAYERS / seconds / 1e6)
    return [
        (f"peak RSS, replay of {SHORT_ROWS // 10**6} M rows (MiB)", peaks[0], ""),
        (f"peak RSS, replay of {LONG_ROWS // 10**6} M rows (MiB)", peaks[1], ""),
        ("growth of peak RSS from short to long", peaks[1] / peaks[0] - 1, "< 0.1"),
        ("replay and traffic, long trace (M rows/s)", rates[1], ""),
    ]


def generate(path: Path, tokens: int) -> None:
    """Write a trace of that many tokens in requests of REQUEST_TOKENS, block by block."""
    rng = np.random.default_rng(2)
    with TraceWriter(
        path,
        model="generated",
        layers=TRACE_LAYERS,
        experts=TRACE_EXPERTS,
        k=TRACE_K,
        origin="benchmarks/bench_routing.py",
    ) as writer:
        for first in range(0, tokens, BLOCK_TOKENS):
            token = np.arange(first, min(first + BLOCK_TOKENS, tokens))
            request, position = np.divmod(token, REQUEST_TOKENS)
            ids = uniform(rng, len(request), TRACE_LAYERS, TRACE_EXPERTS, TRACE_K)
            writer.write(request, position, np.full(len(request), GENERATED), ids)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
