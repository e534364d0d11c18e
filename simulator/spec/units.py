"""Quantities as people write them ("450 GB/s", "2 us", "80 GiB") to SI floats.

The parser is strict on purpose: a number without a unit is refused, ``b`` is a bit and ``B`` a
byte, ``G`` is 1e9 and ``Gi`` is 2**30. Values are converted in decimal arithmetic, so "3 us" is
exactly the float ``3e-06``.
"""

from __future__ import annotations

import difflib
import math
import re
from decimal import Decimal
from typing import Literal

from simulator.errors import InputError

Dimension = Literal[
    "bandwidth",
    "time",
    "bytes",
    "flops",
    "power",
    "price",
    "bit energy",
    "FLOP energy",
    "tariff",
    "volume",
]


class QuantityError(InputError, ValueError):
    """A quantity that cannot be read; also a ValueError so that pydantic collects it with the
    others.
    """


_DECIMAL = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50}


def _with_prefixes(
    prefixes: dict[str, int], base: str, scale: Decimal = Decimal(1)
) -> dict[str, Decimal]:
    return {prefix + base: Decimal(factor) * scale for prefix, factor in prefixes.items()}


_EIGHTH = Decimal("0.125")
_FLOP_PREFIXES = {**_DECIMAL, "E": 10**18}
_JOULES = {
    "fJ": Decimal("1e-15"),
    "pJ": Decimal("1e-12"),
    "nJ": Decimal("1e-9"),
    "uJ": Decimal("1e-6"),
    "J": Decimal(1),
}
# A year of 365 days; a month is a twelfth of it.
_PER_YEAR = {"s": 31_536_000, "h": 8760, "day": 365, "month": 12, "year": 1}

UNITS: dict[Dimension, dict[str, Decimal]] = {
    "bandwidth": {
        **_with_prefixes({**_DECIMAL, **_BINARY}, "B/s"),
        **_with_prefixes(_DECIMAL, "b/s", _EIGHTH),
        **_with_prefixes(_DECIMAL, "bit/s", _EIGHTH),
    },
    "time": {
        "ns": Decimal("1e-9"),
        "us": Decimal("1e-6"),
        "\N{MICRO SIGN}s": Decimal("1e-6"),
        "\N{GREEK SMALL LETTER MU}s": Decimal("1e-6"),
        "ms": Decimal("1e-3"),
        "s": Decimal(1),
        "min": Decimal(60),
        "h": Decimal(3600),
    },
    "bytes": _with_prefixes({**_DECIMAL, **_BINARY}, "B"),
    "flops": {
        **_with_prefixes(_FLOP_PREFIXES, "FLOP/s"),
        **_with_prefixes(_FLOP_PREFIXES, "FLOPS"),
    },
    "power": {"mW": Decimal("1e-3"), "W": Decimal(1), "kW": Decimal(1000), "MW": Decimal(10**6)},
    "price": {"$/h": Decimal(1)},
    "bit energy": {
        **{f"{joule}/bit": 8 * factor for joule, factor in _JOULES.items()},
        **{f"{joule}/B": factor for joule, factor in _JOULES.items()},
    },
    "FLOP energy": {f"{joule}/FLOP": factor for joule, factor in _JOULES.items()},
    "tariff": {"$/kWh": Decimal(1), "$/MWh": Decimal("1e-3")},
    "volume": {f"tokens/{per}": Decimal(times) for per, times in _PER_YEAR.items()},
}
"""Factor from each unit to SI (B/s, s, B, FLOP/s, W, J/B, J/FLOP); $/h for prices, $/kWh for
tariffs, tokens/year for volumes."""

_EXAMPLES: dict[Dimension, tuple[str, str]] = {
    "bandwidth": ("450", "GB/s"),
    "time": ("2", "us"),
    "bytes": ("80", "GiB"),
    "flops": ("989", "TFLOP/s"),
    "power": ("700", "W"),
    "price": ("4", "$/h"),
    "bit energy": ("6", "pJ/bit"),
    "FLOP energy": ("0.7", "pJ/FLOP"),
    "tariff": ("0.10", "$/kWh"),
    "volume": ("1e9", "tokens/month"),
}

_NUMBER = r"(?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,5})?)(?![0-9.])"
_QUANTITY = re.compile(rf"(?P<sign>[+-]?){_NUMBER}[ \t]*(?P<unit>\S.*)?", re.ASCII)
_DOLLARS_FIRST = re.compile(rf"(?P<sign>[+-]?)\$[ \t]*{_NUMBER}[ \t]*(?P<unit>/.*)", re.ASCII)
_NOT_FINITE = re.compile(r"[+-]?\.?(nan|inf|infinity)\b.*", re.IGNORECASE)


def parse_quantity(text: object, dimension: Dimension) -> float:
    """Reads ``text`` as a quantity of ``dimension`` and returns it in SI units.

    bandwidth -> B/s, time -> s, bytes -> B, flops -> FLOP/s, power -> W, price -> $/h, bit energy
    -> J/B, FLOP energy -> J/FLOP, tariff -> $/kWh, volume -> tokens/year. Zero is returned as 0.0
    (whether it is allowed is the schema's choice); negative, infinite and NaN values, bare numbers
    and unknown units raise ``QuantityError`` with one line that shows how to
    write it.
    """
    example = " ".join(_EXAMPLES[dimension])
    if isinstance(text, bool) or not isinstance(text, (str, int, float)):
        raise QuantityError(f'{_show(text)} is not a {dimension}; write for example "{example}"')
    if isinstance(text, (int, float)):
        if not math.isfinite(text):
            raise QuantityError(f'{text} is not finite; write for example "{example}"')
        raise QuantityError(_bare_number(str(text), dimension))
    stripped = text.strip()
    if _NOT_FINITE.fullmatch(stripped):
        raise QuantityError(f'{stripped!r} is not finite; write for example "{example}"')
    match = _QUANTITY.fullmatch(stripped)
    if match is None and dimension in ("price", "tariff"):
        match = _DOLLARS_FIRST.fullmatch(stripped)
    if match is None:
        raise QuantityError(f'{stripped!r} is not a {dimension}; write for example "{example}"')
    number, unit = match["number"], match["unit"]
    if unit is None:
        raise QuantityError(_bare_number(match["sign"] + number, dimension))
    if unit.startswith("/"):
        unit = "$" + unit
    factor = UNITS[dimension].get(unit)
    if factor is None:
        raise QuantityError(_unknown_unit(number, unit, dimension))
    value = float(Decimal(number) * factor)
    if match["sign"] == "-" and value != 0.0:
        raise QuantityError(f"{stripped!r} is negative; a {dimension} cannot be")
    if not math.isfinite(value):
        raise QuantityError(f"{stripped!r} is too large for a {dimension}")
    return value


def counted(number: int, word: str, more: str = "s") -> str:
    """So many of a thing: "1 step", "1,024 steps"; `more` is what the word takes for several."""
    return f"{number:,} {word}{'' if number == 1 else more}"


def nearest(word: str, known: list[str]) -> str | None:
    """The entry of ``known`` that ``word`` most likely meant, or None when nothing is close."""
    lowered: dict[str, str] = {}
    for candidate in known:
        lowered.setdefault(candidate.lower(), candidate)
    longer = [candidate for candidate in lowered if candidate.startswith(word.lower())]
    # "H100" means H100-SXM, although H20 has more letters in common with it.
    found = longer if len(word) >= 3 else []
    found = found or difflib.get_close_matches(word.lower(), list(lowered), n=1, cutoff=0.65)
    return lowered[found[0]] if found else None


def did_you_mean(word: str, known: list[str]) -> str:
    """`` (did you mean 'x'?)`` for the nearest known word, or an empty string."""
    suggestion = nearest(word, known)
    return f" (did you mean {suggestion!r}?)" if suggestion is not None else ""


def _show(value: object) -> str:
    if value is None:
        return "nothing"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _bare_number(number: str, dimension: Dimension) -> str:
    unit = _EXAMPLES[dimension][1]
    return f'{number} has no unit; write for example "{number.lstrip("+-")} {unit}"'


def _unknown_unit(number: str, unit: str, dimension: Dimension) -> str:
    table = UNITS[dimension]
    spelled = re.sub(r"ps$", "/s", unit.replace(" ", "")) if dimension == "bandwidth" else unit
    if spelled in table:
        hint = f" (did you mean {number + ' ' + spelled!r}?)"
    else:
        folded = [known for known in table if known.lower() == spelled.lower()]
        if len(folded) > 1 and dimension == "bandwidth":
            # Case alone tells bits from bytes: a factor of eight that must not be guessed.
            hint = f" (did you mean {folded[0]!r}, bytes, or {folded[-1]!r}, bits?)"
        elif folded:
            hint = f" (did you mean {folded[0]!r}?)"
        else:
            hint = did_you_mean(spelled, list(table))
    other = [name for name, units in UNITS.items() if unit in units and name != dimension]
    if other:
        hint = f", which is a unit of {other[0]}"
    example = " ".join(_EXAMPLES[dimension])
    return f'{unit!r} is not a unit of {dimension}{hint}; write for example "{example}"'
