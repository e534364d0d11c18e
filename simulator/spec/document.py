"""One YAML file as plain data, with the position of every key and value.

Stricter than YAML: duplicate keys, keys that are not words, tags, merges and files or expansions
beyond a bound are refused. Plain scalars follow YAML 1.2 (``no`` and ``1:30`` are text, ``1e-3`` is
a number).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from simulator.errors import InputError

KeyPath = tuple[str | int, ...]

MAX_FILE_BYTES = 4 << 20
MAX_NODES = 200_000
MAX_DEPTH = 64


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The safe loader (libyaml's where there is one) with the plain scalars of YAML 1.2."""


_FLOAT = (
    r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", _FLOAT, list("-+0123456789.")),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first
    )

_SCALARS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str")}


@dataclass
class Document:
    """``data`` as read; ``value_marks`` and ``key_marks`` say where it stands ("file:line:col", or
    "--set").

    A key path is a tuple of mapping keys and list indices; the root is ``()``.
    """

    data: dict[str, Any]
    value_marks: dict[KeyPath, str] = field(default_factory=dict)
    key_marks: dict[KeyPath, str] = field(default_factory=dict)

    def mark(self, path: KeyPath, *, key: bool = False) -> str:
        """Where ``path`` was written, or the nearest thing above it that was."""
        if key and path in self.key_marks:
            return self.key_marks[path]
        while path and path not in self.value_marks:
            path = path[:-1]
        return self.value_marks.get(path, "?")

    def fault(self, path: KeyPath, what: str, *, key: bool = False) -> str:
        """One error line: ``file:line:col: key.path: what``, or ``--set key.path: what``."""
        mark = self.mark(path, key=key)
        separator = " " if mark == SET else ": "
        return f"{mark}{separator}{dotted(path)}: {what}" if path else f"{mark}: {what}"

    def put(self, path: KeyPath, value: Any, origin: str) -> None:
        """Replaces what stands at ``path`` (whose parent exists) and marks it as coming from
        ``origin``.
        """
        parent: Any = self.data
        for part in path[:-1]:
            parent = parent[part]
        parent[path[-1]] = value
        for marks in (self.value_marks, self.key_marks):
            for old in [p for p in marks if p[: len(path)] == path]:
                del marks[old]
            marks[path] = origin


SET = "--set"


def dotted(path: KeyPath) -> str:
    """``("build", "links", 3)`` -> ``build.links.3``."""
    return ".".join(str(part) for part in path)


def read_document(path: Path, shown: str | None = None) -> Document:
    """Reads a YAML mapping; ``shown`` is the file's name in messages. Raises InputError for
    anything else.
    """
    shown = shown or str(path)
    return parse_document(read_text(path, shown), shown)


def read_bounded(path: Path, shown: str, limit: int) -> bytes:
    """The bytes of a file of at most ``limit``; raises InputError if it is larger or unreadable."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(limit + 1)
    except OSError as error:
        raise InputError(f"{shown}: cannot be read: {error.strerror}") from None
    if len(raw) > limit:
        raise InputError(f"{shown}: larger than {limit >> 20} MiB")
    return raw


def read_text(path: Path, shown: str) -> str:
    """The text of a UTF-8 file of at most 4 MiB; raises InputError for what is not that."""
    raw = read_bounded(path, shown, MAX_FILE_BYTES)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        column = error.start - raw.rfind(b"\n", 0, error.start)
        raise InputError(f"{shown}:{line}:{column}: not UTF-8 text") from None


def parse_document(text: str, shown: str) -> Document:
    """As ``read_document``, from text."""
    root = _compose(text, shown)
    if root is None:
        raise InputError(f"{shown}:1:1: empty, expected key: value lines")
    if not isinstance(root, yaml.MappingNode):
        raise InputError(f"{_at(root, shown)}: expected key: value lines at the top")
    walk = _Walk(shown)
    document = Document(walk.build(root, ()))
    document.value_marks, document.key_marks = walk.value_marks, walk.key_marks
    return document


def parse_value(text: str, label: str) -> Any:
    """One value as YAML (scalar, list or mapping), as ``--set`` takes it; raises InputError that
    begins with ``label``.
    """
    root = _compose(text, label, positions=False)
    return None if root is None else _Walk(label, positions=False).build(root, ())


def _compose(text: str, shown: str, positions: bool = True) -> yaml.Node | None:
    try:
        loader = _Loader(text)
        try:
            node: yaml.Node | None = loader.get_single_node()
            return node
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{shown}:{mark.line + 1}:{mark.column + 1}" if mark and positions else shown
        problem = error.problem or error.context or "cannot be parsed"
        raise InputError(f"{where}: not valid YAML: {problem}") from None
    except yaml.YAMLError as error:
        # A character that YAML does not allow; the reader knows only how far it had come.
        position = getattr(error, "position", 0)
        line = text.count("\n", 0, position) + 1
        column = position - text.rfind("\n", 0, position)
        where = f"{shown}:{line}:{column}" if positions else shown
        raise InputError(f"{where}: not valid YAML: control character") from None
    except RecursionError:
        raise InputError(f"{shown}: nested deeper than {MAX_DEPTH} levels") from None


def _at(node: yaml.Node, shown: str) -> str:
    return f"{shown}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"


class _Walk:
    """Turns nodes into data and counts them as expanded, so that aliases cannot blow up."""

    def __init__(self, shown: str, positions: bool = True) -> None:
        self.shown = shown
        self.positions = positions
        self.nodes = 0
        self.value_marks: dict[KeyPath, str] = {}
        self.key_marks: dict[KeyPath, str] = {}
        self.constructor = yaml.constructor.SafeConstructor()

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise self.fault(node, f"more than {MAX_NODES} values, aliases expanded")
        if len(path) > MAX_DEPTH:
            raise self.fault(node, f"nested deeper than {MAX_DEPTH} levels")
        self.value_marks[path] = _at(node, self.shown)
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node)
        if node.tag not in ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
            raise self.fault(node, f"tag {node.tag!r} is not allowed")
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*path, index)) for index, item in enumerate(node.value)]
        built: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self.scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                raise self.fault(key_node, "a key must be a word")
            where = (*path, key)
            if key in built:
                first = self.key_marks[where].removeprefix(self.shown + ":").partition(":")[0]
                raise self.fault(key_node, f"{dotted(where)}: given twice (first in line {first})")
            self.key_marks[where] = _at(key_node, self.shown)
            built[key] = self.build(value_node, where)
        return built

    def scalar(self, node: yaml.ScalarNode) -> Any:
        if node.tag not in _SCALARS:
            raise self.fault(node, f"tag {node.tag!r} is not allowed")
        try:
            return self.constructor.construct_object(node)
        except ValueError:
            raise self.fault(node, f"{node.value[:40]!r} is not a number") from None

    def fault(self, node: yaml.Node, what: str) -> InputError:
        return InputError(f"{_at(node, self.shown) if self.positions else self.shown}: {what}")
