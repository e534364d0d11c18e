"""Placements as files: what is written is read again, and what is wrong is said in a line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from simulator.errors import InputError
from simulator.policies.placement import Target, even_nodes, place, read_placement
from simulator.policies.placement_file import write_placement

GOOD = {
    "policy": "balanced",
    "gpus": 2,
    "expert_of": [[0, 1, 2, 0], [2, 1, 0, 1]],
    "gpu_of": [0, 0, 1, 1],
}


def written(path: Path, data: object) -> Path:
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def test_what_is_written_is_read_again(tmp_path: Path):
    loads = np.random.default_rng(0).random((3, 10))
    placed = place("balanced", loads, Target(4, 13, 1, even_nodes(4, 1)))
    path = tmp_path / "placed.json"
    write_placement(path, "balanced", placed, 4)
    found = read_placement(path, 4, 3, 10)
    assert np.array_equal(found.expert_of, placed.expert_of)
    assert np.array_equal(found.gpu_of, placed.gpu_of)
    assert found.expert_of.dtype == found.gpu_of.dtype == np.int32
    assert [entry.name for entry in tmp_path.iterdir()] == ["placed.json"]
    with pytest.raises(InputError, match="exists already"):
        write_placement(path, "balanced", placed, 4)
    with pytest.raises(InputError, match="cannot be written: No such file"):
        write_placement(tmp_path / "none" / "placed.json", "balanced", placed, 4)


def test_the_files_of_eplb(tmp_path: Path):
    path = written(tmp_path / "a.json", {"phy2log": GOOD["expert_of"], "num_gpus": 2})
    assert read_placement(path).gpu_of.tolist() == [0, 0, 1, 1]
    bare = written(tmp_path / "b.json", {"phy2log": GOOD["expert_of"]})
    assert read_placement(bare, gpus=4).gpu_of.tolist() == [0, 1, 2, 3]
    with pytest.raises(InputError, match="num_gpus: is not there; write the number of GPUs"):
        read_placement(bare)
    with pytest.raises(InputError, match="phy2log: 4 slots do not divide over 3 GPUs"):
        read_placement(bare, gpus=3)


def test_one_layer_stands_for_all(tmp_path: Path):
    path = written(tmp_path / "a.json", GOOD | {"expert_of": [[0, 1, 2, 0]]})
    assert read_placement(path, layers=3).expert_of.tolist() == [[0, 1, 2, 0]] * 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"expert_of": [[0, 1, 2, 0], [2, 1]]}, "expert_of: must be lists of whole numbers"),
        ({"expert_of": [[0, 1, 2, 0.5]]}, "expert_of: must be lists of whole numbers"),
        ({"expert_of": [[0, 1, 2, 1 << 70]]}, "expert_of: must be lists of whole numbers"),
        ({"expert_of": [[0, 1, 2, 1 << 40]]}, "expert_of: names 0 to 1099511627776"),
        ({"expert_of": [[0, 1, 2, -1]]}, "expert_of: names -1 to 2; write numbers from 0"),
        ({"expert_of": [0, 1, 2, 0]}, "expert_of: must be lists of whole numbers"),
        ({"expert_of": []}, "expert_of: must be lists of whole numbers"),
        ({"expert_of": None}, "expert_of: must be lists of whole numbers"),
        ({"expert_of": [[0, 1, 3, 0]]}, r"no GPU holds expert 2 of layer 0"),
        ({"gpu_of": [0, 0, 1]}, "gpu_of"),
        ({"gpu_of": [0, 1, 0, 1]}, "gpu_of must never decrease"),
        ({"gpu_of": [0, 0, 1, 2]}, "lie in 0 to 1"),
        ({"gpu_of": "x"}, "gpu_of: must be lists of whole numbers"),
        ({"gpus": 0}, "gpus: 0 is not a number of GPUs"),
        ({"gpus": True}, "gpus: True is not a number of GPUs"),
        ({"gpus": "2"}, "gpus: '2' is not a number of GPUs"),
        ({"gpus": 1 << 60}, "is not a number of GPUs"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(tmp_path: Path, change: dict[str, object], words: str):
    path = written(tmp_path / "a.json", GOOD | change)
    with pytest.raises(InputError, match=words) as told:
        read_placement(path)
    assert str(told.value).startswith(str(path))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not JSON"),
        ('{"gpus": 2,\n "expert_of": [[0,', ":2: not JSON"),
        ("[1, 2]", "must be one JSON object"),
        ('{"gpus": 2}', "neither expert_of nor phy2log is there"),
        ('{"expert_of": [[0]], "gpus": 1}', "gpu_of: is not there"),
        ('{"expert_of": [[0]], "gpu_of": [0]}', "gpus: is not there"),
        ("[" * 100_000, "not JSON"),
        ('{"expert_of": ' + "[" * 900 + "]" * 900 + ', "gpus": 1}', "expert_of: must be lists"),
    ],
)
def test_files_that_are_none(tmp_path: Path, text: str, words: str):
    path = written(tmp_path / "a.json", text)
    with pytest.raises(InputError, match=words) as told:
        read_placement(path)
    assert "\n" not in str(told.value)


def test_a_placement_that_does_not_fit_is_refused(tmp_path: Path):
    path = written(tmp_path / "a.json", GOOD)
    for sizes, words in (
        ({"gpus": 3}, "gpus: is for 2 GPUs; wanted 3"),
        ({"layers": 3}, "expert_of: 2 layers; wanted the 3 MoE layers"),
        ({"experts": 2}, "expert_of names expert 2; there are 0 to 1"),
        ({"experts": 4}, "no GPU holds expert 3"),
    ):
        with pytest.raises(InputError, match=words):
            read_placement(path, **sizes)
    with pytest.raises(InputError, match="cannot be read"):
        read_placement(tmp_path / "none.json")
