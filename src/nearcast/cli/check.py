"""`nearcast check`: all of a run that comes before the join."""

from __future__ import annotations

from pathlib import Path

import click

from nearcast.api.runs import check as check_spec
from nearcast.cli.common import as_json, console, json_option
from nearcast.cli.progress import listening
from nearcast.cli.render import input_table, rule_table

__all__ = ["check"]


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@json_option
def check(spec: Path, as_json_: bool) -> None:
    """Do all of a run that comes before its join: a complete dry run that keeps nothing.

    Reads and judges the inputs, refuses with the exit code and the words of a run, estimates time, memory and disk, and
    says which share of a sample of pairs each rule keeps.
    """
    with listening(quiet=as_json_) as listener:
        report, estimate = check_spec(spec, listener=listener)
    if as_json_:
        as_json({"report": report.as_dict(), "estimate": estimate.as_dict()})
        return
    screen = console()
    screen.print(input_table(report))
    if estimate.rules:
        screen.print(rule_table(estimate.rules))
    screen.print("the inputs pass the checks")
