"""What only the LMDB store can get wrong: damaged, short and missing files, full disks, read-only folders."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from nearcast.errors import DamagedError, NotFoundError, StoreError
from nearcast.spec import GeneratorSpec
from nearcast.stores import lmdb_version, names, open_store
from nearcast.stores.base import OverlayEntry, PatchFacts, Pointer, Space

SHOP = "shop"


@pytest.fixture
def store(tmp_path):
    opened = open_store(f"lmdb:{tmp_path / 'store'}")
    yield opened
    opened.close()


@pytest.fixture
def data(tmp_path):
    """The file of version 1."""
    return tmp_path / "store" / SHOP / "versions" / "000001" / "data.mdb"


def numbered(n, size=20):
    return [(i.to_bytes(8, "big"), bytes([i % 256]) * size) for i in range(n)]


def load(store, version=1, pairs=None):
    writer = store.write(SHOP, version)
    writer.put(Space.LISTS, numbered(1000) if pairs is None else pairs)
    writer.finish({"n": version})


def read(store, version=1, verify=True):
    reader = store.open(SHOP, version, verify=verify)
    with contextlib.closing(reader):
        return dict(reader.pairs(Space.LISTS))


def entry(item):
    return OverlayEntry(item, None, True, written=0.0)


@contextlib.contextmanager
def no_file_larger_than(size):
    """As on a disk that has no more room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("place", [0, 100, 5000, -1])
def test_a_flipped_byte_is_found_and_its_file_named(store, data, place):
    load(store)
    content = bytearray(data.read_bytes())
    content[place] ^= 1
    data.write_bytes(content)
    with pytest.raises(DamagedError, match=rf"{data} was changed"):
        store.open(SHOP, 1, verify=True)


@pytest.mark.parametrize("size", [0, 4096, 30_000])
def test_a_file_that_was_cut_short_is_never_mapped(store, data, size):
    load(store)
    os.truncate(data, size)
    with pytest.raises(DamagedError, match=rf"{data} has {size} bytes where \d+ were written"):
        store.open(SHOP, 1, verify=False)


def test_a_file_that_is_missing_or_strange_is_named(store, data):
    load(store)
    (data.parent / "other").write_text("")
    with pytest.raises(DamagedError, match="other is not listed in the manifest"):
        store.open(SHOP, 1, verify=True)
    (data.parent / "other").unlink()
    data.unlink()
    with pytest.raises(DamagedError, match=rf"{data} is missing"):
        store.open(SHOP, 1, verify=False)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"facts": {}}'])
def test_a_manifest_that_is_none_is_named(store, data, text):
    load(store)
    (data.parent / "manifest.json").write_text(text)
    with pytest.raises(DamagedError, match=str(data.parent)):
        store.open(SHOP, 1, verify=False)


def test_a_file_that_is_no_lmdb_is_damaged_even_where_the_manifest_agrees(store, data):
    load(store)
    data.write_bytes(bytes(data.stat().st_size))
    with pytest.raises(DamagedError, match=r"data\.mdb cannot be read: it is damaged"):
        store.open(SHOP, 1, verify=False)


def test_a_reader_outlives_its_folder(store, tmp_path):
    load(store)
    reader = store.open(SHOP, 1, verify=True)
    shutil.rmtree(tmp_path / "store")
    assert list(reader.pairs(Space.LISTS)) == numbered(1000)
    assert store.versions(SHOP) == []
    load(store, pairs=[(b"a", b"new")])
    assert read(store) == {b"a": b"new"}
    assert reader.get_many(Space.LISTS, [b"a"]) == [None]
    reader.close()


def test_a_closed_reader_says_so(store, data):
    load(store)
    reader = store.open(SHOP, 1, verify=False)
    reader.close()
    with pytest.raises(StoreError, match=rf"{data} was closed"):
        reader.get_many(Space.LISTS, [b"a"])
    with pytest.raises(StoreError, match=rf"{data} was closed"):
        list(reader.pairs(Space.LISTS))


def test_the_map_grows_as_it_must_and_large_loads_are_committed_in_parts(store, monkeypatch):
    monkeypatch.setattr(lmdb_version, "FIRST_MAP_BYTES", 64 << 10)
    monkeypatch.setattr(lmdb_version, "TRANSACTION_BYTES", 100_000)
    pairs = numbered(5000, size=600)
    load(store, pairs=[*pairs[:4000], pairs[4999], *pairs[4000:4999], (b"\xff", bytes(400_000))])
    assert read(store) == dict(pairs) | {b"\xff": bytes(400_000)}


def test_the_file_is_little_larger_than_what_it_holds(store, data):
    pairs = numbered(20_000, size=404)  # 50 candidates
    load(store, pairs=pairs)
    assert data.stat().st_size < 1.2 * sum(len(key) + len(value) for key, value in pairs)


def test_a_full_disk_is_told_with_the_name_of_the_file_and_harms_nothing(store, data):
    load(store)
    writer = store.write(SHOP, 2)
    with no_file_larger_than(1 << 20), pytest.raises(StoreError, match=r"000002/data\.mdb cannot be written .*room"):
        writer.put(Space.LISTS, numbered(20_000, size=600))
    writer.discard()
    assert not (data.parents[1] / "000002").exists()
    assert store.versions(SHOP) == [1]
    assert read(store) == dict(numbered(1000))
    load(store, 2, numbered(20_000, size=600))
    assert read(store, 2) == dict(numbered(20_000, size=600))


def test_a_full_disk_is_told_when_the_load_is_finished(store, tmp_path):
    with mounted(tmp_path / "small", "size=1m") as folder:
        small = open_store(f"lmdb:{folder / 'store'}")
        load(small)
        small.overlay(SHOP).write([entry("a")])
        with small.lock(SHOP) as held:
            small.point(SHOP, Pointer(1, 1), held)
            writer = small.write(SHOP, 2)
            writer.put(Space.LISTS, numbered(100))
            fill(folder / "fill")
            with pytest.raises(StoreError, match=r"cannot be written .*room"):
                writer.finish({"facts": "x" * 100_000})
            with pytest.raises(StoreError, match=r"cannot be written .*room"):
                small.point(SHOP, Pointer(2, 2, events=()), held)
            with pytest.raises(StoreError, match=r"cannot be written .*room"):
                small.overlay(SHOP).write([entry("b" * 100_000)])
            assert small.pointer(SHOP) == Pointer(1, 1)
            assert small.versions(SHOP) == [1]
            assert read(small) == dict(numbered(1000))
            writer.discard()
            (folder / "fill").unlink()
            load(small, 2)
            small.overlay(SHOP).write([entry("b")])
            small.point(SHOP, Pointer(2, 2), held)
        assert [found.item for found in small.overlay(SHOP).changes().entries] == ["a", "b"]
        small.close()


@contextlib.contextmanager
def mounted(folder, settings):
    """A small file system of its own; skips the test where we may not make one."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", settings, "none", folder], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"no file system may be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def fill(path):
    """Take all the room that there is."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_a_full_disk_leaves_the_overlay_as_it_was(store):
    log = store.overlay(SHOP)
    log.write([entry("a")])
    with no_file_larger_than(1 << 20), pytest.raises(StoreError, match=r"overlay/data\.mdb cannot be written"):
        log.write([entry(f"{'b' * 1000}{i}") for i in range(3000)])
    assert log.changes().entries == (entry("a"),)
    log.write([entry("c")])
    assert log.changes().entries == (entry("a"), entry("c"))


READ_ONLY = """
import os, sys
from pathlib import Path
import lmdb, numpy
from nearcast.errors import StoreError
from nearcast.stores import open_store
from nearcast.stores.base import OverlayEntry, PatchFacts, Pointer, Space
import nearcast.stores.lmdb
if os.getuid() == 0:
    os.setuid(65534)
store = open_store(sys.argv[1])
assert store.pointer("shop").version == 1
reader = store.open("shop", 1, verify=True)
assert len(list(reader.pairs(Space.LISTS))) == 1000
assert store.overlay("other").changes().entries == ()
assert [entry.item for entry in store.overlay("shop").changes().entries] == ["a"]
writes = [
    lambda: store.lock("shop").__enter__(),
    lambda: store.write("shop", 2),
    lambda: store.retire("shop", 1),
    lambda: store.overlay("shop").write([OverlayEntry("b", None, True, 0.0)]),
    lambda: store.overlay("other").write([OverlayEntry("b", None, True, 0.0)]),
]
for write in writes:
    try:
        write()
    except StoreError as error:
        assert "cannot be written" in str(error), error
    else:
        raise AssertionError("it was written")
"""


def test_a_folder_that_cannot_be_written_can_be_read_and_nothing_is_made_there():
    folder = Path(tempfile.mkdtemp())
    try:
        fill_for_reading(folder)
        (folder / "other").mkdir()
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        before = sorted(folder.rglob("*"))
        done = run(READ_ONLY, f"lmdb:{folder}")
        assert done.returncode == 0, done.stderr
        assert sorted(folder.rglob("*")) == before
    finally:
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755)
        shutil.rmtree(folder)


def test_a_file_system_that_cannot_be_written_can_be_read(tmp_path):
    with mounted(tmp_path / "disk", "size=8m") as folder:
        fill_for_reading(folder)
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        done = run(READ_ONLY.replace("os.setuid(65534)", "pass"), f"lmdb:{folder}")
        assert done.returncode == 0, done.stderr


def fill_for_reading(folder):
    store = open_store(f"lmdb:{folder}")
    load(store)
    with store.lock(SHOP) as held:
        store.point(SHOP, Pointer(1, 1), held)
    store.overlay(SHOP).write([entry("a")])
    store.close()


def run(code, *words):
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120)


FOLLOW = """
import os, sys
import lmdb, numpy
from nearcast.stores import open_store
import nearcast.stores.lmdb
os.setuid(65534)
log, epoch, serial, items = open_store(sys.argv[1]).overlay("shop"), -1, 0, []
print("ready", flush=True)
while items[-1:] != ["end"]:
    found = log.changes(epoch=epoch, serial=serial)
    assert epoch in (-1, found.epoch)
    epoch, serial = found.epoch, found.serial
    items += [entry.item for entry in found.entries]
assert items == [f"item {i}" for i in range(500)] + ["end"], items
"""


@pytest.mark.skipif(os.getuid() != 0, reason="needs to be root, to be somebody else")
def test_a_reader_that_may_not_lock_follows_a_writer_without_a_torn_read():
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        log = open_store(f"lmdb:{folder}").overlay(SHOP)
        log.write([entry("item 0")])
        with subprocess.Popen(
            [sys.executable, "-c", FOLLOW, f"lmdb:{folder}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as follower:
            assert follower.stdout.readline() == "ready\n", follower.stderr.read()
            for i in range(1, 500):
                log.write([entry(f"item {i}")])
            log.write([entry("end")])
            assert follower.wait(timeout=120) == 0, follower.stderr.read()
    finally:
        shutil.rmtree(folder)


def test_an_overlay_that_was_lost_is_an_error_until_it_is_repaired_and_is_then_read_anew(store, tmp_path):
    log, other = store.overlay(SHOP), open_store(store.url).overlay(SHOP)
    log.write([entry("a"), OverlayEntry("b", "price", 7, written=0.0)])
    before = log.changes()
    shutil.rmtree(tmp_path / "store" / SHOP / "overlay")
    for log_ in (log, other):
        for act in (log_.changes, lambda log=log_: log.write([entry("c")]), lambda log=log_: log.purge([b""], upto=9)):
            with pytest.raises(DamagedError, match=r"data\.mdb is missing, .* heal it with publish --repair"):
                act()
    said = other.repair()
    assert "with the 1 entries that were found" in said
    after = log.changes(epoch=before.epoch, serial=before.serial)
    assert after.epoch != before.epoch
    assert after.serial > before.serial
    assert after.entries == (entry("a"),)
    log.write([entry("c")])
    assert other.changes().entries == (entry("a"), entry("c"))
    assert other.repair() is None


def test_what_killed_publishers_have_left_is_cleared_away(store, data):
    load(store)
    versions = data.parents[1]
    (versions / ".retired-000009").mkdir()
    (versions / "000009").mkdir()
    (versions / "000009" / "data.mdb").write_bytes(b"half")
    assert store.versions(SHOP) == [1]
    with pytest.raises(NotFoundError):
        store.open(SHOP, 9, verify=True)
    load(store, 2)
    assert sorted(path.name for path in versions.iterdir()) == ["000001", "000002"]


def test_the_lock_alone_clears_away_what_killed_publishers_have_left(store, data):
    """So a publish that finds nothing new to do clears away too."""
    load(store)
    shop = data.parents[2]
    for left in (".retired-000009", "000009", "000010"):
        (shop / "versions" / left).mkdir()
    shutil.copy(data.parent / "manifest.json", shop / "versions" / ".retired-000009")
    (shop / "versions" / "000009" / "data.mdb").write_bytes(b"half")
    (shop / "versions" / "000010" / ".partial-manifest.json").write_bytes(b"{")
    (shop / ".partial-current").write_bytes(b"{")
    for left in ("overlay.new-1-a", "overlay.new-2-b", "mine"):
        (shop / left).mkdir()
    os.utime(shop / "overlay.new-1-a", (0, 0))  # the other one may be in the hands of a writer of the overlay
    with store.lock(SHOP):
        assert sorted(path.name for path in (shop / "versions").iterdir()) == ["000001"]
        assert sorted(path.name for path in shop.iterdir()) == [".lock", "mine", "overlay.new-2-b", "versions"]
    assert read(store) == dict(numbered(1000))


def test_a_store_that_cannot_be_read_is_not_an_empty_one(store, data):
    load(store)
    current = data.parents[2] / "current"
    current.mkdir()
    with pytest.raises(StoreError, match="current cannot be read"):
        store.pointer(SHOP)


def test_names_are_the_specs():
    (pattern,) = [m.pattern for m in GeneratorSpec.model_fields["name"].metadata if hasattr(m, "pattern")]
    assert pattern == f"^{names.GENERATOR.pattern}$"


def test_the_manifest_tells_the_facts_and_the_hash(store, data):
    load(store)
    manifest = json.loads((data.parent / "manifest.json").read_text())
    assert manifest["facts"] == {"n": 1}
    assert list(manifest["files"]) == ["data.mdb"]
    assert sorted(path.name for path in data.parent.iterdir()) == ["data.mdb", "manifest.json"]


def test_many_keys_are_sampled_without_reading_them_all(store):
    pairs = numbered(60_000, size=4)
    load(store, pairs=pairs)
    reader = store.open(SHOP, 1, verify=False)
    with contextlib.closing(reader):
        some = np.array([int.from_bytes(key, "big") for key in reader.some_keys(Space.LISTS, 2000, seed=3)])
        assert np.histogram(some, bins=20, range=(0, 60_000))[0].min() > 50
        more = reader.some_keys(Space.LISTS, 30_000, seed=3)  # more than were noted
        assert len(set(more)) == 30_000


def patch(store, number, pairs):
    with store.lock(SHOP) as lock:
        facts = PatchFacts(number, 1, "2026-01-01T00:00:00Z", 1000.0, {})
        store.patches(SHOP).write(facts, {Space.LISTS: pairs}, lock)


def test_threads_that_share_a_reader_get_the_values_of_their_keys(store):
    load(store)
    keys = [key for key, _ in numbered(1000)]
    for number in range(1, 6):
        patch(store, number, [(key, b"%d of %s" % (number, key)) for key in keys[number::7]])
    expected = dict(numbered(1000))
    for number in range(1, 6):
        expected |= {key: b"%d of %s" % (number, key) for key in keys[number::7]}
    with contextlib.closing(store.open(SHOP, 1, verify=False)) as reader:

        def look_up(seed):
            rng = np.random.default_rng(seed)
            for size in rng.integers(1, 60, 150).tolist():
                some = [keys[at] for at in rng.integers(0, 1000, size)]
                assert reader.get_many(Space.LISTS, some) == [expected[key] for key in some]
            return True

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(look_up, range(8)))


def test_after_an_error_of_a_look_up_the_next_ones_work(store):
    load(store)
    patch(store, 1, [(b"new", b"1")])
    with contextlib.closing(store.open(SHOP, 1, verify=False)) as reader:
        for _ in range(3):
            assert reader.get_many(Space.LISTS, [b"", b"x" * 600, b"new"]) == [None, None, b"1"]
            assert reader.get_many(Space.LISTS, [b"new", bytes(8)]) == [b"1", bytes(20)]
    with pytest.raises(StoreError, match="was closed"):
        reader.get_many(Space.LISTS, [bytes(8)])
