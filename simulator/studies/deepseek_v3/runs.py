"""The simulations of the study `deepseek-v3`: steps of one group of servers in a steady state.

Prefill: every GPU has whole prompts for one step. Decode: every GPU has sequences whose prompt is
there, and each generates a token per step, routed as another token of the law or recording.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simulator.errors import InputError
from simulator.studies.common.runs import Progress

if TYPE_CHECKING:
    from simulator.engine.serving.group import Group, Setup
    from simulator.engine.serving.pool import Pool
    from simulator.requests.requests import Requests
    from simulator.spec.load import Inputs

PREFILL, DECODE = "prefill", "decode"
EPLB, ORDER, EVEN = "eplb", "order", "even"
"""Experts placed by EPLB; in order, as many slots; by EPLB, all of them equally popular."""

COFLOW, EXACT = "coflow", "exact"

SAMPLED = 65_536
"""Tokens of a step by which imbalance is counted."""


@dataclass(frozen=True, order=True)
class Case:
    """One run. tokens: of a GPU in a step; length: of a prompt, or the keys of a sequence; routing:
    a law or a file; more: overrides; network: `exact` runs the step engine, message by message, on
    tokens that attend to the mean number of keys.
    """

    phase: str
    topology: str
    workload: str
    tokens: int
    length: int
    routing: str
    placing: str = EPLB
    overlap: bool = True
    steps: int = 1
    lengths: str = "fixed"
    more: tuple[str, ...] = ()
    network: str = COFLOW

    @property
    def overrides(self) -> list[str]:
        """What it changes in the workload and the topology, "key.path=value"."""
        found = [
            f"serving.max_batched_tokens={self.tokens}",
            f"requests.prompt={self.lengths}:{self.length}",
            f"requests.output=fixed:{1 if self.phase == PREFILL else 1 + self.steps}",
            "requests.source=offline",
        ]
        if self.phase == DECODE:
            found.append(f"serving.max_seqs={self.tokens}")
        if not self.overlap:
            found.append("overlap=none")
        if self.placing == ORDER:
            found.append("placement=contiguous")
        return [*found, *self.more]

    @property
    def servers(self) -> Case:
        """What the servers are: the same for prompts of all lengths."""
        return replace(self, length=1, lengths="fixed", steps=1)


@dataclass(frozen=True)
class Outcome:
    """What a run gave.

    refused: why it cannot be run, empty if it was. parts: seconds of a step that the mean GPU
    computes (attention, ffn, experts, head), or that the network is busy (dispatch, combine), each
    alone; slowest_s: experts of the GPU that takes longest in each layer; imbalance: (max - mean) /
    mean of rows per GPU, mean over MoE layers; kv_tokens: that fit in a GPU's KV cache. The step
    engine gives no more than the time.
    """

    refused: str = ""
    gpus: int = 0
    step_s: float = 0.0
    tokens_per_s: float = 0.0
    parts: tuple[tuple[str, float], ...] = ()
    slowest_s: float = 0.0
    imbalance: float = 0.0
    kv_tokens: int = 0

    @property
    def per_node(self) -> float:
        """Tokens/s of 8 GPUs."""
        return self.tokens_per_s / (self.gpus / 8)

    def seconds(self, *names: str) -> float:
        """Seconds of a step of some parts together."""
        return sum(seconds for name, seconds in self.parts if name in names)

    @property
    def compute_s(self) -> float:
        """Seconds of a step that the mean GPU computes."""
        return self.seconds("attention", "ffn", "experts", "head")


def outcome(case: Case) -> Outcome:
    """Simulate one case; a refusal of the input is its outcome."""
    try:
        return _run(case) if case.network == COFLOW else _exact(case)
    except InputError as error:
        return Outcome(refused=str(error).splitlines()[0])


def _inputs(case: Case) -> Inputs:
    from simulator.engine.serving.setups import refuse
    from simulator.spec.load import load_inputs

    routing = "uniform" if case.placing == EVEN else case.routing
    inputs = load_inputs(case.topology, case.workload, case.overrides, routing)
    refuse(inputs.workload)
    return inputs


def _requests(case: Case, ranks: int) -> Requests:
    """The prompts of all GPUs."""
    from simulator.requests.load import load_requests

    each = case.tokens
    if case.phase == PREFILL:
        # Of prompts that are not all alike, more than a step takes.
        each = case.tokens // case.length * (1 if case.lengths == "fixed" else 4)
    inputs = _inputs(case)
    assert inputs.workload.requests is not None
    asked = inputs.workload.requests.model_copy(update={"limit": each * ranks})
    return load_requests(asked, 0, inputs.requests_dir)


@lru_cache(maxsize=1)
def _servers(case: Case) -> tuple[Setup, Pool, float]:
    """A group of servers, the routing of their tokens, and the factor on their compute times."""
    from simulator.engine.serving.cluster import cluster_of
    from simulator.requests.load import load_requests

    inputs = _inputs(case)
    assert inputs.workload.requests is not None
    one = inputs.workload.requests.model_copy(update={"limit": 1})
    cluster = cluster_of(inputs, load_requests(one, 0, inputs.requests_dir), 0)
    group = cluster.service.groups[0]
    return group.of, cluster.pool, float(group.speed[0])


def _run(case: Case) -> Outcome:
    from simulator.engine.serving.group import Group
    from simulator.engine.serving.setups import ledger_of

    setup, pool, speed = _servers(case.servers)
    ranks = setup.ranks
    requests = _requests(case, ranks)
    ledger = ledger_of(requests, pool)
    group = Group(setup, ledger)
    group.speed[:] = speed
    if case.phase == DECODE:
        _check_room(case, setup.limits.blocks, setup.limits.block_tokens)
        ledger.done[:] = ledger.prompt
        ledger.made[:] = 1
    for request in range(len(requests)):
        group.enqueue(request, request % ranks)
    rng = np.random.default_rng([0, 1])
    ended, tokens, step_s = 0.0, 0, 0.0
    for _ in range(case.steps):
        if case.phase == DECODE:
            ledger.row[:] = rng.integers(len(pool.ids), size=len(requests))
            ledger.rows[:] = 1
        began, ended = ended, group.start(ended)
        assert group.step is not None
        tokens += group.step.prompt + (group.step.generated if case.phase == DECODE else 0)
        step_s += (ended - began) / case.steps
        group.finish()
    return Outcome(
        gpus=ranks,
        step_s=step_s,
        tokens_per_s=tokens / (case.steps * step_s),
        parts=tuple(parts_of(group).items()),
        slowest_s=_slowest_s(group),
        imbalance=imbalance_of(group),
        kv_tokens=group.of.limits.blocks * group.of.limits.block_tokens,
    )


def _check_room(case: Case, blocks: int, block_tokens: int) -> None:
    """Raise InputError if a GPU's KV cache does not hold the sequences to the last step."""
    fit = blocks // -(-(case.length + case.steps) // block_tokens)
    if fit < case.tokens:
        raise InputError(
            f"{case.tokens} sequences of {case.length:,} tokens: the KV cache of a GPU holds {fit}"
        )


def _exact(case: Case) -> Outcome:
    from simulator.api import simulate

    keys = case.length // 2 if case.phase == PREFILL else case.length
    overrides = [
        *case.overrides,
        f"network={case.network}",
        f"traffic.tokens_per_gpu={case.tokens}",
        f"traffic.context={keys}",
    ]
    routing = "uniform" if case.placing == EVEN else case.routing
    run = simulate(
        case.topology, case.workload, overrides=overrides, routing=routing, trace_steps=0
    ).summary
    step_s = run["step_time_s"]["mean"]
    gpus = run["gpus"]
    return Outcome(gpus=gpus, step_s=step_s, tokens_per_s=gpus * case.tokens / step_s)


def parts_of(group: Group) -> dict[str, float]:
    """Seconds of the group's last step by part, each alone, of the mean GPU."""
    from simulator.engine.serving.timing import DELAY, DENSE, SPARSE

    work, evaluation = group.work, group.of.costs.evaluation
    kind = np.where(evaluation < 0, DENSE, SPARSE)
    variant = 2 * kind + group.of.costs.windowed
    at = evaluation[evaluation >= 0]
    sends = _collectives_s(group)[:, at]
    delays = (sends >= 0.0) * group.wires.sends[:, DELAY]
    sent = (np.maximum(sends, 0.0) + delays).sum(axis=(0, 1))
    return {
        "attention": float(work.attention_s.mean(axis=2)[:, variant].sum()),
        "ffn": float(work.ffn_s.mean(axis=2)[:, kind].sum()),
        "experts": float(work.experts_s[:, at].mean(axis=2).sum()),
        "head": float(work.head_s.mean(axis=1).sum()),
        "dispatch": float(sent[0]),
        "combine": float(sent[1]),
    }


def _collectives_s(group: Group) -> NDArray[np.float64]:
    """How long dispatch and combine take when all ranks begin at once and the links are free,
    float64 [halves, evaluations, 2]; below 0 where nothing is sent.
    """
    work, wires = group.work, group.wires
    if group.of.halves == 2:
        return work.sends_s
    first = work.reach_s.max(axis=(2, 3))
    busy_s = work.into_s.sum(axis=3).max(axis=(2, 3), initial=0.0)
    if len(wires.shared):
        pair = np.repeat(np.arange(len(wires.shared_ptr) - 1), np.diff(wires.shared_ptr))
        crossing_s = work.sent.reshape(*work.sent.shape[:2], -1)[..., pair] * wires.shared_s
        links = np.eye(int(wires.shared.max()) + 1)[wires.shared]
        busy_s = np.maximum(busy_s, (crossing_s @ links).max(axis=-1))
    return np.asarray(np.maximum(work.alone_s.max(axis=(2, 3)), first + busy_s))[None]


def _slowest_s(group: Group) -> float:
    """Seconds of the experts of the GPU that takes longest, all layers and micro-batches."""
    evaluation = group.of.costs.evaluation
    return float(group.work.experts_s[:, evaluation[evaluation >= 0]].max(axis=2).sum())


def imbalance_of(group: Group) -> float:
    """(max - mean) / mean of the rows that GPUs compute in the last step, mean over MoE layers."""
    evaluation = group.of.costs.evaluation
    last = group.work.ends[:, -1]  # of each rank, one after the other
    taken = np.arange(int(last[-1]))[:: max(1, int(last[-1]) // SAMPLED)]
    rank = np.searchsorted(last, taken, side="right")
    rows = [rows_of(group, taken, rank, at) for at in evaluation[evaluation >= 0].tolist()]
    return float(np.mean([of.max() / of.mean() - 1.0 for of in rows]))


def rows_of(
    group: Group, taken: NDArray[np.int64], rank: NDArray[np.int64], at: int
) -> NDArray[np.int64]:
    """Rows of each GPU, int64 [ranks], of some tokens of the last step in an evaluated layer."""
    routing = group.routing
    chosen = routing.ids[group.work.token[taken], routing.recorded[at]]
    copies = routing.copy[at, routing.kind[rank][:, None], chosen]
    gpu = routing.gpu[copies[chosen >= 0]]
    return np.bincount(gpu, minlength=group.of.ranks).astype(np.int64)


def run_all(
    cases: Iterable[Case], progress: Progress | None = None, workers: int | None = None
) -> dict[Case, Outcome]:
    """Simulate each case once, in processes (as many as there are cores; none for 1)."""
    wanted = list(dict.fromkeys(cases))
    alike: dict[Case, list[Case]] = {}
    for case in wanted:
        alike.setdefault(case.servers, []).append(case)
    workers = workers or len(os.sched_getaffinity(0))
    found: dict[Case, Outcome] = {}

    def keep(outcomes: dict[Case, Outcome]) -> None:
        found.update(outcomes)
        if progress is not None:
            progress(len(found), len(wanted))

    # One run here first: what has to be compiled is then compiled once, and not in each process.
    batches = list(alike.values())
    alone = len(batches) if workers == 1 or len(batches) < 2 * workers else 1
    for batch in batches[:alone]:
        keep(_outcomes(batch))
    if batches[alone:]:
        with ProcessPoolExecutor(workers) as pool:
            futures = [pool.submit(_outcomes, batch) for batch in batches[alone:]]
            for future in as_completed(futures):
                keep(future.result())
    return {case: found[case] for case in wanted}


def _outcomes(cases: list[Case]) -> dict[Case, Outcome]:
    return {case: outcome(case) for case in cases}
