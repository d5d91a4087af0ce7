"""An online index answers single vectors with exact scores, at the recall that was asked for."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import reference
from builders import METRICS, clustered, exact_join, generator
from nearcast.errors import DamagedError, InputError, SpecError
from nearcast.files import hold_lock
from nearcast.join.listener import Listener
from nearcast.join.online_index import ONLINE_ENGINES, open_online
from nearcast.join.run import run_generator
from nearcast.measure.recall import estimate_recall, recall_per_query
from nearcast.types import ArrayVectors, Metric
from needs import require_module

require_module("faiss", allow_module_level=True)

N, DIM, K = 1500, 16, 10
every_engine = pytest.mark.parametrize("engine", ONLINE_ENGINES)


def write(path, ids, vectors):
    flat = pa.array(np.ascontiguousarray(vectors).ravel())
    pq.write_table(pa.table({"id": ids, "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])}), path)


def shop(folder, *, ids="int", dtype=np.float32, items=None, **settings):
    """Items and 300 queries on disk, and their spec. Item p has the id p, or a text that sorts like p."""
    items = clustered(N, DIM, seed=1).astype(dtype) if items is None else items
    names = np.arange(len(items)) * 7 if ids == "int" else [f"item-{p:05d}" for p in range(len(items))]
    order = np.random.default_rng(3).permutation(len(items))
    write(folder / "items.parquet", pa.array(names).take(pa.array(order)), items[order])
    write(folder / "queries.parquet", [f"q{i}" for i in range(300)], clustered(300, items.shape[1], seed=2))
    return generator(**{"k": K, "threads": 1, "queries": {"path": "queries.parquet"}} | settings)


class Notes(Listener):
    """Keeps what it is told."""

    def __init__(self):
        super().__init__()
        self.notes, self.stages = [], set()

    def note(self, text):
        self.notes.append(text)

    def progress(self, stage, done, total):
        self.stages.add(stage)


def opened(spec, folder, **settings):
    return open_online(spec, folder, folder / "nearcast", **settings)


def find_positions(ids):
    return [int(i) // 7 if isinstance(i, int) else int(i.removeprefix("item-")) for i in ids]


@every_engine
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("ids", "dtype"), [("int", np.float32), ("string", np.float16)])
def test_single_searches_reach_the_recall_with_exact_scores(tmp_path, engine, metric, ids, dtype):
    items, queries = clustered(N, DIM, seed=1).astype(dtype), clustered(200, DIM, seed=9)
    online = opened(shop(tmp_path, ids=ids, dtype=dtype, metric=metric), tmp_path, engine=engine, recall=0.9)
    truth = exact_join(queries, ArrayVectors(items), K, Metric(metric), threads=1)
    every = reference.all_scores(queries, items, metric)
    found = np.full((200, K), -np.inf, np.float32)
    for row in range(200):
        (listed,), (scores,) = online.search(queries[row : row + 1], K)
        places = find_positions(listed)
        assert len(set(places)) == len(places)
        assert scores == every[row, places].tolist()
        assert np.lexsort((places, -np.array(scores))).tolist() == list(range(len(places)))
        found[row, : len(scores)] = scores
    assert estimate_recall(recall_per_query(found, truth), 1 << 62).high >= 0.9
    assert (online.name, online.dim, online.recall) == (engine, DIM, 0.9)


@every_engine
def test_a_batch_is_answered_as_its_vectors_one_by_one(tmp_path, engine):
    online = opened(shop(tmp_path), tmp_path, engine=engine)
    queries = clustered(30, DIM, seed=4)
    ids, scores = online.search(queries, K)
    ones = [online.search(queries[row : row + 1], K) for row in range(30)]
    assert ids == [one[0][0] for one in ones]
    assert scores == [one[1][0] for one in ones]
    assert online.search(queries[:0], K) == ([], [])


@every_engine
def test_opening_again_takes_what_is_there(tmp_path, engine):
    spec, first, second = shop(tmp_path), Notes(), Notes()
    online = opened(spec, tmp_path, engine=engine, listener=first)
    again = opened(spec, tmp_path, engine=engine, listener=second)
    assert {"build", "ground truth", "read items"} <= first.stages
    assert not {"build", "ground truth", "read items"} & second.stages
    assert (again.params, again.reached) == (online.params, online.reached)
    query = clustered(1, DIM, seed=4)
    assert again.search(query, K) == online.search(query, K)


@every_engine
def test_the_items_and_the_index_of_a_run_are_taken(tmp_path, engine):
    spec = shop(tmp_path, engine=engine, recall=0.8)
    snapshot = run_generator(spec, tmp_path).snapshot
    heard = Notes()
    online = opened(spec, tmp_path, engine=engine, listener=heard)
    assert not {"build", "read items"} & heard.stages
    assert online.same_items(snapshot.manifest)
    assert [p.name.split("-")[0] for p in (tmp_path / "nearcast/test/online").glob("*-*")] == ["effort"]


def test_another_engine_than_the_run_s_is_kept_when_the_generator_is_run_again(tmp_path):
    spec = shop(tmp_path)
    run_generator(spec, tmp_path)
    opened(spec, tmp_path, engine="faiss-ivf")
    run_generator(spec, tmp_path, again=True)
    heard = Notes()
    opened(spec, tmp_path, engine="faiss-ivf", listener=heard)
    assert not {"build", "ground truth"} & heard.stages


def test_new_items_make_a_new_index_and_the_old_one_still_answers(tmp_path):
    spec = shop(tmp_path)
    snapshot = run_generator(spec, tmp_path).snapshot
    old = opened(spec, tmp_path, engine="faiss-ivf")
    query = clustered(1, DIM, seed=4)
    before = old.search(query, K)
    shop(tmp_path, items=clustered(N, DIM, seed=11))
    run_generator(spec, tmp_path)
    new = opened(spec, tmp_path, engine="faiss-ivf")
    shutil.rmtree(tmp_path / "nearcast")
    assert old.search(query, K) == before
    assert new.search(query, K) != before
    assert old.same_items(snapshot.manifest)
    assert not new.same_items(snapshot.manifest)


def test_what_was_made_of_other_items_goes(tmp_path):
    opened(shop(tmp_path), tmp_path, engine="faiss-ivf")
    home = tmp_path / "nearcast/test/online"
    before = {path.name for path in home.glob("*-*")}
    opened(shop(tmp_path, items=clustered(N, DIM, seed=11)), tmp_path, engine="faiss-ivf")
    after = {path.name for path in home.glob("*-*")}
    assert sorted(name.split("-")[0] for name in after) == ["effort", "index", "items", "queries"]
    assert {name for name in before & after if not name.startswith("queries")} == set()


def test_an_index_that_was_never_finished_is_built_again(tmp_path):
    spec, heard = shop(tmp_path), Notes()
    online = opened(spec, tmp_path, engine="faiss-ivf")
    (index,) = (tmp_path / "nearcast/test/online").glob("index-*")
    (index / "manifest.json").unlink()  # as a kill in the middle leaves it
    (index / "index.faiss").write_bytes(b"half")
    again = opened(spec, tmp_path, engine="faiss-ivf", listener=heard)
    assert "build" in heard.stages
    query = clustered(1, DIM, seed=4)
    assert again.search(query, K) == online.search(query, K)


@every_engine
@pytest.mark.parametrize("metric", METRICS)
def test_k_above_the_items_lists_them_all(tmp_path, engine, metric):
    spec = shop(tmp_path, items=clustered(40, DIM, seed=1), metric=metric)
    (ids,), (scores,) = opened(spec, tmp_path, engine=engine, recall=1.0).search(clustered(1, DIM, seed=4), 100)
    assert sorted(ids) == [7 * p for p in range(40)]
    assert scores == sorted(scores, reverse=True)


@every_engine
def test_copies_of_a_vector_are_all_found_the_smallest_id_first(tmp_path, engine):
    items = clustered(600, DIM, seed=1)
    items[np.random.default_rng(5).permutation(600)[:300]] = items[17]
    copies = np.flatnonzero((items == items[17]).all(axis=1))
    online = opened(shop(tmp_path, items=items), tmp_path, engine=engine)
    (ids,), (scores,) = online.search(items[17:18], K)
    assert find_positions(ids) == copies[:K].tolist()
    assert scores == [0.0] * K


@every_engine
def test_a_larger_k_than_the_generator_s_is_searched_harder(tmp_path, engine):
    items, queries = clustered(N, DIM, seed=1), clustered(200, DIM, seed=9)
    online = opened(shop(tmp_path, metric="cosine"), tmp_path, engine=engine)
    truth = exact_join(queries, ArrayVectors(items), 5 * K, Metric.COSINE, threads=1)
    found = np.full((200, 5 * K), -np.inf, np.float32)
    for row, scores in enumerate(online.search(queries, 5 * K)[1]):
        found[row, : len(scores)] = scores
    assert estimate_recall(recall_per_query(found, truth), 1 << 62).high >= 0.95


@every_engine
def test_many_threads_get_the_answers_of_one(tmp_path, engine):
    online = opened(shop(tmp_path), tmp_path, engine=engine)
    queries = clustered(64, DIM, seed=4)
    alone = [online.search(queries[row : row + 1], K) for row in range(64)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda row: online.search(queries[row % 64 : row % 64 + 1], K), range(512)))
    assert together == alone * 8


def test_a_generator_without_queries_is_calibrated_on_its_items(tmp_path):
    online = opened(shop(tmp_path, queries=None), tmp_path, engine="faiss-ivf")
    assert online.reached.sample == N // 2
    (ids,), _ = online.search(clustered(N, DIM, seed=1)[5:6], K)
    assert ids[0] == 35


def test_a_recall_of_one_is_full_effort(tmp_path):
    assert opened(shop(tmp_path), tmp_path, recall=1.0).params == {"ef_search": N}


HARD_TO_RANK = {  # where faiss' float32 sums lose digits, or leave it open which of equal items is kept
    "ties": lambda n, seed: np.random.default_rng(seed).integers(1, 4, (n, 4)).astype(np.float32),
    "cancellation": lambda n, seed: (1e4 + np.random.default_rng(seed).normal(size=(n, 4))).astype(np.float32),
    "copies": lambda n, seed: np.repeat(np.random.default_rng(seed).normal(size=(n // 20, 4)), 20, 0).astype(
        np.float32
    ),
}


@every_engine
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shape", HARD_TO_RANK)
def test_at_full_effort_a_search_is_the_exact_one_with_equal_scores_by_id(tmp_path, engine, metric, shape):
    items, queries = HARD_TO_RANK[shape](400, 1), HARD_TO_RANK[shape](40, 2)
    online = opened(shop(tmp_path, items=items, metric=metric), tmp_path, engine=engine, recall=1.0)
    truth = exact_join(queries, ArrayVectors(items), 30, Metric(metric), threads=1)
    for k in (1, K, 30):  # the last is above the generator's own
        ids, scores = online.search(queries, k)
        assert [find_positions(row) for row in ids] == truth.positions[:, :k].tolist()
        assert scores == truth.scores[:, :k].tolist()
    assert len(online.search(queries[:1], 1000)[0][0]) == 400


def test_two_recalls_have_two_efforts(tmp_path):
    spec = shop(tmp_path)
    low, high = (opened(spec, tmp_path, engine="faiss-ivf", recall=recall) for recall in (0.6, 0.98))
    assert low.params["nprobe"] < high.params["nprobe"]
    with pytest.warns(DeprecationWarning, match=r"OnlineIndex\.effort is now OnlineIndex\.params"):
        assert low.effort == low.params


@pytest.mark.parametrize(
    ("vectors", "what"),
    [
        (np.zeros((1, DIM + 1)), rf"\(count, {DIM}\)"),
        (np.zeros(DIM), rf"\(count, {DIM}\)"),
        (np.full((1, DIM), np.nan), "vector 0 holds NaN"),
        (np.array([[0.0] * DIM, [np.inf] * DIM]), "vector 1 holds NaN"),
        (np.full((1, DIM), 1e30), "longer than 1e"),
        (np.full((1, DIM), 1e300), "holds NaN or infinity"),
        ([["x"] * DIM], "no array of numbers"),
    ],
)
def test_vectors_that_cannot_be_searched_are_refused(tmp_path, vectors, what):
    online = opened(shop(tmp_path, items=clustered(40, DIM, seed=1)), tmp_path, recall=1.0)
    with pytest.raises(InputError, match=what):
        online.search(vectors, K)


def test_k_below_one_is_refused(tmp_path):
    online = opened(shop(tmp_path, items=clustered(40, DIM, seed=1)), tmp_path, recall=1.0)
    with pytest.raises(InputError, match="k is 0"):
        online.search(np.zeros((1, DIM)), 0)


def test_an_engine_that_cannot_search_is_refused(tmp_path):
    with pytest.raises(SpecError, match=r"'dense'.*faiss-hnsw, faiss-ivf"):
        opened(shop(tmp_path), tmp_path, engine="dense")


def test_a_remembered_effort_that_cannot_be_read_names_its_file(tmp_path):
    spec = shop(tmp_path)
    opened(spec, tmp_path, engine="faiss-ivf")
    (path,) = (tmp_path / "nearcast/test/online").glob("effort-*")
    path.write_text("{")
    with pytest.raises(DamagedError, match=path.name):
        opened(spec, tmp_path, engine="faiss-ivf")


def test_whoever_comes_second_waits_for_the_first(tmp_path):
    spec, heard, done = shop(tmp_path), Notes(), []
    with hold_lock(tmp_path / "nearcast/test/online/.lock", "the online index of 'test'"):
        second = threading.Thread(target=lambda: done.append(opened(spec, tmp_path, recall=1.0, listener=heard)))
        second.start()
        while not heard.notes:
            second.join(0.01)
        assert not done
    second.join(60)
    assert done
    assert "waiting: the online index of 'test' is held by process" in heard.notes[0]


def test_without_faiss_the_extra_is_named_before_anything_is_read(tmp_path):
    code = """
import sys
from pathlib import Path
sys.modules["faiss"] = None
from nearcast.errors import MissingExtraError
from nearcast.join.online_index import open_online
from nearcast.spec import GeneratorSpec
spec = GeneratorSpec(name="x", metric="l2", k=1, items={"path": "is not there"})
try:
    open_online(spec, Path("."), Path("out"))
except MissingExtraError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert "pip install 'nearcast[faiss]'" in done.stdout
    assert not (tmp_path / "out").exists()
