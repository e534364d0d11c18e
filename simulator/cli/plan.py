"""`show plan`: which GPUs hold which layers, what lies in their memory, what crosses the wires."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator.errors import InputError
from simulator.results.summary import size
from simulator.results.text import lay_out, wrapped

if TYPE_CHECKING:
    from simulator.model.plan import Plan
    from simulator.spec.load import Inputs

Shown = tuple[dict[str, Any], str]

WORDS = {
    "allreduce": "all-reduce",
    "allgather": "all-gather",
    "reducescatter": "reduce-scatter",
    "dispatch": "dispatch, at most",
    "combine": "combine, at most",
    "send": "to the next stage",
}


def shown(topology: str | None, workload: str | None, overrides: Sequence[str]) -> Shown:
    """The plan as an object in SI units, and as tables. Raises InputError for what cannot be."""
    if topology is None or workload is None:
        raise InputError("show plan: write --topology T --workload W")
    from simulator.model.plan import plan_of
    from simulator.spec.load import gpu_count, load_inputs

    inputs = load_inputs(topology, workload, overrides)
    plan = plan_of(_without_slots(inputs), gpu_count(inputs.topology), inputs.topology.gpu)
    as_object = _object(inputs, plan)
    return as_object, _text(inputs, as_object)


def draw(shown: dict[str, Any], path: str, plotlyjs: str | None) -> None:
    """Write the picture of a plan: layers over GPUs, the stage by colour."""
    from simulator.results.page import render_page, write_page
    from simulator.results.plan_picture import plan_figure

    where = plotlyjs or "inline"
    lines = [("figures", _headline(shown))]
    figure = plan_figure(shown["stages"], shown["gpus"])
    title = f"{shown['workload']} on {shown['topology']}"
    write_page(Path(path), render_page(title, lines, figure, where), where)


def _without_slots(inputs: Inputs) -> Any:
    """The workload; offloading does not change who serves what."""
    if inputs.workload.parallel.plain:
        return inputs.workload.model_copy(update={"expert_slots": None})
    return inputs.workload


def _object(inputs: Inputs, plan: Plan) -> dict[str, Any]:
    from simulator.model import footprint
    from simulator.model.plan import crossings
    from simulator.model.plan_memory import gpu_bytes, offered_bytes
    from simulator.model.sizes import ACTIVATION_BYTES

    workload, model = inputs.workload, inputs.workload.model
    memory = gpu_bytes(plan, workload)
    tokens = workload.traffic.tokens_per_gpu * plan.gpus
    stages, wires = [], []
    for index, stage in enumerate(plan.stages):
        of = stage.degrees
        rows = tokens / of.dp / plan.microbatches
        stages.append(
            {
                "stage": index,
                "layers": list(stage.layers),
                "gpus": list(stage.gpus),
                "tp": of.tp,
                "dp": of.dp,
                "ep": of.ep,
                "expert_tp": of.expert_tp,
                "tokens_per_replica": rows,
                "memory_bytes_per_gpu": memory[stage.gpus[0]],
            }
        )
        if plan.offload is not None:
            streamed = plan.streamed[index]
            each = (offered_bytes(plan, index, layer) for layer in streamed)
            stages[-1]["streamed_layers"] = list(streamed)
            stages[-1]["streamed_bytes_per_gpu"] = sum(each)
        for layer in stage.layers:
            wires += [
                {"stage": index, "layer": layer, **crossing._asdict()}
                for crossing in crossings(plan, index, layer, rows)
            ]
        if not stage.last:
            after = plan.stages[index + 1].degrees
            share = after.tp if plan.sequence_parallel else 1
            received = tokens / after.dp / plan.microbatches * model.hidden * ACTIVATION_BYTES
            wires.append(
                {
                    "stage": index,
                    "layer": stage.layers[-1],
                    "what": "send",
                    "ranks": 2,
                    "groups": len(plan.stages[index + 1].gpus),
                    "bytes": received / share,
                }
            )
    return {
        "topology": inputs.topology.name,
        "workload": workload.name,
        "gpus": plan.gpus,
        "microbatches": plan.microbatches,
        "chunks": plan.chunks,
        "steady": plan.steady,
        "sequence_parallel": plan.sequence_parallel,
        "offload": plan.offload,
        "tokens": tokens,
        "hbm_bytes": inputs.topology.gpu.hbm_capacity_bytes * (1.0 - footprint.RESERVED),
        "stages": stages,
        "wires": wires,
    }


def _headline(shown: dict[str, Any]) -> str:
    count = shown["microbatches"]
    batches = "1 micro-batch" if count == 1 else f"{count:,} micro-batches"
    how = ", batches follow one another" if shown["steady"] else ""
    return f"{shown['tokens']:,} tokens per batch in {batches}{how}; {shown['gpus']:,} GPUs"


def _text(inputs: Inputs, shown: dict[str, Any]) -> str:
    stages = shown["stages"]
    title = f"{shown['workload']} on {shown['topology']}: {_headline(shown)}"
    degrees = [
        (
            str(stage["stage"]),
            _ranges(stage["layers"]),
            _ranges(stage["gpus"]),
            *(str(stage[name]) for name in ("tp", "dp", "ep", "expert_tp")),
            f"{stage['tokens_per_replica']:,.6g}",
        )
        for stage in stages
    ]
    header = ("stage", "layers", "GPUs", "tp", "dp", "ep", "expert tp", "tokens")
    names = list(stages[0]["memory_bytes_per_gpu"])
    memory = []
    for stage in stages:
        parts = stage["memory_bytes_per_gpu"]
        memory.append(
            (
                str(stage["stage"]),
                *(size(parts[name]) for name in names),
                size(sum(parts.values())),
            )
        )
    room = size(shown["hbm_bytes"])
    return "\n".join(
        [
            wrapped(title, ""),
            "",
            lay_out(header, degrees, right=(3, 4, 5, 6, 7)),
            "",
            f"memory of a GPU, of {room} after reserve",
            lay_out(("stage", *names, "together"), memory, right=range(1, len(names) + 2)),
            *_streamed(shown),
            "",
            "across the wires, per micro-batch (bytes per GPU that takes part)",
            lay_out(
                ("stage", "layers", "what", "GPUs", "groups", "bytes"),
                _wires(shown["wires"]),
                right=(3, 4, 5),
            ),
        ]
    )


def _streamed(shown: dict[str, Any]) -> list[str]:
    """What lies in host memory, if anything may."""
    if shown["offload"] is None:
        return []
    what = "routed experts" if shown["offload"] == "experts" else "weights"
    rows = [
        (
            str(stage["stage"]),
            f"{len(stage['streamed_layers'])} of {len(stage['layers'])}",
            size(stage["streamed_bytes_per_gpu"]),
        )
        for stage in shown["stages"]
        if stage["streamed_layers"]
    ]
    if not rows:
        return ["", f"in host memory: nothing, the {what} of all layers fit"]
    title = f"in host memory: {what}, streamed to a GPU for every micro-batch"
    return ["", title, lay_out(("stage", "layers", "bytes"), rows, right=(1, 2))]


def _wires(wires: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Layers alike in one row."""
    by_layer = [
        ((stage, tuple((w["what"], w["ranks"], w["groups"], w["bytes"]) for w in mine)), layer)
        for (stage, layer), mine in (
            (key, list(group))
            for key, group in groupby(
                (w for w in wires if w["what"] != "send"), key=lambda w: (w["stage"], w["layer"])
            )
        )
    ]
    rows: list[tuple[str, ...]] = []
    for (stage, alike), group in groupby(by_layer, key=lambda item: item[0]):
        layers = _ranges([layer for _, layer in group])
        for crossing, times in ((c, alike.count(c)) for c in dict.fromkeys(alike)):
            what, ranks, groups, amount = crossing
            words = WORDS[what] + (f", {times} times" if times > 1 else "")
            rows.append((str(stage), layers, words, str(ranks), str(groups), size(amount)))
    for w in (w for w in wires if w["what"] == "send"):
        words = WORDS["send"]
        place = (str(w["stage"]), str(w["layer"]))
        rows.append((*place, words, str(w["ranks"]), str(w["groups"]), size(w["bytes"])))
    return sorted(rows, key=lambda row: int(row[0]))


def _ranges(numbers: Sequence[int]) -> str:
    """0-3, 8-11 of whole numbers in order."""
    runs: list[list[int]] = []
    for value in numbers:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
