"""Workers that share a socket have about as many connections each, and one that accepts nothing costs nobody."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

from nearcast.service.shared_accept import SLACK, ConnectionCounts, SharedAcceptor


class Held(asyncio.Protocol):
    """A connection that one worker holds."""

    def __init__(self, connections):
        self.connections = connections

    def connection_made(self, transport):
        self.connections.add(transport)


@contextlib.contextmanager
def listening():
    with socket.create_server(("127.0.0.1", 0)) as server, contextlib.ExitStack() as stack:

        def connect(n):
            return [stack.enter_context(socket.create_connection(server.getsockname())) for _ in range(n)]

        yield server, connect


async def until(holds):
    for _ in range(500):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it has not come about")


@pytest.mark.parametrize("n", [2, 40])
def test_connections_are_shared_evenly_by_workers_of_one_loop_and_those_of_a_closed_one_by_the_rest(tmp_path, n):
    async def share():
        counts = ConnectionCounts(tmp_path / "connections", 2)
        with listening() as (server, connect):
            held = [set(), set()]
            workers = [
                SharedAcceptor(server.dup(), lambda mine=mine: Held(mine), mine, counts, number)
                for number, mine in enumerate(held, 1)
            ]
            connect(n)
            await until(lambda: sum(map(len, held)) == n)
            assert abs(len(held[0]) - len(held[1])) <= SLACK + 1
            workers[0].close()
            had = len(held[0])
            connect(n)
            await until(lambda: sum(map(len, held)) == 2 * n)
            assert len(held[0]) == had
            for worker in workers:
                worker.close()
                worker._listening.close()
            for transport in (*held[0], *held[1]):
                transport.abort()

    asyncio.run(share())


def test_a_worker_accepts_all_itself_if_the_other_one_hangs(tmp_path):
    async def share():
        counts = ConnectionCounts(tmp_path / "connections", 2)
        counts.set(2, 0)  # a worker that has no connection, and takes none
        with listening() as (server, connect):
            held = set()
            worker = SharedAcceptor(server, lambda: Held(held), held, counts, 1)
            connect(40)
            await until(lambda: len(held) == 40)
            worker.close()
            for transport in held:
                transport.abort()

    asyncio.run(share())
