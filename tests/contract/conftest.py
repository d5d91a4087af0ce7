"""Stores of every kind, for the suites of their contract."""

from __future__ import annotations

import contextlib
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.contract.store_kinds import KINDS, REDIS_KINDS, SLOW_KINDS, Place

from dynamodb_server import TABLE
from nearcast.stores.base import Store
from redis_groups import PRIMARIES
from servers import HERE

OWN_STORE = Path(__file__).resolve().parents[2] / "examples" / "own_store"


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages in which the example's store is, as pip would install it."""
    folder = tmp_path_factory.mktemp("packages")
    project = tomllib.loads((OWN_STORE / "pyproject.toml").read_text())["project"]
    (folder / "sqlite_store.py").write_text((OWN_STORE / "sqlite_store.py").read_text())
    facts = folder / f"nearcast_sqlite_store-{project['version']}.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    (group,) = project["entry-points"]
    rows = [f"{name} = {where}\n" for name, where in project["entry-points"][group].items()]
    (facts / "entry_points.txt").write_text(f"[{group}]\n{''.join(rows)}")
    return folder


@pytest.fixture(params=[pytest.param(kind, marks=pytest.mark.slow if kind in SLOW_KINDS else ()) for kind in KINDS])
def place(request, tmp_path, installed, monkeypatch) -> Place:
    if request.param in REDIS_KINDS:
        return _redis_place(request, installed)
    if request.param == "dynamodb":
        url, server = request.getfixturevalue("dynamodb_url"), request.getfixturevalue("dynamodb_server")

        def replace(generator: str, data: bytes) -> None:
            item = {"p": {"B": generator.encode()}, "s": {"B": b"current"}, "v": {"B": data}}
            server.client().put_item(TableName=TABLE, Item=item)

        return Place(f"{url}&buckets=16&timeout=60", installed, replace)  # a busy machine
    monkeypatch.syspath_prepend(installed)
    root = tmp_path / "store"
    return Place(f"{request.param}:{root}", installed, lambda name, data: (root / name / "current").write_bytes(data))


def _redis_place(request, installed: Path) -> Place:
    fixture, server = {
        "redis": ("redis_url", "redis_server"),
        "redis+cluster": ("cluster_url", "redis_cluster"),
        "redis+sentinel": ("sentinel_url", "sentinel_group"),
    }[request.param]
    url, group = request.getfixturevalue(fixture) + "?buckets=64", request.getfixturevalue(server)
    import redis

    if request.param == "redis+cluster":
        ports, connect = tuple(node.port for node in group.nodes[:PRIMARIES]), group.whole
    else:
        port = group.port if request.param == "redis" else group.primary.port
        ports, connect = (port,), lambda: contextlib.closing(redis.Redis(HERE, port))

    def overwrite(generator: str, data: bytes) -> None:
        with connect() as client:
            tagged = f"{{{generator}}}" if "+cluster" in url else generator
            client.set(f"nearcast:{tagged}:current", data)

    return Place(url, installed, overwrite, connect, ports)


@pytest.fixture
def store(place) -> Iterator[Store]:
    opened = place.open()
    yield opened
    opened.close()
