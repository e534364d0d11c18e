"""What a topology, a GPU and a workload may say (pydantic models; every field frozen, every unknown
key refused).

YAML keys are short (``bandwidth``); attributes carry the SI unit (``bandwidth_bytes_per_s``).
Quantities are read by ``simulator.spec.units``: text with a unit, never a bare number.
``simulator.spec.faults`` words what pydantic finds.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from simulator.spec import catalogue
from simulator.spec.builds import (
    EthernetBuild,
    ExplicitBuild,
    FatTreeBuild,
    HgxRailBuild,
    NvlinkMeshBuild,
    NvlinkPairsBuild,
    PcieTreeBuild,
    RacksBuild,
    SwitchBuild,
)
from simulator.spec.fields import (
    Bandwidth,
    Bytes,
    Count,
    Efficiency,
    ExpertCount,
    Flops,
    FlopsDtype,
    Latency,
    LayerCount,
    NotNegative,
    Power,
    Price,
    RoutingSource,
    Sources,
    Spec,
    WeightDtype,
    choice,
    refuse,
)
from simulator.spec.transport import Transport

# --- GPU --------------------------------------------------------------------------------


class Gpu(Spec):
    """One GPU model: an entry of ``gpus.yaml`` or one written out in a topology.

    ``flops_per_s`` holds dense rates (no sparsity) by dtype; ``compute_efficiency`` and
    ``memory_efficiency`` are the shares of ``flops_per_s`` and ``hbm_bandwidth_bytes_per_s`` that
    large kernels reach; ``launch_overhead_s`` is paid by every kernel. ``in_switch_reduction`` says
    that the NVSwitch made for it reduces and multicasts (NVLink SHARP).
    """

    name: str
    flops_per_s: dict[FlopsDtype, Flops] = Field(alias="flops")
    hbm_capacity_bytes: Bytes = Field(alias="hbm_capacity")
    hbm_bandwidth_bytes_per_s: Bandwidth = Field(alias="hbm_bandwidth")
    l2_bytes: Bytes = Field(alias="l2")
    sms: Count
    tdp_w: Power = Field(alias="tdp")
    idle_power_w: Power = Field(alias="idle_power")
    price_per_hour: Price = Field(alias="price")
    nvlink_bandwidth_bytes_per_s: Bandwidth | None = Field(default=None, alias="nvlink_bandwidth")
    compute_efficiency: Efficiency
    memory_efficiency: Efficiency
    launch_overhead_s: Latency = Field(alias="launch_overhead")
    in_switch_reduction: bool = False
    sources: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _has_bf16(self) -> Gpu:
        if "bf16" not in self.flops_per_s:
            refuse("Gpu", [(("flops", "bf16"), "required, but not given")])
        return self


# --- Topology ---------------------------------------------------------------------------


Build = (
    SwitchBuild
    | HgxRailBuild
    | FatTreeBuild
    | RacksBuild
    | NvlinkPairsBuild
    | NvlinkMeshBuild
    | PcieTreeBuild
    | EthernetBuild
    | ExplicitBuild
)


class Topology(Spec):
    """A cluster: its GPU model and how the GPUs are wired."""

    name: str
    description: str = ""
    sources: Sources = ()
    gpu: Annotated[Gpu, BeforeValidator(catalogue.expand)]
    build: Annotated[Build, Field(discriminator="kind")]


# --- Workload ---------------------------------------------------------------------------


class GqaAttention(Spec):
    """Grouped-query attention (multi-head when ``kv_heads`` = ``heads``, multi-query when 1)."""

    kind: Literal["gqa"]
    heads: Count
    kv_heads: Count
    head_dim: Count

    @model_validator(mode="after")
    def _groups_are_equal(self) -> GqaAttention:
        if self.heads % self.kv_heads:
            refuse(
                "GqaAttention",
                [(("kv_heads",), f"{self.kv_heads} does not divide heads = {self.heads}")],
            )
        return self


class MlaAttention(Spec):
    """Multi-head latent attention (DeepSeek-V2 and V3); the cache holds ``kv_lora_rank +
    qk_rope_head_dim`` per token.
    """

    kind: Literal["mla"]
    heads: Count
    q_lora_rank: Count
    kv_lora_rank: Count
    qk_nope_head_dim: Count
    qk_rope_head_dim: Count
    v_head_dim: Count


class Moe(Spec):
    """The expert layers: ``experts`` routed FFNs of width ``intermediate``, ``top_k`` per token,
    and shared ones.

    ``shared_intermediate`` is the width of ONE shared expert; the first ``first_dense_layers``
    layers have a dense FFN.
    """

    experts: ExpertCount
    top_k: Count
    intermediate: Count
    shared_experts: NotNegative = 0
    shared_intermediate: NotNegative = 0
    first_dense_layers: NotNegative = 0

    @model_validator(mode="after")
    def _fits(self) -> Moe:
        found: list[tuple[tuple[str | int, ...], str]] = []
        if self.top_k > self.experts:
            found.append((("top_k",), f"{self.top_k} of {self.experts} experts"))
        if (self.shared_experts > 0) != (self.shared_intermediate > 0):
            found.append(
                (("shared_intermediate",), "give shared_experts and shared_intermediate together")
            )
        refuse("Moe", found)
        return self


class Model(Spec):
    """A transformer with expert layers. ``layers`` counts all layers; ``config`` is the HF file it
    was read from, if any.
    """

    name: str
    config: str | None = None
    hidden: Count
    layers: LayerCount
    vocab: Count
    dtype: WeightDtype
    kv_dtype: WeightDtype = "bf16"
    attention: Annotated[GqaAttention | MlaAttention, Field(discriminator="kind")]
    dense_intermediate: NotNegative = 0
    moe: Moe

    @model_validator(mode="after")
    def _layers_fit(self) -> Model:
        found: list[tuple[tuple[str | int, ...], str]] = []
        dense = self.moe.first_dense_layers
        if dense >= self.layers:
            found.append(
                (
                    ("moe", "first_dense_layers"),
                    f"{dense} of {self.layers} layers leaves no MoE layer",
                )
            )
        if dense > 0 and self.dense_intermediate == 0:
            found.append(
                (("dense_intermediate",), "required, because moe.first_dense_layers is not 0")
            )
        refuse("Model", found)
        return self


class Traffic(Spec):
    """What a step works on, per GPU. ``context`` is the KV length that attention reads (tokens)."""

    phase: Literal["decode", "prefill"] = "decode"
    tokens_per_gpu: Count
    context: Count
    steps: Count = 1
    warmup_steps: NotNegative = 0


class Parallel(Spec):
    """``ep`` GPUs share the experts of a layer; null = the largest divisor of the GPU count that is
    <= experts.
    """

    ep: Count | None = None


class Routing(Spec):
    """Which experts each token takes: a trace (shipped name or path) or a law."""

    source: RoutingSource
    layer_map: Literal["cycle", "stretch"] = "cycle"
    tokens: Literal["any", "prompt", "generated"] = "any"


class CopyEfficiency(Spec):
    """Share of the raw bandwidth that copies of expert weights reach, by kind of path."""

    # p2pBandwidthLatencyTest on HGX H100, both directions at once: 744 of 900 GB/s (github
    # NVIDIA/nccl issue 1264).
    nvlink: Efficiency = 0.827
    # Pinned host-to-device copies of an H100 SXM over Gen5 x16: 54.8 of 64 GB/s (Voltage Park and
    # AI@GT vpbenchmarking).
    pcie: Efficiency = 0.856
    # What NCCL maintainers expect of a 400 Gb/s NIC: 46-48 of 50 GB/s (github NVIDIA/nccl-tests
    # issue 290), middle.
    network: Efficiency = 0.94


class Workload(Spec):
    """A model and its traffic, and the choices of how it is run."""

    name: str
    description: str = ""
    sources: Sources = ()
    model: Model
    traffic: Traffic
    parallel: Parallel = Parallel()
    routing: Routing
    expert_access: Literal["dispatch", "fetch"] = "dispatch"
    expert_slots: Count | None = None
    expert_home: Literal["host", "peer"] = "host"
    eviction: Annotated[str, choice("eviction")] = "lru"
    expert_order: Literal["gate", "resident-first"] = "gate"
    prefetch: Annotated[str, choice("prefetch")] = "none"
    overlap: Annotated[str, choice("overlap")] = "none"
    network: Annotated[str, choice("network")] = "exact"
    copy_efficiency: CopyEfficiency = CopyEfficiency()
    transport: Transport
