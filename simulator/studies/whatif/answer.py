"""The study's question answered in one paragraph, from its points."""

from __future__ import annotations

import math
from collections.abc import Sequence

from simulator.spec.units import counted
from simulator.studies.whatif.judge import (
    can_run,
    effects,
    front,
    is_full,
    keeps,
    ranked,
)
from simulator.studies.whatif.metrics import Metric
from simulator.studies.whatif.run import Found, Point
from simulator.studies.whatif.spec import Value

_MOST = 8
"""So many values of an axis, or points of a front, are told one by one."""


def answer(found: Found) -> str:
    """What the points say, in sentences."""
    told = [_counted(found)]
    if not any(map(can_run, found.points)):
        return told[0]
    goals = goals_of(found)
    if found.study.constraints and not any(keeps(found, point) for point in found.points):
        told.append(_nearest(found))
        goals = []
    for at, (metric, sign) in enumerate(goals):
        told += _best(found, metric, sign, first=at == 0)
    if len(found.study.objectives) > 1:
        told += _compromise(found)
    for metric, _ in goals[:2]:
        told += _matters(found, metric)
    return " ".join(told)


def goals_of(found: Found) -> list[tuple[Metric, float]]:
    """The objectives; without any, the first numeric metric, lower being better for times, prices
    and energies.
    """
    if found.study.objectives:
        return list(found.study.objectives)
    for metric in found.study.metrics:
        if metric.unit != "text":
            return [(metric, 1.0 if metric.unit in ("s", "$", "J", "W") else -1.0)]
    return []


def told_point(found: Found, point: Point) -> str:
    """A point by the values of its axes."""
    return ", ".join(
        f"{axis.name} {axis.values[at].label}"
        for axis, at in zip(found.study.axes, point.choice, strict=True)
    )


def ratio(value: float, reference: float) -> str:
    """How a value compares: "+12 %", "-3.1 %", "5.2 times"."""
    if reference == 0.0 or value < 0.0 or reference < 0.0:
        return ""
    times = value / reference
    if times >= 2.0:
        return f"{times:.3g} times"
    change = 100.0 * (times - 1.0)
    return f"{change:+.1f} %" if abs(change) < 10 else f"{change:+.0f} %"


def _counted(found: Found) -> str:
    ran = [point for point in found.points if can_run(point)]
    points = counted(len(found.points), "point")
    if not ran:
        reason = found.points[0].row["reason"] if found.points else ""
        return f"None of {points} could be run; the first: {reason}."
    if len(ran) == len(found.points):
        told = f"All {points} could be run" if len(ran) > 1 else "The one point could be run"
    else:
        told = f"Of {points} {len(ran)} could be run"
    if found.study.constraints:
        kept = sum(keeps(found, point) for point in found.points)
        bounds = " and ".join(bound.text for bound in found.study.constraints)
        told += f", and {kept} of them {'keeps' if kept == 1 else 'keep'} {bounds}"
    return told + "."


def _best(found: Found, metric: Metric, sign: float, first: bool) -> list[str]:
    order = ranked(found, metric, sign)
    if not order:
        return []
    best, worst = order[0], order[-1]
    value, other = metric.number(best.row["figures"]), metric.number(worst.row["figures"])
    assert value is not None
    assert other is not None
    word = "lowest" if sign > 0 else "highest"
    told = f"The {word} {_name(metric)} is {metric.told(value)}, with {told_point(found, best)}"
    extra = [
        _with_value(m, m.told(m.of(best.row["figures"])))
        for m in found.study.metrics
        if first and m != metric and m.of(best.row["figures"]) is not None
    ]
    if extra:
        told += f" ({'; '.join(extra[:_MOST])})"
    if worst is not best and other != value:
        told += f"; the {'highest' if sign > 0 else 'lowest'}, with {told_point(found, worst)}, "
        told += f"is {metric.told(other)}"
    sentences = [told + "."]
    if first:
        sentences += _by_value(found, metric, sign)
    return sentences


def _by_value(found: Found, metric: Metric, sign: float) -> list[str]:
    """The best that each value of the first axis reaches, and how the values compare where all
    else is equal.
    """
    axis = found.study.axes[0]
    if not 2 <= len(axis.values) <= _MOST or len(found.study.axes) < 2:
        return []
    order = ranked(found, metric, sign)
    value = metric.number(order[0].row["figures"])
    first = order[0].choice[0]
    told, equal = [], []
    for at, one in enumerate(axis.values):
        mine = [point for point in order if point.choice[0] == at]
        best = metric.number(mine[0].row["figures"]) if mine else None
        if best is None or value is None:
            told.append(f"none with {one.label}")
            continue
        against = "" if at == first or best == value else ratio(best, value)
        told.append(f"{metric.told(best)} with {one.label}" + (f" ({against})" if against else ""))
        times = _all_else_equal(found, metric, at, first)
        if at != first and times:
            equal.append(f"{_ratios(times)} with {one.label}")
    sentences = [f"The best of each {axis.name}: {', '.join(told)}."]
    if equal:
        label = axis.values[first].label
        sentences.append(
            f"Against {axis.name} {label} with all else equal (geometric mean, and from the least "
            f"to the most): {', '.join(equal)}."
        )
    return sentences


def _all_else_equal(found: Found, metric: Metric, at: int, reference: int) -> list[float]:
    """A metric at one value of the first axis over that at another, for each way in which the
    other axes may be that both have.
    """
    known = {
        point.choice: metric.number(point.row["figures"])
        for point in found.points
        if can_run(point)
    }
    return [
        value / other
        for choice, value in known.items()
        if choice[0] == at
        and value is not None
        and (other := known.get((reference, *choice[1:]))) is not None
        and min(value, other) > 0.0
    ]


def _ratios(times: Sequence[float]) -> str:
    """Their geometric mean, and their range if they differ."""
    mean = ratio(math.exp(sum(map(math.log, times)) / len(times)), 1.0)
    low, high = ratio(min(times), 1.0), ratio(max(times), 1.0)
    return mean if low == high else f"{mean} ({low} to {high})"


def _compromise(found: Found) -> list[str]:
    points = front(found)
    names = " and ".join(_name(metric) for metric, _ in found.study.objectives)
    if len(points) == 1:
        return ["It is the best in every objective."]
    told = f"Between {names} {len(points)} points are not beaten by any other"
    if len(points) <= _MOST:
        told += ": " + "; ".join(
            f"{told_point(found, point)} ("
            + ", ".join(m.told(m.of(point.row["figures"])) for m, _ in found.study.objectives)
            + ")"
            for point in points
        )
    return [told + "."]


def _matters(found: Found, metric: Metric) -> list[str]:
    told = [effect for effect in effects(found, metric) if effect.share > 0.005]
    if len(found.study.axes) < 2 or not told:
        return []
    told.sort(key=lambda effect: -effect.share)
    parts = []
    for at, effect in enumerate(told[:3]):
        way = f" ({effect.direction} with it)" if effect.direction else ""
        verb = "explains " if at == 0 else ""
        parts.append(f"{effect.axis} {verb}{100 * effect.share:.0f} %{way}")
    rest = 1.0 - sum(effect.share for effect in effects(found, metric))
    if is_full(found) and rest > 0.05:
        parts.append(f"the axes together {100 * rest:.0f} %")
    return [f"Of the variance of {_name(metric)}, {', '.join(parts)}."]


def notes(found: Found) -> list[str]:
    """What the runs noted, each note once, with the number of points that it is of."""
    counted: dict[str, int] = {}
    for point in found.points:
        for note in dict.fromkeys(point.row["notes"]):
            counted[note] = counted.get(note, 0) + 1
    total = len(found.points)
    return [
        note if times == total else f"{note} ({times} of {total} points)"
        for note, times in counted.items()
    ]


def _nearest(found: Found) -> str:
    """No point keeps the constraints: which one misses them least."""
    missed = []
    for point in found.points:
        if can_run(point):
            over = [bound.over(point.row["figures"]) for bound in found.study.constraints]
            worst = max((gap for gap in over if gap is not None), default=None)
            if worst is not None and None not in over:
                missed.append((worst, point.number, point))
    if not missed:
        return "None has the figures that the constraints are on."
    _, _, nearest = min(missed, key=lambda entry: entry[:2])
    metrics = list(dict.fromkeys(bound.metric for bound in found.study.constraints))
    figures = ", ".join(
        f"{_name(metric)} {metric.told(metric.of(nearest.row['figures']))}" for metric in metrics
    )
    return f"Nearest to it comes {told_point(found, nearest)}: {figures}."


def _with_value(metric: Metric, value: str) -> str:
    """As in "hit rate 37.7 %", or "$21.4 per million tokens"."""
    if metric.text.startswith("$ "):
        return value + metric.text[1:]
    return f"{metric.name.replace('_', ' ')} {value}"


def _name(metric: Metric) -> str:
    return metric.text or metric.name.replace("_", " ")


def columns(found: Found) -> list[str]:
    """Names of the table's columns: axes, metrics with their unit, what became of the point."""
    axes = [axis.name for axis in found.study.axes]
    metrics = [metric.column for metric in found.study.metrics]
    more = ["pareto"] if len(found.study.objectives) > 1 else []
    kept = ["kept"] if found.study.constraints else []
    return [*axes, *metrics, *kept, *more, "status", "reason"]


def flat_rows(found: Found) -> list[dict[str, str | float | bool | None]]:
    """The table: for each point, in their order, a mapping from `columns` to values in SI units."""
    best = {point.number for point in front(found)}
    rows: list[dict[str, str | float | bool | None]] = []
    for point in found.points:
        row: dict[str, str | float | bool | None] = {
            axis.name: _cell(axis.values[at])
            for axis, at in zip(found.study.axes, point.choice, strict=True)
        }
        row |= {metric.column: metric.of(point.row["figures"]) for metric in found.study.metrics}
        row |= {"kept": keeps(found, point), "pareto": point.number in best}
        row |= {"status": point.row["status"], "reason": point.row["reason"]}
        rows.append({name: row[name] for name in columns(found)})
    return rows


def _cell(value: Value) -> str | float:
    """A value's number if it is written as one, else its label."""
    whole = value.number is not None and value.label == f"{value.number:.0f}"
    if value.number is not None and (whole or value.label == repr(value.number)):
        return int(value.number) if whole else value.number
    return value.label


def best_rows(found: Found, most: int) -> tuple[list[str], list[list[str]], str]:
    """As `shown_rows`, of a longer table the `most` best points by the first goal, best first; and
    a line that says so, else empty.
    """
    header, rows = shown_rows(found)
    if len(rows) <= most:
        return header, rows, ""
    goals = goals_of(found)
    order = [point.number for point in ranked(found, *goals[0])] if goals else []
    good = set(order)
    rest = [at for at in range(len(rows)) if at not in good]
    chosen = [rows[at] for at in [*order, *rest][:most]]
    return header, chosen, f"The best {most:,} of {len(rows):,} points (table.csv has all):"


def shown_rows(found: Found) -> tuple[list[str], list[list[str]]]:
    """The table for readers: a header, and rows with units; last, if any failed, why."""
    metrics: Sequence[Metric] = found.study.metrics
    header = [*(axis.name for axis in found.study.axes), *(m.name for m in metrics)]
    best = {point.number for point in front(found)}
    with_front, with_kept = len(found.study.objectives) > 1, bool(found.study.constraints)
    header += [*(["kept"] if with_kept else []), *(["front"] if with_front else []), "note"]
    rows = []
    for point in found.points:
        cells = [
            axis.values[at].label for axis, at in zip(found.study.axes, point.choice, strict=True)
        ]
        cells += [metric.told(metric.of(point.row["figures"])) for metric in metrics]
        cells += [("yes" if keeps(found, point) else "no")] if with_kept else []
        cells += [("yes" if point.number in best else "")] if with_front else []
        rows.append([*cells, point.row["reason"]])
    if not any(row[-1] for row in rows):
        return header[:-1], [row[:-1] for row in rows]
    return header, rows
