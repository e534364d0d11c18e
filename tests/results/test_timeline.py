"""The accounting of random runs against the same rules applied eighth by eighth of a second.

A step lasts 8 s, and all times are quarters of a second, exact in binary: so are the sums, in any
order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.results import timeline
from simulator.results.analyzer import Context, analyze
from simulator.runfiles.rundir import RunDir
from simulator.runfiles.spans import (
    ALLREDUCE,
    ATTENTION,
    COMBINE,
    COMM,
    COMPUTE,
    COPY,
    DEMAND,
    DISPATCH,
    EXPERTS,
    FFN,
    KINDS,
    LM_HEAD,
    PREFETCH,
    SEND,
    STREAMS,
    AccessWriter,
    SpanWriter,
    write_links,
    write_loads,
    write_steps,
)

GPUS = 3
LENGTH_S = 8.0
Span = dict[str, Any]


@st.composite
def timelines(draw: st.DrawFn, origin_s: float = 1.0) -> list[Span]:
    """Spans of one step (origin_s .. + 8 s) with whatever waits, peers and transfers."""
    quarter = st.integers(0, 32)
    spans: list[Span] = []

    def add(gpu: int, stream: int, begin: int, end: int, kinds: tuple[int, ...]) -> None:
        kind = draw(st.sampled_from(kinds))
        ready = draw(st.integers(0, begin))
        compute = stream == COMPUTE
        spans.append(
            {
                "stream": stream,
                "kind": kind,
                "gpu": gpu,
                "layer": draw(st.integers(0, 2)),
                "chunk": draw(st.integers(0, 1)) if kind in (EXPERTS, DISPATCH, COMBINE) else 0,
                "microbatch": draw(st.integers(0, 1)),
                "start_s": origin_s + begin / 4,
                "end_s": origin_s + end / 4,
                "ready_s": origin_s + ready / 4,
                "peer": draw(st.integers(-1, GPUS - 1)) if compute else -1,
                "fetch_wait_s": draw(st.integers(0, begin - ready)) / 4 if compute else 0.0,
            }
        )

    for gpu in range(GPUS):
        for stream, most, kinds in (
            (COMPUTE, 10, (ATTENTION, FFN, EXPERTS, LM_HEAD)),
            (COMM, 8, (DISPATCH, COMBINE, ALLREDUCE)),
            (COPY, 4, (SEND,)),
        ):
            instants = sorted(draw(st.sets(quarter, max_size=most)))
            for begin, end in zip(instants[::2], instants[1::2], strict=False):
                add(gpu, stream, begin, end, kinds)
    return spans


def eighths(origin_s: float) -> list[float]:
    """The middle of every eighth of a second of a step."""
    return [origin_s + tick / 8 + 1 / 16 for tick in range(64)]


def breakdown_by_eighths(spans: list[Span], origin_s: float) -> np.ndarray:
    """Float [GPUS, parts]."""
    result = np.zeros((GPUS, len(timeline.PARTS)))
    for gpu in range(GPUS):
        mine = sorted(
            (s for s in spans if s["stream"] == COMPUTE and s["gpu"] == gpu),
            key=lambda s: s["start_s"],
        )
        for t in eighths(origin_s):
            part = "idle"
            following = [s for s in mine if s["end_s"] > t]
            if following and following[0]["start_s"] < t:
                part = "compute"
            elif following:
                free = max([s["end_s"] for s in mine if s["end_s"] < t], default=origin_s)
                part = waiting_for(following[0], free, t, spans, origin_s)
            result[gpu, timeline.PARTS.index(part)] += 1 / 8
    return result


def waiting_for(span: Span, free: float, t: float, spans: list[Span], origin_s: float) -> str:
    ready = max(span["ready_s"], free)
    if t > ready:
        return "fetch_stall" if t > span["start_s"] - span["fetch_wait_s"] else "idle"
    if span["peer"] < 0:
        return "idle"
    return "exposed_communication" if t > sending_since(span, spans, origin_s) else "peer_wait"


def sending_since(span: Span, spans: list[Span], origin_s: float) -> float:
    ready = span["ready_s"]
    after_combine = span["kind"] in (ATTENTION, LM_HEAD)
    feeds = [
        s
        for s in spans
        if s["gpu"] == span["peer"]
        and s["microbatch"] == span["microbatch"]
        and s["kind"] == (COMBINE if after_combine else DISPATCH)
        and s["layer"] == span["layer"] - after_combine
        and (after_combine or s["chunk"] == span["chunk"])
    ]
    others = [
        s
        for s in spans
        if s["gpu"] == span["peer"] and s["kind"] in (ALLREDUCE, SEND) and s["start_s"] < ready
    ]
    feed = max(feeds, key=lambda s: s["end_s"], default=None)
    if feed is None and others:
        begun = max(s["start_s"] for s in others)
        # Two streams may begin together: of these, the last in the file.
        last = [s for s in others if s["start_s"] == begun][-1]
        feed = last if last["end_s"] >= ready else None
    made = ready if feed is None else min(feed["ready_s"], ready)
    ended = [
        s["end_s"]
        for s in spans
        if s["stream"] == COMPUTE and s["gpu"] == span["peer"] and s["end_s"] <= made
    ]
    return float(max(ended, default=origin_s if feed is None else made))


def overlap_by_eighths(spans: list[Span], origin_s: float) -> float:
    total = 0.0
    for t in eighths(origin_s):
        running = [(s["gpu"], s["stream"]) for s in spans if s["start_s"] < t < s["end_s"]]
        total += sum((gpu, COMPUTE) in running and (gpu, COMM) in running for gpu in range(GPUS))
    return total / 8


def path_by_walking(spans: list[Span], origin_s: float) -> np.ndarray:
    """The critical path followed span by span: float [path parts]."""
    compute = [s for s in spans if s["stream"] == COMPUTE]
    total = dict.fromkeys(timeline.PATH_PARTS, 0.0)
    t = origin_s + LENGTH_S
    current = max(compute, key=lambda s: (s["end_s"], -s["gpu"]), default=None)
    if current:
        total["idle"] += t - current["end_s"]
    while current:
        total["compute"] += current["end_s"] - current["start_s"]
        t = current["start_s"]
        origin = current["gpu"]
        if not any(s["gpu"] == origin and s["end_s"] == t for s in compute):
            total["fetch_stall"] += current["fetch_wait_s"]
            t -= current["fetch_wait_s"]
            if t == current["ready_s"] and current["peer"] >= 0:
                since = sending_since(current, spans, origin_s)
                total["communication"] += t - since
                t, origin = since, current["peer"]
        earlier = [
            s
            for s in compute
            if s["gpu"] == origin and s["end_s"] <= t and s["start_s"] < current["start_s"]
        ]
        current = max(earlier, key=lambda s: s["end_s"], default=None)
        before = current["end_s"] if current else origin_s
        total["idle"] += t - before
        t = before
    if not compute:
        total["idle"] = LENGTH_S
    return np.array(list(total.values()))


def columns_of(spans: list[Span], step: int = 5) -> dict[str, np.ndarray]:
    columns = {name: np.array([span[name] for span in spans]) for name in spans[0]}
    columns["step"] = np.full(len(spans), step)
    return columns


def account(columns: dict[str, np.ndarray]) -> timeline.BlockTimes:
    return timeline.analyze_steps(
        columns, np.array([5]), np.array([1.0]), np.array([9.0]), GPUS, Path("spans.parquet")
    )


@settings(max_examples=200, deadline=None)
@given(timelines())
def test_every_second_is_accounted_for_once(spans: list[Span]) -> None:
    if not spans:
        return
    times = account(columns_of(spans))
    assert np.all(times.breakdown_s >= 0)
    assert np.sum(times.breakdown_s, axis=1) == pytest.approx(np.full(GPUS, 8.0), rel=1e-9)
    assert np.all(times.path_s >= 0)
    assert np.sum(times.path_s) == pytest.approx(8.0, rel=1e-9)
    assert times.path_s == pytest.approx(path_by_walking(spans, 1.0), rel=1e-9, abs=1e-9)
    assert times.breakdown_s == pytest.approx(breakdown_by_eighths(spans, 1.0), rel=1e-9, abs=1e-9)
    assert times.overlapped_s == pytest.approx(overlap_by_eighths(spans, 1.0), rel=1e-9, abs=1e-9)
    comm = [s for s in spans if s["stream"] == COMM]
    assert times.comm_s == sum(s["end_s"] - s["start_s"] for s in comm)


STEPS = 4


@st.composite
def runs(draw: st.DrawFn) -> list[Span]:
    """Spans of a warm-up step 0 and measured steps 1 to 4, of which any may have none.

    The spans of a step in any order; fetches anywhere, of any step, in any of them.
    """
    rows: list[Span] = []
    for step in range(STEPS + 1):
        spans = draw(timelines(origin_s=1.0 + LENGTH_S * step))
        rows += [{**span, "step": step} for span in draw(st.permutations(spans))]
    for index, row in enumerate(rows):
        row |= {"bytes_": float(index), "flops": 2.0 * index if row["stream"] == COMPUTE else 0.0}
    for _ in range(draw(st.integers(0, 8))):
        begin = draw(st.integers(0, 4 * int(LENGTH_S) * (STEPS + 1)))
        row = {
            "step": draw(st.integers(0, STEPS)),
            "stream": COPY,
            "kind": draw(st.sampled_from([DEMAND, PREFETCH])),
            "gpu": draw(st.integers(0, GPUS - 1)),
            "layer": 0,
            "chunk": 0,
            "microbatch": -1,
            "start_s": 1.0 + begin / 4,
            "end_s": 1.0 + (begin + draw(st.integers(1, 60))) / 4,
            "ready_s": 0.0,
            "peer": draw(st.integers(-1, GPUS - 1)),
            "fetch_wait_s": 0.0,
            "bytes_": float(draw(st.integers(1, 1000))),
            "used": draw(st.booleans()),
        }
        rows.insert(draw(st.integers(0, len(rows))), row)
    return rows


def write_run(path: Path, rows: list[Span], group_rows: int) -> None:
    files = RunDir(path)
    with SpanWriter(files.spans) as spans:
        for row in rows:
            spans.append(**row)
    pq.write_table(pq.read_table(files.spans), files.spans, row_group_size=group_rows)
    begins = [1.0 + LENGTH_S * step for step in range(STEPS + 1)]
    ends = [begin + LENGTH_S for begin in begins]
    warmup = [True] + [False] * STEPS
    write_steps(files.steps, list(range(STEPS + 1)), begins, ends, [1] * len(begins), warmup)
    write_links(files.links, [], [], [], [])
    AccessWriter(files.accesses).close()
    write_loads(files.loads, [], [], [], [])


@settings(max_examples=60, deadline=None)
@given(rows=runs(), group_rows=st.integers(1, 30))
def test_a_run_is_the_sum_of_its_steps(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Span], group_rows: int
) -> None:
    path = tmp_path_factory.mktemp("run")
    write_run(path, rows, group_rows)
    figures: Any = analyze(path, Context(gpus=GPUS, experts=4, peak_flops_per_s=1.0))
    time_s = STEPS * LENGTH_S

    breakdown_s, path_s = np.zeros(len(timeline.PARTS)), np.zeros(len(timeline.PATH_PARTS))
    overlapped_s = 0.0
    fetches = [row for row in rows if row["kind"] in (DEMAND, PREFETCH)]
    for step in range(1, STEPS + 1):
        mine = [row for row in rows if row["step"] == step and row not in fetches]
        origin_s = 1.0 + LENGTH_S * step
        breakdown_s += breakdown_by_eighths(mine, origin_s).mean(axis=0)
        path_s += path_by_walking(mine, origin_s)
        overlapped_s += overlap_by_eighths(mine, origin_s)
    approx = pytest.approx
    assert list(figures["breakdown"].values()) == approx(breakdown_s / time_s, abs=1e-9)
    assert list(figures["critical_path"].values()) == approx(path_s / time_s, abs=1e-9)

    measured = [row for row in rows if row["step"] > 0]
    comm = [row for row in measured if row["stream"] == COMM]
    comm_s = sum(row["end_s"] - row["start_s"] for row in comm)
    assert figures["overlap_achieved"] == (approx(overlapped_s / comm_s) if comm else None)
    first_s, last_s = 1.0 + LENGTH_S, 1.0 + LENGTH_S * (STEPS + 1)
    for stream, name in enumerate(STREAMS):
        busy_s = sum(
            max(min(row["end_s"], last_s) - max(row["start_s"], first_s), 0.0)
            for row in rows
            if row["stream"] == stream
        )
        assert figures[f"{name}_utilization"] == approx(busy_s / GPUS / time_s)
    for kind in (DISPATCH, COMBINE, ALLREDUCE, SEND, DEMAND, PREFETCH):
        moved = sum(row["bytes_"] for row in measured if row["kind"] == kind)
        assert figures[f"{KINDS[kind]}_bytes"] == moved
    counted = [row for row in fetches if row["step"] > 0]
    ahead = [row for row in counted if row["kind"] == PREFETCH]
    assert figures["fetches"] == len(counted)
    assert figures["prefetches"] == len(ahead)
    assert figures["wasted_prefetch_bytes"] == sum(r["bytes_"] for r in ahead if not r["used"])
    if counted:
        assert figures["peer_fetch_share"] == approx(np.mean([r["peer"] >= 0 for r in counted]))
    if ahead:
        assert figures["prefetch_accuracy"] == approx(np.mean([r["used"] for r in ahead]))
    assert figures["mfu"] == approx(sum(r.get("flops", 0.0) for r in measured) / GPUS / time_s)


def test_steps_out_of_order_are_refused(tmp_path: Path) -> None:
    def attention(step: int) -> Span:
        begin = LENGTH_S * step
        row = kernel(0, begin, begin + 1, kind=ATTENTION)
        return {**row, "step": step}

    write_run(tmp_path, [attention(step) for step in (1, 3, 2, 4)], group_rows=2)
    with pytest.raises(InputError, match="spans of a step lie among those of a later one"):
        analyze(tmp_path, Context(gpus=GPUS, experts=4, peak_flops_per_s=1.0))


def kernel(gpu: int, begin: float, end: float, **more: Any) -> Span:
    return {
        "stream": COMPUTE, "kind": EXPERTS, "gpu": gpu, "layer": 0, "chunk": 0, "microbatch": 0,
        "start_s": 1 + begin, "end_s": 1 + end, "ready_s": 1 + begin, "peer": -1,
        "fetch_wait_s": 0.0, **more,
    }  # fmt: skip


def test_many_transfers_are_told_apart() -> None:
    # GPU 0's transfer of each layer, micro-batch and chunk is known by when its data were made.
    rng = np.random.default_rng(0)
    spans: list[Span] = []
    waited_s = sent_s = 0.0
    names = [(layer, m, c) for layer in (-1, 0, 7, 300) for m in range(8) for c in (0, 1, 5, 999)]
    for place, at in enumerate(rng.permutation(len(names)).tolist()):
        layer, microbatch, chunk = names[at]
        begin = place / 32
        made = float(rng.integers(0, 17)) / 1024
        own = {
            "layer": layer,
            "microbatch": microbatch,
            "chunk": chunk,
            "ready_s": 1 + begin + made,
        }
        spans.append(kernel(1, begin + 1 / 64, begin + 1 / 32, **own))
        spans[-1] |= {"ready_s": 1 + begin + 1 / 64, "peer": 0}
        decoy = kernel(2, begin, begin + 1 / 64, **own)
        spans.append({**decoy, "stream": COMM, "kind": DISPATCH, "ready_s": 1.0})
        sent = kernel(0, begin + made, begin + 1 / 64 + 1 / 2048, **own)
        spans.append({**sent, "stream": COMM, "kind": DISPATCH})
        waited_s, sent_s = waited_s + made, sent_s + 1 / 64 - made
    order = rng.permutation(len(spans))
    times = account(columns_of([spans[at] for at in order]))
    assert times.breakdown_s[1, timeline.PARTS.index("peer_wait")] == pytest.approx(waited_s)
    exposed_s = times.breakdown_s[1, timeline.PARTS.index("exposed_communication")]
    assert exposed_s == pytest.approx(sent_s)


def test_rows_back_to_front() -> None:
    # Back to front, as no run writes them: sorted, and as quick as any other.
    count = 200_000
    begin = np.arange(count) / count * 8
    columns = columns_of([kernel(0, 0, 1)])
    columns = {name: np.repeat(values, count) for name, values in columns.items()}
    columns |= {"start_s": 1 + begin[::-1], "ready_s": 1 + begin[::-1]}
    columns["end_s"] = columns["start_s"] + 4 / count
    times = account(columns)
    assert times.breakdown_s[0] == pytest.approx([4, 0, 0, 0, 4], rel=1e-6)
    assert times.path_s == pytest.approx([4, 0, 0, 4], rel=1e-6)


@pytest.mark.parametrize("name", ["gpu", "peer"])
def test_a_gpu_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=rf"spans.parquet: {name} 3, but the run had 3 GPUs"):
        account(columns_of([kernel(0, 0, 1), {**kernel(1, 0, 1), name: 3}]))


def test_a_negative_gpu_is_refused() -> None:
    with pytest.raises(InputError, match=r"gpu -1, but the run had 3 GPUs"):
        account(columns_of([kernel(-1, 0, 1)]))


def test_an_overlap_out_of_order_is_refused() -> None:
    spans = [kernel(0, 4, 6), kernel(0, 0, 1), kernel(0, 0.5, 2, layer=7)]
    with pytest.raises(InputError, match="experts of layer 7 on GPU 0 in step 5 begins before"):
        account(columns_of(spans))
