"""What some tests need beside Python: a browser, another simulator. `make test` installs it."""

from __future__ import annotations

import os

import pytest


def needed(absent: str | None) -> None:
    """Skip if something is absent, saying what (None: nothing is); in CI that is a failure."""
    if absent is None:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"in CI nothing may be left out: {absent}")
    pytest.skip(absent)
