"""Entries of folded patches are merged in the journal: it stays small, and holds all that a publish applies again."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from tests.updating.test_state_cache import read_state
from tests.updating.test_updates import draw_batch, draw_item, make_shop

import nearcast
from nearcast.api.updates import list_updates, roll_back_updates
from nearcast.errors import DamagedError
from nearcast.storage.artifacts import LocalArtifacts
from nearcast.storage.locations import parse_location
from nearcast.table.snapshot import find_snapshot
from nearcast.updating import journal as journals
from nearcast.updating.journal import UpdateJournal, open_journal
from nearcast.updating.merge_batches import Cutoff


@pytest.fixture(autouse=True)
def _merge_early(monkeypatch):
    monkeypatch.setattr(journals, "MERGED_AT_ONCE", 2)


def fold(shop, keep=0):
    """Fold the patches of the current version but the newest; the next update merges their entries."""
    version = shop.store.pointer("shop").version
    with shop.store.lock("shop") as lock:
        shop.store.patches("shop").compact(version, keep, lock)


def journal_folder(shop):
    (folder,) = (shop.folder / "out" / "shop" / "updates").glob("store-*")
    return folder


def open_own_journal(shop):
    return open_journal(parse_location(shop.folder / "out"), "shop", read_patches(shop).journal)


def names(shop):
    return sorted(path.name for path in journal_folder(shop).iterdir() if path.name[0] in "0m")


def read_patches(shop):
    return shop.store.patches("shop").state(shop.store.pointer("shop").version)


@pytest.mark.parametrize("kind", ["all", "itself"])
def test_after_a_merge_the_served_version_is_that_of_all_updates_and_takes_more(kind, tmp_path):
    shop, rng = make_shop(tmp_path, kind)
    for _ in range(3):
        shop.update(*draw_batch(shop, rng))
    shop.update({700: draw_item(rng)})
    fold(shop, keep=1)
    shop.update({701: draw_item(rng)}, gone=[sorted(shop.items)[0]])
    newest = read_patches(shop).newest.number
    assert names(shop) == [f"{newest - 1:06d}", f"{newest:06d}", f"merged-000001-{newest - 2:06d}"]
    assert shop.served() == shop.expected()
    shop.update({702: draw_item(rng)}, gone=[701])
    assert shop.served() == shop.expected()


def test_the_journal_grows_with_the_rows_that_differ_and_not_with_the_number_of_updates(tmp_path):
    shop, rng = make_shop(tmp_path, "free")
    for _ in range(12):
        shop.update({key: draw_item(rng) for key in (700, 701, 702)})
        fold(shop)
    shop.update({700: draw_item(rng)})
    assert len(names(shop)) <= 4
    journal = open_own_journal(shop)
    _, batches = journal.read_in_force(read_patches(shop))
    assert len(batches[0].items.rows.ids) == 3
    assert [entry.number for entry in list_updates(find_snapshot(shop.folder / "out", "shop", 1))] == list(range(1, 14))
    assert shop.served() == shop.expected()


def test_merged_updates_after_the_inputs_of_a_run_were_read_are_applied_again(tmp_path):
    shop, rng = make_shop(tmp_path, "all")
    shop.update({700: draw_item(rng), 701: draw_item(rng)})
    items = dict(shop.items)
    shop.run()
    shop.update({702: draw_item(rng), 3: draw_item(rng)}, gone=[700])
    shop.update({703: draw_item(rng)})
    fold(shop)
    shop.update({704: draw_item(rng)}, gone=[sorted(items)[0]])
    assert any(name.startswith("merged") for name in names(shop))
    nearcast.publish(shop.spec(), store=shop.store)
    assert shop.store.pointer("shop").version == 2
    assert shop.served() == shop.expected()


def test_only_later_rows_of_merged_updates_are_applied_again(tmp_path):
    shop, rng = make_shop(tmp_path, "free")
    shop.update({700: draw_item(rng), 701: draw_item(rng)})
    shop.update({701: draw_item(rng), 702: draw_item(rng)}, gone=[sorted(shop.items)[0]])
    shop.update({703: draw_item(rng)}, gone=[700])
    fold(shop)
    shop.update({704: draw_item(rng)})
    journal = open_own_journal(shop)
    made = [entry.made for entry in list_updates(find_snapshot(shop.folder / "out", "shop", 1))]
    for first, (items, gone) in enumerate([([701, 702, 703, 704], 2), ([701, 702, 703, 704], 2), ([703, 704], 1)]):
        started = made[first] - 1e-6
        later, batch = journal.read_later(read_patches(shop), Cutoff(started, started))
        assert [entry.number for entry in later] == list(range(first + 1, 5))
        assert (batch.items.rows.ids.to_pylist(), len(batch.gone)) == (items, gone)
    assert journal.read_later(read_patches(shop), Cutoff(made[-1], made[-1])) == ([], None)


@pytest.fixture
def merged_shop(tmp_path):
    shop, rng = make_shop(tmp_path, "free")
    for key in (700, 701, 702):
        shop.update({key: draw_item(rng)})
    fold(shop, keep=1)
    shop.update({703: draw_item(rng)})
    return shop, rng


@pytest.mark.parametrize("name", ["items.parquet", "gone.parquet", "manifest.json"])
def test_damaged_merged_entries_are_an_error_that_names_them(name, merged_shop):
    shop, rng = merged_shop
    path = journal_folder(shop) / "merged-000001-000002" / name
    data, before = path.read_bytes(), shop.served()
    path.write_bytes(bytes(np.frombuffer(data, np.uint8) ^ 1))
    with pytest.raises(DamagedError, match=r"patch 2|000002"):
        shop.update({704: draw_item(rng)})
    assert shop.served() == before
    path.write_bytes(data)
    shop.items.pop(704, None)
    shop.update({705: draw_item(rng)})
    assert shop.served() == shop.expected()


def test_entries_that_could_not_be_removed_after_a_merge_do_no_harm_and_go_with_the_next(tmp_path, monkeypatch):
    shop, rng = make_shop(tmp_path, "free")
    for key in (700, 701, 702):
        shop.update({key: draw_item(rng)})
    fold(shop, keep=1)

    def refuse(*_):
        raise OSError("no")

    monkeypatch.setattr(LocalArtifacts, "remove", refuse)
    shop.update({703: draw_item(rng)})
    monkeypatch.undo()
    monkeypatch.setattr(journals, "MERGED_AT_ONCE", 2)
    assert {"000001", "000002", "merged-000001-000002"} <= set(names(shop))
    state = read_state(shop)
    shutil.rmtree(journal_folder(shop) / "000001")  # nobody needs it
    assert read_state(shop) == state
    fold(shop)
    shop.update({704: draw_item(rng)})
    assert names(shop) == ["000005", "merged-000001-000004"]
    assert shop.served() == shop.expected()


def test_who_reads_while_entries_are_merged_begins_again(tmp_path, monkeypatch):
    shop, rng = make_shop(tmp_path, "free")
    for key in (700, 701, 702):
        shop.update({key: draw_item(rng)})
    fold(shop)
    journal = open_own_journal(shop)
    real, state, expected = UpdateJournal._read_chain, read_patches(shop), read_state(shop)
    calls = []

    def read_and_merge(self, patches):
        found = real(self, patches)
        calls.append(len(found[0]))
        if len(calls) == 1:
            journal.merge(state)
        return found

    monkeypatch.setattr(UpdateJournal, "_read_chain", read_and_merge)
    assert read_state(shop) == expected
    assert calls[0] == 3
    assert calls[-1] == 0


def test_a_rollback_to_a_patch_after_merged_ones_goes_on_from_there(merged_shop):
    shop, rng = merged_shop
    items = dict(shop.items)
    undo = shop.update({706: draw_item(rng)}).undo
    roll_back_updates(shop.spec(), undo, store=shop.store)
    shop.items = items
    shop.update({707: draw_item(rng)})
    assert shop.served() == shop.expected()
