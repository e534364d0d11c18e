"""What-if studies: points, figures, judgement against brute force, and every refusal."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from studies.whatif_helpers import AXES, BASE, found_of, overrides_of, study_of

from simulator.errors import InputError
from simulator.spec.find import find, shipped
from simulator.studies.whatif.answer import answer, flat_rows
from simulator.studies.whatif.judge import effects, front, ranked
from simulator.studies.whatif.metrics import METRICS, flat, metric_of, read_bound
from simulator.studies.whatif.points import case_of, check, choices_of, run_case
from simulator.studies.whatif.report import as_html
from simulator.studies.whatif.spec import read_study
from simulator.studies.whatif.texts import as_csv, as_latex, as_markdown

HOSTILE = "<script>alert(1)</script> | 50% of_$x$ \\begin{a} & ~^ `#`"


# --- Points -----------------------------------------------------------------------------


def test_a_grid_is_every_combination_and_the_last_axis_turns_first(tmp_path: Path) -> None:
    study = study_of(tmp_path, BASE + AXES)
    choices = list(choices_of(study))
    assert choices == list(itertools.product(range(3), range(3)))
    seen = [overrides_of(case_of(study, choice)) for choice in choices]
    assert [(one["traffic.tokens_per_gpu"], one["parallel.ep"]) for one in seen] == list(
        itertools.product((1, 2, 4), (16, 8, 5))
    )
    assert all(one["routing.source"] == "zipf:0.8" and one["expert_slots"] is None for one in seen)


def test_a_list_names_values_by_label_and_leaves_the_first_out(tmp_path: Path) -> None:
    text = BASE + AXES + "points: [{EP: 8}, {tokens: 4, EP: 16}, {EP: 8}]\n"
    assert list(choices_of(study_of(tmp_path, text))) == [(0, 1), (2, 0)]


def test_random_points_differ_and_are_those_of_their_seed(tmp_path: Path) -> None:
    values = f"values: {list(range(1, 41))}"
    axes = f"axes:\n  - {{name: a, key: traffic.context, {values}}}\n"
    axes += f"  - {{name: b, key: traffic.tokens_per_gpu, {values}}}\n"

    def drawn(seed: int) -> list[tuple[int, ...]]:
        text = BASE + axes + f"random: {{points: 300, seed: {seed}}}\n"
        return list(choices_of(study_of(tmp_path, text)))

    first = drawn(1)
    assert len(set(first)) == len(first) == 300
    assert first == drawn(1)
    assert first != drawn(2)
    # Each value of an axis is as likely: 300 draws of 40 values, chi-squared of 39 degrees.
    counts = np.bincount([choice[0] for choice in first], minlength=40)
    assert ((counts - 7.5) ** 2 / 7.5).sum() < 72.0
    all_of_it = study_of(tmp_path, BASE + AXES + "random: {points: 50}\n")
    assert sorted(choices_of(all_of_it)) == list(itertools.product(range(3), range(3)))


def test_an_axis_has_the_last_word_on_what_it_sets(tmp_path: Path) -> None:
    """A mapping that an axis sets does away with the keys of the base that lie in it."""
    text = BASE.replace("overlap: none", "overlap: none, build.nvlink.bandwidth: 100 GB/s") + (
        "axes:\n  - name: wires\n    values:\n"
        "      - {label: as it is, set: {}}\n"
        "      - {label: new, set: {build.nvlink: {bandwidth: 450 GB/s, latency: 1 us}}}\n"
    )
    study = study_of(tmp_path, text)
    assert overrides_of(case_of(study, (0,)))["build.nvlink.bandwidth"] == "100 GB/s"
    new = overrides_of(case_of(study, (1,)))
    assert "build.nvlink.bandwidth" not in new
    assert new["build.nvlink"] == {"bandwidth": "450 GB/s", "latency": "1 us"}


def test_equal_cases_have_equal_keys_whatever_the_folder(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    one = case_of(study_of(tmp_path, BASE + AXES), (1, 2))
    other = case_of(study_of(tmp_path / "other", BASE + AXES), (1, 2))
    assert one.key == other.key
    assert one.key == json.dumps(json.loads(one.key), separators=(",", ":"))
    assert one.key != case_of(study_of(tmp_path, BASE + AXES), (1, 1)).key
    assert one.key != case_of(study_of(tmp_path, BASE + "seed: 1\n" + AXES), (1, 2)).key


def test_a_case_is_the_run_that_the_command_line_makes(tmp_path: Path) -> None:
    """The figures are those of `simulate` with the same --set; a refusal is a row, with why."""
    from simulator.api import simulate

    study = study_of(tmp_path, BASE + AXES)
    row = run_case(case_of(study, (1, 1)))
    small = ["model.layers=2", "traffic.steps=1", "traffic.warmup_steps=0", "prefetch=none"]
    small += ["overlap=none", "expert_slots=null", "traffic.tokens_per_gpu=2", "parallel.ep=8"]
    direct = simulate("nvswitch16", "moe128", overrides=small, routing="zipf:0.8", trace_steps=0)
    assert row["status"] == "ok"
    assert row["figures"]["step_time_s.mean"] == direct.summary["step_time_s"]["mean"]
    assert row["figures"]["cost.usd_per_hour"] == direct.summary["cost"]["usd_per_hour"]
    refused = run_case(case_of(study, (0, 2)))
    assert refused["status"] == "failed"
    assert "5 does not divide" in refused["reason"]
    assert refused["figures"] == {}


def test_a_fault_of_the_simulator_is_a_row_and_a_full_disk_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import simulator.api

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("made\nup")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "spans.parquet")

    case = case_of(study_of(tmp_path, BASE + AXES), (0, 0))
    monkeypatch.setattr(simulator.api, "simulate", broken)
    row = run_case(case)
    assert row["status"] == "error"
    assert row["reason"].startswith("internal error: ZeroDivisionError: made up (test_whatif.py:")
    monkeypatch.setattr(simulator.api, "simulate", full)
    with pytest.raises(OSError, match="No space left"):
        run_case(case)


# --- Figures ----------------------------------------------------------------------------


def test_a_summary_is_laid_flat() -> None:
    summary = {"a": {"b_s": {"p99": 1.5}}, "list": [1, 2.5], "long": list(range(99)), "t": "x"}
    summary |= {"none": None, "yes": True, "nan": float("nan")}
    assert flat(summary) == {
        "a.b_s.p99": 1.5,
        "list.0": 1,
        "list.1": 2.5,
        "t": "x",
        "none": None,
        "yes": 1.0,
    }


def test_every_named_metric_is_in_a_summary() -> None:
    """A small run and a small serving run have them all."""
    from simulator.api import serve, simulate

    small = ["model.layers=2", "traffic.steps=1", "traffic.warmup_steps=0"]
    ran = flat(simulate("nvswitch16", "moe128", overrides=small, trace_steps=0).summary)
    assert [m.name for m in METRICS["run"].values() if m.path not in ran] == []
    few = ["model.layers=2", "requests.limit=4", "requests.output=fixed:4"]
    served = flat(serve("dgx-h100", "moe128-serving", overrides=few).summary)
    assert [m.name for m in METRICS["serve"].values() if m.path not in served] == []


@pytest.mark.parametrize(
    ("text", "kind", "bound"),
    [
        ("ttft_p99 < 500 ms", "serve", 0.5),
        ("latency.itl_s.p99<=20 ms", "serve", 0.02),
        ("goodput_share >= 95 %", "serve", 0.95),
        ("goodput_share > 0.95", "serve", 0.95),
        ("usd_per_1m_tokens < $2.50", "run", 2.5),
        ("demand_bytes < 1 GiB", "run", 2.0**30),
        ("gpus <= 16", "run", 16.0),
    ],
)
def test_a_bound_is_read_in_si_units(text: str, kind: str, bound: float) -> None:
    read = read_bound(text, kind)
    assert read.bound == bound
    below, at, above = ({read.metric.path: bound * f} for f in (0.5, 1.0, 2.0))
    upper, equal = read.sign.startswith("<"), read.sign.endswith("=")
    assert [read.kept(one) for one in (below, at, above)] == [upper, equal, not upper]
    assert read.over(above) == pytest.approx(1.0 if upper else -1.0)
    assert not read.kept({})
    assert read.over({}) is None


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("ttft_p99 500 ms", "write a metric and its bound"),
        ("ttft_p99 < 500", "500 has no unit"),
        ("ttft_p99 < 500 GB", "'GB' is not a unit of time"),
        ("goodput_share > much", "'much' is no bound of goodput_share; write for example 0.95"),
        ("goodput_share > nan", "'nan' is no bound"),
        ("? < 3", "'?' is no metric"),
    ],
)
def test_a_bound_that_is_none_is_refused(text: str, line: str) -> None:
    with pytest.raises(InputError, match=re.escape(line)):
        read_bound(text, "serve")


# --- Judgement --------------------------------------------------------------------------

TWO_GOALS = """\
objectives:
  - {metric: step_time, direction: minimize}
  - {metric: tokens_per_s, direction: maximize}
"""


def grid(tmp_path: Path, sizes: tuple[int, ...], more: str = "") -> Any:
    """A study of axes a, b, ... whose values are 1, 2, ..."""
    keys = ("traffic.context", "traffic.tokens_per_gpu", "parallel.ep")
    axes = "".join(
        f"  - {{name: {name}, key: {key}, values: {list(range(1, size + 1))}}}\n"
        for name, key, size in zip("abc", keys, sizes, strict=False)
    )
    return study_of(tmp_path, BASE + "axes:\n" + axes + more)


@pytest.mark.parametrize("seed", range(5))
def test_the_front_is_what_brute_force_finds(tmp_path: Path, seed: int) -> None:
    study = grid(tmp_path, (5, 6), TWO_GOALS + "constraints: [step_time < 800 ms]\n")
    rng = np.random.default_rng(seed)
    # Few different values, so that there are ties.
    made = {c: rng.integers(1, 10, 2).tolist() for c in choices_of(study)}
    failed = set(rng.integers(0, 30, 4).tolist())
    numbered = {choice: n for n, choice in enumerate(choices_of(study))}

    def figures(choice: tuple[int, ...]) -> dict[str, float] | None:
        if numbered[choice] in failed:
            return None
        time, rate = made[choice]
        return {"step_time_s.mean": time / 10.0, "throughput_tokens_per_s": float(rate)}

    alive = {n: made[c] for c, n in numbered.items() if n not in failed and made[c][0] < 8}
    best = {
        n
        for n, (t, r) in alive.items()
        if not any(
            (u <= t and s >= r) and (u < t or s > r) for m, (u, s) in alive.items() if m != n
        )
    }
    found = found_of(study, figures)
    assert {point.number for point in front(found)} == best
    metric = metric_of("tokens_per_s", "run")
    order = sorted(alive, key=lambda n: (-alive[n][1], n))
    assert [point.number for point in ranked(found, metric, -1.0)] == order


def test_shares_of_a_sum_are_those_of_its_terms(tmp_path: Path) -> None:
    """Of y = f(a) + g(b) over a full grid the share of a is var f / (var f + var g)."""
    study = grid(tmp_path, (4, 3))
    f, g = np.array([1.0, 4.0, 9.0, 16.0]), np.array([3.0, 0.0, 1.0])
    found = found_of(study, lambda c: {"step_time_s.mean": f[c[0]] + g[c[1]]})
    a, b = effects(found, metric_of("step_time", "run"))
    total = f.var() + g.var()
    assert a.share == pytest.approx(f.var() / total, rel=1e-9)
    assert b.share == pytest.approx(g.var() / total, rel=1e-9)
    assert (a.direction, b.direction) == ("rises", "")


def test_shares_of_a_product_leave_what_the_axes_do_together(tmp_path: Path) -> None:
    """Of y = u v, u and v independent: first-order Sobol indices in closed form."""
    study = grid(tmp_path, (3, 4))
    u, v = np.array([1.0, 2.0, 3.0]), np.array([4.0, 3.0, 2.0, 1.0])
    found = found_of(study, lambda c: {"step_time_s.mean": u[c[0]] * v[c[1]]})
    a, b = effects(found, metric_of("step_time", "run"))
    total = (u**2).mean() * (v**2).mean() - (u.mean() * v.mean()) ** 2
    assert a.share == pytest.approx(u.var() * v.mean() ** 2 / total, rel=1e-9)
    assert b.share == pytest.approx(v.var() * u.mean() ** 2 / total, rel=1e-9)
    assert a.share + b.share < 1.0
    assert (a.direction, b.direction) == ("rises", "falls")


def test_missing_points_do_not_make_an_axis_that_does_nothing_matter(tmp_path: Path) -> None:
    """Here y depends on a alone, and points fail for high a and b: the axes are correlated."""
    study = grid(tmp_path, (5, 5))
    found = found_of(study, lambda c: {"step_time_s.mean": 2.0 ** c[0]} if sum(c) < 6 else None)
    a, b = effects(found, metric_of("step_time", "run"))
    assert b.share == pytest.approx(0.0, abs=1e-9)
    assert b.direction == ""
    assert a.share > 0.5
    assert a.direction == "rises"


@pytest.mark.parametrize("value", [0.0, 3.5])
def test_a_metric_that_never_changes_has_no_shares(tmp_path: Path, value: float) -> None:
    found = found_of(grid(tmp_path, (3, 3)), lambda _: {"step_time_s.mean": value})
    assert effects(found, metric_of("step_time", "run")) == []


# --- Answer and texts -------------------------------------------------------------------


def test_the_answer_names_the_best_its_figure_and_what_matters(tmp_path: Path) -> None:
    study = grid(
        tmp_path,
        (2, 2),
        "objectives: [{metric: step_time, direction: minimize}]\n"
        "constraints: [step_time < 250 ms]\n",
    )
    times = {(0, 0): 0.1, (0, 1): 0.2, (1, 0): 0.2, (1, 1): 0.4}
    told = answer(found_of(study, lambda c: {"step_time_s.mean": times[c]}))
    assert told.startswith("All 4 points could be run, and 3 of them keep step_time < 250 ms.")
    assert "The lowest mean time of a step is 100 ms, with a 1, b 1" in told
    assert "The best of each a: 100 ms with 1, 200 ms with 2 (2 times)." in told
    # Both axes double the time: 0.5625 of 1.1875, as in the product below.
    assert "Against a 1 with all else equal" in told
    assert ": 2 times with 2." in told
    assert "Of the variance of mean time of a step, a explains 47 % (rises with it), b 47 %" in told


def test_where_no_point_keeps_a_bound_the_nearest_is_told(tmp_path: Path) -> None:
    more = (
        "objectives: [{metric: step_time, direction: minimize}]\nconstraints: [step_time < 1 ms]\n"
    )
    found = found_of(
        grid(tmp_path, (3,), more), lambda c: {"step_time_s.mean": 0.005 - 0.001 * c[0]}
    )
    told = answer(found)
    assert "0 of them keep step_time < 1 ms. Nearest to it comes a 3" in told
    assert "3.00 ms" in told
    assert front(found) == []


def test_where_nothing_runs_the_reason_is_told(tmp_path: Path) -> None:
    found = found_of(grid(tmp_path, (2,)), lambda _: None)
    assert answer(found) == "None of 2 points could be run; the first: made to fail."
    for text in (as_csv(found), as_markdown(found), as_latex(found), as_html(found, "x", "cdn")):
        assert "made to fail" in text


def hostile(tmp_path: Path) -> Any:
    label = json.dumps(HOSTILE)
    text = BASE.replace("What is fastest?", label) + (
        f"axes:\n  - name: {label}\n    values:\n"
        f"      - {{label: {label}, set: {{traffic.context: 8}}}}\n"
        "      - {label: b, set: {traffic.context: 16}}\n"
    )
    study = study_of(tmp_path, text)
    return found_of(study, lambda c: {"step_time_s.mean": 1.0} if c[0] else None)


def test_csv_gives_back_what_it_was_given(tmp_path: Path) -> None:
    found = hostile(tmp_path)
    rows = list(csv.DictReader(io.StringIO(as_csv(found))))
    assert [row[HOSTILE] for row in rows] == [HOSTILE, "b"]
    assert [row["status"] for row in rows] == ["failed", "ok"]
    assert [row["step_time_s"] for row in rows] == ["", "1.0"]
    assert list(flat_rows(found)[0]) == list(rows[0])


def test_text_of_the_user_is_escaped_everywhere(tmp_path: Path) -> None:
    found = hostile(tmp_path)
    page = as_html(found, f"whatif {HOSTILE}", "cdn")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    table = [line for line in as_markdown(found).splitlines() if line.startswith("|")]
    # A bar that is not escaped would make another column.
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table[:4]} == {7}
    assert "<script>" not in as_markdown(found).replace("\\<", "")
    tex = as_latex(found)
    assert (
        r"50\% of\_\$x\$ \textbackslash{}begin\{a\} \& \textasciitilde{}\textasciicircum{}" in tex
    )
    assert tex.count("\\begin{tabular}") == tex.count("\\end{tabular}")


# --- Refusals ---------------------------------------------------------------------------

ONE = "axes: [{name: eviction, values: [lru, lfu]}]\n"


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ("axis: []\naxes: []\n", "study.yaml:9:1: axis: unknown key (did you mean 'axes'?)"),
        ("axes: []\n", "axes: at least one axis, as in [{name: EP, values: [8, 16]}]"),
        ("axes: [{name: eviction, values: []}]\n", "axes.0.values: at least one value"),
        ("axes: [{name: eviction}]\n", "axes.0.values: required, but not given"),
        (
            "axes: [{name: eviction, values: [lru]}, {name: eviction, values: [lfu]}]\n",
            "study.yaml:9:48: axes.1.name: a second axis named 'eviction'",
        ),
        (
            "axes: [{name: eviction, values: [lru]}, {name: b, key: eviction, values: [lfu]}]\n",
            "axes.1: sets eviction, as axis 'eviction' does",
        ),
        ("axes: [{name: eviction, values: [lru, lru]}]\n", "a second value 'lru'; give it a label"),
        ("axes: [{name: status, values: [lru]}]\n", "'status' is a column of the table"),
        ("axes: [{name: a, values: [{labl: x}]}]\n", "unknown key 'labl' (did you mean 'label'?)"),
        ("axes: [{name: a, values: [{label: x}]}]\n", "give value, or set: {key: value, ...}"),
        ("axes: [{name: a, values: [{label: x, set: 3}]}]\n", "set: must be a mapping"),
        (ONE + "metrics: ['?']\n", "metrics.0: '?' is no metric; known: tokens_per_s, "),
        (ONE + "constraints: [step_time < 5]\n", "constraints.0: 5 has no unit"),
        (ONE + "search: {trials: 3}\n", "search: needs objectives"),
        (ONE + "random: {points: 0}\n", "random.points: must be >= 1, not 0"),
        (ONE + "points: []\n", "points: at least one point"),
        (ONE + "points: [{evictio: lru}]\n", "no axis is named so (did you mean 'eviction'?)"),
        (ONE + "points: [{eviction: lfuu}]\n", "no value 'lfuu' (did you mean 'lfu'?)"),
        (ONE + "points: [{}]\nrandom: {points: 1}\n", "give points or random, not both"),
        (
            ONE + "objectives: [{metric: bottleneck, direction: minimize}]\n",
            "objectives.0.metric: 'bottleneck' is text, not a number",
        ),
        (
            ONE + "objectives: [{metric: step_time, direction: up}]\n",
            "objectives.0.direction: 'up' is not one of minimize, maximize",
        ),
        (
            f"axes:\n  - {{name: a, values: {list(range(400))}}}\n"
            f"  - {{name: b, values: {list(range(400))}}}\n",
            "160,000 points in the grid, at most 100,000; take some: random: {points: 100}",
        ),
    ],
)
def test_a_study_that_says_nothing_usable_is_refused(tmp_path: Path, more: str, line: str) -> None:
    with pytest.raises(InputError) as refused:
        study_of(tmp_path, BASE + more)
    assert any(line in told for told in str(refused.value).splitlines()), str(refused.value)


@pytest.mark.parametrize(
    ("axes", "line"),
    [
        (
            "axes: [{name: evicton, values: [lru, lfu]}]\n",
            "study.yaml:9:33: --set evicton: unknown key 'evicton' (did you mean 'eviction'?)",
        ),
        ("axes: [{name: eviction, values: [lru, lfuu]}]\n", "'lfuu' is not a known eviction"),
        ("axes: [{name: topology, values: [nvswitch61]}]\n", "no topology 'nvswitch61'"),
        ("axes: [{name: workload, values: [none.yaml]}]\n", "workload 'none.yaml': no such file"),
        ("axes: [{name: build.nvlink.bandwidth, values: [3]}]\n", "3 has no unit"),
    ],
)
def test_values_that_no_run_can_use_are_refused_before_the_first(
    tmp_path: Path, axes: str, line: str
) -> None:
    study = study_of(tmp_path, BASE + axes)
    with pytest.raises(InputError) as refused:
        check(study)
    told = str(refused.value).splitlines()
    assert len(told) == 1
    assert line in told[0]


def test_a_key_that_only_another_value_brings_is_no_mistake(tmp_path: Path) -> None:
    """There are NICs on the rails alone: behind the NVSwitch these points fail, and no more."""
    text = BASE.replace("  topology: nvswitch16\n", "") + (
        "axes:\n  - {name: topology, values: [nvswitch16, h100x16-rail]}\n"
        "  - {name: build.nic.bandwidth, values: [100 Gb/s, 400 Gb/s]}\n"
    )
    study = study_of(tmp_path, text)
    check(study)
    rows = [run_case(case_of(study, choice)) for choice in choices_of(study)]
    assert [row["status"] for row in rows] == ["failed", "failed", "ok", "ok"]
    assert "unknown key 'nic'" in rows[0]["reason"]


def test_a_topology_beside_the_study_is_found(tmp_path: Path) -> None:
    source = find("topology", "nvswitch16").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(source, encoding="utf-8")
    study = study_of(tmp_path, BASE.replace("nvswitch16", "mine.yaml") + AXES)
    check(study)
    assert run_case(case_of(study, (0, 0)))["status"] == "ok"


# --- Shipped studies --------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped("study"))
def test_a_shipped_study_can_be_read_and_has_no_wrong_key(name: str) -> None:
    path = find("study", name)
    study = read_study(path, path.name)
    assert study.name == name
    assert study.question.endswith("?")
    assert study.objectives
    check(study)
    # About a minute on two cores.
    assert len(list(choices_of(study))) <= 64
