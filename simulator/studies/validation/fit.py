"""Transport parameters from measured times.

The simulator itself says what a row's operation costs on raw wires: per kind of path the latency
and the seconds of its busiest link. What is left is linear but for the ramp,

    launch + per_peer (n - 1) + network_latency + max over kinds (latency + wire (1 + ramp) / eff)

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

from simulator.engine.collectives import COLLECTIVES, UNIFORM
from simulator.engine.transport import algorithms, time_of
from simulator.errors import InputError
from simulator.spec.transport import Cost, KindEfficiency, Scale, Transport
from simulator.studies.validation.measured import Measurement
from simulator.studies.validation.simulated import TopologyOf, cluster, laid, scale_of, simulated_s

Floats = NDArray[np.float64]

SPREAD = 0.03  # relative error beyond which a row counts less than by its square
START = {"launch": 6e-6, "per_peer": 0.3e-6, "network_latency": 3e-6, "inverse": 1.4, "root": 150.0}
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
    """What the messages of one kind of path need: seconds = latency_s + wire_s / efficiency."""

    kind: str
    latency_s: float
    wire_s: float
    message_bytes: float


class Row(NamedTuple):
    """A measurement as the fit sees it. `crossing`: messages of it cross the network."""

    measured: Measurement
    topology: str
    gpu: str
    algorithm: str
    wires: tuple[Wire, ...]
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
        algorithm = "nvls" if "nvls" in found else found[0]
        key = (*measured._replace(where="", time_s=0.0, size_bytes=0.0), topology)
        if key not in known:
            known[key] = _wires(measured, topology, template, algorithm)
        wires = tuple(_sized(wire, scale_of(measured)) for wire in known[key])
        crossing = any(wire.kind == "network" for wire in wires)
        rows.append(Row(measured, topology, where.gpu.name, algorithm, wires, crossing))
    return rows


def _sized(wire: Wire, scale: float) -> Wire:
    return wire._replace(wire_s=wire.wire_s * scale, message_bytes=wire.message_bytes * scale)


def _template(like: Transport) -> Transport:
    """`like` without costs of its own, and with all algorithms that are fitted."""
    tokens = ["two-tier" if like.deduplicate == "node" else "direct"]
    listed = {op: [name for name in table if name != "tree"] for op, table in COLLECTIVES.items()}
    listed |= {"alltoall": ["direct", "pair"], "allgather": ["ring", "pair"]}
    listed |= {"reducescatter": ["ring", "pair"], "dispatch": tokens, "combine": tokens}
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
        wire_s = time_of(alone, _LARGE).seconds / _LARGE
        # A ring's flow is many messages; the ramp goes by one of them.
        sizes = [phase.message_bytes[some] for phase, some in zip(alone.phases, mine, strict=True)]
        found.append(
            Wire(
                kind,
                max(time_of(alone, 1e-9).seconds, 0.0),
                wire_s,
                float(np.median(np.concatenate(sizes))),
            )
        )
    return tuple(found)


def unknowns(rows: Sequence[Row]) -> list[Key]:
    """The parameters that these rows can tell, in a fixed order.

    Shared, so as to need few: all ring operations have one efficiency per kind of path; all
    algorithms of more than two ranks have one ramp, and `pair` has its own. A ring has no per_peer:
    it pays the latency of the path once per step.
    """
    found: dict[Key, None] = {}
    for row in rows:
        op, owner = row.measured.operation, _owner(row, rows)
        together = [other for other in rows if _launch(other, rows) == _launch(row, rows)]
        found["launch", op, owner] = None
        counts = {other.measured.ranks for other in together if not other.crossing}
        if len(counts) > 1 and owner != "ring":
            found["per_peer", op, owner] = None
        if len({other.crossing for other in together}) > 1:
            found["network_latency", op, owner] = None
        for wire in row.wires:
            found[_inverse(row, wire.kind)] = None
        sizes = {o.measured.size_bytes for o in rows if _root(o) == _root(row)}
        if op in UNIFORM and len(sizes) > 2:
            found[_root(row)] = None
    for gpu in dict.fromkeys(row.gpu for row in rows if row.gpu != rows[0].gpu):
        found["latency scale", gpu] = found["efficiency scale", gpu] = None
    return list(found)


def _inverse(row: Row, kind: str) -> Key:
    """The parameter 1 / efficiency of a row."""
    ring = row.algorithm == "ring"
    return "inverse", "" if ring else row.measured.operation, row.algorithm, kind


def _root(row: Row) -> Key:
    """The parameter sqrt(half_size) of a row."""
    return "root", "pair" if row.algorithm == "pair" else "many"


def _launch(row: Row, rows: Sequence[Row]) -> Key:
    return row.measured.operation, _owner(row, rows)


def _owner(row: Row, rows: Sequence[Row]) -> str:
    """The algorithm whose launch and per_peer a row takes.

    Two ranks (`pair`) take those of the first algorithm that more ranks use: from one rank count
    alone, launch and per_peer cannot be told apart.
    """
    if row.algorithm != "pair":
        return row.algorithm
    others = (
        other.algorithm
        for other in rows
        if other.measured.operation == row.measured.operation and other.algorithm != "pair"
    )
    return next(others, "pair")


def _predicted(rows: Sequence[Row], value: dict[Key, float], owners: Sequence[str]) -> Floats:
    """Seconds of each row by the formula of the module docstring, float64 [rows]."""
    out = np.empty(len(rows))
    for index, (row, owner) in enumerate(zip(rows, owners, strict=True)):
        op, ranks = row.measured.operation, row.measured.ranks
        fixed = value["launch", op, owner] + value.get(("per_peer", op, owner), 0.0) * (ranks - 1)
        if row.crossing:
            fixed += value.get(("network_latency", op, owner), 0.0)
        root = value.get(_root(row), 0.0)
        share = value.get(("efficiency scale", row.gpu), 1.0)
        network = max(
            wire.latency_s
            + wire.wire_s
            * (1.0 + root / math.sqrt(wire.message_bytes))
            * value[_inverse(row, wire.kind)]
            / share
            for wire in row.wires
        )
        out[index] = fixed * value.get(("latency scale", row.gpu), 1.0) + network
    return out


def _solve(
    rows: Sequence[Row], unknown: Sequence[Key], known: Mapping[Key, float]
) -> dict[Key, float]:
    from scipy.optimize import least_squares

    measured = np.array([row.measured.time_s for row in rows])
    owners = [_owner(row, rows) for row in rows]
    start = np.array([START.get(key[0], 1.0) for key in unknown])
    low = np.array([1.0 if key[0] == "inverse" else 0.0 for key in unknown]) / start
    low[[key[0].endswith("scale") for key in unknown]] = 0.1

    def residuals(x: Floats) -> Floats:
        value = {**known, **dict(zip(unknown, (x * start).tolist(), strict=True))}
        residual: Floats = np.log(_predicted(rows, value, owners) / measured)
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
        op, owner = row.measured.operation, _owner(row, rows)
        if row.algorithm in costs.setdefault(op, {}):
            continue
        share = {
            kind: rounded(1.0 / value[_inverse(row, kind)])
            if _inverse(row, kind) in value
            else unfitted
            for kind, unfitted in UNFITTED.items()
        }
        costs[op][row.algorithm] = Cost.model_construct(
            launch_s=rounded(value["launch", op, owner]),
            per_peer_s=rounded(value.get(("per_peer", op, owner), 0.0)),
            network_latency_s=rounded(value.get(("network_latency", op, owner), 0.0)),
            half_size_bytes=rounded(value.get(_root(row), 0.0) ** 2),
            efficiency=KindEfficiency(**share),
        )
    # What is used most first: `pair` is for two ranks only.
    costs = {
        op: {name: listed[name] for name in sorted(listed, key=lambda name: name == "pair")}
        for op, listed in costs.items()
    }
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
