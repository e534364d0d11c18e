"""The page of a what-if study in a real browser: no errors, both themes, two widths, no script of
the user's run.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from browser.pages import PHONE, WIDE, Open
from studies.whatif_helpers import BASE, found_of, study_of

from simulator.studies.whatif.report import as_html

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
def options(options: list[str]) -> list[str]:
    """One of the pictures is drawn with WebGL, for which there may be no GPU."""
    return [*options, "--enable-unsafe-swiftshader"]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
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
    text = as_html(found, f"whatif {HOSTILE}")
    (folder / "study.html").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("width", [WIDE, PHONE])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_opens_without_errors(opened: Open, width: int, theme: str) -> None:
    """Three pictures and the table, no wider than the screen; pointing at a point names it."""
    page = opened("study", width, theme)
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
    assert page.title() == "small"
