"""What a run tells of its recall: depths, slices, traffic, new items, and what the vectors did since the last one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.end_to_end import shop as at

import nearcast
from nearcast.errors import InputError, SpecError, TargetError
from needs import require_module

DIM = 16
KINDS = ("red", "green", "blue", "grey")


def write(folder: Path, items: np.ndarray, queries: np.ndarray, ids: list[str] | None = None) -> None:
    at.write_rows(folder / "items.parquet", ids or [f"i{n:04d}" for n in range(len(items))], list(items))
    at.write_rows(
        folder / "queries.parquet",
        [f"q{n:04d}" for n in range(len(queries))],
        list(queries),
        colour=[KINDS[n % 4] for n in range(len(queries))],
        visits=[1000 // (n + 1) for n in range(len(queries))],
        price=[float(n % 97) for n in range(len(queries))],
        tags=[["a", "b"]] * len(queries),
    )


def spec(**settings: Any) -> dict[str, Any]:
    queries = {"path": "queries.parquet", "attributes": ["colour", "price", "tags"], "weight": "visits"}
    queries |= settings.pop("queries", {})
    shared = {"name": "shop", "metric": "cosine", "k": 20, "memory": "2GB", "threads": 1}
    measure = {"slices": ["colour", "price"]} | settings.pop("measure", {})
    return shared | {"items": {"path": "items.parquet"}, "queries": queries, "measure": measure} | settings


def run(folder: Path, **settings: Any) -> dict[str, Any]:
    """The manifest of a run, whether it was as promised or not."""
    try:
        return dict(nearcast.run(spec(**settings), base=folder).snapshot.manifest.as_dict())
    except TargetError as error:
        return dict(error.snapshot.manifest.as_dict())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, at.clustered(1_500, DIM, seed=1), at.clustered(800, DIM, seed=2))
    return tmp_path


def test_recall_is_told_at_depths_by_slice_and_by_traffic(folder: Path) -> None:
    require_module("faiss")
    told = run(folder, engine="faiss-ivf", engine_settings={"nlist": 60, "nprobe": 1}, recall=0.5)
    measures = told["measures"]
    for name in ("recall", "recall_at_1", "recall_at_10", "recall_by_traffic"):
        assert 0 < measures[f"{name}_low"] <= measures[name] <= measures[f"{name}_high"] <= 1
    assert measures["recall"] < 1
    assert measures["recall_at_1"] > measures["recall"]  # the nearest is the last to be missed
    assert 0 < measures["score_regret"] < 1 - measures["recall"]  # what was missed was nearly as good
    ways = {part["by"] for part in told["slices"]}
    assert ways == {"colour", "price", "traffic", "cells"}
    assert {part["value"] for part in told["slices"] if part["by"] == "colour"} == set(KINDS)
    assert len([part for part in told["slices"] if part["by"] == "price"]) == 4
    worst = [row["recall"] for row in told["worst_queries"]]
    assert worst == sorted(worst)
    assert worst[0] < measures["recall"]


def test_an_exact_run_misses_nothing_in_any_slice(folder: Path) -> None:
    told = run(folder)
    assert told["measures"]["score_regret"] == 0.0
    assert all(part["recall"] == 1.0 and not part["below_promise"] for part in told["slices"])
    assert told["likely_metric"] is None
    assert told["worst_queries"] == []


def test_show_shows_the_slices(folder: Path) -> None:
    at.write_spec(folder, **spec())
    at.succeed("run", "shop.toml", cwd=folder)
    done = at.succeed("show", "shop", cwd=folder)
    assert "traffic" in done.stdout
    assert "colour" in done.stdout
    assert "recall_by_traffic" in done.stdout


def test_new_items_are_a_slice_of_their_own(folder: Path) -> None:
    run(folder)
    items = np.concatenate([at.clustered(1_500, DIM, seed=1), at.clustered(200, DIM, seed=8)])
    write(folder, items, at.clustered(800, DIM, seed=2))
    told = run(folder)
    assert {part["value"] for part in told["slices"] if part["by"] == "items"} == {"new", "known"}


def test_a_slice_whose_queries_are_unlike_the_others_is_below_a_promise_that_the_mean_keeps(folder: Path) -> None:
    require_module("faiss")
    queries = at.clustered(800, DIM, seed=2)
    queries[0::4] += np.random.default_rng(4).normal(scale=1.5, size=(200, DIM)).astype(np.float32)
    write(folder, at.clustered(1_500, DIM, seed=1), queries)
    told = run(folder, engine="faiss-ivf", engine_settings={"nlist": 60, "nprobe": 4}, recall=0.91)
    below = {part["value"] for part in told["slices"] if part["by"] == "colour" and part["below_promise"]}
    assert told["promise"]["kept"], told["measures"]["recall"]
    assert below == {"red"}


def test_slices_that_queries_do_not_have_are_refused_before_any_work(folder: Path) -> None:
    with pytest.raises(SpecError, match=r"measure.slices names 'size'; add it to the attributes of \[queries\]"):
        run(folder, measure={"slices": ["size"]})


def test_a_column_of_lists_makes_no_slices(folder: Path) -> None:
    with pytest.raises(InputError, match="slices are made of single values"):
        run(folder, measure={"slices": ["tags"]})


def test_a_weight_is_a_number_of_0_or_more_and_belongs_to_the_queries(folder: Path) -> None:
    with pytest.raises(InputError, match="column 'colour' holds string"):
        run(folder, queries={"weight": "colour"})
    with pytest.raises(SpecError, match=r"write it in \[queries\]"):
        run(folder, items={"path": "items.parquet", "weight": "visits"})


def test_the_vectors_of_the_last_run_are_remembered_and_a_change_is_measured(folder: Path) -> None:
    items, queries = at.clustered(1_500, DIM, seed=1), at.clustered(800, DIM, seed=2)
    assert "items_drift" not in run(folder)["measures"]
    write(folder, items + np.random.default_rng(1).normal(scale=0.01, size=items.shape).astype(np.float32), queries)
    quiet = run(folder)["measures"]
    assert quiet["items_drift"] < 0.01
    assert (quiet["queries_drift"], quiet["items_moved"], quiet["queries_moved"]) == (pytest.approx(0), 0, 0)
    turn, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(DIM, DIM)))
    write(folder, items, (queries @ turn).astype(np.float32))
    turned = run(folder)["measures"]
    assert turned["queries_drift"] > 0.3
    assert turned["queries_moved"] == 0
    assert turned["overlap"] < 0.3


def test_ids_that_were_shifted_by_one_have_moved(folder: Path) -> None:
    items, queries = at.clustered(1_500, DIM, seed=1), at.clustered(800, DIM, seed=2)
    run(folder)
    write(folder, np.roll(items, 1, axis=0), queries)
    moved = run(folder)["measures"]
    assert moved["items_moved"] > 0.5
    assert moved["items_shift"] < 0.1


def test_copies_of_one_item_show_as_repeats(folder: Path) -> None:
    items = at.clustered(1_500, DIM, seed=1)
    assert run(folder)["measures"]["repeats"] == 0
    items[100:200] = items[100]
    write(folder, items, at.clustered(800, DIM, seed=2))
    assert run(folder)["measures"]["repeats"] > 0.01
