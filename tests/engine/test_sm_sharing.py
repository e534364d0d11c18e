"""Where batches overlap, the SMs that a transport holds are not there to compute with."""

from __future__ import annotations

import numpy as np
import pytest
from engine.harness import run, small

from simulator.errors import InputError
from simulator.model.compute import ComputeModel, beside
from simulator.spec.load import load_topology, load_workload


def test_arithmetic_slows_down_with_the_sms_and_memory_does_not():
    gpu, model = load_topology("dgx-h100").gpu, load_workload("mixtral-8x7b").model
    whole = ComputeModel(model, gpu, "prefill", 4096)
    rest = ComputeModel(model, beside(gpu, 24), "prefill", 4096)
    # 64 k rows: bound by arithmetic, so nearly 132 / 108 times as long; one row: by memory.
    assert rest.expert(65536).seconds / whole.expert(65536).seconds == pytest.approx(
        132 / 108, rel=0.02
    )
    assert rest.expert(1).seconds == pytest.approx(whole.expert(1).seconds, rel=0.001)
    assert rest.expert(65536).flops == whole.expert(65536).flops
    assert beside(gpu, 0).flops_per_s == gpu.flops_per_s


@pytest.mark.parametrize(("overlap", "slower"), [("none", False), ("two-batch", True)])
def test_sms_are_held_only_where_batches_overlap(overlap: str, slower: bool):
    changes = {"overlap": overlap, "traffic.tokens_per_gpu": 4096, "traffic.phase": "prefill"}
    free, held = (run(small({**changes, "transport.sms": sms})) for sms in (0, 66))
    times = [found.where(kind="experts") for found in (free, held)]
    each = [np.sort(spans["end_s"] - spans["start_s"]) for spans in times]
    assert bool((each[1] > each[0] * (1 + 1e-9)).any()) == slower
    if not slower:
        assert each[1] == pytest.approx(each[0], rel=1e-9)


def test_a_transport_cannot_hold_all_sms():
    with pytest.raises(InputError, match=r"transport\.sms: 132, but H100-SXM has 132 SMs"):
        run(small({"overlap": "two-batch", "transport.sms": 132}))
