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
