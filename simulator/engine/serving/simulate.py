"""A serving run: from the inputs to the tables of a run directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from simulator.engine.serving import scheduler
from simulator.engine.serving.cluster import Cluster, cluster_of
from simulator.engine.serving.exact import ask
from simulator.engine.serving.faults import Timeline
from simulator.engine.serving.service import Told
from simulator.engine.serving.setups import refuse, sends
from simulator.errors import InputError
from simulator.policies import dispatch
from simulator.requests.load import load_requests
from simulator.requests.requests import Requests
from simulator.runfiles import serving as tables
from simulator.runfiles.incidents import write_incidents
from simulator.runfiles.rundir import RunDir
from simulator.spec.choices import parse_choice
from simulator.spec.load import Inputs

Progress = Callable[[int, int], None]


@dataclass
class Report:
    """What a serving run says beside its tables. groups: replicas of the model, of `ep` GPUs;
    lost: requests that failed because of faults, None without a timeline.
    """

    gpus: int
    ep: int
    groups: int
    kv_blocks: int
    routing: dict[str, object]
    notes: list[str] = field(default_factory=list)
    totals: dict[str, float] = field(default_factory=dict)
    gaps: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    lost: int | None = None


def serve(inputs: Inputs, run: RunDir, seed: int, progress: Progress | None = None) -> Report:
    """Serve all requests and write `requests.parquet` and `steps.parquet` into `run`.

    Raises InputError for inputs that do not go together, and for what serving does not model.
    """
    workload = inputs.workload
    refuse(workload)
    assert workload.requests is not None
    requests = load_requests(workload.requests, seed, inputs.requests_dir)
    cluster = cluster_of(inputs, requests, seed)
    of = cluster.service.of
    notes = [*requests.notes, *cluster.pool.notes]
    if workload.network != "coflow" and sends(workload):
        ask(inputs, cluster, workload.network, share=1.0, follow=True)
        notes.append(
            f"network {workload.network}: every step transfer by transfer, a hundred times slower "
            "than network: coflow"
        )
    with tables.StepWriter(run.steps) as steps:

        def told(step: Told) -> None:
            steps.append(
                step.group, step.step.start_s, step.step.end_s, step.step.prompt,
                step.step.generated, step.waiting, step.running, step.used_blocks,
                step.step.repeated,
            )  # fmt: skip

        cluster.service.on_step = told
        whole_blocks = cluster.service.groups[0].of.limits.blocks
        timeline = timeline_of(inputs, cluster, seed)
        if timeline is not None:
            timeline.begin()
        arrive(cluster, requests, progress)
        cluster.service.env.run()
        while timeline is not None and cluster.service.left and timeline.end():
            cluster.service.env.run()
    if left := cluster.service.left:
        choice = workload.serving.dispatch
        if parse_choice(choice, "dispatch").name in dispatch.DISPATCHERS:
            raise AssertionError(f"{left} requests are still there at the end")
        raise InputError(
            f"serving.dispatch: {choice} holds {left:,} requests back to the end, where nothing "
            "happens any more that it could wait for; return an open worker"
        )
    ledger = cluster.service.ledger
    tables.write_requests(
        run.requests, of.arrival_s, ledger.prompt, ledger.output, ledger.priority, of.outcome,
        of.attempts, cluster.service.served_by, ledger.admitted_s, ledger.first_s, ledger.last_s,
        of.finish_s, ledger.made, of.wasted, ledger.reused, ledger.preempted, ledger.largest_gap_s,
    )  # fmt: skip
    if timeline is not None:
        notes += timeline.notes
        write_incidents(run.path, timeline.log)
    groups = cluster.service.groups
    totals = np.sum([group.ranks.totals for group in groups], axis=0).tolist()
    handover = cluster.handover
    moved: dict[str, float] = {
        "kv_transfers": 0 if handover is None else handover.transfers,
        "kv_moved_bytes": 0.0 if handover is None else handover.moved_bytes,
    }
    return Report(
        gpus=cluster.layout.gpus,
        ep=cluster.layout.ep,
        groups=len(groups),
        kv_blocks=whole_blocks,
        routing={"source": workload.routing.source},
        notes=notes,
        totals={name: totals[place] for name, place in TOTALS.items()} | moved,
        gaps=np.sum([group.ranks.gaps for group in groups], axis=0),
        lost=None if timeline is None else timeline.lost,
    )


TOTALS = {
    "preemptions": scheduler.PREEMPTIONS,
    "prompt_tokens_computed": scheduler.PROMPT_TOKENS,
    "tokens_generated": scheduler.GENERATED_TOKENS,
    "prefix_blocks_found": scheduler.FOUND,
    "prefix_blocks_looked_for": scheduler.LOOKED_FOR,
}


def timeline_of(inputs: Inputs, cluster: Cluster, seed: int) -> Timeline | None:
    """What breaks in a run, None if nothing does; InputError for what is not in the graph."""
    if not inputs.workload.faults:
        return None
    return Timeline(
        inputs,
        cluster.graph,
        cluster.names,
        cluster.layout,
        cluster.pool,
        cluster.service,
        cluster.handover,
        seed,
    )


def arrive(cluster: Cluster, requests: Requests, progress: Progress | None) -> None:
    """Have all requests come at their times, or one for each that ends (closed concurrency)."""
    service = cluster.service
    number = len(requests)
    ended = 0
    coming: Iterator[int] = iter(range(number))

    def end(_: int) -> None:
        nonlocal ended
        ended += 1
        if progress is not None and (ended % 64 == 0 or ended == number):
            progress(ended, number)
        if requests.concurrency is not None:
            following = next(coming, None)
            if following is not None:
                service.at(service.env.now, lambda: service.submit(following))

    service.on_end = end
    if requests.concurrency is not None:
        for _ in range(min(requests.concurrency, number)):
            first = next(coming)
            service.at(0.0, lambda request=first: service.submit(request))  # type: ignore[misc]
        return

    def next_one(request: int) -> None:
        if request + 1 < number:
            service.at(float(requests.arrival_s[request + 1]), lambda: next_one(request + 1))
        service.submit(request)

    service.at(float(requests.arrival_s[0]), lambda: next_one(0))
