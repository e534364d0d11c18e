"""Laws of arrival and of lengths: plain functions of a random stream.

A law of arrival is a function `(rng, count, *arguments) -> float64 [count]`, the times in seconds,
never decreasing. A law of lengths is a function `(rng, count, *arguments) -> float64 or int64
[count]`, tokens. A longer draw of the same stream begins with the shorter one, and an argument
scales what is drawn, not how much: two rates or two means are compared on the same random numbers.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.errors import InputError
from simulator.spec.functions import imported
from simulator.spec.requests import MAX_REQUESTS, MAX_TOKENS, Law

Floats = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]
Function = Callable[..., npt.NDArray[Any]]

# The draws with which a search for the end of a window begins.
_FIRST_DRAWS = 1 << 12


def poisson(rng: np.random.Generator, count: int, rate_per_s: float) -> Floats:
    """Independent exponential gaps: a Poisson process from time 0."""
    return np.cumsum(rng.standard_exponential(count)) / rate_per_s


def gamma(rng: np.random.Generator, count: int, rate_per_s: float, cv: float) -> Floats:
    """Independent gamma gaps with coefficient of variation `cv`: 1 is Poisson, above 1 bursts."""
    shape = cv**-2
    return np.cumsum(rng.standard_gamma(shape, count)) / (shape * rate_per_s)


def constant(rng: np.random.Generator, count: int, rate_per_s: float) -> Floats:
    """Equal gaps, the first request at time 0."""
    del rng
    return np.arange(count) / rate_per_s


def at_once(rng: np.random.Generator, count: int, concurrency: float = 0) -> Floats:
    """Everything is there at time 0; with `concurrency` the server lets in so many at a time."""
    del rng, concurrency
    return np.zeros(count)


ARRIVALS: dict[str, Function] = {
    "poisson": poisson,
    "gamma": gamma,
    "constant": constant,
    "closed": at_once,
    # MLPerf Inference: one query at a time; all samples at once; one sample per query, Poisson.
    "singlestream": at_once,
    "offline": at_once,
    "server": poisson,
}
"""Law of arrival by name; names and arguments as in `simulator.spec.requests.ARRIVAL_LAWS`."""

SCENARIOS = {
    "singlestream": "MLPerf SingleStream: the next query is sent when the one before has ended",
    "offline": "MLPerf Offline: all samples are sent at the start",
    "server": "MLPerf Server: queries of one sample arrive as a Poisson process",
}
"""MLPerf's scenarios in words (MLPerf Inference Rules, "Scenarios",
github.com/mlcommons/inference_policies/blob/master/inference_rules.adoc)."""


def fixed(rng: np.random.Generator, count: int, tokens: float) -> Floats:
    """All the same."""
    del rng
    return np.full(count, float(tokens))


def uniform(rng: np.random.Generator, count: int, low: float, high: float) -> Floats:
    """Every whole number from low to high is equally likely."""
    return np.floor(low + rng.random(count) * (high - low + 1))


def lognormal(rng: np.random.Generator, count: int, mean: float, cv: float) -> Floats:
    """Lognormal with this mean and coefficient of variation, to the nearest token, at least 1.

    Rounding moves the mean by less than 0.1 % where almost nothing falls below 1 token.
    """
    variance = math.log1p(cv * cv)
    drawn = np.exp(math.sqrt(variance) * rng.standard_normal(count) - variance / 2)
    return np.maximum(np.rint(mean * drawn), 1.0)


def exponential(rng: np.random.Generator, count: int, mean: float) -> Floats:
    """Geometric from 1 on with this mean: after every token the same chance to end."""
    drawn = rng.standard_exponential(count)
    if mean == 1:
        return np.ones(count)
    return np.maximum(np.ceil(drawn / -math.log1p(-1 / mean)), 1.0)


LENGTHS: dict[str, Function] = {
    "fixed": fixed,
    "uniform": uniform,
    "lognormal": lognormal,
    "exponential": exponential,
}
"""Law of lengths by name; names and arguments as in `simulator.spec.requests.LENGTH_LAWS`."""


def draw_arrivals(
    law: Law,
    stream: Callable[[], np.random.Generator],
    limit: int | None,
    start_s: float,
    end_s: float,
) -> Floats:
    """Arrival times of a law, float64 [n], as many as the window and the limit can need.

    stream: gives the random stream anew, so that a longer draw begins with the shorter one.
    Those before `start_s` are among them. Raises InputError where it would be too many, and for a
    law of the user's that returns something else.
    """
    function = _function(law, ARRIVALS)
    count = _FIRST_DRAWS if limit is None else limit
    while True:
        times = _times(law, function(stream(), count, *law.arguments), count)
        first, last = np.searchsorted(times, (start_s, end_s), side="left")
        if last < count or (limit is not None and last - first >= limit):
            return times[:last]
        if count >= MAX_REQUESTS:
            raise InputError(
                f"requests {law.name!r}: more than {MAX_REQUESTS:,} requests by the end of the "
                "window; give a limit, or end the window sooner"
            )
        count = min(2 * count, MAX_REQUESTS)


def draw_lengths(law: Law, rng: np.random.Generator, count: int) -> tuple[Int64s, int]:
    """Lengths in tokens, int64 [count], and how many were cut to `MAX_TOKENS`.

    Raises InputError for a law of the user's that returns something else.
    """
    found = _numbers(law, _function(law, LENGTHS)(rng, count, *law.arguments), count, "numbers")
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        raise InputError(f"requests: law {law.name!r} returned a length that is not finite")
    if count and found.min() < 1:
        raise InputError(f"requests: law {law.name!r} returned {found.min():g} tokens, below 1")
    cut = int((found > MAX_TOKENS).sum())
    return np.minimum(found, MAX_TOKENS).astype(np.int64), cut


def _numbers(law: Law, found: Any, count: int, what: str) -> npt.NDArray[Any]:
    """What a law gave as an array [count] of numbers; InputError if it is something else."""
    try:
        numbers = np.asarray(found)
    except ValueError:  # lists of unequal lengths
        numbers = np.zeros(0)
    if numbers.shape != (count,) or numbers.dtype.kind not in "iuf":
        raise InputError(f"requests: law {law.name!r} must return {count} {what}")
    return numbers


def _times(law: Law, found: Any, count: int) -> Floats:
    times = _numbers(law, found, count, "times").astype(np.float64)
    if not np.isfinite(times).all() or (count and times[0] < 0) or (np.diff(times) < 0).any():
        raise InputError(
            f"requests: law {law.name!r} must return finite times from 0 on that never decrease"
        )
    return times


def _function(law: Law, known: dict[str, Function]) -> Function:
    if not law.imported:
        return known[law.name]
    function: Function = imported("requests: law", law.name)
    try:
        inspect.signature(function).bind(None, 1, *law.arguments)
    except (TypeError, ValueError) as error:
        raise InputError(f"requests: law {law.name!r}: {error}") from error
    return function
