"""Which resident expert makes room."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol


class Resident(Protocol):
    """What an eviction policy sees of an expert that may go: times count accesses of the GPU."""

    @property
    def expert(self) -> int:
        """Which expert of the layer."""

    @property
    def last_use(self) -> int:
        """Number of the last access, or of the prefetch that brought it."""

    @property
    def uses(self) -> int:
        """Accesses since it came."""


Eviction = Callable[[Sequence[Resident]], int]


def lru(candidates: Sequence[Resident]) -> int:
    """The least recently used."""
    best = candidates[0]
    for candidate in candidates:
        if candidate.last_use < best.last_use:
            best = candidate
    return best.expert


EVICTIONS: dict[str, Eviction] = {"lru": lru}
