"""Times as manifests and facts write them: UTC, ISO 8601. For people and for ages; order is by number."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from nearcast.errors import DamagedError

__all__ = ["seconds_of", "utc"]


def utc(seconds: float) -> str:
    """Seconds since 1970 as text."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def seconds_of(text: str) -> float:
    """Text as seconds since 1970; DamagedError where it is no time."""
    try:
        when = datetime.fromisoformat(text)
    except (ValueError, TypeError) as error:
        raise DamagedError(f"{text!r} is no time ({error})") from error
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
