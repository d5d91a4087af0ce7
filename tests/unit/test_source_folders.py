"""What a folder or a glob means: which files are taken, which are skipped and named, and columns from folder names."""

from __future__ import annotations

import os
import shutil
import socket

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import nearcast
from builders import ingested, source_spec, write_parquet
from nearcast.advising.traffic import read_traffic
from nearcast.errors import InputError
from nearcast.join.listener import Listener
from nearcast.overfetch.survival_log import read_counts
from nearcast.publishing.engagement import LogColumns
from nearcast.publishing.engagement import read_log as read_engagement
from nearcast.replaying.request_log import read_log
from nearcast.sources.open_source import open_source

A, B, C = ([1.0, 0.0], [0.0, 1.0], [1.0, 1.0])


def part(path, name, **more):
    return write_parquet(path, [name], [A], **more)


def ids(base, path="items", **settings):
    """The ids of a source, sorted, as a run would have them."""
    source = open_source(source_spec(path, **settings), base)
    return [
        value.as_py()
        for batch in source.batches(vectors=True, attributes=True, memory_bytes=1 << 20)
        for value in batch.ids
    ]


def notes(base, path="items"):
    return open_source(source_spec(path), base).notes


def column(base, name, path="items"):
    """{id: value} of one attribute, as it is ingested."""
    side = ingested(open_source(source_spec(path, attributes=(name,)), base), base / "side")
    rows = pa.concat_tables([pq.read_table(file) for file in sorted(side.attributes.glob("*.parquet"))])
    return dict(zip(rows["id"].to_pylist(), rows[name].to_pylist(), strict=True)), rows.schema.field(name).type


HIDDEN = [
    "_temporary/0/task_1/part-1.parquet",
    ".ipynb_checkpoints/part-1-checkpoint.parquet",
    "_delta_log/00000000000000000010.checkpoint.parquet",
    "_started",
    "_committed_17",
    ".part-0.parquet.crc",
    "_metadata",
    ".hidden/deep/er/part.parquet",
    "deep/_temporary/part.parquet",
    "deep/.hidden.parquet",
    "part-1.parquet._COPYING_",
]


@pytest.mark.parametrize(
    "path", ["items", "items/*", "items/**", "items/**/*", "items/**/*.parquet", "./items/", "it*"]
)
@pytest.mark.parametrize("hidden", HIDDEN)
def test_what_another_writer_left_is_no_row_of_ours(hidden, path, tmp_path):
    part(tmp_path / "items" / "part-0.parquet", "a")
    part(tmp_path / "items" / hidden, "uncommitted")
    (tmp_path / "items" / "_SUCCESS").touch()
    assert ids(tmp_path, path) == ["a"]


def test_an_uncommitted_row_never_wins_over_a_committed_one(tmp_path):
    write_parquet(tmp_path / "items" / "part-0.parquet", ["a", "b", "c"], [A, B, C])
    write_parquet(tmp_path / "items" / "_temporary" / "0" / "part-0.parquet", ["a"], [[-1.0, -1.0]])
    spec = {"name": "t", "metric": "l2", "k": 1, "items": {"path": "items"}, "checks": {"duplicate_id": "drop"}}
    report, _ = nearcast.check(spec, base=tmp_path)
    assert (report.items.rows, report.problems) == (3, ())


@pytest.mark.parametrize("folder", ["_day=1", "_day=1/_hour=2", "day=1/country=de"])
def test_folders_of_a_name_and_a_value_are_data_whatever_they_begin_with(folder, tmp_path):
    part(tmp_path / "items" / folder / "part.parquet", "a")
    assert ids(tmp_path) == ids(tmp_path, "items/*") == ids(tmp_path, "items/**") == ["a"]


def test_a_hidden_root_that_is_named_is_read(tmp_path):
    part(tmp_path / "_staging" / ".today" / "part.parquet", "a")
    for path in ("_staging/.today", "_staging/.today/*", "_staging/.today/part.parquet", "_*/.today", "_staging/.to*"):
        assert ids(tmp_path, path) == ["a"]


@pytest.mark.parametrize("path", [".", "*", "**", "**/*.parquet"])
def test_what_a_run_writes_below_its_own_source_is_no_input_of_the_next(path, tmp_path):
    write_parquet(tmp_path / "items.parquet", ["a", "b", "c"], [A, B, C])
    spec = {"name": "t", "metric": "l2", "k": 1, "items": {"path": path}}
    nearcast.run(spec, base=tmp_path)
    assert nearcast.run(spec, base=tmp_path).reused


@pytest.mark.parametrize("name", ["part.parq", "PART.PARQUET", "part", "part.snappy", "part.parquet.gz", "part.dat"])
@pytest.mark.parametrize("path", ["items", "items/*"])
def test_a_file_is_parquet_by_its_content(name, path, tmp_path):
    part(tmp_path / "items" / name, "a")
    assert ids(tmp_path, path) == ["a"]


def test_files_that_are_no_parquet_are_named_once_and_skipped(tmp_path):
    part(tmp_path / "items" / "part.parquet", "a")
    for name in ("README.md", "old.csv", "empty", "sum.crc", "x.json"):
        (tmp_path / "items" / name).write_text("" if name == "empty" else "text that is no Parquet at all")
    (told,) = notes(tmp_path)
    assert (
        told == "items: 5 files are no Parquet and were skipped: items/README.md, items/empty, items/old.csv and 2 more"
    )
    assert notes(tmp_path, "items/part.parquet") == ()


def test_a_command_says_once_what_was_skipped(tmp_path):
    part(tmp_path / "items" / "part.parquet", "a")
    (tmp_path / "items" / "notes.txt").write_text("not vectors")

    told, listener = [], Listener()
    listener.note = told.append
    spec = {"name": "t", "metric": "l2", "k": 1, "items": {"path": "items"}}
    nearcast.run(spec, base=tmp_path, listener=listener)
    assert [text for text in told if "notes.txt" in text] == [
        "items: 1 file is no Parquet and was skipped: items/notes.txt"
    ]


def test_a_folder_without_any_parquet_names_what_is_there(tmp_path):
    (tmp_path / "items").mkdir()
    (tmp_path / "items" / "a.csv").write_text("id,vector")
    with pytest.raises(
        InputError, match=r"no Parquet file at .*items; check `path`.*1 file is no Parquet.*items/a\.csv"
    ):
        ids(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1 and then nothing", b"id,vector\n"])
def test_a_part_that_was_cut_short_is_an_error_and_never_skipped(content, tmp_path):
    part(tmp_path / "items" / "part-0.parquet", "a")
    (tmp_path / "items" / "part-1.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"part-1\.parquet is not a readable Parquet file"):
        ids(tmp_path)


def test_encrypted_parquet_is_an_error_of_its_own(tmp_path):
    part(tmp_path / "items" / "part-0.parquet", "a")
    (tmp_path / "items" / "part-1.parquet").write_bytes(b"PARE" + bytes(20) + b"PARE")
    with pytest.raises(InputError, match=r"part-1\.parquet is encrypted Parquet"):
        ids(tmp_path)


def test_links_are_followed_and_loops_end(tmp_path):
    part(tmp_path / "elsewhere" / "day" / "part.parquet", "a")
    part(tmp_path / "elsewhere" / "one.parquet", "b")
    part(tmp_path / "items" / "own.parquet", "c")
    (tmp_path / "items" / "day").symlink_to(tmp_path / "elsewhere" / "day")
    (tmp_path / "items" / "one.parquet").symlink_to("../elsewhere/one.parquet")
    (tmp_path / "items" / "loop").symlink_to(tmp_path / "items")
    (tmp_path / "elsewhere" / "day" / "up").symlink_to(tmp_path / "items")
    for path in ("items", "items/*", "items/**", "items/**/*.parquet", "items/loop/loop/../**"):
        assert sorted(ids(tmp_path, path)) == ["a", "b", "c"], path


def test_a_file_of_two_names_is_read_once_and_named(tmp_path):
    real = part(tmp_path / "items" / "z" / "part.parquet", "a")
    (tmp_path / "items" / "link.parquet").symlink_to(real)
    os.link(real, tmp_path / "items" / "z" / "second.parquet")
    assert ids(tmp_path) == ["a"]
    (told,) = notes(tmp_path)
    assert "2 files are a second name of another and were skipped: items/link.parquet, items/z/second.parquet" in told


def test_a_link_to_nothing_is_an_error_where_it_should_be_data_and_a_note_elsewhere(tmp_path):
    part(tmp_path / "items" / "part.parquet", "a")
    (tmp_path / "items" / "latest").symlink_to("gone")
    assert ids(tmp_path) == ["a"]
    assert "1 file is a link to nothing and was skipped: items/latest" in notes(tmp_path)[0]
    (tmp_path / "items" / "part-2.parquet").symlink_to("gone.parquet")
    with pytest.raises(InputError, match=r"part-2\.parquet is a link to a file that is not there"):
        ids(tmp_path)


@pytest.mark.parametrize("path", ["items", "items/*", "items/**", "items/**/*.parquet", "items/*/*.parquet"])
def test_a_link_that_leads_to_itself_is_a_link_to_nothing(path, tmp_path):
    part(tmp_path / "items" / "day" / "part.parquet", "a")
    (tmp_path / "items" / "self").symlink_to("self")
    (tmp_path / "items" / "there").symlink_to("back")
    (tmp_path / "items" / "back").symlink_to("there")
    assert ids(tmp_path, path) == ["a"]


def test_pipes_and_sockets_are_named_and_never_opened(tmp_path, monkeypatch):
    part(tmp_path / "items" / "part.parquet", "a")
    os.mkfifo(tmp_path / "items" / "pipe.parquet")
    monkeypatch.chdir(tmp_path / "items")  # the address of a socket is short
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("s")
        assert ids(tmp_path) == ["a"]
        assert "2 files are neither a file nor a folder and were skipped" in notes(tmp_path)[0]


@pytest.mark.parametrize("path", ["odd[1]/items", "odd[1]/*.parquet", "odd[1]/it*", "odd[1]/items/part*"])
@pytest.mark.parametrize("base", [".", "base[a-z]", "what?", "star*"])
def test_brackets_in_the_name_of_a_folder_are_part_of_the_name(base, path, tmp_path):
    part(tmp_path / base / "odd[1]" / "items" / "part-[0].parquet", "a")
    part(tmp_path / base / "odd[1]" / "top.parquet", "top")
    part(tmp_path / base / "odd1" / "items" / "part-0.parquet", "wrong")
    assert ids(tmp_path / base, path) == (["top"] if path.endswith("*.parquet") else ["a"])


def test_a_file_name_that_is_not_utf8_is_read_and_shown(tmp_path):
    part(tmp_path / "items" / "plain.parquet", "a")
    odd = os.fsencode(tmp_path / "items") + b"/caf\xe9.parquet"
    shutil.copyfile(part(tmp_path / "b.parquet", "b"), odd)
    spec = {"name": "t", "metric": "l2", "k": 1, "items": {"path": "items"}}
    snapshot = nearcast.run(spec, base=tmp_path).snapshot
    names = [file["name"] for file in snapshot.manifest.inputs["items"]["files"]]
    assert names == ["items/caf\\xe9.parquet", "items/plain.parquet"]
    assert nearcast.run(spec, base=tmp_path).reused
    open(odd, "wb").close()
    with pytest.raises(InputError, match=r"caf\\xe9\.parquet is not a readable Parquet file"):
        ids(tmp_path)


def test_folders_that_a_glob_names_are_read_whole(tmp_path):
    part(tmp_path / "days" / "1.parquet" / "part-0.parquet", "a")  # Spark writes folders with such names
    part(tmp_path / "days" / "2.parquet" / "part-0.parquet", "b")
    assert ids(tmp_path, "days/*.parquet") == ["a", "b"]


def test_the_order_of_files_is_that_of_their_paths(tmp_path):
    for name in ("b/2", "a/9", "b/1", "c", "a/10"):
        part(tmp_path / "items" / f"{name}.parquet", name)
    assert ids(tmp_path) == ids(tmp_path, "items/**") == ["a/10", "a/9", "b/1", "b/2", "c"]


def test_a_delta_table_is_read_with_a_word_of_warning(tmp_path):
    part(tmp_path / "items" / "part.parquet", "a")
    part(tmp_path / "items" / "_delta_log" / "10.checkpoint.parquet", "x")
    assert any("belongs to a Delta table" in text for text in notes(tmp_path))


# --- columns from the names of folders ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folders", "values", "kind"),
    [
        (["country=de", "country=at"], ["de", "at"], pa.string()),
        (["day=1", "day=12"], [1, 12], pa.int64()),
        (["day=-1", "day=01"], [-1, 1], pa.int64()),
        (["day=1", "day=__HIVE_DEFAULT_PARTITION__"], [1, None], pa.int64()),
        (["name=a%2Fb%20c", "name=%C3%BC"], ["a/b c", "ü"], pa.string()),
        (["size=1", "size=large"], ["1", "large"], pa.string()),
        (["size=1.5", "size=2"], ["1.5", "2"], pa.string()),
        (["size=99999999999999999999", "size=2"], ["99999999999999999999", "2"], pa.string()),
        (["eq=a=b", "eq="], ["a=b", ""], pa.string()),
        (["year=2026/month=1", "year=2026/month=2"], [1, 2], pa.int64()),
    ],
)
@pytest.mark.parametrize("path", ["items", "items/*", "items/**/*.parquet"])
def test_an_attribute_may_be_in_the_name_of_the_folder(folders, values, kind, path, tmp_path):
    for number, folder in enumerate(folders):
        part(tmp_path / "items" / folder / "part.parquet", f"id-{number}")
    name = folders[0].split("/")[-1].split("=")[0]
    assert column(tmp_path, name, path) == ({"id-0": values[0], "id-1": values[1]}, kind)


def test_a_column_of_the_file_goes_before_the_name_of_its_folder(tmp_path):
    part(tmp_path / "items" / "country=de" / "part.parquet", "a", country=["in the file"])
    part(tmp_path / "items" / "country=7" / "part.parquet", "b")
    assert column(tmp_path, "country") == ({"a": "in the file", "b": "7"}, pa.string())


def test_a_part_outside_the_folders_lacks_the_column_and_says_so(tmp_path):
    part(tmp_path / "items" / "country=de" / "part.parquet", "a")
    part(tmp_path / "items" / "part.parquet", "b")
    with pytest.raises(InputError, match=r"items/part\.parquet has no column 'country'; its columns are id, vector"):
        column(tmp_path, "country")
    assert sorted(ids(tmp_path)) == ["a", "b"]  # nobody asks for the column here


def test_a_rule_may_ask_for_the_name_of_a_folder(tmp_path):
    for country in ("de", "at"):
        names = [f"{country}-{i}" for i in range(3)]
        write_parquet(tmp_path / "items" / f"country={country}" / "part.parquet", names, [A, B, C])
    spec = {
        "name": "t",
        "metric": "l2",
        "k": 2,
        "exclude_self": True,
        "items": {"path": "items", "attributes": ["country"]},
        "rules": [{"name": "same", "keep": "item.country == query.country"}],
    }
    found = pq.read_table(nearcast.run(spec, base=tmp_path).snapshot.folder / "candidates").to_pylist()
    assert {len(row["candidate_ids"]) for row in found} == {2}
    assert all(c[:2] == row["query_id"][:2] for row in found for c in row["candidate_ids"])


# --- logs are listed and read by the same rules --------------------------------------------------------------------


def log_folder(folder):
    """A log of two parts, with what other writers leave in such folders."""
    for number, name in enumerate(["_day=1/a.parquet", "b.PARQ", "_temporary/c.parquet", ".d.parquet"]):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        keys = [f"key-{number}"]
        pq.write_table(pa.table({"key": keys, "item": keys, "survived": [True]}), path)
    (folder / "_SUCCESS").touch()
    (folder / "more").symlink_to(folder)
    (folder / "notes.txt").write_text("no Parquet at all")


@pytest.mark.parametrize(
    "read",
    [
        lambda path, note: read_traffic(path, note=note).keys.to_pylist(),
        lambda path, note: [request.keys[0] for request in read_log(path, note=note)],
        lambda path, note: read_engagement(path, LogColumns("key", "item"), note)["key"].to_pylist(),
        lambda path, note: [
            f"key-{i}" for i in read_counts(path, pa.array(["key-0", "key-1", "key-2"])).seen.nonzero()[0]
        ],
    ],
    ids=["head and advise", "replay", "table", "survival"],
)
def test_logs_leave_out_what_is_hidden_too(read, tmp_path):
    log_folder(tmp_path / "log")
    told = []
    assert sorted(read(tmp_path / "log", told.append)) == ["key-0", "key-1"]
    assert all("notes.txt" in text or "hidden" in text for text in told)
