"""The rules that judge a canary, and the moves of the pointer that start and end one."""

from __future__ import annotations

import contextlib

import pytest

from nearcast.errors import BusyError, NotFoundError, SpecError
from nearcast.history.event_log import HistoryEvent
from nearcast.history.publish_events import find_live_canary
from nearcast.measure.canary_figures import ArmFigures, CanaryFigures, HitFigures, find_latency_bucket
from nearcast.publishing.canary_rules import compare_shares, judge_canary, wilson_interval
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
