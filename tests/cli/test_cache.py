"""`cache`: rows, files, filters, and every refusal."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from cli.running import Call, listing

from simulator.policies.caching import POLICIES
from simulator.routing.trace import TraceWriter

SHIPPED = ("cache", "moe128-python", "--capacity", "8,16")
HAND = ("cache", "hand.parquet", "--capacity", "2")


@pytest.fixture
def hand(tmp_path: Path) -> Path:
    """One layer, one expert per token: A B A C B A, then the next request A A."""
    path = tmp_path / "hand.parquet"
    with TraceWriter(path, model="m", layers=1, experts=4, k=1, origin="a test") as writer:
        for request, ids in enumerate(([0, 1, 0, 2, 1, 0], [0, 0])):
            n = len(ids)
            phase = [0 if request == 0 else 1] * n
            writer.write([request] * n, range(n), phase, [[[expert]] for expert in ids])
    return path


def test_counted_by_hand(call: Call, hand: Path) -> None:
    """LRU hits the second A and the last; LFU also the A that ends the first request."""
    done = call(*HAND, "--policy", "lru,lfu", "--json")
    assert done.status == 0
    keys = {"policy", "capacity", "accesses", "hits", "hit_rate", "cold_miss_rate"}
    rows = json.loads(done.out)
    assert all(set(row) == keys for row in rows)
    assert [(row["policy"], row["hits"]) for row in rows] == [("lru", 2), ("lfu", 3)]
    assert [row["accesses"] for row in rows] == [8, 8]
    assert rows[0]["hit_rate"] == 2 / 8
    assert rows[0]["cold_miss_rate"] == 4 / 8
    never = json.loads(call(*HAND, "--policy", "lru", "--reset", "never", "--json").out)
    assert never[0]["hits"] == 3
    generated = json.loads(call(*HAND, "--policy", "lru", "--phase", "generated", "--json").out)
    assert (generated[0]["hits"], generated[0]["accesses"]) == (1, 2)


def test_text_is_the_same_rows(call: Call) -> None:
    """A table within 80 columns; every policy at every capacity; repeated runs print the same."""
    done = call(*SHIPPED)
    assert done.status == 0
    lines = done.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("1,638,400 accesses in 8 layers; a cache for each layer, emptied")
    assert [line.split()[0] for line in lines[3:]] == [name for name in POLICIES for _ in range(2)]
    rows = json.loads(call(*SHIPPED, "--json").out)
    assert [f"{row['hit_rate']:.4f}" for row in rows] == [line.split()[4] for line in lines[3:]]
    assert call(*SHIPPED).out == done.out


def test_per_layer_rows_add_up(call: Call) -> None:
    """Accesses and hits of the layers are those of all; only the chosen ones are there."""
    one = json.loads(call(*SHIPPED, "--policy", "arc", "--json").out)
    each = json.loads(call(*SHIPPED, "--policy", "arc", "--per-layer", "--json").out)
    for row in one:
        parts = [part for part in each if part["capacity"] == row["capacity"]]
        assert [part["layer"] for part in parts] == list(range(8))
        assert sum(part["hits"] for part in parts) == row["hits"]
        assert sum(part["accesses"] for part in parts) == row["accesses"]
    some = json.loads(
        call(*SHIPPED, "--policy", "arc", "--per-layer", "--layers", "5-6,0", "--json").out
    )
    assert some == [part for part in each if part["layer"] in (0, 5, 6)]


def test_files(call: Call, tmp_path: Path) -> None:
    """CSV holds the rows; the page stands alone."""
    done = call(*SHIPPED, "--policy", "lru,belady", "-o", "out.csv", "--html", "out.html", "--json")
    assert done.status == 0
    with (tmp_path / "out.csv").open(newline="") as stream:
        written = list(csv.DictReader(stream))
    assert [{name: str(value) for name, value in row.items()} for row in json.loads(done.out)] == [
        dict(sorted(row.items())) for row in written
    ]
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert "<title>moe128-python</title>" in page
    assert 'src="http' not in page
    start = page.index('id="figure">') + len('id="figure">')
    figure = json.loads(page[start : page.index("</script>", start)])["figure"]
    assert [line["name"] for line in figure["data"]] == ["lru", "belady"]
    assert figure["data"][0]["y"] == [row["hit_rate"] for row in json.loads(done.out)[:2]]
    again = call(*SHIPPED, "-o", "out.csv")
    assert (again.status, again.err) == (
        2,
        "error: out.csv: exists already; remove it or write another file\n",
    )


def test_sizes_from_json_and_csv(call: Call, hand: Path, tmp_path: Path) -> None:
    """The same sizes, however they are written; too large experts and Belady's lack are said."""
    (tmp_path / "sizes.json").write_text("[1, 1, 2.5, 1]")
    (tmp_path / "row.csv").write_text("1,1,2.5,1\n")
    (tmp_path / "column.csv").write_text("1\n1\n2.5\n1\n")
    told = []
    for name in ("sizes.json", "row.csv", "column.csv"):
        done = call(*HAND, "--policy", "lru,belady", "--sizes", name, "--json")
        assert done.status == 0
        told.append((done.out, done.err))
    assert told[0] == told[1] == told[2]
    # C does not fit: A and B stay, so that all but three first uses and C are hits.
    assert [row["hits"] for row in json.loads(told[0][0])] == [4, 4]
    names = [row["policy"] for row in json.loads(told[0][0])]
    assert names == ["lru", "belady (heuristic)"]
    assert "note: capacity 2: 1 of 4 experts are larger than the cache" in told[0][1]
    assert "note: sizes differ: belady is a heuristic" in told[0][1]


def test_a_policy_of_ones_own(
    call: Call, hand: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First in, first out: never told of a hit."""
    (tmp_path / "mine.py").write_text(
        "from simulator.policies.eviction import Eviction\n"
        "def fifo(setup):\n"
        "    return Eviction(lambda residents, coming: 0)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    rows = json.loads(call(*HAND, "--policy", "mine:fifo", "--json").out)
    # C drives out A, which B's hit does not help; then A drives out B. And the second A again.
    assert [(row["policy"], row["hits"]) for row in rows] == [("mine:fifo", 3)]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["--capacity", "0"], "--capacity: '0' is not a whole number from 1; write for example"),
        (["--capacity", "2.5"], "--capacity: '2.5' is not a whole number from 1"),
        (["--capacity", ""], "--capacity: '' is not a whole number"),
        (["--policy", "lur"], "no policy 'lur' (did you mean 'lru'?); known: lru, lfu,"),
        (["--policy", "json:dumps"], "eviction dumps: returned '[1, 4, 2, false, null]'; write a"),
        (["--policy", "belady:3"], "policy 'belady:3': belady takes no argument"),
        (["--pool", "globl"], "--pool: no 'globl' (did you mean 'global'?); write layer or global"),
        (["--reset", "batch"], "--reset: no 'batch'; write request or never"),
        (["--phase", "decode"], "--phase: no 'decode'; write any or prompt or generated"),
        (["--layers", "2-1"], "--layers: '2-1' goes down; write 1-2"),
        (["--layers", "x"], "--layers: 'x' is no layer; write for example 0,4-7"),
        (["--layers", "1"], "--layers: no layer 1: the trace has 0 to 0"),
        (["--plotlyjs", "cdn"], "cache: --plotlyjs goes with --html FILE"),
        (["--sizes", "none.csv"], "none.csv: cannot be read: No such file"),
        (["--sizes", "bad.csv"], "bad.csv: row 1, column 2: not a size; write a number from"),
        (["--sizes", "ragged.csv"], "ragged.csv: row 2 has 1 sizes, row 1 has 2"),
        (["--sizes", "few.csv"], "--sizes: 2 sizes; the trace needs 4"),
        (["--sizes", "bad.json"], "bad.json: not JSON"),
        (["--sizes", "null.json"], "null.json: row 1, column 2: not a size"),
        (["--sizes", "empty.csv"], "empty.csv: is empty"),
        (["--per-layr"], "unknown flag --per-layr (did you mean '--per-layer'?)"),
    ],
)
def test_refusals(call: Call, hand: Path, tmp_path: Path, given: list[str], line: str) -> None:
    """One line, exit status 2, and no file begun."""
    for name, text in {
        "bad.csv": "1,nan\n",
        "ragged.csv": "1,2\n3\n",
        "few.csv": "1,2\n",
        "bad.json": "[1,",
        "null.json": "[1, null, 1, 1]",
        "empty.csv": "\n",
    }.items():
        (tmp_path / name).write_text(text)
    before = listing(tmp_path)
    done = call(*HAND, *given, "-o", "out.csv")
    assert done.status == 2
    errors = [text for text in done.err.splitlines() if text.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0].startswith(f"error: {line}")
    assert done.out == ""
    assert listing(tmp_path) == before


def test_no_trace(call: Call) -> None:
    """A name that is not shipped, and no capacity."""
    assert "did you mean 'moe128-python'" in call("cache", "moe128-pyhton", "--capacity", "2").err
    assert "--capacity" in call("cache", "moe128-python").err
