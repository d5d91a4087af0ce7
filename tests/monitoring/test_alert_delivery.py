"""Delivery of alerts to real web servers: once at the beginning, once at the end, again after a failure, no secrets."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.monitoring import webhook_schemas as schemas
from tests.monitoring.hooks import Hook, listening_hook

from nearcast import webhook
from nearcast.errors import SpecError
from nearcast.history.event_log import append, read
from nearcast.monitoring.alert import Alert
from nearcast.monitoring.alert_owners import assign_owners, check_alert_names
from nearcast.monitoring.alert_receivers import AlertSender, resolve_receivers
from nearcast.monitoring.alert_states import derive_alert_book, list_changes
from nearcast.monitoring.monitor_pass import MonitorReport, send_alerts
from nearcast.spec import MonitorSpec
from needs import require_module

KEY = "0123456789abcdef0123456789abcdef"
SECRETS = ("s3cret", KEY)


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "PAUSES", (0.0, 0.0))


class Team:
    """A generator's history below a folder, its passes, and the receivers of its alerts."""

    def __init__(self, out: Path, **settings: Any) -> None:
        self.out, self.settings = out, MonitorSpec.model_validate(settings)
        self.environment: dict[str, str] = {}
        self.now = 1_000.0
        self.out.mkdir(exist_ok=True, parents=True)

    def look(self, *checks: str, sender: AlertSender | None = None) -> list[str]:
        """One pass with these alerts, and their delivery: the failures."""
        alerts = assign_owners([Alert(check, f"{check} is bad", 1.0, 0.5, None) for check in checks], self.settings)
        report = MonitorReport("shop", 1, 5, None, tuple(alerts), out=self.out)
        for event in self._changes(report):
            append(self.out, "shop", event.kind, event.version, event.facts, seconds=event.seconds)
        receivers = resolve_receivers(self.settings, None, self.environment)
        return send_alerts(report, receivers, sender or AlertSender())

    def _changes(self, report: MonitorReport) -> Any:
        found = [alert.as_dict() for alert in report.alerts]
        return list_changes(read(self.out, "shop"), "shop", 1, found, lambda _: True, self.now)

    def handle(self, action: str, key: str, **facts: Any) -> None:
        append(self.out, "shop", "alert", None, {"action": action, "key": key, "who": "ada", "why": "", **facts})

    def written(self) -> str:
        """Everything that the history holds."""
        return json.dumps([event.as_dict() for event in read(self.out)])


def team(tmp_path: Path, hook: Hook, kind: str, **more: Any) -> Team:
    row = {"format": kind, "url": "env:HOOK", **({"routing_key": "env:PD_KEY"} if kind == "pagerduty" else {})}
    made = Team(tmp_path / "out", webhooks=[row | more])
    made.environment = {"HOOK": hook.url, "PD_KEY": KEY}
    return made


def describe(kind: str, posts: list[Any]) -> list[str]:
    """What the posts say, in one form for all formats; each is checked against the schema of its format."""
    jsonschema = require_module("jsonschema")
    found = []
    for body in posts:
        if kind == "slack":
            jsonschema.validate(body, schemas.SLACK)
            found += ["resolve" if "Resolved" in b["text"]["text"] else "trigger" for b in body["blocks"][1:]]
        elif kind == "pagerduty":
            jsonschema.validate(body, schemas.PAGERDUTY)
            found.append(body["event_action"])
        elif kind == "alertmanager":
            jsonschema.validate(body, schemas.ALERTMANAGER)
            found += ["trigger" if alert["endsAt"] > "1970-01-01T02" else "resolve" for alert in body]
        else:
            found += ["trigger" for _ in body["new"]] + ["resolve" for _ in body["resolved"]]
    return found


@pytest.mark.parametrize("kind", ["json", "slack", "pagerduty"])
def test_an_alert_is_sent_once_when_it_begins_and_once_when_it_ends(tmp_path: Path, kind: str) -> None:
    with listening_hook() as hook:
        shop = team(tmp_path, hook, kind)
        assert [shop.look() for _ in range(2)] == [[], []]
        assert hook.take() == []
        shop.look("age")
        assert describe(kind, hook.take()) == ["trigger"]
        shop.look("age")
        assert hook.take() == []
        shop.look("age", "dead")
        assert describe(kind, hook.take()) == ["trigger"]
        shop.look()
        assert describe(kind, hook.take()) == ["resolve", "resolve"]
        shop.look()
        assert hook.take() == []
        shop.look("age")
        assert describe(kind, hook.take()) == ["trigger"]


def test_alertmanager_gets_open_alerts_again_and_their_end_once(tmp_path: Path) -> None:
    with listening_hook() as hook:
        shop = team(tmp_path, hook, "alertmanager")
        for _ in range(2):
            shop.look("age")
            assert len(describe("alertmanager", hook.take())) == 1
        shop.look()
        assert len(hook.take()) == 1
        shop.look()
        assert hook.take() == []
        assert set(hook.paths) == {"/s3cret/api/v2/alerts"}


@pytest.mark.parametrize("kind", ["json", "slack", "pagerduty", "alertmanager"])
def test_a_failed_delivery_is_recorded_and_made_up_by_the_next_check(tmp_path: Path, kind: str) -> None:
    with listening_hook(500) as hook:
        shop = team(tmp_path, hook, kind)
        (failure,) = shop.look("age")
        assert failure.startswith("HTTP Error 500")
        assert len(hook.take()) == 3
        failed = [event.facts for event in read(shop.out, "shop") if event.facts.get("action") == "failed"]
        assert [facts["why"] for facts in failed] == [failure]
        hook.statuses = [200]
        assert shop.look("age") == []
        assert len(hook.take()) == 1
        hook.statuses = [503]
        assert shop.look()
        assert len(hook.take()) == 3
        hook.statuses = [200]
        assert shop.look() == []
        assert len(hook.take()) == 1


def test_an_alert_that_no_receiver_has_learned_of_has_no_end_to_tell(tmp_path: Path) -> None:
    with listening_hook(500) as hook:
        shop = team(tmp_path, hook, "slack")
        shop.look("age")
        hook.take()
        hook.statuses = [200]
        assert shop.look() == []
        assert hook.take() == []


@pytest.mark.parametrize(("statuses", "attempts"), [((500, 200), 2), ((429, 503, 200), 3), ((400,), 1), ((404,), 1)])
def test_a_failure_that_may_pass_is_tried_again_a_few_times(
    tmp_path: Path, statuses: tuple[int, ...], attempts: int
) -> None:
    with listening_hook(*statuses) as hook:
        failures = team(tmp_path, hook, "slack").look("age")
        assert len(hook.take()) == attempts
        assert bool(failures) == (statuses[-1] != 200)


def test_a_receiver_that_is_down_is_asked_once_per_check_of_many_generators(tmp_path: Path) -> None:
    sender = AlertSender()
    with listening_hook(500) as hook:
        for number in range(5):
            (tmp_path / str(number)).mkdir()
            assert team(tmp_path / str(number), hook, "slack").look("age", sender=sender)
        assert len(hook.take()) == 3


def test_one_receiver_that_is_down_does_not_keep_the_others_from_their_alerts(tmp_path: Path) -> None:
    with listening_hook(500) as broken, listening_hook() as hook:
        rows = [{"format": "slack", "url": broken.url}, {"format": "json", "url": hook.url}]
        shop = Team(tmp_path / "out", webhooks=rows)
        assert len(shop.look("age")) == 1
        assert len(hook.take()) == 1
        assert len(shop.look("age")) == 1
        assert hook.take() == []


def test_a_refused_body_keeps_no_other_alert_from_being_sent(tmp_path: Path) -> None:
    with listening_hook(400, 202) as hook:
        made = team(tmp_path, hook, "pagerduty")
        (failure,) = made.look("dead", "age")
        assert "HTTP Error 400" in failure
        assert [body["payload"]["class"] for body in hook.take()] == ["dead", "age"]
        assert made.look("dead", "age") == []
        assert [body["payload"]["class"] for body in hook.take()] == ["dead"]


def test_a_refused_body_is_of_one_generator(tmp_path: Path) -> None:
    sender = AlertSender()
    with listening_hook(400, 200) as hook:
        one, other = (team(tmp_path / name, hook, "slack") for name in ("one", "other"))
        assert len(one.look("dead", sender=sender)) == 1
        assert other.look("dead", sender=sender) == []
        assert len(hook.take()) == 2


def test_an_end_that_was_not_delivered_is_sent_before_the_next_beginning(tmp_path: Path) -> None:
    with listening_hook(202, 500) as hook:
        made = team(tmp_path, hook, "pagerduty")
        made.now = 200_000.0
        made.look("dead")
        made.look()  # its end does not arrive
        made.now = 100_000.0  # the clock was set back
        hook.take()
        hook.statuses = [202]
        assert made.look("dead") == []
        assert describe("pagerduty", hook.take()) == ["resolve", "trigger"]


def test_passes_at_once_send_an_alert_once(tmp_path: Path) -> None:
    with listening_hook() as hook:
        made = team(tmp_path, hook, "slack")
        (made.out / "shop").mkdir()
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(lambda _: made.look("dead"), range(4))) == [[]] * 4
        assert describe("slack", hook.take()) == ["trigger"]


def test_the_path_of_alertmanager_is_put_before_a_query(tmp_path: Path) -> None:
    with listening_hook() as hook:
        made = team(tmp_path, hook, "alertmanager")
        for url in (f"{hook.url}?token=x", f"{hook.url}/", f"{hook.url}/api/v2/alerts"):
            made.environment["HOOK"] = url
            assert made.look("dead") == []
        assert hook.paths == [f"/s3cret/api/v2/alerts{query}" for query in ("?token=x", "", "")]


def test_an_environment_variable_without_a_url_is_named_and_not_shown(tmp_path: Path) -> None:
    with listening_hook() as hook:
        made = team(tmp_path, hook, "slack")
        for secret in ("s3cret:token", "http://[s3cret", "s3cret token", "https://"):
            made.environment["HOOK"] = secret
            (failure,) = made.look("dead")
            assert "env:HOOK is not the URL of a webhook" in failure
            assert "s3cret" not in failure
    assert "s3cret" not in made.written()


def test_a_snoozed_alert_is_sent_when_the_snooze_ends(tmp_path: Path) -> None:
    with listening_hook() as hook:
        shop = team(tmp_path, hook, "slack")
        shop.look()
        shop.handle("snoozed", "age", for_seconds=1e12)
        shop.look("age")
        assert hook.take() == []
        shop.handle("unsnoozed", "age")
        shop.look("age")
        assert len(hook.take()) == 1


def test_an_alert_that_is_snoozed_after_it_was_sent_has_its_end_sent(tmp_path: Path) -> None:
    with listening_hook() as hook:
        shop = team(tmp_path, hook, "pagerduty")
        shop.look("age")
        shop.handle("snoozed", "age", for_seconds=1e12)
        shop.look("age")
        shop.look()
        assert describe("pagerduty", hook.take()) == ["trigger", "resolve"]


def test_pagerduty_learns_of_an_acknowledgement(tmp_path: Path) -> None:
    with listening_hook() as hook:
        shop = team(tmp_path, hook, "pagerduty")
        shop.look("age")
        shop.handle("acknowledged", "age")
        shop.look("age")
        shop.look("age")
        shop.look()
        assert describe("pagerduty", hook.take()) == ["trigger", "acknowledge", "resolve"]


def test_only_alerts_of_a_severity_are_sent(tmp_path: Path) -> None:
    with listening_hook() as hook:
        shop = team(tmp_path, hook, "json", min_severity="error")
        shop.look("age", "dead")  # a warning, and an error
        (body,) = hook.take()
        assert body["new"] == ["dead"]


def test_a_new_address_learns_of_open_alerts(tmp_path: Path) -> None:
    with listening_hook() as hook, listening_hook() as other:
        shop = team(tmp_path, hook, "slack")
        shop.look("age")
        shop.environment["HOOK"] = other.url
        shop.look("age")
        assert (len(hook.take()), len(other.take())) == (1, 1)


def test_secrets_are_neither_shown_nor_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with listening_hook(400) as hook:
        for kind in ("json", "slack", "pagerduty", "alertmanager"):
            shop = team(tmp_path, hook, kind)
            failures = shop.look("age", "dead")
            shop.look()
            shown = shop.written() + "".join(failures) + str(capsys.readouterr())
            shown += repr(resolve_receivers(shop.settings, None, shop.environment))
            shown += json.dumps(shop.settings.model_dump(mode="json"))
            assert failures
            assert not [secret for secret in SECRETS if secret in shown]


def test_a_secret_that_is_missing_is_a_failure_and_the_alert_is_not_lost(tmp_path: Path) -> None:
    with listening_hook() as hook:
        shop = team(tmp_path, hook, "pagerduty")
        del shop.environment["PD_KEY"]
        (failure,) = shop.look("age")
        assert failure.endswith("the environment variable PD_KEY is not set")
        assert hook.take() == []
        shop.environment["PD_KEY"] = KEY
        assert shop.look("age") == []
        assert describe("pagerduty", hook.take()) == ["trigger"]


def test_without_a_history_every_pass_sends_its_alerts(tmp_path: Path) -> None:
    with listening_hook() as hook:
        shop = team(tmp_path, hook, "slack")
        shop.out = tmp_path / "not there"
        for _ in range(2):
            shop.look("age")
            assert len(hook.take()) == 1


def test_the_most_specific_table_names_the_owner() -> None:
    rows = [
        {"check": "slice", "owner": "ranking", "severity": "info"},
        {"check": "slice:segment=home", "owner": "home", "runbook": "https://wiki.example.com/home"},
    ]
    settings = MonitorSpec.model_validate({"owner": "search", "runbook": "https://wiki.example.com/", "alerts": rows})
    found = assign_owners(
        [
            Alert("slice", "", 0.0, 0.0, None, detail="segment=home"),
            Alert("slice", "", 0.0, 0.0, None, detail="segment=toys"),
            Alert("dead", "", 0.0, 0.0, None),
            Alert("age", "", 0.0, 0.0, None),
        ],
        settings,
    )
    assert [(a.owner, a.severity, a.runbook and a.runbook[25:]) for a in found] == [
        ("home", "info", "home"),
        ("ranking", "info", ""),
        ("search", "error", ""),
        ("search", "warning", ""),
    ]


def test_a_table_of_an_unknown_check_is_an_error_with_a_suggestion() -> None:
    settings = MonitorSpec.model_validate({"alerts": [{"check": "recal", "owner": "ada"}]})
    with pytest.raises(SpecError, match="there is no check 'recal'; did you mean 'recall'"):
        check_alert_names(settings, "shop")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"webhooks": [{"format": "slack"}]}, "needs a url"),
        ({"webhooks": [{"format": "teams", "url": "https://h/"}]}, "slack"),
        ({"webhooks": [{"format": "pagerduty"}]}, "needs routing_key"),
        ({"webhooks": [{"format": "pagerduty", "routing_key": KEY}]}, "is a secret"),
        ({"webhooks": [{"format": "slack", "url": "https://h/", "routing_key": "env:X"}]}, "takes no routing_key"),
        ({"webhooks": [{"format": "slack", "url": "ftp://h/"}]}, "https://"),
        ({"runbook": "javascript:alert(1)"}, "write a URL"),
        ({"alerts": [{"check": "age", "runbook": "file:///x"}]}, "write a URL"),
        ({"runbook": "https://wiki.example.com/\x1b[2J"}, "write a URL"),
        ({"alerts": [{"check": "age"}, {"check": "age"}]}, "write one"),
        ({"severity": "high"}, "critical"),
    ],
)
def test_a_wrong_setting_is_an_error_that_says_what_to_write(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        MonitorSpec.model_validate(settings)
    assert "Value error" in str(error.value) or words in str(error.value)


def test_unused_settings_are_not_in_a_manifest() -> None:
    assert set(MonitorSpec().model_dump(mode="json")) == {
        "sample",
        "window_hours",
        "min_recall_today",
        "max_dead",
        "webhook",
    }
    row = {"format": "slack", "url": "https://hooks.example.com/s3cret"}
    written = MonitorSpec.model_validate({"webhooks": [row], "owner": "ada"}).model_dump(mode="json")
    assert written["webhooks"][0]["url"] == "https://hooks.example.com/..."
    assert written["owner"] == "ada"


def test_the_state_is_derived_from_the_history_alone(tmp_path: Path) -> None:
    with listening_hook() as hook:
        shop = team(tmp_path, hook, "slack")
        shop.look("age")
        (state,) = derive_alert_book(read(shop.out, "shop"), 2_000.0).open
        assert state.as_dict()["receivers"] == 1
        assert state.as_dict()["alert"] == "age"
