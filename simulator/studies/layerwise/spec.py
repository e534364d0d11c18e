"""What `layerwise.yaml` may say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from simulator.spec.fields import Bytes, Count, Spec
from simulator.studies.common.spec import Positive, StudySpec, Wholes, read_study
from simulator.studies.layerwise.forms import Point

FILE = Path(__file__).with_name("layerwise.yaml")


class ModelReading(Spec):
    """A reading of the model: matrices of its MLP as stated, width of the simulator's FFN."""

    matrices: Count
    intermediate: Count


class Phase(Spec):
    """keys: that a token attends to; pieces: micro-batches that are tried, sweep: in sweeps."""

    told: str
    keys: Count
    pieces: Wholes
    sweep: Wholes


class L2(Spec):
    """Tiles of the GEMMs (rows, columns, depth) and the orders in which they are worked on."""

    tile: Annotated[tuple[Count, Count, Count], Field(strict=False)]
    orders: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]


class Assumptions(Spec):
    """The model, the batch and what is varied."""

    batch: Count
    sequence: Count
    hidden: Count
    mlp_hidden: Count
    stated_parameters: Count
    heads: Count
    head_dim: Count
    layers: Count
    gpus: Count
    tp: Count
    pp: Count
    models: dict[str, ModelReading]
    phases: dict[str, Phase]
    chunks: Annotated[tuple[Bytes, ...], Field(strict=False)]
    strong: Wholes
    weak: Wholes
    widths: Wholes
    link_factors: Annotated[tuple[Positive, ...], Field(strict=False)]
    l2: L2

    def tokens(self, phase: str) -> int:
        """Tokens of a batch: all of the prompts, or one of each sequence."""
        return self.batch * (self.sequence if phase == "prefill" else 1)


class Simulation(Spec):
    """What is simulated."""

    workload: str
    topology: str


class Layerwise(StudySpec):
    """The study."""

    assumptions: Assumptions
    simulation: Simulation


def load_study(overrides: Sequence[str] = (), path: Path = FILE) -> Layerwise:
    """The study with `--set` overrides; InputError with one line per fault."""
    return read_study(Layerwise, path, overrides)


def point(study: Layerwise, model: str, phase: str, layout: str, pieces: float) -> Point:
    """What the closed form takes for a layout (`tp-pp` or `layer-tp`): rates of the GPU catalogue
    and of the workload's transport at large messages.
    """
    from simulator.spec.load import load_topology, load_workload

    given = study.assumptions
    topology = load_topology(study.simulation.topology)
    transport = load_workload(study.simulation.workload).transport
    gpu = topology.gpu
    nvlink: float = topology.build.nvlink.bandwidth_bytes_per_s  # type: ignore[union-attr]
    reduce_ = transport.costs_of("allreduce")
    in_switch = gpu.in_switch_reduction and "nvls" in reduce_
    per_layer = layout == "layer-tp"
    return Point(
        tokens=given.tokens(phase),
        hidden=given.hidden,
        width=given.models[model].intermediate,
        matrices=3,
        attention_width=given.heads * given.head_dim,
        layers=given.layers,
        keys=given.phases[phase].keys,
        decode=phase == "decode",
        tp=given.gpus // given.layers if per_layer else given.tp,
        stages=given.layers if per_layer else given.pp,
        pieces=pieces,
        flops_per_s=gpu.flops_per_s["bf16"] * gpu.compute_efficiency,
        hbm_bytes_per_s=gpu.hbm_bandwidth_bytes_per_s * gpu.memory_efficiency,
        allreduce_bytes_per_s=nvlink * reduce_["nvls" if in_switch else "ring"].efficiency.nvlink,
        send_bytes_per_s=nvlink * transport.costs_of("sendrecv")["direct"].efficiency.nvlink,
        in_switch=in_switch,
    )
