"""Which requests are served: a recording or a law, and what is made of it (window, rate, count)."""

from __future__ import annotations

import math
import re
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, Field, Strict, model_validator

from simulator.spec.choices import Argument, ChoiceError
from simulator.spec.fields import Count, Latency, Spec, refuse
from simulator.spec.units import did_you_mean

MAX_REQUESTS = 20_000_000
# Far above every context length; a longer prompt or output is a typing error.
MAX_TOKENS = 1 << 24
MAX_RATE_PER_S = 1e6
MAX_PRIORITIES = 100
MAX_BLOCK_TOKENS = 1 << 20

_RATE = Argument(1e-6, MAX_RATE_PER_S, "20")
_TOKENS = Argument(1, MAX_TOKENS, "512", whole=True)
_MEAN = Argument(1, MAX_TOKENS, "1000")

ARRIVAL_LAWS: dict[str, tuple[Argument, ...]] = {
    "poisson": (_RATE,),
    "gamma": (_RATE, Argument(0.01, 100, "2.5")),
    "constant": (_RATE,),
    "closed": (Argument(1, 1_000_000, "8", whole=True),),
    "singlestream": (),
    "offline": (),
    "server": (_RATE,),
}
"""Laws of arrival and the arguments of each; rates are requests/s."""

TIMELESS = frozenset({"closed", "singlestream", "offline"})
"""Laws that ask for everything at the start: they have no rate and no window."""

LENGTH_LAWS: dict[str, tuple[Argument, ...]] = {
    "fixed": (_TOKENS,),
    "uniform": (_TOKENS, Argument(1, MAX_TOKENS, "1024", whole=True)),
    "lognormal": (_MEAN, Argument(0, 10, "1.2")),
    "exponential": (_MEAN,),
}
"""Laws of prompt and output lengths and the arguments of each, in tokens."""

EMPIRICAL = "empirical"
"""The length law whose argument is a recorded file, not numbers."""

_OWN = re.compile(r"\w+(\.\w+)+:[A-Za-z_]\w*(:[-+.:eE\d]+)?", re.ASCII)


class Law(NamedTuple):
    """A parsed law: its known name, or "package.module:function" when ``imported``; ``file`` of
    an ``empirical`` one.
    """

    name: str
    arguments: tuple[float, ...] = ()
    file: str | None = None
    imported: bool = False


def arrival_law(text: str) -> Law | None:
    """The law that a source names, or None when it is a file; raises ChoiceError for arguments
    out of bounds.
    """
    name, _, rest = text.partition(":")
    if name in ARRIVAL_LAWS:
        return Law(name, _arguments(text, name, rest, ARRIVAL_LAWS[name]))
    return _own(text)


def length_law(text: str) -> Law:
    """Reads a law of lengths; raises ChoiceError with the nearest name for what is unknown."""
    name, _, rest = text.partition(":")
    if name == EMPIRICAL:
        if not rest:
            raise ChoiceError(f"{text!r} needs a file; write for example 'empirical:requests.csv'")
        return Law(EMPIRICAL, file=rest)
    if name in LENGTH_LAWS:
        law = Law(name, _arguments(text, name, rest, LENGTH_LAWS[name]))
        if name == "uniform" and law.arguments[0] > law.arguments[1]:
            raise ChoiceError(f"{text!r}: the first number must not be above the second")
        return law
    own = _own(text)
    if own is None:
        known = [*(_example(law, LENGTH_LAWS[law]) for law in LENGTH_LAWS), "empirical:FILE"]
        hint = did_you_mean(name, [*LENGTH_LAWS, EMPIRICAL])
        raise ChoiceError(
            f"{text!r} is not a law of lengths{hint}; known: {', '.join(known)}, or "
            "package.module:function"
        )
    return own


def arrival_examples() -> list[str]:
    """How each law of arrival is written."""
    return [_example(name, wanted) for name, wanted in ARRIVAL_LAWS.items()]


def _own(text: str) -> Law | None:
    if not _OWN.fullmatch(text):
        return None
    module, function, *numbers = text.split(":")
    try:
        arguments = tuple(float(number) for number in numbers)
    except ValueError:
        raise ChoiceError(
            f"{text!r}: what follows the function must be numbers, as in {module}:{function}:1.5:2"
        ) from None
    return Law(f"{module}:{function}", arguments, imported=True)


def _example(name: str, wanted: tuple[Argument, ...]) -> str:
    return ":".join([name, *(one.example for one in wanted)])


def _arguments(text: str, name: str, rest: str, wanted: tuple[Argument, ...]) -> tuple[float, ...]:
    given = rest.split(":") if rest else []
    example = _example(name, wanted)
    if len(given) != len(wanted):
        count = f"{len(wanted)} number{'' if len(wanted) == 1 else 's'}" if wanted else "no number"
        raise ChoiceError(f"{text!r}: {name!r} takes {count}; write for example {example!r}")
    values = []
    for one, bounds in zip(given, wanted, strict=True):
        try:
            value: float = int(one) if bounds.whole else float(one)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and bounds.low <= value <= bounds.high):
            kind = "whole number" if bounds.whole else "number"
            raise ChoiceError(
                f"{text!r}: {one!r} is not a {kind} from {bounds.low:g} to {bounds.high:g}; "
                f"write for example {example!r}"
            )
        values.append(value)
    return tuple(values)


def _source(text: str) -> str:
    arrival_law(text)
    return text


def _lengths(text: str) -> str:
    length_law(text)
    return text


Source = Annotated[str, Field(min_length=1), AfterValidator(_source)]
Lengths = Annotated[str, Field(min_length=1), AfterValidator(_lengths)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class RequestsSpec(Spec):
    """The requests of a run.

    They are made in this order: the source; the window ``start_s`` to ``end_s`` of it, in the
    source's own time; its rate times ``rate_scale``; the first ``limit`` of what is left. A law of
    lengths replaces recorded lengths; a law of arrival needs both.
    """

    source: Source
    """A recorded file, or a law of arrival (``ARRIVAL_LAWS``)."""
    start_s: Latency = Field(0.0, alias="start")
    end_s: Latency | None = Field(None, alias="end")
    rate_scale: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    limit: Annotated[int, Field(ge=1, le=MAX_REQUESTS)] | None = None
    prompt: Lengths | None = None
    output: Lengths | None = None
    block_tokens: Annotated[Count, Field(le=MAX_BLOCK_TOKENS)] | None = None
    """Tokens per recorded prefix block; None: what the file's kind says."""
    priority_fractions: Annotated[tuple[Fraction, ...], Strict(False)] = ()
    """Share of requests of priority 0, 1, ...; empty: all 0."""
    skip_bad: bool = False
    sort: bool = False

    @model_validator(mode="after")
    def _fits(self) -> RequestsSpec:
        found: list[tuple[tuple[str | int, ...], str]] = []
        law = arrival_law(self.source)
        if self.end_s is not None and self.end_s <= self.start_s:
            found.append((("end",), f"must be after start ({self.start_s:g} s)"))
        if law is not None:
            found += self._law_faults(law)
        shares = self.priority_fractions
        if shares and not math.isclose(sum(shares), 1.0, abs_tol=1e-9):
            found.append((("priority_fractions",), f"must add up to 1, not {sum(shares):g}"))
        if len(shares) > MAX_PRIORITIES:
            found.append((("priority_fractions",), f"at most {MAX_PRIORITIES} priorities"))
        refuse("RequestsSpec", found)
        return self

    def _law_faults(self, law: Law) -> list[tuple[tuple[str | int, ...], str]]:
        found: list[tuple[tuple[str | int, ...], str]] = [
            ((key,), f"required with {self.source!r}; write for example 'lognormal:1000:1.2'")
            for key in ("prompt", "output")
            if getattr(self, key) is None
        ]
        if self.block_tokens is not None:
            found.append((("block_tokens",), "goes with a recorded file; leave it out"))
        if self.skip_bad or self.sort:
            key = "skip_bad" if self.skip_bad else "sort"
            found.append(((key,), "goes with a recorded file; leave it out"))
        if law.name in TIMELESS:
            timed = {"start": self.start_s, "end": self.end_s, "rate_scale": self.rate_scale - 1}
            found += [
                ((key,), f"{law.name!r} asks for everything at the start; leave it out")
                for key, value in timed.items()
                if value not in (0, None)
            ]
            if self.limit is None:
                found.append((("limit",), f"required with {self.source!r}: how many requests"))
        elif self.limit is None and self.end_s is None:
            found.append((("limit",), f"{self.source!r} has no end: give limit or end"))
        return found
