"""The graph of a finished run, from what its `result.json` holds of the topology."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, get_args

from simulator.cluster.graph import BUILDERS, Graph, build_graph
from simulator.errors import InputError
from simulator.spec.schema import Build


def graph_of_record(topology: Mapping[str, Any]) -> Graph:
    """The graph of a resolved topology (SI units, python names), as `build_graph` makes it.

    It was checked when it was run and is not checked again. Errors: InputError if it is not of
    this version.
    """
    try:
        given = topology["build"]
        if given["kind"] not in BUILDERS:
            raise KeyError(given["kind"])
        build = next(
            kind
            for kind in get_args(Build)
            if given["kind"] in get_args(kind.model_fields["kind"].annotation)
        )
        # Without validation, which would want units beside the numbers.
        made = build.model_construct(**{name: _record(value) for name, value in given.items()})
        changes = {name: _record(value) for name, value in topology.get("changes", {}).items()}
        found: Any = SimpleNamespace(name=topology["name"], build=made, changes=changes)
        return build_graph(found)
    except (AttributeError, KeyError, StopIteration, TypeError, ValueError) as error:
        raise InputError(
            f"result.json: the topology is damaged or not of this version ({error})"
        ) from error


def _record(value: Any) -> Any:
    """Mappings as objects with attributes, at any depth."""
    if isinstance(value, Mapping):
        return SimpleNamespace(**{name: _record(inner) for name, inner in value.items()})
    if isinstance(value, list):
        return [_record(inner) for inner in value]
    return value
