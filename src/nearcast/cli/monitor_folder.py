"""`nearcast monitor --all`: check the generators of all specs in a folder. One that fails does not stop the others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from nearcast.cli.common import console, plain_table, print_json
from nearcast.cli.monitor import monitor_one, raise_on
from nearcast.errors import AlertError, NearcastError, NotFoundError
from nearcast.monitoring.alert_receivers import AlertSender
from nearcast.settings.parse_spec import read_tables
from nearcast.storage.path_errors import explain_os_error

if TYPE_CHECKING:
    from nearcast.cli.monitor import MonitorOptions
    from nearcast.monitoring.monitor_pass import MonitorReport

__all__ = ["FolderEntry", "monitor_folder"]


@dataclass(frozen=True, slots=True)
class FolderEntry:
    """The outcome of one spec."""

    spec: Path
    report: MonitorReport | None
    error: NearcastError | None  # AlertError for an alert of --fail-on

    @property
    def rank(self) -> int:
        """How bad it is: 0 for nothing, 1 for an alert of --fail-on, 2 for a check that failed."""
        return 0 if self.error is None else 1 if isinstance(self.error, AlertError) else 2

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "spec": str(self.spec),
            "error": None if self.error is None else str(self.error),
            "exit_code": 0 if self.error is None else self.error.exit_code,
            "report": None if self.report is None else self.report.as_dict(),
        }


def monitor_folder(folder: Path, options: MonitorOptions, *, explicit_out: bool, quiet: bool, as_json_: bool) -> None:
    """Check all specs of a folder, by name, and print one row for each.

    Raises the error of the worst: a check that failed, then an alert of --fail-on; of several, the first one by name.
    Raises NotFoundError if the folder holds no spec of a generator.
    """
    specs = [path for path in sorted(folder.glob("*.toml")) if path.is_file() and _may_be_generator(path)]
    if not specs:
        raise NotFoundError(f"{folder} holds no spec of a generator (*.toml); name the folder of the specs")
    sender = AlertSender()
    entries = [_check_spec(path, options, sender, explicit_out=explicit_out, quiet=quiet) for path in specs]
    if as_json_:
        print_json([entry.as_dict() for entry in entries])
    else:
        console().print(_build_table(entries))
    worst = max(entries, key=lambda entry: entry.rank)
    if worst.error is None:
        return
    bad = sum(entry.rank == worst.rank for entry in entries)
    if bad == 1:
        raise worst.error
    others = f"; and {bad - 1} more of {len(entries)} {'failed' if worst.rank == 2 else 'have alerts'}"
    raise _make_error(worst.error, f"{worst.error}{others}")


def _make_error(error: NearcastError, text: str) -> NearcastError:
    """Return an error with the exit code of another one."""
    found = NearcastError(text)
    found.exit_code = error.exit_code
    return found


def _may_be_generator(path: Path) -> bool:
    """Return False for the spec of an expansion table; a file that cannot be read is checked, and fails there."""
    try:
        tables = read_tables(path, "correct it")
    except (NearcastError, OSError):
        return True
    return "metric" in tables or "ads" not in tables


def _check_spec(
    path: Path, options: MonitorOptions, sender: AlertSender, *, explicit_out: bool, quiet: bool
) -> FolderEntry:
    report: MonitorReport | None = None
    error: NearcastError | None = None
    try:
        report = monitor_one(str(path), options, sender, explicit_out=explicit_out, quiet=True)
        raise_on(report, options.fail_on)
    except NearcastError as found:
        error = found
    except OSError as found:
        error = explain_os_error(found)
    except Exception as found:  # a fault of ours: the other generators are checked all the same
        error = NearcastError(f"unexpected {type(found).__name__}: {found}")
    if error is not None and not quiet:
        click.echo(str(error) if path.name in str(error) else f"{path.name}: {error}", err=True)
    return FolderEntry(path, report, error)


def _build_table(entries: list[FolderEntry]) -> Table:
    table = plain_table()
    for name in ("spec", "generator", "status"):
        table.add_column(name, overflow="fold")
    for entry in entries:
        report = entry.report
        if report is None:
            status = Text(f"not checked: {entry.error}", style="bold red")
        else:
            status = Text(report.verdict, style="bold red" if report.alerts else "green")
        table.add_row(entry.spec.name, "" if report is None else report.generator, status)
    return table
