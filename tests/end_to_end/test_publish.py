"""Publishing a small shop: what goes live, what does not, and the way back. Real runs, real stores, real processes."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.end_to_end import shop as at
from tests.end_to_end.shop import NEARCAST, environment, fail, flip_a_byte, snapshot, succeed, write_spec
from tests.servers import Proxy, proxy, redis_running, redis_server, redis_url  # noqa: F401 (fixtures)

import nearcast
from nearcast.errors import (
    AuditError,
    BusyError,
    DamagedError,
    NotFoundError,
    SpecError,
    StoreError,
    TargetError,
)
from nearcast.publishing.audit_rules import RULES
from nearcast.publishing.copy_snapshot import NullWriter, Throttle, copy_snapshot
from nearcast.publishing.publish import publish_snapshot
from nearcast.publishing.snapshot_rows import read_shape
from nearcast.spec import AuditSpec, PublishSpec
from nearcast.stores import open_store
from nearcast.stores.base import OverlayEntry, Pair, Space, Store
from nearcast.stores.value_format import decode_list, encode_key
from nearcast.table.snapshot import find_snapshot, list_snapshots

N_VERSIONS = 4


def write_versions(folder: Path, count: int) -> None:
    """So many snapshots of a shop whose items move a little each time, so that every version has its own lists."""
    spec = at.write_shop(folder)
    for version in range(1, count + 1):
        moved = 0.05 * np.random.default_rng(version).normal(size=(at.N_ITEMS, 16)).astype(np.float32)
        at.write_items(folder, at.clustered(at.N_ITEMS, seed=1) + moved)
        nearcast.run(spec)


@pytest.fixture(scope="session")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("versions")
    write_versions(folder, N_VERSIONS)
    return folder


@pytest.fixture
def shop(versions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of our own with the snapshots 1 to 4 of the generator `shop`; nothing is published yet."""
    folder = tmp_path / "shop"
    shutil.copytree(versions, folder)
    monkeypatch.chdir(folder)
    return folder


def store_of(folder: Path) -> Store:
    return open_store(f"lmdb:{folder}/nearcast/store")


def current(folder: Path) -> int | None:
    pointer = store_of(folder).pointer("shop")
    return pointer.version if pointer else None


def file_of(folder: Path, version: int) -> Path:
    return folder / "nearcast" / "store" / "shop" / "versions" / f"{version:06d}" / "data.mdb"


def everything(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file with its size and time of change, but for locks and the history."""
    found = {p.relative_to(folder).as_posix(): p.stat() for p in folder.rglob("*") if p.is_file()}
    kept = {name: facts for name, facts in found.items() if not name.endswith((".lock", "history.sqlite"))}
    return {name: (facts.st_size, facts.st_mtime_ns) for name, facts in kept.items()}


def served(folder: Path, url: str | None = None) -> tuple[int, list[Any]]:
    """The version and the candidates of q007 that a reader of the store gets."""
    with nearcast.open(url or f"lmdb:{folder}/nearcast/store", "shop") as lookup:
        answer = lookup.get("q007")
        return lookup.state.version, list(answer.ids)


def listed(folder: Path, version: int) -> list[Any]:
    """The candidates of q007 in a snapshot."""
    return list(nearcast.lookup("shop", "q007", version=version, out=folder / "nearcast").ids)


def in_store(store: Store, version: int) -> dict[bytes, tuple[list[Any], list[float], str | None]]:
    with contextlib.closing(store.open("shop", version, verify=True)) as reader:
        return {key: decode_list(value) for key, value in reader.pairs(Space.LISTS)}


# what goes live


def test_the_newest_snapshot_goes_live_and_the_store_holds_what_its_parquet_does(shop: Path) -> None:
    done = succeed("publish", "shop", cwd=shop)
    assert "shop 000004 is current" in done.stdout
    assert served(shop) == (4, listed(shop, 4))
    found = find_snapshot(shop / "nearcast", "shop", 4)
    rows = found.rows(np.arange(found.n_rows)).to_pylist()
    expected = {encode_key(r["query_id"]): (r["candidate_ids"], r["scores"], r["reason"]) for r in rows}
    assert in_store(store_of(shop), 4) == expected
    with contextlib.closing(store_of(shop).open("shop", 4, verify=True)) as reader:
        assert json.loads(reader.get_many(Space.ITEMS, [b"i0007"])[0]) == {
            "category": "soap",
            "name": "Dish soap no. 7",
        }


def test_facts_tell_readers_what_they_need(shop: Path) -> None:
    nearcast.publish("shop", 2)
    with contextlib.closing(store_of(shop).open("shop", 2, verify=False)) as reader:
        facts = reader.facts
    manifest = at.manifest(shop, 2)
    assert facts["keys"] == at.N_QUERIES
    assert facts["items"] == at.N_ITEMS
    assert facts["payload_bytes"] == at.N_QUERIES * (4 + 10 * (4 + 5))  # q000; ten scores, and ids such as i0000
    assert (facts["query_ids"], facts["item_ids"], facts["id_kind"]) == ("string", "string", 2)
    assert facts["columns"] == {"category": "string", "name": "string"}
    assert facts["fingerprint"] == manifest["fingerprint"]
    assert facts["created"] == manifest["run"]["created"]
    assert facts["started"] <= facts["created"] <= facts["published"]
    assert [finding["rule"] for finding in facts["audit"]["findings"]] == list(RULES)
    assert facts["audit"]["accepted"] == {}


def test_an_open_reader_follows_from_version_to_version(shop: Path) -> None:
    nearcast.publish("shop", 1)
    with nearcast.open(f"lmdb:{shop}/nearcast/store", "shop", refresh_seconds=0.02) as lookup:
        for version in (2, 3, 4):
            nearcast.publish("shop", version)
            deadline = time.monotonic() + 120
            while lookup.state.version != version:
                assert time.monotonic() < deadline, lookup.state
                time.sleep(0.01)
            assert list(lookup.get("q007").ids) == listed(shop, version)


def test_publishing_what_is_current_says_so_and_does_nothing(shop: Path) -> None:
    nearcast.publish("shop")
    before = everything(shop)
    assert "shop 000004 is current already" in succeed("publish", "shop", cwd=shop).stdout
    assert everything(shop) == before
    assert len(store_of(shop).pointer("shop").events) == 1


def test_a_spec_counts_as_it_is_now_and_a_name_as_its_snapshot_was_made(shop: Path) -> None:
    nearcast.publish("shop", 1)
    elsewhere = write_spec(shop, publish={"store": "lmdb:elsewhere"}, serve={"default_keys": ["q001"]})
    done = nearcast.publish(elsewhere)
    assert done.store == f"lmdb:{shop}/nearcast/elsewhere"
    with contextlib.closing(open_store(done.store).open("shop", 4, verify=False)) as reader:
        assert reader.facts["serve"]["default_keys"] == ["q001"]
    assert current(shop) == 1
    strict = write_spec(shop, audit={"min_overlap": 1.0})
    with pytest.raises(AuditError, match="overlap with 000001 is"):
        nearcast.publish(strict)
    assert nearcast.publish("shop").store == f"lmdb:{shop}/nearcast/store"


def test_a_store_named_on_the_command_line_is_relative_to_the_current_folder(shop: Path) -> None:
    succeed("publish", "nearcast/../shop.toml", "--store", "lmdb:mine", cwd=shop)
    assert (shop / "mine" / "shop" / "current").is_file()
    rows = json.loads(succeed("published", "--store", "lmdb:mine", "--json", cwd=shop).stdout)
    assert [(row["generator"], row["pointer"]["version"]) for row in rows] == [("shop", 4)]
    assert nearcast.published() == []


@pytest.mark.parametrize("ids", ["numbers", "large numbers", "long names", "no columns"])
def test_every_kind_of_id_arrives_as_it_is(tmp_path: Path, ids: str) -> None:
    names: list[Any] = {
        "numbers": [10, 9, 0, 2**32 - 1],
        "large numbers": [10, -3, 2**62, 7],
        "long names": ["", "é" * 300, "é" * 300 + "x", "a/b\x00c"],
        "no columns": ["a", "b", "c", "d"],
    }[ids]
    more = {} if ids == "no columns" else {"price": [1.5, None, 3.0, 4.0]}
    at.write_rows(tmp_path / "items.parquet", names, list(at.clustered(4, seed=1)), **more)
    items = {"path": "items.parquet", "attributes": list(more)}
    nearcast.run(write_spec(tmp_path, k=3, items=items, queries=None))
    nearcast.publish(tmp_path / "shop.toml")
    with nearcast.open(f"lmdb:{tmp_path}/nearcast/store", "shop") as lookup:
        for name in names:
            expected = find_snapshot(tmp_path / "nearcast", "shop").lookup(name)
            assert list(lookup.get(name).ids) == list(expected.ids)
            assert name in expected.ids
    with contextlib.closing(store_of(tmp_path).open("shop", 1, verify=True)) as reader:
        first = reader.get_many(Space.ITEMS, [encode_key(names[0])])[0]
        assert json.loads(first) == ({} if ids == "no columns" else {"price": 1.5})


def test_empty_and_short_lists_keep_their_reasons(tmp_path: Path) -> None:
    at.write_rows(tmp_path / "items.parquet", [1, 2], list(at.clustered(2, seed=1)))
    vectors = [*at.clustered(2, seed=2), None]
    at.write_rows(tmp_path / "queries.parquet", ["a", "b", "c"], vectors)
    loose = {"min_fill_rate": 0.0, "min_query_coverage": 0.0}
    keep = {"null_vector": "keep", "k_above_items": "keep"}
    spec = write_spec(tmp_path, k=5, items={"path": "items.parquet"}, checks=keep, audit=loose)
    nearcast.run(spec)
    nearcast.publish(spec)
    lists = in_store(store_of(tmp_path), 1)
    assert {key: (len(ids), reason) for key, (ids, _, reason) in lists.items()} == {
        b"a": (2, "too_few_eligible"),
        b"b": (2, "too_few_eligible"),
        b"c": (0, "no_vector"),
    }


# what does not go live


def test_a_failed_audit_publishes_nothing_and_says_which_rules_and_by_how_much(shop: Path) -> None:
    nearcast.publish("shop", 1)
    before = everything(shop)
    spec = write_spec(shop, audit={"min_keys": 1000, "min_overlap": 1.0})
    done = at.nearcast("publish", spec, "--json", cwd=shop)
    assert done.returncode == 10
    assert "2 of 21 rules failed" in done.stderr
    assert "keys: it has 300 keys, 700 fewer than the required 1,000" in done.stderr
    assert "points below the required 100.00%" in done.stderr
    refused = json.loads(done.stdout)
    failed = [f["rule"] for f in refused["findings"] if not f["passed"]]
    assert (refused["outcome"], failed) == ("refused", ["keys", "overlap"])
    del before["shop.toml"]
    assert everything(shop).items() >= before.items()
    assert current(shop) == 1


def test_a_snapshot_below_its_promise_does_not_go_live(shop: Path) -> None:
    nearcast.publish("shop", 4)
    hasty = {"engine": "faiss-ivf", "engine_settings": {"nprobe": 1}, "recall": 0.95}
    with pytest.raises(TargetError):
        nearcast.run(write_spec(shop, **hasty))
    with pytest.raises(AuditError, match=r"recall: recall@10 is .* below the required 0.95"):
        nearcast.publish("shop")
    assert current(shop) == 4


def test_queries_and_items_of_two_embedding_models_are_caught_by_the_overlap(shop: Path) -> None:
    nearcast.publish("shop")
    at.write_items(shop, at.clustered(at.N_ITEMS, seed=1)[:, ::-1].copy())  # another model, and nobody said so
    nearcast.run(shop / "shop.toml")
    with pytest.raises(AuditError, match="two embedding models") as caught:
        nearcast.publish("shop")
    assert [f.rule for f in caught.value.findings if not f.passed] == ["overlap", "vectors"]
    assert current(shop) == 4


def test_ids_of_another_type_are_no_keys_that_were_kept(shop: Path) -> None:
    nearcast.publish("shop")
    at.write_rows(shop / "queries.parquet", list(range(300)), list(at.clustered(300, seed=2)))
    nearcast.run(shop / "shop.toml")
    with pytest.raises(AuditError) as caught:
        nearcast.publish("shop")
    assert [f.rule for f in caught.value.findings if not f.passed] == ["queries_kept", "overlap", "types"]


def test_half_the_queries_missing_fails_by_keys_and_by_kept_queries(shop: Path) -> None:
    nearcast.publish("shop")
    at.write_rows(shop / "queries.parquet", [f"q{i:03d}" for i in range(150)], list(at.clustered(300, seed=2)[:150]))
    nearcast.run(shop / "shop.toml")
    with pytest.raises(AuditError, match=r"000004 has 300: 50.00% are lost") as caught:
        nearcast.publish("shop")
    assert [f.rule for f in caught.value.findings if not f.passed] == ["queries_kept", "keys"]


def test_what_is_accepted_goes_live_and_is_recorded_with_its_reason(shop: Path) -> None:
    nearcast.publish("shop", 1)
    spec = write_spec(shop, audit={"min_overlap": 1.0})
    words = ("publish", spec, "--accept", "overlap", "--why", "the new model, agreed with Ann")
    assert "accepted" in succeed(*words, cwd=shop).stdout
    with contextlib.closing(store_of(shop).open("shop", 4, verify=False)) as reader:
        assert reader.facts["audit"]["accepted"] == {"overlap": "the new model, agreed with Ann"}
    shown = succeed("published", "shop", cwd=shop).stdout
    assert "accepted overlap: the new model, agreed with Ann" in shown


def test_only_a_rule_that_failed_can_be_accepted(shop: Path) -> None:
    with pytest.raises(SpecError, match="nothing to accept"):
        nearcast.publish("shop", accept={"age": "x"})
    with pytest.raises(SpecError, match="rules are recall"):
        nearcast.publish("shop", accept={"ages": "x"})
    assert "each --accept needs one --why" in fail("publish", "shop", "--accept", "age", code=2, cwd=shop)
    assert current(shop) is None


def test_a_flipped_byte_in_the_parquet_is_refused_with_the_files_name(shop: Path) -> None:
    nearcast.publish("shop", 1)
    part = snapshot(shop, 4) / "candidates" / "part-00000.parquet"
    flip_a_byte(part, 500)
    with pytest.raises(DamagedError, match=str(part)):
        nearcast.publish("shop")
    assert current(shop) == 1
    assert store_of(shop).versions("shop") == [1]


def test_an_unknown_generator_or_snapshot_is_told_and_leaves_no_trace(shop: Path) -> None:
    assert "generators there are shop" in fail("publish", "shoe", code=7, cwd=shop)
    with pytest.raises(NotFoundError, match="has no snapshot 9"):
        nearcast.publish("shop", 9)
    with pytest.raises(NotFoundError, match="no snapshot of 'shoe'"):
        nearcast.publish(write_spec(shop, "shoe.toml", name="shoe"))
    for look in (nearcast.roll_back, nearcast.published):
        with pytest.raises(NotFoundError, match="never published"):
            look("shop")
    assert not (shop / "nearcast" / "store").exists()


# dry runs


def test_a_dry_run_audits_says_what_would_be_copied_and_leaves_no_trace(shop: Path) -> None:
    before = everything(shop)
    done = succeed("publish", "shop", "--dry-run", "--max-bytes-per-second", "1KB", cwd=shop)
    assert "would become current" in done.stdout
    assert "would copy 300 keys and 600 items" in done.stdout
    assert "at the throttle" in done.stdout
    assert everything(shop) == before
    assert not (shop / "nearcast" / "store").exists()


def test_a_dry_run_says_as_many_bytes_as_are_copied_later(shop: Path) -> None:
    planned = nearcast.publish("shop", dry_run=True, max_bytes_per_second="10KB")
    done = nearcast.publish("shop")
    assert planned.copied == done.copied
    assert planned.copy_seconds == pytest.approx(done.copied.bytes / 10_000)
    assert nearcast.publish("shop", 4, dry_run=True).outcome == "already_current"


def test_a_dry_run_of_a_bad_snapshot_fails_as_the_publish_would(shop: Path) -> None:
    spec = write_spec(shop, audit={"min_keys": 1000})
    with pytest.raises(AuditError, match="700 fewer"):
        nearcast.publish(spec, dry_run=True)
    assert not (shop / "nearcast" / "store").exists()


def test_while_another_process_publishes_a_dry_run_is_all_that_can_be_done(shop: Path) -> None:
    nearcast.publish("shop", 1)
    with store_of(shop).lock("shop"):
        assert nearcast.publish("shop", dry_run=True).outcome == "would_publish"
        for move in (nearcast.publish, nearcast.roll_back):
            with pytest.raises(BusyError, match=r"shop in lmdb:.* is held by process"):
                move("shop")


# the way back


def test_rolling_back_goes_one_version_further_each_time_until_nothing_is_left(shop: Path) -> None:
    for version in (1, 2, 3):
        nearcast.publish("shop", version)
    assert "shop 000002 is current again" in succeed("rollback", "shop", cwd=shop).stdout
    assert served(shop) == (2, listed(shop, 2))
    assert nearcast.roll_back("shop").version == 1
    assert served(shop) == (1, listed(shop, 1))
    with pytest.raises(NotFoundError, match=r"has 000001, 000002 \(rolled back from\), 000003 \(rolled back from\)"):
        nearcast.roll_back("shop")
    assert current(shop) == 1


def test_a_rollback_of_a_rollback_names_the_version(shop: Path) -> None:
    nearcast.publish("shop", 1)
    nearcast.publish("shop", 2)
    nearcast.roll_back("shop")
    nearcast.roll_back("shop", to=2)
    assert served(shop) == (2, listed(shop, 2))
    pointer = store_of(shop).pointer("shop")
    assert pointer.withdrawn == ()
    assert [(e.kind, e.version) for e in pointer.events] == [
        ("published", 1),
        ("published", 2),
        ("rolled_back", 1),
        ("rolled_back", 2),
    ]
    assert [e.note for e in pointer.events][-1] == "from 000001"


def test_a_version_that_was_rolled_back_from_is_published_again_only_by_name(shop: Path) -> None:
    nearcast.publish("shop", 3)
    nearcast.publish("shop", 4)
    nearcast.roll_back("shop")
    with pytest.raises(AuditError, match="withdrawn: 000004 was rolled back from"):
        nearcast.publish("shop")
    done = nearcast.publish("shop", 4)
    assert done.accepted == {"withdrawn": "it was named explicitly"}
    pointer = store_of(shop).pointer("shop")
    assert (pointer.version, pointer.withdrawn) == (4, ())
    assert pointer.events[-1].note == "accepted withdrawn: it was named explicitly"


def test_a_rollback_passes_over_versions_that_were_rolled_back_from(shop: Path) -> None:
    for version in (1, 2):
        nearcast.publish("shop", version)
    nearcast.roll_back("shop")
    nearcast.publish("shop", 3)
    assert nearcast.roll_back("shop").version == 1
    assert store_of(shop).pointer("shop").withdrawn == (2, 3)


def test_publishing_an_older_snapshot_by_name_withdraws_the_newer_one(shop: Path) -> None:
    nearcast.publish("shop", 4)
    nearcast.publish("shop", 2)
    with pytest.raises(AuditError, match="000004 was rolled back from"):
        nearcast.publish("shop")


def test_a_flipped_byte_in_the_store_is_refused_by_a_rollback_and_mended_by_a_publish(shop: Path) -> None:
    nearcast.publish("shop", 1)
    nearcast.publish("shop", 2)
    flip_a_byte(file_of(shop, 1), file_of(shop, 1).stat().st_size // 2)
    error = fail("rollback", "shop", code=8, cwd=shop)
    assert str(file_of(shop, 1)) in error
    assert "000002 stays current" in error
    assert served(shop) == (2, listed(shop, 2))
    done = nearcast.publish("shop", 1)
    assert done.copied is not None
    assert served(shop) == (1, listed(shop, 1))


def test_a_version_that_the_store_still_has_is_not_copied_again(shop: Path) -> None:
    nearcast.publish("shop", 1)
    nearcast.publish("shop", 2)
    nearcast.roll_back("shop")
    before = file_of(shop, 2).stat().st_mtime_ns
    assert nearcast.publish("shop", 2).copied is None
    assert file_of(shop, 2).stat().st_mtime_ns == before


# what is kept


def test_the_store_keeps_the_last_versions_and_disk_the_last_snapshots(shop: Path) -> None:
    spec = write_spec(shop, publish={"keep": 2, "keep_snapshots": 1})
    for version in (1, 2):
        nearcast.publish(spec, version)
    done = nearcast.publish(spec, 3)
    assert done.retired == (1,)
    assert store_of(shop).versions("shop") == [2, 3]
    assert done.removed_snapshots == (1,)  # 2 and 3 are in the store, and 4 is the newest
    assert [s.version for s in list_snapshots(shop / "nearcast", "shop")] == [2, 3, 4]


def test_the_current_version_and_what_a_rollback_needs_stay_however_old(shop: Path) -> None:
    nearcast.publish("shop", 1)
    spec = write_spec(shop, publish={"keep": 2})
    for version in (2, 3):
        nearcast.publish(spec, version)
        nearcast.roll_back("shop", to=1)
    nearcast.publish(spec, 4)
    assert store_of(shop).versions("shop") == [1, 4]  # 2 and 3 are newer than 1, and were rolled back from
    assert nearcast.roll_back("shop").version == 1


def test_a_store_that_keeps_one_version_has_no_way_back(shop: Path) -> None:
    spec = write_spec(shop, publish={"keep": 1})
    nearcast.publish(spec, 1)
    nearcast.publish(spec, 2)
    assert store_of(shop).versions("shop") == [2]
    with pytest.raises(NotFoundError, match="nothing to go back to"):
        nearcast.roll_back("shop")


def test_what_killed_publishes_and_removals_left_is_cleared_away(shop: Path) -> None:
    nearcast.publish("shop", 1)
    unfinished = file_of(shop, 2)
    unfinished.parent.mkdir()
    unfinished.write_bytes(b"half of it")
    (snapshot(shop, 2) / "manifest.json").unlink()  # its removal was killed after the first step
    store_of(shop).write("shop", 3)  # a publish of 3 that came no further
    nearcast.publish("shop", 4)
    assert sorted(path.name for path in file_of(shop, 4).parent.parent.iterdir()) == ["000001", "000004"]
    assert not snapshot(shop, 2).exists()


def entry(item: str, field: str | None, value: Any, *, written: float = 0.0, **more: Any) -> OverlayEntry:
    return OverlayEntry(item, field, value, written, **more)


def test_the_overlay_loses_only_what_every_version_contains(shop: Path) -> None:
    now = time.time()
    nearcast.publish("shop", 1)
    log = store_of(shop).overlay("shop")
    log.write(
        [
            entry("gone", None, True),  # in no version for long: dropped
            entry("left", None, True, written=now - 30 * 86_400),  # its feed may bring it back
            entry("i0001", None, True),  # in every version: a rollback, and any reader, would bring it back
            entry("i0002", "category", "tea"),  # says what all versions say: dropped
            entry("i0003", "category", "cheese"),  # another value
            entry("i0006", "category", "tea", written=now + 5),  # newer than the snapshots, whatever they say
            entry("i0004", None, True, until=now - 3600),  # over
            entry("i0005", None, True, until=now + 3600),
            entry("i0007", None, True, lifted=True),  # taken back
        ]
    )
    assert nearcast.publish("shop", 2).overlay_entries_cut == 4
    left = {(e.item, e.field) for e in log.changes().entries}
    kept = {("left", None), ("i0001", None), ("i0003", "category"), ("i0006", "category"), ("i0005", None)}
    assert left == kept


def test_an_item_that_is_gone_from_the_newest_version_alone_stays_in_the_overlay(shop: Path) -> None:
    nearcast.publish("shop", 4)
    store_of(shop).overlay("shop").write([entry("i0599", None, True)])
    vectors = at.clustered(at.N_ITEMS, seed=1)[:-1]
    at.write_items(shop, vectors)
    spec = write_spec(shop, publish={"keep": 2})
    nearcast.run(spec)
    assert nearcast.publish(spec).overlay_entries_cut == 0  # 4 still has it
    for again in (1, 2):
        nearcast.run(spec, again=True)
        assert nearcast.publish(spec).overlay_entries_cut == again - 1  # readers may have had 4 until now
    assert store_of(shop).overlay("shop").changes().entries == ()


# what breaks on the way


def test_a_full_disk_stops_the_publish_and_readers_keep_what_they_have(shop: Path) -> None:
    nearcast.publish("shop", 1)

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    command = [str(NEARCAST), "publish", "shop", "--quiet"]
    done = subprocess.run(
        command, cwd=shop, env=environment(), preexec_fn=small_files, capture_output=True, text=True, check=False
    )
    assert done.returncode == StoreError.exit_code, done.stderr
    assert "Traceback" not in done.stderr
    assert str(file_of(shop, 4)) in done.stderr
    assert served(shop) == (1, listed(shop, 1))
    assert nearcast.publish("shop").outcome == "published"
    assert served(shop) == (4, listed(shop, 4))


def test_a_copy_that_differs_from_what_was_written_does_not_go_live(shop: Path) -> None:
    nearcast.publish("shop", 1)
    store = Forgetful(store_of(shop))
    with pytest.raises(DamagedError, match=r"version 000002 of shop in lmdb:.* holds 299 lists where 300 were written"):
        publish_snapshot(find_snapshot(shop / "nearcast", "shop", 2), store, PublishSpec(), AuditSpec())
    assert current(shop) == 1
    assert store_of(shop).versions("shop") == [1]


class Forgetful:
    """A store that loses the first pair that it is given."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def write(self, generator: str, version: int) -> Any:
        writer = self._store.write(generator, version)
        put, lost = writer.put, []

        def forget(space: Space, pairs: list[Pair]) -> None:
            put(space, pairs if lost else pairs[1:])
            lost.append(True)

        writer.put = forget
        return writer


def test_a_damaged_current_version_is_mended_with_repair(shop: Path) -> None:
    nearcast.publish("shop", 1)
    nearcast.publish("shop", 2)
    flip_a_byte(file_of(shop, 2), file_of(shop, 2).stat().st_size // 2)
    done = succeed("publish", "shop", "2", "--repair", cwd=shop)
    assert "shop 000002 is current" in done.stdout
    assert served(shop) == (2, listed(shop, 2))
    assert current(shop) == 2


def test_a_damaged_pointer_stops_a_publish_until_it_is_repaired(shop: Path) -> None:
    nearcast.publish("shop", 1)
    before = store_of(shop).pointer("shop").serial
    (shop / "nearcast" / "store" / "shop" / "current").write_bytes(b"\0" * 40)
    for move in (nearcast.publish, nearcast.roll_back):
        with pytest.raises(DamagedError, match="--repair"):
            move("shop")
    nearcast.publish("shop", repair=True)
    assert served(shop) == (4, listed(shop, 4))
    assert store_of(shop).pointer("shop").serial > before


def test_what_is_published_is_shown_although_a_version_of_it_is_damaged(shop: Path) -> None:
    for version in (1, 2):
        nearcast.publish("shop", version)
    file_of(shop, 1).write_bytes(b"cut short")
    (found,) = nearcast.published("shop")
    assert [(kept.version, kept.fault is None) for kept in found.versions] == [(1, False), (2, True)]
    assert str(file_of(shop, 1)) in found.versions[0].fault
    assert found.pointer.version == 2
    assert found.overlay_entries == 0
    assert 0 <= found.age_seconds < 3600
    shown = succeed("published", "shop", cwd=shop).stdout
    assert "000002   current" in shown
    assert "000001   DAMAGED" in shown
    assert "data.mdbhas9byteswhere" in "".join(shown.split())  # wrapped as the terminal is wide


def test_two_folders_of_snapshots_do_not_mix_in_one_store(shop: Path, tmp_path: Path) -> None:
    nearcast.publish("shop", 1)
    other = tmp_path / "other"
    other.mkdir()
    spec = at.write_shop(other, k=7)
    nearcast.run(spec)
    with pytest.raises(StoreError, match="two folders of snapshots publish to one store"):
        nearcast.publish(spec, store=store_of(shop))
    assert served(shop) == (1, listed(shop, 1))


def test_a_clock_that_goes_backwards_disturbs_nothing(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nearcast.publish("shop", 1)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 30 * 86_400)
    done = nearcast.publish("shop", 2)
    age = next(f for f in done.findings if f.rule == "age")
    assert (age.found, age.passed) == (0, True)
    assert "ahead of this machine's clock" in age.text
    assert nearcast.roll_back("shop").version == 1
    monkeypatch.undo()
    os.chdir(shop)
    nearcast.publish("shop", 3)
    pointer = store_of(shop).pointer("shop")
    assert (pointer.version, pointer.serial) == (3, 4)
    whens = [event.when for event in pointer.events]
    assert whens != sorted(whens)
    assert [event.version for event in pointer.events] == [1, 2, 1, 3]


def test_of_four_publishers_at_once_one_wins_and_the_others_say_so(shop: Path) -> None:
    nearcast.publish("shop", 1)
    slow = ["--max-bytes-per-second", "16KB", "--quiet"]  # 65 kB: some four seconds, to see who has the lock
    command = [str(NEARCAST), "publish", "shop", *slow]
    started = [
        subprocess.Popen(
            command, cwd=shop, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    lock, holders = shop / "nearcast" / "store" / "shop" / ".lock", []
    deadline = time.monotonic() + 120
    while not holders:  # it holds the lock for as long as the others take
        assert time.monotonic() < deadline
        time.sleep(0.01)
        text = lock.read_text(encoding="utf-8") if lock.exists() else ""
        holders = [process for process in started if f"process {process.pid} " in text]
    holders[0].send_signal(signal.SIGSTOP)
    for process in started:
        if process not in holders:
            process.wait(300)
    holders[0].send_signal(signal.SIGCONT)
    errors = [process.communicate(timeout=300)[1] for process in started]
    codes = [process.returncode for process in started]
    assert sorted(codes) == [0, 5, 5, 5], errors
    assert sum("shop in lmdb" in text and " is held by " in text for text in errors) == 3
    assert served(shop) == (4, listed(shop, 4))
    assert [e.version for e in store_of(shop).pointer("shop").events] == [1, 4]


class Counting(NullWriter):
    """Notes when how many bytes came, by a clock that only the throttle's sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.arrivals: list[tuple[float, int]] = []

    def put(self, space: Space, pairs: Any) -> None:
        self.arrivals.append((self.now, sum(len(key) + len(value) for key, value in pairs)))

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize("rate", [10_000, 50_000, 1_000_000_000])
def test_the_throttle_is_obeyed_over_every_stretch_of_time(shop: Path, rate: int) -> None:
    found, writer = find_snapshot(shop / "nearcast", "shop"), Counting()
    throttle = Throttle(rate, clock=writer.clock, sleep=writer.sleep)
    copied = copy_snapshot(found, read_shape(found), writer, throttle, lambda *_: None)
    sizes = [size for _, size in writer.arrivals]
    assert sum(sizes) == copied.bytes
    for first in range(len(sizes)):
        for last in range(first, len(sizes)):
            seconds = writer.arrivals[last][0] - writer.arrivals[first][0]
            assert sum(sizes[first + 1 : last + 1]) <= 1.1 * rate * (seconds + 0.1) + max(sizes)
    if rate < 1_000_000:
        assert writer.now == pytest.approx(copied.bytes / rate, rel=0.05)
        assert len(sizes) >= 10  # many small pieces, so that the flow is even
    else:
        assert writer.now < 0.001


class Hearing:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, int]] = []
        self.notes: list[str] = []

    def progress(self, stage: str, done: int, total: int) -> None:
        self.told.append((stage, done, total))

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_settings_of_serving_that_changed_after_the_publish_are_spoken_of(shop: Path) -> None:
    nearcast.publish("shop")
    hearing = Hearing()
    spec = write_spec(shop, serve={"default_keys": ["q001"]})
    assert nearcast.publish(spec, listener=hearing).outcome == "already_current"
    assert "its [serve] settings stay those of its publish; changed ones come with the next snapshot" in hearing.notes


def test_progress_is_told_as_keys_and_items_are_copied(shop: Path) -> None:
    hearing = Hearing()
    publish_snapshot(
        find_snapshot(shop / "nearcast", "shop"), store_of(shop), PublishSpec(), AuditSpec(), listener=hearing
    )
    copying = [done for stage, done, _ in hearing.told if stage == "copy"]
    assert copying == sorted(copying)
    assert copying[-1] == at.N_QUERIES + at.N_ITEMS
    assert ("read back", 2, 2) in hearing.told


# over a network


@pytest.fixture
def behind(proxy: Proxy, redis_url: str) -> tuple[Proxy, str]:  # noqa: F811
    """A proxy, and the URL of an empty Redis through it."""
    return proxy, f"redis://127.0.0.1:{proxy.port}/0?timeout=1&buckets=16"


def test_redis_gives_the_answers_that_lmdb_gives(shop: Path, redis_url: str) -> None:  # noqa: F811
    for version in (1, 2):
        nearcast.publish("shop", version)
        nearcast.publish("shop", version, store=redis_url)
    assert in_store(open_store(redis_url), 2) == in_store(store_of(shop), 2)
    nearcast.roll_back("shop", store=redis_url)
    assert served(shop, redis_url) == (1, listed(shop, 1))
    assert nearcast.publish("shop", 2, store=redis_url).copied is None


def test_redis_gone_in_the_middle_of_a_copy_stops_it_and_the_next_publish_goes_through(
    shop: Path,
    behind: tuple[Proxy, str],
    redis_url: str,  # noqa: F811
) -> None:
    between, url = behind
    nearcast.publish("shop", 1, store=url)
    between.bytes_until_cut = 40_000  # of some 70,000
    with pytest.raises(StoreError):
        nearcast.publish("shop", 2, store=url)
    assert open_store(redis_url).versions("shop") == [1]
    assert served(shop, redis_url) == (1, listed(shop, 1))
    between.restore()
    deadline = time.monotonic() + 60
    while True:  # the lock of the publisher that was cut off runs out by itself
        try:
            nearcast.publish("shop", 2, store=url)
            break
        except BusyError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    assert served(shop, redis_url) == (2, listed(shop, 2))


def test_a_redis_that_becomes_too_slow_stops_the_copy_and_readers_keep_what_they_have(
    shop: Path,
    behind: tuple[Proxy, str],
    redis_url: str,  # noqa: F811
) -> None:
    between, url = behind
    nearcast.publish("shop", 1, store=url)

    class Slowing(Hearing):
        def progress(self, stage: str, done: int, total: int) -> None:
            between.delay = 3.0  # and the URL waits for one second

    with pytest.raises(StoreError):
        nearcast.publish("shop", 2, store=url, listener=Slowing())
    between.restore()
    assert open_store(redis_url).versions("shop") == [1]
    assert served(shop, redis_url) == (1, listed(shop, 1))


def test_a_redis_that_was_killed_and_came_back_empty_is_published_to_as_for_the_first_time(
    shop: Path, tmp_path: Path
) -> None:
    with redis_running(tmp_path / "own") as server:
        nearcast.publish("shop", 1, store=server.url)
        server.kill()
        with pytest.raises(StoreError):
            nearcast.publish("shop", 2, store=server.url)
        server.start()
        assert nearcast.publish("shop", 2, store=server.url).before is None
        assert served(shop, server.url) == (2, listed(shop, 2))


def test_a_publisher_that_has_lost_its_lock_does_not_move_the_pointer(shop: Path, redis_url: str) -> None:  # noqa: F811
    import redis

    nearcast.publish("shop", 1, store=redis_url)
    client = redis.Redis.from_url(redis_url)

    class Stealing(Hearing):
        def progress(self, stage: str, done: int, total: int) -> None:
            if stage == "read back":
                client.set("nearcast:shop:lock", "another publisher")

    found = find_snapshot(shop / "nearcast", "shop", 2)
    with contextlib.closing(open_store(redis_url)) as store, pytest.raises(BusyError, match="lock of shop"):
        publish_snapshot(found, store, PublishSpec(), AuditSpec(), listener=Stealing())
    client.delete("nearcast:shop:lock")
    client.close()
    assert served(shop, redis_url)[0] == 1


def test_settings_given_in_python_are_checked(shop: Path) -> None:
    with pytest.raises(SpecError, match="max_bytes_per_second is 'fast'"):
        nearcast.publish("shop", max_bytes_per_second="fast")
    with pytest.raises(SpecError, match="no rule of the audit"):
        nearcast.publish("shop", accept={"everything": "trust me"})
