"""Names with an argument, as a workload writes them: ``two-batch``, ``chunked:4``, ``zipf:1.2``,
``package.module:function``.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from simulator.errors import InputError
from simulator.spec.units import did_you_mean

Family = Literal["overlap", "prefetch", "eviction", "routing", "network", "placement", "dispatch"]


class ChoiceError(InputError, ValueError):
    """A name that is not known or an argument out of bounds; a ValueError so that pydantic collects
    it.
    """


@dataclass(frozen=True)
class Argument:
    """The argument of a name: a number in [low, high], whole if ``whole``, and how to write it.

    An ``optional`` one may be left out: the function has a default.
    """

    low: float
    high: float
    example: str
    whole: bool = False
    optional: bool = False


@dataclass(frozen=True)
class Choice:
    """A parsed name. ``name`` is the known name, or the text itself when ``imported``
    ("package.module:function").
    """

    name: str
    argument: float | None = None
    imported: bool = False


FAMILIES: dict[Family, dict[str, Argument | None]] = {
    "overlap": {
        "none": None,
        "two-batch": None,
        "chunked": Argument(1, 1024, "chunked:4", whole=True),
    },
    "prefetch": {
        "none": None,
        "popularity": None,
        "markov": None,
        "learned": None,
        "history": Argument(1, 64, "history:4", whole=True, optional=True),
        "oracle": Argument(1, 4096, "oracle:2", whole=True, optional=True),
        "synthetic": Argument(0, 1, "synthetic:0.8"),
    },
    "eviction": {
        "lru": None,
        "lfu": None,
        "lfu-aging": None,
        "arc": None,
        "least-stale": None,
        "belady": None,
    },
    "routing": {
        "uniform": None,
        "zipf": Argument(0, 100, "zipf:1.2", optional=True),
        "power-law": Argument(0, 100, "power-law:1.2", optional=True),
        "markov": Argument(0, 1, "markov:0.5", optional=True),
    },
    "network": {"exact": None, "epsilon": Argument(0, 1, "epsilon:0.01"), "coflow": None},
    "placement": {
        "contiguous": None,
        "linear": None,
        "round-robin": None,
        "balanced": None,
        "eplb": None,
        "topology-aware": None,
        "co-activation": None,
    },
    "dispatch": {
        "round-robin": None,
        "least-loaded": None,
        "join-shortest-kv": None,
        "performance-aware": None,
        "static": None,
        "central": None,
    },
}
"""Known names of each family and the argument each takes."""

IMPORTABLE: frozenset[Family] = frozenset(
    {"prefetch", "eviction", "routing", "placement", "dispatch"}
)
"""Families that also take a function of the user's, as "package.module:function"."""

_IMPORT = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
_OWN_LAW = re.compile(r"\w+(\.\w+)+:[A-Za-z_]\w*(:[-+.,eE\d]+)?", re.ASCII)


def parse_choice(text: str, family: Family) -> Choice:
    """Reads a name of ``family``; raises ``ChoiceError`` (with the nearest name) for what is
    unknown.
    """
    known = FAMILIES[family]
    name, colon, argument = text.partition(":")
    if name in known:
        return Choice(name, _argument(text, name, argument if colon else None, known[name]))
    if family in IMPORTABLE and _IMPORT.fullmatch(text):
        return Choice(text, imported=True)
    spelled = [a.example if a else n for n, a in known.items()]
    own = ", or package.module:function" if family in IMPORTABLE else ""
    raise ChoiceError(
        f"{text!r} is not a known {family}{did_you_mean(name, list(known))}; "
        f"known: {', '.join(spelled)}{own}"
    )


def routing_law(source: str) -> Choice | None:
    """The synthetic law that a routing source names, or None when it is a trace (a shipped name or
    a path).
    """
    name = source.partition(":")[0]
    if name in FAMILIES["routing"]:
        return parse_choice(source, "routing")
    if name == "loads" and source != name:  # drawn from the load file whose path follows
        return Choice(source, imported=True)
    # A law of one's own may carry its parameters: package.module:function:1.2,3.
    return Choice(source, imported=True) if _OWN_LAW.fullmatch(source) else None


def _argument(text: str, name: str, given: str | None, wanted: Argument | None) -> float | None:
    if wanted is None:
        if given is not None:
            raise ChoiceError(f"{text!r}: {name!r} takes no argument; write {name!r}")
        return None
    if given is None:
        if wanted.optional:
            return None
        raise ChoiceError(f"{text!r} needs a number; write for example {wanted.example!r}")
    kind = "whole number" if wanted.whole else "number"
    fault = ChoiceError(
        f"{text!r}: {given!r} is not a {kind} from {wanted.low:g} to {wanted.high:g}; "
        f"write for example {wanted.example!r}"
    )
    try:
        value = int(given) if wanted.whole else float(given)
    except ValueError:
        raise fault from None
    if not (math.isfinite(value) and wanted.low <= value <= wanted.high):
        raise fault
    return value
