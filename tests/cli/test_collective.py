"""`collective`: the table and its rows, sizes and tokens as they are written, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli.running import Call

from simulator.cli.collective import Asked, rows
from simulator.engine.transport import cluster_of
from simulator.spec.load import load_topology
from simulator.spec.transport import Transport

TRANSPORT = """\
name: mine
deduplicate: gpu
costs:
  alltoall: {direct: {launch: 10 us}, two-tier: {launch: 12 us}}
  allreduce: {ring: {launch: 20 us}, nvls: {launch: 5 us}}
  sendrecv: {direct: {launch: 10 us}}
"""
HOP_S = 468e-9  # a link of NVLink in dgx-h100, 450 GB/s
COLUMNS = ["op", "ranks", "bytes", "algorithm", "time_us", "algbw_GBps", "busbw_GBps"]


@pytest.fixture
def on(call: Call, tmp_path: Path) -> Call:
    """The command with the transport above, in a file of its own."""
    (tmp_path / "mine.yaml").write_text(TRANSPORT)

    def run(*argv: str) -> object:
        topology = () if "--topology" in argv else ("--topology", "dgx-h100")
        own = () if "--transport" in argv else ("--transport", "mine.yaml")
        return call("collective", *topology, *own, *argv)

    return run


def test_the_table_is_that_of_nccl_tests(on: Call) -> None:
    done = on("--op", "allreduce")
    assert (done.status, done.err) == (0, "")
    header, *rows = [line.split() for line in done.out.splitlines()]
    assert header == COLUMNS
    assert [int(row[2]) for row in rows] == [8 << i for i in range(27)], "8 B to 512 MiB"
    assert {(row[0], row[1], row[3]) for row in rows} == {("allreduce", "8", "nvls")}
    # The last by hand: (n + 1) / n of the size through each link, four hops, the launch.
    seconds = 5e-6 + 4 * HOP_S + 9 / 8 * 2**29 / 450e9
    assert rows[-1][4:] == [
        f"{seconds * 1e6:.2f}",
        f"{2**29 / seconds / 1e9:.2f}",
        f"{2**29 / seconds / 1e9 * 1.75:.2f}",
    ]
    assert max(map(len, done.out.splitlines())) <= 80


def test_json_is_a_list_of_flat_rows(on: Call) -> None:
    done = on("--op", "alltoall", "-b", "1K", "-e", "1M", "-f", "4", "--ranks", "4", "--json")
    rows = json.loads(done.out)
    assert [row["bytes"] for row in rows] == [1 << i for i in range(10, 21, 2)]
    assert all(sorted(row) == sorted(COLUMNS) for row in rows)
    seconds = 10e-6 + 2 * HOP_S + 3 / 4 * 2**20 / 450e9
    assert rows[-1]["time_us"] == pytest.approx(seconds * 1e6, rel=1e-9)
    assert rows[-1]["algbw_GBps"] == pytest.approx(2**20 / seconds / 1e9, rel=1e-9)
    assert rows[-1]["busbw_GBps"] == pytest.approx(0.75 * 2**20 / seconds / 1e9, rel=1e-9)
    assert {row["algorithm"] for row in rows} == {"direct"}


def test_progress_is_told_row_by_row() -> None:
    on = cluster_of(load_topology("dgx-h100"))
    told: list[tuple[int, int]] = []
    asked = Asked("sendrecv", [8, 16, 32])
    carrier = Transport.model_validate(
        {"name": "x", "costs": {"sendrecv": {"direct": {"launch": "1 us"}}}}
    )
    found = rows(asked, on, carrier, "auto", lambda *done: told.append(done), told.append)
    assert [row["bytes"] for row, _ in found] == [8, 16, 32]
    assert told == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("argv", "sizes"),
    [
        (("-b", "8", "-e", "20"), [8, 16]),
        (("-b", "64k", "-e", "0.125M"), [65536, 131072]),
        (("-b", "1G", "-e", "1G"), [1 << 30]),
        (("-b", "3", "-e", "10", "-f", "1.5"), [3, 4, 6, 9]),
    ],
)
def test_sizes_are_read_as_nccl_tests_does(
    on: Call, argv: tuple[str, ...], sizes: list[int]
) -> None:
    rows = json.loads(on("--op", "sendrecv", *argv, "--json").out)
    assert [row["bytes"] for row in rows] == sizes


DISPATCH = ("--op", "dispatch", "--hidden", "1000", "--topk", "4", "--experts", "32")


def test_dispatch_counts_every_choice(on: Call) -> None:
    done = on(*DISPATCH, "--tokens", "2-9", "--json")
    rows = json.loads(done.out)
    assert [row["tokens"] for row in rows] == [2, 4, 8]
    assert [row["bytes"] for row in rows] == [t * 4 * 2000 for t in (2, 4, 8)]
    for row in rows:
        assert row["algbw_GBps"] == pytest.approx(row["bytes"] / row["time_us"] / 1e3)
        assert row["busbw_GBps"] == pytest.approx(row["algbw_GBps"] * 7 / 8)
        assert row["time_us"] > 10.0
    table = on(*DISPATCH, "--tokens", "1,128").out
    assert table.split()[:4] == ["op", "ranks", "tokens", "bytes"]
    assert max(map(len, table.splitlines())) <= 80


LAW = """\
import numpy as np

def hot(rng, tokens, layers, experts, k, *, previous=None):
    return np.tile(np.arange(k, dtype=np.int16), (tokens, layers, 1))
"""


@pytest.mark.parametrize("op", ["dispatch", "combine"])
def test_one_hot_gpu_is_a_closed_form(
    on: Call, op: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All tokens take experts 0 to 3, which GPU 0 holds: 7 ranks send it, or it sends them, 8 each.
    (tmp_path / "own_law").mkdir()
    (tmp_path / "own_law" / "hot_gpu.py").write_text(LAW)
    monkeypatch.syspath_prepend(tmp_path)
    given = (*DISPATCH[2:], "--tokens", "8", "--routing", "own_law.hot_gpu:hot")
    done = on("--op", op, *given, "--json")
    assert done.status == 0, done.err
    (row,) = json.loads(done.out)
    seconds = 10e-6 + 2 * HOP_S + 7 * 8 * 2000 / 450e9
    assert row["time_us"] == pytest.approx(seconds * 1e6, rel=1e-9)
    assert row["bytes"] == 8 * 4 * 2000
    # Without deduplication every choice is sent.
    done = on("--op", op, *given, "--set", "deduplicate=none", "--json")
    seconds = 10e-6 + 2 * HOP_S + 7 * 8 * 4 * 2000 / 450e9
    assert json.loads(done.out)[0]["time_us"] == pytest.approx(seconds * 1e6, rel=1e-9)


def test_the_same_seed_gives_the_same(on: Call) -> None:
    law = ("--routing", "zipf:1.2", "--tokens", "64", "--json")
    first, again, other = (on(*DISPATCH, *law, "--seed", seed).out for seed in ("1", "1", "2"))
    assert first == again
    assert first != other
    uniform = json.loads(on(*DISPATCH, "--tokens", "64", "--json").out)
    assert json.loads(first)[0]["time_us"] > uniform[0]["time_us"], "a hot GPU is a bottleneck"


def test_a_recorded_routing(on: Call) -> None:
    argv = ("--op", "combine", "--hidden", "512", "--topk", "4", "--experts", "128")
    done = on(*argv, "--tokens", "32", "--routing", "moe128-python", "--json")
    assert done.status == 0, done.err
    assert json.loads(done.out)[0]["bytes"] == 32 * 4 * 1024


def test_set_reaches_topology_and_transport(on: Call) -> None:
    size = ("-b", "1G", "-e", "1G", "--json", "--op", "alltoall")
    plain, slow, dear = (
        json.loads(on(*size, *extra).out)[0]["time_us"]
        for extra in (
            (),
            ("--set", "build.nvlink.bandwidth=45 GB/s"),
            ("--set", "transport.costs.alltoall.direct.launch=1 s",
             "--set", "costs.alltoall.two-tier.launch=2 s"),
        )
    )  # fmt: skip
    wire_us = 7 / 8 * 2**30 / 450e3
    assert plain == pytest.approx(10 + 2 * HOP_S * 1e6 + wire_us, rel=1e-9)
    assert slow == pytest.approx(10 + 2 * HOP_S * 1e6 + 10 * wire_us, rel=1e-9)
    assert dear == pytest.approx(1e6 + 2 * HOP_S * 1e6 + wire_us, rel=1e-9)


def test_a_big_cluster_is_fast_and_says_what_it_left_out(on: Call) -> None:
    direct = ("--topology", "h100x256-rail", "--op", "alltoall", "--algorithm", "direct")
    done = on(*direct, "-b", "512M", "-e", "512M", "--json")
    assert done.err == "note: times are at most 1 us below the exact ones (equal flows)\n"
    (row,) = json.loads(done.out)
    # 248 of 256 parts through a NIC of 50 GB/s, 2 us of latency at least.
    assert row["time_us"] == pytest.approx(10 + 2 + 248 / 256 * 2**29 / 50e3, rel=1e-9)
    tokens = ("--topology", "h100x256-rail", *DISPATCH[:-2], "--experts", "256", "--tokens", "8")
    done = on(*tokens, "--algorithm", "direct", "--set", "transport.deduplicate=none")
    assert done.status == 0


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--op", "alltoal"), "--op: no 'alltoal' (did you mean 'alltoall'?); known: alltoall, "),
        (("--op", "allreduce", "--algorithm", "rnig"), "no algorithm 'rnig' of allreduce"),
        (("--op", "alltoall", "--algorithm", "ring"), "no algorithm 'ring' of alltoall"),
        (
            ("--op", "allreduce", "--algorithm", "tree"),
            "transport mine has no costs for allreduce by",
        ),
        (("--op", "allgather"), "transport mine: no costs for 'allgather'"),
        (("--op", "allreduce", "--topology", "dgx-a100", "--algorithm", "nvls"), "does not reduce"),
        (("--op", "allreduce", "--transport", "nocl"), "no transport 'nocl' (did you mean 'nccl'"),
        (("--op", "allreduce", "--topology", "dgx-h10"), "no topology 'dgx-h10'"),
        (("--op", "allreduce", "--ranks", "9"), "9 ranks: dgx-h100 has 8 GPUs"),
        (("--op", "allreduce", "--ranks", "1"), "at least 2 ranks, not 1"),
        (("--op", "allreduce", "--ranks", "-1"), "--ranks: '-1' is not a whole number from 0"),
        (("--op", "allreduce", "-b", "1M", "-e", "8"), "-b 1M is more than -e 8"),
        (("--op", "allreduce", "-b", "1G"), "-b 1G is more than -e 536870912"),
        (("--op", "allreduce", "-b", "0"), "-b 0: write a size from 1 to 1024T"),
        (("--op", "allreduce", "-e", "9999T"), "-e 9999T: write a size from 1 to 1024T"),
        (("--op", "allreduce", "-e", "8MB"), "-e '8MB' is not a size; write for example 8, 64K"),
        (("--op", "allreduce", "-b", "-8"), "-b '-8' is not a size; write for example 8"),
        (("--op", "allreduce", "-f", "1"), "-f 1: write a number above 1"),
        (("--op", "allreduce", "-f", "nan"), "-f nan: write a number above 1"),
        (("--op", "allreduce", "-f", "two"), "-f 'two' is not a number; write for example 2"),
        (("--op", "allreduce", "-f", "1.01"), "-f 1.01 gives more than 1000 rows; write more"),
        (("--op", "allreduce", "--tokens", "8"), "--tokens does not go with --op allreduce"),
        (("--op", "allreduce", "--seed", "8"), "--seed does not go with --op allreduce"),
        ((*DISPATCH, "-b", "8"), "-b does not go with --op dispatch, which takes --tokens"),
        ((*DISPATCH, "--tokens", "0"), "--tokens 0: write numbers from 1 to 1048576"),
        ((*DISPATCH, "--tokens", "1,x"), "--tokens '1,x': write 128, 1,16,128 or 16-128"),
        ((*DISPATCH, "--tokens", "9-8"), "--tokens 9-8: 9 is more than 8"),
        ((*DISPATCH, "--tokens", "9" * 40), "write numbers from 1 to 1048576"),
        ((*DISPATCH, "--hidden", "0"), "--hidden 0: write 1 or more"),
        ((*DISPATCH, "--topk", "33"), "--topk 33 of 32 experts: write fewer"),
        ((*DISPATCH, "--experts", "7"), "--experts 7 on 8 ranks: every rank needs one"),
        ((*DISPATCH, "--experts", "99999"), "99999"),
        ((*DISPATCH, "--routing", "zipff"), "no trace or law 'zipff' (did you mean 'zipf'?)"),
        ((*DISPATCH, "--routing", "moe128-python"), "fewer than the 128 of the trace"),
        (
            ("--op", "allreduce", "--set", "scale.x=1"),
            "unknown key 'scale' (did you mean 'scales'?)",
        ),
        (("--op", "allreduce", "--set", "sms=-1"), "--set sms: "),
        (("--op", "allreduce", "--set", "bild=1"), "--set bild: unknown key 'bild'"),
        ((), "the following arguments are required: --op"),
    ],
)
def test_wrong_arguments(on: Call, argv: tuple[str, ...], said: str) -> None:
    done = on(*argv)
    assert (done.status, done.out, done.err.count("\n")) == (2, "", 1), done.err
    assert said in done.err
