"""A client of a Redis Cluster: commands go to the nodes of their keys, many at a time, through moves and failovers.

redis-py knows the nodes and their connections. Its own pipeline sends failed commands again one by one, which takes
minutes when a node does not answer; so commands are grouped by node here, sent to all nodes, and then the answers are
read. A command that a node refuses because slots move, or whose connection breaks, is sent again until the timeout is
over. A late answer is an error. Every command may be sent twice: it must have the same effect then. Knows nothing of
the data.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

__all__ = ["ClusterClient", "has_replica_all"]

PAUSE_SECONDS = 0.05  # between two attempts, while a failed node is replaced
HOME = "nearcast:generators"  # commands without a key go to the node of this one: one node, so one clock

Command = Sequence[Any]
T = TypeVar("T")


class ClusterClient:
    """A Cluster. Safe to use from many threads. Raises the errors of the library."""

    def __init__(self, library: Any, nodes: Sequence[tuple[str, int]], timeout: float, arguments: dict[str, Any]):
        self._errors = library.exceptions
        self._timeout = timeout
        self._slot = library.crc.key_slot
        seeds = [library.cluster.ClusterNode(host, port) for host, port in nodes]
        self._cluster = library.RedisCluster(startup_nodes=seeds, require_full_coverage=False, **arguments)
        errors = self._errors
        self._passing = (  # over when a node was replaced or a slot has arrived
            errors.ConnectionError,
            errors.ClusterDownError,
            errors.TryAgainError,
            errors.ReadOnlyError,
            errors.SlotNotCoveredError,
            errors.ExecAbortError,
            errors.AskError,  # also MovedError
        )
        self._final = (errors.AuthenticationError, errors.AuthorizationError, errors.MaxConnectionsError)

    def run_all(self, commands: Sequence[Command]) -> list[Any]:
        """Return the answers of commands with one key each; those for different nodes run at the same time."""
        answers: list[Any] = [None] * len(commands)
        waiting: dict[int, Any] = dict.fromkeys(range(len(commands)))  # command -> node that it was sent to by another

        def attempt() -> None:
            failed = self._send(commands, waiting, answers)
            for number in [number for number in waiting if number not in failed]:
                del waiting[number]
            for number, error in failed.items():
                if not self._is_passing(error):
                    raise error
                waiting[number] = error if isinstance(error, self._errors.AskError) else None
            if failed:
                raise next(iter(failed.values()))

        self._persist(attempt)
        return answers

    def run_transaction(self, commands: Sequence[Command]) -> list[Any]:
        """Return the answers of commands whose keys have one slot, run in one step."""

        def attempt() -> list[Any]:
            node = self._cluster.get_redis_connection(self._find_node(commands[0]))
            with node.pipeline(transaction=True) as pipeline:
                for command in commands:
                    pipeline.execute_command(*command)
                answers: list[Any] = pipeline.execute()
                return answers

        return self._persist(attempt)

    def run_script(self, sha: str, text: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """Run a script whose keys have one slot."""
        try:
            return self.run_all([("EVALSHA", sha, len(keys), *keys, *arguments)])[0]
        except self._errors.NoScriptError:
            return self.run_all([("EVAL", text, len(keys), *keys, *arguments)])[0]

    def run_everywhere(self, *command: Any) -> list[Any]:
        """Return the answers of all primaries."""

        def attempt() -> list[Any]:
            nodes = self._cluster.get_primaries()
            return [self._cluster.get_redis_connection(node).execute_command(*command) for node in nodes]

        return self._persist(attempt)

    def has_replica_all(self, names: Sequence[str]) -> bool:
        """Return whether every node with one of these keys has a replica with all its writes so far."""

        def attempt() -> bool:
            nodes = {node.name: (node, name) for name in names for node in [self._find_node(("GET", name))]}
            clients = [(self._cluster.get_redis_connection(node), name) for node, name in nodes.values()]
            return all(has_replica_all(client, name, self._timeout / 2) for client, name in clients)

        return self._persist(attempt)

    def close(self) -> None:
        """Close the connections."""
        self._cluster.close()

    def _persist(self, attempt: Callable[[], T]) -> T:
        """Repeat an attempt that fails while a node is replaced or slots move, until the timeout is over."""
        end = time.monotonic() + self._timeout
        while True:
            try:
                return attempt()
            except Exception as error:
                if isinstance(error, self._errors.TimeoutError):
                    self._refresh()  # the next command shall not wait for the same node
                if not self._is_passing(error) or time.monotonic() > end:
                    raise
                if not isinstance(error, self._errors.AskError):
                    time.sleep(PAUSE_SECONDS)
                if not self._is_redirection(error):
                    self._refresh()

    def _is_passing(self, error: Exception) -> bool:
        return isinstance(error, self._passing) and not isinstance(error, self._final)

    def _is_redirection(self, error: Exception) -> bool:
        """Return whether the error is ASK: the slot is being moved, and most of its keys are where they were."""
        return isinstance(error, self._errors.AskError) and not isinstance(error, self._errors.MovedError)

    def _refresh(self) -> None:
        """Ask the nodes which of them has which slots."""
        with contextlib.suppress(self._errors.RedisError, self._errors.RedisClusterException, OSError):
            self._cluster.nodes_manager.initialize()

    def _find_node(self, command: Command) -> Any:
        name = command[3] if command[0] in ("EVALSHA", "EVAL") else command[1] if len(command) > 1 else HOME
        if command[0] in ("PING", "TIME", "INFO"):
            name = HOME
        key = name if isinstance(name, bytes) else name.encode()
        return self._cluster.nodes_manager.get_node_from_slot(self._slot(key))

    def _find_redirected(self, error: Any) -> Any:
        """Return the node that an answer named. Raises TryAgainError for an unknown one."""
        node = self._cluster.get_node(host=error.host, port=error.port)
        if node is None:
            self._refresh()
            node = self._cluster.get_node(host=error.host, port=error.port)
        if node is None:
            raise self._errors.TryAgainError(f"unknown node {error.host}:{error.port}")
        return node

    def _send(self, commands: Sequence[Command], waiting: dict[int, Any], answers: list[Any]) -> dict[int, Exception]:
        """Send commands to their nodes, then read the answers. Return the errors by the number of the command."""
        failed: dict[int, Exception] = {}
        batches: dict[str, _NodeBatch] = {}
        try:
            for number, redirection in waiting.items():
                try:
                    found = redirection is not None
                    node = self._find_redirected(redirection) if found else self._find_node(commands[number])
                except (self._errors.RedisError, self._errors.RedisClusterException) as error:
                    failed[number] = error
                    continue
                if node.name not in batches:
                    batches[node.name] = _NodeBatch(self._errors, self._cluster.get_redis_connection(node))
                asking = found and self._is_redirection(redirection)
                batches[node.name].add(number, commands[number], asking=asking)
            for batch in batches.values():
                batch.send()
            for batch in batches.values():
                batch.read(answers, failed)
        finally:
            for batch in batches.values():
                batch.release()
        return failed


def has_replica_all(client: Any, name: str, seconds: float) -> bool:
    """Return whether one replica of a server has all its writes so far, after so many seconds; True without replicas.

    name: a key of the server. The key that is written here has the slot of that one.
    """
    if not client.info("replication").get("connected_slaves"):
        return True
    tag = name if "{" in name else f"{{{name}}}"
    with client.pipeline(transaction=False) as pipeline:  # WAIT is about the writes of its own connection
        pipeline.execute_command("SET", f"nearcast:confirmed:{tag}", b"", "EX", 60)
        pipeline.execute_command("WAIT", 1, max(1, round(1000 * seconds)))
        return bool(pipeline.execute()[1])


class _NodeBatch:
    """Commands for one node, on one connection."""

    def __init__(self, errors: Any, client: Any) -> None:
        self._errors, self._client = errors, client
        self._commands: list[tuple[int, Command, bool]] = []
        self._error: Exception | None = None
        self._connection: Any = None
        self._is_read = False
        try:
            self._connection = client.connection_pool.get_connection()
        except (errors.ConnectionError, errors.TimeoutError) as error:
            self._error = error

    def add(self, number: int, command: Command, *, asking: bool) -> None:
        """Add a command. asking: its slot is being moved to this node."""
        self._commands.append((number, command, asking))

    def send(self) -> None:
        """Send all commands together."""
        if self._connection is None:
            return
        flat: list[Command] = []
        for _, command, asking in self._commands:
            flat += [("ASKING",), command] if asking else [command]
        try:
            self._connection.send_packed_command(self._connection.pack_commands(flat))
        except (self._errors.ConnectionError, self._errors.TimeoutError) as error:
            self._error = error

    def read(self, answers: list[Any], failed: dict[int, Exception]) -> None:
        """Read the answers; add errors to `failed`."""
        for number, command, asking in self._commands:
            if self._error is None:
                try:
                    if asking:
                        self._client.parse_response(self._connection, "ASKING")
                    answers[number] = self._client.parse_response(self._connection, command[0])
                    continue
                except self._errors.ResponseError as error:
                    failed[number] = error
                    continue
                except (self._errors.ConnectionError, self._errors.TimeoutError) as error:
                    self._error = error
            failed[number] = self._error
        self._is_read = self._error is None

    def release(self) -> None:
        """Give the connection back; close it if answers are on their way."""
        if self._connection is not None:
            if not self._is_read:
                self._connection.disconnect()
            self._client.connection_pool.release(self._connection)
