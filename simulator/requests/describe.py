"""What a list of requests is like: rate, burstiness, lengths, reuse of prefixes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.requests.requests import Requests

PERCENTILES = (50, 90, 99)


def describe(requests: Requests) -> dict[str, Any]:
    """Statistics of requests, in SI units; None where there is nothing to take them of.

    `duration_s` is from the first arrival to the last, `rate_per_s` the gaps per second of it,
    `gap_cv` the standard deviation of the gaps over their mean (Poisson: 1), `peak_rate_per_s` the
    most in any whole minute (None below two minutes). `prefix_reuse` is the share of all prompt
    tokens that stand in a block which an earlier request had too: what a prefix cache that never
    forgets would save. `open`: whether requests come at times of their own.
    """
    n = len(requests)
    gaps = np.diff(requests.arrival_s)
    duration_s = float(gaps.sum())
    timed = duration_s > 0
    levels, counts = np.unique(requests.priority, return_counts=True)
    return {
        "source": requests.source,
        "requests": n,
        "open": requests.concurrency is None,
        "concurrency": requests.concurrency,
        "duration_s": duration_s,
        "rate_per_s": (n - 1) / duration_s if timed else None,
        "peak_rate_per_s": _peak(requests.arrival_s),
        "gap_cv": float(gaps.std() / gaps.mean()) if timed else None,
        "prompt_tokens": _lengths(requests.prompt_tokens),
        "output_tokens": _lengths(requests.output_tokens),
        "priorities": {str(int(k)): int(c) for k, c in zip(levels, counts, strict=True)},
        "block_tokens": requests.block_tokens,
        "prefix_reuse": prefix_reuse(requests),
        "notes": list(requests.notes),
    }


def prefix_reuse(requests: Requests) -> float | None:
    """Share of all prompt tokens in blocks that an earlier request had too; None without blocks."""
    if not len(requests.block_hash):
        return None
    counts = np.diff(requests.block_ptr)
    size = requests.block_tokens
    tokens = np.full(len(requests.block_hash), size, dtype=np.int64)
    some = counts > 0
    # The last block holds what is left of the prompt, unless the file lists fewer than all.
    left = requests.prompt_tokens[some] - size * (counts[some] - 1)
    tokens[requests.block_ptr[1:][some] - 1] = np.minimum(left, size)
    first = np.unique(requests.block_hash, return_index=True)[1]
    return 1.0 - float((tokens[first].sum() + _unlisted(requests, tokens)) / _total(requests))


def _unlisted(requests: Requests, tokens: npt.NDArray[np.int64]) -> int:
    """Prompt tokens that stand in no block."""
    return _total(requests) - int(tokens.sum())


def _total(requests: Requests) -> int:
    return int(requests.prompt_tokens.sum(dtype=np.int64))


def _lengths(tokens: npt.NDArray[np.int32]) -> dict[str, float | int]:
    if not len(tokens):
        return {}
    percentiles = np.percentile(tokens, PERCENTILES)
    return {
        "total": int(tokens.sum(dtype=np.int64)),
        "mean": float(tokens.mean()),
        "cv": float(tokens.std() / tokens.mean()),
        "min": int(tokens.min()),
        **{f"p{p}": float(v) for p, v in zip(PERCENTILES, percentiles, strict=True)},
        "max": int(tokens.max()),
    }


def _peak(arrival_s: npt.NDArray[np.float64]) -> float | None:
    """Most arrivals in one of the whole minutes from the first on, per second."""
    minutes = int((arrival_s[-1] - arrival_s[0]) // 60) if len(arrival_s) else 0
    if minutes < 2:
        return None
    edges = arrival_s[0] + 60.0 * np.arange(minutes + 1)
    return float(np.diff(np.searchsorted(arrival_s, edges, side="left")).max() / 60)
