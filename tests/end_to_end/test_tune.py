"""`nearcast tune` on real data and engines: what it suggests, keeps, and refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.end_to_end import shop as at
from tests.end_to_end.shop import fail, succeed

import nearcast
from nearcast import kernels
from nearcast.join.listener import Listener
from nearcast.tuning import tune as tuning
from nearcast.tuning.tuning_samples import draw_rows
from needs import require_module

require_module("optuna", allow_module_level=True)
require_module("faiss", allow_module_level=True)

NATIVE = kernels.isa_info().taken != "numpy"
N_ITEMS, N_QUERIES, DIM = 6_000, 4_000, 16


def write(folder: Path, **settings: Any) -> Path:
    """A catalogue that is large enough for a sample of it to be smaller."""
    at.write_rows(
        folder / "items.parquet",
        [f"i{n:05d}" for n in range(N_ITEMS)],
        list(at.clustered(N_ITEMS, DIM, seed=1, clusters=80)),
    )
    at.write_rows(
        folder / "queries.parquet",
        [f"q{n:05d}" for n in range(N_QUERIES)],
        list(at.clustered(N_QUERIES, DIM, seed=2, clusters=80)),
    )
    shared = {"recall": 0.9, "items": {"path": "items.parquet"}, "measure": {"sample": 500, "calibration": 300}}
    return at.write_spec(folder, **(shared | settings))


@pytest.fixture(autouse=True)
def small_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, so that samples are smaller than the whole."""
    monkeypatch.setattr(tuning, "SMALLEST_SAMPLE", 2_000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuned")
    write(folder)
    return folder


def test_the_suggestion_runs_and_keeps_the_promise(folder: Path) -> None:
    done = succeed("tune", "shop.toml", "--trials", "6", cwd=folder)
    assert "tuning takes about" in done.stderr
    lines = done.stdout[done.stdout.rindex('engine = "') :]
    tomllib.loads(lines)
    text = (folder / "shop.toml").read_text()
    head, _, rest = text.partition("\n[")
    (folder / "tuned.toml").write_text(f"{head}\n{lines}\n[{rest}")
    succeed("run", "tuned.toml", cwd=folder)
    assert at.manifest(folder)["promise"]["kept"]
    assert re.search(r"recall [01]\.\d+ \([01]\.\d+ to [01]\.\d+\) on 1,000 held-out queries", done.stdout)


@pytest.mark.slow
def test_what_was_learned_is_kept_as_data_and_picture_and_used_again(folder: Path) -> None:
    succeed("tune", "shop.toml", "--trials", "6", cwd=folder)
    home = folder / "nearcast" / "shop" / "tuning"
    kept = json.loads((home / "frontier.json").read_text())
    assert {"found", "frontier", "suggestion", "held_out", "lines", "exact_seconds", "isa"} <= set(kept)
    assert "<svg" in (home / "frontier.svg").read_text()
    done = succeed("tune", "shop.toml", "--trials", "6", "--json", cwd=folder)
    again = json.loads(done.stdout)
    assert len(again["found"]) == len(kept["found"])
    assert (
        "trials of an earlier tuning are used again" in succeed("tune", "shop.toml", "--trials", "6", cwd=folder).stderr
    )


def test_other_inputs_are_tuned_anew(tmp_path: Path) -> None:
    spec = write(tmp_path)
    nearcast.tune(spec, trials=3)
    at.write_rows(
        tmp_path / "items.parquet",
        [f"i{n:05d}" for n in range(N_ITEMS)],
        list(at.clustered(N_ITEMS, DIM, seed=9, clusters=80)),
    )
    heard: list[str] = []

    class Ear(Listener):
        def note(self, text: str) -> None:
            heard.append(text)

    nearcast.tune(spec, trials=3, listener=Ear())
    assert not [text for text in heard if "earlier tuning" in text]


@pytest.mark.skipif(not NATIVE, reason="dense needs native kernels")
@pytest.mark.parametrize("metric", ["cosine", "l2", "inner_product"])
def test_a_sample_is_checked_by_a_larger_one_for_every_metric(tmp_path: Path, metric: str) -> None:
    tuned, _ = nearcast.tune(write(tmp_path, metric=metric), trials=5)
    assert tuned.check is not None
    assert tuned.check.sample_items == 4_000
    assert tuned.held_out.high >= 0.9
    assert {found.trial.point.engine for found in tuned.trials} >= {"dense"}


def test_tuning_never_sees_the_queries_that_a_run_reports_on_or_calibrates_with(tmp_path: Path) -> None:
    from nearcast.join.context import prepare
    from nearcast.join.plan_join import draw_samples as of_a_run

    spec = nearcast.load_spec(write(tmp_path, engine="dense" if NATIVE else "faiss-ivf"))
    run = prepare(spec, tmp_path, Listener())
    _, inputs = tuning._read_inputs(run)
    ours, theirs = draw_rows(run, inputs), of_a_run(run, inputs)
    tuned_on = np.concatenate([ours.chosen, ours.held_out, ours.timed])
    reported = np.concatenate([theirs.report, theirs.choosing, theirs.checking])
    assert len(np.unique(tuned_on)) == len(tuned_on)
    assert not set(tuned_on.tolist()) & set(reported.tolist())


def test_a_budget_of_time_ends_the_search_and_says_so(tmp_path: Path) -> None:
    heard: list[str] = []

    class Ear(Listener):
        def note(self, text: str) -> None:
            heard.append(text)

    tuned, _ = nearcast.tune(write(tmp_path), trials=200, seconds=0.5, listener=Ear())
    assert len(tuned.trials) >= 1
    assert any("the time is up after" in text for text in heard)


def test_a_promise_of_1_has_nothing_to_tune(tmp_path: Path) -> None:
    write(tmp_path, recall=1.0)
    assert "recall is 1: only exact joins reach that" in fail("tune", "shop.toml", code=2, cwd=tmp_path)


def test_too_few_queries_are_refused_with_a_way_out(tmp_path: Path) -> None:
    write(tmp_path, measure={"sample": 2000, "calibration": 1000})
    said = fail("tune", "shop.toml", code=3, cwd=tmp_path)
    assert "lower measure.sample and measure.calibration" in said


def test_memory_that_nothing_fits_is_said(tmp_path: Path) -> None:
    write(tmp_path)
    done = at.nearcast("tune", "shop.toml", "--memory", "much", cwd=tmp_path)
    assert done.returncode == 2
    assert "it is not an amount of memory" in done.stderr


def test_without_optuna_the_extra_is_named(tmp_path: Path) -> None:
    spec = write(tmp_path)
    code = f"import sys; sys.modules['optuna'] = None; import nearcast; nearcast.tune({str(spec)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'nearcast[tune]'" in done.stderr
