"""What an expert memory is made of: slots, wishes, and what an access comes to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int32]

NEW = -1.0  # start of a fetch whose operation is not in the core yet
WHOLE = 1_000_000  # parts of a slot: sizes are whole numbers of them, so that sums are exact


@dataclass(slots=True, eq=False)
class Slot:
    """An expert in a slot. `fetch`: its transfer's operation while that is not known to be over;
    `route`: over which it came; `kernels`: operations that use it and may not have ended; `uses`:
    kernels so far.
    """

    layer: int
    expert: int
    step: int
    microbatch: int
    prefetch: bool
    asked_s: float
    fetch: int
    last_use: int
    route: int
    size: float = 1.0
    start_s: float = 0.0
    end_s: float = 0.0
    uses: int = 0
    evicted: bool = False
    kernels: list[int] = field(default_factory=list)


class Access(NamedTuple):
    """What came of an access: the resident experts; the others with a kernel operation for each;
    the fetches to add (four numbers each, as `Driver.add` takes them) with their bytes on the wire,
    and what the new operations wait for (from, to); how many of the others were late hits; how many
    of all had been predicted.
    """

    resident: list[int]
    coming: list[int]
    kernels: list[int]
    fetches: list[int]
    sizes: list[float]
    edges: list[int]
    late: int
    foreseen: int


class Told(NamedTuple):
    """Fetches whose fate is known, each field [fetches].

    gpu: whose memory; used: whether any access was served by it; route: over which it came; size:
    of the expert, relative to a slot; asked_s: when it was asked for, start_s, end_s: its transfer.
    """

    step: Ints
    microbatch: Ints
    layer: Ints
    gpu: Ints
    prefetch: Bools
    expert: Ints
    used: Bools
    route: Ints
    size: Floats
    asked_s: Floats
    start_s: Floats
    end_s: Floats


class Wish(NamedTuple):
    """A prefetch not begun, asked for in layer `since`; at_once: nothing is awaited there."""

    step: int
    microbatch: int
    layer: int
    expert: int
    asked_s: float
    since: int
    at_once: bool


class Pool(NamedTuple):
    """How much a GPU keeps.

    slots: per layer; pooled: those of all layers are one pool; sizes: of the experts, relative to a
    slot (None: all 1); budget_bytes, expert_bytes: of one GPU's prefetches for a layer at one time
    (None: as the slots go), and of an expert of size 1.
    """

    layers: int
    slots: int
    pooled: bool = False
    sizes: Sequence[float] | None = None
    budget_bytes: float | None = None
    expert_bytes: float = 1.0

    @property
    def most(self) -> int:
        """Experts of size 1 of one layer that can be here at once."""
        return self.slots * self.layers if self.pooled else self.slots


class Sources(NamedTuple):
    """Whence weights come to a GPU.

    routes: per layer the route of each expert's weights (-1: held here for good, outside the
    slots); wire_bytes: what an expert of size 1 puts on the links of each route; links: the links
    of a route, None if a prefetch looks at its own copy stream only.
    """

    routes: Sequence[Sequence[int]]
    wire_bytes: Sequence[float]
    links: Callable[[int], frozenset[int]] | None = None
