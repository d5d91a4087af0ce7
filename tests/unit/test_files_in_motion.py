"""Files that change while a command reads them: one state is seen throughout, or exit 3, and nothing is kept."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

import nearcast
from builders import generator as spec_of
from builders import source_spec, table
from nearcast.errors import InputError
from nearcast.join.listen import Listener
from nearcast.sources.check import kept_rows, scan
from nearcast.sources.ingest import ingest
from nearcast.sources.rows import table_source

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


@pytest.mark.parametrize("new", [name for name in NEW_ROWS if name != "other vectors"])
def test_ids_and_counts_are_compared_again_at_ingest_even_where_no_file_shows_the_change(new, tmp_path):
    held = {"table": rows()}
    source = table_source(source_spec(), rows(), "items")

    def read(columns, most):
        data = held["table"].select(list(columns))
        for start in range(0, len(data), most):
            yield data.slice(start, most)

    moving = replace(source, parts=(replace(source.parts[0], read=read),))
    seen = scan(moving, memory_bytes=1 << 20, side="items")
    held["table"] = NEW_ROWS[new]
    with pytest.raises(InputError, match="items changed while it was read; run again"):
        ingest(seen, kept_rows(seen, spec_of()), tmp_path / "side", {}, memory_bytes=1 << 20, side="items")
    assert not (tmp_path / "side" / "manifest.json").exists()
