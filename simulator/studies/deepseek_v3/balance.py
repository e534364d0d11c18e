"""How evenly tokens fall on GPUs in the study `deepseek-v3`: by loads, and in its steps."""

from __future__ import annotations

from functools import cache

from simulator.studies.common.report import Cell, Table
from simulator.studies.deepseek_v3.cases import Runs, in_order, judged
from simulator.studies.deepseek_v3.runs import EPLB, PREFILL
from simulator.studies.deepseek_v3.spec import DeepSeek


@cache
def by_loads(routing: str, topology: str, workload: str) -> tuple[float, float]:
    """(max - mean) / mean of tokens per GPU, mean over MoE layers: experts in order, one slot each;
    by EPLB with redundant ones. Tokens of an expert are split evenly over its copies.
    """
    from simulator.cluster.graph import build_graph, gpus
    from simulator.engine.placed import near, seen_by, target_of
    from simulator.policies.placement import place
    from simulator.policies.placement_figures import balance_of
    from simulator.spec.load import load_inputs

    inputs = load_inputs(topology, workload, routing=routing)
    model = inputs.workload.model
    graph = build_graph(inputs.topology)
    seen = seen_by(inputs, model.layers - model.moe.first_dense_layers, 0)
    target = target_of(inputs.workload, near(inputs, graph, gpus(graph)), None)
    plain = target._replace(physical=model.moe.experts)
    found = [
        balance_of(seen.loads, place(name, seen.loads, given), target.gpus).max_over_mean.mean()
        for name, given in (("contiguous", plain), (EPLB, target))
    ]
    return float(found[0]) - 1.0, float(found[1]) - 1.0


def balance_table(study: DeepSeek, runs: Runs) -> Table:
    """Imbalance by loads and as counted in a step."""
    given = study.assumptions
    rows: list[tuple[Cell, ...]] = []
    for reading in runs.readings:
        if not reading.whole:
            continue
        for case in judged(study, reading):
            server = given.prefill if case.phase == PREFILL else given.decode
            loads = by_loads(reading.routing, server.topology, server.workload)
            steps = []
            for one in (in_order(case), case):
                run = runs.found.get(one)
                steps.append(None if run is None or run.refused else run.imbalance)
            gpus = runs.found[case].gpus
            rows.append((reading.name, case.phase, gpus, *loads, *steps))
    said = (
        "Imbalance, (max - mean) / mean of tokens per GPU, mean over the MoE layers. By loads: in "
        "order with one slot per expert, by EPLB, tokens split evenly over copies. In a step: in "
        "order with as many slots, by EPLB; every GPU takes the nearest copy."
    )
    columns = ("reading", "phase", "GPUs", "in order", "EPLB", "step, order", "step, EPLB")
    return Table("balance", said, columns, rows)
