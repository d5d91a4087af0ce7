"""Prometheus metrics of the service: one table of metrics, counters that requests increment, gauges read on demand.

`docs/http.md` shows the table. Knows nothing of requests.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from nearcast.serve.lookup_data import Answer, LookupState
from nearcast.service.fallback import NONE, SOURCES, TABLE

__all__ = ["METRICS", "MetricInfo", "Metrics", "disable_created_metrics", "new_metrics"]

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
        MetricInfo("nearcast_ready", "gauge", (), "1 if the service is ready, as /readyz reports it"),
    )
}

States = Callable[[], Mapping[str, LookupState]]


@dataclass(frozen=True, slots=True)
class _GeneratorCounters:
    """The counters of one generator. The labels are resolved once."""

    keys: Any
    misses: Any
    empty: Any
    removed: Any
    searches: Any
    store_errors: Any
    overloads: Any
    update_failures: Any
    fallbacks: Mapping[str, Any]
    returned: dict[int, int]  # answers by number of candidates; summed up when the metrics are read


class Metrics:
    """The metrics of one service, in their own registry. Made by `new_metrics`."""

    def __init__(self, registry: Any, families: Mapping[str, Any], generators: Iterable[str], text: Any) -> None:
        self._registry = registry
        self._text = text
        self._requests, self._seconds = families["nearcast_requests_total"], families["nearcast_request_seconds"]
        self._request_counters: dict[tuple[str, int], tuple[Any, Any]] = {}
        self._update_failures = families[UPDATE_FAILURES]
        self._ineligible = families[INELIGIBLE]
        self._counters = {name: _resolve_counters(families, name) for name in generators}
        self._ads: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Count a request, and observe its duration."""
        counters = self._request_counters.get((route, status))
        if counters is None:
            counters = self._requests.labels(route, str(status)), self._seconds.labels(route)
            self._request_counters[route, status] = counters
        counters[0].inc()
        counters[1].observe(seconds)

    def count_answers(self, generator: str, answers: Iterable[Answer]) -> None:
        """Count the answers of a look-up: keys, misses, fallbacks, removed and ineligible candidates."""
        counters = self._counters[generator]
        keys = misses = empty = removed = 0
        for answer in answers:
            keys += 1
            misses += not answer.found
            removed += answer.removed
            counters.returned[len(answer.ids)] += 1
            for rule, count in answer.barred.items():
                self._ineligible.labels(generator, rule).inc(count)
            if answer.source == NONE:
                empty += 1
            elif answer.source != TABLE:
                counters.fallbacks[answer.source].inc()
        for counter, amount in (
            (counters.keys, keys),
            (counters.misses, misses),
            (counters.empty, empty),
            (counters.removed, removed),
        ):
            if amount:
                counter.inc(amount)

    def count_ads(self, expansion: str, ads: int) -> None:
        """Count an answer of an expansion table by its number of ads."""
        self._ads[expansion][ads] += 1

    def count_searches(self, generator: str, removed: int, vectors: int) -> None:
        """Count searched vectors, and the candidates that the overlay has removed from their lists."""
        self._counters[generator].searches.inc(vectors)
        self._counters[generator].removed.inc(removed)

    def count_store_error(self, generator: str) -> None:
        """Count a look-up that failed with a store error."""
        self._counters[generator].store_errors.inc()

    def count_overload(self, generator: str) -> None:
        """Count a look-up that was refused because too many were waiting."""
        self._counters[generator].overloads.inc()

    def count_update_failure(self, name: str) -> None:
        """Count that a generator or table stopped following the store, or could not be opened."""
        self._update_failures.labels(name).inc()

    @property
    def lengths(self) -> Mapping[str, Mapping[str, Mapping[int, int]]]:
        """Answers by length: candidates per generator, and ads per expansion table."""
        return {RETURNED: {name: held.returned for name, held in self._counters.items()}, ADS: self._ads}

    def read_counter(self, name: str, generator: str) -> int:
        """Return the value of a counter of a generator since the service started."""
        value = self._registry.get_sample_value(name, {"generator": generator})
        return int(value or 0)

    def format_text(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        text: bytes = self._text(self._registry)
        return text


def new_metrics(
    generators: Iterable[str],
    states: States,
    is_ready: Callable[[], bool],
    list_unopened: Callable[[], Iterable[str]] = tuple,
) -> Metrics:
    """Return metrics that start at zero. The functions are called whenever the metrics are read.

    list_unopened: names of the tables that could not be opened.
    """
    import prometheus_client as prometheus

    registry = prometheus.CollectorRegistry()
    prometheus.ProcessCollector(registry=registry)
    kinds = {"counter": prometheus.Counter, "histogram": prometheus.Histogram}
    families = {
        metric.name: kinds[metric.kind](
            metric.name,
            metric.meaning,
            metric.labels,
            registry=registry,
            **({"buckets": LATENCY_SECONDS} if metric.kind == "histogram" else {}),
        )
        for metric in METRICS.values()
        if metric.kind in kinds and metric.name not in (RETURNED, ADS) and not metric.replaced_by
    }
    metrics = Metrics(registry, families, generators, prometheus.generate_latest)
    registry.register(_Collector(partial(_collect_gauges, prometheus, states, is_ready, list_unopened)))
    registry.register(_Collector(partial(_collect_lengths, prometheus, metrics)))
    registry.register(_Collector(partial(_collect_deprecated_counters, prometheus, families)))
    return metrics


@dataclass(frozen=True, slots=True)
class _Collector:
    """A function as a collector of prometheus_client."""

    collect: Callable[[], Iterator[Any]]


def _collect_gauges(
    prometheus: Any, states: States, is_ready: Callable[[], bool], list_unopened: Callable[[], Iterable[str]]
) -> Iterator[Any]:
    gauge, current = prometheus.metrics_core.GaugeMetricFamily, states()
    for name, read_value in GAUGES.items():
        family = gauge(name, METRICS[name].meaning, labels=METRICS[name].labels)
        for generator, state in current.items():
            family.add_metric([generator], read_value(state))
        if UPDATE_FAILING in (name, METRICS[name].replaced_by):
            for generator in list_unopened():
                family.add_metric([generator], 1.0)
        yield family
    yield gauge("nearcast_ready", METRICS["nearcast_ready"].meaning, value=float(is_ready()))


def _collect_lengths(prometheus: Any, metrics: Metrics) -> Iterator[Any]:
    """Yield histograms of answer lengths. Counting lengths is cheaper than observing a histogram in each request."""
    for name, lengths in metrics.lengths.items():
        family = prometheus.metrics_core.HistogramMetricFamily(name, METRICS[name].meaning, labels=METRICS[name].labels)
        for label, counts in lengths.items():
            family.add_metric([label], _sum_buckets(counts), sum(n * times for n, times in counts.items()))
        yield family


def _collect_deprecated_counters(prometheus: Any, families: Mapping[str, Any]) -> Iterator[Any]:
    """Yield counters under their deprecated names, with the values of the metrics that replace them."""
    for metric in METRICS.values():
        if metric.replaced_by in families:
            copy = prometheus.metrics_core.CounterMetricFamily(metric.name, metric.meaning, labels=metric.labels)
            for family in families[metric.replaced_by].collect():
                for sample in family.samples:
                    if sample.name == metric.replaced_by:
                        copy.add_metric([sample.labels[label] for label in metric.labels], sample.value)
            yield copy


def disable_created_metrics() -> None:
    """Leave out the `_created` series of this process. They double the text and have no use."""
    import prometheus_client as prometheus

    prometheus.disable_created_metrics()  # type: ignore[no-untyped-call]


def _is_update_failing(state: LookupState) -> float:
    return float(state.error is not None)


def _read_patch_age(state: LookupState) -> float:
    return math.nan if state.patch_age_seconds is None else state.patch_age_seconds


GAUGES: dict[str, Callable[[LookupState], float]] = {
    "nearcast_snapshot_version": lambda state: state.version,
    "nearcast_snapshot_age_seconds": lambda state: state.age_seconds,
    "nearcast_refreshed_seconds": lambda state: state.refreshed_seconds,
    "nearcast_overlay_entries": lambda state: state.overlay,
    "nearcast_patch_number": lambda state: state.patch,
    "nearcast_patch_age_seconds": lambda state: (
        math.nan if state.patch_age_seconds is None else state.patch_age_seconds
    ),
    UPDATE_FAILING: _is_update_failing,
    "nearcast_not_following": _is_update_failing,
}


def _resolve_counters(families: Mapping[str, Any], generator: str) -> _GeneratorCounters:
    def counter(name: str) -> Any:
        return families[f"nearcast_{name}_total"].labels(generator)

    fallbacks = [source for source in SOURCES if source not in (TABLE, NONE)]
    return _GeneratorCounters(
        keys=counter("keys"),
        misses=counter("misses"),
        empty=counter("empty_answers"),
        removed=counter("removed_candidates"),
        searches=counter("searches"),
        store_errors=counter("store_errors"),
        overloads=counter("overloads"),
        update_failures=counter("update_failures"),
        returned=defaultdict(int),
        fallbacks={source: families["nearcast_fallbacks_total"].labels(generator, source) for source in fallbacks},
    )


def _sum_buckets(counts: Mapping[int, int]) -> list[tuple[str, float]]:
    """Return the upper bounds of LENGTHS, each with the number of answers up to it."""
    bounds = [*((str(float(bound)), bound) for bound in LENGTHS), ("+Inf", float("inf"))]
    return [(text, sum(times for n, times in counts.items() if n <= bound)) for text, bound in bounds]
