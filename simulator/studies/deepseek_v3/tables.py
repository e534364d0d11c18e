"""Tables of the study `deepseek-v3`, from its runs."""

from __future__ import annotations

from dataclasses import replace

from simulator.studies.common.report import Cell, Table
from simulator.studies.deepseek_v3.cases import (
    Reading,
    Runs,
    decode,
    judged,
    prefill,
    sequences_that_fit,
    varied,
)
from simulator.studies.deepseek_v3.cases import (
    own as own_case,
)
from simulator.studies.deepseek_v3.runs import PREFILL, Case, Outcome
from simulator.studies.deepseek_v3.spec import DeepSeek

GIB = 2.0**30
MS = 1e3
GPUS_PER_NODE = 8
SECONDS_PER_HOUR = 3600.0


def dollars(study: DeepSeek, per_node: float) -> float:
    """$ per million tokens at so many tokens/s of a node."""
    hour = GPUS_PER_NODE * study.assumptions.price_per_hour
    return hour / SECONDS_PER_HOUR / per_node * 1e6


def published(study: DeepSeek, figure: str) -> float | None:
    """A published figure (of a range the middle), None if there is no such claim."""
    from simulator.studies.common.claims import read_published

    for claim in study.claims:
        if claim.figure == figure:
            found = read_published(claim.published)
            return 0.5 * (found.low + found.high) / claim.scale
    return None


def _printed(study: DeepSeek, figure: str) -> str:
    """A published figure as printed, empty if there is no such claim."""
    return next((claim.published for claim in study.claims if claim.figure == figure), "")


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100.0 * share, 1)


def done_of(runs: Runs, case: Case) -> Outcome | None:
    """A run, None if it is not there or was refused."""
    run = runs.found.get(case)
    return None if run is None or run.refused else run


def size_of(case: Case) -> int:
    """Tokens of a prompt, or sequences of a GPU."""
    return case.length if case.phase == PREFILL else case.tokens


def _steps(study: DeepSeek, of: Reading) -> list[Case]:
    """The runs of both phases with and without overlap."""
    given = study.assumptions
    found = [prefill(study, of, length) for length in given.prefill.lengths]
    found.append(prefill(study, of, given.prefill.judged, overlap=False))
    for sequences in given.decode.sequences:
        found += [decode(study, of, sequences, overlap) for overlap in (True, False)]
    return found


def figure_of(study: DeepSeek, case: Case) -> str:
    """The claim that a run is held against, empty for none."""
    given = study.assumptions
    if case.phase == PREFILL:
        if case.overlap:
            return f"prefill@{case.length}"
        return "prefill_alone" if case.length == given.prefill.judged else ""
    if case.overlap:
        return f"decode@{case.tokens}"
    return "decode_alone" if case.tokens == given.decode.judged else ""


def rates(study: DeepSeek, runs: Runs) -> Table:
    """Throughput of every run with EPLB beside what is published."""
    rows: list[tuple[Cell, ...]] = []
    for at, case in enumerate(_steps(study, runs.readings[0])):
        run = done_of(runs, case)
        each = [runs.per_node(_steps(study, reading)[at]) for reading in runs.readings]
        claimed = published(study, figure_of(study, case))
        error = None if claimed is None or each[0] is None else each[0] / claimed - 1.0
        rows.append(
            (
                case.phase,
                size_of(case),
                "two" if case.overlap else "one",
                None if run is None else MS * run.step_s,
                *each,
                claimed,
                _percent(error),
            )
        )
    said = (
        "Steps: size (tokens of a prompt, or sequences per GPU), micro-batches (mb), ms per step "
        "(law); "
        "token/s per node by reading; published; error of the law, %."
    )
    names = [reading.name for reading in runs.readings]
    columns = ("phase", "size", "mb", "ms", *names, "published", "err%")
    return Table("rates", said, columns, rows)


def overlap(study: DeepSeek, runs: Runs) -> Table:
    """What two-batch overlap gains, by tokens per GPU."""
    given = study.assumptions
    rows: list[tuple[Cell, ...]] = []
    for at, case in enumerate(_steps(study, runs.readings[0])):
        if not case.overlap or (case.phase == PREFILL and case.length != given.prefill.judged):
            continue
        gains = []
        for reading in runs.readings:
            of = _steps(study, reading)[at]
            ratio = runs.ratio(of, replace(of, overlap=False))
            gains.append(_percent(None if ratio is None else ratio - 1.0))
        claimed = _printed(study, "prefill_gain")
        if case.phase != PREFILL:
            claimed = _printed(study, f"gain@{case.tokens}")
            loss = _printed(study, f"loss@{case.tokens}")
            claimed = f"-{loss}" if loss else claimed
        hidden = _percent(_hidden(done_of(runs, case)))
        rows.append((case.phase, case.tokens, *gains, claimed, hidden))
    said = (
        "Two-batch overlap by tokens per GPU: gain in throughput by reading and as published, %; "
        "how much of communication is hidden behind computing (law), %."
    )
    names = [reading.name for reading in runs.readings]
    columns = ("phase", "tokens", *names, "published", "hidden%")
    return Table("overlap", said, columns, rows)


def _hidden(run: Outcome | None) -> float | None:
    """Share of the communication during which the mean GPU computes, at least."""
    if run is None:
        return None
    sent = run.seconds("dispatch", "combine")
    return max(0.0, run.compute_s + sent - run.step_s) / sent if sent else None


def parts(study: DeepSeek, runs: Runs) -> Table:
    """Where a step's time goes."""
    rows: list[tuple[Cell, ...]] = []
    for case in _steps(study, runs.readings[0]):
        run = done_of(runs, case)
        if run is None:
            continue
        rows.append(
            (
                case.phase,
                size_of(case),
                "two" if case.overlap else "one",
                *(MS * run.seconds(name) for name in ("attention", "ffn", "experts")),
                MS * run.slowest_s,
                *(MS * run.seconds(name) for name in ("dispatch", "combine")),
                MS * run.step_s,
                _percent(max(0.0, 1.0 - run.compute_s / run.step_s)),
            )
        )
    said = (
        "Where a step goes (law), ms: the mean GPU's attention, dense and shared FFNs, experts; "
        "experts of the slowest GPU of each layer; dispatch and combine, alone; the step; how long "
        "the mean GPU does not compute, %."
    )
    columns = ("phase", "size", "mb", "attn", "ffn", "exp", "slowest", "disp", "comb")
    return Table("parts", said, (*columns, "step", "wait%"), rows)


def memory(study: DeepSeek, runs: Runs) -> Table:
    """What a GPU holds."""
    from simulator.model import footprint, sizes
    from simulator.spec.load import load_topology, load_workload

    rows: list[tuple[Cell, ...]] = []
    given = study.assumptions
    for case in judged(study, runs.readings[0]):
        run = done_of(runs, case)
        if run is None:
            continue
        work = load_workload(case.workload, case.overrides)
        gpu = load_topology(case.topology).gpu
        physical = work.model.moe.experts + work.redundant_experts
        traffic = work.traffic.model_copy(update={"tokens_per_gpu": case.tokens})
        held = footprint.gpu_bytes(
            work.model_copy(update={"traffic": traffic}), -(-physical // run.gpus), 0
        )
        per_token = work.model.layers * sizes.kv_bytes_per_token_layer(work.model)
        rows.append(
            (
                case.phase,
                run.gpus,
                gpu.hbm_capacity_bytes * (1.0 - footprint.RESERVED) / GIB,
                *(held[name] / GIB for name in ("dense weights", "experts", "activations")),
                run.kv_tokens * per_token / GIB,
                run.kv_tokens,
                sequences_that_fit(run.kv_tokens, given.decode.context),
            )
        )
    said = (
        "Memory of a GPU, GiB: usable; weights that every GPU has, experts, activations, KV cache; "
        "tokens in the KV cache, and sequences of "
        f"{given.decode.context:,} that they are."
    )
    columns = ("phase", "GPUs", "usable", "weights", "experts", "act", "KV", "KV tokens", "seqs")
    return Table("memory", said, columns, rows)


def limits(study: DeepSeek, runs: Runs) -> Table:
    """Decode with as many sequences as fit."""
    rows: list[tuple[Cell, ...]] = [
        (
            context,
            sequences,
            None if run.refused else MS * run.step_s,
            None if run.refused else 1.0 / run.step_s,
            None if run.refused else run.per_node,
            None if run.refused else dollars(study, run.per_node),
        )
        for context, (sequences, run) in sorted(runs.fitting.items())
    ]
    said = (
        "Decode with as many sequences per GPU as its KV memory holds (law): ms per step, token/s "
        "of a user and of a node, $ per 1M tokens."
    )
    columns = ("keys", "sequences", "ms", "per user", "per node", "$/1M")
    return Table("limits", said, columns, rows)


def cost(study: DeepSeek, runs: Runs) -> Table:
    """$ per million tokens, simulated and published."""
    given = study.assumptions
    rows: list[tuple[Cell, ...]] = []

    def add(what: str, rate: float | None) -> None:
        if rate is not None:
            rows.append((what, rate, dollars(study, rate)))

    for reading in runs.readings:
        for case in judged(study, reading):
            add(f"{case.phase} {size_of(case)}, {reading.name}", runs.per_node(case))
    add("prefill, published", published(study, f"prefill@{given.prefill.judged}"))
    add("decode, published", published(study, f"decode@{given.decode.judged}"))
    add("DeepSeek, all input", given.own.input)
    add("DeepSeek, input computed", given.own.input * (1.0 - given.own.cached))
    add("DeepSeek, output", given.own.output)
    said = f"Token/s of a node and $ per 1M tokens at ${given.price_per_hour:g} per GPU-hour."
    return Table("cost", said, ("what", "per node", "$/1M"), rows)


def own(study: DeepSeek, runs: Runs) -> Table:
    """DeepSeek's own decode servers."""
    given = study.assumptions.own
    rows: list[tuple[Cell, ...]] = []
    for sequences in given.sequences:
        run = done_of(runs, own_case(study, runs.readings[0], sequences))
        if run is not None:
            rows.append((sequences, MS * run.step_s, 1.0 / run.step_s, run.per_node))
    low, high = given.per_user
    said = (
        f"DeepSeek's own decode servers: EP{given.ep} on {given.nodes} nodes ({given.topology}), "
        f"{given.context:,} keys, by sequences per GPU: ms, token/s of a user and of a node. "
        f"Published: {low:g} to {high:g} of a user, {given.output:,.0f} of a node."
    )
    return Table("own", said, ("sequences", "ms", "per user", "per node"), rows)


def variants(study: DeepSeek, runs: Runs) -> Table:
    """What changes if something that the runs leave out is put in."""
    cases = judged(study, runs.readings[0])
    base = [runs.per_node(case) for case in cases]
    rows: list[tuple[Cell, ...]] = []
    for variant in study.assumptions.variants:
        cells: list[Cell] = []
        for case, without in zip(cases, base, strict=True):
            rate = runs.per_node(varied(case, variant))
            changed = None if rate is None or without is None else rate / without - 1.0
            cells += [rate, _percent(changed)]
        rows.append((variant.name, *cells))
    said = (
        "What if (law): token/s per node of prefill and of decode where gains are judged, and the "
        "change, %."
    )
    return Table("variants", said, ("what", "prefill", "change%", "decode", "change%"), rows)
