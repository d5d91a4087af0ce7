"""Incremental runs: after every night the files of a full run, or the reason why everything was joined again."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nearcast
from builders import clustered, write_parquet
from nearcast.files import finish
from nearcast.join import compare_stage, measure_snapshot, table_stage
from nearcast.join.listener import Listener
from nearcast.knn import query_splits
from nearcast.measure import list_quality, sampled_recall
from nearcast.table.snapshot import list_snapshots
from nearcast.types import EMPTY_POSITION, Neighbors, no_progress
from run_specs import CAPS, ITEM_ATTRIBUTES, QUERY_ATTRIBUTES, RANK, RUN_SPECS

N_ITEMS, N_QUERIES, DIM = 600, 400, 12
SPECS: dict[str, dict[str, Any]] = RUN_SPECS | {"a cap": {"caps": CAPS[:1]}}


@dataclass
class Shop:
    """A shop whose tables change every night. Spare rows at the end of both tables come in later."""

    folder: Path
    rng: np.random.Generator
    items: dict[str, Any]
    queries: dict[str, Any]

    def write(self) -> None:
        for name, table in (("items", self.items), ("queries", self.queries)):
            rows = np.flatnonzero(table["listed"])
            columns = {key: [value[row] for row in rows] for key, value in table.items() if key not in ("id", "vector")}
            del columns["listed"]
            vectors = [table["vector"][row] for row in rows]
            write_parquet(self.folder / f"{name}.parquet", [table["id"][row] for row in rows], vectors, **columns)

    def pass_night(self, share: float) -> None:
        """Change some of the vectors and attributes; let rows come and go."""
        columns = (self.items, [("price",), ("model", "maker")]), (self.queries, [("budget",)])
        for table, attributes in columns:
            n = len(table["id"])
            for row in np.flatnonzero(self.rng.random(n) < share):
                table["vector"][row] = clustered(1, DIM, seed=int(self.rng.integers(1 << 30)))[0]
            for names in attributes:  # models lie within makers
                for row in np.flatnonzero(self.rng.random(n) < share / 2):
                    other = int(self.rng.integers(n))
                    for name in names:
                        table[name][row] = table[name][other]
            for row in np.flatnonzero(self.rng.random(n) < share / 2):
                table["listed"][row] = not table["listed"][row]
        self.write()


def open_shop(folder: Path, seed: int = 5) -> Shop:
    rng = np.random.default_rng(seed)
    model = rng.integers(0, 90, N_ITEMS)
    items = {
        "id": [f"i{n:04d}" for n in range(N_ITEMS)],
        "vector": list(clustered(N_ITEMS, DIM, seed=seed)),
        "listed": rng.random(N_ITEMS) < 0.9,
        "price": [None if n % 40 == 3 else float(rng.integers(1, 50)) for n in range(N_ITEMS)],
        "countries": [[c for c in "abcd" if rng.random() < 0.4] for _ in range(N_ITEMS)],
        "model": [None if one % 11 == 0 else f"model {one}" for one in model],
        "maker": [None if one % 11 == 0 else f"maker {one // 6}" for one in model],
        "bonus": rng.integers(0, 8, N_ITEMS) / 4,
        "alive": rng.integers(20, 99, N_ITEMS) / 100,
    }
    queries = {
        "id": [f"q{n:04d}" if n % 5 else f"i{n:04d}" for n in range(N_QUERIES)],
        "vector": list(clustered(N_QUERIES, DIM, seed=seed + 1)),
        "listed": rng.random(N_QUERIES) < 0.9,
        "budget": rng.integers(5, 60, N_QUERIES).astype(float),
        "country": [str(rng.choice(list("abcd"))) for _ in range(N_QUERIES)],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ranker.py").write_text(RANK)
    shop = Shop(folder, rng, items, queries)
    shop.write()
    return shop


def spec_of(out: Path, incremental: bool, run: dict[str, Any] | None = None, **changed: Any) -> dict[str, Any]:
    tables = {
        "name": "shop",
        "metric": "l2",
        "k": 10,
        "out": str(out),
        "threads": 2,
        "memory": "2GB",
        "items": {"path": "items.parquet", "attributes": ITEM_ATTRIBUTES},
        "queries": {"path": "queries.parquet", "attributes": QUERY_ATTRIBUTES},
        "measure": {"sample": 100},
        "run": {"incremental": incremental, **(run or {})},
    }
    return {key: value for key, value in (tables | changed).items() if value is not None}


def run(shop: Shop, out: str, incremental: bool = True, **changed: Any) -> nearcast.Snapshot:
    spec = spec_of(shop.folder / out, incremental, **changed)
    return nearcast.run(spec, base=shop.folder, listener=Listener()).snapshot


def hash_files(snapshot) -> dict[str, str]:
    files = sorted((snapshot.folder / "candidates").rglob("*.parquet"))
    return {path.name: hashlib.blake2b(path.read_bytes()).hexdigest() for path in files}


def mode(snapshot) -> dict[str, Any]:
    return dict(snapshot.manifest.run.incremental)


@pytest.fixture(autouse=True)
def small_tasks(monkeypatch):
    """Several ranges of the queries."""
    monkeypatch.setattr(query_splits, "SMALLEST_TASK", 130)
    monkeypatch.setattr(query_splits, "TASK_BYTES", 1)


slow = pytest.mark.slow
SHARDED = ("rules and caps", "over-fetch")  # the kinds that the quick suite runs on several shards


@pytest.mark.parametrize(
    ("shards", "kind"),
    [
        *((1, kind) for kind in SPECS),
        *(pytest.param(3, kind, marks=() if kind in SHARDED else slow) for kind in SPECS),
    ],
)
def test_after_every_night_the_files_are_those_of_a_full_run(tmp_path, kind, shards):
    shop, settings = open_shop(tmp_path), SPECS[kind] | {"run": {"shards": shards}}
    first = run(shop, "inc", **settings)
    assert mode(first)["reason"] == "there is no earlier snapshot"
    assert hash_files(first) == hash_files(run(shop, "full-0", incremental=False, **settings))
    for night in (1, 2):
        shop.pass_night(0.02)
        shutil.copytree(tmp_path / "inc", tmp_path / f"full-{night}")
        made = run(shop, "inc", **settings)
        facts = mode(made)
        assert facts["incremental"], facts["reason"]
        assert facts["changes"]["items"]["changed"] > 0
        assert facts["lists"]["joined"] >= facts["changes"]["queries"]["new"]
        full = run(shop, f"full-{night}", incremental=False, **settings)
        assert hash_files(made) == hash_files(full)
        assert made.manifest.measures == full.manifest.measures
        for name in ("slices", "worst_queries", "profile", "inputs"):
            assert made.manifest.facts[name] == full.manifest.facts[name]


def watch_tables(monkeypatch) -> list[str]:
    """Return a list that gets the names of the snapshots whose tables are compared with a new one."""
    compared: list[str] = []

    def watch(old, new, progress):
        compared.append(old.name)
        return measure_overlap(old, new, progress)

    measure_overlap = sampled_recall.measure_overlap
    monkeypatch.setattr(measure_snapshot, "measure_overlap", watch)
    return compared


OVERLAPS: dict[str, dict[str, Any]] = {
    "free": {},
    "queries without a vector": {"checks": {"null_vector": "keep"}},
    "a self-join": {"metric": "cosine", "exclude_self": True, "queries": None},
    "a cap": {"caps": CAPS[:1]},
    "short lists": {"min_score": -4.0},
}


@pytest.mark.parametrize(
    ("most_ranges", "kind"),
    [
        pytest.param(most, kind, marks=() if most == 3 or kind == "free" else slow)
        for most in (1, 3, 32)
        for kind in OVERLAPS
    ],
)
def test_the_overlap_of_updated_lists_is_that_of_the_tables_which_are_not_read(
    tmp_path, monkeypatch, kind, most_ranges
):
    shop, settings, compared = open_shop(tmp_path), OVERLAPS[kind], watch_tables(monkeypatch)
    if "checks" in settings:
        shop.queries["vector"][3] = shop.queries["vector"][100] = None
        shop.write()
    monkeypatch.setattr(sampled_recall, "MAX_RANGES", most_ranges)
    monkeypatch.setattr(sampled_recall, "RANGE_SLOTS", 400)  # 40 queries
    run(shop, "inc", **settings)
    shop.pass_night(0.05)
    if "checks" in settings:
        shop.queries["vector"][3], shop.queries["vector"][200] = shop.queries["vector"][4], None
        shop.write()
    assert mode(run(shop, "inc", **settings))["incremental"]
    last, made = list_snapshots(tmp_path / "inc", "shop")
    found = sampled_recall.measure_overlap(last, made, no_progress)
    assert 0 < found["overlap"] < 1
    assert {name: made.manifest.measures[name] for name in found} == found
    assert compared == []


@pytest.mark.parametrize("kind", ["an exposure cap", "over-fetch", "a ranking model"])
def test_the_tables_are_compared_where_the_lists_are_selected_after_the_join(tmp_path, monkeypatch, kind):
    shop, compared = open_shop(tmp_path), watch_tables(monkeypatch)
    for _ in range(2):
        made = run(shop, "inc", **SPECS[kind])
        shop.pass_night(0.02)
    assert mode(made)["incremental"]
    assert compared == ["000001"]


def test_the_tables_are_compared_where_another_version_than_the_last_is_current(shop, monkeypatch):
    spec = spec_of(shop.folder / "inc", incremental=True)
    nearcast.publish("shop", store=f"lmdb:{shop.folder / 'store'}", out=shop.folder / "inc")
    compared = watch_tables(monkeypatch)
    for _ in range(2):
        made = nearcast.run(spec, base=shop.folder).snapshot
        shop.pass_night(0.02)
    assert mode(made)["incremental"]
    assert made.manifest.facts["compared_with"] == {"version": 1, "served": True}
    assert compared == ["000001"]


def test_recall_of_updated_lists_is_measured_without_reading_the_table_back(shop, monkeypatch):
    read: list[str] = []

    def watch(snapshot, *rest):
        read.append(snapshot.name)
        return read_sampled_lists(snapshot, *rest)

    read_sampled_lists = list_quality.read_sampled_lists
    monkeypatch.setattr(list_quality, "read_sampled_lists", watch)
    shutil.copytree(shop.folder / "inc", shop.folder / "full")
    made = run(shop, "inc")
    assert mode(made)["incremental"]
    assert read == []
    assert run(shop, "full", incremental=False).manifest.measures == made.manifest.measures
    assert len(read) == 1


def test_a_table_that_does_not_hold_its_updated_lists_is_read_back(shop, monkeypatch):
    def write_neighbors(ids, lists, items, *rest):
        filled = lists.positions != EMPTY_POSITION
        others = np.where(filled, (lists.positions + 1) % len(items), EMPTY_POSITION)
        return candidate_table(ids, Neighbors(others, lists.scores), items, *rest)

    candidate_table = table_stage.candidate_table
    monkeypatch.setattr(table_stage, "candidate_table", write_neighbors)
    with pytest.raises(nearcast.TargetError, match=r"recall@10 is 0\."):
        run(shop, "inc")
    made = list_snapshots(shop.folder / "inc", "shop")[-1]
    assert mode(made)["incremental"]
    assert made.manifest.measures["recall"] < 0.5


def test_new_items_that_tie_with_the_end_of_a_reserve_are_not_lost(tmp_path):
    """The best items have the largest ids. Twelve new ones score as the last of the 26 slots, and come before it."""
    scores = {f"i{n:03d}": float(n) for n in range(600)}

    def join_lists(name: str, incremental: bool = True):
        ids = sorted(scores)
        write_parquet(tmp_path / "items.parquet", ids, [[scores[one], 0.0] for one in ids])
        spec = spec_of(tmp_path / name, incremental, metric="inner_product", items={"path": "items.parquet"})
        return nearcast.run(spec | {"queries": {"path": "queries.parquet"}}, base=tmp_path).snapshot

    write_parquet(tmp_path / "queries.parquet", ["q"], [[1.0, 0.0]])
    join_lists("inc")
    scores |= {f"i573{letter}": 574.0 for letter in "abcdefghijkl"}
    for n in range(592, 600):
        del scores[f"i{n}"]
    join_lists("inc")
    for one in (*(f"i{n}" for n in range(584, 592)), *(f"i573{letter}" for letter in "abcdefg")):
        del scores[one]
    made = join_lists("inc")
    assert mode(made)["incremental"]
    assert mode(made)["lists"] == {"updated": 1, "joined": 0}
    assert hash_files(made) == hash_files(join_lists("full", incremental=False))


def refuse(shop: Shop, **changed: Any) -> str:
    """Return why the next run joined everything."""
    facts = mode(run(shop, "inc", **changed))
    assert not facts["incremental"]
    return str(facts["reason"])


@pytest.fixture
def shop(tmp_path) -> Shop:
    """A shop with the snapshot of an evening, after a night."""
    opened = open_shop(tmp_path)
    run(opened, "inc")
    opened.pass_night(0.02)
    return opened


def test_other_settings_give_a_full_run_that_names_them(shop):
    assert "k was 10 and is 9" in refuse(shop, k=9)


def test_a_night_that_changes_most_vectors_gives_a_full_run_with_the_cost(shop):
    shop.pass_night(0.9)
    reason = refuse(shop)
    assert "too much changed" in reason
    assert "of a full join" in reason


def test_vectors_of_another_dimension_give_a_full_run(shop):
    for table in (shop.items, shop.queries):
        table["vector"] = [vector[:8] for vector in table["vector"]]
    shop.write()
    assert "items had float32 vectors of 12" in refuse(shop)


def test_a_full_run_comes_every_few_days(shop, monkeypatch):
    later = compare_stage.time.time() + 8 * 86_400
    monkeypatch.setattr(compare_stage.time, "time", lambda: later)
    assert "run.full_every is 7 days" in refuse(shop)


def test_a_clock_that_was_ahead_gives_a_full_run(shop, monkeypatch):
    earlier = compare_stage.time.time() - 3 * 86_400
    monkeypatch.setattr(compare_stage.time, "time", lambda: earlier)
    assert "in the future" in refuse(shop)


def test_a_snapshot_without_reserves_gives_a_full_run(shop):
    run(shop, "inc", incremental=False)
    shop.pass_night(0.02)
    assert "made without run.incremental" in refuse(shop)


@pytest.mark.parametrize("harm", ["missing", pytest.param("short", marks=slow), "changed"])
def test_damaged_reserves_give_a_full_run_with_the_same_files(shop, harm):
    path = next((shop.folder / "inc" / "shop" / "artifacts").glob("reserve-*/000001/scores.npy"))
    content = bytearray(path.read_bytes())
    path.unlink()
    if harm != "missing":
        content[-1] ^= 1
        path.write_bytes(content[:-40] if harm == "short" else content)
    assert "reserves of the last snapshot cannot be read" in refuse(shop)
    full = run(shop, "full", incremental=False)
    assert hash_files(list_snapshots(shop.folder / "inc", "shop")[-1]) == hash_files(full)


@pytest.mark.parametrize("part", ["index-*", "reserve-*/index"])
def test_without_the_index_of_the_last_full_join_the_files_are_the_same(shop, part):
    run(shop, "inc")
    shop.pass_night(0.02)
    shutil.rmtree(next((shop.folder / "inc" / "shop" / "artifacts").glob(part)))
    made = run(shop, "inc")
    assert mode(made)["incremental"]
    assert hash_files(made) == hash_files(run(shop, "full", incremental=False))


def test_removed_tables_of_the_last_snapshot_give_a_full_run(shop):
    shutil.rmtree(next((shop.folder / "inc" / "shop" / "artifacts").glob("items-*")))
    assert "tables of the last snapshot cannot be read" in refuse(shop)


def test_lists_below_the_recall_target_are_joined_again_in_the_same_run(tmp_path):
    shop, settings = open_shop(tmp_path), {"recall": 0.9}
    run(shop, "inc", **settings)
    for path in (tmp_path / "inc" / "shop" / "artifacts").glob("reserve-*/*"):
        for name, empty in (("positions", -1), ("scores", -np.inf)):  # a join that missed the five best
            values = np.load(path / f"{name}.npy")
            np.save(path / f"{name}.npy", np.pad(values[:, 5:], ((0, 0), (0, 5)), constant_values=empty))
        finish(path, {"queries": len(values)})
    manifest = next((tmp_path / "inc").rglob("snapshots/*/manifest.json"))
    text = manifest.read_text()
    assert '"is_exact": true' in text  # so few items are joined exactly
    manifest.write_text(text.replace('"is_exact": true', '"is_exact": false'))
    shop.pass_night(0.02)
    made = run(shop, "inc", **settings)
    assert "recall of the updated lists is" in mode(made)["reason"]
    assert made.manifest.target.met


def test_the_estimate_is_that_of_the_last_snapshot_for_as_many_pairs(shop):
    before, now = (run(shop, "inc") if night else list_snapshots(shop.folder / "inc", "shop")[0] for night in (0, 1))
    pairs = [
        each.manifest.inputs["items"]["vectors"] * each.manifest.inputs["queries"]["vectors"] for each in (before, now)
    ]
    then, estimate = (each.manifest.run.estimate for each in (before, now))
    assert estimate["seconds"]["join"] == pytest.approx(then["seconds"]["join"] * pairs[1] / pairs[0], abs=0.01)
    assert estimate["memory_bytes"] == pytest.approx(then["memory_bytes"], rel=0.2)


@pytest.mark.parametrize("caps", [(), CAPS])
def test_the_estimate_of_disk_counts_the_reserves(tmp_path, caps):
    opened = open_shop(tmp_path)
    full, kept = (run(opened, name, name == "inc", caps=list(caps)) for name in ("full", "inc"))
    more = kept.manifest.run.estimate["disk_bytes"] - full.manifest.run.estimate["disk_bytes"]
    stored = sum(path.stat().st_size for path in (tmp_path / "inc" / "shop" / "artifacts").glob("reserve-*/*/*.npy"))
    headers = 128 * len(list((tmp_path / "inc" / "shop" / "artifacts").glob("reserve-*/*/*.npy")))
    assert stored - headers <= more <= stored


def test_nothing_changed_is_the_same_snapshot(shop):
    made = run(shop, "inc")
    assert run(shop, "inc").version == made.version


def test_worker_processes_update_the_same_lists(shop, monkeypatch):
    monkeypatch.undo()  # workers do not know of smaller tasks
    shutil.copytree(shop.folder / "inc", shop.folder / "many")
    one = run(shop, "inc")
    many = run(shop, "many", run={"runner": "processes", "workers": 2})
    assert mode(many) == mode(one)
    assert mode(many)["incremental"]
    assert hash_files(many) == hash_files(one)
