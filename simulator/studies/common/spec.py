"""What `large_ep.yaml` and `layerwise.yaml` share: claims, notes, and how such a file is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field

from simulator.errors import InputError
from simulator.spec.document import SET, Document, KeyPath, dotted, parse_value, read_document
from simulator.spec.faults import validated
from simulator.spec.fields import Sources, Spec
from simulator.spec.units import did_you_mean
from simulator.studies.common.claims import read_published

YES = "yes"

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Wholes = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False, min_length=1)]


def _printed(text: str) -> str:
    if text != YES:
        read_published(text)
    return text


class Claim(Spec):
    """A published figure (`published` as printed), or a statement that is said to hold ("yes").

    figure: its name among those that the closed form and the simulation give; neutral: its value
    without any effect; scale turns the figure into the printed unit; share: judged as its ratio to
    the rest (`simulator.studies.common.claims.verdict`).
    """

    text: str
    published: Annotated[str, AfterValidator(_printed)]
    figure: str
    scale: Positive = 1.0
    neutral: float | None = None
    share: bool = False


class Verdicts(Spec):
    """When a simulation reproduces a claim (relative), and when an effect counts (absolute)."""

    tolerance: Share
    direction: Share


class StudySpec(Spec):
    """The part that both files have. notes: what is odd in the published text, in sentences."""

    sources: Sources
    verdicts: Verdicts
    claims: Annotated[tuple[Claim, ...], Field(strict=False)]
    notes: Sources


Study = TypeVar("Study", bound=StudySpec)


def read_study(spec: type[Study], path: Path, overrides: Sequence[str] = ()) -> Study:
    """A study's file with overrides ("assumptions.top_k=2"); InputError, one line per fault."""
    document = read_document(path, path.name)
    for text in overrides:
        _put(document, text)
    return validated(spec, document)


def _put(document: Document, text: str) -> None:
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise InputError(f"--set {text!r}: write key.path=value, as in assumptions.batch=64")
    here: Any = document.data
    for depth, part in enumerate(parts):
        if not isinstance(here, dict) or part not in here:
            known = [str(name) for name in here] if isinstance(here, dict) else []
            hint = did_you_mean(part, known) or f"; known here: {', '.join(known) or 'nothing'}"
            raise InputError(f"--set {dotted(tuple(parts[: depth + 1]))}: unknown key{hint}")
        here = here[part]
    path: KeyPath = tuple(parts)
    document.put(path, parse_value(value, f"{SET} {key}"), SET)
