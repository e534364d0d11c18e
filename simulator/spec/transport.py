"""What a transport file says: what each collective operation costs on it, and the bytes of a token.

A transport is what moves the bytes: NCCL, DeepEP, MPI. The time of one operation on n ranks is

    launch + per_peer (n - 1) + network_latency, if any of its messages crosses the network
    + what the network says when each message of m bytes puts
      m (1 + sqrt(half_size / (m p))) (1 + own_piece / k) / efficiency[kind of its path]
      bytes on the wire, at the raw bandwidths of the links

p: messages of a rank that are on their way at once; k: pieces of 1 / n of its data that a rank
sends (`simulator.engine.costs`). Inefficiency is bytes, so that transfers of several transports
share links fairly. For one link of bandwidth B this is m / (eff B) + c sqrt(m): Hockney's line with
the ramp of a protocol that needs many small pieces to fill the wire.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from simulator.errors import InputError
from simulator.spec.choices import ChoiceError
from simulator.spec.document import SET, Document, dotted, parse_value, read_document
from simulator.spec.faults import keys_at, validated
from simulator.spec.fields import (
    Bandwidth,
    Efficiency,
    Latency,
    NotNegative,
    Sources,
    Spec,
    refuse,
)
from simulator.spec.find import find
from simulator.spec.units import did_you_mean, parse_quantity

OPERATIONS = (
    "alltoall",
    "allreduce",
    "allgather",
    "reducescatter",
    "sendrecv",
    "dispatch",
    "combine",
)
ALGORITHMS = ("direct", "two-tier", "ring", "tree", "nvls")
PathKind = Literal["nvlink", "pcie", "network"]


def _known(what: str, names: tuple[str, ...]) -> AfterValidator:
    def check(name: str) -> str:
        if name not in names:
            hint = did_you_mean(name, list(names))
            raise ChoiceError(f"unknown {what}{hint}; known: {', '.join(names)}")
        return name

    return AfterValidator(check)


def _byte_count(value: object) -> float:
    return parse_quantity(value, "bytes")


Operation = Annotated[str, _known("operation", OPERATIONS)]
Algorithm = Annotated[str, _known("algorithm", ALGORITHMS)]
HalfSize = Annotated[float, Field(ge=0), BeforeValidator(_byte_count)]
Factor = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0)]


class KindEfficiency(Spec):
    """Share of the raw bandwidth that large messages reach, by kind of path.

    A path is "network" if any of its links is; else "nvlink" if all are; else "pcie".
    """

    nvlink: Efficiency = 1.0
    pcie: Efficiency = 1.0
    network: Efficiency = 1.0


class Cost(Spec):
    """What one operation costs by one algorithm.

    ``launch_s`` once per operation; ``per_peer_s`` times (ranks - 1); ``network_latency_s`` once
    more if any message crosses the network; ``half_size_bytes``: what a rank has on its way at once
    when the ramp doubles the bytes on the wire (module docstring); ``own_piece``: the part of the
    time of a piece that a rank's own takes, which stays; ``relay_rate``: bytes/s that the kernel of
    a GPU moves over NVLink, whatever NVLink could, if any message crosses the network.
    """

    launch_s: Latency = Field(alias="launch")
    per_peer_s: Latency = Field(default=0.0, alias="per_peer")
    network_latency_s: Latency = Field(default=0.0, alias="network_latency")
    half_size_bytes: HalfSize = Field(default=0.0, alias="half_size")
    own_piece: Share = 0.0
    relay_rate_bytes_per_s: Bandwidth | None = Field(default=None, alias="relay_rate")
    efficiency: KindEfficiency = KindEfficiency()


class Scale(Spec):
    """Factors of one GPU model on every time (launch, per_peer, network_latency) and efficiency."""

    latency: Factor = 1.0
    efficiency: Factor = 1.0


class Transport(Spec):
    """What moves the bytes of the collective operations.

    ``deduplicate``: how dispatch and combine send a token: once per (token, expert) (none), once
    per (token, GPU) (gpu), or once per (token, node) over the network and then once per GPU (node).
    ``path``: the graph's best path (fastest), RDMA only even between GPUs of one node (network), or
    staged through both hosts' memory (host). A token of ``hidden`` elements is hidden x
    bytes_per_element + header_bytes long. ``sms`` are the SMs that its kernels hold while they run.
    """

    name: str
    description: str = ""
    sources: Sources = ()
    deduplicate: Literal["none", "gpu", "node"] = "gpu"
    path: Literal["fastest", "network", "host"] = "fastest"
    dispatch_bytes_per_element: Factor = 2.0
    dispatch_header_bytes: NotNegative = 0
    combine_bytes_per_element: Factor = 2.0
    combine_header_bytes: NotNegative = 0
    sms: NotNegative = 0
    costs: dict[Operation, dict[Algorithm, Cost]]
    scales: dict[str, Scale] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _costs_something(self) -> Transport:
        found: list[tuple[tuple[str | int, ...], str]] = []
        if not self.costs:
            found.append((("costs",), f"empty; give at least one of {', '.join(OPERATIONS)}"))
        found += [
            (("costs", operation), f"empty; give at least one of {', '.join(ALGORITHMS)}")
            for operation, algorithms in self.costs.items()
            if not algorithms
        ]
        refuse("Transport", found)
        return self

    def costs_of(self, operation: str) -> dict[str, Cost]:
        """The costs of an operation by algorithm; dispatch and combine fall back to alltoall.

        Raises InputError where the transport lists none.
        """
        found = self.costs.get(operation)
        if found is None and operation in ("dispatch", "combine"):
            found = self.costs.get("alltoall")
        if found is None:
            told = f"transport {self.name}: no costs for {operation!r}; it has "
            told += ", ".join(self.costs)
            if operation in ("dispatch", "combine"):
                told += "; add costs.alltoall, or fit an output of alltoall_perf too"
            raise InputError(told)
        return found

    def scale_of(self, gpu: str) -> Scale:
        """The factors of a GPU model (name in gpus.yaml); ones where the file has none."""
        return self.scales.get(gpu, Scale())


def load_transport(name_or_path: str, overrides: Sequence[str] = ()) -> Transport:
    """A transport by shipped name or path; ``overrides`` as in ``--set`` ("key.path=value").

    Raises InputError with one line per fault.
    """
    path = find("transport", name_or_path)
    shown = os.path.relpath(path) if path.resolve().is_relative_to(Path.cwd()) else str(path)
    return parse_transport(read_document(path, shown), overrides)


def parse_transport(document: Document, overrides: Sequence[str] = ()) -> Transport:
    """As ``load_transport``, from a document that was read."""
    for text in overrides:
        _put(document, text)
    return validated(Transport, document)


def _put(document: Document, text: str) -> None:
    """Set one key as ``--set`` has it; what is missing on the way is made, not checked."""
    key, equals, value = text.partition("=")
    parts = tuple(part.strip() for part in key.split("."))
    if not equals or not all(parts):
        example = "costs.alltoall.direct.launch=5 us"
        raise InputError(f"--set {text!r}: write key.path=value, for example {example}")
    here: Any = document.data
    for depth, part in enumerate(parts):
        if not isinstance(here, dict):
            raise InputError(f"--set {key}: {dotted(parts[:depth])} has no keys below it")
        known = keys_at(parts[:depth], document.data, Transport)
        if known is not None and part not in known:
            hint = did_you_mean(part, known) or f"; known here: {', '.join(known)}"
            raise InputError(f"--set {dotted(parts[: depth + 1])}: unknown key {part!r}{hint}")
        if depth + 1 < len(parts) and here.get(part) is None:
            document.put(parts[: depth + 1], {}, SET)
        here = here.get(part)
    document.put(parts, parse_value(value, f"--set {key}"), SET)
