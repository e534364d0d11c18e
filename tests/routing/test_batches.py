"""Batches: who is in which slot at which step, checked against a plain reading of the rule."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.routing import slots
from simulator.routing.batches import (
    ReplayState,
    check_trace,
    map_layers,
    replay,
    synthesize,
)
from simulator.routing.trace import TraceWriter, read_info

LAYERS, EXPERTS, K = 2, 512, 2


def ids_of(request: int, position: int) -> list[list[int]]:
    """Ids that tell which token they are of."""
    return [[request, 100 + position], [200 + request, 300 + position]]


def write(path: Path, rows: list[tuple[int, int, int]]) -> Path:
    """A trace of (request, position, phase) rows."""
    path.unlink(missing_ok=True)
    with TraceWriter(path, model="m", layers=LAYERS, experts=EXPERTS, k=K, origin="test") as writer:
        request, position, phase = zip(*rows, strict=True)
        ids = [ids_of(r, p) for r, p, _ in rows]
        writer.write(request, position, phase, ids)
    return path


def sorted_rows(lengths: list[int]) -> list[tuple[int, int, int]]:
    return [(r, p, 0) for r, n in enumerate(lengths) for p in range(n)]


def interleaved_rows(lengths: list[int]) -> list[tuple[int, int, int]]:
    """The same tokens, one of each request in turn; first rows are in the order of the requests."""
    return sorted(sorted_rows(lengths), key=lambda row: row[1])


def expected_decode(lengths: list[int], gpus: int, per_gpu: int, steps: int):
    """(request, position, gpu) of every token, step by step, from the documented rule."""
    total, count = len(lengths), gpus * per_gpu
    if total >= count:
        turns = itertools.cycle(range(total))
        busy = [[next(turns), 0, slot // per_gpu] for slot in range(count)]
        for _ in range(steps):
            yield [tuple(slot) for slot in busy]
            for slot in busy:
                slot[1] += 1
                if slot[1] == lengths[slot[0]]:
                    slot[0], slot[1] = next(turns), 0
        return
    dealt = sorted(range(total), key=lambda request: (request % gpus, request))
    for step in range(steps):
        position = step % max(lengths)
        yield [(r, position, r % gpus) for r in dealt if position < lengths[r]]


def tokens_of(batch):
    """(request, position, gpu) of a batch, after checking that its ids belong to these tokens."""
    for ids, request, position in zip(batch.ids, batch.request, batch.position, strict=True):
        assert ids.tolist() == ids_of(int(request), int(position))
    assert (np.diff(batch.source_gpu) >= 0).all()
    assert np.array_equal(batch.new_sequence, batch.position == 0)
    columns = (batch.request, batch.position, batch.source_gpu)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=12),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([sorted_rows, interleaved_rows]),
)
def test_decode_is_the_documented_rule(tmp_path_factory, lengths, gpus, per_gpu, order):
    path = write(tmp_path_factory.getbasetemp() / "decode.parquet", order(lengths))
    batches = itertools.islice(replay(path, gpus, per_gpu, "decode", LAYERS), 40)
    assert [tokens_of(batch) for batch in batches] == list(
        expected_decode(lengths, gpus, per_gpu, 40)
    )


@pytest.mark.parametrize("first_pool", [1, 64])
def test_decode_over_many_blocks_with_a_small_pool(tmp_path, monkeypatch, first_pool):
    monkeypatch.setattr(slots, "FIRST_POOL_TOKENS", first_pool)
    blocks = slots.iter_blocks
    monkeypatch.setattr(slots, "iter_blocks", lambda path: blocks(path, 5))
    lengths = [7, 1, 30, 2, 2, 11, 4, 19, 1, 1, 25]
    for order in (sorted_rows, interleaved_rows):
        path = write(tmp_path / "t.parquet", order(lengths))
        batches = itertools.islice(replay(path, 2, 2, "decode", LAYERS), 200)
        assert [tokens_of(b) for b in batches] == list(expected_decode(lengths, 2, 2, 200))


def test_wraps_are_counted(tmp_path):
    path = write(tmp_path / "t.parquet", sorted_rows([3, 3, 3, 3]))
    state = ReplayState()
    batches = replay(path, 1, 2, "decode", LAYERS, state=state)
    # Two slots, four requests of three tokens: six steps a pass.
    wraps = [(next(batches) is not None) * state.wraps for _ in range(14)]
    assert wraps == [0] * 6 + [1] * 6 + [2] * 2
    assert (state.requests, state.tokens) == (4, 12)
    # Eight slots for the four requests: three steps a pass.
    batches = replay(path, 2, 4, "decode", LAYERS, state=state)
    assert [(next(batches) is not None) * state.wraps for _ in range(7)] == [0] * 3 + [1] * 3 + [2]
    # Prefill of 5 of the 12 rows a step: the third step takes rows 10, 11, 0, 1, 2.
    batches = replay(path, 1, 5, "prefill", LAYERS, state=state)
    assert [(next(batches) is not None) * state.wraps for _ in range(5)] == [0, 0, 1, 1, 2]


def test_prefill_takes_rows_in_file_order(tmp_path):
    rows = sorted_rows([3, 1, 4])
    path = write(tmp_path / "t.parquet", rows)
    batches = replay(path, 2, 3, "prefill", LAYERS)
    endless = itertools.cycle(rows)
    for batch in itertools.islice(batches, 10):
        expected = [next(endless)[:2] for _ in range(6)]
        assert [token[:2] for token in tokens_of(batch)] == expected
        assert batch.source_gpu.tolist() == [0, 0, 0, 1, 1, 1]


def test_a_prefill_larger_than_the_trace_takes_it_again_and_again(tmp_path):
    path = write(tmp_path / "t.parquet", [(5, 0, 0), (5, 1, 0)])
    state = ReplayState()
    batch = next(replay(path, 1, 7, "prefill", LAYERS, state=state))
    assert batch.position.tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert batch.new_sequence.tolist() == [True, False] * 3 + [True]
    assert state.wraps == 3


def test_filters(tmp_path):
    rows = [(0, 0, 0), (0, 1, 1), (0, 2, 1), (1, 0, 0), (2, 0, 2), (2, 1, 1)]
    path = write(tmp_path / "t.parquet", rows)
    for name, kept in (("any", rows), ("prompt", [rows[0], rows[3]]), ("generated", None)):
        kept = kept or [row for row in rows if row[2] == 1]
        batch = next(replay(path, 1, len(kept), "prefill", LAYERS, tokens_filter=name))
        found = list(zip(batch.request.tolist(), batch.position.tolist(), strict=True))
        assert found == [row[:2] for row in kept]
    # Request 1 has no generated token, so it has no slot.
    decode = replay(path, 1, 2, "decode", LAYERS, tokens_filter="generated")
    steps = [(b.request.tolist(), b.position.tolist()) for b in itertools.islice(decode, 3)]
    assert steps == [([0, 2], [1, 1]), ([0, 0], [2, 1]), ([2, 0], [1, 2])]
    assert next(decode).new_sequence.tolist() == [True, True]
    prompt_only = write(tmp_path / "p.parquet", [(0, 0, 0)])
    for phase in ("decode", "prefill"):
        with pytest.raises(InputError, match="has no generated tokens"):
            next(replay(prompt_only, 1, 1, phase, LAYERS, tokens_filter="generated"))


def test_layers_are_mapped(tmp_path):
    assert map_layers(7, 3, "cycle").tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert map_layers(7, 3, "stretch").tolist() == [0, 0, 0, 1, 1, 2, 2]
    for how in ("cycle", "stretch"):
        assert map_layers(3, 3, how).tolist() == [0, 1, 2]
        assert map_layers(2, 3, how).tolist() == [0, 1]
    path = write(tmp_path / "t.parquet", sorted_rows([2, 2]))
    for phase in ("decode", "prefill"):
        batch = next(replay(path, 1, 2, phase, 4, "stretch"))
        assert batch.ids.shape == (2, LAYERS, K)
        assert batch.layer_of.tolist() == [0, 0, 1, 1]
        assert batch.layer_ids(1).tolist() == batch.ids[:, 0].tolist()
        assert batch.layer_ids(3).tolist() == batch.ids[:, 1].tolist()
        assert batch.layer_ids(3).base is not None, "a view: no copy per layer"
        assert next(replay(path, 1, 2, phase, 1)).ids.shape == (2, 1, K)


def test_the_trace_must_be_of_such_a_model(tmp_path):
    path = write(tmp_path / "t.parquet", sorted_rows([1]))
    info = read_info(path)
    check_trace(info, EXPERTS, K, path)
    with pytest.raises(InputError, match="the model has 600 experts, more than the 512 of the tr"):
        check_trace(info, 600, K, path)
    with pytest.raises(InputError, match="the model has 8 experts, fewer than the 512 of the tr"):
        check_trace(info, 8, K, path)
    with pytest.raises(InputError, match="the model takes 4 experts per token, the trace has 2"):
        check_trace(info, EXPERTS, 4, path)


def test_words_that_are_not_known(tmp_path):
    path = write(tmp_path / "t.parquet", sorted_rows([1]))
    for arguments, what in (
        ((1, 1, "train", 1), "phase 'train' is unknown; write decode or prefill"),
        ((1, 1, "decode", 9, "mirror"), "layer map 'mirror' is unknown; write cycle or stretch"),
        ((1, 1, "decode", 1, "cycle", "all"), "token filter 'all' is unknown; write any, prompt"),
        ((0, 1, "decode", 1), "both must be at least 1"),
    ):
        with pytest.raises(InputError, match=what):
            next(replay(path, *arguments))


def test_too_interleaved_to_buffer(tmp_path, monkeypatch):
    monkeypatch.setattr(slots, "MAX_QUEUED_TOKENS", 20)
    lengths = [6] * 10
    path = write(tmp_path / "t.parquet", interleaved_rows(lengths))
    with pytest.raises(InputError, match="interleaved, and more than 20 tokens wait"):
        list(itertools.islice(replay(path, 1, 1, "decode", LAYERS), 60))
    # Sorted, nothing waits but what one block holds beyond need.
    blocks = slots.iter_blocks
    monkeypatch.setattr(slots, "iter_blocks", lambda path: blocks(path, 8))
    path = write(tmp_path / "t.parquet", sorted_rows(lengths))
    assert len(list(itertools.islice(replay(path, 1, 1, "decode", LAYERS), 200))) == 200


def test_too_much_for_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(slots, "FIRST_POOL_TOKENS", 4)
    monkeypatch.setattr(slots, "MAX_POOL_BYTES", 100)
    path = write(tmp_path / "t.parquet", sorted_rows([20, 20]))
    with pytest.raises(InputError, match="lower the tokens per GPU"):
        next(replay(path, 1, 2, "decode", LAYERS))


def test_positions_must_increase_within_a_request(tmp_path):
    path = write(tmp_path / "t.parquet", [(0, 5, 0), (1, 0, 0), (0, 4, 0)])
    with pytest.raises(InputError, match=r"do not increase in rows 0..2; sort the file"):
        next(replay(path, 1, 2, "decode", LAYERS))


def test_synthetic_decode_and_prefill():
    batches = list(itertools.islice(synthesize("uniform", 2, 3, "decode", 4, 16, 2, 1), 3))
    for step, batch in enumerate(batches):
        assert batch.ids.shape == (6, 4, 2)
        assert batch.source_gpu.tolist() == [0, 0, 0, 1, 1, 1]
        assert batch.request.tolist() == [0, 1, 2, 3, 4, 5]
        assert batch.position.tolist() == [step] * 6
        assert batch.new_sequence.tolist() == [step == 0] * 6
        assert batch.layer_of.tolist() == [0, 1, 2, 3]
        assert batch.layer_ids(2).base is not None
    batches = list(itertools.islice(synthesize("uniform", 2, 3, "prefill", 4, 16, 2, 1), 2))
    assert batches[1].request.tolist() == [0, 0, 0, 1, 1, 1]
    assert batches[1].position.tolist() == [3, 4, 5, 3, 4, 5]
    assert batches[0].new_sequence.tolist() == [True, False, False] * 2
    assert not batches[1].new_sequence.any()


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_a_sticky_sequence_goes_on_through_steps(phase):
    batches = list(itertools.islice(synthesize("markov:1", 2, 3, phase, 2, 32, 4, 1), 3))
    sequence = batches[0].request
    first = {int(r): batches[0].ids[i].tolist() for i, r in reversed(list(enumerate(sequence)))}
    for batch in batches:
        assert [ids.tolist() for ids in batch.ids] == [first[int(r)] for r in sequence]
    assert len({str(ids) for ids in first.values()}) == len(first)


def test_hot_experts_stay_hot_and_differ_between_layers():
    batches = synthesize("zipf:3", 4, 50, "decode", 3, 64, 1, 7)
    hottest = [
        tuple(np.bincount(b.ids[:, layer, 0], minlength=64).argmax() for layer in range(3))
        for b in itertools.islice(batches, 5)
    ]
    assert len(set(hottest)) == 1
    assert len(set(hottest[0])) == 3


def test_seeds_and_processes(tmp_path):
    code = (
        "import hashlib, itertools\n"
        "from simulator.routing.batches import synthesize\n"
        "for law in ('zipf:1.1', 'power-law', 'markov:0.3', 'uniform'):\n"
        "    for b in itertools.islice(synthesize(law, 2, 8, 'decode', 3, 16, 2, SEED), 2):\n"
        "        print(hashlib.sha256(b.ids.tobytes()).hexdigest())\n"
    )

    def out(seed: int, hash_seed: str) -> str:
        env = os.environ | {"PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", code.replace("SEED", str(seed))]
        root = Path(__file__).parents[2]
        done = subprocess.run(
            command, env=env, cwd=root, check=True, capture_output=True, text=True
        )
        return done.stdout

    assert out(1, "1") == out(1, "2")
    here = next(synthesize("zipf:1.1", 2, 8, "decode", 3, 16, 2, 1)).ids.tobytes()
    assert out(1, "3").startswith(hashlib.sha256(here).hexdigest())
    other = next(synthesize("zipf:1.1", 2, 8, "decode", 3, 16, 2, 2)).ids.tobytes()
    assert other != here
