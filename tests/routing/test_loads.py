"""Loads without tokens: reading them, and the law that draws tokens with just these loads."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
from routing import torch_files

from simulator.api import simulate
from simulator.errors import InputError
from simulator.routing.importers import import_any, open_trace, recognise
from simulator.routing.laws import is_law, parse_law
from simulator.routing.loads import is_load_file, law_of, load_windows, loads_of
from simulator.routing.systematic import draw_systematic, inclusion
from simulator.routing.trace import TraceWriter, iter_blocks

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT.parent / "shared" / "reference" / "routing"


def windows() -> np.ndarray:
    """Loads of 2 windows, 4 layers (the first dense) and 8 experts."""
    counts = np.random.default_rng(5).integers(0, 90, (2, 4, 8))
    counts[:, 0] = 0
    return counts


def in_every_form(tmp_path: Path) -> dict[str, Path]:
    counts = windows()
    paths = {form: tmp_path / f"loads.{form}" for form in ("json", "npy", "npz", "pt", "csv")}
    paths["json"].write_text(json.dumps({"logical_count": counts.tolist()}))
    np.save(paths["npy"], counts.astype(np.float32))
    np.savez(paths["npz"], expert_load_window=counts, physical_to_logical_map=np.arange(4))
    torch_files.save(paths["pt"], {"rank": 0, "logical_count": counts.astype(np.int32)})
    paths["csv"].write_text(
        "domain,list_index,expert,token_count\n"
        + "".join(
            f"d{w},{la},{e},{counts[w, la, e]}\n"
            for w in range(2)
            for la in range(4)
            for e in range(8)
        )
    )
    return paths


@pytest.mark.parametrize("form", ["json", "npy", "npz", "pt", "csv"])
def test_every_form_of_file_holds_the_same(tmp_path, form):
    path = in_every_form(tmp_path)[form]
    assert recognise(path) == "loads"
    assert is_load_file(path)
    loads = loads_of(path)
    assert np.array_equal(loads.counts, windows().sum(axis=0)[1:])
    assert loads.layers.tolist() == [1, 2, 3]
    assert (loads.k, loads.source) == (None, str(path))
    assert np.array_equal(load_windows(path), windows()[:, 1:])
    said = "\n".join(loads.notes)
    assert "2 windows of loads, summed" in said
    assert "layers without tokens left out, taken as dense: 0; 3 of 4 kept" in said


def tensorrt(folder: Path, rank: int, counts: dict[str, np.ndarray], experts: int = 8) -> None:
    folder.mkdir(exist_ok=True)
    header, body = {}, b""
    for key, array in counts.items():
        span = [len(body), len(body) + 8 * len(array)]
        header[key] = {"dtype": "I64", "shape": [len(array)], "data_offsets": span}
        body += array.astype(np.int64).tobytes()
    text = json.dumps(header).encode()
    (folder / f"rank{rank}.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)
    meta = {"num_experts": experts, "num_experts_per_token": 2}
    (folder / "meta_info.json").write_text(json.dumps(meta))


def test_tensorrt_ranks_are_summed(tmp_path):
    folder = tmp_path / "statistics"
    counts = windows()
    mine = {f"{i + 50}_{la}": counts[i, la] for i in range(2) for la in (1, 3)}
    tensorrt(folder, 0, mine)
    tensorrt(folder, 1, {"50_1": counts[0, 2]})
    loads = loads_of(folder)
    assert (loads.layers.tolist(), loads.k) == ([1, 3], 2)
    expected = counts[:, [1, 3]].sum(axis=0)
    expected[0] += counts[0, 2]
    assert np.array_equal(loads.counts, expected)
    assert load_windows(folder).shape == (2, 2, 8)
    # One file of the folder does too; ranks that saw the same tokens count once.
    assert loads_of(folder / "rank0.safetensors").k == 2
    tensorrt(folder, 1, mine)
    loads = loads_of(folder)
    assert np.array_equal(loads.counts, counts[:, [1, 3]].sum(axis=0))
    assert any("all 2 ranks hold the same counts" in note for note in loads.notes)
    report = import_any("tensorrt-llm", folder, tmp_path / "t.parquet", tokens=64)
    assert (report.k, report.layers, report.tokens) == (2, 2, 64)
    tensorrt(folder, 1, {"51_3": counts[1, 3][:5]})
    with pytest.raises(InputError, match="counts of 5, 8 experts, expected 8 in every key"):
        loads_of(folder)
    tensorrt(folder, 1, {"layer": counts[1, 3]})
    with pytest.raises(InputError, match="key 'layer'"):
        loads_of(folder)


def test_a_trace_is_counted(tmp_path):
    ids = np.array([[[0, 1], [2, 3]], [[0, 2], [-1, -1]], [[0, 3], [2, -1]]])
    path = tmp_path / "t.parquet"
    with TraceWriter(path, model="m", layers=2, experts=4, k=2, origin="test") as writer:
        writer.write(np.zeros(3), np.arange(3), np.full(3, 2), ids)
    loads = loads_of(path)
    assert loads.counts.tolist() == [[3, 1, 1, 1], [0, 0, 2, 1]]
    assert (loads.k, load_windows(path)) == (2, None)
    assert not is_load_file(path)


def test_what_is_no_load(tmp_path):
    path = tmp_path / "x.json"
    for text, what in (
        ('{"logical_count": [[1, 2], [3]]}', "rows of different lengths"),
        ('{"logical_count": [1, 2]}', r"expected numbers \[layers, experts\]"),
        ('{"logical_count": {"a": 1}}', "no list 'logical_count'"),
        ('{"logical_count": [["a", "b"]]}', "expected numbers"),
        ('{"logical_count": [[1, 2]', "not JSON"),
        ('{"logical_count": [[1, -2]]}', "window 0, layer 0, expert 1: a load of -2"),
        ('{"logical_count": [[1, NaN]]}', "window 0, layer 0, expert 1: a load of nan"),
        ('{"logical_count": []}', "expected numbers"),
        ('{"phy2log": [[1, 2]], "logcnt": [[1, 2]]}', "nor a recording that can be imported"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=what) as caught:
            loads_of(path)
        assert str(path) in str(caught.value)


def test_inclusion_by_hand():
    # Shares .5, .3, .2 of k = 1: as they are. Of k = 2 the first would be 1.0, the others .6, .4.
    counts = np.array([[50.0, 30.0, 20.0, 0.0]])
    assert inclusion(counts, 1)[0] == pytest.approx([0.5, 0.3, 0.2, 0.0], rel=1e-12)
    assert inclusion(counts, 2)[0] == pytest.approx([1.0, 0.6, 0.4, 0.0], rel=1e-12)
    # k x share of the first is 1.8: 1, and one expert of the rest by their loads.
    assert inclusion(np.array([[90.0, 6.0, 4.0, 0.0]]), 2)[0] == pytest.approx(
        [1.0, 0.6, 0.4, 0.0], rel=1e-12
    )
    # Two loaded experts of three wanted: the third is any of the others.
    assert inclusion(np.array([[9.0, 1.0, 0.0, 0.0]]), 3)[0] == pytest.approx(
        [1.0, 1.0, 0.5, 0.5], rel=1e-12
    )


@pytest.mark.parametrize("k", [1, 2, 5, 8])
def test_experts_are_drawn_in_proportion_to_their_loads(k):
    """Each expert's count is binomial(tokens, k x share): z below 4.5 in all of them, and the sum
    of z squared is at most that of independent counts (without replacement they are negatively
    related), far from it if the chances were wrong by a per cent.
    """
    rng = np.random.default_rng(11)
    counts = rng.random((3, 40)) + 0.5
    chance = inclusion(counts, k)
    assert np.allclose(chance, k * counts / counts.sum(axis=1, keepdims=True), rtol=1e-12)
    tokens = 200_000
    out = np.empty((3, tokens, k), dtype=np.int16)
    draw_systematic(np.random.default_rng(3), chance, out)
    ordered = np.sort(out, axis=2)
    assert (ordered[:, :, 1:] > ordered[:, :, :-1]).all()
    for layer in range(3):
        found = np.bincount(out[layer].reshape(-1), minlength=40)
        assert found.sum() == tokens * k
        p = chance[layer]
        z = (found - tokens * p) / np.sqrt(tokens * p * (1 - p))
        assert np.abs(z).max() < 4.5
        assert (z**2).sum() < 40 + 5 * math.sqrt(80)
    # The test would see it: chances wrong by 2 % fail.
    wrong = chance[0] * np.where(np.arange(40) % 2, 1.02, 0.98)
    z = (np.bincount(out[0].reshape(-1), minlength=40) - tokens * wrong) / np.sqrt(tokens * wrong)
    assert (z**2).sum() > 40 + 5 * math.sqrt(80)


def test_chances_of_one_and_zero_are_exact():
    chance = np.array([[1.0, 0.0, 0.75, 0.25, 1.0, 0.0]])
    out = np.empty((1, 5000, 3), dtype=np.int16)
    draw_systematic(np.random.default_rng(0), chance, out)
    found = np.bincount(out.reshape(-1), minlength=6)
    assert found[[0, 1, 4, 5]].tolist() == [5000, 0, 5000, 0]
    assert found[2] == pytest.approx(3750, abs=5 * math.sqrt(5000 * 0.1875))
    # The order within a token is random too: no place belongs to an expert.
    assert 1300 < (out[0, :, 0] == 0).sum() < 2200


def test_the_law_of_a_file(tmp_path):
    path = in_every_form(tmp_path)["json"]
    assert is_law(f"loads:{path}")
    assert not is_law("loads")
    law, parameters = parse_law(f"loads:{path}")
    assert parameters == ()
    # Five layers of a model take the file's three in turn.
    ids = law(np.random.default_rng([0, 1]), 3000, 5, 8, 2)
    assert (ids.shape, ids.dtype) == ((3000, 5, 2), np.int16)
    chance = inclusion(loads_of(path).counts, 2)
    for layer in range(5):
        found = np.bincount(ids[:, layer].reshape(-1), minlength=8) / 3000
        assert found == pytest.approx(chance[layer % 3], abs=0.05)
    assert np.array_equal(ids, law(np.random.default_rng([0, 1]), 3000, 5, 8, 2))
    with pytest.raises(InputError, match="loads of 8 experts, but the model has 16"):
        law(np.random.default_rng(0), 1, 5, 16, 2)
    with pytest.raises(InputError, match="no such file"):
        parse_law("loads:none.json")
    assert law_of("zipf:1.2", None) == "zipf:1.2"
    assert law_of("x", path) == f"loads:{path}"


def test_a_run_takes_a_load_file(tmp_path):
    counts = np.zeros((2, 128), dtype=np.int64)
    counts[:, :16] = 100
    path = tmp_path / "loads.npy"
    np.save(path, counts)
    small = ["model.layers=2", "traffic.steps=1", "traffic.warmup_steps=0"]
    result = simulate("nvswitch16", "moe128", overrides=small, routing=str(path))
    assert f"routing drawn from the law loads:{path}, not recorded" in result.notes
    by_name = simulate("nvswitch16", "moe128", overrides=small, routing=f"loads:{path}")
    assert by_name.summary == result.summary


def test_a_drawn_trace_says_so(tmp_path):
    path = in_every_form(tmp_path)["npy"]
    said: list[str] = []
    trace = open_trace(path, said.append)
    assert "the tokens are drawn, not recorded: only their loads are those of the file" in said
    assert "top-4 taken, which the file does not tell; give --top-k if the model's differs" in said
    found = loads_of(trace).counts
    assert found == pytest.approx(inclusion(loads_of(path).counts, 4) * 4096, rel=0.15, abs=20)
    report = import_any("loads", path, tmp_path / "a.parquet", tokens=70, k=2, seed=1)
    assert (report.tokens, report.requests, report.k) == (70, 2, 2)
    again = import_any("loads", path, tmp_path / "b.parquet", tokens=70, k=2, seed=1)
    assert again.tokens == 70
    same = [
        np.concatenate([block.experts for block in iter_blocks(tmp_path / f"{name}.parquet")])
        for name in "ab"
    ]
    assert np.array_equal(*same)


@pytest.mark.skipif(not REFERENCE.exists(), reason="the shared recordings are not on this machine")
def test_the_shared_load_files():
    loads = loads_of(REFERENCE / "local_only" / "deepseek_v3_prefill_in4096.json")
    assert (loads.counts.shape, loads.layers[0]) == ((58, 256), 3)
    # Max over mean of linear placement, published beside the file.
    for gpus, published in ((8, 2.07), (16, 2.57), (32, 3.04), (64, 3.77), (128, 5.36)):
        groups = loads.counts.reshape(58, gpus, -1).sum(axis=2)
        assert (groups.max(axis=1) / groups.mean(axis=1)).mean() == pytest.approx(
            published, abs=0.005
        )
    olmoe = REFERENCE / "olmoe" / "expert_counts.csv"
    assert loads_of(olmoe).counts.shape == (3, 64)
    assert loads_of(olmoe, model="mistral").counts.shape == (3, 8)
    assert load_windows(olmoe).shape == (6, 3, 64)
    with pytest.raises(InputError, match="no model 'other'; it holds mistral"):
        loads_of(olmoe, model="other")
    for name in (
        "eplb_prefill_in4096_rep288_n4_g32.json",
        "eplb_prefill_in4096_rep288_n9_g72.json",
    ):
        with pytest.raises(InputError, match="nor a recording that can be imported"):
            loads_of(REFERENCE / "local_only" / name)
