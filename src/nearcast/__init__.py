"""nearcast: offline approximate nearest neighbors, from vectors to published candidate lists.

`knn_join` joins arrays. `run` makes a snapshot of a generator; `snapshots` and `lookup` read it. `publish` and
`roll_back` choose the current version; `open` looks it up, `overlay` removes items from it. `monitor` checks runs and
the current version. Heavy libraries are imported when they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nearcast.renamed_modules import install as _redirect_renamed_modules
from nearcast.version import __version__

if TYPE_CHECKING:
    from nearcast.ads.expansion_table import open_expansion
    from nearcast.api.advice import advise, head, replay
    from nearcast.api.alerting import acknowledge_alert, list_alerts, snooze_alert, unsnooze_alert
    from nearcast.api.arguments import load_spec
    from nearcast.api.canaries import (
        CanarySource,
        promote_canary,
        read_canary,
        set_canary_share,
        watch_canary,
        withdraw_canary,
    )
    from nearcast.api.comparing import diff, explain
    from nearcast.api.drafts import draft_spec
    from nearcast.api.evaluations import evaluate
    from nearcast.api.publications import expand, publish, publish_table, published, roll_back
    from nearcast.api.refreshing import monitor, refresh
    from nearcast.api.runs import check, run
    from nearcast.api.snapshots import export, lookup, snapshots
    from nearcast.api.tuning import tune
    from nearcast.api.updates import update
    from nearcast.errors import (
        AccessError,
        AlertError,
        AuditError,
        BudgetError,
        BusyError,
        DamagedError,
        GoneError,
        InputError,
        MissingExtraError,
        NearcastError,
        NotFoundError,
        SpecError,
        StorageError,
        StoreError,
        TargetError,
        UndecidedError,
        WithdrawnError,
        WorkerError,
    )
    from nearcast.join.knn_join import JoinReport, JoinResult, knn_join
    from nearcast.serve.lookup import open_lookup as open
    from nearcast.serve.overlay import open_overlay as overlay
    from nearcast.spec import GeneratorSpec

__all__ = [
    "AccessError",
    "AlertError",
    "AuditError",
    "BudgetError",
    "BusyError",
    "CanarySource",
    "DamagedError",
    "GeneratorSpec",
    "GoneError",
    "InputError",
    "JoinReport",
    "JoinResult",
    "MissingExtraError",
    "NearcastError",
    "NotFoundError",
    "SpecError",
    "StorageError",
    "StoreError",
    "TargetError",
    "UndecidedError",
    "WithdrawnError",
    "WorkerError",
    "__version__",
    "acknowledge_alert",
    "advise",
    "check",
    "diff",
    "draft_spec",
    "evaluate",
    "expand",
    "explain",
    "export",
    "head",
    "knn_join",
    "list_alerts",
    "load_spec",
    "lookup",
    "monitor",
    "open",
    "open_expansion",
    "overlay",
    "promote_canary",
    "publish",
    "publish_table",
    "published",
    "read_canary",
    "refresh",
    "replay",
    "roll_back",
    "run",
    "set_canary_share",
    "snapshots",
    "snooze_alert",
    "tune",
    "unsnooze_alert",
    "update",
    "watch_canary",
    "withdraw_canary",
]

# name: its module, or module:name if it has another name there
_HOMES = {
    "AccessError": "nearcast.errors",
    "AlertError": "nearcast.errors",
    "AuditError": "nearcast.errors",
    "BudgetError": "nearcast.errors",
    "BusyError": "nearcast.errors",
    "DamagedError": "nearcast.errors",
    "GoneError": "nearcast.errors",
    "InputError": "nearcast.errors",
    "MissingExtraError": "nearcast.errors",
    "NearcastError": "nearcast.errors",
    "NotFoundError": "nearcast.errors",
    "SpecError": "nearcast.errors",
    "StorageError": "nearcast.errors",
    "StoreError": "nearcast.errors",
    "TargetError": "nearcast.errors",
    "WorkerError": "nearcast.errors",
    "GeneratorSpec": "nearcast.spec",
    "JoinReport": "nearcast.join.knn_join",
    "JoinResult": "nearcast.join.knn_join",
    "acknowledge_alert": "nearcast.api.alerting",
    "advise": "nearcast.api.advice",
    "check": "nearcast.api.runs",
    "diff": "nearcast.api.comparing",
    "explain": "nearcast.api.comparing",
    "export": "nearcast.api.snapshots",
    "draft_spec": "nearcast.api.drafts",
    "evaluate": "nearcast.api.evaluations",
    "head": "nearcast.api.advice",
    "expand": "nearcast.api.publications",
    "knn_join": "nearcast.join.knn_join",
    "list_alerts": "nearcast.api.alerting",
    "load_spec": "nearcast.api.arguments",
    "lookup": "nearcast.api.snapshots",
    "monitor": "nearcast.api.refreshing",
    "open": "nearcast.serve.lookup:open_lookup",
    "open_expansion": "nearcast.ads.expansion_table",
    "overlay": "nearcast.serve.overlay:open_overlay",
    "publish": "nearcast.api.publications",
    "publish_table": "nearcast.api.publications",
    "published": "nearcast.api.publications",
    "refresh": "nearcast.api.refreshing",
    "replay": "nearcast.api.advice",
    "roll_back": "nearcast.api.publications",
    "run": "nearcast.api.runs",
    "snapshots": "nearcast.api.snapshots",
    "snooze_alert": "nearcast.api.alerting",
    "tune": "nearcast.api.tuning",
    "unsnooze_alert": "nearcast.api.alerting",
    "update": "nearcast.api.updates",
    "CanarySource": "nearcast.api.canaries",
    "promote_canary": "nearcast.api.canaries",
    "read_canary": "nearcast.api.canaries",
    "set_canary_share": "nearcast.api.canaries",
    "watch_canary": "nearcast.api.canaries",
    "withdraw_canary": "nearcast.api.canaries",
    "UndecidedError": "nearcast.errors",
    "WithdrawnError": "nearcast.errors",
}

_RENAMED_ERRORS = ("PromiseError",)

_redirect_renamed_modules()


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        module, _, other = _HOMES[name].partition(":")
        return getattr(import_module(module), other or name)
    if name in _RENAMED_ERRORS:
        from nearcast import errors

        return getattr(errors, name)  # warns
    raise AttributeError(f"module 'nearcast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
