"""The table of the service's metrics: names, kinds, labels and meanings, and how gauges are read and combined.

`docs/http.md` shows the table. Knows nothing of requests or of the library that formats metrics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from nearcast.serve.lookup_data import LookupState

__all__ = [
    "ADS",
    "COMBINED_GAUGES",
    "GAUGES",
    "INELIGIBLE",
    "LATENCY_SECONDS",
    "LENGTHS",
    "METRICS",
    "RETURNED",
    "UPDATE_FAILING",
    "UPDATE_FAILURES",
    "MetricInfo",
]

LATENCY_SECONDS = (
    *(0.0001, 0.0002, 0.0003, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075),
    *(0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
)
LENGTHS = (0, 1, 2, 3, 5, 10, 15, 20, 30, 50, 75, 100, 150, 200, 500, 1000)  # candidates or ads of an answer
UPDATE_FAILING, UPDATE_FAILURES = "nearcast_update_failing", "nearcast_update_failures_total"
INELIGIBLE = "nearcast_ineligible_candidates_total"
RETURNED, ADS = "nearcast_returned_candidates", "nearcast_returned_ads"


@dataclass(frozen=True, slots=True)
class MetricInfo:
    """A row of the table of metrics."""

    name: str
    kind: str  # counter, histogram, gauge
    labels: tuple[str, ...]
    meaning: str
    replaced_by: str = ""  # the metric that this deprecated name repeats


def _deprecate(name: str, kind: str, labels: tuple[str, ...], new: str) -> MetricInfo:
    return MetricInfo(name, kind, labels, f"deprecated: use {new}", new)


BY_GENERATOR = ("generator",)
BY_RULE = (*BY_GENERATOR, "rule")
BY_SOURCE = (*BY_GENERATOR, "source")
BY_ARM = (*BY_GENERATOR, "arm")
METRICS = {
    metric.name: metric
    for metric in (
        MetricInfo("nearcast_requests_total", "counter", ("route", "status"), "requests answered"),
        MetricInfo(
            "nearcast_request_seconds",
            "histogram",
            ("route",),
            "time from the head of a request to the end of its answer",
        ),
        MetricInfo("nearcast_keys_total", "counter", BY_GENERATOR, "keys looked up"),
        MetricInfo("nearcast_misses_total", "counter", BY_GENERATOR, "keys that the table does not have"),
        MetricInfo("nearcast_fallbacks_total", "counter", BY_SOURCE, "answers from a fallback, by source"),
        MetricInfo("nearcast_empty_answers_total", "counter", BY_GENERATOR, "answers without a candidate"),
        MetricInfo("nearcast_removed_candidates_total", "counter", BY_GENERATOR, "candidates removed by the overlay"),
        MetricInfo(INELIGIBLE, "counter", BY_RULE, "candidates filtered out by a rule"),
        _deprecate("nearcast_barred_candidates_total", "counter", BY_RULE, INELIGIBLE),
        MetricInfo(RETURNED, "histogram", BY_GENERATOR, "candidates per answer"),
        MetricInfo(ADS, "histogram", ("expansion",), "ads per answer"),
        MetricInfo("nearcast_searches_total", "counter", BY_GENERATOR, "vectors searched by search requests"),
        MetricInfo("nearcast_store_errors_total", "counter", BY_GENERATOR, "look-ups that failed with a store error"),
        MetricInfo(
            "nearcast_overloads_total", "counter", BY_GENERATOR, "look-ups refused because too many were waiting"
        ),
        MetricInfo("nearcast_snapshot_version", "gauge", BY_GENERATOR, "version of the snapshot that is served"),
        MetricInfo("nearcast_snapshot_age_seconds", "gauge", BY_GENERATOR, "age of the snapshot that is served"),
        MetricInfo("nearcast_refreshed_seconds", "gauge", BY_GENERATOR, "time since the last poll of the store"),
        MetricInfo("nearcast_overlay_entries", "gauge", BY_GENERATOR, "overlay entries in force"),
        MetricInfo("nearcast_patch_number", "gauge", BY_GENERATOR, "newest patch in force; 0 if there is none"),
        MetricInfo(
            "nearcast_patch_age_seconds", "gauge", BY_GENERATOR, "time since the newest patch in force was made"
        ),
        MetricInfo(
            UPDATE_FAILING, "gauge", BY_GENERATOR, "1 if a newer version or overlay entry in the store is not applied"
        ),
        _deprecate("nearcast_not_following", "gauge", BY_GENERATOR, UPDATE_FAILING),
        MetricInfo(UPDATE_FAILURES, "counter", BY_GENERATOR, "times that updates from the store began to fail"),
        _deprecate("nearcast_refusals_total", "counter", BY_GENERATOR, UPDATE_FAILURES),
        MetricInfo(
            "nearcast_canary_share", "gauge", BY_GENERATOR, "share of the keys of the canary; 0 if none is open"
        ),
        MetricInfo("nearcast_canary_routed_total", "counter", BY_GENERATOR, "look-ups of keys in the canary's share"),
        MetricInfo("nearcast_canary_answers_total", "counter", BY_ARM, "measured look-ups, by arm: current, canary"),
        MetricInfo("nearcast_canary_empty_total", "counter", BY_ARM, "measured look-ups without a candidate"),
        MetricInfo("nearcast_canary_errors_total", "counter", BY_ARM, "measured look-ups that failed"),
        MetricInfo("nearcast_canary_fill_total", "counter", BY_ARM, "sum of length / k over the measured look-ups"),
        MetricInfo("nearcast_canary_seconds", "histogram", BY_ARM, "time of the measured look-ups"),
        MetricInfo("nearcast_canary_compared_total", "counter", BY_GENERATOR, "keys whose two lists were compared"),
        MetricInfo("nearcast_canary_overlap_total", "counter", BY_GENERATOR, "sum of the overlaps of the two lists"),
        MetricInfo("nearcast_ready", "gauge", (), "1 if the service is ready, as /readyz reports it"),
        MetricInfo("nearcast_workers", "gauge", (), "processes that serve"),
        MetricInfo(
            "nearcast_worker_restarts_total", "counter", (), "workers started in place of one that ended unexpectedly"
        ),
    )
}


def _is_update_failing(state: LookupState) -> float:
    return float(state.error is not None)


def _read_patch_age(state: LookupState) -> float:
    return math.nan if state.patch_age_seconds is None else state.patch_age_seconds


Combine = Callable[[Iterable[float]], float]
# gauge: how it is read, and its value over several workers: that of the worker which is the furthest behind
_GAUGES: dict[str, tuple[Callable[[LookupState], float], Combine]] = {
    "nearcast_snapshot_version": (lambda state: state.version, min),
    "nearcast_snapshot_age_seconds": (lambda state: state.age_seconds, max),
    "nearcast_refreshed_seconds": (lambda state: state.refreshed_seconds, max),
    "nearcast_overlay_entries": (lambda state: state.overlay, min),
    "nearcast_patch_number": (lambda state: state.patch, min),
    "nearcast_patch_age_seconds": (_read_patch_age, max),
    "nearcast_canary_share": (lambda state: 0.0 if state.canary is None else state.canary.share, min),
    UPDATE_FAILING: (_is_update_failing, max),
    "nearcast_not_following": (_is_update_failing, max),
}
GAUGES = {name: read for name, (read, _) in _GAUGES.items()}
COMBINED_GAUGES: dict[str, Combine] = {name: combine for name, (_, combine) in _GAUGES.items()}
