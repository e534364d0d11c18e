"""What `mlperf.yaml` may say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, Strict, model_validator

from simulator.errors import InputError
from simulator.spec.fields import Bandwidth, Bytes, Count, Latency, Spec, refuse
from simulator.studies.common.claims import read_published
from simulator.studies.common.spec import Positive, Share, StudySpec, Wholes, read_study

FILE = Path(__file__).with_name("mlperf.yaml")
FIRST, SECOND = "jw2", "jw3"


def _printed(text: str) -> str:
    read_published(text)
    return text


Printed = Annotated[str, AfterValidator(_printed)]
Numbers = Annotated[tuple[Positive, ...], Strict(False), Field(min_length=1)]
Shares = Annotated[tuple[Share, ...], Strict(False), Field(min_length=1)]


class Node(Spec):
    """The inputs of a node. warm_tokens_per_s: generated tokens over the latency of a sample, mean
    over samples after the first; first_sample: the latency of that; failure_probability: of each
    sample.
    """

    warm_tokens_per_s: Positive
    first_sample_s: Annotated[Latency, Field(gt=0)] = Field(alias="first_sample")
    failure_probability: Share


class Nodes(Spec):
    """The two nodes by name."""

    jw2: Node
    jw3: Node


class Inputs(Spec):
    """All that is taken from the published text."""

    nodes: Nodes

    @property
    def each(self) -> tuple[Node, Node]:
        """Both nodes in their order."""
        return self.nodes.jw2, self.nodes.jw3


class Assumptions(Spec):
    """prompts, outputs: tokens of a node's samples in their order; long: how often these are
    repeated where the start must not count; seeds: runs with failures at random; server_requests:
    of a run with Poisson arrivals.
    """

    prompts: Wholes
    outputs: Wholes
    gpu_memory_bytes: Bytes = Field(alias="gpu_memory")
    long: Count
    seeds: Annotated[int, Field(ge=2)]
    server_requests: Annotated[int, Field(ge=100)]

    @model_validator(mode="after")
    def _fits(self) -> Assumptions:
        if len(self.prompts) != len(self.outputs):
            told = f"{len(self.outputs)} numbers for {len(self.prompts)} prompts; write as many"
            refuse("Assumptions", [(("outputs",), told)])
        return self


class Simulation(Spec):
    """What is simulated; gpu: another one than the topology's (null: its own)."""

    workload: str
    topology: str
    gpu: str | None = None


class Link(Spec):
    """The network of a node."""

    bandwidth_bytes_per_s: Bandwidth = Field(alias="bandwidth")
    latency_s: Latency = Field(alias="latency")


class WhatIfs(Spec):
    """What is tried. memory_share: of the GPU; speed_ratios: of the slower node's time to the
    faster one's; rates: samples/s of the table; adaptive: the largest batch of adaptive batching.
    """

    batches: Wholes
    dtypes: Annotated[tuple[str, ...], Strict(False), Field(min_length=1)]
    memory_share: Share
    attempts: Wholes
    nodes: Wholes
    speed_ratios: Numbers
    links: dict[str, Link]
    rates: Numbers
    adaptive: Count


class Limit(Spec):
    """Latency limits at P99: to the first token, per token after it."""

    ttft_s: Latency = Field(alias="ttft")
    tpot_s: Latency = Field(alias="tpot")


class Sweeps(Spec):
    """Values that are looked through for "would be at": factors on the warm rates and on the first
    samples' latencies, and failure probabilities of jw2.
    """

    warm: Numbers
    first: Numbers
    failed: Shares


class Mlperf(StudySpec):
    """The study. printed: figures as published, by name."""

    inputs: Inputs
    assumptions: Assumptions
    simulation: Simulation
    what_ifs: WhatIfs
    limits: dict[str, Limit]
    sweeps: Sweeps
    printed: dict[str, Printed]


def load_study(overrides: Sequence[str] = (), path: Path = FILE) -> Mlperf:
    """The study with `--set` overrides; InputError with one line per fault."""
    study = read_study(Mlperf, path, overrides)
    given = study.what_ifs
    for name, listed, needed in (
        ("batches", given.batches, 1),
        ("attempts", given.attempts, 1),
        ("nodes", given.nodes, 2),
    ):
        if needed not in listed:
            raise InputError(f"what_ifs.{name}: without {needed} there is nothing to compare with")
    return study
