"""The command line: one file per command. Each parses, calls one function of the library, and shows the result.

What goes to standard output is the answer, as tables for people or with --json for programs; progress, notes
and errors go to standard error. Every error has an exit code, listed in `nearcast.errors`.
"""

from __future__ import annotations

import difflib
import logging
import sys
import warnings
from importlib import import_module
from typing import Any

import click

from nearcast.errors import NearcastError
from nearcast.version import __version__

__all__ = ["COMMANDS", "cli", "main"]

INTERRUPTED = 130

# Each is called like its module, which is imported when it is asked for: no command waits for the libraries of others.
COMMANDS = {
    "run": "Find the nearest items of every query, and write a snapshot.",
    "check": "Judge the inputs, and estimate what a run takes.",
    "tune": "Find the cheapest engine that keeps the promised recall.",
    "show": "Show a snapshot: its measures, settings and lists.",
    "lookup": "Show the candidates of a key.",
    "snapshots": "List the snapshots of a generator, or of all.",
    "explain": "Say why an item is in the list of a query, or not.",
    "diff": "Say what changed between two snapshots, and why.",
    "head": "Pick the keys that cover a share of the traffic.",
    "advise": "Say what offline, online and a mix of both cost.",
    "replay": "Send a log of requests through the whole funnel.",
    "publish": "Audit a snapshot and make it current in a store.",
    "table": "Publish what each key of a log engaged with most.",
    "expand": "Make ads and links the current expansion table.",
    "rollback": "Make the version before the current one current.",
    "published": "Show what is current in a store, and its versions.",
    "refresh": "Run, audit and publish: the command of every night.",
    "monitor": "Say what is wrong with runs and with what is served.",
    "dashboard": "Write one HTML page about every generator.",
    "overlay": "Take items out of every answer at once, or change them.",
    "serve": "Answer over HTTP from a store.",
    "spec": "Print a commented spec with every setting.",
    "info": "Show version, machine, kernels and extras.",
}


class _Commands(click.Group):
    """The commands by name, imported one by one."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"nearcast.cli.{cmd_name}"), cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:  # it knows no names to suggest, since commands are imported when needed
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "`nearcast --help` lists them"
            raise click.UsageError(f"there is no command {args[0]!r}; {hint}", error.ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="nearcast")
def cli() -> None:
    """Find the nearest items for every query ahead of time, check the answer, and look it up."""


def main() -> None:
    """Run the command line and exit with the code of the error, if there is one."""
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("nearcast").setLevel(logging.INFO)
    warnings.showwarning = _show_warning
    try:
        cli.main(standalone_mode=False)
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        sys.stderr.close()
        sys.exit(0)
    except NearcastError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:  # a disk that is full, a folder that may not be written: theirs to mend, not a bug of ours
        click.echo(f"error: {error.strerror or error}: {error.filename or 'no file named'}", err=True)
        sys.exit(NearcastError.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped: what was finished is kept, and the same command continues it", err=True)
        sys.exit(INTERRUPTED)


def _show_warning(message: Warning | str, *_place: Any, **_options: Any) -> None:
    """Print a warning in one line, without the file and line of our code."""
    click.echo(f"warning: {message}", err=True)
