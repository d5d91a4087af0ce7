"""A process that is killed between writing and committing an artifact: its storage waits before the commit."""

import sys
import time
from pathlib import Path

from nearcast.storage import artifacts as local
from nearcast.storage.artifacts import LocalArtifacts, open_artifacts
from nearcast.storage.host_cache import HostCache

location, cache, name = sys.argv[1:]
opened = open_artifacts(location, HostCache(Path(cache)))


def write(folder: Path) -> dict[str, object]:
    """Write one file."""
    (folder / "part").mkdir()
    (folder / "part" / "rows.bin").write_bytes(b"rows" * 1000)
    return {}


def wait(*_: object) -> bool:
    """Stand before the commit until this process is killed."""
    print("written", flush=True)
    time.sleep(60)
    raise AssertionError("not killed")


if isinstance(opened, LocalArtifacts):
    local._commit = wait
else:
    opened.storage.create = wait
opened.ensure(name, write)
