"""`nearcast alerts`: list the open alerts of a team's generators, acknowledge and snooze them."""

from __future__ import annotations

import getpass
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import click
from rich.table import Table

from nearcast.api.alerting import acknowledge_alert, list_alerts, snooze_alert, unsnooze_alert
from nearcast.cli.common import console, explicit_out, format_seconds, json_option, out_option, plain_table, print_json
from nearcast.cli.complete_names import GeneratorName
from nearcast.cli.overlay import parse_duration, parse_time
from nearcast.monitoring.alert_states import AlertState, Handling
from nearcast.storage.locations import Location

__all__ = ["alerts"]


@click.group()
def alerts() -> None:
    """List the open alerts, acknowledge and snooze them.

    An alert begins with the first pass of `nearcast monitor` that finds it, and ends with the first that does not.
    """


def _add_reason_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options --who and --why."""
    command = click.option("--why", default="", help="Reason, shown by `alerts list`.")(command)
    return click.option("--who", default=None, help="Your name. Default: the user of this machine.")(command)


def _find_user(who: str | None) -> str:
    if who:
        return who
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container may run as a user without a name
        raise click.UsageError("this user has no name; give yours with --who") from None


@alerts.command("list")
@click.argument("generator", type=GeneratorName(specs=True), metavar="[SPEC|GENERATOR]", required=False)
@out_option
@json_option
def list_open(generator: str | None, out: Location, as_json_: bool) -> None:
    """List the open alerts of a generator, or of all in OUT."""
    found = list_alerts(generator, out=out if generator is None else explicit_out(generator, out))
    if as_json_:
        print_json([state.as_dict() for state in found])
    elif found:
        console().print(_build_table(found))
    else:
        console().print("no alert is open")


@alerts.command()
@click.argument("generator", type=GeneratorName(specs=True), metavar="SPEC|GENERATOR")
@click.argument("alert")
@_add_reason_options
@out_option
def acknowledge(generator: str, alert: str, who: str | None, why: str, out: Location) -> None:
    """Take care of an open ALERT, or of `any`: it is not sent again, and does not fail a check, until it ends."""
    found = acknowledge_alert(generator, alert, who=_find_user(who), why=why, out=explicit_out(generator, out))
    for state in found:
        console().print(f"{state.generator} {state.key} is acknowledged until it ends")


@alerts.command()
@click.argument("generator", type=GeneratorName(specs=True), metavar="SPEC|GENERATOR")
@click.argument("alert")
@click.option("--for", "seconds", metavar="DURATION", callback=parse_duration, help="For example 90m, 8h or 2d.")
@click.option(
    "--until",
    metavar="TIME",
    callback=parse_time,
    help="For example 2026-12-31T18:00:00Z; UTC if it has no zone.",
)
@_add_reason_options
@out_option
def snooze(
    generator: str, alert: str, seconds: float | None, until: float | None, who: str | None, why: str, out: Location
) -> None:
    """Send nothing about an ALERT, a check or `any` for some time, even if it ends and begins again."""
    if (seconds is None) == (until is None):
        raise click.UsageError("give --for or --until")
    left = seconds if seconds is not None else (until or 0.0) - time.time()
    if left <= 0:
        raise click.UsageError("--until has passed; give a later time")
    snooze_alert(generator, alert, seconds=left, who=_find_user(who), why=why, out=explicit_out(generator, out))
    console().print(f"{alert} is snoozed for {format_seconds(left)}")


@alerts.command()
@click.argument("generator", type=GeneratorName(specs=True), metavar="SPEC|GENERATOR")
@click.argument("alert")
@click.option("--who", default=None, help="Your name. Default: the user of this machine.")
@out_option
def unsnooze(generator: str, alert: str, who: str | None, out: Location) -> None:
    """End the snooze of an ALERT, a check or `any`."""
    unsnooze_alert(generator, alert, who=_find_user(who), out=explicit_out(generator, out))
    console().print(f"{alert} is not snoozed any more")


def _build_table(found: Sequence[AlertState]) -> Table:
    table = plain_table()
    for name in ("generator", "alert", "severity", "since", "owner", "handled by", "title"):
        table.add_column(name, overflow="fold")
    for state in found:
        facts = state.facts
        since = datetime.fromtimestamp(state.since, UTC).strftime("%Y-%m-%d %H:%M")
        handled = "; ".join(
            words for words in (_describe(state.acknowledged, ""), _describe(state.snoozed, "snoozed, ")) if words
        )
        table.add_row(
            state.generator,
            state.key,
            str(facts.get("severity") or ""),
            since,
            str(facts.get("owner") or ""),
            handled,
            str(facts.get("title") or ""),
        )
    return table


def _describe(handling: Handling | None, prefix: str) -> str:
    if handling is None:
        return ""
    left = "" if handling.seconds_left is None else f", {format_seconds(handling.seconds_left)} left"
    why = f": {handling.why}" if handling.why else ""
    return f"{prefix}{handling.who}{left}{why}"
