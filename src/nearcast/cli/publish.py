"""`nearcast publish`: a snapshot goes live, if it passes its audit."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import click

from nearcast.api.publications import publish as publish_snapshot
from nearcast.cli.common import as_json, console, json_option, out_of, out_option, store_option
from nearcast.cli.progress import listening
from nearcast.cli.render_publish import audit_table, outcome
from nearcast.errors import AuditError
from nearcast.publishing.audit_rules import Finding

__all__ = ["publish"]


@click.command()
@click.argument("generator", metavar="GENERATOR|SPEC")
@click.argument("snapshot", type=click.IntRange(min=1), required=False)
@store_option
@out_option
@click.option("--max-bytes-per-second", metavar="RATE", help='Throttle of the copy, such as "50MB"; the spec\'s.')
@click.option("--accept", "rules", metavar="RULE", multiple=True, help="Publish although this rule fails; needs --why.")
@click.option("--why", "reasons", metavar="TEXT", multiple=True, help="The reason, kept with the version.")
@click.option("--dry-run", is_flag=True, help="Audit, and say what would be copied. Changes nothing.")
@click.option("--repair", is_flag=True, help="Do without a pointer or a current version that cannot be read.")
@click.option("--quiet", is_flag=True, help="No progress on standard error.")
@json_option
def publish(
    generator: str,
    snapshot: int | None,
    store: str | None,
    out: Path,
    max_bytes_per_second: str | None,
    rules: tuple[str, ...],
    reasons: tuple[str, ...],
    dry_run: bool,
    repair: bool,
    quiet: bool,
    as_json_: bool,
) -> None:
    """Audit a snapshot, the newest by default, copy it into the store, read it back, and make it current.

    GENERATOR is a name, with the settings that its snapshot was made by; a SPEC (.toml) counts as it is now.
    Exit code 10: a rule failed, and nothing has changed. Killed at any moment, the old snapshot stays current.
    """
    accept = _paired(rules, reasons)
    with listening(quiet=quiet or as_json_) as listener:
        try:
            done = publish_snapshot(
                generator,
                snapshot,
                store=store,
                out=out_of(generator, out),
                accept=accept,
                dry_run=dry_run,
                repair=repair,
                max_bytes_per_second=max_bytes_per_second,
                listener=listener,
            )
        except AuditError as error:
            _show_failure(cast(tuple[Finding, ...], error.findings), accept, as_json_=as_json_)
            raise
    if as_json_:
        as_json(done.as_dict())
        return
    if done.findings:
        console().print(audit_table(done.findings, done.accepted or {}))
    console().print(outcome(done))


def _paired(rules: tuple[str, ...], reasons: tuple[str, ...]) -> dict[str, str]:
    if len(rules) != len(reasons):
        raise click.UsageError(f"each --accept has its --why: there are {len(rules)} and {len(reasons)}")
    if len(set(rules)) < len(rules):
        raise click.UsageError("a rule is accepted twice")
    return dict(zip(rules, reasons, strict=True))


def _show_failure(findings: tuple[Finding, ...], accept: dict[str, str], *, as_json_: bool) -> None:
    if as_json_:
        as_json({"outcome": "refused", "findings": [finding.as_dict() for finding in findings]})
    else:
        console().print(audit_table(findings, accept))
