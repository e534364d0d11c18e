"""What the study `deepseek-v3` simulates, by reading: which runs there are, and their figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from simulator.studies.common.runs import Progress
from simulator.studies.deepseek_v3.runs import (
    COFLOW,
    DECODE,
    EPLB,
    EVEN,
    EXACT,
    ORDER,
    PREFILL,
    Case,
    Outcome,
    run_all,
)
from simulator.studies.deepseek_v3.spec import DeepSeek, Variant

LAW, UNIFORM, MESSAGES, RECORDED = "law", "even", "exact", "recorded"
"""Readings: the fitted law; all experts equally popular; the law, message by message; what
`--routing` names."""


@dataclass(frozen=True)
class Reading:
    """A routing, how experts are placed for it, and how the network is simulated."""

    name: str
    routing: str
    placing: str = EPLB
    network: str = COFLOW

    @property
    def whole(self) -> bool:
        """Whether all that EPLB is judged by is run."""
        return self.placing == EPLB and self.network == COFLOW


def readings(study: DeepSeek, routing: str | None, quick: bool = False) -> list[Reading]:
    """All readings; routing: a file or law given in addition; quick: none message by message."""
    law = study.assumptions.law
    found = [Reading(LAW, law), Reading(UNIFORM, law, EVEN)]
    if not quick:
        found.append(Reading(MESSAGES, law, network=EXACT))
    if routing is not None:
        found.append(Reading(RECORDED, routing))
    return found


def prefill(study: DeepSeek, of: Reading, length: int, overlap: bool = True) -> Case:
    """A step of prefill servers, prompts of `length` tokens."""
    given = study.assumptions.prefill
    return Case(
        PREFILL, given.topology, given.workload, given.tokens, length, of.routing, of.placing,
        overlap, network=of.network,
    )  # fmt: skip


def decode(
    study: DeepSeek, of: Reading, sequences: int, overlap: bool = True, context: int = 0
) -> Case:
    """Steps of decode servers with so many sequences per GPU; context: 0 for the study's."""
    given = study.assumptions.decode
    return Case(
        DECODE, given.topology, given.workload, sequences, context or given.context, of.routing,
        of.placing, overlap, given.steps, network=of.network,
    )  # fmt: skip


def in_order(case: Case) -> Case:
    """The same without EPLB."""
    return replace(case, placing=ORDER)


def alone(case: Case) -> Case:
    """The same without overlap."""
    return replace(case, overlap=False)


def judged(study: DeepSeek, of: Reading) -> tuple[Case, Case]:
    """The runs of both phases by which gains are judged."""
    given = study.assumptions
    return prefill(study, of, given.prefill.judged), decode(study, of, given.decode.judged)


def varied(case: Case, of: Variant) -> Case:
    """A run with what a variant puts in."""
    return replace(
        case,
        more=(*case.more, *of.set),
        lengths=of.lengths,
        routing=of.routing or case.routing,
    )


def own(study: DeepSeek, of: Reading, sequences: int) -> Case:
    """DeepSeek's own decode servers."""
    given = study.assumptions.own
    more = (
        f"topology.build.nodes={given.nodes}",
        f"topology.build.spines={given.spines}",
        f"parallel.ep={given.ep}",
    )
    base = decode(study, of, sequences, context=given.context)
    return replace(base, topology=given.topology, more=more)


def all_cases(study: DeepSeek, of: list[Reading], quick: bool) -> list[Case]:
    """Every run but those that take as many sequences as fit; quick: no variants, no servers of
    DeepSeek's own.
    """
    given = study.assumptions
    found: list[Case] = []
    for reading in of:
        if reading.network == EXACT:
            # Prefill takes as long either way, within 1 %, and would take long to compute.
            of_decode = judged(study, reading)[1]
            found += [of_decode, alone(of_decode)]
            continue
        found += [prefill(study, reading, length) for length in given.prefill.lengths]
        found.append(prefill(study, reading, given.prefill.judged, overlap=False))
        for sequences in given.decode.sequences:
            found += [decode(study, reading, sequences, overlap) for overlap in (True, False)]
        if reading.whole:
            found += [in_order(case) for case in judged(study, reading)]
    if not quick:
        found += [
            varied(case, variant)
            for variant in given.variants
            for case in judged(study, of[0])
            if variant.phase in (None, case.phase)
        ]
        found += [own(study, of[0], sequences) for sequences in given.own.sequences]
    return found


@dataclass(frozen=True)
class Runs:
    """Every run by its case. fitting: by context, the sequences that fit in a GPU and their run."""

    found: dict[Case, Outcome]
    readings: list[Reading]
    fitting: dict[int, tuple[int, Outcome]]

    def per_node(self, case: Case) -> float | None:
        """Token/s of a node; None for a run that is not there or was refused."""
        run = self.found.get(case)
        return None if run is None or run.refused else run.per_node

    def ratio(self, case: Case, base: Case) -> float | None:
        """How many times as fast a run is; None if one of them is not there."""
        rates = self.per_node(case), self.per_node(base)
        return None if rates[0] is None or rates[1] is None else rates[0] / rates[1]


def sequences_that_fit(kv_tokens: int, context: int, block: int = 16) -> int:
    """Sequences of `context` tokens and one more in a KV cache of so many tokens, in blocks."""
    return kv_tokens // (-(-(context + 1) // block) * block)


def most_sequences(room: Mapping[int, int], context: int) -> int:
    """Sequences of `context` tokens and one more that fit beside the activations of as many; room:
    tokens of the KV cache by sequences, which activations make smaller in proportion.
    """
    few, many = min(room), max(room)
    each = (room[few] - room[many]) / max(many - few, 1)
    fit = sequences_that_fit(room[few], context)
    while fit > sequences_that_fit(int(room[many] - each * (fit - many)), context):
        fit -= 1
    return fit


def simulate_all(
    study: DeepSeek,
    routing: str | None,
    quick: bool,
    progress: Progress | None,
    workers: int | None,
) -> Runs:
    """Simulate everything; quick: see `all_cases`, and the limit by memory for one context only."""
    of = readings(study, routing, quick)
    given = study.assumptions.decode
    cases = list(dict.fromkeys(all_cases(study, of, quick)))
    contexts = [given.context] if quick else list(dict.fromkeys((given.context, *given.contexts)))
    total = len(cases) + len(contexts)

    def tell(done: int, _: int) -> None:
        if progress is not None:
            progress(done, total)

    found = run_all(cases, tell, workers)
    room = {n: found[decode(study, of[0], n)].kv_tokens for n in given.sequences}
    most = {c: most_sequences(room, c + given.steps - 1) for c in contexts}
    limits = {c: decode(study, of[0], most[c], context=c) for c in contexts if most[c]}
    runs = run_all(limits.values(), lambda done, _: tell(len(cases) + done, total), workers)
    return Runs(found, of, {c: (most[c], runs[case]) for c, case in limits.items()})
