"""What a transport's cost makes of messages: the one place of its formula (docs/transports.md)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.routes import KINDS
from simulator.spec.schema import CopyEfficiency
from simulator.spec.transport import Cost, KindEfficiency, Scale

Floats = NDArray[np.float64]


def fixed_s(cost: Cost, scale: Scale, ranks: int, crossing: bool) -> float:
    """Seconds that an operation takes before its messages; crossing: some cross the network."""
    network_s = cost.network_latency_s if crossing else 0.0
    return (cost.launch_s + cost.per_peer_s * (ranks - 1) + network_s) * scale.latency


def by_kind(efficiency: KindEfficiency | CopyEfficiency, scale: float = 1.0) -> Floats:
    """The efficiency of each kind of path, in the order of `routes.KINDS`, float64 [kinds]."""
    return np.array([getattr(efficiency, kind) for kind in KINDS], dtype=np.float64) * scale


def on_wire(
    message_bytes: Floats, messages: Floats, half_size_bytes: float, efficiency: Floats
) -> Floats:
    """Bytes that flows put on links of raw bandwidth, float64 [flows]."""
    ramp = np.sqrt(half_size_bytes * message_bytes)
    return messages * (message_bytes + ramp) / efficiency
