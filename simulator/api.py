"""Floor 6: one run as one function, from names to figures.

    from simulator.api import simulate

    result = simulate("nvswitch16", "moe128", overrides=["overlap=none"])
    print(result.summary["throughput_tokens_per_s"])

The command line's `run` is this, printed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator import __version__, reporting
from simulator.errors import InputError

if TYPE_CHECKING:
    from simulator.engine.serving.simulate import Report
    from simulator.results.analyzer import Context
    from simulator.results.energy import EnergyRates
    from simulator.results.serving import ServingContext
    from simulator.spec.load import Inputs

Progress = Callable[[int, int], None]
"""Told after every step: how many are done, and how many there are."""

Say = Callable[[str], object]

_FETCH_FROM = {
    "host": "host memory over PCIe",
    "peer": "a peer GPU",
    "peer-or-host": "a peer GPU or host memory",
}


@dataclass(frozen=True)
class Result:
    """What a run found.

    summary: the figures (`simulator.results.analyzer.analyze`); notes: sentences for the reader;
    input: topology and workload with every default, SI units; solver: counts of the network
    solver; path: the run directory, None if it was not kept.
    """

    summary: dict[str, Any]
    notes: list[str]
    input: dict[str, object]
    solver: dict[str, int]
    path: Path | None

    def render(self, width: int = 80) -> str:
        """The summary as text, in lines of at most `width` (at least 80) columns."""
        from simulator.results.summary import render

        return render(self.summary, self.notes, width)


def simulate(
    topology: str,
    workload: str,
    *,
    overrides: Sequence[str] = (),
    routing: str | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    trace_steps: int = 4,
    plotlyjs: str = "inline",
    progress: Progress | None = None,
    say: Say | None = None,
) -> Result:
    """Simulate `workload` on `topology` (shipped names or paths) and analyze what the run left.

    overrides: "key.path=value" each; routing: a trace or law in place of the workload's. With `out`
    the run's files are kept there: the tables, `result.json`, `report.html`, and Chrome traces of
    the first `trace_steps` measured steps (none if 0). The same arguments give the same bytes.
    plotlyjs: where the report has its charts' library from (`simulator.reporting.write_report`).
    `say` is told in a line of what takes long.

    Errors: InputError, one line per fault, for inputs that cannot be used and an `out` that holds
    something; `out` is then as it was before.
    """
    from simulator.results.page import check_plotlyjs
    from simulator.runfiles.rundir import open_run
    from simulator.spec.load import load_inputs, resolved

    for name, value in (("seed", seed), ("trace_steps", trace_steps)):
        if value < 0:
            raise InputError(f"{name}: {value} is negative; write 0 or more")
    check_plotlyjs(plotlyjs)
    inputs = load_inputs(topology, workload, overrides, routing)
    with open_run(None if out is None else Path(out)) as run:
        # What is slow to import comes after what is likely to be refused.
        from simulator.engine.simulate import simulate as run_engine
        from simulator.results.analyzer import analyze

        with announced_compilation(say):
            report = run_engine(inputs, run, seed, progress)
            context = _context(inputs, report.gpus)
            summary = analyze(run.path, context)
        given = resolved(inputs)
        run.write_result(
            {
                "context": asdict(context),
                "given": reporting.given("run", overrides, routing),
                "input": given,
                "memory": reporting.memory_of(inputs),
                "notes": report.notes,
                "routing": report.routing,
                "seed": seed,
                "summary": summary,
                "versions": _versions(),
            }
        )
        if out is not None:
            reporting.write_report(run.path, plotlyjs=plotlyjs)
        if out is not None and trace_steps:
            from simulator.results.chrome import write_traces

            write_traces(run.path, report.gpus, trace_steps)
    kept = None if out is None else Path(out)
    return Result(summary, report.notes, given, report.solver, kept)


@dataclass(frozen=True)
class Served:
    """What a serving run found; as `Result`, with the figures of `simulator.results.serving`."""

    summary: dict[str, Any]
    notes: list[str]
    input: dict[str, object]
    path: Path | None

    def render(self, width: int = 80) -> str:
        """The summary as text, in lines of at most `width` (at least 80) columns."""
        from simulator.results.serving_summary import render

        return render(self.summary, self.notes, width)


def serve(
    topology: str,
    workload: str,
    *,
    requests: str | None = None,
    overrides: Sequence[str] = (),
    routing: str | None = None,
    faults: str | None = None,
    html: str | Path | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    plotlyjs: str = "inline",
    progress: Progress | None = None,
    say: Say | None = None,
) -> Served:
    """Serve `requests` (a recording or a law, in place of the workload's) on a cluster.

    faults: a file with what breaks meanwhile, in place of the workload's `faults`; html: a file
    that must not exist, for a page with the run over time. The other arguments, files and errors
    are those of `simulate`; `progress` is told of requests that have ended.
    """
    from simulator.results.page import check_plotlyjs
    from simulator.runfiles.rundir import open_run
    from simulator.spec.load import load_inputs, resolved

    if seed < 0:
        raise InputError(f"seed: {seed} is negative; write 0 or more")
    check_plotlyjs(plotlyjs)
    inputs = load_inputs(topology, workload, overrides, routing, requests, faults)
    with open_run(None if out is None else Path(out)) as run:
        from simulator.engine.serving.simulate import serve as run_service
        from simulator.results.serving import analyze_serving

        with announced_compilation(say):
            report = run_service(inputs, run, seed, progress)
        context = _serving_context(inputs, report)
        summary = analyze_serving(run.path, context)
        given = resolved(inputs)
        run.write_result(
            {
                "serving_context": asdict(context),
                "given": reporting.given("serve", overrides, routing, requests, faults),
                "input": given,
                "memory": reporting.memory_of(inputs, report.kv_blocks),
                "notes": report.notes,
                "routing": report.routing,
                "seed": seed,
                "summary": summary,
                "versions": _versions(),
            }
        )
        if out is not None:
            reporting.write_report(run.path, plotlyjs=plotlyjs)
        if html is not None:
            _write_timeline(run.path, Path(html), inputs, summary)
    return Served(summary, report.notes, given, None if out is None else Path(out))


def _write_timeline(folder: Path, html: Path, inputs: Inputs, summary: dict[str, Any]) -> None:
    """Write the page of a serving run in `folder`."""
    from simulator.results.page import write_page
    from simulator.results.serving_timeline import render_timeline
    from simulator.results.summary import percent
    from simulator.spec.units import counted

    title = f"{inputs.workload.name} served on {inputs.topology.name}"
    lines = [
        f"{summary['finished']:,} of {summary['requests']:,} requests finished, "
        f"{summary['failed']:,} failed, {summary['rejected']:,} rejected"
    ]
    if "faults" in summary:
        lines.append(
            f"{counted(summary['faults'], 'fault')}: groups were up "
            f"{percent(summary['availability'])} of the time, GPUs "
            f"{percent(summary['availability_gpus'])}; "
            f"{counted(summary['lost_requests'], 'request')} lost"
        )
    write_page(html, render_timeline(folder, title, lines, summary.get("fault_windows", [])))


def _serving_context(inputs: Inputs, report: Report) -> ServingContext:
    """What the figures of a serving run need beside its tables."""
    from simulator.engine.serving.scheduler import BINS_PER_FACTOR, FIRST_BIN_S
    from simulator.results.serving import ServingContext

    asked = inputs.workload.serving
    used = int(report.gaps.nonzero()[0].max(initial=-1)) + 1
    return ServingContext(
        gpus=report.gpus,
        groups=report.groups,
        kv_blocks=report.kv_blocks,
        warmup_s=asked.warmup_s,
        slo=asked.slo.model_dump(),
        gap_counts=report.gaps[:used].tolist(),
        gap_first_s=FIRST_BIN_S,
        gap_factor=math.exp(1.0 / BINS_PER_FACTOR),
        totals=report.totals,
        lost=report.lost,
        kv_tokens=report.kv_blocks * asked.kv_block,
        prompt_tokens=None if asked.chunked_prefill else asked.max_batched_tokens,
        usd_per_hour=inputs.topology.gpu.price_per_hour * report.gpus,
    )


@contextmanager
def announced_compilation(say: Say | None) -> Iterator[None]:
    """Tell `say` once if a kernel must be compiled within the block, not just loaded."""
    if say is None:
        yield
        return
    from numba.core import event

    lines = ["compiling kernels (each only once; the first run of all takes about 30 s) ..."]
    tell = say

    class Started(event.Listener):  # type: ignore[misc]  # numba has no types
        def on_start(self, _: object) -> None:
            if lines:
                tell(lines.pop())

        def on_end(self, _: object) -> None:
            pass

    with event.install_listener("numba:compile", Started()):
        yield


def _context(inputs: Inputs, gpus: int) -> Context:
    """What the analyzer needs beside the tables."""
    from simulator.model.sizes import compute_dtype, dtype_of
    from simulator.model.speculative import tokens_per_row
    from simulator.results.analyzer import Context
    from simulator.results.cost import Prices

    workload, gpu = inputs.workload, inputs.topology.gpu
    dtype = compute_dtype(dtype_of(workload.model, "experts"), gpu)
    return Context(
        gpus=gpus,
        experts=workload.model.moe.experts,
        # As the compute model has it: weights of a type without units are converted to BF16.
        peak_flops_per_s=gpu.flops_per_s[dtype],
        fetch_from=_FETCH_FROM[workload.expert_home],
        energy=_energy(inputs),
        tokens_per_row=tokens_per_row(workload.traffic),
        prices=Prices(
            gpu_usd_per_hour=gpu.price_per_hour,
            electricity_usd_per_kwh=workload.cost.electricity_usd_per_kwh,
            electricity_in_price=workload.cost.electricity_in_price,
            volume_tokens_per_year=workload.cost.volume_tokens_per_year,
            phase=workload.traffic.phase,
        ),
    )


def _energy(inputs: Inputs) -> EnergyRates:
    """What the GPUs and, by their number in the graph, the parts beside them draw."""
    from simulator.cluster.graph import build_graph
    from simulator.model.energy import energy_rates
    from simulator.results.energy import EnergyRates

    graph = build_graph(inputs.topology)
    kinds = [data["kind"] for _, data in graph.nodes(data=True)]
    fabric = sum(
        data["bandwidth_bytes_per_s"]
        for _, node, data in graph.edges(data=True)
        if graph.nodes[node]["kind"] == "nvswitch"
    )
    counts = (kinds.count("nic"), kinds.count("cpu"))
    return EnergyRates(**energy_rates(inputs.workload, inputs.topology.gpu, fabric, *counts))


def _versions() -> dict[str, str]:
    """Versions of what may change a figure. Not Python's: it changes none."""
    import numba
    import numpy as np
    import simpy

    return {
        "simulator": __version__,
        "numba": numba.__version__,
        "numpy": np.__version__,
        "simpy": simpy.__version__,
    }
