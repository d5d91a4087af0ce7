"""Stores behind one contract, `stores.base`. To add one: a module like `lmdb.py` and a row of STORES."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from nearcast.errors import NotFoundError, SpecError
from nearcast.stores.base import Store
from nearcast.suggest import describe_generators

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


@dataclass(frozen=True, slots=True)
class StoreKind:
    """A kind of store. Functions are named as module:function and imported when used."""

    opens: str  # (url) -> Store
    validates_url: str | None = None  # (url) -> None, raises SpecError; connects to nothing


_REDIS = StoreKind("nearcast.stores.redis:open_redis", "nearcast.stores.redis_url:check_url")
# by scheme of the URL
STORES = {
    "lmdb": StoreKind("nearcast.stores.lmdb:open_lmdb"),
    **{
        f"{name}{kind}": _REDIS
        for kind in ("", "+cluster", "+sentinel")
        for name in ("redis", "rediss", "valkey", "valkeys")
    },
    "unix": _REDIS,
    "dynamodb": StoreKind("nearcast.stores.dynamodb:open_dynamodb", "nearcast.stores.dynamodb_url:parse_dynamodb_url"),
}

PLUGINS = "nearcast.stores"  # entry points of other packages, by scheme


def check_store_url(url: str) -> None:
    """Raise SpecError for a URL of an unknown kind of store. Connects to nothing."""
    _validate_form(url)
    scheme, colon, rest = url.partition(":")
    if not colon or "/" in scheme or len(scheme) == 1:
        return
    if not rest:
        raise _make_path_error(scheme)
    if scheme not in STORES and not list(entry_points(group=PLUGINS, name=scheme)):
        raise _make_kind_error(scheme)
    kind = STORES.get(scheme)
    if kind is not None and kind.validates_url is not None:
        _import(kind.validates_url)(url)


def _validate_form(url: str) -> None:
    """Raise SpecError for an empty URL, and for a mistyped server URL that would be read as a path with a password."""
    if not url.strip():
        raise SpecError("store is empty; give a URL, for example lmdb:/srv/candidates or redis://host:6379/0")
    if re.match(r"(rediss?|valkeys?|unix)(\+[a-z]*)?//|//[^/]*@|lmdb://[^/]*@", url):
        raise SpecError("the store's URL cannot be read; write KIND://... for a server, lmdb:PATH for a folder")


def _make_path_error(scheme: str) -> SpecError:
    return SpecError(f"store is {scheme}: without a path; give one, for example lmdb:/srv/candidates")


def _make_kind_error(scheme: str) -> SpecError:
    # The rest of the URL may hold a password.
    close = difflib.get_close_matches(scheme, STORES, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    known = ", ".join(STORES)
    return SpecError(f"stores of the kind {scheme!r} are unknown; {hint}known kinds are {known}; a plain path is LMDB")


def open_store(url: str) -> Store:
    """Open the store of a URL, lmdb:/srv/candidates or redis://host:6379/0; a plain path is LMDB.

    Raises SpecError for an unknown scheme, StoreError if the store cannot be reached.
    """
    _validate_form(url)
    scheme, colon, rest = url.partition(":")
    if not colon or "/" in scheme or len(scheme) == 1:  # a path, or a Windows drive
        scheme, url = "lmdb", f"lmdb:{url}"
    elif not rest:
        raise _make_path_error(scheme)
    if scheme in STORES:
        opened: Store = _import(STORES[scheme].opens)(url)
        return opened
    for plugin in entry_points(group=PLUGINS, name=scheme):
        store: Store = plugin.load()(url)
        return store
    raise _make_kind_error(scheme)


def _import(name: str) -> Callable[[str], Any]:
    module, _, function = name.partition(":")
    found: Callable[[str], Any] = getattr(import_module(module), function)
    return found


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
    hint = describe_generators(generator, store.generators(), "publish one first")
    return NotFoundError(f"nothing is published of {generator!r} in {store.url}; {hint}")
