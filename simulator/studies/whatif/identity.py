"""What a study is, so that its results are not taken for another one's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from simulator import __version__
from simulator.errors import InputError
from simulator.spec.document import read_document
from simulator.spec.find import Kind, find, shipped
from simulator.studies.whatif.points import located
from simulator.studies.whatif.spec import Study

_KINDS: tuple[Kind, ...] = ("topology", "workload", "transport", "trace")
_BLOCK = 1 << 20


def identity(study: Study) -> dict[str, Any]:
    """All that decides what a point gives: the base, the axes, the seed, the contents of files.

    What is only told of the points (question, metrics) is no part of it, so that it can be
    changed afterwards; of a search, objectives and constraints choose the points.
    """
    told: dict[str, Any] = {
        "name": study.name,
        "kind": study.kind,
        "seed": study.seed,
        "base": [list(pair) for pair in study.base],
        "axes": [
            [axis.name, [[value.label, [list(k) for k in value.keys]] for value in axis.values]]
            for axis in study.axes
        ],
        "points": None if study.points is None else [list(point) for point in study.points],
        "random": None if study.random is None else study.random.model_dump(),
        "search": None,
        "files": digests(study),
        "simulator": __version__,
    }
    if study.search is not None:
        told["search"] = {
            **study.search.model_dump(exclude={"trials"}),
            "objectives": [[metric.path, sign] for metric, sign in study.objectives],
            "constraints": [[b.metric.path, b.sign, b.bound] for b in study.constraints],
        }
    return told


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """In a few words what differs between two identities; None if nothing does."""
    for part in (*new, *old):
        mine, other = new.get(part), old.get(part)
        if mine == other:
            continue
        if part == "files" and isinstance(other, dict) and isinstance(mine, dict):
            names = [name for name in (*mine, *other) if mine.get(name) != other.get(name)]
            return f"{names[0]} has another content"
        if part in ("name", "simulator", "seed", "kind"):
            return f"{part} was {other}, and is {mine}"
        return f"{part} was changed"
    return None


def digests(study: Study) -> dict[str, str]:
    """SHA-256 of every file that the study's texts name, and of those that these name in turn.

    A text that happens to be a file's name is taken for one: that costs a digest, no more.
    """
    texts = {"nccl", *_texts(dict(study.base))}
    for axis in study.axes:
        for value in axis.values:
            texts |= set(_texts(dict(value.keys)))
    files: dict[str, Path] = {}
    todo = [(text, study.folder) for text in sorted(texts)]
    while todo:
        text, folder = todo.pop()
        for path in _files(text, folder):
            if path in files.values():
                continue
            files[path.name if path.name not in files else str(path)] = path
            if path.suffix in (".yaml", ".yml"):
                inner = read_document(path).data
                todo += [(word, path.parent) for word in sorted(set(_texts(inner)))]
    return {name: _digest(files[name]) for name in sorted(files)}


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def _files(text: str, folder: Path) -> list[Path]:
    found = [find(kind, text) for kind in _KINDS if text in shipped(kind)]
    if found or not text or len(text) > 4096 or "\n" in text or "\0" in text:
        return found
    path = Path(located(text, str(folder))).expanduser()
    try:
        return [path] if path.is_file() else []
    except OSError:  # too long for a name: no file
        return []


def _digest(path: Path) -> str:
    whole = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while block := stream.read(_BLOCK):
                whole.update(block)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    return whole.hexdigest()
