"""Readers of measured tables: each shape, and how a bad table is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.errors import InputError
from simulator.studies.validation.measured import read_measured
from simulator.studies.validation.published import logical_bytes, read_published

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference" / "measured"

NCCL = """\
# a comment
system,version,op_name,num_gpus,message_bytes,time_us
h100_sxm,2.29,all_gather,8,1048576,17.08
h100_sxm,2.29,reduce_scatter,2,512,6.19
"""

# As nccl-tests 2.17 prints it, with a line of NCCL's own log in between.
TESTS = """\
# nccl-tests version 2.17.8 nccl-headers=23004 nccl-library=23004
# Collective test starting: all_reduce_perf
# nThread 1 nGpus 2 minBytes 1048576 maxBytes 4194304 step: 2(factor) warmup iters: 1 iters: 20
#
# Using devices
#  Rank  0 Group  0 Pid   4711 on      node1 device  0 [0000:1b:00] NVIDIA H100 80GB HBM3
#  Rank  1 Group  0 Pid   4711 on      node1 device  1 [0000:43:00] NVIDIA H100 80GB HBM3
node1:4711:4711 [0] NCCL INFO Bootstrap: Using eth0
#
#                                                  out-of-place                   in-place
#   size    count   type   redop    root     time   algbw   busbw #wrong     time   algbw   busbw
#    (B)  (elems)                            (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)
       0        0  float     sum      -1     6.01    0.00    0.00      0     5.99    0.00    0.00
 1048576   262144  float     sum      -1    14.55   72.07   72.07      0    14.01   74.84   74.84
 2097152   524288  float     sum      -1    27.59   76.01   76.01    N/A    27.00   77.67   77.67
# Out of bounds values : 0 OK
# Avg bus bandwidth    : 74.5
"""

# An older version: no root, the operation is not named, alltoall has nothing under redop.
OLD = """\
#   Rank  0 Pid  1 on box device  0 [0x07] NVIDIA A100-SXM4-80GB
#   Rank  1 Pid  2 on box device  1 [0x0f] NVIDIA A100-SXM4-80GB
#
#    size     count   type  redop    time  algbw  busbw  error    time  algbw  busbw  error
#     (B)   (elems)                  (us) (GB/s) (GB/s)           (us) (GB/s) (GB/s)
268435456   1048576  float         520935   0.52   0.51  0e+00  519562   0.52   0.51  1e+00
"""

LOW_LATENCY = """\
version,nodes,hidden,tokens_per_rank,topk,experts,dispatch_us,combine_us
0.5,2,7168,128,8,256,102.1,186.17
"""

NORMAL = """\
nodes,hidden,tokens_per_rank,topk,experts,dispatch_sms,dispatch_transmit_us,dispatch_notify_us,combine_sms,combine_transmit_us
1,7168,4096,8,256,24,498.4,0,20,960.6
"""


@pytest.fixture
def read(tmp_path):
    """Read a text as the file t.csv."""

    def reading(text: str, operation: str | None = None):
        path = tmp_path / "t.csv"
        path.write_text(text)
        return read_measured(path, "t.csv", operation)

    return reading


def test_nccl_csv(read):
    first, second = read(NCCL)
    assert first.where == "t.csv:3"
    assert (first.system, first.operation, first.ranks) == ("h100_sxm", "allgather", 8)
    assert (first.size_bytes, first.time_s) == (1048576, pytest.approx(17.08e-6))
    assert (second.operation, second.ranks) == ("reducescatter", 2)


def test_nccl_tests_text(read):
    first, second = read(TESTS)
    assert (first.operation, first.ranks, first.where) == ("allreduce", 2, "t.csv:14")
    assert first.system == "NVIDIA H100 80GB HBM3"
    assert (first.size_bytes, first.time_s) == (1048576, pytest.approx(14.55e-6))
    assert (second.size_bytes, second.time_s) == (2097152, pytest.approx(27.59e-6))


def test_nccl_tests_text_of_an_older_version(read):
    (row,) = read(OLD, "alltoall")
    assert (row.operation, row.ranks, row.time_s) == ("alltoall", 2, pytest.approx(0.520935))
    with pytest.raises(InputError) as refused:
        read(OLD)
    assert str(refused.value) == (
        "t.csv: does not say which operation was timed; give it with --op, one of allreduce, "
        "allgather, reducescatter, alltoall, sendrecv"
    )


def test_deepep_csvs(read):
    dispatch, combine = read(LOW_LATENCY)
    assert (dispatch.operation, dispatch.ranks, dispatch.tokens) == ("dispatch", 16, 128)
    assert (dispatch.hidden, dispatch.top_k, dispatch.experts) == (7168, 8, 256)
    assert dispatch.time_s == pytest.approx(102.1e-6)
    assert (combine.operation, combine.time_s) == ("combine", pytest.approx(186.17e-6))
    dispatch, combine = read(NORMAL)
    assert (dispatch.sms, combine.sms) == (24, 20)
    assert (dispatch.time_s, combine.time_s) == (pytest.approx(498.4e-6), pytest.approx(960.6e-6))


FAULTS = [
    (NCCL.replace("17.08", "fast"), "t.csv:3: time_us: 'fast' is not a number"),
    (NCCL.replace("17.08", "nan"), "t.csv:3: time_us: 'nan' is not a number"),
    (NCCL.replace("17.08", "-3"), "t.csv:3: time_us: -3 must be > 0"),
    (NCCL.replace("17.08", "0"), "t.csv:3: time_us: 0 must be > 0"),
    (NCCL.replace(",8,", ",1,"), "t.csv:3: num_gpus: 1 must be >= 2"),
    (NCCL.replace(",8,", ",2.5,"), "t.csv:3: num_gpus: 2.5 is not a whole number"),
    (NCCL.replace("all_gather", "allgather"), "t.csv:3: op_name: 'allgather' is none of "
     "all_reduce, all_gather, reduce_scatter, alltoall, sendrecv (did you mean 'all_gather'?)"),
    (NCCL.replace(",17.08", ""), "t.csv:3: 5 fields where the header has 6"),
    (NCCL.replace("message_bytes", "messagebytes"), "t.csv: no column 'message_bytes' "
     "(did you mean 'messagebytes'?); the header needs op_name, num_gpus, message_bytes, time_us"),
    (NCCL.split("h100")[0], "t.csv: there is no row below the header"),
    ("", "t.csv: no table of measurements: neither nccl-tests' output nor a known CSV"),
    (LOW_LATENCY.replace(",8,256", ",300,256"), "t.csv:2: topk: 300 of 256 experts"),
    (TESTS.replace("#  Rank", "#  rank"), "t.csv: no line '#  Rank  0 ...', which nccl-tests "
     "prints above its table for each GPU; give its whole output"),
    (TESTS.replace("14.55", "slow"), "t.csv:14: time: 'slow' is not a number"),
    (TESTS.replace("all_reduce_perf", "scatter_perf"), "t.csv:2: scatter_perf is none of "
     "all_reduce, all_gather, reduce_scatter, alltoall, sendrecv"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line"), FAULTS, ids=[line[:40] for _, line in FAULTS])
def test_a_bad_table_is_one_line(read, text, line):
    with pytest.raises(InputError) as refused:
        read(text)
    assert str(refused.value) == line


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"^none\.csv: no such file$"):
        read_measured(tmp_path / "none.csv", "none.csv")


def test_published_bandwidths_become_times(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text(
        "kernels,ep,phase,latency_us,bandwidth_GBps\nlow-latency,16,dispatch,118,63\n"
        "normal,16,combine,,43\n"
    )
    latency, bandwidth = read_published(path, "p.csv")
    assert latency.measured.time_s == pytest.approx(118e-6)
    assert latency.measured.tokens == 128
    # Two nodes: a token misses one with 128 of 256 experts eight times without replacement.
    missed = 1.0
    for drawn in range(8):
        missed *= (128 - drawn) / (256 - drawn)
    bytes_each = 4096 * 2 * (1 - missed) * 7168 * 2
    assert logical_bytes(16, "combine") == pytest.approx(bytes_each)
    assert bandwidth.measured.time_s == pytest.approx(bytes_each / 43e9)


def test_the_limit_of_four_nodes_changes_the_count():
    # Uniform over eight nodes it would be 8 (1 - (7/8)^8) = 5.25 or so; four nodes hold at most 4.
    counted = logical_bytes(64, "dispatch") / (4096 * 7168 * (1 + 4 / 128))
    assert 3.9 < counted < 4.0
    # Four nodes of four are no limit: 4 (1 - C(192, 8) / C(256, 8)).
    missed = 1.0
    for drawn in range(8):
        missed *= (192 - drawn) / (256 - drawn)
    counted = logical_bytes(32, "dispatch") / (4096 * 7168 * (1 + 4 / 128))
    assert counted == pytest.approx(4 * (1 - missed))


def test_a_published_table_that_is_none(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("kernels,ep,phase\nnormal,16,combine\n")
    with pytest.raises(InputError, match=r"^p\.csv:2: not a row of DeepEP's tables: "):
        read_published(path, "p.csv")


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the full tables are not there")
@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("nccl_h100_a100.csv", 504),
        ("deepep_low_latency_hopper.csv", 2 * 41),
        ("deepep_normal_hopper.csv", 2 * 299),
    ],
)
def test_the_full_tables_are_read(name, rows):
    found = read_measured(REFERENCE / name, name)
    assert len(found) == rows
    assert min(row.time_s for row in found) > 4e-6
