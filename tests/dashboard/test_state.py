"""How a generator stands, read off its history: what, since when, and what users get meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.dashboard.troubles import LAST_NIGHT, TROUBLES, history_with

from nearcast.dashboard.document import build_document, list_history_generators
from nearcast.dashboard.generator import list_marks
from nearcast.dashboard.list_explorer import diff_ids
from nearcast.errors import NotFoundError
from nearcast.history.event_log import HistoryEvent
from nearcast.history.publish_events import find_live_version
from nearcast.monitoring.alert import ALERT_TEXTS, CHECKS
from nearcast.monitoring.status import derive_status
from needs import require_module

DAY = 86_400.0


def run(version: int, day: float, *, kept: bool = True, recall: float = 0.97) -> HistoryEvent:
    measures = {"recall": recall, "recall_low": recall - 0.01, "recall_high": recall + 0.01}
    promise = {"recall": 0.95, "kept": kept, "reason": None if kept else f"recall is {recall}"}
    sides = {"items": {"vectors": 10, "norms": {}, "problems": {}}}
    facts = {"measures": measures, "promise": promise, "k": 10, "metric": "cosine", "sides": sides, "seconds": {}}
    return HistoryEvent(
        "a", "run", day * DAY, version, facts | {"seconds_total": 1.0, "peak_memory_bytes": 1, "engine": {}}
    )


def publish(version: int, day: float, *, failed: str = "") -> HistoryEvent:
    findings = [{"rule": failed, "measure": failed, "passed": False, "text": "too low"}] if failed else []
    outcome = "audit_failed" if failed else "published"
    return HistoryEvent("a", "publish", day * DAY, version, {"outcome": outcome, "findings": findings})


def look(version: int, day: float, *checks: str) -> HistoryEvent:
    alerts = [{"check": c, "text": f"{c}!", "found": 1.0, "bound": 1.0, "usual": 2.0, "follows": []} for c in checks]
    return HistoryEvent("a", "monitor", day * DAY, version, {"version": version, "served": None, "alerts": alerts})


def test_every_check_of_the_monitor_has_its_words() -> None:
    assert set(CHECKS) <= set(ALERT_TEXTS)


def test_without_events_nothing_has_run() -> None:
    state = derive_status([])
    assert (state.level, state.users_get) == ("idle", "Nothing has run yet.")


def test_a_trouble_is_there_since_the_run_that_the_first_pass_of_an_unbroken_row_looked_at() -> None:
    events = [run(1, 1), look(1, 1.1, "copies"), run(2, 2), look(2, 2.1), run(3, 3), look(3, 3.1, "copies")]
    events += [run(4, 4), look(4, 4.1, "copies")]
    (trouble,) = derive_status(events).problems
    assert (trouble.since, trouble.version) == (3 * DAY, 3)


def test_a_trouble_of_what_is_served_is_there_since_the_pass_that_found_it() -> None:
    (trouble,) = derive_status([run(1, 1), look(1, 2), look(1, 5, "dead"), look(1, 6, "dead")]).problems
    assert trouble.since == 5 * DAY


def test_a_number_that_jumped_says_which_way() -> None:
    (trouble,) = derive_status([run(1, 1), look(1, 2, "items_count")]).problems
    assert trouble.title == "The number of items fell"


def test_publishes_that_the_audit_stops_are_a_trouble_until_one_goes_through() -> None:
    events = [run(1, 1), publish(1, 1.1), run(2, 2), publish(2, 2.1, failed="overlap"), run(3, 3)]
    events.append(publish(3, 3.1, failed="overlap"))
    state = derive_status(events)
    assert [(t.check, t.since) for t in state.problems] == [("audit", 2.1 * DAY)]
    assert state.users_get == "Users get snapshot 000001 of 2 January 1970; 2 newer ones are not published."
    assert derive_status([*events, publish(3, 4)]).problems == ()


def test_a_run_below_its_promise_is_told_before_any_monitor_has_looked() -> None:
    state = derive_status([run(1, 1), run(2, 2, kept=False, recall=0.9), run(3, 3, kept=False, recall=0.9)])
    (trouble,) = state.problems
    assert (trouble.check, trouble.since, trouble.version) == ("recall", 2 * DAY, 2)
    assert state.unchecked


def test_a_rollback_is_worth_a_look_and_says_what_users_get() -> None:
    events = [run(1, 1), publish(1, 1), run(2, 2), publish(2, 2), HistoryEvent("a", "rollback", 3 * DAY, 1, {})]
    state, live = derive_status(events), find_live_version(events)
    assert state.level == "warn"
    assert live is not None
    assert (live.version, live.made) == (1, DAY)


def test_the_worst_stands_first() -> None:
    well = derive_status([run(1, 1), look(1, 1)])
    warned = derive_status([run(1, 1), look(1, 1, "overlap")])
    bad = derive_status([run(1, 1), look(1, 1, "items_ids")])
    later = derive_status([run(1, 1), run(2, 2), look(2, 2, "items_ids")])
    idle = derive_status([])
    states = [well, idle, warned, bad, later]
    assert sorted(states, key=lambda state: state.rank) == [later, bad, warned, idle, well]


def test_an_alert_is_marked_when_it_begins_and_a_failed_audit_with_its_reason() -> None:
    events = [run(1, 1), look(1, 1, "copies"), look(1, 2, "copies"), look(1, 3), look(1, 4, "copies")]
    events.append(publish(1, 5, failed="overlap"))
    assert [(mark["kind"], mark["at"] / DAY) for mark in list_marks(events)] == [
        ("alert", 1),
        ("alert", 4),
        ("audit", 5),
    ]
    assert list_marks(events)[-1]["text"] == "the audit refused 000001: overlap: too low"


def test_what_came_went_and_moved() -> None:
    told = diff_ids(["a", "b", "c"], ["b", "a", "d"])
    assert told["came"] == [{"id": "d", "rank": 3}]
    assert told["went"] == [{"id": "c", "rank": 3}]
    assert told["moved"] == [{"id": "b", "from": 2, "to": 1}, {"id": "a", "from": 1, "to": 2}]
    assert told["kept"] == 2


def test_a_folder_without_a_history_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no history of any generator"):
        build_document(tmp_path)
    with pytest.raises(NotFoundError, match="no history of shop"):
        list_history_generators(tmp_path, ["shop"])
    assert list_history_generators(tmp_path, ["shop"], served=True) == {"shop": 0}


@pytest.mark.slow
@pytest.mark.parametrize("name", TROUBLES)
def test_a_planted_trouble_stands_first_by_its_name_with_its_night(tmp_path: Path, name: str) -> None:
    settings, check = TROUBLES[name][1:]
    if "engine" in settings:
        require_module("faiss")
    pages = build_document(history_with(name, tmp_path, healthy=5, others=()), lists=False)["generators"]
    first = pages[0]["state"]["troubles"][0]
    assert (first["check"], first["level"]) == (check, "bad")
    assert LAST_NIGHT - DAY < first["since"] <= LAST_NIGHT + 120
    assert first["text"]
    assert first["effect"]
