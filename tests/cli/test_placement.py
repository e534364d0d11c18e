"""`placement`: the table, its figures against counting by hand, and what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli.running import Call, listing

from simulator.engine.collectives import counted
from simulator.engine.transport import algorithms, cluster_of, lay_tokens, time_of
from simulator.spec.load import load_topology
from simulator.spec.transport import load_transport
from simulator.studies.placing import replayed, spaced

EXPERTS, LAYERS = 32, 6


@pytest.fixture(scope="module")
def loads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Loads with two hot neighbours in each of 6 layers; layer 0 is dense."""
    rng = np.random.default_rng(3)
    counts = rng.integers(80, 120, (LAYERS + 1, EXPERTS))
    counts[:, 4:6] = 400
    counts[0] = 0
    path = tmp_path_factory.mktemp("loads") / "loads.json"
    path.write_text(json.dumps({"logical_count": counts.tolist()}))
    return path


def rows(call: Call, *argv: str | Path) -> list[dict[str, Any]]:
    done = call("placement", *map(str, argv), "--json")
    assert done.status == 0, done.err
    found: list[dict[str, Any]] = json.loads(done.out)
    return found


SMALL = ("--topology", "h100x16-rail", "--tokens", "32", "--topk", "4", "--hidden", "1024")


def test_a_row_for_each_topology_and_policy(call: Call, loads: Path):
    found = rows(call, loads, *SMALL[2:], "--topology", "h100x16-rail,nvswitch16")
    names = ["contiguous", "balanced", "eplb", "topology-aware"]
    assert [(row["topology"], row["policy"]) for row in found] == [
        (topology, name) for topology in ("h100x16-rail", "nvswitch16") for name in names
    ]
    for row in found:
        assert row["alltoall_us"] == pytest.approx(row["dispatch_us"] + row["combine_us"])
        assert row["alltoall_us"] <= row["alltoall_p99_us"] <= row["alltoall_worst_us"]
        assert 0 < row["hottest_link_busy"] <= 1
        assert row["max_over_mean"] >= 1
        assert row["layers"] == LAYERS
        assert row["worst_layer"] in range(1, LAYERS + 1), "numbers of the file"
        assert row["slots"] == EXPERTS
        assert row["expert_GiB"] == pytest.approx(2 * LAYERS * 3 * 1024 * 2048 / 2**30)
    assert {row["nodes"] for row in found[:4]} == {2}
    assert {row["nodes"] for row in found[4:]} == {1}
    assert found[0]["moved_bytes"] == 0
    assert found[1]["moved_bytes"] > 0


def test_copies_go_to_those_that_look_at_loads(call: Call, loads: Path):
    keys = (loads, *SMALL, "--redundant", "16", "--expert-bytes", "1 MiB")
    found = {row["policy"]: row for row in rows(call, *keys)}
    assert {name: row["slots"] for name, row in found.items()} == {
        "contiguous": 32, "balanced": 48, "eplb": 48, "topology-aware": 48
    }  # fmt: skip
    assert found["eplb"]["expert_GiB"] == pytest.approx(3 * LAYERS / 1024)
    # Two hot neighbours on one GPU of 16: 800 of some 3,800 choices, 3.4 times the mean.
    assert found["contiguous"]["max_over_mean"] > 3
    for name in ("balanced", "eplb", "topology-aware"):
        assert found[name]["max_over_mean"] < 0.6 * found["contiguous"]["max_over_mean"]
        assert found[name]["alltoall_us"] < found["contiguous"]["alltoall_us"]
    least = rows(call, *keys, "--replica-choice", "least-loaded", "--policy", "eplb")
    assert least[0]["max_over_mean"] < found["eplb"]["max_over_mean"]


@pytest.mark.parametrize("transport", ["deepep-ll", "deepep-normal", "nccl"])
def test_times_are_those_of_the_collectives(call: Call, transport: str):
    """One layer of a recording, experts in order: laid by hand, as `collective` does."""
    keys = ("moe128-python", *SMALL[:4], "--layers", "1", "--policy", "contiguous")
    (row,) = rows(call, *keys, "--transport", transport)
    cluster = cluster_of(load_topology("h100x16-rail"))
    of = load_transport(transport)
    from simulator.spec.find import find

    trace = find("trace", "moe128-python")
    layer = row["worst_layer"]
    ids, source = replayed(trace, [layer], 32)(16)
    owner = (np.arange(128) // 8).astype(np.int32)
    counts = counted(cluster.ranks, np.ascontiguousarray(ids[:, 0]), source, owner, of.deduplicate)
    for op in ("dispatch", "combine"):
        times = [
            time_of(lay_tokens(cluster, of, op, name, counts, 7168)).seconds
            for name in algorithms(cluster, of, op)
        ]
        assert row[f"{op}_us"] == pytest.approx(1e6 * min(times), rel=1e-9)
    taken = owner[ids.astype(int)].ravel()
    per_gpu = np.bincount(taken, minlength=16)
    assert row["max_over_mean"] == pytest.approx(per_gpu.max() / per_gpu.mean())


def test_the_coflow_is_near_the_exact_time(call: Call, loads: Path):
    exact = rows(call, loads, *SMALL)
    coflow = rows(call, loads, *SMALL, "--network", "coflow")
    for one, other in zip(exact, coflow, strict=True):
        assert other["alltoall_us"] == pytest.approx(one["alltoall_us"], rel=0.1)
        assert other["hottest_link"] == one["hottest_link"]
        assert (one["network"], other["network"]) == ("exact", "coflow")
    told = call("placement", str(loads), *SMALL, "--network", "coflow").err
    assert "times are approximate" in told


def test_the_table_fits_and_says_what_it_is(call: Call, loads: Path):
    done = call("placement", str(loads), *SMALL, "--redundant", "16", "--layers", "3")
    lines = done.out.splitlines()
    assert lines[0] == "h100x16-rail: 16 GPUs in 2 nodes"
    assert lines[1].split() == [
        "policy", "us", "worst", "max/mean", "GiB", "moved", "hottest", "link"
    ]  # fmt: skip
    assert len(lines) == 6
    assert max(map(len, [*lines, *done.err.splitlines()])) <= 80
    assert "mean of 3 of 6 layers" in " ".join(done.err.split())
    assert "48 slots per layer; policies that are blind to loads: 32" in done.err
    assert "taken as dense: 0" in done.err


def test_rows_as_csv_beside_the_table(call: Call, loads: Path, tmp_path: Path):
    out = tmp_path / "rows.csv"
    keys = (loads, *SMALL, "--policy", "contiguous,eplb")
    wanted = rows(call, *keys)
    assert call("placement", *map(str, keys), "-o", str(out)).status == 0
    with out.open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["policy"] for row in found] == ["contiguous", "eplb"]
    assert [float(row["alltoall_us"]) for row in found] == [row["alltoall_us"] for row in wanted]
    before = out.read_bytes()
    done = call("placement", *map(str, keys), "-o", str(out))
    assert done.status == 2
    assert out.read_bytes() == before
    assert listing(tmp_path) == ["rows.csv"]


def test_a_placement_file_is_tried_out_too(call: Call, loads: Path, tmp_path: Path):
    order = list(range(EXPERTS))
    path = tmp_path / "mine.json"
    owner = [e // 2 for e in order]
    path.write_text(json.dumps({"gpus": 16, "expert_of": [order], "gpu_of": owner}))
    usual, mine = rows(call, loads, *SMALL, "--policy", f"contiguous,{path}")
    assert {k: v for k, v in mine.items() if k != "policy"} == {
        k: v for k, v in usual.items() if k != "policy"
    }


def test_a_recording_knows_which_experts_fire_together(call: Call):
    keys = ("--topology", "h100x16-rail", "--tokens", "32", "--layers", "2")
    found = rows(call, "moe128-python", *keys, "--policy", "contiguous,co-activation",
                 "--workload", "moe128", "--transport", "deepep-normal")  # fmt: skip
    assert [row["policy"] for row in found] == ["contiguous", "co-activation"]
    assert found[0]["alltoall_us"] != found[1]["alltoall_us"]


def test_a_workload_tells_layers_and_bytes(call: Call):
    keys = ("--topology", "nvswitch16", "--layers", "1", "--policy", "contiguous,round-robin")
    plain, _ = rows(call, "moe128-python", *keys, "--expert-bytes", "1 MiB")
    assert plain["expert_GiB"] == 8 * 8 / 1024, "8 experts on a GPU, 8 recorded layers"
    told, moved = rows(call, "moe128-python", *keys, "--workload", "moe128")
    size = 3 * 3072 * 3008 * 2
    assert told["expert_GiB"] == pytest.approx(8 * 36 * size / 2**30), "36 layers of the model"
    # Round-robin leaves on GPU g of the experts 8 g ... 8 g + 7 those that are g modulo 16.
    stay = sum(e // 8 == e % 16 for e in range(128))
    assert moved["moved_bytes"] == pytest.approx((128 - stay) * 36 * size)


def test_the_same_call_gives_the_same_rows(call: Call, loads: Path):
    assert rows(call, loads, *SMALL, "--seed", "3") == rows(call, loads, *SMALL, "--seed", "3")
    assert rows(call, loads, *SMALL, "--seed", "3") != rows(call, loads, *SMALL, "--seed", "4")


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        (("--policy", "evenly"), "no policy 'evenly'"),
        (("--policy", ","), "--policy: names nothing"),
        (("--policy", "co-activation"), "co-activation: needs to know"),
        (("--ep", "64"), "--ep 64: more GPUs than the 32 experts"),
        (("--ep", "24"), "--ep 24: h100x16-rail has 16 GPUs"),
        (("--topk", "33"), "--topk 33"),
        (("--topk", "0"), "0 is too few"),
        (("--redundant", "3"), "no multiple of 16 GPUs"),
        (("--workload", "moe128"), "a model of 128 experts"),
        (("--expert-bytes", "44"), "--expert-bytes"),
        (("--transport", "pigeon"), "pigeon"),
        (("--topology", "h100x99"), "h100x99"),
        (("--tokens", "many"), "not a whole number"),
        (("--network", "fast"), "invalid choice"),
    ],
)
def test_what_does_not_go_is_refused_in_one_line(
    call: Call, loads: Path, argv: tuple[str, str], what: str
):
    done = call("placement", str(loads), *SMALL, *argv)
    assert (done.status, done.out) == (2, "")
    assert what in done.err
    assert done.err.count("\n") == 1


def test_policies_without_an_answer_are_left_out_unless_named(call: Call, tmp_path: Path):
    path = tmp_path / "loads.json"
    path.write_text(json.dumps({"logical_count": np.ones((2, 30)).tolist()}))
    done = call("placement", str(path), *SMALL, "--json")
    assert done.status == 0
    names = [row["policy"] for row in json.loads(done.out)]
    assert names == ["contiguous", "balanced", "topology-aware"]
    assert "note: left out: h100x16-rail: eplb: 30 physical experts" in done.err
    named = call("placement", str(path), *SMALL, "--policy", "eplb,balanced")
    assert named.status == 2
    assert named.err.startswith("error: eplb: 30 physical experts are no multiple of 16 GPUs")


def test_a_missing_file_is_told(call: Call):
    done = call("placement", "no-such-loads.json", *SMALL)
    assert done.status == 2
    assert "no-such-loads.json" in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("layers", "wanted", "found"),
    [(8, 8, list(range(8))), (3, 8, [0, 1, 2]), (58, 8, [0, 8, 16, 24, 33, 41, 49, 57]),
     (9, 1, [4]), (10, 2, [0, 9])],
)  # fmt: skip
def test_layers_are_evenly_spaced(layers: int, wanted: int, found: list[int]):
    assert spaced(layers, wanted) == found
