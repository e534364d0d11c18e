"""Keys and values of resolved inputs as they are written in YAML and after --set.

A resolved input is in SI units, and its keys say which (`bandwidth_bytes_per_s`); a file has the
key without and the value with the unit (`bandwidth: 64 GB/s`).
"""

from __future__ import annotations

from collections.abc import Sequence

_Scales = Sequence[tuple[float, str]]


def _decimal(unit: str, prefixes: str) -> _Scales:
    return [(10.0 ** (3 * at), f"{prefix.strip()}{unit}") for at, prefix in enumerate(prefixes)]


_PICO = 1e-12
_DECIMAL = " kMGTP"
_BYTES = (*_decimal("B", _DECIMAL), (2.0**20, "MiB"), (2.0**30, "GiB"), (2.0**40, "TiB"))
_SCALES: dict[str, tuple[str, _Scales]] = {
    "flops_per_s": ("flops", _decimal("FLOP/s", _DECIMAL)),
    "price_per_hour": ("price", [(1.0, "$/h")]),
    "_bytes_per_s": ("", _decimal("B/s", _DECIMAL)),
    "_tokens_per_year": ("", [(1.0, "tokens/year"), (12.0, "tokens/month")]),
    "_usd_per_kwh": ("", [(1.0, "$/kWh")]),
    "_j_per_byte": ("", [(8 * _PICO, "pJ/bit")]),
    "_j_per_flop": ("", [(_PICO, "pJ/FLOP")]),
    "_header_bytes": ("_header_bytes", _BYTES),
    "_bytes": ("", _BYTES),
    "_w": ("", _decimal("W", " k")),
    "_s": ("", [(1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns")]),
}
"""Ends of resolved names: what stands in their place in a file, and the units that it takes.
Longer ends come before those that they end in."""


def as_written(key: str, value: object) -> tuple[str, str]:
    """A dotted key and its value as a file has them: ("build.pcie.bandwidth", "64 GB/s").

    Values keep ten digits: those that differ by less look the same.
    """
    parts, scales = [], None
    for part in key.split("."):
        end = next((end for end in _SCALES if part.endswith(end)), None)
        if end is None:
            parts.append(part)
            continue
        instead, scales = _SCALES[end]
        parts.append(part.removesuffix(end) + instead)
    return ".".join(parts), _text(value, scales)


def _text(value: object, scales: _Scales | None) -> str:
    if value is None:
        return "(none)"
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, int | float):
        return str(value)
    if scales is None or value == 0:
        return f"{value:.10g}{f' {scales[0][1]}' if scales else ''}"
    # The unit with which the figure is shortest, but not in powers of ten.
    told = [(f"{value / scale:.10g}", unit) for scale, unit in scales]
    plain = [(figure, unit) for figure, unit in told if "e" not in figure]
    lengths = [len(figure) for figure, _ in plain or told]
    return " ".join((plain or told)[lengths.index(min(lengths))])
