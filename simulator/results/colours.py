"""What the picture of a cluster looks like: names, symbols and colours of kinds, colour scales.

A figure is plain data (`{"data": [...], "layout": {...}}`). Its colours are names such as
`@gpu`, which `coloured` turns into those of a theme.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from simulator.results.summary import number

Figure = dict[str, Any]

NODE_NAMES = {
    "spine": "spine switch",
    "leaf": "leaf switch",
    "nic": "NIC",
    "dram": "DRAM",
    "cpu": "CPU socket",
    "pcie": "PCIe switch",
    "gpu": "GPU",
    "nvswitch": "NVSwitch",
}

LINK_NAMES = {
    "nvlink": "NVLink / xGMI",
    "pcie": "PCIe",
    "membus": "memory bus",
    "socket": "socket link",
    "network": "network",
}

SYMBOLS = {
    "spine": "star",
    "leaf": "circle",
    "nic": "triangle-up",
    "dram": "triangle-down",
    "cpu": "octagon",
    "pcie": "diamond",
    "gpu": "square",
    "nvswitch": "hexagon",
}

HEAT_STEPS = 12

# Okabe and Ito's colours (Color Universal Design, 2008), told apart by the colour-blind; the
# symbols differ too. Heat runs from what is near the background to what stands out.
_NODE_COLOURS = {
    "spine": "#0072B2",
    "leaf": "#56B4E9",
    "nic": "#F0E442",
    "dram": "#CC79A7",
    "cpu": "#999999",
    "pcie": "#E69F00",
    "gpu": "#D55E00",
    "nvswitch": "#009E73",
}

THEMES: dict[str, dict[str, str]] = {
    "light": {
        **_NODE_COLOURS,
        "page": "#ffffff",
        "text": "#1b1f24",
        "quiet": "#59636e",
        "outline": "#30363d",
        "host": "#f6f8fa",
        "folded": "#eef1f4",
        "frame": "#c4ccd4",
        "glyph": "#ffffff",
        "tile": "#d8dee4",
        "link-nvlink": "#009E73",
        "link-pcie": "#D98F00",
        "link-membus": "#B85C90",
        "link-socket": "#6e6e6e",
        "link-network": "#0072B2",
    },
    "dark": {
        **_NODE_COLOURS,
        "page": "#0d1117",
        "text": "#e6edf3",
        "quiet": "#9aa4af",
        "outline": "#d0d7de",
        "host": "#161b22",
        "folded": "#1c222b",
        "frame": "#444c56",
        "glyph": "#ffffff",
        "tile": "#2d333b",
        "link-nvlink": "#00B382",
        "link-pcie": "#E69F00",
        "link-membus": "#CC79A7",
        "link-socket": "#A8A8A8",
        "link-network": "#56B4E9",
    },
}

_HEAT = {
    "light": ("#f2d98c", "#f0a63c", "#d7601a", "#9c2a10", "#4d0b0b"),
    "dark": ("#6e2f25", "#a8421f", "#e0701e", "#f5ab42", "#fbe6a2"),
}


class Values(NamedTuple):
    """What colours links or GPUs: a value for each.

    of: (source, target) of a link, or a GPU's name -> value, 0 or more; what is not in it has 0.
    title, unit: of the colour scale; high: its end, None for the highest value.
    """

    title: str
    unit: str
    of: Mapping[Any, float]
    high: float | None = None

    def end(self) -> float:
        """The end of the scale, more than 0."""
        highest = max(self.of.values(), default=0.0) if self.high is None else self.high
        return highest if highest > 0.0 else 1.0

    def step(self, value: float) -> int:
        """Which of the HEAT_STEPS colours a value has."""
        return min(max(int(value / self.end() * HEAT_STEPS), 0), HEAT_STEPS - 1)

    def told(self, value: float) -> str:
        """The value with its unit."""
        return f"{number(value)} {self.unit}".rstrip()


def coloured(figure: Any, theme: str) -> Any:
    """A copy of a figure with the colours of a theme, "light" or "dark"."""
    palette = palettes()[theme]

    def turned(value: Any, key: str) -> Any:
        if isinstance(value, dict):
            return {name: turned(inner, name) for name, inner in value.items()}
        if isinstance(value, list):
            return [turned(inner, key) for inner in value]
        if isinstance(value, str) and value.startswith("@") and "color" in key:
            return palette[value[1:]]
        return value

    return turned(figure, "")


def palettes() -> dict[str, dict[str, str]]:
    """Theme -> name of a colour (without the @) -> colour."""
    return {
        name: colours | {f"heat{step}": _heat(step, _HEAT[name]) for step in range(HEAT_STEPS)}
        for name, colours in THEMES.items()
    }


def marked(text: str, longest: int = 60) -> str:
    """Text for a label of plotly, in which <, > and & have a meaning; shortened."""
    shown = text if len(text) <= longest else text[: longest - 1] + "…"
    shown = re.sub(r"[\x00-\x1f\x7f]", " ", shown)
    return shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def link_name(kind: str) -> str:
    """What the reader is told of a kind of link."""
    return LINK_NAMES.get(kind, marked(kind))


def trace_of(role: str, group: str, x: Sequence[Any], y: Sequence[Any]) -> dict[str, Any]:
    """A trace of points; role: what it shows; group: with what the legend hides it."""
    return {
        "type": "scatter",
        "x": list(x),
        "y": list(y),
        "name": role,
        "legendgroup": group,
        "hoverinfo": "text",
        "meta": {"role": role},
    }


def scale_of(values: Values, start: float) -> dict[str, Any]:
    """A marker's colour scale with its bar, which lies in the half of the width from `start` on."""
    steps = [[step / (HEAT_STEPS - 1), f"@heat{step}"] for step in range(HEAT_STEPS)]
    unit = f", {marked(values.unit)}" if values.unit else ""
    return {
        "colorscale": steps,
        "cmin": 0.0,
        "cmax": values.end(),
        "showscale": True,
        "colorbar": {
            "orientation": "h",
            "x": start,
            "xanchor": "left",
            "len": 0.45,
            "y": 1.0,
            "yanchor": "bottom",
            "thickness": 10,
            "outlinewidth": 0,
            "nticks": 5,
            "title": {"text": marked(values.title) + unit, "side": "top"},
        },
    }


def _heat(step: int, anchors: Sequence[str]) -> str:
    """One of HEAT_STEPS colours, between the two nearest anchors."""
    place_in = step / (HEAT_STEPS - 1) * (len(anchors) - 1)
    low = min(int(place_in), len(anchors) - 2)
    ends = [[int(anchors[low + k][at : at + 2], 16) for at in (1, 3, 5)] for k in (0, 1)]
    mixed = [round(a + (b - a) * (place_in - low)) for a, b in zip(*ends, strict=True)]
    return "#" + "".join(f"{part:02x}" for part in mixed)
