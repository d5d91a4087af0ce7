"""`nearcast update` and `nearcast follow` from the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tests.end_to_end.shop import clustered, fail, succeed, write_rows, write_spec

import nearcast


@pytest.fixture
def shop(tmp_path):
    write_rows(tmp_path / "items.parquet", [f"i{n:03d}" for n in range(200)], list(clustered(200, seed=1)))
    queries = clustered(50, seed=2)
    write_rows(tmp_path / "queries.parquet", [f"q{n:02d}" for n in range(50)], list(queries))
    spec = write_spec(tmp_path, k=5, items={"path": "items.parquet"}, recall=1.0)
    nearcast.run(spec)
    nearcast.publish(spec)
    return tmp_path, queries


def look_up(folder, query):
    with nearcast.open(folder / "nearcast" / "store", "shop") as lookup:
        return list(lookup.get(query).ids)


def test_an_arrived_item_is_in_an_answer_until_the_patch_is_undone(shop):
    folder, queries = shop
    before = look_up(folder, "q00")
    write_rows(folder / "new.parquet", ["new"], [queries[0] * np.float32(9)])
    (folder / "gone.txt").write_text(f"{before[1]}\n\n")
    words = ("update", "shop.toml", "--items", "new.parquet", "--gone", "gone.txt", "--max-lists-changed", "1")
    done = json.loads(succeed(*words, "--json", cwd=folder).stdout)
    assert (done["patch"], done["counts"]["items"], done["counts"]["gone"]) == (1, 1, 1)
    after = look_up(folder, "q00")
    assert "new" in after
    assert before[1] not in after
    assert "updated 1 times: the newest is patch 1" in " ".join(succeed("show", "shop", cwd=folder).stdout.split())
    assert json.loads(succeed("show", "shop", "--json", cwd=folder).stdout)["updates"][0]["number"] == 1
    assert json.loads(succeed("snapshots", "shop", "--json", cwd=folder).stdout)[0]["updates"] == 1
    assert "serves all of this already" in succeed(*words, cwd=folder).stdout
    (folder / "gone.txt").write_text(f"{before[0]}\n")
    named = ("--store", f"lmdb:{folder}/nearcast/store", "--out", "nearcast")
    said = succeed("update", "shop", "--gone", "gone.txt", "--max-lists-changed", "1", *named, cwd=folder).stdout
    assert f"undo: nearcast rollback shop {' '.join(named)} --patch 1" in " ".join(said.split())
    assert "no patch 9: the newest patch in force is 2" in fail("rollback", "shop", "--patch", "9", code=7, cwd=folder)
    succeed("rollback", "shop", "--patch", "0", cwd=folder)
    assert look_up(folder, "q00") == before


def test_follow_once_applies_what_is_there(shop):
    folder, queries = shop
    write_rows(folder / "feed" / "1.parquet", ["new"], [queries[0] * np.float32(0.9)])
    said = succeed("follow", "shop.toml", "--source", "feed", "--once", cwd=folder).stdout
    assert "items: 1" in said
    assert "items: 0" in succeed("follow", "shop.toml", "--source", "feed", "--once", cwd=folder).stdout
    assert "fed is no folder" in fail("follow", "shop.toml", "--source", "fed", "--once", code=2, cwd=folder)


def test_an_update_without_a_batch_or_of_a_missing_file_says_so(shop):
    folder, _ = shop
    assert "nothing to update" in fail("update", "shop.toml", code=2, cwd=folder)
    assert "none.parquet; check the path" in fail("update", "shop.toml", "--items", "none.parquet", code=3, cwd=folder)
