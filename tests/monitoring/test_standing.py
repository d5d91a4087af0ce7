"""What the history says of a generator: each state by its true headline, and none that is false of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from nearcast.dashboard.document import build_headline
from nearcast.history.event_log import HistoryEvent
from nearcast.history.publish_events import find_live_version, find_rejected_versions
from nearcast.join.measure_snapshot import Baseline
from nearcast.monitoring.alert import ALERT_TEXTS, CHECKS, Alert, format_count_title
from nearcast.monitoring.checks import check_runs
from nearcast.monitoring.newest_run import check_newest_run
from nearcast.monitoring.root_causes import fold_consequences
from nearcast.monitoring.serving_summary import explain_age
from nearcast.monitoring.status import GeneratorStatus, derive_status

DAY = 86_400.0
SETTINGS = {"k": 10, "metric": "cosine", "settings": "a"}


def facts(*, items: int = 2_000, recall: float = 0.97, low: float | None = None, **changes: Any) -> dict[str, Any]:
    """The facts of a run, healthy but for what is given: measures by name, all else by its key."""
    low = recall - 0.005 if low is None else low
    measures = {"recall": recall, "recall_low": low, "recall_high": recall + 0.005, "overlap": 0.93, "fill_rate": 1.0}
    measures |= {"query_coverage": 1.0, "item_coverage": 0.9, "score_p50": 0.5, "best_score_p50": 0.7, "repeats": 0.0}
    measures |= {"items_drift": 0.001, "items_moved": 0.0, "items_shift": 0.01}
    measures |= {"queries_drift": 0.001, "queries_moved": 0.0, "queries_shift": 0.01}
    side = {"problems": {}, "norms": {"p50": 1.0, "unit_share": 1.0}, "files": {}}
    run: dict[str, Any] = {
        "measures": measures | {name: value for name, value in changes.items() if name in measures},
        "promise": {"recall": 0.95, "kept": low >= 0.95, "reason": None if low >= 0.95 else "recall is low"},
        "sides": {
            "items": {"rows": items, "vectors": items, **copy.deepcopy(side)},
            "queries": {"rows": 600, "vectors": 600, **copy.deepcopy(side)},
        },
        "engine": {"name": "exact", "settings": {}, "effort": {}},
        "slices": [],
        "likely_metric": None,
        "seconds": {},
        "seconds_total": 10.0,
        "peak_memory_bytes": 1e8,
        "compared_with": None,
    }
    return run | SETTINGS | {name: value for name, value in changes.items() if name not in measures}


def run(version: int, day: float, **changes: Any) -> HistoryEvent:
    return HistoryEvent("a", "run", day * DAY, version, facts(**changes) | {"version": version})


def publish(
    version: int, day: float, before: int | None = None, *, failed: Sequence[Mapping[str, Any]] = ()
) -> HistoryEvent:
    told = {"outcome": "audit_failed", "findings": list(failed)} if failed else {"outcome": "published"}
    return HistoryEvent("a", "publish", day * DAY, version, told | {"before": before})


def roll_back(version: int, day: float, before: int) -> HistoryEvent:
    return HistoryEvent("a", "rollback", day * DAY, version, {"outcome": "rolled_back", "before": before})


def look(version: int, day: float, *alerts: Alert, served: int | None = None) -> HistoryEvent:
    held = None if served is None else {"version": served, "dead": 0.5}
    told = {"version": version, "served": held, "alerts": [alert.as_dict() for alert in alerts]}
    return HistoryEvent("a", "monitor", day * DAY, version, told)


def refusal(rule: str, text: str = "it is too low", found: float = 0.1) -> dict[str, Any]:
    return {"rule": rule, "measure": rule, "found": found, "bound": 1.0, "passed": False, "text": text}


def alert(check: str) -> Alert:
    return Alert(check, f"{check}!", 1.0, 1.0, None)


def nights(count: int, **changes: Any) -> list[HistoryEvent]:
    """Healthy nights, each run, published and looked at."""
    events: list[HistoryEvent] = []
    for n in range(1, count + 1):
        events += [run(n, n, **changes), publish(n, n + 0.1, n - 1 or None), look(n, n + 0.2, served=n)]
    return events


def said(state: GeneratorStatus) -> dict[str, str]:
    return {problem.check: problem.title for problem in state.problems}


HALF_LOST = refusal("items", "it has 1,000 items where 000004 has 2,000: 50.00% are lost", 1_000)
HALF = "Half of the items are missing: 1,000 of 2,000 that are served"


def test_every_check_has_a_title_an_effect_and_a_level() -> None:
    for check in CHECKS:
        assert ALERT_TEXTS[check].title
        assert alert(check).as_dict()["title"] == ALERT_TEXTS[check].title
        assert alert(check).as_dict()["effect"] == ALERT_TEXTS[check].effect


# name: (events, level, titles by check, what the sentences say, what they do not say)
STATES: Mapping[str, tuple[list[HistoryEvent], str, dict[str, str], tuple[str, ...], tuple[str, ...]]] = {
    "nothing at all": ([], "idle", {}, ("Nothing has run yet.",), ("No monitor",)),
    "healthy": (nights(5), "ok", {}, ("Users get the newest lists, snapshot 000005",), ("not published",)),
    "never looked at": (
        [run(1, 1), publish(1, 1.1)],
        "unknown",
        {},
        ("The monitor has not run yet.", "000001 has been served since 2 January 1970"),
        (),
    ),
    "published elsewhere, nothing else known": ([publish(3, 1)], "unknown", {}, ("Users get snapshot 000003",), ()),
    "a run after the last pass": (
        [*nights(4), run(5, 5)],
        "unknown",
        {},
        ("The monitor has not seen the newest run, 000005", "000005, the newest, is not published yet"),
        (),
    ),
    "half missing, refused, nobody looked": (
        [*nights(4), run(5, 5, items=1_000), publish(5, 5.1, 4, failed=[refusal("overlap"), HALF_LOST])],
        "bad",
        {"items_count": HALF, "audit": f"The audit refused 000005: h{HALF[1:]}"},
        ("Users get snapshot 000004", "The audit refused 000005: items, overlap."),
        ("newest lists",),
    ),
    "half missing, mended, nobody looked": (
        [
            *nights(4),
            run(5, 5, items=1_000),
            publish(5, 5.1, 4, failed=[HALF_LOST]),
            look(5, 5.2, Alert("items_count", "items is 1,000", 1_000, 1_600, 2_000)),
            run(6, 5.5),
            publish(6, 5.6, 4),
        ],
        "unknown",
        {},
        ("Users get the newest lists, snapshot 000006",),
        ("refused",),
    ),
    "refused for the sake of a column": (
        [
            *nights(4),
            run(5, 5),
            publish(
                5,
                5.1,
                4,
                failed=[
                    refusal(
                        "empty_values",
                        "price of the items: null or "
                        "empty in 0.00% -> 100.00% of the rows, and at most 5.00% more may be; look at the export",
                    )
                ],
            ),
        ],
        "bad",
        {"audit": "The audit refused 000005: price of the items: null or empty in 0.00% -> 100.00% of the rows"},
        ("The audit refused 000005: empty_values.",),
        (),
    ),
    "refused, then accepted": (
        [*nights(4), run(5, 5), publish(5, 5.1, 4, failed=[refusal("overlap")]), publish(5, 5.2, 4), look(5, 5.3)],
        "ok",
        {},
        ("Users get the newest lists, snapshot 000005",),
        ("refused",),
    ),
    "refused before anything was published": (
        [run(1, 1), publish(1, 1.1, failed=[refusal("recall")])],
        "bad",
        {"audit": "The audit refused 000001: recall"},
        ("Nothing is published.",),
        ("Users keep",),
    ),
    "rolled back": (
        [*nights(4), roll_back(3, 4.5, 4), look(4, 4.6, served=3)],
        "warn",
        {"rollback": "Rolled back"},
        ("Users get snapshot 000003", "000004 was rolled back from."),
        ("waits", "refused"),
    ),
    "rolled back, and forth again": (
        [*nights(4), roll_back(3, 4.5, 4), roll_back(4, 4.6, 3), look(4, 4.7, served=4)],
        "ok",
        {},
        ("Users get the newest lists, snapshot 000004",),
        ("rolled back",),
    ),
    "an older version was published by its number": (
        [*nights(4), publish(2, 4.5, 4), look(4, 4.6, served=2)],
        "ok",
        {},
        ("Users get snapshot 000002", "000004 was rolled back from."),
        ("newest lists", "waits"),
    ),
    "served lists were bad, and new ones were published since": (
        [*nights(3), look(3, 3.5, alert("served_recall"), alert("dead"), served=3), run(4, 4), publish(4, 4.1, 3)],
        "unknown",
        {},
        ("The monitor has not seen the newest run",),
        (),
    ),
    "a clock that went back": (
        [*nights(4), run(5, 3.1), publish(5, 3.2, 4), look(5, 3.3, served=5)],
        "ok",
        {},
        ("Users get the newest lists, snapshot 000005",),
        ("has not seen",),
    ),
    "a pass over the run alone": (
        [*nights(4), look(4, 4.5)],
        "ok",
        {},
        ("over the run alone, not over the served version",),
        (),
    ),
    "a pass before the publish": (
        [*nights(4), run(5, 5), look(5, 5.1, served=4), publish(5, 5.2, 4)],
        "ok",
        {},
        ("before the served version was published",),
        (),
    ),
    "two nights, half missing": (
        [run(1, 1), publish(1, 1.1), run(2, 2, items=1_000), look(2, 2.1)],
        "ok",  # as the pass has said; judged again below
        {},
        ("usual values need at least 3 earlier runs",),
        (),
    ),
    "the folder of the newest snapshot was deleted, and its number used again": (
        [*nights(4), run(5, 5, items=1_000), run(5, 5.5)],
        "unknown",
        {},
        ("a newer one is not published",),
        ("2 newer",),
    ),
    "the version that is served is newer than all runs here": (
        [run(1, 1), publish(7, 2), look(1, 2.1)],
        "ok",
        {},
        ("Users get snapshot 000007.",),
        ("newest lists", "newer"),
    ),
}


@pytest.mark.parametrize("name", STATES)
def test_a_planted_state_has_its_headline_and_no_false_one(name: str) -> None:
    events, level, headlines, sayings, not_said = STATES[name]
    state = derive_status(events)
    assert (state.level, said(state)) == (level, headlines)
    text = " ".join([state.users_get, state.newer_runs, state.monitored, *(t.effect for t in state.problems)])
    for words in sayings:
        assert words in text
    for words in not_said:
        assert words not in text


def found(runs: Sequence[dict[str, Any]], **more: Any) -> dict[str, Alert]:
    return {one.check: one for one in check_runs(runs, **more)}


HEALTHY = [facts() for _ in range(5)]


@pytest.mark.parametrize(
    ("now", "check", "title", "text"),
    [
        (facts(items=1_000), "items_count", "Half of the items are missing: 1,000 of 2,000 as usual", "usual is 2,000"),
        (facts(items=2_600), "items_count", "There are 30% more items: 2,600 instead of 2,000 as usual", "is 2,600"),
        (facts(recall=0.9), "recall", "Recall is below the target", "recall is 0.9000, the target is 0.95"),
        (
            facts(recall=0.952, low=0.947),
            "recall",
            "The sample does not prove the recall target",
            "recall is 0.9520 (0.9470 to 0.9570), and its lower end must reach 0.95",
        ),
        (
            facts(overlap=0.1),
            "overlap",
            "Only 10% of the candidates were in the lists before",
            "not those of the run before",
        ),
        (
            facts(repeats=0.3),
            "copies",
            "30.0% of the candidates are copies of the one before",
            "in the files many times?",
        ),
        (
            facts(recall=0.8, engine={"name": "exact", "settings": {"nprobe": 2}, "effort": {}}),
            "effort",
            "Recall is below the target, and the search settings have changed",
            "nprobe is 2 and was None before",
        ),
    ],
)
def test_one_change_of_a_run_is_named_alone(now: dict[str, Any], check: str, title: str, text: str) -> None:
    alerts = found([*HEALTHY, now])
    assert set(alerts) == {check}
    assert alerts[check].headline == title
    assert text in alerts[check].text


def test_recall_that_fell_and_is_above_its_target_is_not_called_below() -> None:
    good = [facts(recall=0.99 + n / 1000) for n in range(5)]
    (one,) = found([*good, facts(recall=0.956)]).values()
    assert one.headline == "Recall fell, and is still above its target"


def test_other_settings_are_no_shift_of_the_lists() -> None:
    odd = {"score_p50": 5.0, "best_score_p50": 9.0, "overlap": 0.1, "fill_rate": 0.3, "item_coverage": 0.1}
    assert set(found([*HEALTHY, facts(**odd)])) == {"scores", "overlap", "fill", "coverage"}
    assert found([*HEALTHY, facts(**odd, k=50)]) == {}
    assert found([*HEALTHY, facts(**odd, metric="l2")]) == {}
    assert found([*HEALTHY, facts(**odd, settings="b")]) == {}


def test_another_model_on_both_sides_does_not_make_lists_of_strangers() -> None:
    both = found([*HEALTHY, facts(items_drift=0.9, queries_drift=0.9)])
    one = found([*HEALTHY, facts(queries_drift=0.9)])
    assert both["items_model"].as_dict()["effect"].startswith("Lists are those of the new vectors")
    assert "unrelated to the key" in one["queries_model"].as_dict()["effect"]


def test_what_is_missing_for_weeks_does_not_become_usual_while_it_is_refused() -> None:
    events = nights(4)
    for n in range(5, 30):
        events += [run(n, n, items=1_000), publish(n, n + 0.1, 4, failed=[HALF_LOST])]
    assert {one.check: one.headline for one in check_newest_run(events)} == {
        "items_count": HALF,
        "audit": f"The audit refused 000029: h{HALF[1:]}",
    }
    assert [t.since / DAY for t in derive_status(events).problems if t.check == "audit"] == [5.1]


@pytest.mark.parametrize(
    ("failed", "changes", "checks", "headline"),
    [
        (
            refusal("empty_values", "season of the items: null or empty in 0.00% -> 100.00% of the rows, and at most"),
            {"overlap": 0.0, "fill_rate": 0.0, "query_coverage": 0.0},
            ["audit"],
            "The audit refused 000005: season of the items: null or empty in 0.00% -> 100.00% of the rows",
        ),
        (HALF_LOST, {"overlap": 0.1, "items": 1_000}, ["items_count", "audit"], HALF),
        (
            refusal("vectors", "vectors of the items: 99.80% of 1,024 ids have another vector (cosine below 0.9)"),
            {"overlap": 0.1, "items_drift": 0.9},
            ["items_model", "audit"],
            "Vectors of items are of another model",
        ),
        (
            refusal("overlap"),
            {"overlap": 0.1},
            ["overlap", "audit"],
            "Only 10% of the candidates were in the lists before",
        ),
        (refusal("withdrawn"), {}, ["audit"], "The audit refused 000005: it was rolled back from"),
    ],
)
def test_the_first_headline_of_a_refused_night_is_its_cause(
    failed: dict[str, Any], changes: dict[str, Any], checks: list[str], headline: str
) -> None:
    events = [*nights(4), run(5, 5, **changes), publish(5, 5.1, 4, failed=[failed])]
    alerts = fold_consequences(check_newest_run(events))
    assert [one.check for one in alerts] == checks
    assert alerts[0].headline == headline
    wrong = {one.check for one in check_newest_run(events)} | {name for one in alerts for name in one.follows}
    assert wrong >= {name for name in ("overlap",) if "overlap" in changes}


def test_on_the_second_night_counts_are_compared_with_what_is_served() -> None:
    events = [run(1, 1), publish(1, 1.1), run(2, 2, items=1_000)]
    assert [one.headline for one in check_newest_run(events)] == [HALF]
    assert check_newest_run([*events, run(3, 3)]) == []


def test_measures_of_change_are_not_judged_where_they_compare_with_a_rejected_run() -> None:
    bad = {"overlap": 0.05, "items_moved": 0.9, "items_drift": 0.9}
    events = [*nights(4), run(5, 5), publish(5, 5.1, 4, failed=[refusal("overlap")])]
    assert check_newest_run([*events, run(6, 6, **bad)]) == []  # of an older nearcast: compared with the run before
    assert check_newest_run([*events, run(6, 6, **bad, compared_with={"version": 5, "served": False})]) == []
    against_served = check_newest_run([*events, run(6, 6, overlap=0.05, compared_with={"version": 4, "served": True})])
    assert [one.check for one in against_served] == ["overlap"]
    assert "the lists are not those of 000004, which was served then" in against_served[0].text


@pytest.mark.parametrize(
    ("events", "rejected", "live"),
    [
        ([publish(1, 1), publish(2, 2, 1)], set(), 2),
        ([publish(1, 1), publish(2, 2, 1, failed=[refusal("keys")])], {2}, 1),
        ([publish(1, 1), publish(2, 2, 1), publish(3, 3, 2), roll_back(1, 4, 3)], {3}, 1),
        ([publish(1, 1), publish(2, 2, 1), roll_back(1, 3, 2), publish(2, 4, 1)], set(), 2),
        ([publish(1, 1), publish(2, 2, 1), HistoryEvent("a", "rollback", 3, 1, {})], {2}, 1),  # of an older nearcast
        ([publish(1, 1), publish(2, 2, 1), publish(1, 3, 2)], {2}, 1),
    ],
)
def test_what_is_live_and_what_was_rejected(events: list[HistoryEvent], rejected: set[int], live: int) -> None:
    found_live = find_live_version(events)
    assert found_live is not None
    assert (find_rejected_versions(events), found_live.version) == (rejected, live)


@pytest.mark.parametrize(
    ("served", "rejected", "chosen"),
    [(2, (), 2), (None, (), 4), (None, (4,), 3), (9, (4,), 3), (None, (2, 3, 4), 4), (3, (3,), 3)],
)
def test_a_run_is_compared_with_what_is_served_else_with_the_newest_that_was_not_rejected(
    served: int | None, rejected: tuple[int, ...], chosen: int
) -> None:
    class Named:
        def __init__(self, version: int) -> None:
            self.version = version

    earlier = Baseline(served, frozenset(rejected)).choose([Named(n) for n in (2, 3, 4)])  # type: ignore[arg-type]
    assert earlier.facts == {"version": chosen, "served": chosen == served}
    assert Baseline(served, frozenset(rejected)).choose([]).facts is None


@pytest.mark.parametrize(
    ("after", "why"),
    [
        ([], "no run has finished since"),
        ([run(5, 5), publish(5, 5.1, 4, failed=[refusal("items")])], "the audit refused 000005"),
        ([run(5, 5)], "000005 was made since, and is not published"),
        ([roll_back(3, 5, 4)], "000004 was rolled back from"),
    ],
)
def test_an_old_snapshot_is_explained_by_what_has_happened_since(after: list[HistoryEvent], why: str) -> None:
    assert explain_age([*nights(4), *after]) == why


@pytest.mark.parametrize(
    ("now", "before", "title"),
    [
        (1_912, 3_872, "Half of the items are missing: 1,912 of 3,872 that are served"),
        (1_936, 3_872, "Half of the items are missing: 1,936 of 3,872 that are served"),
        (0, 10, "All of the items are missing: 0 of 10 that are served"),
        (1, 10_000, "99.9% of the items are missing: 1 of 10,000 that are served"),
        (4_000, 2_000, "There are twice as many items: 4,000 instead of 2,000 that are served"),
        (7_000, 2_000, "There are 3.5 times as many items: 7,000 instead of 2,000 that are served"),
    ],
)
def test_a_number_that_has_changed_is_told_with_both(now: float, before: float, title: str) -> None:
    assert format_count_title("items", now, before, served=True) == title


@pytest.mark.parametrize(
    ("states", "level", "text"),
    [
        ([("ok", 0.0)], "ok", "The generator is healthy"),
        ([("ok", 0.0)] * 3, "ok", "All 3 generators are healthy"),
        ([("ok", 10.0)], "ok", "The last monitor pass, 10 days ago, found no problem"),
        ([("ok", 0.0), ("unknown", None)], "unknown", "1 of 2 generators is not monitored"),
        ([("idle", None)], "idle", "1 of 1 generator has not run yet"),
        ([("ok", 0.0), ("warn", 0.0), ("unknown", None)], "warn", "1 of 3 generators has a warning"),
        ([("bad", 0.0), ("bad", 0.0), ("warn", 0.0)], "bad", "2 of 3 generators have problems"),
    ],
)
def test_the_headline_of_the_page(states: list[tuple[str, float | None]], level: str, text: str) -> None:
    now = 100 * DAY
    rows = [{"level": one, "looked": None if ago is None else now - ago * DAY} for one, ago in states]
    assert build_headline(rows, now=now) == {"level": level, "text": text}
