"""GPU profiles: a file of measured figures that replace those of the catalogue (docs/gpus.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from simulator.errors import InputError
from simulator.spec import catalogue
from simulator.spec.choices import ChoiceError
from simulator.spec.document import Document, KeyPath, read_document
from simulator.spec.faults import faults
from simulator.spec.fields import Efficiency, Latency, Spec
from simulator.spec.kernels import Kernel
from simulator.spec.schema import MeasuredCopies, families
from simulator.spec.units import did_you_mean

_TOLD = ("model", "description", "sources")  # what is no figure


def _known(model: str) -> str:
    if model not in catalogue.names():
        hint = did_you_mean(model, catalogue.names())
        raise ChoiceError(f"no GPU {model!r} in the catalogue{hint}")
    return model


class Profile(Spec):
    """What was measured on a GPU of the catalogue, ``model``; figures as in ``Gpu``, each may be
    left out.
    """

    model: Annotated[str, AfterValidator(_known)]
    description: str = ""
    compute_efficiency: Efficiency | None = None
    memory_efficiency: Efficiency | None = None
    launch_overhead_s: Latency | None = Field(default=None, alias="launch_overhead")
    kernels: Annotated[dict[str, Kernel], BeforeValidator(families)] = Field(default_factory=dict)
    copy_efficiency: MeasuredCopies = MeasuredCopies()
    sources: dict[str, str] = Field(default_factory=dict)


def read_profile(path: Path, shown: str) -> Document:
    """A profile's file, checked; ``shown`` is its name in messages. Raises InputError."""
    document = read_document(path, shown)
    if not isinstance(document.data.get("model"), str) or not set(document.data) - set(_TOLD):
        raise InputError(
            f"{document.mark(())}: no GPU profile: it needs 'model: NAME', the GPU that was "
            f"measured, and a figure; tools/measure_gpu.py writes one"
        )
    try:
        Profile.model_validate(document.data)
    except ValidationError as error:
        found = faults(error, document.data, Profile)
        raise InputError(
            "\n".join(document.fault(where, what, key=is_key) for where, what, is_key in found)
        ) from None
    return document


def put_under(topology: Document, profile: Document, shown: str) -> None:
    """Puts the figures of a profile under those that a topology's ``gpu``, a mapping, gives itself.

    Figures taken from the profile name ``shown`` as their source. Raises InputError for a profile
    of another GPU than ``gpu.model``.
    """
    gpu: dict[str, Any] = topology.data["gpu"]
    model = gpu.setdefault("model", profile.data["model"])
    if model in catalogue.names() and model != profile.data["model"]:
        what = f"{shown} is of {profile.data['model']}, but the GPU here is {model}"
        raise InputError(topology.fault(("gpu", "profile"), what))
    told = profile.data.get("sources", {})
    sources = {key: f"{shown}: {text}" for key, text in told.items() if key not in gpu}
    for key in profile.data:
        if key in _TOLD:
            continue
        source = sources.get(key, shown)
        if key not in gpu:
            sources[key] = source
        elif key in ("kernels", "copy_efficiency"):
            source = f"{shown}: {told[key]}" if key in told else shown
            sources[key] = f"{source}; in part given in the topology"
        _put(topology, profile, (key,))
    own = gpu.get("sources")
    if own is None or isinstance(own, dict):
        gpu["sources"] = {**sources, **(own or {})}


def _put(topology: Document, profile: Document, path: KeyPath) -> None:
    """Puts what stands at ``path`` of the profile where the topology's GPU has nothing; mappings
    key by key.
    """
    theirs: Any = profile.data
    mine: Any = topology.data["gpu"]
    for part in path[:-1]:
        theirs, mine = theirs[part], mine[part]
    value = theirs[path[-1]]
    if path[-1] not in mine:
        topology.put(("gpu", *path), value, profile.mark(path, key=True))
    elif isinstance(value, dict) and isinstance(mine[path[-1]], dict):
        for key in value:
            _put(topology, profile, (*path, key))
