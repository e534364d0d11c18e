"""Transport parameters from measured times.

The simulator itself says what a row's operation costs on raw wires: per kind of path the latency
and the seconds of its busiest link. What is left is linear but for the ramp,

    launch + per_peer (n - 1) + network_latency
    + max over kinds (latency + wire (1 + ramp) (1 + own_piece / pieces) / eff)

and fitted by least squares of the logarithm of simulated over measured, with a loss that grows
only linearly far out (soft_l1): a wrong row is not to bend the others. Parameters are not negative,
efficiencies not above 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.engine.collectives import UNIFORM
from simulator.engine.costs import at_once, pieces
from simulator.engine.homes import slowest_s
from simulator.engine.transport import algorithms, time_of
from simulator.errors import InputError
from simulator.spec.transport import Cost, KindEfficiency, Scale, Transport
from simulator.studies.validation.measured import Measurement
from simulator.studies.validation.simulated import TopologyOf, cluster, laid, scale_of, simulated_s

Floats = NDArray[np.float64]

SPREAD = 0.03  # relative error beyond which a row counts less than by its square
START = {
    "launch": 6e-6,
    "per_peer": 0.3e-6,
    "network_latency": 3e-6,
    "inverse": 1.4,
    "relay": 5e-12,
    "root": 2000.0,
    "own": 0.3,
}
DIGITS = 4  # of a parameter as it is written

# Kinds of path that no row takes keep what large transfers are known to reach.
UNFITTED = {"nvlink": 1.0, "pcie": 0.856, "network": 0.94}
UNFITTED_SOURCES = {
    "pcie": "efficiency.pcie where not fitted: 54.8 of 64 GB/s, H100 SXM host to device "
    "(Voltage Park and AI@GT, vpbenchmarking)",
    "network": "efficiency.network where not fitted: 46-48 of 50 GB/s per 400 Gb/s NIC, middle "
    "(github NVIDIA/nccl-tests issue 290)",
}


class Wire(NamedTuple):
    """What the messages of one kind of path need: seconds = latency_s + wire_s / efficiency.

    at_once_bytes: of a rank's messages that are on their way at once, which the ramp goes by;
    bandwidth_bytes_per_s: of the slowest link.
    """

    kind: str
    latency_s: float
    wire_s: float
    at_once_bytes: float
    bandwidth_bytes_per_s: float


class Row(NamedTuple):
    """A measurement as the fit sees it. pieces: as `costs.pieces`; crossing: messages of it cross
    the network.
    """

    measured: Measurement
    topology: str
    gpu: str
    algorithm: str
    wires: tuple[Wire, ...]
    pieces: int
    crossing: bool


class Fitted(NamedTuple):
    """A fitted transport, the number of rows and parameters, and the error over these rows."""

    transport: Transport
    rows: int
    parameters: int
    error: float


Key = tuple[str, ...]


def error_of(simulated: Sequence[float], measured: Sequence[float]) -> float:
    """exp(mean |ln(simulated / measured)|) - 1."""
    ratio = np.log(np.asarray(simulated) / np.asarray(measured))
    return float(np.expm1(np.abs(ratio).mean()))


def fit(
    measurements: Sequence[Measurement],
    topology_of: TopologyOf,
    like: Transport,
    fixed: Mapping[Key, float] | None = None,
) -> Fitted:
    """Fit the costs of `like` to measurements; its other keys stay.

    The first row's GPU model is the reference; others get two factors. fixed: parameters (as
    `unknowns` names them) that are known, in SI units. Raises InputError where there are fewer rows
    than parameters.
    """
    rows = prepare(measurements, topology_of, like)
    known = dict(fixed or {})
    unknown = [key for key in unknowns(rows) if key not in known]
    if len(rows) < len(unknown):
        wanted = ", ".join(sorted({f"{row.measured.operation} by {row.algorithm}" for row in rows}))
        raise InputError(
            f"{len(rows)} rows for {len(unknown)} parameters ({wanted}): give more rows"
        )
    values = _solve(rows, unknown, known)
    transport = _transport(rows, values, like)
    simulated = [simulated_s(row.measured, row.topology, transport) for row in rows]
    error = error_of(simulated, [row.measured.time_s for row in rows])
    return Fitted(transport, len(rows), len(unknown), error)


def prepare(
    measurements: Sequence[Measurement], topology_of: TopologyOf, like: Transport
) -> list[Row]:
    """Measurements with what they cost on raw wires, and the algorithm that they are taken for."""
    template = _template(like)
    known: dict[tuple[Any, ...], tuple[Wire, ...]] = {}
    rows = []
    for measured in measurements:
        topology = topology_of(measured)
        where = cluster(topology, measured.ranks)
        found = algorithms(where, template, measured.operation)
        # In the switch two ranks would send half as much again as in a ring.
        algorithm = "nvls" if "nvls" in found and measured.ranks > 2 else found[0]
        key = (*measured._replace(where="", time_s=0.0, size_bytes=0.0), topology)
        if key not in known:
            known[key] = _wires(measured, topology, template, algorithm)
        wires = tuple(_sized(wire, scale_of(measured)) for wire in known[key])
        crossing = any(wire.kind == "network" for wire in wires)
        sent = pieces(measured.operation, algorithm, measured.ranks)
        rows.append(Row(measured, topology, where.gpu.name, algorithm, wires, sent, crossing))
    return rows


def _sized(wire: Wire, scale: float) -> Wire:
    return wire._replace(wire_s=wire.wire_s * scale, at_once_bytes=wire.at_once_bytes * scale)


def _template(like: Transport) -> Transport:
    """`like` without costs of its own, and with all algorithms that are fitted."""
    tokens = ["two-tier" if like.deduplicate == "node" else "direct"]
    listed = {"alltoall": ["direct"], "sendrecv": ["direct"], "allreduce": ["ring", "nvls"]}
    listed |= {"allgather": ["ring"], "reducescatter": ["ring"]}
    listed |= {"dispatch": tokens, "combine": tokens}
    # Three different shares tell the kinds of path apart.
    cost = Cost.model_validate({"launch": "0 s", "efficiency": dict(_TELLING)})
    costs = {op: dict.fromkeys(names, cost) for op, names in listed.items()}
    return like.model_copy(update={"costs": costs, "scales": {}})


_TELLING = {"nvlink": 0.5, "pcie": 0.25, "network": 0.125}
_FREE = 1e15  # an efficiency at which a message takes no time
_LARGE = 1e12  # times the bytes of a row: latencies vanish beside it


def _wires(
    measured: Measurement, topology: str, template: Transport, algorithm: str
) -> tuple[Wire, ...]:
    """Per kind of path, what the messages need when those of the other kinds need nothing."""
    operation = laid(measured, topology, template, algorithm)
    found = []
    for kind, told in _TELLING.items():
        mine = [phase.efficiency == told for phase in operation.phases]
        if not any(some.any() for some in mine):
            continue
        alone = operation._replace(
            phases=tuple(
                phase._replace(efficiency=np.where(some, 1.0, _FREE))
                for phase, some in zip(operation.phases, mine, strict=True)
            )
        )
        chosen = list(zip(alone.phases, mine, strict=True))
        sizes = np.concatenate([phase.message_bytes[some] for phase, some in chosen])
        slowest = np.concatenate([slowest_s(phase.routes)[some] for phase, some in chosen])
        found.append(
            Wire(
                kind,
                max(time_of(alone, 1e-9).seconds, 0.0),
                time_of(alone, _LARGE).seconds / _LARGE,
                float(np.median(sizes)) * at_once(measured.operation, algorithm, measured.ranks),
                float(1.0 / slowest.max()),
            )
        )
    return tuple(found)


def unknowns(rows: Sequence[Row]) -> list[Key]:
    """The parameters that these rows can tell, in a fixed order.

    Shared, so as to need few: all algorithms of an operation have one launch; all ring operations
    have one efficiency per kind of path, and one own_piece; all algorithms have one ramp. A ring
    has no per_peer: it pays the latency of the path once per step. Two tiers at once are taken to
    wait for what the GPUs relay, not for the network, whose efficiency is then not fitted.
    """
    found: dict[Key, None] = {}
    for row in rows:
        op = row.measured.operation
        together = [other for other in rows if other.measured.operation == op]
        found["launch", op] = None
        counts = {other.measured.ranks for other in together if not other.crossing}
        if len(counts) > 1 and row.algorithm != "ring":
            found["per_peer", op, row.algorithm] = None
        if len({other.crossing for other in together}) > 1:
            found["network_latency", op] = None
        if _relaying(row):
            found["relay", op] = None
        for wire in row.wires:
            if not (_relaying(row) and wire.kind == "network"):
                found[_inverse(row, wire.kind)] = None
        alike = {other.pieces for other in rows if _own(other) == _own(row)}
        if op in _KEEPING and row.algorithm in ("ring", "direct") and len(alike) > 1:
            found[_own(row)] = None
        if op in UNIFORM and len({other.measured.size_bytes for other in rows}) > 2:
            found[_ROOT] = None
    for gpu in dict.fromkeys(row.gpu for row in rows if row.gpu != rows[0].gpu):
        found["latency scale", gpu] = found["efficiency scale", gpu] = None
    return list(found)


def _inverse(row: Row, kind: str) -> Key:
    """The parameter 1 / efficiency of a row."""
    ring = row.algorithm == "ring"
    return "inverse", "" if ring else row.measured.operation, row.algorithm, kind


_ROOT: Key = ("root",)  # the parameter sqrt(half_size)
_KEEPING = tuple(op for op in UNIFORM if op != "sendrecv")  # a rank keeps a piece of its own


def _own(row: Row) -> Key:
    """The parameter own_piece of a row."""
    return "own", row.algorithm


def _relaying(row: Row) -> bool:
    """Whether GPUs hand on what came over the network, while it comes."""
    return row.algorithm == "two-tier" and {"nvlink", "network"} <= {w.kind for w in row.wires}


def _predicted(rows: Sequence[Row], value: dict[Key, float]) -> Floats:
    """Seconds of each row by the formula of the module docstring, float64 [rows]."""
    out = np.empty(len(rows))
    for index, row in enumerate(rows):
        op, ranks = row.measured.operation, row.measured.ranks
        fixed = value["launch", op] + value.get(("per_peer", op, row.algorithm), 0.0) * (ranks - 1)
        if row.crossing:
            fixed += value.get(("network_latency", op), 0.0)
        network = max(wire.latency_s + _busy_s(row, wire, value) for wire in row.wires)
        out[index] = fixed * value.get(("latency scale", row.gpu), 1.0) + network
    return out


def _busy_s(row: Row, wire: Wire, value: dict[Key, float]) -> float:
    """Seconds that the busiest link of a kind of path is busy."""
    share = value.get(("efficiency scale", row.gpu), 1.0)
    inverse = value.get(_inverse(row, wire.kind), 1.0 / UNFITTED[wire.kind]) / share
    if wire.kind == "nvlink" and _relaying(row):
        relay = value.get(("relay", row.measured.operation), 0.0)
        inverse = max(inverse, relay * wire.bandwidth_bytes_per_s)
    ramp = value.get(_ROOT, 0.0) / math.sqrt(wire.at_once_bytes)
    return wire.wire_s * (1.0 + ramp) * (1.0 + value.get(_own(row), 0.0) / row.pieces) * inverse


def _solve(
    rows: Sequence[Row], unknown: Sequence[Key], known: Mapping[Key, float]
) -> dict[Key, float]:
    from scipy.optimize import least_squares

    measured = np.array([row.measured.time_s for row in rows])
    start = np.array([START.get(key[0], 1.0) for key in unknown])
    low = np.array([1.0 if key[0] == "inverse" else 0.0 for key in unknown]) / start
    low[[key[0].endswith("scale") for key in unknown]] = 0.1

    def residuals(x: Floats) -> Floats:
        value = {**known, **dict(zip(unknown, (x * start).tolist(), strict=True))}
        residual: Floats = np.log(_predicted(rows, value) / measured)
        return residual

    found = least_squares(
        residuals,
        np.ones(len(unknown)),
        bounds=(low, np.full(len(unknown), np.inf)),
        loss="soft_l1",
        f_scale=SPREAD,
        xtol=1e-10,
        ftol=1e-10,
    )
    return {**known, **dict(zip(unknown, (found.x * start).tolist(), strict=True))}


def _transport(rows: Sequence[Row], value: dict[Key, float], like: Transport) -> Transport:
    costs: dict[str, dict[str, Cost]] = {}
    for row in rows:
        op, algorithm = row.measured.operation, row.algorithm
        relay = value.get(("relay", op)) if _relaying(row) else None
        had = costs.setdefault(op, {}).get(algorithm)
        if had is not None and (relay is None or had.relay_rate_bytes_per_s is not None):
            continue
        share = {
            kind: rounded(1.0 / value[_inverse(row, kind)])
            if _inverse(row, kind) in value
            else unfitted
            for kind, unfitted in UNFITTED.items()
        }
        costs[op][algorithm] = Cost.model_construct(
            launch_s=rounded(value["launch", op]),
            per_peer_s=rounded(value.get(("per_peer", op, algorithm), 0.0)),
            network_latency_s=rounded(value.get(("network_latency", op), 0.0)),
            half_size_bytes=rounded(value.get(_ROOT, 0.0) ** 2),
            own_piece=rounded(value.get(_own(row), 0.0)),
            relay_rate_bytes_per_s=None if relay is None else rounded(1.0 / relay),
            efficiency=KindEfficiency(**share),
        )
    scales = {
        key[1]: Scale(
            latency=rounded(value[key]), efficiency=rounded(value["efficiency scale", key[1]])
        )
        for key in value
        if key[0] == "latency scale"
    }
    return like.model_copy(update={"costs": costs, "scales": scales})


def rounded(value: float) -> float:
    """A parameter as it is written; what is nothing beside a nanosecond or a byte is 0."""
    return float(f"{value:.{DIGITS}g}") if value > 1e-12 else 0.0
