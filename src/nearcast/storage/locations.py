"""Locations as people write them in `out` and options: a local folder, or the URL of a folder in a bucket.

A location is a `Path` for a local folder and a text for a URL, since a `Path` merges the slashes of a URL.
"""

from __future__ import annotations

import os
from pathlib import Path

from nearcast.errors import SpecError
from nearcast.files import fingerprint, path_fault
from nearcast.storage.host_cache import HostCache
from nearcast.storage.open_storage import URL, is_url, parse_url

__all__ = [
    "Location",
    "absolute_location",
    "client_settings",
    "host_folder",
    "location_fault",
    "parse_location",
    "resolve_location",
]

Location = str | Path


def parse_location(value: str | os.PathLike[str]) -> Location:
    """Return a location: the URL of a bucket as a text without a slash at its end, anything else as a path.

    Repairs a URL that was a `Path`, which has one slash after the scheme. Raises SpecError for an invalid URL, and for
    one of another scheme.
    """
    if is_url(value) or (isinstance(value, str) and URL.match(value) and "://" in value):
        return str(parse_url(value))
    return Path(value)


def resolve_location(base: Path, text: str | os.PathLike[str]) -> Location:
    """Return the location `text`; a relative path is relative to `base`."""
    return parse_location(text) if is_url(text) else base / text


def absolute_location(location: Location) -> str:
    """Return the text of a location that means the same in every folder."""
    return location if isinstance(location, str) else str(location.absolute())


def location_fault(text: str) -> str | None:
    """Explain why a location can never exist; None for others."""
    if "://" not in text and not is_url(text):
        return path_fault(text)
    try:
        parse_url(text)
    except SpecError as error:
        return str(error)
    return None


def client_settings() -> tuple[object, ...]:
    """Return what decides a connection: the process, since a fork must not use it, and the environment.

    What is opened once per process is kept by its URL and these.
    """
    prefixes = ("AWS_", "GOOGLE_", "AZURE_", "NEARCAST_CACHE")
    return (os.getpid(), *sorted(pair for pair in os.environ.items() if pair[0].startswith(prefixes)))


def host_folder(out: Location) -> Path:
    """Return the folder of this host for the work of an `out`: the folder itself; for a bucket, one beside the cache.

    Unfinished work, online indexes and samples are there.
    """
    location = parse_location(out)
    if isinstance(location, Path):
        return location
    return HostCache().root / "outs" / f"{location.rpartition('/')[2]}-{fingerprint(location)[:12]}"
