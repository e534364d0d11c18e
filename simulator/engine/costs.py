"""What a transport's cost makes of messages: the one place of its formula (docs/transports.md)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.routes import KINDS, NVLINK, RouteTable
from simulator.engine.homes import slowest_s
from simulator.spec.schema import CopyEfficiency
from simulator.spec.transport import Cost, KindEfficiency, Scale

Floats = NDArray[np.float64]


def fixed_s(cost: Cost, scale: Scale, ranks: int, crossing: bool) -> float:
    """Seconds that an operation takes before its messages; crossing: some cross the network."""
    network_s = cost.network_latency_s if crossing else 0.0
    return (cost.launch_s + cost.per_peer_s * (ranks - 1) + network_s) * scale.latency


def half_size(cost: Cost, op: str, algorithm: str, ranks: int) -> float:
    """Bytes of a message of an operation that reaches half of the efficiency."""
    return cost.half_size_bytes / max(at_once(op, algorithm, ranks), 1)


def efficiencies(
    cost: Cost,
    scale: Scale,
    operation: tuple[str, str],
    ranks: int,
    routes: RouteTable,
    crossing: bool,
) -> Floats:
    """Share of the raw bandwidth that large messages of an operation (its name, its algorithm)
    reach on routes, float64 [routes]; crossing: some of its messages cross the network.
    """
    share = by_kind(cost.efficiency, scale.efficiency)[routes.kind_of]
    rate = cost.relay_rate_bytes_per_s
    if rate is not None and crossing:
        relayed = np.minimum(share, rate * slowest_s(routes))
        share = np.where(routes.kind_of == NVLINK, relayed, share)
    return np.asarray(share / (1.0 + cost.own_piece / max(pieces(*operation, ranks), 1)))


def pieces(op: str, algorithm: str, ranks: int) -> int:
    """How many pieces, each an n-th of its data, a rank sends. Its own, which does not travel, is
    copied, or reduced, all the same (`Cost.own_piece`).
    """
    return (ranks - 1) * (2 if (op, algorithm) == ("allreduce", "ring") else 1)


def at_once(op: str, algorithm: str, ranks: int) -> int:
    """How many messages of a rank are on their way at once: to all its peers, or one, which a ring
    or tree sends piece by piece.
    """
    apart = algorithm in ("direct", "two-tier") and op != "sendrecv"
    return ranks - 1 if apart else 1


def by_kind(efficiency: KindEfficiency | CopyEfficiency, scale: float = 1.0) -> Floats:
    """The efficiency of each kind of path, in the order of `routes.KINDS`, float64 [kinds]."""
    return np.array([getattr(efficiency, kind) for kind in KINDS], dtype=np.float64) * scale


def on_wire(
    message_bytes: Floats, messages: Floats, half_size_bytes: float, efficiency: Floats
) -> Floats:
    """Bytes that flows put on links of raw bandwidth, float64 [flows]."""
    ramp = np.sqrt(half_size_bytes * message_bytes)
    return messages * (message_bytes + ramp) / efficiency
