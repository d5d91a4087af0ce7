"""nearcast: offline ANN. The nearest items for every query, found ahead of time, checked, and looked up.

`knn_join` joins arrays; `run` makes a snapshot of a generator; `snapshots` and `lookup` read it back; `publish` and
`roll_back` decide what is served, `open` answers from what is published, `overlay` takes items out of it, and
`monitor` says what is wrong. Nothing heavy is imported before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nearcast.version import __version__

if TYPE_CHECKING:
    from nearcast.api import (
        advise,
        check,
        diff,
        expand,
        explain,
        head,
        load_spec,
        lookup,
        monitor,
        publish,
        publish_table,
        published,
        refresh,
        replay,
        roll_back,
        run,
        snapshots,
        tune,
    )
    from nearcast.join.arrays import JoinReport, JoinResult, knn_join
    from nearcast.serve.expansion import open_expansion
    from nearcast.serve.lookup import open_lookup as open
    from nearcast.serve.overlay import open_overlay as overlay
    from nearcast.spec import GeneratorSpec

__all__ = [
    "GeneratorSpec",
    "JoinReport",
    "JoinResult",
    "__version__",
    "advise",
    "check",
    "diff",
    "expand",
    "explain",
    "head",
    "knn_join",
    "load_spec",
    "lookup",
    "monitor",
    "open",
    "open_expansion",
    "overlay",
    "publish",
    "publish_table",
    "published",
    "refresh",
    "replay",
    "roll_back",
    "run",
    "snapshots",
    "tune",
]

# where each name is: a module, or module:name where it is called otherwise there
_HOMES = {
    "GeneratorSpec": "nearcast.spec",
    "JoinReport": "nearcast.join.arrays",
    "JoinResult": "nearcast.join.arrays",
    "advise": "nearcast.api",
    "check": "nearcast.api",
    "diff": "nearcast.api",
    "explain": "nearcast.api",
    "head": "nearcast.api",
    "expand": "nearcast.api",
    "knn_join": "nearcast.join.arrays",
    "load_spec": "nearcast.api",
    "lookup": "nearcast.api",
    "monitor": "nearcast.api",
    "open": "nearcast.serve.lookup:open_lookup",
    "open_expansion": "nearcast.serve.expansion",
    "overlay": "nearcast.serve.overlay:open_overlay",
    "publish": "nearcast.api",
    "publish_table": "nearcast.api",
    "published": "nearcast.api",
    "refresh": "nearcast.api",
    "replay": "nearcast.api",
    "roll_back": "nearcast.api",
    "run": "nearcast.api",
    "snapshots": "nearcast.api",
    "tune": "nearcast.api",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        module, _, other = _HOMES[name].partition(":")
        return getattr(import_module(module), other or name)
    raise AttributeError(f"module 'nearcast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
