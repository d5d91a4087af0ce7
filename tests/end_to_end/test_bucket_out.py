"""Every command on an `out` in a bucket, through the real command line: runs, publishes, look-ups, the dashboard."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.end_to_end.service import running
from tests.end_to_end.shop import NEARCAST, environment, fail, nearcast, succeed, write_items, write_rows, write_shop
from tests.end_to_end.shop import clustered as make_vectors

from nearcast.storage.open_storage import open_storage
from needs import require_module
from s3_server import BUCKET, S3Server


class Shop:
    """A shop on this machine whose snapshots are in a bucket and whose store is a local folder."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url
        self.spec = write_shop(folder, out=url, publish={"store": f"lmdb:{folder}/store"})

    def run(self, *words: object) -> str:
        return succeed(*words, cwd=self.folder).stdout

    def json(self, *words: object) -> object:
        return json.loads(self.run(*words, "--json"))

    def names(self) -> list[str]:
        return [found.name for found in open_storage(self.url).list_objects()]


@pytest.fixture
def shop(tmp_path: Path, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Shop:
    monkeypatch.setenv("NEARCAST_CACHE", str(tmp_path / "cache"))
    (tmp_path / "shop").mkdir()
    return Shop(tmp_path / "shop", s3_url)


def move_to_another_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands after this have an empty cache, as on a machine that did not make the snapshots."""
    monkeypatch.setenv("NEARCAST_CACHE", str(tmp_path / "another-host"))


def change_items(shop: Shop, seed: int) -> None:
    write_items(shop.folder, make_vectors(600, seed=seed))


def test_a_run_leaves_its_snapshot_in_the_bucket_and_nothing_beside_the_spec(shop):
    made = shop.json("run", "shop.toml")
    where = f"{shop.url}/shop/snapshots/000001"
    assert made["snapshot"] == where
    assert {name.split("/")[-2] for name in shop.names() if name.endswith(".parquet")} == {
        "candidates",
        "items",
        "queries",
        "sketch",
    }
    assert not (shop.folder / "nearcast").exists()
    assert {path.name for path in shop.folder.iterdir()} == {"items.parquet", "queries.parquet", "shop.toml"}
    assert where in shop.run("show", "shop", "--out", shop.url)


def test_the_bytes_of_a_snapshot_in_a_bucket_equal_those_of_a_local_one(shop):
    shop.run("run", "shop.toml")
    write_shop(shop.folder)
    shop.run("run", "shop.toml")
    local = shop.folder / "nearcast" / "shop" / "snapshots" / "000001"
    storage = open_storage(shop.url)
    files = sorted(path.relative_to(local).as_posix() for path in local.rglob("*.parquet"))
    assert files
    for name in files:
        assert storage.read(f"shop/snapshots/000001/{name}") == (local / name).read_bytes()
    here, there = (json.loads(text) for text in ((local / "manifest.json").read_text(), _manifest(storage)))
    for facts in (here, there):
        for key in ("run", "spec"):
            del facts[key]
    assert here == there


def _manifest(storage) -> str:
    return storage.read("shop/snapshots/000001/manifest.json").decode()


def test_a_second_run_of_the_same_files_makes_nothing(shop):
    shop.run("run", "shop.toml")
    before = shop.names()
    done = succeed("run", "shop.toml", cwd=shop.folder)
    assert "nothing has changed since snapshot 000001" in done.stderr
    assert shop.names() == before


def test_every_reader_answers_on_another_host_with_urls(shop, tmp_path, monkeypatch):
    shop.run("run", "shop.toml")
    change_items(shop, seed=7)
    shop.run("run", "shop.toml")
    move_to_another_host(tmp_path, monkeypatch)
    out = ("--out", shop.url)
    listed = shop.json("snapshots", *out)
    assert [row["folder"] for row in listed] == [f"{shop.url}/shop/snapshots/{v:06d}" for v in (1, 2)]
    assert listed[1]["measures"]["overlap"] < 1
    assert "000002" in shop.run("snapshots", "shop", *out)
    assert shop.json("show", "shop/1", *out)["snapshot"] == f"{shop.url}/shop/snapshots/000001"
    assert "every byte matches the manifest" in shop.run("show", "shop", "--verify", *out)
    assert shop.json("show", listed[1]["folder"])["version"] == 2
    assert "is not a snapshot" in fail("show", f"{shop.url}/shop", code=7, cwd=shop.folder)
    answer = shop.json("lookup", "shop", "q007", *out)
    assert answer["length"] == 10
    assert shop.json("lookup", "shop", "q007", "--snapshot", 1, *out) != answer
    assert "q000" in fail("lookup", "shop", "q00", *out, code=7, cwd=shop.folder)
    assert shop.json("diff", "shop", *out)["kept"] < 1
    assert shop.url in fail("lookup", "toys", "q007", *out, code=7, cwd=shop.folder)
    monkeypatch.setenv("NEARCAST_OUT", shop.url)
    assert "NEARCAST_OUT" not in environment()
    assert nearcast("snapshots", "--json", cwd=shop.folder, NEARCAST_OUT=shop.url).stdout.count("fingerprint") == 2


def test_an_item_is_explained_where_the_snapshot_was_made(shop):
    shop.run("run", "shop.toml")
    listed = shop.json("lookup", "shop", "q007", "--out", shop.url)["candidates"]
    found = shop.json("explain", "shop", "q007", listed[0]["id"], "--out", shop.url)
    assert found["cause"] == "listed"


def test_publish_rollback_and_retention_on_another_host(shop, tmp_path, monkeypatch):
    settings = {"store": f"lmdb:{shop.folder}/store", "keep": 2, "keep_snapshots": 2}
    write_shop(shop.folder, out=shop.url, publish=settings, audit={"min_overlap": 0.0})
    for seed in (1, 7, 8, 9):
        change_items(shop, seed)
        shop.run("run", "shop.toml")
        accept = () if seed == 1 else ("--accept", "vectors", "--why", "a test")  # sees the sketch of the served one
        done = nearcast("publish", "shop.toml", *accept, "--json", cwd=shop.folder)
        assert done.returncode == 0, done.stdout + done.stderr
        move_to_another_host(tmp_path, monkeypatch)
    assert json.loads(done.stdout)["removed_snapshots"] == [2]
    assert [row["version"] for row in shop.json("snapshots", "--out", shop.url)] == [3, 4]
    assert not [name for name in shop.names() if "/000001/" in name or "/000002/" in name]
    assert "000003" in shop.run("rollback", "shop.toml")
    assert shop.json("lookup", "shop", "q007", "--published", "--store", settings["store"])["snapshot"] == "000003"
    versions = shop.json("published", "--out", shop.url)[0]
    assert versions["generator"] == "shop"
    moves = [name.split("-")[-2] for name in shop.names() if name.startswith("history/")]
    assert moves.count("publish") == 4
    assert moves.count("rollback") == 1
    assert moves.count("run") == 4


def test_refresh_monitor_and_dashboard(shop, tmp_path, monkeypatch):
    done = shop.json("refresh", "shop.toml", "--monitor")
    assert done["snapshot"] == f"{shop.url}/shop/snapshots/000001"
    assert done["monitor"]["served"]["recall"] == 1.0
    again = shop.json("refresh", "shop.toml")
    assert (again["reused"], again["publication"]["outcome"]) == (True, "already_current")
    move_to_another_host(tmp_path, monkeypatch)
    watched = shop.json("monitor", "shop.toml")
    assert watched["version"] == 1
    assert watched["alerts"] == []
    assert shop.json("monitor", "shop", "--out", shop.url)["version"] == 1
    page = shop.json("dashboard", "--out", shop.url)
    assert page["file"] == f"{shop.url}/dashboard.html"
    html = open_storage(shop.url).read("dashboard.html").decode()
    assert page["bytes"] == len(html.encode())
    assert html.startswith("<!doctype html>")
    local = shop.json("dashboard", "--out", shop.url, "--file", "page.html", "--store", f"lmdb:{shop.folder}/store")
    assert (shop.folder / "page.html").stat().st_size == local["bytes"]


def test_tables_overlays_replays_and_advice_work_beside_a_bucket(shop):
    import pyarrow as pa
    import pyarrow.parquet as pq

    shop.run("refresh", "shop.toml")
    pq.write_table(
        pa.table({"key": ["q001", "q002"], "item": ["i0001", "i0002"], "engaged": [["i0001"], ["i0002"]]}),
        shop.folder / "log.parquet",
    )
    shop.run("table", "shop.toml", "phrases", "log.parquet", "--key", "key", "--item", "item")
    shop.run("overlay", "shop.toml", "remove", "i0001")
    assert "i0001" in shop.run("overlay", "shop.toml", "list")
    replayed = shop.json("replay", "shop.toml", "log.parquet", "--no-online")
    assert replayed["requests"] == 2
    assert any("-replay-" in name for name in shop.names())
    assert "1 of 2 keys" in shop.run("head", "log.parquet", "--coverage", 0.5)


def test_a_check_of_a_spec_whose_snapshots_are_in_a_bucket_leaves_nothing_there(shop):
    shop.run("check", "shop.toml")
    assert shop.names() == []


def test_a_snapshot_that_is_copied_between_a_bucket_and_a_disk_stays_whole(shop, tmp_path):
    shop.run("run", "shop.toml")
    storage = open_storage(shop.url)
    for name in shop.names():
        path = shop.folder / "nearcast" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.download(name, path)
    assert "every byte matches" in shop.run("show", "shop", "--verify")
    copy = open_storage(f"{shop.url}/copy")
    for path in (shop.folder / "nearcast").rglob("*"):
        if path.is_file() and path.name != "attempt.json":
            copy.upload(path.relative_to(shop.folder / "nearcast").as_posix(), path)
    assert "every byte matches" in shop.run("show", "shop", "--verify", "--out", copy.url)
    assert shop.json("lookup", "shop", "q007", "--out", copy.url) == shop.json("lookup", "shop", "q007")


def test_a_store_below_a_bucket_is_refused_with_a_way_out(shop):
    write_shop(shop.folder, out=shop.url)
    shop.run("run", "shop.toml")
    says = fail("publish", "shop.toml", code=2, cwd=shop.folder)
    assert f"relative to `out`, which is {shop.url}" in says
    assert "redis://" in says
    shop.run("publish", "shop.toml", "--store", f"lmdb:{shop.folder}/store")


def test_a_wrong_bucket_and_wrong_locations_are_refused_before_any_work(shop):
    for out, says in (
        ("s3://no-such-bucket/out", "the bucket no-such-bucket does not exist"),
        ("s3://bucket/a/../b", "has an empty part, . or .."),
        ("s3a://bucket/out", "write s3://"),
        ("ftp://bucket/out", "is not supported"),
    ):
        write_shop(shop.folder, out=out)
        done = nearcast("run", "shop.toml", cwd=shop.folder)
        assert done.returncode in (2, 16), done.stderr
        assert says in done.stderr.replace("\n", " "), done.stderr
        assert "join" not in done.stderr
        listed = nearcast("snapshots", "--out", out, cwd=shop.folder)
        assert listed.returncode in (2, 16), listed.stderr
        assert "Traceback" not in listed.stderr


def test_missing_credentials_are_named(shop, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    assert "AWS_ACCESS_KEY_ID" in fail("run", "shop.toml", code=16, cwd=shop.folder)
    assert "AWS_ACCESS_KEY_ID" in fail("show", "shop", "--out", shop.url, code=16, cwd=shop.folder)


def test_a_changed_and_a_missing_object_are_found_and_named(shop, tmp_path, monkeypatch):
    shop.run("run", "shop.toml")
    move_to_another_host(tmp_path, monkeypatch)
    storage, name = open_storage(shop.url), "shop/snapshots/000001/candidates/part-00000.parquet"
    whole = storage.read(name)
    storage.write(name, whole[:60] + bytes([whole[60] ^ 1]) + whole[61:])
    for words in (("show", "shop", "--verify"), ("lookup", "shop", "q007"), ("publish", "shop")):
        extra = ("--store", f"lmdb:{shop.folder}/store") if words[0] == "publish" else ()
        says = fail(*words, "--out", shop.url, *extra, code=8, cwd=shop.folder).replace("\n", "")
        assert f"{shop.url}/{name} was changed" in says
    storage.delete(name)
    says = fail("show", "shop", "--verify", "--out", shop.url, code=8, cwd=shop.folder).replace("\n", "")
    assert f"{shop.url}/{name} is missing" in says


KILLED = """
import os, signal, sys
from nearcast.storage.object_storage import ObjectStorage

create = ObjectStorage.create

def create_or_die(self, name, data):
    if name.endswith("manifest.json"):
        os.kill(os.getpid(), signal.SIGKILL)
    return create(self, name, data)

ObjectStorage.create = create_or_die
sys.argv = ["nearcast", "run", "shop.toml"]
from nearcast.cli import main
main()
"""


def test_a_run_that_is_killed_before_its_commit_is_never_listed_and_the_next_one_completes_and_sweeps(shop):
    killed = subprocess.run(
        [sys.executable, "-c", KILLED],
        cwd=shop.folder,
        env=environment(),
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert killed.returncode == -9, killed.stderr
    assert any(name.startswith("shop/snapshots/000001/candidates/") for name in shop.names())
    assert shop.json("snapshots", "--out", shop.url) == []
    assert "no snapshot of 'shop'" in fail("lookup", "shop", "q007", "--out", shop.url, code=7, cwd=shop.folder)
    assert shop.json("run", "shop.toml")["run"]["tasks_continued"] == 1
    assert [row["version"] for row in shop.json("snapshots", "--out", shop.url)] == [2]
    assert not [name for name in shop.names() if "/000001/" in name]
    assert "every byte matches" in shop.run("show", "shop", "--verify", "--out", shop.url)


def test_two_drivers_on_two_hosts_at_once_leave_whole_snapshots(shop, tmp_path):
    drivers = [
        subprocess.Popen(
            [str(NEARCAST), "run", "shop.toml", "--json"],
            cwd=shop.folder,
            env=environment(NEARCAST_CACHE=str(tmp_path / f"host-{number}")),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for number in range(2)
    ]
    made = []
    for driver in drivers:
        out, err = driver.communicate(timeout=300)
        assert driver.returncode == 0, err
        made.append(json.loads(out)["snapshot"])
    listed = [row["folder"] for row in shop.json("snapshots", "--out", shop.url)]
    assert set(made) == set(listed)
    for number in range(1, len(listed) + 1):
        assert listed[number - 1].endswith(f"{number:06d}") or len(listed) == 1
        name = "/".join(listed[number - 1].split("/")[-3::2])
        shop.run("show", name, "--verify", "--out", shop.url)


def test_a_restarted_server_interrupts_nothing_that_is_tried_again(tmp_path, monkeypatch):
    from s3_server import s3_running

    (tmp_path / "server").mkdir()
    monkeypatch.setenv("NEARCAST_CACHE", str(tmp_path / "cache"))
    with s3_running(tmp_path / "server") as server:
        assert isinstance(server, S3Server)
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        (tmp_path / "shop").mkdir()
        made = Shop(tmp_path / "shop", f"s3://{BUCKET}/out")
        made.run("run", "shop.toml")
        server.restart(keep=True)
        assert "every byte matches" in made.run("show", "shop", "--verify", "--out", made.url)
        change_items(made, seed=7)
        made.run("run", "shop.toml")
        assert [row["version"] for row in made.json("snapshots", "--out", made.url)] == [1, 2]


def test_a_service_shows_the_dashboard_and_samples_keys_beside_a_bucket(shop, tmp_path, monkeypatch):
    require_module("uvicorn")
    shop.run("refresh", "shop.toml")
    change_items(shop, seed=7)
    shop.run("run", "shop.toml")
    move_to_another_host(tmp_path, monkeypatch)
    with running(tmp_path / "service", "--out", shop.url, "--store", f"lmdb:{shop.folder}/store") as service:
        for number in range(25):
            assert len(service.get(f"/v1/generators/shop/candidates/q{number:03d}").json()["candidates"]) == 10
        assert service.get("/dashboard/data").json()["generators"][0]["name"] == "shop"
        assert service.get("/dashboard/generators/shop/page").json()["versions"] == [2, 1]
        lists = service.get("/dashboard/generators/shop/list?key=q007").json()
        assert len(lists["now"]["candidates"]) == 10
        assert service.stop() == 0
    assert any(name.startswith("lookups/shop-") for name in shop.names())
    assert shop.json("monitor", "shop.toml")["served"]["sampled"] == "look-ups"


def test_without_a_store_a_refresh_is_refused_before_its_run(shop):
    spec = shop.folder / "shop.toml"
    spec.write_text(re.sub(r"(?m)^store = .*$", "", spec.read_text()))
    says = "a store cannot be in a bucket: give an absolute path, lmdb:/PATH, or redis://HOST:PORT/DB, as `store` in"
    assert says in fail("refresh", "shop.toml", code=2, cwd=shop.folder)
    assert shop.names() == []
    shop.run("run", "shop.toml")
    for command in ("publish", "monitor"):
        assert says in fail(command, "shop.toml", code=2, cwd=shop.folder)


def test_an_out_in_a_bucket_takes_incremental_runs_and_updates_where_the_tables_are(shop, tmp_path, monkeypatch):
    store = {"store": f"lmdb:{shop.folder}/store"}
    write_shop(shop.folder, out=shop.url, recall=1.0, publish=store, run={"incremental": True})
    shop.run("run", "shop.toml")
    vectors = make_vectors(600, seed=1)
    vectors[:5] = make_vectors(600, seed=9)[:5]
    write_items(shop.folder, vectors)
    shop.run("run", "shop.toml")
    mode = shop.json("show", "shop", "--out", shop.url)["run"]["incremental"]
    assert (mode["incremental"], mode["changes"]["items"]["changed"]) == (True, 5)
    shop.run("publish", "shop.toml")
    for name in ("first", "second"):
        write_rows(shop.folder / f"{name}.parquet", [name], [vectors[0]], category=["new"], name=["new"])
    assert shop.json("update", "shop.toml", "--items", "first.parquet")["patch"] == 1
    answer = shop.json("lookup", "shop", "q007", "--published", "--out", shop.url)
    move_to_another_host(tmp_path, monkeypatch)
    words = fail("update", "shop.toml", "--items", "second.parquet", code=7, cwd=shop.folder)
    assert "are not on this machine" in words
    assert shop.json("lookup", "shop", "q007", "--published", "--out", shop.url)["candidates"] == answer["candidates"]
    write_items(shop.folder, make_vectors(600, seed=1))
    shop.run("run", "shop.toml")
    mode = shop.json("show", "shop", "--out", shop.url)["run"]["incremental"]
    assert not mode["incremental"]
    assert "tables of the last snapshot cannot be read" in mode["reason"]
