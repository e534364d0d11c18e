"""One pass over the spans of a run: busy shares over time and per GPU, time by layer, a window.

Memory is that of a block of spans, of the bins and of the window, whatever the length of the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from simulator.errors import InputError
from simulator.runfiles.spans import ATTENTION, COMPUTE, LM_HEAD, STREAMS
from simulator.runfiles.tables import Columns, iter_spans, whole_steps
from simulator.runfiles.values import Limits

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MAX_SPANS = 60_000
"""Spans of a window: 2 MB of the page, and what a browser draws without a pause."""
MAX_GPUS = 64
"""GPUs of a window, and lanes of an overview: what a screen has rows for."""
BINS = 400

LAYER_PARTS = ("attention", "ffn", "experts", "lm_head", "weights", "tokens")
"""Where the time of a GPU's compute stream goes: four kinds of kernel, two kinds of waiting."""
_MOST_LAYERS = 2**15

_COLUMNS = (
    "step", "microbatch", "layer", "gpu", "stream", "kind", "start_s", "end_s", "peer",
    "fetch_wait_s", "expert", "bytes",
)  # fmt: skip


@dataclass(frozen=True)
class Steps:
    """Steps of a run in order: arrays [steps]; `measured`: no warm-up."""

    step: Ints
    start_s: Floats
    end_s: Floats
    measured: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Window:
    """What the timeline shows: steps `first` to `last`, spans that overlap start_s..end_s, and of
    the GPUs `gpus` [shown] alone. `asked_last`: the last step that was asked for.
    """

    first: int
    last: int
    asked_last: int
    start_s: float
    end_s: float
    gpus: Ints


@dataclass
class Scan:
    """What a pass found.

    busy: float [streams, lanes, BINS], bin-lengths of busy time, GPU g in lane g * lanes // gpus;
    busy_s: float [streams, gpus], within the measured steps; layer_s: float [layers,
    len(LAYER_PARTS)], and stream_s: float [streams, layers], summed over measured steps and GPUs;
    spans: of the window, sorted by GPU, stream and start; cut: whether some of them were left out;
    fault: why the pass ended early, "" if it did not; empty: measured steps without a compute, comm
    or send span, where it did not.
    """

    gpus: int
    steps: Steps
    window: Window
    start_s: float
    bin_s: float
    count: int
    busy: Floats
    busy_s: Floats
    layer_s: Floats
    stream_s: Floats
    spans: Columns = field(default_factory=dict)
    cut: bool = False
    fault: str = ""
    empty: int = 0


def scan(path: Path, steps: Steps, gpus: int, asked: tuple[int, int] | None = None) -> Scan:
    """Read the spans at `path`, all once and two of their columns once before.

    steps: not empty; asked: first and last step of the window, one of which at least is there;
    None: from the first measured one on. Errors: InputError if nothing of the file can be read.
    """
    limits = Limits(gpus or None, int(steps.step[-1]))
    per_step, count, most = _counted(path, steps.step, limits)
    # Each GPU of a run has a span: one beyond their number, where nothing says it, is none.
    gpus = gpus or max(min(most + 1, count), 1)
    limits = Limits(gpus, limits.last_step)
    window = choose_window(steps, per_step, gpus, asked)
    start_s, end_s = float(steps.start_s[0]), float(steps.end_s[-1])
    lanes = min(gpus, MAX_GPUS)
    found = Scan(
        gpus=gpus,
        steps=steps,
        window=window,
        start_s=start_s,
        bin_s=(end_s - start_s) / BINS,
        count=count,
        busy=np.zeros((len(STREAMS), lanes, BINS)),
        busy_s=np.zeros((len(STREAMS), gpus)),
        layer_s=np.zeros((_MOST_LAYERS, len(LAYER_PARTS))),
        stream_s=np.zeros((len(STREAMS), _MOST_LAYERS)),
    )
    held: list[Columns] = []
    change = np.zeros(len(STREAMS) * lanes * (BINS + 1))
    empty = steps.measured.copy()
    try:
        spans = iter_spans(path, _COLUMNS, limits=limits)
        blocks = _tallied(spans, found, change, held)
        for block in whole_steps(blocks, path):
            empty[np.isin(steps.step, block["step"])] = False
            _add_layers(found, block)
        found.empty = int(np.count_nonzero(empty))
    except InputError as error:
        found.fault = str(error)
    whole = np.cumsum(change.reshape(len(STREAMS), lanes, BINS + 1), axis=2)[:, :, :BINS]
    found.busy += whole
    # Lanes of several GPUs hold their sum.
    members = np.bincount(np.arange(gpus) * lanes // gpus, minlength=lanes)
    found.busy /= members[None, :, None]
    used = int(
        np.flatnonzero(found.stream_s.any(axis=0) | found.layer_s.any(axis=1)).max(initial=0)
    )
    found.layer_s, found.stream_s = found.layer_s[: used + 1], found.stream_s[:, : used + 1]
    _keep_window(found, held)
    return found


def choose_window(steps: Steps, per_step: Ints, gpus: int, asked: tuple[int, int] | None) -> Window:
    """The steps and GPUs that MAX_SPANS allow; per_step: spans of each step, int [steps]."""
    if asked is None:
        at = int(np.argmax(steps.measured)) if steps.measured.any() else 0
        last = len(steps.step) - 1
    else:
        inside = np.flatnonzero((steps.step >= asked[0]) & (steps.step <= asked[1]))
        at, last = int(inside[0]), int(inside[-1])
    shown = min(gpus, MAX_GPUS, max(1, int(MAX_SPANS * gpus / max(int(per_step[at]), 1))))
    room = MAX_SPANS * gpus / shown
    until = int(np.searchsorted(np.cumsum(per_step[at : last + 1]), room, "right"))
    end = at + max(until, 1) - 1
    return Window(
        first=int(steps.step[at]),
        last=int(steps.step[end]),
        asked_last=int(steps.step[last]),
        start_s=float(steps.start_s[at]),
        end_s=float(steps.end_s[end]),
        gpus=np.arange(shown) * gpus // shown,
    )


def _counted(path: Path, step: Ints, limits: Limits) -> tuple[Ints, int, int]:
    """Spans of each of `step` [steps], of all, and the largest GPU; as far as the file is good."""
    per_step = np.zeros(len(step), dtype=np.int64)
    count, most = 0, -1
    try:
        for block in iter_spans(path, ("step", "gpu"), limits=limits):
            index = np.searchsorted(step, block["step"])
            index[index == len(step)] = 0
            mine = step[index] == block["step"]
            per_step += np.bincount(index[mine], minlength=len(step))
            count += len(index)
            most = max(most, int(block["gpu"].max(initial=-1)))
    except InputError:
        if not count:
            raise
    return per_step, count, most


def _tallied(
    blocks: Iterator[Columns], found: Scan, change: Floats, held: list[Columns]
) -> Iterator[Columns]:
    """Pass the blocks on; add their busy time to `found`, put the window's spans in `held`."""
    steps, window = found.steps, found.window
    lanes = found.busy.shape[1]
    measured_s = _MeasuredBefore(steps)
    shown = np.zeros(found.gpus, dtype=np.bool_)
    shown[window.gpus] = True
    kept = 0
    for block in blocks:
        gpu, stream = block["gpu"].astype(np.int64), block["stream"].astype(np.int64)
        start_s, end_s = block["start_s"], block["end_s"]
        within_s = measured_s(end_s) - measured_s(start_s)
        key = stream * found.gpus + gpu
        found.busy_s += np.bincount(key, within_s, found.busy_s.size).reshape(found.busy_s.shape)
        layer = np.maximum(block["layer"], 0)
        found.stream_s += np.bincount(
            stream * _MOST_LAYERS + layer, within_s, found.stream_s.size
        ).reshape(found.stream_s.shape)
        lane = stream * lanes + gpu * lanes // found.gpus
        begin = (start_s - found.start_s) / found.bin_s
        add_to_bins(found.busy, change, lane, begin, (end_s - found.start_s) / found.bin_s)
        inside = (start_s < window.end_s) & (end_s > window.start_s) & shown[gpu]
        if inside.any() and kept < 2 * MAX_SPANS:
            held.append({name: values[inside] for name, values in block.items()})
            kept += int(np.count_nonzero(inside))
        yield block


def add_to_bins(
    total: Floats,
    change: Floats,
    row: Ints,
    begin: Floats,
    end: Floats,
    weight: Floats | None = None,
) -> None:
    """Add intervals [n], in bins from 0 on, to float [rows.., bins] by their rows [n].

    Parts of a bin go to `total`; whole bins to `change` [rows * (bins + 1)], which holds +weight
    where they begin and -weight where they end, to be summed up along a row. What lies outside is
    cut off. weight [n]: None for 1 each.
    """
    bins = total.shape[-1]
    begin, end = np.clip(begin, 0.0, bins), np.clip(end, 0.0, bins)
    first, last = (np.minimum(at.astype(np.int64), bins - 1) for at in (begin, end))
    weight = np.ones(len(row)) if weight is None else weight
    one = first == last
    flat = total.reshape(-1)
    flat += np.bincount((row * bins + first)[one], ((end - begin) * weight)[one], flat.size)
    more = ~one
    if more.any():
        row, first, last, weight = row[more], first[more], last[more], weight[more]
        flat += np.bincount(row * bins + first, (first + 1 - begin[more]) * weight, flat.size)
        flat += np.bincount(row * bins + last, (end[more] - last) * weight, flat.size)
        change += np.bincount(row * (bins + 1) + first + 1, weight, change.size)
        change -= np.bincount(row * (bins + 1) + last, weight, change.size)


class _MeasuredBefore:
    """Seconds of measured steps before an instant."""

    def __init__(self, steps: Steps) -> None:
        self._start_s = steps.start_s[steps.measured]
        self._end_s = steps.end_s[steps.measured]
        self._done_s = np.concatenate([[0.0], np.cumsum(self._end_s - self._start_s)])

    def __call__(self, t: Floats) -> Floats:
        """Float [n] of instants [n]."""
        if not len(self._start_s):
            return np.zeros(len(t))
        index = np.searchsorted(self._start_s, t, "right")
        inside = np.maximum(index - 1, 0)
        partial = np.minimum(t, self._end_s[inside]) - self._start_s[inside]
        return np.where(index > 0, self._done_s[inside] + partial, 0.0)


def _add_layers(found: Scan, block: Columns) -> None:
    """Add the compute streams of whole steps: kernels, and what they waited for before each.

    The wait before a kernel is the time since the one before it on the same GPU ended; of it,
    `fetch_wait_s` at most was for weights.
    """
    steps = found.steps
    index = np.minimum(np.searchsorted(steps.step, block["step"]), len(steps.step) - 1)
    kind = block["kind"]
    mine = (block["stream"] == COMPUTE) & (kind <= LM_HEAD)
    mine &= (steps.step[index] == block["step"]) & steps.measured[index]
    if not mine.any():
        return
    index, kind = index[mine], kind[mine].astype(np.int64)
    start_s, end_s = block["start_s"][mine], block["end_s"][mine]
    lane = index * found.gpus + block["gpu"][mine]
    order = np.lexsort((start_s, lane))
    index, kind, lane, start_s, end_s = (
        values[order] for values in (index, kind, lane, start_s, end_s)
    )
    layer = np.maximum(block["layer"][mine][order], 0).astype(np.int64)
    before_s = np.concatenate([[0.0], end_s[:-1]])
    first = np.concatenate([[True], lane[1:] != lane[:-1]])
    before_s[first] = steps.start_s[index[first]]
    gap_s = np.maximum(start_s - before_s, 0.0)
    weights_s = np.minimum(block["fetch_wait_s"][mine][order], gap_s)
    size = found.layer_s.size
    parts = len(LAYER_PARTS)
    total = np.bincount(layer * parts + kind - ATTENTION, end_s - start_s, size)
    total += np.bincount(layer * parts + 4, weights_s, size)
    total += np.bincount(layer * parts + 5, gap_s - weights_s, size)
    found.layer_s += total.reshape(found.layer_s.shape)


def _keep_window(found: Scan, held: list[Columns]) -> None:
    if not held:
        return
    spans = {name: np.concatenate([part[name] for part in held]) for name in held[0]}
    if len(spans["gpu"]) > MAX_SPANS:
        # Fewer spans were expected of these steps than overlap them.
        early = np.sort(np.argsort(spans["start_s"], kind="stable")[:MAX_SPANS])
        spans = {name: values[early] for name, values in spans.items()}
        found.cut = True
    order = np.lexsort((spans["start_s"], spans["stream"], spans["gpu"]))
    found.spans = {name: values[order] for name, values in spans.items()}
