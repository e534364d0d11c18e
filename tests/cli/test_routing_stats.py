"""`routing-stats`: hit rates against a plain cache, text and JSON agree, the page, refusals."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cli.running import Call, listing

from simulator.cli import main
from simulator.routing import stats
from simulator.routing.trace import TraceWriter

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference" / "routing" / "local_only"
MIXTRAL = REFERENCE / "mixtral8x7b_gsm8k_routing.jsonl"
DEEPSEEK = REFERENCE / "deepseek_v3_prefill_in4096.json"
EXPERTS = 12


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    """Compile before the first test: a command that compiles says so on stderr."""
    assert main(["routing-stats", "moe128-python", "--json"]) == 0


def recorded(path: Path, requests: int = 9, k: int = 3) -> npt.NDArray[np.int16]:
    """Write requests of 1 to 40 tokens with skewed choices and gaps; ids [n, 2, k]."""
    rng = np.random.default_rng(11)
    lengths = rng.integers(1, 40, requests)
    tokens = int(lengths.sum())
    skewed = rng.random((tokens, 2, EXPERTS)) ** np.linspace(0.2, 2.0, EXPERTS)
    ids = np.argsort(-skewed, axis=2)[:, :, :k].astype(np.int16)
    ids[::5, 1, k - 1] = -1
    ids[3, 0] = -1
    request = np.repeat(np.arange(requests), lengths)
    position = np.arange(tokens)
    with TraceWriter(path, model="m", layers=2, experts=EXPERTS, k=k, origin="test") as writer:
        writer.write(request, position, np.ones(tokens), ids)
    return ids, request


def hits_of(accesses: list[int], capacity: int) -> int:
    """Hits of a cache that drops what is asked for again last."""
    held: set[int] = set()
    hits = 0
    for at, expert in enumerate(accesses):
        if expert in held:
            hits += 1
            continue
        if len(held) == capacity:
            later = accesses[at + 1 :]
            held.remove(max(held, key=lambda e: later.index(e) if e in later else len(later)))
        held.add(expert)
    return hits


def best_rates(ids: Any, request: Any, layer: int, capacity: int) -> float:
    hits = total = 0
    for one in np.unique(request):
        asked = [int(e) for e in ids[request == one, layer].reshape(-1) if e >= 0]
        hits += hits_of(asked, capacity)
        total += len(asked)
    return hits / total


def as_json(call: Call, *argv: str) -> dict[str, Any]:
    done = call("routing-stats", *argv, "--json")
    assert done.status == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


@pytest.mark.parametrize("block_ids", [1, 1 << 22])
def test_hit_rates_against_a_plain_cache(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_ids: int
) -> None:
    ids, request = recorded(tmp_path / "t.parquet")
    monkeypatch.setattr(stats, "BLOCK_IDS", block_ids)
    found = as_json(call, "t.parquet", "--capacity", "6,1,3,3")
    assert found["capacities"] == [1, 3, 6]
    for layer, row in enumerate(found["per_layer"]):
        expected = [best_rates(ids, request, layer, capacity) for capacity in (1, 3, 6)]
        assert row["best_hit_rates"] == pytest.approx(expected, rel=1e-12)
    weights = [row["recorded"] for row in found["per_layer"]]
    mean = np.average(
        [row["best_hit_rates"] for row in found["per_layer"]], axis=0, weights=weights
    )
    assert found["best_hit_rates"] == pytest.approx(mean.tolist(), rel=1e-12)


def test_default_capacities(call: Call, tmp_path: Path) -> None:
    recorded(tmp_path / "t.parquet")
    found = as_json(call, "t.parquet")
    assert found["capacities"] == [2, 4, 8]
    assert found["best_hit_rates"] == sorted(found["best_hit_rates"]), "larger is never worse"
    # All experts fit: every access but the first of each expert in each request is a hit.
    full = as_json(call, "t.parquet", "--capacity", str(EXPERTS))["best_hit_rates"]
    assert full[0] >= found["best_hit_rates"][-1]


def test_text_says_what_json_says(call: Call, tmp_path: Path) -> None:
    recorded(tmp_path / "t.parquet")
    found = as_json(call, "t.parquet", "--capacity", "4")
    done = call("routing-stats", "t.parquet", "--capacity", "4")
    lines = done.out.splitlines()
    assert (done.status, done.err) == (0, "")
    assert max(map(len, lines)) <= 80
    assert f"{100 * found['best_hit_rates'][0]:.1f} % with 4" in " ".join(done.out.split())
    head, *rows = [line.split() for line in lines[-3:]]
    assert head == [
        "layer",
        "recorded",
        "max/mean",
        "unused",
        "Gini",
        "entropy",
        "overlap",
        "to_next",
    ]
    for cells, row in zip(rows, found["per_layer"], strict=True):
        assert cells[:2] == [str(row["layer"]), str(row["recorded"])]
        assert float(cells[2]) == pytest.approx(row["max_over_mean"], rel=5e-3)
        assert float(cells[4]) == pytest.approx(row["gini"], rel=5e-3)
        assert float(cells[5]) == pytest.approx(row["entropy_bits"], rel=5e-3)
        assert float(cells[6]) == pytest.approx(100 * row["overlap"], abs=0.06)
    assert rows[1][-1] == "-", "after the last layer there is none"


def write_loads(path: Path) -> None:
    path.write_text(json.dumps({"logical_count": [[0, 0, 0, 0], [4, 4, 0, 0], [3, 2, 2, 2]]}))


def test_loads_have_skew_alone(call: Call, tmp_path: Path) -> None:
    write_loads(tmp_path / "loads.json")
    found = as_json(call, "loads.json")
    assert (found["layers"], found["experts"], found["tokens"]) == (2, 4, None)
    assert [row["layer"] for row in found["per_layer"]] == [1, 2], "layer 0 has no loads"
    assert [row["max_over_mean"] for row in found["per_layer"]] == [2.0, 3 / 2.25]
    assert found["gini"] == pytest.approx((0.5 + 3 / 36) / 2)
    absent = ("overlap", "mutual_information_bits", "capacities", "best_hit_rates")
    assert [found[key] for key in absent] == [None] * 4
    assert any("no tokens" in note for note in found["notes"])
    text = call("routing-stats", "loads.json").out
    assert "no tokens" in text
    assert text.splitlines()[-3].split() == [
        "layer",
        "recorded",
        "max/mean",
        "unused",
        "Gini",
        "entropy",
    ]
    assert max(map(len, text.splitlines())) <= 80


def test_a_folder_of_loads(call: Call, tmp_path: Path) -> None:
    # Two iterations of layer 5, as TensorRT-LLM writes them: length, JSON header, int32 counts.
    where = {"dtype": "I32", "shape": [4]}
    header = {f"{i}_5": {**where, "data_offsets": [16 * i, 16 * i + 16]} for i in range(2)}
    text = json.dumps(header).encode()
    counts = np.array([[1, 0, 2, 1], [1, 4, 0, 3]], dtype="<i4")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "rank0.safetensors").write_bytes(
        len(text).to_bytes(8, "little") + text + counts.tobytes()
    )
    found = as_json(call, "kept")
    (row,) = found["per_layer"]
    assert (row["layer"], row["recorded"], row["max_over_mean"]) == (5, 12, 4 / 3)
    (tmp_path / "none").mkdir()
    assert call("routing-stats", "none").status == 2


class Page(HTMLParser):
    """What a browser makes of the page. State: the element it is in, and what was found."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text: dict[str, str] = {}
        self._at = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self._at = found.get("id") or tag
        if found.get("src"):
            self.sources.append(str(found["src"]))

    def handle_endtag(self, tag: str) -> None:
        self._at = ""

    def handle_data(self, data: str) -> None:
        if self._at:
            self.text[self._at] = self.text.get(self._at, "") + data

    def figures(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.text["figures"])["figures"]
        return found


def test_the_page_holds_the_figures(call: Call, tmp_path: Path) -> None:
    ids, _ = recorded(tmp_path / "t.parquet")
    plain = call("routing-stats", "t.parquet")
    done = call("routing-stats", "t.parquet", "--html", "out.html", "--plotlyjs", "directory")
    assert (done.status, done.err, done.out) == (0, "", plain.out)
    assert listing(tmp_path) == ["out.html", "plotly.min.js", "t.parquet"]
    page = Page((tmp_path / "out.html").read_text())
    assert page.sources == ["plotly.min.js"]
    figures = page.figures()
    assert list(figures) == ["loads", "skew", "information", "overlap", "hits"]
    (heat,) = figures["loads"]["data"]
    counts = np.array([[(ids[:, layer] == e).sum() for e in range(EXPERTS)] for layer in (0, 1)])
    over = counts / counts.mean(axis=1, keepdims=True)
    assert np.allclose(np.array(heat["z"]), over, atol=5.1e-4)
    found = as_json(call, "t.parquet")
    shown = [trace for trace in figures["hits"]["data"] if trace["name"] == "all layers"]
    assert shown[0]["y"] == found["best_hit_rates"]
    assert shown[0]["x"] == found["capacities"]
    assert figures["information"]["data"][0]["y"] == [found["mutual_information_bits"]]
    assert page.tags.count("tr") == 1 + 2


def test_the_page_is_one_file_and_repeats(call: Call, tmp_path: Path) -> None:
    write_loads(tmp_path / "<b>&.json")
    for name in ("a.html", "b.html"):
        assert call("routing-stats", "<b>&.json", "--html", name).status == 0
    text = (tmp_path / "a.html").read_text()
    assert text == (tmp_path / "b.html").read_text()
    page = Page(text)
    assert page.text["h1"] == "<b>&.json"
    assert page.sources == []
    assert "b" not in page.tags
    assert list(page.figures()) == ["loads", "skew"], "what is not known is not drawn"
    assert page.figures()["loads"]["data"][0]["y"] == [1, 2]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("nowhere.parquet",), "no such file"),
        (("t.parquet", "--capacity", "2,x"), "--capacity: 'x' is not a whole number from 1"),
        (("t.parquet", "--capacity", "0"), "--capacity: '0' is not a whole number from 1"),
        (("t.parquet", "--capacity", ""), "--capacity: '' is not"),
        (("t.parquet", "--capacity", "2,13"), "--capacity 13: a layer has 12 experts"),
        (("loads.json", "--capacity", "2"), "has loads and no tokens"),
        (("t.parquet", "--plotlyjs", "cdn"), "--plotlyjs goes with --html"),
        (("t.parquet", "--html", "a.html", "--plotlyjs", "cnd"), "did you mean 'cdn'?"),
        (("t.parquet", "--html", "t.parquet"), "exists already"),
        (("t.parquet", "--html", "no/a.html"), "there is no directory"),
        (("empty.parquet",), "empty"),
        (("cut.parquet",), "cut short"),
    ],
)
def test_refusals(call: Call, tmp_path: Path, argv: tuple[str, ...], said: str) -> None:
    recorded(tmp_path / "t.parquet")
    write_loads(tmp_path / "loads.json")
    (tmp_path / "empty.parquet").touch()
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "t.parquet").read_bytes()[:-30])
    before = listing(tmp_path)
    done = call("routing-stats", *argv)
    assert (done.status, done.out) == (2, "")
    lines = done.err.splitlines()
    assert said in lines[-1]
    assert lines[-1].startswith("error: ")
    assert listing(tmp_path) == before


@pytest.mark.skipif(not MIXTRAL.is_file(), reason="../shared/reference is not there")
def test_mixtral_as_published(call: Call) -> None:
    found = as_json(call, str(MIXTRAL), "--capacity", "2,4,6")
    assert found["overlap"] == pytest.approx(0.344, abs=0.0005)
    assert found["uniform_overlap"] == 0.25
    assert found["best_hit_rates"] == pytest.approx([0.436, 0.740, 0.891], abs=0.0006)


@pytest.mark.skipif(not DEEPSEEK.is_file(), reason="../shared/reference is not there")
def test_deepseek_loads(call: Call) -> None:
    found = as_json(call, str(DEEPSEEK))
    assert (found["layers"], found["experts"]) == (58, 256)
    counts = np.array(json.loads(DEEPSEEK.read_text())["logical_count"], dtype=float)[3:]
    assert found["max_over_mean"] == pytest.approx((counts.max(1) / counts.mean(1)).mean())
    assert [row["layer"] for row in found["per_layer"]] == list(range(3, 61))
