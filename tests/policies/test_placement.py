"""Where experts live, and how many GPUs share them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.policies.placement import PLACEMENTS, expert_parallel_degree


@pytest.mark.parametrize("name", sorted(PLACEMENTS))
@given(ep=st.integers(1, 70), more=st.integers(0, 200))
def test_every_placement_gives_every_gpu_its_fair_share(name: str, ep: int, more: int):
    experts = ep + more
    owner = PLACEMENTS[name](experts, ep)
    assert owner.dtype == np.int32
    assert owner.shape == (experts,)
    shares = np.bincount(owner, minlength=ep)
    assert len(shares) == ep
    assert shares.max() - shares.min() <= 1
    assert shares.sum() == experts


@given(ep=st.integers(1, 70), more=st.integers(0, 200))
def test_contiguous_keeps_neighbours_together(ep: int, more: int):
    owner = PLACEMENTS["contiguous"](ep + more, ep)
    assert (np.diff(owner) >= 0).all()
    assert (np.diff(owner) <= 1).all()


def test_contiguous_by_hand():
    assert PLACEMENTS["contiguous"](8, 4).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert sorted(np.bincount(PLACEMENTS["contiguous"](128, 10)).tolist()) == [12] * 2 + [13] * 8


@pytest.mark.parametrize(
    ("gpus", "experts", "wanted"),
    [(16, 128, 16), (16, 8, 8), (10, 8, 5), (7, 6, 1), (12, 9, 6), (1, 3, 1), (64, 64, 64)],
)
def test_as_many_gpus_share_the_experts_as_divide_and_have_one(
    gpus: int, experts: int, wanted: int
):
    assert expert_parallel_degree(gpus, experts) == wanted
