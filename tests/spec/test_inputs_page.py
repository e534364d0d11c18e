"""docs/inputs.md names every key of the schema, every choice and every default that it states."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

from simulator.spec import catalogue, fields, schema
from simulator.spec.choices import FAMILIES
from simulator.spec.faults import key_of
from simulator.spec.units import UNITS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "inputs.md").read_text(encoding="utf-8")
# A key stands in `code`, alone or in a mapping such as `{from, to, bandwidth}`.
NAMED = {
    word for code in re.findall(r"`([^`\n]+)`", PAGE) for word in re.findall(r"[\w.:-]+", code)
}
CLASSES = [
    value
    for value in vars(schema).values()
    if isinstance(value, type) and issubclass(value, BaseModel) and value is not fields.Spec
]


def literals(annotation: object) -> set[str]:
    found = {text for text in get_args(annotation) if get_origin(annotation) is Literal}
    for part in get_args(annotation):
        found |= literals(part)
    return found


@pytest.mark.parametrize("model", CLASSES, ids=lambda model: model.__name__)
def test_every_key_and_every_choice_is_named(model):
    keys = {key_of(name, model) for name in model.model_fields} | {"kind"}
    choices = set().union(*(literals(f.annotation) for f in model.model_fields.values()))
    assert keys | choices <= NAMED | {word.rstrip(":") for word in NAMED}


def test_every_named_choice_and_gpu_is_there():
    for family in FAMILIES.values():
        for name, argument in family.items():
            assert (argument.example if argument else name) in NAMED
    assert all(name in PAGE for name in catalogue.names())
    assert set(fields.FLOPS_DTYPES) <= NAMED


def test_the_stated_copy_efficiencies_are_those_of_the_schema():
    for kind, value in schema.CopyEfficiency().model_dump().items():
        assert f"`{kind}` {value:g}" in PAGE


def test_every_dimension_has_its_row():
    rows = PAGE.split("## `--set")[0]
    for dimension in UNITS:
        name = {"flops": "FLOP rate"}.get(dimension, dimension)
        assert f"| {name} |" in rows
