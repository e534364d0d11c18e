"""Experts that move while a run goes on: what moves, when it counts, and what it puts on links."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine.harness import Run, run, small, write_trace

from simulator.engine.rebalance import imbalance, relabelled
from simulator.errors import InputError
from simulator.model.sizes import expert_bytes
from simulator.policies.placement import Placement

EXPERTS, GPUS = 8, 4
BASE: dict[str, Any] = {
    "parallel.ep": 4,
    "model.layers": 3,
    "model.moe": "{experts: 8, top_k: 2, intermediate: 48, first_dense_layers: 1}",
    "model.dense_intermediate": 64,
    "traffic.tokens_per_gpu": 16,
    "traffic.warmup_steps": 0,
}


def skewed(path: Path) -> Path:
    """A trace whose tokens mostly take experts 0 and 1, which lie on GPU 0 when in order, in the
    first of two layers; in the second all experts have as many tokens in each step of 64.
    """
    rng = np.random.default_rng(7)
    ids = []
    for token in range(256):
        hot = rng.random() < 0.7
        others = rng.permutation(np.arange(2, 8))[:2]
        even = [2 * token % 8, (2 * token + 1) % 8]
        ids.append([rng.permutation([0, 1]) if hot else others, even])
    return write_trace(path, np.array(ids), EXPERTS, [0] * 256)


def ran(trace: Path | str, keys: dict[str, Any]) -> Run:
    return run(small(BASE | {"traffic.phase": "prefill"} | keys, trace))


def rebalanced(trace: Path | str, steps: int, keys: dict[str, Any] | None = None) -> Run:
    given = {"traffic.steps": steps, "rebalance": "{every: 2, policy: balanced}"}
    return ran(trace, given | (keys or {}))


def size_of() -> float:
    return expert_bytes(small(BASE).workload.model)


def rows_of_step(found: Run, step: int, layer: int) -> list[int]:
    """Rows that each GPU computes in a layer of a step."""
    experts = found.where(kind="experts", step=step, layer=layer)
    return np.bincount(experts["gpu"], experts["rows"], minlength=GPUS).astype(int).tolist()


def test_what_moves_counts_from_the_step_after_the_last_arrival(tmp_path: Path):
    trace = skewed(tmp_path / "skewed.parquet")
    steps = 8
    usual, found = ran(trace, {"traffic.steps": steps}), rebalanced(trace, steps)
    moved = found.where(kind="rebalance")
    assert len(moved["gpu"])
    assert set(moved["layer"]) == {1}, "the second MoE layer is even"
    assert set(moved["step"]) == {2}, "decided after two steps, begun with the third"
    begins = found.steps["start_s"]
    assert (moved["ready_s"] == begins[2]).all()
    arrived = moved["end_s"].max()
    takes = int(np.searchsorted(begins, arrived))  # the first step that begins after it
    assert 3 <= takes < steps
    for step in range(takes):
        assert rows_of_step(found, step, 1) == rows_of_step(usual, step, 1)
    late = [
        [max(rows_of_step(one, step, 1)) for step in range(takes, steps)] for one in (found, usual)
    ]
    assert all(a < b for a, b in zip(*late, strict=True))
    # The other layer stays as it is.
    for step in range(steps):
        assert rows_of_step(found, step, 2) == rows_of_step(usual, step, 2)
    assert f"in force from step {takes}" in found.report.notes[-3]


def test_only_who_has_an_expert_computes_it(tmp_path: Path):
    trace = skewed(tmp_path / "skewed.parquet")
    # All steps but the last four are warm-up: `loads` tells of steps with the new placement alone.
    found = rebalanced(trace, 4, {"traffic.warmup_steps": 8})
    moved = found.where(kind="rebalance")
    assert moved["end_s"].max() < found.steps["start_s"][8]
    came = set(zip(moved["layer"], moved["gpu"], moved["expert"], strict=True))
    had = {(layer, e // 2, e) for layer in (1, 2) for e in range(EXPERTS)}
    loads = found.loads
    computed = set(zip(loads["layer"], loads["gpu"], loads["expert"], strict=True))
    assert not came & had, "what a GPU has does not travel"
    assert computed <= came | had
    assert came <= computed, "what came is used: every expert has tokens here"
    for layer in (1, 2):
        mine = [(gpu, expert) for at, gpu, expert in computed if at == layer]
        assert len(mine) == len({expert for _, expert in mine}) == EXPERTS


def test_links_carry_what_moves(tmp_path: Path):
    """On one switch a byte crosses two links: that of the giver and that of the taker."""
    found = rebalanced(skewed(tmp_path / "skewed.parquet"), 8)
    moved = found.where(kind="rebalance")
    size = size_of()
    assert (moved["bytes"] == size).all()
    sent = sum(found.where(kind=kind)["bytes"].sum() for kind in ("dispatch", "combine"))
    assert found.links["bytes"].sum() == pytest.approx(2 * (sent + moved["bytes"].sum()), rel=1e-12)
    into = {f"nvswitch -> gpu{gpu}": 0.0 for gpu in range(GPUS)}
    for gpu in moved["gpu"].tolist():
        into[f"nvswitch -> gpu{gpu}"] += size
    for gpu in range(GPUS):
        link = f"nvswitch -> gpu{gpu}"
        carried = found.links["bytes"][found.links["link"] == link].sum()
        assert carried >= into[link]
    taken = float(np.sum(moved["end_s"] - moved["start_s"]))
    at_best = len(moved["gpu"]) * size / 450e9  # NVLink of H100, one direction
    assert taken > at_best


def test_experts_of_their_own_sizes_move_as_such(tmp_path: Path):
    relative = [0.5, 0.25] + [1.0] * 6
    moe = BASE["model.moe"].rstrip("}") + f", expert_sizes: {relative}}}"
    trace = skewed(tmp_path / "skewed.parquet")
    found = rebalanced(trace, 8, {"model.moe": moe})
    moved = found.where(kind="rebalance")
    wanted = [relative[expert] * size_of() for expert in moved["expert"].tolist()]
    assert moved["bytes"].tolist() == wanted
    assert set(moved["expert"].tolist()) & {0, 1}
    sent = sum(found.where(kind=kind)["bytes"].sum() for kind in ("dispatch", "combine"))
    assert found.links["bytes"].sum() == pytest.approx(2 * (sent + sum(wanted)), rel=1e-12)


def test_a_copy_stream_carries_one_expert_at_a_time(tmp_path: Path):
    moved = rebalanced(skewed(tmp_path / "skewed.parquet"), 8).where(stream="copy")
    for gpu in set(moved["gpu"].tolist()):
        mine = moved["gpu"] == gpu
        order = np.argsort(moved["start_s"][mine])
        starts, ends = moved["start_s"][mine][order], moved["end_s"][mine][order]
        assert (starts[1:] >= ends[:-1]).all()


def test_loads_that_are_even_move_nothing(tmp_path: Path):
    """Every expert has as many tokens as any other in every step."""
    ids = np.array([[[2 * i % 8, (2 * i + 1) % 8]] * 2 for i in range(64)])
    trace = write_trace(tmp_path / "even.parquet", ids, EXPERTS, [0] * 64)
    for policy in ("balanced", "eplb", "topology-aware"):
        keys = {"rebalance": f"{{every: 1, policy: {policy}, min_gain: 0}}"}
        found = rebalanced(trace, 4, keys)
        assert not len(found.where(kind="rebalance")["gpu"])
        assert found.report.notes[-1] == "rebalance: no layer gained 0%, so nothing was moved"
        assert found.span_bytes == ran(trace, {"traffic.steps": 4}).span_bytes


def test_a_gain_too_small_moves_nothing(tmp_path: Path):
    trace = skewed(tmp_path / "skewed.parquet")
    keys = {"rebalance": "{every: 2, policy: balanced, min_gain: 0.9}"}
    assert not len(rebalanced(trace, 8, keys).where(kind="rebalance")["gpu"])


def test_without_room_nothing_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from simulator.engine import simulate

    trace = skewed(tmp_path / "skewed.parquet")
    monkeypatch.setattr(simulate, "_free", lambda *_: [0.0] * GPUS)
    assert not len(rebalanced(trace, 8).where(kind="rebalance")["gpu"])


def test_every_group_moves_its_own(tmp_path: Path):
    """Two groups of two GPUs: what moves in one moves in the other, from within it."""
    trace = skewed(tmp_path / "skewed.parquet")
    found = rebalanced(trace, 8, {"parallel.ep": 2})
    moved = found.where(kind="rebalance")
    each = [
        sorted(zip(moved["layer"][m], moved["gpu"][m] % 2, moved["expert"][m], strict=True))
        for m in (moved["gpu"] < 2, moved["gpu"] >= 2)
    ]
    assert each[0] == each[1] != []


def test_copies_move_too(tmp_path: Path):
    trace = skewed(tmp_path / "skewed.parquet")
    keys = {"redundant_experts": 4, "rebalance": "{every: 2, policy: eplb}"}
    found = rebalanced(trace, 8, keys)
    assert len(found.where(kind="rebalance")["gpu"])
    assert np.sum(found.loads["rows"]) == 8 * 2 * GPUS * 16 * 2  # steps, layers, tokens, choices


def test_a_run_too_short_says_what_had_not_arrived(tmp_path: Path):
    trace = skewed(tmp_path / "skewed.parquet")
    slow = {
        "topology.build.nvlink.bandwidth": "0.5 GB/s",
        "model.moe": "{experts: 8, top_k: 2, intermediate: 4096, first_dense_layers: 1}",
    }
    found = rebalanced(trace, 3, slow)
    assert "never in force: the run ended before" in found.report.notes[-4]
    assert "had not arrived at the end" in found.report.notes[-1]
    assert rows_of_step(found, 2, 1) == rows_of_step(ran(trace, slow | {"traffic.steps": 3}), 2, 1)


def test_the_same_run_gives_the_same_bytes(tmp_path: Path):
    trace = skewed(tmp_path / "skewed.parquet")
    assert rebalanced(trace, 8).span_bytes == rebalanced(trace, 8).span_bytes


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        ({"rebalance": "{every: 2}"}, "rebalance: contiguous does not look at loads"),
        ({"rebalance": "{every: 2, policy: round-robin}"}, "round-robin does not look at loads"),
        ({"rebalance": "{every: 2, policy: co-activation}"}, "co-activation needs a recording"),
        ({"expert_slots": 1}, "rebalance: moves experts that stay on their GPUs"),
        ({"expert_access": "fetch"}, "rebalance: expert_access: fetch"),
        ({"parallel": "{tp: 2}"}, "rebalance: a plan of layers"),
        ({"rebalance": "{every: 0}"}, "rebalance.every"),
        ({"rebalance": "{every: 2, policy: bal}"}, "not a known placement"),
    ],
)
def test_what_does_not_go_is_refused_in_one_line(keys: dict[str, Any], what: str):
    with pytest.raises(InputError, match=what) as error:
        rebalanced("uniform", 2, keys)
    assert "\n" not in str(error.value)


# --- pieces ------------------------------------------------------------------------------


def test_largest_over_mean_worked_out():
    placement = Placement(
        np.array([[0, 1, 2, 3], [0, 1, 2, 3]], dtype=np.int32), np.array([0, 0, 1, 1], np.int32)
    )
    loads = np.array([[3.0, 3.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    assert imbalance(loads, placement, 2).tolist() == [1.5, 1.0]


def test_gpus_exchange_names_so_that_most_stays():
    old = np.array([0, 1, 2, 3, 4, 5], dtype=np.int32)
    new = np.array([4, 3, 0, 1, 2, 5], dtype=np.int32)  # GPU 1 has what GPU 0 had
    gpu_of = np.array([0, 0, 1, 1, 2, 2], dtype=np.int32)
    one_node = np.zeros(3, dtype=np.int32)
    kept = relabelled(old, new, gpu_of, one_node, 6)
    assert [set(kept[gpu_of == gpu].tolist()) for gpu in range(3)] == [{0, 1}, {3, 4}, {2, 5}]
    # Not across nodes: a placement that knows the nodes stays as it was meant.
    apart = np.array([0, 1, 2], dtype=np.int32)
    assert relabelled(old, new, gpu_of, apart, 6).tolist() == new.tolist()


@pytest.mark.parametrize("seed", range(5))
def test_exchanged_names_leave_the_sets_of_experts(seed: int):
    rng = np.random.default_rng(seed)
    old, new = (rng.permutation(24).astype(np.int32) for _ in range(2))
    gpu_of = np.repeat(np.arange(6, dtype=np.int32), 4)
    node_of = np.array([0, 0, 0, 1, 1, 1], dtype=np.int32)
    kept = relabelled(old, new, gpu_of, node_of, 24)

    def sets(of: np.ndarray, node: int) -> list[tuple[int, ...]]:
        mine = [of[gpu_of == gpu] for gpu in np.flatnonzero(node_of == node)]
        return sorted(tuple(sorted(one.tolist())) for one in mine)

    def stay(of: np.ndarray) -> int:
        return sum(len(np.intersect1d(of[gpu_of == gpu], old[gpu_of == gpu])) for gpu in range(6))

    for node in (0, 1):
        assert sets(kept, node) == sets(new, node)
    assert stay(kept) >= stay(new)
