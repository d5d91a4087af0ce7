"""The publishers' lock of a generator, with patience: an update holds it for moments, a publish while it copies."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from nearcast.errors import BusyError
from nearcast.stores.base import PublishLock, Store

__all__ = ["hold_publish_lock"]

RETRY_SECONDS = 0.05


@contextlib.contextmanager
def hold_publish_lock(store: Store, generator: str, wait_seconds: float) -> Iterator[PublishLock]:
    """Hold the lock; wait for it while another process holds it. Raises BusyError if that takes too long."""
    deadline = time.monotonic() + wait_seconds
    with contextlib.ExitStack() as stack:
        while True:
            try:
                lock = stack.enter_context(store.lock(generator))
                break
            except BusyError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(RETRY_SECONDS)
        yield lock
