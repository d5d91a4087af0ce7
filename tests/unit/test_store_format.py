"""The readers that docs/store-format.md shows need no nearcast and read what the stores hold."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys

import pyarrow as pa
import pytest

from nearcast.stores import open_store
from nearcast.stores.base import PatchFacts, Pointer, Space
from nearcast.stores.value_format import encode_key, encode_keys, encode_lists, id_kind
from needs import require_module

SCORES = pa.array([[1.5, 0.25], [-1.0], []], pa.list_(pa.float32()))
LONG = "ä" * 400
CASES = {  # queries, candidates
    "numbers": ([-5, 7, 1 << 60], [[1, 2], [4_000_000_000], []]),
    "large numbers": ([-5, 7, 1 << 60], [[-1, 1 << 40], [2], []]),
    "strings": (["", "q ☕", LONG], [["a", "ä ☕"], [LONG], []]),
}


@pytest.fixture(scope="module", params=["lmdb", "redis"])
def reader(request, tmp_path_factory, repository_text):
    """The reader of a kind of store, as a file."""
    (code,) = [c for c in re.findall(r"```python\n(.*?)```", repository_text, re.DOTALL) if f", {request.param}," in c]
    assert "nearcast" not in re.sub(r'f"nearcast:', "", code)
    path = tmp_path_factory.mktemp("reader") / "reader.py"
    path.write_text(code, encoding="utf-8")
    return request.param, path


@pytest.fixture(scope="module")
def repository_text(request):
    return (request.config.rootpath / "docs" / "store-format.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("case", CASES)
def test_a_reader_without_nearcast_reads_lists(reader, case, tmp_path, request):
    kind, program = reader
    place = request.getfixturevalue("redis_url") if kind == "redis" else str(tmp_path / "store")
    queries, candidates = CASES[case]
    publish(place, queries, candidates)
    for query, ids, scores in zip(queries, candidates, SCORES.to_pylist(), strict=True):
        assert run(program, place, "shop", query) == [[i, s] for i, s in zip(ids, scores, strict=True)]
    assert run(program, place, "shop", "404") is None


def test_a_reader_without_nearcast_reads_the_newest_patch_of_a_key(reader, tmp_path, request):
    kind, program = reader
    place = request.getfixturevalue("redis_url") if kind == "redis" else str(tmp_path / "store")
    queries, candidates = CASES["strings"]
    publish(place, queries, candidates)
    value = encode_lists(pa.array([["new"]]), pa.array([[0.5]], pa.list_(pa.float32())), [None], 2)[0]
    patches = [{b"q \xe2\x98\x95": b"", b"added": value}, {b"q \xe2\x98\x95": value, encode_key(LONG): b""}]
    with contextlib.closing(open_store(place)) as store, store.lock("shop") as held:
        for number, pairs in enumerate(patches, 1):
            facts = PatchFacts(number, 12, "2026-01-01T00:00:00Z", 1000.0, {"lists": len(pairs)})
            store.patches("shop").write(facts, {Space.LISTS: list(pairs.items()), Space.ITEMS: []}, held)
        for query, expected in (("q ☕", [["new", 0.5]]), ("added", [["new", 0.5]]), (LONG, None), ("404", None)):
            assert run(program, place, "shop", query) == expected
        assert run(program, place, "shop", "") == [["a", 1.5], ["ä ☕", 0.25]]
        store.patches("shop").roll_back(12, 1, held)
    assert run(program, place, "shop", "q ☕") is None
    assert run(program, place, "shop", LONG) == []


def publish(place, queries, candidates):
    ids = pa.array(candidates)
    values = encode_lists(ids, SCORES, [None, None, "no_vector"], id_kind(ids.flatten()))
    pairs = list(zip(encode_keys(pa.array(queries)), values, strict=True))
    with contextlib.closing(open_store(place)) as store, store.lock("shop") as held:
        writer = store.write("shop", 12)
        writer.put(Space.LISTS, sorted(pairs))
        writer.finish({"query_ids": "int64" if isinstance(queries[0], int) else "string"})
        store.point("shop", Pointer(12, 1), held)
        assert pairs[0][0] == encode_key(queries[0])


def run(program, *words):
    done = subprocess.run(
        [sys.executable, "-W", "error", program, *map(str, words)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_documentation_tells_every_key_that_redis_holds(redis_url, repository, monkeypatch):
    """Each line of the layout in docs/stores.md is there, and nothing else is."""
    redis = require_module("redis")
    text = (repository / "docs" / "stores.md").read_text(encoding="utf-8")
    told = re.findall(r"^    (nearcast:\S+)", text, re.MULTILINE)
    with contextlib.closing(open_store(f"{redis_url}?buckets=200")) as store, store.lock("shop") as held:
        writer = store.write("shop", 7)
        pairs = [(str(i).encode(), b"x") for i in range(5000)]
        writer.put(Space.LISTS, pairs)
        writer.put(Space.ITEMS, pairs)
        writer.finish({})
        store.point("shop", Pointer(7, 1), held)
        from nearcast.stores.base import OverlayEntry

        store.overlay("shop").write([OverlayEntry("a", None, True, 0.0)])
        with contextlib.closing(redis.Redis.from_url(redis_url)) as client:
            names = {re.sub(r":\d+$", ":123", key.decode()) for key in client.keys("*")}
            load = client.hget("nearcast:shop:versions", 7).decode()
    assert names == {key.replace("<generator>", "shop").replace("<load>", load) for key in told}
