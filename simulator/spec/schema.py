"""What a topology, a GPU and a workload may say (pydantic models; every field frozen, every unknown
key refused).

YAML keys are short (``bandwidth``); attributes carry the SI unit (``bandwidth_bytes_per_s``).
Quantities are read by ``simulator.spec.units``: text with a unit, never a bare number.
``simulator.spec.faults`` words what pydantic finds.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

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
from simulator.spec.changes import Change
from simulator.spec.choices import ChoiceError, parse_choice
from simulator.spec.energy import Cost, Energy
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
    RelativeSizes,
    RoutingSource,
    Sources,
    Spec,
    WeightDtype,
    choice,
    refuse,
)
from simulator.spec.incidents import Faults
from simulator.spec.kernels import Kernel, kernels
from simulator.spec.plan import Parallel
from simulator.spec.requests import RequestsSpec
from simulator.spec.serving import Serving
from simulator.spec.transport import Transport
from simulator.spec.units import did_you_mean

# --- GPU --------------------------------------------------------------------------------


def families(given: object) -> object:
    """All kernel families, with the figures that are given."""
    if not isinstance(given, dict):
        return given
    known = kernels()
    for name, figures in given.items():
        if name not in known:
            hint = did_you_mean(str(name), list(known))
            raise ChoiceError(f"unknown kernel family {name!r}{hint}; known: {', '.join(known)}")
        if not isinstance(figures, dict | Kernel):
            raise ChoiceError(f"{name}: must be a mapping, not {figures!r}")
    return {
        name: {**kernel.model_dump(), **_figures(given.get(name))} for name, kernel in known.items()
    }


def _figures(given: object) -> dict[str, object]:
    if isinstance(given, Kernel):
        return given.model_dump()
    return dict(given) if isinstance(given, dict) else {}


class MeasuredCopies(Spec):
    """Shares of the raw bandwidth that copies reached on a GPU; those that are given replace the
    defaults of a workload's ``copy_efficiency``.
    """

    nvlink: Efficiency | None = None
    pcie: Efficiency | None = None
    network: Efficiency | None = None


class Gpu(Spec):
    """One GPU model: an entry of ``gpus.yaml`` or one written out in a topology.

    ``flops_per_s`` holds dense rates (no sparsity) by dtype; ``compute_efficiency`` and
    ``memory_efficiency`` are the shares of ``flops_per_s`` and ``hbm_bandwidth_bytes_per_s`` that
    large BF16 GEMMs reach; ``launch_overhead_s`` is paid by every kernel, in a CUDA graph too.
    ``kernels`` holds all families relative to these; a mapping replaces single figures of single
    families. ``l2_bandwidth_bytes_per_s`` bounds grouped GEMMs of short tiles (None: nothing does).
    ``in_switch_reduction`` says that the NVSwitch made for it reduces and multicasts
    (NVLink SHARP). ``profile`` is the file whose figures stand here in place of the catalogue's
    (``simulator.spec.profile``).
    """

    name: str
    flops_per_s: dict[FlopsDtype, Flops] = Field(alias="flops")
    hbm_capacity_bytes: Bytes = Field(alias="hbm_capacity")
    hbm_bandwidth_bytes_per_s: Bandwidth = Field(alias="hbm_bandwidth")
    l2_bytes: Bytes = Field(alias="l2")
    l2_bandwidth_bytes_per_s: Bandwidth | None = Field(default=None, alias="l2_bandwidth")
    sms: Count
    tdp_w: Power = Field(alias="tdp")
    idle_power_w: Power = Field(alias="idle_power")
    price_per_hour: Price = Field(alias="price")
    nvlink_bandwidth_bytes_per_s: Bandwidth | None = Field(default=None, alias="nvlink_bandwidth")
    compute_efficiency: Efficiency
    memory_efficiency: Efficiency
    launch_overhead_s: Latency = Field(alias="launch_overhead")
    kernels: Annotated[dict[str, Kernel], BeforeValidator(families)] = Field(
        default_factory=dict, validate_default=True
    )
    in_switch_reduction: bool = False
    copy_efficiency: MeasuredCopies = MeasuredCopies()
    profile: str | None = None
    sources: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _has_bf16(self) -> Gpu:
        found: list[tuple[tuple[str | int, ...], str]] = []
        if "bf16" not in self.flops_per_s:
            found.append((("flops", "bf16"), "required, but not given"))
        if self.idle_power_w >= self.tdp_w:
            found.append((("idle_power",), f"must be below tdp = {self.tdp_w:g} W"))
        refuse("Gpu", found)
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
    """A cluster: its GPU model and how the GPUs are wired. ``changes`` are made to what was built,
    by what they change (``network``, ``spine0``, ``leaf0 <-> spine1``).
    """

    name: str
    description: str = ""
    sources: Sources = ()
    gpu: Annotated[Gpu, BeforeValidator(catalogue.expand)]
    build: Annotated[Build, Field(discriminator="kind")]
    changes: dict[str, Change] = Field(default_factory=dict)


# --- Workload ---------------------------------------------------------------------------


class GqaAttention(Spec):
    """Grouped-query attention (multi-head when ``kv_heads`` = ``heads``, multi-query when 1)."""

    kind: Literal["gqa"]
    heads: Count
    kv_heads: Count
    head_dim: Count

    @model_validator(mode="after")
    def _groups_are_equal(self) -> GqaAttention:
        if self.kv_heads and self.heads % self.kv_heads:
            refuse(
                "GqaAttention",
                [(("kv_heads",), f"{self.kv_heads} does not divide heads = {self.heads}")],
            )
        return self


class MlaAttention(Spec):
    """Multi-head latent attention (DeepSeek-V2 and V3); the cache holds ``kv_lora_rank +
    qk_rope_head_dim`` per token. ``absorb``: when queries are taken to the latent instead of making
    keys and values of it.
    """

    kind: Literal["mla"]
    heads: Count
    q_lora_rank: Count
    kv_lora_rank: Count
    qk_nope_head_dim: Count
    qk_rope_head_dim: Count
    v_head_dim: Count
    absorb: Literal["decode", "always", "never"] = "decode"


class Moe(Spec):
    """The expert layers: ``experts`` routed FFNs of width ``intermediate``, ``top_k`` per token,
    and shared ones.

    ``shared_intermediate`` is the width of ONE shared expert; the first ``first_dense_layers``
    layers have a dense FFN. ``expert_sizes``: bytes of each expert's weights, relative to what
    ``dtypes.experts`` makes of them, the same in all layers (``null``: 1).
    """

    experts: ExpertCount
    top_k: Count
    intermediate: Count
    shared_experts: NotNegative = 0
    shared_intermediate: NotNegative = 0
    first_dense_layers: NotNegative = 0
    expert_sizes: RelativeSizes | None = None

    @model_validator(mode="after")
    def _fits(self) -> Moe:
        found: list[tuple[tuple[str | int, ...], str]] = []
        if self.expert_sizes is not None and len(self.expert_sizes) != self.experts:
            given = len(self.expert_sizes)
            found.append((("expert_sizes",), f"{given} sizes for {self.experts} experts"))
        if self.top_k > self.experts:
            found.append((("top_k",), f"{self.top_k} of {self.experts} experts"))
        if (self.shared_experts > 0) != (self.shared_intermediate > 0):
            found.append(
                (("shared_intermediate",), "give shared_experts and shared_intermediate together")
            )
        refuse("Moe", found)
        return self


class Dtypes(Spec):
    """Types of single parts' weights, in place of ``Model.dtype``.

    ``dense``: FFNs of dense layers and shared experts; ``lm_head`` (and the input embedding) and
    ``gate`` are BF16 unless given here.
    """

    attention: WeightDtype | None = None
    dense: WeightDtype | None = None
    experts: WeightDtype | None = None
    lm_head: WeightDtype | None = None
    gate: WeightDtype | None = None


class SlidingWindow(Spec):
    """Layers that attend to the last ``tokens`` only; every ``full_every``-th attends to all
    (0: none does).
    """

    tokens: Count
    full_every: NotNegative = 0


def _no_attention(given: object) -> object:
    """``null``: attention without heads."""
    if given is not None:
        return given
    return GqaAttention.model_construct(kind="gqa", heads=0, kv_heads=0, head_dim=0)


class Model(Spec):
    """A transformer. ``layers`` counts all layers; ``config`` is the HF file it was read from, if
    any.

    ``attention: null`` makes layers without attention (kept as 0 heads), ``moe: null`` a dense
    model (kept as 0 experts, all layers dense), ``vocab: 0`` one without embedding and LM head.
    """

    name: str
    config: str | None = None
    hidden: Count
    layers: LayerCount
    vocab: NotNegative
    dtype: WeightDtype
    kv_dtype: WeightDtype = "bf16"
    dtypes: Dtypes = Dtypes()
    sliding_window: SlidingWindow | None = None
    attention: Annotated[
        GqaAttention | MlaAttention, Field(discriminator="kind"), BeforeValidator(_no_attention)
    ]
    dense_intermediate: NotNegative = 0
    moe: Moe

    @model_validator(mode="before")
    @classmethod
    def _all_dense(cls, given: object) -> object:
        if not isinstance(given, dict) or "moe" not in given or given["moe"] is not None:
            return given
        layers = given.get("layers")
        none = Moe.model_construct(
            experts=0,
            top_k=0,
            intermediate=0,
            first_dense_layers=layers if isinstance(layers, int) else 0,
        )
        return {**given, "moe": none}

    @model_validator(mode="after")
    def _layers_fit(self) -> Model:
        found: list[tuple[tuple[str | int, ...], str]] = []
        dense = self.moe.first_dense_layers
        if self.moe.experts == 0:
            if self.dense_intermediate == 0:
                found.append((("dense_intermediate",), "required, because moe is null"))
        elif dense >= self.layers:
            found.append(
                (
                    ("moe", "first_dense_layers"),
                    f"{dense} of {self.layers} layers leaves no MoE layer",
                )
            )
        if 0 < dense < self.layers and self.dense_intermediate == 0:
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
    speculative: Speculative | None = None


class Speculative(Spec):
    """Draft and verify (multi-token prediction): each sequence brings ``draft_tokens`` guesses to a
    decode step, each accepted with probability ``acceptance`` if all before it were.
    """

    draft_tokens: Count
    acceptance: Annotated[float, Field(ge=0, le=1)]


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


PLACEMENT_FILE = ".json"
"""How the name of a file with a placement ends."""


def _placement(text: str) -> str:
    """Checks the name of a policy; a file is read when it is used."""
    if not text.endswith(PLACEMENT_FILE):
        parse_choice(text, "placement")
    return text


class Rebalance(Spec):
    """A new placement every ``every`` steps, by the loads of all steps before, from ``policy``
    (``null``: that of ``placement``). A layer whose largest over mean load would not fall by the
    share ``min_gain`` stays as it is.
    """

    every: Count
    policy: Annotated[str, AfterValidator(_placement)] | None = None
    # Our assumption: below this a step gains less than the transfers cost it for many steps.
    min_gain: Annotated[float, Field(ge=0, lt=1)] = 0.05


class Workload(Spec):
    """A model and its traffic, and the choices of how it is run."""

    name: str
    description: str = ""
    sources: Sources = ()
    model: Model
    traffic: Traffic
    parallel: Parallel = Parallel()
    routing: Routing
    placement: Annotated[str, AfterValidator(_placement)] = "contiguous"
    placement_loads: str | None = None
    placement_groups: Count = 1
    redundant_experts: NotNegative = 0
    replica_choice: Literal["nearest", "least-loaded"] = "nearest"
    rebalance: Rebalance | None = None
    expert_access: Literal["dispatch", "fetch"] = "dispatch"
    expert_slots: Count | None = None
    expert_pool: Literal["layer", "global"] = "layer"
    expert_home: Literal["host", "peer", "peer-or-host"] = "host"
    eviction: Annotated[str, choice("eviction")] = "lru"
    expert_order: Literal["gate", "resident-first"] = "gate"
    prefetch: Annotated[str, choice("prefetch")] = "none"
    prefetch_depth: Count = 1
    prefetch_budget_bytes: Bytes | None = Field(default=None, alias="prefetch_budget")
    prefetch_yields: Literal["own-copies", "shared-links"] = "own-copies"
    overlap: Annotated[str, choice("overlap")] = "none"
    network: Annotated[str, choice("network")] = "exact"
    cuda_graphs: bool = True
    copy_efficiency: CopyEfficiency = CopyEfficiency()
    transport: Transport
    requests: RequestsSpec | None = None
    serving: Serving = Serving()
    faults: Faults = ()
    energy: Energy = Energy()
    cost: Cost = Cost()
