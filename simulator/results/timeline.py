"""Where the time of whole steps went: the breakdown per GPU, and the critical path.

Both read the same three facts about a compute span: when the stream was free (the end of the span
before it), when its tokens were there (`ready_s`), and from when the transfer that it awaited was
under way. The last is when the sender ended the kernel that made its data, so the launch latency
and the wait for the sender's comm stream count as communication, not as waiting for the sender.

Names: a *lane* is one GPU in one step; arrays are sorted by lane, then by time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.errors import InputError
from simulator.runfiles.spans import (
    ATTENTION,
    COMBINE,
    COMM,
    COMPUTE,
    DISPATCH,
    EXPERTS,
    FFN,
    KINDS,
    LM_HEAD,
    SEND,
)
from simulator.runfiles.tables import Columns

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

PARTS = ("compute", "exposed_communication", "fetch_stall", "peer_wait", "idle")
PATH_PARTS = ("compute", "communication", "fetch_stall", "idle")

TOLERANCE = 1e-9
"""Times closer than this fraction of a step are one instant (sums of floats differ in the last
digits; a step has far fewer than 1e9 kernels)."""


@dataclass(frozen=True)
class BlockTimes:
    """Seconds summed over the steps of a block.

    breakdown_s: float [gpus, len(PARTS)]; path_s: float [len(PATH_PARTS)];
    comm_s, overlapped_s: the time that comm spans took, and that of it during which the same
    GPU's compute stream was busy, summed over GPUs.
    """

    breakdown_s: Floats
    path_s: Floats
    comm_s: float
    overlapped_s: float


@dataclass(frozen=True)
class _Lanes:
    """The compute spans of a block, sorted by lane and time (all arrays [spans]).

    `begin`, `end` and `ready` (at most `begin`) are seconds from the start of the step; `peer_lane`
    is -1 if the span awaited no transfer. `step_s`: float [lanes] is how long the step took.
    `key(lane, t)` places an instant in one sorted order over all lanes.
    """

    lane: Ints
    begin: Floats
    end: Floats
    ready: Floats
    fetch_wait: Floats
    peer_lane: Ints
    step_s: Floats
    gpus: int
    width: float

    def key(self, lane: npt.NDArray[Any], t: npt.NDArray[Any]) -> Floats:
        # Twice as wide as the longest step, so that a tolerance never reaches another lane.
        result: Floats = lane * self.width + t
        return result

    def latest_end(self, lane: Ints, t: Floats) -> Ints:
        """Index of the last compute span on `lane` that ended by `t`; -1 if there is none."""
        slack = TOLERANCE * self.step_s[lane]
        index = (
            np.searchsorted(self.key(self.lane, self.end), self.key(lane, t + slack), "right") - 1
        )
        return self._on_lane(index, lane)

    def latest_begin(self, lane: Ints, t: Floats) -> Ints:
        """Index of the last compute span on `lane` that began before `t`; -1 if there is none."""
        index = np.searchsorted(self.key(self.lane, self.begin), self.key(lane, t), "left") - 1
        return self._on_lane(index, lane)

    def _on_lane(self, index: Ints, lane: Ints) -> Ints:
        found = (index >= 0) & (self.lane[np.maximum(index, 0)] == lane)
        return np.where(found, index, -1)


def analyze_steps(
    spans: Columns, step: Ints, start_s: Floats, end_s: Floats, gpus: int, path: Path
) -> BlockTimes:
    """Account for every second of the steps `step` [steps], which lasted start_s..end_s [steps].

    spans: the compute and comm spans of exactly those steps, in any order within a step.
    Errors: InputError (naming `path`, the file of the spans) if a span lies outside its step, two
    overlap on one stream, or a GPU index is not below `gpus`.
    """
    position = np.searchsorted(step, spans["step"])
    _check(spans, position, start_s, end_s, gpus, path)
    origin = start_s[position]
    lane = position * gpus + spans["gpu"]
    step_s = np.repeat(end_s - start_s, gpus)
    width = 2.0 * float(np.max(step_s))

    chosen = np.flatnonzero(spans["stream"] == COMPUTE)
    chosen = chosen[np.lexsort((spans["start_s"][chosen], lane[chosen]))]
    peer = spans["peer"][chosen].astype(np.int64)
    begin = spans["start_s"][chosen] - origin[chosen]
    lanes = _Lanes(
        lane=lane[chosen],
        begin=begin,
        end=spans["end_s"][chosen] - origin[chosen],
        ready=np.clip(spans["ready_s"][chosen] - origin[chosen], 0.0, begin),
        fetch_wait=spans["fetch_wait_s"][chosen],
        peer_lane=np.where(peer >= 0, position[chosen] * gpus + peer, -1),
        step_s=step_s,
        gpus=gpus,
        width=width,
    )
    first = np.ones(len(chosen), dtype=bool)
    first[1:] = lanes.lane[1:] != lanes.lane[:-1]
    free = np.where(first, 0.0, np.roll(lanes.end, 1))
    overlap = free - lanes.begin > TOLERANCE * step_s[lanes.lane]
    if np.any(overlap):
        _refuse_overlap(spans, chosen[np.flatnonzero(overlap)[0]], path)

    comm = np.flatnonzero(spans["stream"] == COMM)
    tokens = np.isin(spans["kind"], (DISPATCH, COMBINE))
    sent = _sent(spans, chosen, np.flatnonzero(tokens), position, origin, gpus)
    others = np.flatnonzero(~tokens & ((spans["stream"] == COMM) | (spans["kind"] == SEND)))
    if len(others):
        lone = np.isnan(sent) & (lanes.peer_lane >= 0)
        sent[lone] = _last_sent(spans, others, lane[others], origin[others], lanes)[lone]
    maker, since = _makers(lanes, sent)
    return BlockTimes(
        breakdown_s=_breakdown(lanes, free, since),
        path_s=_critical_path(lanes, free, first, maker, since),
        comm_s=float(np.sum(spans["end_s"][comm] - spans["start_s"][comm])),
        overlapped_s=_overlapped(
            lanes,
            lane[comm],
            spans["start_s"][comm] - origin[comm],
            spans["end_s"][comm] - origin[comm],
        ),
    )


def _breakdown(lanes: _Lanes, free: Floats, since: Floats) -> Floats:
    """Seconds per GPU and part: float [gpus, len(PARTS)].

    The gap before a span is cut at three instants that lie in order within it: the transfer is
    under way (before: peer_wait), the tokens are there (before: exposed communication), the
    weights are missing (before: idle; after: fetch_stall). Awaiting no transfer is idle.
    """
    begin = np.maximum(lanes.begin, free)
    ready = np.clip(lanes.ready, free, begin)
    fetching = np.maximum(begin - lanes.fetch_wait, ready)
    awaits = lanes.peer_lane >= 0
    since = np.clip(since, free, ready)

    count = len(lanes.step_s)
    parts = np.zeros((count, len(PARTS)))
    for part, seconds in enumerate(
        (
            lanes.end - begin,
            np.where(awaits, ready - since, 0.0),
            begin - fetching,
            np.where(awaits, since - free, 0.0),
            np.where(awaits, 0.0, ready - free) + (fetching - ready),
        )
    ):
        parts[:, part] = np.bincount(lanes.lane, weights=seconds, minlength=count)
    done = np.zeros(count)
    np.maximum.at(done, lanes.lane, lanes.end)
    parts[:, PARTS.index("idle")] += np.maximum(lanes.step_s - done, 0.0)
    result: Floats = parts.reshape(-1, lanes.gpus, len(PARTS)).sum(axis=0)
    return result


def _critical_path(
    lanes: _Lanes, free: Floats, first: npt.NDArray[np.bool_], maker: Ints, since: Floats
) -> Floats:
    """Seconds per part of the chain of waits that ends with the last compute span of each step.

    A span on the path that began as soon as its stream was free follows the span before it. Any
    other first waited `fetch_wait_s` for weights (fetch_stall). If it had its tokens when that
    began, it follows the last span of its own GPU that had ended by then; if that was when they
    came, it waited for the transfer (communication) since the sender's span that had made them, and
    follows that one. What is left is idle.
    """
    index = np.arange(len(lanes.lane))
    slack = TOLERANCE * lanes.step_s[lanes.lane]
    streaming = ~first & (lanes.begin - free <= slack)
    ready = lanes.ready
    fetch = np.where(streaming, 0.0, np.minimum(lanes.fetch_wait, lanes.begin - ready))
    fetching = lanes.begin - fetch
    awaits = (lanes.peer_lane >= 0) & ~streaming & (fetching - ready <= slack)

    before = np.where(awaits, maker, index - 1)
    jumps = np.flatnonzero(~streaming & ~awaits)
    before[jumps] = lanes.latest_end(lanes.lane[jumps], fetching[jumps])
    # Strictly earlier, whatever the tolerance let in: the walk must come to an end.
    late = np.flatnonzero((before >= 0) & (lanes.begin[before] >= lanes.begin))
    before[late] = lanes.latest_begin(lanes.lane[before[late]], lanes.begin[late])
    communication = np.where(awaits, ready - since, 0.0)

    on_path: list[int] = []
    previous = before.tolist()
    for last in _last_of_each_step(lanes):
        current = last
        while current >= 0:
            on_path.append(current)
            current = previous[current]
    chosen = np.array(on_path, dtype=np.int64)
    known = np.array(
        [
            np.sum(lanes.end[chosen] - lanes.begin[chosen]),
            np.sum(communication[chosen]),
            np.sum(fetch[chosen]),
        ]
    )
    total = float(np.sum(lanes.step_s[:: lanes.gpus]))
    return np.append(known, max(total - float(known.sum()), 0.0))


def _last_of_each_step(lanes: _Lanes) -> list[int]:
    """Index of the compute span that ends last in each step (of equals, the lowest GPU's)."""
    step = lanes.lane // lanes.gpus
    order = np.lexsort((-lanes.lane, lanes.end, step))
    last = np.append(step[order][1:] != step[order][:-1], True)
    result: list[int] = order[last[: len(order)]].tolist()
    return result


def _makers(lanes: _Lanes, sent: Floats) -> tuple[Ints, Floats]:
    """Which span made the tokens that each span awaited (-1: none), and when it had ended.

    It is the sender's last compute span before its data were there (`sent`): launch and the wait
    for the comm stream are communication. A transfer that left no span (nan in `sent`) took no
    bandwidth, only latency if anything: its maker is the last span before it was there.
    """
    silent = np.isnan(sent)
    made = np.where(silent, lanes.ready, np.minimum(sent, lanes.ready))
    maker = lanes.latest_end(lanes.peer_lane, made)
    since = np.where(silent, 0.0, made)
    known = maker >= 0
    since[known] = lanes.end[maker[known]]
    return maker, np.clip(since, 0.0, lanes.ready)


def _sent(
    spans: Columns, compute: Ints, comm: Ints, position: Ints, origin: Floats, gpus: int
) -> Floats:
    """For each compute span, when the data of the transfer that fed it were there to be sent.

    Experts, and what else runs on dispatched tokens, are fed by the dispatch of their own layer and
    chunk; attention and the LM head by the combine of the layer before, whose chunk that ended last
    they had to await. Seconds from the start of the step, nan where there is no such span.
    """
    kind = spans["kind"]
    unknown = ~np.isin(kind[compute], (ATTENTION, FFN, EXPERTS, LM_HEAD))
    if np.any(unknown):
        name = KINDS[int(kind[compute[np.flatnonzero(unknown)[0]]])]
        raise ValueError(f"a {name} span on a compute stream")

    def key(rows: Ints, is_combine: Any, layer: Any, gpu: Any) -> Ints:
        # A combine is looked up for all its chunks at once.
        chunk = np.where(is_combine, 0, spans["chunk"][rows].astype(np.int64))
        parts = (
            (position[rows], 1),
            (is_combine.astype(np.int64), 2),
            (layer + 1, layers),
            (spans["microbatch"][rows].astype(np.int64), microbatches),
            (chunk, chunks),
            (gpu, gpus),
        )
        code = np.zeros(len(rows), dtype=np.int64)
        for values, size in parts:
            code = code * size + values
        return code

    layers = int(spans["layer"].max()) + 2
    microbatches = int(spans["microbatch"].max()) + 1
    chunks = int(spans["chunk"].max()) + 1

    combine = kind[comm] == COMBINE
    have = key(comm, combine, spans["layer"][comm].astype(np.int64), spans["gpu"][comm])
    order = np.lexsort((spans["end_s"][comm], have))
    have, rows = have[order], comm[order]

    next_layer = np.isin(kind[compute], (ATTENTION, LM_HEAD))
    peer = spans["peer"][compute].astype(np.int64)
    layer = spans["layer"][compute].astype(np.int64) - next_layer
    want = key(compute, next_layer, layer, peer)
    index = np.searchsorted(have, want, "right") - 1
    found = (peer >= 0) & (index >= 0)
    found[found] = have[index[found]] == want[found]

    since = np.full(len(compute), np.nan)
    fed = rows[index[found]]
    since[found] = np.minimum(spans["ready_s"][fed], spans["start_s"][fed]) - origin[fed]
    return since


def _last_sent(
    spans: Columns, others: Ints, lane: npt.NDArray[Any], origin: Floats, lanes: _Lanes
) -> Floats:
    """As `_sent`, by the last of `others` (collectives, and sends between stages) that the GPU that
    fed each compute span had begun when it was ready, if that lasted until then.
    """
    begin = spans["start_s"][others] - origin
    order = np.argsort(lanes.key(lane, begin), kind="stable")
    keys = lanes.key(lane, begin)[order]
    slack = TOLERANCE * lanes.step_s[lanes.lane]
    index = np.searchsorted(keys, lanes.key(lanes.peer_lane, lanes.ready - slack), "right") - 1
    rows = order[np.maximum(index, 0)]
    end = spans["end_s"][others] - origin
    found = (index >= 0) & (lane[rows] == lanes.peer_lane) & (end[rows] >= lanes.ready - slack)
    begun = np.minimum(spans["ready_s"][others] - origin, begin)
    return np.where(found, begun[rows], np.nan)


def _overlapped(lanes: _Lanes, lane: Ints, begin: Floats, end: Floats) -> float:
    """Seconds of the intervals begin..end [n] on `lane` [n] in which the lane was computing."""
    if not len(lanes.lane) or not len(lane):
        return 0.0
    length = lanes.end - lanes.begin
    done = np.concatenate([[0.0], np.cumsum(length)])
    starts = lanes.key(lanes.lane, lanes.begin)
    lane_first = np.searchsorted(lanes.lane, lane, "left")

    def busy_until(t: Floats) -> Floats:
        """Compute seconds of the lane before `t`, up to what earlier lanes add to both ends."""
        index = np.maximum(np.searchsorted(starts, lanes.key(lane, t), "right"), lane_first)
        inside = np.maximum(index - 1, 0)
        partial = np.minimum(t - lanes.begin[inside], length[inside])
        result: Floats = np.where(index > lane_first, done[inside] + partial, done[lane_first])
        return result

    return float(np.sum(busy_until(end) - busy_until(begin)))


def _check(
    spans: Columns, position: Ints, start_s: Floats, end_s: Floats, gpus: int, path: Path
) -> None:
    """Refuse what would make a sum silently wrong."""
    for name in ("gpu", "peer"):
        if np.any(spans[name] >= gpus):
            raise InputError(
                f"{path}: {name} {int(spans[name].max())}, but the run had {gpus} GPUs"
            )
    slack = TOLERANCE * (end_s - start_s)[position]
    outside = (spans["start_s"] < start_s[position] - slack) | (
        spans["end_s"] > end_s[position] + slack
    )
    if np.any(outside):
        row = int(np.flatnonzero(outside)[0])
        raise InputError(f"{path}: {_span_name(spans, row)} lies outside its step")


def _refuse_overlap(spans: Columns, row: int, path: Path) -> None:
    raise InputError(
        f"{path}: {_span_name(spans, row)} begins before the compute span ahead of it has ended"
    )


def _span_name(spans: Columns, row: int) -> str:
    return (
        f"{KINDS[int(spans['kind'][row])]} of layer {spans['layer'][row]} on GPU "
        f"{spans['gpu'][row]} in step {spans['step'][row]}"
    )
