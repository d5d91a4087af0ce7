"""`nearcast refresh`: run, audit and publish, as one command for a scheduler."""

from __future__ import annotations

from pathlib import Path

import click

from nearcast.api.refreshing import Refreshed
from nearcast.api.refreshing import refresh as refresh_spec
from nearcast.cli.common import as_json, console, json_option, store_option, stretch
from nearcast.cli.monitor import post_alerts, raise_on, report
from nearcast.cli.progress import listening
from nearcast.cli.render_publish import audit_table, outcome
from nearcast.errors import AuditError
from nearcast.monitoring.alert import CHECKS
from nearcast.spec import load_spec

__all__ = ["refresh"]


@click.command()
@click.argument("spec", type=click.Path(path_type=Path, dir_okay=False))
@store_option
@click.option("--monitor", is_flag=True, help="Then look at what is served, as `nearcast monitor` does.")
@click.option(
    "--fail-on",
    "fail_on",
    type=click.Choice(["any", *CHECKS]),
    metavar="CHECK",
    multiple=True,
    help="Monitor, and exit with 13 where this check has found something. May be given several times.",
)
@click.option("--quiet", is_flag=True, help="No progress on standard error.")
@json_option
def refresh(
    spec: Path, store: str | None, monitor: bool, fail_on: tuple[str, ...], quiet: bool, as_json_: bool
) -> None:
    """Bring what is served up to date: run, audit, publish. For cron, Airflow and their like.

    May be called at any time and as often as one likes: unchanged inputs are not joined again, a snapshot that is
    current is not copied again, and a killed refresh is continued by the next.

    Exit codes: 0, what is served is up to date. 2 or 3, the spec or the inputs are at fault. 4, the snapshot is below
    its promise; 10, it failed its audit; either way what was served stays. 5, another refresh is under way. 6, the
    work does not fit the memory or the disk. 8, a file is damaged. 11, the store cannot be reached; try again. 13,
    published, and a check named by --fail-on has found something.
    """
    with listening(quiet=quiet or as_json_) as listener:
        try:
            done = refresh_spec(spec, store=store, watch_too=monitor or bool(fail_on), listener=listener)
        except AuditError as error:
            if as_json_:
                as_json({"outcome": "refused", "findings": [finding.as_dict() for finding in error.findings]})  # type: ignore[attr-defined]
            else:
                console().print(audit_table(error.findings, {}))  # type: ignore[arg-type]
            raise
    if as_json_:
        as_json(done.as_dict())
    else:
        _show(done)
    if done.watched is not None:
        post_alerts(load_spec(spec).monitor.webhook, done.watched)
        raise_on(done.watched, fail_on)


def _show(done: Refreshed) -> None:
    snapshot, run = done.snapshot, done.snapshot.manifest.run
    if done.reused:
        made = f"snapshot {snapshot.name} is of these inputs already, made {run.created}"
    else:
        made = f"snapshot {snapshot.name}: {snapshot.n_rows:,} queries in {stretch(run.seconds_total)}"
    screen = console()
    screen.print(made)
    screen.print(outcome(done.publication))
    if done.watched is not None:
        screen.print("")
        screen.print(report(done.watched))
