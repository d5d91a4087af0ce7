"""Settings that all tests share. Plain helpers are in `builders.py`, the independent truth in `reference.py`."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from tests.dashboard.browser import chromium

import property_examples as examples
from dynamodb_server import dynamodb_server, dynamodb_url
from nearcast import machine
from object_servers import azurite_endpoint, azurite_url, seaweed_endpoint, seaweed_url
from redis_groups import cluster_url, redis_cluster, sentinel_group, sentinel_url
from s3_server import s3_server, s3_url
from servers import proxy, redis_server, redis_url

__all__ = [  # fixtures
    "azurite_endpoint",
    "azurite_url",
    "cluster_url",
    "dynamodb_server",
    "dynamodb_url",
    "proxy",
    "redis_cluster",
    "redis_server",
    "redis_url",
    "s3_server",
    "s3_url",
    "seaweed_endpoint",
    "seaweed_url",
    "sentinel_group",
    "sentinel_url",
]

HERE = Path(__file__).resolve().parent

# Tests start hundreds of Python processes. Compiling nearcast takes longer than what most of them do, so it is kept.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Derandomized: a test that passes here passes everywhere, and no example database is left behind.
settings.register_profile(
    "nearcast", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("nearcast")


FRESH_BYTES = 300_000_000  # of a process with our libraries, before it has done anything


@pytest.fixture(autouse=True, scope="session")
def _as_in_a_fresh_process() -> Iterator[None]:
    """A worker holds what a thousand tests have left in it; memory budgets are judged as in a process of their own.

    Of the session, so that what a module's tests share is made under it too.
    """
    held = machine.resident_memory
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(machine, "resident_memory", lambda: min(held(), FRESH_BYTES))
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Try properties on fewer examples in the quick suite; `make test-slow` tries all."""
    if not examples.ALL:
        examples.limit_examples(items, examples.QUICK)


def pytest_collection_finish() -> None:
    """Leave modules and collected tests out of every later garbage collection: half a million objects that stay."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip slow tests, and those of clusters, once NEARCAST_SLOW_UNTIL, in seconds since the epoch, has come."""
    until = os.environ.get("NEARCAST_SLOW_UNTIL")
    takes_long = examples.ALL or any(item.get_closest_marker(name) for name in ("slow", "cluster"))
    if until is not None and takes_long and time.time() > float(until):
        pytest.skip("the time for slow tests was up (make test-all and make test-cluster run all of them)")


@pytest.fixture
def repository() -> Path:
    """The root of the repository."""
    return HERE.parent


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print one line for each reason why tests were skipped, with the number of tests."""
    reasons = Counter(_skip_reason(report) for report in terminalreporter.stats.get("skipped", []))
    if reasons:
        terminalreporter.section("skipped tests")
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count} skipped: {reason}")


def _skip_reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Return the reason of a skip without pytest's prefix."""
    text = report.longrepr[2] if isinstance(report.longrepr, (tuple, list)) else str(report.longrepr)
    return str(text).removeprefix("Skipped: ")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """One Chromium for all tests of a worker: Playwright takes one at a time."""
    with chromium() as found:
        yield found
