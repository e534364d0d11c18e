"""The page of a comparison in a real browser: no errors, both themes, two widths, a legend."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from results.runs import HOSTILE, hostile_result, write_result, write_tables

from simulator.cli import main

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PHONE, WIDE = 390, 1400
READY = "body[data-ready]"


def absent() -> str | None:
    """Why no browser can be started here, or None."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "playwright is not installed (pip install -e '.[test]')"
    if chromium() is None:
        return "there is no Chromium (apt-get install chromium)"
    return None


def chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    reason = absent()
    if reason is not None and os.environ.get("CI") == "true":
        pytest.fail(reason)
    if reason is not None:
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Its sandbox cannot start for root or in most containers; it opens only our own files.
        started = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield started
        started.close()


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


@pytest.fixture
def opened(browser: Browser, pages: Path) -> Iterator[Any]:
    """Opens a page; fails at the end if it had an error or asked for anything outside."""
    contexts = []
    faults: list[str] = []

    def open_(name: str, width: int = WIDE, theme: str = "light") -> Page:
        phone = width == PHONE
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if theme == "dark" else "light",
            has_touch=phone,
            is_mobile=phone,
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: faults.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: (faults.append(dialog.message), dialog.dismiss()))
        page.on(
            "request",
            lambda r: None if r.url.startswith(("file:", "data:")) else faults.append(r.url),
        )
        page.goto((pages / f"{name}.html").as_uri())
        page.wait_for_selector(READY)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert faults == []


def draw_all(page: Page) -> list[str]:
    """Draw every chart, also those that are not in sight; their names."""
    names: list[str] = page.evaluate("Promise.all(names.map(show)).then(() => names)")
    return names


@pytest.mark.parametrize("width", [WIDE, PHONE])
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", ["runs", "traces", "serving", "mixed"])
def test_it_opens_and_fits(opened: Any, name: str, width: int, theme: str) -> None:
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


def test_pointing_tells_and_the_legend_hides(opened: Any) -> None:
    page = opened("runs")
    draw_all(page)
    plot = page.locator("#parts .nsewdrag").first
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.25 * box["height"])
    page.wait_for_selector("#parts .hoverlayer .hovertext")
    assert " ms" in page.locator("#parts .hoverlayer").text_content()
    drawn = page.locator("#parts .barlayer .trace").count()
    entry = page.locator("#parts .legend .traces", has_text="fetch stall")
    entry.locator(".legendtoggle").click()
    page.wait_for_function(f"document.querySelectorAll('#parts .barlayer .trace').length < {drawn}")
    body = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(body)
    page.get_by_role("button", name="dark").click()
    page.wait_for_function(f"{body} !== {light!r}")


def test_names_of_the_user_run_nothing(opened: Any) -> None:
    page = opened("hostile")
    draw_all(page)
    assert HOSTILE in page.locator("h1").inner_text()
    assert page.locator("main img").count() == 0
