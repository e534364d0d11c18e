"""Hit rates of expert caches on a routing trace, without times: policies x capacities in one pass.

The trace is read block by block. What a cache holds goes on from block to block; only a policy
that needs the future (`caching.WHOLE`) has a whole request in memory, or the whole trace if caches
are never emptied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from simulator.errors import InputError
from simulator.policies import caching
from simulator.policies.caching import Caches, Policy
from simulator.routing.trace import GENERATED, PROMPT, TraceInfo, iter_blocks, read_info

Int16s = npt.NDArray[np.int16]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

Pool = Literal["layer", "global"]
Reset = Literal["request", "never"]
Phase = Literal["any", "prompt", "generated"]
Progress = Callable[[int, int], None]
Named = tuple[str, Policy]

POOLS: tuple[Pool, ...] = ("layer", "global")
RESETS: tuple[Reset, ...] = ("request", "never")
PHASES: dict[Phase, int | None] = {"any": None, "prompt": PROMPT, "generated": GENERATED}

BLOCK_ROWS = 65_536
# What a policy that needs the future may hold: 256 MiB as int16, 1 GiB while it is replayed.
MAX_HELD_IDS = 1 << 27
# Sizes and capacities are read to six decimals, and are whole numbers from there on.
UNIT = 1_000_000


@dataclass(frozen=True)
class Rates:
    """What was counted.

    policies: their names, with "(heuristic)" behind one that is no bound since sizes differ;
    layers: int64 [layers], their numbers in the trace; accesses, first: int64 [layers], experts
    asked for, and how many of those for the first time since the caches were emptied; hits: int64
    [policies, capacities, layers]; notes: what a reader of the figures should know.
    """

    policies: list[str]
    capacities: list[float]
    layers: Int64s
    accesses: Int64s
    first: Int64s
    hits: Int64s
    notes: list[str] = field(default_factory=list)


class _Piece(NamedTuple):
    """Consecutive rows: ids int16 [n, layers, k], and which of them begin with empty caches."""

    ids: Int16s
    begins: Bools


def hit_rates(
    path: str | Path,
    policies: Sequence[Named],
    capacities: Sequence[float],
    *,
    pool: Pool = "layer",
    reset: Reset = "request",
    sizes: Floats | None = None,
    layers: Sequence[int] | None = None,
    phase: Phase = "any",
    progress: Progress | None = None,
) -> Rates:
    """Replay a trace on caches of every capacity under every policy.

    An access is an expert of a token, in the order of the file and then of the gate. Caches hold
    `capacity` experts per layer: those of a layer (pool: layer) or of any (global: capacity x
    layers in all). They are emptied whenever the request is another one than in the row before, or
    never. sizes: float64 [experts] or [layers of the trace, experts]; capacity is in that unit.
    layers: which ones of the trace, default all. progress: told (rows done, rows in all).

    Raises InputError for what cannot be, for a trace with no access left, and when a policy that
    needs the future would have to hold more than `MAX_HELD_IDS` ids.
    """
    info = read_info(path)
    chosen = _chosen(info, layers)
    units = _units(info, chosen, sizes, pool)
    kinds = [_caches(units, capacity, len(chosen), pool, sizes) for capacity in capacities]
    total = np.zeros((len(policies), len(capacities), len(chosen)), dtype=np.int64)
    accesses, first = (np.zeros(len(chosen), dtype=np.int64) for _ in range(2))
    states: dict[tuple[int, int], caching.State] = {}
    known: caching.State = None
    whole = [at for at, (name, _) in enumerate(policies) if name in caching.WHOLE]
    ahead = _Ahead(path)
    for done, piece in _pieces(path, chosen, reset, phase):
        asked, starts, fresh = _laid_out(piece, info, pool)
        accesses += _per_layer(asked >= 0, piece, pool)
        flags, known = caching.first_uses(asked, starts, fresh, units.shape[1], known)
        first += _per_layer(flags, piece, pool)
        for at, (_, policy) in enumerate(policies):
            if at in whole:
                continue
            for index, caches in enumerate(kinds):
                hit, states[at, index] = policy(
                    asked, starts, fresh, caches, states.get((at, index))
                )
                total[at, index] += _per_layer(hit, piece, pool)
        if whole:
            ahead.add(piece)
            if (ready := ahead.ended()) is not None:
                _replay_whole(ready, info, pool, policies, whole, kinds, total)
        if progress is not None:
            progress(done, info.tokens)
    if whole and (ready := ahead.rest()) is not None:
        _replay_whole(ready, info, pool, policies, whole, kinds, total)
    if accesses.sum() == 0:
        raise InputError(_nothing_left(path, phase, layers is not None))
    notes = _notes(info, chosen, units, kinds, capacities, pool, sizes)
    unequal = bool(units.min() != units.max())
    return Rates(
        [
            f"{name} (heuristic)" if unequal and name in caching.WHOLE else name
            for name, _ in policies
        ],
        [float(capacity) for capacity in capacities],
        np.array(chosen, dtype=np.int64),
        accesses,
        first,
        total,
        notes,
    )


class _Ahead:
    """Rows kept until their segment has ended. State: the pieces of it."""

    def __init__(self, path: str | Path) -> None:
        self._path = path
        self._held: list[_Piece] = []
        self._ids = 0

    def add(self, piece: _Piece) -> None:
        """Keep rows; raises InputError once they are too many."""
        self._held.append(piece)
        self._ids += piece.ids.size
        if self._ids > MAX_HELD_IDS:
            raise InputError(
                f"{self._path}: belady must know the future of more than {MAX_HELD_IDS:,} accesses "
                "in one; leave it out, choose fewer layers (--layers), or write --reset request"
            )

    def ended(self) -> _Piece | None:
        """All but the last segment, which may go on; None if there is no other."""
        last = self._held[-1]
        begun = np.flatnonzero(last.begins)
        cut = int(begun[-1]) if len(begun) else 0
        if cut == 0 and not (len(begun) and len(self._held) > 1):
            return None
        before = _Piece(last.ids[:cut], last.begins[:cut])
        ready = _joined([*self._held[:-1], before])
        self._held = [_Piece(last.ids[cut:], last.begins[cut:])]
        self._ids = self._held[0].ids.size
        return ready

    def rest(self) -> _Piece | None:
        """What is left."""
        return _joined(self._held) if self._held else None


def _joined(pieces: Sequence[_Piece]) -> _Piece:
    return _Piece(
        np.concatenate([piece.ids for piece in pieces]),
        np.concatenate([piece.begins for piece in pieces]),
    )


def _replay_whole(
    piece: _Piece,
    info: TraceInfo,
    pool: Pool,
    policies: Sequence[Named],
    whole: Sequence[int],
    kinds: Sequence[Caches],
    total: Int64s,
) -> None:
    """Add the hits of the policies that need the future on rows that begin and end segments."""
    asked, starts, _ = _laid_out(piece, info, pool)
    for at in whole:
        for index, caches in enumerate(kinds):
            hit, _ = policies[at][1](asked, starts, True, caches)
            total[at, index] += _per_layer(hit, piece, pool)


def _pieces(
    path: str | Path, chosen: Sequence[int], reset: Reset, phase: Phase
) -> Iterator[tuple[int, _Piece]]:
    """The rows of that phase and the layers that are chosen, and how many rows were read so far."""
    wanted = PHASES[phase]
    every = None
    last = -1
    for block in iter_blocks(path, BLOCK_ROWS):
        done = block.first_row + len(block.request)
        rows = slice(None) if wanted is None else block.phase == wanted
        request = block.request[rows]
        if len(request) == 0:
            continue
        every = len(chosen) == block.experts.shape[1]
        ids = block.experts[rows] if every else block.experts[rows][:, list(chosen)]
        begins = np.concatenate(([last], request[:-1])) != request
        if reset == "never":
            begins[:] = False
            begins[0] = last < 0
        last = int(request[-1])
        yield done, _Piece(ids, begins)


def _laid_out(piece: _Piece, info: TraceInfo, pool: Pool) -> tuple[Int32s, Int64s, bool]:
    """Accesses [caches, n] in order, where segments start, and whether the first one is fresh."""
    rows, layers, k = piece.ids.shape
    each = k if pool == "layer" else layers * k
    if pool == "layer":
        asked = piece.ids.transpose(1, 0, 2).astype(np.int32, order="C").reshape(layers, rows * k)
    else:
        wide = piece.ids.astype(np.int32)
        first_item = np.arange(layers, dtype=np.int32)[:, None] * np.int32(info.experts)
        asked = np.where(wide >= 0, wide + first_item, np.int32(-1)).reshape(1, rows * each)
    inner = np.flatnonzero(piece.begins[1:]) + 1
    starts = np.concatenate(([0], inner, [rows])) * each
    return np.ascontiguousarray(asked), starts.astype(np.int64), bool(piece.begins[0])


def _per_layer(flags: Bools, piece: _Piece, pool: Pool) -> Int64s:
    """How many flags [caches, n] are set, int64 [layers]."""
    if pool == "layer":
        return caching.counted(flags)
    per_layer: Int64s = flags.reshape(piece.ids.shape).sum(axis=(0, 2), dtype=np.int64)
    return per_layer


def _chosen(info: TraceInfo, layers: Sequence[int] | None) -> list[int]:
    chosen = list(range(info.layers)) if layers is None else list(layers)
    for layer in chosen:
        if not 0 <= layer < info.layers:
            raise InputError(f"--layers: no layer {layer}: the trace has 0 to {info.layers - 1}")
    return chosen


def _units(info: TraceInfo, chosen: Sequence[int], sizes: Floats | None, pool: Pool) -> Int64s:
    """Sizes as whole numbers, int64 [caches, items]."""
    if sizes is None:
        units = np.ones((len(chosen), info.experts), dtype=np.int64)
    else:
        if sizes.shape not in ((info.experts,), (info.layers, info.experts)):
            shown = " x ".join(map(str, sizes.shape))
            raise InputError(
                f"--sizes: {shown} sizes; the trace needs {info.experts} (one for each expert) or "
                f"{info.layers} x {info.experts} (for each layer and expert)"
            )
        every = np.broadcast_to(sizes, (info.layers, info.experts))[list(chosen)]
        units = np.rint(every * UNIT).astype(np.int64)
    return np.ascontiguousarray(units if pool == "layer" else units.reshape(1, -1))


def _caches(
    units: Int64s, capacity: float, layers: int, pool: Pool, sizes: Floats | None
) -> Caches:
    unit = 1 if sizes is None else UNIT
    per_layer = round(capacity * unit)
    if per_layer < 1:
        raise InputError(f"--capacity {capacity:g}: a cache must hold something; write 1 or more")
    if pool == "layer":
        return Caches(units, per_layer, 1, unit)
    return Caches(units, per_layer * layers, layers, unit)


def _notes(
    info: TraceInfo,
    chosen: Sequence[int],
    units: Int64s,
    kinds: Sequence[Caches],
    capacities: Sequence[float],
    pool: Pool,
    sizes: Floats | None,
) -> list[str]:
    notes = []
    for capacity, caches in zip(capacities, kinds, strict=True):
        largest = int(units.sum(axis=1).max())
        if caches.capacity >= largest:
            many = f"{info.experts} experts of every layer"
            notes.append(f"capacity {capacity:g} holds all {many}: only first uses are misses")
        large = int((units > caches.capacity).sum())
        if large:
            notes.append(
                f"capacity {capacity:g}: {large} of {units.size} experts are larger than the "
                "cache; each of their uses is a miss, and they are not kept"
            )
    if sizes is not None and units.min() != units.max():
        notes.append("sizes differ: belady is a heuristic then, and no upper bound")
    return notes


def _nothing_left(path: str | Path, phase: Phase, some_layers: bool) -> str:
    if phase != "any":
        return f"{path}: no token is marked as {phase}; write --phase any"
    where = " in these layers" if some_layers else ""
    return f"{path}: no expert is recorded{where}, so there is nothing to count"
