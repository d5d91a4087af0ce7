"""Stores whose files are cut, missing or replaced, or whose disk is full: no process ends by a signal, what was
removed stays removed, and `--repair` heals. A few cases here, every file and every 4,096 bytes with `make test-all`."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.crash.processes import SERVER
from tests.crash.survivor import KEYS, Clearing, Damage, nothing, survive, use, write_on
from tests.end_to_end import shop as at
from tests.servers import redis_server, redis_url  # noqa: F401 (fixtures)

import nearcast
from nearcast.errors import DamagedError, NearcastError, NotFoundError

PATIENCE = 300.0
PAGE = 4096
OVERLAY = "store/shop/overlay/data.mdb"


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shop with two versions in a store, an overlay, and a table of ads that has one too."""
    folder = tmp_path_factory.mktemp("healthy")
    spec = at.write_shop(folder, measure={"sample": 50})
    nearcast.run(spec)
    nearcast.publish(spec, store=str(folder / "store"))
    at.write_items(folder, at.clustered(at.N_ITEMS, seed=1) + np.float32(0.01))
    nearcast.run(spec)
    nearcast.publish(spec, store=str(folder / "store"))
    ads = {"ad": list(range(at.N_ITEMS)), "budget": [1.0] * at.N_ITEMS}
    pq.write_table(pa.table(ads), folder / "ads.parquet")
    items = [f"i{number:04d}" for number in range(at.N_ITEMS)]
    pq.write_table(pa.table({"item": items, "ad": ads["ad"]}), folder / "links.parquet")
    text = '[ads]\npath = "ads.parquet"\nid = "ad"\n[links]\npath = "links.parquet"\nitem = "item"\nad = "ad"\n'
    (folder / "ads.toml").write_text(f'name = "ads"\n{text}')
    nearcast.expand(folder / "ads.toml", store=str(folder / "store"))
    with nearcast.open(str(folder / "store"), "shop") as lookup:
        best = [str(lookup.get(key).ids[0]) for key in KEYS[:6]]
    removed = sorted(set(best))
    with nearcast.overlay(str(folder / "store"), "shop") as overlay:
        overlay.remove(removed)
        overlay.update_many([(item, "name", "x" * 300) for item in items[:60]])
        overlay.remove([f"gone-{number}" for number in range(100)])
    paused = [7, 8, 9]
    with nearcast.overlay(str(folder / "store"), "ads") as overlay:
        overlay.remove(paused)
    (folder / "known.json").write_text(json.dumps({"removed": removed, "paused": paused}))
    return folder


def files(folder: Path) -> list[str]:
    """The files of the store."""
    return sorted(path.relative_to(folder).as_posix() for path in (folder / "store").rglob("*") if path.is_file())


def fresh_copy(healthy: Path, folder: Path) -> Path:
    if folder.exists():
        shutil.rmtree(folder)
    shutil.copytree(healthy, folder)
    return folder


def finished(target: Callable[..., None], folder: Path, store: str, *more: Callable[[], None]) -> dict:
    """Let another process use a store. Returns what it did, after it has ended by itself and found no fault."""
    report = folder / "report.json"
    process = SERVER.Process(target=target, args=(folder, store, known(folder), report, *more))
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == 0, f"ended with {process.exitcode}"
    told = json.loads(report.read_text())
    assert told["faults"] == [], told["faults"][0]
    return told


def known(folder: Path) -> dict:
    return json.loads((folder / "known.json").read_text())


def run_through(healthy: Path, folder: Path, file: str, how: str | int, *, running: bool) -> None:
    """Damage a copy of the store, and use and heal it in another process."""
    damage = Damage(fresh_copy(healthy, folder) / file, how)
    if not running:
        damage()
    clear = Clearing(folder / file) if "overlay" not in file else nothing  # --repair moves what is in its way there
    finished(survive, folder, str(folder / "store"), damage if running else nothing, clear)


@pytest.mark.parametrize(
    ("file", "how", "running"),
    [
        (OVERLAY, 2 * PAGE, False),
        (OVERLAY, "missing", True),
        ("store/shop/versions/000001/data.mdb", 2 * PAGE, False),
        ("store/shop/overlay/lock.mdb", "missing", True),
        ("store/shop/overlay.journal", "missing", False),
        ("store/shop/versions/000002/data.mdb", 2 * PAGE, True),
        ("store/shop/current", "missing", False),
        ("store/ads/current", 75, False),
        ("store/ads/versions/000001/manifest.json", 0, False),
    ],
    ids=lambda value: str(value).removeprefix("store/"),
)
def test_a_damaged_file_ends_no_process_and_is_healed(healthy, tmp_path, file, how, running):
    run_through(healthy, tmp_path / "shop", file, how, running=running)


@pytest.mark.parametrize("how", ["restored", "repaired"])
@pytest.mark.parametrize(("cut", "told"), [(True, "was cut to 8,192 of 126,976 bytes"), (False, "was written to")])
def test_a_reader_whose_file_was_damaged_opens_it_again_when_it_is_whole(
    healthy, tmp_path, monkeypatch, cut, told, how
):
    monkeypatch.chdir(fresh_copy(healthy, tmp_path / "shop"))
    file = Path("store/shop/versions/000002/data.mdb")
    whole = file.read_bytes()
    with nearcast.open("store", "shop", refresh_seconds=3600) as lookup:
        if cut:
            os.truncate(file, 2 * PAGE)
        else:
            with file.open("r+b") as opened:
                opened.write(bytes(len(whole)))
        assert told in (lookup.refresh().error or "")
        with pytest.raises(NearcastError):
            lookup.get(KEYS[0])
        if how == "restored":
            file.with_name("copy").write_bytes(whole)
            file.with_name("copy").replace(file)
        nearcast.publish("shop", 2, store="store", out="nearcast", repair=True)
        assert lookup.refresh().error is None
        assert lookup.get(KEYS[0]).found


def test_a_reader_opens_a_file_that_was_touched_again_and_goes_on(healthy, tmp_path, monkeypatch):
    monkeypatch.chdir(fresh_copy(healthy, tmp_path / "shop"))
    with nearcast.open("store", "shop", refresh_seconds=3600) as lookup:
        Path("store/shop/versions/000002/data.mdb").touch()
        assert lookup.get(KEYS[0]).found
        assert lookup.refresh().error is None
        assert lookup.get(KEYS[0]).found


def test_a_lost_pointer_is_not_taken_for_nothing_published(healthy, tmp_path, monkeypatch):
    monkeypatch.chdir(fresh_copy(healthy, tmp_path / "shop"))
    Path("store/shop/current").unlink()
    with pytest.raises(NotFoundError, match=r"its pointer was lost.*it has 1, 2; publish again"):
        nearcast.open("store", "shop")
    watched = nearcast.monitor("shop.toml", store="store")
    assert [alert.check for alert in watched.alerts] == ["unreachable"]
    assert isinstance(watched.failure, DamagedError)
    nearcast.publish("shop", store="store", out="nearcast")
    with nearcast.open("store", "shop") as lookup:
        assert not {*known(Path())["removed"]} & {*lookup.get(KEYS[0]).ids}


def cuts(size: int) -> list[int]:
    return list(range(0, size, PAGE)) if size > PAGE else [0, size // 2, max(0, size - 1)]


@pytest.mark.slow
@pytest.mark.parametrize("running", [False, True], ids=["before", "under a reader"])
def test_every_file_cut_at_every_page_missing_or_replaced(healthy, tmp_path, running):
    done, wrong = 0, []
    for file in files(healthy):
        kinds = [*cuts((healthy / file).stat().st_size), "missing", "zeros", "noise", "folder", "link"]
        for how in kinds:
            try:
                run_through(healthy, tmp_path / "shop", file, how, running=running)
            except AssertionError as error:
                wrong.append(f"{file} {how}: {error}")
                print(wrong[-1])
            done += 1
            print(f"{done} damages so far, {len(wrong)} wrong: {file} {how}", flush=True)
    assert wrong == []


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A file system of so many bytes. Skips the test where none can be made."""
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    if made.returncode:
        pytest.skip("a small file system cannot be mounted here (it takes root): " + made.stderr.decode().strip())
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(disk: Path, pages_left: int) -> Path:
    """Fill the disk but for these pages."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(PAGE))
    os.truncate(filler, filler.stat().st_size // PAGE * PAGE - pages_left * PAGE)
    return filler


def live_on_a_full_disk(healthy: Path, folder: Path, disk: Path, pages_left: int, *, with_overlay: bool) -> dict:
    fresh_copy(healthy, folder)
    store = disk / "store"
    if store.exists():
        shutil.rmtree(store)
    shutil.move(folder / "store", store)
    if not with_overlay:
        for name in ("shop", "ads"):
            shutil.rmtree(store / name / "overlay")
            (store / name / "overlay.journal").unlink()
        (folder / "known.json").write_text('{"removed": [], "paused": []}')
    filler = fill(disk, pages_left)
    told = finished(use, folder, str(store))
    filler.unlink()
    finished(survive, folder, str(store), nothing, nothing)
    return told


@pytest.mark.parametrize(("pages_left", "with_overlay"), [(0, True), (0, False)], ids=["full", "full, no overlay"])
def test_a_full_disk_ends_no_process_and_loses_nothing(healthy, tmp_path, pages_left, with_overlay):
    with small_disk(tmp_path / "disk", 8 << 20) as disk:
        told = live_on_a_full_disk(healthy, tmp_path / "shop", disk, pages_left, with_overlay=with_overlay)
    assert told["outcomes"]["look up"] == 0
    assert told["outcomes"]["remove"] == 11


@pytest.mark.slow
@pytest.mark.parametrize("with_overlay", [True, False])
def test_a_disk_that_is_full_at_every_write_ends_no_process(healthy, tmp_path, with_overlay):
    with small_disk(tmp_path / "disk", 8 << 20) as disk:
        for pages_left in (*range(40), *range(40, 200, 8)):
            live_on_a_full_disk(healthy, tmp_path / "shop", disk, pages_left, with_overlay=with_overlay)


def kill_at(folder: Path, store: str, seconds: float) -> None:
    """Kill a writer so long after it began."""
    started = folder / "started"
    started.unlink(missing_ok=True)
    process = SERVER.Process(target=write_on, args=(folder, store, known(folder), started))
    process.start()
    while not started.exists():
        assert process.is_alive()
        time.sleep(0.005)
    process.join(seconds)
    process.kill()
    process.join()
    assert process.exitcode == -9


def in_store(healthy: Path, folder: Path, kind: str, request: pytest.FixtureRequest) -> str:
    """The URL of a copy of the healthy store, or of a Redis with the same in it."""
    fresh_copy(healthy, folder)
    if kind == "lmdb":
        return str(folder / "store")
    url = f"{request.getfixturevalue('redis_url')}?buckets=64&timeout=30&grace=60"
    for version in (1, 2):
        nearcast.publish("shop", version, store=url, out=folder / "nearcast")
    nearcast.expand(folder / "ads.toml", store=url)
    with nearcast.overlay(url, "shop") as overlay, nearcast.overlay(url, "ads") as paused:
        overlay.remove(known(folder)["removed"])
        overlay.update("i0005", "name", "newer")
        paused.remove(known(folder)["paused"])
    return url


@pytest.mark.parametrize("kind", ["lmdb", "redis"])
@pytest.mark.parametrize(
    "moments", [[0.3], pytest.param(list(np.linspace(0, 2.4, 30)), marks=pytest.mark.slow)], ids=["1", "30"]
)
def test_a_writer_that_is_killed_leaves_a_store_that_works(healthy, tmp_path, request, kind, moments):
    store = in_store(healthy, tmp_path / "shop", kind, request)
    for moment in moments:
        kill_at(tmp_path / "shop", store, moment)
        # A kill after a rollback leaves version 2 withdrawn, which the audit says (10), and nothing older to go back
        # to (7). A killed publisher's lock in Redis is held until its time is over (5).
        use_after_a_kill(tmp_path / "shop", store, moment, (0, 5, 7, 10) if kind == "redis" else (0, 7, 10))
        if kind == "redis":
            let_locks_run_out(store)
            use_after_a_kill(tmp_path / "shop", store, moment, (0, 7, 10))


def use_after_a_kill(folder: Path, store: str, moment: float, good: tuple[int, ...]) -> None:
    told = finished(use, folder, store)
    assert {name: code for name, code in told["outcomes"].items() if code not in good} == {}, f"after {moment:.2f} s"


def let_locks_run_out(url: str) -> None:
    """As if the time of every publisher's lock were over."""
    import redis

    with contextlib.closing(redis.Redis.from_url(url.partition("?")[0])) as client:
        for key in client.keys("nearcast:*:lock"):
            client.delete(key)


@pytest.mark.slow
def test_a_redis_that_is_full_or_has_lost_a_key_is_healed(healthy, tmp_path, request):
    import redis

    folder = tmp_path / "shop"
    url = in_store(healthy, folder, "redis", request)
    client = redis.Redis.from_url(url.partition("?")[0])
    used = client.info("memory")["used_memory"]
    for room in (0, 10_000, 50_000, 100_000, 200_000, 500_000):
        client.config_set("maxmemory", used + room)
        try:
            finished(use, folder, url)
        finally:
            client.config_set("maxmemory", 0)
        finished(survive, folder, url, nothing, nothing)
    for key in sorted(client.keys("nearcast:*")):
        if b":lists:" in key or b":items:" in key:
            continue
        if not client.exists(key) or key.endswith(b":lock"):
            continue
        client.delete(key)
        finished(survive, folder, url, nothing, nothing)
    client.close()
