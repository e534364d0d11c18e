"""What `large_ep.yaml` may say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from simulator.spec.fields import Count, Spec
from simulator.studies.common.spec import Positive, StudySpec, Wholes, read_study
from simulator.studies.large_ep.forms import Point

FILE = Path(__file__).with_name("large_ep.yaml")


class Assumptions(Spec):
    """The model, the batch and what is varied. link_factors: every bandwidth times these."""

    batch: Count
    sequence: Count
    hidden: Count
    intermediate: Count
    matrices: Count
    simulated_intermediate: Count
    layers: Count
    experts: Count
    gpus: Wholes
    top_k: Wholes
    tp: Count
    pp: Count
    microbatches: Wholes
    overlaps: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    link_factors: Annotated[tuple[Positive, ...], Field(strict=False)]
    recording: str

    @property
    def tokens(self) -> int:
        """Tokens of the whole batch."""
        return self.batch * self.sequence


class Network(Spec):
    """A cluster of any size. told: its short name; size: key of the topology -> GPUs per unit."""

    told: str
    topology: str
    overrides: Annotated[tuple[str, ...], Field(strict=False)]
    size: dict[str, Count]

    def of(self, gpus: int) -> tuple[str, ...]:
        """The overrides of the topology for so many GPUs."""
        sized = (f"{key}={gpus // each}" for key, each in self.size.items())
        return (*self.overrides, *sized)


class Simulation(Spec):
    """The workload, up to how many GPUs the network is solved exactly, and how beyond."""

    workload: str
    beyond: str
    exact_gpus: Count
    quick_exact_gpus: Count


class LargeEp(StudySpec):
    """The study."""

    assumptions: Assumptions
    networks: dict[str, Network]
    simulation: Simulation


def load_study(overrides: Sequence[str] = (), path: Path = FILE) -> LargeEp:
    """The study with `--set` overrides; InputError with one line per fault."""
    return read_study(LargeEp, path, overrides)


def point(study: LargeEp, network: Network, gpus: int, top_k: int, microbatches: float) -> Point:
    """What the closed form takes: experts = max(GPUs, experts); rates of the GPU catalogue and of
    the workload's transport at large messages.
    """
    from simulator.spec.load import load_topology, load_workload

    given = study.assumptions
    topology = load_topology(network.topology, network.of(gpus))
    transport = load_workload(study.simulation.workload).transport
    gpu, build = topology.gpu, topology.build
    nvlink: float = build.nvlink.bandwidth_bytes_per_s  # type: ignore[union-attr]
    direct = transport.costs_of("dispatch")["direct"].efficiency
    reduce_ = transport.costs_of("allreduce")
    in_switch = gpu.in_switch_reduction and "nvls" in reduce_
    nic: Any = getattr(build, "nic", None)
    return Point(
        tokens=given.tokens,
        hidden=given.hidden,
        intermediate=given.intermediate,
        matrices=given.matrices,
        layers=given.layers,
        top_k=top_k,
        experts=max(gpus, given.experts),
        gpus=gpus,
        gpus_per_node=gpus if nic is None else getattr(build, "gpus_per_node", gpus),
        flops_per_s=gpu.flops_per_s["bf16"] * gpu.compute_efficiency,
        dispatch_bytes_per_s=nvlink * direct.nvlink,
        allreduce_bytes_per_s=nvlink * reduce_["nvls" if in_switch else "ring"].efficiency.nvlink,
        send_bytes_per_s=nvlink * transport.costs_of("sendrecv")["direct"].efficiency.nvlink,
        network_bytes_per_s=0.0 if nic is None else nic.bandwidth_bytes_per_s * direct.network,
        in_switch=in_switch,
        tp=given.tp,
        pp=given.pp,
        microbatches=microbatches,
        overlapped=True,
    )


def raw_rates(network: Network, gpus: int) -> tuple[float, float]:
    """Raw bandwidth of NVLink and of a NIC (0 without), bytes/s in one direction."""
    from simulator.spec.load import load_topology

    build = load_topology(network.topology, network.of(gpus)).build
    nic: Any = getattr(build, "nic", None)
    nvlink: float = build.nvlink.bandwidth_bytes_per_s  # type: ignore[union-attr]
    return nvlink, 0.0 if nic is None else nic.bandwidth_bytes_per_s
