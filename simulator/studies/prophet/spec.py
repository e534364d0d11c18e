"""What `prophet.yaml` may say: assumptions, systems, what is simulated, and the claims."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from simulator.errors import InputError
from simulator.spec.document import SET, Document, KeyPath, dotted, parse_value, read_document
from simulator.spec.faults import validated
from simulator.spec.fields import (
    Bandwidth,
    Bytes,
    Count,
    GpuCount,
    NotNegative,
    Price,
    Sources,
    Spec,
    refuse,
)
from simulator.spec.units import did_you_mean
from simulator.studies.common.claims import read_published
from simulator.studies.prophet.forms import FIGURES, ORDERS, Point

FILE = Path(__file__).with_name("prophet.yaml")

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[float, Field(ge=1)]


def _printed(text: str) -> str:
    read_published(text)
    return text


def _in_order(values: tuple[float, ...]) -> tuple[float, ...]:
    if any(b <= a for a, b in pairwise(values)):
        raise ValueError("the values must grow from one to the next")
    return values


class Assumptions(Spec):
    """What the published analysis takes as given."""

    experts: Count
    expert_bytes: Bytes
    experts_per_token: Count
    single_gpu_tokens_per_s: Positive
    single_gpu_prophet_tokens_per_s: Positive
    accuracy: Share
    memory_reduction: Factor
    tokens_per_month: Positive
    hardware_cost: Positive


class System(Spec):
    """A cluster: `dp` replicas of gpus / dp expert-parallel GPUs make the hybrid. `bandwidth` is
    the published sum of both directions; the topology has its own.
    """

    topology: str
    gpus: GpuCount
    dp: Count
    bandwidth_bytes_per_s: Bandwidth = Field(alias="bandwidth")
    price_per_hour: Price = Field(alias="price")

    @model_validator(mode="after")
    def _replicas(self) -> System:
        if self.gpus % self.dp:
            refuse("System", [(("dp",), f"{self.dp} does not divide the {self.gpus} GPUs")])
        return self


class Extent(Spec):
    """How much is simulated."""

    steps: Count
    warmup_steps: NotNegative
    predictors: Annotated[
        tuple[Literal["none", "stated", "learned", "oracle"], ...], Field(strict=False)
    ]
    accuracies: Annotated[tuple[Share, ...], Field(strict=False), AfterValidator(_in_order)]
    memory_reductions: Annotated[tuple[Factor, ...], Field(strict=False), AfterValidator(_in_order)]
    link_factors: Annotated[tuple[Positive, ...], Field(strict=False), AfterValidator(_in_order)]


class Simulation(Spec):
    """The workload, the seed, and two extents."""

    workload: str
    seed: NotNegative
    full: Extent
    quick: Extent


class Verdicts(Spec):
    """When a simulation reproduces a claim (relative), and when an effect counts (absolute)."""

    tolerance: Share
    direction: Share


class FigureClaim(Spec):
    """A published figure of one system's hybrid."""

    system: str
    text: str
    published: Annotated[str, AfterValidator(_printed)]
    figure: str
    scale: Positive = 1.0
    neutral: float | None = None

    @model_validator(mode="after")
    def _known(self) -> FigureClaim:
        if self.figure not in FIGURES:
            known = ", ".join(FIGURES)
            refuse("FigureClaim", [(("figure",), f"no figure {self.figure!r}; known: {known}")])
        return self


class OrderClaim(Spec):
    """A published claim on all systems together."""

    text: str
    order: str
    system: str = ""
    other: str = ""

    @model_validator(mode="after")
    def _known(self) -> OrderClaim:
        if self.order not in ORDERS:
            known = ", ".join(ORDERS)
            refuse("OrderClaim", [(("order",), f"no order {self.order!r}; known: {known}")])
        return self


class Prophet(Spec):
    """The study."""

    sources: Sources
    assumptions: Assumptions
    systems: dict[str, System]
    simulation: Simulation
    verdicts: Verdicts
    claims: Annotated[tuple[FigureClaim, ...], Field(strict=False)]
    orders: Annotated[tuple[OrderClaim, ...], Field(strict=False)]

    @model_validator(mode="after")
    def _systems_are_there(self) -> Prophet:
        found: list[tuple[tuple[str | int, ...], str]] = []
        named = [
            *((("claims", i, "system"), claim.system) for i, claim in enumerate(self.claims)),
            *((("orders", i, "system"), order.system) for i, order in enumerate(self.orders)),
            *((("orders", i, "other"), order.other) for i, order in enumerate(self.orders)),
        ]
        for where, name in named:
            if name and name not in self.systems:
                found.append((where, f"no system {name!r}{did_you_mean(name, [*self.systems])}"))
        refuse("Prophet", found)
        return self

    def point(self, system: str, ep: int, dp: int) -> Point:
        """What the closed form takes for a strategy on a system."""
        of, given = self.systems[system], self.assumptions
        return Point(
            gpus=of.gpus,
            ep=ep,
            dp=dp,
            bandwidth_bytes_per_s=of.bandwidth_bytes_per_s,
            price_per_hour=of.price_per_hour,
            rate_tokens_per_s=given.single_gpu_tokens_per_s,
            expert_bytes=given.expert_bytes,
            experts_per_token=given.experts_per_token,
            accuracy=given.accuracy,
            memory_reduction=given.memory_reduction,
            tokens_per_month=given.tokens_per_month,
            hardware_cost=given.hardware_cost,
        )


def load_study(overrides: Sequence[str] = (), path: Path = FILE) -> Prophet:
    """The study with `--set` overrides ("systems.8xA100.price=$2/h"); InputError with one line per
    fault.
    """
    document = read_document(path, path.name)
    for text in overrides:
        _put(document, text)
    return validated(Prophet, document)


def _put(document: Document, text: str) -> None:
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise InputError(f"--set {text!r}: write key.path=value, as in assumptions.accuracy=0.9")
    here: Any = document.data
    path: KeyPath = ()
    for part in parts:
        step: str | int = part
        known = [*here] if isinstance(here, dict) else []
        if isinstance(here, list) and part.isascii() and part.isdigit() and int(part) < len(here):
            step = int(part)
        elif part not in known:
            hint = did_you_mean(part, known) or (f"; known here: {', '.join(known)}" * bool(known))
            raise InputError(f"--set {dotted((*path, part))}: unknown key {part!r}{hint}")
        path = (*path, step)
        below = here[step]
        if len(path) < len(parts):
            here = below
    document.put(path, parse_value(value, f"{SET} {key}"), SET)
