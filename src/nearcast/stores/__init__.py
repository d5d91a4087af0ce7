"""Stores behind one contract. To add one: a file like `lmdb.py`, and a row here."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import cast

from nearcast.errors import NotFoundError, SpecError
from nearcast.stores.base import Store
from nearcast.stores.redis_url import check_url
from nearcast.suggest import generators_in_words

__all__ = [
    "STORES",
    "StoreLike",
    "check_store_url",
    "describe_lost_pointer",
    "make_unpublished_error",
    "open_store",
    "resolve_store",
]

StoreLike = str | Path | Store  # a URL, the path of an LMDB store, or an open store

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


def resolve_store(store: StoreLike) -> Store:
    """Return the open store; open it if a URL or a path is given. A path is an LMDB store. Errors: see `open_store`."""
    if isinstance(store, str):
        return open_store(store)
    return open_store(f"lmdb:{store}") if isinstance(store, Path) else store


def describe_lost_pointer(store: Store, generator: str) -> str | None:
    """Return an error text if the store holds versions of the generator but no pointer, else None."""
    versions = ", ".join(map(str, store.versions(generator)))
    if not versions:
        return None
    return (
        f"no version of {generator!r} is current in {store.url}: its pointer was lost, or its first publish did not "
        f"end; it has {versions}; publish again"
    )


def make_unpublished_error(store: Store, generator: str) -> NotFoundError:
    """Return the error for a generator without a pointer. It names the generators that the store has."""
    lost = describe_lost_pointer(store, generator)
    if lost is not None:
        return NotFoundError(lost)
    hint = generators_in_words(generator, store.generators(), "publish one first")
    return NotFoundError(f"nothing is published of {generator!r} in {store.url}; {hint}")
