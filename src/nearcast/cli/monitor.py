"""`nearcast monitor`: check the newest run, and the staleness of the current version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from click.core import ParameterSource
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nearcast.api.refreshing import monitor as look
from nearcast.cli.common import (
    LocalPath,
    OutLocation,
    console,
    format_seconds,
    json_option,
    out_option,
    pass_options,
    plain_table,
    print_json,
    quiet_option,
    store_option,
)
from nearcast.cli.complete_names import GeneratorName
from nearcast.cli.diff import build_figure_table
from nearcast.cli.progress import show_progress
from nearcast.errors import AlertError, SpecError
from nearcast.history.event_log import read
from nearcast.monitoring.alert import CHECKS, Alert
from nearcast.monitoring.alert_receivers import AlertSender, resolve_receivers
from nearcast.monitoring.history_chart import draw_history
from nearcast.monitoring.monitor_pass import MonitorReport, send_alerts
from nearcast.monitoring.staleness import FEWEST_LOOKUPS, Staleness
from nearcast.spec import MonitorSpec, load_spec
from nearcast.storage.locations import Location
from nearcast.webhook import parse_webhook

__all__ = ["MonitorOptions", "build_report", "monitor", "monitor_one", "post_alerts", "raise_on"]

MOST_DRAWN = 2_000  # events: several per day for a year


def _list_checks(context: click.Context, _parameter: click.Parameter, chosen: bool) -> None:
    """Print the checks and exit, before click misses the argument."""
    if not chosen or context.resilient_parsing:
        return
    table = plain_table("check", "alert if")
    for name, meaning in CHECKS.items():
        table.add_row(name, meaning)
    console().print(table)
    context.exit()


def validate_webhook(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """Validate the URL of --webhook before any work. Raises SpecError."""
    try:
        if value is not None:
            parse_webhook(value)
    except ValueError as error:
        raise SpecError(f"--webhook: {error}") from None
    return value


@dataclass(frozen=True, slots=True)
class MonitorOptions:
    """Options of `nearcast monitor`."""

    store: str | None
    out: Location
    samples: Location | None
    fail_on: tuple[str, ...]
    webhook: str | None
    picture: Path | None
    folder: Path | None


@click.command()
@click.argument("generator", type=GeneratorName(specs=True), metavar="[SPEC|GENERATOR]", required=False)
@click.option(
    "--all",
    "folder",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    metavar="FOLDER",
    help="Check the generators of all specs (.toml) in a folder. One that fails does not stop the others.",
)
@store_option
@out_option
@click.option(
    "--samples",
    type=OutLocation(),
    metavar="FOLDER",
    help="Folder, or URL in a bucket, of the sampled keys that services write. Default: OUT/lookups.",
)
@click.option(
    "--fail-on",
    "fail_on",
    type=click.Choice(["any", *CHECKS]),
    metavar="CHECK",
    multiple=True,
    help="Exit with code 13 if this check raises an alert; `any` means all checks. Repeatable.",
)
@click.option(
    "--webhook",
    callback=validate_webhook,
    metavar="URL",
    help="http or https URL that alerts are posted to as JSON. Default: the spec's.",
)
@click.option(
    "--picture",
    type=LocalPath(dir_okay=False),
    metavar="FILE",
    help="Draw the history into a .svg, .png or .pdf file.",
)
@click.option(
    "--checks",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_checks,
    help="List the checks and exit.",
)
@quiet_option
@json_option
@pass_options(MonitorOptions)
@click.pass_context
def monitor(
    context: click.Context, generator: str | None, options: MonitorOptions, quiet: bool, as_json_: bool
) -> None:
    """Check the newest run, and compare the current version with today's items.

    With a SPEC (.toml), lists that were looked up are compared with the exact neighbors among today's items. With the
    name of a GENERATOR, only its runs are checked. Results are added to the history in OUT. Alerts are sent to the
    webhooks of the spec: one notice when an alert begins, one when it ends; `nearcast alerts` acknowledges and snoozes.
    """
    explicit = context.get_parameter_source("out") is ParameterSource.COMMANDLINE
    if generator is None and options.folder is None:
        hint = "'SPEC|GENERATOR', or --all FOLDER"
        raise click.MissingParameter(ctx=context, param_type="argument", param_hint=hint)
    if generator is not None and options.folder is not None:
        raise click.UsageError("give a spec, the name of a generator, or --all FOLDER, not both")
    if options.folder is not None:
        if options.picture is not None:
            raise click.UsageError("--picture draws one generator; leave out --all")
        from nearcast.cli.monitor_folder import monitor_folder

        monitor_folder(options.folder, options, explicit_out=explicit, quiet=quiet, as_json_=as_json_)
        return
    assert generator is not None
    watched = monitor_one(generator, options, AlertSender(), explicit_out=explicit, quiet=quiet or as_json_)
    if options.picture is not None:
        assert watched.out is not None
        draw_history(read(watched.out, watched.generator, last=MOST_DRAWN), options.picture)
    if as_json_:
        print_json(watched.as_dict())
    else:
        console().print(build_report(watched))
    raise_on(watched, options.fail_on)


def monitor_one(
    generator: str, options: MonitorOptions, sender: AlertSender, *, explicit_out: bool, quiet: bool
) -> MonitorReport:
    """Monitor a generator, and send its alerts."""
    by_spec = generator.endswith(".toml")
    with show_progress(quiet=quiet) as listener:
        watched = look(
            generator,
            store=options.store,
            out=options.out if explicit_out or not by_spec else None,
            samples=options.samples,
            listener=listener,
        )
    settings = load_spec(Path(generator)).monitor if by_spec else MonitorSpec()
    post_alerts(settings, watched, sender, options.webhook)
    return watched


def post_alerts(settings: MonitorSpec, watched: MonitorReport, sender: AlertSender, webhook: str | None = None) -> None:
    """Send the alerts to the webhooks of the spec; print a warning for each delivery that fails.

    webhook: URL in place of `monitor.webhook`.
    """
    for failure in send_alerts(watched, resolve_receivers(settings, webhook), sender):
        click.echo(
            f"warning: alerts were not delivered to the webhook: {failure}; the next check sends them again", err=True
        )


def raise_on(watched: MonitorReport, fail_on: Sequence[str]) -> None:
    """Raise the error of a failed pass, or AlertError if one of the checks `fail_on` raised an alert.

    An alert that was acknowledged or snoozed raises no error. fail_on: names of checks; "any" means all.
    """
    if watched.failure is not None:
        raise watched.failure
    alerts = [alert for alert in watched.alerts if alert.key not in watched.handled]
    failing = [alert.check for alert in alerts if "any" in fail_on or alert.check in fail_on]
    if failing:
        raise AlertError(
            f"{watched.generator}: {', '.join(dict.fromkeys(failing))}; docs/monitoring.md says what to do"
        )


def build_report(watched: MonitorReport) -> Group:
    """Format the result of one pass."""
    parts: list[RenderableType] = []
    name = watched.generator if watched.version is None else f"{watched.generator} {watched.version:06d}"
    runs = "run" if watched.runs == 1 else "runs"
    compared = f"compared with {watched.runs:,} earlier {runs}" if watched.version is not None else "no run found"
    parts.append(Text(f"{name}, {compared}", style="bold"))
    if watched.served is not None:
        parts += ["", _build_served_table(watched.served)]
    parts.append("")
    if watched.users_get:
        parts += [Text(watched.users_get), ""]
    parts.append(_build_alert_table(watched) if watched.alerts else Text(watched.verdict, style="green"))
    if watched.alerts and watched.changes is not None and any(row["causes"] for row in watched.changes["figures"]):
        words = f"changes since {watched.changes['before']:06d}, on {watched.changes['queries']:,} queries"
        parts += ["", Text(words), build_figure_table(watched.changes["figures"])]
    return Group(*parts)


def _build_alert_table(watched: MonitorReport) -> Table:
    table = plain_table(show_header=False)
    table.add_column("check", style="bold red")
    table.add_column("text")
    for alert in watched.alerts:
        follows = f" (likely consequences: {', '.join(alert.follows)})" if alert.follows else ""
        table.add_row(alert.check, f"{alert.headline}. {alert.text}{follows}{_describe_duty(alert, watched)}")
    return table


def _describe_duty(alert: Alert, watched: MonitorReport) -> str:
    """Return who takes care of an alert, and where it says how."""
    parts = [f"owner: {alert.owner}"] if alert.owner else []
    parts += [f"runbook: {alert.runbook}"] if alert.runbook else []
    parts += ["acknowledged or snoozed"] if alert.key in watched.handled else []
    return f" [{'; '.join(parts)}]" if parts else ""


def _build_served_table(served: Staleness) -> Table:
    table = plain_table("served", right=("",))
    table.add_column("", style="dim")
    whose = (
        f"{served.lookups:,} look-ups"
        if served.sampled == "look-ups"
        else f"today's queries: fewer than {FEWEST_LOOKUPS} look-ups are recorded"
    )
    table.add_row("snapshot", served.snapshot, f"{format_seconds(served.age_seconds)} old")
    table.add_row("sample", f"{served.sample:,}", f"of {whose}")
    if served.recall is not None and served.recall_low is not None and served.recall_high is not None:
        removed = " that are not removed" if served.removed_items else ""
        meaning = f"among today's items{removed}; {served.recall_low:.2%} to {served.recall_high:.2%}; when made "
        table.add_row("recall", f"{served.recall:.2%}", f"{meaning}{served.recall_when_made:.2%}")
    table.add_row("gone", f"{served.dead:.2%}", "candidates that are not items today")
    if served.removed_items:
        meaning = f"candidates that the overlay removes (items: {served.removed_items:,}); not counted as missed"
        table.add_row("removed", f"{served.removed:.2%}", meaning)
    keys = "keys" if served.sampled == "look-ups" else "queries of today"
    table.add_row("missed", f"{served.misses:.2%}", f"{keys} that the version does not have")
    if served.fallbacks is not None:
        table.add_row("fallbacks", f"{served.fallbacks:.2%}", "answered by a fallback instead of the key's list")
    if served.refresh_seconds is not None:
        table.add_row("refresh", format_seconds(served.refresh_seconds), "maximum age before recall is too low")
    return table
