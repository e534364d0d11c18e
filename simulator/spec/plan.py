"""What `parallel:` of a workload may say: how a model is laid over GPUs, and what that must obey.

    parallel: {tp: 8, pp: 2, microbatches: 4}
    parallel: {stages: [{layers: 0-1, gpus: 0-7, tp: 8}, {layers: 2-3, gpus: 8-15, tp: 2, ep: 4}],
               chunk: 12 MB}

`degrees` fills in what is left out; `check` finds what cannot be. The data and their way through
the simulator: docs/plans.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import BeforeValidator, Field, Strict, model_validator

from simulator.spec.choices import ChoiceError
from simulator.spec.fields import Bytes, Count, NotNegative, Spec, refuse

if TYPE_CHECKING:
    from simulator.spec.schema import Model

KeyPath = tuple[str | int, ...]
Fault = tuple[KeyPath, str]
Offload = Literal["experts", "layers"]

MOST = 65_536  # numbers in one list; as many as there can be GPUs


def _numbers(value: object) -> tuple[int, ...]:
    """`3`, `0-3`, `0-3,8-11` or a list of whole numbers."""
    if isinstance(value, list | tuple):
        found = [item for item in value if isinstance(item, int) and not isinstance(item, bool)]
        if len(found) != len(value) or any(item < 0 for item in found):
            raise ChoiceError(f"must be whole numbers from 0, as in 0-3 or [0, 1], not {value!r}")
        return tuple(found)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ChoiceError(f"must be whole numbers from 0, as in 0-3 or [0, 1], not {value!r}")
    listed: list[int] = []
    for part in str(value).split(","):
        first, dash, last = (text.strip() for text in part.partition("-"))
        ends = [first, last] if dash else [first, first]
        if not all(end.isascii() and end.isdigit() and len(end) < 7 for end in ends):
            raise ChoiceError(f"must be whole numbers from 0, as in 0-3 or 0-3,8-11, not {value!r}")
        low, high = int(ends[0]), int(ends[1])
        if high < low or high - low >= MOST:
            raise ChoiceError(f"{part.strip()!r} runs backwards or too far; write 0-3")
        listed += range(low, high + 1)
    return tuple(listed)


Numbers = Annotated[tuple[int, ...], Strict(False), BeforeValidator(_numbers)]


class Stage(Spec):
    """Layers on GPUs of their own, and how they are shared there (degrees as in `Parallel`)."""

    layers: Numbers
    gpus: Numbers
    tp: Count = 1
    dp: Count | None = None
    ep: Count | None = None
    expert_tp: Count | None = None

    @model_validator(mode="after")
    def _holds_something(self) -> Stage:
        found: list[Fault] = []
        if not self.layers:
            found.append((("layers",), "a stage holds at least one layer"))
        elif list(self.layers) != list(range(self.layers[0], self.layers[0] + len(self.layers))):
            found.append((("layers",), "must follow one another, as in 0-3"))
        twice = [gpu for gpu, times in Counter(self.gpus).items() if times > 1]
        if not self.gpus:
            found.append((("gpus",), "a stage needs at least one GPU"))
        elif twice:
            found.append((("gpus",), f"GPU {twice[0]} is named twice"))
        refuse("Stage", found)
        return self


class Parallel(Spec):
    """How the model is laid over the GPUs.

    ``tp`` GPUs share each matrix of attention and dense FFNs, ``pp`` stages share the layers,
    ``dp`` replicas share the tokens (null: what is left of the GPUs). ``ep`` GPUs share the experts
    of a layer (null: as many replicas as the experts allow), ``expert_tp`` each matrix of an expert
    (null: ``tp`` as far as the GPUs go). ``stages`` lays layers on GPUs one by one in place of
    ``pp``. A batch passes the stages in ``microbatches`` (null: one per stage), or in pieces of
    ``chunk`` bytes of activations; ``interleave``: parts of the model that a stage holds.
    ``sequence_parallel``: all-gather and reduce-scatter in place of all-reduce. ``allreduce``: the
    algorithm (auto: the fastest that the transport lists and the wiring allows). ``pipeline``:
    flushed (every batch enters an empty pipeline) or steady (the next micro-batch follows); null:
    steady in decode. ``offload``: what lies in host memory and comes ahead of its use, the routed
    experts of a layer, or all weights of layers; ``resident_layers``: of so many layers every GPU
    keeps it (null: of as many as fit).
    """

    ep: Count | None = None
    tp: Count = 1
    pp: Count = 1
    dp: Count | None = None
    expert_tp: Count | None = None
    stages: Annotated[tuple[Stage, ...], Strict(False)] | None = None
    microbatches: Count | None = None
    chunk_bytes: Bytes | None = Field(default=None, alias="chunk")
    interleave: Count = 1
    sequence_parallel: bool = False
    allreduce: Literal["auto", "ring", "tree", "nvls"] = "auto"
    pipeline: Literal["flushed", "steady"] | None = None
    offload: Offload | None = None
    resident_layers: NotNegative | None = None

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> Parallel:
        found: list[Fault] = []
        if self.stages is not None:
            if not self.stages:
                found.append((("stages",), "give at least one stage"))
            given = {"tp": self.tp > 1, "pp": self.pp > 1, "interleave": self.interleave > 1}
            given |= {name: getattr(self, name) is not None for name in ("ep", "dp", "expert_tp")}
            found += [
                ((name,), "goes without stages; give it to the stages that it is meant for")
                for name, there in given.items()
                if there
            ]
        if self.chunk_bytes is not None and self.microbatches is not None:
            found.append((("chunk",), "give chunk or microbatches, not both"))
        if self.resident_layers is not None and self.offload is None:
            found.append((("resident_layers",), "needs offload: experts or layers"))
        if self.interleave > 1 and self.pp == 1 and self.stages is None:
            found.append((("interleave",), "needs pp above 1"))
        refuse("Parallel", found)
        return self

    @property
    def plain(self) -> bool:
        """Whether it is data-parallel attention with expert-parallel experts, and nothing else."""
        return self == Parallel(ep=self.ep, dp=self.dp)


class Degrees(NamedTuple):
    """How the GPUs of one stage share its layers: tp x dp = GPUs; ep x expert_tp GPUs hold all
    experts. `gpus` in order: neighbours are one tensor-parallel group.
    """

    layers: tuple[int, ...]
    gpus: tuple[int, ...]
    tp: int
    dp: int
    ep: int
    expert_tp: int

    @property
    def dispatches(self) -> bool:
        """Whether tokens travel to their experts: their GPUs are more than a tensor-parallel group,
        all of which has the tokens anyway.
        """
        return self.ep * self.expert_tp > self.tp


def degrees(parallel: Parallel, layers: int, experts: int, gpus: int) -> list[Degrees]:
    """The stages in the order in which tokens pass them, all degrees filled in.

    An interleaved pipeline names its GPUs several times. The input must have passed `check`.
    """
    return [
        Degrees(
            stage.layers,
            stage.gpus,
            stage.tp,
            len(stage.gpus) // stage.tp,
            *_expert_degrees(stage, len(stage.gpus), experts),
        )
        for _, stage in _stages(parallel, layers, gpus)
    ]


def check(
    parallel: Parallel, model: Model, gpus: int, cluster: str, redundant: int = 0
) -> list[Fault]:
    """What cannot be, each as (key path below `parallel`, what is wrong); empty if all can.

    redundant: copies of experts beside the first of each, which take slots of their own.
    """
    found = _check_gpus(parallel, model.layers, gpus, cluster)
    if parallel.offload == "experts" and not model.moe.experts:
        found.append((("offload",), "experts, but the model has none; write layers"))
    if found:
        return found
    for path, stage in _stages(parallel, model.layers, gpus):
        for name, what in _check_stage(stage, model, cluster, redundant):
            fault = ((*path, name), what)
            if fault not in found:  # stages of a pipeline are alike
                found.append(fault)
    return found


def _stages(parallel: Parallel, layers: int, gpus: int) -> Iterator[tuple[KeyPath, Stage]]:
    if parallel.stages is not None:
        for number, stage in enumerate(parallel.stages):
            yield ("stages", number), stage
        return
    parts = parallel.pp * parallel.interleave
    each = gpus // parallel.pp
    for part in range(parts):
        # Shares differ by one at most, the larger ones first.
        first, last = (
            (part * layers + parts - 1) // parts,
            ((part + 1) * layers + parts - 1) // parts,
        )
        place = part % parallel.pp
        yield (
            (),
            Stage(
                layers=tuple(range(first, last)),
                gpus=tuple(range(place * each, (place + 1) * each)),
                tp=parallel.tp,
                dp=None,
                ep=parallel.ep,
                expert_tp=parallel.expert_tp,
            ),
        )


def _expert_degrees(stage: Stage, gpus: int, experts: int) -> tuple[int, int]:
    """`ep` and `expert_tp`; unless given, experts over the replicas, each cut as dense layers."""
    if stage.ep is None:
        shared_by = gpus // (stage.expert_tp or stage.tp)
        ep = max(d for d in range(1, shared_by + 1) if shared_by % d == 0 and d <= max(experts, 1))
        return ep, stage.expert_tp or stage.tp
    return stage.ep, stage.expert_tp or min(stage.tp, max(gpus // stage.ep, 1))


def _check_gpus(parallel: Parallel, layers: int, gpus: int, cluster: str) -> list[Fault]:
    """Whether every layer and every GPU has its place."""
    if parallel.stages is not None:
        return _check_listed(parallel.stages, layers, gpus, cluster)
    parts = parallel.pp * parallel.interleave
    if parts > layers:
        name = "pp" if parallel.pp > layers else "interleave"
        return [((name,), f"{parts} stages, but the model has {layers} layers")]
    product = parallel.tp * parallel.pp * (parallel.dp or 1)
    if parallel.dp is not None and product != gpus:
        shown = f"tp {parallel.tp} x pp {parallel.pp} x dp {parallel.dp} = {product}"
        return [(("dp",), f"{shown} is not the {gpus} GPUs of {cluster}")]
    for name, degree in (("pp", parallel.pp), ("tp", parallel.tp), ("tp", product)):
        if gpus % degree:
            shown = f"{degree}" if degree != product else f"tp {parallel.tp} x pp {parallel.pp}"
            return [((name,), f"{shown} does not divide the {gpus} GPUs of {cluster}")]
    if parallel.interleave > 1 and (parallel.microbatches or parallel.pp) % parallel.pp:
        what = f"{parallel.microbatches} is no multiple of pp = {parallel.pp}, as interleave needs"
        return [(("microbatches",), what)]
    return []


def _check_listed(stages: Sequence[Stage], layers: int, gpus: int, cluster: str) -> list[Fault]:
    found: list[Fault] = []
    at: dict[int, int] = {}
    on: dict[int, int] = {}
    for number, stage in enumerate(stages):
        for layer in stage.layers:
            where: KeyPath = ("stages", number, "layers")
            if layer >= layers:
                found.append((where, f"layer {layer}, but the model has {layers} (0-{layers - 1})"))
                break
            if layer in at:
                found.append((where, f"layer {layer} is already in stage {at[layer]}"))
                break
            if layer < max(at, default=-1):
                found.append((where, f"layer {layer} comes after stage {number - 1}: order stages"))
                break
            at[layer] = number
        for gpu in stage.gpus:
            where = ("stages", number, "gpus")
            if gpu >= gpus:
                found.append((where, f"GPU {gpu}, but {cluster} has {gpus} (0-{gpus - 1})"))
                break
            if gpu in on:
                found.append((where, f"GPU {gpu} is already in stage {on[gpu]}"))
                break
            on[gpu] = number
    if found:
        return found
    if missing := sorted(set(range(layers)) - set(at)):
        found.append((("stages",), f"layer {missing[0]} is on no GPU"))
    if idle := sorted(set(range(gpus)) - set(on)):
        found.append((("stages",), f"GPU {idle[0]} of {cluster} holds no layer"))
    return found


def _check_stage(
    stage: Stage, model: Model, cluster: str, redundant: int
) -> Iterator[tuple[str, str]]:
    """(key, what is wrong) of one stage."""
    count, tp = len(stage.gpus), stage.tp
    if count % tp:
        yield "tp", f"{tp} does not divide the {count} GPUs of the stage"
        return
    if stage.dp is not None and stage.dp * tp != count:
        yield (
            "dp",
            f"tp {tp} x dp {stage.dp} = {tp * stage.dp} is not the {count} GPUs of the stage",
        )
    heads = model.attention.heads
    if heads and heads % tp:
        than = "is more than" if tp > heads else "does not divide"
        yield "tp", f"{tp} {than} the {heads} attention heads"
        return
    kv_heads = getattr(model.attention, "kv_heads", 0)
    if kv_heads and kv_heads % tp and tp % kv_heads:
        yield "tp", f"{tp} and the {kv_heads} KV heads: one must divide the other"
    dense, moe = model.moe.first_dense_layers, model.moe
    if stage.layers[0] < dense and model.dense_intermediate % tp:
        yield "tp", f"{tp} does not divide dense_intermediate = {model.dense_intermediate}"
    if stage.layers[-1] < dense:
        return
    slots = moe.experts + redundant
    yield from _check_experts(stage, count, slots, moe.intermediate, cluster)


def _check_experts(
    stage: Stage, count: int, slots: int, width: int, cluster: str
) -> Iterator[tuple[str, str]]:
    if stage.ep is not None and stage.ep > slots:
        yield "ep", f"{stage.ep} GPUs, but a layer has {slots} experts; write {slots} or less"
        return
    if stage.ep is not None and count % stage.ep:
        whose = f"{count} GPUs of {cluster}" if stage.tp == 1 else f"{count} GPUs of the stage"
        yield "ep", f"{stage.ep} does not divide the {whose}"
        return
    if stage.expert_tp is not None and count % stage.expert_tp:
        yield "expert_tp", f"{stage.expert_tp} does not divide the {count} GPUs of the stage"
        return
    ep, expert_tp = _expert_degrees(stage, count, slots)
    name = "ep" if stage.expert_tp is None else "expert_tp"
    group = ep * expert_tp
    if count % group:
        yield name, f"ep {ep} x expert_tp {expert_tp} = {group} does not divide {count} GPUs"
    elif group % stage.tp:
        yield name, f"ep {ep} x expert_tp {expert_tp} = {group} is no multiple of tp = {stage.tp}"
    if width % expert_tp:
        yield "expert_tp", f"{expert_tp} does not divide moe.intermediate = {width}"
