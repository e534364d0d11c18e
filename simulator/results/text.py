"""Tables as text of at most 80 columns."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Collection, Sequence

WIDTH = 80
_GAP = 2

_UNIT = r"%|x|pp|[numk]?s|us|h|B|[kMGTP]i?B|[kMGTP]?[Bb]/s|[numk]?[WJ]|tokens/s|GPUs?|nodes?"
_IN_FIGURE = re.compile(rf"(?<=\d) (?=(?:{_UNIT})(?![\w-]))")
_GLUE = "\N{NO-BREAK SPACE}"


def lay_out(
    header: Sequence[str] | None,
    rows: Sequence[Sequence[str]],
    right: Collection[int] = (),
    indent: int = 0,
) -> str:
    """Rows in columns, those numbered in `right` set flush right; the last one is wrapped.

    header: the first row, None for none. indent: blanks before each line.
    """
    table = [*([header] if header else []), *rows]
    if not table:
        return " " * indent + "none"
    last = len(table[0]) - 1
    widths = [max(len(row[column]) for row in table) for column in range(last + 1)]
    before = indent + sum(widths[:last]) + _GAP * last
    room = max(WIDTH - before, 20)
    lines: list[str] = []
    for row in table:
        cells = [
            cell.rjust(widths[column]) if column in right else cell.ljust(widths[column])
            for column, cell in enumerate(row[:last])
        ]
        start = " " * indent + "".join(cell + " " * _GAP for cell in cells)
        if last in right:
            lines.append(start + row[last].rjust(widths[last]))
            continue
        first, *rest = lines_of(row[last], room) or [""]
        lines.append((start + first).rstrip())
        lines += [" " * before + line for line in rest]
    return "\n".join(lines)


def lines_of(text: str, width: int = WIDTH, first: str = "", then: str = "") -> list[str]:
    """The text in lines of at most `width`, broken at blanks only, never between a figure and its
    unit. first, then: what the first line and the others begin with.
    """
    lines = textwrap.wrap(
        _IN_FIGURE.sub(_GLUE, text),
        width,
        initial_indent=first,
        subsequent_indent=then,
        break_on_hyphens=False,
    )
    return [line.replace(_GLUE, " ") for line in lines]


def wrapped(text: str, label: str) -> str:
    """`label` and the text in a column of its own beside it."""
    return "\n".join(lines_of(text, WIDTH, label, " " * len(label)))
