"""What the tests of several pages do with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from playwright.sync_api import Page

PHONE, WIDE = 390, 1280
# How long anything is waited for: a slow machine is not a failure.
PATIENCE_MS = 120_000


class Open(Protocol):
    """Opens a page by its name; themes are light and dark."""

    def __call__(self, name: str, width: int = WIDE, theme: str = "light") -> Page: ...


def draw_all(page: Page) -> list[str]:
    """Draw every chart, also those that are not in sight; their names."""
    names: list[str] = page.evaluate("Promise.all(names.map(show)).then(() => names)")
    return names


def titles_cover_numbers(page: Page, name: str, titles: str = ".xtitle, .ytitle") -> bool:
    """Whether a title of picture `name` (a selector of these) lies over an axis's numbers."""
    script = """([name, selector]) => {
      const boxes = (found) => [...found].map((drawn) => drawn.getBoundingClientRect());
      const picture = document.getElementById(name);
      const titles = boxes(picture.querySelectorAll(selector));
      const ticks = boxes(picture.querySelectorAll(".xtick text, .ytick text"));
      return titles.some((a) => ticks.some((b) => a.left < b.right && b.left < a.right
        && a.top < b.bottom && b.top < a.bottom));
    }"""
    return bool(page.evaluate(script, [name, titles]))


def pointed(page: Page, name: str, x: float, y: float) -> str:
    """What picture `name` tells when the pointer is at these shares of its width and height.

    plotly looks at the pointer once in 50 ms and tells what it was at until then: the pointer
    leaves the picture first, so that what is told is of this place and no other.
    """
    label = page.locator(f"#{name} .hoverlayer .hovertext").first
    page.mouse.move(0, 0)
    label.wait_for(state="detached")
    area = page.locator(f"#{name} .nsewdrag").first
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    assert box is not None
    # Waits until the picture stands still.
    area.hover(position={"x": x * box["width"], "y": y * box["height"]})
    label.wait_for()
    return str(page.locator(f"#{name} .hoverlayer").text_content())
