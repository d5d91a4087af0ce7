"""Find the settings of a peer that make its whole job cheapest at a recall, by real builds and searches of samples.

Build settings: from a start, one step along one axis at a time, while the whole job gets cheaper. Search settings of a
build: successive halving, on samples that grow. The best two builds are judged on all queries. Every trial is stored,
so that a sweep can be stopped and goes on where it was. Holds the files of trials and of settings; prints nothing.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peer import Axes, Peer, Settings
from worker import Worker

__all__ = [
    "EXACT_SLACK",
    "SLACK",
    "Clock",
    "Sweep",
    "SweepFile",
    "Walk",
    "find_settings",
    "get_key",
    "neighbours",
    "open_walk",
    "place",
]

SLACK = 0.002  # a peer may miss the recall by this on all queries: its settings were found on a sample
EXACT_SLACK = 1e-4  # an exact peer may miss 1 by this: float32 sums in another order exchange near-ties
SAMPLES = (500, 2_500)  # queries, while lanes are halved
FINALISTS = 2  # builds that are judged on all queries
CORRECTIONS = 5  # steps along the depth on all queries, if the sample was wrong


@dataclass(frozen=True, slots=True)
class Clock:
    """How seconds are counted: by the wall, or by the processor where others use the machine."""

    processor: bool
    threads: int

    def read(self, row: Mapping[str, float]) -> float:
        """Seconds of the whole machine, or of this process had it had all its threads."""
        return row["processor_seconds"] / self.threads if self.processor else row["seconds"]


@dataclass(slots=True)
class Walk:
    """Time and recall of the search settings of one build, on samples of the queries."""

    worker: Worker
    lanes: list[dict[str, Any]]
    depth: str
    depths: Sequence[Any]
    build_seconds: float
    n_queries: int
    clock: Clock
    tried: dict[tuple[int, int, int], tuple[float, float]] = field(default_factory=dict)

    def settings(self, lane: int, rung: int) -> dict[str, Any]:
        """Return the search settings of a place."""
        return {**self.lanes[lane], **({self.depth: self.depths[rung]} if self.depth else {})}

    def look(self, lane: int, rung: int, size: int) -> tuple[float, float]:
        """(estimated seconds of the whole job, recall) by a sample of this size, tried once."""
        size = min(size, self.n_queries)
        if (lane, rung, size) not in self.tried:
            row = self.worker.ask("try_sample", self.settings(lane, rung), size)
            self.tried[lane, rung, size] = self.clock.read(row) / size, row["recall"]
        per_query, recall = self.tried[lane, rung, size]
        return self.build_seconds + per_query * self.n_queries, recall

    def shallowest(self, lane: int, recall: float, size: int, hint: int) -> int | None:
        """Return the first rung that reaches the recall; None if the deepest does not."""
        last, step = len(self.depths) - 1, 1
        low, high = -1, min(hint, last)
        while self.look(lane, high, size)[1] < recall:
            if high == last:
                return None
            low, high, step = high, min(high + step, last), 2 * step
        step = 1
        while low < 0 and high > 0:
            below = max(high - step, 0)
            if self.look(lane, below, size)[1] < recall:
                low = below
            else:
                high, step = below, 2 * step
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.look(lane, middle, size)[1] >= recall else (middle, high)
        return high

    def cheapest(self, recall: float, hint: tuple[int, int]) -> tuple[float, int, int] | None:
        """(estimated seconds, lane, rung) of the cheapest settings that reach the recall, by successive halving."""
        hints = dict.fromkeys([hint[0], *range(len(self.lanes))], hint[1])
        found: list[tuple[float, int, int]] = []
        for size in SAMPLES:
            found, last = [], hint[1]
            for lane, at in hints.items():
                rung = self.shallowest(lane, recall, size, at if size != SAMPLES[0] else last)
                if rung is not None:
                    last = rung
                    found.append((self.look(lane, rung, size)[0], lane, rung))
            found.sort()
            hints = {lane: rung for _, lane, rung in found[: max(1, len(found) // 2)]}
        return found[0] if found else None


def open_walk(
    worker: Worker, peer: Peer, build: Settings, job: Mapping[str, Any], clock: Clock, near: Settings | None
) -> Walk:
    """Build the index, and return a walk over its search settings: all lanes, or those a step away from `near`."""
    axes = dict(peer.search_axes(build, job["k"], job["items"]))
    depth, depths = axes.popitem() if axes else ("", [None])
    lanes = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    if near is not None:
        home = {name: values[place(near[name], values)] for name, values in axes.items()}
        lanes = [home, *neighbours(home, axes)]
    worker.ask("warm_up", build, {**lanes[0], **({depth: depths[0]} if depth else {})})
    seconds = clock.read(worker.ask("build", build))
    return Walk(worker, lanes, depth, depths, seconds, job["queries"], clock)


def neighbours(settings: Settings, axes: Axes) -> Iterator[dict[str, Any]]:
    """Settings one step away along one axis, the first axis first."""
    for name, values in axes.items():
        at = place(settings[name], values)
        for to in (at + 1, at - 1):
            if 0 <= to < len(values) and values[to] != settings[name]:
                yield {**settings, name: values[to]}


def place(value: Any, values: Sequence[Any]) -> int:
    """Index of the nearest value: by ratio for positive numbers, else the equal one, or the first."""
    if value in values:
        return list(values).index(value)
    if all(isinstance(v, int | float) and v > 0 for v in (value, *values)):
        return min(range(len(values)), key=lambda i: abs(math.log(values[i] / value)))
    return 0


@dataclass(slots=True)
class SweepFile:
    """Trials by job and peer, in a file that is written after each."""

    path: Path

    def read(self) -> dict[str, Any]:
        """Return everything stored."""
        return json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else {}

    def get(self, *keys: str) -> Any:
        """Return the value below these keys, or None."""
        value: Any = self.read()
        for key in keys:
            value = None if value is None else value.get(key)
        return value

    def put(self, value: Any, *keys: str) -> None:
        """Store a value below these keys."""
        whole = self.read()
        inner = whole
        for key in keys[:-1]:
            inner = inner.setdefault(key, {})
        inner[keys[-1]] = value
        self.path.parent.mkdir(exist_ok=True)
        self.path.write_text(json.dumps(whole, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def get_key(job: Mapping[str, Any], isa: str, threads: int) -> str:
    """Name a job of a size on a kind of machine."""
    return f"{job['name']} {job['items']}x{job['queries']}x{job['dim']} k={job['k']} {isa} threads={threads}"


def find_settings(
    file: SweepFile, key: str, job: Mapping[str, Any], peer: Peer, recall: float
) -> dict[str, Any] | None:
    """Return what a sweep found for this job; else for the job of the nearest size, with its build moved; or None."""
    stored = file.read()
    name, asked = peer.name, f"{recall:g}"
    if asked in stored.get(key, {}).get(name, {}):
        return dict(stored[key][name][asked], swept_on=key)
    others = [k for k, by_peer in stored.items() if asked in by_peer.get(name, {})]
    if not others:
        return None
    nearest = min(others, key=lambda k: (k.split()[3] != key.split()[3], abs(math.log(_items(k) / job["items"]))))
    found = stored[nearest][name][asked]
    old, new = peer.build_axes(_items(nearest)), peer.build_axes(job["items"])
    build = {n: new[n][min(place(v, old[n]), len(new[n]) - 1)] if n in new else v for n, v in found["build"].items()}
    return dict(found, build=build, swept_on=nearest)


def _items(key: str) -> int:
    return int(key.split()[1].split("x")[0])


@dataclass(slots=True)
class Sweep:
    """The search for the best settings of one peer, for one or more recalls."""

    worker: Worker
    peer: Peer
    recalls: Sequence[float]
    job: Mapping[str, Any]
    clock: Clock
    start: Settings
    trials: list[dict[str, Any]]
    save: Callable[[list[dict[str, Any]]], None]
    say: Callable[[str], None]
    most_builds: int
    deadline: float  # by time.monotonic(); no trial starts after it

    def run(self) -> bool:
        """Do what is left of the sweep; False if the time ended first."""
        self.worker.ask("choose", self.peer.name)
        for recall in self.recalls:
            while (build := self._next_build(recall)) is not None:
                if time.monotonic() > self.deadline:
                    return False
                self._try_build(build)
        for recall in self.recalls:
            for trial in self._ranked(recall)[:FINALISTS]:
                if time.monotonic() > self.deadline:
                    return False
                self._judge(trial, recall)
        return True

    def get_best(self) -> dict[str, dict[str, Any]]:
        """Return the best settings by recall: of the builds judged on all queries, else by the sample."""
        best = {}
        for recall in self.recalls:
            found = [{"build": t["build"], "trial": t["found"][f"{recall:g}"]} for t in self._ranked(recall)]
            rows = [{"build": f["build"], **f["trial"]["judged"]} for f in found if "judged" in f["trial"]]
            if found and not rows:
                rows = [{"build": found[0]["build"], "by": "sample", **found[0]["trial"]}]
            if rows:
                best[f"{recall:g}"] = min(rows, key=lambda row: row["cost"])
        return best

    def _next_build(self, recall: float) -> Settings | None:
        """Return the next untried neighbour of the best build so far."""
        axes, start = self.peer.build_axes(self.job["items"]), self.start
        tried = [t["build"] for t in self.trials]
        if start not in tried:
            return start
        ranked = self._ranked(recall)
        if len(tried) >= self.most_builds:
            return None
        best = ranked[0]["build"] if ranked else start
        return next((build for build in neighbours(best, axes) if build not in tried), None)

    def _ranked(self, recall: float) -> list[dict[str, Any]]:
        """Trials that reach the recall, cheapest first."""
        key = f"{recall:g}"
        return sorted((t for t in self.trials if t["found"].get(key)), key=lambda t: t["found"][key]["cost"])

    def _try_build(self, build: Settings) -> None:
        """Build, and find the cheapest search settings for each recall."""
        ranked = {recall: self._ranked(recall) for recall in self.recalls}
        walk = open_walk(self.worker, self.peer, build, self.job, self.clock, None)
        trial: dict[str, Any] = {"build": dict(build), "build_cost": walk.build_seconds, "found": {}}
        for recall in self.recalls:
            target = recall - EXACT_SLACK if recall == 1 else recall
            key, near = f"{recall:g}", {}
            if ranked[recall]:
                near = ranked[recall][0]["found"][f"{recall:g}"]["search"]
                if walk.build_seconds > ranked[recall][0]["found"][key]["cost"]:
                    continue  # dearer than the best whole job
            lane = next((i for i, lane in enumerate(walk.lanes) if all(near.get(n) == v for n, v in lane.items())), 0)
            rung = place(near[walk.depth], walk.depths) if walk.depth in near else len(walk.depths) // 3
            found = walk.cheapest(target, (lane, rung))
            if found is not None:
                cost, lane, rung = found
                size = min(SAMPLES[-1], walk.n_queries)
                trial["found"][key] = {
                    "search": walk.settings(lane, rung),
                    "cost": cost,
                    "recall": walk.tried[lane, rung, size][1],
                }
            self.say(
                f"{self.peer.name} {build}, built in {walk.build_seconds:.1f} s, at {key}: {trial['found'].get(key)}"
            )
        self.trials.append(trial)
        self.save(self.trials)

    def _judge(self, trial: dict[str, Any], recall: float) -> None:
        """Do the whole job of a finalist on all queries, a step deeper or shallower where the sample was wrong."""
        found = trial["found"][f"{recall:g}"]
        if "judged" in found:
            return
        target = recall - EXACT_SLACK if recall == 1 else recall
        axes = dict(self.peer.search_axes(trial["build"], self.job["k"], self.job["items"]))
        depth, depths = axes.popitem() if axes else ("", [None])
        built = self.clock.read(self.worker.ask("build", trial["build"]))
        search, rows = dict(found["search"]), []
        for _ in range(CORRECTIONS):
            row = self.worker.ask("search_all", search)
            rows.append({"search": dict(search), "cost": built + self.clock.read(row), "recall": row["recall"]})
            at = place(search[depth], depths) if depth else 0
            move = 1 if row["recall"] < target else -1
            if not 0 <= at + move < len(depths) or (
                len(rows) > 1 and (rows[-2]["recall"] < target) != (row["recall"] < target)
            ):
                break
            search = {**search, depth: depths[at + move]}
        good = [row for row in rows if row["recall"] >= target]
        found["judged"] = min(good, key=lambda r: r["cost"]) if good else {**rows[-1], "cost": math.inf}
        self.say(f"{self.peer.name} {trial['build']} at {recall:g}, all queries: {found['judged']}")
        self.save(self.trials)
