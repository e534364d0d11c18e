"""What a study's file may say, and how it is read.

question: How many GPUs should share the experts?
base: {topology: h100x32-rail, workload: moe128, set: {network: coflow}}
axes:
  - {name: EP, key: parallel.ep, values: [8, 16, 32]}
metrics: [tokens_per_s, ttft_p99]
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, Strict

from simulator.errors import InputError
from simulator.spec.document import SET, Document, KeyPath, parse_value, read_document
from simulator.spec.faults import validated
from simulator.spec.fields import Count, NotNegative, Sources, Spec
from simulator.spec.units import UNITS, QuantityError, did_you_mean, parse_quantity
from simulator.studies.whatif.metrics import Bound, Metric, metric_of, read_bound

Kind = Literal["run", "serve"]
Items = Annotated[tuple[Any, ...], Strict(False)]

# Beyond these a typing error is likelier than a study.
MOST_POINTS = 100_000
MOST_RANDOM = 1 << 62

NAMES = ("topology", "workload")
"""Keys of a point that are no `--set` keys: the files that it is made of."""

_SHORT = {"routing": "routing.source", "requests": "requests.source"}
_RESERVED = ("point", "status", "reason", "pareto")


class Base(Spec):
    """The run that the axes change; `set`: "key.path": value, as --set takes them."""

    topology: str | None = None
    workload: str | None = None
    routing: str | None = None
    requests: str | None = None
    set: dict[str, Any] = Field(default_factory=dict)


class AxisSpec(Spec):
    """One axis. `key` (null: `name`) takes each of `values`: a scalar, `{label, value}`, or
    `{label, set: {key: value, ...}}` for several keys at once.
    """

    name: Annotated[str, Field(min_length=1)]
    key: str | None = None
    values: Items


class Random(Spec):
    """So many different points of the grid, drawn by `seed`."""

    points: Count
    seed: NotNegative = 0


class Search(Spec):
    """So many different points, each batch chosen by what those before it gave."""

    trials: Count
    seed: NotNegative = 0
    batch: Count = 4


class Objective(Spec):
    """A figure that should be as low or as high as can be."""

    metric: str
    direction: Literal["minimize", "maximize"]


class StudyFile(Spec):
    """A what-if study."""

    name: Annotated[str, Field(min_length=1)]
    description: str = ""
    sources: Sources = ()
    question: Annotated[str, Field(min_length=1)]
    kind: Kind = "run"
    base: Base
    seed: NotNegative = 0
    axes: Annotated[tuple[AxisSpec, ...], Strict(False)]
    points: Items | None = None
    random: Random | None = None
    search: Search | None = None
    objectives: Annotated[tuple[Objective, ...], Strict(False)] = ()
    constraints: Sources = ()
    metrics: Sources = ()


@dataclass(frozen=True)
class Value:
    """One value of an axis: what it sets, and its number where it has one."""

    label: str
    keys: tuple[tuple[str, Any], ...]
    number: float | None
    mark: str


@dataclass(frozen=True)
class Axis:
    """An axis with its values, in the order of the file."""

    name: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Study:
    """A study that can be run.

    metrics: all figures that the table shows, those of objectives and constraints among them;
    objectives: with the sign that makes them to be minimized; points: of a list, as numbers of
    values; folder: where the file lies, beside which the files that it names are looked for.
    """

    name: str
    question: str
    kind: Kind
    base: tuple[tuple[str, Any], ...]
    seed: int
    axes: tuple[Axis, ...]
    points: tuple[tuple[int, ...], ...] | None
    random: Random | None
    search: Search | None
    objectives: tuple[tuple[Metric, float], ...]
    constraints: tuple[Bound, ...]
    metrics: tuple[Metric, ...]
    folder: Path

    @property
    def size(self) -> int:
        """How many points the whole grid has."""
        return math.prod(len(axis.values) for axis in self.axes)


def read_study(path: Path, shown: str, overrides: Sequence[str] = ()) -> Study:
    """A study's file; overrides: "key.path=value" of the base. InputError, one line per fault."""
    document = read_document(path, shown)
    told = validated(StudyFile, document)
    found = list(_faults(told, document))
    axes = tuple(_axis(spec, at, document, found) for at, spec in enumerate(told.axes))
    base = _base(told.base, overrides)
    found += _clashes(axes, document)
    for name in NAMES:
        if name not in dict(base) and not any(_sets(axis, name) for axis in axes):
            found.append(document.fault(("base",), f"{name}: required here, or of an axis"))
    objectives, constraints, metrics = _figures(told, document, found)
    points = _points(told, axes, document, found)
    for metric in metrics:
        if metric.column in {axis.name for axis in axes}:
            found.append(document.fault(("axes",), f"{metric.column!r} is the name of a metric"))
    if found:
        raise InputError("\n".join(found))
    study = Study(
        told.name,
        told.question,
        told.kind,
        base,
        told.seed,
        axes,
        points,
        told.random,
        told.search,
        objectives,
        constraints,
        metrics,
        path.parent,
    )
    most = MOST_POINTS if points is None and told.random is None and told.search is None else None
    if study.size > (most or MOST_RANDOM):
        what = f"{study.size:,} points in the grid, at most {most or MOST_RANDOM:,}"
        raise InputError(document.fault(("axes",), f"{what}; take some: random: {{points: 100}}"))
    return study


def override_of(key: str, value: Any) -> str:
    """A key and its value as --set reads them (JSON is YAML)."""
    return f"{_SHORT[key] if key in _SHORT and isinstance(value, str) else key}=" + json.dumps(
        value
    )


def _faults(told: StudyFile, document: Document) -> Iterator[str]:
    if not told.axes:
        yield document.fault(("axes",), "at least one axis, as in [{name: EP, values: [8, 16]}]")
    ways = [name for name in ("points", "random", "search") if getattr(told, name) is not None]
    if len(ways) > 1:
        yield document.fault((ways[1],), f"give {ways[0]} or {ways[1]}, not both")
    if told.search is not None and not told.objectives:
        yield document.fault(("search",), "needs objectives: [{metric, direction}]")
    seen: dict[str, int] = {}
    for at, axis in enumerate(told.axes):
        if axis.name in seen:
            yield document.fault(("axes", at, "name"), f"a second axis named {axis.name!r}")
        seen[axis.name] = at
        if axis.name in _RESERVED:
            yield document.fault(("axes", at, "name"), f"{axis.name!r} is a column of the table")
        if not axis.values:
            yield document.fault(("axes", at, "values"), "at least one value, as in [8, 16]")


def _axis(spec: AxisSpec, at: int, document: Document, found: list[str]) -> Axis:
    values: list[Value] = []
    labels: set[str] = set()
    for number, given in enumerate(spec.values):
        where: KeyPath = ("axes", at, "values", number)
        try:
            value = _value(given, spec.key or spec.name, document.mark(where))
        except InputError as error:
            found.append(document.fault(where, str(error)))
            continue
        if value.label in labels:
            found.append(document.fault(where, f"a second value {value.label!r}; give it a label"))
        labels.add(value.label)
        values.append(value)
    return Axis(spec.name, tuple(values))


def _value(given: Any, key: str, mark: str) -> Value:
    """A value as it is written: plain, `{label, value}` or `{label, set}`."""
    if not isinstance(given, dict):
        return Value(_label(given), ((key, given),), _number(given), mark)
    known = ["label", "value", "set"]
    for word in given:
        if word not in known:
            hint = did_you_mean(word, known) or "; known here: label, value, set"
            raise InputError(f"unknown key {word!r}{hint}")
    if ("value" in given) == ("set" in given):
        raise InputError("give value, or set: {key: value, ...}")
    label = given.get("label")
    if label is not None and not isinstance(label, str | int | float):
        raise InputError(f"label: must be text, not {label!r}")
    if "value" in given:
        value = given["value"]
        return Value(str(label or _label(value)), ((key, value),), _number(value), mark)
    keys = given["set"]
    if not isinstance(keys, dict) or (label is None and not keys):
        raise InputError("set: must be a mapping (key: value)")
    text = ", ".join(f"{name}={_label(value)}" for name, value in keys.items())
    return Value(str(label or text), tuple(keys.items()), None, mark)


def _label(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _number(value: Any) -> float | None:
    """The number of a value, of a quantity in SI units; None for what is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, str):
        for dimension in UNITS:
            try:
                return parse_quantity(value, dimension)
            except QuantityError:
                continue
    return None


def _base(told: Base, overrides: Sequence[str]) -> tuple[tuple[str, Any], ...]:
    given = {name: getattr(told, name) for name in (*NAMES, *_SHORT)}
    base = {name: value for name, value in given.items() if value is not None} | told.set
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise InputError(f"--set {text!r}: write key.path=value, for example traffic.steps=8")
        base[key.strip()] = parse_value(value, f"{SET} {key.strip()}")
    return tuple(base.items())


def _sets(axis: Axis, key: str) -> bool:
    return any(key in dict(value.keys) for value in axis.values)


def _clashes(axes: Sequence[Axis], document: Document) -> Iterator[str]:
    """Keys that two axes set: the later one would undo the other."""
    owner: dict[str, str] = {}
    for at, axis in enumerate(axes):
        mine = {key for value in axis.values for key, _ in value.keys}
        for key in sorted(mine):
            other = owner.get(key)
            if other is not None and other != axis.name:
                yield document.fault(("axes", at), f"sets {key}, as axis {other!r} does")
            owner[key] = axis.name


def _figures(
    told: StudyFile, document: Document, found: list[str]
) -> tuple[tuple[tuple[Metric, float], ...], tuple[Bound, ...], tuple[Metric, ...]]:
    """Objectives, constraints and all metrics of the table, each once."""
    objectives: list[tuple[Metric, float]] = []
    constraints: list[Bound] = []
    metrics: dict[str, Metric] = {}

    def add(name: str, where: KeyPath) -> Metric | None:
        try:
            metric = metric_of(name, told.kind)
        except InputError as error:
            found.append(document.fault(where, str(error)))
            return None
        metrics.setdefault(metric.name, metric)
        return metric

    for at, objective in enumerate(told.objectives):
        metric = add(objective.metric, ("objectives", at, "metric"))
        if metric is not None:
            if metric.unit == "text":
                where: KeyPath = ("objectives", at, "metric")
                found.append(document.fault(where, f"{metric.name!r} is text, not a number"))
            objectives.append((metric, 1.0 if objective.direction == "minimize" else -1.0))
    for at, text in enumerate(told.constraints):
        try:
            bound = read_bound(text, told.kind)
        except InputError as error:
            found.append(document.fault(("constraints", at), str(error)))
            continue
        constraints.append(bound)
        metrics.setdefault(bound.metric.name, bound.metric)
    for at, name in enumerate(told.metrics):
        add(name, ("metrics", at))
    if not metrics:
        for name in _USUAL[told.kind]:
            add(name, ("metrics",))
    return tuple(objectives), tuple(constraints), tuple(metrics.values())


_USUAL: Mapping[Kind, tuple[str, ...]] = {
    "run": ("tokens_per_s", "step_time", "usd_per_1m_tokens", "bottleneck"),
    "serve": ("ttft_p99", "tpot_p99", "goodput_per_s", "usd_per_1m_generated"),
}
"""Metrics of a study that names none."""


def _points(
    told: StudyFile, axes: Sequence[Axis], document: Document, found: list[str]
) -> tuple[tuple[int, ...], ...] | None:
    """The points of a list as numbers of values; an axis that is left out has its first value."""
    if told.points is None:
        return None
    names = [axis.name for axis in axes]
    listed = []
    if not told.points:
        found.append(document.fault(("points",), "at least one point"))
    for at, given in enumerate(told.points):
        if not isinstance(given, dict):
            found.append(document.fault(("points", at), "must be a mapping (axis: value)"))
            continue
        chosen = dict.fromkeys(names, 0)
        for name, value in given.items():
            where: KeyPath = ("points", at, name)
            if name not in names:
                hint = did_you_mean(name, names) or f"; known: {', '.join(names)}"
                found.append(document.fault(where, f"no axis is named so{hint}", key=True))
                continue
            labels = [one.label for one in axes[names.index(name)].values]
            if labels and _label(value) not in labels:
                hint = did_you_mean(_label(value), labels) or f"; known: {', '.join(labels)}"
                found.append(document.fault(where, f"no value {_label(value)!r}{hint}"))
                continue
            chosen[name] = labels.index(_label(value)) if labels else 0
        listed.append(tuple(chosen.values()))
    return tuple(listed)
