"""The readers in examples/go and examples/java read what a real Redis holds: lists, patches, removed items."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time

import pyarrow as pa
import pytest
from tests.published import let_expire, publish

from nearcast.serve.overlay import open_overlay
from nearcast.stores import open_store
from nearcast.stores.base import PatchFacts, Space, find_patches
from nearcast.stores.value_format import encode_key, encode_lists

pytestmark = pytest.mark.slow

ODD = 'a "ä\\ ☕<&>\n\u0001'
TEXTS = {"apple": [("pear", 0.75), (ODD, 0.1)], "": [("x", -2.5)], "ä☕": [], "b": [("pear", 1.0)]}
NUMBERS = {-5: [(1, 0.5), (4_000_000_000, 0.25)], 7: [(2, 1.0)], 1 << 60: []}
LARGE = {7: [(-1, 0.5), (1 << 40, 0.25)]}
PROGRAMS = {
    "go": ("go", "golang-go", ["go", "run", "examples/go/read_list.go"]),
    "java": ("javac", "default-jdk-headless", ["java", "examples/java/ReadList.java"]),
}


@pytest.fixture(params=PROGRAMS)
def read(request, redis_server, redis_url, tmp_path, repository):
    """What a program says that a key of a generator has."""
    compiler, package, command = PROGRAMS[request.param]
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed (apt-get install {package})")
    cache = os.environ.get("GOCACHE", str(tmp_path / "go-cache"))
    environment = os.environ | {"GOCACHE": cache, "GOFLAGS": "", "GO111MODULE": "off"}

    def run(generator, key):
        words = [*command, f"127.0.0.1:{redis_server.port}", generator, str(key)]
        done = subprocess.run(words, capture_output=True, env=environment, cwd=repository, timeout=300)
        assert done.returncode == 0, done.stderr.decode()
        found = json.loads(done.stdout)
        return found if found is None else [(item, pytest.approx(score, rel=1e-6)) for item, score in found]

    return run


@pytest.fixture
def store(redis_url):
    opened = open_store(f"{redis_url}?buckets=16")
    yield opened
    opened.close()


def test_lists_of_every_kind_are_read(store, read):
    publish(store, "texts", 1, TEXTS)
    publish(store, "numbers", 2, NUMBERS)
    publish(store, "large", 3, LARGE)
    for name, lists in (("texts", TEXTS), ("numbers", NUMBERS), ("large", LARGE)):
        for key, row in lists.items():
            assert read(name, key) == row
        assert read(name, 404) is None
    assert read("numbers", "many") is None


def test_items_that_the_overlay_has_removed_are_left_out(store, read):
    publish(store, "texts", 1, TEXTS)
    publish(store, "large", 1, LARGE)
    with open_overlay(store, "texts") as overlay, open_overlay(store, "large") as numbers:
        overlay.remove([ODD, "x"])
        overlay.remove(["pear"], until=time.time() + 3600)
        numbers.remove([-1])
        assert read("texts", "apple") == []
        overlay.restore(["x"])
        let_expire(store, "texts", "pear")
        assert read("texts", "apple") == TEXTS["apple"][:1]
        assert read("texts", "") == TEXTS[""]
    assert read("large", 7) == LARGE[7][1:]


def test_a_patch_is_read_before_the_version_and_a_newer_one_before_an_older(store, read):
    publish(store, "texts", 1, TEXTS)
    values = encode_lists(
        pa.array([["new"], ["newer"]]), pa.array([[0.5], [0.25]], pa.list_(pa.float32())), [None, None], 2
    )
    patches = [{"apple": values[0], "b": b""}, {"apple": values[1], "added": values[0]}]
    for number, pairs in enumerate(patches, 1):
        with store.lock("texts") as lock:
            facts = PatchFacts(number, 1, "2026-01-01T00:00:00Z", 1000.0, {"lists": len(pairs)})
            lists = [(encode_key(key), value) for key, value in pairs.items()]
            find_patches(store, "texts").write(facts, {Space.LISTS: lists}, lock)
    assert read("texts", "apple") == [("newer", 0.25)]
    assert read("texts", "added") == [("new", 0.5)]
    assert read("texts", "b") is None
    assert read("texts", "") == TEXTS[""]
