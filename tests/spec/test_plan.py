"""What `parallel` may say: degrees that are filled in, and every refusal with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.errors import InputError
from simulator.spec.load import load_inputs
from simulator.spec.plan import degrees

WORK = """\
name: w
model:
  name: m
  hidden: 64
  layers: 4
  vocab: 100
  dtype: bf16
  attention: {kind: gqa, heads: 8, kv_heads: 4, head_dim: 8}
  dense_intermediate: 48
  moe: {experts: 6, top_k: 2, intermediate: 24, first_dense_layers: 1}
traffic: {tokens_per_gpu: 4, context: 16}
routing: {source: uniform}
parallel: """


def load(parallel: str, *overrides: str, topology: str = "nvswitch16"):
    Path("w.yaml").write_text(WORK + parallel + "\n")
    return load_inputs(topology, "w.yaml", list(overrides))


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def stages_of(parallel: str, *overrides: str):
    workload = load(parallel, *overrides).workload
    return degrees(workload.parallel, workload.model.layers, workload.model.moe.experts, 16)


@pytest.mark.parametrize(
    ("parallel", "wanted"),
    [
        # layers, GPUs, tp, dp, ep, expert_tp of each stage
        ("{}", [((0, 3), (0, 15), 1, 16, 4, 1)]),
        ("{ep: 2}", [((0, 3), (0, 15), 1, 16, 2, 1)]),
        ("{tp: 4}", [((0, 3), (0, 15), 4, 4, 4, 4)]),
        ("{tp: 4, ep: 4}", [((0, 3), (0, 15), 4, 4, 4, 4)]),
        ("{tp: 8, ep: 4}", [((0, 3), (0, 15), 8, 2, 4, 4)]),
        ("{tp: 8, ep: 4, expert_tp: 2}", [((0, 3), (0, 15), 8, 2, 4, 2)]),
        (
            "{tp: 8, pp: 2}",
            [((0, 1), (0, 7), 8, 1, 1, 8), ((2, 3), (8, 15), 8, 1, 1, 8)],
        ),
        (
            "{pp: 2, interleave: 2}",
            [
                ((0, 0), (0, 7), 1, 8, 4, 1),
                ((1, 1), (8, 15), 1, 8, 4, 1),
                ((2, 2), (0, 7), 1, 8, 4, 1),
                ((3, 3), (8, 15), 1, 8, 4, 1),
            ],
        ),
        (
            "{stages: [{layers: 0-2, gpus: 0-7, tp: 2, ep: 4}, {layers: 3, gpus: [8, 9, 10, 11],"
            " tp: 4}, ]}",
            None,
        ),
        (
            "{stages: [{layers: 0-2, gpus: '0-3,8-11', tp: 2, ep: 4}, "
            "{layers: 3, gpus: '4-7,12-15', tp: 4}]}",
            [((0, 2), (0, 11), 2, 4, 4, 2), ((3, 3), (4, 15), 4, 2, 2, 4)],
        ),
    ],
)
def test_degrees_are_filled_in(parallel: str, wanted: list[tuple[object, ...]] | None):
    if wanted is None:
        with pytest.raises(InputError, match="GPU 12 of nvswitch16 holds no layer"):
            stages_of(parallel)
        return
    found = [
        ((s.layers[0], s.layers[-1]), (s.gpus[0], s.gpus[-1]), s.tp, s.dp, s.ep, s.expert_tp)
        for s in stages_of(parallel)
    ]
    assert found == wanted


def test_layers_are_dealt_evenly():
    found = stages_of("{pp: 4}", "model.layers=10")
    assert [len(stage.layers) for stage in found] == [3, 2, 3, 2]
    assert [layer for stage in found for layer in stage.layers] == list(range(10))


@pytest.mark.parametrize(
    ("parallel", "plain"),
    [
        ("{}", True),
        ("{ep: 4}", True),
        ("{ep: 4, dp: 16}", True),
        ("{tp: 1, pp: 1}", True),
        ("{tp: 2}", False),
        ("{pp: 2}", False),
        ("{microbatches: 2}", False),
        ("{offload: layers}", False),
        ("{stages: [{layers: 0-3, gpus: 0-15}]}", False),
    ],
)
def test_plain_is_data_and_expert_parallel(parallel: str, plain: bool):
    assert load(parallel).workload.parallel.plain is plain


@pytest.mark.parametrize(
    ("parallel", "said"),
    [
        ("{tp: 3}", "13:16: parallel.tp: tp 3 x pp 1 does not divide the 16 GPUs of nvswitch16"),
        ("{pp: 3}", "13:16: parallel.pp: tp 1 x pp 3 does not divide the 16 GPUs of nvswitch16"),
        ("{tp: 8, pp: 4}", "parallel.tp: tp 8 x pp 4 does not divide the 16 GPUs of nvswitch16"),
        ("{tp: 8, dp: 3}", "parallel.dp: tp 8 x pp 1 x dp 3 = 24 is not the 16 GPUs of nvswitch16"),
        ("{ep: 5}", "13:16: parallel.ep: 5 does not divide the 16 GPUs of nvswitch16"),
        ("{ep: 8}", "parallel.ep: 8 GPUs, but a layer has 6 experts; write 6 or less"),
        ("{resident_layers: 2}", "parallel.resident_layers: needs offload: experts or layers"),
        ("{offload: all}", "13:21: parallel.offload: 'all' is not one of experts, layers"),
        ("{tp: 16}", "13:16: parallel.tp: 16 is more than the 8 attention heads"),
        ("{pp: 8}", "13:16: parallel.pp: 8 stages, but the model has 4 layers"),
        ("{pp: 4, interleave: 2}", "parallel.interleave: 8 stages, but the model has 4 layers"),
        ("{interleave: 2}", "parallel.interleave: needs pp above 1"),
        (
            "{pp: 2, interleave: 2, microbatches: 3}",
            "parallel.microbatches: 3 is no multiple of pp = 2, as interleave needs",
        ),
        ("{pp: 2, microbatches: 3, chunk: 1 MB}", "parallel.chunk: give chunk or microbatches"),
        ("{expert_tp: 16}", "parallel.expert_tp: 16 does not divide moe.intermediate = 24"),
        ("{tp: 4, ep: 2, expert_tp: 1}", "ep 2 x expert_tp 1 = 2 is no multiple of tp = 4"),
        ("{ep: 4, expert_tp: 8}", "ep 4 x expert_tp 8 = 32 does not divide 16 GPUs"),
        ("{tp: x}", "parallel.tp: must be a whole number, not 'x'"),
        ("{chunk: 12}", "parallel.chunk: "),
        ("{pipeline: flush}", "parallel.pipeline: 'flush' is not one of flushed, steady"),
        ("{stage: 1}", "parallel.stage: unknown key (did you mean 'stages'?)"),
        ("{stages: []}", "parallel.stages: give at least one stage"),
        (
            "{tp: 2, stages: [{layers: 0-3, gpus: 0-15}]}",
            "parallel.tp: goes without stages; give it to the stages that it is meant for",
        ),
        ("{stages: [{layers: 0-2, gpus: 0-15}]}", "parallel.stages: layer 3 is on no GPU"),
        (
            "{stages: [{layers: 0-2, gpus: 0-7}, {layers: 2-3, gpus: 8-15}]}",
            "parallel.stages.1.layers: layer 2 is already in stage 0",
        ),
        (
            "{stages: [{layers: 2-3, gpus: 0-7}, {layers: 0-1, gpus: 8-15}]}",
            "parallel.stages.1.layers: layer 0 comes after stage 0: order stages",
        ),
        (
            "{stages: [{layers: 0-1, gpus: 0-7}, {layers: 2-4, gpus: 8-15}]}",
            "parallel.stages.1.layers: layer 4, but the model has 4 (0-3)",
        ),
        (
            "{stages: [{layers: 0-1, gpus: 0-7}, {layers: 2-3, gpus: 7-15}]}",
            "parallel.stages.1.gpus: GPU 7 is already in stage 0",
        ),
        (
            "{stages: [{layers: 0-1, gpus: 0-7}, {layers: 2-3, gpus: 8-16}]}",
            "parallel.stages.1.gpus: GPU 16, but nvswitch16 has 16 (0-15)",
        ),
        (
            "{stages: [{layers: 0-1, gpus: 0-7}, {layers: 2-3, gpus: 8-14}]}",
            "parallel.stages: GPU 15 of nvswitch16 holds no layer",
        ),
        ("{stages: [{layers: [], gpus: 0}]}", "stages.0.layers: a stage holds at least one layer"),
        ("{stages: [{layers: [0, 2], gpus: 0}]}", "stages.0.layers: must follow one another"),
        ("{stages: [{layers: 0, gpus: [1, 1]}]}", "stages.0.gpus: GPU 1 is named twice"),
        ("{stages: [{layers: 3-1, gpus: 0}]}", "stages.0.layers: '3-1' runs backwards or too far"),
        ("{stages: [{layers: a, gpus: 0}]}", "stages.0.layers: must be whole numbers from 0"),
        ("{stages: [{layers: 0, gpus: -1}]}", "stages.0.gpus: must be whole numbers from 0"),
        ("{stages: [{layers: 0, gpus: 1.5}]}", "stages.0.gpus: must be whole numbers from 0"),
        ("{stages: [{gpus: 0}]}", "parallel.stages.0.layers: required, but not given"),
        (
            "{stages: [{layers: 0-3, gpus: 0-15, tp: 3}]}",
            "parallel.stages.0.tp: 3 does not divide the 16 GPUs of the stage",
        ),
        (
            "{stages: [{layers: 0-3, gpus: 0-15, tp: 4, dp: 2}]}",
            "parallel.stages.0.dp: tp 4 x dp 2 = 8 is not the 16 GPUs of the stage",
        ),
    ],
)
def test_what_cannot_be_is_told_in_one_line(parallel: str, said: str):
    with pytest.raises(InputError) as error:
        load(parallel)
    assert str(error.value).startswith("w.yaml:13:")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_copies_of_experts_are_slots_for_more_gpus():
    assert load("{ep: 8}", "redundant_experts=2").workload.parallel.ep == 8
    with pytest.raises(InputError, match="16 GPUs, but a layer has 8 experts; write 8 or less"):
        load("{ep: 16}", "redundant_experts=2")


@pytest.mark.parametrize(
    ("parallel", "key", "said"),
    [
        ("{tp: 2}", "model.attention.heads=5", "tp: 2 does not divide the 5 attention heads"),
        ("{tp: 8}", "model.attention={kind: gqa, heads: 24, kv_heads: 6, head_dim: 8}",
         "tp: 8 and the 6 KV heads: one must divide the other"),
        ("{tp: 8}", "model.dense_intermediate=20", "tp: 8 does not divide dense_intermediate = 20"),
    ],
)  # fmt: skip
def test_tp_must_divide_what_it_shares(parallel: str, key: str, said: str):
    overrides = [key]
    if "heads=5" in key:
        overrides.append("model.attention.kv_heads=5")
    with pytest.raises(InputError) as error:
        load(parallel, *overrides)
    assert f"parallel.{said}" in str(error.value)


# --- models that lack a part --------------------------------------------------------------


def test_a_dense_model_and_layers_alone():
    found = load("{tp: 2}", "model.moe=null", "model.attention=null", "model.vocab=0")
    model = found.workload.model
    assert (model.moe.experts, model.moe.first_dense_layers) == (0, 4)
    assert (model.attention.heads, model.vocab) == (0, 0)


def test_a_dense_model_needs_the_width_of_its_ffn():
    with pytest.raises(
        InputError, match=r"model\.dense_intermediate: required, because moe is null"
    ):
        load("{tp: 2}", "model.moe=null", "model.dense_intermediate=0")


def test_a_model_must_say_that_it_lacks_a_part():
    text = (WORK + "{}\n").replace(
        "  attention: {kind: gqa, heads: 8, kv_heads: 4, head_dim: 8}\n", ""
    )
    Path("w.yaml").write_text(text)
    with pytest.raises(InputError, match=r"model\.attention: required, but not given"):
        load_inputs("nvswitch16", "w.yaml")
