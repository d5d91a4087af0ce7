"""Files that change while a command reads them: one state is seen throughout, or exit 3, and nothing is kept."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import nearcast
from builders import generator as spec_of
from builders import source_spec, table
from nearcast.errors import InputError, SpecError
from nearcast.join.listener import Listener
from nearcast.replaying.request_log import read_log
from nearcast.sources import user_files
from nearcast.sources.ingest import open_ingested_table
from nearcast.sources.ingest_rows import ingest_staged
from nearcast.sources.memory_tables import TableReader, table_source
from nearcast.sources.open_source import open_source
from nearcast.sources.stage_rows import StageSettings, stage_table
from nearcast.storage.artifacts import LocalArtifacts

N, DIM = 60, 4


def rows(n=N, *, seed=0, shift=0):
    """A table of n items whose vectors tell their ids apart."""
    vectors = np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float32)
    return table([f"item-{i + shift:03d}" for i in range(n)], vectors.tolist(), price=[float(i) for i in range(n)])


def write(path, data):
    pq.write_table(data, path)


def replace_by_rename(path, data):
    """As an exporter does it: a new file under the old name, with the old file's times."""
    fresh = path.with_name(path.name + ".new")
    pq.write_table(data, fresh)
    shutil.copystat(path, fresh)
    os.replace(fresh, path)


def overwrite_in_place(path, data):
    fresh = path.with_name(path.name + ".new")
    pq.write_table(data, fresh)
    path.write_bytes(fresh.read_bytes())
    fresh.unlink()


def overwrite_and_set_the_time_back(path, data):
    before = path.stat()
    overwrite_in_place(path, data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def truncate(path, data):
    os.truncate(path, path.stat().st_size // 2)


def remove(path, data):
    path.unlink()


CHANGES = {
    "renamed over": replace_by_rename,
    "overwritten": overwrite_in_place,
    "overwritten, its time set back": overwrite_and_set_the_time_back,
    "cut short": truncate,
    "removed": remove,
}
NEW_ROWS = {
    "other vectors": rows(seed=1),
    "other ids": rows(seed=1, shift=7),
    "fewer rows": rows(N // 2, seed=1),
    "more rows": rows(2 * N, seed=1),
}


class At(Listener):
    """A listener that does something once, when a stage is heard of for the first time."""

    def __init__(self, stage, act):
        super().__init__()
        self.stage, self.act, self.stages = stage, act, []

    def progress(self, stage, done, total):
        self.stages.append(stage)
        if stage == self.stage and self.act is not None:
            act, self.act = self.act, None
            act()


def generator(**more):
    source = {"path": "items.parquet", "attributes": ["price"]}
    return {"name": "test", "metric": "inner_product", "k": 3, "items": source} | more


def lists(snapshot):
    found = pq.read_table(snapshot.folder / "candidates").to_pylist()
    return {row["query_id"]: row["candidate_ids"] for row in found}


def exact(data):
    ids, vectors = data["id"].to_pylist(), np.array(data["vector"].to_pylist(), np.float32)
    order = np.argsort(-(vectors @ vectors.T), axis=1, kind="stable")[:, :3]
    return {name: [ids[place] for place in row] for name, row in zip(ids, order, strict=True)}


@pytest.mark.parametrize("stage", ["hash inputs", "check items", "read items"])
@pytest.mark.parametrize("change", CHANGES)
def test_an_item_file_that_changes_stops_the_run_and_the_next_run_is_right(stage, change, tmp_path):
    path, new = tmp_path / "items.parquet", NEW_ROWS["other ids"]
    write(path, rows())
    listener = At(stage, lambda: CHANGES[change](path, new))
    with pytest.raises(InputError, match=r"items\.parquet changed while it was read; run again"):
        nearcast.run(generator(), base=tmp_path, listener=listener)
    assert not list((tmp_path / "nearcast" / "test").glob("snapshots/*"))
    assert not list((tmp_path / "nearcast" / "test" / "artifacts").glob("*/manifest.json"))
    write(path, new)
    outcome = nearcast.run(generator(), base=tmp_path)
    assert not outcome.reused
    assert lists(outcome.snapshot) == exact(new)


@pytest.mark.parametrize("new", NEW_ROWS)
@pytest.mark.parametrize("stage", ["check items", "read items"])
def test_what_the_new_file_holds_does_not_matter(stage, new, tmp_path):
    path = tmp_path / "items.parquet"
    write(path, rows())
    with pytest.raises(InputError, match=r"items\.parquet changed while it was read; run again"):
        nearcast.run(generator(), base=tmp_path, listener=At(stage, lambda: replace_by_rename(path, NEW_ROWS[new])))


@pytest.mark.parametrize("new", NEW_ROWS)
def test_rows_are_those_of_the_one_pass_that_reads_them_whatever_their_source_holds_later(new, tmp_path):
    held, passes = {"table": rows()}, []
    source = table_source(source_spec(), rows(), "items")

    class Moving(TableReader):
        def read(self, columns, max_rows):
            passes.append(columns)
            data = held["table"].select(list(columns))
            for start in range(0, len(data), max_rows):
                yield data.slice(start, max_rows)

    moving = replace(source, parts=(replace(source.parts[0], reader=Moving(rows(), ["id"], "items")),))
    staged = stage_table(moving, spec_of(), StageSettings(1 << 20), "items")
    held["table"] = NEW_ROWS[new]
    artifacts = LocalArtifacts(tmp_path)
    made = ingest_staged(staged, "side", artifacts, {}, memory_bytes=1 << 20, table="items")
    assert len(passes) == 1
    assert made.ids.to_pylist() == rows()["id"].to_pylist()
    assert made.vectors.read(0, N).tolist() == rows()["vector"].to_pylist()


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("stage", ["sample items", "check items"])
def test_a_file_that_changes_between_the_sample_of_ids_and_the_split_is_refused(stage, change, tmp_path):
    path = tmp_path / "items.parquet"
    write(path, rows())
    source = open_source(source_spec(), tmp_path)
    listener = At(stage, lambda: CHANGES[change](path, NEW_ROWS["other ids"]))
    with pytest.raises(InputError, match=r"items\.parquet changed while it was read; run again"):
        stage_table(source, spec_of(), StageSettings(1 << 20, 1, tmp_path, 20), "items", listener.progress)


@pytest.mark.parametrize("stage", ["sample items", "check items", "read items"])
def test_an_array_that_is_written_to_meanwhile_leaves_no_table_in_ranges(stage, tmp_path):
    ids, vectors = np.arange(N), np.random.default_rng(0).normal(size=(N, DIM)).astype(np.float32)
    source = table_source(source_spec(), (ids, vectors), "items")
    source.digests()
    before = vectors.copy()

    def act():
        vectors[:] = vectors[::-1].copy()

    listener, artifacts = At(stage, act), LocalArtifacts(tmp_path)

    def run():
        staged = stage_table(source, spec_of(), StageSettings(1 << 20, 1, tmp_path, 20), "items", listener.progress)
        side = {"dim": DIM, "dtype": "float32"}
        ingest_staged(staged, "side", artifacts, side, memory_bytes=1 << 20, table="items", progress=listener.progress)

    with pytest.raises(InputError, match="items changed while it was read; run again"):
        run()
    assert "side" not in artifacts.list_names()
    vectors[:] = before  # the ranges that are there, if any, are those of the hashed contents
    run()
    found = open_ingested_table(artifacts.open("side"))
    assert np.array_equal(found.vectors.read(0, N), before)


# --- every file of every command -----------------------------------------------------------------------------------

RANKER = "import pyarrow.compute as pc\n\ndef rank(batch):\n    return {sign}batch['score'].to_numpy()\n"


def save_npy(path, seed, n=N):
    np.save(path, np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float32))


def write_all(base, seed):
    """Every kind of file that a command reads, in one of two states that give different answers."""
    pq.write_table(rows(seed=seed), base / "items.parquet")
    (base / "parts").mkdir(exist_ok=True)
    for part in range(2):
        pq.write_table(rows(seed=seed).slice(part * N // 2, N // 2), base / "parts" / f"part-{part}.parquet")
    pq.write_table(rows(20, seed=seed + 10), base / "queries.parquet")
    save_npy(base / "v.npy", seed)
    np.save(base / "ids.npy", np.arange(N) + 100 * seed)
    (base / "ids.txt").write_text("".join(f"item-{i + 7 * seed:03d}\n" for i in range(N)))
    pq.write_table(pa.table({"id": rows()["id"].to_pylist()[seed::2]}), base / "only.parquet")
    items = [f"item-{i:03d}" for i in range(N)] * 3
    survived = (np.random.default_rng(seed).random(3 * N) < 0.5).tolist()
    log = {"key": items, "item": items[::-1], "survived": survived, "n": list(range(seed, 3 * N + seed))}
    pq.write_table(pa.table(log), base / "log.parquet", row_group_size=50)
    (base / "model.py").write_text(RANKER.format(sign="-" if seed else ""))
    pq.write_table(pa.table({"ad": list(range(N)), "bid": [float(seed)] * N}), base / "ads.parquet")
    pq.write_table(pa.table({"item": items[:N], "ad": np.roll(range(N), seed)}), base / "links.parquet")


def run_of(**more):
    return lambda base: lists(
        nearcast.run({"name": "test", "metric": "inner_product", "k": 3} | more, base=base).snapshot
    )


def expand(base):
    ads, links = {"path": "ads.parquet"}, {"path": "links.parquet"}
    done = nearcast.expand({"name": "promoted", "ads": ads, "links": links}, base=base, store=str(base / "store"))
    return done.ads, done.links


def published_table(base):
    nearcast.publish_table("test", "phrases", base / "log.parquet", key="key", item="item", store=str(base / "store"))
    return nearcast.published("test.phrases", store=str(base / "store"))[0].pointer.version


READS = {
    "items": (["items.parquet"], run_of(items={"path": "items.parquet", "attributes": ["price"]})),
    "a folder": (["parts/part-0.parquet", "parts/part-1.parquet"], run_of(items={"path": "parts"})),
    "a glob": (["parts/part-1.parquet"], run_of(items={"path": "parts/*.parquet"})),
    "queries": (["queries.parquet"], run_of(items={"path": "items.parquet"}, queries={"path": "queries.parquet"})),
    "only": (["only.parquet"], run_of(items={"path": "items.parquet", "only": "only.parquet"})),
    "npy": (["v.npy", "ids.npy"], run_of(items={"path": "v.npy", "ids": "ids.npy"})),
    "ids as text": (["ids.txt"], run_of(items={"path": "v.npy", "ids": "ids.txt"})),
    "survival": (
        ["log.parquet"],
        run_of(items={"path": "items.parquet"}, overfetch={"at_least": 1, "log": "log.parquet"}),
    ),
    "model": (["model.py"], run_of(items={"path": "items.parquet"}, rank={"function": "model:rank", "fetch": 10})),
    "head": (["log.parquet"], lambda base: nearcast.head(base / "log.parquet", count="n", coverage=0.5).as_dict()),
    "replay": (["log.parquet"], lambda base: read_log(base / "log.parquet")),
    "table": (["log.parquet"], published_table),
    "ads and links": (["ads.parquet", "links.parquet"], expand),
}


def swap(path, other):
    """Rename the other state of a file over it, with the old one's time of modification."""
    fresh = path.with_name(f".{path.name}.new")
    shutil.copyfile(other, fresh)
    shutil.copystat(path, fresh)
    os.replace(fresh, path)


def overwrite(path, other):
    before = path.stat()
    path.write_bytes(other.read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


class Moving:
    """Changes a file just before the n-th look at any file's state."""

    def __init__(self, n, act):
        self.n, self.act, self.looks = n, act, 0

    def __enter__(self):
        self.patch = pytest.MonkeyPatch()
        look = user_files._stat

        def moved(path):
            if self.looks == self.n:
                self.act()
            self.looks += 1
            return look(path)

        self.patch.setattr(user_files, "_stat", moved)
        return self

    def __exit__(self, *_):
        self.patch.undo()


def take_away(path, _other):
    path.unlink()


def fresh_answer(command, base, place):
    """What a command answers on the files as they lie there, without what earlier calls have kept."""
    copy = shutil.copytree(base, place, ignore=shutil.ignore_patterns("nearcast", "store", "__pycache__"))
    return command(copy)


def has_said_why(error, name):
    """That the file changed; or that it is not there, for one that went before it was seen."""
    stem = re.escape(name.split("/")[0].split(".")[0])
    words = f"{stem}.* changed while it was read; run again|no Parquet file at|no file at|is not there|no module"
    assert re.search(words, str(error)), error
    return True


slow = pytest.mark.slow


@pytest.mark.parametrize(
    "change", [swap, pytest.param(overwrite, marks=slow), pytest.param(take_away, marks=slow)], ids=lambda c: c.__name__
)
@pytest.mark.parametrize(
    "read", [pytest.param(read, marks=slow) if read in ("a glob", "ids as text") else read for read in READS]
)
def test_whenever_a_file_changes_the_answer_is_that_of_one_state_or_exit_3(read, change, tmp_path):
    names, command = READS[read]
    for seed, state in enumerate(("old", "new")):
        (tmp_path / state).mkdir()
        write_all(tmp_path / state, seed)
    with Moving(-1, None) as counted:
        old_answer = fresh_answer(command, tmp_path / "old", tmp_path / "counted")
    refused = 0
    for place, n in enumerate((1, counted.looks // 2, counted.looks - 1)):
        name = names[place % len(names)]
        base = shutil.copytree(tmp_path / "old", tmp_path / f"base-{place}")
        try:
            with Moving(n, partial(change, base / name, tmp_path / "new" / name)):
                found = command(base)
        except (InputError, SpecError) as error:
            refused += has_said_why(error, name)
            assert not list(base.glob("nearcast/test/snapshots/*"))
        else:
            if found != old_answer:
                assert found == fresh_answer(command, base, tmp_path / f"again-{place}")
        if (base / name).exists():  # the next call trusts nothing that it should not
            assert command(base) == fresh_answer(command, base, tmp_path / f"next-{place}") or read == "table"
    assert refused


def test_a_part_that_joins_or_leaves_a_folder_meanwhile_is_a_change(tmp_path):
    write_all(tmp_path, 0)
    spec = generator(items={"path": "parts"})
    new = tmp_path / "parts" / "part-2.parquet"
    for stage in ("hash inputs", "check items", "read items"):
        listener = At(stage, lambda: pq.write_table(rows(5, shift=500), new))
        with pytest.raises(
            InputError, match=r"parts changed while it was read; run again \(parts/part-2.parquet is new"
        ):
            nearcast.run(spec, base=tmp_path, listener=listener)
        new.unlink()
        listener = At(stage, lambda: (tmp_path / "parts" / "README").write_text("no Parquet"))
        nearcast.run(spec, base=tmp_path, listener=listener, again=True)
        shutil.rmtree(tmp_path / "nearcast")
    part = tmp_path / "parts" / "part-0.parquet"
    with pytest.raises(InputError, match=r"parts/part-0\.parquet changed while it was read; run again"):
        nearcast.run(spec, base=tmp_path, listener=At("check items", part.unlink))


def test_what_only_looks_like_a_change_is_none(tmp_path):
    write_all(tmp_path, 0)
    path = tmp_path / "items.parquet"
    for harmless in (lambda: os.link(path, tmp_path / "backup"), lambda: os.chmod(path, 0o640), path.read_bytes):
        nearcast.run(generator(), base=tmp_path, listener=At("check items", harmless), again=True)


@pytest.mark.parametrize("stage", ["hash inputs", "check items", "read items"])
def test_an_array_that_is_written_to_meanwhile_is_a_change_too(stage, tmp_path):
    vectors = np.random.default_rng(0).normal(size=(N, DIM)).astype(np.float32)

    def act():
        vectors[:] = vectors[::-1].copy()

    spec = {"name": "test", "metric": "inner_product", "k": 3}
    with pytest.raises(InputError, match="items changed while it was read; run again"):
        nearcast.run(spec, base=tmp_path, items=(np.arange(N), vectors), listener=At(stage, act))
    assert not list((tmp_path / "nearcast" / "test" / "artifacts").glob("*/manifest.json"))


@pytest.mark.parametrize("verb", ["check", "tune", "monitor", "refresh"])
def test_every_command_that_reads_items_sees_one_state(verb, tmp_path):
    pq.write_table(rows(400), tmp_path / "items.parquet")
    spec = tmp_path / "generator.toml"
    spec.write_text('name = "test"\nmetric = "inner_product"\nk = 3\nrecall = 0.9\n[items]\npath = "items.parquet"\n')
    if verb == "monitor":
        nearcast.refresh(spec)
        pq.write_table(rows(400, seed=3), tmp_path / "items.parquet")
    listener = At("check items", lambda: replace_by_rename(tmp_path / "items.parquet", rows(400, shift=9, seed=2)))
    with pytest.raises(InputError, match=r"items\.parquet changed while it was read; run again"):
        getattr(nearcast, verb)(spec, listener=listener)


EXPORTER = """
import os, sys, time
import numpy, pyarrow, pyarrow.parquet
path, n = sys.argv[1], 0
while True:
    n += 1
    vectors = numpy.random.default_rng(n).normal(size=(4000, 8)).astype("float32")
    lists = pyarrow.FixedSizeListArray.from_arrays(vectors.reshape(-1), 8)
    ids = [f"{n}-{i}" for i in range(4000)]
    table = pyarrow.table({"id": ids, "vector": lists, "edition": [n] * 4000})
    pyarrow.parquet.write_table(table, path + ".new")
    os.replace(path + ".new", path)
    time.sleep(float(sys.argv[2]))
"""


@slow
def test_beside_an_exporter_that_never_rests_every_snapshot_is_of_one_edition(tmp_path):
    path = tmp_path / "items.parquet"
    spec = {"name": "test", "metric": "l2", "k": 2, "items": {"path": "items.parquet", "attributes": ["edition"]}}
    outcomes = []
    for pause in ("0.02", "0.5"):
        exporter = subprocess.Popen([sys.executable, "-c", EXPORTER, str(path), pause])
        try:
            end = time.monotonic() + 30
            while not path.exists() and time.monotonic() < end:
                time.sleep(0.01)
            for _ in range(6):
                try:
                    snapshot = nearcast.run(spec, base=tmp_path).snapshot
                except InputError as error:
                    outcomes.append(str(error))
                    continue
                outcomes.append("made")
                editions = pq.read_table(snapshot.folder / "items")["edition"].unique().to_pylist()
                found = lists(snapshot)
                assert len(editions) == 1
                assert len(found) == 4000
                assert all(key == candidates[0] for key, candidates in found.items())  # the nearest is the item itself
        finally:
            exporter.kill()
            exporter.wait()
    refused = [outcome for outcome in outcomes if outcome != "made"]
    assert refused
    assert all(said.startswith("items.parquet changed while it was read; run again") for said in refused)
