"""`nearcast check`: do everything of a run that comes before the join."""

from __future__ import annotations

from pathlib import Path

import click

from nearcast.api.runs import check as check_spec
from nearcast.cli.common import console, json_option, print_json
from nearcast.cli.progress import show_progress
from nearcast.cli.render import build_input_table, build_rule_table

__all__ = ["check"]


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@json_option
def check(spec: Path, as_json_: bool) -> None:
    """Do everything of a run that comes before the join, and write nothing.

    Reads and checks the inputs, with the errors and exit codes of a run. Estimates time, memory and disk. Prints the
    share of sampled pairs that each rule keeps.
    """
    with show_progress(quiet=as_json_) as listener:
        report, estimate = check_spec(spec, listener=listener)
    if as_json_:
        print_json({"report": report.as_dict(), "estimate": estimate.as_dict()})
        return
    screen = console()
    screen.print(build_input_table(report))
    if estimate.rules:
        screen.print(build_rule_table(estimate.rules))
    screen.print("the inputs pass the checks")
