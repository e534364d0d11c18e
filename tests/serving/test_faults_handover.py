"""KV from prefill to decode over a graph that breaks: by hand, for one request at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator.engine.serving import cluster as clusters
from simulator.engine.serving.cluster import Cluster
from simulator.engine.serving.service import FAILED, FINISHED
from tests.serving.faulty import inputs_of, pool, served

# Two layers of moe128: K and V of 4 heads of 128 in 16 bit.
TOKENS = 4096
KV_BYTES = TOKENS * 2 * 2 * 4 * 128 * 2
NIC_BYTES_PER_S = 50e9


@pytest.fixture(autouse=True)
def _quick_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = pool()
    monkeypatch.setattr(clusters, "pool_of", lambda *_: drawn._replace(notes=[]))


def nics(numbers: range, **how: Any) -> list[dict[str, Any]]:
    return [{"at": "0 s", "what": "nic", "name": f"nic{nic}", **how} for nic in numbers]


def handed(folder: Path, faults: list[dict[str, Any]], *overrides: str) -> tuple[Cluster, int]:
    """Node 0 prefills and node 1 decodes; the cluster at the end and the requests lost."""
    inputs = inputs_of(
        folder, faults, "parallel.ep=8", "serving.prefill_groups=1", "requests.limit=1",
        f"requests.prompt=fixed:{TOKENS}", "requests.output=fixed:2",
        f"serving.max_batched_tokens={TOKENS}", *overrides, requests="offline",
    )  # fmt: skip
    cluster, timeline = served(inputs)
    return cluster, timeline.lost


def gap_s(folder: Path, factor: float) -> float:
    """From the first token to the second, with that share of every NIC left."""
    cluster, _ = handed(folder, nics(range(16), do="degrade", factor=factor))
    ledger = cluster.service.ledger
    return float(ledger.last_s[0] - ledger.first_s[0])


def test_kv_takes_the_bandwidth_that_is_left(tmp_path: Path) -> None:
    """Beside the bytes over the NIC all is the same."""
    share = inputs_of(tmp_path, nics(range(1))).workload.copy_efficiency.network
    slow, half, quarter = (gap_s(tmp_path, factor) for factor in (0.01, 0.005, 0.0025))
    alone_s = KV_BYTES / (0.01 * NIC_BYTES_PER_S * share)
    assert half - slow == pytest.approx(alone_s, rel=1e-9)
    assert quarter - half == pytest.approx(2 * alone_s, rel=1e-9)
    assert slow > alone_s


def test_kv_waits_for_a_path(tmp_path: Path) -> None:
    """No NIC of the node that prefills for two seconds: the second token comes after them."""
    cluster, lost = handed(tmp_path, nics(range(8), **{"for": "2 s"}))
    ledger = cluster.service.ledger
    assert cluster.service.of.outcome.tolist() == [FINISHED]
    assert ledger.first_s[0] < 0.5
    assert 2.0 < ledger.last_s[0] < 2.1
    assert lost == 0


def test_kv_that_never_can_go_is_a_failed_request(tmp_path: Path) -> None:
    cluster, lost = handed(tmp_path, nics(range(8)))
    assert cluster.service.of.outcome.tolist() == [FAILED]
    assert lost == 1
    for group in cluster.service.groups:
        assert (group.ranks.free == group.of.limits.blocks).all()


def test_those_that_have_a_path_pass_those_that_have_none(tmp_path: Path) -> None:
    """GPU 0 keeps NVLink, so its group goes on, but nothing leaves the node from it."""
    fault = {"at": "0 s", "what": "link", "name": "gpu0 <-> pcie0", "for": "3 s"}
    more = ("requests.limit=16", "requests.prompt=fixed:64", "serving.prefix_reuse=false")
    cluster, lost = handed(tmp_path, [fault], *more)
    assert (cluster.service.of.outcome == FINISHED).all()
    late = cluster.service.ledger.last_s > 3.0
    assert np.flatnonzero(late).tolist() == [0, 8]  # in turn over the 8 GPUs that prefill
    assert cluster.service.ledger.last_s[~late].max() < 1.0
    assert lost == 0
