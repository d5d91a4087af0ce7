"""A limit on bytes per second: a token bucket. Knows nothing of what the bytes are."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Throttle"]

BURST_SECONDS = 0.1  # so much may pass at once after a pause
LARGEST_PIECE = 8 << 20
SMALLEST_PIECE = 1 << 12


class Throttle:
    """Lets so many bytes pass a second: `take(n)` before sending n bytes sleeps as long as it must. None: no limit."""

    def __init__(
        self,
        bytes_per_second: int | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate = bytes_per_second
        self._clock = clock
        self._sleep = sleep
        self._tokens = 0.0
        self._last: float | None = None

    @property
    def piece_bytes(self) -> int:
        """How much to send at a time, so that the flow is even: a tenth of a second's worth, 8 MB at most."""
        if self._rate is None:
            return LARGEST_PIECE
        return max(SMALLEST_PIECE, min(LARGEST_PIECE, int(self._rate * BURST_SECONDS)))

    def take(self, n: float) -> None:
        """Wait until n more bytes may pass."""
        if self._rate is None:
            return
        now = self._clock()
        if self._last is not None:
            self._tokens = min(self._rate * BURST_SECONDS, self._tokens + (now - self._last) * self._rate)
        self._last = now
        self._tokens -= n
        if self._tokens < 0:
            self._sleep(-self._tokens / self._rate)
