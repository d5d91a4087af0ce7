"""Bodies of webhooks hold to the documented formats, whatever the alert: hostile texts, long names, no owner."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.monitoring import webhook_schemas as schemas

from nearcast.monitoring.alert import CHECKS, Alert
from nearcast.monitoring.alert_bodies import (
    FIRING_SECONDS,
    Notice,
    build_alertmanager_body,
    build_pagerduty_body,
    build_slack_body,
    make_dedup_key,
)
from nearcast.monitoring.alert_states import AlertState
from needs import require_module

KEY = "0123456789abcdef0123456789abcdef"
NOW = 1_800_000_000.0

jsonschema = require_module("jsonschema", allow_module_level=True)


def state(check: str = "age", text: str = "too old", **more: Any) -> AlertState:
    options = {name: more.pop(name) for name in ("title", "detail", "owner", "severity", "runbook") if name in more}
    alert = Alert(check, text, 1.0, 0.5, None, **options)
    fields = {"opening": 1, "since": NOW - 60, "version": 3} | more
    return AlertState("shop", alert.key, facts=alert.as_dict(), **fields)


def check(body: Any, schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(schema).validate(body)


def every_body(notices: list[Notice]) -> None:
    check(build_slack_body("shop", notices), schemas.SLACK)
    check(build_alertmanager_body(notices, NOW), schemas.ALERTMANAGER)
    for notice in notices:
        check(build_pagerduty_body(notice, KEY), schemas.PAGERDUTY)


@pytest.mark.parametrize("name", CHECKS)
def test_every_check_has_a_body_in_every_format(name: str) -> None:
    given_state = state(name, owner="team-search", severity="critical", runbook="https://wiki.example.com/age")
    every_body([Notice(given_state, "trigger"), Notice(given_state, "acknowledge")])
    every_body([Notice(state(name, ended=NOW), "resolve")])


@given(
    text=st.text(max_size=5000),
    title=st.text(min_size=1, max_size=2000),
    detail=st.text(max_size=600),
    owner=st.one_of(st.none(), st.text(min_size=1, max_size=300)),
    severity=st.sampled_from([None, "critical", "error", "warning", "info"]),
)
def test_no_text_breaks_a_format(text: str, title: str, detail: str, owner: str | None, severity: str | None) -> None:
    one = state("slice", text, title=title, detail=detail, owner=owner, severity=severity)
    every_body([Notice(one, "trigger")])


def test_hundreds_of_alerts_fit_one_message() -> None:
    many = [Notice(state("slice", "x" * 4000, detail=f"segment={n}"), "trigger") for n in range(300)]
    every_body(many)
    assert "and 255 more" in build_slack_body("shop", many)["blocks"][-1]["text"]["text"]


def test_slack_reads_no_mention_and_no_link_from_a_text() -> None:
    body = build_slack_body("shop", [Notice(state(text="<!channel> & <https://evil.example|click>"), "trigger")])
    shown = body["text"] + "".join(block["text"]["text"] for block in body["blocks"][1:])
    assert "<!channel>" not in shown
    assert "<https" not in shown
    assert "&lt;!channel&gt; &amp; " in shown


def test_a_runbook_with_a_query_is_a_link_of_slack() -> None:
    one = Notice(state(runbook="https://wiki.example.com/a?b=1&c='*_`\"é"), "trigger")
    text = build_slack_body("shop", [one])["blocks"][1]["text"]["text"]
    assert text.endswith("<https://wiki.example.com/a?b=1&amp;c='*_`\"é|runbook>")
    every_body([one])


def test_slack_says_what_began_and_what_ended() -> None:
    notices = [Notice(state(owner="ada", runbook="https://wiki.example.com/a"), "trigger")]
    notices.append(Notice(state("dead", ended=NOW), "resolve"))
    body = build_slack_body("shop", notices)
    assert body["blocks"][0]["text"]["text"] == "nearcast shop: 1 new alert, 1 resolved"
    assert "owner ada  <https://wiki.example.com/a|runbook>" in body["blocks"][1]["text"]["text"]
    assert body["blocks"][2]["text"]["text"].startswith("*Resolved: ")


def test_events_of_one_alert_have_one_key_and_other_alerts_another() -> None:
    keys = {build_pagerduty_body(Notice(state(), action), KEY)["dedup_key"] for action in ("trigger", "resolve")}
    assert keys == {"nearcast/shop/age"}
    long = [make_dedup_key(state("slice", detail="x" * 400 + end)) for end in ("a", "b")]
    assert long[0] != long[1]
    assert {len(key) for key in long} == {255}


def test_alertmanager_is_told_when_an_alert_ends_and_when_none_repeats_it() -> None:
    firing, ended = state(), state(ended=NOW - 10)
    found = build_alertmanager_body([Notice(firing, "trigger"), Notice(ended, "resolve")], NOW)
    assert found[0]["labels"] == found[1]["labels"]
    assert found[0]["labels"]["alertname"] == "nearcast_age"
    assert found[0]["endsAt"] > found[1]["endsAt"]
    assert FIRING_SECONDS > 24 * 3600


@pytest.mark.parametrize("action", ["trigger", "resolve"])
def test_alertmanager_is_told_that_an_alert_of_an_earlier_owner_has_ended(action: str) -> None:
    earlier = {("error", "ada"): NOW - 5, ("warning", None): NOW - FIRING_SECONDS - 1}
    notice = Notice(state(owner="bo", earlier=earlier, ended=NOW - 1 if action == "resolve" else None), action)
    now, before = build_alertmanager_body([notice], NOW)
    assert (now["labels"]["owner"], before["labels"]["owner"]) == ("bo", "ada")
    assert before["endsAt"] == "2027-01-15T07:59:55.000Z"
    assert {**before["labels"], "owner": "bo"} == now["labels"]
    check([now, before], schemas.ALERTMANAGER)


def test_a_clock_that_went_back_ends_no_alert_before_it_began() -> None:
    (found,) = build_alertmanager_body([Notice(state(since=NOW + 1000, ended=NOW), "resolve")], NOW)
    assert found["endsAt"] >= found["startsAt"]
