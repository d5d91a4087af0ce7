"""An update from the caches of the journal has the state that the store and all entries give."""

import contextlib
import shutil

import pytest
from tests.updating.test_updates import KINDS, draw_batch, draw_item, make_shop

from nearcast.storage.locations import parse_location
from nearcast.stores.version_facts import read_facts
from nearcast.updating import open_state as open_states
from nearcast.updating.journal import open_journal
from nearcast.updating.open_state import ServedVersion, open_state


def read_state(shop):
    """Return what an update that has no state opens."""
    out = parse_location(shop.folder / "out")
    number = shop.store.pointer("shop").version
    with contextlib.closing(shop.store.open("shop", number, verify=False)) as reader:
        version = ServedVersion(number, read_facts(reader, "shop", number), reader)
        patches = shop.store.patches("shop").state(number)
        state = open_state(out, "shop", version, patches, open_journal(out, "shop", patches.journal))
    return (
        state.thresholds.tolist(),
        state.lengths.tolist(),
        dict(state.short),
        state.number,
        *((table.ids.to_pylist(), table.vectors.whole().tolist()) for table in (state.items, state.queries)),
        *(table.attributes(table.columns).to_pylist() for table in (state.items, state.queries)),
    )


def caches(shop):
    return sorted((shop.folder / "out" / "shop" / "updates").glob("store-*/state-*-*"))


def remove_caches(shop):
    for folder in caches(shop):
        shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["free", "all", "itself"])
def test_the_state_is_the_same_with_and_without_caches(kind, tmp_path):
    shop, rng = make_shop(tmp_path, kind)
    for _ in range(7):
        items, gone, queries = draw_batch(shop, rng)
        shop.update(items, gone, queries)
    cached = read_state(shop)
    assert len(caches(shop)) == 2
    remove_caches(shop)
    assert read_state(shop) == cached


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_of_the_snapshot_gives_the_state_that_its_version_in_the_store_gives(kind, tmp_path, monkeypatch):
    shop, _ = make_shop(tmp_path, kind)
    stored = []
    monkeypatch.setattr(open_states, "read_lists", lambda *_: stored.append(1))
    from_table = read_state(shop)
    assert not stored
    monkeypatch.undo()
    monkeypatch.setattr(open_states, "read_table_lists", lambda *_: None)
    assert read_state(shop) == from_table


@pytest.fixture(scope="module")
def updated_shop(tmp_path_factory):
    shop, rng = make_shop(tmp_path_factory.mktemp("shop"), "free")
    for key in range(600, 604):
        shop.update({key: draw_item(rng)}, gone=[sorted(shop.items)[0]])
    return shop, rng


def test_a_damaged_cache_is_not_used(updated_shop):
    shop, _ = updated_shop
    whole = read_state(shop)
    for folder in caches(shop):
        for path in folder.glob("*.[np]*"):
            data = path.read_bytes()
            path.write_bytes(data[:-4] + bytes(4) if path.suffix == ".npy" else data[:-9])
    assert read_state(shop) == whole


def test_caches_of_a_patch_that_was_never_written_are_not_used_by_the_next_of_its_number(updated_shop):
    shop, rng = updated_shop
    newest = caches(shop)[-1]
    stale = newest.with_name(f"{newest.name[:-6]}{int(newest.name[-6:]) + 1:06d}")
    shutil.copytree(newest, stale)
    shop.update({610: draw_item(rng)})
    cached = read_state(shop)
    remove_caches(shop)
    assert read_state(shop) == cached


def test_after_a_rollback_the_caches_of_undone_patches_are_not_used(updated_shop):
    shop, rng = updated_shop
    shop.update({620: draw_item(rng)})
    before, items = read_state(shop), dict(shop.items)
    done = shop.update({621: draw_item(rng)})
    with shop.store.lock("shop") as lock:
        shop.store.patches("shop").roll_back(done.version, done.undo, lock)
    assert read_state(shop) == before
    shop.items = items
    shop.update({622: draw_item(rng)})
    cached = read_state(shop)
    remove_caches(shop)
    assert read_state(shop) == cached
