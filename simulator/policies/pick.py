"""A policy by name: from its family's dict, or "package.module:function"."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TypeVar

from simulator.errors import InputError

P = TypeVar("P", bound=Callable[..., object])


def pick(family: str, known: Mapping[str, P], name: str) -> P:
    """The function called `name`; InputError if there is none (family: what to call it then)."""
    if name in known:
        return known[name]
    module, colon, function = name.partition(":")
    if not colon:
        raise InputError(f"{family}: no {name!r}; known: {', '.join(known)}")
    try:
        found: P = getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{family}: {name!r} cannot be imported: {error}") from error
    return found
