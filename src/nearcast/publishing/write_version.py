"""Write a new version of a table into a store, whole or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from nearcast.errors import BusyError, StoreError
from nearcast.stores.base import Store, Writer

__all__ = ["writing"]


@contextlib.contextmanager
def writing(store: Store, name: str, version: int) -> Iterator[Writer]:
    """The writer of a version, which whoever has it finishes; what goes wrong before that is cleared away."""
    writer = store.write(name, version)
    try:
        yield writer
    except BusyError:
        raise  # the lock was lost: what is there may be another's by now
    except BaseException:
        with contextlib.suppress(StoreError):  # the next publish clears it away; this error is the one to tell
            writer.discard()
        raise
