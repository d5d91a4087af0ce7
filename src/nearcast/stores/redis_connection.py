"""The connection to Redis or Valkey: its settings out of the URL, and every error of the library translated.

A broken connection is made anew once; an answer that does not come in time is an error, and never waited for again.
Knows nothing of what is kept there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from nearcast.errors import MissingExtraError, SpecError, StoreError

__all__ = ["MOST_BUCKETS", "Connection", "Settings", "parse_url"]

OURS = ("timeout", "grace", "buckets")
PASSED_ON = ("db", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname", "ssl_cert_reqs")
MOST_BUCKETS = 1 << 20
TIMEOUT, GRACE, BUCKETS = 5.0, 3600.0, 4096.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What a URL says about a store in Redis."""

    url: str  # without the password and what it asks for, for messages
    full_url: str = field(repr=False)  # for the library
    timeout: float = TIMEOUT  # seconds to wait for a connection or an answer
    grace: float = GRACE  # seconds for which a retired version can still be read by those who have it open
    buckets: int = int(BUCKETS)  # hashes that a space is spread over, so that no command is about too much at once


def parse_url(url: str) -> Settings:
    """The settings of a URL. SpecError names what is wrong, and never shows the password."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        raise SpecError("the store's URL cannot be read; write redis://[user:password@]host[:port][/db]") from None
    user = f"{parts.username}@" if parts.username else ""
    place = f"[{host}]" if ":" in host else host
    shown = f"{parts.scheme}://{user}{place}{port}{parts.path}"
    asked = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name in asked:
        if name not in OURS + PASSED_ON:
            raise SpecError(f"{shown} has the setting {name!r}; known ones are {', '.join(OURS + PASSED_ON)}")
    scheme = "redis" if parts.scheme == "valkey" else parts.scheme
    passed = urlencode({name: value for name, value in asked.items() if name in PASSED_ON}, quote_via=quote)
    return Settings(
        url=shown,
        full_url=f"{scheme}://{parts.netloc}{parts.path}?{passed}",
        timeout=_number(asked, "timeout", TIMEOUT, least=0.01, most=3600, shown=shown),
        grace=_number(asked, "grace", GRACE, least=0, most=30 * 86400, shown=shown),
        buckets=int(_number(asked, "buckets", BUCKETS, least=1, most=MOST_BUCKETS, shown=shown)),
    )


def _number(asked: dict[str, str], name: str, default: float, *, least: float, most: float, shown: str) -> float:
    if name not in asked:
        return default
    try:
        value = float(asked[name])
    except ValueError:
        value = -1.0
    if not least <= value <= most:
        raise SpecError(f"{shown}: {name} is {asked[name]!r}; give a number from {least:g} to {most:g}")
    return value


class Connection:
    """Connections to one server, as many as threads use at once. Also usable after a fork."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._made: tuple[int, Any] | None = None  # the process that made it, and the client

    @cached_property
    def _library(self) -> Any:
        try:
            import redis
        except ImportError as error:
            raise MissingExtraError(
                "a store in Redis needs an optional library; install it with: pip install 'nearcast[redis]'"
            ) from error
        return redis

    @property
    def _client(self) -> Any:
        """This process's client. A child gets its own: locks of the inherited one may be held by no thread there."""
        made = self._made
        if made is None or made[0] != os.getpid():
            made = self._made = os.getpid(), self._new_client()
        return made[1]

    def _new_client(self) -> Any:
        redis = self._library
        retry = redis.retry.Retry(redis.backoff.NoBackoff(), 1, supported_errors=(redis.exceptions.ConnectionError,))
        try:
            pool = redis.ConnectionPool.from_url(
                self.settings.full_url,
                socket_timeout=self.settings.timeout,
                socket_connect_timeout=self.settings.timeout,
                retry=retry,
                protocol=2,
                decode_responses=False,  # keys and values are bytes, and any bytes
            )
        except (ValueError, TypeError):  # its text may hold the password
            raise SpecError(
                f"{self.settings.url} is no URL of a Redis; redis://[user:password@]host[:port][/db]"
            ) from None
        return redis.Redis(connection_pool=pool)  # does not close a pool that it was given, as a parent's must not be

    def run(self, *command: Any) -> Any:
        """The answer to one command."""
        with self._translated():
            return self._client.execute_command(*command)

    def run_all(self, commands: Sequence[Sequence[Any]], *, at_once: bool = False) -> list[Any]:
        """The answers to several commands that are sent together; `at_once` lets nobody else come in between."""
        with self._translated(), self._client.pipeline(transaction=at_once) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            answers: list[Any] = pipeline.execute()
            return answers

    def script(self, text: str) -> Callable[[Sequence[str], Sequence[Any]], Any]:
        """A function of keys and arguments that the server runs in one step."""
        registered: list[Any] = []

        def call(keys: Sequence[str], arguments: Sequence[Any]) -> Any:
            with self._translated():
                client = self._client
                if not registered:
                    registered.append(client.register_script(text))
                return registered[0](keys=keys, args=arguments, client=client)

        return call

    def close(self) -> None:
        """Close what is not in use."""
        if self._made is not None and self._made[0] == os.getpid():
            self._made[1].connection_pool.disconnect(inuse_connections=False)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        errors = self._library.exceptions
        try:
            yield
        except (errors.RedisError, OSError) as error:
            raise StoreError(f"{self.settings.url} {self._in_words(error)}") from error

    def _in_words(self, error: Exception) -> str:
        errors, text = self._library.exceptions, str(error)
        if isinstance(error, errors.AuthenticationError | errors.AuthorizationError) or "WRONGPASS" in text:
            return f"refuses the user or the password ({text}); correct them in the store's URL"
        if isinstance(error, errors.NoPermissionError):
            return f"does not let this user do it ({text}); docs/stores.md lists the commands that are needed"
        if isinstance(error, errors.TimeoutError | TimeoutError):
            return (
                f"did not answer within {self.settings.timeout:g} s; see how it does, "
                f"or allow more with ?timeout=SECONDS in the store's URL"
            )
        if isinstance(error, errors.BusyLoadingError):
            return "is still loading its data after a start; try again when it is done"
        if isinstance(error, errors.ConnectionError | OSError):
            return f"cannot be reached ({text}); see that it runs and that the address is right"
        if isinstance(error, errors.OutOfMemoryError) or text.startswith("OOM"):
            return f"is full ({text}); raise its maxmemory, or keep fewer versions"
        if isinstance(error, errors.ReadOnlyError):
            return f"is a replica, which cannot be written ({text}); give the address of the primary"
        return f"does not do as it is told ({text}); see its log"
