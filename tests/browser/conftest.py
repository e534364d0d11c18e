"""One browser for a module's tests, and pages opened in it that must be without fault.

Chromium is the system's. In CI its absence is a failure: `make test` installs it there.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser.pages import PATIENCE_MS, PHONE, WIDE, Open
from needed import needed

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="module")
def options() -> list[str]:
    """What Chromium is started with; a module may say more."""
    # Its sandbox cannot start for root or in most containers; it opens only our own files.
    return ["--no-sandbox"]


@pytest.fixture(scope="module")
def browser(options: list[str]) -> Iterator[Browser]:
    if importlib.util.find_spec("playwright") is None:
        needed("playwright is not installed (pip install -e '.[test]')")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        needed("there is no Chromium (apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    # Not for the whole session: playwright runs an event loop in this thread as long as it is open.
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=options)
        yield started
        started.close()


@pytest.fixture(scope="module")
def ready() -> str:
    """The selector of what is there once a page is drawn; a module may have its own."""
    return "body[data-ready]"


@pytest.fixture
def opened(browser: Browser, pages: Path, ready: str) -> Iterator[Open]:
    """Opens a page of the folder `pages`, a fixture of the module, and waits until it is drawn.

    Fails at the end if a page had an error, opened a dialog or asked for anything outside.
    """
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
        context.set_default_timeout(PATIENCE_MS)
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
        page.wait_for_selector(ready)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert faults == []
