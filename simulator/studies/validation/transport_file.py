"""A fitted transport as the text of a YAML file, with what it was fitted to in `sources`."""

from __future__ import annotations

import json
from collections.abc import Sequence

from simulator.spec.transport import Cost, Transport
from simulator.studies.validation.fit import UNFITTED_SOURCES, Fitted, Row, error_of, unknowns
from simulator.studies.validation.simulated import simulated_s

ERROR = "exp(mean |ln(simulated / measured)|) - 1"


def transport_text(transport: Transport) -> str:
    """The transport as a YAML file that `load_transport` reads back to the same."""
    lines = [f"name: {_text(transport.name)}"]
    if transport.description:
        lines.append(f"description: {_text(transport.description)}")
    if transport.sources:
        lines += ["sources:", *(f"  - {_text(source)}" for source in transport.sources)]
    plain = Transport.model_construct(name="", costs={})
    for key in (
        "deduplicate",
        "path",
        "dispatch_bytes_per_element",
        "dispatch_header_bytes",
        "combine_bytes_per_element",
        "combine_header_bytes",
        "sms",
    ):
        value = getattr(transport, key)
        if value != getattr(plain, key) or key == "deduplicate":
            lines.append(f"{key}: {value}")
    lines.append("costs:")
    for operation, algorithms in transport.costs.items():
        lines.append(f"  {operation}:")
        for algorithm, cost in algorithms.items():
            lines += [f"    {algorithm}:", *(f"      {line}" for line in _cost_lines(cost))]
    if transport.scales:
        lines.append("scales:")
        lines += [
            f"  {_text(gpu)}: {{latency: {scale.latency:g}, efficiency: {scale.efficiency:g}}}"
            for gpu, scale in transport.scales.items()
        ]
    return "\n".join(lines) + "\n"


def _cost_lines(cost: Cost) -> list[str]:
    lines = [f"launch: {_microseconds(cost.launch_s)}"]
    if cost.per_peer_s:
        lines.append(f"per_peer: {_microseconds(cost.per_peer_s)}")
    if cost.network_latency_s:
        lines.append(f"network_latency: {_microseconds(cost.network_latency_s)}")
    if cost.half_size_bytes:
        lines.append(f"half_size: {_number(cost.half_size_bytes / 1e3)} kB")
    if cost.own_piece:
        lines.append(f"own_piece: {_number(cost.own_piece)}")
    if cost.relay_rate_bytes_per_s is not None:
        lines.append(f"relay_rate: {_number(cost.relay_rate_bytes_per_s / 1e9)} GB/s")
    share = cost.efficiency
    shares = f"nvlink: {share.nvlink:g}, pcie: {share.pcie:g}, network: {share.network:g}"
    return [*lines, f"efficiency: {{{shares}}}"]


def _microseconds(seconds: float) -> str:
    return f"{_number(seconds * 1e6)} us"


def _number(value: float) -> str:
    """A number with at most four digits, not in powers of ten."""
    text = f"{float(f'{value:.4g}'):.7f}"
    return text.rstrip("0").rstrip(".")


def _text(text: str) -> str:
    """Text as a YAML scalar: plain where nothing in it could be misread."""
    plain = text.replace("-", "").replace("_", "").isalnum() and not text[0].isdigit()
    return text if plain else json.dumps(text, ensure_ascii=False)


def fit_sources(fitted: Fitted, rows: Sequence[Row], tables: Sequence[str]) -> tuple[str, ...]:
    """What `sources` says of a fit: rows, parameters and error, as a whole and by operation.

    rows: those that were fitted; tables: where they come from, a sentence each.
    """
    found = [
        f"costs: fitted to {fitted.rows} rows with {fitted.parameters} parameters, "
        f"error {fitted.error:.1%} ({ERROR})"
    ]
    for operation in fitted.transport.costs:
        mine = [row for row in rows if row.measured.operation == operation]
        if mine:
            error = error_of(
                [simulated_s(row.measured, row.topology, fitted.transport) for row in mine],
                [row.measured.time_s for row in mine],
            )
            where = sorted({(row.topology, row.measured.ranks) for row in mine})
            used = ", ".join(f"{ranks} ranks of {topology}" for topology, ranks in where)
            found.append(f"costs.{operation}: {len(mine)} rows, {used}; error {error:.1%}")
    kinds = {key[-1] for key in unknowns(rows) if key[0] == "inverse"}
    return (
        *found,
        *tables,
        *(source for kind, source in UNFITTED_SOURCES.items() if kind not in kinds),
    )
