"""What a routing trace looks like: how skewed its loads are and how much tokens resemble."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from simulator.routing.trace import iter_blocks, read_info


def trace_statistics(path: str | Path) -> dict[str, Any]:
    """Describe a trace in one streaming pass.

    Returns `tokens`, `requests`, `layers`, `experts`, `k`; `uniform_overlap` = k / experts, the
    overlap of independent uniform tokens; and `per_layer`, a list of dicts with
    `layer`, `recorded` (ids that are there), `max_over_mean` (hottest expert's load over the mean
    of all experts), `unused_experts`, `overlap` (share of a token's experts that the token before
    it in the same request took as well; adjacent rows only; None if there are none); and
    `max_over_mean` and `overlap`, the means over the layers that have a figure.
    Raises InputError as `iter_blocks` does.
    """
    from simulator.routing.kernels import count_overlaps

    info = read_info(path)
    loads = np.zeros((info.layers, info.experts), dtype=np.int64)
    shared = np.zeros((info.layers, 2), dtype=np.int64)
    before = np.full((info.layers, info.k), -1, dtype=np.int16)
    last_request = -1
    for block in iter_blocks(path):
        follows = np.concatenate(([last_request], block.request[:-1])) == block.request
        shared += count_overlaps(block.experts, before, follows)
        for layer in range(info.layers):
            # Shifted by one, so that -1 (not recorded) is counted too and then left out.
            ids = block.experts[:, layer].reshape(-1).astype(np.int64) + 1
            loads[layer] += np.bincount(ids, minlength=info.experts + 1)[1:]
        before = block.experts[-1].copy()
        last_request = int(block.request[-1])
    per_layer: list[dict[str, Any]] = []
    for layer in range(info.layers):
        recorded = int(loads[layer].sum())
        same, compared = shared[layer].tolist()
        per_layer.append(
            {
                "layer": layer,
                "recorded": recorded,
                "max_over_mean": float(loads[layer].max() * info.experts / recorded)
                if recorded
                else None,
                "unused_experts": int((loads[layer] == 0).sum()),
                "overlap": same / compared if compared else None,
            }
        )
    return {
        "tokens": info.tokens,
        "requests": info.requests,
        "layers": info.layers,
        "experts": info.experts,
        "k": info.k,
        "uniform_overlap": info.k / info.experts,
        "max_over_mean": _mean([row["max_over_mean"] for row in per_layer]),
        "overlap": _mean([row["overlap"] for row in per_layer]),
        "per_layer": per_layer,
    }


def _mean(values: list[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None
