"""The kinds of value that a topology or a workload holds: quantities with a unit, counts, names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from simulator.spec.choices import ChoiceError, Family, parse_choice, routing_law
from simulator.spec.units import Dimension, did_you_mean, parse_quantity


def _quantity(dimension: Dimension) -> BeforeValidator:
    def read(value: object) -> float:
        return parse_quantity(value, dimension)

    return BeforeValidator(read)


def choice(family: Family) -> AfterValidator:
    """Checks a name of ``family`` (``simulator.spec.choices``) and keeps its text."""

    def check(text: str) -> str:
        parse_choice(text, family)
        return text

    return AfterValidator(check)


Bandwidth = Annotated[float, Field(gt=0), _quantity("bandwidth")]
Latency = Annotated[float, Field(ge=0), _quantity("time")]
Bytes = Annotated[float, Field(gt=0), _quantity("bytes")]
Flops = Annotated[float, Field(gt=0), _quantity("flops")]
Power = Annotated[float, Field(ge=0), _quantity("power")]
Price = Annotated[float, Field(ge=0), _quantity("price")]
BitEnergy = Annotated[float, Field(ge=0), _quantity("bit energy")]
FlopEnergy = Annotated[float, Field(ge=0), _quantity("FLOP energy")]
Tariff = Annotated[float, Field(ge=0), _quantity("tariff")]
Volume = Annotated[float, Field(gt=0), _quantity("volume")]
Efficiency = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
# Beyond these a typing error is likelier than a cluster; expert ids are 16 bit.
GpuCount = Annotated[int, Field(ge=1, le=65_536)]
ExpertCount = Annotated[int, Field(ge=1, le=32_767)]
LayerCount = Annotated[int, Field(ge=1, le=4096)]
NotNegative = Annotated[int, Field(ge=0)]
Sources = Annotated[tuple[str, ...], Strict(False)]
# Of an expert against one of full size: from a hundredth to a hundred times.
RelativeSizes = Annotated[tuple[Annotated[float, Field(ge=0.01, le=100)], ...], Strict(False)]

FLOPS_DTYPES = ("fp64", "fp32", "tf32", "bf16", "fp16", "fp8", "int8", "fp4")
WeightDtype = Literal[
    "fp32", "bf16", "fp16", "fp8", "fp8_block", "int8", "int4", "fp4", "mxfp4", "nvfp4"
]


def _routing_source(text: str) -> str:
    routing_law(text)
    return text


def _flops_dtype(name: str) -> str:
    if name not in FLOPS_DTYPES:
        hint = did_you_mean(name, list(FLOPS_DTYPES))
        raise ChoiceError(f"unknown dtype{hint}; known: {', '.join(FLOPS_DTYPES)}")
    return name


FlopsDtype = Annotated[str, AfterValidator(_flops_dtype)]
RoutingSource = Annotated[str, Field(min_length=1), AfterValidator(_routing_source)]


class Spec(BaseModel):
    """What every class of the schema has: frozen, no unknown key, no silent conversion."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=()
    )


def refuse(title: str, found: Iterable[tuple[tuple[str | int, ...], str]]) -> None:
    """Raises all ``(key path below the model, message)`` at once, if there are any."""
    details = [
        InitErrorDetails(
            type=PydanticCustomError("check", "{message}", {"message": message}),
            loc=path,
            input=None,
        )
        for path, message in found
    ]
    if details:
        raise ValidationError.from_exception_data(title, details)
