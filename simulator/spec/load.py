"""From names, paths and ``--set`` to checked inputs: the one entrance of the other floors.

Every fault of a file is reported at once, one line each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel

from simulator.errors import InputError
from simulator.spec.builds import (
    EthernetBuild,
    ExplicitBuild,
    FatTreeBuild,
    HgxRailBuild,
    RacksBuild,
)
from simulator.spec.choices import FAMILIES, routing_law
from simulator.spec.document import SET, Document, KeyPath, dotted, parse_value, read_document
from simulator.spec.faults import is_list, key_of, kinds_at, schema_at, validated
from simulator.spec.find import find, missing, shipped
from simulator.spec.hf import read_config
from simulator.spec.plan import check
from simulator.spec.profile import put_under, read_profile
from simulator.spec.requests import arrival_law
from simulator.spec.schema import Gpu, Topology, Workload
from simulator.spec.timeline import put_timeline, read_timeline
from simulator.spec.units import counted, did_you_mean

Root = Literal["topology", "workload"]
_ROOTS: dict[Root, type[Topology] | type[Workload]] = {"topology": Topology, "workload": Workload}
Spec = TypeVar("Spec", Topology, Workload)


@dataclass(frozen=True)
class Inputs:
    """What a run is given. ``trace_path`` is the routing trace's file, None when routing is a law;
    ``requests_dir`` is where a relative path of ``requests.source`` starts. ``fault_marks``: where
    the name of each fault was written, as an error line begins.

    ``topology_given`` and ``workload_given`` are the names or paths as the user wrote them.
    """

    topology: Topology
    workload: Workload
    topology_path: Path
    workload_path: Path
    trace_path: Path | None
    topology_given: str
    workload_given: str
    requests_dir: Path = Path()
    fault_marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Override:
    root: Root
    path: KeyPath
    value: Any
    origin: str = SET


def load_inputs(
    topology: str,
    workload: str,
    overrides: Sequence[str] = (),
    routing: str | None = None,
    requests: str | None = None,
    faults: str | None = None,
) -> Inputs:
    """Reads a topology and a workload (shipped names or paths) and applies ``--set`` overrides
    ("key.path=value").

    ``routing`` replaces ``routing.source`` (a trace or a law), ``requests`` replaces
    ``requests.source``, ``faults`` the workload's (a file, see ``timeline``). Raises InputError
    with one line per fault.
    """
    split = [_split(text, ("topology", "workload")) for text in overrides]
    if routing is not None:
        split.append(_Override("workload", ("routing", "source"), routing, "--routing"))
    if requests is not None:
        split = [*_of_requests(requests), *split]
    timeline = None
    if faults is not None:
        file = Path(faults).expanduser()
        timeline = read_timeline(file, _shown(file))
    refused = []
    gpu = None
    try:
        cluster, _, cluster_path = _load("topology", Topology, topology, split)
        gpu = cluster.gpu
    except InputError as error:
        refused.append(str(error))
    try:
        work, document, work_path = _load("workload", Workload, workload, split, gpu, timeline)
    except InputError as error:
        refused.append(str(error))
    if refused:
        raise InputError("\n".join(refused))
    trace_path = _trace(work, document, work_path)
    _check_parallel(cluster, work, document)
    return Inputs(
        cluster,
        work,
        cluster_path,
        work_path,
        trace_path,
        topology,
        workload,
        _requests_dir(work, work_path),
        tuple(document.fault(("faults", at, "name"), "") for at in range(len(work.faults))),
    )


def load_topology(name: str, overrides: Sequence[str] = ()) -> Topology:
    """A topology by shipped name or path, with overrides of its keys; raises InputError."""
    return _load("topology", Topology, name, [_split(text, ("topology",)) for text in overrides])[0]


def load_workload(name: str, overrides: Sequence[str] = ()) -> Workload:
    """A workload by shipped name or path, with overrides of its keys; raises InputError. A trace is
    not looked for.
    """
    return _load("workload", Workload, name, [_split(text, ("workload",)) for text in overrides])[0]


def root_of(override: str) -> Root:
    """Which of the two files a ``--set`` text is of; raises InputError if it is of neither."""
    return _split(override, ("topology", "workload")).root


def resolved(inputs: Inputs) -> dict[str, object]:
    """Everything that the run is given, defaults and GPU entry included: JSON-able, SI units,
    schema order, python names.
    """
    return {
        "topology_given": inputs.topology_given,
        "workload_given": inputs.workload_given,
        "topology": inputs.topology.model_dump(mode="json"),
        "workload": inputs.workload.model_dump(mode="json"),
    }


def gpu_count(topology: Topology) -> int:
    """Number of GPUs of the cluster."""
    build = topology.build
    if isinstance(build, ExplicitBuild):
        return sum(node.kind == "gpu" for node in build.nodes)
    if isinstance(build, RacksBuild):
        return build.racks * build.gpus_per_rack
    if isinstance(build, HgxRailBuild | FatTreeBuild | EthernetBuild):
        return build.nodes * build.gpus_per_node
    return build.gpus


def _load(
    root: Root,
    spec: type[Spec],
    given: str,
    overrides: Sequence[_Override],
    gpu: Gpu | None = None,
    timeline: Document | None = None,
) -> tuple[Spec, Document, Path]:
    path = find(root, given)
    document = read_document(path, _shown(path))
    mine = [override for override in overrides if override.root == root]
    if root == "workload":
        # A config file fills the model in before single keys of it are set.
        whole = (("model",), ("model", "config"), ("transport",), ("transport", "name"))
        for override in [o for o in mine if o.path in whole]:
            _put(document, spec, override)
        _fill_model(document, path)
        _fill_transport(document, path)
        mine = [o for o in mine if o.path not in whole]
    for override in mine:
        _put(document, spec, override)
    if timeline is not None:
        put_timeline(document, timeline)
    if root == "topology":
        _fill_profile(document, path)
    elif gpu is not None:
        _fill_copies(document, gpu)
    return validated(spec, document), document, path


def _shown(path: Path) -> str:
    """The path as messages show it: relative to the current directory when it lies below it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


# --- --set ------------------------------------------------------------------------------


def _split(text: str, roots: tuple[Root, ...]) -> _Override:
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise InputError(f"--set {text!r}: write key.path=value, for example traffic.steps=8")
    if parts[0] in _ROOTS:
        named = next(root for root in _ROOTS if root == parts[0])
        candidates = [named] if named in roots else []
        parts = parts[1:]
        if not parts:
            raise InputError(f"--set {key}: name a key below it, for example {key}.name")
    else:
        candidates = [root for root in roots if parts[0] in _top(root)]
    if len(candidates) > 1:
        raise InputError(f"--set {key}: both files have it; write topology.{key} or workload.{key}")
    if not candidates:
        known = [name for root in roots for name in _top(root)]
        hint = did_you_mean(parts[0], known) or _deeper(parts, roots)
        hint = hint or f"; known: {', '.join(dict.fromkeys(known))}"
        raise InputError(f"--set {key}: unknown key {parts[0]!r}{hint}")
    return _Override(candidates[0], tuple(parts), parse_value(value, f"--set {key}"))


def _top(root: Root) -> list[str]:
    return _keys(_ROOTS[root])


def _deeper(path: Sequence[str], roots: Sequence[Root]) -> str:
    """For a key that stands one level deeper than written: ``steps`` is ``traffic.steps``, and
    ``nvlink.bandwidth`` is ``build.nvlink.bandwidth``, not ``copy_efficiency.nvlink``.
    """
    found: dict[str, bool] = {}
    for root in roots:
        for top in _top(root):
            one = schema_at((top,), {}, _ROOTS[root])
            for schema in [one] if one is not None else kinds_at((top,), _ROOTS[root]).values():
                if path[0] in _keys(schema):
                    below = schema_at((path[0],), {}, schema)
                    fits = len(path) == 1 or (below is not None and path[1] in _keys(below))
                    name = f"{top}.{path[0]}"
                    found[name] = found.get(name, False) or fits
    if not found:
        return ""
    return f" (did you mean {max(found, key=lambda name: found[name])!r}?)"


def _keys(schema: type[BaseModel]) -> list[str]:
    return [key_of(name, schema) for name in schema.model_fields]


def _put(document: Document, spec: type[Topology] | type[Workload], override: _Override) -> None:
    done: KeyPath = ()
    here: Any = document.data
    for part in override.path:
        label = dotted((*done, part))
        schema = schema_at(done, document.data, spec)
        step: Any = part
        if isinstance(here, list):
            step = _list_index(here, str(part), label)
        elif schema is not None:
            known = _keys(schema)
            known += ["model"] if spec is Topology and done == ("gpu",) else []
            if part not in known:
                hint = did_you_mean(str(part), known) or f"; known here: {', '.join(known)}"
                raise InputError(f"--set {label}: unknown key {part!r}{hint}")
        elif not isinstance(here, dict):
            raise InputError(f"--set {label}: {dotted(done)} has no keys below it")
        done = (*done, step)
        if len(done) == len(override.path):
            break
        below = here[step] if isinstance(here, list) else here.get(step)
        if done in (("gpu",), ("transport",)) and isinstance(below, str):
            below = {"model" if done == ("gpu",) else "name": below}
            document.put(done, below, document.mark(done))
        elif below is None and is_list(done, document.data, spec):
            raise InputError(
                f"--set {dotted(override.path)}: the file has no list {dotted(done)}; write it "
                f'whole, as in --set {dotted(done)}="[{{...}}]"'
            )
        elif below is None:
            below = {}
            document.put(done, below, override.origin)
        here = below
    document.put(done, override.value, override.origin)


def _list_index(items: list[Any], part: str, label: str) -> int:
    names = [item.get("name") for item in items if isinstance(item, dict)]
    if part in names:
        return next(i for i, x in enumerate(items) if isinstance(x, dict) and x.get("name") == part)
    if part.isascii() and part.isdigit() and int(part) < len(items):
        return int(part)
    hint = did_you_mean(part, [name for name in names if isinstance(name, str)])
    raise InputError(
        f"--set {label}: no item {part!r}{hint}; the list has {counted(len(items), 'item')}"
    )


# --- What a workload points to ----------------------------------------------------------


def _fill_model(document: Document, path: Path) -> None:
    """Puts the keys of ``model.config`` (a Hugging Face config.json) under those that the workload
    gives itself.
    """
    model = document.data.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("config"), str):
        return
    given: str = model["config"]
    config = _beside(given, path)
    if config is None:
        raise InputError(document.fault(("model", "config"), f"no such file {given!r}"))
    document.data["model"] = _merge(document, read_config(config, given), model, ("model",), given)


def _fill_transport(document: Document, path: Path) -> None:
    """Puts the keys of the transport's file under those that the workload gives itself; the
    workload names a shipped transport (default nccl) or a path, alone or as ``transport.name``.
    """
    given = document.data.get("transport")
    mine = {"name": given} if isinstance(given, str) else given
    if mine is None:
        mine = {}
    if not isinstance(mine, dict) or not isinstance(mine.get("name", ""), str):
        return  # told with the other faults
    name = mine.get("name", "nccl")
    where = ("transport",) if isinstance(given, str) else ("transport", "name")
    if name in shipped("transport"):
        file = find("transport", name)
    else:
        beside = _beside(name, path)
        if beside is None:
            raise InputError(document.fault(where, missing("transport", name)))
        file = beside
    base = read_document(file, _shown(file)).data
    over = {key: value for key, value in mine.items() if key != "name"}
    document.data["transport"] = _merge(document, base, over, ("transport",), _shown(file))


def _fill_profile(document: Document, path: Path) -> None:
    """Puts the figures of the file ``gpu.profile`` under those that the topology gives itself."""
    gpu = document.data.get("gpu")
    given = gpu.get("profile") if isinstance(gpu, dict) else None
    if given is None:
        return
    file = _beside(given, path) if isinstance(given, str) else None
    if file is None:
        what = f"no such file {given!r}" if isinstance(given, str) else f"no path: {given!r}"
        raise InputError(document.fault(("gpu", "profile"), what))
    put_under(document, read_profile(file, _shown(file)), _shown(file))


def _fill_copies(document: Document, gpu: Gpu) -> None:
    """Puts the GPU's measured ``copy_efficiency`` under what the workload gives itself."""
    measured = gpu.copy_efficiency.model_dump(exclude_none=True)
    mine = document.data.get("copy_efficiency", {})
    if measured and isinstance(mine, dict):
        document.data["copy_efficiency"] = {**measured, **mine}


def _merge(
    document: Document, base: dict[str, Any], over: Mapping[str, Any], path: KeyPath, origin: str
) -> dict[str, Any]:
    """``base`` with the keys of ``over`` replaced; what comes from ``base`` is marked with
    ``origin``.
    """
    merged = dict(over)
    for key, value in base.items():
        where = (*path, key)
        if key not in over:
            merged[key] = value
            document.value_marks[where] = document.key_marks[where] = origin
            continue
        mine = over[key]
        if not isinstance(value, dict) or not isinstance(mine, dict):
            continue
        # Another kind of attention shares no keys with the config's: it stands alone.
        if mine.get("kind") in (None, value.get("kind")):
            merged[key] = _merge(document, value, mine, where, origin)
    return merged


def _beside(given: str, path: Path) -> Path | None:
    """A relative path is looked for beside the YAML file, then in the current directory."""
    for candidate in (path.parent / Path(given).expanduser(), Path(given).expanduser()):
        if candidate.is_file():
            return candidate
    return None


def _trace(workload: Workload, document: Document, path: Path) -> Path | None:
    source = workload.routing.source
    if routing_law(source) is not None:
        return None
    if source in shipped("trace"):
        return find("trace", source)
    found = _beside(source, path)
    if found is None:
        what = missing("trace", source, tuple(FAMILIES["routing"]))
        raise InputError(document.fault(("routing", "source"), what))
    return found


def _of_requests(source: str) -> list[_Override]:
    """What `--requests` sets: a recording comes with its own lengths, and in full."""
    given: dict[str, str | None] = {"source": source}
    if arrival_law(source) is None:
        given |= {"prompt": None, "output": None, "limit": None}
    return [
        _Override("workload", ("requests", key), value, "--requests")
        for key, value in given.items()
    ]


def _requests_dir(workload: Workload, path: Path) -> Path:
    """Where a recording of requests lies: beside the YAML file, else the current directory."""
    asked = workload.requests
    beside = path.parent
    found = asked is not None and (beside / Path(asked.source).expanduser()).is_file()
    return beside if found else Path()


def _check_parallel(topology: Topology, workload: Workload, document: Document) -> None:
    count, redundant = gpu_count(topology), workload.redundant_experts
    found = check(workload.parallel, workload.model, count, topology.name, redundant)
    if found:
        lines = [document.fault(("parallel", *path), what) for path, what in found]
        raise InputError("\n".join(lines))
