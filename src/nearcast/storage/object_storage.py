"""Objects in S3, Google Cloud Storage, Azure Blob Storage and servers with the protocol of S3.

`create` and `replace` are conditional puts; before the first one, a probe checks that the server honours them.
Operations are tried again after 429, 5xx, resets and timeouts, bounded in time. The client itself tries again only
parts of large uploads, so that a conditional put whose reply was lost is known as such.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from nearcast.errors import AccessError, MissingExtraError, NotFoundError, SpecError, StorageError
from nearcast.storage.base import Storage, StoredObject, check_name
from nearcast.storage.object_errors import Fault, read_fault
from nearcast.storage.open_storage import StorageUrl, join_location, parse_url

__all__ = ["ObjectStorage"]

Answer = TypeVar("Answer")

PART_BYTES = 16 << 20  # of uploads and downloads
PARTS_AT_ONCE = 4  # so that a transfer holds 64 MiB
MOST_PARTS = 9_000  # S3 allows 10,000
MOST_COPIED = 5 << 30
PATIENCE = 120.0  # seconds that an operation is tried
FIRST_PATIENCE = 15.0  # seconds, while the endpoint has never answered this process
CONFLICTS = 20  # tries of a create that conflicts with a delete
VARIABLES = {"s3": "AWS", "gs": "GOOGLE", "az": "AZURE"}
CLIENT_OPTIONS = (
    *("allow_http", "allow_invalid_certificates", "connect_timeout", "read_timeout", "timeout", "user_agent"),
    *("proxy_url", "proxy_ca_certificate", "proxy_excludes"),
)
_proven: set[tuple[str, str]] = set()  # roots and endpoints whose conditional puts were probed by this process


class ObjectStorage:
    """Objects below a prefix of a bucket. Connects at the first operation."""

    local: Path | None = None

    def __init__(self, location: StorageUrl, *, patience: float | None = None) -> None:
        self.url = str(location)
        self._location = location
        self._patience = _read_patience() if patience is None else patience
        self._clients: dict[tuple[int, bool], Any] = {}  # by the retries that they make, and where names begin
        self._process = os.getpid()
        self._answered = False  # whether the server ever answered
        self._bucket_exists = False

    def read(self, name: str, *, etag: str | None = None) -> bytes:
        """Read an object in one request."""
        return self._get(name, etag, None)

    def read_ranges(self, name: str, ranges: Sequence[tuple[int, int]], *, etag: str | None = None) -> list[bytes]:
        """Read ranges side by side, with one request each."""
        if not ranges:
            return []
        with ThreadPoolExecutor(min(len(ranges), 2 * PARTS_AT_ONCE)) as pool:
            return list(pool.map(lambda part: self._get(name, etag, part), ranges))

    def stat(self, name: str) -> StoredObject | None:
        """Return facts about an object from its headers."""
        found = self._head(name)
        return None if found is None else self._facts(name, found)

    def list_objects(self, prefix: str = "") -> Iterator[StoredObject]:
        """List all objects below a prefix."""
        obstore = _import_obstore()
        folder = check_name(prefix, folder=True) or None

        def collect() -> list[Any]:
            return [found for chunk in obstore.list(self._client(), folder, chunk_size=1000) for found in chunk]

        found = self._try("listing", prefix, collect)
        yield from sorted((self._facts(each["path"], each) for each in found), key=lambda each: each.name)

    def list_folders(self, prefix: str = "") -> list[str]:
        """List the common prefixes of a level."""
        obstore = _import_obstore()
        folder = check_name(prefix, folder=True) or None
        found = self._try("listing", prefix, lambda: obstore.list_with_delimiter(self._client(), folder))
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found["common_prefixes"])

    def write(self, name: str, data: bytes) -> None:
        """Put an object."""
        obstore = _import_obstore()
        check_name(name)
        self._try("writing", name, lambda: obstore.put(self._client(), name, data, use_multipart=False))

    def upload(self, name: str, path: Path) -> None:
        """Put a file, in parts of 16 MiB or more if it is larger than that."""
        obstore = _import_obstore()
        check_name(name)
        size = path.stat().st_size
        if size <= PART_BYTES:
            self.write(name, path.read_bytes())
            return
        part = max(PART_BYTES, -(-size // MOST_PARTS))
        self._try(
            "writing",
            name,
            lambda: obstore.put(
                self._client(retries=6), name, path, use_multipart=True, chunk_size=part, max_concurrency=PARTS_AT_ONCE
            ),
        )

    def download(self, name: str, path: Path, *, etag: str | None = None) -> None:
        """Read an object in ranges of 16 MiB, side by side, into a file."""
        facts = self.stat(name)
        if facts is None:
            raise NotFoundError(f"{self._name(name)} does not exist")
        if etag is not None and facts.etag != etag:
            raise self._conflict_error(name)
        with path.open("wb") as file, ThreadPoolExecutor(PARTS_AT_ONCE) as pool:

            def fetch(start: int) -> None:
                data = self._get(name, facts.etag, (start, min(start + PART_BYTES, facts.size)))
                while data:
                    written = os.pwrite(file.fileno(), data, start)
                    data, start = data[written:], start + written

            for _ in pool.map(fetch, range(0, facts.size, PART_BYTES)):
                pass

    def copy_from(self, other: Storage, source: str, name: str) -> bool:
        """Copy an object on the server, within its bucket and up to 5 GiB, the limit of S3 for one request."""
        if other.local is not None or not self._is_same_bucket(other.url):
            return False
        obstore = _import_obstore()
        facts = other.stat(source)
        if facts is None:
            raise NotFoundError(f"{other.url}/{source} does not exist")
        if facts.size > MOST_COPIED:
            return False
        key = parse_url(join_location(other.url, check_name(source))).prefix
        target = parse_url(join_location(self.url, check_name(name))).prefix
        self._try("copying", name, lambda: obstore.copy(self._client(whole_bucket=True), key, target))
        return True

    def _is_same_bucket(self, url: str) -> bool:
        there = parse_url(url)
        return (there.scheme, there.bucket) == (self._location.scheme, self._location.bucket)

    def create(self, name: str, data: bytes) -> bool:
        """Put an object with If-None-Match. Reads it back where the reply was lost or a conflict was reported."""
        self.probe()
        return self._create(name, data)

    def replace(self, name: str, data: bytes, etag: str) -> bool:
        """Put an object with If-Match. Reads it back where the reply was lost."""
        self.probe()
        return self._replace(name, data, etag)

    def probe(self) -> None:
        """Check that the server refuses to overwrite under a condition, once per process."""
        key = (self.url, os.environ.get("AWS_ENDPOINT_URL", ""))
        if key in _proven:
            return
        name = f"probe-{secrets.token_hex(8)}"
        try:
            made = self._create(name, b"first" + name.encode())
            overwritten = made and self._create(name, b"second" + name.encode())
            facts = self.stat(name)
            replaced = facts is not None and self._replace(name, b"third" + name.encode(), "0123456789abcdef")
        finally:
            with contextlib.suppress(StorageError):
                self.delete(name)
        if not made or facts is None or overwritten or replaced:
            raise AccessError(
                f"{self.url} ignores conditional puts (If-None-Match, If-Match): two workers could both commit; use a "
                "server that has them, such as a newer release"
            )
        _proven.add(key)

    def delete(self, name: str) -> None:
        """Delete an object."""
        obstore = _import_obstore()
        with contextlib.suppress(NotFoundError):
            self._try("removing", name, lambda: obstore.delete(self._client(), check_name(name)))

    def _create(self, name: str, data: bytes) -> bool:
        obstore = _import_obstore()
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        unsure = False
        for _ in range(CONFLICTS):

            def put() -> bool:
                nonlocal unsure
                try:
                    obstore.put(self._client(), check_name(name), data, mode="create", use_multipart=False)
                except (AlreadyExistsError, PreconditionError):
                    return False
                except Exception:
                    unsure = True  # it may have been written all the same
                    raise
                return True

            if self._try("writing", name, put):
                return True
            try:
                return self.read(name) == data and unsure
            except NotFoundError:  # 409 for a conflict with a delete, or deleted since
                time.sleep(random.uniform(0.01, 0.1))
        raise StorageError(f"writing {self._name(name)} conflicts with deletes again and again; end the other process")

    def _replace(self, name: str, data: bytes, etag: str) -> bool:
        obstore = _import_obstore()
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        unsure = False

        def put() -> bool:
            nonlocal unsure
            version: Any = {"e_tag": _quote(etag)}
            if self._location.scheme == "gs":  # compares generations, which lists do not have
                found = self._head(name)
                if found is None or self._facts(name, found).etag != etag:
                    return False
                version = {"e_tag": _quote(etag), "version": found["version"]}
            try:
                obstore.put(self._client(), check_name(name), data, mode=version, use_multipart=False)
            except (AlreadyExistsError, PreconditionError, FileNotFoundError):
                return False
            except Exception:
                unsure = True
                raise
            return True

        if self._try("writing", name, put):
            return True
        with contextlib.suppress(NotFoundError):
            return unsure and self.read(name) == data
        return False

    def _get(self, name: str, etag: str | None, part: tuple[int, int] | None) -> bytes:
        obstore = _import_obstore()
        from obstore.exceptions import GenericError, PreconditionError

        check_name(name)
        if part is not None and part[0] >= part[1]:
            return b""
        options: Any = {}
        if part is not None:
            options["range"] = part
        if etag is not None:
            options["if_match"] = _quote(etag)

        def get() -> bytes:
            try:
                return bytes(obstore.get(self._client(), name, options=options).bytes())
            except PreconditionError as error:
                raise self._conflict_error(name) from error
            except GenericError as error:
                if part is None or "416 Range Not Satisfiable" not in str(error):
                    raise
                return b""  # behind the end

        return self._try("reading", name, get)

    def _head(self, name: str) -> Any:
        obstore = _import_obstore()
        check_name(name)
        try:
            return self._try("reading", name, lambda: obstore.head(self._client(), name))
        except NotFoundError:
            return None

    def _try(self, action: str, name: str, operation: Callable[[], Answer]) -> Answer:
        """Run an operation until it succeeds, fails for good, or the time is up. Translates every error."""
        _import_obstore()
        from obstore.exceptions import BaseError

        began, pause, tries = time.monotonic(), 0.1, 0
        while True:
            tries += 1
            try:
                answer = operation()
            except FileNotFoundError as error:
                fault = read_fault(error, self._location.scheme, self._location.bucket)
                if fault.missing_bucket or not self._has_bucket():
                    raise self._error(action, name, fault if fault.missing_bucket else self._no_bucket(), 1) from error
                raise NotFoundError(f"{self._name(name)} does not exist") from error
            except (BaseError, TimeoutError, ConnectionError) as error:
                fault = read_fault(error, self._location.scheme, self._location.bucket)
                patience = self._patience if self._answered else min(self._patience, FIRST_PATIENCE)
                if not fault.transient or time.monotonic() - began + pause > patience:
                    raise self._error(action, name, fault, tries) from error
                if not fault.connection:
                    self._answered = True
            else:
                self._answered = True
                return answer
            time.sleep(random.uniform(pause / 2, pause))
            pause = min(2 * pause, 5.0)

    def _has_bucket(self) -> bool:
        """Ask once whether the bucket exists: a HEAD does not tell a missing bucket from a missing object."""
        obstore = _import_obstore()
        from obstore.exceptions import BaseError

        if not self._bucket_exists:
            try:
                obstore.list_with_delimiter(self._client(), "probe")
            except (BaseError, FileNotFoundError) as error:
                if read_fault(error, self._location.scheme, self._location.bucket).missing_bucket:
                    return False
            self._bucket_exists = True
        return True

    def _no_bucket(self) -> Fault:
        return read_fault(ValueError("NoSuchBucket"), self._location.scheme, self._location.bucket)

    def _client(self, *, retries: int = 0, whole_bucket: bool = False) -> Any:
        """Return the client of this process, making it if missing. whole_bucket: its names begin at the bucket."""
        if os.getpid() != self._process:
            raise AccessError(
                f"{self.url} was opened before this process was forked; start workers with spawn, or open it after"
            )
        key = (retries, whole_bucket)
        if key not in self._clients:
            self._clients[key] = self._connect(retries, "" if whole_bucket else self._location.prefix)
        return self._clients[key]

    def _connect(self, retries: int, prefix: str) -> Any:
        from obstore.exceptions import BaseError
        from obstore.store import AzureStore, GCSStore, S3Store

        kinds: dict[str, Any] = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
        where = self._location
        options: dict[str, Any] = {"connect_timeout": "5s", "read_timeout": "30s", "timeout": "180s"}
        for option in CLIENT_OPTIONS:  # given options hide those of the environment
            if value := os.environ.get(f"{VARIABLES[where.scheme]}_{option.upper()}"):
                options[option] = value.lower() in ("1", "true", "yes") if option.startswith("allow") else value
        retry = {"max_retries": retries, "retry_timeout": timedelta(seconds=self._patience)}
        try:
            return kinds[where.scheme](where.bucket, prefix=prefix or None, client_options=options, retry_config=retry)
        except BaseError as error:
            fault = read_fault(error, where.scheme, where.bucket)  # of the settings: no request was sent
            raise self._error("opening", "", replace(fault, transient=False), 1) from error

    def _facts(self, name: str, found: Any) -> StoredObject:
        etag = (found["e_tag"] or "").strip('"')  # lists of Azure have no quotes, its headers have them
        return StoredObject(name, int(found["size"]), etag, found["last_modified"].timestamp())

    def _name(self, name: str) -> str:
        return f"{self.url}/{name}" if name else self.url

    def _conflict_error(self, name: str) -> StorageError:
        return StorageError(f"{self._name(name)} was replaced by another process while it was read; run again")

    def _error(self, action: str, name: str, fault: Fault, tries: int) -> StorageError:
        often = f" (tried {tries} times)" if tries > 1 else ""
        kind = StorageError if fault.transient else AccessError
        return kind(f"{action} {self._name(name)} failed{often}: {fault.text}")


def _read_patience() -> float:
    text = os.environ.get("NEARCAST_STORAGE_PATIENCE", "").strip()
    if not text:
        return PATIENCE
    if not re.fullmatch(r"\d{1,6}(\.\d+)?", text):
        raise SpecError(f"NEARCAST_STORAGE_PATIENCE must be a number of seconds, got {text}; write 120 for two minutes")
    return float(text)


def _quote(etag: str) -> str:
    return etag if etag.startswith("W/") else f'"{etag}"'


def _import_obstore() -> Any:
    try:
        import obstore
    except ImportError as error:
        raise MissingExtraError(
            'object storage needs obstore; install it with: pip install "nearcast[cloud]"'
        ) from error
    return obstore
