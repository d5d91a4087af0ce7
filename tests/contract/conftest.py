"""Stores of every kind, for the suites of their contract."""

from __future__ import annotations

import contextlib
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.contract.store_kinds import KINDS, Place

from nearcast.stores.base import Store

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


@pytest.fixture(params=KINDS)
def place(request, tmp_path, installed, monkeypatch) -> Place:
    if request.param == "redis":
        url = request.getfixturevalue("redis_url") + "?buckets=64"
        import redis

        def overwrite(generator: str, data: bytes) -> None:
            with contextlib.closing(redis.Redis.from_url(url.partition("?")[0])) as client:
                client.set(f"nearcast:{generator}:current", data)

        return Place(url, installed, overwrite)
    monkeypatch.syspath_prepend(installed)
    root = tmp_path / "store"
    return Place(f"{request.param}:{root}", installed, lambda name, data: (root / name / "current").write_bytes(data))


@pytest.fixture
def store(place) -> Iterator[Store]:
    opened = place.open()
    yield opened
    opened.close()
