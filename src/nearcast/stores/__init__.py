"""Stores behind one contract. To add one: a file like `lmdb.py`, and a row here."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from typing import cast

from nearcast.errors import SpecError
from nearcast.stores.base import Store
from nearcast.stores.redis_url import check_url

__all__ = ["STORES", "check_store_url", "open_store"]

# scheme of the URL: where the function is that opens such a store
STORES = {
    "lmdb": "nearcast.stores.lmdb:open_lmdb",
    "redis": "nearcast.stores.redis:open_redis",
    "rediss": "nearcast.stores.redis:open_redis",
    "valkey": "nearcast.stores.redis:open_redis",
    "unix": "nearcast.stores.redis:open_redis",
}

PLUGINS = "nearcast.stores"  # entry points of other packages, by scheme


def check_store_url(url: str) -> None:
    """Raise SpecError for the URL of a store of no known kind. Nothing is connected to."""
    _check_form(url)
    scheme, colon, rest = url.partition(":")
    if not colon or "/" in scheme or len(scheme) == 1:
        return
    if not rest:
        raise _no_place(scheme)
    if scheme not in STORES and not list(entry_points(group=PLUGINS, name=scheme)):
        raise _unknown_kind(scheme)
    if STORES.get(scheme) == STORES["redis"]:
        check_url(url)


def _check_form(url: str) -> None:
    """Raise SpecError for no URL at all, and for a server's that would be taken for a path: it may hold a password."""
    if not url.strip():
        raise SpecError("store is empty; give a URL such as lmdb:/srv/candidates or redis://host:6379/0")
    if re.match(r"(redis|rediss|valkey|unix)//|//[^/]*@|lmdb://[^/]*@", url):
        raise SpecError("the store's URL cannot be read; write KIND://... for a server, lmdb:PATH for a folder")


def _no_place(scheme: str) -> SpecError:
    return SpecError(f"store is {scheme}: and no more; say where it is, such as lmdb:/srv/candidates")


def _unknown_kind(scheme: str) -> SpecError:
    # The rest of the URL may hold a password.
    return SpecError(
        f"stores of the kind {scheme!r} are unknown; known kinds are {', '.join(STORES)}; a plain path is LMDB"
    )


def open_store(url: str) -> Store:
    """The store of a URL such as lmdb:/srv/candidates or redis://host:6379/0; a plain path is LMDB.

    Raises SpecError for a scheme that nobody knows, StoreError where the store cannot be reached.
    """
    _check_form(url)
    scheme, colon, rest = url.partition(":")
    if not colon or "/" in scheme or len(scheme) == 1:  # a path, or a Windows drive
        scheme, url = "lmdb", f"lmdb:{url}"
    elif not rest:
        raise _no_place(scheme)
    if scheme in STORES:
        module, _, name = STORES[scheme].partition(":")
        return cast(Callable[[str], Store], getattr(import_module(module), name))(url)
    for plugin in entry_points(group=PLUGINS, name=scheme):
        return cast(Store, plugin.load()(url))
    raise _unknown_kind(scheme)
