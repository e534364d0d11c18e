"""From a spec to requests: order of steps, common random numbers, closed loops, own laws."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from simulator.errors import InputError
from simulator.requests.load import load_requests
from simulator.requests.requests import Requests
from simulator.spec.requests import RequestsSpec

ROOT = Path(__file__).resolve().parents[2]
LENGTHS = {"prompt": "lognormal:1000:1.2", "output": "exponential:200"}
TEN = "arrived_at,num_prefill_tokens,num_decode_tokens\n" + "".join(
    f"{second},{100 + second},{1 + second}\n" for second in range(10)
)


def load(seed: int = 0, base: Path = ROOT, **keys: object) -> Requests:
    return load_requests(RequestsSpec.model_validate(keys), seed, base)


def drawn(source: str, seed: int = 0, **keys: object) -> Requests:
    return load(seed, source=source, **{**LENGTHS, "limit": 500, **keys})


def same(one: Requests, other: Requests) -> bool:
    arrays = ("arrival_s", "prompt_tokens", "output_tokens", "priority", "block_ptr", "block_hash")
    return all(np.array_equal(getattr(one, a), getattr(other, a)) for a in arrays)


@pytest.fixture
def ten(tmp_path: Path) -> Path:
    (tmp_path / "ten.csv").write_text(TEN)
    return tmp_path


def test_the_same_seed_is_the_same_and_another_is_not():
    keys = {"priority_fractions": [0.5, 0.5]}
    assert same(drawn("gamma:5:2", 3, **keys), drawn("gamma:5:2", 3, **keys))
    one, other = drawn("gamma:5:2", 3, **keys), drawn("gamma:5:2", 4, **keys)
    for name in ("arrival_s", "prompt_tokens", "output_tokens", "priority"):
        assert not np.array_equal(getattr(one, name), getattr(other, name)), name


def test_two_processes_agree():
    code = (
        "from simulator.requests.load import load_requests\n"
        "from simulator.spec.requests import RequestsSpec\n"
        "from zlib import crc32\n"
        "r = load_requests(RequestsSpec(source='gamma:5:2', prompt='lognormal:900:1', "
        "output='uniform:1:9', limit=300, priority_fractions=[0.2, 0.8]), 7)\n"
        "print(*(crc32(a.tobytes()) for a in (r.arrival_s, r.prompt_tokens, r.output_tokens, "
        "r.priority)))"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(told) == 1


def test_another_rate_keeps_lengths_and_priorities():
    keys = {"priority_fractions": [0.9, 0.1]}
    slow, fast = drawn("poisson:5", **keys), drawn("poisson:20", **keys)
    np.testing.assert_allclose(slow.arrival_s, 4 * fast.arrival_s, rtol=1e-12)
    scaled = drawn("poisson:5", rate_scale=4.0, **keys)
    np.testing.assert_allclose(scaled.arrival_s, fast.arrival_s, rtol=1e-12)
    bursty = drawn("gamma:5:3", **keys)
    for other in (fast, scaled, bursty):
        np.testing.assert_array_equal(slow.prompt_tokens, other.prompt_tokens)
        np.testing.assert_array_equal(slow.output_tokens, other.output_tokens)
        np.testing.assert_array_equal(slow.priority, other.priority)


def test_more_requests_begin_with_the_fewer():
    few, many = drawn("poisson:5", limit=100), drawn("poisson:5", limit=9000)
    assert same(few, many.first(100))
    until = drawn("poisson:5", limit=None, end="60 s")
    assert same(until, many.first(len(until)))
    assert many.arrival_s[len(until) - 1] < 60 <= many.arrival_s[len(until)]


def test_window_then_rate_then_limit(ten: Path):
    found = load(base=ten, source="ten.csv", start="2 s", end="8 s", rate_scale=2.0, limit=4)
    # Seconds 2..7 of the recording, twice as fast, the first four.
    assert found.arrival_s.tolist() == [0.0, 0.5, 1.0, 1.5]
    assert found.prompt_tokens.tolist() == [102, 103, 104, 105]
    assert found.output_tokens.tolist() == [3, 4, 5, 6]


def test_the_first_request_keeps_its_offset_in_the_window(ten: Path):
    found = load(base=ten, source="ten.csv", start="2.25 s")
    assert found.arrival_s.tolist() == [0.75 + second for second in range(7)]
    ends = load(base=ten, source="ten.csv", start="2 s", end="4 s")
    assert ends.arrival_s.tolist() == [0.0, 1.0]


def test_a_window_of_a_law_is_a_part_of_it():
    whole = drawn("poisson:5", limit=2000)
    part = drawn("poisson:5", limit=50, start="100 s")
    first = int(np.searchsorted(whole.arrival_s, 100.0))
    np.testing.assert_allclose(part.arrival_s, whole.arrival_s[first : first + 50] - 100.0)


def test_a_window_with_blocks(tmp_path: Path):
    lines = [
        f'{{"timestamp": {1000 * i}, "input_length": 700, "output_length": 1, '
        f'"hash_ids": [{i}, 9]}}'
        for i in range(6)
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    found = load(base=tmp_path, source="m.jsonl", start="2 s", limit=2)
    assert found.block_ptr.tolist() == [0, 2, 4]
    assert found.block_hash.tolist() == [2, 9, 3, 9]
    replaced = load(base=tmp_path, source="m.jsonl", prompt="fixed:64")
    assert replaced.prompt_tokens.tolist() == [64] * 6
    assert replaced.output_tokens.tolist() == [1] * 6
    assert (replaced.block_tokens, len(replaced.block_hash)) == (0, 0)
    assert replaced.block_ptr.tolist() == [0] * 7
    assert "prefix blocks belong to other prompt lengths" in replaced.notes[0]


def test_an_empty_window_is_refused(ten: Path):
    with pytest.raises(InputError, match=r"none arrive from 100 to inf s \(the last .* at 9 s\)"):
        load(base=ten, source="ten.csv", start="100 s")
    with pytest.raises(InputError, match="none arrive from 0 to 1e-09 s"):
        drawn("poisson:1", limit=None, end="1 ns")


@pytest.mark.parametrize(
    ("source", "concurrency"), [("closed:8", 8), ("singlestream", 1), ("offline", None)]
)
def test_everything_at_the_start(source: str, concurrency: int | None):
    found = drawn(source)
    assert found.concurrency == concurrency
    assert found.arrival_s.tolist() == [0.0] * 500
    assert same(found, drawn("offline"))


def test_mlperf_scenarios_are_named():
    assert "MLPerf Server" in drawn("server:5").notes[0]
    assert "MLPerf SingleStream" in drawn("singlestream").notes[0]
    assert "MLPerf Offline" in drawn("offline").notes[0]
    assert same(drawn("server:5"), drawn("poisson:5"))


def test_priorities_have_their_shares():
    shares = [0.6, 0.3, 0.1]
    found = drawn("offline", limit=50_000, priority_fractions=shares)
    counts = np.bincount(found.priority, minlength=3)
    assert len(counts) == 3
    for count, share in zip(counts, shares, strict=True):
        assert abs(count - 50_000 * share) / math.sqrt(50_000 * share * (1 - share)) < 4


def test_lengths_from_a_file(ten: Path):
    keys = {"base": ten, "source": "offline", "limit": 20_000}
    both = load(**keys, prompt="empirical:ten.csv", output="empirical:ten.csv")
    # From one file: rows are drawn whole, so that prompt and output belong together.
    np.testing.assert_array_equal(both.prompt_tokens - 99, both.output_tokens)
    values, counts = np.unique(both.prompt_tokens, return_counts=True)
    assert values.tolist() == list(range(100, 110))
    assert (np.abs(counts - 2000) / math.sqrt(20_000 * 0.1 * 0.9) < 4).all()
    (ten / "other.csv").write_text(TEN)
    apart = load(**keys, prompt="empirical:ten.csv", output="empirical:other.csv")
    correlation = np.corrcoef(apart.prompt_tokens, apart.output_tokens)[0, 1]
    assert abs(correlation) * math.sqrt(20_000) < 4


def test_a_recording_with_other_lengths_keeps_its_times(ten: Path):
    found = load(base=ten, source="ten.csv", output="fixed:7")
    assert found.arrival_s.tolist() == list(range(10))
    assert found.prompt_tokens.tolist() == list(range(100, 110))
    assert found.output_tokens.tolist() == [7] * 10


def test_skip_bad_and_sort_reach_the_reader(tmp_path: Path):
    (tmp_path / "bad.csv").write_text(TEN + "4.5,0,3\n")
    with pytest.raises(InputError, match="a prompt of 0 tokens"):
        load(base=tmp_path, source="bad.csv")
    assert len(load(base=tmp_path, source="bad.csv", skip_bad=True)) == 10
    (tmp_path / "back.csv").write_text(TEN + "4.5,1,3\n")
    with pytest.raises(InputError, match="sort the file, or write sort: true"):
        load(base=tmp_path, source="back.csv")
    assert load(base=tmp_path, source="back.csv", sort=True).prompt_tokens[5] == 1


def test_a_source_that_is_neither_law_nor_file(tmp_path: Path):
    with pytest.raises(InputError, match=r"no such file \(did you mean 'poisson'\?\); laws: "):
        load(base=tmp_path, source="poison:5")


def test_own_laws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "my_laws").mkdir()
    (tmp_path / "my_laws" / "ours.py").write_text(
        "import numpy as np\n"
        "def pairs(rng, count, gap_s): return np.arange(count) // 2 * gap_s\n"
        "def threes(rng, count): return np.full(count, 3)\n"
        "def back(rng, count): return -np.arange(count)\n"
        "def none(rng, count): return np.zeros(count)\n"
        "def few(rng, count): return np.ones(2)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = drawn("my_laws.ours:pairs:0.5", output="my_laws.ours:threes", limit=5)
    assert found.arrival_s.tolist() == [0.0, 0.0, 0.5, 0.5, 1.0]
    assert found.output_tokens.tolist() == [3] * 5
    for source, words in [
        ("my_laws.ours:back", "never decrease"),
        ("my_laws.ours:few", "must return 500 times"),
        ("my_laws.ours:gone", "cannot be imported"),
        ("my_laws.ours:pairs", "missing a required argument"),
    ]:
        with pytest.raises(InputError, match=words):
            drawn(source)
    for output, words in [
        ("my_laws.ours:none", "below 1"),
        ("my_laws.ours:few", "must return 500 numbers"),
    ]:
        with pytest.raises(InputError, match=words):
            drawn("offline", output=output)


@pytest.mark.parametrize(
    ("keys", "where", "words"),
    [
        ({"source": "poisson"}, "source", "takes 1 number; write for example 'poisson:20'"),
        ({"source": "poisson:0"}, "source", "'0' is not a number from 1e-06 to 1e+06"),
        ({"source": "poisson:nan"}, "source", "is not a number from"),
        ({"source": "gamma:5"}, "source", "takes 2 numbers; write for example 'gamma:20:2.5'"),
        ({"source": "closed:2.5"}, "source", "'2.5' is not a whole number from 1 to 1e+06"),
        ({"source": "offline:3"}, "source", "takes no number"),
        ({"source": ""}, "source", "at least 1 character"),
        ({"source": "a.b:c:1:e"}, "source", "must be numbers, as in a.b:c:1.5:2"),
        ({"prompt": "lognormal:10"}, "prompt", "takes 2 numbers"),
        ({"prompt": "uniform:9:3"}, "prompt", "must not be above the second"),
        ({"prompt": "lognorm:10:1"}, "prompt", "did you mean 'lognormal'?"),
        ({"output": "empirical:"}, "output", "needs a file"),
        ({"output": "exponential:0.5"}, "output", "'0.5' is not a number from 1 to"),
        ({"output": None}, "output", "required with 'poisson:5'"),
        ({"limit": None}, "limit", "has no end: give limit or end"),
        ({"limit": 0}, "limit", "greater than or equal to 1"),
        ({"start": "5 s", "end": "5 s"}, "end", "must be after start (5 s)"),
        ({"start": 5}, "start", "no unit"),
        ({"rate_scale": 0}, "rate_scale", "greater than 0"),
        ({"rate_scale": math.inf}, "rate_scale", "finite"),
        ({"priority_fractions": [0.5, 0.4]}, "priority_fractions", "must add up to 1, not 0.9"),
        ({"priority_fractions": [1.5, -0.5]}, "priority_fractions", "less than or equal to 1"),
        ({"block_tokens": 16}, "block_tokens", "goes with a recorded file"),
        ({"skip_bad": True}, "skip_bad", "goes with a recorded file"),
        ({"sort": True}, "sort", "goes with a recorded file"),
        ({"source": "closed:4", "rate_scale": 2.0}, "rate_scale", "asks for everything at the"),
        ({"source": "offline", "end": "5 s"}, "end", "asks for everything at the start"),
        ({"source": "offline", "limit": None}, "limit", "required with 'offline'"),
        ({"rate": 5}, "rate", "not permitted"),
    ],
)
def test_a_spec_that_is_refused(keys: dict, where: str, words: str):
    given = {"source": "poisson:5", **LENGTHS, "limit": 10, **keys}
    with pytest.raises(ValidationError) as caught:
        RequestsSpec.model_validate(given)
    faults = [(fault["loc"][0], fault["msg"]) for fault in caught.value.errors()]
    assert any(at == where and words in said for at, said in faults), faults


def test_rate_scale_of_requests():
    found = drawn("constant:4", limit=3)
    assert found.scaled(2.0).arrival_s.tolist() == [0.0, 0.125, 0.25]
    for factor in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="rate scale"):
            found.scaled(factor)
    assert len(found.first(99)) == 3
    assert len(found.first(0)) == 0
    assert len(found.window(5.0, 1.0)) == 0
