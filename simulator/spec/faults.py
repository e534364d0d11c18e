"""What pydantic found wrong, as key paths of the YAML and one clear sentence each."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from simulator.errors import InputError
from simulator.spec.document import Document
from simulator.spec.units import did_you_mean, nearest

Read = TypeVar("Read", bound=BaseModel)

KeyPath = tuple[str | int, ...]


def faults(
    error: ValidationError, data: object, root: type[BaseModel]
) -> list[tuple[KeyPath, str, bool]]:
    """The faults that pydantic found in ``data``, in the schema's order.

    Each is (key path in the YAML, what is wrong, whether the key itself is the fault and not its
    value).
    """
    found = []
    meant = set()
    for entry in error.errors(include_url=False):
        path = _yaml_path(entry["loc"], data, root)
        if entry["type"] == "extra_forbidden":
            guess = nearest(str(path[-1]), keys_at(path[:-1], data, root) or [])
            meant.add((*path[:-1], guess))
        found.append((entry, path))
    told = []
    for entry, path in found:
        if entry["type"] == "missing" and path in meant:
            # Misspelled, not missing: the unknown key is told with the right one beside it.
            continue
        if entry["type"] == "too_short" and any(
            other[: len(path)] == path for _, other in found if len(other) > len(path)
        ):
            # An entry that is wrong is told; the list is only too short without it.
            continue
        if entry["type"] == "union_tag_invalid":
            path = (*path, "kind")
        is_key = entry["type"] == "extra_forbidden" or "[key]" in entry["loc"]
        told.append((path, _sentence(entry, path, data, root), is_key))
    return told


def validated(spec: type[Read], document: Document) -> Read:
    """What a document says, checked; raises InputError with one line per fault."""
    try:
        return spec.model_validate(document.data)
    except ValidationError as error:
        found = faults(error, document.data, spec)
        raise InputError(
            "\n".join(document.fault(where, what, key=is_key) for where, what, is_key in found)
        ) from None


def keys_at(path: KeyPath, data: object, root: type[BaseModel]) -> list[str] | None:
    """The keys that the schema has for the mapping at ``path`` of ``data``; None where any key is
    allowed or no mapping is.
    """
    here = schema_at(path, data, root)
    return [key_of(name, here) for name in here.model_fields] if here is not None else None


def key_of(name: str, model: type[BaseModel]) -> str:
    """The YAML key of a field: its alias, if it has one."""
    return model.model_fields[name].alias or name


def schema_at(path: KeyPath, data: object, root: type[BaseModel]) -> type[BaseModel] | None:
    """The schema class of the mapping at ``path``; of a union, the one that the ``kind`` in
    ``data`` selects.
    """
    annotation = _selected(_annotation_at(path, data, root), _value_at(path, data))
    return (
        annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
    )


def _annotation_at(path: KeyPath, data: object, root: type[BaseModel]) -> Any:
    annotation: Any = root
    for key in path:
        annotation = _below(_selected(annotation, data), key)
        data = _child(data, key)
    return annotation


def _below(annotation: Any, key: str | int) -> Any:
    """The annotation of a field, item or value of what ``annotation`` describes; None if it has
    none.
    """
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            if key_of(name, annotation) == key:
                return field.annotation
        return None
    if get_origin(annotation) in (tuple, list):
        return get_args(annotation)[0]
    return get_args(annotation)[1] if get_origin(annotation) is dict else None


def kinds_at(path: KeyPath, root: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """``kinds_of`` what stands at ``path``."""
    return kinds_of(_annotation_at(path, {}, root))


def is_list(path: KeyPath, data: object, root: type[BaseModel]) -> bool:
    """Whether a list stands at ``path``."""
    return get_origin(_bare(_annotation_at(path, data, root))) in (tuple, list)


def kinds_of(annotation: Any) -> dict[str, type[BaseModel]]:
    """The classes of a union that is told apart by ``kind``, by kind; empty for anything else."""
    members = [_bare(member) for member in get_args(annotation)]
    kinds = {}
    for member in members:
        if isinstance(member, type) and issubclass(member, BaseModel):
            field = member.model_fields.get("kind")
            literals = get_args(field.annotation) if field is not None else ()
            if len(literals) == 1:
                kinds[literals[0]] = member
    return kinds if len(kinds) > 1 else {}


def _bare(annotation: Any) -> Any:
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return annotation


def _selected(annotation: Any, data: object) -> Any:
    annotation = _bare(annotation)
    if get_origin(annotation) not in (Union, types.UnionType):
        return annotation
    kinds = kinds_of(annotation)
    if kinds:
        kind = data.get("kind") if isinstance(data, Mapping) else None
        return kinds.get(kind) if isinstance(kind, str) else None
    rest = [_bare(member) for member in get_args(annotation) if member is not type(None)]
    return rest[0] if len(rest) == 1 else None


def _child(data: object, key: str | int) -> object:
    if isinstance(data, Mapping):
        return data.get(key)
    if isinstance(data, Sequence) and not isinstance(data, str) and isinstance(key, int):
        return data[key] if 0 <= key < len(data) else None
    return None


def _value_at(path: KeyPath, data: object) -> object:
    for key in path:
        data = _child(data, key)
    return data


def _yaml_path(loc: tuple[int | str, ...], data: object, root: type[BaseModel]) -> KeyPath:
    """``loc`` without what pydantic puts in besides keys: the tag of a union, and ``[key]`` of a
    faulty mapping key.
    """
    path: list[str | int] = []
    annotation: Any = root
    for part in loc:
        kinds = kinds_of(_bare(annotation))
        if part in kinds:
            annotation = kinds[str(part)]
        elif part != "[key]":
            annotation = _below(_selected(annotation, data), part)
            data = _child(data, part)
            path.append(part)
    return tuple(path)


def _sentence(entry: Any, path: KeyPath, data: object, root: type[BaseModel]) -> str:
    kind: str = entry["type"]
    context, given = entry.get("ctx", {}), entry["input"]
    if kind == "missing":
        return "required, but not given"
    if kind == "extra_forbidden":
        known = keys_at(path[:-1], data, root) or []
        hint = did_you_mean(str(path[-1]), known)
        return f"unknown key{hint}" if hint else f"unknown key; known here: {', '.join(known)}"
    if kind == "value_error":
        return str(context["error"])
    if kind == "check":
        return str(entry["msg"])
    if kind == "literal_error":
        choices = _literals(path, data, root)
        return (
            f"{_show(given)} is not one of {', '.join(choices)}{did_you_mean(str(given), choices)}"
        )
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        above = path[:-1] if kind == "union_tag_invalid" else path
        choices = list(kinds_of(_bare(_annotation_at(above, data, root))))
        if kind == "union_tag_not_found":
            return f"'kind' is required: one of {', '.join(choices)}"
        tag = str(context["tag"])
        return f"{tag!r} is not one of {', '.join(choices)}{did_you_mean(tag, choices)}"
    if kind in _BOUNDS:
        sign, key = _BOUNDS[kind]
        written = _value_at(path, data)
        given = given if written is None else written
        return f"must be {sign} {context[key]:g}, not {_show(given)}"
    if kind == "string_too_short":
        return "must not be empty"
    if kind in _LENGTHS:
        words, key = _LENGTHS[kind]
        return f"must be a list of {words} {context[key]}, not {_show(given)}"
    return f"must be {_WANTED.get(kind, 'something else')}, not {_show(given)}"


_BOUNDS = {
    "greater_than": (">", "gt"),
    "greater_than_equal": (">=", "ge"),
    "less_than": ("<", "lt"),
    "less_than_equal": ("<=", "le"),
}

_LENGTHS = {
    "too_short": ("at least", "min_length"),
    "too_long": ("at most", "max_length"),
}

_MAPPING = "a mapping (key: value)"
_WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": _MAPPING,
    "model_type": _MAPPING,
    "model_attributes_type": _MAPPING,
}


def _literals(path: KeyPath, data: object, root: type[BaseModel]) -> list[str]:
    annotation = _annotation_at(path, data, root)
    # An optional name is a union of the names and None.
    parts = [_bare(annotation), *map(_bare, get_args(annotation))]
    return [text for part in parts for text in get_args(part) if isinstance(text, str)]


def _show(value: object) -> str:
    if value is None:
        return "nothing"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
