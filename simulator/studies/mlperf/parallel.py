"""Two GPUs as tensor or pipeline parallel, from step times of the plan engine.

Serving lays a model over expert-parallel groups only. Here two samples are on two GPUs in every
plan, so that each step does the same work: a sample takes one prefill step of both prompts, and one
decode step per token after the first. GPUs run at the simulator's own speed (factor 1).
"""

from __future__ import annotations

from typing import NamedTuple

from simulator.studies.common.runs import Case, Progress, run_all
from simulator.studies.mlperf.spec import Link, Mlperf

GPUS = 2
PLANS = {"replicas": "{ep: 1}", "TP 2": "{tp: 2}", "PP 2": "{pp: 2}"}


class Split(NamedTuple):
    """A plan on a network. prefill_s: of both prompts, until the first tokens; decode_s: until both
    have one more token; tokens: of a sample; bytes_per_gpu: of the fuller GPU.
    """

    prefill_s: float
    decode_s: float
    tokens: float
    bytes_per_gpu: float

    @property
    def latency_s(self) -> float:
        """Of a sample, from start to end."""
        return self.prefill_s + (self.tokens - 1.0) * self.decode_s

    @property
    def samples_per_s(self) -> float:
        """Of both GPUs."""
        return GPUS / self.latency_s


def splits(
    study: Mlperf, progress: Progress | None = None, workers: int | None = None
) -> dict[tuple[str, str], Split]:
    """Every plan on every network by (link, plan)."""
    cases = {
        (name, plan, phase): _case(study, link, plan, phase)
        for name, link in study.what_ifs.links.items()
        for plan in PLANS
        for phase in ("prefill", "decode")
    }
    found = run_all(cases.values(), progress, workers)
    given = study.assumptions
    tokens = sum(given.outputs) / len(given.outputs)
    done = {}
    for name, plan, phase in cases:
        if phase == "decode":
            prefill, decode = (found[cases[name, plan, of]] for of in ("prefill", phase))
            if prefill.step_s is not None and decode.step_s is not None:
                size = _bytes_per_gpu(cases[name, plan, phase])
                done[name, plan] = Split(prefill.step_s, decode.step_s, tokens, size)
    return done


def _case(study: Mlperf, link: Link, plan: str, phase: str) -> Case:
    given = study.assumptions
    prompt = sum(given.prompts) / len(given.prompts)
    output = sum(given.outputs) / len(given.outputs)
    tokens, context = (
        (round(prompt), prompt / 2) if phase == "prefill" else (1, prompt + output / 2)
    )
    overrides = [
        f"topology.build.nodes={GPUS}",
        f"topology.build.nic.bandwidth={link.bandwidth_bytes_per_s!r} B/s",
        f"topology.build.nic.latency={link.latency_s!r} s",
        f"workload.parallel={PLANS[plan]}",
        f"workload.traffic.phase={phase}",
        f"workload.traffic.tokens_per_gpu={tokens}",
        f"workload.traffic.context={round(context)}",
    ]
    if study.simulation.gpu is not None:
        overrides.append(f"topology.gpu={study.simulation.gpu}")
    return Case(study.simulation.topology, study.simulation.workload, tuple(overrides))


def _bytes_per_gpu(case: Case) -> float:
    from simulator.model.plan import plan_of
    from simulator.model.plan_memory import gpu_bytes
    from simulator.spec.load import load_inputs

    inputs = load_inputs(case.topology, case.workload, case.overrides)
    plan = plan_of(inputs.workload, GPUS, inputs.topology.gpu)
    return max(sum(parts.values()) for parts in gpu_bytes(plan, inputs.workload))
