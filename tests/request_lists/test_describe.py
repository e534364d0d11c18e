"""Statistics of requests, counted by hand or by another way."""

from __future__ import annotations

import csv
import json
import statistics
from pathlib import Path

import numpy as np
import pytest

from simulator.cli import main
from simulator.requests.describe import describe, prefix_reuse
from simulator.requests.readers import read_requests
from simulator.requests.requests import Requests, plain_requests

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference" / "requests"
AZURE = REFERENCE / "AzureLLMInferenceTrace_conv_2023.csv"
MOONCAKE = REFERENCE / "mooncake_conversation_first4000.jsonl"


def blocks(size: int, prompts: list[int], lists: list[list[int]]) -> Requests:
    n = len(prompts)
    ends = np.cumsum([0, *map(len, lists)])
    return Requests(
        arrival_s=np.arange(n, dtype=np.float64),
        prompt_tokens=np.array(prompts, dtype=np.int32),
        output_tokens=np.ones(n, dtype=np.int32),
        priority=np.zeros(n, dtype=np.int16),
        block_ptr=ends.astype(np.int64),
        block_hash=np.array([h for one in lists for h in one], dtype=np.int64),
        block_tokens=size,
        source="by hand",
    )


def test_by_hand():
    found = describe(plain_requests(np.array([1.0, 2.0, 5.0]), [10, 20, 60], [1, 2, 3], "x", ["n"]))
    assert (found["requests"], found["duration_s"], found["rate_per_s"]) == (3, 4.0, 0.5)
    # Gaps 1 and 3: mean 2, standard deviation 1.
    assert found["gap_cv"] == 0.5
    assert found["peak_rate_per_s"] is None
    prompts = found["prompt_tokens"]
    assert (prompts["total"], prompts["mean"], prompts["min"], prompts["max"]) == (90, 30, 10, 60)
    assert prompts["p50"] == 20
    assert prompts["cv"] == pytest.approx(statistics.pstdev([10, 20, 60]) / 30)
    assert found["priorities"] == {"0": 3}
    assert found["prefix_reuse"] is None
    assert found["notes"] == ["n"]


def test_the_busiest_minute():
    arrival_s = np.concatenate([[0.0], np.linspace(60, 119, 30), [200.0]])
    assert describe(plain_requests(arrival_s, [1] * 32, [1] * 32, "x"))["peak_rate_per_s"] == 0.5


@pytest.mark.parametrize("count", [1, 3])
def test_at_once_there_is_no_rate(count: int):
    found = describe(plain_requests(np.zeros(count), [1] * count, [1] * count, "x"))
    assert found["rate_per_s"] is found["gap_cv"] is found["peak_rate_per_s"] is None
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("prompts", "lists", "share"),
    [
        ([10, 10], [[1, 2, 3], [1, 2, 3]], 0.5),
        # 4 + 4 tokens come again, of 10 + 9.
        ([10, 9], [[1, 2, 3], [1, 2, 4]], 8 / 19),
        # A whole last block; a prompt whose tail is not listed; one without blocks.
        ([4, 9, 5], [[1], [1], []], 4 / 18),
        ([4, 4], [[1], [2]], 0.0),
    ],
)
def test_prefix_reuse(prompts: list[int], lists: list[list[int]], share: float):
    assert prefix_reuse(blocks(4, prompts, lists)) == pytest.approx(share, abs=1e-12)


@pytest.mark.skipif(not AZURE.exists(), reason="no Azure recording here")
def test_the_azure_recording():
    found = describe(read_requests(AZURE))
    with AZURE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert found["requests"] == 19_366
    # 18:15:46.6805900 to 19:14:08.4025270.
    assert found["duration_s"] == pytest.approx(3501.721937, abs=1e-6)
    for key, column in (("prompt_tokens", "ContextTokens"), ("output_tokens", "GeneratedTokens")):
        values = [int(row[column]) for row in rows]
        assert found[key]["total"] == sum(values)
        assert found[key]["mean"] == pytest.approx(statistics.mean(values), rel=1e-12)
        assert found[key]["p50"] == statistics.median(values)
        assert (found[key]["min"], found[key]["max"]) == (min(values), max(values))


@pytest.mark.skipif(not MOONCAKE.exists(), reason="no Mooncake recording here")
def test_the_mooncake_recording():
    seen: set[int] = set()
    total = again = 0
    for line in MOONCAKE.read_text().splitlines():
        record = json.loads(line)
        left = record["input_length"]
        total += left
        for block in record["hash_ids"]:
            again += min(left, 512) * (block in seen)
            seen.add(block)
            left -= 512
    assert prefix_reuse(read_requests(MOONCAKE)) == pytest.approx(again / total, rel=1e-12)


class TestShow:
    def test_a_file(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        path = tmp_path / "few.csv"
        path.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n0,10,5\n1,x,5\n2,30,7\n")
        assert main(["show", "requests", str(path)]) == 2
        told = capsys.readouterr().err
        assert told.startswith(f"error: {path}:3: num_prefill_tokens: 'x' is not a whole number")
        assert main(["show", "requests", str(path), "--set", "skip_bad=true"]) == 0
        shown = capsys.readouterr().out
        assert "few.csv (vidur): 2 requests" in shown
        assert "1 of 3 rows left out, the first in line 3" in shown
        assert max(map(len, shown.splitlines())) <= 80
        assert main(["show", "requests", str(path), "--set", "skip_bad=true", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["prompt_tokens"]["total"] == 40

    def test_a_law(self, capsys: pytest.CaptureFixture[str]):
        sets = ["prompt=fixed:100", "output=fixed:10", "limit=50", "priority_fractions=[0.5, 0.5]"]
        options = [text for one in sets for text in ("--set", one)]
        for source, words in [
            ("closed:4", "closed: 4 at a time"),
            ("offline", "all at once"),
            ("constant:2", "2.000 per second over 24.5 s"),
        ]:
            assert main(["show", "requests", source, *options]) == 0
            shown = capsys.readouterr().out
            assert words in shown
            assert "priorities" in shown

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["poisson:5"], "prompt: required with 'poisson:5'"),
            (["poisson:5", "--set", "limt=5"], "--set limt: unknown key (did you mean 'limit'?)"),
            (["poisson:5", "--set", "limit"], "write key=value"),
            (["none.csv"], "requests 'none.csv': no such file; laws: poisson:20"),
            (["x.csv", "--topology", "dgx-h100"], "--topology goes with show workload"),
        ],
    )
    def test_refusals(self, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]):
        assert main(["show", "requests", *arguments]) == 2
        streams = capsys.readouterr()
        assert words in streams.err
        assert streams.out == ""
