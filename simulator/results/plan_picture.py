"""The picture of a plan as a plotly figure: layers over GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from simulator.results.colours import Figure

# Okabe and Ito's colours (Color Universal Design, 2008), told apart by the colour-blind.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")


def plan_figure(stages: Sequence[dict[str, Any]], gpus: int) -> Figure:
    """Layers upwards, GPUs to the right, one square for each layer that a GPU holds a part of.

    stages: as `show plan --json` has them. Squares tell the stage, replica, rank and degrees when
    pointed at; tensor-parallel groups are told apart by the symbol.
    """
    data = []
    layers = 0
    for stage in stages:
        tp, first = stage["tp"], stage["stage"]
        xs, ys, texts, symbols = [], [], [], []
        for layer in stage["layers"]:
            layers = max(layers, layer + 1)
            for place, gpu in enumerate(stage["gpus"]):
                replica, rank = divmod(place, tp)
                xs.append(gpu)
                ys.append(layer)
                symbols.append("square" if replica % 2 == 0 else "square-open")
                texts.append(
                    f"layer {layer}, GPU {gpu}<br>stage {first}: replica {replica} of "
                    f"{stage['dp']}, rank {rank} of {tp}<br>ep {stage['ep']}, "
                    f"expert tp {stage['expert_tp']}"
                )
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": f"stage {first}: tp {tp}, dp {stage['dp']}, ep {stage['ep']}",
                "x": xs,
                "y": ys,
                "text": texts,
                "hovertemplate": "%{text}<extra></extra>",
                "marker": {
                    "symbol": symbols,
                    "size": 14,
                    "color": COLOURS[first % len(COLOURS)],
                    "line": {"width": 2, "color": COLOURS[first % len(COLOURS)]},
                },
            }
        )
    axis = {"zeroline": False, "showgrid": False, "dtick": 1 if gpus <= 32 else None}
    note = "Filled and open squares alternate between tensor-parallel groups."
    return {
        "data": data,
        "layout": {
            "xaxis": {"title": {"text": "GPU"}, "range": [-0.7, gpus - 0.3], **axis},
            "yaxis": {
                **axis,
                "title": {"text": "layer"},
                "range": [-0.7, layers - 0.3],
                "dtick": 1 if layers <= 40 else None,
            },
            "legend": {"orientation": "h"},
            "meta": {"columns": gpus, "rows": layers, "note": note if len(stages) else ""},
        },
    }
