"""The connection to Redis or Valkey: one server, the primary that Sentinels name, or a Cluster.

Translates every error of the library. A broken connection is opened again once; behind Sentinels and in a Cluster it is
tried until the timeout is over, so that most failovers are no error. A late answer is an error, and its command is not
sent again. Knows nothing of the data.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, TypeVar

from nearcast.errors import MissingExtraError, SpecError, StoreError
from nearcast.stores.process_client import ProcessClient
from nearcast.stores.redis_cluster import ClusterClient, has_replica_all
from nearcast.stores.redis_errors import make_cluster_refusal, make_foreign_error, make_redis_error
from nearcast.stores.redis_url import CLUSTER, FORM, SENTINEL, SENTINEL_PASSWORD_VARIABLE, RedisSettings

__all__ = ["RedisConnection"]

PAUSE_SECONDS = 0.05  # between two attempts, while Sentinels choose a new primary
CONFIRM_SECONDS = 60.0  # a replica may have to copy a whole primary first

T = TypeVar("T")

READ = """
local found, at = {}, 1
for i, key in ipairs(KEYS) do
    local command, rest = {ARGV[at], key}, tonumber(ARGV[at + 1])
    for j = 1, rest do command[2 + j] = ARGV[at + 1 + j] end
    found[i], at = redis.call(unpack(command)), at + 2 + rest
end
return found
"""


class RedisConnection:
    """Pools of connections. Safe to use from many threads and after a fork."""

    def __init__(self, settings: RedisSettings) -> None:
        self.settings = settings
        self._clients = ProcessClient(self._new_client)

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
        return self._clients.get()

    @cached_property
    def _read(self) -> Callable[[Sequence[str], Sequence[Any]], Any]:
        return self.script(READ)

    @property
    def is_cluster(self) -> bool:
        """Whether keys are on several nodes: a transaction and a script need keys of one slot."""
        return self.settings.kind == CLUSTER

    def _new_client(self) -> Any:
        redis, settings = self._library, self.settings
        arguments = {
            "socket_timeout": settings.timeout,
            "socket_connect_timeout": settings.timeout,
            "protocol": 2,
            "decode_responses": False,  # keys and values are bytes, and any bytes
        }
        if settings.kind:
            return self._new_distributed_client(arguments)
        retry = redis.retry.Retry(redis.backoff.NoBackoff(), 1, supported_errors=(redis.exceptions.ConnectionError,))
        try:
            pool = redis.ConnectionPool.from_url(settings.full_url, retry=retry, **arguments)
        except (ValueError, TypeError):  # its text may contain the password
            raise SpecError(f"{settings.url} is no URL of a Redis; {FORM}") from None
        return redis.Redis(connection_pool=pool)  # does not close a given pool: that of a parent must stay open

    def _new_distributed_client(self, arguments: dict[str, Any]) -> Any:
        """Return the client of a Cluster, or of the primary that Sentinels name."""
        redis, settings = self._library, self.settings
        parsed = redis.connection.parse_url(settings.full_url)
        tls = {name: value for name, value in parsed.items() if name.startswith("ssl_")}
        if settings.secure:
            tls["ssl"] = True
        login = {name: parsed[name] for name in ("username", "password") if name in parsed}
        if settings.kind == CLUSTER:
            return ClusterClient(redis, settings.nodes, settings.timeout, {**arguments, **tls, **login})
        sentinel_login = {}
        if SENTINEL_PASSWORD_VARIABLE in os.environ:
            sentinel_login = {"password": os.environ[SENTINEL_PASSWORD_VARIABLE]}
        arguments["retry"] = redis.retry.Retry(redis.backoff.NoBackoff(), 0)  # `_persist` tries again
        sentinel = redis.Sentinel(settings.nodes, sentinel_kwargs={**arguments, **tls, **sentinel_login})
        return sentinel.master_for(settings.service, db=parsed.get("db", 0), **arguments, **tls, **login)

    def run(self, *command: Any) -> Any:
        """Send one command and return the answer."""
        if self.is_cluster:
            return self.run_all([command])[0]
        return self._persist(lambda: self._client.execute_command(*command))

    def read_at_once(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Return the answers of commands that read one key each, in one step; see `is_cluster`.

        A script, since a server that is full refuses transactions, also of reads.
        """
        arguments = [text for name, _, *rest in commands for text in (name, len(rest), *rest)]
        answers: list[Any] = self._read([key for _, key, *_ in commands], arguments)
        are_pairs = [name == "HGETALL" for name, *_ in commands]  # which scripts answer as one list
        return [
            dict(zip(answer[::2], answer[1::2], strict=True)) if is_pairs else answer
            for is_pairs, answer in zip(are_pairs, answers, strict=True)
        ]

    def run_all(self, commands: Sequence[Sequence[Any]], *, at_once: bool = False) -> list[Any]:
        """Send several commands together and return the answers. at_once: as one transaction; see `is_cluster`."""
        if self.is_cluster:
            with self._translate_errors():
                run = self._client.run_transaction if at_once else self._client.run_all
                cluster_answers: list[Any] = run(commands)
                return cluster_answers

        def attempt() -> list[Any]:
            with self._client.pipeline(transaction=at_once) as pipeline:
                for command in commands:
                    pipeline.execute_command(*command)
                answers: list[Any] = pipeline.execute()
                return answers

        return self._persist(attempt)

    def script(self, text: str) -> Callable[[Sequence[str], Sequence[Any]], Any]:
        """Return a function (keys, arguments) that runs a Lua script on the server in one step; see `is_cluster`."""
        registered: list[Any] = []
        sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

        def attempt(keys: Sequence[str], arguments: Sequence[Any]) -> Any:
            client = self._client
            if not registered:
                registered.append(client.register_script(text))
            return registered[0](keys=keys, args=arguments, client=client)

        def call(keys: Sequence[str], arguments: Sequence[Any]) -> Any:
            if self.is_cluster:
                with self._translate_errors():
                    return self._client.run_script(sha, text, keys, arguments)
            return self._persist(lambda: attempt(keys, arguments))

        return call

    def count_existing(self, names: Sequence[str]) -> int:
        """Return how many of these keys exist."""
        if self.is_cluster:
            return sum(self.run_all([("EXISTS", name) for name in names]))
        return int(self.run("EXISTS", *names)) if names else 0

    def unlink(self, names: Sequence[str]) -> None:
        """Remove keys."""
        if self.is_cluster:
            self.run_all([("UNLINK", name) for name in names])
        elif names:
            self.run("UNLINK", *names)

    def read_memory_facts(self) -> list[dict[str, Any]]:
        """Return the facts about the memory of every server that holds data."""
        if self.is_cluster:
            with self._translate_errors():
                facts: list[dict[str, Any]] = self._client.run_everywhere("INFO", "memory")
                return facts
        return [self.run("INFO", "memory")]

    def confirm(self, names: Sequence[str]) -> None:
        """Wait until a replica has all writes to the nodes of these keys: a failover keeps them then.

        Does nothing for a single server, and for nodes without replicas. Raises StoreError if the replicas lag.
        """
        if not self.settings.kind or not names:
            return
        end = time.monotonic() + CONFIRM_SECONDS
        while not self._has_replica_all(names):
            if time.monotonic() > end:
                raise StoreError(
                    f"{self.settings.url} has replicas, and none has taken the last writes in {CONFIRM_SECONDS:g} s: a "
                    "failover would lose them; see that the replicas run and keep up"
                )

    def _has_replica_all(self, names: Sequence[str]) -> bool:
        if self.is_cluster:
            with self._translate_errors():
                return bool(self._client.has_replica_all(names))
        return self._persist(lambda: has_replica_all(self._client, names[0], self.settings.timeout / 2))

    def close(self) -> None:
        """Close the connections that are not in use."""
        client = self._clients.take()
        if client is not None and self.is_cluster:
            client.close()
        elif client is not None:
            client.connection_pool.disconnect(inuse_connections=False)

    def check_server(self) -> None:
        """Raise SpecError if the URL is of another kind than the server, StoreError if there is no answer."""
        self.run("PING")
        try:
            facts = self.run("INFO")
        except StoreError as error:
            if "does not let this user" in str(error):
                return  # a reader may lack the right to INFO; a publisher needs it
            raise
        mode = str(facts.get("redis_mode", facts.get("server_mode", "")))
        if not self.is_cluster and (mode == "cluster" or facts.get("cluster_enabled") in (1, "1")):
            raise make_cluster_refusal(self.settings)
        if mode == "sentinel":
            raise SpecError(
                f"{self.settings.url} is a Sentinel, which holds no data; write redis+sentinel://HOST:PORT/SERVICE"
            )

    def _persist(self, attempt: Callable[[], T]) -> T:
        """Repeat an attempt until the timeout is over while Sentinels choose a new primary; else try it once."""
        errors = self._library.exceptions
        end = time.monotonic() + self.settings.timeout
        while True:
            try:
                with self._translate_errors():
                    return attempt()
            except StoreError as error:
                cause = error.__context__
                passing = isinstance(cause, errors.ConnectionError | errors.ReadOnlyError)
                final = isinstance(cause, errors.AuthenticationError | errors.AuthorizationError)
                if self.settings.kind != SENTINEL or not passing or final or time.monotonic() > end:
                    raise
                time.sleep(PAUSE_SECONDS)

    @contextlib.contextmanager
    def _translate_errors(self) -> Iterator[None]:
        errors = self._library.exceptions
        try:
            yield
        except (errors.RedisError, errors.RedisClusterException, OSError) as error:
            # the text of the library may contain the password, or any bytes
            raise make_redis_error(self._library, self.settings, error) from None
        except (UnicodeError, ValueError, AssertionError) as error:  # the library cannot parse the answer
            raise make_foreign_error(self.settings, error) from None
