"""Settings that all tests share. Plain helpers are in `builders.py`, the independent truth in `reference.py`."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from servers import proxy, redis_server, redis_url

__all__ = ["proxy", "redis_server", "redis_url"]  # fixtures

HERE = Path(__file__).resolve().parent

# Derandomized: a test that passes here passes everywhere, and no example database is left behind.
settings.register_profile(
    "nearcast", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("nearcast")


@pytest.fixture
def repository() -> Path:
    """The root of the repository."""
    return HERE.parent
