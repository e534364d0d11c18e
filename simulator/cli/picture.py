"""`show topology NAME --html FILE`: a cluster's graph and figures handed to the picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator.cli.pages import check_html
from simulator.errors import InputError
from simulator.spec.units import counted

if TYPE_CHECKING:
    from simulator.spec.schema import Topology


def check(what: str, path: str | None, plotlyjs: str | None) -> None:
    """Raise InputError if there is nothing to draw, or if FILE cannot be a new file."""
    if what not in ("topology", "plan"):
        raise InputError(f"show {what}: --html draws a topology or a plan; leave it out")
    check_html(f"show {what}", path, plotlyjs)


def draw(
    name: str, overrides: Sequence[str], shown: dict[str, Any], path: str, plotlyjs: str | None
) -> None:
    """Write the picture of a topology. shown: the object that `show topology` prints of it."""
    from simulator.cluster.graph import build_graph
    from simulator.reporting import nodes_and_links
    from simulator.results.page import render_page, write_page
    from simulator.results.picture import cluster_figure
    from simulator.spec.load import load_topology

    found = load_topology(name, overrides)
    nodes, links = nodes_and_links(build_graph(found), found.gpu.model_dump())
    word = "rack" if found.build.kind == "racks" else "NVLink domain"
    figure = cluster_figure(nodes, links, shared_word=word)
    lines = [("figures", figures_line(found, shown))]
    if found.description:
        lines.insert(0, ("about", found.description))
    where = plotlyjs or "inline"
    write_page(Path(path), render_page(found.name, lines, figure, where), where)


def figures_line(found: Topology, shown: dict[str, Any]) -> str:
    """GPUs, links by kind, bisection bandwidth and diameter in one line."""
    from simulator.results.colours import LINK_NAMES
    from simulator.results.summary import duration, size

    kinds: Counter[str] = Counter()
    for row in shown["links"]:
        kinds[row["kind"]] += row["links"]
    links = ", ".join(f"{LINK_NAMES.get(kind, kind)} {count:,}" for kind, count in kinds.items())
    parts = [f"{shown['gpus']:,} x {found.gpu.name}", f"directed links: {links or 'none'}"]
    reach = shown["figures"]
    if reach is None:
        parts.append("no bisection: one GPU, or GPUs that nothing joins")
    else:
        longest = reach["longest_links"]
        parts += [
            f"bisection {size(reach['bisection_bytes_per_s'])}/s each way",
            f"diameter {counted(longest, 'link')}, {duration(reach['longest_latency_s'])}",
        ]
    return " · ".join(parts)
