"""The page of `routing-stats` in a real browser: no errors, both themes, two widths, pointing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from browser.pages import PHONE, WIDE, Open, pointed, titles_cover_numbers

from simulator.cli import main

# A file that a user may have: its name is shown as it is, and runs nothing.
HOSTILE = "<img src=x onerror=alert(1)>&'\".json"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    loads = {"logical_count": [[3, 1, 0, 0], [1, 1, 1, 1]]}
    (folder / HOSTILE).write_text(json.dumps(loads))
    for name, trace in (("shipped", "moe128-python"), ("hostile", str(folder / HOSTILE))):
        assert main(["routing-stats", trace, "--html", str(folder / f"{name}.html")]) == 0
    return folder


@pytest.mark.parametrize("width", [WIDE, PHONE])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_opens_and_fits(opened: Open, width: int, theme: str) -> None:
    page = opened("shipped", width, theme)
    for name in ("loads", "skew", "information", "overlap", "hits"):
        plot = page.locator(f"#{name} .nsewdrag").bounding_box()
        assert plot is not None
        assert plot["x"] + plot["width"] <= width
        assert plot["width"] > 0.35 * width
        assert plot["height"] > 60
    page.evaluate("document.querySelector('details').open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    titles = ".xtitle, .ytitle, .annotation-text"
    for name in ("loads", "skew", "information", "overlap", "hits"):
        assert not titles_cover_numbers(page, name, titles), name


def test_pointing_tells_the_value(opened: Open) -> None:
    page = opened("hostile")
    # Four experts across, layer 0 above layer 1: expert 0 of layer 0 has 3 of 4 choices.
    text = pointed(page, "loads", 0.1, 0.2)
    assert "layer 0, expert 0" in text
    assert "3 x the mean" in text
    text = pointed(page, "loads", 0.9, 0.8)
    assert "layer 1, expert 3" in text
    assert "1 x the mean" in text


def test_the_theme_can_change_while_it_is_open(opened: Open) -> None:
    page = opened("shipped")
    fill = "getComputedStyle(document.querySelector('#skew .bg, #skew .main-svg')).background"
    light = page.evaluate(fill)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"{fill} !== {light!r}")


def test_names_of_the_user_run_nothing(opened: Open) -> None:
    page = opened("hostile")
    assert page.locator("h1").inner_text() == HOSTILE
    assert page.locator("img").count() == 0
