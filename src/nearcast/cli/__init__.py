"""The command line: one module per command, which parses options, calls the library and prints the result.

Results go to standard output, as tables for people or, with --json, for programs. Progress, notes and errors go to
standard error. `nearcast.errors` lists the exit codes.
"""

from __future__ import annotations

import difflib
import gc
import logging
import sys
import warnings
from importlib import import_module
from typing import Any

import click

from nearcast.errors import NearcastError
from nearcast.storage.path_errors import explain_os_error
from nearcast.version import __version__

__all__ = ["COMMANDS", "cli", "main"]

INTERRUPTED = 130

# A command has the name of its module. Modules are imported when needed, so that `--help` loads no heavy library.
SECTIONS = {
    "Make and read lists": {
        "init": "Draft a spec from files of items and queries.",
        "check": "Check the inputs, and estimate the cost of a run.",
        "run": "Find the nearest items of every query, and write a snapshot.",
        "show": "Show a snapshot: its measures, settings and lists.",
        "lookup": "Show the candidates of a key.",
        "explain": "Explain why an item is or is not in a list.",
        "snapshots": "List the snapshots of a generator, or of all.",
        "export": "Append the lists of a snapshot to a table.",
        "tune": "Find the cheapest engine that meets the recall target.",
        "clean": "Remove unfinished work that nobody works on.",
    },
    "Publish and serve": {
        "refresh": "Run, audit and publish in one command.",
        "publish": "Audit a snapshot and make it current in a store.",
        "published": "List the versions in a store and the current one.",
        "rollback": "Make the previous version current again.",
        "canary": "Compare a canary with the current version; promote or withdraw.",
        "serve": "Look up candidates over HTTP.",
        "overlay": "Remove items from every answer, or change their values.",
        "update": "Bring new items into the served version, without a run.",
        "follow": "Bring files into the served version as they arrive.",
        "table": "Publish the most engaged items per key of a log.",
        "expand": "Publish an expansion table: the ads of each item.",
    },
    "Measure and watch": {
        "evaluate": "Measure lists by human labels or engagement.",
        "diff": "Compare two snapshots, and explain the changes.",
        "monitor": "Check the newest run and the current version.",
        "alerts": "List open alerts, acknowledge and snooze them.",
        "dashboard": "Write a dashboard of all generators as one HTML file.",
        "replay": "Answer a log of requests again, offline and online.",
        "head": "Find the keys that cover a share of the traffic.",
        "advise": "Compare the cost of offline, online and mixed serving.",
    },
    "One run on many machines": {
        "plan": "Compute what a run costs before anything runs.",
        "work": "Take part in a planned run as one of many workers.",
        "gather": "Make the snapshot of a planned run.",
        "watch": "Show the progress of a planned run.",
    },
    "About nearcast": {
        "spec": "Print a commented spec with every setting.",
        "completion": "Print a script that completes commands in a shell.",
        "info": "Show version, machine, kernels and extras.",
    },
}
COMMANDS = {name: text for commands in SECTIONS.values() for name, text in commands.items()}


class _Commands(click.Group):
    """Group that imports a command when it is used."""

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
        except click.UsageError as error:  # click cannot suggest names of commands that are not imported
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "`nearcast --help` lists them"
            raise click.UsageError(f"there is no command {args[0]!r}; {hint}", error.ctx) from None

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        """Return the commands and the options without importing the commands."""
        from click.shell_completion import CompletionItem

        found = [CompletionItem(name, help=text) for name, text in COMMANDS.items() if name.startswith(incomplete)]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl(list(commands.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="nearcast")
def cli() -> None:
    """Precompute the nearest items of every query, measure their recall, and look them up."""


def main() -> None:
    """Run the command line; exit with the exit code of the error."""
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("nearcast").setLevel(logging.INFO)
    warnings.showwarning = _show_warning
    try:
        _import_command(sys.argv[1:])
        cli.main(standalone_mode=False)
    except BrokenPipeError:  # the reader of our output has closed the pipe, as `head` does
        sys.stderr.close()
        sys.exit(0)
    except NearcastError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:  # a full disk or a read-only folder is not a bug of nearcast
        explained = explain_os_error(error)
        click.echo(f"error: {explained}", err=True)
        sys.exit(explained.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped: finished work is kept, and the same command continues it", err=True)
        sys.exit(INTERRUPTED)


def _import_command(arguments: list[str]) -> None:
    """Import the module of the command. What it makes stays to the end: the garbage collector need not search it."""
    if not arguments or arguments[0] not in COMMANDS:
        return
    gc.disable()
    try:
        import_module(f"nearcast.cli.{arguments[0]}")
    finally:
        gc.freeze()
        gc.enable()


def _show_warning(message: Warning | str, *_place: Any, **_options: Any) -> None:
    """Print a warning in one line, without the file and line of our code."""
    click.echo(f"warning: {message}", err=True)
