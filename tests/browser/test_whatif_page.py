"""The page of a what-if study in a real browser: no errors, both themes, two widths, no script of
the user's run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser.test_routing_page import absent, chromium
from studies.whatif_helpers import BASE, found_of, study_of

from simulator.studies.whatif.report import as_html

if TYPE_CHECKING:
    from playwright.sync_api import Browser

HOSTILE = "<img src=x onerror=document.title=`caught`>&'\\\""
TEXT = (
    BASE
    + f"""\
axes:
  - {{name: tokens, key: traffic.tokens_per_gpu, values: [1, 2, 4]}}
  - name: "{HOSTILE}"
    values:
      - {{label: "{HOSTILE}", set: {{traffic.context: 8}}}}
      - {{label: b, set: {{traffic.context: 16}}}}
      - {{label: c, set: {{traffic.context: 32}}}}
objectives:
  - {{metric: step_time, direction: minimize}}
  - {{metric: tokens_per_s, direction: maximize}}
constraints: [step_time < 50 ms]
"""
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    reason = absent()
    if reason is not None:
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--enable-unsafe-swiftshader"]
        started = playwright.chromium.launch(executable_path=chromium(), args=options)
        yield started
        started.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    found = found_of(
        study_of(folder, TEXT),
        lambda c: (
            None
            if c == (2, 2)
            else {
                "step_time_s.mean": 0.01 * (1 + c[0]) * (1 + c[1]),
                "throughput_tokens_per_s": 100.0 * (1 + c[0]),
            }
        ),
    )
    path = folder / "report.html"
    path.write_text(as_html(found, f"whatif {HOSTILE}"), encoding="utf-8")
    return path


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_opens_without_errors(
    browser: Browser, page_file: Path, width: int, theme: str
) -> None:
    """Three pictures and the table, no wider than the screen; pointing at a point names it."""
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=theme)
    page = context.new_page()
    told: list[str] = []
    page.on("console", lambda line: told.append(line.text) if line.type == "error" else None)
    page.on("pageerror", lambda error: told.append(str(error)))
    page.goto(page_file.as_uri())
    page.wait_for_selector("body[data-ready]")
    assert page.locator(".js-plotly-plot").count() == 3
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("table tr").count() == 10
    assert page.title() == "small"
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert dark == ("rgb(13, 17, 23)" if theme == "dark" else "rgb(255, 255, 255)")
    legend = page.locator("#picture0 .legendtext").all_text_contents()
    assert legend == ["Pareto front", "beaten", "misses a constraint"]
    point = page.locator("#picture0 .scatterlayer .trace").first.locator("path.point").first
    point.hover(force=True)
    page.wait_for_selector("#picture0 .hovertext")
    assert "tokens 1" in page.locator("#picture0 .hovertext").first.text_content()
    page.emulate_media(color_scheme="light" if theme == "dark" else "dark")
    page.wait_for_timeout(300)
    assert told == []
    assert page.title() == "small"
    context.close()
