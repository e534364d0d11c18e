"""Importing logs of other engines: what is kept, what is dropped and said, what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.routing.importers import assemble, import_jsonl, jsonl, open_trace, recognise
from simulator.routing.stats import trace_statistics
from simulator.routing.trace import UNKNOWN, iter_blocks, read_info

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT.parent / "shared" / "reference" / "routing" / "local_only"
MIXTRAL = REFERENCE / "mixtral8x7b_gsm8k_routing.jsonl"


def line(problem: object, layer: int, token: int, experts: list[int], **more: object) -> str:
    record = {"problem_id": problem, "layer": layer, "experts": experts, "token_idx": token}
    return json.dumps(record | more) + "\n"


def one_problem(problem: object, tokens: int, layers: int = 2, shift: int = 0) -> list[str]:
    """Layer-major records; token t takes experts t + layer and t + layer + 1, modulo 6."""
    return [
        line(problem, layer, t, [(t + layer + shift) % 6, (t + layer + shift + 1) % 6])
        for layer in range(layers)
        for t in range(tokens)
    ]


def imported(tmp_path: Path, lines: list[str], **options: object):
    source, target = tmp_path / "log.jsonl", tmp_path / "t.parquet"
    source.write_text("".join(lines))
    target.unlink(missing_ok=True)
    report = import_jsonl(source, target, **options)
    blocks = list(iter_blocks(target))
    return report, (
        np.concatenate([b.request for b in blocks]).tolist(),
        np.concatenate([b.position for b in blocks]).tolist(),
        np.concatenate([b.experts for b in blocks]).tolist(),
    )


def test_two_problems(tmp_path):
    lines = [*one_problem("a", 3), "\n", *one_problem("b", 2)]
    report, (request, position, ids) = imported(tmp_path, lines)
    assert request == [0, 0, 0, 1, 1]
    assert position == [0, 1, 2, 0, 1]
    assert ids[1] == [[1, 2], [2, 3]]
    assert ids[4] == [[1, 2], [2, 3]]
    info = read_info(tmp_path / "t.parquet")
    assert (info.layers, info.experts, info.k, info.requests, info.tokens) == (2, 8, 2, 2, 5)
    assert info.origin == "imported from log.jsonl"
    assert report.lines() == [
        "read 11 lines, 1 of them blank",
        "kept 10 records: 2 requests, 5 tokens, 2 layers, top-2 of 8 experts "
        "(largest id 4 + 1, rounded up to a multiple of 4)",
    ]
    assert set(next(iter_blocks(tmp_path / "t.parquet")).phase.tolist()) == {UNKNOWN}


def test_the_order_of_lines_does_not_matter(tmp_path):
    lines = one_problem("a", 4) + one_problem("b", 3, shift=1)
    _, expected = imported(tmp_path, lines)
    mixed = lines[:8:2] + lines[8:11] + lines[1:8:2] + lines[11:]
    # Problem a now ends in the file before b still, and both are read in pieces.
    assert imported(tmp_path, mixed)[1] == expected
    token_major = sorted(lines[:8], key=lambda text: json.loads(text)["token_idx"]) + lines[8:]
    assert imported(tmp_path, token_major)[1] == expected


def test_gaps_become_minus_one_and_are_said(tmp_path):
    lines = [line(0, 0, 0, [3, 1]), line(0, 1, 0, [2]), line(0, 1, 5, [0, 2])]
    report, (_, position, ids) = imported(tmp_path, lines)
    assert position == [0, 5]
    assert ids == [[[3, 1], [2, -1]], [[-1, -1], [0, 2]]]
    assert "without experts in some layers (-1): 1 token" in report.lines()
    assert (report.records_kept, report.tokens) == (3, 2)


@pytest.mark.parametrize("layers", [1, 3])
def test_a_profiling_run_is_trimmed(tmp_path, layers):
    dummy = [line("warm", la, t, [la, la + 1]) for la in range(layers) for t in range(1200)]
    real = one_problem("a", 5, layers)
    report, trace = imported(tmp_path, dummy + real)
    assert trace == imported(tmp_path, real)[1]
    assert (report.tokens_trimmed, report.records_trimmed) == (1200, 1200 * layers)
    assert report.requests == 1
    said = f"dropped 1200 tokens ({1200 * layers} records, 1 whole requests) at the start"
    assert any(said in text for text in report.lines())
    # The order within a set says nothing; fewer than 1,000 may be real.
    dummy = [line("w", 0, t, [1, 2] if t % 2 else [2, 1]) for t in range(1000)]
    assert imported(tmp_path, dummy + real)[0].tokens_trimmed == 1000
    assert imported(tmp_path, dummy[:999] + real)[0].tokens_trimmed == 0


def test_a_profiling_run_under_the_first_problems_number(tmp_path):
    real = one_problem(0, 5)
    dummy = [line(0, la, t, [0, 1]) for la in range(2) for t in range(1500)]
    report, trace = imported(tmp_path, dummy + real)
    assert trace == imported(tmp_path, real)[1]
    assert (report.records_replaced, report.tokens_trimmed) == (10, 1495)
    # The same run before the real tokens in every layer.
    shifted = [json.loads(text) for text in real]
    for record in shifted:
        record["token_idx"] += 1500
    mixed = [*dummy, *(json.dumps(record) + "\n" for record in shifted)]
    report, (_, position, ids) = imported(tmp_path, sorted(mixed, key=lambda t: '"layer": 1' in t))
    assert position == [1500 + t for t in range(5)]
    assert ids == trace[2]


def test_every_record_is_accounted_for(tmp_path):
    lines = [line(0, la, t, [0, 1]) for la in range(2) for t in range(1500)]
    lines += one_problem(0, 5) + one_problem(1, 7) + one_problem(1, 2)
    report, _ = imported(tmp_path, lines)
    assert report.records_kept + report.records_replaced + report.records_trimmed == len(lines)


def test_nothing_but_a_profiling_run(tmp_path):
    with pytest.raises(InputError, match="nothing but an engine's profiling run"):
        imported(tmp_path, [line(0, 0, t, [0, 1]) for t in range(1000)])
    assert [p.name for p in tmp_path.iterdir()] == ["log.jsonl"]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('{"problem_id": 0, "lay\n', "not JSON: "),
        ("[1]\n", "must be a JSON object with problem_id, layer, experts, token_idx"),
        ('{"problem_id": 0}\n', "'layer' is missing"),
        (line(0, -1, 0, [1]), "layer: -1 is not a whole number 0..4095"),
        (line(0, 10**9, 0, [1]), "layer: 1000000000 is not a whole number 0..4095"),
        (line(0, 0, 2**40, [1]), "token_idx: 1099511627776 is not a whole number"),
        (line(0, 0, 0, []), "experts: [] is not a list of at least one expert"),
        (line(0, 0, 0, [1, 1]), "experts: [1, 1] has an expert twice"),
        (line(0, 0, 0, [40_000]), "experts: 40000 is not a whole number 0..32766"),
        (line(0, 0, 0, [1.5]), "experts: 1.5 is not a whole number"),  # type: ignore[list-item]
        (line([], 0, 0, [1]), "problem_id: [] is neither a number nor a text"),
    ],
)
def test_lines_that_are_wrong(tmp_path, text, what):
    with pytest.raises(InputError) as caught:
        imported(tmp_path, [*one_problem(0, 2), text])
    assert str(caught.value).startswith(f"{tmp_path}/log.jsonl:5: {what}")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "t.parquet").exists()


@pytest.mark.parametrize("key", ["problem_id", "type"])
def test_bytes_that_are_no_text(tmp_path, key):
    record = {"type": "route", "problem_id": "a", "layer": 0, "token_idx": 0, "experts": [1]}
    good = json.dumps(record).encode() + b"\n"
    path = tmp_path / "log.jsonl"
    path.write_bytes(good + good.replace(record[key].encode() + b'"', b'\xdc"'))
    with pytest.raises(InputError, match=r"log.jsonl:2: not JSON: 'utf-8' codec"):
        import_jsonl(path, tmp_path / "t.parquet")


def test_a_last_line_cut_short_is_dropped_and_said(tmp_path):
    report, (request, position, _) = imported(
        tmp_path, [*one_problem(0, 2), '{"problem_id": 0, "l']
    )
    assert (request, position) == ([0, 0], [0, 1])
    said = "dropped the last line: the file is cut short; what comes before is kept"
    assert said in report.lines()
    # A last line that is whole but for its newline is kept.
    report, _ = imported(tmp_path, [*one_problem(0, 2), line(0, 0, 2, [1, 2]).rstrip()])
    assert (report.tokens, report.lines_cut) == (3, 0)


def test_experts_as_given(tmp_path):
    report, _ = imported(tmp_path, one_problem(0, 6), experts=60, model="some-model")
    assert "top-2 of 60 experts (as given)" in report.lines()[1]
    assert read_info(tmp_path / "t.parquet").model == "some-model"
    with pytest.raises(InputError, match=r"log.jsonl:4: expert 4, but the model has 4 experts"):
        imported(tmp_path, one_problem(0, 6), experts=4)


def test_nothing_there(tmp_path):
    with pytest.raises(InputError, match=r"no records; a line is \{problem_id"):
        imported(tmp_path, ["\n"])
    with pytest.raises(InputError, match="no such file"):
        import_jsonl(tmp_path / "none", tmp_path / "t.parquet")
    (tmp_path / "t.parquet").write_bytes(b"mine")
    with pytest.raises(InputError, match="exists already"):
        import_jsonl(tmp_path / "log.jsonl", tmp_path / "t.parquet")
    assert (tmp_path / "t.parquet").read_bytes() == b"mine"


def test_open_trace(tmp_path):
    source = tmp_path / "log.jsonl"
    source.write_text("\n" + "".join(one_problem(0, 3)))
    said: list[str] = []
    path = open_trace(source, said.append)
    assert read_info(path).tokens == 3
    assert said[0] == "read 7 lines, 1 of them blank"
    assert open_trace(path) == path
    assert [p.name for p in tmp_path.iterdir()] == ["log.jsonl"]
    assert (recognise(path), recognise(source)) == ("parquet", "jsonl")


def test_the_temporary_trace_goes_with_the_process(tmp_path):
    source = tmp_path / "log.jsonl"
    source.write_text("".join(one_problem(0, 3)))
    code = (
        "import sys; from simulator.routing.importers import open_trace\n"
        "path = open_trace(sys.argv[1]); assert path.exists(); print(path)"
    )
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code, str(source)],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(temporary)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith(str(temporary))
    assert list(temporary.iterdir()) == []


def test_open_trace_refuses_other_files(tmp_path):
    path = tmp_path / "x"
    for content, what in (
        (None, "no such file"),
        (b"", "the file is empty"),
        (b"a,b\n1,2\n", "not a routing trace"),
        (b'{"a": 1}\n', "not a routing trace"),
        (b"\n" * 200, "not a routing trace"),
    ):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError, match=what):
            open_trace(path)


@pytest.mark.skipif(not MIXTRAL.exists(), reason="the Mixtral log is not on this machine")
def test_the_recorded_mixtral_log():
    said: list[str] = []
    path = open_trace(MIXTRAL, said.append)
    assert "kept 7,889 records: 2 requests, 247 tokens, 32 layers, top-2 of 8 experts" in said[1]
    assert trace_statistics(path)["overlap"] == pytest.approx(0.344, abs=0.0005)
    # Hit rate of one LRU cache of 4 experts per layer, emptied at each request: published .571.
    hits = accesses = 0
    block = next(iter_blocks(path, 1000))
    for layer in range(32):
        cache: OrderedDict[int, None] = OrderedDict()
        for token, ids in enumerate(block.experts[:, layer].tolist()):
            if token and block.request[token] != block.request[token - 1]:
                cache.clear()
            for expert in ids:
                if expert < 0:
                    continue
                accesses += 1
                hits += expert in cache
                cache[expert] = None
                cache.move_to_end(expert)
                if len(cache) > 4:
                    cache.popitem(last=False)
    assert accesses == 2 * 7889
    assert hits / accesses == pytest.approx(0.571, abs=0.0005)


RECORD = st.fixed_dictionaries(
    {
        "problem_id": st.one_of(st.integers(-2, 3), st.sampled_from(["a", "1", "é", None])),
        "layer": st.integers(0, 3),
        "token_idx": st.integers(0, 6),
        "experts": st.lists(st.integers(-1, 9), min_size=1, max_size=4),
    },
    optional={"extra": st.recursive(st.none(), lambda part: st.lists(part, max_size=2))},
)


@given(records=st.lists(RECORD, min_size=1, max_size=30), blank=st.booleans())
def test_both_ways_of_reading_lines_agree(tmp_path_factory, records, blank):
    """Arrow's reader of whole chunks, and the checked reading line by line."""
    folder = tmp_path_factory.mktemp("both")
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    lines[1:1] = ["\n"] if blank else []
    (folder / "log.jsonl").write_text("".join(lines))
    outcomes = []
    for name in ("arrow", "lines"):
        target = folder / f"{name}.parquet"
        with pytest.MonkeyPatch.context() as patch:
            if name == "lines":
                patch.setattr(jsonl, "_fast", lambda state, text: None)
            try:
                report = import_jsonl(folder / "log.jsonl", target)
                blocks = [
                    (b.request.tolist(), b.position.tolist(), b.experts.tolist())
                    for b in iter_blocks(target)
                ]
                outcomes.append((report.lines(), blocks))
            except InputError as error:
                outcomes.append((str(error), []))
    assert outcomes[0] == outcomes[1]


def test_a_profiling_run_of_several_requests(tmp_path):
    dummy = [line(f"d{n}", la, t, [1, 2]) for n in range(5) for la in range(2) for t in range(300)]
    real = one_problem("a", 5) + [line("b", la, t, [3, 4]) for la in range(2) for t in range(1200)]
    report, trace = imported(tmp_path, dummy + real)
    # A run of equal tokens later on is real: nothing but the start is looked at.
    assert trace == imported(tmp_path, real)[1]
    assert (report.tokens_trimmed, report.requests_trimmed, report.requests) == (1500, 5, 2)


@pytest.mark.parametrize("size", [300, 1000])
def test_chunks_and_buckets_change_nothing(tmp_path, monkeypatch, size):
    dummy = [line("w", la, t, [1, 2]) for t in range(1500) for la in range(2)]
    text = [*dummy, *one_problem("w", 7), "\n", *one_problem("b", 40), *one_problem("c", 9)]
    expected, trace = imported(tmp_path, text)
    monkeypatch.setattr(jsonl, "CHUNK_BYTES", size)
    monkeypatch.setattr(assemble.Spill.__init__, "__defaults__", (64,))
    monkeypatch.setattr(assemble, "ROW_IDS", 40)
    report, cut = imported(tmp_path, text)
    assert cut == trace
    assert report.lines() == expected.lines()
    assert report.tokens_trimmed == 1500 - 7
