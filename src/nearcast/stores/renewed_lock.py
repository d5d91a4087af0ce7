"""Locks of network stores that end unless their holder renews them: the thread that renews one, and who holds it.

The server's clock decides when a lock ends. Knows no server.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

from nearcast.errors import BusyError, StoreError

__all__ = ["LASTS_TIMEOUTS", "describe_holder", "make_held_error", "make_lost_error", "renew_lock"]

LASTS_TIMEOUTS = 4  # so that one or two late answers do not lose the lock


@contextlib.contextmanager
def renew_lock(renew: Callable[[], bool], release: Callable[[], object], every_seconds: float) -> Iterator[None]:
    """Renew a lock in a thread until the block ends, then release it.

    renew: returns whether the lock is still held; the thread ends when it is not. A lock that cannot be released ends
    by itself.
    """
    stop = threading.Event()

    def keep() -> None:
        while not stop.wait(every_seconds):
            with contextlib.suppress(StoreError):  # the next attempt may succeed; otherwise the lock was lost
                if not renew():
                    return

    renewal = threading.Thread(target=keep, name="nearcast-lock", daemon=True)
    renewal.start()
    try:
        yield
    finally:
        stop.set()
        renewal.join()
        with contextlib.suppress(StoreError):
            release()


def describe_holder() -> str:
    """Describe this process, for others that find its lock."""
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return f"process {os.getpid()} on {socket.gethostname()} since {since}"


def make_held_error(what: str, holder: str | None) -> BusyError:
    """Return the error for a lock that another process holds."""
    return BusyError(f"{what} is held by {holder or 'another process'}; wait for it to end, or stop it")


def make_lost_error(what: str, is_free: bool, holder: str | None) -> BusyError:
    """Return the error for a lock that was lost. is_free: nobody holds it now."""
    whose = "expired or was released" if is_free else f"is held by {holder or 'another process'} now"
    return BusyError(f"the lock of {what} {whose}; start again")
