"""A thread that calls a method again and again, until it is told to stop or the object is gone. Knows nothing else."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

__all__ = ["Watch"]


class Watch:
    """Calls `method` every so many seconds on a daemon thread. It does not keep the method's object alive."""

    def __init__(self, method: Callable[[], Any], seconds: float, name: str) -> None:
        self._stop = threading.Event()
        weak: weakref.WeakMethod[Callable[[], Any]] = weakref.WeakMethod(method)
        self._thread = threading.Thread(target=_watch, args=(weak, seconds, self._stop), name=name, daemon=True)

    def start(self) -> None:
        """Begin; the first call comes after the first wait."""
        self._thread.start()

    def stop(self, wait_seconds: float) -> None:
        """End it, and wait so long for a call that is under way."""
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join(wait_seconds)


def _watch(weak: weakref.WeakMethod[Callable[[], Any]], seconds: float, stop: threading.Event) -> None:
    while not stop.wait(seconds):
        method = weak()
        if method is None:
            return
        method()
        del method  # or the object would live until the next round
