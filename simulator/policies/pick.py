"""A policy by name: from its family's dict, or "package.module:function"."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar, cast

from simulator.errors import InputError
from simulator.spec.functions import imported

P = TypeVar("P", bound=Callable[..., object])


def pick(family: str, known: Mapping[str, P], name: str) -> P:
    """The function called `name`; InputError if there is none (family: what to call it then)."""
    if name in known:
        return known[name]
    if ":" not in name:
        raise InputError(f"{family}: no {name!r}; known: {', '.join(known)}")
    return cast(P, imported(f"{family}:", name))
