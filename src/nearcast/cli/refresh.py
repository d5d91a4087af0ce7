"""`nearcast refresh`: run, audit and publish in one command, for a scheduler."""

from __future__ import annotations

from pathlib import Path

import click

from nearcast.api.refreshing import RefreshResult
from nearcast.api.refreshing import refresh as refresh_spec
from nearcast.cli.common import console, format_seconds, json_option, print_json, quiet_option, store_option
from nearcast.cli.monitor import build_report, post_alerts, raise_on
from nearcast.cli.progress import show_progress
from nearcast.cli.render_publish import build_audit_table, describe_publication
from nearcast.errors import AuditError
from nearcast.monitoring.alert import CHECKS
from nearcast.monitoring.alert_receivers import AlertSender
from nearcast.spec import load_spec

__all__ = ["refresh"]


@click.command()
@click.argument("spec", type=click.Path(path_type=Path, dir_okay=False))
@store_option
@click.option("--monitor", is_flag=True, help="Then check the current version, as `nearcast monitor` does.")
@click.option(
    "--fail-on",
    "fail_on",
    type=click.Choice(["any", *CHECKS]),
    metavar="CHECK",
    multiple=True,
    help="Implies --monitor. Exit with code 13 if this check raises an alert. Repeatable.",
)
@quiet_option
@json_option
def refresh(
    spec: Path, store: str | None, monitor: bool, fail_on: tuple[str, ...], quiet: bool, as_json_: bool
) -> None:
    """Run, audit and publish: for cron, Airflow and other schedulers.

    Idempotent: unchanged inputs are not joined again, a current snapshot is not copied again, and the next refresh
    continues a killed one.

    Exit codes: 0, the current version is up to date. 2, error in the spec. 3, error in the inputs. 4, the snapshot is
    below its recall target. 10, it failed its audit. After 4 and 10 the current version does not change. 5, another
    refresh is running. 6, the memory or disk budget is too small. 8, a file is damaged. 11, the store cannot be
    reached; try again. 13, published, and a check of --fail-on raised an alert.
    """
    with show_progress(quiet=quiet or as_json_) as listener:
        try:
            done = refresh_spec(spec, store=store, with_monitor=monitor or bool(fail_on), listener=listener)
        except AuditError as error:
            if as_json_:
                print_json({"outcome": "refused", "findings": [finding.as_dict() for finding in error.findings]})  # type: ignore[attr-defined]
            else:
                console().print(build_audit_table(error.findings, {}))  # type: ignore[arg-type]
            raise
    if as_json_:
        print_json(done.as_dict())
    else:
        _print_result(done)
    if done.watched is not None:
        post_alerts(load_spec(spec).monitor, done.watched, AlertSender())
        raise_on(done.watched, fail_on)


def _print_result(done: RefreshResult) -> None:
    snapshot, run = done.snapshot, done.snapshot.manifest.run
    if done.reused:
        made = f"snapshot {snapshot.name}, made {run.created}, is of the same inputs: nothing to join"
    else:
        made = f"snapshot {snapshot.name}: {snapshot.n_rows:,} queries in {format_seconds(run.seconds_total)}"
    screen = console()
    screen.print(made)
    screen.print(describe_publication(done.publication))
    if done.watched is not None:
        screen.print("")
        screen.print(build_report(done.watched))
