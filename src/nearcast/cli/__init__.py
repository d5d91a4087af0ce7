"""The command line: one file per command. Each parses, calls one function of the library, and shows the result.

What goes to standard output is the answer, as tables for people or with --json for programs; progress, notes
and errors go to standard error. Every error has an exit code, listed in `nearcast.errors`.
"""

from __future__ import annotations

import logging
import sys

import click

from nearcast.cli.advise import advise
from nearcast.cli.check import check
from nearcast.cli.dashboard import dashboard
from nearcast.cli.diff import diff
from nearcast.cli.expand import expand
from nearcast.cli.explain import explain
from nearcast.cli.head import head
from nearcast.cli.info import info
from nearcast.cli.lookup import lookup
from nearcast.cli.monitor import monitor
from nearcast.cli.overlay import overlay
from nearcast.cli.publish import publish
from nearcast.cli.published import published
from nearcast.cli.refresh import refresh
from nearcast.cli.replay import replay
from nearcast.cli.rollback import rollback
from nearcast.cli.run import run
from nearcast.cli.serve import serve
from nearcast.cli.show import show
from nearcast.cli.snapshots import snapshots
from nearcast.cli.spec import spec
from nearcast.cli.table import table
from nearcast.cli.tune import tune
from nearcast.errors import NearcastError
from nearcast.version import __version__

__all__ = ["cli", "main"]

INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="nearcast")
def cli() -> None:
    """Find the nearest items for every query ahead of time, check the answer, and look it up."""


COMMANDS = (
    *(run, check, tune, show, lookup, snapshots, explain, diff, head, advise, replay),
    *(publish, table, expand, rollback, published, refresh, monitor, dashboard, overlay, serve, spec, info),
)

for command in COMMANDS:
    cli.add_command(command)


def main() -> None:
    """Run the command line and exit with the code of the error, if there is one."""
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("nearcast").setLevel(logging.INFO)
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
