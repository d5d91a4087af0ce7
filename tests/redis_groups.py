"""Real groups of Redis servers for tests: a Cluster of three primaries with replicas, and Sentinels over a primary."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from needs import require_module
from servers import HERE, PATIENCE, RedisServer, free_port, redis_program

SLOTS = 16384
PRIMARIES = 3
NODE_TIMEOUT = 700  # milliseconds until a node counts as failed, while a group starts
STEADY_TIMEOUT = 60_000  # milliseconds, in a group whose nodes are not to fail: a machine may stall
SERVICE = "candidates"


def wait_until(condition: Callable[[], Any], what: str) -> None:
    """Wait until something holds; errors of a server that is not ready count as no."""
    import redis

    end = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(redis.RedisError, OSError):
            if condition():
                return
        assert time.monotonic() < end, f"{what}: it never came to that"
        time.sleep(0.05)


class RedisCluster:
    """A Cluster on this machine: node number n of the first three has a third of the slots."""

    def __init__(self, folder: Path, *settings: str, replicas: int = 0, tls: bool = False) -> None:
        program, count = redis_program(), PRIMARIES * (1 + replicas)
        self._bus_ports = [free_port() for _ in range(count)]
        common = ["--cluster-enabled", "yes", "--cluster-node-timeout", str(NODE_TIMEOUT), *settings]
        common += ["--repl-diskless-sync-delay", "0"]
        self._tls_ports = [free_port() for _ in range(count if tls else 0)]
        self.nodes = []
        for number, bus_port in enumerate(self._bus_ports):
            ports = ["--cluster-port", str(bus_port)]
            if tls:  # clients are told the ports of the kind of their connection
                ports += ["--tls-port", str(self._tls_ports[number]), "--tls-cluster", "yes"]
            self.nodes.append(RedisServer(program, folder / str(number), *common, *ports))

    @property
    def url(self) -> str:
        """Its URL, with two of its nodes."""
        return f"redis+cluster://{HERE}:{self.nodes[0].port},{HERE}:{self.nodes[1].port}"

    @property
    def tls_url(self) -> str:
        """Its URL with TLS."""
        return f"rediss+cluster://{HERE}:{self._tls_ports[0]}"

    def client(self, number: int) -> Any:
        """A plain client of one node."""
        redis = require_module("redis")
        return contextlib.closing(redis.Redis(HERE, self.nodes[number].port, decode_responses=True))

    def whole(self) -> Any:
        """A plain client of the Cluster."""
        redis = require_module("redis")
        return contextlib.closing(redis.RedisCluster(HERE, self.nodes[0].port))

    def ask(self, number: int, *command: Any) -> Any:
        """Send one command to one node."""
        with self.client(number) as client:
            return client.execute_command(*command)

    def start(self) -> RedisCluster:
        """Start all nodes, share the slots out, and wait until every node knows all others."""
        for node in self.nodes:
            node.start()
        for number in range(len(self.nodes)):
            self.ask(number, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if number < PRIMARIES:
                first, end = SLOTS * number // PRIMARIES, SLOTS * (number + 1) // PRIMARIES
                self.ask(number, "CLUSTER", "ADDSLOTSRANGE", first, end - 1)
        ports = self._tls_ports or [node.port for node in self.nodes]
        for port, bus_port in zip(ports[1:], self._bus_ports[1:], strict=True):
            self.ask(0, "CLUSTER", "MEET", HERE, port, bus_port)
        wait_until(lambda: all(len(self.ids(number)) == len(self.nodes) for number in range(len(self.nodes))), "meet")
        for number in range(PRIMARIES, len(self.nodes)):
            self.ask(number, "CLUSTER", "REPLICATE", self.id_of(number % PRIMARIES))
        wait_until(lambda: all(self._is_ready(number) for number in range(len(self.nodes))), "ready")
        if len(self.nodes) == PRIMARIES:  # nobody could take the place of a node
            for number in range(PRIMARIES):
                self.ask(number, "CONFIG", "SET", "cluster-node-timeout", STEADY_TIMEOUT)
        return self

    def _is_ready(self, number: int) -> bool:
        facts = self.ask(number, "CLUSTER", "INFO")
        with self.client(number) as client:
            replication = client.info("replication")
        is_linked = number < PRIMARIES or replication.get("master_link_status") == "up"
        return "cluster_state:ok" in facts and is_linked

    def ids(self, number: int) -> dict[str, str]:
        """The ids of the nodes that a node knows, by host:port."""
        with self.client(number) as client:
            return {address.partition("@")[0]: facts["node_id"] for address, facts in client.cluster("NODES").items()}

    def id_of(self, number: int) -> str:
        """The id of a node."""
        return str(self.ask(number, "CLUSTER", "MYID"))

    def clear(self) -> None:
        """Remove all keys."""
        for number in range(PRIMARIES):
            self.ask(number, "FLUSHALL")

    def owner(self, slot: int) -> int:
        """The number of the node that has a slot."""
        rows = self.ask(0, "CLUSTER", "SLOTS")
        (port,) = (primary[1] for first, last, primary, *_ in rows if first <= slot <= last)
        return [node.port for node in self.nodes].index(port)

    def move_slot(self, slot: int, target: int, *, pause: float = 0.0) -> None:
        """Move a slot with its keys to another node, as redis-cli --cluster reshard does; pause between the keys."""
        source = self.owner(slot)
        if source == target:
            return
        self.ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", self.id_of(source))
        self.ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", self.id_of(target))
        while keys := self.ask(source, "CLUSTER", "GETKEYSINSLOT", slot, 5):
            self.ask(source, "MIGRATE", HERE, self.nodes[target].port, "", 0, 5000, "KEYS", *keys)
            time.sleep(pause)
        for number in sorted(range(PRIMARIES), key=lambda number: number != target):
            self.ask(number, "CLUSTER", "SETSLOT", slot, "NODE", self.id_of(target))

    def kill(self) -> None:
        """Kill all nodes."""
        for node in self.nodes:
            node.kill()


@contextlib.contextmanager
def cluster_running(folder: Path, *settings: str, replicas: int = 0, tls: bool = False) -> Iterator[RedisCluster]:
    """A Cluster for a while. tls: its nodes have a second port with TLS; the settings name the certificate."""
    cluster = RedisCluster(folder, *settings, replicas=replicas, tls=tls)
    try:
        yield cluster.start()
    finally:
        cluster.kill()


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """One Cluster of three primaries for all tests of a session."""
    with cluster_running(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def cluster_url(redis_cluster: RedisCluster) -> str:
    """The URL of the Cluster, empty."""
    redis_cluster.clear()
    return redis_cluster.url


class SentinelGroup:
    """A primary, a replica, and three Sentinels that watch them."""

    def __init__(self, folder: Path) -> None:
        program = redis_program()
        self.primary = RedisServer(program, folder / "primary", "--repl-diskless-sync-delay", "0")
        self.replica = RedisServer(program, folder / "replica", "--replicaof", HERE, str(self.primary.port))
        self.ports = [free_port() for _ in range(3)]
        self._folder, self._program = folder, program
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        """The URL of the service."""
        return f"redis+sentinel://{','.join(f'{HERE}:{port}' for port in self.ports)}/{SERVICE}"

    def start(self) -> SentinelGroup:
        """Start all, and wait until the Sentinels know each other and the replica."""
        self.primary.start()
        self.replica.start()
        for port in self.ports:
            folder = self._folder / str(port)
            folder.mkdir()
            lines = [
                f"port {port}",
                f"bind {HERE}",
                f"sentinel monitor {SERVICE} {HERE} {self.primary.port} 2",
                f"sentinel down-after-milliseconds {SERVICE} 500",
                f"sentinel failover-timeout {SERVICE} 2000",
            ]
            (folder / "sentinel.conf").write_text("\n".join(lines) + "\n")
            command = [self._program, "sentinel.conf", "--sentinel"]
            with (folder / "log").open("ab") as log:
                self._processes.append(subprocess.Popen(command, cwd=folder, stdout=log, stderr=log))
        wait_until(self._is_ready, "the Sentinels know all")
        return self

    def _is_ready(self) -> bool:
        with contextlib.closing(require_module("redis").Redis(HERE, self.replica.port)) as client:
            if client.info("replication")["master_link_status"] != "up":
                return False
        facts = [self._facts(port) for port in self.ports]
        return all(found["num-slaves"] == 1 and found["num-other-sentinels"] == 2 for found in facts)

    def _facts(self, port: int) -> dict[str, Any]:
        redis = require_module("redis")
        with contextlib.closing(redis.Redis(HERE, port)) as client:
            facts: dict[str, Any] = client.sentinel_master(SERVICE)
            return facts

    def keep_primary(self) -> None:
        """Let a primary that does not answer for a while count as alive."""
        for port in self.ports:
            with contextlib.closing(require_module("redis").Redis(HERE, port)) as client:
                client.sentinel_set(SERVICE, "down-after-milliseconds", STEADY_TIMEOUT)

    def primary_port(self) -> int:
        """The port of the primary that the first Sentinel names."""
        return int(self._facts(self.ports[0])["port"])

    def kill(self) -> None:
        """Kill all."""
        for process in self._processes:
            process.kill()
            process.wait()
        self.primary.kill()
        self.replica.kill()


@contextlib.contextmanager
def sentinels_running(folder: Path) -> Iterator[SentinelGroup]:
    """Sentinels with a primary and a replica for a while."""
    group = SentinelGroup(folder)
    try:
        yield group.start()
    finally:
        group.kill()


@pytest.fixture(scope="session")
def sentinel_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelGroup]:
    """One group for all tests of a session that leave its primary alone."""
    with sentinels_running(tmp_path_factory.mktemp("sentinels")) as group:
        group.keep_primary()
        yield group


@pytest.fixture
def sentinel_url(sentinel_group: SentinelGroup) -> str:
    """The URL of the service, empty."""
    redis = require_module("redis")
    with contextlib.closing(redis.Redis(HERE, sentinel_group.primary.port)) as client:
        client.flushall()
    return sentinel_group.url
