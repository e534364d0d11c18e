"""Requests as arrays: when each arrives, and how long its prompt and output are."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from simulator.errors import InputError

Floats = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Int16s = npt.NDArray[np.int16]


@dataclass(frozen=True)
class Requests:
    """n requests in the order in which they arrive.

    `arrival_s` float64 [n], never decreasing, from the start of the window; `prompt_tokens`,
    `output_tokens` int32 [n], at least 1; `priority` int16 [n], larger = more urgent. Request i's
    prefix blocks are `block_hash[block_ptr[i]:block_ptr[i + 1]]` (`block_ptr` int64 [n + 1],
    `block_hash` int64), `block_tokens` tokens each and the last one what is left; equal hashes =
    equal text up to the block's end; no blocks (0 tokens) where nothing is known. `concurrency`:
    None = open, arrivals as given; N = closed, the next request comes when one of N has ended, and
    all `arrival_s` are 0. `source`: file or law; `notes`: what was left out or changed.
    """

    arrival_s: Floats
    prompt_tokens: Int32s
    output_tokens: Int32s
    priority: Int16s
    block_ptr: Int64s
    block_hash: Int64s
    block_tokens: int
    source: str
    notes: list[str] = field(default_factory=list)
    concurrency: int | None = None

    def __len__(self) -> int:
        """How many requests there are."""
        return len(self.arrival_s)

    def window(self, start_s: float, end_s: float) -> Requests:
        """The requests that arrive at start_s <= t < end_s, times counted from start_s."""
        first, last = np.searchsorted(self.arrival_s, (start_s, end_s), side="left")
        kept = self._rows(int(first), max(int(first), int(last)))
        return replace(kept, arrival_s=kept.arrival_s - start_s)

    def scaled(self, rate_factor: float) -> Requests:
        """The same requests, `rate_factor` times as many per second; raises InputError for a
        factor that is not finite and above 0.
        """
        if not (np.isfinite(rate_factor) and rate_factor > 0):
            raise InputError(f"rate scale {rate_factor:g}: must be a finite number above 0")
        return replace(self, arrival_s=self.arrival_s / rate_factor)

    def first(self, n: int) -> Requests:
        """The first n requests, or all if there are fewer."""
        return self._rows(0, min(max(n, 0), len(self)))

    def _rows(self, first: int, last: int) -> Requests:
        ptr = self.block_ptr[first : last + 1]
        return replace(
            self,
            arrival_s=self.arrival_s[first:last],
            prompt_tokens=self.prompt_tokens[first:last],
            output_tokens=self.output_tokens[first:last],
            priority=self.priority[first:last],
            block_ptr=ptr - ptr[0],
            block_hash=self.block_hash[ptr[0] : ptr[-1]],
            notes=list(self.notes),
        )


def plain_requests(
    arrival_s: Floats,
    prompt_tokens: npt.ArrayLike,
    output_tokens: npt.ArrayLike,
    source: str,
    notes: list[str] | None = None,
) -> Requests:
    """Requests of priority 0 without prefix blocks; shapes [n]."""
    n = len(arrival_s)
    return Requests(
        arrival_s=arrival_s,
        prompt_tokens=np.asarray(prompt_tokens, dtype=np.int32),
        output_tokens=np.asarray(output_tokens, dtype=np.int32),
        priority=np.zeros(n, dtype=np.int16),
        block_ptr=np.zeros(n + 1, dtype=np.int64),
        block_hash=np.empty(0, dtype=np.int64),
        block_tokens=0,
        source=source,
        notes=[] if notes is None else notes,
    )
