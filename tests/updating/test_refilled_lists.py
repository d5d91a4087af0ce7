"""Lists that have lost items are filled up from the reserves of an incremental run: they equal those of a full join."""

from __future__ import annotations

import numpy as np
import pytest
from tests.updating.test_updates import KINDS, draw_batch, draw_item, make_shop

from nearcast.stores.base import Space
from nearcast.stores.value_format import decode_list
from nearcast.updating import merge_touched

RESERVED = ["free", "cosine", "rules", "caps", "all", "itself"]


@pytest.fixture
def no_join(monkeypatch):
    """No list is joined in full."""
    monkeypatch.setattr(merge_touched, "REJOINED_PAIRS", 0)
    return monkeypatch


def make_reserved(folder, kind, monkeypatch):
    monkeypatch.setitem(KINDS, kind, {**KINDS[kind], "run": {"incremental": True}})
    return make_shop(folder, kind, n_items=80)


@pytest.mark.parametrize("kind", RESERVED[:-1])  # in a join with itself new items have lists, and no reserves
def test_lists_that_lose_items_are_those_of_a_full_run_without_a_join(kind, tmp_path, no_join):
    shop, rng = make_reserved(tmp_path, kind, no_join)
    shop.update({500 + n: draw_item(rng) for n in range(6)})
    done = shop.update(gone=rng.choice(sorted(shop.items), 6, replace=False).tolist())
    assert (done.joined, done.short) == (0, 0)
    assert shop.served() == shop.expected()


@pytest.mark.slow
@pytest.mark.parametrize("kind", RESERVED)
def test_any_updates_fill_lists_up_or_say_that_they_may_lack_items(kind, tmp_path, no_join):
    shop, rng = make_reserved(tmp_path, kind, no_join)
    for _ in range(8):
        batch = draw_batch(shop, rng)
        done = shop.update(
            batch[0], [*batch[1], *sorted(set(shop.items) - set(batch[0] or ()) - set(batch[1]))[:3]], batch[2]
        )
        kept, expected = shop.served()[Space.LISTS], shop.expected()[Space.LISTS]
        differ = [key for key in kept if kept[key] != expected[key]]
        assert len(differ) <= done.short
        for key in differ:
            listed, _, reason = decode_list(kept[key])
            is_full = len(listed) == shop.settings["k"]  # under a cap, an item that was kept out may be missing in it
            assert reason == "not_probed" or (is_full and kind in ("caps", "all"))
    no_join.undo()
    shop.update({800: draw_item(rng)})
    assert shop.served() == shop.expected()


def test_lists_beyond_the_reserves_are_joined_in_full(tmp_path, monkeypatch):
    shop, rng = make_reserved(tmp_path, "free", monkeypatch)
    done = shop.update(gone=sorted(shop.items)[:-5])
    assert done.joined > 0
    assert shop.served() == shop.expected()
    shop.update({key: draw_item(rng) for key in range(900, 930)})
    assert shop.served() == shop.expected()


@pytest.mark.parametrize("damage", ["changed", "cut"])
def test_damaged_reserves_are_not_used(damage, tmp_path, monkeypatch):
    shop, rng = make_reserved(tmp_path, "free", monkeypatch)
    shop.update({500: draw_item(rng)})
    for path in (shop.folder / "out" / "shop").glob("updates/tables-*/reserve-*/*/scores.npy"):
        data = path.read_bytes()
        path.unlink()  # the file that a run made is another name of it
        path.write_bytes(bytes(np.frombuffer(data, np.uint8) ^ 1) if damage == "changed" else data[:-4])
    done = shop.update(gone=sorted(shop.items)[:9])
    assert done.joined > 0
    assert shop.served() == shop.expected()
