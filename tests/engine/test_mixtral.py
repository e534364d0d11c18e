"""The recorded Mixtral routing through the engine: the hit rates that others found on it."""

from __future__ import annotations

from pathlib import Path

import closed_forms
import numpy as np
import pytest
from engine.harness import Run, run

from simulator.routing.importers import open_trace
from simulator.routing.trace import iter_blocks
from simulator.spec.load import load_inputs

LOG = (
    Path(__file__).resolve().parents[2].parent
    / "shared/reference/routing/local_only/mixtral8x7b_gsm8k_routing.jsonl"
)
pytestmark = pytest.mark.skipif(
    not LOG.is_file(), reason="the recorded Mixtral routing (../shared/reference) is not here"
)


@pytest.fixture(scope="module")
def recorded() -> tuple[np.ndarray, np.ndarray]:
    """Request [tokens] and experts [tokens, layers, k] of the log."""
    blocks = list(iter_blocks(open_trace(LOG)))
    request = np.concatenate([block.request for block in blocks])
    return request, np.concatenate([block.experts for block in blocks])


def replayed(slots: int, steps: int) -> Run:
    return run(
        load_inputs(
            "h100x4",
            "mixtral-8x7b",
            [
                "expert_access=fetch",
                f"expert_slots={slots}",
                "traffic.tokens_per_gpu=1",
                f"traffic.steps={steps}",
                "traffic.warmup_steps=0",
            ],
            str(LOG),
        )
    )


# Published with the log: one cache of so many experts per layer, emptied at each problem, LRU.
@pytest.mark.parametrize(("slots", "published"), [(2, 0.285), (4, 0.571), (6, 0.793)])
def test_the_hit_rate_is_the_published_one(
    slots: int, published: float, recorded: tuple[np.ndarray, np.ndarray]
):
    """Each problem on a GPU of its own, one token per step, so that each has a cache of its own."""
    request, experts = recorded
    found = replayed(slots, int(np.bincount(request).max()))
    counts = found.accesses
    hits, misses = int(counts["hit"].sum()), int(counts["miss"].sum())
    assert not counts["late"].any(), "nothing is prefetched, so nothing is under way"
    assert hits + misses == np.count_nonzero(experts >= 0)
    assert hits / (hits + misses) == pytest.approx(published, abs=0.006)
    # And to the last access, per problem and layer, what a plain LRU gives.
    for problem in np.unique(request):
        for layer in range(32):
            ids = experts[request == problem, layer].ravel()
            wanted = closed_forms.lru_hits(ids[ids >= 0].tolist(), slots)
            mine = (counts["gpu"] == problem) & (counts["layer"] == layer)
            assert counts["hit"][mine].sum() == wanted


def test_the_log_is_replayed_whole_and_once(recorded: tuple[np.ndarray, np.ndarray]):
    request, experts = recorded
    lengths = np.bincount(request)
    assert lengths.size == 2
    assert experts.shape[1:] == (32, 2)
    lacking = np.count_nonzero(experts < 0)
    found = replayed(4, int(lengths.max()))
    accesses = sum(int(found.accesses[name].sum()) for name in ("hit", "late", "miss"))
    assert accesses == lengths.sum() * 32 * 2 - lacking
    assert found.steps["tokens"].sum() == lengths.sum()
    assert set(found.accesses["gpu"].tolist()) == {0, 1}
    assert len(found.where(kind="demand")["step"]) == found.accesses["miss"].sum()
