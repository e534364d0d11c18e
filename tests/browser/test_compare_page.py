"""The page of a comparison in a real browser: no errors, both themes, two widths, a legend."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser.pages import PHONE, WIDE, Open, draw_all, pointed
from results.runs import HOSTILE, hostile_result, write_result, write_tables

from simulator.cli import main


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, a run and traces, two serving runs, and two runs whose names are hostile."""
    folder = tmp_path_factory.mktemp("pages")

    def run(*words: str, out: str) -> str:
        given = ("--topology", "h100x16-rail", "--set", "model.layers=4")
        assert main([*words, *given, "--out", str(folder / out), "--json"]) == 0
        return str(folder / out)

    batch = ("run", "--workload", "moe128", "--set", "traffic.steps=2")
    served = ("serve", "--workload", "moe128-serving", "--set", "requests.limit=40")
    a = run(*batch, out="a")
    b = run(*batch, "--set", "expert_slots=6", out="b")
    assert main(["export", b, "-o", str(folder / "traces")]) == 0
    serving = [run(*served, "--seed", seed, out=f"s{seed}") for seed in "12"]
    hostile = []
    for name in "xy":
        tables = write_tables(folder / name, HOSTILE)
        write_result(tables, hostile_result(given=None))
        hostile.append(str(tables.path))
    for name, one, other in (
        ("runs", a, b),
        ("traces", a, str(folder / "traces")),
        ("serving", *serving),
        ("mixed", a, serving[0]),
        ("hostile", *hostile),
    ):
        status = main(["compare", one, other, "--html", str(folder / f"{name}.html"), "--json"])
        # The hostile ones lack most of their results: the page shows the rest.
        assert status == (2 if name == "hostile" else 0)
    return folder


@pytest.mark.parametrize("width", [WIDE, PHONE])
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", ["runs", "traces", "serving", "mixed"])
def test_it_opens_and_fits(opened: Open, name: str, width: int, theme: str) -> None:
    page = opened(name, width, theme)
    names = draw_all(page)
    expected = {
        "runs": {"parts", "kinds", "layers", "links", "cache", "energy"},
        "traces": {"parts", "kinds", "rank-idle", "rank-overlap"},
        "serving": {"cdf-ttft", "cdf-tpot", "cdf-e2e", "generated-time"},
        "mixed": set(),
    }
    assert expected[name] <= set(names)
    page.wait_for_timeout(200)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for chart in names:
        plot = page.locator(f"#{chart} .nsewdrag").first.bounding_box()
        assert plot is not None
        assert plot["width"] > (0.2 if width == WIDE else 0.4) * width, chart
        assert plot["height"] > 50, chart
        assert plot["x"] + plot["width"] <= width, chart
        assert page.locator(f"#{chart} .xtitle").count() == 1, chart
        whole = page.locator(f"#{chart}").bounding_box()
        for axis, at, size in (("x", "x", "width"), ("y", "y", "height")):
            if page.locator(f"#{chart} .{axis}title").count():
                box = page.locator(f"#{chart} .{axis}title").bounding_box()
                assert box[at] >= whole[at] - 1, (chart, axis)
                assert box[at] + box[size] <= whole[at] + whole[size] + 1, (chart, axis)
    answer = page.locator("p.limit").bounding_box()
    assert answer is not None
    assert answer["y"] < 400  # on the first screen


def test_pointing_tells_and_the_legend_hides(opened: Open) -> None:
    page = opened("runs")
    draw_all(page)
    assert " ms" in pointed(page, "parts", 0.3, 0.25)
    drawn = page.locator("#parts .barlayer .trace").count()
    entry = page.locator("#parts .legend .traces", has_text="fetch stall")
    entry.locator(".legendtoggle").click()
    page.wait_for_function(f"document.querySelectorAll('#parts .barlayer .trace').length < {drawn}")
    body = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(body)
    page.get_by_role("button", name="dark").click()
    page.wait_for_function(f"{body} !== {light!r}")


def test_names_of_the_user_run_nothing(opened: Open) -> None:
    page = opened("hostile")
    draw_all(page)
    assert HOSTILE in page.locator("h1").inner_text()
    assert page.locator("main img").count() == 0
