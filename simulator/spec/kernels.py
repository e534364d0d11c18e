"""Kernel families ``kernels.yaml``: what kernels take beside their FLOPs and bytes."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import AfterValidator, Field

from simulator.spec.fields import Count, Efficiency, Spec

_FILE = Path(__file__).with_name("kernels.yaml")

Factor = Annotated[float, Field(gt=0)]
Amount = Annotated[float, Field(ge=0)]


def _power_of_two(value: int) -> int:
    if value & (value - 1):
        raise ValueError("tiles have 1, 2, 4, 8, ... rows; write a power of two")
    return value


class Kernel(Spec):
    """One family, relative to a GPU's BF16 GEMM (``simulator.model.kernels`` has the formulas).

    ``compute`` and ``memory`` multiply the GPU's efficiencies; ``launches`` and ``depth`` count in
    its ``launch_overhead``; ``fill`` is in elements of k; ``tile`` is the most rows of a tile, and
    one of up to ``spare`` rows is to hold twice the mean load; ``quantise`` and ``passes`` are
    shares of the HBM bandwidth; ``kernels`` are launched by the host.
    """

    compute: Factor = 1.0
    memory: Factor = 1.0
    launches: Amount = 1.0
    depth: Amount = 0.0
    fill: Amount = 0.0
    quantise: Efficiency | None = None
    tile: Annotated[Count, AfterValidator(_power_of_two)] = 1
    spare: Annotated[int, Field(ge=0)] = 0
    passes: Efficiency = 1.0
    kernels: Count = 1
    source: str = ""


@cache
def kernels() -> dict[str, Kernel]:
    """Family -> its figures, in the file's order; not to be changed by the caller."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    loaded = yaml.load(_FILE.read_text(encoding="utf-8"), Loader=loader)
    return {name: Kernel.model_validate(entry) for name, entry in loaded.items()}
