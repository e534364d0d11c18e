"""The transfers of a program: the core's send table while it grows.

With `network: coflow` the transfers of a collective are one flow (`links.merged`); collectives that
are alike share it.
"""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
from numpy.typing import NDArray

from simulator.engine.links import Merged, Wires, joined, merged

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Table = tuple[Ints, Ints, Floats]

NOTHING_SENT = -1  # row of a collective without transfers


class Sends:
    """The send table of one program. State: its rows so far, and the collectives as one flow."""

    def __init__(self, wires: Wires) -> None:
        self._flows: list[Merged] = []
        self._wires = wires
        self._row_of: dict[Hashable, int] = {}
        self._ptr = [np.zeros(1, dtype=np.int32)]
        self._rows: list[Ints] = []
        self._sizes: list[Floats] = []
        self._count = 0
        self._transfers = 0

    def add(self, senders: int, sender: Longs, further: Longs, route: Ints, wire: Floats) -> Ints:
        """Transfers sorted by sender, of `wire` bytes; returns the row of each sender, int32
        [senders]. `further`: offset of the receiver.
        """
        self._rows.append(np.stack([further, route], axis=1).astype(np.int32))
        self._sizes.append(wire)
        ends = self._transfers + np.cumsum(np.bincount(sender, minlength=senders))
        self._ptr.append(ends.astype(np.int32))
        self._transfers += len(wire)
        first = self._count
        self._count += senders
        return np.arange(first, self._count, dtype=np.int32)

    def whole(self, key: Hashable, route: Ints, wire: Floats) -> int:
        """All transfers of a collective as one flow; returns its row, NOTHING_SENT without any.

        Collectives of the same `key` are the same transfers.
        """
        if not len(route):
            return NOTHING_SENT
        if key not in self._row_of:
            flow = merged(self._wires, np.array([0, len(route)]), route, wire)
            number = self._wires.routes + len(self._flows)
            self._flows.append(flow)
            one = np.zeros(1, dtype=np.int64)
            at = np.array([number], dtype=np.int32)
            rows = self.add(1, one, one, at, flow.size_bytes)
            self._row_of[key] = int(rows[0])
        return self._row_of[key]

    def collectives(self) -> Merged | None:
        """The collectives that are one flow, None if there are none."""
        return joined(self._flows) if self._flows else None

    def table(self) -> Table:
        """send_ptr int32 [rows + 1], send_i int32 [sends, 2], send_f float64 [sends]."""
        rows = np.concatenate([np.zeros((0, 2), dtype=np.int32), *self._rows])
        return np.concatenate(self._ptr), rows, np.concatenate([np.zeros(0), *self._sizes])
