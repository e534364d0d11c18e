"""The study `layerwise`: each layer on GPUs of its own against TP8 x PP2, claimed and simulated.

    from simulator.studies.layerwise.study import run_study
    from simulator.studies.layerwise.spec import load_study

    print(run_study(load_study(), quick=True).judged[2].verdict)

A reading is a phase and a model, "prefill 3.2" (B parameters). Each layout runs with every number
of micro-batches, all-reduce and sequence parallel, and the fastest counts.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from simulator.results.summary import number
from simulator.studies.common.claims import Published, crossing
from simulator.studies.common.report import Figures, Report, Value, judge
from simulator.studies.common.runs import Outcome, Progress
from simulator.studies.common.spec import Claim
from simulator.studies.large_ep.forms import ring_volume
from simulator.studies.layerwise import forms
from simulator.studies.layerwise.runs import (
    LAYER_TP,
    TP_PP,
    Key,
    Runs,
    key,
    simulate_all,
    strong_key,
    weak_key,
)
from simulator.studies.layerwise.spec import Layerwise, point
from simulator.studies.layerwise.tables import (
    charts,
    findings,
    hit_rates,
    l2_bytes,
    layer_cache,
    parameters,
    refusals,
    tables,
)

GB, GIB, MB = 1e9, 2.0**30, 1e6
WITHIN = 0.9
SHOWN = (("prefill", "3.2"), ("prefill", "30"), ("decode", "3.2"), ("decode", "30"))
SWEPT = (
    "tps_base", "tps_layer", "ms_base", "ms_layer", "gain", "time_saved", "energy_saved",
    "hbm_base", "less_hbm",
)  # fmt: skip
Best = tuple[Key, Outcome] | None
# The published working set and what of it is said to be used (MB).
WORKING_SET_MB = (32.0, 12.0, 4.0, 2.0)
USED_MB, CACHE_MB = 45.0, 50.0


def run_study(
    study: Layerwise,
    quick: bool = False,
    progress: Progress | None = None,
    workers: int | None = None,
) -> Report:
    """Simulate, evaluate the closed forms and judge every claim; InputError for what cannot be."""
    return report_of(study, simulate_all(study, quick, progress, workers), quick)


def reading(phase: str, model: str) -> str:
    """The name of a reading."""
    return f"{phase} {model}"


def report_of(study: Layerwise, runs: Runs, quick: bool) -> Report:
    """The report of finished runs."""
    given = study.assumptions
    readings = {reading(p, m): (p, m) for p, m in product(given.phases, given.models)}
    form = form_figures(study, runs)
    simulated = {name: simulated_figures(study, runs, *of) for name, of in readings.items()}

    def form_at(claim: Claim, published: Published) -> str:
        pair = _form_points(study, runs)
        if claim.figure not in forms.figures(*pair):
            return ""
        return forms.holds_at(*pair, claim.figure, published, claim.scale)

    def simulated_at(name: str, claim: Claim, published: Published) -> str:
        return _simulated_at(study, runs, readings[name], claim, published)

    judged = judge(study.claims, study.verdicts, form, form_at, simulated, simulated_at)
    extent = "quick: fewer micro-batches, no sweeps" if quick else "full"
    return Report(
        name="layerwise",
        title=f"Study layerwise: a layer per group of GPUs against TP and PP ({extent})",
        judged=judged,
        shown={
            reading(phase, model): f"{given.phases[phase].told} {model}"
            for phase, model in SHOWN
            if phase in given.phases and model in given.models
        },
        tables=tables(study, runs),
        charts=charts(study, runs),
        notes=[*findings(study, runs), *refusals(runs), *parameters(study), *study.notes],
    )


# --- figures -----------------------------------------------------------------------------


def _form_points(study: Layerwise, runs: Runs) -> tuple[forms.Point, forms.Point]:
    """Both layouts of the first phase and model, with as many pieces as the simulated ones are
    fastest with (the most that there are, if none was simulated).
    """
    phase, of = next(iter(study.assumptions.phases.items()))
    model = next(iter(study.assumptions.models))
    found = []
    for layout in (TP_PP, LAYER_TP):
        best = runs.best(key(study, phase, model, layout))
        pieces = float(max(of.pieces))
        if best is not None:
            pieces = pieces_of(study, best[0])
        found.append(point(study, model, phase, layout, pieces))
    return found[0], found[1]


def pieces_of(study: Layerwise, of: Key) -> float:
    """How many pieces the batch of a run is cut into."""
    what, _, value = of.pieces.partition(": ")
    if what == "microbatches":
        return float(value)
    given = study.assumptions
    return max(1.0, given.tokens(of.phase) * given.hidden * 2.0 / float(value.split()[0]))


def form_figures(study: Layerwise, runs: Runs) -> Figures:
    """What the closed form gives for the stated dimensions in prefill."""
    given = study.assumptions
    base, layer = _form_points(study, runs)
    stated = given.stated_parameters * 2.0
    matrices = next(iter(given.models.values())).matrices
    own = base._replace(width=given.mlp_hidden, matrices=matrices)
    activations = forms.tensor_bytes(base)
    return {
        **forms.figures(base, layer),
        "weights_gb": stated / GB,
        "layer_gb": stated / given.layers / GB,
        "parameters_b": given.layers * forms.layer_parameters(own) / GB,
        "activations_gb": activations / GIB,
        "chunk_mb": given.batch * 64 * given.hidden * 2.0 / MB,
        "working_set_mb": sum(WORKING_SET_MB),
        "l2_used": USED_MB / CACHE_MB,
        "comm_gib": 2.0 * ring_volume(given.tp) * activations / GIB,
    }


def simulated_figures(study: Layerwise, runs: Runs, phase: str, model: str) -> Figures:
    """What the simulation gives for a reading."""
    given = study.assumptions
    found: dict[str, Value] = {}
    base = runs.best(key(study, phase, model, TP_PP))
    layer = runs.best(key(study, phase, model, LAYER_TP))
    found |= dict.fromkeys(SWEPT) | _compared(base, layer)
    rate = found["tps_layer"]
    strong = {}
    for gpus in given.strong:
        best = runs.best(strong_key(study, phase, model, gpus))
        found[f"strong@{gpus}"] = strong[gpus] = best[1].tokens_per_s if best else None
    few, many = strong.get(given.layers), strong.get(given.gpus)
    ratio = many / few if few and many else None
    found["strong_ratio"] = ratio
    linear = WITHIN * given.gpus / given.layers
    found["linear"] = None if ratio is None else ratio >= linear
    for times in given.weak:
        best = runs.best(weak_key(study, phase, model, times))
        grown = best[1].tokens_per_s if best else None
        found[f"weak@{times}"] = None if not grown or not rate else grown >= WITHIN * rate
    hits = hit_rates(study, runs, phase, model, given.l2.orders[0])
    found["l2_base"], found["l2_layer"] = hits
    return found


def _compared(base: Best, layer: Best) -> dict[str, Value]:
    """The figures of `SWEPT` of a pair of runs; those that they do not give are left out."""
    if base is None or layer is None:
        return {}
    before, after = base[1], layer[1]
    found: dict[str, Value] = {"hbm_base": before.hbm}
    if before.tokens_per_s and after.tokens_per_s:
        found |= {
            "tps_base": before.tokens_per_s,
            "tps_layer": after.tokens_per_s,
            "ms_base": 1e3 / before.tokens_per_s,
            "ms_layer": 1e3 / after.tokens_per_s,
            "gain": after.tokens_per_s / before.tokens_per_s - 1.0,
            "time_saved": 1.0 - before.tokens_per_s / after.tokens_per_s,
        }
    if before.joules_per_token and after.joules_per_token:
        found["energy_saved"] = 1.0 - after.joules_per_token / before.joules_per_token
    if before.hbm is not None and after.hbm is not None:
        found["less_hbm"] = after.hbm < before.hbm
    return found


def _simulated_at(
    study: Layerwise, runs: Runs, of: tuple[str, str], claim: Claim, published: Published
) -> str:
    """At how many parameters, at which factor on NVLink's bandwidth, with how many micro-batches in
    both layouts, and with how large an L2 a figure is the claimed one.
    """
    if claim.figure in ("l2_base", "l2_layer"):
        return _cache_at(study, runs, of, claim, published)
    if claim.figure not in SWEPT:
        return ""
    widths = sorted({one.width for one in runs.found if (one.phase, one.model) == of} - {0})
    links = sorted({one.links for one in runs.found if (one.phase, one.model) == of})
    found, looked = [], []
    if widths:
        at = point(study, of[1], of[0], TP_PP, 1.0)
        sizes = [
            at.layers * forms.layer_parameters(at._replace(width=width)) / GB for width in widths
        ]
        values = [_swept(study, runs, of, claim, width=width) for width in widths]
        x = crossing(sizes, values, published, sizes[0])
        looked.append(f"{sizes[0]:.3g}-{sizes[-1]:.3g} B parameters")
        if x is not None:
            found.append(f"{x:.3g} B parameters")
    if len(links) > 1:
        values = [_swept(study, runs, of, claim, links=factor) for factor in links]
        x = crossing(links, values, published, 1.0)
        looked.append(f"NVLink x {links[0]:g}-{links[-1]:g}")
        if x is not None:
            found.append(f"NVLink x {x:.3g}")
    batches, values = _by_batches(study, runs, of, claim)
    if len(batches) > 1:
        x = crossing(batches, values, published, batches[0])
        looked.append(f"m = {batches[0]:g}-{batches[-1]:g} in both")
        if x is not None:
            found.append(f"m = {x:.3g} in both")
    if found:
        return " or ".join(found)
    return f"none of {', '.join(looked)}" if looked else ""


def _by_batches(
    study: Layerwise, runs: Runs, of: tuple[str, str], claim: Claim
) -> tuple[list[float], list[float | None]]:
    """Numbers of micro-batches, and a figure of `SWEPT` when both layouts have as many."""
    found = {}
    for m in study.assumptions.phases[of[0]].pieces:
        pair: list[Best] = []
        for layout in (TP_PP, LAYER_TP):
            every = runs.all_of(key(study, *of, layout)).items()
            same = {one: run for one, run in every if one.pieces == f"microbatches: {m}"}
            pair.append(Runs(same).best(key(study, *of, layout)))
        value = _compared(pair[0], pair[1]).get(claim.figure)
        if value is not None:
            found[float(m)] = float(value) * claim.scale
    return [*found], [*found.values()]


def _swept(
    study: Layerwise,
    runs: Runs,
    of: tuple[str, str],
    claim: Claim,
    width: int = 0,
    links: float = 1.0,
) -> float | None:
    """A figure of `SWEPT` with another width of the FFN or other links."""
    pair = [
        runs.best(replace(key(study, *of, layout), width=width, links=links))
        for layout in (TP_PP, LAYER_TP)
    ]
    value = _compared(pair[0], pair[1]).get(claim.figure)
    return None if value is None else float(value) * claim.scale


def _cache_at(
    study: Layerwise, runs: Runs, of: tuple[str, str], claim: Claim, published: Published
) -> str:
    """The size of L2 at which its model gives a hit rate."""
    layout = TP_PP if claim.figure == "l2_base" else LAYER_TP
    order = study.assumptions.l2.orders[0]
    now = l2_bytes(study)
    sizes = [now * 2.0**step for step in range(-4, 6)]
    rates = []
    for size in sizes:
        one = layer_cache(study, runs, *of, layout, order, size)
        rates.append(None if one is None else one.hit_rate * claim.scale)
    x = crossing(sizes, rates, published, now)
    span = f"L2 of {number(sizes[0] / MB)}-{number(sizes[-1] / MB)} MB"
    return f"none of {span}" if x is None else f"L2 of {number(x / MB)} MB"
