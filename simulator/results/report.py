"""A run directory as one HTML page: the answer first, then what led to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from simulator.results import (
    report_facts,
    report_over_time,
    report_page,
    report_run,
    report_serving,
)
from simulator.results.placing import Link, Node
from simulator.results.report_charts import Section
from simulator.results.report_read import Run, read_run
from simulator.results.report_timeline import timeline_sections

NAME = "report.html"

_HEAD_BYTES = 1000

Maker = Callable[[Run], Section | list[Section] | None]
"""Makes a part of the page, None if the run has nothing for it."""

Drawn = tuple[Sequence[Node], Sequence[Link], str]
"""A cluster to draw: its nodes, its links, and the word for hosts on one fabric."""


def read(path: Path, steps: tuple[int, int] | None = None) -> Run:
    """What of a run directory can be read; steps: first and last of the timeline.

    Errors: InputError if nothing can be read, or `steps` names no step of the run.
    """
    return read_run(path, steps)


def render(run: Run, drawn: Drawn | None, plotlyjs: str = "inline", default: bool = True) -> str:
    """The page. drawn: the cluster, None if it is not known; default: whether the window of the
    timeline was not asked for. plotlyjs: one of `simulator.results.page.PLOTLYJS`.
    """
    makers = _serving(run, drawn) if run.is_serving else _batch(run, drawn, default)
    sections: list[Section] = []
    for name, make in [*makers.items(), ("run it again", report_facts.reproduce_section)]:
        sections += _made(run, name, make)
    # Last, since what could not be read may show only when a section is made.
    headline = report_facts.headline(run)
    return report_page.render(
        title_of(run), report_facts.lines_of(run), headline, sections, plotlyjs
    )


def _made(run: Run, name: str, make: Maker) -> list[Section]:
    """The sections that a maker makes, or, in `run.faults`, why it cannot."""
    try:
        found = make(run)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        run.faults.append(
            f"result.json: is not of this version, {name} is left out ({type(error).__name__}: "
            f"{error})"
        )
        return []
    return [found] if isinstance(found, Section) else found or []


def is_report(path: Path) -> bool:
    """Whether the file is a page that `render` made."""
    try:
        with path.open("rb") as stream:
            return report_page.mark("report").encode() in stream.read(_HEAD_BYTES)
    except OSError:
        return False


def title_of(run: Run) -> str:
    """Workload on topology, or the directory's name where `result.json` is lost."""
    given = run.result.get("input", {})
    names = [given.get(key, {}).get("name") for key in ("workload", "topology")]
    return " on ".join(map(str, names)) if all(names) else run.path.resolve().name


def _batch(run: Run, drawn: Drawn | None, default: bool) -> dict[str, Maker]:
    scan = run.scan
    makers: dict[str, Maker] = {
        "where the time goes": report_run.time_section,
        "the cluster": lambda of: report_run.cluster_section(of, drawn),
    }
    if scan is not None:
        makers["the timeline"] = lambda _: timeline_sections(scan, default)
        makers["layer by layer"] = lambda _: report_run.layers_section(scan)
    return makers | {
        "expert loads": report_run.loads_section_of,
        "the cache": report_run.cache_section,
        "memory": report_facts.memory_section,
        "cost": report_facts.cost_section,
    }


def _serving(run: Run, drawn: Drawn | None) -> dict[str, Maker]:
    return {
        "latency": report_serving.latency_section,
        "over time": report_over_time.over_time_section,
        "groups": report_serving.groups_section,
        "the cluster": lambda of: report_run.cluster_section(of, drawn),
        "memory": report_facts.memory_section,
        "cost": report_facts.cost_section,
    }
