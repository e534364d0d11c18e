"""Reports in a real browser: no errors, both themes, two widths, pointing, zooming, hiding."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser.pages import PHONE, WIDE, Open, draw_all, pointed, titles_cover_numbers
from results.runs import HOSTILE, hostile_result, write_result, write_tables

from simulator.cli import main
from simulator.reporting import write_report

if TYPE_CHECKING:
    from playwright.sync_api import Page

RANGE = "document.getElementById('timeline').layout.xaxis.range"
IMAGE = "document.getElementById('timeline').layout.images[0].source"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with caches, a serving run, and one whose names are hostile."""
    folder = tmp_path_factory.mktemp("reports")
    given = ("--topology", "h100x16-rail", "--seed", "1", "--set", "model.layers=4")
    steps = ("--set", "traffic.steps=2", "--set", "prefetch=learned")
    run = ("run", "--workload", "moe128", *steps)
    served = ("serve", "--workload", "moe128-serving", "--set", "requests.limit=40")
    for name, command in (("run", run), ("served", served)):
        assert main([*command, *given, "--out", str(folder / name), "--json"]) == 0
        (folder / name / "report.html").rename(folder / f"{name}.html")
    hostile = write_tables(folder / "hostile", HOSTILE)
    write_result(hostile, hostile_result())
    write_report(hostile.path, folder / "hostile.html")
    return folder


def to(page: Page, name: str) -> dict[str, float]:
    """Bring a chart into sight, drawn; where its plot is."""
    page.locator(f"#{name}").scroll_into_view_if_needed()
    page.wait_for_selector(f"#{name}[data-ready]")
    area = page.locator(f"#{name} .nsewdrag").first
    area.scroll_into_view_if_needed()
    # Charts above that are drawn only now move it.
    draw_all(page)
    box = area.bounding_box()
    assert box is not None
    return dict(box)


def timeline_point(page: Page, which: str) -> tuple[float, float]:
    """The middle of the longest span of a kind, in pixels of the screen."""
    to(page, "timeline")
    x, y = page.evaluate(
        """(which) => {
      const { columns } = lanes.timeline, lane = charts.timeline.figure;
      const kind = lane.kinds.indexOf(which);
      let best = -1;
      columns.kind.forEach((one, i) => {
        if (one === kind && (best < 0 || columns.took[i] > columns.took[best])) best = i;
      });
      const place = document.getElementById("timeline");
      const box = place.querySelector(".nsewdrag").getBoundingClientRect();
      const [from, until] = place.layout.xaxis.range;
      const [bottom, top] = place.layout.yaxis.range;
      const time = columns.start[best] + columns.took[best] / 2;
      return [box.x + box.width * (time - from) / (until - from),
              box.y + box.height * (columns.row[best] - top) / (bottom - top)];
    }""",
        which,
    )
    return x, y


@pytest.mark.parametrize("width", [WIDE, PHONE])
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", ["run", "served"])
def test_it_opens_and_fits(opened: Open, name: str, width: int, theme: str) -> None:
    page = opened(name, width, theme)
    names = draw_all(page)
    expected = {
        "run": {"parts", "cluster", "timeline", "busy", "layers", "loads", "cache-steps"},
        "served": {"cdf-ttft", "cdf-tpot", "cdf-e2e", "queue-time", "kv-time", "cluster"},
    }
    assert expected[name] <= set(names)
    page.wait_for_timeout(200)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for chart in names:
        plot = page.locator(f"#{chart} .nsewdrag").first.bounding_box()
        assert plot is not None
        assert plot["width"] > (0.2 if width == WIDE else 0.55) * width, chart
        assert plot["height"] > 50, chart
        if chart != "cluster":
            assert plot["x"] + plot["width"] <= width, chart
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [WIDE, PHONE])
def test_titles_of_axes_are_clear_of_their_numbers(opened: Open, width: int) -> None:
    for name in ("run", "served"):
        page = opened(name, width)
        for chart in draw_all(page):
            assert not titles_cover_numbers(page, chart), chart


@pytest.mark.parametrize("width", [WIDE, PHONE])
def test_pointing_at_a_span_tells_it(opened: Open, width: int) -> None:
    page = opened("run", width)
    x, y = timeline_point(page, "demand fetch")
    if width == PHONE:
        page.touchscreen.tap(x, y)
    else:
        page.mouse.move(x, y)
    page.wait_for_selector(".tip:not([hidden])")
    text = page.locator(".tip").text_content()
    assert "copy: demand fetch" in text
    assert "from host memory" in text
    assert " ms, from " in text


def test_pointing_at_a_chart_and_at_a_link_tells_the_value(opened: Open) -> None:
    page = opened("run")
    to(page, "cache-steps")
    assert "accesses" in pointed(page, "cache-steps", 0.1, 0.95)
    to(page, "cluster")
    x, y = page.evaluate(
        """() => {
      const place = document.getElementById("cluster");
      const trace = place.data.find((t) => t.meta.role === "gpu" && t.hovertext);
      const box = place.querySelector(".nsewdrag").getBoundingClientRect();
      const [x, y] = [place.layout.xaxis.range, place.layout.yaxis.range];
      return [box.x + box.width * (trace.x[3] - x[0]) / (x[1] - x[0]),
              box.y + box.height * (y[1] - trace.y[3]) / (y[1] - y[0])];
    }"""
    )
    page.mouse.move(x, y)
    page.wait_for_selector("#cluster .hoverlayer .hovertext")
    text = page.locator("#cluster .hoverlayer").text_content()
    assert "gpu3" in text
    assert "GPU computing:" in text


def test_dragging_zooms_the_timeline_and_a_double_click_goes_back(opened: Open) -> None:
    page = opened("run")
    box = to(page, "timeline")
    whole, image = page.evaluate(RANGE), page.evaluate(IMAGE)
    y = box["y"] + 0.5 * box["height"]
    page.mouse.move(box["x"] + 0.4 * box["width"], y)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.5 * box["width"], y, steps=5)
    page.mouse.up()
    page.wait_for_function(f"{RANGE}[1] - {RANGE}[0] < {0.2 * whole[1]}")
    low, high = page.evaluate(RANGE)
    assert low == pytest.approx(0.4 * whole[1], rel=0.05)
    assert high == pytest.approx(0.5 * whole[1], rel=0.05)
    page.wait_for_function(f"{IMAGE} !== {image!r}")
    # A change of theme keeps what is zoomed to.
    page.get_by_role("button", name="dark").click()
    page.wait_for_timeout(300)
    assert page.evaluate(RANGE) == pytest.approx([low, high])
    box = to(page, "timeline")
    page.mouse.dblclick(box["x"] + 0.45 * box["width"], box["y"] + 0.5 * box["height"])
    page.wait_for_function(f"{RANGE}[1] === {whole[1]}")


def test_a_phone_zooms_with_buttons_and_a_tap_moves_nothing(opened: Open) -> None:
    page = opened("run", PHONE)
    box = to(page, "timeline")
    whole = page.evaluate(RANGE)
    page.locator("#timeline .modebar-btn[data-title='Zoom in']").tap()
    page.wait_for_function(f"{RANGE}[1] - {RANGE}[0] < {0.6 * whole[1]}")
    zoomed = page.evaluate(RANGE)
    page.touchscreen.tap(box["x"] + 50, box["y"] + 50)
    page.wait_for_timeout(500)
    assert page.evaluate(RANGE) == zoomed


def test_the_legend_hides_a_kind(opened: Open) -> None:
    page = opened("run")
    x, y = timeline_point(page, "demand fetch")
    before = page.evaluate(IMAGE)
    entry = page.locator("#timeline .legend .traces", has_text="demand fetch")
    entry.locator(".legendtoggle").click()
    page.wait_for_function(f"{IMAGE} !== {before!r}")
    page.mouse.move(x, y)
    page.wait_for_timeout(200)
    assert page.locator(".tip:not([hidden])", has_text="demand fetch").count() == 0
    # Charts of plotly's own hide theirs too.
    to(page, "layers")
    drawn = page.locator("#layers .barlayer .trace").count()
    page.locator("#layers .legend .traces", has_text="experts").locator(".legendtoggle").click()
    page.wait_for_function(
        f"document.querySelectorAll('#layers .barlayer .trace').length < {drawn}"
    )


def test_the_theme_is_the_systems_or_the_one_chosen(opened: Open) -> None:
    page = opened("run")
    to(page, "layers")
    body = "getComputedStyle(document.body).backgroundColor"
    plot = "getComputedStyle(document.querySelector('#layers .main-svg')).backgroundColor"
    light = page.evaluate(body)
    assert page.evaluate(plot) == light
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"{plot} !== {light!r}")
    dark = page.evaluate(body)
    assert dark != light
    page.get_by_role("button", name="light").click()
    page.wait_for_function(f"{plot} === {light!r}")
    assert page.evaluate(body) == light
    page.get_by_role("button", name="dark").click()
    page.wait_for_function(f"{plot} === {dark!r}")
    page.emulate_media(color_scheme="light")
    assert page.evaluate(body) == dark
    page.get_by_role("button", name="auto").click()
    page.wait_for_function(f"{plot} === {light!r}")


def test_the_command_is_copied(opened: Open) -> None:
    page = opened("run")
    page.locator("[data-copy=command]").click()
    page.wait_for_selector("[data-copy=command]:text('copied')")
    assert "--set prefetch=learned" in page.locator("#command").text_content()


def test_names_of_the_user_run_nothing(opened: Open) -> None:
    page = opened("hostile")
    assert page.locator("h1").inner_text() == f"{HOSTILE} on {HOSTILE}"
    draw_all(page)
    assert page.locator("main img").count() == 0
    to(page, "cluster")
    assert HOSTILE in shlex.split(page.locator("#command").text_content())
