"""What a recording of routing looks like: skew of the loads, and what one choice tells of the next.

docs/routing-stats.md defines every figure. All counting streams: memory is bounded by the tables
of counts, never by the length of a trace.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.routing.loads import Loads
from simulator.routing.trace import BLOCK_IDS, TraceBlock, TraceInfo, iter_blocks, read_info

Bools = npt.NDArray[np.bool_]
Int16s = npt.NDArray[np.int16]
Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Progress = Callable[[int, int], None]

# The two tables of pairs (as recorded, and rotated) take at most this much memory.
MAX_PAIR_BYTES = 1 << 30
# Of one request at most this many ids are held (64 MiB as int16).
MAX_REQUEST_IDS = 1 << 25

# The columns of `per_layer` that are averaged over the layers.
MEANS = (
    "max_over_mean",
    "gini",
    "entropy_bits",
    "entropy_share",
    "hottest_tenth_share",
    "overlap",
    "mutual_information_bits",
    "mutual_information_share",
)


@dataclass(frozen=True)
class Counts:
    """What `describe` makes its figures of.

    `loads` [layers, experts]: tokens of each expert; `layers`: the layers' numbers; `k`: experts
    per token, None if not known. `shared` int64 [layers, 2]: experts shared with the token before,
    and experts compared. `pairs`, `rotated` int64 [layers - 1, experts, experts]: tokens with
    expert i in a layer and j in the next one, as recorded, and with the next layer's choices taken
    from another token. Those are None where the input has no tokens, or where they need too much
    memory; `notes` says which.
    """

    loads: Floats
    layers: list[int]
    k: int | None
    tokens: int | None = None
    requests: int | None = None
    shared: Int64s | None = None
    pairs: Int64s | None = None
    rotated: Int64s | None = None
    notes: list[str] = field(default_factory=list)


def trace_statistics(path: str | Path) -> dict[str, Any]:
    """Describe a trace in one streaming pass: `describe(count_trace(path))`."""
    return describe(count_trace(path))


def count_trace(path: str | Path, progress: Progress | None = None) -> Counts:
    """Count a routing trace in one streaming pass.

    `progress` is told of (tokens done, all tokens). Raises InputError as `iter_blocks` does.
    """
    from simulator.routing.kernels import count_loads, count_overlaps, count_pairs

    info = read_info(path)
    loads = np.zeros((info.layers, info.experts), dtype=np.int64)
    shared = np.zeros((info.layers, 2), dtype=np.int64)
    shape = (info.layers - 1, info.experts, info.experts)
    notes: list[str] = []
    pairs = rotated = None
    need = 2 * 8 * shape[0] * shape[1] * shape[2]
    if need > MAX_PAIR_BYTES:
        notes.append(
            f"mutual information is left out: pairs of {info.experts:,} experts in "
            f"{info.layers:,} layers take {need / 2**30:,.1f} GiB, more than "
            f"{MAX_PAIR_BYTES / 2**30:g} GiB"
        )
    elif info.layers > 1:
        pairs, rotated = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    before = np.full((info.layers, info.k), -1, dtype=np.int16)
    last_request = -1
    for block in iter_blocks(path):
        follows = _follows(block, last_request)
        shared += count_overlaps(block.experts, before, follows)
        count_loads(block.experts, loads)
        if pairs is not None and rotated is not None:
            count_pairs(block.experts, 0, pairs)
            # Half a block on: each layer keeps its own order of tokens, with all likeness of
            # neighbours, and only what joins the two layers of one token is lost.
            count_pairs(block.experts, len(block.experts) // 2, rotated)
        before = block.experts[-1].copy()
        last_request = int(block.request[-1])
        if progress is not None:
            progress(block.first_row + len(block.request), info.tokens)
    return Counts(
        loads=loads.astype(np.float64),
        layers=list(range(info.layers)),
        k=info.k,
        tokens=info.tokens,
        requests=info.requests,
        shared=shared,
        pairs=pairs,
        rotated=rotated,
        notes=notes,
    )


def counts_of_loads(loads: Loads) -> Counts:
    """Loads without tokens, as `loads_of` reads them, to be described."""
    note = "the file has loads and no tokens: nothing is known of overlap, of what one layer "
    note += "tells of the next, and of caches"
    return Counts(loads.counts, loads.layers.tolist(), loads.k, notes=[*loads.notes, note])


def describe(counts: Counts) -> dict[str, Any]:
    """The figures, each None where there is nothing to make it of.

    Returns `tokens`, `requests`, `layers`, `experts`, `k`, `notes`; `uniform_overlap` = k /
    experts, the overlap of independent uniform tokens; `uniform_hottest_tenth_share`, the share of
    all choices that the hottest tenth of the experts (rounded up) would have if loads were equal;
    the means of MEANS over the layers that have a figure; and `per_layer`, a list of dicts with
    `layer`, `recorded` (choices that are there), `max_over_mean` (hottest expert's load over the
    mean of all), `unused_experts`, `gini`, `entropy_bits` and `entropy_share` (of log2 experts),
    `hottest_tenth_share`, `overlap` (share of a token's experts that the token before it in the
    same request took as well; adjacent rows only), and of this layer and the next one
    `mutual_information_raw_bits`, `_rotated_bits` (the same of unrelated tokens: its bias),
    `_bits` (raw - rotated), `_share` (of the entropy of the next layer).
    """
    experts = counts.loads.shape[1]
    hottest = -(-experts // 10)
    per_layer: list[dict[str, Any]] = []
    for at, (layer, load) in enumerate(zip(counts.layers, counts.loads, strict=True)):
        total = float(load.sum())
        bits = entropy_bits(load)
        same, compared = (0, 0) if counts.shared is None else counts.shared[at].tolist()
        row = {
            "layer": layer,
            # Loads may be averages; counts are shown as counts.
            "recorded": int(total) if total.is_integer() else total,
            "max_over_mean": float(load.max() * experts / total) if total else None,
            "unused_experts": int((load == 0).sum()),
            "gini": gini(load),
            "entropy_bits": bits,
            "entropy_share": bits / math.log2(experts)
            if bits is not None and experts > 1
            else None,
            "hottest_tenth_share": float(np.sort(load)[experts - hottest :].sum() / total)
            if total
            else None,
            "overlap": same / compared if compared else None,
        }
        per_layer.append(row | _information(counts, at))
    return {
        "tokens": counts.tokens,
        "requests": counts.requests,
        "layers": len(counts.layers),
        "experts": experts,
        "k": counts.k,
        "uniform_overlap": None if counts.k is None else counts.k / experts,
        "uniform_hottest_tenth_share": hottest / experts,
        **{name: _mean([row[name] for row in per_layer]) for name in MEANS},
        "notes": list(counts.notes),
        "per_layer": per_layer,
    }


def gini(load: npt.ArrayLike) -> float | None:
    """Gini coefficient of loads [experts]: 0 if all are equal, 1 - 1 / experts if one has all.

    The mean absolute difference of two experts' loads over twice the mean load; None if no load.
    """
    ordered = np.sort(np.asarray(load, dtype=np.float64))
    total = float(ordered.sum())
    if total == 0.0:
        return None
    n = len(ordered)
    rank = np.arange(1, n + 1)
    return max(float(((2 * rank - n - 1) * ordered).sum() / (n * total)), 0.0)


def entropy_bits(load: npt.ArrayLike) -> float | None:
    """Entropy in bits of which expert a choice took, by loads [experts]; None if no load."""
    weight = np.asarray(load, dtype=np.float64)
    total = float(weight.sum())
    if total == 0.0:
        return None
    share = weight[weight > 0] / total
    return max(float(-(share * np.log2(share)).sum()), 0.0)


def mutual_information_bits(pairs: npt.ArrayLike) -> float | None:
    """Mutual information in bits of row and column by counts [experts, experts]; None if none.

    The plug-in estimate: of few samples it is too high even where nothing joins the two.
    """
    table = np.asarray(pairs, dtype=np.float64)
    total = float(table.sum())
    if total == 0.0:
        return None
    joint = table / total
    apart = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    there = joint > 0
    return max(float((joint[there] * np.log2(joint[there] / apart[there])).sum()), 0.0)


def default_capacities(experts: int) -> list[int]:
    """The powers of two from 2 to below `experts`, the five largest; experts that a cache holds."""
    powers = [1 << bit for bit in range(1, 16) if 1 << bit < experts]
    return powers[-5:] or [1]


def whole_requests(
    path: str | Path, notes: list[str] | None = None, max_request_ids: int = MAX_REQUEST_IDS
) -> Iterator[tuple[Int16s, Bools]]:
    """Yield the rows of a trace some requests at a time: ids [n, layers, k], starts bool [n].

    starts: the row begins a request. A request of more than `max_request_ids` ids is cut, which
    `notes` is told once. Raises InputError as `iter_blocks` does.
    """
    info = read_info(path)
    row_ids = info.layers * info.k
    rows_wanted, rows_most = (max(1, ids // row_ids) for ids in (BLOCK_IDS, max_request_ids))
    held: list[tuple[Int16s, Bools]] = []
    rows = 0
    for ids, starts in _runs(iter_blocks(path)):
        # A run that begins a request closes what is held, once that is enough.
        if rows and ((rows >= rows_wanted and starts[0]) or rows >= rows_most):
            if not starts[0]:
                _note_cut(notes, info, rows_most)
                starts[0] = True
            yield _joined(held)
            held, rows = [], 0
        held.append((ids, starts))
        rows += len(ids)
    if held:
        yield _joined(held)


def _runs(blocks: Iterable[TraceBlock]) -> Iterator[tuple[Int16s, Bools]]:
    """Cut each block at the last row that begins a request."""
    last_request = -1
    for block in blocks:
        starts = ~_follows(block, last_request)
        last_request = int(block.request[-1])
        begun = np.flatnonzero(starts)
        cut = int(begun[-1]) if len(begun) else 0
        for part in (slice(0, cut), slice(cut, len(starts))):
            if part.start < part.stop:
                yield block.experts[part], starts[part]


def _joined(held: Sequence[tuple[Int16s, Bools]]) -> tuple[Int16s, Bools]:
    return np.concatenate([ids for ids, _ in held]), np.concatenate([starts for _, starts in held])


def _note_cut(notes: list[str] | None, info: TraceInfo, rows: int) -> None:
    note = (
        f"requests of more than {rows:,} of the trace's {info.tokens:,} tokens are cut for the "
        "hit rates, and caches emptied there"
    )
    if notes is not None and note not in notes:
        notes.append(note)


def _follows(block: TraceBlock, last_request: int) -> Bools:
    """Which rows [n] continue the request of the row before them."""
    follows: Bools = np.concatenate(([last_request], block.request[:-1])) == block.request
    return follows


def _information(counts: Counts, at: int) -> dict[str, float | None]:
    """What layer number `at` of the counts tells of the next one."""
    raw = rotated = corrected = share = None
    if counts.pairs is not None and counts.rotated is not None and at < len(counts.pairs):
        raw = mutual_information_bits(counts.pairs[at])
        rotated = mutual_information_bits(counts.rotated[at])
        # A rotated pair can be missing where whole layers of many tokens are.
        if raw is not None and rotated is not None:
            corrected = raw - rotated
            next_bits = entropy_bits(counts.pairs[at].sum(axis=0))
            share = corrected / next_bits if next_bits else None
    return {
        "mutual_information_raw_bits": raw,
        "mutual_information_rotated_bits": rotated,
        "mutual_information_bits": corrected,
        "mutual_information_share": share,
    }


def _mean(values: list[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None
