"""The GPU catalogue ``gpus.yaml``: one entry per GPU, every figure with its source."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from simulator.spec.choices import ChoiceError
from simulator.spec.units import did_you_mean

_FILE = Path(__file__).with_name("gpus.yaml")


@cache
def entries() -> dict[str, dict[str, Any]]:
    """Name -> entry as written in the file (quantities still text); not to be changed by the
    caller.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    loaded: dict[str, dict[str, Any]] = yaml.load(_FILE.read_text(encoding="utf-8"), Loader=loader)
    return loaded


def names() -> list[str]:
    """Names of the catalogue, in the file's order."""
    return list(entries())


def expand(value: object) -> object:
    """A catalogue name, or a mapping with ``model: NAME`` and fields to replace, as one full entry.

    Anything else (a mapping without ``model``: a GPU written out in full) is returned as it is.
    Raises ``ChoiceError`` with the nearest name for a GPU that the catalogue does not have.
    """
    if isinstance(value, str):
        value = {"model": value}
    if not isinstance(value, dict) or "model" not in value:
        return value
    model = value["model"]
    found = entries().get(model) if isinstance(model, str) else None
    if found is None:
        hint = did_you_mean(str(model), names())
        raise ChoiceError(f"no GPU {model!r} in the catalogue{hint}; known: {', '.join(names())}")
    entry = {"name": model, **found}
    sources = dict(entry["sources"])
    for key, given in value.items():
        if key == "model":
            continue
        if key in ("flops", "kernels", "sources") and isinstance(given, dict):
            entry[key] = {**entry.get(key, {}), **given}
        else:
            entry[key] = given
        if key in sources:
            sources[key] = "given in the topology, instead of the catalogue's figure"
    given_sources = value.get("sources")
    entry["sources"] = {**sources, **given_sources} if isinstance(given_sources, dict) else sources
    return entry
