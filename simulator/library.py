"""The simulator in a notebook or a script: runs as objects, tables as DataFrames.

Errors: InputError (one line per fault) for input that cannot be used, from every function here.
"""

from __future__ import annotations

import html
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from simulator.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

Overrides = Sequence[str] | Mapping[str, object]
"""What is set of the inputs: "key.path=value" each, or key path -> value."""

TABLES = ("spans", "links", "steps", "accesses", "loads", "requests")


class Run:
    """A run: its figures and tables, read from its directory `path` when they are asked for.

    A run that was not kept with `out` lies in a temporary directory until the object is gone.
    """

    def __init__(self, path: Path, keep_alive: object = None) -> None:
        self.path = path
        self._keep_alive = keep_alive
        with (path / "result.json").open(encoding="utf-8") as file:
            self._result: dict[str, Any] = json.load(file)

    def summary(self) -> dict[str, Any]:
        """The figures: what `--json` prints. Times in seconds, sizes in bytes."""
        found: dict[str, Any] = self._result["summary"]
        return found

    @property
    def inputs(self) -> dict[str, Any]:
        """Topology and workload with every default, SI units."""
        found: dict[str, Any] = self._result["input"]
        return found

    @property
    def notes(self) -> list[str]:
        """What the reader should know of this run."""
        return list(self._result["notes"])

    def table(self, name: str) -> pd.DataFrame:
        """A table of the run as a DataFrame (columns: docs/architecture.md, docs/serving.md).

        name: one of `TABLES`; InputError if this run has none of that name.
        """
        import pandas as pd

        path = self.path / f"{name}.parquet"
        if name not in TABLES or not path.is_file():
            there = [one for one in TABLES if (self.path / f"{one}.parquet").is_file()]
            raise InputError(f"{self.path}: no table {name!r}; there are {', '.join(there)}")
        return pd.read_parquet(path)

    @property
    def spans(self) -> pd.DataFrame:
        """One row per kernel, send or fetch that took time (a run of steps)."""
        return self.table("spans")

    @property
    def links(self) -> pd.DataFrame:
        """One row per directed link: kind, bandwidth, bytes (a run of steps)."""
        return self.table("links")

    @property
    def requests(self) -> pd.DataFrame:
        """One row per request: when it came, its first and last token, its end (a served run)."""
        return self.table("requests")

    def figure(self) -> go.Figure:
        """Where the time goes (a run of steps) or how late answers are (a served run), plotly."""
        import plotly.graph_objects as go

        summary = self.summary()
        if "latency" in summary:
            figure = go.Figure()
            finished = self.requests.query("outcome == 1")
            for name, values in (
                ("TTFT", finished["first_s"] - finished["arrival_s"]),
                ("E2E", finished["end_s"] - finished["arrival_s"]),
            ):
                ordered = values.sort_values()
                share = [(i + 1) / len(ordered) for i in range(len(ordered))]
                figure.add_scatter(x=ordered, y=share, name=name, mode="lines")
            return figure.update_layout(
                xaxis={"title": "seconds after arrival", "type": "log"},
                yaxis={"title": "share of finished requests", "tickformat": ".0%"},
            )
        parts = summary["breakdown"]
        return go.Figure(
            go.Bar(x=list(parts.values()), y=list(parts), orientation="h")
        ).update_layout(xaxis={"title": "share of a step, mean GPU", "tickformat": ".0%"})

    def render(self, width: int = 80) -> str:
        """The summary as the command line prints it."""
        if "latency" in self.summary():
            from simulator.results.serving_summary import render as served

            return served(self.summary(), self.notes, width)
        from simulator.results.summary import render

        return render(self.summary(), self.notes, width)

    def __repr__(self) -> str:
        return self.render()

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.render())}</pre>"


def simulate(
    topology: str,
    workload: str,
    *,
    overrides: Overrides = (),
    routing: str | None = None,
    seed: int = 0,
    out: str | Path | None = None,
) -> Run:
    """Simulate steps of `workload` on `topology` (shipped names or paths), as `run` does.

    routing: a trace or law in place of the workload's; out: a directory that keeps the files.
    """
    from simulator.api import simulate as run

    given = {"overrides": listed(overrides), "routing": routing, "seed": seed, "trace_steps": 0}
    path, alive = _place(out)
    run(topology, workload, out=path, **given)  # type: ignore[arg-type]
    return Run(path, alive)


def serve(
    topology: str,
    workload: str,
    *,
    requests: str | None = None,
    overrides: Overrides = (),
    routing: str | None = None,
    seed: int = 0,
    out: str | Path | None = None,
) -> Run:
    """Serve requests (a recording or a law, in place of the workload's), as `serve` does.

    >>> run = serve("h100x16-rail", "moe128-serving", overrides={"requests.limit": 10})
    >>> run.summary()["finished"]
    10
    """
    from simulator.api import serve as run

    given = {"overrides": listed(overrides), "routing": routing, "seed": seed}
    path, alive = _place(out)
    run(topology, workload, requests=requests, out=path, **given)  # type: ignore[arg-type]
    return Run(path, alive)


def load_run(path: str | Path) -> Run:
    """A run that was kept with `out`.

    >>> load_run("nowhere")
    Traceback (most recent call last):
    simulator.errors.InputError: nowhere: no run (there is no result.json)
    """
    folder = Path(path)
    if not (folder / "result.json").is_file():
        raise InputError(f"{folder}: no run (there is no result.json)")
    return Run(folder)


def transfers(topology: str, flows: pd.DataFrame, network: str = "exact") -> pd.DataFrame:
    """When transfers arrive that share a topology's links max-min fairly.

    flows: columns `src`, `dst` (node names), `bytes`, `start_s`; the result has `finish_s` too.

    >>> import pandas as pd
    >>> flow = {"src": ["gpu0"], "dst": ["gpu1"], "bytes": [9e9], "start_s": [0.0]}
    >>> transfers("nvswitch16", pd.DataFrame(flow))["finish_s"].round(4).tolist()
    [0.02]
    """
    import numpy as np

    from simulator.cluster.graph import build_graph
    from simulator.engine.links import network_of
    from simulator.engine.transfers import transfers as solve
    from simulator.spec.load import load_topology

    absent = [name for name in ("src", "dst", "bytes", "start_s") if name not in flows]
    if absent:
        raise InputError(f"flows: no column {absent[0]!r}; write src, dst, bytes, start_s")
    graph = build_graph(load_topology(topology))
    strange = [name for name in (*flows["src"], *flows["dst"]) if name not in graph]
    if strange:
        raise InputError(f"flows: {topology} has no node {strange[0]!r}")
    sizes = np.asarray(flows["bytes"], dtype=np.float64)
    starts = np.asarray(flows["start_s"], dtype=np.float64)
    for name, values in (("bytes", sizes), ("start_s", starts)):
        if not np.isfinite(values).all() or (values < 0).any():
            raise InputError(f"flows: {name} must be finite and not negative")
    ends = (list(flows["src"]), list(flows["dst"]))
    found = solve(graph, *ends, sizes, starts, network_of(network))
    return flows.assign(finish_s=found.finish_s)


def hit_rates(
    trace: str | Path,
    policies: Sequence[str] = ("lru", "lfu", "belady"),
    capacities: Sequence[float] = (2, 4, 8),
    *,
    pool: Literal["layer", "global"] = "layer",
    reset: Literal["request", "never"] = "request",
) -> pd.DataFrame:
    """Hit rates of a routing trace (shipped name, path, or a recording), as `cache` has them.

    >>> hit_rates("moe128-python", ("lru", "belady"), (32,))["hit_rate"].round(3).tolist()
    [0.429, 0.666]
    """
    import pandas as pd

    from simulator.policies.caching import policy_named
    from simulator.routing.importers import open_trace
    from simulator.spec.find import find
    from simulator.studies.cache_rates import hit_rates as replay

    path = open_trace(find("trace", str(trace)))
    named = [(name, policy_named(name)) for name in policies]
    found = replay(path, named, list(capacities), pool=pool, reset=reset)
    accesses = int(found.accesses.sum())
    rows = [
        {
            "policy": name,
            "capacity": capacity,
            "accesses": accesses,
            "hit_rate": int(found.hits[at, index].sum()) / accesses,
        }
        for at, name in enumerate(found.policies)
        for index, capacity in enumerate(found.capacities)
    ]
    return pd.DataFrame(rows)


def balance(
    loads: str | Path,
    policies: Sequence[str] = ("contiguous", "balanced", "eplb"),
    *,
    gpus: int,
    nodes: int = 1,
    replicas: int | None = None,
    groups: int = 1,
) -> pd.DataFrame:
    """How even placements make expert loads (a load file or a trace), as `balance` has it.

    replicas: slots in all (default: one per expert); groups: of experts that EPLB keeps on a node.

    >>> balance("moe128-python", ("contiguous", "balanced"), gpus=16)["policy"].tolist()
    ['contiguous', 'balanced']
    """
    import pandas as pd

    from simulator.policies.placement import Target, place
    from simulator.policies.placement_figures import balance_of
    from simulator.policies.placement_types import even_nodes
    from simulator.routing.loads import loads_of
    from simulator.spec.find import find

    found = loads_of(find("trace", str(loads)))
    physical = found.counts.shape[1] if replicas is None else replicas
    target = Target(gpus, physical, nodes, even_nodes(gpus, nodes), groups, None, None, None, 1.0)
    rows = []
    for name in policies:
        told = balance_of(found.counts, place(name, found.counts, target), gpus)
        worst = float(told.max_over_mean.max())
        mean = float(told.max_over_mean.mean())
        rows.append(
            {
                "policy": name,
                "max_over_mean": mean,
                "worst": worst,
                "balancedness": told.balancedness,
            }
        )
    return pd.DataFrame(rows)


def shipped() -> dict[str, list[str]]:
    """Names of what is shipped: topologies, workloads, traces, transports.

    >>> "nvswitch16" in shipped()["topologies"]
    True
    """
    from simulator.spec.find import shipped as names

    return {
        "topologies": list(names("topology")),
        "workloads": list(names("workload")),
        "traces": list(names("trace")),
        "transports": list(names("transport")),
    }


def show(kind: Literal["topology", "workload"], name: str) -> dict[str, Any]:
    """A topology or workload (shipped name or path) with every default, SI units.

    >>> show("workload", "moe128")["model"]["moe"]["experts"]
    128
    """
    from simulator.spec.load import load_topology, load_workload

    if kind not in ("topology", "workload"):
        raise InputError(f"show: no {kind!r}; write 'topology' or 'workload'")
    found = load_topology(name) if kind == "topology" else load_workload(name)
    return found.model_dump(mode="json")


def listed(overrides: Overrides) -> list[str]:
    """Overrides as texts; values are written as JSON, which YAML reads."""
    if not isinstance(overrides, Mapping):
        return list(overrides)
    return [
        f"{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in overrides.items()
    ]


def _place(out: str | Path | None) -> tuple[Path, object]:
    """Where a run goes, and what keeps it alive."""
    if out is not None:
        return Path(out), None
    holder = tempfile.TemporaryDirectory(prefix="simulator-run-", ignore_cleanup_errors=True)
    return Path(holder.name) / "run", holder
