"""`nearcast follow`: bring the files of a folder or bucket into the served version as they arrive."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import click

from nearcast.api.updates import open_follower
from nearcast.cli.common import (
    InputPath,
    console,
    explicit_out,
    json_option,
    out_option,
    print_json,
    quiet_option,
    store_option,
)
from nearcast.cli.complete_names import GeneratorName
from nearcast.cli.progress import show_progress
from nearcast.errors import InputError, SpecError
from nearcast.storage.locations import Location
from nearcast.updating.file_feed import MOST_ROWS
from nearcast.updating.follow import Follower, describe_figures

__all__ = ["follow", "serve_metrics"]

LOOPBACK = "127.0.0.1"


def _parse_address(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[str, int] | None:
    """Return host and port of [HOST:]PORT. Raises BadParameter."""
    if value is None:
        return None
    host, _, port = value.rpartition(":")
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise click.BadParameter(f"{value!r} is no [HOST:]PORT; write one like 9105 or 0.0.0.0:9105")
    return host.strip("[]") or LOOPBACK, int(port)


@click.command()
@click.argument("generator", type=GeneratorName(specs=True), metavar="GENERATOR|SPEC")
@click.option(
    "--source",
    type=InputPath(),
    required=True,
    help="Folder or URL of Parquet files: NAME.parquet of items, NAME.gone.parquet of removed ids, "
    "NAME.queries.parquet of queries; read in the order of names. Or the table of the items: delta:..., iceberg:..., "
    "lance:...",
)
@click.option("--once", is_flag=True, help="Apply the files that are there, and end: for a scheduler.")
@click.option(
    "--every", type=click.FloatRange(min=0.05), default=2.0, show_default=True, help="Seconds between two looks."
)
@click.option(
    "--max-rows",
    type=click.IntRange(min=1),
    default=MOST_ROWS,
    show_default=True,
    help="Rows of an update: small files that wait are applied together, large ones in parts.",
)
@click.option(
    "--again",
    multiple=True,
    metavar="NAME",
    help="Apply this file again, after a rollback or an error; patterns such as '2026-11-*' work. Repeatable.",
)
@click.option(
    "--metrics",
    callback=_parse_address,
    metavar="[HOST:]PORT",
    help="Serve metrics for Prometheus at this address. Default of HOST: 127.0.0.1, this machine alone.",
)
@store_option
@out_option
@quiet_option
@json_option
def follow(
    generator: str,
    source: object,
    once: bool,
    every: float,
    max_rows: int,
    again: tuple[str, ...],
    metrics: tuple[str, int] | None,
    store: str | None,
    out: Location,
    quiet: bool,
    as_json_: bool,
) -> None:
    """Apply each new file as an update, as `nearcast update` does, until the command is stopped.

    A file is applied exactly once, also if the command is killed or patches are rolled back: how far it has read is
    stored with each patch. A file that is still being written is left until it is whole. A bad file is set aside with
    its error, and the next one is read; with --once the exit code is then 3.
    """
    place = explicit_out(generator, out)
    with show_progress(quiet=quiet or as_json_) as listener, contextlib.ExitStack() as stack:
        follower = stack.enter_context(
            open_follower(
                generator, str(source), again=again, max_rows=max_rows, store=store, out=place, listener=listener
            )
        )
        if metrics is not None:
            listener.note(f"metrics: {stack.enter_context(serve_metrics(follower, metrics))}")
        if not once:
            follower.run(every, threading.Event().wait)
            return
        results = follower.catch_up()
    figures = follower.figures
    if as_json_:
        print_json({"patches": [done.as_dict() for done in results], "set_aside": figures.set_aside})
    else:
        console().print(
            f"files in force: {figures.batches:,}; items: {figures.items:,}; lists changed: {figures.lists:,}; "
            f"set aside: {figures.set_aside:,}"
        )
    if figures.set_aside:
        raise InputError(
            f"{figures.set_aside:,} files were set aside; mend them and write them again, or name them with --again"
        )


@contextlib.contextmanager
def serve_metrics(follower: Follower, address: tuple[str, int]) -> Iterator[str]:
    """Serve the figures as Prometheus text, in a thread; yield the URL. Raises SpecError for an address in use."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = describe_figures(follower.figures, follower.generator).encode()
            self.send_response(200 if self.path == "/metrics" else 404)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    class MetricsServer(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET

    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    try:
        opened = MetricsServer(address, Handler)
    except OSError as error:
        raise SpecError(f"--metrics: {host}:{address[1]} cannot be used ({error.strerror}); give another") from error
    with opened as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://{host}:{server.server_address[1]}/metrics"
        finally:
            server.shutdown()
            thread.join()
