"""`balance`: its rows against hand counts and recorded figures, its files, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cli.running import Call

from simulator.policies.placement import read_placement

RECORDED = Path(__file__).resolve().parents[3] / "shared" / "reference" / "routing" / "local_only"
COLUMNS = {
    *("policy", "max_over_mean", "worst", "worst_layer", "balancedness", "moved_experts"),
    *("moved_bytes", "replicas", "gpus", "nodes"),
}
EXPERT_BYTES = 3 * 3072 * 3008 * 2  # of moe128: gate, up and down in BF16

# Layer 0 is dense. By hand, on two GPUs: [0 1 | 2 3] has 10 | 2 and 4 | 4.
LOADS = [[0, 0, 0, 0], [8, 2, 1, 1], [1, 3, 2, 2]]


@pytest.fixture
def loads(tmp_path: Path) -> str:
    (tmp_path / "loads.json").write_text(json.dumps({"logical_count": LOADS}))
    return "loads.json"


def rows(call: Call, *argv: str) -> list[dict[str, object]]:
    done = call("balance", *argv, "--json")
    assert done.status == 0, done.err
    found: list[dict[str, object]] = json.loads(done.out)
    return found


def test_rows_by_hand(call: Call, loads: str):
    linear, lpt = rows(
        call, loads, "--gpus", "2", "--policy", "linear,balanced", "--expert-bytes", "1 MB"
    )
    assert set(linear) == set(lpt) == COLUMNS
    assert linear["policy"] == "linear"
    assert linear["max_over_mean"] == pytest.approx((10 / 6 + 1.0) / 2)
    assert (linear["worst"], linear["worst_layer"]) == (pytest.approx(10 / 6), 1)
    assert linear["balancedness"] == pytest.approx((0.6 + 1.0) / 2)
    assert (linear["moved_experts"], linear["moved_bytes"]) == (0, 0.0)
    # LPT: [0 3 | 1 2] has 9 | 3, and 1 and 3 change places; [1 0 | 2 3] is the same as before.
    assert lpt["max_over_mean"] == pytest.approx((9 / 6 + 1.0) / 2)
    assert (lpt["moved_experts"], lpt["moved_bytes"]) == (2, 2e6)


def test_copies_by_hand(call: Call, loads: str):
    (row,) = rows(call, loads, "--gpus", "2", "--replicas", "6", "--policy", "balanced")
    # Layer 1: copies of 0 and, since 0 is on both, of 1: 4 + 1 + 1 each. Layer 2: copies of 1 and
    # 2, so 1.5 + 1 on both, and 2 | 1 of the others.
    assert row["max_over_mean"] == pytest.approx((1.0 + 4.5 / 4) / 2)
    assert row["moved_bytes"] is None
    assert row["replicas"] == 6


def test_the_text_is_a_table_of_80_columns(call: Call, loads: str):
    done = call("balance", loads, "--gpus", "2")
    assert done.status == 0
    header, *lines = done.out.splitlines()
    assert header.split() == [
        *("policy", "max_over_mean", "worst", "worst_layer", "balancedness", "moved_experts"),
    ]
    assert [line.split()[0] for line in lines] == [
        *("contiguous", "round-robin", "balanced", "eplb", "topology-aware"),
    ]
    assert max(map(len, done.out.splitlines())) <= 80
    assert "left out: co-activation: needs to know which experts" in done.err
    assert "layers without tokens left out, taken as dense: 0" in done.err
    err = " ".join(done.err.split())
    assert "from contiguous, one copy of each" in err
    assert "--expert-bytes SIZE or --workload W turns them into bytes" in err


def test_a_recording_on_a_topology(call: Call):
    found = rows(
        call,
        "moe128-python",
        *("--topology", "h100x16-rail", "--replicas", "144", "--workload", "moe128"),
    )
    by_name = {str(row["policy"]): row for row in found}
    assert list(by_name) == [
        *("contiguous", "round-robin", "balanced", "eplb", "topology-aware", "co-activation"),
    ]
    assert {(row["gpus"], row["nodes"]) for row in found} == {(16, 2)}
    imbalance = {name: float(str(row["max_over_mean"])) for name, row in by_name.items()}
    assert imbalance["balanced"] < imbalance["round-robin"] < imbalance["contiguous"]
    assert imbalance["topology-aware"] < imbalance["contiguous"]
    for row in found:
        assert row["moved_bytes"] == pytest.approx(EXPERT_BYTES * float(str(row["moved_experts"])))


def test_a_placement_is_written_and_taken(call: Call, loads: str, tmp_path: Path):
    given = (loads, "--gpus", "2", "--replicas", "6")
    done = call("balance", *given, "--policy", "balanced", "-o", "placed.json")
    assert done.status == 0
    assert done.err.splitlines()[-1] == "kept in placed.json"
    found = read_placement(tmp_path / "placed.json", 2, 2, 4)
    assert found.expert_of.shape == (2, 6)
    assert np.bincount(found.gpu_of).tolist() == [3, 3]
    again, contiguous = rows(
        call, *given, "--policy", "placed.json,contiguous", "--from", "placed.json"
    )
    assert (again["policy"], again["moved_experts"]) == ("placed.json", 0)
    assert contiguous["moved_experts"] != 0
    assert call("balance", *given, "--policy", "eplb", "-o", "placed.json").status == 2


def test_from_a_policy(call: Call, loads: str):
    (row,) = rows(call, loads, "--gpus", "2", "--policy", "balanced", "--from", "balanced")
    assert row["moved_experts"] == 0


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ((), "--gpus is required (or --topology)"),
        (("--gpus", "0"), "--gpus: '0' is not a whole number from 1"),
        (("--gpus", "2", "--replicas", "3"), "--replicas 3: loads.json has 4 experts"),
        (
            ("--gpus", "2", "--replicas", "99"),
            "--replicas 99: 4 experts on 2 GPUs have at most 8 copies, one of each on every GPU; "
            "write 8 or less",
        ),
        (("--gpus", "5"), "--replicas 4: every one of 5 GPUs needs a slot; write 5 or more"),
        (("--gpus", "4", "--nodes", "3"), "--nodes 3 does not divide --gpus 4"),
        (("--gpus", "4", "--topology", "h100x2"), "no topology 'h100x2'"),
        (("--gpus", "40", "--topology", "nvswitch16"), "--gpus 40: nvswitch16 has 16"),
        (
            ("--gpus", "4", "--nodes", "2", "--topology", "nvswitch16"),
            "--nodes 2: 4 GPUs of nvswitch16 are in 1 node; leave --nodes out",
        ),
        (("--gpus", "2", "--policy", "eplp"), "no policy 'eplp' (did you mean 'eplb'?)"),
        (("--gpus", "2", "--policy", ","), "--policy: names no policy"),
        (("--gpus", "2", "--policy", "none.json"), "none.json: cannot be read"),
        (("--gpus", "2", "--policy", "co-activation"), "give a recording of tokens, not loads"),
        (("--gpus", "2", "--policy", "eplb", "--groups", "3"), "3 groups do not divide 4"),
        (("--gpus", "2", "--replicas", "5", "--policy", "eplb"), "5 physical experts"),
        (("--gpus", "2", "-o", "x.json"), "name its policy with --policy"),
        (("--gpus", "2", "--policy", "eplb,linear", "-o", "x.json"), "--policy names 2"),
        (("--gpus", "2", "--expert-bytes", "44"), "--expert-bytes: 44 has no unit"),
        (
            ("--gpus", "2", "--expert-bytes", "4 MB", "--workload", "moe128"),
            "--expert-bytes and --workload both tell the bytes",
        ),
        (
            ("--gpus", "2", "--workload", "moe128"),
            "--workload moe128: a model of 128 experts; loads.json has 4",
        ),
        (("--gpus", "2", "--from", "lineer"), "no policy 'lineer' (did you mean 'linear'?)"),
    ],
)
def test_what_is_refused(call: Call, loads: str, tmp_path: Path, argv: tuple[str, ...], words: str):
    done = call("balance", loads, *argv)
    assert done.status == 2
    assert done.out == ""
    last = done.err.splitlines()[-1]
    assert last.startswith("error: ")
    assert words in last
    assert [entry.name for entry in tmp_path.iterdir()] == ["loads.json"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"logical_count": [[1, NaN]]}', "loads.json"),
        ('{"logical_count": [[1, -2]]}', "loads.json"),
        ('{"logical_count": [[0, 0]]}', "loads.json"),
        ('{"logical_count": []}', "loads.json"),
        ("{", "loads.json"),
    ],
)
def test_loads_that_are_none_are_refused(call: Call, tmp_path: Path, text: str, words: str):
    (tmp_path / "loads.json").write_text(text)
    done = call("balance", "loads.json", "--gpus", "1")
    assert done.status == 2
    assert words in done.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("gpus", "wanted"), [(8, 2.07), (16, 2.57), (32, 3.04), (64, 3.77), (128, 5.36)]
)
def test_deepseek_v3_in_linear_order(call: Call, gpus: int, wanted: float):
    path = RECORDED / "deepseek_v3_prefill_in4096.json"
    if not path.is_file():
        pytest.skip(f"{path} is not there: recordings without a licence are not shipped")
    (row,) = rows(call, str(path), "--gpus", str(gpus), "--policy", "linear")
    assert row["max_over_mean"] == pytest.approx(wanted, abs=0.005)
