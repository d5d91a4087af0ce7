"""A follower and an updater to be killed."""

from __future__ import annotations

import nearcast
import nearcast.api.updates
import nearcast.stores.lmdb
from nearcast.api.updates import open_follower


def follow(spec: dict, source: str, store: str) -> None:
    """Follow a folder without end."""
    with open_follower(spec, source, store=store) as follower:
        follower.run(0.02, lambda seconds: False)


def update(spec: dict, items: str, store: str) -> None:
    """Apply one batch, again and again: all but the first time it is in force."""
    while True:
        nearcast.update(spec, items=items, store=store, max_lists_changed=1.0)
