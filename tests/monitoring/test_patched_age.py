"""The age of what is served, for the monitor, is that of the newest live update."""

from __future__ import annotations

import pytest

from nearcast.monitoring.served_checks import check_served
from nearcast.monitoring.staleness import Staleness
from nearcast.spec import GeneratorSpec, parse_model

HOUR = 3600.0
SPEC = {"name": "shop", "metric": "l2", "k": 5, "items": {"path": "items.parquet"}, "audit": {"max_age_hours": 48}}


def look(age_hours, patch_hours=None):
    """What a pass has seen of a version that is fine, apart from its age."""
    figures = dict.fromkeys(("recall", "recall_low", "recall_high", "fallbacks", "refresh_seconds"))
    patch = {} if patch_hours is None else {"patch": 12, "patch_age_seconds": patch_hours * HOUR}
    return Staleness(
        snapshot="000007",
        version=7,
        age_seconds=age_hours * HOUR,
        sampled="queries",
        sample=100,
        lookups=0,
        dead=0.0,
        misses=0.0,
        recall_when_made=1.0,
        **figures,
        **patch,
    )


@pytest.mark.parametrize(
    ("seen", "text"),
    [
        (look(47), None),
        (look(72), "snapshot 000007 is 3.0 days old; 2.0 days are allowed"),
        (look(72, patch_hours=1), None),
        (look(96, patch_hours=72), "snapshot 000007 is 4.0 days old, patch 12 3.0 days; 2.0 days are allowed"),
    ],
)
def test_a_version_is_as_old_as_its_newest_patch(seen, text):
    alerts = check_served(seen, parse_model(GeneratorSpec, SPEC, "the spec"), [])
    assert [alert.text for alert in alerts if alert.check == "age"] == ([] if text is None else [text])
