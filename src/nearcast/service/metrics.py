"""What the service tells Prometheus: one table of metrics, counters that are bumped, gauges that are read when asked.

`docs/http.md` shows the table. Knows nothing of requests: it is told.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nearcast.serve.lookup_data import Answer, LookupState
from nearcast.service.fallback import NONE, SOURCES, TABLE

__all__ = ["METRICS", "Metric", "Metrics", "leave_out_creation_times", "new_metrics"]

LATENCY_SECONDS = (
    *(0.0001, 0.0002, 0.0003, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075),
    *(0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
)


CANDIDATES = (0, 1, 2, 3, 5, 10, 15, 20, 30, 50, 75, 100, 150, 200, 500, 1000)
NOT_FOLLOWING = "nearcast_not_following"
RETURNED, ADS = "nearcast_returned_candidates", "nearcast_returned_ads"


@dataclass(frozen=True, slots=True)
class Metric:
    """A row of the table."""

    name: str
    kind: str  # counter, histogram, gauge
    labels: tuple[str, ...]
    meaning: str


OF_GENERATOR = ("generator",)
METRICS = {
    metric.name: metric
    for metric in (
        Metric("nearcast_requests_total", "counter", ("route", "status"), "requests answered"),
        Metric("nearcast_request_seconds", "histogram", ("route",), "from a request's head to the end of its answer"),
        Metric("nearcast_keys_total", "counter", OF_GENERATOR, "keys looked up"),
        Metric("nearcast_misses_total", "counter", OF_GENERATOR, "keys that the table does not have"),
        Metric("nearcast_fallbacks_total", "counter", (*OF_GENERATOR, "source"), "answers that something stood in for"),
        Metric("nearcast_empty_answers_total", "counter", OF_GENERATOR, "answers without a candidate"),
        Metric("nearcast_removed_candidates_total", "counter", OF_GENERATOR, "candidates that the overlay took out"),
        Metric("nearcast_barred_candidates_total", "counter", (*OF_GENERATOR, "rule"), "candidates that a rule barred"),
        Metric(RETURNED, "histogram", OF_GENERATOR, "candidates of an answer"),
        Metric(ADS, "histogram", ("expansion",), "ads of an answer of the two-step call"),
        Metric("nearcast_searches_total", "counter", OF_GENERATOR, "vectors searched for by request"),
        Metric("nearcast_store_errors_total", "counter", OF_GENERATOR, "look-ups that the store failed"),
        Metric("nearcast_overloads_total", "counter", OF_GENERATOR, "look-ups refused, since too many were waiting"),
        Metric("nearcast_snapshot_version", "gauge", OF_GENERATOR, "the snapshot that answers"),
        Metric("nearcast_snapshot_age_seconds", "gauge", OF_GENERATOR, "since it was made"),
        Metric("nearcast_refreshed_seconds", "gauge", OF_GENERATOR, "since the store was last asked for news"),
        Metric("nearcast_overlay_entries", "gauge", OF_GENERATOR, "entries of the overlay in force"),
        Metric(NOT_FOLLOWING, "gauge", OF_GENERATOR, "1 where what is newer in the store is not followed, or opened"),
        Metric("nearcast_refusals_total", "counter", OF_GENERATOR, "times that following what is newer began to fail"),
        Metric("nearcast_ready", "gauge", (), "1 where /readyz says so"),
    )
}

States = Callable[[], Mapping[str, LookupState]]


@dataclass(frozen=True, slots=True)
class _OfGenerator:
    """The counters of one generator, looked up once."""

    keys: Any
    misses: Any
    empty: Any
    removed: Any
    searches: Any
    store_errors: Any
    overloads: Any
    refusals: Any
    fallbacks: Mapping[str, Any]
    returned: dict[int, int]  # answers by how many candidates they had; summed up when the metrics are read


class Metrics:
    """The metrics of one service, in a registry of their own. Made by `new_metrics`."""

    def __init__(self, registry: Any, families: Mapping[str, Any], generators: Iterable[str], text: Any) -> None:
        self._registry = registry
        self._text = text
        self._requests, self._seconds = families["nearcast_requests_total"], families["nearcast_request_seconds"]
        self._children: dict[tuple[str, int], tuple[Any, Any]] = {}
        self._refusals = families["nearcast_refusals_total"]
        self._barred = families["nearcast_barred_candidates_total"]
        self._of = {name: _children(families, name) for name in generators}
        self._ads: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))

    def request(self, route: str, status: int, seconds: float) -> None:
        """A request was answered."""
        known = self._children.get((route, status))
        if known is None:
            known = self._requests.labels(route, str(status)), self._seconds.labels(route)
            self._children[route, status] = known
        known[0].inc()
        known[1].observe(seconds)

    def answered(self, generator: str, answers: Iterable[Answer]) -> None:
        """Keys were answered."""
        of = self._of[generator]
        keys = misses = empty = removed = 0
        for answer in answers:
            keys += 1
            misses += not answer.found
            removed += answer.removed
            of.returned[len(answer.ids)] += 1
            for rule, count in answer.barred.items():
                self._barred.labels(generator, rule).inc(count)
            if answer.source == NONE:
                empty += 1
            elif answer.source != TABLE:
                of.fallbacks[answer.source].inc()
        for counter, by in ((of.keys, keys), (of.misses, misses), (of.empty, empty), (of.removed, removed)):
            if by:
                counter.inc(by)

    def promoted(self, expansion: str, ads: int) -> None:
        """An expansion table was asked, and had so many ads."""
        self._ads[expansion][ads] += 1

    def searched(self, generator: str, removed: int, vectors: int) -> None:
        """Vectors were searched for."""
        self._of[generator].searches.inc(vectors)
        self._of[generator].removed.inc(removed)

    def store_failed(self, generator: str) -> None:
        """The store failed a look-up."""
        self._of[generator].store_errors.inc()

    def overloaded(self, generator: str) -> None:
        """A look-up was refused."""
        self._of[generator].overloads.inc()

    def refused(self, name: str) -> None:
        """A version of a generator or table was refused, or the store could not be asked for news."""
        self._refusals.labels(name).inc()

    @property
    def lengths(self) -> Mapping[str, Mapping[str, Mapping[int, int]]]:
        """Answers by how long they were: of each generator its candidates, and of each expansion table its ads."""
        return {RETURNED: {name: of.returned for name, of in self._of.items()}, ADS: self._ads}

    def counted(self, name: str, generator: str) -> int:
        """A counter of a generator, since the service began."""
        value = self._registry.get_sample_value(name, {"generator": generator})
        return int(value or 0)

    def text(self) -> bytes:
        """All of it, in the text format of Prometheus."""
        written: bytes = self._text(self._registry)
        return written


def new_metrics(
    generators: Iterable[str],
    states: States,
    ready: Callable[[], bool],
    faulty: Callable[[], Iterable[str]] = tuple,
) -> Metrics:
    """Metrics at zero. The others are asked whenever the metrics are read; `faulty`: names of what cannot be opened."""
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
        if metric.kind in kinds and metric.name not in (RETURNED, ADS)
    }
    gauge = prometheus.metrics_core.GaugeMetricFamily

    class States:
        """Gauges that are read when they are asked for."""

        def collect(self) -> Iterator[Any]:
            found = states()
            for name, value_of in GAUGES.items():
                family = gauge(name, METRICS[name].meaning, labels=METRICS[name].labels)
                for generator, state in found.items():
                    family.add_metric([generator], value_of(state))
                if name == NOT_FOLLOWING:
                    for generator in faulty():
                        family.add_metric([generator], 1.0)
                yield family
            yield gauge("nearcast_ready", METRICS["nearcast_ready"].meaning, value=float(ready()))

    made = Metrics(registry, families, generators, prometheus.generate_latest)

    class Lengths:
        """How long answers were: to observe each would cost more than to count it."""

        def collect(self) -> Iterator[Any]:
            for metric, lengths in made.lengths.items():
                family = prometheus.metrics_core.HistogramMetricFamily(
                    metric, METRICS[metric].meaning, labels=METRICS[metric].labels
                )
                for name, counts in lengths.items():
                    family.add_metric([name], _buckets(counts), sum(n * times for n, times in counts.items()))
                yield family

    registry.register(States())
    registry.register(Lengths())
    return made


def leave_out_creation_times() -> None:
    """Have no metric of this process say when it began, which doubles the text and helps nobody."""
    import prometheus_client as prometheus

    prometheus.disable_created_metrics()  # type: ignore[no-untyped-call]


GAUGES: dict[str, Callable[[LookupState], float]] = {
    "nearcast_snapshot_version": lambda state: state.version,
    "nearcast_snapshot_age_seconds": lambda state: state.age_seconds,
    "nearcast_refreshed_seconds": lambda state: state.refreshed_seconds,
    "nearcast_overlay_entries": lambda state: state.overlay,
    NOT_FOLLOWING: lambda state: float(state.error is not None),
}


def _children(families: Mapping[str, Any], generator: str) -> _OfGenerator:
    def of(name: str) -> Any:
        return families[f"nearcast_{name}_total"].labels(generator)

    stood_in = [source for source in SOURCES if source not in (TABLE, NONE)]
    return _OfGenerator(
        keys=of("keys"),
        misses=of("misses"),
        empty=of("empty_answers"),
        removed=of("removed_candidates"),
        searches=of("searches"),
        store_errors=of("store_errors"),
        overloads=of("overloads"),
        refusals=of("refusals"),
        returned=defaultdict(int),
        fallbacks={s: families["nearcast_fallbacks_total"].labels(generator, s) for s in stood_in},
    )


def _buckets(counts: Mapping[int, int]) -> list[tuple[str, float]]:
    """The upper bounds of CANDIDATES, each with the answers up to it."""
    bounds = [*((str(float(bound)), bound) for bound in CANDIDATES), ("+Inf", float("inf"))]
    return [(text, sum(times for n, times in counts.items() if n <= bound)) for text, bound in bounds]
