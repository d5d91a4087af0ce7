"""The contract of the history, one suite for a local folder and a bucket."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from nearcast.errors import DamagedError
from nearcast.history import bucket_log, event_log
from nearcast.history.event_log import append, newest, read
from nearcast.storage.open_storage import open_storage


@pytest.fixture(params=["folder", "s3"])
def out(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("NEARCAST_CACHE", str(tmp_path / "cache"))
    if request.param == "s3":
        return request.getfixturevalue("s3_url")
    (tmp_path / "out").mkdir()
    return str(tmp_path / "out")


def append_many(out: str, number: int, count: int, start: object) -> None:
    start.wait()  # type: ignore[attr-defined]
    for place in range(count):
        assert append(out, "shop", "monitor", 1, {"of": number, "place": place}) is None


def test_an_empty_history_has_no_events(out):
    assert read(out) == []
    assert newest(out) == {}


def test_events_are_read_as_they_were_added(out):
    assert append(out, "shop", "run", 1, {"text": "ümlaut", "share": 0.5, "none": None}, seconds=100.5) is None
    (event,) = read(out)
    assert event.as_dict() == {
        "generator": "shop",
        "kind": "run",
        "seconds": 100.5,
        "version": 1,
        "facts": {"text": "ümlaut", "share": 0.5, "none": None},
    }


def test_events_are_chosen_by_generator_kind_and_number(out):
    for place in range(6):
        kind = "publish" if place % 3 == 2 else "run"
        append(out, "shop" if place % 2 else "shop.phrases", kind, place, {}, seconds=1_000.0 + place)
    assert [event.version for event in read(out, "shop")] == [1, 3, 5]
    assert [event.version for event in read(out, "shop", ["publish"])] == [5]
    assert [event.version for event in read(out, "shop", ["publish", "run"], last=2)] == [3, 5]
    assert read(out, "shop", last=0) == []
    assert [event.version for event in read(out, last=99)] == list(range(6))
    assert read(out, "other") == []


def test_an_event_with_an_identity_is_added_once(out):
    for text in ("first", "second"):
        assert append(out, "shop", "run", 1, {"text": text}, seconds=5.0, identity="run shop 1") is None
    assert [event.facts["text"] for event in read(out)] == ["first"]


def test_the_number_of_a_generator_grows_with_its_events_alone(out):
    append(out, "shop", "run", 1, {}, seconds=5.0, identity="a")
    before = newest(out)
    append(out, "shop", "run", 1, {}, seconds=5.0, identity="a")
    assert newest(out) == before
    append(out, "shop", "publish", 1, {})
    append(out, "toys", "run", 1, {}, seconds=4.0)
    after = newest(out)
    assert after["shop"] > before["shop"]
    assert set(after) == {"shop", "toys"}


def test_a_rollback_stays_after_its_publish_where_a_clock_goes_backwards(out, monkeypatch):
    for kind, clock in (("publish", 2_000.0), ("rollback", 1_000.0), ("monitor", 1_500.0)):
        monkeypatch.setattr(event_log.time, "time", lambda clock=clock: clock)
        append(out, "shop", kind, 1, {})
    events = read(out, "shop")
    assert [event.kind for event in events] == ["publish", "rollback", "monitor"]
    assert [event.seconds for event in events] == [2_000.0, 1_000.0, 1_500.0], "the clock's time is what is recorded"


def test_processes_that_append_at_once_lose_nothing(out):
    context = multiprocessing.get_context("spawn")
    start = context.Event()
    processes = [context.Process(target=append_many, args=(out, number, 10, start)) for number in range(3)]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    events = read(out, "shop")
    assert sorted((event.facts["of"], event.facts["place"]) for event in events) == [
        (number, place) for number in range(3) for place in range(10)
    ]


def test_a_history_that_cannot_be_read_is_named(out):
    append(out, "shop", "run", 1, {}, seconds=5.0)
    storage = open_storage(out)
    name = next(found.name for found in storage.list_objects())
    storage.write(name, b"no history")
    with pytest.raises(DamagedError, match=f"{storage.url}/{name} cannot be read"):
        read(out)


def test_an_event_of_a_later_format_is_refused(s3_url, tmp_path, monkeypatch):
    monkeypatch.setenv("NEARCAST_CACHE", str(tmp_path / "cache"))
    append(s3_url, "shop", "run", 1, {}, seconds=5.0)
    storage = open_storage(s3_url)
    name = next(found.name for found in storage.list_objects())
    storage.write(name, json.dumps(json.loads(storage.read(name)) | {"format": bucket_log.FORMAT + 1}).encode())
    with pytest.raises(DamagedError, match=f"of format {bucket_log.FORMAT + 1}, and this nearcast reads"):
        read(s3_url)


def test_objects_of_others_in_the_folder_of_the_history_are_left_alone(s3_url, tmp_path, monkeypatch):
    monkeypatch.setenv("NEARCAST_CACHE", str(tmp_path / "cache"))
    append(s3_url, "shop", "run", 1, {}, seconds=5.0)
    for name in ("history/notes.txt", "history/shop/notes.json", "history/shop/deep/000-run-1.json"):
        open_storage(s3_url).write(name, b"?")
    assert [event.kind for event in read(s3_url)] == ["run"]
    assert set(newest(s3_url)) == {"shop"}


def test_events_are_read_from_the_cache_of_the_host(s3_url, tmp_path, monkeypatch):
    monkeypatch.setenv("NEARCAST_CACHE", str(tmp_path / "cache"))
    append(s3_url, "shop", "run", 1, {"text": "kept"}, seconds=5.0)
    (before,) = read(s3_url)
    storage = open_storage(s3_url)
    name = next(found.name for found in storage.list_objects())
    storage.write(name, b"an event never changes")
    assert read(s3_url) == [before]
    monkeypatch.setenv("NEARCAST_CACHE", str(tmp_path / "another host"))
    with pytest.raises(DamagedError):
        read(s3_url)


def test_a_history_in_a_bucket_that_does_not_exist_is_an_error_text(s3_url, monkeypatch):
    assert "does not exist" in (append("s3://no-such-bucket/out", "shop", "run", 1, {}) or "")
