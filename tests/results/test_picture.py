"""The picture of a cluster: where nodes stand, which lines are drawn, what they tell."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import combinations, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.cluster.graph import build_graph
from simulator.reporting import nodes_and_links
from simulator.results.colours import (
    HEAT_STEPS,
    NODE_NAMES,
    Figure,
    Values,
    coloured,
    marked,
    palettes,
)
from simulator.results.host_layout import spaced
from simulator.results.picture import cluster_figure
from simulator.results.placing import Link, Node, Placed, place
from simulator.spec.find import shipped
from simulator.spec.load import load_topology

TOPOLOGIES = shipped("topology")


def cluster(name: str, *overrides: str) -> tuple[list[Node], list[Link]]:
    found = load_topology(name, overrides)
    return nodes_and_links(build_graph(found), found.gpu.model_dump())


def both(a: str, b: str, kind: str, rate: float = 1e9, latency_s: float = 1e-6) -> list[Link]:
    return [Link(a, b, kind, rate, latency_s), Link(b, a, kind, rate, latency_s)]


def traces(figure: Figure, role: str) -> list[dict[str, Any]]:
    return [trace for trace in figure["data"] if trace["meta"]["role"] == role]


def lines_drawn(figure: Figure) -> int:
    """How many separate lines: each path ends with None."""
    return sum(
        trace["x"].count(None)
        for trace in figure["data"]
        if trace["meta"]["role"].startswith("link") and len(trace["x"]) > 1
    )


def texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)


def told(figure: Figure) -> list[str]:
    return [text for trace in figure["data"] for text in trace.get("hovertext", ())]


def assert_apart(placed: Placed) -> None:
    """No two nodes of a row are nearer than their markers are wide."""
    rows: dict[float, list[float]] = {}
    for x, y in placed.at.values():
        rows.setdefault(y, []).append(x)
    for xs in rows.values():
        for near, far in pairwise(sorted(xs)):
            assert far - near > 0.69


# --- Where nodes stand ---------------------------------------------------------------------


def test_rows_from_top_to_bottom() -> None:
    placed = place(*cluster("h100x16-rail"))
    kinds = [row for _, row in placed.rows]
    assert kinds == ["spine", "leaf", "nic", "dram", "cpu", "pcie0", "gpu", "nvswitch"]
    ys = [y for y, _ in placed.rows]
    assert ys == sorted(ys, reverse=True)
    # Two nodes of eight GPUs in the order of their indices, each in its host's box.
    columns = [placed.at[f"gpu{index}"][0] for index in range(16)]
    assert columns == sorted(columns)
    assert [box.label for box in placed.boxes] == ["host 0", "host 1"]
    for index in range(16):
        box = placed.boxes[index // 8]
        for node in ("gpu", "nic", "pcie"):
            x, y = placed.at[f"{node}{index}"]
            assert box.left < x < box.right
            assert box.bottom < y < box.top
            # A GPU, its PCIe switch and its NIC stand in one column.
            assert x == pytest.approx(columns[index])
    assert all(placed.at[f"leaf{rail}"][1] > placed.boxes[0].top for rail in range(8))


def test_hosts_on_one_fabric_are_a_rack() -> None:
    nodes, links = cluster("gb200-nvl72", "build.gpus_per_rack=8")
    placed = place(nodes, links, "rack")
    outer = [box for box in placed.boxes if box.depth == 0]
    assert [box.label for box in outer] == ["rack 0"]
    assert sum(box.depth == 1 for box in placed.boxes) == 4  # two GPUs to a CPU
    x, y = placed.at["nvswitch0"]
    assert outer[0].left < x < outer[0].right
    assert y < min(box.bottom for box in placed.boxes if box.depth == 1)
    for box in placed.boxes[1:]:
        assert outer[0].left < box.left
        assert box.right < outer[0].right


def test_pcie_switches_below_each_other_have_rows() -> None:
    nodes = [Node("g", "gpu"), Node("c", "cpu"), Node("up", "pcie"), Node("low", "pcie")]
    links = [*both("c", "up", "pcie"), *both("up", "low", "pcie"), *both("low", "g", "pcie")]
    at = place(nodes, links).at
    assert at["c"][1] > at["up"][1] > at["low"][1] > at["g"][1]


def test_memory_stands_aside_of_a_nic_above_its_socket() -> None:
    """NIC - CPU - GPU in one column: the line from the NIC must not run through the DRAM."""
    nodes = [Node("g", "gpu"), Node("c", "cpu"), Node("d", "dram"), Node("n", "nic")]
    links = [*both("c", "g", "pcie"), *both("d", "c", "membus"), *both("n", "c", "pcie")]
    at = place(nodes, links).at
    assert at["n"][0] == at["c"][0] == at["g"][0]
    assert abs(at["d"][0] - at["c"][0]) >= 0.5


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_every_node_is_placed_or_folded(name: str) -> None:
    nodes, links = cluster(name)
    placed = place(nodes, links)
    assert set(placed.at) | set(placed.fold_of) == {node.name for node in nodes}
    assert not set(placed.at) & set(placed.fold_of)
    assert_apart(placed)
    hosts = {node.host for node in nodes if node.kind == "gpu"}
    whole = sum(box.depth == 1 for box in placed.boxes)
    tiles = [tile.host for fold in placed.folds for tile in fold.tiles]
    assert whole + len(tiles) == len(hosts)
    assert len(set(tiles)) == len(tiles)
    frames = [box for box in placed.boxes if box.depth == 1] + [fold.box for fold in placed.folds]
    for one, other in combinations(frames, 2):
        assert one.right < other.left or other.right < one.left
    for fold in placed.folds:
        for tile in fold.tiles:
            assert fold.box.left < tile.x < fold.box.right
            assert fold.box.bottom < tile.y < fold.box.top
        assert fold.like == 0, "every shipped cluster has hosts alike"


def test_hosts_that_differ_are_not_called_alike() -> None:
    nodes, links = cluster("h100x64-rail")
    assert place(nodes, links).folds[0].like == 0
    slower = [x._replace(bandwidth_bytes_per_s=1e9) if x.source == "gpu40" else x for x in links]
    assert place(nodes, slower).folds[0].like == -1


def test_a_fat_tree_folds_the_leaves_of_folded_hosts() -> None:
    """256 nodes of one GPU, four on a leaf: 64 leaves, of which those of drawn hosts are drawn."""
    nodes: list[Node] = [Node("spine", "spine")]
    links: list[Link] = []
    for leaf in range(64):
        nodes.append(Node(f"leaf{leaf}", "leaf"))
        links += both("spine", f"leaf{leaf}", "network")
    for host in range(256):
        nodes += [Node(f"gpu{host}", "gpu", host), Node(f"nic{host}", "nic", host)]
        links += both(f"gpu{host}", f"nic{host}", "pcie")
        links += both(f"nic{host}", f"leaf{host // 4}", "network")
    placed = place(nodes, links)
    drawn = {int(name[3:]) for name in placed.at if name.startswith("gpu")}
    assert {0, 255} <= drawn
    assert len(drawn) < 20
    assert {int(n[4:]) for n in placed.at if n.startswith("leaf")} == {h // 4 for h in drawn}


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ([0.0, 0.0, 0.0], [-1.0, 0.0, 1.0]),
        ([0.0, 5.0], [0.0, 5.0]),
        ([0.0, 0.5, 9.0], [-0.25, 0.75, 9.0]),
        ([], []),
    ],
)
def test_spaced_by_hand(wanted: list[float], found: list[float]) -> None:
    assert spaced(wanted, 1.0) == pytest.approx(found)


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=12))
def test_spaced_keeps_the_gap_and_the_centre(wanted: list[float]) -> None:
    wanted = sorted(wanted)
    found = spaced(wanted, 1.0)
    assert all(b - a >= 1.0 - 1e-9 for a, b in pairwise(found))
    assert sum(found) == pytest.approx(sum(wanted), abs=1e-6)


# --- Lines ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dgx-h100", "h100x16-rail", "mi300x8", "a6000x10", "k8s-2node"])
def test_both_directions_are_one_line(name: str) -> None:
    nodes, links = cluster(name)
    assert lines_drawn(cluster_figure(nodes, links)) * 2 == len(links)


def test_a_link_tells_what_it_is() -> None:
    figure = cluster_figure(*cluster("dgx-h100"))
    (text,) = {text for text in told(figure) if "<b>gpu3 ↔ nvswitch0</b>" in text}
    assert "NVLink" in text
    assert "450 GB/s each way" in text
    assert "latency 468 ns" in text
    (node,) = {text for text in told(figure) if text.startswith("<b>gpu3</b>")}
    assert "H100-SXM" in node
    assert "host 0" in node
    assert "450 GB/s" in node
    assert "64.0 GB/s" in node


def test_directions_that_differ_are_two_arrows() -> None:
    nodes = [Node("a", "gpu"), Node("b", "gpu")]
    links = [Link("a", "b", "nvlink", 2e9, 1e-6), Link("b", "a", "nvlink", 1e9, 3e-6)]
    figure = cluster_figure(nodes, links)
    assert lines_drawn(figure) == 2
    arrows = [trace for trace in figure["data"] if trace.get("marker", {}).get("symbol") == "arrow"]
    assert sum(sum(size > 0 for size in trace["marker"]["size"]) for trace in arrows) == 2
    texts_of_links = {text for text in told(figure) if "→" in text}
    assert any("a → b" in t and "2.00 GB/s this way, latency 1.00 us" in t for t in texts_of_links)
    assert any("b → a" in t and "1.00 GB/s this way, latency 3.00 us" in t for t in texts_of_links)
    # They bow to different sides.
    tops = [max(y for y in t["y"] if y is not None) for t in arrows]
    assert len(tops) != 2 or tops[0] != tops[1]


def test_a_link_of_one_direction_is_one_arrow() -> None:
    figure = cluster_figure(
        [Node("a", "gpu"), Node("b", "nvswitch")], [Link("a", "b", "nvlink", 1e9, 0.0)]
    )
    assert lines_drawn(figure) == 1
    assert any("a → b" in text for text in told(figure))


def test_faster_links_are_wider_and_the_legend_names_the_rates() -> None:
    figure = cluster_figure(*cluster("h100x16-rail"))
    width = {
        trace["meta"]["role"]: trace["line"]["width"]
        for trace in figure["data"]
        if trace.get("mode") == "lines" and len(trace["x"]) > 1
    }
    assert width["link membus"] > width["link nvlink"] > width["link pcie"]
    names = {trace["name"] for trace in figure["data"] if trace.get("showlegend", True)}
    assert "PCIe 64.0 GB/s" in names
    assert "network 50.0 GB/s to 100 GB/s" in names


def test_the_legend_has_every_kind_once_and_hides_all_of_it() -> None:
    nodes, links = cluster("h100x16-rail")
    figure = cluster_figure(nodes, links)
    entries = [trace for trace in figure["data"] if trace.get("showlegend", True)]
    groups = [trace["legendgroup"] for trace in entries]
    assert len(set(groups)) == len(groups)
    assert set(groups) == {"nvlink", "pcie", "membus", "network"} | {
        f"node {kind}" for kind in {node.kind for node in nodes}
    }
    assert {trace["legendgroup"] for trace in figure["data"]} == set(groups)
    assert figure["layout"]["legend"]["groupclick"] == "togglegroup"
    counts = Counter(node.kind for node in nodes)
    for kind, count in counts.items():
        assert f"{NODE_NAMES[kind]} ({count})" in {trace["name"] for trace in entries}
    symbols = [
        trace["marker"]["symbol"] for trace in entries if "symbol" in trace.get("marker", {})
    ]
    assert len(set(symbols)) == len(symbols) == len(counts)


# --- Folded clusters ------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "hosts"), [("h100x256-rail", 32), ("h100x1024-rail", 128)])
def test_a_big_cluster_is_folded_and_says_so(name: str, hosts: int) -> None:
    figure = cluster_figure(*cluster(name))
    assert f"3 of {hosts} hosts are drawn in full" in figure["layout"]["meta"]["note"]
    (tiles,) = traces(figure, "tile")
    assert len(tiles["x"]) == hosts - 3
    assert len(json.dumps(figure)) < 1_000_000
    # Leaf 0 has one NIC in each host that is folded.
    (text,) = {t for t in told(figure) if t.startswith("<b>leaf0 and the folded hosts")}
    assert f"{hosts - 3} links there, {hosts - 3} back" in text


def test_a_small_cluster_is_drawn_whole() -> None:
    figure = cluster_figure(*cluster("h100x32-rail"))
    assert figure["layout"]["meta"]["note"] == ""
    assert not traces(figure, "tile")


# --- Values --------------------------------------------------------------------------------


def test_values_colour_links_and_gpus() -> None:
    nodes, links = cluster("dgx-h100")
    use = {link[:2]: 0.0 for link in links}
    use["gpu0", "nvswitch0"], use["nvswitch0", "gpu0"] = 20.0, 100.0
    busy = {f"gpu{index}": 10.0 * index for index in range(8)}
    figure = cluster_figure(
        nodes, links, Values("link use", "%", use, 100.0), Values("GPU busy", "%", busy, 100.0)
    )
    hot = [t for t in figure["data"] if t.get("line", {}).get("color") == f"@heat{HEAT_STEPS - 1}"]
    assert [(trace["legendgroup"], trace["x"].count(None)) for trace in hot] == [("nvlink", 1)]
    (text,) = {t for t in told(figure) if "<b>gpu0 ↔ nvswitch0</b>" in t}
    assert "link use gpu0 → nvswitch0: 20.0 %" in text
    assert "link use nvswitch0 → gpu0: 100 %" in text
    (gpus,) = traces(figure, "gpu")
    assert gpus["marker"]["color"] == [10.0 * index for index in range(8)]
    assert (gpus["marker"]["cmin"], gpus["marker"]["cmax"]) == (0.0, 100.0)
    assert gpus["marker"]["colorbar"]["title"]["text"] == "GPU busy, %"
    (scale,) = traces(figure, "scale")
    assert scale["marker"]["colorbar"]["title"]["text"] == "link use, %"
    # Colour means a value alone: the other nodes are grey.
    assert {traces(figure, kind)[0]["marker"]["color"] for kind in ("cpu", "nic")} == {"@tile"}


def test_folded_hosts_have_their_highest_value() -> None:
    nodes, links = cluster("h100x64-rail")
    placed = place(nodes, links)
    folded = [tile.host for fold in placed.folds for tile in fold.tiles]
    busy = {n.name: float(n.host == folded[0]) for n in nodes if n.kind == "gpu"}
    busy[f"gpu{8 * folded[1]}"] = 0.5
    use = {link[:2]: 0.0 for link in links} | {(f"nic{8 * folded[0]}", "leaf0"): 4.0}
    figure = cluster_figure(nodes, links, Values("use", "", use), Values("busy", "", busy))
    (tiles,) = traces(figure, "tile")
    assert tiles["marker"]["color"] == [1.0, 0.5] + [0.0] * (len(folded) - 2)
    assert "mean 0.0625, highest 0.500" in tiles["hovertext"][1]
    hot = [t for t in figure["data"] if t.get("line", {}).get("color") == f"@heat{HEAT_STEPS - 1}"]
    assert [(t["line"]["dash"], t["x"].count(None)) for t in hot] == [("dot", 1)]


def test_no_use_at_all_has_the_lowest_colour() -> None:
    nothing = Values("use", "%", {})
    assert (nothing.end(), nothing.step(0.0)) == (1.0, 0)
    assert Values("use", "%", {"a": 2.0}).step(2.0) == HEAT_STEPS - 1


# --- Colours and text ------------------------------------------------------------------------


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_plotly_takes_the_figure(theme: str) -> None:
    import plotly.graph_objects as go

    nodes, links = cluster("h100x64-rail")
    values = Values("use", "%", {link[:2]: 1.0 for link in links})
    for figure in (cluster_figure(nodes, links), cluster_figure(nodes, links, values, values)):
        taken = go.Figure(coloured(figure, theme))
        assert len(taken.data) == len(figure["data"])
        assert not [text for text in texts(coloured(figure, theme)) if text.startswith("@")]


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_and_outlines_can_be_seen(theme: str) -> None:
    palette = palettes()[theme]
    for behind in ("page", "host", "folded"):
        assert contrast(palette["text"], palette[behind]) >= 7.0
        assert contrast(palette["quiet"], palette[behind]) >= 4.5
        assert contrast(palette["outline"], palette[behind]) >= 3.0
    steps = [contrast(palette[f"heat{step}"], palette["page"]) for step in range(HEAT_STEPS)]
    assert steps == sorted(steps), "what is used more stands out more"
    assert set(palettes()["light"]) == set(palettes()["dark"])


def test_names_of_the_user_are_not_markup() -> None:
    name = "<script>alert('x')</script>\"&<b>"
    nodes = [Node(name, "gpu", 0, "<i>model</i>"), Node("<a href='x'>s</a>", "nvswitch")]
    figure = cluster_figure(nodes, both(name, nodes[1].name, "nvlink"))
    for text in texts(figure):
        bare = text.replace("<b>", "").replace("</b>", "").replace("<br>", "")
        assert "<" not in bare, text
    assert any("&lt;script&gt;alert('x')&lt;/script&gt;\"&amp;" in text for text in told(figure))


def test_long_names_are_cut_and_control_signs_left_out() -> None:
    assert marked("a\nb\x00") == "a b "
    assert marked("x" * 100) == "x" * 59 + "…"
