"""Updates beside other processes, on a Redis, with a full disk, and with a damaged journal: nothing is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from tests.servers import redis_server, redis_url  # noqa: F401  # fixtures
from tests.updating.test_updates import KINDS, Shop, draw_batch, draw_item, item_table, make_shop

import nearcast
from nearcast.errors import NearcastError
from nearcast.stores.base import Space

WAIT = 120

UPDATE = """
import json, resource, signal, sys
import nearcast
spec, items, store, limit = json.loads(sys.argv[1])
if limit:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    print(nearcast.update(spec, items=items, store=store, max_lists_changed=1.0).patch)
except nearcast.NearcastError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""

PUBLISH = """
import json, sys
import nearcast
spec, store = json.loads(sys.argv[1])
nearcast.publish(spec, store=store)
"""


def start(program: str, words: list) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, json.dumps(words)]
    return subprocess.Popen(command, env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def start_update(shop: Shop, name: str, rows: dict, limit: int = 0) -> subprocess.Popen[str]:
    path = shop.folder / f"{name}.parquet"
    pq.write_table(item_table(rows), path)
    return start(UPDATE, [shop.spec(), str(path), shop.store.url, limit])


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=WAIT)
    assert process.returncode == 0, err
    return out


@pytest.fixture(params=["lmdb", "redis"])
def store_url(request, tmp_path):
    return f"lmdb:{tmp_path / 'store'}" if request.param == "lmdb" else request.getfixturevalue("redis_url")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_updates_on_a_redis_leave_what_a_full_run_on_the_same_data_serves(kind, redis_url, tmp_path):  # noqa: F811
    shop, rng = make_shop(tmp_path, kind, store_url=redis_url)
    for _ in range(2):
        shop.update(*draw_batch(shop, rng))
    before, items, queries = shop.served(), dict(shop.items), dict(shop.queries)
    undo = shop.update(*draw_batch(shop, rng), note="mistake").undo
    nearcast.api.updates.roll_back_updates(shop.spec(), undo, store=shop.store)
    shop.items, shop.queries = items, queries
    assert shop.served() == before
    shop.update(*draw_batch(shop, rng))
    assert shop.served() == shop.expected()


@pytest.mark.slow
def test_updates_of_two_processes_at_once_are_both_in_force(store_url, tmp_path):
    shop, rng = make_shop(tmp_path, "rules", store_url=store_url)
    batches = [{500 + 10 * number + n: draw_item(rng) for n in range(3)} for number in range(3)]
    processes = [start_update(shop, f"new{number}", batch) for number, batch in enumerate(batches)]
    assert sorted(int(finish(process)) for process in processes) == [1, 2, 3]
    for batch in batches:
        shop.items |= batch
    assert shop.served() == shop.expected()


@pytest.mark.slow
def test_updates_during_a_publish_are_in_the_version_that_is_current_then(store_url, tmp_path):
    shop, rng = make_shop(tmp_path, "rules", store_url=store_url)
    shop.update({400: draw_item(rng)})  # so that there is something to publish
    shop.run()
    publish = start(PUBLISH, [shop.spec(), shop.store.url])
    updates = []
    for number in range(3):
        updates.append({700 + number: draw_item(rng)})
        finish(start_update(shop, f"new{number}", updates[-1]))
    finish(publish)
    for batch in updates:
        shop.items |= batch
    assert shop.store.pointer("shop").version == 2
    assert shop.served() == shop.expected()


def test_updates_in_two_stores_of_one_generator_leave_each_other_alone(tmp_path):
    shop, rng = make_shop(tmp_path, "free")
    shop.settings["publish"] = {"keep": 1}
    other = Shop(tmp_path, shop.settings, dict(shop.items), dict(shop.queries), f"lmdb:{tmp_path / 'other'}")
    nearcast.publish(shop.spec(), store=other.store)
    shop.update({500: draw_item(rng)})
    other.update({501: draw_item(rng), 502: draw_item(rng)})
    shop.update({503: draw_item(rng)}, gone=sorted(shop.items)[:8])
    other.update(gone=sorted(other.items)[:5])
    assert shop.served() == shop.expected()
    assert other.served() == other.expected()
    shop.publish()  # the first store retires the version that the second one serves
    other.update({504: draw_item(rng)}, gone=[502])
    assert other.served() == other.expected()
    nearcast.publish(shop.spec(), store=other.store)  # with the updates of that store alone
    assert other.store.pointer("shop").version == 2
    other.items = shop.items | {key: other.items[key] for key in (501, 504)}
    assert other.served() == other.expected()


@pytest.mark.slow
@pytest.mark.parametrize("limit", [100, 5_000, 40_000])
def test_an_update_on_a_full_disk_is_an_error_and_changes_nothing(limit, tmp_path):
    shop, rng = make_shop(tmp_path, "free")
    rows = {500 + n: draw_item(rng) for n in range(5)}
    before = shop.served()
    process = start_update(shop, "new", rows, limit)
    _, said = process.communicate(timeout=WAIT)
    assert process.returncode == 1
    assert said.startswith(("StoreError", "InputError", "BudgetError", "StorageError")), said
    assert "Traceback" not in said
    assert shop.served() == before
    shop.update(rows)
    assert shop.served() == shop.expected()


@pytest.fixture(scope="module")
def updated(tmp_path_factory):
    shop, rng = make_shop(tmp_path_factory.mktemp("shop"), "free")
    shop.update({500: draw_item(rng)})
    return shop, rng


@pytest.mark.parametrize("name", ["items.parquet", "gone.parquet", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "changed", "removed"])
def test_a_damaged_journal_is_an_error_that_names_the_file_and_changes_nothing(name, damage, updated):
    shop, rng = updated
    (path,) = (shop.folder / "out" / "shop" / "updates").glob(f"store-*/000001/{name}")
    data, before, items = path.read_bytes(), shop.served()[Space.LISTS], dict(shop.items)
    changed = bytes(np.frombuffer(data, np.uint8) ^ 1)
    path.unlink() if damage == "removed" else path.write_bytes(changed if damage == "changed" else data[:-9])
    try:
        with pytest.raises(NearcastError, match=r"000001|patch 1"):
            shop.update({501: draw_item(rng)})
    finally:
        path.write_bytes(data)
        shop.items = items
    assert shop.served()[Space.LISTS] == before
