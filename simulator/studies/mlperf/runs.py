"""The simulations of `mlperf-summarization`: an `Ask` is a run of the service, a `Run` its samples.

A node is a group of one GPU. Its `serving.speed` is set so that samples after the first are as fast
as the input says, its `serving.cold_start` so that the first is as slow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simulator.errors import InputError
from simulator.studies.mlperf.spec import Mlperf, Node

if TYPE_CHECKING:
    from simulator.engine.serving.service import Service
    from simulator.requests.requests import Requests
    from simulator.spec.schema import Workload

Floats = NDArray[np.float64]
STATIC = "static"
NONE, RANDOM, STOPS = "none", "random", "stops"
# Tokens of a step: vLLM's usual budgets, for some samples at once and for many.
STEP_TOKENS, MANY_TOKENS, MANY = 1024, 8192, 64


@dataclass(frozen=True)
class Ask:
    """One run of the service.

    nodes, from the `skip`-th on, jw2 and jw3 in turn; repeats: how often each node's samples come;
    batch: samples that a node works on at once; dtype: of the weights (empty: the workload's);
    cold: the first sample is slower; failing: none, random, or stops (a node serves as many samples
    as it should and then no more); attempts: of a sample; dispatch, closed (so many samples at a
    time; 0: all at the start) and rate (Poisson arrivals per second; 0: none) of `count` samples;
    slower: factors on the nodes' times; warm, first: factors on the inputs; failed: in place of
    the first node's failure probability; memory: share of the GPU that may be used; link:
    overrides of the nodes' network.
    """

    nodes: int = 2
    skip: int = 0
    repeats: int = 1
    batch: int = 1
    dtype: str = ""
    cold: bool = True
    failing: str = NONE
    attempts: int = 1
    dispatch: str = STATIC
    closed: int = 0
    rate: float = 0.0
    count: int = 0
    slower: tuple[float, ...] = ()
    warm: float = 1.0
    first: float = 1.0
    failed: float | None = None
    memory: float | None = None
    link: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Run:
    """What became of the samples; arrays [samples].

    node: that served it last; arrival_s, start_s, first_s, end_s: when it came, was begun, gave its
    first token and ended; tokens: generated; done: whether it finished. attempts: of all; span_s:
    until all had ended; batch: samples that a node could work on at once; used_bytes: of a GPU at
    most.
    """

    node: NDArray[np.int32]
    arrival_s: Floats
    start_s: Floats
    first_s: Floats
    end_s: Floats
    tokens: NDArray[np.int32]
    done: NDArray[np.bool_]
    attempts: int
    span_s: float
    batch: int
    used_bytes: float

    @property
    def delivered_per_s(self) -> float:
        """Samples that finished, over the time until all had ended."""
        return float(self.done.sum()) / self.span_s

    def latency_s(self, node: int | None = None) -> Floats:
        """From begun to ended, of the samples that finished (on a node)."""
        here = self.done if node is None else self.done & (self.node == node)
        return (self.end_s - self.start_s)[here]

    def rates(self, node: int | None = None) -> Floats:
        """Tokens over latency of these samples."""
        here = self.done if node is None else self.done & (self.node == node)
        return np.asarray(self.tokens[here] / self.latency_s(node))


@dataclass(frozen=True)
class Bench:
    """The study with what the simulated GPU does at speed 1: the latency of the first sample
    without a cold start, and the mean token rate of the others.
    """

    study: Mlperf
    first_s: float
    tokens_per_s: float

    def factor(self, node: Node, warm: float = 1.0) -> float:
        """The speed factor that gives a node its warm rate."""
        return self.tokens_per_s / (node.warm_tokens_per_s * warm)


def calibrate(study: Mlperf) -> Bench:
    """Run one node at speed 1, without a cold start."""
    run = serve(Bench(study, 0.0, 0.0), Ask(nodes=1, cold=False), plain=True)
    latencies, rates = run.latency_s(), run.rates()
    rate = float(rates[1:].mean()) if len(rates) > 1 else float(rates[0])
    return Bench(study, float(latencies[0]), rate)


def serve(bench: Bench, ask: Ask, plain: bool = False) -> Run:
    """Simulate a run; plain: all at speed 1. Raises InputError for inputs that cannot be."""
    from simulator.engine.serving.cluster import cluster_of
    from simulator.engine.serving.setups import refuse
    from simulator.engine.serving.simulate import arrive
    from simulator.spec.load import load_inputs

    study = bench.study
    given = study.simulation
    inputs = load_inputs(given.topology, given.workload, overrides_of(bench, ask, plain))
    refuse(inputs.workload)
    requests = requests_of(study, ask)
    cluster = cluster_of(inputs, requests, ask.seed)
    service = cluster.service
    arrive(cluster, requests, None)
    if ask.failing == STOPS:
        for number, share in enumerate(_failing(bench, ask)):
            if share:
                served = round((1.0 - share) * ask.repeats * len(study.assumptions.outputs))
                _stop_after(service, number, served)
    service.env.run()
    of, ledger = service.of, service.ledger
    group = service.groups[0]
    blocks = max(int(one.ranks.totals[_peak()]) for one in service.groups)
    kept = _weights_and_activations(inputs.workload, step_tokens(study, ask.batch))
    done = of.outcome == 1
    return Run(
        node=service.served_by.copy(),
        arrival_s=of.arrival_s,
        start_s=ledger.admitted_s,
        first_s=ledger.first_s,
        end_s=of.finish_s,
        tokens=ledger.made,
        done=done,
        attempts=int(of.attempts.sum()),
        span_s=float(of.finish_s.max()),
        batch=group.of.most,
        used_bytes=kept + blocks * group.of.limits.block_tokens * _kv_bytes(inputs.workload),
    )


def _peak() -> int:
    from simulator.engine.serving.scheduler import PEAK_BLOCKS

    return PEAK_BLOCKS


def _kv_bytes(workload: Workload) -> float:
    from simulator.model import sizes

    return workload.model.layers * sizes.kv_bytes_per_token_layer(workload.model)


def _weights_and_activations(workload: Workload, tokens: int) -> float:
    from simulator.model import footprint

    traffic = workload.traffic.model_copy(update={"tokens_per_gpu": tokens, "context": 0})
    parts = footprint.gpu_bytes(workload.model_copy(update={"traffic": traffic}), 0, 0)
    return sum(size for name, size in parts.items() if name != "KV cache")


def step_tokens(study: Mlperf, batch: int) -> int:
    """Tokens that a step may have: one whole prompt at batch 1."""
    if batch == 1:
        return max(study.assumptions.prompts)
    return max(batch, MANY_TOKENS if batch > MANY else STEP_TOKENS)


def memory_of(study: Mlperf, batch: int = 0, dtype: str = "") -> tuple[float, float]:
    """Bytes on one GPU of weights and a step's activations (batch 0: of weights alone), and of a
    token's KV.
    """
    from simulator.spec.load import load_workload

    workload = load_workload(study.simulation.workload, [f"model.dtype={dtype}"] if dtype else [])
    tokens = step_tokens(study, batch) if batch else 0
    return _weights_and_activations(workload, tokens), _kv_bytes(workload)


def batch_for(study: Mlperf, share: float, dtype: str = "") -> int:
    """Samples whose KV fits beside the weights in a share of the published memory."""
    held, kv = memory_of(study, MANY + 1, dtype)
    given = study.assumptions
    longest = max(p + o for p, o in zip(given.prompts, given.outputs, strict=True))
    each = -(-longest // _block()) * _block() * kv
    return max(1, int((share * given.gpu_memory_bytes - held) // each))


def _block() -> int:
    from simulator.spec.serving import Serving

    return Serving().kv_block


def overrides_of(bench: Bench, ask: Ask, plain: bool) -> list[str]:
    """The run as overrides of the workload and the topology."""
    study = bench.study
    nodes = _nodes(bench, ask)
    slower = [*ask.slower, *[1.0] * (ask.nodes - len(ask.slower))]
    speeds = [1.0] * ask.nodes
    if not plain:
        speeds = [
            bench.factor(node, ask.warm) * slow for node, slow in zip(nodes, slower, strict=True)
        ]
    tokens = step_tokens(study, ask.batch)
    found = [
        f"topology.build.nodes={ask.nodes}",
        f"serving.speed={speeds}",
        f"serving.max_seqs={ask.batch}",
        f"serving.max_batched_tokens={tokens}",
        f"serving.attempts={ask.attempts}",
        f"serving.dispatch={ask.dispatch}",
        f"serving.shares={[1.0] * ask.nodes if ask.dispatch == STATIC else []}",
        *ask.link,
    ]
    if ask.cold and not plain:
        colds = [_cold(bench, ask, node, speed) for node, speed in zip(nodes, speeds, strict=True)]
        found.append(f"serving.cold_start=[{', '.join(f'{cold!r} s' for cold in colds)}]")
    if ask.failing == RANDOM:
        found.append(f"serving.failure_probability={_failing(bench, ask)}")
    if ask.dtype:
        found.append(f"model.dtype={ask.dtype}")
    if study.simulation.gpu is not None:
        found.append(f"topology.gpu={study.simulation.gpu}")
    if ask.memory is not None:
        held, _ = memory_of(study, ask.batch, ask.dtype)
        room = ask.memory * study.assumptions.gpu_memory_bytes - held
        found.append(f"serving.kv_capacity={room!r} B")
    return found


def _nodes(bench: Bench, ask: Ask) -> list[Node]:
    return [bench.study.inputs.each[(ask.skip + n) % 2] for n in range(ask.nodes)]


def _failing(bench: Bench, ask: Ask) -> list[float]:
    """The failure probability of each node."""
    found = [node.failure_probability for node in _nodes(bench, ask)]
    return found if ask.failed is None else [ask.failed, *found[1:]]


def _cold(bench: Bench, ask: Ask, node: Node, speed: float) -> float:
    more = node.first_sample_s * ask.first - bench.first_s * speed
    if more < 0.0:
        raise InputError(
            f"inputs: a first sample of {node.first_sample_s * ask.first:.3f} s is faster than "
            f"{node.warm_tokens_per_s * ask.warm:g} token/s allow ({bench.first_s * speed:.3f} s)"
        )
    return more


def requests_of(study: Mlperf, ask: Ask) -> Requests:
    """The samples: each node's in their order, dealt in turn."""
    from simulator.requests.requests import plain_requests

    given = study.assumptions
    each = len(given.outputs)
    count = ask.count or ask.nodes * ask.repeats * each
    sample = (np.arange(count) // ask.nodes) % each
    arrival_s = np.zeros(count)
    if ask.rate:
        rng = np.random.default_rng([ask.seed, 1])
        arrival_s = np.cumsum(rng.standard_exponential(count)) / ask.rate
    found = plain_requests(
        arrival_s, np.array(given.prompts)[sample], np.array(given.outputs)[sample], "study"
    )
    return replace(found, concurrency=ask.closed) if ask.closed else found


def _stop_after(service: Service, group: int, samples: int) -> None:
    """Have a node stop for good when it has served so many samples; its others fail."""
    from simulator.engine.serving.service import FINISHED, NORMAL

    before = service.on_end
    served = 0

    def stop() -> None:
        service.halt(group)
        service.open[group] = False
        lost = service.at_workers(service.group_of == group)
        for request in lost:
            service.take(request)
        for request in lost:
            service.try_again(request, keep=False)

    def end(request: int) -> None:
        nonlocal served
        before(request)
        if service.of.outcome[request] == FINISHED and service.served_by[request] == group:
            served += 1
            if served == samples:
                service.at(service.env.now, stop)

    service.on_end = end
    if samples == 0:
        service.at(0.0, stop, NORMAL + 1)  # when all samples are there, before any is begun


def over_seeds(bench: Bench, ask: Ask, seeds: int) -> list[Run]:
    """A run with each seed from 0 on."""
    return [serve(bench, replace(ask, seed=seed)) for seed in range(seeds)]


def mean_of(values: Sequence[float | None]) -> float | None:
    """Mean of those that there are."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
