"""`nearcast monitor`: whether the newest run is as promised and as usual, and how stale is what is served."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
from click.core import ParameterSource
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nearcast.api.refreshing import monitor as look
from nearcast.cli.common import LocalPath, as_json, console, json_option, out_option, store_option, stretch
from nearcast.cli.progress import listening
from nearcast.errors import AlertError, SpecError
from nearcast.history.event_log import read
from nearcast.monitoring.alert import CHECKS, Alert
from nearcast.monitoring.history_chart import draw_history
from nearcast.monitoring.monitor_pass import Watched, tell
from nearcast.monitoring.staleness import FEWEST_LOOKUPS, Served
from nearcast.spec import load_spec
from nearcast.webhook import parse_webhook

__all__ = ["monitor", "raise_on", "report"]

MOST_DRAWN = 2_000  # events: a year of several a day


def _list_checks(context: click.Context, _parameter: click.Parameter, chosen: bool) -> None:
    """Print the checks and end, before the argument is missed."""
    if not chosen or context.resilient_parsing:
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("check")
    table.add_column("finds")
    for name, meaning in CHECKS.items():
        table.add_row(name, meaning)
    console().print(table)
    context.exit()


def webhook_of(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """Return the URL of --webhook; raise SpecError, before any work, if nothing can be posted to it."""
    try:
        if value is not None:
            parse_webhook(value)
    except ValueError as error:
        raise SpecError(f"--webhook: {error}") from None
    return value


@click.command()
@click.argument("generator", metavar="SPEC|GENERATOR")
@store_option
@out_option
@click.option(
    "--samples",
    type=LocalPath(file_okay=False),
    metavar="FOLDER",
    help="Where services leave the keys that they were asked for; OUT/lookups.",
)
@click.option(
    "--fail-on",
    "fail_on",
    type=click.Choice(["any", *CHECKS]),
    metavar="CHECK",
    multiple=True,
    help="Exit with 13 where this check has found something; any is all of them. May be given several times.",
)
@click.option(
    "--webhook", callback=webhook_of, metavar="URL", help="Post alerts to this http or https URL as JSON; the spec's."
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
    help="List the checks, and do nothing else.",
)
@click.option("--quiet", is_flag=True, help="No progress on standard error.")
@json_option
@click.pass_context
def monitor(
    context: click.Context,
    generator: str,
    store: str | None,
    out: Path,
    samples: Path | None,
    fail_on: tuple[str, ...],
    webhook: str | None,
    picture: Path | None,
    quiet: bool,
    as_json_: bool,
) -> None:
    """Say what is wrong: with the newest run, and with what is served, held against today's items.

    With a SPEC (.toml), lists that were looked up are compared with the exact neighbors among today's items; for the
    name of a GENERATOR only its runs are checked. What is found is added to OUT/history.sqlite.
    """
    given = context.get_parameter_source("out") is ParameterSource.COMMANDLINE
    by_spec = generator.endswith(".toml")
    with listening(quiet=quiet or as_json_) as listener:
        watched = look(
            generator, store=store, out=out if given or not by_spec else None, samples=samples, listener=listener
        )
    spec = load_spec(Path(generator)) if by_spec else None
    if picture is not None:
        home = out if given or spec is None else Path(generator).parent / spec.out
        draw_history(read(home, watched.generator, last=MOST_DRAWN), picture)
    if as_json_:
        as_json(watched.as_dict())
    else:
        console().print(report(watched))
    url = webhook or (spec.monitor.webhook if spec else None)
    post_alerts(url, watched)
    raise_on(watched, fail_on)


def post_alerts(url: str | None, watched: Watched) -> None:
    """Post the alerts, if there are any, to the webhook, if there is one; warn if they were not delivered."""
    failure = tell(url, watched, watched.alerts) if url and watched.alerts else None
    if failure:
        click.echo(f"warning: the webhook was not reached: {failure}", err=True)


def raise_on(watched: Watched, fail_on: Sequence[str]) -> None:
    """Raise why what is served could not be looked at, if it could not; AlertError for a finding of these checks.

    fail_on: names of checks; "any" is all of them.
    """
    if watched.failure is not None:
        raise watched.failure
    failing = [alert.check for alert in watched.alerts if "any" in fail_on or alert.check in fail_on]
    if failing:
        raise AlertError(
            f"{watched.generator}: {', '.join(dict.fromkeys(failing))}; docs/monitoring.md says what to do"
        )


def report(watched: Watched) -> Group:
    """What one pass has found, for people."""
    parts: list[RenderableType] = []
    name = watched.generator if watched.version is None else f"{watched.generator} {watched.version:06d}"
    runs = "run" if watched.runs == 1 else "runs"
    compared = f"compared with {watched.runs:,} {runs} before" if watched.version is not None else "no run here"
    parts.append(Text(f"{name}, {compared}", style="bold"))
    if watched.served is not None:
        parts += ["", _served_table(watched.served)]
    parts.append("")
    if watched.users_get:
        parts += [Text(watched.users_get), ""]
    parts.append(_alert_table(watched.alerts) if watched.alerts else Text(watched.verdict, style="green"))
    return Group(*parts)


def _alert_table(alerts: tuple[Alert, ...]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column("check", style="bold red")
    table.add_column("text")
    for alert in alerts:
        follows = f" (from this, most likely: {', '.join(alert.follows)})" if alert.follows else ""
        table.add_row(alert.check, f"{alert.headline}. {alert.text}{follows}")
    return table


def _served_table(served: Served) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("served")
    table.add_column("", justify="right")
    table.add_column("", style="dim")
    whose = (
        f"{served.lookups:,} look-ups"
        if served.sampled == "look-ups"
        else f"today's queries: fewer than {FEWEST_LOOKUPS} look-ups are recorded"
    )
    table.add_row("snapshot", served.snapshot, f"{stretch(served.age_seconds)} old")
    table.add_row("sample", f"{served.sample:,}", f"of {whose}")
    if served.recall is not None and served.recall_low is not None and served.recall_high is not None:
        removed = " that are not removed" if served.removed_items else ""
        meaning = f"among today's items{removed}; {served.recall_low:.2%} to {served.recall_high:.2%}; when made "
        table.add_row("recall", f"{served.recall:.2%}", f"{meaning}{served.recall_when_made:.2%}")
    table.add_row("gone", f"{served.dead:.2%}", "candidates that are not among today's items")
    if served.removed_items:
        meaning = f"candidates that the overlay removes, by {served.removed_items:,} items; they are not missed"
        table.add_row("removed", f"{served.removed:.2%}", meaning)
    keys = "keys" if served.sampled == "look-ups" else "queries of today"
    table.add_row("missed", f"{served.misses:.2%}", f"{keys} that the table does not have")
    if served.fallbacks is not None:
        table.add_row("fallbacks", f"{served.fallbacks:.2%}", "answered by something else than the key's own list")
    if served.refresh_seconds is not None:
        table.add_row("refresh", stretch(served.refresh_seconds), "how old it may get until recall is too low")
    return table
