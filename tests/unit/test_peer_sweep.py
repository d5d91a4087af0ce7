"""The sweep of benchmarks/join.py finds the settings of a peer that cost least, and can be stopped and continued."""

import math
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
JOB = {"name": "data", "items": 10_000, "queries": 4_000, "dim": 8, "k": 10}


class CountedPeer:
    """A worker whose costs and recalls are formulas, as a real child would report them."""

    def __init__(self, most_builds=math.inf):
        self.builds, self.most_builds = [], most_builds

    def ask(self, verb, *arguments):
        if verb == "build":
            if len(self.builds) == self.most_builds:
                raise KeyboardInterrupt
            self.builds.append(arguments[0])
            self.cells, self.rounds = arguments[0]["cells"], arguments[0]["rounds"]
            return {"seconds": self.cells / 100 + self.rounds}
        if verb in ("try_sample", "search_all"):
            settings, size = arguments[0], arguments[1] if verb == "try_sample" else JOB["queries"]
            share = settings["probes"] / self.cells
            recall = 1 - 0.3 * (1 - share) ** 6 - 0.1 / settings["refine"]
            return {"seconds": size * (share + self.cells / 1e4 + settings["refine"] / 100) / 100, "recall": recall}
        return None


@pytest.fixture
def sweep(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import sweep

    return sweep


def a_peer():
    from peer import Peer

    return Peer(
        "counted",
        "none",
        "",
        lambda *_: None,
        lambda *_: None,
        start=lambda _n: {"cells": 400, "rounds": 8},
        build_axes=lambda _n: {"cells": [25, 50, 100, 200, 400], "rounds": [2, 4, 8]},
        search_axes=lambda build, _k, _n: {"refine": [1, 2, 4, 8], "probes": range(1, build["cells"] + 1)},
    )


def run_sweep(sweep, worker, trials, deadline=math.inf):
    clock = sweep.Clock(processor=False, threads=2)
    saved = []
    one = sweep.Sweep(
        worker, a_peer(), [0.95], JOB, clock, a_peer().start(0), trials, saved.append, lambda _: None, 30, deadline
    )
    return one.run(), one.get_best().get("0.95")


def cheapest_of_all(sweep):
    """Every build and every search."""
    found = []
    for cells in a_peer().build_axes(0)["cells"]:
        for rounds in a_peer().build_axes(0)["rounds"]:
            worker = CountedPeer()
            built = worker.ask("build", {"cells": cells, "rounds": rounds})["seconds"]
            for refine in (1, 2, 4, 8):
                for probes in range(1, cells + 1):
                    row = worker.ask("search_all", {"refine": refine, "probes": probes})
                    if row["recall"] >= 0.95:
                        found.append(built + row["seconds"])
    return min(found)


def test_a_sweep_finds_the_cheapest_whole_job(sweep):
    finished, best = run_sweep(sweep, CountedPeer(), [])
    assert finished
    assert best["recall"] >= 0.95
    assert best["cost"] == pytest.approx(cheapest_of_all(sweep), rel=0.01)


def test_a_sweep_that_was_stopped_builds_nothing_twice(sweep):
    whole, first, second, trials = CountedPeer(), CountedPeer(most_builds=4), CountedPeer(), []
    found = run_sweep(sweep, whole, [])
    with pytest.raises(KeyboardInterrupt):
        run_sweep(sweep, first, trials)
    finished, so_far = run_sweep(sweep, second, trials, deadline=0)
    assert not finished
    assert so_far["by"] == "sample"
    assert so_far["cost"] == min(trial["found"]["0.95"]["cost"] for trial in trials if trial["found"])
    assert run_sweep(sweep, second, trials) == found
    assert first.builds + second.builds == whole.builds


def test_settings_move_to_data_of_another_size(sweep, tmp_path):
    file = sweep.SweepFile(tmp_path / "settings.json")
    found = {"build": {"cells": 50, "rounds": 2}, "search": {"refine": 2, "probes": 9}}
    key = sweep.get_key(JOB, "avx2", 2)
    file.put(found, key, "counted", "0.95")
    assert sweep.find_settings(file, key, JOB, a_peer(), 0.95) == found | {"swept_on": key}
    larger = JOB | {"items": 40_000}
    moved = sweep.find_settings(file, sweep.get_key(larger, "avx512", 2), larger, a_peer(), 0.95)
    assert moved["build"] == found["build"]
    assert moved["swept_on"] == key
    assert sweep.find_settings(file, key, JOB, a_peer(), 0.99) is None
