"""Whatever holds a run, read alike: a run's directory, a serving run's, or recorded traces.

A directory that lacks files or was cut off gives what the readable ones hold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from simulator.errors import InputError
from simulator.results.analyzer import Context, analyze_dir
from simulator.results.kineto_read import read_traces
from simulator.results.serving import ServingContext, analyze_serving
from simulator.results.serving_summary import render as render_serving
from simulator.results.summary import render as render_run
from simulator.results.trace_summary import read_spans, summarize
from simulator.runfiles.rundir import RunDir
from simulator.runfiles.serving import REQUEST_SCHEMA
from simulator.runfiles.spans import ACCESS_SCHEMA, LINK_SCHEMA, STEP_SCHEMA
from simulator.runfiles.tables import iter_table, read_table

Kind = Literal["run", "serving", "trace"]

_TABLES = ("spans", "steps", "links", "accesses", "loads", "requests")


@dataclass
class Read:
    """What was found at `path`.

    kind; summary: the figures of its kind (`analyzer`, `serving` or `trace_summary`); input: as
    resolved, None if unknown; asked: what else the command said (seed, requests, ...); notes: of
    the run; faults: one line per file that could not be used.
    `whole` is False if `summary` holds only what `readable` found.
    """

    path: Path
    kind: Kind
    summary: dict[str, Any]
    input: dict[str, Any] | None = None
    asked: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    whole: bool = True


def read_any(path: Path, cpu: bool = False) -> Read:
    """Read what is at `path`. cpu: of traces, take operators on the CPU for kernels.

    Errors: InputError if nothing can be read.
    """
    if not _is_run(path):
        if not path.exists():
            raise InputError(
                f"{path}/result.json: is missing; is this the directory of a finished run?"
            )
        if (path / "study.json").exists() and (path / "results.jsonl").exists():
            raise InputError(
                f"{path}: holds a what-if study, no run; what its points gave is in "
                f"{path}/table.csv, and {path}/report.html compares them"
            )
        found = read_traces(path, cpu)
        return Read(path, "trace", summarize(found))
    result: dict[str, Any] = {}
    fault: InputError | None = None
    try:
        result = RunDir(path).load_result()
    except InputError as error:
        fault = error
    serving = "serving_context" in result or RunDir(path).requests.exists()
    kind: Kind = "serving" if serving else "run"
    given = result.get("input")
    read = Read(path, kind, {}, given if isinstance(given, dict) else None)
    read.asked = _asked(result)
    notes = result.get("notes")
    read.notes = [str(note) for note in notes] if isinstance(notes, list) else []
    try:
        if fault is not None:
            raise fault
        read.summary = _served(path, result) if serving else _analyzed(path, result)
        return read
    except InputError as error:
        read.faults = [str(error)]
    kept = result.get("summary")
    if isinstance(kept, dict) and kept:
        if _is_whole(kept, kind):
            read.summary = kept
            read.faults.append(
                f"{path}: what follows is the summary that the run left in result.json"
            )
            return read
        read.faults.append(f"{RunDir(path).result}: 'summary' is not of this version")
    read.summary = readable(path, read.faults, serving)
    read.whole = False
    if not read.summary:
        raise InputError(read.faults[0])
    return read


def _is_whole(summary: dict[str, Any], kind: Kind) -> bool:
    """Whether a summary has all that is shown of one."""
    try:
        if kind == "serving":
            render_serving(summary, [])
        else:
            render_run(summary)
    except (AttributeError, KeyError, TypeError, ValueError):
        return False
    return True


def _is_run(path: Path) -> bool:
    """Whether a directory holds files of a run."""
    files = RunDir(path)
    names = ("result.json", *(f"{name}.parquet" for name in _TABLES))
    return path.is_dir() and any((files.path / name).exists() for name in names)


def _asked(result: dict[str, Any]) -> dict[str, Any]:
    """What a run was asked for beside its inputs, and by which version it was done."""
    given, versions = result.get("given"), result.get("versions")
    found = {"seed": result.get("seed")}
    if isinstance(given, dict):
        found |= {name: given.get(name) for name in ("routing", "requests", "faults")}
    if isinstance(versions, dict):
        found["version"] = versions.get("simulator")
    return found


def _analyzed(path: Path, result: dict[str, Any]) -> dict[str, Any]:
    _check(Context, result, "context", path)
    return analyze_dir(path)


def _check(kind: type, result: dict[str, Any], key: str, path: Path) -> None:
    """Raise InputError if `key` of a run's result is not what a `kind` is made of."""
    from pydantic import TypeAdapter, ValidationError

    try:
        TypeAdapter(kind).validate_python(result.get(key))
    except ValidationError as error:
        place = ".".join(map(str, (key, *error.errors()[0]["loc"])))
        name = RunDir(path).result
        raise InputError(f"{name}: {place!r} is missing or not of this version") from None


def _served(path: Path, result: dict[str, Any]) -> dict[str, Any]:
    _check(ServingContext, result, "serving_context", path)
    return analyze_serving(path, ServingContext(**result["serving_context"]))


def readable(path: Path, faults: list[str], serving: bool = False) -> dict[str, Any]:
    """Figures of each table of a run that can be read by itself; what cannot is added to `faults`.

    They bear the names of a whole summary's, so far as they are there. serving: of a serving run.
    """
    readers: dict[str, Callable[[Path], dict[str, Any]]] = {
        "steps": _steps,
        "spans": lambda _: _spans(path),
        "links": _links,
        "accesses": _accesses,
    }
    if serving:
        readers = {"requests": _requests}
    found: dict[str, Any] = {}
    for name, reader in readers.items():
        try:
            found |= reader(path / f"{name}.parquet")
        except InputError as error:
            if str(error) not in faults:
                faults.append(str(error))
    return found


def _steps(path: Path) -> dict[str, Any]:
    table = read_table(path, STEP_SCHEMA)
    rows = ~table["warmup"]
    if not np.any(rows):
        raise InputError(f"{path}: no step was measured")
    length_s = table["end_s"][rows] - table["start_s"][rows]
    time_s, tokens = float(length_s.sum()), int(table["tokens"][rows].sum())
    return {
        "steps": int(rows.sum()),
        "tokens": tokens,
        "simulated_time_s": time_s,
        "throughput_tokens_per_s": tokens / time_s,
        "step_time_s": {"mean": float(length_s.mean()), "max": float(length_s.max())},
    }


def _spans(path: Path) -> dict[str, Any]:
    summary = summarize(read_spans(path))
    return {
        "gpus": summary["gpus"],
        "by_stream_s": summary["breakdown_s"],
        "overlap_achieved": summary["overlap_achieved"],
    }


def _links(path: Path) -> dict[str, Any]:
    table = read_table(path, LINK_SCHEMA)
    kinds = sorted(set(table["kind"]))
    return {
        "links": {
            kind: {"bytes": float(table["bytes"][table["kind"] == kind].sum())} for kind in kinds
        }
    }


def _accesses(path: Path) -> dict[str, Any]:
    """Of all steps, the warm-up too: which those are stands in another table."""
    counts = {"hit": 0, "late": 0, "miss": 0}
    for block in iter_table(path, ACCESS_SCHEMA):
        for name in counts:
            counts[name] += int(block[name].sum())
    total = sum(counts.values())
    if not total:
        return {}
    names = {"hit": "cache_hit_rate", "late": "cache_late_hit_rate", "miss": "cache_miss_rate"}
    return {"cache_accesses": total} | {to: counts[of] / total for of, to in names.items()}


def _requests(path: Path) -> dict[str, Any]:
    table = read_table(path, REQUEST_SCHEMA)
    ended = int(np.count_nonzero(table["outcome"] == 1))
    return {"requests": len(table["outcome"]), "finished": ended}
