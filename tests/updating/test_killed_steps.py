"""An update that ends at any of its steps is in force wholly or not at all, and the next one goes on from there."""

from __future__ import annotations

import contextlib
import multiprocessing

import pytest
from tests.updating import killed_worker
from tests.updating.killed_worker import FOLD_EARLY, KILLED, STEPS
from tests.updating.test_updates import draw_item, item_table, make_shop

import nearcast

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.updating.killed_worker"])


@pytest.fixture(autouse=True)
def _fold_early(monkeypatch):
    for owner, name, value in FOLD_EARLY:
        monkeypatch.setattr(owner, name, value)


def update_until(step, shop, items, gone, times=1, ahead=0.0, queries=None):
    """Apply a batch in a process that ends itself at a step. Return its exit code."""
    batch = {"items": item_table(items) if items else None, "gone": list(gone) or None, "queries": queries}
    arguments = step, times, ahead, shop.spec(), shop.store.url, batch
    process = SERVER.Process(target=killed_worker.update_until, args=arguments)
    process.start()
    process.join(120)
    assert not process.is_alive()
    return process.exitcode


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_an_update_that_ends_at_a_step_is_in_force_wholly_or_not_at_all(step, tmp_path):
    shop, rng = make_shop(tmp_path, "all")
    shop.update({500: draw_item(rng)}, gone=[sorted(shop.items)[0]])
    for number, times in enumerate((1, 2, 3)):
        before, old = shop.served(), dict(shop.items)
        rows, gone = {501 + number: draw_item(rng), sorted(old)[2]: draw_item(rng)}, [sorted(old)[1]]
        ended = update_until(step, shop, rows, gone, times)
        assert ended in (0, KILLED)
        shop.items = {key: row for key, row in old.items() if key not in gone} | rows
        after = shop.expected()
        assert shop.served() in (before, after)
        with contextlib.closing(nearcast.open(shop.store.url, "shop")) as lookup:
            assert lookup.get_many(sorted(shop.queries)).found.all()
        assert shop.update(rows, gone).outcome in ("updated", "nothing_changed")  # repeated by the user
        assert shop.served() == after
