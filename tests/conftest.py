"""What every test shares: hypothesis draws the same examples on every run, without a deadline."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from simulator.routing.laws import LAWS

# A failure must repeat on the next run and on another machine; a slow machine is not a failure.
settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def _kernels_compiled() -> None:
    """Compile every kernel before the first test: a run that compiles says so on stderr."""
    from simulator.api import simulate

    small = ["model.layers=2", "traffic.steps=1", "traffic.warmup_steps=0"]
    for routing in (None, *LAWS):
        simulate("nvswitch16", "moe128", overrides=small, routing=routing)
