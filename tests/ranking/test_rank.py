"""A model ranks what the join has found: whole runs with functions in a file beside the spec, good ones and bad."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import nearcast
from builders import exact_join
from nearcast.errors import InputError, SpecError
from nearcast.join.listener import Listener
from nearcast.types import ArrayVectors, Metric
from needs import require_module

N_ITEMS, N_QUERIES, DIM, K, FETCH = 400, 60, 8, 5, 20

CHEAPEST = """
import numpy as np
def score(batch):
    return -batch["item.price"].to_numpy()
"""


class Silence(Listener):
    def progress(self, stage, done, total):
        pass


def vectors(n, seed):
    return np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float32)


ITEMS, QUERIES = vectors(N_ITEMS, 1), vectors(N_QUERIES, 2)
PRICES = np.random.default_rng(3).integers(1, 30, N_ITEMS).astype(float)
NEAR = exact_join(QUERIES, ArrayVectors(ITEMS), FETCH, Metric.INNER_PRODUCT, threads=1, memory_bytes=1 << 28)


def column(rows):
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), DIM)


def shop(folder: Path, code: str = CHEAPEST, **changed) -> dict:
    """Items with prices, queries with moods, and a spec whose model is in models.py."""
    names = [f"q{i:02d}" for i in range(N_QUERIES)]
    pq.write_table(
        pa.table({"id": np.arange(N_ITEMS), "vector": column(ITEMS), "price": PRICES}), folder / "items.parquet"
    )
    moods = ["good", "bad"] * (N_QUERIES // 2)
    pq.write_table(pa.table({"id": names, "vector": column(QUERIES), "mood": moods}), folder / "queries.parquet")
    (folder / "models.py").write_text(code)
    rank = {"function": "models:score", "fetch": FETCH} | changed.pop("rank", {})
    return {
        "name": "shop",
        "metric": "inner_product",
        "k": K,
        "memory": "2GB",
        "items": {"path": "items.parquet", "attributes": ["price"]},
        "queries": {"path": "queries.parquet", "attributes": ["mood"]},
        "rank": {name: value for name, value in rank.items() if value is not None},
    } | changed


def run(folder: Path, spec: dict):
    return nearcast.run(spec, base=folder, listener=Silence())


def table_of(outcome) -> pa.Table:
    return pq.read_table(outcome.snapshot.folder / "candidates")


def expected_lists() -> list[list[int]]:
    """The cheapest of the nearest; equal prices by id."""
    return [sorted(near.tolist(), key=lambda item: (PRICES[item], item))[:K] for near in NEAR.positions]


def test_the_best_by_the_model_stay_in_its_order_with_both_scores(tmp_path):
    rows = table_of(run(tmp_path, shop(tmp_path)))
    assert rows["candidate_ids"].to_pylist() == expected_lists()
    for query, row in enumerate(rows.to_pylist()):
        assert row["rank_scores"] == [-PRICES[item] for item in row["candidate_ids"]]
        near = dict(zip(NEAR.positions[query].tolist(), NEAR.scores[query].tolist(), strict=True))
        assert row["scores"] == [near[item] for item in row["candidate_ids"]]


def test_without_a_model_there_is_no_column_of_its_scores(tmp_path):
    spec = shop(tmp_path)
    del spec["rank"]
    assert "rank_scores" not in table_of(run(tmp_path, spec)).column_names


def test_a_pair_has_both_sides_ids_vectors_and_attributes_and_the_score_of_the_join(tmp_path):
    code = """
import numpy as np
def score(batch):
    q, i = (np.stack(batch[name].to_numpy(zero_copy_only=False)) for name in ("query_vector", "item_vector"))
    assert np.allclose((q * i).sum(axis=1), batch["score"].to_numpy(), atol=1e-4)
    good = np.array(batch["query.mood"].to_pylist()) == "good"
    assert (good == [int(name[1:]) % 2 == 0 for name in batch["query_id"].to_pylist()]).all()
    return np.where(good, 1, -1) * batch["item_id"].to_numpy().astype(float)
"""
    lists = table_of(run(tmp_path, shop(tmp_path, code)))["candidate_ids"].to_pylist()
    assert lists[0] == sorted(NEAR.positions[0].tolist(), reverse=True)[:K]
    assert lists[1] == sorted(NEAR.positions[1].tolist())[:K]


@pytest.mark.parametrize("batch", [1, FETCH, 7 * FETCH + 3])
def test_the_size_of_a_call_changes_the_calls_and_not_the_lists(tmp_path, batch):
    code = CHEAPEST + f"\ninner = score\ndef score(b):\n    assert len(b) <= {max(batch, FETCH)}\n    return inner(b)\n"
    rows = table_of(run(tmp_path, shop(tmp_path, code, rank={"batch": batch})))
    assert rows["candidate_ids"].to_pylist() == expected_lists()


def test_recall_is_that_of_what_the_model_was_given(tmp_path):
    snapshot = run(tmp_path, shop(tmp_path)).snapshot
    assert snapshot.manifest.measures["recall"] == 1.0
    assert snapshot.manifest.target.met
    assert set(snapshot.manifest.measures) >= {"recall_at_1", "recall_at_10"}


def test_look_ups_are_in_the_models_order_and_served_with_its_scores(tmp_path):
    spec = shop(tmp_path)
    snapshot = run(tmp_path, spec).snapshot
    assert snapshot.lookup("q00").ids == tuple(expected_lists()[0])
    store = f"lmdb:{tmp_path / 'store'}"
    nearcast.publish("shop", out=tmp_path / "nearcast", store=store, accept={}, listener=Silence())
    with nearcast.open(store, "shop") as lookup:
        answer = lookup.get("q00")
        assert list(answer.ids) == expected_lists()[0]
        assert list(answer.scores) == [-PRICES[item] for item in answer.ids]
        bound = sorted(answer.scores)[2]
        assert list(lookup.get("q00", min_score=bound).scores) == [s for s in answer.scores if s >= bound]


def test_another_function_version_or_fetch_is_another_snapshot_and_time_is_not(tmp_path):
    spec = shop(tmp_path)
    first = run(tmp_path, spec)
    assert run(tmp_path, spec).reused
    assert run(tmp_path, spec | {"rank": spec["rank"] | {"timeout_seconds": 30.0}}).reused
    versions = [first.snapshot.version]
    for change in ({"version": "2"}, {"fetch": FETCH + 1}):
        made = run(tmp_path, spec | {"rank": spec["rank"] | change})
        assert not made.reused
        versions.append(made.snapshot.version)
    (tmp_path / "models.py").write_text(CHEAPEST.replace("-batch", "batch"))
    dearest = run(tmp_path, spec)
    assert not dearest.reused
    assert table_of(dearest)["candidate_ids"].to_pylist() != expected_lists()
    assert versions == [1, 2, 3]


BAD = {
    "raises": (
        'def score(batch):\n    if "q07" in batch["query_id"].to_pylist():\n        raise KeyError("no mood")\n'
        '    return batch["score"].to_numpy()\n',
        r"models:score raised KeyError: 'no mood', for query 'q07' and item \d+; mend it",
    ),
    "nan": (
        "import numpy as np\ndef score(batch):\n    s = batch['score'].to_numpy().copy()\n"
        "    s[np.array(batch['query_id'].to_pylist()) == 'q11'] = np.nan\n    return s\n",
        r"returned nan for query 'q11' and item \d+, and for 20 of 1,200 pairs",
    ),
    "infinite": ("def score(batch):\n    return [1e300] * len(batch)\n", r"returned 1e\+300 for query 'q00'"),
    "too few": (
        "def score(batch):\n    return batch['score'].to_numpy()[:-1]\n",
        r"returned shape \(1199,\) for 1,200 pairs.*from query 'q00' and item \d+ to query 'q59'",
    ),
    "a table": (
        "def score(batch):\n    return batch['score'].to_numpy().reshape(-1, 2)\n",
        r"returned shape \(600, 2\)",
    ),
    "nothing": ("def score(batch):\n    return None\n", r"returned shape \(\)|returned a NoneType"),
    "words": ("def score(batch):\n    return ['good'] * len(batch)\n", "returned a list that is no array of numbers"),
    "leaves": ("def score(batch):\n    raise SystemExit(0)\n", "raised SystemExit"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_model_is_bad_input_that_names_the_pairs_and_the_way_out(tmp_path, kind):
    code, words = BAD[kind]
    with pytest.raises(InputError, match=words) as caught:
        run(tmp_path, shop(tmp_path, code))
    assert "docs/ranking.md" in str(caught.value)
    assert not (tmp_path / "nearcast" / "shop" / "snapshots").exists()


def test_a_slow_model_is_bad_input_and_not_waited_for(tmp_path):
    code = "import time\ndef score(batch):\n    time.sleep(30)\n"
    with pytest.raises(InputError, match=r"has not returned after 0\.2 s for 1,200 pairs.*rank\.timeout_seconds"):
        run(tmp_path, shop(tmp_path, code, rank={"timeout_seconds": 0.2}))


def test_after_a_bad_model_is_mended_the_run_ends_well(tmp_path):
    spec = shop(tmp_path, BAD["raises"][0])
    with pytest.raises(InputError):
        run(tmp_path, spec)
    (tmp_path / "models.py").write_text(CHEAPEST)
    assert table_of(run(tmp_path, spec))["candidate_ids"].to_pylist() == expected_lists()


@pytest.mark.parametrize(
    ("rank", "words"),
    [
        ({"function": None}, "rank needs one of the two"),
        ({"model": "m.onnx"}, "rank needs one of the two"),
        ({"function": "models"}, 'write it as "module:function"'),
        ({"fetch": K - 1}, "rank.fetch is 4, and k is 5"),
        ({"function": "nowhere_at_all:score"}, "there is no module 'nowhere_at_all'"),
        ({"function": "models:rate"}, "has no function 'rate'"),
        ({"function": None, "model": "gone.onnx"}, "no file at"),
    ],
)
def test_a_model_that_is_not_there_is_a_fault_of_the_spec(tmp_path, rank, words):
    with pytest.raises(SpecError, match=words):
        run(tmp_path, shop(tmp_path, rank=rank))


def test_caps_and_a_model_do_not_go_together(tmp_path):
    with pytest.raises(SpecError, match="caps are applied by the join"):
        run(tmp_path, shop(tmp_path, caps=[{"by": "price", "max_per_list": 1}]))


def test_a_module_that_cannot_be_imported_is_named(tmp_path):
    with pytest.raises(SpecError, match=r"models\.py cannot be imported: ModuleNotFoundError"):
        run(tmp_path, shop(tmp_path, "import not_here_either\n"))


def test_an_onnx_model_ranks_by_the_columns_that_its_inputs_are_called_after(tmp_path):
    require_module("onnxruntime")
    onnx = require_module("onnx")
    helper, kind = onnx.helper, onnx.TensorProto
    graph = helper.make_graph(
        [helper.make_node("Neg", ["item.price"], ["rank"])],
        "cheapest",
        [helper.make_tensor_value_info("item.price", kind.FLOAT, [None, 1])],
        [helper.make_tensor_value_info("rank", kind.FLOAT, [None, 1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "cheapest.onnx")
    spec = shop(tmp_path, rank={"function": None, "model": "cheapest.onnx"})
    assert table_of(run(tmp_path, spec))["candidate_ids"].to_pylist() == expected_lists()
    graph.input[0].name = "item.size"
    graph.node[0].input[0] = "item.size"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "other.onnx"
    )
    with pytest.raises(SpecError, match=r"needs the input 'item\.size', and a pair has query_id, .*item\.price"):
        run(tmp_path, shop(tmp_path, rank={"function": None, "model": "other.onnx"}))
    (tmp_path / "no.onnx").write_bytes(b"hello")
    with pytest.raises(SpecError, match="cannot be read by onnxruntime"):
        run(tmp_path, shop(tmp_path, rank={"function": None, "model": "no.onnx"}))


# ---- explained ----


def explained(folder, query, place):
    return nearcast.explain("shop", f"q{query:02d}", int(NEAR.positions[query, place]), out=folder / "nearcast")


def test_an_item_that_the_model_ranks_lower_is_told_both_ranks(tmp_path):
    nearcast.run(shop(tmp_path), base=tmp_path)
    for query in range(4):
        near = NEAR.positions[query]
        by_model = near[np.lexsort((near, PRICES[near]))]
        for join_rank, item in enumerate(near, 1):
            model_rank = int(np.flatnonzero(by_model == item)[0]) + 1
            found = explained(tmp_path, query, join_rank - 1)
            assert (found.rank, found.model_rank) == (join_rank, model_rank)
            assert found.model_score == -PRICES[item]
            assert found.last_score is None
            assert found.last_model_score == -PRICES[by_model[K - 1]]
            if model_rank <= K:
                assert (found.cause, found.listed_rank, found.left_out) == ("listed", model_rank, ())
                assert "left out" not in found.words
            else:
                assert found.cause == "ranked_lower"
                assert f"join rank {join_rank}, model rank {model_rank} of {FETCH}" in found.words


def test_an_item_that_the_join_does_not_fetch_is_told_so(tmp_path):
    nearcast.run(shop(tmp_path), base=tmp_path)
    far = exact_join(QUERIES[:1], ArrayVectors(ITEMS), FETCH + 1, Metric.INNER_PRODUCT).positions[0, FETCH]
    found = nearcast.explain("shop", "q00", int(far), out=tmp_path / "nearcast")
    assert (found.cause, found.rank, found.model_rank) == ("nearer", FETCH + 1, None)
    assert f"fetches the best {FETCH} for the model" in found.words


@pytest.mark.parametrize(
    "then",
    [
        "gone",
        "def score(batch):\n    raise ValueError('x')\n",
        "def score(batch):\n    return batch['score'].to_numpy() * 2\n",
        "import nothing_of_that_name\n",
    ],
)
def test_without_its_model_a_list_is_still_explained_by_it(tmp_path, then):
    spec = shop(tmp_path, rank={"function": "only_here:score"})
    (tmp_path / "models.py").rename(tmp_path / "only_here.py")
    nearcast.run(spec, base=tmp_path)
    if then == "gone":
        (tmp_path / "only_here.py").unlink()
    else:
        (tmp_path / "only_here.py").write_text(then)
    near = NEAR.positions[0]
    out = next(place for place in range(FETCH) if near[place] not in near[np.lexsort((near, PRICES[near]))][:K])
    found = explained(tmp_path, 0, out)
    assert found.cause == "ranked_lower"
    assert "cannot be run again" in found.words


def test_a_rule_and_a_least_score_come_before_the_model(tmp_path):
    least = float(NEAR.scores[0, 9])
    rules = [{"name": "cheap", "keep": "item.price <= 20"}]
    nearcast.run(shop(tmp_path, rules=rules, min_score=least), base=tmp_path)
    for place in range(FETCH):
        found, price = explained(tmp_path, 0, place), PRICES[NEAR.positions[0, place]]
        if price > 20:
            assert (found.cause, found.rule) == ("rule", "cheap")
        elif place > 9:
            assert found.cause == "below_min_score"
        else:
            assert found.cause in ("listed", "ranked_lower")
