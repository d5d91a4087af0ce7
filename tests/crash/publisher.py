"""A publisher to be killed, and readers that check every answer meanwhile."""

from __future__ import annotations

import json
import time
import traceback
from pathlib import Path

import nearcast
import nearcast.api.publications  # (imported once, by the server that the processes are forked from)
import nearcast.serve.lookup
import nearcast.stores.lmdb
import nearcast.stores.redis

PAUSE_SECONDS = 0.02  # between looks: four readers leave the machine to the publisher


def publish(spec: Path, version: int, store: str) -> None:
    """Publish a version of the spec's generator."""
    nearcast.publish(spec, version, store=store)


def read(store: str, keys: list[str], stop: Path, report: Path) -> None:
    """Look keys up until `stop` is there; then say in `report` what was seen, or what was wrong.

    The items of version n are called n-...: an answer belongs to one snapshot if all its items are of the one it names.
    """
    seen: dict[int, int] = {}
    changes = 0
    try:
        with nearcast.open(store, "shop", refresh_seconds=0.02) as lookup:
            last = 0
            while not stop.exists():
                answers = lookup.get_many(keys)
                version = int(answers.snapshot)
                versions = {item.partition("-")[0] for item in answers.ids.to_pylist()}
                assert versions == {str(version)}, (version, versions)
                assert answers.found.all()
                one = lookup.get(keys[0])
                assert {int(item.partition("-")[0]) for item in one.ids} == {int(one.snapshot)}
                seen[version] = seen.get(version, 0) + len(answers) + 1
                changes += version != last
                last = version
                time.sleep(PAUSE_SECONDS)
    except BaseException:
        report.write_text(json.dumps({"error": traceback.format_exc()}))
        raise
    report.write_text(json.dumps({"error": None, "seen": seen, "changes": changes}))
