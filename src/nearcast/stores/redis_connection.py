"""The connection to Redis or Valkey. Translates every error of the library.

A broken connection is opened again once. A late answer is an error, and its command is not sent again. Knows nothing of
the data.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

from nearcast.errors import MissingExtraError, SpecError, StoreError
from nearcast.stores.redis_url import FORM, RedisSettings

__all__ = ["RedisConnection"]

SHOWN_CHARACTERS = 200  # of a text by the server, which may contain a whole command
TLS_ERRORS = ("SSL", "WRONG_VERSION_NUMBER", "record layer failure", "certificate verify", "No such file")


class RedisConnection:
    """A pool of connections to one server. Safe to use from many threads and after a fork."""

    def __init__(self, settings: RedisSettings) -> None:
        self.settings = settings
        self._made: tuple[int, Any] | None = None  # process id and client

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
        """The client of this process. A child gets its own: a lock of the inherited one may never be released."""
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
        except (ValueError, TypeError):  # its text may contain the password
            raise SpecError(f"{self.settings.url} is no URL of a Redis; {FORM}") from None
        return redis.Redis(connection_pool=pool)  # does not close a given pool: that of a parent must stay open

    def run(self, *command: Any) -> Any:
        """Send one command and return the answer."""
        with self._translate_errors():
            return self._client.execute_command(*command)

    def run_all(self, commands: Sequence[Sequence[Any]], *, at_once: bool = False) -> list[Any]:
        """Send several commands together and return the answers. at_once: as one transaction."""
        with self._translate_errors(), self._client.pipeline(transaction=at_once) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            answers: list[Any] = pipeline.execute()
            return answers

    def script(self, text: str) -> Callable[[Sequence[str], Sequence[Any]], Any]:
        """Return a function (keys, arguments) that runs a Lua script on the server in one step."""
        registered: list[Any] = []

        def call(keys: Sequence[str], arguments: Sequence[Any]) -> Any:
            with self._translate_errors():
                client = self._client
                if not registered:
                    registered.append(client.register_script(text))
                return registered[0](keys=keys, args=arguments, client=client)

        return call

    def close(self) -> None:
        """Close the connections that are not in use."""
        if self._made is not None and self._made[0] == os.getpid():
            self._made[1].connection_pool.disconnect(inuse_connections=False)

    def check_server(self) -> None:
        """Raise SpecError for a Cluster or Sentinel, StoreError if there is no answer."""
        self.run("PING")
        try:
            facts = self.run("INFO")
        except StoreError as error:
            if "does not let this user" in str(error):
                return  # a reader may lack the right to INFO; a publisher needs it
            raise
        mode = str(facts.get("redis_mode", facts.get("server_mode", "")))
        if mode == "cluster" or facts.get("cluster_enabled") in (1, "1"):
            raise SpecError(
                f"{self.settings.url} is a Redis Cluster, which is not supported; give a single server, or a primary "
                "with replicas"
            )
        if mode == "sentinel":
            raise SpecError(f"{self.settings.url} is a Sentinel, which holds no data; give the address of the primary")

    @contextlib.contextmanager
    def _translate_errors(self) -> Iterator[None]:
        errors = self._library.exceptions
        try:
            yield
        except (errors.RedisError, OSError) as error:
            raise self._make_error(error) from None  # the text of the library may contain the password, or any bytes
        except (UnicodeError, ValueError, AssertionError) as error:  # the library cannot parse the answer
            raise StoreError(f"{self.settings.url} {self._describe_foreign_answer(error)}") from None

    def _make_error(self, error: Exception) -> StoreError | SpecError:
        errors, text = self._library.exceptions, self._format_text(error)
        head = text.partition(" ")[0]
        if (
            isinstance(error, errors.MasterDownError) or head == "MASTERDOWN"
        ):  # the library raises it as a ClusterDownError
            return StoreError(
                f"{self.settings.url} is a replica without its primary ({text}); give the address of the primary, or "
                "try again when it is back"
            )
        if isinstance(error, errors.ClusterError | errors.MovedError | errors.AskError) or head in ("MOVED", "ASK"):
            return SpecError(
                f"{self.settings.url} is part of a Redis Cluster, which is not supported ({text}); give a single server"
            )
        return StoreError(f"{self.settings.url} {self._describe_failure(error, text)}")

    def _describe_failure(self, error: Exception, text: str) -> str:
        errors = self._library.exceptions
        secure = self.settings.full_url.startswith("rediss:")
        if isinstance(error, errors.AuthenticationError | errors.AuthorizationError) or "WRONGPASS" in text:
            return f"refuses the user or the password ({text}); correct them in the store's URL"
        if isinstance(error, errors.NoPermissionError) or "NOPERM" in text:
            return f"does not let this user do it ({text}); docs/stores.md lists the commands that are needed"
        if secure and any(word in text for word in TLS_ERRORS):
            return (
                f"cannot be reached over TLS ({text}); write redis:// if the server has no TLS on this port, else "
                f"check ssl_ca_certs and the certificate"
            )
        if isinstance(error, errors.TimeoutError | TimeoutError):
            tls = ", or write redis:// if the server has no TLS on this port" if secure else ""
            return (
                f"did not answer within {self.settings.timeout:g} s; see how it does, "
                f"or allow more with ?timeout=SECONDS in the store's URL{tls}"
            )
        if isinstance(error, errors.BusyLoadingError) or "LOADING" in text:
            return "is still loading its data after a start; try again when it is done"
        if isinstance(error, errors.InvalidResponse):
            return self._describe_foreign_answer(error)
        if isinstance(error, errors.ConnectionError | OSError):
            dropped = "closed by server" in text or "reset by peer" in text
            tls = ", or write rediss:// if it wants TLS" if dropped and not secure else ""
            return f"cannot be reached ({text}); see that it runs and that the address is right{tls}"
        if isinstance(error, errors.OutOfMemoryError) or "OOM " in text:
            return f"is full ({text}); raise its maxmemory, or keep fewer versions"
        if isinstance(error, errors.ReadOnlyError) or "READONLY" in text:
            return f"is a replica, which cannot be written ({text}); give the address of the primary"
        if "MISCONF" in text:
            return f"cannot save to its disk and takes no writes ({text}); make room on the server's disk, see its log"
        if "DB index is out of range" in text:
            return "has no database of that number; give a smaller one, as its setting `databases` allows"
        return f"answered with an error ({text}); see its log"

    def _describe_foreign_answer(self, error: Exception) -> str:
        """Describe an answer that is not in the protocol of Redis."""
        return (
            f"does not answer as a Redis does ({self._format_text(error)}); see that the port is right, and write "
            "rediss:// if the server wants TLS"
        )

    def _format_text(self, error: Exception) -> str:
        """Return the text of an error in printable characters, shortened, without the password."""
        text = str(error)
        for secret in self.settings.secrets:
            text = text.replace(secret, "***")
        shown = "".join(c if c.isprintable() and c != "\ufffd" else c.encode("unicode_escape").decode() for c in text)
        return shown if len(shown) <= SHOWN_CHARACTERS else f"{shown[:SHOWN_CHARACTERS]}..."
