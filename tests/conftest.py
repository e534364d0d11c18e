"""What every test shares: hypothesis draws the same examples on every run, without a deadline."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

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
