"""Snapshots in a bucket: what is downloaded for a query, and commits that are swept, slow or cut off."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from tests.snapshot_folders import remove_snapshot, snapshot_facts, write_snapshot_folder

from fault_proxy import Fault, FaultProxy, fail_first, faults_before
from nearcast.errors import BudgetError, DamagedError, NotFoundError, StorageError
from nearcast.storage.host_cache import HostCache
from nearcast.storage.object_storage import ObjectStorage
from nearcast.storage.open_storage import open_storage
from nearcast.table import bucket_home, bucket_parts
from nearcast.table.bucket_home import BucketHome
from nearcast.table.snapshot import Snapshot
from s3_server import environment_of

N = 4_000


@pytest.fixture
def proxy(s3_server, s3_url, monkeypatch) -> FaultProxy:
    with faults_before(s3_server.port) as made:
        for name, value in environment_of(made.endpoint).items():
            monkeypatch.setenv(name, value)
        yield made


def open_bucket(url: str, cache: Path) -> BucketHome:
    """The home as another host has it."""
    return BucketHome(open_storage(url), url, HostCache(cache))


def commit(home: BucketHome, folder: Path, fingerprint: str = "one", **options: int) -> Snapshot:
    made = write_snapshot_folder(folder, **options)
    return home.commit("shop", made, snapshot_facts(fingerprint, n=options.get("n", 20)))


def gets(proxy: FaultProxy, part: str) -> int:
    return sum(request.method == "GET" and f"/{part}/" in request.path for request in proxy.requests)


# ---- what is downloaded ----


@pytest.fixture
def large(proxy, s3_url, tmp_path, monkeypatch) -> Snapshot:
    """A snapshot of 16 files of candidates that is too large to be fetched whole, as another host opens it."""
    commit(open_bucket(s3_url, tmp_path / "one"), tmp_path / "made", n=N, files_of=N // 16)
    monkeypatch.setattr(bucket_parts, "SMALL_PART", 1000)
    found = open_bucket(s3_url, tmp_path / "two").open("shop", 1)
    proxy.requests.clear()
    return found


def test_opening_a_snapshot_reads_its_manifest_only(large, proxy):
    assert large.n_rows == N
    assert proxy.requests == []


@pytest.mark.parametrize("row", [0, 1, 249, 250, 2_001, N - 1])
def test_a_key_of_a_large_snapshot_is_found_by_a_few_ranges(large, proxy, row):
    key = f"q{row:06d}"
    assert large.lookup(key).query == key
    touched = {request.path.partition("?")[0] for request in proxy.requests if "/candidates/" in request.path}
    assert len(touched) <= 6, "the first file, then log2(16) files at most"
    assert gets(proxy, "candidates") < 24


@pytest.mark.parametrize("key", ["a", "q002000x", "z"])
def test_a_key_that_is_not_there_is_not_found_in_a_large_snapshot(large, key):
    with pytest.raises(NotFoundError, match="has no query"):
        large.lookup(key)


def test_an_unknown_key_of_a_very_large_snapshot_is_compared_with_the_keys_of_one_file(large, proxy, monkeypatch):
    monkeypatch.setattr("nearcast.table.snapshot_reader.MOST_SEARCHED", 10)
    with pytest.raises(NotFoundError, match="'q002000'"):
        large.lookup("q002000x")
    touched = {request.path.partition("?")[0] for request in proxy.requests if "/candidates/" in request.path}
    assert len(touched) <= 6


def test_rows_and_ranges_of_a_large_snapshot_equal_those_of_its_files(large, tmp_path):
    whole = pq.read_table(tmp_path / "made" / "candidates")
    ids = large.lists_between("q001000", "q001500")
    assert ids.column("query_id").to_pylist() == [f"q{row:06d}" for row in range(1_000, 1_500)]
    dataset = large.dataset("candidates")
    assert dataset.schema.equals(whole.schema)
    found = dataset.to_table(filter=pc.field("query_id").isin(["q000007", "q003999"]))
    assert found.equals(whole.take([7, 3_999]))
    assert np.array_equal(dataset.to_table(use_threads=True).column("length"), whole.column("length"))


def test_a_part_is_fetched_once_per_host(large, proxy):
    large.fetch("candidates")
    first = gets(proxy, "candidates")
    assert first >= 16
    large.fetch("candidates")
    assert large.lookup("q000007").query == "q000007"
    assert gets(proxy, "candidates") == first


def test_the_host_that_committed_reads_its_own_files(proxy, s3_url, tmp_path):
    made = commit(open_bucket(s3_url, tmp_path / "one"), tmp_path / "made")
    assert made.lookup("q000007", ("name",)).columns["name"]
    assert gets(proxy, "candidates") == gets(proxy, "items") == 0
    made.verify()
    assert gets(proxy, "candidates") == 1, "verifying reads the bucket, not the cache"


def test_a_changed_file_of_a_small_part_is_found_by_a_look_up(s3_url, tmp_path):
    commit(open_bucket(s3_url, tmp_path / "one"), tmp_path / "made")
    storage, name = open_storage(s3_url), "shop/snapshots/000001/candidates/part-00000.parquet"
    data = bytearray(storage.read(name))
    data[50] ^= 1
    storage.write(name, bytes(data))
    with pytest.raises(DamagedError, match=r"candidates/part-00000.parquet was changed after it was written"):
        open_bucket(s3_url, tmp_path / "two").open("shop", 1).lookup("q000007")
    assert not list((tmp_path / "two").glob("entries/*")), "nothing damaged is kept"


def test_a_file_that_the_transfer_damaged_is_downloaded_again(proxy, s3_url, tmp_path):
    commit(open_bucket(s3_url, tmp_path / "one"), tmp_path / "made")
    proxy.plan = fail_first(1, Fault(flip_body=True), method="GET", path="/candidates/")
    assert open_bucket(s3_url, tmp_path / "two").open("shop", 1).lookup("q000007").query == "q000007"


def test_a_manifest_is_read_again_only_if_it_changed(proxy, s3_url, tmp_path):
    home = open_bucket(s3_url, tmp_path / "one")
    commit(home, tmp_path / "made")
    home.list_snapshots("shop")
    proxy.requests.clear()
    assert len(home.list_snapshots("shop")) == 1
    assert not any(request.method == "GET" and "manifest" in request.path for request in proxy.requests)


# ---- commits ----


def test_an_abandoned_attempt_is_swept_after_a_day_and_its_number_is_not_used_again(s3_url, tmp_path, monkeypatch):
    storage = open_storage(s3_url)
    home = open_bucket(s3_url, tmp_path / "one")
    storage.create("shop/snapshots/000001/attempt.json", b'{"attempt": "killed", "fingerprint": "other"}')
    storage.write("shop/snapshots/000001/items/part-00000.parquet", b"half")
    assert home.sweep("shop") == 0
    monkeypatch.setattr(bucket_home, "ABANDONED_SECONDS", -60.0)
    assert home.sweep("shop") == 1
    assert [found.name for found in storage.list_objects("shop")] == ["shop/snapshots/000001/attempt.json"]
    assert home.next_version("shop") == 2, "a slow process may still write into 000001"
    commit(home, tmp_path / "made")
    home.sweep("shop")
    assert not [found.name for found in storage.list_objects("shop/snapshots/000001")]


def test_a_second_attempt_of_the_same_run_sweeps_the_first_at_once(s3_url, tmp_path):
    storage = open_storage(s3_url)
    storage.create("shop/snapshots/000001/attempt.json", b'{"attempt": "killed", "fingerprint": "one"}')
    storage.write("shop/snapshots/000001/items/part-00000.parquet", b"half")
    made = commit(open_bucket(s3_url, tmp_path / "one"), tmp_path / "made")
    assert made.version == 2
    assert {found.name.split("/")[2] for found in storage.list_objects("shop/snapshots")} == {"000002"}


@pytest.mark.parametrize("moment", ["upload", "before the manifest", "after the manifest"])
def test_a_slow_commit_that_is_swept_starts_again_and_ends_whole(s3_url, tmp_path, monkeypatch, moment):
    """Another process sweeps with a clock that is days ahead, at the worst moments."""
    home, other = open_bucket(s3_url, tmp_path / "one"), open_bucket(s3_url, tmp_path / "two")
    upload, create = ObjectStorage.upload, ObjectStorage.create
    left = [1]

    def sweep() -> None:
        if left[0]:
            left[0] = 0
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(bucket_home, "ABANDONED_SECONDS", -60.0)
                other.sweep("shop")

    def upload_slowly(self, name, path):
        upload(self, name, path)
        if moment == "upload":
            sweep()

    def create_slowly(self, name, data):
        ours = name.endswith("manifest.json")
        if ours and moment == "before the manifest":
            sweep()
        done = create(self, name, data)
        if ours and moment == "after the manifest":
            sweep()
        return done

    monkeypatch.setattr(ObjectStorage, "upload", upload_slowly)
    monkeypatch.setattr(ObjectStorage, "create", create_slowly)
    made = commit(home, tmp_path / "made")
    assert left == [0]
    assert [snapshot.version for snapshot in other.list_snapshots("shop")] == [made.version]
    made.verify()
    names = [found.name for found in open_storage(s3_url).list_objects("shop/snapshots")]
    assert sum(name.endswith("manifest.json") for name in names) == 1


def test_a_driver_whose_run_another_driver_commits_meanwhile_returns_that_snapshot(s3_url, tmp_path, monkeypatch):
    home, other = open_bucket(s3_url, tmp_path / "one"), open_bucket(s3_url, tmp_path / "two")
    upload = ObjectStorage.upload
    left = [1]

    def upload_slowly(self, name, path):
        upload(self, name, path)
        if left[0]:
            left[0] = 0
            commit(other, tmp_path / "theirs")

    monkeypatch.setattr(bucket_home, "READS", 1)
    monkeypatch.setattr(ObjectStorage, "upload", upload_slowly)
    made = commit(home, tmp_path / "made")
    assert made.version == 2, "the other driver's"
    assert [snapshot.version for snapshot in home.list_snapshots("shop")] == [2]
    made.verify()


def test_a_commit_that_breaks_off_lists_nothing_and_the_next_one_completes(proxy, s3_url, tmp_path, monkeypatch):
    monkeypatch.setenv("NEARCAST_STORAGE_PATIENCE", "0.5")
    home = open_bucket(s3_url, tmp_path / "one")
    proxy.plan = lambda request: Fault(reset=True) if "manifest.json" in request.path else None
    with pytest.raises(StorageError):
        commit(home, tmp_path / "made")
    proxy.plan = lambda request: None
    assert home.list_snapshots("shop") == []
    made = commit(open_bucket(s3_url, tmp_path / "two"), tmp_path / "again")
    assert [snapshot.version for snapshot in home.list_snapshots("shop")] == [made.version]
    made.verify()


def test_a_commit_whose_reply_is_lost_is_the_snapshot_all_the_same(proxy, s3_url, tmp_path):
    home = open_bucket(s3_url, tmp_path / "one")
    home.check_writable()
    proxy.plan = fail_first(1, Fault(lose_reply=True), conditional=True, path="manifest.json")
    made = commit(home, tmp_path / "made")
    assert proxy.injected == 1
    assert [snapshot.version for snapshot in home.list_snapshots("shop")] == [made.version] == [1]
    made.verify()


@pytest.mark.parametrize("status", [500, 503])
def test_a_commit_and_a_look_up_go_on_where_the_server_fails_for_a_while(proxy, s3_url, tmp_path, status):
    proxy.plan = lambda request: Fault(status=status) if request.number % 3 == 1 else None
    made = commit(open_bucket(s3_url, tmp_path / "one"), tmp_path / "made")
    assert open_bucket(s3_url, tmp_path / "two").open("shop", 1).lookup("q000007").query == "q000007"
    assert proxy.injected > 3
    assert made.version == 1


def test_a_removal_that_breaks_off_leaves_no_snapshot_half_there(proxy, s3_url, tmp_path, monkeypatch):
    monkeypatch.setenv("NEARCAST_STORAGE_PATIENCE", "0.5")
    home = open_bucket(s3_url, tmp_path / "one")
    commit(home, tmp_path / "made")
    commit(home, tmp_path / "newer", "two")
    deletes = []

    def plan(request):  # all but the first delete, of the manifest, break off
        if request.method == "DELETE" or (request.method == "POST" and "delete" in request.path):
            deletes.append(request)
            return Fault(reset=True) if len(deletes) > 1 else None
        return None

    proxy.plan = plan
    with pytest.raises(StorageError):
        remove_snapshot(home, "shop", 1)
    proxy.plan = lambda request: None
    assert [snapshot.version for snapshot in open_bucket(s3_url, tmp_path / "two").list_snapshots("shop")] == [2]
    monkeypatch.setattr(bucket_home, "ABANDONED_SECONDS", -60.0)
    assert home.sweep("shop") == 1
    assert not list(open_storage(s3_url).list_objects("shop/snapshots/000001"))


def test_a_look_up_reads_ranges_where_the_disk_of_the_cache_is_full(s3_url, tmp_path, monkeypatch):
    commit(open_bucket(s3_url, tmp_path / "one"), tmp_path / "made")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ObjectStorage, "download", fail)
    found = open_bucket(s3_url, tmp_path / "two").open("shop", 1)
    assert found.lookup("q000007", ("name",)).query == "q000007"
    with pytest.raises(BudgetError, match=r"the disk of the cache .* is full"):
        found.fetch("candidates")
