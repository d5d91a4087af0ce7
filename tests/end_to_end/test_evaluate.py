"""Lists judged by labels: in a run, before a publish, by the command, on the page. Labels stay apart from learning."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.end_to_end import shop as at
from tests.end_to_end.shop import fail, manifest, succeed, write_rows, write_spec

import nearcast
from nearcast.api.distributed import gather_run, plan_run
from nearcast.api.evaluations import find_evaluation
from nearcast.api.shared_runs import work_on
from nearcast.dashboard.document import build_document
from nearcast.errors import AuditError, InputError, NotFoundError, SpecError, TargetError
from nearcast.evaluation.evaluation_report import Evaluation
from nearcast.history.event_log import append, read
from nearcast.storage.open_storage import open_storage

N_LABELLED = 200
MARKETS = ("de", "fr", "it")
QUERIES = {"path": "queries.parquet", "attributes": ["market"]}


def write_labelled_shop(folder: Path) -> None:
    """A shop whose queries have markets, and labels: of query i, the item of rank i % 20; lists hold ten."""
    at.write_items(folder, at.clustered(at.N_ITEMS, seed=1))
    markets = [MARKETS[i % 3] for i in range(at.N_QUERIES)]
    vectors = list(at.clustered(at.N_QUERIES, seed=2))
    write_rows(folder / "queries.parquet", [f"q{i:03d}" for i in range(at.N_QUERIES)], vectors, market=markets)
    write_spec(folder, "deep.toml", name="deep", k=20, queries=QUERIES)
    deep = nearcast.run(folder / "deep.toml").snapshot
    rows = [(f"q{i:03d}", deep.lookup(f"q{i:03d}").ids[i % 20], 1.0 + i % 3) for i in range(N_LABELLED)]
    rows += [("q000", deep.lookup("q000").ids[3], 2.0), ("q001", "gone-item", 1.0), ("unknown-key", rows[0][1], 1.0)]
    rows += [rows[5], ("q250", rows[0][1], 0.0)]  # a repeated row, and a query without a relevant item
    columns = list(zip(*rows, strict=True))
    devices = ["phone" if n % 2 else "desk" for n in range(len(rows))]
    table = pa.table({"query": columns[0], "item": columns[1], "grade": columns[2], "device": devices})
    pq.write_table(table, folder / "labels.parquet")
    rng = np.random.default_rng(8)
    seen = [f"i{i:04d}" for i in rng.zipf(1.5, 3000) % at.N_ITEMS]
    pq.write_table(pa.table({"item": [*seen, "sold-out"]}), folder / "last_week.parquet")


LABELS = {"path": "labels.parquet", "grade": "grade"}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labelled")
    write_labelled_shop(folder)
    write_spec(folder, queries=QUERIES)
    nearcast.run(folder / "shop.toml")
    return folder


@pytest.fixture
def shop(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of our own with the snapshot 1 of the generator `shop`, made without labels."""
    shutil.copytree(written, tmp_path / "shop")
    monkeypatch.chdir(tmp_path / "shop")
    return tmp_path / "shop"


def specify(folder: Path, promise: Mapping[str, float] | None = None, **labels: Any) -> Path:
    """Write a spec with labels and promises. Returns its path."""
    return write_spec(folder, queries=QUERIES, labels=LABELS | labels, promise=dict(promise or {}))


def hit_rate_by_hand(folder: Path, k: int, version: int = 1) -> float:
    """The share of labelled queries with a relevant item among the first k, one look-up at a time."""
    grades: dict[str, set[str]] = {}
    for row in pq.read_table(folder / "labels.parquet").to_pylist():
        if row["grade"] > 0:
            grades.setdefault(row["query"], set()).add(row["item"])
    hits = 0
    for query, items in grades.items():
        try:
            hits += not items.isdisjoint(nearcast.lookup("shop", query, version=version).ids[:k])
        except NotFoundError:
            assert query == "unknown-key"
    return hits / len(grades)


def test_a_run_says_which_labels_it_used_and_measures_its_lists_by_them(shop: Path) -> None:
    made = nearcast.run(specify(shop, depths=[3, 10]), again=True).snapshot
    facts = made.manifest.labels
    assert facts is not None
    described, contents = facts["labels"], (shop / "labels.parquet").read_bytes()
    assert described["path"] == "labels.parquet"
    assert described["rows"] == N_LABELLED + 5
    assert described["files"][0]["bytes"] == len(contents)
    assert (described["repeated"], described["not_relevant"], described["queries_without_relevant"]) == (1, 1, 1)
    assert (facts["queries"], facts["without_list"], facts["unknown_items"]) == (N_LABELLED + 1, 1, 1)
    for k in (3, 10):
        figure = facts["metrics"][f"hit_rate_at_{k}"]
        assert figure["value"] == pytest.approx(hit_rate_by_hand(shop, k, made.version))
        assert figure["low"] < figure["value"] < figure["high"]
    assert facts["metrics"]["mrr_at_3"]["value"] < facts["metrics"]["mrr_at_10"]["value"]


def test_labels_change_neither_the_lists_nor_the_fingerprint_nor_a_manifest_without_them(shop: Path) -> None:
    before = manifest(shop)
    assert "labels" not in before
    assert not {"labels", "promise"} & before["spec"].keys()
    outcome = nearcast.run(specify(shop, {"hit_rate_at_10": 0.1}))
    assert outcome.reused  # the same inputs: nothing is joined again
    assert manifest(shop) == before


def test_a_broken_promise_fails_the_run_and_stops_a_publish_by_name(shop: Path) -> None:
    specify(shop, {"hit_rate_at_10": 0.9})
    told = fail("run", "shop.toml", "--again", code=4, cwd=shop)
    assert re.search(r"breaks a promise by the labels of labels\.parquet: hit_rate_at_10 is 0\.\d{4} \(95% ", told)
    assert "and 0.9 is promised" in told
    for generator in ("shop.toml", "shop"):  # by the spec as it is, and by that of the snapshot
        told = fail("publish", generator, code=10, cwd=shop)
        assert re.search(r"promise: by the labels of labels\.parquet, hit_rate_at_10 is 0\.", told)
    with pytest.raises(NotFoundError, match="was never published"):
        nearcast.published("shop")
    succeed("publish", "shop", "--accept", "promise", "--why", "a new market", cwd=shop)
    [published] = nearcast.published("shop")
    assert published.pointer is not None
    assert published.pointer.version == 2


def test_a_broken_promise_is_an_alert_of_the_monitor_and_a_problem_on_the_page(shop: Path) -> None:
    nearcast.publish("shop")
    with pytest.raises(TargetError):
        nearcast.run(specify(shop, {"hit_rate_at_10": 0.9}), again=True)
    told = fail("monitor", "shop", "--fail-on", "labels", code=13, cwd=shop)
    assert "labels" in told
    [page] = build_document(Path("nearcast"), ["shop"])["generators"]
    [problem] = [one for one in page["state"]["troubles"] if one["check"] == "labels"]
    assert problem["title"] == "A promise by labels is broken"
    assert "hit_rate_at_10 is 0." in problem["text"]
    nearcast.publish(specify(shop, {"hit_rate_at_10": 0.05}))  # a promise that is kept ends it without a new run
    assert "labels" not in {alert.check for alert in nearcast.monitor("shop").alerts}
    nearcast.evaluate(specify(shop, {"hit_rate_at_10": 0.95}))
    assert "labels" in {alert.check for alert in nearcast.monitor("shop").alerts}


def test_a_kept_promise_is_published_and_stands_in_the_audit(shop: Path) -> None:
    spec = specify(shop, {"hit_rate_at_10": 0.3, "ndcg_at_3": 0.05})
    nearcast.run(spec, again=True)
    done = nearcast.publish(spec)
    [found] = [finding for finding in done.findings if finding.rule == "promise"]
    assert found.passed
    assert "hit_rate_at_10 is 0." in found.text
    assert "ndcg_at_3" in found.text


def test_newer_labels_judge_a_snapshot_that_is_used_again(shop: Path) -> None:
    spec = specify(shop, {"hit_rate_at_10": 0.3})
    nearcast.run(spec, again=True)
    table = pq.read_table(shop / "labels.parquet")
    pq.write_table(table.set_column(1, "item", pa.array(["i0000"] * len(table))), shop / "labels.parquet")
    with pytest.raises(TargetError, match="hit_rate_at_10 is 0"):
        nearcast.run(spec)
    assert at.snapshots(shop) == ["000001", "000002"]
    with pytest.raises(AuditError, match="hit_rate_at_10 is 0"):
        nearcast.publish(spec)


def test_a_promise_that_no_run_measured_stops_a_publish_by_name(shop: Path) -> None:
    path = at.snapshot(shop) / "manifest.json"
    facts = json.loads(path.read_text())
    facts["spec"] |= {"promise": {"hit_rate_at_10": 0.2}, "labels": {"path": "labels.parquet"}}
    path.write_text(json.dumps(facts))
    with pytest.raises(AuditError, match="promise: hit_rate_at_10 is promised, and the run measured no labels"):
        nearcast.publish("shop")


def test_lists_that_lose_by_the_labels_are_not_published(shop: Path) -> None:
    spec = specify(shop)
    nearcast.publish(spec)
    vectors = at.clustered(at.N_ITEMS, seed=1) + 1.5 * np.random.default_rng(1).normal(size=(at.N_ITEMS, 16))
    at.write_items(shop, vectors.astype(np.float32))
    nearcast.run(spec)
    with pytest.raises(AuditError) as raised:
        nearcast.publish(spec)
    [found] = [f for f in raised.value.findings if f.rule == "labels"]  # type: ignore[attr-defined]
    assert not found.passed
    assert re.search(r"hit_rate_at_10 by the labels .* with 000001: -0\.\d+ \(95% interval", found.text)
    loose = write_spec(
        shop,
        queries=QUERIES,
        labels=LABELS,
        audit={"max_label_loss": 1.0, "min_overlap": 0.0, "max_vectors_changed": 1.0, "max_length_change": 100.0},
    )
    [found] = [f for f in nearcast.publish(loose, dry_run=True).findings if f.rule == "labels"]
    assert found.passed
    by_name = nearcast.publish(
        "shop",
        dry_run=True,
        accept={f.rule: "test" for f in raised.value.findings if not f.passed and f.rule != "labels"},
    )  # type: ignore[attr-defined]
    [found] = [f for f in by_name.findings if f.rule == "labels"]
    assert found.passed
    assert "publish with the spec" in found.text


def evaluate(*words: object, cwd: Path) -> Any:
    return json.loads(succeed("evaluate", *words, "--json", cwd=cwd).stdout)


def test_the_command_prints_a_table_that_fits_a_screen_and_json(shop: Path) -> None:
    words = ("shop", "labels.parquet", "--grade", "grade", "--by", "market", "--by", "device")
    words += ("--popularity", "last_week.parquet")
    text = succeed("evaluate", *words, cwd=shop).stdout
    assert max(map(len, text.splitlines())) <= 110
    assert len(text.splitlines()) <= 30
    assert "shop 000001 by labels.parquet: 201 queries with relevant items, of 205 rows" in text
    assert "labelled queries without a list in 000001: 1 (0.5%), counted as misses" in text
    assert "relevant items that are not in 000001, so that no list can hold them: 1" in text
    assert re.search(r"hit_rate_at_10 +0\.\d{4} \(0\.\d{4} to 0\.\d{4}\) +\+0\.\d{4} \(", text)
    found = evaluate(*words, cwd=shop)
    assert found["metrics"]["hit_rate_at_10"]["value"] == pytest.approx(hit_rate_by_hand(shop, 10))
    [rival] = found["rivals"]
    assert rival["name"] == "popularity"
    lead = found["metrics"]["recall_at_10"]["value"] - rival["metrics"]["recall_at_10"]["value"]
    assert rival["leads"]["recall_at_10"]["value"] == pytest.approx(lead, abs=1e-8)
    by_market = {part["value"]: part["queries"] for part in found["slices"] if part["by"] == "market"}
    assert by_market == {"de": 67, "fr": 67, "it": 66}
    assert {part["value"] for part in found["slices"] if part["by"] == "device"} == {"phone", "desk"}
    assert evaluate(*words, cwd=shop) == found  # the seed decides the intervals


def test_a_slice_equals_an_evaluation_of_its_queries_alone(shop: Path) -> None:
    whole = nearcast.evaluate("shop", "labels.parquet", grade="grade", slices=["market"])
    table = pq.read_table(shop / "labels.parquet")
    french = {f"q{i:03d}" for i in range(at.N_QUERIES) if MARKETS[i % 3] == "fr"}
    alone = nearcast.evaluate(
        "shop", table.filter(pa.array([q in french for q in table["query"].to_pylist()])), grade="grade"
    )
    [part] = [part for part in whole.slices if part.value == "fr"]
    assert {name: figure.value for name, figure in part.metrics.items()} == pytest.approx(
        {name: figure.value for name, figure in alone.metrics.items()}
    )


def test_lists_are_compared_with_those_of_another_snapshot_and_the_served_ones(shop: Path) -> None:
    nearcast.publish("shop")
    vectors = at.clustered(at.N_ITEMS, seed=1) + 0.5 * np.random.default_rng(1).normal(size=(at.N_ITEMS, 16))
    at.write_items(shop, vectors.astype(np.float32))
    nearcast.run(shop / "shop.toml")
    found = evaluate("shop", "labels.parquet", "--against", "served", "--against", "1", cwd=shop)
    served, first = found["rivals"]
    assert (served["name"], first["name"]) == ("served 000001", "000001")
    assert served["metrics"] == first["metrics"]
    assert served["leads"] == first["leads"]
    lead = found["metrics"]["ndcg_at_10"]["value"] - first["metrics"]["ndcg_at_10"]["value"]
    assert first["leads"]["ndcg_at_10"]["value"] == pytest.approx(lead, abs=1e-8)
    by_default = evaluate("shop", "labels.parquet", cwd=shop)
    assert [rival["name"] for rival in by_default["rivals"]] == ["served 000001"]
    itself = evaluate("shop", "labels.parquet", "--snapshot", "1", cwd=shop)
    assert itself["rivals"] == []


def test_served_lists_are_without_the_items_that_the_overlay_removes(shop: Path) -> None:
    nearcast.publish("shop")
    item = nearcast.lookup("shop", "q000").ids[0]
    labels = pa.table({"query": ["q000"], "item": [item]})
    before = nearcast.evaluate("shop", labels, against=["served"])
    with contextlib.closing(nearcast.overlay(shop / "nearcast" / "store", "shop")) as overlay:
        overlay.remove([item])
    after = nearcast.evaluate("shop", labels, against=["served"])
    assert [one.rivals[0].metrics["hit_rate_at_10"].value for one in (before, after)] == [1.0, 0.0]
    assert after.metrics["hit_rate_at_10"].value == 1.0


def test_unknown_queries_are_misses_or_left_out(shop: Path) -> None:
    labels = pa.table({"query": ["q000", "nobody"], "item": [nearcast.lookup("shop", "q000").ids[0], "i0000"]})
    miss, skip = (nearcast.evaluate("shop", labels, unknown=unknown) for unknown in ("miss", "skip"))
    assert (miss.queries, miss.metrics["hit_rate_at_10"].value, miss.without_list) == (2, 0.5, 1)
    assert (skip.queries, skip.metrics["hit_rate_at_10"].value, skip.without_list) == (1, 1.0, 1)
    nobody = pa.table({"query": ["x", "y"], "item": ["i0000", "i0001"]})
    found = nearcast.evaluate("shop", nobody)
    assert found.metrics["recall_at_10"].value == 0
    assert any("are they labels of another generator?" in note for note in found.notes)
    with pytest.raises(InputError, match=r"a list for none of the labelled queries \(2\), for example 'x'"):
        nearcast.evaluate("shop", nobody, unknown="skip")


def test_a_slice_of_which_few_queries_have_a_list_is_left_out(shop: Path) -> None:
    rows = pq.read_table("labels.parquet").to_pylist()
    towns = [("there" if row["query"] == "q199" else "here") for row in rows]
    labels = [{"query": row["query"], "item": row["item"], "town": town} for row, town in zip(rows, towns, strict=True)]
    labels += [{"query": f"other{n}", "item": "i0001", "town": "there"} for n in range(40)]
    table = pa.Table.from_pylist(labels)
    found = [nearcast.evaluate("shop", table, slices=["town"], unknown=unknown).slices for unknown in ("miss", "skip")]
    few = nearcast.evaluate("shop", table.slice(0, 10), slices=["town"])
    assert "no slices by 'town'" in few.notes[-1]
    assert {part.value: part.queries for part in found[0]}["there"] == 41
    assert [part.value for part in found[1]] == ["here"]


def test_a_depth_beyond_the_lists_is_noted(shop: Path) -> None:
    found = nearcast.evaluate("shop", "labels.parquet", depths=[10, 50])
    assert "lists hold at most 10 candidates: beyond, hit_rate_at_50 finds nothing" in found.notes
    assert not [note for note in nearcast.evaluate("shop", "labels.parquet").notes if "hold at most" in note]


def test_an_evaluation_with_a_broken_promise_exits_with_4_after_its_table(shop: Path) -> None:
    specify(shop, {"mrr_at_5": 0.9})
    done = at.nearcast("evaluate", "shop.toml", cwd=shop)
    assert done.returncode == 4
    assert re.search(r"promise: mrr_at_5 is 0\.\d+ .* and 0\.9 is promised: BROKEN", " ".join(done.stdout.split()))
    assert "error: mrr_at_5 is 0." in done.stderr


@pytest.mark.parametrize("where", ["items", "queries", "popularity", "table", "log"])
def test_what_learns_is_refused_the_labels(where: str, shop: Path) -> None:
    shutil.copy(shop / "labels.parquet", shop / "copy.parquet")
    if where in ("items", "queries"):
        shutil.copy(shop / f"{where}.parquet", shop / "copy.parquet")
        item = "name" if where == "items" else "market"
        write_spec(
            shop,
            queries=QUERIES,
            recall=0.9,
            labels={"path": "copy.parquet", "query": "id", "item": item},
        )
        for command in (("run", "shop.toml"), ("check", "shop.toml"), ("tune", "shop.toml", "--trials", 1)):
            told = fail(*command, code=2, cwd=shop)
            assert f"{where}.parquet of {where} has the contents of copy.parquet of the labels" in told
        told = fail("evaluate", "shop", "copy.parquet", "--query", "id", "--item", item, code=2, cwd=shop)
        assert "cannot be judged by them" in told
        assert "cannot be judged by them" in fail("publish", "shop.toml", code=2, cwd=shop)
    elif where == "popularity":
        told = fail("evaluate", "shop", "labels.parquet", "--popularity", "copy.parquet", code=2, cwd=shop)
        assert "copy.parquet of labels.popularity has the contents of labels.parquet" in told
    elif where == "table":
        specify(shop)
        words = ("phrases", "copy.parquet", "--key", "query", "--item", "item")
        assert "of the log has the contents" in fail("table", "shop.toml", *words, code=2, cwd=shop)
        nearcast.run(shop / "shop.toml", again=True)
        assert "of the log has the contents" in fail("table", "shop", *words, code=2, cwd=shop)
    else:
        table = pq.read_table(shop / "labels.parquet")
        table = table.append_column("survived", pa.array([True] * len(table)))
        pq.write_table(table, shop / "labels.parquet")
        shutil.copy(shop / "labels.parquet", shop / "copy.parquet")
        spec = write_spec(shop, queries=QUERIES, labels=LABELS, overfetch={"at_least": 3, "log": "copy.parquet"})
        with pytest.raises(SpecError, match=r"copy\.parquet of overfetch\.log"):
            nearcast.run(spec)
        nearcast.run(write_spec(shop, queries=QUERIES, overfetch={"at_least": 3, "log": "copy.parquet"}))
        with pytest.raises(SpecError, match=r"copy\.parquet of overfetch\.log"):
            nearcast.evaluate("shop", "labels.parquet", grade="grade")


@pytest.mark.parametrize(
    ("labels", "promise", "words"),
    [
        (None, {"hit_rate_at_10": 0.2}, "promise names hit_rate_at_10, which labels measure; add [labels]"),
        (LABELS, {"hit_rate_at_11": 0.2}, "promise names hit_rate_at_11, and a list holds k = 10"),
        (LABELS, {"hitrate_at_10": 0.2}, "did you mean 'hit_rate_at_10'?"),
        (LABELS, {"hit_rate_at_10": 20}, "promise.hit_rate_at_10 is 20: it is at most 1"),
        (LABELS | {"pth": "x"}, {}, "did you mean 'path'?"),
        (LABELS | {"item": "query"}, {}, "different columns"),
        (LABELS | {"popularity": "x", "popular_by": "y"}, {}, "two baselines"),
        (LABELS | {"depths": [0]}, {}, "1 or more"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_words(labels: Any, promise: Any, words: str, shop: Path) -> None:
    spec = write_spec(shop, queries=QUERIES, labels=labels, promise=promise)
    with pytest.raises(SpecError, match=re.escape(words)):
        nearcast.load_spec(spec)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"path": "none.parquet"}, InputError, "none.parquet"),
        ({"query": "user"}, InputError, "no column 'user'; its columns are query, item, grade, device"),
        ({"slices": ["market", "town"]}, SpecError, "labels.slices names 'town'"),
    ],
)
def test_labels_that_are_not_there_stop_a_run_before_its_join(
    settings: dict[str, Any], error: type[Exception], words: str, shop: Path
) -> None:
    spec = specify(shop, **settings)
    with pytest.raises(error, match=re.escape(words)):
        nearcast.run(spec, again=True)
    with pytest.raises(error, match=re.escape(words)):
        nearcast.check(spec)
    assert at.snapshots(shop) == ["000001"]


def test_a_slice_or_a_baseline_by_an_unknown_column_names_the_known_ones(shop: Path) -> None:
    told = fail("evaluate", "shop", "labels.parquet", "--by", "town", code=2, cwd=shop)
    assert "labels have query, item, grade, device, and queries of the snapshot market" in told
    told = fail("evaluate", "shop", "labels.parquet", "--popular-by", "price", code=2, cwd=shop)
    assert "it holds category, name" in told or "holds name, category" in told or "holds category, name" in told
    assert "popularity needs a number" in fail(
        "evaluate", "shop", "labels.parquet", "--popular-by", "name", code=2, cwd=shop
    )
    assert "write served, or the number" in fail(
        "evaluate", "shop", "labels.parquet", "--against", "best", code=2, cwd=shop
    )
    assert "write served, or the number" in fail(
        "evaluate", "shop", "labels.parquet", "--against", "²", code=2, cwd=shop
    )
    assert "no published version" in fail("evaluate", "shop", "labels.parquet", "--against", "served", code=7, cwd=shop)
    assert "has no labels; name their file" in fail("evaluate", "shop", code=2, cwd=shop)


def test_an_evaluation_and_a_run_with_labels_are_on_the_page(shop: Path) -> None:
    assert build_document(Path("nearcast"), ["shop"])["generators"][0]["labels"] is None
    nearcast.run(specify(shop, {"hit_rate_at_10": 0.3}, slices=["market"]), again=True)
    found = nearcast.evaluate("shop.toml")
    page = build_document(Path("nearcast"), ["shop"])["generators"][0]["labels"]
    assert len(page["series"]["at"]) == 2
    assert page["metrics"][0] == "hit_rate_at_10"
    assert page["series"]["hit_rate_at_10"][1] == pytest.approx(found.metrics["hit_rate_at_10"].value, abs=1e-3)
    assert page["series"]["promise"] == [0.3, 0.3]
    assert {row["value"] for row in page["slices"]} == set(MARKETS)
    events = read(Path("nearcast"), "shop", ["evaluate"])
    assert events[0].facts["metrics"]["hit_rate_at_10"]["value"] == found.metrics["hit_rate_at_10"].value


def test_show_has_the_newest_metrics_of_its_version_by_labels(shop: Path) -> None:
    assert "labels" not in succeed("show", "shop", cwd=shop).stdout
    nearcast.run(specify(shop, {"hit_rate_at_10": 0.3}), again=True)
    shown = succeed("show", "shop/2", cwd=shop).stdout
    assert "labels labels.parquet, 201 queries, evaluated 20" in shown
    assert re.search(r"^hit_rate_at_10 +0\.\d{4} +0\.\d{4} to 0\.\d{4} +promise of 0.3 kept$", shown, re.MULTILINE)
    evaluate("shop", "labels.parquet", "--grade", "grade", "--at", "3", "--snapshot", "1", cwd=shop)
    shown = succeed("show", "shop/1", cwd=shop).stdout
    assert "hit_rate_at_3 " in shown
    assert "hit_rate_at_3 " not in succeed("show", "shop/2", cwd=shop).stdout
    described = json.loads(succeed("show", "shop/1", "--json", cwd=shop).stdout)["evaluation"]
    assert described["metrics"]["hit_rate_at_3"]["value"] == pytest.approx(hit_rate_by_hand(shop, 3))


def test_show_leaves_out_an_evaluation_that_it_cannot_read_or_that_was_of_an_earlier_snapshot_of_the_number(
    shop: Path,
) -> None:
    facts = nearcast.evaluate("shop", "labels.parquet").as_dict()
    history = shop / "nearcast" / "history.sqlite"
    history.unlink()
    assert append(Path("nearcast"), "shop", "evaluate", 1, facts, seconds=1.0, identity="before the snapshot") is None
    assert json.loads(succeed("show", "shop", "--json", cwd=shop).stdout)["evaluation"] is None
    history.write_bytes(b"no database")
    assert "recall target" in succeed("show", "shop", cwd=shop).stdout


def test_a_run_that_workers_share_measures_the_labels_when_it_is_gathered(shop: Path, tmp_path: Path) -> None:
    spec = write_spec(shop, k=9, queries=QUERIES, labels=LABELS, promise={"hit_rate_at_9": 0.3})
    work = str(tmp_path / "work")
    plan_run(spec, work)
    work_on(work)
    gathered = gather_run(work)
    facts = gathered.snapshot.manifest.labels
    assert facts is not None
    assert facts["metrics"]["hit_rate_at_9"]["value"] == pytest.approx(hit_rate_by_hand(shop, 9, version=2))


def test_lists_and_labels_in_a_bucket_are_judged_like_local_ones(
    shop: Path, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEARCAST_CACHE", str(tmp_path / "cache"))
    open_storage(s3_url).write("labels/day.parquet", (shop / "labels.parquet").read_bytes())
    store = {"store": f"lmdb:{tmp_path}/store"}
    labels = LABELS | {"path": f"{s3_url}/labels"}
    spec = write_spec(shop, queries=QUERIES, labels=labels, promise={"hit_rate_at_10": 0.3}, out=s3_url, publish=store)
    made = nearcast.run(spec).snapshot
    facts = made.manifest.labels
    assert facts is not None
    assert facts["metrics"]["hit_rate_at_10"]["value"] == pytest.approx(hit_rate_by_hand(shop, 10))
    monkeypatch.setenv("NEARCAST_CACHE", str(tmp_path / "another-host"))
    found: Evaluation = nearcast.evaluate(spec)
    assert found.metrics["hit_rate_at_10"].value == facts["metrics"]["hit_rate_at_10"]["value"]
    judged = find_evaluation(made)
    assert judged is not None
    assert judged[1]["generator"] == "shop"  # by the command: what a run records lacks it
    nearcast.publish(spec)
