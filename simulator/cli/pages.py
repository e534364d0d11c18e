"""`--html FILE` and `--plotlyjs HOW`: what commands that write web pages share."""

from __future__ import annotations

from simulator.errors import InputError


def plotlyjs_of(given: str | None) -> str:
    """The value of `--plotlyjs`. Raises InputError if there is none of this name."""
    from simulator.results.page import check_plotlyjs

    if given is None:
        return "inline"
    check_plotlyjs(given, "--plotlyjs")
    return given


def report_plotlyjs(out: str | None, given: str | None) -> str:
    """The value of `--plotlyjs` of a run, whose report lies in `out`, None if it is not kept."""
    if out is None and given is not None:
        raise InputError("--plotlyjs goes with --out DIR: it is of the report there")
    # Only then: the run loads no library of charts if it is not asked.
    return "inline" if given is None else plotlyjs_of(given)


def check_html(command: str, path: str | None, plotlyjs: str | None) -> str:
    """The value of `--plotlyjs`. Raises InputError if the page cannot be a new file, or if there is
    none that has a library.
    """
    from simulator.cli.flows import check_fresh

    if path is None and plotlyjs is not None:
        raise InputError(f"{command}: --plotlyjs goes with --html FILE")
    check_fresh(path)
    return plotlyjs_of(plotlyjs)
