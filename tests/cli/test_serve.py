"""`serve` on the command line: which requests, and what is refused."""

from __future__ import annotations

import json

import pytest

WHERE = ("serve", "--topology", "h100x16-rail", "--workload", "moe128-serving")
FEW = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,0,109
2023-11-16 18:15:51.2224670,879,55"""


@pytest.fixture
def few(tmp_path):
    path = tmp_path / "few.csv"
    path.write_text(FEW)
    return str(path)


def test_a_bad_row_is_refused_with_its_line(call, few):
    done = call(*WHERE, "--requests", few)
    assert done.status == 2
    assert done.err.splitlines()[-1].endswith(
        "few.csv:3: ContextTokens: a prompt of 0 tokens; skip_bad leaves such rows out"
    )


def test_a_recording_comes_with_its_own_lengths_and_in_full(call, few):
    """The workload has laws of lengths and a limit of 200; they belong to its own law."""
    done = call(*WHERE, "--requests", few, "--skip-bad", "--json")
    summary = json.loads(done.out)
    assert summary["finished"] == 2
    assert summary["prompt_tokens_computed"] == 374 + 879
    assert summary["tokens_generated"] == 44 + 55


def test_what_is_set_counts_more_than_the_recording(call, few):
    more = ("--set", "requests.output=fixed:3", "--set", "requests.limit=1")
    summary = json.loads(call(*WHERE, "--requests", few, "--skip-bad", "--json", *more).out)
    assert (summary["requests"], summary["tokens_generated"]) == (1, 3)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--rates", "1,x"), "--rates '1,x': 'x' is no rate in requests/s; write 5,10,20"),
        (("--repeat", "0"), "--repeat 0: at least one run"),
        (("--requests", "poison:5"), "requests 'poison:5': no such file (did you mean 'poisson'?)"),
        (("--set", "serving.dispatch=fastest"), "fastest"),
    ],
)
def test_what_cannot_be_served_is_told_in_a_line(call, more, told):
    done = call(*WHERE, *more)
    assert done.status == 2
    assert told in done.err
    assert done.out == ""


LONG = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46,374,44
2023-11-16 18:15:50,900,200
2023-11-16 18:15:51,879,55
2023-11-16 18:15:51,3000,1
2023-11-16 18:15:51,3000,1000
2023-11-16 18:15:52,1000,24
2023-11-16 18:15:53,1000,280
2023-11-16 18:15:54,1000,281
"""
# Two layers of moe128: K and V of 4 heads of 128 in 16 bit are 2 x 2 x 4 x 128 x 2 B a token.
ROOM = ("--set", "model.layers=2", "--set", "serving.kv_capacity=5 MiB")
KV_TOKENS = 5 * 2**20 // (2 * 2 * 4 * 128 * 2)


def test_why_requests_were_rejected(call, tmp_path):
    """By hand: 1,280 tokens of KV on a GPU, and 950 in a step where prompts are not cut."""
    assert KV_TOKENS == 1280
    (tmp_path / "long.csv").write_text(LONG)
    given = (*WHERE, "--requests", "long.csv", *ROOM)
    kv = {"reason": "kv_memory", "requests": 3, "limit": 1280, "longest": 4000}
    summary = json.loads(call(*given, "--json").out)
    assert (summary["finished"], summary["rejected"]) == (5, 3)
    assert summary["rejections"] == [kv]
    uncut = ("--set", "serving.chunked_prefill=false", "--set", "serving.max_batched_tokens=950")
    summary = json.loads(call(*given, *uncut, "--json").out)
    step = {"reason": "step_tokens", "requests": 2, "limit": 950, "longest": 1000}
    assert (summary["finished"], summary["rejected"]) == (3, 5)
    assert summary["rejections"] == [kv, step]
    # Those of the warm-up are not counted.
    late = call(*given, *uncut, "--set", "serving.warmup=4.5 s", "--json")
    assert [row["requests"] for row in json.loads(late.out)["rejections"]] == [3, 2]
    late = call(*given, *uncut, "--set", "serving.warmup=5.5 s", "--json")
    assert [row["requests"] for row in json.loads(late.out)["rejections"]] == [1, 2]


def test_the_reasons_are_printed_and_in_the_report(call, tmp_path):
    (tmp_path / "long.csv").write_text(LONG)
    done = call(*WHERE, "--requests", "long.csv", *ROOM, "--out", "kept")
    told = "3 rejected: prompt and output of up to 4,000 tokens, but the KV cache of a GPU holds "
    assert f"{told}1,280" in " ".join(done.out.split())
    assert f"{told}1,280." in (tmp_path / "kept" / "report.html").read_text()
    assert call("analyze", "kept").out == done.out


def test_nothing_is_said_where_nothing_was_rejected(call, few):
    summary = json.loads(call(*WHERE, "--requests", few, "--skip-bad", "--json").out)
    assert (summary["rejected"], summary["rejections"]) == (0, [])
