"""What of a run directory can be read: a run that was cut off still has something to show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from simulator.errors import InputError
from simulator.results.report_scan import Scan, Steps, scan
from simulator.results.summary import empty_steps_note
from simulator.runfiles import serving
from simulator.runfiles.rundir import RunDir
from simulator.runfiles.spans import COPY, LINK_SCHEMA, LOAD_SCHEMA, STEP_SCHEMA
from simulator.runfiles.tables import Columns, iter_spans, read_table
from simulator.runfiles.values import gpus_of

_SERVING_STEPS = pa.schema(
    [
        serving.STEP_SCHEMA.field(name)
        for name in (
            *("group", "start_s", "end_s", "prompt", "generated"),
            *("waiting", "running", "used_blocks"),
        )
    ]
)
"""The columns that are shown."""


_ENTRIES = {
    **dict.fromkeys(
        ("summary", "input", "given", "versions", "memory", "context", "serving_context"), dict
    ),
    "notes": list,
}
"""Of `result.json`: what each is."""


@dataclass
class Run:
    """A run directory as far as it can be read; what cannot be is None, and `faults` says why.

    result: `result.json`, {} if unreadable; is_serving: what kind of run; steps, links, loads,
    requests: tables; scan: of the spans.
    """

    path: Path
    result: dict[str, Any]
    is_serving: bool
    faults: list[str] = field(default_factory=list)
    steps: Columns | None = None
    links: Columns | None = None
    loads: Columns | None = None
    requests: Columns | None = None
    scan: Scan | None = None

    @property
    def files(self) -> RunDir:
        """The names of its files."""
        return RunDir(self.path)

    @property
    def summary(self) -> Mapping[str, Any]:
        """The figures, {} if they were lost."""
        found: Mapping[str, Any] = self.result.get("summary", {})
        return found

    @property
    def notes(self) -> list[str]:
        """What a reader of the figures must know."""
        found = [str(note) for note in self.result.get("notes", [])]
        if self.scan is not None and self.scan.empty:
            measured = int(np.count_nonzero(self.scan.steps.measured))
            found.insert(0, empty_steps_note(self.scan.empty, measured))
        return found

    @property
    def gpus(self) -> int:
        """How many the cluster has; 0 if nothing says it."""
        known = self.summary.get("gpus")
        if type(known) is int and known > 0:
            return known
        return self.scan.gpus if self.scan is not None else 0


def read_run(path: Path, asked: tuple[int, int] | None = None) -> Run:
    """All of a run directory that can be read. asked: steps of the timeline (`scan`).

    Errors: InputError if nothing can, or `asked` names no step.
    """
    files = RunDir(path)
    names = (files.result, files.spans, files.steps, files.links, files.loads, files.requests)
    if not any(file.exists() for file in names):
        raise InputError(f"{path}: is no directory of a run; give one kept with --out")
    faults: list[str] = []
    result: dict[str, Any] = {}
    try:
        result = _result(files, faults)
    except InputError as error:
        faults.append(str(error))
    is_serving = "serving_context" in result or files.requests.exists()
    run = Run(path, result, is_serving, faults)
    if is_serving:
        if asked is not None:
            raise InputError("--steps: a serving run has no spans to show; leave it out")
        run.requests = _table(run, files.requests, serving.REQUEST_SCHEMA)
        run.steps = _table(run, files.steps, _SERVING_STEPS)
        usable = run.requests is not None or run.steps is not None
    else:
        run.steps = _table(run, files.steps, STEP_SCHEMA)
        run.links = _table(run, files.links, LINK_SCHEMA)
        run.loads = _table(run, files.loads, LOAD_SCHEMA)
        run.scan = _scanned(run, asked)
        usable = any(part is not None for part in (run.steps, run.links, run.loads, run.scan))
    if not usable and not run.summary:
        raise InputError(f"{path}: nothing of a run can be read there: {'; '.join(faults)}")
    run.faults = [fault.replace(f"{path}/", "") for fault in faults]
    return run


def _result(files: RunDir, faults: list[str]) -> dict[str, Any]:
    """`result.json`; entries that are not what a run writes are left out, and told in `faults`."""
    path = files.result
    found = files.load_result()
    for key, kind in _ENTRIES.items():
        if found.get(key) is not None and not isinstance(found[key], kind):
            faults.append(f"{path}: {key!r} is not of this version and is left out")
            found[key] = None
    given = found.get("input")
    if given and not all(isinstance(given.get(key), dict) for key in ("topology", "workload")):
        faults.append(f"{path}: 'input' is not of this version and is left out")
        found["input"] = None
    return {key: value for key, value in found.items() if value is not None}


def _table(run: Run, path: Path, schema: pa.Schema) -> Columns | None:
    try:
        found = read_table(path, schema)
    except InputError as error:
        run.faults.append(str(error))
        return None
    return found if len(found[schema.names[0]]) else None


def _scanned(run: Run, asked: tuple[int, int] | None) -> Scan | None:
    """The spans, by the steps of the table or, without it, by those that they name."""
    path = run.files.spans
    table = run.steps
    try:
        if table is None:
            steps = _steps_of_spans(path)
        else:
            order = np.argsort(table["step"], kind="stable")
            steps = Steps(
                table["step"][order].astype(np.int64),
                table["start_s"][order],
                table["end_s"][order],
                ~table["warmup"][order],
            )
        if asked is not None:
            inside = (steps.step >= asked[0]) & (steps.step <= asked[1])
            if not inside.any():
                raise _NoStep(
                    f"--steps {asked[0]}-{asked[1]}: the run has steps {steps.step[0]} to "
                    f"{steps.step[-1]}"
                )
        found = scan(path, steps, run.gpus or gpus_of(run.path) or 0, asked)
    except _NoStep:
        raise
    except InputError as error:
        run.faults.append(str(error))
        return None
    if found.fault:
        run.faults.append(f"{found.fault}; what comes before is shown")
    if not found.count:
        run.faults.append(f"{path}: holds no span")
        return None
    return found


class _NoStep(InputError):
    """The user asked for steps that are not there."""


def _steps_of_spans(path: Path) -> Steps:
    """Steps from their compute and comm spans, where `steps.parquet` is lost; nothing says which of
    them were measured.
    """
    bounds: dict[int, tuple[float, float]] = {}
    try:
        for block in iter_spans(path, ("step", "stream", "start_s", "end_s")):
            mine = block["stream"] != COPY
            number, index = np.unique(block["step"][mine], return_inverse=True)
            start_s, end_s = np.full(len(number), np.inf), np.full(len(number), -np.inf)
            np.minimum.at(start_s, index, block["start_s"][mine])
            np.maximum.at(end_s, index, block["end_s"][mine])
            for step, begin, end in zip(
                number.tolist(), start_s.tolist(), end_s.tolist(), strict=True
            ):
                had = bounds.get(step, (begin, end))
                bounds[step] = min(had[0], begin), max(had[1], end)
    except InputError:
        if not bounds:
            raise
    if not bounds:
        raise InputError(f"{path}: holds no kernel")
    order = sorted(bounds)
    return Steps(
        np.array(order),
        np.array([bounds[step][0] for step in order]),
        np.array([bounds[step][1] for step in order]),
        np.ones(len(order), dtype=np.bool_),
    )
