"""GPUs that compute more slowly than the model says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from simulator.engine.serving.damage import Part
from simulator.engine.serving.group import Group
from simulator.spec.incidents import Fault

Floats = NDArray[np.float64]


class Stragglers:
    """State: how fast the GPUs of each group are when nothing is broken, and their random draws."""

    def __init__(self, groups: Sequence[Group], seed: int) -> None:
        self._groups = groups
        self._base = [group.speed.copy() for group in groups]
        self._rngs = [
            np.random.default_rng([seed, crc32(f"stragglers.{number}".encode())])
            for number in range(len(groups))
        ]

    def set(self, active: Iterable[tuple[Fault, Part]]) -> None:
        """Have the GPUs compute as the faults that last say; factors multiply."""
        gpus = sum(group.of.ranks for group in self._groups)
        factor, spread = np.ones(gpus), np.zeros(gpus)
        for fault, part in active:
            if fault.do == "slow":
                mine = list(part.gpus)
                factor[mine] *= fault.factor or 1.0
                spread[mine] = np.hypot(spread[mine], fault.spread)
        first = 0
        for number, group in enumerate(self._groups):
            those = slice(first, first + group.of.ranks)
            group.speed[:] = self._base[number] * factor[those]
            group.spread = self._draws(number, spread[those]) if spread[those].any() else None
            first = those.stop

    def _draws(self, number: int, spread: Floats) -> Callable[[], Floats]:
        rng = self._rngs[number]
        # The mean of a lognormal of these parameters is 1.
        return lambda: np.exp(rng.normal(-0.5 * spread**2, spread))
