"""Another process that uses a store: started by the tests of the contract, told what to do by its arguments."""

from __future__ import annotations

import contextlib
import os
import sys
import time

from nearcast.errors import BusyError
from nearcast.stores import open_store
from nearcast.stores.base import OverlayEntry, PatchFacts, Pointer, Space, Store


def hold(store: Store, generator: str) -> None:
    """Hold the publishers' lock until somebody stops us."""
    with store.lock(generator):
        print("held", flush=True)
        time.sleep(600)


def overlay(store: Store, generator: str, name: str, count: str) -> None:
    """Write so many entries about items of our own, a few at a time."""
    log = store.overlay(generator)
    for start in range(0, int(count), 3):
        items = [f"{name}{number}" for number in range(start, min(start + 3, int(count)))]
        log.write([OverlayEntry(item, None, True, 0.0) for item in items])


def fork(store: Store, generator: str, version: str) -> None:
    """Open and use everything, then do so again in a child, and again in the parent."""
    reader, log = store.open(generator, int(version), verify=False), store.overlay(generator)
    log.write([OverlayEntry("parent", None, True, 0.0)])
    child = os.fork()
    if child == 0:
        inherited = reader.get_many(Space.LISTS, [b"a"])
        again = store.open(generator, int(version), verify=True)
        assert inherited == again.get_many(Space.LISTS, [b"a"]) == [b"1"]
        store.overlay(generator).write([OverlayEntry("child", None, True, 0.0)])
        assert len(store.overlay(generator).changes().entries) == 2
        again.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert reader.get_many(Space.LISTS, [b"a"]) == [b"1"]
    log.write([OverlayEntry("parent again", None, True, 0.0)])
    assert [entry.item for entry in log.changes().entries] == ["parent", "child", "parent again"]


def publish(store: Store, generator: str, count: str) -> None:
    """Publish version after version for ever, each with its number as the value of so many keys."""
    print("begun", flush=True)
    while True:
        try:
            with store.lock(generator) as lock:
                pointer = store.pointer(generator) or Pointer(0, 0)
                version = pointer.version + 1
                writer = store.write(generator, version)
                pairs = [(b"%d" % number, b"%d" % version) for number in range(int(count))]
                for start in range(0, len(pairs), 50):
                    writer.put(Space.LISTS, pairs[start : start + 50])
                writer.finish({"version": version})
                store.point(generator, Pointer(version, pointer.serial + 1), lock)
                for old in store.versions(generator)[:-2]:
                    store.retire(generator, old)
        except BusyError:
            time.sleep(0.05)


def patch(store: Store, generator: str, version: str) -> None:
    """Write patches for ever, each a new value for all keys, and fold them now and then."""
    with contextlib.closing(store.open(generator, int(version), verify=False)) as reader:
        keys = [key for key, _ in reader.pairs(Space.LISTS)]
    log = store.patches(generator)  # type: ignore[attr-defined]
    print("begun", flush=True)
    with store.lock(generator) as lock:
        while True:
            number = log.state(int(version)).last_number + 1
            facts = PatchFacts(number, int(version), "", store.now(), {"lists": len(keys)})
            log.write(facts, {Space.LISTS: [(key, b"%d" % number) for key in keys]}, lock)
            if number % 3 == 0:
                log.compact(int(version), 1, lock)


if __name__ == "__main__":
    command, url, *words = sys.argv[1:]
    commands = {"hold": hold, "overlay": overlay, "fork": fork, "patch": patch, "publish": publish}
    commands[command](open_store(url), *words)
