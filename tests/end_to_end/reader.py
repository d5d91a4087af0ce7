"""A process that looks up: `reader.py watch URL` and `reader.py fork URL CHILDREN`. It ends when its input does.

Every answer must be whole: all of the one version that it names. See `published.whole`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

import numpy as np

import nearcast
from nearcast.serve.lookup import Lookup

KEYS = np.arange(100)
KEY = 7
PATIENCE = 180


def check(shop: Lookup) -> tuple[int, int]:
    """The version that answers, and how many candidates of KEY the overlay has taken out."""
    answers, one = shop.get_many(KEYS), shop.get(KEY)
    for ids, snapshot in ((answers.ids.to_numpy(), answers.snapshot), (np.array(one.ids), one.snapshot)):
        if len(ids) == 0 or (ids // 1_000_000 != int(snapshot)).any():
            print(f"torn: {snapshot} {ids.tolist()}", flush=True)
            os._exit(1)
    if not answers.found.all() or len(one.ids) + one.removed != 5:
        print(f"lost: {answers.found.tolist()} {one}", flush=True)
        os._exit(1)
    return int(one.snapshot), one.removed


def until_input_ends() -> threading.Event:
    """Set when whoever started us closes our input."""
    ended = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    return ended


def watch(url: str) -> None:
    """Look up without a pause; say so whenever something else answers."""
    ended, last, count = until_input_ends(), None, 0
    with nearcast.open(url, "shop") as shop:
        while not ended.is_set():
            now, count = check(shop), count + 1
            if now != last:
                print(*now, flush=True)
                last = now
        print("looked", count, shop.state.error, flush=True)


def fork(url: str, children: int) -> None:
    """Fork while threads look up and one polls; each child answers, and follows to version 2."""
    shop = nearcast.open(url, "shop", refresh_seconds=0.001)
    ended: Any = threading.Event()

    def hammer() -> None:
        while not ended.is_set():
            check(shop)

    threads = [threading.Thread(target=hammer, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    pids = []
    for _ in range(children):
        pid = os.fork()
        if pid == 0:
            child(shop)
        pids.append(pid)
    print("forked", flush=True)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    ended.set()
    for thread in threads:
        thread.join()
    shop.close()
    print(*codes, flush=True)


def child(shop: Lookup) -> None:
    """Look up until version 2 answers, and end without what the parent would do at its end."""
    signal.alarm(PATIENCE)  # also where a lock is never let go
    while check(shop)[0] != 2:
        pass
    os._exit(0)


if __name__ == "__main__":
    if sys.argv[1] == "watch":
        watch(sys.argv[2])
    else:
        fork(sys.argv[2], int(sys.argv[3]))
