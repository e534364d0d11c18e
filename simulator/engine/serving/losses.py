"""Requests that lose the KV cache they were in."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.engine.serving import scheduler
from simulator.engine.serving.handover import Handover
from simulator.engine.serving.service import Service

Bools = NDArray[np.bool_]


class Losses:
    """State: how many requests failed because of it (`failed`)."""

    def __init__(self, service: Service, handover: Handover | None) -> None:
        self._service, self._handover = service, handover
        self.failed = 0

    def workers(self, group: int) -> slice:
        """The workers of a group."""
        return slice(int(self._service.first[group]), int(self._service.first[group + 1]))

    def lose(self, group: int, gone: Bools) -> None:
        """GPUs of a group are gone (bool [ranks]), and the KV that they held."""
        if not gone.any():
            return
        mask = self._mask(group, gone)
        self._service.there[mask] = False
        self._displace(mask)
        for rank in np.flatnonzero(gone).tolist():
            self._service.groups[group].forget(rank)

    def leave(self, group: int) -> None:
        """All requests of a group go elsewhere."""
        self._displace(self._mask(group, True))

    def others(self, group: int) -> bool:
        """Whether another group takes what this one did."""
        entry = self._service.entry
        return bool((self._service.open & (entry == entry[group])).any())

    def clear_transfers(self, group: int) -> None:
        """Before KV caches shrink: what waits in them to be sent, or is to come, begins anew."""
        if self._handover is None:
            return
        mask = self._mask(group, True)
        state = self._service.ledger.state
        there = self._service.at_workers(mask)
        waiting = {request for request in there if state[request] == scheduler.HANDED_ON}
        both = sorted(waiting | {*self._handover.bound_for(mask)})
        self.failed += self._service.displace(both)

    def _mask(self, group: int, ranks: Bools | bool) -> Bools:
        mask = np.zeros(len(self._service.group_of), dtype=np.bool_)
        mask[self.workers(group)] = ranks
        return mask

    def _displace(self, workers: Bools) -> None:
        requests = self._service.at_workers(workers)
        if self._handover is not None:
            requests = sorted({*requests, *self._handover.bound_for(workers)})
        self.failed += self._service.displace(requests)
