"""The picture of a cluster in a browser: no errors, both themes, two widths, pointing, hiding."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser.pages import PHONE, WIDE, Open

from simulator.cli import main

if TYPE_CHECKING:
    from playwright.sync_api import Page

# A topology that a user may write: names are shown as they are, and run nothing.
NAME = "<img src=x onerror=alert(1)>'\""
HOSTILE = f"""
name: "</script><script>alert(2)</script>"
gpu: H100-SXM
build:
  kind: explicit
  nodes:
    - {{name: "{NAME.replace('"', chr(92) + '"')}", kind: gpu}}
    - {{name: b, kind: gpu}}
  links:
    - {{from: "{NAME.replace('"', chr(92) + '"')}", to: b, bandwidth: 1 GB/s, latency: 1 us}}
"""


@pytest.fixture(scope="module")
def ready() -> str:
    return "#picture[data-ready]"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    (folder / "hostile.yaml").write_text(HOSTILE)
    names = ("h100x16-rail", "h100x256-rail", str(folder / "hostile.yaml"))
    for name in names:
        path = folder / f"{Path(name).stem}.html"
        assert main(["show", "topology", name, "--html", str(path)]) == 0
    return folder


def shown(page: Page, role: str) -> int:
    """Markers of a kind on the screen."""
    script = """(role) => [...document.querySelectorAll(".scatterlayer .trace")]
      .filter((drawn) => drawn.__data__[0].trace.meta.role === role)
      .reduce((sum, drawn) => sum + drawn.querySelectorAll(".point").length, 0)"""
    return int(page.evaluate(script, role))


def pointed(page: Page) -> str:
    """What the pointer makes the picture tell."""
    return str(page.locator(".hoverlayer").text_content())


def pixel(page: Page, role: str, index: int) -> tuple[float, float]:
    """Where point `index` of the first trace of a kind is on the screen."""
    script = """([role, index]) => {
      const picture = document.getElementById("picture");
      const trace = picture.data.find((t) => t.meta.role === role && t.hovertext);
      const box = picture.querySelector(".nsewdrag").getBoundingClientRect();
      const [x, y] = [picture.layout.xaxis.range, picture.layout.yaxis.range];
      return [box.x + box.width * (trace.x[index] - x[0]) / (x[1] - x[0]),
              box.y + box.height * (y[1] - trace.y[index]) / (y[1] - y[0])];
    }"""
    x, y = page.evaluate(script, [role, index])
    return x, y


def background(page: Page) -> str:
    return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))


@pytest.mark.parametrize("width", [WIDE, PHONE])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_opens_and_fits(opened: Open, width: int, theme: str) -> None:
    page = opened("h100x16-rail", width, theme)
    assert shown(page, "gpu") == 16
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#picture svg.main-svg").first.is_visible()
    plot = page.locator(".nsewdrag").bounding_box()
    assert plot is not None
    assert plot["width"] > 0.7 * width
    # No marker covers its neighbour.
    sizes = page.evaluate(
        'document.getElementById("picture").data.filter((t) => t.meta.share)'
        ".map((t) => t.marker.size)"
    )
    (first, _), (second, _) = pixel(page, "gpu", 0), pixel(page, "gpu", 1)
    assert 4 <= max(sizes) < second - first


def test_pointing_tells_what_it_is(opened: Open) -> None:
    page = opened("h100x16-rail")
    page.mouse.move(*pixel(page, "gpu", 3))
    page.wait_for_selector(".hoverlayer .hovertext")
    text = pointed(page)
    assert "gpu3" in text
    assert "H100-SXM" in text
    page.mouse.move(*pixel(page, "link nvlink", 1))
    page.wait_for_function("document.querySelector('.hoverlayer').textContent.includes('↔')")
    assert "450 GB/s each way" in pointed(page)


def test_the_legend_hides_a_kind(opened: Open) -> None:
    page = opened("h100x16-rail")
    drawn = page.locator(".scatterlayer .trace").count()
    entry = page.locator(".legend .traces", has_text="PCIe 64.0 GB/s")
    entry.locator(".legendtoggle").click()
    page.wait_for_function(f"document.querySelectorAll('.scatterlayer .trace').length < {drawn}")
    hidden = page.evaluate(
        'document.getElementById("picture").data.filter((t) => t.visible === "legendonly")'
        ".map((t) => t.legendgroup)"
    )
    assert set(hidden) == {"pcie"}
    assert shown(page, "gpu") == 16


def test_wheel_zooms_and_markers_grow(opened: Open) -> None:
    page = opened("h100x256-rail")
    size = 'document.getElementById("picture").data.find((t) => t.meta.role === "gpu").marker.size'
    before = page.evaluate(size)
    page.mouse.move(*pixel(page, "gpu", 3))
    for _ in range(4):
        page.mouse.wheel(0, -300)
        page.wait_for_timeout(100)
    page.wait_for_function(f"{size} > {before}")


def test_the_theme_can_change_while_it_is_open(opened: Open) -> None:
    page = opened("h100x16-rail")
    fill = "getComputedStyle(document.querySelector('.bg')).fill"
    light = background(page), page.evaluate(fill)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"{fill} !== {light[1]!r}")
    assert background(page) != light[0]


def test_names_of_the_user_run_nothing(opened: Open) -> None:
    page = opened("hostile")
    assert page.locator("h1").inner_text() == "</script><script>alert(2)</script>"
    assert page.locator("img").count() == 0
    page.mouse.move(*pixel(page, "gpu", 0))
    page.wait_for_selector(".hoverlayer .hovertext")
    assert NAME in pointed(page)
