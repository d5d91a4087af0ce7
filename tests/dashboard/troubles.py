"""Histories with one planted trouble each, from real runs, publishes and passes: what the page is to show at a glance.

Every history has three generators: `shop`, whose last night went wrong, and two that are healthy. The nights are moved
a day apart afterwards, since they were made within a second.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tests.monitoring.nights import DIM, Nights

import nearcast
from nearcast.errors import TargetError
from nearcast.history.event_log import FILE

HEALTHY = 12  # nights before the trouble
DAY = 86_400.0
LAST_NIGHT = 1_773_369_000.0  # 13 March 2026, 02:30 UTC
OTHERS = ("home-feed", "related-articles")
OLD_DAYS = 21


def half_missing(shop: Nights) -> None:
    shop.write(items=shop.items[:1_000], item_ids=shop.item_ids[:1_000])


def other_model(shop: Nights) -> None:
    turn, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(DIM, DIM)))
    shop.write(queries=shop.queries @ turn)


def not_normalized(shop: Nights) -> None:
    shop.write(items=shop.items * np.random.default_rng(4).uniform(0.9, 1.05, size=(2_000, 1)))


def stale_shard(shop: Nights) -> None:
    stale = (shop.folder / "items" / "part-2.parquet").read_bytes()
    shop.run()
    shop.pass_a_day()
    shop.write()
    (shop.folder / "items" / "part-2.parquet").write_bytes(stale)


def zeroed_slice(shop: Nights) -> None:
    zeroed = shop.queries.copy()
    zeroed[shop.segment("toys")] = 0
    shop.write(queries=zeroed)


def shifted_ids(shop: Nights) -> None:
    shop.write(items=np.roll(shop.items, 1, axis=0))


def copies(shop: Nights) -> None:
    copied = shop.items.copy()
    copied[50:450] = copied[50]
    shop.write(items=copied)


def cut_effort(shop: Nights) -> None:
    shop.spec = shop.spec | {"engine_settings": {"nlist": 60, "nprobe": 2}}


def other_metric(shop: Nights) -> None:
    """The index in `artifacts` is swapped for one that was built for l2 over the same items."""
    other = Nights.__new__(Nights)
    folder = shop.folder.parent / f"{shop.folder.name}-l2"
    other.__dict__ |= shop.__dict__ | {"folder": folder, "spec": shop.spec | {"metric": "l2"}}
    shutil.copytree(shop.folder / "items", folder / "items")
    shutil.copy(shop.folder / "queries.parquet", folder / "queries.parquet")
    other.run()
    shop.run()
    home, alien = (place / "nearcast" / "shop" / "artifacts" for place in (shop.folder, folder))
    (ours,), (theirs,) = home.glob("index-*"), alien.glob("index-*")
    shutil.rmtree(ours)
    shutil.copytree(theirs, ours)
    newest = sorted((shop.folder / "nearcast" / "shop" / "snapshots").iterdir())[-1]
    shutil.rmtree(newest)
    with contextlib.suppress(TargetError):
        nearcast.run(shop.spec, base=shop.folder, again=True)


def grown_old(shop: Nights) -> None:
    """Nothing has run for three weeks, over a catalogue that turns over 5% a day."""
    shop.run()
    newest = sorted((shop.folder / "nearcast" / "shop" / "snapshots").iterdir())[-1] / "manifest.json"
    written = newest.read_text()
    facts = json.loads(written)
    made = time.time() - OLD_DAYS * DAY
    facts["run"]["created"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(made))
    newest.write_text(json.dumps(facts))
    shop.publish()
    newest.write_text(written)  # the run is in the history already, and is not another one
    shop.spec = shop.spec | {"audit": {"max_age_hours": 48.0}}
    for _ in range(OLD_DAYS):
        shop.pass_a_day(churn=0.05)
    shop.write()


IVF: dict[str, Any] = {"recall": 0.8, "engine": "faiss-ivf"}
# name: (what is done to the last night, settings of the shop, the trouble that the page is to name)
TROUBLES: Mapping[str, tuple[Callable[[Nights], None], dict[str, Any], str]] = {
    "half-of-the-items-missing": (half_missing, {}, "items_count"),
    "queries-of-another-model": (other_model, {}, "queries_model"),
    "vectors-not-normalized": (not_normalized, {}, "items_norms"),
    "a-stale-file": (stale_shard, {}, "items_stale"),
    "a-slice-of-zeros": (zeroed_slice, {"metric": "inner_product"}, "queries_zeros"),
    "shifted-ids": (shifted_ids, {}, "items_ids"),
    "copies-fill-the-lists": (copies, {}, "copies"),
    "effort-cut": (cut_effort, {**IVF, "engine_settings": {"nlist": 60, "nprobe": 20}}, "effort"),
    "index-of-another-metric": (
        other_metric,
        {**IVF, "metric": "inner_product", "lengths": (0.2, 3), "engine_settings": {"nlist": 20, "nprobe": 2}},
        "metric",
    ),
    "an-old-table": (grown_old, {"audit": {"max_age_hours": 10_000.0}}, "served_recall"),
}


def history_with(name: str, folder: Path, *, healthy: int = HEALTHY, others: Sequence[str] = OTHERS) -> Path:
    """A folder of snapshots with this trouble in it. Returns the folder that the page is made of."""
    spoil, settings, _ = TROUBLES[name]
    shop = Nights(folder / "shop", **settings)
    _nights(shop, healthy)
    shop.pass_a_day()
    shop.write()
    spoil(shop)
    old = spoil is grown_old
    if not old and spoil is not other_metric:
        shop.run()
        shop.publish()
    out = folder / "shop" / "nearcast"
    if old:
        _set_apart(out, OLD_DAYS)
    shop.look()
    if old:
        _move_last_pass(out)
    else:
        _set_apart(out, 0.0)
    for seed, other in enumerate(others, 5):
        _add_healthy(folder / other, out, other, seed)
    return out


def _nights(shop: Nights, count: int) -> None:
    shop.run()
    shop.publish()
    shop.look()
    for _ in range(count - 1):
        shop.night()


def _set_apart(out: Path, days_ago: float) -> None:
    """Move the events a night apart, the last night so many days before the last of all."""
    with contextlib.closing(sqlite3.connect(out / FILE)) as database, database:
        rows = database.execute("select number, kind from events order by number").fetchall()
        last = sum(kind == "run" for _, kind in rows)
        night = 0
        for number, kind in rows:
            night += kind == "run"
            when = LAST_NIGHT - DAY * (last - night + days_ago) + (60.0 if kind == "publish" else 0.0)
            when += 120.0 if kind == "monitor" else 0.0
            database.execute("update events set seconds = ? where number = ?", (when, number))


def _move_last_pass(out: Path) -> None:
    """The pass that has found the old table is one of the last day."""
    with contextlib.closing(sqlite3.connect(out / FILE)) as database, database:
        last = database.execute("select max(number) from events where kind = 'monitor'").fetchone()[0]
        database.execute("update events set seconds = ? where number = ?", (LAST_NIGHT, last))


def _add_healthy(folder: Path, out: Path, name: str, seed: int) -> None:
    other = Nights(folder, seed=seed, recall=0.95)
    _nights(other, 4)
    _set_apart(folder / "nearcast", 0.0)
    shutil.copytree(folder / "nearcast" / "shop" / "snapshots", out / name / "snapshots")
    for manifest in (out / name / "snapshots").glob("*/manifest.json"):
        manifest.write_text(manifest.read_text().replace('"shop"', json.dumps(name)))
    with contextlib.closing(sqlite3.connect(folder / "nearcast" / FILE)) as database:
        rows = database.execute("select kind, seconds, version, identity, facts from events order by number").fetchall()
    with contextlib.closing(sqlite3.connect(out / FILE)) as database, database:
        columns = "generator, kind, seconds, version, identity, facts"
        database.executemany(
            f"insert into events ({columns}) values (?, ?, ?, ?, ?, ?)",
            [
                (name, k, s, v, i and i.replace("run shop", f"run {name}"), f.replace('"shop"', json.dumps(name)))
                for k, s, v, i, f in rows
            ],
        )
