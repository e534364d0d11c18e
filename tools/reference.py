#!/usr/bin/env python3
"""Write docs/reference.md: every command, name and key, from the code that reads them.

    python tools/reference.py            # writes docs/reference.md
    python tools/reference.py --check    # exit status 1 if that page is not what the code says

`tests/docs/test_reference.py` fails where they differ.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pydantic import AfterValidator, BaseModel, BeforeValidator  # noqa: E402
from pydantic.fields import FieldInfo  # noqa: E402
from pydantic_core import PydanticUndefined  # noqa: E402

from simulator.cli import COMMANDS  # noqa: E402
from simulator.cli.arguments import Parser  # noqa: E402
from simulator.cli.listing import LISTS  # noqa: E402
from simulator.policies.dispatch import DISPATCHERS  # noqa: E402
from simulator.policies.eviction import EVICTIONS  # noqa: E402
from simulator.policies.placement import PLACEMENTS  # noqa: E402
from simulator.policies.prefetch import PREFETCHERS  # noqa: E402
from simulator.requests.laws import ARRIVALS, LENGTHS  # noqa: E402
from simulator.routing.importers import IMPORTERS  # noqa: E402
from simulator.routing.laws import LAWS  # noqa: E402
from simulator.spec.choices import FAMILIES  # noqa: E402
from simulator.spec.faults import key_of  # noqa: E402
from simulator.spec.requests import arrival_examples  # noqa: E402
from simulator.spec.schema import Topology, Workload  # noqa: E402
from simulator.studies.whatif.metrics import METRICS  # noqa: E402
from simulator.studies.whatif.spec import StudyFile  # noqa: E402

PAGE = ROOT / "docs" / "reference.md"
MARK = "<!-- Written by: python tools/reference.py. Do not edit. -->"

ROOTS: dict[str, type[BaseModel]] = {
    "a topology": Topology,
    "a workload": Workload,
    "a what-if study": StudyFile,
}

# What the values of a dimension become, as defaults are kept.
SI = {
    "bandwidth": "B/s",
    "time": "s",
    "bytes": "B",
    "flops": "FLOP/s",  # a FLOP rate
    "power": "W",
    "price": "$/h",
    "bit energy": "J/B",
    "FLOP energy": "J/FLOP",
    "tariff": "$/kWh",
    "volume": "tokens/year",
}

# What the types do not say: these are read before the classes see them.
SAID: dict[tuple[str, str], str] = {
    ("Topology", "gpu"): "name in the catalogue, or mapping, [Gpu](#gpu)",
    ("Workload", "placement"): "a name of `placement`, or a `.json` file",
    ("Rebalance", "policy"): "a name of `placement`, or `null`",
    ("Workload", "transport"): "name, path, or mapping, [Transport](#transport)",
    ("Fault", "load_from"): "`host`, bandwidth or `null`",
    ("RequestsSpec", "prompt"): "law of lengths or `null`",
    ("RequestsSpec", "output"): "law of lengths or `null`",
    ("Stage", "layers"): "numbers, as in `0-3,8` or a list",
    ("Stage", "gpus"): "numbers, as in `0-3,8` or a list",
}
FILLED = {("Workload", "transport"): "`nccl`"}
"""Defaults that are filled in before the classes see what was written."""

INPUTS = ROOT / "docs" / "inputs.md"

FAMILIES_SHOWN: dict[str, tuple[str, Mapping[str, Callable[..., Any]]]] = {
    "placement": ("`placement`, and `--policy` of `balance` and `placement`", PLACEMENTS),
    "eviction": ("`eviction`, and `--policy` of `cache`", EVICTIONS),
    "prefetch": ("`prefetch`", PREFETCHERS),
    "dispatch": ("`serving.dispatch`", DISPATCHERS),
    "routing": ("`routing.source` and `--routing`", LAWS),
    "arrivals": ("`requests.source` and `--requests`", ARRIVALS),
    "lengths": ("`requests.prompt`, `requests.output`", LENGTHS),
    "recordings": ("KIND of `import`", IMPORTERS),
}


def page() -> str:
    """The whole page."""
    parts = [
        MARK,
        "# Reference",
        "Every command, every name that an input may hold and every key, as the code has them. "
        "What they mean together is told in the other [pages](README.md).",
        "## Commands",
        *(_command(name) for name in COMMANDS),
        "## Names",
        "A name stands where the heading says. `package.module:function` may stand in its place, "
        "except for recordings: [how to](howto.md).",
        *(_family(*shown) for shown in FAMILIES_SHOWN.values()),
        _others(),
        "## Shipped",
        *(_listed(what) for what in LISTS if what != "policies"),
        "## Figures of a what-if study",
        "What `metrics`, `objectives` and `constraints` of a study may name; any dotted path into "
        "the summary of a run (`--json`) is one too.",
        *(_metrics(kind) for kind in METRICS),
        "## Keys",
        "Quantities are text with a unit ([inputs](inputs.md)); their defaults are given in SI "
        "units. A *mapping* has keys of its own, in the section that is named.",
        *_models(),
    ]
    return "\n\n".join(parts) + "\n"


# --- Commands ---------------------------------------------------------------------------


def _command(name: str) -> str:
    command = COMMANDS[name]
    parser = Parser(name, command.help, command.example)
    command.arguments(parser)
    rows = [
        (_cell(f"`{_spelled(action)}`"), _cell(action.help or ""))
        for action in parser._actions
        if not isinstance(action, argparse._HelpAction)
    ]
    sentence = command.help[0].upper() + command.help[1:]
    return (
        f"### `{name}`\n\n{_cell(sentence)}.\n\n    python -m simulator {command.example}\n\n"
        + _table(("argument", "meaning"), rows)
    )


def _spelled(action: argparse.Action) -> str:
    metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    if not action.option_strings:
        return metavar
    flags = ", ".join(action.option_strings)
    return flags if action.nargs == 0 else f"{flags} {metavar}"


# --- Names ------------------------------------------------------------------------------


def _family(where: str, known: Mapping[str, Callable[..., Any]]) -> str:
    rows = [(f"`{name}`", _cell(first_sentence(function))) for name, function in known.items()]
    return f"### {where}\n\n" + _table(("name", "meaning"), rows)


def first_sentence(function: Callable[..., Any]) -> str:
    """The first sentence of a docstring."""
    text = " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z])", text, maxsplit=1)[0]


def _others() -> str:
    """Families without functions of their own, and how names with numbers are written."""
    rows = [
        (f"`{family}`", ", ".join(f"`{a.example if a else name}`" for name, a in known.items()))
        for family, known in FAMILIES.items()
    ]
    rows.append(("`requests.source`", ", ".join(f"`{text}`" for text in arrival_examples())))
    return "### How they are written\n\n" + _table(("family", "names, with their numbers"), rows)


def _listed(what: str) -> str:
    rows = [(f"`{name}`", _cell(text)) for name, text in LISTS[what]()]
    return f"### {what}\n\n" + _table(("name", "what it is"), rows)


def _metrics(kind: str) -> str:
    rows = [
        (f"`{metric.name}`", metric.unit or "-", f"`{metric.path}`", _cell(metric.text))
        for metric in METRICS[kind].values()
    ]
    return f"### kind: {kind}\n\n" + _table(("name", "unit", "path", "meaning"), rows)


# --- Keys -------------------------------------------------------------------------------


def _models() -> Iterator[str]:
    seen: dict[type[BaseModel], str] = {}
    meanings = read_meanings(INPUTS.read_text(encoding="utf-8"))
    for what, root in ROOTS.items():
        _walk(root, what, seen)
    for model, where in seen.items():
        yield _model(model, where, meanings)


def _walk(model: type[BaseModel], where: str, seen: dict[type[BaseModel], str]) -> None:
    """Note where each class is first used, in the order of the keys."""
    if model in seen:
        return
    seen[model] = where
    for name, hint in get_type_hints(model, include_extras=True).items():
        if name in model.model_fields:
            key = key_of(name, model)
            for inner in classes_of(hint):
                below = f"`{key}` of {where}"
                _walk(inner, below, seen)


def classes_of(hint: Any) -> Iterator[type[BaseModel]]:
    """The classes of the schema that a type holds."""
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        yield hint
    for part in get_args(hint):
        yield from classes_of(part)


def _model(model: type[BaseModel], where: str, meanings: Meanings) -> str:
    hints = get_type_hints(model, include_extras=True)
    kinds = get_args(hints.get("kind", ""))
    rows = []
    for name, field in model.model_fields.items():
        key = key_of(name, model)
        title = (model.__name__, key)
        rows.append(
            (
                f"`{key}`",
                _cell(SAID.get(title) or value_of(hints[name])),
                _cell(FILLED.get(title) or default_of(field, hints[name])),
                meanings.get((section_of(where, kinds[0] if kinds else ""), key), ""),
            )
        )
    where = where[0].upper() + where[1:] if where.startswith("a ") else where
    return f"### {title_of(model)}\n\n{where}.\n\n{told_by(model)}\n\n" + _table(
        ("key", "value", "default", "meaning"), rows
    )


def told_by(model: type[BaseModel]) -> str:
    """A class's docstring, in the words of the file: keys, not attributes."""
    text = (inspect.getdoc(model) or "").replace("``", "`").replace(" (module docstring)", "")
    for name in model.model_fields:
        text = re.sub(rf"`{name}`", f"`{key_of(name, model)}`", text)
    return text


def title_of(model: type[BaseModel]) -> str:
    """The heading of a class: its name, with its module where another has the same name."""
    return f"{model.__name__} {_module(model)}" if model.__name__ == "Cost" else model.__name__


def _module(model: type[BaseModel]) -> str:
    return model.__module__.rpartition(".")[2]


Meanings = dict[tuple[str, str], str]
"""(section of docs/inputs.md, key) -> what the key means."""


def section_of(where: str, kind: str) -> str:
    """The section of docs/inputs.md on what stands at `where`: "workload", "traffic", "switch"."""
    words = re.findall(r"`(\w+)`", where)
    if words[:1] == ["build"]:
        return kind
    return words[0] if words else where.removeprefix("a ")


def read_meanings(text: str) -> Meanings:
    """The last column of the tables of docs/inputs.md, by section and key."""
    found: Meanings = {}
    section = ""
    for line in text.splitlines():
        if line.startswith("##"):
            words = re.findall(r"`([\w-]+)`", line)
            section = words[-1] if words else line.lstrip("# ").lower()
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) < 3 or not cells[0].startswith("`"):
            continue
        meaning = cells[-1].removesuffix(": below").removesuffix(", below")
        if meaning in ("", "below") or meaning.startswith("as in"):
            continue
        for key in re.findall(r"`(\w+)`", cells[0]):
            found[section, key] = meaning
    return found


def value_of(hint: Any) -> str:
    """What a key may hold, in words."""
    if get_origin(hint) is Annotated:
        base, *extras = get_args(hint)
        return _annotated(base, extras)
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if all(isinstance(one, type) and issubclass(one, BaseModel) for one in parts):
            return "mapping by its `kind`: " + ", ".join(_link(one) for one in parts)
        return " or ".join(value_of(one) for one in parts)
    if origin is Literal:
        return ", ".join(f"`{one}`" for one in parts)
    if origin is tuple:
        return f"list of {value_of(parts[0])}"
    if origin is dict:
        return f"mapping of {value_of(parts[0])} to {value_of(parts[1])}"
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return f"mapping, {_link(hint)}"
    plain = {str: "text", bool: "true or false", int: "whole", float: "number", NoneType: "`null`"}
    return plain.get(hint, "any value")


def _annotated(base: Any, extras: list[Any]) -> str:
    cells = [cell for extra in extras for cell in _enclosed(extra)]
    dimension = next((cell for cell in cells if cell in SI), None)
    if dimension is not None:
        return "FLOP rate" if dimension == "flops" else dimension
    family = next((cell for cell in cells if isinstance(cell, str) and cell in FAMILIES), None)
    if family is not None:
        return f"a name of `{family}`"
    if base is float and any(isinstance(extra, BeforeValidator) for extra in extras):
        return "bytes"  # transport.half_size: a quantity that may be 0
    told = value_of(base)
    bounds = _bounds(extras)
    return f"{told}, {bounds}" if bounds else told


def _enclosed(extra: Any) -> list[Any]:
    """What a validator made by a function was made for."""
    if not isinstance(extra, BeforeValidator | AfterValidator):
        return []
    found = [cell.cell_contents for cell in getattr(extra.func, "__closure__", None) or ()]
    return [cell for cell in found if isinstance(cell, str)]


def _bounds(extras: list[Any]) -> str:
    words = {"ge": "from", "gt": "above", "le": "to", "lt": "below"}
    found = []
    for extra in extras:
        for bound in extra.metadata if isinstance(extra, FieldInfo) else ():
            for name, word in words.items():
                if getattr(bound, name, None) is not None:
                    found.append(f"{word} {getattr(bound, name):,g}")
    return " ".join(found)


def default_of(field: FieldInfo, hint: Any) -> str:
    """A default as it would be written."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or isinstance(value, BaseModel) or value in ((), {}, ""):
        return ""
    if value is None:
        return "`null`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, dict):
        return ""  # of the GPU's kernels: those of the catalogue
    dimension = next((one for one in SI if one in value_of(hint)), None)
    if isinstance(value, tuple):
        return ", ".join(
            (f"`{one:g} {SI[dimension]}`" if dimension else f"`{one:g}`")
            if isinstance(one, float)
            else f"`{one}`"
            for one in value
        )
    if dimension and isinstance(value, float):
        return f"`{value:g} {SI[dimension]}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _link(model: type[BaseModel]) -> str:
    title = title_of(model)
    return f"[{title}](#{title.lower().replace(' ', '-')})"


# --- Markdown ---------------------------------------------------------------------------


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(line)} |" for line in (header, *rows)]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]])


def _cell(text: str) -> str:
    return text.replace("``", "`").replace("%%", "%").replace("|", "\\|")


def main() -> int:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description="Write docs/reference.md from the code.")
    parser.add_argument("--check", action="store_true", help="only say whether it is up to date")
    options = parser.parse_args()
    text = page()
    if not options.check:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    same = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
    if not same:
        print("docs/reference.md is not what the code says: python tools/reference.py writes it")
    return 0 if same else 1


if __name__ == "__main__":
    raise SystemExit(main())
