"""Readers of SGLang, vLLM, TensorRT-LLM, Hugging Face, CSV and route logs, beside hand counts."""

from __future__ import annotations

import base64
import gzip
import importlib.util
import json
import os
import pickle
import zlib
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
from routing import torch_files

from simulator.cli import main
from simulator.errors import InputError
from simulator.routing.importers import IMPORTERS, import_any, open_trace, recognise, torchfile
from simulator.routing.importers.assemble import Spill
from simulator.routing.importers.report import ImportReport
from simulator.routing.importers.torchfile import read_torch
from simulator.routing.trace import GENERATED, PROMPT, iter_blocks, read_info

# torch 2.15: torch.save(dict(rank=0, logical_count=torch.arange(24, dtype=torch.int32)
# .reshape(2, 3, 4), average_utilization_rate_over_window=None)), zlib, base 85.
REAL_PT = (
    "c-o~@O>fgc5FI<Ile$gPl#fCW<p75uK^iA%no`k95eh<<AQT}*TwK>#f>qbfI-3@dkdP3n5GO8Nkht>;"
    "koXH65M1Ga#EA?11!nEmwH=!BvC?S0_P)1oX5YA_CXxW@Gz^U?m<HW7?wQ+UzN0g}*xR(4jV#=WjK|_5"
    "3WYXufUDb^R8XOv!G+~?O+&Xd!x`9&iUxC#s;CW^Y4v5zB^v|N>S&DEeaF?d%Q8(A3hfjE`?yo@5}NcO"
    "@->^?@?XhxtS#V<5|!EsoQ>Xqrqol6rf;gCifTel?$U8}QcbGDE|s4dhGSX8V5VdD<r{8?xTJH%G?+{$"
    "&acr)Ml)+P+dhX(`ZnPQc<RiDI!9=(&WPsV2W`i+JI)TxT^|%%YAXG8dHKx`1o3DcTD=*_1l23vb=)nT"
    "X-L*b>Skm7poj{meEaju6P}qcl5!Rn4=DG_r0JH~wYP}PnvF{AYW`@{s$9V84*f3T5#mSzc~}huY&>AZ"
    ";WceGmjC74{b8AmS%hnNdimRF2~UwmYRJM$#Fg`<X5-R-2!Oq^^US%axRJ;9RB$_T3F8<t#stPBM#j?t"
    "kn_5P*9EXw0FGfC$2fs;((?e%B$a;u`Q7X~KCh3=EC*+U%mSyJIV!b^%uo3Ex_kTR`<sLEfq}f@^@(fh"
    "f#uCkvr+uZS}F^R<+`%8w4f;Ug=(!@DV1xbTB*8NE-Q6!QLk5(s^_x&^ZKg->L_?B1uizw8Sbj7A?5M^"
    "P#hg@pqU7AMS#QlFisL~g4qbki!jMh=f!!#M$SigrbQTTpg272mTUz6QiPcI<JhndauIAV0daT5!Qtzf"
    "i-13cz`r+6OO>Px`!-8l43MeV{6X;N`$>OBocHOf<gfid;F#oNQr>=l?=M@yWU2"
)


def routed(tokens: int, layers: int, experts: int, k: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    every = np.broadcast_to(np.arange(experts), (tokens, layers, experts))
    return rng.permuted(every, axis=2)[:, :, :k].astype(np.int32)


def imported(tmp_path: Path, source: Path, kind: str = "auto", **options: Any):
    """The report, and requests, positions, phases, ids of the trace."""
    target = tmp_path / "out.parquet"
    target.unlink(missing_ok=True)
    report = import_any(kind, source, target, **options)
    blocks = list(iter_blocks(target))
    columns = [
        np.concatenate([getattr(b, name) for b in blocks])
        for name in ("request", "position", "phase", "experts")
    ]
    info = read_info(target)
    assert (info.tokens, info.requests) == (report.tokens, report.requests)
    assert (info.layers, info.experts, info.k) == (report.layers, report.experts, report.k)
    return report, columns


# SGLang


def sglang_dump(tmp_path: Path, **more: Any) -> tuple[Path, list[np.ndarray]]:
    """Two prompts (3 and 2 tokens) in one pass, then two decode passes; layer 0 is dense."""
    ids = []
    for seed, tokens in enumerate((5, 2, 2)):
        taken = routed(tokens, 3, 8, 2, seed).transpose(1, 0, 2).copy()
        padded = np.full((3, tokens, 4), -1, dtype=np.int32)
        padded[1:, :, :2] = taken[1:]
        ids.append(padded)
    records = [
        torch_files.forward_pass([0, 1, 2, 0, 1], ids[0], [3, 2]),
        torch_files.forward_pass([3, 2], ids[1], None),
        torch_files.forward_pass([4, 3], ids[2], None),
    ]
    path = tmp_path / "dump.pt"
    torch_files.save(path, {"records": records, **more})
    return path, ids


def test_sglang_passes_become_requests(tmp_path):
    path, ids = sglang_dump(tmp_path)
    assert recognise(path) == "sglang"
    report, (request, position, phase, experts) = imported(tmp_path, path, "sglang")
    assert request.tolist() == [0] * 5 + [1] * 4
    assert position.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3]
    assert phase.tolist() == [PROMPT] * 3 + [GENERATED] * 2 + [PROMPT] * 2 + [GENERATED] * 2
    first = np.concatenate([ids[0][1:, :3], ids[1][1:, :1], ids[2][1:, :1]], axis=1)
    assert np.array_equal(experts[:5], first[:, :, :2].transpose(1, 0, 2))
    said = "\n".join(report.lines())
    assert "read 3 forward passes" in said
    assert "kept 18 records: 2 requests, 9 tokens, 2 layers, top-2 of 8 experts" in said
    assert "4 stretches of tokens joined to the request that they follow by position" in said
    assert "layers without any expert left out: 0; the trace's layer 0 is the file's 1" in said
    assert "dropped 36 places of padding (-1) within the experts" in said


def test_sglang_physical_experts_become_logical(tmp_path):
    mapping = np.tile(np.array([3, 2, 1, 0, 7, 6, 5, 4], dtype=np.int64), (3, 1))
    path, ids = sglang_dump(tmp_path, last_physical_to_logical_map=mapping)
    report, (_, _, _, experts) = imported(tmp_path, path)
    assert np.array_equal(experts[0], mapping[0][ids[0][1:, 0, :2]])
    assert any("turned into logical ones" in note for note in report.notes)


def test_sglang_records_that_are_wrong(tmp_path):
    path, ids = sglang_dump(tmp_path)
    good = torch_files.forward_pass([0, 1, 2, 0, 1], ids[0], [3, 2])
    for change, what in (
        ({"extend_seq_lens": [3, 9]}, "extend_seq_lens is not a list of numbers of tokens"),
        ({"extend_seq_lens": [3, 3]}, "extend_seq_lens sum to 6, but there are 5 tokens"),
        ({"positions": [0, 1, 1, 0, 1]}, "positions within a request do not go up"),
        ({"positions": [0, 1, -2, 0, 1]}, "a position is not 0..2147483647"),
        ({"positions": [0, 1]}, "(2,) positions for 5 tokens"),
        ({"topk_ids_of_layer": ids[0][0]}, "no topk_ids_of_layer of whole numbers"),
        ({"topk_ids_of_layer": ids[0] * 0 + 5}, "token 0, layer 0: expert 5 twice"),
        ({"topk_ids_of_layer": ids[0] - 1}, "expert -2 is not one of"),
    ):
        torch_files.save(path, {"records": [good | change]})
        with pytest.raises(InputError) as caught:
            imported(tmp_path, path, "sglang")
        assert what in str(caught.value)
        assert "record 0" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_sglang_stat_is_drawn_from(tmp_path):
    path = tmp_path / "stat.pt"
    torch_files.save(path, {"rank": 0, "logical_count": np.ones((4, 2, 8), dtype=np.int32)})
    assert recognise(path) == "loads"
    report, (_, _, _, experts) = imported(tmp_path, path, "sglang", k=3, tokens=100)
    assert experts.shape == (100, 2, 3)
    assert "drew 200 records: 2 requests, 100 tokens, 2 layers, top-3 of 8" in report.lines()[1]


# .pt files


def test_a_file_that_torch_wrote(tmp_path):
    path = tmp_path / "real.pt"
    path.write_bytes(zlib.decompress(base64.b85decode(REAL_PT)))
    data = read_torch(path)
    assert np.array_equal(data["logical_count"], np.arange(24).reshape(2, 3, 4))
    assert data["logical_count"].dtype == np.int32
    assert (data["rank"], data["average_utilization_rate_over_window"]) == (0, None)


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch, an optional extra, is not installed"
)
def test_torch_and_the_interpreter_agree(tmp_path, monkeypatch):
    path, _ = sglang_dump(tmp_path)
    by_torch = read_torch(path)
    monkeypatch.setattr(torchfile, "_safe_torch", lambda: None)
    by_itself = read_torch(path)
    for left, right in zip(by_torch["records"], by_itself["records"], strict=True):
        assert np.array_equal(left.pop("topk_ids_of_layer"), right.pop("topk_ids_of_layer"))
        assert left == right


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self.what = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[object, ...]]:
        return self.what


@pytest.mark.parametrize("protocol", range(2, 6))
def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path, protocol):
    sign = tmp_path / "executed"
    for evil in (
        Evil(os.system, f"touch {sign}"),
        Evil(eval, f"open({str(sign)!r}, 'w')"),
        Evil(getattr, os, "system"),
        Evil(np.save, sign, 1),
    ):
        for data in (evil, {"records": [evil]}, {"logical_count": evil}):
            path = tmp_path / "evil.pt"
            try:
                torch_files.write_zip(path, pickle.dumps(data, protocol=protocol))
            except TypeError:  # a module has no pickle of its own
                continue
            with pytest.raises(InputError, match="refused, nothing of it was executed"):
                open_trace(path)
            assert not sign.exists()


def test_a_bare_pickle_is_refused(tmp_path):
    path = tmp_path / "old.pt"
    path.write_bytes(pickle.dumps({"logical_count": [[1]]}, protocol=2))
    with pytest.raises(InputError, match="a bare pickle"):
        open_trace(path)


def test_tensors_beyond_their_storage_are_refused(tmp_path):
    for array_type, what in ((np.int32, "beyond its storage"),):
        path = tmp_path / "x.pt"
        torch_files.save(path, {"logical_count": np.ones((2, 8), dtype=array_type)})
        raw = path.read_bytes()
        # The tensor's shape (2, 8) becomes (2, 200) in the pickle, the storage stays.
        assert raw.count(b"K\x02K\x08\x86") == 1
        with ZipFile(path) as box:
            pickled, held = box.read("archive/data.pkl"), box.read("archive/data/0")
        torch_files.write_zip(path, pickled.replace(b"K\x02K\x08\x86", b"K\x02K\xc8\x86"), [held])
        with pytest.raises(InputError, match=what):
            read_torch(path)


# vLLM and Hugging Face


def test_vllm_arrays_are_requests(tmp_path):
    first, second = routed(5, 3, 16, 4), routed(2, 3, 16, 4, seed=1)
    second[1, 2] = [7, -1, 3, -1]
    second[0] = -1
    path = tmp_path / "routed.npz"
    np.savez(path, first, second)
    assert recognise(path) == "vllm"
    report, (request, position, _, experts) = imported(tmp_path, path)
    assert request.tolist() == [0] * 5 + [1]
    assert position.tolist() == [0, 1, 2, 3, 4, 1]
    assert np.array_equal(experts[:5], first)
    assert experts[5, 2].tolist() == [7, 3, -1, -1]
    assert (report.tokens_empty, report.padding_dropped) == (1, 2)
    np.save(tmp_path / "one.npy", first)
    assert np.array_equal(imported(tmp_path, tmp_path / "one.npy")[1][3], first)
    with pytest.raises(InputError, match="array 'arr_0': token 0, layer 0: expert"):
        imported(tmp_path, path, "vllm", experts=4)
    np.savez(path, first, second[:, :2])
    with pytest.raises(InputError, match="array 'arr_1' has 2 layers, others 3"):
        imported(tmp_path, path)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint64", ">i4"])
def test_ids_of_any_whole_type_are_the_same(tmp_path, dtype):
    ids = routed(5, 3, 16, 4)
    np.savez(tmp_path / "a.npz", np.zeros((0, 3, 4), dtype), ids.astype(dtype))
    report, (_, _, _, experts) = imported(tmp_path, tmp_path / "a.npz")
    assert np.array_equal(experts, ids)
    assert report.requests == 1
    np.save(tmp_path / "b.npy", np.full((5, 3, 4), np.iinfo(dtype).max, dtype))
    with pytest.raises(InputError):
        imported(tmp_path, tmp_path / "b.npy", "vllm", experts=16)


def test_parts_may_hold_different_numbers_of_experts(tmp_path):
    wide, narrow = routed(5, 3, 16, 4), routed(2, 3, 16, 2)
    np.savez(tmp_path / "a.npz", wide, narrow)
    _, (_, _, _, experts) = imported(tmp_path, tmp_path / "a.npz")
    assert np.array_equal(experts[:5], wide)
    assert np.array_equal(experts[5:, :, :2], narrow)
    assert (experts[5:, :, 2:] == -1).all()


def test_a_long_array_is_read_in_pieces(tmp_path, monkeypatch):
    from simulator.routing.importers import writing

    array = routed(50, 3, 16, 4)
    np.save(tmp_path / "a.npy", array)
    monkeypatch.setattr(writing, "PIECE_IDS", 7 * 12)
    report, (_, position, _, experts) = imported(tmp_path, tmp_path / "a.npy")
    assert np.array_equal(experts, array)
    assert position.tolist() == list(range(50))
    assert report.requests == 1


def test_huggingface_takes_the_largest_logits(tmp_path):
    logits = np.random.default_rng(0).normal(size=(12, 30, 16)).astype(np.float32)
    expected = np.argsort(-logits, axis=2)[:, :, :3].transpose(1, 0, 2)
    path = tmp_path / "logits.npz"
    # Layers in the order of their numbers, not of the file's names.
    np.savez(path, **{f"layer_{at}": logits[at] for at in reversed(range(12))})
    assert recognise(path) == "huggingface"
    report, (request, _, _, experts) = imported(tmp_path, path, k=3)
    assert np.array_equal(experts, expected)
    assert (report.requests, report.experts, set(request.tolist())) == (1, 16, {0})
    np.save(tmp_path / "logits.npy", logits)
    assert np.array_equal(imported(tmp_path, tmp_path / "logits.npy", k=3)[1][3], expected)
    report, _ = imported(tmp_path, path)
    assert report.k == 8
    assert any("top-8 taken, which the file does not tell" in note for note in report.notes)
    logits[3, 5, 2] = np.nan
    np.save(tmp_path / "logits.npy", logits)
    with pytest.raises(InputError, match="layer 3, token 5: NaN logit"):
        imported(tmp_path, tmp_path / "logits.npy", "huggingface")


# Route logs, logs without requests, CSV


def test_route_lines_with_a_header(tmp_path):
    ids = routed(3, 2, 8, 2)
    lines = [{"type": "meta", "model_id": "Qwen/Qwen1.5-MoE", "top_k": 2, "layers_logged": [0, 1]}]
    for name, at in (("r1", 0), ("r2", 1)):
        for token in range(at, 3):
            for layer in range(2):
                chosen = ids[token, layer].tolist()
                lines.append(
                    {"type": "route", "req_id": name, "token_idx": token, "layer": layer}
                    | {"topk_ids": chosen, "topk_weights": [0.5, 0.5]}
                )
    path = tmp_path / "routes.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in lines))
    assert recognise(path) == "jsonl"
    report, (request, position, _, experts) = imported(tmp_path, path)
    assert request.tolist() == [0, 0, 0, 1, 1]
    assert position.tolist() == [0, 1, 2, 1, 2]
    assert np.array_equal(experts, ids[[0, 1, 2, 1, 2]])
    assert read_info(tmp_path / "out.parquet").model == "Qwen/Qwen1.5-MoE"
    assert "not taken as records, of another type than 'route': 1 line" in report.lines()


@pytest.mark.parametrize("token_major", [False, True])
def test_lines_that_name_no_request(tmp_path, token_major):
    lines = []
    for tokens in (4, 1, 1, 3):
        places = [(layer, token) for layer in (2, 5) for token in range(tokens)]
        if token_major:
            places.sort(key=lambda place: place[1])
        lines += [
            {"layer": layer, "token_idx": token, "experts": [token, token + layer]}
            for layer, token in places
        ]
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in lines))
    report, (request, position, _, experts) = imported(tmp_path, path)
    assert request.tolist() == [0, 0, 0, 0, 1, 2, 3, 3, 3]
    assert position.tolist() == [0, 1, 2, 3, 0, 0, 0, 1, 2]
    assert experts[2].tolist() == [[2, 4], [2, 7]]
    assert (
        "layers without any expert left out: 0, 1, 3, 4; the trace's layer 0 is the file's 2"
        in (report.lines())
    )


@pytest.mark.parametrize("header", ["", "layer_id,topk_ids\n"])
@pytest.mark.parametrize("layer_major", [False, True])
def test_csv_of_a_row_per_token_and_layer(tmp_path, header, layer_major):
    ids = routed(6, 3, 8, 2)
    places = [(token, layer) for token in range(6) for layer in range(3)]
    if layer_major:
        places.sort(key=lambda place: place[1])
    rows = [f'{layer},"{" ".join(map(str, ids[token, layer]))}"\n' for token, layer in places]
    path = tmp_path / "log.csv"
    path.write_text(header + "".join(rows))
    assert recognise(path) == "csv"
    report, (request, position, _, experts) = imported(tmp_path, path)
    assert np.array_equal(experts, ids)
    assert position.tolist() == list(range(6))
    assert set(request.tolist()) == {0}
    path.write_text(header + "".join(rows)[:-4])
    report, (_, _, _, experts) = imported(tmp_path, path)
    assert report.lines_cut == 1
    assert experts[-1, 2].tolist() == [-1, -1]
    for row, what in (
        ('9999,"1 2"\n', "layer 9999 is not 0..4095"),
        ('1,"1 1"\n', "has an expert twice"),
        ('1,"1 -2"\n', "expert -2 is not"),
        ('1,""\n', "at least one expert"),
        ("what\n", 'is not layer_id,"e e e"'),
    ):
        path.write_text(header + "".join(rows) + row + rows[0])
        with pytest.raises(InputError) as caught:
            imported(tmp_path, path)
        line = len(rows) + 1 + bool(header)
        assert str(caught.value).startswith(f"{path}:{line}: ")
        assert what in str(caught.value)


# In general


@pytest.mark.parametrize(
    "text",
    [
        '{"problem_id": "a", "layer": 0, "token_idx": 0, "experts": [3, 1]}\n',
        '0,"3 1"\n1,"0 2"\n',
        "token_count,expert,layer\n5,0,0\n6,1,0\n",
        json.dumps({"note": "x" * 5000, "logical_count": [[1, 2], [3, 4]]}),
    ],
    ids=["jsonl", "csv", "table", "json"],
)
def test_a_byte_order_mark_changes_nothing(tmp_path, text):
    seen = []
    for encoding in ("utf-8", "utf-8-sig"):
        path = tmp_path / encoding
        path.write_text(text, encoding)
        seen.append(imported(tmp_path, path)[1])
    for plain, marked in zip(*seen, strict=True):
        assert np.array_equal(plain, marked)


def test_a_compressed_file_is_to_be_unpacked(tmp_path):
    path = tmp_path / "log.jsonl.gz"
    path.write_bytes(gzip.compress(b'0,"1 2"\n'))
    with pytest.raises(InputError, match="is compressed; unpack it first, with gunzip"):
        imported(tmp_path, path)


def test_options_that_a_kind_does_not_take(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text('0,"1 2"\n')
    with pytest.raises(InputError, match="import csv: --top-k does not go with it"):
        imported(tmp_path, path, k=3)
    np.save(tmp_path / "a.npy", routed(5, 3, 16, 4))
    with pytest.raises(InputError, match="holds recorded tokens"):
        imported(tmp_path, tmp_path / "a.npy", "vllm", tokens=3)
    report, _ = imported(tmp_path, path)
    assert "recognised as csv" in report.lines()


def test_the_command(tmp_path, capsys):
    np.save(tmp_path / "loads.npy", np.ones((2, 3, 16), dtype=np.int64))
    out = tmp_path / "t.parquet"
    source = str(tmp_path / "loads.npy")
    sizes = ["--tokens", "100", "--top-k", "3", "--model", "some", "--seed", "4"]
    assert main(["import", "auto", source, "-o", str(out), *sizes]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == [f"{source} -> {out}", "read 3 layers of loads"]
    info = read_info(out)
    assert (info.tokens, info.k, info.experts, info.model) == (100, 3, 16, "some")
    for arguments, what in (
        (["auto", source, "-o", str(out)], "exists already"),
        (["jsonl", source, "-o", f"{out}2", "--seed", "1"], "--seed does not go with it"),
        (["nvidia-smi", source, "-o", f"{out}2", "--top-k", "1"], "--top-k does not go with it"),
        (["loads", source, "-o", f"{out}2", "--top-k", "17"], "top-17 of 16 experts"),
        (["loads", source, "-o", f"{out}2", "--tokens", "0"], "--tokens 0: at least 1"),
        (["auto", source, "-o", f"{tmp_path}/no/t"], "no/t: cannot be written"),
        (["csv", source, "-o", f"{tmp_path}/no/t"], "no: cannot be written to"),
        (["parquet", source, "-o", f"{out}2"], "no kind 'parquet'"),
    ):
        assert main(["import", *arguments]) == 2
        error = capsys.readouterr().err
        assert what in error
        assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loads.npy", "t.parquet"]


@pytest.mark.parametrize("kind", IMPORTERS)
def test_every_reader_refuses_what_is_there_and_what_is_not(tmp_path, kind):
    target = tmp_path / "t.parquet"
    with pytest.raises(InputError, match="no such file"):
        import_any(kind, tmp_path / "none", target)
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(InputError):
        import_any(kind, tmp_path / "empty", target)
    assert not target.exists()
    target.write_bytes(b"mine")
    with pytest.raises(InputError, match="exists already"):
        import_any(kind, tmp_path / "empty", target)
    assert target.read_bytes() == b"mine"


def test_the_spill_sorts_like_memory(tmp_path):
    """Small buckets, records of several requests mixed at random: the same as a sort in memory."""
    rng = np.random.default_rng(3)
    count = 20_000
    request = rng.integers(0, 40, count)
    token = rng.integers(0, 3000, count)
    layer = rng.integers(0, 4, count)
    ids = np.stack([np.arange(count) % 30, np.full(count, 31)], axis=1)
    expected: dict[tuple[int, int, int], int] = {}
    for at in range(count):
        expected[int(request[at]), int(token[at]), int(layer[at])] = int(ids[at, 0])
    report = ImportReport()
    found: dict[tuple[int, int, int], int] = {}
    order = []
    with Spill(tmp_path, bucket_records=500) as spill:
        for start in range(0, count, 700):
            cut = slice(start, start + 700)
            spill.add(request[cut], token[cut], layer[cut], ids[cut])
        last = {int(name): int(np.flatnonzero(request == name)[-1]) for name in range(40)}
        name_of = sorted(last, key=lambda name: last[name])
        for number, position, block in spill.rows(report):
            order += list(zip(number.tolist(), position.tolist(), strict=True))
            for row, (at, place) in enumerate(zip(number, position, strict=True)):
                for where in np.flatnonzero(block[row, :, 0] >= 0):
                    found[name_of[int(at)], int(place), int(where)] = int(block[row, where, 0])
    assert found == expected
    assert order == sorted(set(order))
    assert report.records_replaced == count - len(expected)
    assert list(tmp_path.iterdir()) == []
