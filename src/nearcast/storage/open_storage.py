"""Locations: a local path or a URL of object storage, parsed and joined; opens the storage of a location.

`s3://bucket/prefix`, `gs://bucket/prefix` and `az://container/prefix` are object storage. Credentials and endpoints
come from the environment, never from the URL.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from nearcast.errors import SpecError
from nearcast.files import SAME_SCHEMES, path_fault
from nearcast.storage.base import Storage
from nearcast.storage.local_storage import LocalStorage

__all__ = ["URL", "StorageUrl", "is_url", "join_location", "open_storage", "parse_url"]

SCHEMES = ("s3", "gs", "az")
URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/+(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class StorageUrl:
    """A location in object storage."""

    scheme: str  # s3, gs or az
    bucket: str  # or the container
    prefix: str  # without / at the ends; "" for the whole bucket

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")


def is_url(location: str | os.PathLike[str]) -> bool:
    """Return whether a location is in object storage: it starts with s3://, gs:// or az://."""
    found = URL.match(os.fspath(location))
    return found is not None and found[1].lower() in SCHEMES


def parse_url(text: str | os.PathLike[str]) -> StorageUrl:
    """Parse the URL of a bucket or of a folder in it. Raises SpecError for anything else."""
    text = os.fspath(text)
    found = URL.match(text)
    scheme = found[1].lower() if found else ""
    if found is None or scheme not in SCHEMES:
        if other := SAME_SCHEMES.get(scheme):
            raise SpecError(f"{scheme}:// is not supported, got {text}; write {other}://{_bucket_word(other)}/folder")
        raise SpecError(path_fault(text, buckets=True) or f"{text} is no URL; write s3://bucket/folder, gs:// or az://")
    bucket, _, prefix = found[2].partition("/")
    shown = f"{scheme}://{bucket.rpartition('@')[2]}"
    if "@" in bucket:
        raise SpecError(f"{shown} has a user or password before @; credentials come from the environment")
    if "?" in found[2] or "#" in found[2]:
        raise SpecError(f"{shown} has a ? or #, got more than a location; credentials come from the environment")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", bucket):
        raise SpecError(f"{text} has no valid {_bucket_word(scheme)}; write {scheme}://{_bucket_word(scheme)}/folder")
    parts = prefix.strip("/").split("/") if prefix.strip("/") else []
    if any(part in ("", ".", "..") for part in parts):
        raise SpecError(f"{text} has an empty part, . or .. in its path; write the location that is meant")
    return StorageUrl(scheme, bucket, "/".join(parts))


def join_location(location: str | os.PathLike[str], *parts: str) -> str:
    """Append relative parts to a local path or a URL."""
    if is_url(location):
        return "/".join([str(parse_url(location)), *(part.strip("/") for part in parts if part.strip("/"))])
    return str(Path(location, *parts))


def open_storage(location: str | os.PathLike[str]) -> Storage:
    """Open the storage at a location. Connects at the first operation. Raises SpecError for an unknown scheme."""
    text = os.fspath(location)
    if is_url(text):
        from nearcast.storage.object_storage import ObjectStorage

        return ObjectStorage(parse_url(text))
    if URL.match(text) and "://" in text:
        parse_url(text)
    return LocalStorage(Path(text))


def _bucket_word(scheme: str) -> str:
    return "container" if scheme == "az" else "bucket"
