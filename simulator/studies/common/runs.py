"""The simulations of `large-ep` and `layerwise`: a `Case` is a run, an `Outcome` its figures."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from simulator.errors import InputError

Progress = Callable[[int, int], None]


@dataclass(frozen=True, order=True)
class Case:
    """One run. overrides: "key.path=value" each; routing: a trace or law in place of the
    workload's, empty for none.
    """

    topology: str
    workload: str
    overrides: tuple[str, ...] = ()
    routing: str = ""


@dataclass(frozen=True)
class Outcome:
    """What a run gave, None where it has no such figure.

    refused: why it cannot be run, empty if it was; then all else is None. step_s: a batch from
    start to end (of a steady pipeline: from batch to batch). compute, exposed: shares of the time,
    mean over GPUs; nvlink, network: mean utilisation of the links of that kind; hbm: of its
    bandwidth.
    """

    refused: str = ""
    tokens_per_s: float | None = None
    step_s: float | None = None
    compute: float | None = None
    exposed: float | None = None
    nvlink: float | None = None
    network: float | None = None
    mfu: float | None = None
    imbalance: float | None = None
    overlap: float | None = None
    limit: str = ""
    hbm: float | None = None
    joules_per_token: float | None = None

    @property
    def wires(self) -> float | None:
        """Mean utilisation of the network between nodes, of NVLink where there is none."""
        return self.nvlink if self.network is None else self.network


def outcome(case: Case) -> Outcome:
    """Simulate one case; a refusal of the input is its outcome."""
    from simulator.api import simulate

    try:
        found = simulate(
            case.topology,
            case.workload,
            overrides=case.overrides,
            routing=case.routing or None,
            trace_steps=0,
        )
    except InputError as error:
        return Outcome(refused=str(error).splitlines()[0])
    return read_summary(found.summary, _hbm(case, found.summary))


def _hbm(case: Case, summary: Mapping[str, Any]) -> float | None:
    """Mean use of HBM bandwidth, from the energy that its bytes took."""
    from simulator.spec.energy import hbm_j_per_byte
    from simulator.spec.load import load_inputs

    energy = summary.get("energy")
    if energy is None:
        return None
    inputs = load_inputs(case.topology, case.workload, case.overrides, case.routing or None)
    moved = energy["joules_per_step_by_part"]["gpu_hbm"] / hbm_j_per_byte(inputs.workload.energy)
    could = inputs.topology.gpu.hbm_bandwidth_bytes_per_s * summary["gpus"]
    return float(moved / (could * summary["step_time_s"]["mean"]))


def read_summary(summary: Mapping[str, Any], hbm: float | None = None) -> Outcome:
    """The figures of a run that the studies use; hbm: share of the bandwidth, if it is known."""
    links, parts = summary["links"], summary["breakdown"]
    balance = summary.get("load_imbalance") or {}
    energy = summary.get("energy") or {}
    return Outcome(
        tokens_per_s=summary["throughput_tokens_per_s"],
        step_s=summary["step_time_s"]["mean"],
        compute=parts["compute"],
        exposed=parts["exposed_communication"],
        nvlink=links.get("nvlink", {}).get("mean_utilization"),
        network=links.get("network", {}).get("mean_utilization"),
        mfu=summary["mfu"],
        imbalance=balance.get("gpus"),
        overlap=summary["overlap_achieved"],
        limit=summary["bottleneck"],
        hbm=hbm,
        joules_per_token=energy.get("joules_per_token"),
    )


def run_all(
    cases: Iterable[Case], progress: Progress | None = None, workers: int | None = None
) -> dict[Case, Outcome]:
    """Simulate each case once, in processes (as many as there are cores; none for 1)."""
    wanted = list(dict.fromkeys(cases))
    workers = workers or len(os.sched_getaffinity(0))
    found: dict[Case, Outcome] = {}

    def tell() -> None:
        if progress is not None:
            progress(len(found), len(wanted))

    if workers == 1 or len(wanted) < 2 * workers:
        for case in wanted:
            found[case] = outcome(case)
            tell()
        return found
    # One run here first: what has to be compiled is then compiled once, and not in each.
    found[wanted[0]] = outcome(wanted[0])
    with ProcessPoolExecutor(workers) as pool:
        futures = {pool.submit(outcome, case): case for case in wanted[1:]}
        for future in as_completed(futures):
            found[futures[future]] = future.result()
            tell()
    return {case: found[case] for case in wanted}
