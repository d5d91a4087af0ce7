"""The client of a server in each process: a child of a fork makes its own, as locks of its parent's may stay held."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

__all__ = ["ProcessClient"]


class ProcessClient:
    """A client that each process makes when it first needs it. Safe to use from many threads."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._made: tuple[int, Any] | None = None  # process id and client

    def get(self) -> Any:
        """Return the client of this process."""
        made = self._made
        if made is None or made[0] != os.getpid():
            made = self._made = os.getpid(), self._make()
        return made[1]

    def take(self) -> Any:
        """Return the client of this process, to close it; None if there is none. The next `get` makes another one."""
        made, self._made = self._made, None
        return made[1] if made is not None and made[0] == os.getpid() else None
