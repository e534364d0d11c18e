"""Models without experts: every GPU is a group of its own, with the whole model."""

from __future__ import annotations

import numpy as np

from simulator.engine.layout import Layout, layout_of
from simulator.model.plan import needs_plan
from simulator.policies.placement import Placement
from simulator.spec.schema import Workload


def whole_on_a_gpu(workload: Workload) -> bool:
    """Whether serving can lay the model out: experts in expert parallel, the rest on every GPU."""
    model = workload.model
    if model.moe.experts:
        return not needs_plan(workload)
    alone = workload.parallel.ep in (None, 1)
    return bool(workload.parallel.plain and alone and model.attention.heads and model.vocab)


def layout_for(
    workload: Workload, gpus: int, cluster: str, placement: Placement | None = None
) -> Layout:
    """The layout of a served model; InputError if it cannot be had."""
    if workload.model.moe.experts:
        return layout_of(workload, gpus, cluster, placement)
    nothing = Placement(np.zeros((1, 0), dtype=np.int32), np.zeros(0, dtype=np.int32))
    serves = np.zeros((1, gpus, 0), dtype=np.bool_)
    return Layout(gpus, 1, nothing, serves, slots=0, fetch=False, on_peers=False)
