from __future__ import annotations

import json
import multiprocessing
import os
import re

import pytest

from nearcast import files
from nearcast.errors import BusyError, DamagedError
from nearcast.files import (
    file_hash,
    fingerprint,
    finish,
    fresh_folder,
    hold_lock,
    is_done,
    read_manifest,
    verify,
    write_text,
)


@pytest.fixture
def folder(tmp_path):
    """A folder with two files, declared done."""
    made = fresh_folder(tmp_path / "artifact")
    (made / "data.bin").write_bytes(b"12345")
    (made / "deep").mkdir()
    (made / "deep" / "more.bin").write_bytes(b"67")
    finish(made, {"rows": 2, "name": "Kaffee & Kuchen ☕"})
    return made


def test_a_folder_is_done_when_its_manifest_is_there(tmp_path):
    made = fresh_folder(tmp_path / "a")
    (made / "data.bin").write_bytes(b"1")
    assert not is_done(made)
    finish(made, {})
    assert is_done(made)


def test_the_manifest_lists_every_file_with_size_and_hash(folder):
    manifest = verify(folder, contents=True)
    assert (manifest["rows"], manifest["name"]) == (2, "Kaffee & Kuchen ☕")
    assert {name: facts["bytes"] for name, facts in manifest["files"].items()} == {"data.bin": 5, "deep/more.bin": 2}
    assert manifest["files"]["data.bin"]["blake2b"] == file_hash(folder / "data.bin")


def test_equal_contents_give_equal_manifests(folder, tmp_path):
    first = (folder / "manifest.json").read_bytes()
    finish(folder, {"name": "Kaffee & Kuchen ☕", "rows": 2})
    assert (folder / "manifest.json").read_bytes() == first
    assert sorted(p.name for p in folder.iterdir()) == ["data.bin", "deep", "manifest.json"]


def test_a_process_killed_before_the_manifest_leaves_the_folder_undone(tmp_path, monkeypatch):
    made = fresh_folder(tmp_path / "a")
    (made / "data.bin").write_bytes(b"1")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        finish(made, {})
    monkeypatch.undo()
    assert not is_done(made)
    finish(fresh_folder(made), {})
    assert verify(made, contents=True)["files"] == {}


def test_what_a_killed_write_has_left_beside_the_data_is_not_listed_as_data(tmp_path, monkeypatch):
    made = fresh_folder(tmp_path / "a")
    (made / ".partial-manifest.json").write_text("half a mani")
    finish(made, {})
    assert verify(made, contents=True)["files"] == {}


def test_a_file_that_was_rewritten_in_the_same_tick_of_the_clock_gets_its_new_hash(tmp_path):
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
    data = tmp_path / "one" / "data"
    data.write_bytes(bytes(1 << 17))
    os.link(data, tmp_path / "two" / "data")
    written = data.stat()
    finish(tmp_path / "one", {})
    data.write_bytes(bytes((1 << 17) - 1) + b"1")
    os.utime(data, ns=(written.st_atime_ns, written.st_mtime_ns))
    finish(tmp_path / "two", {})
    verify(tmp_path / "two", contents=True)


def test_a_fresh_folder_is_empty_whatever_was_there(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "old").write_text("old")
    assert list(fresh_folder(tmp_path / "a").iterdir()) == []
    assert fresh_folder(tmp_path / "x" / "y" / "z").is_dir()


def test_a_missing_file_is_named_with_the_way_out(folder):
    (folder / "deep" / "more.bin").unlink()
    with pytest.raises(DamagedError, match=r"more\.bin is missing; restore it, or remove .*artifact and run again"):
        verify(folder, contents=False)


def test_a_file_that_was_cut_short_is_named_with_both_sizes(folder):
    (folder / "data.bin").write_bytes(b"123")
    with pytest.raises(DamagedError, match=r"data\.bin has 3 bytes where 5 were written"):
        verify(folder, contents=False)


def test_a_file_that_was_changed_is_found_by_its_contents_alone(folder):
    (folder / "data.bin").write_bytes(b"12346")
    verify(folder, contents=False)
    with pytest.raises(DamagedError, match=r"data\.bin was changed after it was written; restore it, or run again"):
        verify(folder, contents=True)


def test_a_folder_without_manifest_says_that_it_was_never_finished(tmp_path):
    with pytest.raises(
        DamagedError, match=re.escape(f"{tmp_path} has no manifest.json: it was never finished; run again")
    ):
        read_manifest(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null"])
def test_a_manifest_that_is_cut_short_or_no_manifest_is_named(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DamagedError, match=r"manifest\.json (cannot be read|does not hold a manifest).*run again"):
        read_manifest(tmp_path)


def test_bytes_in_place_of_a_manifest_are_named(tmp_path):
    (tmp_path / "manifest.json").write_bytes(b"\xff\xfe")
    with pytest.raises(DamagedError, match=r"manifest\.json cannot be read"):
        read_manifest(tmp_path)


def test_writing_a_text_replaces_the_old_one_whole(tmp_path):
    write_text(tmp_path / "a.txt", "old and long")
    write_text(tmp_path / "a.txt", "neu ☕")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "neu ☕"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_write_that_fails_leaves_the_old_text(tmp_path, monkeypatch):
    write_text(tmp_path / "a.txt", "old")
    monkeypatch.setattr(files.os, "fsync", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "old"


def test_fingerprints_of_equal_data_are_equal_in_any_order_of_keys():
    assert fingerprint({"a": 1, "b": [True, None, "ü"]}) == fingerprint({"b": [True, None, "ü"], "a": 1})


def test_fingerprints_of_different_data_differ():
    values = [{}, [], {"a": 1}, {"a": 2}, {"a": "1"}, {"b": 1}, [1, 2], [2, 1], 1.5, "ü", None, True]
    assert len({fingerprint(value) for value in values}) == len(values)


def test_a_fingerprint_is_the_same_on_every_machine():
    assert fingerprint({"k": 10}) == "7a64d523de8ec5acc2e44796d0ce7517"


def test_a_fingerprint_refuses_what_has_no_plain_form():
    with pytest.raises(ValueError, match="not JSON compliant"):
        fingerprint({"a": float("nan")})


def _try_to_lock(path, answers):
    try:
        with hold_lock(path, "generator 'similar'"):
            answers.put("held")
    except BusyError as error:
        answers.put(str(error))


def in_another_process(path):
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=_try_to_lock, args=(path, answers))
    process.start()
    answer = answers.get(timeout=60)
    process.join()
    answers.close()
    answers.join_thread()
    return answer


def test_a_second_process_is_refused_and_told_who_holds_the_lock(tmp_path):
    path = tmp_path / "new" / ".lock"
    with hold_lock(path, "generator 'similar'"):
        answer = in_another_process(path)
    assert re.fullmatch(
        r"generator 'similar' is held by process \d+ since 20\S+Z; wait for it to end, or stop it", answer
    )


def test_a_lock_is_free_again_after_its_holder_even_one_that_failed(tmp_path):
    with pytest.raises(RuntimeError), hold_lock(tmp_path / ".lock", "it"):
        raise RuntimeError
    assert in_another_process(tmp_path / ".lock") == "held"


def test_the_lock_answers_to_its_earlier_name_with_a_warning(tmp_path):
    with pytest.warns(DeprecationWarning, match="locked is now hold_lock"):
        locked = files.locked
    with locked(tmp_path / ".lock", "it"):
        assert in_another_process(tmp_path / ".lock") != "held"


def test_two_holders_in_one_process_exclude_each_other_too(tmp_path):
    with hold_lock(tmp_path / ".lock", "it"), pytest.raises(BusyError), hold_lock(tmp_path / ".lock", "it"):
        pass


def test_the_manifest_is_json_for_everyone(folder):
    assert json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["rows"] == 2


@pytest.mark.parametrize("kind", ["link", "dangling link", "hard link", "leftover"])
def test_a_file_in_the_place_of_the_new_text_is_replaced_and_never_followed(tmp_path, kind):
    victim, planted = tmp_path / "victim", tmp_path / ".partial-current"
    victim.write_text("precious")
    if kind == "hard link":
        os.link(victim, planted)
    elif kind == "leftover":
        planted.write_text("of a killed process, and much longer than the new text")
    else:
        planted.symlink_to(victim if kind == "link" else tmp_path / "nowhere")
    write_text(tmp_path / "current", "new", mode=0o600)
    assert (tmp_path / "current").read_text() == "new"
    assert (tmp_path / "current").stat().st_mode & 0o777 == 0o600
    assert victim.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["current", "victim"]


@pytest.mark.parametrize("kind", ["link", "dangling link", "hard link", "folder", "pipe"])
def test_a_lock_file_that_leads_elsewhere_is_refused(tmp_path, kind):
    victim, lock = tmp_path / "victim", tmp_path / ".lock"
    victim.write_text("precious")
    make = {
        "link": lambda: lock.symlink_to(victim),
        "dangling link": lambda: lock.symlink_to(tmp_path / "nowhere"),
        "hard link": lambda: os.link(victim, lock),
        "folder": lock.mkdir,
        "pipe": lambda: os.mkfifo(lock),
    }
    make[kind]()
    with pytest.raises(DamagedError, match=r"\.lock (is|has) "), hold_lock(lock, "shop"):
        pass
    assert victim.read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()
