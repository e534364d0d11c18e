"""How requests are served: batching, KV cache, dispatch, tries, objectives."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, Strict, model_validator

from simulator.spec.fields import Bytes, Count, Latency, NotNegative, Spec, choice, refuse
from simulator.spec.incidents import Members

Probability = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[float, Field(gt=0, le=1000)]


def _each(value: object) -> object:
    return value if isinstance(value, list | tuple) else [value]


# One for all groups, or one of each, the last for all that follow.
Latencies = Annotated[
    tuple[Latency, ...], Strict(False), Field(min_length=1), BeforeValidator(_each)
]
Probabilities = Annotated[
    tuple[Probability, ...], Strict(False), Field(min_length=1), BeforeValidator(_each)
]


class Slo(Spec):
    """What a request must keep to count as goodput (``null``: anything goes): time to the first
    token, mean time per token after it, time to the last.
    """

    ttft_s: Latency | None = Field(default=None, alias="ttft")
    tpot_s: Latency | None = Field(default=None, alias="tpot")
    e2e_s: Latency | None = Field(default=None, alias="e2e")


class Serving(Spec):
    """The engine servers and what is before them. A *group* is the GPUs of one expert-parallel
    group (a replica of the model); each GPU has a queue and a KV cache of its own.

    ``max_batched_tokens`` and ``max_seqs`` limit a step of one GPU; ``kv_capacity`` is what the KV
    cache may take of a GPU (``null``: what weights and activations leave); ``kv_block`` tokens are
    one block. ``decode_run``: so many steps at most in which all requests of a group generate and
    none waits are taken like the first of them (1: every step is computed). ``shares``: of the
    groups under ``dispatch: static``. ``prefill_groups``: so many groups compute prompts only, and
    hand the KV on to the others (0: every group does all).
    ``speed``: factors on the compute times of each group (2: half as fast), the last one for all
    that follow. ``cold_start``: what the first step of a group takes besides. ``attempts`` per
    request, each failing by itself with ``failure_probability`` or after ``timeout``. These two
    are one for all groups, or one of each as ``speed``. ``warmup``: requests that arrive before
    are served, but not counted.

    ``on_member_loss``: what a group does that has lost a GPU, the first of these that can be done:
    ``replicas`` (go on with the copies that other GPUs have of its experts), ``reload`` (load the
    experts that are missing from host memory), ``shrink`` (lay all experts anew over the GPUs that
    are left, one copy each), ``drain`` (stop until it is back; always the last resort).
    ``regroup``: what a group takes to find out and to form anew. ``lost_kv``: requests whose KV is
    gone go on with the tokens that they have (``resume``), or their attempt has failed (``retry``).
    """

    # vLLM's defaults for an online server on H100-class GPUs (vllm/engine/arg_utils.py, v0.9).
    max_batched_tokens: Annotated[int, Field(ge=1, le=65_536)] = 8192
    max_seqs: Annotated[int, Field(ge=1, le=65_536)] = 256
    kv_block: Annotated[int, Field(ge=1, le=4096)] = 16
    kv_capacity_bytes: Bytes | None = Field(default=None, alias="kv_capacity")
    chunked_prefill: bool = True
    decode_run: Annotated[int, Field(ge=1, le=1024)] = 1
    prefix_reuse: bool = True
    preemption: Literal["recompute", "swap"] = "recompute"
    dispatch: Annotated[str, choice("dispatch")] = "round-robin"
    shares: Annotated[tuple[Factor, ...], Strict(False)] = ()
    prefill_groups: NotNegative = 0
    speed: Annotated[tuple[Factor, ...], Strict(False)] = ()
    cold_start_s: Latencies = Field(default=(0.0,), alias="cold_start")
    attempts: Count = 1
    timeout_s: Latency | None = Field(default=None, alias="timeout")
    failure_probability: Probabilities = (0.0,)
    on_member_loss: Members = ("drain",)
    regroup_s: Latency = Field(default=0.0, alias="regroup")
    lost_kv: Literal["resume", "retry"] = "resume"
    slo: Slo = Slo()
    warmup_s: Latency = Field(default=0.0, alias="warmup")

    @model_validator(mode="after")
    def _fits(self) -> Serving:
        found: list[tuple[tuple[str | int, ...], str]] = []
        if (self.dispatch == "static") != bool(self.shares):
            found.append((("shares",), "goes with dispatch: static, one number per group"))
        if self.timeout_s == 0.0:
            found.append((("timeout",), "must be above 0; leave it out for none"))
        refuse("Serving", found)
        return self
