"""A discrete-event simulator of Mixture-of-Experts inference clusters.

In a notebook or a script:

>>> import simulator
>>> run = simulator.simulate("nvswitch16", "moe128", overrides={"model.layers": 2})
>>> run.summary()["gpus"]
16
>>> run.links["kind"].unique().tolist()
['nvlink', 'membus', 'pcie']

The public names, loaded when they are first used (`simulator.library` documents each):

- `simulate`, `serve`: one run, of steps or of requests; both give a `Run`
- `load_run`: a run that was kept, as a `Run`
- `Run`: its figures, tables (DataFrames), plotly figures and report
- `transfers`: when transfers on a topology arrive
- `hit_rates`: of a routing trace, by eviction policy and capacity
- `balance`: placement policies on expert loads
- `shipped`: the names of shipped topologies, workloads, traces, transports
- `show`: one input with every default filled in
- `InputError`: what is raised for input that cannot be used

`python -m simulator -h` lists the commands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "InputError",
    "Run",
    "balance",
    "hit_rates",
    "load_run",
    "serve",
    "shipped",
    "show",
    "simulate",
    "transfers",
]

if TYPE_CHECKING:
    from simulator.errors import InputError
    from simulator.library import (
        Run,
        balance,
        hit_rates,
        load_run,
        serve,
        shipped,
        show,
        simulate,
        transfers,
    )


def __getattr__(name: str) -> Any:
    """Load a public name; the command line, which imports this too, loads none."""
    if name == "InputError":
        from simulator.errors import InputError

        return InputError
    if name in __all__:
        from simulator import library

        return getattr(library, name)
    raise AttributeError(f"module 'simulator' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
