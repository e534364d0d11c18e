"""The page of `routing-stats` in a real browser: no errors, both themes, two widths, pointing.

Chromium is the system's. In CI its absence is a failure: `make test` installs it there.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from simulator.cli import main

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PHONE, WIDE = 390, 1280
READY = "body[data-ready]"
# A file that a user may have: its name is shown as it is, and runs nothing.
HOSTILE = "<img src=x onerror=alert(1)>&'\".json"


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
    folder = tmp_path_factory.mktemp("pages")
    loads = {"logical_count": [[3, 1, 0, 0], [1, 1, 1, 1]]}
    (folder / HOSTILE).write_text(json.dumps(loads))
    for name, trace in (("shipped", "moe128-python"), ("hostile", str(folder / HOSTILE))):
        assert main(["routing-stats", trace, "--html", str(folder / f"{name}.html")]) == 0
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


def pointed(page: Page, name: str, x: float, y: float) -> str:
    """What picture `name` tells when the pointer is at these shares of its width and height."""
    area = page.locator(f"#{name} .nsewdrag")
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
    page.wait_for_selector(f"#{name} .hoverlayer .hovertext")
    return str(page.locator(f"#{name} .hoverlayer").text_content())


@pytest.mark.parametrize("width", [WIDE, PHONE])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_opens_and_fits(opened: Any, width: int, theme: str) -> None:
    page = opened("shipped", width, theme)
    for name in ("loads", "skew", "information", "overlap", "hits"):
        plot = page.locator(f"#{name} .nsewdrag").bounding_box()
        assert plot is not None
        assert plot["x"] + plot["width"] <= width
        assert plot["width"] > 0.35 * width
        assert plot["height"] > 60
    page.evaluate("document.querySelector('details').open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # The titles of axes stand clear of their numbers.
    script = """(name) => {
      const boxes = (found) => [...found].map((drawn) => drawn.getBoundingClientRect());
      const picture = document.getElementById(name);
      const titles = boxes(picture.querySelectorAll(".xtitle, .ytitle, .annotation-text"));
      const ticks = boxes(picture.querySelectorAll(".xtick text, .ytick text"));
      return titles.some((a) => ticks.some((b) => a.left < b.right && b.left < a.right
        && a.top < b.bottom && b.top < a.bottom));
    }"""
    for name in ("loads", "skew", "information", "overlap", "hits"):
        assert page.evaluate(script, name) is False, name


def test_pointing_tells_the_value(opened: Any) -> None:
    page = opened("hostile")
    # Four experts across, layer 0 above layer 1: expert 0 of layer 0 has 3 of 4 choices.
    assert "layer 0, expert 0" in pointed(page, "loads", 0.1, 0.2)
    assert "3 x the mean" in pointed(page, "loads", 0.1, 0.2)
    text = pointed(page, "loads", 0.9, 0.8)
    assert "layer 1, expert 3" in text
    assert "1 x the mean" in text


def test_the_theme_can_change_while_it_is_open(opened: Any) -> None:
    page = opened("shipped")
    fill = "getComputedStyle(document.querySelector('#skew .bg, #skew .main-svg')).background"
    light = page.evaluate(fill)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"{fill} !== {light!r}")


def test_names_of_the_user_run_nothing(opened: Any) -> None:
    page = opened("hostile")
    assert page.locator("h1").inner_text() == HOSTILE
    assert page.locator("img").count() == 0
