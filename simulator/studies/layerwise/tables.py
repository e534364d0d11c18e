"""Tables, curves and sentences of the study `layerwise`, from its runs."""

from __future__ import annotations

from simulator.results.summary import number
from simulator.studies.common.report import FREE_PARAMETERS, Cell, Chart, Table
from simulator.studies.layerwise import forms
from simulator.studies.layerwise.l2 import Cached, cached, rows_of
from simulator.studies.layerwise.runs import (
    LAYER_DP,
    LAYER_TP,
    LAYOUTS,
    TP_PP,
    Runs,
    key,
    strong_key,
    weak_key,
)
from simulator.studies.layerwise.spec import Layerwise

KILO = 1e3
CLAIMED_HITS = (0.30, 0.95)  # as published, TP8 PP2 and layer-wise


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100.0 * share, 1)


def _short(pieces: str) -> str:
    """`microbatches: 8` as `m 8`, `chunk: 12000000 B` as `12 MB`."""
    what, _, value = pieces.partition(": ")
    return f"m {value}" if what == "microbatches" else f"{float(value.split()[0]) / 1e6:.0f} MB"


def tables(study: Layerwise, runs: Runs) -> list[Table]:
    """All tables."""
    return [
        _layouts(study, runs),
        _pieces(study, runs),
        _scaling(study, runs),
        _cache(study, runs),
    ]


def _layouts(study: Layerwise, runs: Runs) -> Table:
    given = study.assumptions
    rows: list[tuple[Cell, ...]] = []
    for phase in given.phases:
        for model in given.models:
            base = runs.best(key(study, phase, model, TP_PP))
            base_rate = base[1].tokens_per_s if base else None
            for layout in LAYOUTS:
                best = runs.best(key(study, phase, model, layout))
                if best is None:
                    rows.append((phase, model, layout, "-", *([None] * 7)))
                    continue
                of, run = best
                rate = run.tokens_per_s or 0.0
                rows.append(
                    (
                        phase,
                        model,
                        layout,
                        _short(of.pieces),
                        rate / KILO,
                        _percent(rate / base_rate - 1.0) if base_rate else None,
                        _percent(run.compute),
                        _percent(run.exposed),
                        _percent(run.hbm),
                        _percent(run.mfu),
                        None if run.joules_per_token is None else 1e3 * run.joules_per_token,
                    )
                )
    said = (
        "The fastest of each layout on 16 GPUs (layer-tp: tensor parallel within the group, "
        "layer-dp: its GPUs share the tokens). ktok/s; gain over TP PP; shares of the time; HBM "
        "bandwidth used; energy per token, mJ."
    ).replace("16 GPUs", f"{given.gpus} GPUs")
    columns = ("phase", "model", "layout", "pieces", "ktok/s", "gain%", "comp%", "wait%")
    return Table("layouts", said, (*columns, "HBM%", "MFU%", "mJ"), rows)


def _pieces(study: Layerwise, runs: Runs) -> Table:
    given = study.assumptions
    rows: list[tuple[Cell, ...]] = []
    for phase in given.phases:
        for model in given.models:
            names: dict[str, dict[str, float]] = {}
            for layout in LAYOUTS:
                for of, run in runs.all_of(key(study, phase, model, layout)).items():
                    if run.tokens_per_s:
                        row = names.setdefault(_short(of.pieces), {})
                        row[layout] = max(row.get(layout, 0.0), run.tokens_per_s / KILO)
            for told, rates in names.items():
                rates_of = tuple(rates.get(layout) for layout in LAYOUTS)
                ratio = None
                if rates_of[0] and rates_of[1]:
                    ratio = _percent(rates_of[1] / rates_of[0] - 1.0)
                rows.append((phase, model, told, *rates_of, ratio))
    said = (
        "By number of micro-batches (m) or size of chunks: ktok/s, and what layer-tp gains over TP "
        "PP with as many; what does not fit in memory is left out."
    )
    return Table("pieces", said, ("phase", "model", "pieces", *LAYOUTS, "gain%"), rows)


def _scaling(study: Layerwise, runs: Runs) -> Table:
    given = study.assumptions
    rows: list[tuple[Cell, ...]] = []
    for phase in given.phases:
        for model in given.models:
            sized = [("strong", strong_key(study, phase, model, n)) for n in given.strong]
            sized += [("weak", weak_key(study, phase, model, n)) for n in given.weak]
            for kind, wanted in sized:
                best = runs.best(wanted)
                rate = best[1].tokens_per_s if best else None
                work = None if rate is None else rate * wanted.layers / wanted.gpus
                rows.append(
                    (
                        kind,
                        phase,
                        model,
                        wanted.gpus,
                        wanted.layers,
                        None if rate is None else rate / KILO,
                        None if rate is None else rate / wanted.gpus / KILO,
                        None if work is None else work / KILO,
                    )
                )
    said = (
        "layer-tp on more GPUs. ktok/s, the same per GPU, and layers that a GPU passes tokens "
        "through per second (thousands): what linear scaling would keep."
    )
    columns = ("kind", "phase", "model", "GPUs", "layers", "ktok/s", "/GPU", "layers/s")
    return Table("scaling", said, columns, rows)


# --- L2 ----------------------------------------------------------------------------------


def l2_bytes(study: Layerwise) -> float:
    """L2 of one GPU."""
    from simulator.spec.load import load_topology

    size: float = load_topology(study.simulation.topology).gpu.l2_bytes
    return size


def layer_cache(
    study: Layerwise, runs: Runs, phase: str, model: str, layout: str, order: str, size: float = 0.0
) -> Cached | None:
    """The GEMMs of a layer as the fastest run of a layout has them; None if there is none. size: of
    L2, bytes; 0: the GPU's.
    """
    given = study.assumptions
    best = runs.best(key(study, phase, model, layout))
    if best is None:
        return None
    tp = {TP_PP: given.tp, LAYER_TP: given.gpus // given.layers}.get(layout, 1)
    rows = rows_of(given.tokens(phase), best[0].pieces, given.hidden)
    if layout == LAYER_DP:
        rows = max(1, rows * given.layers // given.gpus)
    return cached(study, model, tp, rows, size or l2_bytes(study), order)


def hit_rates(
    study: Layerwise, runs: Runs, phase: str, model: str, order: str
) -> tuple[float | None, float | None]:
    """L2 hit rates of TP x PP and layer-tp."""
    found = [layer_cache(study, runs, phase, model, layout, order) for layout in (TP_PP, LAYER_TP)]
    return tuple(None if one is None else one.hit_rate for one in found)  # type: ignore[return-value]


def _cache(study: Layerwise, runs: Runs) -> Table:
    from simulator.spec.load import load_topology

    given = study.assumptions
    gpu = load_topology(study.simulation.topology).gpu
    flops_per_s = gpu.flops_per_s["bf16"] * gpu.compute_efficiency
    hbm = gpu.hbm_bandwidth_bytes_per_s * gpu.memory_efficiency
    rows: list[tuple[Cell, ...]] = []
    for phase in given.phases:
        for model in given.models:
            for order in given.l2.orders:
                found = [
                    layer_cache(study, runs, phase, model, layout, order)
                    for layout in (TP_PP, LAYER_TP)
                ]
                cells: list[Cell] = []
                for one in found:
                    if one is None:
                        cells += [None, None]
                        continue
                    cells.append(_percent(one.hit_rate))
                    cells.append((one.read + one.written) / hbm / (one.flops / flops_per_s))
                claimed, needed = _claimed(found[1], flops_per_s, hbm)
                rows.append((phase, model, order, *cells, claimed, _percent(needed)))
    said = (
        "L2 of a layer's GEMMs by the model of simulator/model/l2.py: hits % of TP PP and of "
        "layer-tp, and HBM over compute time of each (above 1: HBM would limit). 30-95: what hit "
        "rates of 30 % and 95 % would gain, %; at: the baseline's hit rate, %, at which 95 % "
        "gained 20 %."
    )
    columns = ("phase", "model", "order", "TP PP", "HBM/c", "layer", "HBM/c", "30-95", "at")
    return Table("l2", said, columns, rows)


def _claimed(
    of: Cached | None, flops_per_s: float, hbm_bytes_per_s: float
) -> tuple[float | None, float | None]:
    """Gain % that the published hit rates would give, and the baseline's hit rate for 20 %."""
    if of is None:
        return None, None
    times = (of.flops / flops_per_s, of.requested / hbm_bytes_per_s)
    base, layer = (forms.cached_layer_s(*times, hit) for hit in CLAIMED_HITS)
    return 100.0 * (base / layer - 1.0), forms.hit_for(0.2, *times, CLAIMED_HITS[1])


# --- curves and sentences ----------------------------------------------------------------


def charts(study: Layerwise, runs: Runs) -> list[Chart]:
    """Throughput by GPUs, and by pieces."""
    given = study.assumptions
    published = [
        (float(claim.figure.partition("@")[2]), float(claim.published) / KILO)
        for claim in study.claims
        if claim.figure.startswith("strong@")
    ]
    found = []
    for phase in given.phases:
        lines = {"published": published}
        for model in given.models:
            line = []
            for gpus in given.strong:
                best = runs.best(strong_key(study, phase, model, gpus))
                if best is not None and best[1].tokens_per_s:
                    line.append((float(gpus), best[1].tokens_per_s / KILO))
            lines[f"{model} B"] = line
        title = f"Layer-wise, {phase}: throughput by GPUs"
        found.append(Chart(f"strong_scaling_{phase}", title, "GPUs", "ktoken/s", lines))
    return found


def findings(study: Layerwise, runs: Runs) -> list[str]:
    """What the simulation shows, in sentences."""
    given = study.assumptions
    found = []
    for phase in given.phases:
        gains = []
        for model in given.models:
            rates = []
            for layout in LAYOUTS:
                best = runs.best(key(study, phase, model, layout))
                rates.append(best[1].tokens_per_s if best else None)
            base, layer, shared = rates
            if base and layer:
                text = f"{100 * (layer / base - 1):+.0f} % at {model} B"
                if shared:
                    text += f" (its GPUs sharing tokens: {100 * (shared / base - 1):+.0f} %)"
                gains.append(text)
        if gains:
            found.append(f"{phase.capitalize()}: layer-wise gains {', '.join(gains)}.")
    found.append(
        "In prefill the gain is all-reduces that are saved: a GPU of a group of 4 takes part in "
        "those of one layer, a GPU of a group of 8 in those of two. It shrinks as the model grows, "
        "since computing grows with it and the activations do not. In decode weights and KV cache "
        "are read either way, and four stages need more pieces in flight, which read the weights "
        "more often."
    )
    hits = [hit_rates(study, runs, "prefill", model, given.l2.orders[0]) for model in given.models]
    if all(pair[0] is not None and pair[1] is not None for pair in hits):
        told = ", ".join(
            f"{number(100 * (a or 0))} and {number(100 * (b or 0))} % at {model} B"
            for model, (a, b) in zip(given.models, hits, strict=True)
        )
        found.append(f"L2 hits in prefill, TP PP and layer-wise: {told}.")
    return found


def refusals(runs: Runs) -> list[str]:
    """What could not be simulated."""
    refused = [run.refused for run in runs.found.values() if run.refused]
    if not refused:
        return []
    return [f"Not simulated, {len(refused)} runs, mostly for memory; the first: {refused[0]}."]


def parameters(study: Layerwise) -> list[str]:
    """Every free parameter and where it comes from, in sentences."""
    return [
        FREE_PARAMETERS,
        *(f"Source: {source}." for source in study.sources),
    ]
