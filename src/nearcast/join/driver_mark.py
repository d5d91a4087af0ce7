"""The mark of a driver in the local folders of a run: a worker that does not see it is on a host without those folders.

Without the check, such a worker would write its results where nobody reads them, and a later task would miss them.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import replace

from nearcast.errors import NearcastError, WorkerError
from nearcast.runners.base import WorkArea
from nearcast.storage.open_storage import is_url, open_storage

__all__ = ["mark_area", "require_mark"]

MARK = "driver.mark"  # an object beside the artifacts; it stays there for later runs
KEY = "mark"  # of the plan


def mark_area(area: WorkArea) -> WorkArea:
    """Write the mark unless it is there, and return the area with a plan that names it. A bucket needs none."""
    if is_url(area.artifacts):
        return area
    folder = open_storage(area.artifacts)
    folder.create(MARK, secrets.token_hex(8).encode())
    return replace(area, plan={**area.plan, KEY: folder.read(MARK).decode()})


def require_mark(area: WorkArea) -> None:
    """Raise WorkerError if this host does not see the mark that the plan names. Writes nothing."""
    if KEY not in area.plan:
        return
    try:
        seen = open_storage(area.artifacts).read(MARK).decode()
    except (NearcastError, ValueError):
        seen = ""
    if seen != area.plan[KEY]:
        host = os.uname().nodename
        raise WorkerError(
            f"worker {host} process {os.getpid()} does not see {area.artifacts}, a folder of the driver: "
            "set `out` to a bucket, or to a folder of a file system that every host mounts under the same path"
        )
