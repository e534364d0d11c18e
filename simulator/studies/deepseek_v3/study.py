"""The study `deepseek-v3`: prefill EP32 and decode EP72, simulated beside published deployments.

    from simulator.studies.deepseek_v3.study import run_study
    from simulator.studies.deepseek_v3.spec import load_study

    print(run_study(load_study(), quick=True).judged[4].verdict)

A reading is a routing: the law that is fitted to one published imbalance, all experts equally
popular, and a recording if one is given; the law is simulated message by message, too.
"""

from __future__ import annotations

import math
from itertools import pairwise

from simulator.studies.common.claims import Published
from simulator.studies.common.report import Figures, Report, Value, judge
from simulator.studies.common.runs import Progress
from simulator.studies.common.spec import Claim
from simulator.studies.deepseek_v3 import notes, tables
from simulator.studies.deepseek_v3.balance import balance_table, by_loads
from simulator.studies.deepseek_v3.cases import (
    Reading,
    Runs,
    decode,
    in_order,
    judged,
    own,
    prefill,
    sequences_that_fit,
    simulate_all,
)
from simulator.studies.deepseek_v3.runs import Case
from simulator.studies.deepseek_v3.spec import DeepSeek

PER_NODE = 8  # GPUs


def run_study(
    study: DeepSeek,
    quick: bool = False,
    progress: Progress | None = None,
    workers: int | None = None,
    routing: str | None = None,
) -> Report:
    """Simulate and judge every claim; routing: expert loads, a recording or a law, as one more
    reading. InputError for what cannot be simulated.
    """
    return report_of(study, simulate_all(study, routing, quick, progress, workers), quick)


def report_of(study: DeepSeek, runs: Runs, quick: bool) -> Report:
    """The report of finished runs."""
    by_name = {reading.name: reading for reading in runs.readings}
    simulated = {name: figures_of(study, runs, of) for name, of in by_name.items()}

    def simulated_at(name: str, claim: Claim, published: Published) -> str:
        return step_at(study, runs, by_name[name], claim.figure, published)

    rows = judge(
        study.claims, study.verdicts, form_figures(study), lambda *_: "", simulated, simulated_at
    )
    extent = "quick: no variants" if quick else "full"
    return Report(
        name="deepseek-v3",
        title=f"Study deepseek-v3: prefill EP32 and decode EP72 on H100 rails ({extent})",
        judged=rows,
        shown={name: name for name in by_name},
        tables=[
            tables.rates(study, runs),
            tables.overlap(study, runs),
            tables.parts(study, runs),
            balance_table(study, runs),
            tables.memory(study, runs),
            tables.limits(study, runs),
            tables.cost(study, runs),
            *([] if quick else [tables.own(study, runs), tables.variants(study, runs)]),
        ],
        charts=notes.charts(study, runs),
        notes=[
            *notes.findings(study, runs),
            *notes.refusals(runs),
            *(f"Source: {source}." for source in study.sources),
            *study.notes,
        ],
    )


def form_figures(study: DeepSeek) -> Figures:
    """What follows from the published figures alone: the cost of decode."""
    rate = next(
        (float(claim.published) for claim in study.claims if claim.figure == _judged(study)), None
    )
    return {} if rate is None else {"cost": tables.dollars(study, rate)}


def _judged(study: DeepSeek) -> str:
    return f"decode@{study.assumptions.decode.judged}"


def figures_of(study: DeepSeek, runs: Runs, of: Reading) -> Figures:
    """All figures of a reading; None for what was not run."""
    given = study.assumptions
    best = judged(study, of)
    alone = (
        prefill(study, of, given.prefill.judged, overlap=False),
        decode(study, of, given.decode.judged, overlap=False),
    )
    lengths = given.prefill.lengths
    longer = runs.ratio(prefill(study, of, max(lengths)), prefill(study, of, min(lengths)))
    found: dict[str, Value] = {
        **{f"prefill@{n}": runs.per_node(prefill(study, of, n)) for n in lengths},
        **{f"decode@{n}": runs.per_node(decode(study, of, n)) for n in given.decode.sequences},
        "longer": None if longer is None else 1.0 - longer,
        "prefill_alone": runs.per_node(alone[0]),
        "decode_alone": runs.per_node(alone[1]),
        "prefill_gain": _less_one(runs.ratio(best[0], alone[0])),
        "breakeven": break_even(study, runs, of),
    }
    for sequences in given.decode.sequences:
        gained = gain(study, runs, of, sequences)
        found[f"gain@{sequences}"] = gained
        found[f"loss@{sequences}"] = None if gained is None else -gained
    if of.whole:
        found["prefill_eplb"] = runs.ratio(best[0], in_order(best[0]))
        found["own"] = own_rate(study, runs, of)
        found["decode_eplb"] = runs.ratio(best[1], in_order(best[1]))
        server = given.prefill
        found["linear_imbalance"] = by_loads(of.routing, server.topology, server.workload)[0]
    run = runs.found.get(best[0])
    if run is not None and of.whole and not run.refused:
        found["eplb_imbalance"] = run.imbalance
    run = runs.found.get(best[1])
    if run is not None and not run.refused:
        if run.kv_tokens:
            fit = sequences_that_fit(run.kv_tokens, given.decode.context)
            found["fits"] = fit >= given.decode.judged
        found["cost"] = tables.dollars(study, run.per_node)
    return found


def _less_one(ratio: float | None) -> float | None:
    return None if ratio is None else ratio - 1.0


def gain(study: DeepSeek, runs: Runs, of: Reading, sequences: int) -> float | None:
    """What two-batch overlap gains in decode, a share of the throughput without it."""
    return _less_one(
        runs.ratio(decode(study, of, sequences), decode(study, of, sequences, overlap=False))
    )


def break_even(study: DeepSeek, runs: Runs, of: Reading) -> float | None:
    """Sequences per GPU from which on overlap gains, between two that were run, linear in their
    logarithm; None if it gains or loses everywhere.
    """
    points = []
    for sequences in sorted(study.assumptions.decode.sequences):
        gained = gain(study, runs, of, sequences)
        if gained is not None:
            points.append((math.log(sequences), gained))
    for (x0, y0), (x1, y1) in pairwise(points):
        if y0 < 0.0 <= y1:
            return math.exp(x0 + (x1 - x0) * -y0 / (y1 - y0))
    return None


def own_rate(study: DeepSeek, runs: Runs, of: Reading) -> float | None:
    """Token/s of a node of DeepSeek's own decode servers, at the middle of what a user gets; None
    outside of what was run.
    """
    given = study.assumptions.own
    wanted = sum(given.per_user) / 2.0
    points = []
    for sequences in sorted(given.sequences):
        run = runs.found.get(own(study, of, sequences))
        if run is not None and not run.refused:
            points.append((1.0 / run.step_s, run.per_node))
    for (x0, y0), (x1, y1) in pairwise(points):
        if x1 <= wanted <= x0:
            return y0 + (y1 - y0) * (wanted - x0) / (x1 - x0)
    return None


def step_at(study: DeepSeek, runs: Runs, of: Reading, figure: str, published: Published) -> str:
    """How much longer a step would have to take for a published throughput."""
    given = study.assumptions
    cases: dict[str, Case] = {
        **{f"prefill@{n}": prefill(study, of, n) for n in given.prefill.lengths},
        **{f"decode@{n}": decode(study, of, n) for n in given.decode.sequences},
    }
    run = runs.found.get(cases[figure]) if figure in cases else None
    if run is None or run.refused:
        return ""
    taken_s = PER_NODE * cases[figure].tokens / (0.5 * (published.low + published.high))
    more = taken_s - run.step_s
    word = "longer" if more > 0 else "shorter"
    return f"a step {1e3 * abs(more):.0f} ms {word} than {1e3 * run.step_s:.0f} ms"
