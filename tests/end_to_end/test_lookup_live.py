"""Look-ups in real processes, while other processes publish, roll back, and write to the overlay."""

from __future__ import annotations

import contextlib
import os
import queue
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.end_to_end.shop import succeed

from nearcast.stores import open_store
from published import load, point, publish, whole

READER = Path(__file__).with_name("reader.py")
PATIENCE = 180.0


class Reader:
    """A process that looks up all the time, and what it says."""

    def __init__(self, *words: object) -> None:
        command = [sys.executable, str(READER), *map(str, words)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self._lines.put(line.strip())
        self._lines.put("(its output ended)")

    def says(self, wanted: str) -> list[str]:
        """All that it said up to a line."""
        said = []
        while not said or said[-1] != wanted:
            said.append(self._lines.get(timeout=PATIENCE))
            assert said[-1] != "(its output ended)", (said, self.process.stderr.read())
        return said

    def end(self) -> str:
        """Close its input. Returns its last line; it must have met nothing wrong."""
        self.process.stdin.close()
        said = ["(nothing)"]
        while said[-1] != "(its output ended)":
            said.append(self._lines.get(timeout=PATIENCE))
        assert self.process.wait(PATIENCE) == 0, (said, self.process.stderr.read())
        return said[-2]


@contextlib.contextmanager
def reading(*words: object) -> Iterator[Reader]:
    reader = Reader(*words)
    with reader.process:
        try:
            yield reader
        finally:
            reader.process.kill()


@pytest.fixture(params=["lmdb", "redis"])
def url(request, tmp_path):
    if request.param == "lmdb":
        return f"lmdb:{tmp_path / 'store'}"
    return request.getfixturevalue("redis_url") + "?buckets=16"


@pytest.fixture
def store(url):
    with contextlib.closing(open_store(url)) as opened:
        publish(opened, "shop", 1, whole(1))
        yield opened


def test_an_item_that_one_process_takes_out_is_gone_in_another_and_after_restarts(url, store, tmp_path):
    with reading("watch", url) as reader:
        reader.says("1 0")
        succeed("overlay", "shop", "remove", 1_007_000, 1_007_003, "--note", "paused", "--store", url, cwd=tmp_path)
        reader.says("1 2")
        succeed("overlay", "shop", "restore", 1_007_003, "--store", url, cwd=tmp_path)
        reader.says("1 1")
        assert reader.end().startswith("looked")
    with reading("watch", url) as reader:
        assert reader.says("1 1") == ["1 1"]
        publish(store, "shop", 2, whole(2))
        reader.says("2 0")
        point(store, "shop", 1)
        assert "1 0" not in reader.says("1 1")  # not for a moment is it back after the rollback


def test_readers_see_publishes_and_rollbacks_whole(url, store):
    rng = random.Random(7)
    with contextlib.ExitStack() as stack:
        readers = [stack.enter_context(reading("watch", url)) for _ in range(3)]
        for reader in readers:
            reader.says("1 0")
        for version in range(2, 12):
            load(store, "shop", version, whole(version))
            for _ in range(3):
                point(store, "shop", rng.choice([version, version - 1]))
            if version > 3:
                with store.lock("shop"):
                    store.retire("shop", version - 3)
        point(store, "shop", 11)
        for reader in readers:
            reader.says("11 0")
            assert reader.end().endswith("None")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_forked_processes_answer_and_follow(url, store):
    with reading("fork", url, 6) as parent:
        parent.says("forked")
        publish(store, "shop", 2, whole(2))
        assert parent.end() == "0 0 0 0 0 0"
