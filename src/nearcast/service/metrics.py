"""Prometheus metrics of the service: counters that requests increment, and gauges that are read on demand.

`service.metric_table` has the table. Several workers keep their counters in mapped files of one folder
(prometheus_client's multiprocess mode), so that each of them can return the sums, and a killed worker loses no count.
Knows nothing of requests.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nearcast.serve.lookup_data import Answer, LookupState
from nearcast.service.answer_batch import AnswerBatch
from nearcast.service.canary_counters import CanaryCounters
from nearcast.service.fallback import NONE, SOURCES, TABLE
from nearcast.service.metric_table import (
    ADS,
    COMBINED_GAUGES,
    GAUGES,
    INELIGIBLE,
    LATENCY_SECONDS,
    LENGTHS,
    METRICS,
    RETURNED,
    UPDATE_FAILING,
    UPDATE_FAILURES,
    MetricInfo,
)
from nearcast.service.worker_states import WorkerStates

__all__ = ["METRICS", "MetricInfo", "Metrics", "disable_created_metrics", "measure_process", "new_metrics"]

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"  # read by prometheus_client
BOUND_COUNTS, LENGTH_SUMS = "nearcast_lengths", "nearcast_length_sums"  # of both histograms of lengths; not shown
BOUNDS = (*(str(float(bound)) for bound in LENGTHS), "+Inf")
CPU = "process_cpu_seconds_total"
CPU_MEANING = "Total user and system CPU time spent in seconds."
RESTARTS, WORKERS, READY = "nearcast_worker_restarts_total", "nearcast_workers", "nearcast_ready"
# process metric: its value over several workers; the processor time is a counter
PROCESS_METRICS: dict[str, tuple[Callable[[Iterable[float]], float], str]] = {
    "process_virtual_memory_bytes": (sum, "Virtual memory size in bytes."),
    "process_resident_memory_bytes": (sum, "Resident memory size in bytes; shared pages count once per worker."),
    "process_start_time_seconds": (min, "Start time of the process since unix epoch in seconds."),
    "process_open_fds": (sum, "Number of open file descriptors."),
    "process_max_fds": (min, "Maximum number of open file descriptors of one process."),
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


@dataclass(frozen=True, slots=True)
class GaugeSource:
    """Where gauges are read."""

    states: States
    is_ready: Callable[[], bool]
    list_unopened: Callable[[], Iterable[str]]

    def read(self) -> dict[str, dict[str, float]]:
        """Return each gauge of each generator of this process."""
        return {
            generator: {name: float(read(state)) for name, read in GAUGES.items()}
            for generator, state in self.states().items()
        }


class Metrics:
    """The metrics of one service. Made by `new_metrics`."""

    def __init__(
        self, registry: Any, families: Mapping[str, Any], generators: Iterable[str], source: GaugeSource
    ) -> None:
        self.source = source
        self.workers: WorkerStates | None = None  # that share the counters
        self._registry = registry
        self._requests, self._seconds = families["nearcast_requests_total"], families["nearcast_request_seconds"]
        self._request_counters: dict[tuple[str, int], tuple[Any, Any]] = {}
        self._update_failures = families[UPDATE_FAILURES]
        self.canaries = CanaryCounters(families)
        self._ineligible = families[INELIGIBLE]
        self._cpu, self._cpu_seconds = families[CPU], 0.0
        self._bounds, self._sums = families[BOUND_COUNTS], families[LENGTH_SUMS]
        self._length_counters: dict[tuple[str, str], tuple[list[Any], Any]] = {}
        self._counters = {name: _resolve_counters(families, name) for name in generators}
        for name in self._counters:
            self._resolve_lengths(RETURNED, name)

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
        lengths: dict[int, int] = defaultdict(int)
        for answer in answers:
            keys += 1
            misses += not answer.found
            removed += answer.removed
            lengths[len(answer.ids)] += 1
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
        self._count_lengths(RETURNED, generator, lengths)

    def count_batch(self, generator: str, batch: AnswerBatch) -> None:
        """Count the answers of many keys. Rows that no fallback has replaced are counted as arrays."""
        self.count_answers(generator, batch.replaced.values())
        counters, stored = self._counters[generator], batch.stored
        kept = np.ones(len(batch), np.bool_)
        kept[list(batch.replaced)] = False
        counters.keys.inc(int(kept.sum()))
        counters.removed.inc(int(stored.removed[kept].sum()))
        for rule, counts in stored.barred.items():
            self._ineligible.labels(generator, rule).inc(int(counts[kept].sum()))
        lengths, times = np.unique(np.diff(stored.offsets)[kept], return_counts=True)
        self._count_lengths(RETURNED, generator, dict(zip(lengths.tolist(), times.tolist(), strict=True)))

    def count_ads(self, expansion: str, ads: int) -> None:
        """Count an answer of an expansion table by its number of ads."""
        self._count_lengths(ADS, expansion, {ads: 1})

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

    def count_processor_time(self) -> None:
        """Count the processor time since the last call: the sum over workers includes those that have ended."""
        seconds = sum(os.times()[:2])
        self._cpu.inc(max(0.0, seconds - self._cpu_seconds))
        self._cpu_seconds = seconds

    def _count_lengths(self, metric: str, label: str, lengths: Mapping[int, int]) -> None:
        """Count answers by length. lengths: number of candidates or ads: answers."""
        bounds, total = self._length_counters.get((metric, label)) or self._resolve_lengths(metric, label)
        for length, times in lengths.items():
            bounds[bisect_left(LENGTHS, length)].inc(times)
            if length:
                total.inc(length * times)

    def _resolve_lengths(self, metric: str, label: str) -> tuple[list[Any], Any]:
        counters = [self._bounds.labels(metric, label, bound) for bound in BOUNDS], self._sums.labels(metric, label)
        self._length_counters[metric, label] = counters
        return counters

    def read_counts(self, *names: str) -> dict[str, dict[str, int]]:
        """Return counters by name and generator, since the service started."""
        counted = self._read_families()
        return {
            name: {s.labels["generator"]: int(s.value) for s in counted[name].samples if s.name == name}
            if name in counted
            else {}
            for name in names
        }

    def format_text(self) -> bytes:
        """Return all metrics in the text format of Prometheus, over all workers."""
        import prometheus_client as prometheus

        self.count_processor_time()
        text: bytes = prometheus.generate_latest(_Collector(self._collect))
        return text

    def _read_families(self) -> dict[str, Any]:
        """Return the counters and histograms of all workers, by the names of the table."""
        if self.workers is None:
            families = self._registry.collect()
        else:
            from prometheus_client.multiprocess import MultiProcessCollector

            families = MultiProcessCollector.merge(  # type: ignore[no-untyped-call]
                self.workers.list_counter_files()
            )
        return {family.name + "_total" * (family.type == "counter"): family for family in families}

    def _collect(self) -> Iterator[Any]:
        """Yield every family of the table, then those of the process."""
        from prometheus_client import metrics_core

        kinds = {
            "gauge": metrics_core.GaugeMetricFamily,
            "counter": metrics_core.CounterMetricFamily,
            "histogram": metrics_core.HistogramMetricFamily,
        }
        counted, gauges = self._read_families(), self._read_gauges()
        for metric in METRICS.values():
            family = kinds[metric.kind](metric.name, metric.meaning, labels=metric.labels)
            if metric.name in (RETURNED, ADS):
                _add_lengths(family, counted)
            elif metric.kind == "gauge":
                for labels, value in gauges.get(metric.name, ()):
                    family.add_metric(labels, value)
            elif metric.replaced_by:
                for sample in counted[metric.replaced_by].samples if metric.replaced_by in counted else ():
                    if sample.name == metric.replaced_by:
                        family.add_metric([sample.labels[label] for label in metric.labels], sample.value)
            elif metric.name == RESTARTS:
                family.add_metric([], 0 if self.workers is None else self.workers.read_service().restarts)
            else:
                family = counted.get(metric.name, family)
            yield family
        for name, value in self._read_process().items():
            yield metrics_core.GaugeMetricFamily(name, PROCESS_METRICS[name][1], value=value)
        yield counted[CPU]

    def _read_gauges(self) -> dict[str, list[tuple[list[str], float]]]:
        """Return the values of each gauge with their labels."""
        source, workers = self.source, self.workers
        own, serving = source.read(), 1
        unopened = list(source.list_unopened())
        if workers is not None:
            own = workers.merge_gauges(own, COMBINED_GAUGES)
            unopened = workers.merge_lists(unopened, lambda state: state.unopened)
            serving = len(workers.read_service().serving)
        gauges: dict[str, list[tuple[list[str], float]]] = {
            READY: [([], float(source.is_ready()))],
            WORKERS: [([], serving)],
        }
        for name in GAUGES:
            gauges[name] = [([generator], values[name]) for generator, values in own.items()]
            if UPDATE_FAILING in (name, METRICS[name].replaced_by):
                gauges[name] += [([generator], 1.0) for generator in unopened]
        return gauges

    def _read_process(self) -> dict[str, float]:
        own = measure_process()
        if self.workers is None:
            return own
        others = [state.process for state in self.workers.read_others(self.workers.read_service()) if state]
        return {
            name: PROCESS_METRICS[name][0]([value, *(other[name] for other in others if name in other)])
            for name, value in own.items()
        }


def measure_process() -> dict[str, float]:
    """Return the standard metrics of this process, but for the processor time."""
    import prometheus_client as prometheus

    families = prometheus.ProcessCollector(registry=None).collect()
    values = {sample.name: sample.value for family in families for sample in family.samples}
    return {name: value for name, value in values.items() if name in PROCESS_METRICS}


def new_metrics(
    generators: Iterable[str],
    states: States,
    is_ready: Callable[[], bool],
    list_unopened: Callable[[], Iterable[str]] = tuple,
    workers: WorkerStates | None = None,
) -> Metrics:
    """Return metrics that start at zero. The functions are called whenever the metrics are read.

    list_unopened: names of the tables that could not be opened. workers: the other processes of the service; their
    counters are added up.
    """
    names = list(generators)
    if workers is not None:
        _share_counters(workers, len(names))
    import prometheus_client as prometheus

    registry = prometheus.CollectorRegistry()
    kinds = {"counter": prometheus.Counter, "histogram": prometheus.Histogram}
    families: dict[str, Any] = {
        metric.name: kinds[metric.kind](
            metric.name,
            metric.meaning,
            metric.labels,
            registry=registry,
            **({"buckets": LATENCY_SECONDS} if metric.kind == "histogram" else {}),
        )
        for metric in METRICS.values()
        if metric.kind in kinds and metric.name not in (RETURNED, ADS, RESTARTS) and not metric.replaced_by
    }
    lengths = ("metric", "label")
    families[BOUND_COUNTS] = prometheus.Counter(BOUND_COUNTS, "-", (*lengths, "bound"), registry=registry)
    families[LENGTH_SUMS] = prometheus.Counter(LENGTH_SUMS, "-", lengths, registry=registry)
    families[CPU] = prometheus.Counter(CPU, CPU_MEANING, registry=registry)
    metrics = Metrics(registry, families, names, GaugeSource(states, is_ready, list_unopened))
    metrics.workers = workers
    return metrics


def _share_counters(workers: WorkerStates, tables: int) -> None:
    """Keep the counters of this process in the shared folder. A new worker continues those of its number."""
    os.environ[FOLDER_VARIABLE] = str(workers.folder)
    from prometheus_client import values

    workers.reserve(tables)
    values.ValueClass = values.MultiProcessValue(lambda: workers.number)  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class _Collector:
    """A function as a collector of prometheus_client."""

    collect: Callable[[], Iterator[Any]]


def _add_lengths(family: Any, counted: Mapping[str, Any]) -> None:
    """Add the histograms of answer lengths. Counting lengths of many answers at once is cheaper than observing each."""
    counts: dict[str, dict[str, float]] = defaultdict(dict)
    sums: dict[str, float] = {}
    for name in (BOUND_COUNTS, LENGTH_SUMS):
        for sample in counted[f"{name}_total"].samples if f"{name}_total" in counted else ():
            if sample.labels["metric"] != family.name or not sample.name.endswith("_total"):
                continue
            if name == BOUND_COUNTS:
                counts[sample.labels["label"]][sample.labels["bound"]] = sample.value
            else:
                sums[sample.labels["label"]] = sample.value
    for label, by_bound in counts.items():
        cumulative = np.cumsum([by_bound.get(bound, 0.0) for bound in BOUNDS]).tolist()
        family.add_metric([label], list(zip(BOUNDS, cumulative, strict=True)), sums.get(label, 0.0))


def disable_created_metrics() -> None:
    """Leave out the `_created` series of this process. They double the text and have no use."""
    import prometheus_client as prometheus

    prometheus.disable_created_metrics()  # type: ignore[no-untyped-call]


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
        fallbacks={source: families["nearcast_fallbacks_total"].labels(generator, source) for source in fallbacks},
    )
