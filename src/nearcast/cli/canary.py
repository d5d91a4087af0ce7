"""`nearcast canary`: compare a canary with the current version; promote, withdraw or watch it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.text import Text

from nearcast.api.arguments import resolve_store_target
from nearcast.api.canaries import (
    EVERY_SECONDS,
    CanarySource,
    promote_canary,
    read_canary,
    set_canary_share,
    watch_canary,
    withdraw_canary,
)
from nearcast.cli.common import (
    InputPath,
    console,
    explicit_out,
    json_option,
    out_option,
    pass_options,
    plain_table,
    print_json,
    quiet_option,
    store_option,
)
from nearcast.cli.complete_names import GeneratorName
from nearcast.cli.progress import show_progress
from nearcast.cli.publish import parse_canary_share
from nearcast.cli.render_publish import describe_publication
from nearcast.cli.serve import read_tokens
from nearcast.errors import UndecidedError, WithdrawnError
from nearcast.join.listener import Listener
from nearcast.monitoring.watch_canary import CanaryReport
from nearcast.storage.locations import Location

__all__ = ["CanaryOptions", "canary"]


@dataclass(frozen=True, slots=True)
class CanaryOptions:
    """Options of `nearcast canary`."""

    promote: bool
    withdraw: bool
    why: str
    share: str | None
    watching: bool
    every: float
    services: tuple[str, ...]
    token_file: Path | None
    engagement: Path | str | None
    key: str
    item: str
    time: str | None
    store: str | None
    out: Location


@click.command()
@click.argument("generator", type=GeneratorName(specs=True), metavar="GENERATOR|SPEC")
@click.option("--promote", is_flag=True, help="Make the canary's version current.")
@click.option("--withdraw", is_flag=True, help="End the canary: the current version answers all keys again.")
@click.option("--why", metavar="TEXT", default="", help="Reason for --promote or --withdraw, kept in the store.")
@click.option("--share", metavar="SHARE", help="Change the share of the keys, for example to 20%.")
@click.option("--watch", "watching", is_flag=True, help="Promote or withdraw by the rules of the spec's [canary].")
@click.option(
    "--every",
    type=click.FloatRange(0.05, 3600),
    metavar="SECONDS",
    default=EVERY_SECONDS,
    show_default=True,
    help="Time between two looks of --watch.",
)
@click.option(
    "--service",
    "services",
    metavar="URL",
    multiple=True,
    help="Service that serves the generator, for example http://127.0.0.1:8080. Its figures count. Repeatable.",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="File whose first line is the bearer token of the services. Default: the token in NEARCAST_TOKEN.",
)
@click.option(
    "--engagement",
    type=InputPath(),
    metavar="LOG",
    help="Parquet log with one row per engagement: compares the hit rates of both versions' lists.",
)
@click.option("--key", metavar="COLUMN", default="key", show_default=True, help="Column of the keys in LOG.")
@click.option("--item", metavar="COLUMN", default="item", show_default=True, help="Column of the engaged items.")
@click.option("--time", metavar="COLUMN", help="Column of the time; rows from before the canary are left out.")
@store_option
@out_option
@quiet_option
@json_option
@pass_options(CanaryOptions)
def canary(generator: str, options: CanaryOptions, quiet: bool, as_json_: bool) -> None:
    """Show the canary of GENERATOR beside the current version, or end, change or watch it.

    --watch exits with code 0 after a promotion, 17 after a withdrawal, and 18 if too little was measured or read to
    decide within max_seconds. A watcher that is killed changes nothing. `nearcast publish --canary 5%` starts a canary.
    """
    chosen = [options.promote, options.withdraw, options.watching, options.share is not None]
    if sum(chosen) > 1:
        raise click.UsageError("--promote, --withdraw, --share and --watch exclude each other; give one of them")
    if options.watching and not options.services:
        raise click.UsageError("--watch needs the figures of the services; name each of them with --service URL")
    place: dict[str, Any] = {"store": options.store, "out": explicit_out(generator, options.out)}
    name = resolve_store_target(generator, place["out"]).generator
    with show_progress(quiet=quiet or as_json_) as listener:
        shown, error = _act(generator, name, options, place | {"listener": listener})
    if as_json_:
        print_json(shown if isinstance(shown, Mapping) else shown.as_dict())
    elif isinstance(shown, CanaryReport):
        console().print(build_canary_report(shown))
    elif not isinstance(shown, Mapping):
        console().print(describe_publication(shown))
    else:
        console().print(_describe_change(name, shown))
    if error is not None:
        raise error


def _act(generator: str, name: str, options: CanaryOptions, place: dict[str, Any]) -> tuple[Any, Exception | None]:
    """Do what the options say. Return what to show, and the error that gives the exit code. name: of the generator."""
    if options.promote:
        return promote_canary(generator, why=options.why, **place), None
    if options.withdraw:
        return asdict(withdraw_canary(generator, why=options.why, **place)) | {"outcome": "withdrawn"}, None
    if options.share is not None:
        share = parse_canary_share(options.share, generator, options.out)
        return asdict(set_canary_share(generator, share, **place)) | {"outcome": "share changed"}, None
    tokens = read_tokens(options.token_file)
    source = CanarySource(
        options.services,
        tokens[0].decode() if tokens else None,
        options.engagement,
        options.key,
        options.item,
        options.time,
    )
    if not options.watching:
        return read_canary(generator, source, **place), None
    return _watch(generator, name, source, options, place)


def _watch(
    generator: str, name: str, source: CanarySource, options: CanaryOptions, place: dict[str, Any]
) -> tuple[Any, Exception | None]:
    listener: Listener = place["listener"]
    last = ""

    def show(report: CanaryReport) -> None:
        nonlocal last
        text = f"{report.verdict.decision}: {report.verdict.why}"
        text += "".join(f"; {url} cannot be asked: {why}" for url, why in report.unreachable.items())
        if text != last:
            listener.note(text)
        last = text

    done = watch_canary(generator, source, every_seconds=options.every, show=show, **place)
    shown = {"outcome": done.outcome, "why": done.why, "report": None if done.report is None else done.report.as_dict()}
    if done.outcome == "withdrawn":
        return shown, WithdrawnError(f"the canary of {name} is withdrawn: {done.why}")
    if done.outcome == "undecided":
        return shown, UndecidedError(
            f"the canary of {name} is live and undecided: {done.why}; watch again, or decide with --promote or "
            "--withdraw"
        )
    return shown, None


def _describe_change(name: str, shown: Mapping[str, Any]) -> Text:
    if "why" in shown:
        return Text(f"the canary of {name} is {shown['outcome']}: {shown['why']}")
    return Text(f"canary {shown['version']:06d} of {name}: {shown['outcome']}, {shown['share']:.4g} of the keys")


def build_canary_report(report: CanaryReport) -> Group:
    """Format both arms and the findings of the rules."""
    live, figures = report.canary, report.figures
    headline = f"{report.generator} in {report.store}: {live.mode} {live.version:06d} beside {report.current:06d}"
    table = plain_table("", right=(f"current {report.current:06d}", f"canary {live.version:06d}"))
    rows = {"look-ups": "answers", "empty": "empty_rate", "errors": "errors", "fill": "mean_fill"}
    rows |= {"p50 (s)": "p50_seconds", "p99 (s)": "p99_seconds"}
    arms = (figures.current.summarize(), figures.canary.summarize())
    for title, name in rows.items():
        table.add_row(title, *(_format(arm[name]) for arm in arms))
    if report.hits is not None:
        counts = report.hits.summarize()
        table.add_row("hit rate", _format(counts["current"]), _format(counts["canary"]))
    parts: list[RenderableType] = [
        Text(headline, style="bold"),
        Text(f"{live.share:.4g} of the keys since {live.since}"),
        table,
    ]
    parts.append(Text(f"overlap {_format(figures.mean_overlap)} over {figures.keys:,} keys"))
    parts += [
        Text(f"{finding.rule}: {finding.text}", style="" if finding.holds else "red")
        for finding in report.verdict.findings
    ]
    parts += [Text(f"{url} cannot be asked: {why}", style="red") for url, why in report.unreachable.items()]
    return Group(*parts)


def _format(value: float | None) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
