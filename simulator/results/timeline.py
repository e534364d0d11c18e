"""Where the time of whole steps went: the breakdown per GPU, and the critical path.

Both read the same three facts about a compute span: when the stream was free (the end of the span
before it), when its tokens were there (`ready_s`), and from when the transfer that it awaited was
under way. The last is when the sender ended the kernel that made its data, so the launch latency
and the wait for the sender's comm stream count as communication, not as waiting for the sender.

`timeline_kernels` holds the rules; this module gives them the spans and says what is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from simulator.errors import InputError
from simulator.runfiles.spans import COMBINE, DISPATCH, KINDS
from simulator.runfiles.tables import Columns

if TYPE_CHECKING:
    from simulator.results.timeline_kernels import Tables

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

PARTS = ("compute", "exposed_communication", "fetch_stall", "peer_wait", "idle")
PATH_PARTS = ("compute", "communication", "fetch_stall", "idle")

TOLERANCE = 1e-9
"""Times closer than this fraction of a step are one instant (sums of floats differ in the last
digits; a step has far fewer than 1e9 kernels)."""


COLUMNS = (
    "step", "microbatch", "chunk", "layer", "gpu", "stream", "kind", "start_s", "end_s", "ready_s",
    "peer", "fetch_wait_s",
)  # fmt: skip
"""What is needed of the spans."""


@dataclass
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

    @classmethod
    def none(cls, gpus: int) -> BlockTimes:
        """Of no steps."""
        return cls(np.zeros((gpus, len(PARTS))), np.zeros(len(PATH_PARTS)), 0.0, 0.0)

    def add(self, other: BlockTimes) -> None:
        """Add the steps of another block."""
        self.breakdown_s += other.breakdown_s
        self.path_s += other.path_s
        self.comm_s += other.comm_s
        self.overlapped_s += other.overlapped_s


def analyze_steps(
    spans: Columns,
    step: Ints,
    start_s: Floats,
    end_s: Floats,
    gpus: int,
    path: Path,
    tables: Tables | None = None,
) -> BlockTimes:
    """Account for every second of the steps `step` [steps], which lasted start_s..end_s [steps].

    spans: the compute and comm spans, and the sends, of exactly those steps, step by step and in
    any order within a step; tables: room to work in, None for new. Errors: InputError (naming
    `path`, the file of the spans) if a span lies outside its step, two overlap on one stream, or
    there is no such GPU.
    """
    from simulator.results import timeline_kernels as kernels

    bounds = np.append(np.searchsorted(spans["step"], step), len(spans["step"]))
    steps = kernels.Steps(bounds, start_s, end_s)
    tables = tables or kernels.Tables()
    found = tables.account(spans, steps, gpus, TOLERANCE)
    if found.counts[kernels.FAULT] == kernels.UNSORTED:
        # No run writes that, so what it costs does not matter.
        spans = _by_start(spans)
        found = tables.account(spans, steps, gpus, TOLERANCE)
    fault, row, on_path, comms = found.counts.tolist()
    if fault != kernels.WELL:
        raise _fault(spans, fault, row, gpus, path)
    on_paths = (found.computed_s, found.sent_s, found.fetched_s)
    known_s = np.array([np.sum(seconds[:on_path]) for seconds in on_paths])
    idle_s = max(float(np.sum(end_s - start_s)) - float(known_s.sum()), 0.0)
    return BlockTimes(
        breakdown_s=found.breakdown_s,
        path_s=np.append(known_s, idle_s),
        comm_s=float(np.sum(found.comm_s[:comms])),
        overlapped_s=float(np.sum(found.overlapped_s[:comms])),
    )


def _by_start(spans: Columns) -> Columns:
    """The rows of each step by their start; dispatches and combines first, in the order given, of
    which the last counts where several end together.
    """
    given = np.isin(spans["kind"], (DISPATCH, COMBINE))
    order = np.lexsort((np.where(given, -np.inf, spans["start_s"]), spans["step"]))
    return {name: values[order] for name, values in spans.items()}


def _fault(spans: Columns, fault: int, row: int, gpus: int, path: Path) -> Exception:
    """What to raise for a row that would make a sum silently wrong."""
    from simulator.results import timeline_kernels as kernels

    kind = KINDS[int(spans["kind"][row])]
    if fault == kernels.NO_KERNEL:
        return ValueError(f"a {kind} span on a compute stream")
    if fault == kernels.NO_GPU:
        name = "peer" if 0 <= spans["gpu"][row] < gpus else "gpu"
        return InputError(f"{path}: {name} {spans[name][row]}, but the run had {gpus} GPUs")
    span = (
        f"{kind} of layer {spans['layer'][row]} on GPU {spans['gpu'][row]} in step "
        f"{spans['step'][row]}"
    )
    if fault == kernels.OUTSIDE:
        return InputError(f"{path}: {span} lies outside its step")
    return InputError(f"{path}: {span} begins before the compute span ahead of it has ended")
