"""Recorded traces: hand-written ones in the dialect of Kineto, the figures counted by hand."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from simulator.errors import InputError
from simulator.results.intervals import COMMUNICATING, COMPUTING, COPYING
from simulator.results.kineto_read import read_traces, sort_of, trace_files
from simulator.results.trace_summary import render, summarize

# Seconds since 1970 in us, as profilers before PyTorch 2.2 wrote them: more digits than a float.
SINCE_1970 = 1_719_953_234_567_123


def event(
    cat: str, name: str, ts: object, dur: object, stream: int = 7, **more: Any
) -> dict[str, Any]:
    args = {"device": 0, "stream": stream, "correlation": 1} if cat != "cpu_op" else {}
    return {"ph": "X", "cat": cat, "name": name, "pid": 0, "tid": stream, "ts": ts, "dur": dur,
            "args": args} | more  # fmt: skip


def kernels(shift: Any = 0) -> list[dict[str, Any]]:
    """100 us: compute 0-30 and 50-70, all-gather 20-60 on another stream, a copy 65-80, and a
    kernel of 10 us that ends it.
    """
    return [
        event("kernel", "void gemm<float>(...)", shift + 0, 30),
        event("kernel", "ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)",
              shift + 20, 40, 20),
        event("kernel", "void softmax(...)", shift + 50, 20),
        event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", shift + 65, 15, 21),
        event("gpu_memset", "Memset (Device)", shift + 90, 10),
    ]  # fmt: skip


# By hand: compute 30 + 20 of 100 us; communication 40, of which 20-30 and 50-60 under compute, so
# 20 exposed; copies 65-80 and 90-100, of which 65-70 under compute, so 20 exposed; idle 80-90.
BY_HAND = {
    "compute": 0.5,
    "exposed_communication": 0.2,
    "exposed_copies": 0.2,
    "idle": 0.1,
}


def write(path: Path, events: list[Any], **head: Any) -> Path:
    text = json.dumps({"schemaVersion": 1, **head, "traceEvents": events, "traceName": "x"})
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["host_1.pt.trace.json", "a.json.gz"])
@pytest.mark.parametrize("shift", [0, SINCE_1970])
def test_figures_are_those_counted_by_hand(tmp_path: Path, name: str, shift: int) -> None:
    marks = [event("user_annotation", f"ProfilerStep#{i}", shift + 50 * i, 50) for i in range(2)]
    others = [
        {"ph": "M", "name": "process_name", "pid": 0, "tid": 0, "args": {"name": "python"}},
        event("cpu_op", "aten::mm", shift + 0, 500),
        event("cuda_runtime", "cudaLaunchKernel", shift + 0, 5),
        {"ph": "i", "name": "Record Window End", "ts": shift},
    ]
    path = write(tmp_path / name, [*others, *marks, *kernels(shift)])
    found = summarize(read_traces(path))
    assert found["breakdown"] == pytest.approx(BY_HAND, rel=1e-12)
    assert (found["gpus"], found["kernels"], found["steps"]) == (1, 5, 2)
    assert found["window_s"] == pytest.approx(100e-6, rel=1e-12)
    assert found["breakdown_s"]["compute"] == pytest.approx(25e-6, rel=1e-12)
    assert found["step_time_s"]["mean"] == pytest.approx(50e-6, rel=1e-12)
    assert found["overlap_achieved"] == pytest.approx(0.5)
    assert found["busy"] == pytest.approx({"compute": 0.5, "communication": 0.4, "copies": 0.25})
    busy = {
        row["stream"]: (row["kernels"], round(1e6 * row["busy_s"], 6)) for row in found["streams"]
    }
    assert busy == {"7": (3, 60), "20": (1, 40), "21": (1, 15)}
    assert found["notes"] == []
    text = render(found)
    assert max(map(len, text.splitlines())) <= 80
    assert "exposed communication" in text
    assert "20.0 %" in text


def test_fractions_of_times_since_1970_keep_their_digits(tmp_path: Path) -> None:
    # Nanoseconds: 0.25 us is the distance of neighbouring floats here.
    text = ",".join(
        f'{{"ph":"X","cat":"kernel","name":"k","ts":{SINCE_1970}.{at:03d},"dur":0.{dur:03d},"args":{{}}}}'
        for at, dur in ((1, 100), (101, 99), (300, 7))
    )
    (tmp_path / "t.json").write_text(f"[{text}]")
    gpu = read_traces(tmp_path / "t.json").gpus[0]
    assert gpu.window_s == pytest.approx(306e-9, rel=1e-9)
    assert gpu.parts_s[0] == pytest.approx(206e-9, rel=1e-9)


def test_ranks_and_devices(tmp_path: Path) -> None:
    write(tmp_path / "x_rank-3.json", kernels())
    write(tmp_path / "y.json", kernels(), distributedInfo={"rank": 12})
    two = [event("kernel", "k", 0, 5), event("kernel", "k", 0, 5, args={"device": 1, "stream": 7})]
    write(tmp_path / "z.json", two)
    (tmp_path / "notes.txt").write_text("no trace")
    found = read_traces(tmp_path)
    assert [(gpu.rank, gpu.device) for gpu in found.gpus] == [
        (3, "0"),
        (12, "0"),
        (2, "0"),
        (2, "1"),
    ]
    write(tmp_path / "x_rank-10.json", kernels())
    assert [path.name for path in trace_files(tmp_path)][:2] == ["x_rank-3.json", "x_rank-10.json"]


@pytest.mark.parametrize(
    ("name", "sort"),
    [
        ("ncclKernel_AllReduce_RING_LL_Sum_float", COMMUNICATING),
        ("ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)", COMMUNICATING),
        ("void deep_ep::intranode::dispatch<8, 768>(int4*, ...)", COMMUNICATING),
        ("nvshmemi_transfer", COMMUNICATING),
        ("void vllm::cross_device_reduce_1stage<__nv_bfloat16, 8>(...)", COMMUNICATING),
        ("Memcpy PtoP (Device -> Device)", COPYING),
        ("Memset (Device)", COPYING),
        ("void cutlass::Kernel2<...>(...)", COMPUTING),
        ("void at::native::reduce_kernel<512, 1, ...>", COMPUTING),
    ],
)
def test_kernels_are_sorted_by_name(name: str, sort: int) -> None:
    assert sort_of(name) == sort


def test_a_profile_without_a_gpu_says_so(tmp_path: Path) -> None:
    # Nested operators on one thread, the inner ones of no further time.
    operators = [("aten::linear", 0, 10), ("aten::addmm", 2, 6), ("gloo:all_reduce", 12, 8)]
    path = write(tmp_path / "cpu.json", [event("cpu_op", *one) for one in operators])
    with pytest.raises(InputError, match="no GPU kernels, but 3 operators on the CPU") as caught:
        read_traces(path)
    assert "--cpu" in str(caught.value)
    found = summarize(read_traces(path, cpu=True))
    assert found["breakdown"]["compute"] == pytest.approx(0.5)
    assert found["breakdown"]["exposed_communication"] == pytest.approx(0.4)
    assert found["breakdown"]["idle"] == pytest.approx(0.1)


def test_what_has_no_usable_time_is_counted_and_left_out(tmp_path: Path) -> None:
    bad = '{"ph":"X","cat":"kernel","name":"k","ts":%s,"dur":%s,"args":{}}'
    texts = [
        bad % one for one in (("NaN", 1), (1, -1), (1, "null"), ('"x"', 1), ("1e300", 1), (2, 3))
    ]
    (tmp_path / "t.json").write_text('{"traceEvents":[7,null,' + ",".join(texts) + "]}")
    found = summarize(read_traces(tmp_path / "t.json"))
    assert found["kernels"] == 1
    assert found["window_s"] == pytest.approx(3e-6)
    assert found["notes"] == ["t.json: 7 events without a usable time were left out"]
    (tmp_path / "t.json").write_text('{"traceEvents":[7,' + texts[-1] + "]}")
    found = summarize(read_traces(tmp_path / "t.json"))
    assert found["notes"] == ["t.json: 1 event without a usable time was left out"]


@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
def test_a_file_that_was_cut_off_gives_what_is_there(tmp_path: Path, suffix: str) -> None:
    whole = write(tmp_path / f"a{suffix}", [event("kernel", "k", 10 * i, 5) for i in range(9000)])
    half = whole.read_bytes()[: whole.stat().st_size // 2]
    (tmp_path / f"b{suffix}").write_bytes(half)
    found = summarize(read_traces(tmp_path / f"b{suffix}"))
    assert 1000 < found["kernels"] < 9000
    assert found["breakdown"]["compute"] == pytest.approx(0.5, rel=1e-3)
    assert "the file was cut off" in found["notes"][0]
    (tmp_path / f"c{suffix}").write_bytes(half[:20])
    with pytest.raises(InputError, match=r"c\.json"):
        read_traces(tmp_path / f"c{suffix}")


def test_of_a_folder_what_is_no_trace_is_told(tmp_path: Path) -> None:
    write(tmp_path / "rank0.json", kernels())
    (tmp_path / "rank1.json").write_text('{"a": 1}')
    found = read_traces(tmp_path)
    assert len(found.gpus) == 1
    assert found.notes == [f"{tmp_path}/rank1.json: is no trace: it has no list 'traceEvents'"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "begins with { or ["),
        ("hello", "begins with { or ["),
        ("{}", "no list 'traceEvents'"),
        ('{"traceEvents": 3}', "no list 'traceEvents'"),
        ('{"traceEvents": []}', "no GPU kernels"),
        ("{3: 4}", "no key where one should stand"),
        ('{"traceEvents":[' + "[" * 200_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
    ],
)
def test_what_is_no_trace_is_refused_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(InputError) as caught:
        read_traces(tmp_path / "t.json")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_archives_and_bombs_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "t.json", "w") as archive:
        archive.writestr("trace.json", "[]")
    with pytest.raises(InputError, match="is a zip archive"):
        read_traces(tmp_path / "t.json")
    with gzip.open(tmp_path / "b.json.gz", "wb", compresslevel=9) as file:
        file.write(b'{"traceEvents":[')
        for _ in range(300):
            file.write(b" " * (1 << 20))
    with pytest.raises(InputError, match="unpack to more than"):
        read_traces(tmp_path / "b.json.gz")


def test_entries_longer_than_a_piece_are_read(tmp_path: Path) -> None:
    long = {"ph": "X", "cat": "cpu_op", "name": "x" * 3_000_000, "ts": 1, "dur": 1}
    path = write(tmp_path / "t.json", [long, *kernels()], properties=["y" * 2_000_000])
    assert summarize(read_traces(path))["breakdown"] == pytest.approx(BY_HAND)


def test_members_of_gzip_files_follow_one_another(tmp_path: Path) -> None:
    text = json.dumps(kernels()).encode()
    (tmp_path / "t.json.gz").write_bytes(gzip.compress(text[:300]) + gzip.compress(text[300:]))
    assert summarize(read_traces(tmp_path / "t.json.gz"))["breakdown"] == pytest.approx(BY_HAND)


def test_what_pytorch_itself_writes(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="no PyTorch here, which would record a profile")
    path = tmp_path / "host.pt.trace.json"
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 64))
    profiler = torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU],
        schedule=torch.profiler.schedule(wait=1, warmup=1, active=3),
        on_trace_ready=lambda of: of.export_chrome_trace(str(path)),
    )
    with profiler:
        for _ in range(5):
            model(torch.randn(8, 64)).sum().backward()
            profiler.step()
    with pytest.raises(InputError, match="recorded without a GPU"):
        read_traces(path)
    found = summarize(read_traces(path, cpu=True))
    # Again, another way: each thread's time with an operator under way, in whole ns.
    events = json.loads(path.read_text(), parse_float=lambda text: round(float(text) * 1000))[
        "traceEvents"
    ]
    ns = [(e["ts"], e["ts"] + e["dur"]) for e in events if e.get("cat") == "cpu_op"]
    first, busy, until = min(ns)[0], 0, 0
    for begin, end in sorted(ns):
        busy += max(end - max(begin, until), 0)
        until = max(until, end)
    assert found["kernels"] == len(ns)
    assert found["steps"] == 3
    assert found["window_s"] == pytest.approx((until - first) / 1e9, rel=1e-3)
    assert found["breakdown"]["compute"] == pytest.approx(busy / (until - first), rel=1e-3)


def test_files_of_one_rank_are_told(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / f"{name}.json", kernels(), distributedInfo={"rank": 3})
    found = summarize(read_traces(tmp_path))
    assert found["gpus"] == 2
    assert found["notes"] == ["b.json: is of rank 3, and so is a.json; they count as several GPUs"]


@pytest.mark.parametrize(
    "wrong", [{"ts": None}, {"ts": "x"}, {"ts": [1]}, {"ts": True}, {"dur": -5}, {"dur": 1e300}]
)
def test_nothing_usable_is_one_line(tmp_path: Path, wrong: dict[str, Any]) -> None:
    path = write(tmp_path / "t.json", [one | wrong for one in kernels()])
    with pytest.raises(InputError) as caught:
        read_traces(path)
    assert str(caught.value) == (
        f"{path}: no GPU kernels (t.json: 5 events without a usable time were left out)"
    )
