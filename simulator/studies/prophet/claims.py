"""The published claims of the study `prophet`, judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from simulator.results.summary import number
from simulator.studies.common.claims import (
    DIRECTION,
    NOT,
    REPRODUCED,
    Found,
    Judged,
    crossing,
    form_verdict,
    read_published,
    verdict,
)
from simulator.studies.prophet.forms import ORDERS, Figures, Standing, holds_at
from simulator.studies.prophet.result import READINGS, SWEEPS, Result, fits
from simulator.studies.prophet.runs import Access, strategies
from simulator.studies.prophet.spec import FigureClaim, OrderClaim

SHARES = ("comm_baseline", "comm_prophet")
# Figures that are a difference of others: near a claim by coincidence, if those are not.
RESTS_ON = {
    "saving_per_year": ("cost_baseline", "cost_prophet"),
    "payback_months": ("cost_baseline", "cost_prophet"),
}
# Swept for figures that compare the two: for the others it says nothing of its own.
COMPARING = ("speedup", "cost_ratio", "saving_per_year", "comm_reduction", "bytes_ratio")
NOWHERE = "nowhere in "


def judge(result: Result) -> list[Judged]:
    """Every claim beside what the closed form and each reading of the simulation give."""
    found = [_figure_claim(result, claim) for claim in result.study.claims]
    found = [
        _without_coincidence(result, claim, judged, found)
        for claim, judged in zip(result.study.claims, found, strict=True)
    ]
    return found + [_order_claim(result, claim) for claim in result.study.orders]


def _without_coincidence(
    result: Result, claim: FigureClaim, judged: Judged, every: Sequence[Judged]
) -> Judged:
    """A difference that agrees while the figures it is made of do not is not reproduced."""
    kept = dict(judged.simulated)
    for reading, found in judged.simulated.items():
        if found.verdict != REPRODUCED or claim.figure not in RESTS_ON:
            continue
        agreeing = {
            other.figure
            for other, so in zip(result.study.claims, every, strict=True)
            if other.system == claim.system and so.simulated[reading].verdict == REPRODUCED
        }
        if not agreeing.issuperset(RESTS_ON[claim.figure]):
            why = "it agrees by coincidence: the costs that it is made of do not"
            kept[reading] = found._replace(verdict=DIRECTION, holds_at=why)
    return judged._replace(simulated=kept)


def _figure_claim(result: Result, claim: FigureClaim) -> Judged:
    study = result.study
    published = read_published(claim.published)
    form = result.forms[claim.system]["hybrid"].value(claim.figure)
    form = None if form is None else form * claim.scale
    told = form_verdict(form, published)
    degrees = strategies(study.systems[claim.system])["hybrid"]
    at = ""
    if told != REPRODUCED:
        point = study.point(claim.system, *degrees)
        at = holds_at(point, claim.figure, published, claim.scale)
    simulated: dict[str, Found] = {}
    for reading, given in result.hybrid[claim.system].items():
        value = given.value(claim.figure)
        value = None if value is None else value * claim.scale
        rule = study.verdicts
        found = verdict(
            value,
            published,
            rule.tolerance,
            claim.neutral,
            rule.direction * claim.scale,
            claim.scale if claim.figure in SHARES else None,
        )
        where = "" if found == REPRODUCED else _where(result, claim, reading)
        simulated[reading] = Found(value, found, where, fits(result, claim.system, reading))
    return Judged(claim.system, claim.text, claim.published, Found(form, told, at), simulated)


def _where(result: Result, claim: FigureClaim, reading: Access) -> str:
    """At which value of a swept assumption the simulation gives the claim."""
    published = read_published(claim.published)
    given = result.study.assumptions
    starts = {
        "accuracy": given.accuracy,
        "memory_reduction": given.memory_reduction,
        "prophet_memory": given.memory_reduction,
        "links": 1.0,
    }
    found, looked = [], []
    for sweep in result.sweeps[claim.system, reading]:
        if sweep.name == "prophet_memory" and claim.figure not in COMPARING:
            continue
        values = [figures.value(claim.figure) for figures in sweep.found]
        known = [None if value is None else value * claim.scale for value in values]
        if all(value is None for value in known):
            continue
        x = crossing(sweep.values, known, published, starts[sweep.name])
        span = f"{sweep.values[0]:g}-{sweep.values[-1]:g}"
        looked.append(SWEEPS[sweep.name].format(span))
        if x is not None:
            found.append(SWEEPS[sweep.name].format(number(x)))
    if found:
        return " or ".join(found)
    return f"{NOWHERE}{', '.join(looked)}" if looked else "not looked for"


def _order_claim(result: Result, claim: OrderClaim) -> Judged:
    check = ORDERS[claim.order]
    study = result.study

    def judged(of: Mapping[str, Figures], fitting: bool) -> Found:
        standings = {
            name: Standing(
                study.systems[name].gpus,
                study.systems[name].bandwidth_bytes_per_s,
                given.speedup,
                given.comm_reduction,
            )
            for name, given in of.items()
        }
        holds = check(standings, claim.system, claim.other)
        speedups = ", ".join(f"{name} {number(s.speedup)}" for name, s in standings.items())
        said = "" if holds else f"speed-ups: {speedups}"
        return Found(float(holds), REPRODUCED if holds else NOT, said, fitting)

    form = judged({name: of["hybrid"] for name, of in result.forms.items()}, True)
    simulated: dict[str, Found] = {}
    for reading in READINGS:
        # Where nobody shares experts, both readings fetch from host memory.
        of = {name: given.get(reading, given["dispatch"]) for name, given in result.hybrid.items()}
        fitting = all(
            fits(result, name, reading if reading in given else "dispatch")
            for name, given in result.hybrid.items()
        )
        simulated[reading] = judged(of, fitting)
    return Judged("all", claim.text, "yes", form, simulated)
