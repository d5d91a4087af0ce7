"""The rules that judge a canary, the moves of the pointer that start and end one, and the watcher that decides."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

import pyarrow as pa
import pytest

from nearcast.errors import BusyError, InputError, NotFoundError, SpecError, StoreError
from nearcast.history.event_log import HistoryEvent
from nearcast.history.publish_events import find_live_canary
from nearcast.measure.canary_figures import ArmFigures, CanaryFigures, HitFigures, find_latency_bucket
from nearcast.monitoring.canary_hits import count_hits
from nearcast.monitoring.watch_canary import CanaryWatch, watch
from nearcast.publishing.canary_rules import compare_shares, judge_canary, wilson_interval
from nearcast.publishing.engagement import LogColumns
from nearcast.publishing.move_canary import (
    change_canary_share,
    promote_canary,
    refuse_publish,
    start_canary,
    validate_share,
    withdraw_canary,
)
from nearcast.publishing.retention import choose_kept_versions
from nearcast.publishing.rollback import roll_back
from nearcast.settings.publish_tables import CanarySpec, PublishSpec
from nearcast.stores import open_store
from nearcast.updating.update import refuse_during_canary
from published import load, publish, whole

RULES = CanarySpec()
SHOP = "shop"


def arm(answers=4000, empty=0, errors=0, fill=None, seconds=0.002, slow=0, slow_seconds=1.0):
    latency = list(ArmFigures().latency)
    latency[find_latency_bucket(seconds)] += answers - slow
    latency[find_latency_bucket(slow_seconds)] += slow
    return ArmFigures(answers, empty, errors, float(answers if fill is None else fill), tuple(latency))


def judge(canary, current=None, seconds=1000.0, overlap=0.9, keys=3000, **more):
    figures = CanaryFigures(9000, keys, 4000, 4000 * overlap, current or arm(), canary)
    return judge_canary(CanaryFigures.from_json(figures.as_dict()), RULES, seconds, **more)


def test_a_healthy_canary_is_promoted_when_it_was_watched_long_enough():
    assert judge(arm()).decision == "promote"
    assert judge(arm(), seconds=599).decision == "wait"


@pytest.mark.parametrize(
    ("canary", "more", "rule"),
    [
        (arm(empty=400), {}, "max_empty_increase"),
        (arm(errors=400), {}, "max_empty_increase"),
        (arm(fill=2000.0), {}, "min_fill_ratio"),
        (arm(), {"overlap": 0.2}, "min_overlap"),
        (arm(slow=100), {}, "max_latency_ratio"),
        (arm(), {"hits": HitFigures(5000, 1000, 500)}, "min_hit_ratio"),
    ],
)
def test_each_rule_withdraws_at_once(canary, more, rule):
    verdict = judge(canary, seconds=1.0, **more)
    assert verdict.decision == "withdraw"
    assert rule in verdict.why


def test_nothing_is_decided_below_min_answers():
    few = {"canary": arm(answers=900, empty=900), "overlap": 0.0}
    assert judge(**few).decision == "wait"
    assert judge(**few, seconds=RULES.max_seconds).decision == "undecided"


def test_what_few_keys_cannot_tell_waits_until_the_end():
    assert judge(arm(empty=60), keys=100).decision == "wait"  # 1.5% of the look-ups, but of 100 keys
    assert judge(arm(), keys=100).decision == "wait"
    assert judge(arm(), keys=100, seconds=RULES.max_seconds).decision == "promote"
    assert judge(arm(empty=60), keys=100, seconds=RULES.max_seconds).decision == "withdraw"
    assert judge(arm(), hits=HitFigures(10, 5, 4)).decision == "wait"


def test_short_look_ups_are_never_too_slow():
    assert judge(arm(seconds=1e-5, slow=400, slow_seconds=0.0009), arm(seconds=1e-5)).decision == "promote"


def test_a_service_that_cannot_open_it_prevents_a_promotion():
    assert judge(arm(), faults=("one cannot open it",)).decision == "wait"
    assert judge(arm(), faults=("one cannot open it",), seconds=RULES.max_seconds).decision == "withdraw"


def test_intervals_hold_the_share_and_shrink():
    assert wilson_interval(0.0, 9)[0] == 0.0
    low, high = wilson_interval(0.1, 1000)
    assert 0.07 < low < 0.1 < high < 0.14
    low, high = compare_shares((0.1, 1000), (0.1, 1000))
    assert low < 0 < high
    assert compare_shares((0.0, 1000), (0.1, 1000))[0] > 0.05


def test_figures_of_processes_add_up():
    one = CanaryFigures(5, 3, 2, 1.5, arm(10, 1), arm(10, 2))
    both = one + one
    assert (both.routed, both.canary.empty, both.current.answers) == (10, 4, 20)
    assert both.mean_overlap == 0.75


@pytest.fixture
def store(tmp_path):
    with contextlib.closing(open_store(f"lmdb:{tmp_path / 'store'}")) as opened:
        publish(opened, SHOP, 1, whole(1))
        publish(opened, SHOP, 2, whole(2))
        load(opened, SHOP, 3, whole(3))
        yield opened


def start(store, version=3, mode="canary", share=0.05):
    with store.lock(SHOP) as lock:
        return start_canary(store, SHOP, store.pointer(SHOP), version, (mode, share), lock)


def test_a_canary_starts_grows_and_ends_in_events(store):
    start(store)
    assert start(store).serial == store.pointer(SHOP).serial  # the same again moves nothing
    change_canary_share(store, SHOP, 0.2)
    ended = withdraw_canary(store, SHOP, "too empty")
    assert (ended.version, ended.share) == (3, 0.2)
    pointer = store.pointer(SHOP)
    kinds = [event.kind for event in pointer.events]
    assert kinds == ["published", "published", "canary_started", "canary_share", "canary_withdrawn"]
    assert (pointer.version, pointer.canary, pointer.withdrawn, pointer.moved_serial) == (2, None, (3,), 2)
    for act in (withdraw_canary, lambda *where: change_canary_share(*where, 0.5)):
        with pytest.raises(NotFoundError, match="no canary"):
            act(store, SHOP)


def test_whoever_judged_another_canary_moves_nothing(store, tmp_path):
    old = start(store).canary
    start(store, mode="shadow", share=1.0)
    before = store.pointer(SHOP)
    with pytest.raises(BusyError, match="another canary"):
        withdraw_canary(store, SHOP, expected=old)
    with pytest.raises(BusyError, match="another canary"):
        promote_canary(store, SHOP, PublishSpec(), expected=old)
    assert store.pointer(SHOP) == before


def test_publishes_and_updates_wait_and_a_rollback_ends_it(store):
    pointer = start(store)
    for version, named in ((4, False), (4, True), (3, False)):
        with pytest.raises(BusyError, match="--replace-canary"):
            refuse_publish(SHOP, pointer, version, named=named)
    refuse_publish(SHOP, pointer, 3, named=True)
    with pytest.raises(BusyError, match="updates wait"):
        refuse_during_canary(SHOP, pointer)
    roll_back_unverified(store)
    assert store.pointer(SHOP).canary is None
    assert store.pointer(SHOP).withdrawn == (2, 3)


def roll_back_unverified(store):
    """Roll back to version 1, whose facts have no checksum here: as `roll_back` does at the end."""
    from nearcast.publishing.retention import list_rolled_back
    from nearcast.stores.base import PointerEvent

    with pytest.raises(Exception, match="checksum"):
        roll_back(store, SHOP)
    pointer = store.pointer(SHOP)
    with store.lock(SHOP) as lock:
        event = PointerEvent("rolled_back", 1, "now")
        store.point(SHOP, pointer.move(event, list_rolled_back(pointer, 1)), lock)


def test_the_canary_is_kept_even_if_one_version_may_stay(store):
    assert choose_kept_versions([1, 2, 3, 4], start(store), 1) == {2, 3}
    assert choose_kept_versions([1, 2, 3, 4], start(store), 3) == {1, 2, 3}


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5, float("nan")])
def test_a_share_is_above_0_and_at_most_1(share):
    with pytest.raises(SpecError, match="for 5%"):
        validate_share(share)


def test_the_history_knows_the_live_canary():
    def event(kind, outcome, version=3):
        return HistoryEvent(SHOP, kind, 0.0, version, {"outcome": outcome})

    started = event("canary", "started")
    assert find_live_canary([started, event("canary", "share")]) is started
    for end in (event("canary", "withdrawn"), event("publish", "published"), event("rollback", "rolled_back")):
        assert find_live_canary([started, end]) is None
    assert find_live_canary([started, event("publish", "audit_failed", 4)]) is started


@dataclass
class Figures:
    """Figures of services, the same at every look."""

    canary: ArmFigures
    faults: dict = field(default_factory=dict)
    unreachable: dict = field(default_factory=dict)

    def read(self, _canary):
        return CanaryFigures(9000, 3000, 4000, 3600.0, arm(), self.canary)


def watch_store(store, figures, read_hits=lambda *_: None, max_seconds=1000.0, withdraw=withdraw_canary):
    """Watch the canary of a store; return the outcome and the notes."""
    notes = []
    rules = CanarySpec(decide_after=0, max_seconds=max_seconds)
    watched = CanaryWatch(
        store,
        SHOP,
        rules,
        Figures(figures),
        read_hits,
        lambda canary, report: promote_canary(store, SHOP, PublishSpec(), report.verdict.why, expected=canary),
        lambda canary, report: withdraw(store, SHOP, report.verdict.why, expected=canary),
        notes.append,
    )
    return watch(watched, 0.001, lambda _: None), notes


def fail(times, then):
    """A function that raises StoreError so many times, from its second call on, and then does as another one."""
    calls = []

    def call(*given, **more):
        calls.append(given)
        if 1 < len(calls) <= 1 + times:
            raise StoreError("the store does not answer")
        return then(*given, **more)

    return call


def test_a_watcher_whose_store_comes_back_decides_and_says_once_what_was_wrong(store, monkeypatch):
    start(store)
    monkeypatch.setattr(store, "pointer", fail(3, store.pointer))
    outcome, notes = watch_store(store, arm(empty=400))
    assert (outcome.outcome, notes) == ("withdrawn", ["trying again: the store does not answer"])


def test_a_watcher_whose_store_stays_away_ends_undecided(store, monkeypatch):
    start(store)
    monkeypatch.setattr("nearcast.monitoring.watch_canary.LATE_SECONDS", 0.0)
    with monkeypatch.context() as away:
        away.setattr(store, "pointer", fail(10**9, store.pointer))
        outcome, notes = watch_store(store, arm(), max_seconds=0.02)
    assert (outcome.outcome, outcome.report, len(notes)) == ("undecided", None, 1)
    assert "max_seconds have passed, and the last look failed: the store does not answer" in outcome.why
    assert store.pointer(SHOP).canary is not None


def test_a_store_that_is_empty_all_at_once_has_not_withdrawn_its_canary(store, monkeypatch):
    pointers = [start(store), None, None]
    now = store.pointer
    monkeypatch.setattr(store, "pointer", lambda name: pointers.pop(0) if pointers else now(name))
    outcome, notes = watch_store(store, arm())
    assert (outcome.outcome, len(notes)) == ("withdrawn", 1)  # its facts have no checksum: see below
    assert "shop has no current version in lmdb:" in notes[0]


def test_a_watcher_waits_for_the_lock(store):
    start(store)
    busy = [BusyError("shop is held by process 7")]

    def withdraw(*given, **more):
        if busy:
            raise busy.pop()
        return withdraw_canary(*given, **more)

    outcome, notes = watch_store(store, arm(empty=400), withdraw=withdraw)
    assert (outcome.outcome, notes) == ("withdrawn", ["trying again: shop is held by process 7"])


def test_a_log_that_cannot_be_read_is_an_error_at_the_first_look_and_passed_over_later(store, monkeypatch):
    start(store)
    looks = []

    def read_hits(*_):
        looks.append(len(looks))
        if looks[-1] == first:
            raise InputError("the log is no Parquet")
        return HitFigures(1000, 500, 500 if len(looks) < 4 else 0)

    first = 0
    with pytest.raises(InputError, match="no Parquet"):
        watch_store(store, arm(), read_hits)
    looks.clear()
    first = 1
    monkeypatch.setattr("nearcast.monitoring.watch_canary.HITS_SECONDS", 0.0)
    outcome, notes = watch_store(store, arm(), read_hits)
    assert (outcome.outcome, notes) == ("withdrawn", ["trying again: the log is no Parquet"])
    assert "min_hit_ratio" in outcome.why


def test_a_canary_whose_bytes_are_not_those_that_were_copied_is_withdrawn(store):
    start(store)  # its facts have no checksum
    outcome, _ = watch_store(store, arm())
    assert outcome.outcome == "withdrawn"
    assert "checksum" in outcome.why
    assert store.pointer(SHOP).canary is None


def test_engagements_are_counted_by_keys_and_items_as_numbers_or_text(store):
    pointer = start(store, share=1.0)
    columns = LogColumns("key", "item")
    lists = whole(3)
    for written in (int, str):
        keys = [written(key) for key in (1, 1, 2, 999)]  # nobody has the last one
        items = [written(item) for item in (lists[1][0][0], whole(2)[1][0][0], lists[2][1][0], 5)]
        log = pa.table({"key": keys, "item": pa.array(items).dictionary_encode()})
        assert count_hits(store, SHOP, pointer, pointer.canary, log, columns) == HitFigures(4, 1, 2)
    none = pa.table({"key": pa.array([], pa.int64()), "item": pa.array([], pa.string())})
    assert count_hits(store, SHOP, pointer, pointer.canary, none, columns) == HitFigures(0, 0, 0)
    for name in columns.names:
        floats = pa.table({"key": [1], "item": [2]}).set_column(columns.names.index(name), name, [[1.0]])
        with pytest.raises(InputError, match=f"the column {name} is of type double: ids are text or whole numbers"):
            count_hits(store, SHOP, pointer, pointer.canary, floats, columns)
