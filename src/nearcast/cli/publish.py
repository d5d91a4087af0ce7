"""`nearcast publish`: audit a snapshot and make it the current version."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import click

from nearcast.api.arguments import resolve_store_target
from nearcast.api.publications import publish as publish_snapshot
from nearcast.cli.common import (
    console,
    explicit_out,
    json_option,
    out_option,
    pass_options,
    print_json,
    quiet_option,
    store_option,
)
from nearcast.cli.complete_names import GeneratorName, complete_versions
from nearcast.cli.progress import show_progress
from nearcast.cli.render_publish import build_audit_table, describe_publication
from nearcast.errors import AuditError, SpecError
from nearcast.publishing.audit_rules import Finding
from nearcast.publishing.move_canary import validate_share
from nearcast.storage.locations import Location

__all__ = ["PublishOptions", "parse_canary_share", "publish"]


@dataclass(frozen=True, slots=True)
class PublishOptions:
    """Options of `nearcast publish`."""

    store: str | None
    out: Location
    max_bytes_per_second: str | None
    rules: tuple[str, ...]
    reasons: tuple[str, ...]
    dry_run: bool
    repair: bool
    canary: str | None
    shadow: bool
    replace_canary: bool


@click.command()
@click.argument("generator", type=GeneratorName(specs=True), metavar="GENERATOR|SPEC")
@click.argument("snapshot", type=click.IntRange(min=1), required=False, shell_complete=complete_versions)
@store_option
@out_option
@click.option(
    "--max-bytes-per-second",
    metavar="RATE",
    help='Limits the speed of the copy, for example "50MB". Default: the spec\'s.',
)
@click.option(
    "--accept", "rules", metavar="RULE", multiple=True, help="Publish even if this rule fails. Needs --why. Repeatable."
)
@click.option("--why", "reasons", metavar="TEXT", multiple=True, help="Reason for --accept, stored with the version.")
@click.option("--dry-run", is_flag=True, help="Audit, and print the size of the copy. Changes nothing.")
@click.option("--repair", is_flag=True, help="Continue if the pointer or the current version cannot be read.")
@click.option(
    "--canary",
    metavar="SHARE",
    help="Share of the keys, for example 5%, that the version answers beside the current one, which stays. "
    "`spec`: the share in the spec's [canary]. See docs/canary.md.",
)
@click.option(
    "--shadow",
    is_flag=True,
    help="Look keys up in the version to measure it, and answer none from it. Default: all keys, or --canary SHARE.",
)
@click.option("--replace-canary", is_flag=True, help="End a canary that is live. It counts as rolled back.")
@quiet_option
@json_option
@pass_options(PublishOptions)
def publish(generator: str, snapshot: int | None, options: PublishOptions, quiet: bool, as_json_: bool) -> None:
    """Audit a snapshot (default: the newest), copy it into the store, verify the copy, and make it current.

    With the name of a GENERATOR, the settings of its snapshot apply; with a SPEC (.toml), its settings as they are
    now. Exit code 10: a rule failed and nothing has changed. If the command is killed, the old version stays current.
    """
    share = None if options.canary is None else parse_canary_share(options.canary, generator, options.out)
    accept = _pair_reasons(options.rules, options.reasons)
    with show_progress(quiet=quiet or as_json_) as listener:
        try:
            done = publish_snapshot(
                generator,
                snapshot,
                store=options.store,
                out=explicit_out(generator, options.out),
                accept=accept,
                dry_run=options.dry_run,
                repair=options.repair,
                max_bytes_per_second=options.max_bytes_per_second,
                canary=share,
                shadow=options.shadow,
                replace_canary=options.replace_canary,
                listener=listener,
            )
        except AuditError as error:
            _print_failure(cast(tuple[Finding, ...], error.findings), accept, as_json_=as_json_)
            raise
    if as_json_:
        print_json(done.as_dict())
        return
    if done.findings:
        console().print(build_audit_table(done.findings, done.accepted or {}))
    console().print(describe_publication(done))


def parse_canary_share(text: str, generator: str, out: Location) -> float:
    """Return a share written as 5% or 0.05; that of the [canary] of the generator for `spec`. Raises SpecError."""
    if text == "spec":
        return resolve_store_target(generator, explicit_out(generator, out)).canary.share
    try:
        share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise SpecError(f"the share of a canary is {text!r}; write 5% or 0.05") from None
    return validate_share(share)


def _pair_reasons(rules: tuple[str, ...], reasons: tuple[str, ...]) -> dict[str, str]:
    if len(rules) != len(reasons):
        raise click.UsageError(f"each --accept needs one --why, got {len(rules)} and {len(reasons)}")
    if len(set(rules)) < len(rules):
        raise click.UsageError("--accept names a rule twice; name it once")
    return dict(zip(rules, reasons, strict=True))


def _print_failure(findings: tuple[Finding, ...], accept: dict[str, str], *, as_json_: bool) -> None:
    if as_json_:
        print_json({"outcome": "refused", "findings": [finding.as_dict() for finding in findings]})
    else:
        console().print(build_audit_table(findings, accept))
