"""Synthetic laws of routing: which experts a token takes when no recording is at hand.

A law is a function `(rng, tokens, layers, experts, k, *parameters, previous=None) -> ids`, int16
[tokens, layers, k] of k distinct experts per (token, layer). `previous` int16 [sequences, layers,
k] holds the last token of each sequence, -1 where there is none; token t then belongs to sequence
t // (tokens // sequences). Without `previous` every token is a sequence of its own.

Which experts are popular differs between layers, and is a property of the generator: repeated
calls with one `rng` share it, however much was drawn in between.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from difflib import get_close_matches
from functools import wraps
from pathlib import Path
from zlib import crc32

import numpy as np
import numpy.typing as npt

from simulator.errors import InputError
from simulator.spec.functions import imported

Int16s = npt.NDArray[np.int16]
Floats = npt.NDArray[np.float64]
Law = Callable[..., Int16s]

# Beyond these, weights leave the range of float64; the laws are at their limits long before.
MAX_EXPONENT = 100.0
# Hottest over coldest expert that the power law can give.
POWER_LAW_RANGE = 1000.0


def uniform(
    rng: np.random.Generator,
    tokens: int,
    layers: int,
    experts: int,
    k: int,
    *,
    previous: Int16s | None = None,
) -> Int16s:
    """Every set of k experts is equally likely, independently per token and layer."""
    del previous
    return _draw(rng, tokens, k, np.ones((layers, _checked(experts, k))))


def zipf(
    rng: np.random.Generator,
    tokens: int,
    layers: int,
    experts: int,
    k: int,
    exponent: float = 1.0,
    *,
    previous: Int16s | None = None,
) -> Int16s:
    """The expert of popularity rank r = 1, 2, ... is drawn with weight r^-exponent.

    One after another without replacement: the next expert is drawn by weight among those left.
    Ranks are dealt to the experts at random in each layer. Exponent 0..100; 0 is uniform.
    """
    del previous
    _check_range("zipf", "exponent", exponent, 0.0, MAX_EXPONENT)
    weight = np.arange(1, _checked(experts, k) + 1, dtype=np.float64) ** -exponent
    popularity = _popularity_rng(rng)
    return _draw(rng, tokens, k, np.stack([popularity.permutation(weight) for _ in range(layers)]))


def power_law(
    rng: np.random.Generator,
    tokens: int,
    layers: int,
    experts: int,
    k: int,
    exponent: float = 1.2,
    *,
    previous: Int16s | None = None,
) -> Int16s:
    """The weights of the experts are drawn from a bounded Pareto law, anew in each layer.

    Their density is proportional to w^-exponent for 1 <= w <= 1000, drawn through its inverse
    distribution. Exponent 0..100: 0 spreads the weights evenly over 1 to 1000 (the hottest expert
    has about twice the mean load), 1 to 2 gives a few very hot experts, a large one equal loads.
    """
    del previous
    _check_range("power-law", "exponent", exponent, 0.0, MAX_EXPONENT)
    u = _popularity_rng(rng).random((layers, _checked(experts, k)))
    power = 1.0 - exponent
    if power == 0.0:
        return _draw(rng, tokens, k, POWER_LAW_RANGE**u)
    # expm1 and log1p: exact also where the exponent is close to 1.
    grown = np.expm1(power * math.log(POWER_LAW_RANGE))
    return _draw(rng, tokens, k, np.exp(np.log1p(u * grown) / power))


def markov(
    rng: np.random.Generator,
    tokens: int,
    layers: int,
    experts: int,
    k: int,
    stickiness: float = 0.5,
    *,
    previous: Int16s | None = None,
) -> Int16s:
    """Each expert of the sequence's token before stays with probability `stickiness` (0..1).

    The others are redrawn uniformly from all experts that did not stay, so a dropped one may come
    back. Loads are uniform in the long run. With m ~ Binomial(k, stickiness) experts staying, the
    expected share of experts that a token has in common with the one before is
    E[m + (k - m)^2 / (experts - m)] / k  (`markov_overlap`).
    """
    from simulator.routing.kernels import draw_sticky

    _check_range("markov", "stickiness", stickiness, 0.0, 1.0)
    _checked(experts, k)
    if previous is None:
        previous = np.full((max(1, tokens), layers, k), -1, dtype=np.int16)
    if previous.shape[1:] != (layers, k) or len(previous) == 0 or tokens % len(previous):
        raise ValueError(f"previous {previous.shape} does not fit {tokens} tokens")
    if previous.max(initial=-1) >= experts:
        raise ValueError(f"previous holds an expert that is not below {experts}")
    out = np.empty((layers, tokens, k), dtype=np.int16)
    draw_sticky(rng, np.ascontiguousarray(previous), float(stickiness), experts, out)
    return out.transpose(1, 0, 2)


def markov_overlap(stickiness: float, experts: int, k: int) -> float:
    """Expected share of experts common to adjacent tokens under `markov`, exactly."""
    total = 0.0
    for m in range(k + 1):
        probability = math.comb(k, m) * stickiness**m * (1.0 - stickiness) ** (k - m)
        redrawn = (k - m) ** 2 / (experts - m) if m < k else 0.0
        total += probability * (m + redrawn)
    return total / k


def of_loads(path: str | Path) -> Law:
    """The law of a load file: an expert is taken with probability k times its share of the load.

    Exactly so (`systematic`), where no share is above 1/k; tokens are independent of each other,
    and so are layers. A model of more layers than the file has starts over with its first. Raises
    InputError for a file without loads, and, when drawn from, for another number of experts.
    """
    from simulator.routing.loads import loads_of
    from simulator.routing.systematic import draw_systematic, inclusion

    counts = loads_of(path).counts

    def loads(
        rng: np.random.Generator,
        tokens: int,
        layers: int,
        experts: int,
        k: int,
        *,
        previous: Int16s | None = None,
    ) -> Int16s:
        del previous
        if _checked(experts, k) != counts.shape[1]:
            raise InputError(
                f"{path}: loads of {counts.shape[1]} experts, but the model has {experts}; give "
                "the loads of such a model, or a law such as zipf:1.0"
            )
        chance = inclusion(counts, k)[np.arange(layers) % len(counts)]
        out = np.empty((layers, tokens, k), dtype=np.int16)
        draw_systematic(rng, chance, out)
        return out.transpose(1, 0, 2)

    return loads


OF_LOADS = "loads"
"""The law that needs a file: "loads:PATH" (see `of_loads`)."""

LAWS: dict[str, Law] = {
    "uniform": uniform,
    "zipf": zipf,
    "power-law": power_law,
    "markov": markov,
}


def is_law(text: str) -> bool:
    """Whether a routing is named as a law (a listed one, or "package.module:function")."""
    name, _, rest = text.partition(":")
    if name == OF_LOADS:
        return bool(rest)
    return name in LAWS or ("." in name and "/" not in text and rest.split(":")[0].isidentifier())


def parse_law(text: str) -> tuple[Law, tuple[float, ...]]:
    """Read "zipf", "zipf:1.2", "loads:PATH" or "package.module:function:1.2,3": the function and
    its parameters.

    Raises InputError for an unknown law, a parameter that is not a number, or too many of them.
    """
    name, _, rest = text.partition(":")
    if name == OF_LOADS and rest:
        return of_loads(rest), ()
    if name in LAWS:
        law = LAWS[name]
    elif "." in name and rest:
        attribute, _, rest = rest.partition(":")
        law = _of_the_users(text, f"{name}:{attribute}")
    else:
        near = get_close_matches(name, LAWS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"write one of {', '.join(LAWS)}"
        raise InputError(f"routing law '{name}' is unknown; {hint}")
    try:
        parameters = tuple(float(part) for part in rest.split(",")) if rest else ()
    except ValueError:
        raise InputError(
            f"routing law '{text}': '{rest}' is not a number; write {name}:1.2"
        ) from None
    try:
        inspect.signature(law).bind(None, 1, 1, 1, 1, *parameters, previous=None)
    except (TypeError, ValueError) as error:
        raise InputError(f"routing law '{text}': {error}") from error
    return law, parameters


def _of_the_users(text: str, name: str) -> Law:
    """The law that a function of the user's is, its answers checked."""
    draw = imported("routing law", name)

    @wraps(draw)
    def checked(
        rng: np.random.Generator, tokens: int, layers: int, experts: int, k: int, *given: float,
        previous: Int16s | None = None,
    ) -> Int16s:  # fmt: skip
        from simulator.routing.kernels import first_bad_id

        ids: object = draw(rng, tokens, layers, experts, k, *given, previous=previous)
        wanted = f"int16 {(tokens, layers, k)}"
        if not isinstance(ids, np.ndarray):
            raise InputError(f"routing law '{text}' returned {ids!r:.60}, not {wanted}")
        if ids.shape != (tokens, layers, k) or ids.dtype != np.int16:
            raise InputError(f"routing law '{text}' returned {ids.dtype} {ids.shape}, not {wanted}")
        ids = np.ascontiguousarray(ids)
        at = int(first_bad_id(ids, np.full(experts, -1, dtype=np.int64)))
        if at < 0 and ids.min() < 0:
            at = int(ids.argmin())
        if at >= 0:
            token, layer, _ = np.unravel_index(at, ids.shape)
            raise InputError(
                f"routing law '{text}' returned {ids[token, layer].tolist()} for token {token} in "
                f"layer {layer}; return {k} different experts, 0 to {experts - 1}"
            )
        return ids

    return checked


def _checked(experts: int, k: int) -> int:
    """The number of experts, if k distinct ones can be drawn and numbered as int16."""
    if not 1 <= k <= experts <= 32_767:
        raise InputError(f"{k} of {experts} experts: must be 1 <= k <= experts <= 32767")
    return experts


def _check_range(law: str, name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InputError(f"routing law '{law}': {name} {value:g} is not in {low:g}..{high:g}")


def _popularity_rng(rng: np.random.Generator) -> np.random.Generator:
    """A second stream of the generator's own seed, the same whatever was drawn from it already."""
    seed = rng.bit_generator.seed_seq
    if not isinstance(seed, np.random.SeedSequence):
        raise ValueError("the generator must come from a seed (numpy's default_rng(seed))")
    key = (*seed.spawn_key, crc32(b"popularity"))
    return np.random.default_rng(np.random.SeedSequence(seed.entropy, spawn_key=key))


def _draw(rng: np.random.Generator, tokens: int, k: int, weight: Floats) -> Int16s:
    """Draw k distinct experts by weight [layers, experts]; layer-major in memory."""
    from simulator.routing.kernels import build_alias, draw_weighted

    accept = np.empty_like(weight)
    alias = np.empty(weight.shape, dtype=np.int16)
    build_alias(weight, accept, alias)
    out = np.empty((len(weight), tokens, k), dtype=np.int16)
    draw_weighted(rng, weight, accept, alias, out)
    return out.transpose(1, 0, 2)
