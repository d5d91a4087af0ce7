"""Alerts from their beginning to their end, by the history: acknowledged, snoozed, and under clocks that lie."""

from __future__ import annotations

from typing import Any

import pytest

from nearcast.history.event_log import HistoryEvent
from nearcast.monitoring.alert import Alert
from nearcast.monitoring.alert_states import derive_alert_book, list_changes

HOUR = 3600.0


class Log:
    """The history of one generator, with a clock that the test sets."""

    def __init__(self) -> None:
        self.events: list[HistoryEvent] = []
        self.now = 1_000_000.0

    def look(self, *checks: str | Alert, unchecked: tuple[str, ...] = ()) -> list[str]:
        """One pass: what it changed."""
        alerts = [check if isinstance(check, Alert) else Alert(check, "text", 1.0, 0.5, None) for check in checks]
        found = [alert.as_dict() for alert in alerts]
        changes = list_changes(self.events, "shop", 1, found, lambda check: check not in unchecked, self.now)
        self.events += [HistoryEvent("shop", "monitor", self.now, 1, {"alerts": found}), *changes]
        return [f"{event.facts['action']} {event.facts['key']}" for event in changes]

    def add(self, action: str, **facts: Any) -> None:
        self.events.append(HistoryEvent("shop", "alert", self.now, None, {"action": action, **facts}))

    def snooze(self, key: str, seconds: float) -> None:
        self.add("snoozed", key=key, who="ada", why="a migration", for_seconds=seconds)

    def open(self) -> dict[str, Any]:
        return {state.key: state for state in derive_alert_book(self.events, self.now).open}


@pytest.fixture
def log() -> Log:
    return Log()


def test_an_alert_begins_once_and_ends_once(log: Log) -> None:
    assert log.look() == []
    assert log.look("age") == ["opened age"]
    assert log.look("age") == []
    assert log.look("age", "dead") == ["opened dead"]
    assert log.look("dead") == ["ended age"]
    assert log.look() == ["ended dead"]
    assert log.look("age") == ["opened age"]
    assert log.open()["age"].opening == 2


def test_a_check_that_a_pass_did_not_make_ends_no_alert(log: Log) -> None:
    log.look("dead", "overlap")
    assert log.look("overlap", unchecked=("dead",)) == []
    assert log.look(unchecked=("dead",)) == ["ended overlap"]
    assert set(log.open()) == {"dead"}


def test_an_alert_that_another_one_explains_goes_on(log: Log) -> None:
    log.look("overlap")
    model = Alert("queries_model", "text", 1.0, 0.5, None, follows=("overlap",))
    assert log.look(model) == ["opened queries_model"]
    assert log.look("overlap") == ["ended queries_model"]
    assert log.look() == ["ended overlap"]


def test_alerts_of_one_check_are_told_apart_by_their_detail(log: Log) -> None:
    slices = [Alert("slice", "text", 0.5, 0.9, None, detail=f"segment={name}") for name in ("home", "toys")]
    assert log.look(*slices) == ["opened slice:segment=home", "opened slice:segment=toys"]
    assert log.look(slices[1]) == ["ended slice:segment=home"]


def test_recall_is_one_alert_under_all_its_names(log: Log) -> None:
    assert log.look("recall") == ["opened recall"]
    assert log.look("effort") == []
    assert log.look("metric") == []


def test_an_alert_whose_cause_changes_is_the_same_alert_in_new_words(log: Log) -> None:
    log.look(Alert("recall", "recall is 0.90", 0.9, 0.95, None))
    log.look(Alert("metric", "the lists look like those of cosine", 0.4, 0.95, None))
    facts = log.open()["recall"].facts
    assert (facts["check"], facts["text"], facts["found"]) == ("recall", "the lists look like those of cosine", 0.4)
    assert facts["title"] == "The lists look like those of another metric"
    log.look()
    (state,) = derive_alert_book(log.events, log.now).states
    assert state.facts["found"] == 0.4


def test_owner_and_severity_are_those_of_the_last_pass_with_the_spec(log: Log) -> None:
    log.look("age")  # by name, without the spec
    log.look(Alert("age", "text", 1.0, 0.5, None, owner="search", severity="critical"))
    log.look("age")
    facts = log.open()["age"].facts
    assert (facts["owner"], facts["severity"], facts["runbook"]) == ("search", "critical", None)


def test_an_alert_remembers_until_when_it_had_another_owner(log: Log) -> None:
    first, second = (Alert("age", "text", 1.0, 0.5, None, owner=name, severity="error") for name in ("ada", "bo"))
    log.look(first)
    log.now += 60.0
    log.look(second)
    assert log.open()["age"].earlier == {("error", "ada"): log.now}
    log.look("age")  # by name: the owner stays
    log.now += 60.0
    log.look(first)
    assert log.open()["age"].earlier == {("error", "bo"): log.now}


def test_two_findings_of_one_name_are_one_alert(log: Log) -> None:
    assert log.look("scores", "scores") == ["opened scores"]


def test_two_monitors_that_write_the_same_change_make_one_alert(log: Log) -> None:
    log.look("age")
    log.events += [event for event in log.events if event.kind == "alert"]
    (state,) = log.open().values()
    assert state.opening == 1
    log.look()
    log.events.append(log.events[-1])
    assert log.open() == {}


def test_an_acknowledgement_ends_with_its_alert(log: Log) -> None:
    log.look("age", "dead")
    log.add("acknowledged", key="age", who="ada", why="the run is late")
    state = log.open()["age"]
    assert (state.acknowledged.who, state.acknowledged.why) == ("ada", "the run is late")
    assert log.open()["dead"].acknowledged is None
    log.look("age", "dead")
    assert log.open()["age"].is_handled
    log.look()
    log.look("age")
    assert not log.open()["age"].is_handled


def test_a_snooze_lasts_its_time_also_if_the_alert_ends_and_begins_again(log: Log) -> None:
    log.look("age")
    log.snooze("age", 8 * HOUR)
    for _ in range(3):
        log.now += 2 * HOUR
        log.look()
        log.look("age")
        assert log.open()["age"].snoozed.seconds_left == pytest.approx(8 * HOUR - (log.now - 1_000_000.0))
    log.now += 2 * HOUR
    assert log.open()["age"].snoozed is None


@pytest.mark.parametrize("name", ["slice", "slice:segment=home", "any"])
def test_a_snooze_is_of_an_alert_of_a_check_or_of_all(log: Log, name: str) -> None:
    log.look(Alert("slice", "text", 0.5, 0.9, None, detail="segment=home"), "age")
    log.snooze(name, HOUR)
    assert log.open()["slice:segment=home"].is_handled
    assert log.open()["age"].is_handled == (name == "any")
    log.add("unsnoozed", key=name, who="ada")
    assert not log.open()["slice:segment=home"].is_handled


def test_a_clock_that_goes_back_makes_no_snooze_longer(log: Log) -> None:
    log.look("age")
    log.snooze("age", 2 * HOUR)
    log.now -= 30 * 24 * HOUR
    log.look("age")
    assert log.open()["age"].snoozed.seconds_left == pytest.approx(2 * HOUR)
    log.now += 1.5 * HOUR
    log.look("age")
    log.now -= 24 * HOUR
    log.look("age")
    log.now += HOUR
    assert log.open()["age"].snoozed is None


def test_alerts_are_in_the_order_in_which_they_began_whatever_the_clock_says(log: Log) -> None:
    log.look("dead")
    log.look()
    log.now -= 24 * HOUR
    log.look("dead", "age")
    states = derive_alert_book(log.events, log.now).states
    assert [(state.key, state.opening, state.ended is None) for state in states] == [
        ("dead", 1, False),
        ("dead", 2, True),
        ("age", 1, True),
    ]


def test_a_clock_that_jumps_ahead_ends_a_snooze_early_and_not_late(log: Log) -> None:
    log.look("age")
    log.snooze("age", 2 * HOUR)
    log.now += 365 * 24 * HOUR
    log.look("age")
    log.now -= 365 * 24 * HOUR
    assert log.open()["age"].snoozed is None


def test_runs_which_are_recorded_later_than_made_do_not_move_the_clock(log: Log) -> None:
    log.look("age")
    log.snooze("age", 2 * HOUR)
    log.events.append(HistoryEvent("shop", "run", log.now - 48 * HOUR, 2, {}))
    log.now += HOUR
    log.look("age")
    assert log.open()["age"].snoozed.seconds_left == pytest.approx(HOUR)
