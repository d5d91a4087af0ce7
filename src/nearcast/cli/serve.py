"""`nearcast serve`: look up candidates over HTTP until SIGTERM, in this process or in several workers."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nearcast.api.comparing import explain
from nearcast.cli.common import OutLocation, out_option, parse_memory, pass_options
from nearcast.cli.complete_names import GeneratorName
from nearcast.cli.open_generators import OnlineOptions, OpenGenerators, find_names, open_generators
from nearcast.errors import SpecError
from nearcast.machine import default_threads
from nearcast.publishing.targets import resolve_store_url
from nearcast.serve.key_sampling import SAMPLES, SampleWriter
from nearcast.service.responses import need_extra
from nearcast.spec import PublishSpec
from nearcast.storage.locations import Location, parse_location
from nearcast.storage.open_storage import join_location
from nearcast.stores import open_store

if TYPE_CHECKING:
    from nearcast.dashboard.live import Explain
    from nearcast.service.generator_service import Service
    from nearcast.service.worker_states import WorkerPlace, WorkerStates

__all__ = ["ServeOptions", "read_tokens", "serve"]


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Options of `nearcast serve`."""

    store: str | None
    out: Location
    host: str
    port: int
    workers: int | None  # None: this process serves
    token_file: Path | None
    max_keys: int
    max_body: int
    refresh: float
    drain: float
    timeout: float
    online: tuple[Path, ...]
    online_engine: str
    samples: Location | None
    no_samples: bool
    no_page: bool
    pictures: tuple[str, ...]


class WorkerCount(click.ParamType[int]):
    """A number of processes, or "auto" for the number of cores that this process may use."""

    name = "workers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Convert the text of the option."""
        if value == "auto":
            return default_threads()
        return click.IntRange(1, 1024).convert(value, param, ctx)


@click.command()
@click.argument("generators", type=GeneratorName(), nargs=-1)
@click.option(
    "--store",
    metavar="URL",
    help="Store: lmdb:PATH, redis://HOST:PORT/DB and others, see docs/stores.md. Default: lmdb:OUT/store.",
)
@out_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="Port; 0 chooses a free one."
)
@click.option(
    "--workers",
    type=WorkerCount(),
    metavar="N|auto",
    help="Serve with N processes that share the port, or with one per core (auto). A supervisor restarts those that "
    "end, and all of them, one by one, after SIGHUP. Default: one process without a supervisor.",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="File of bearer tokens, one per line. A request needs one of them. Default: the token in NEARCAST_TOKEN, else "
    "none is needed.",
)
@click.option(
    "--max-keys",
    type=click.IntRange(1, 100_000),
    default=1000,
    show_default=True,
    help="Maximum number of keys in one request.",
)
@click.option(
    "--max-body",
    callback=parse_memory,
    metavar="SIZE",
    default="1MB",
    show_default=True,
    help="Maximum size of a request body.",
)
@click.option(
    "--refresh",
    type=click.FloatRange(0.01, 3600),
    metavar="SECONDS",
    default=0.25,
    show_default=True,
    help="Interval of polling the store for a new version and overlay entries.",
)
@click.option(
    "--drain",
    type=click.FloatRange(0, 3600),
    metavar="SECONDS",
    default=1.0,
    show_default=True,
    help="Time after SIGTERM in which requests are still accepted, while /readyz answers 503.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0.1, 3600),
    metavar="SECONDS",
    default=10.0,
    show_default=True,
    help="Time limit for receiving the head of a request, for receiving its body, and for sending the response.",
)
@click.option(
    "--online",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    multiple=True,
    metavar="SPEC",
    help="Spec of a generator to serve with an online index. Repeatable.",
)
@click.option(
    "--online-engine",
    type=click.Choice(["faiss-hnsw", "faiss-ivf"]),
    default="faiss-hnsw",
    show_default=True,
    help="Engine of the online indexes.",
)
@click.option(
    "--samples",
    type=OutLocation(),
    metavar="FOLDER",
    help="Folder, or URL in a bucket, for a sample of the requested keys, which `nearcast monitor` reads. "
    "Default: OUT/lookups.",
)
@click.option("--no-samples", is_flag=True, help="Do not sample keys.")
@click.option("--no-page", is_flag=True, help="Serve no dashboard at /.")
@click.option(
    "--pictures",
    multiple=True,
    metavar="ORIGIN",
    help="Origin whose pictures of items the dashboard shows, for example https://img.example.com. Repeatable.",
)
@pass_options(ServeOptions)
def serve(generators: tuple[str, ...], options: ServeOptions) -> None:
    """Answer over HTTP for GENERATORS and expansion tables, or for all in the store, until SIGTERM.

    New versions, rollbacks and overlay entries take effect while the service runs. A generator that is published for
    the first time needs a restart. / is a dashboard, /docs describes the endpoints.
    """
    from nearcast.service.worker_states import WorkerPlace

    place = WorkerPlace.from_environment()
    need_extra()
    if options.workers is None or place is not None:
        _serve_in_this_process(generators, options, place)
    else:
        _supervise_workers(options)


def _supervise_workers(options: ServeOptions) -> None:
    """Serve in worker processes, which run this command with its arguments again."""
    from nearcast.service.server import bind
    from nearcast.service.supervisor import Supervisor, share_folder

    assert options.workers is not None
    if sys.platform == "win32":
        raise SpecError("--workers needs a system that can share a socket; leave it out on Windows")
    command = [sys.executable, "-P", "-c", "import sys; from nearcast.cli import main; sys.exit(main())", *sys.argv[1:]]
    tokens = read_tokens(options.token_file)
    with bind(options.host, options.port) as bound, share_folder() as folder:
        address = _format_address(options.host, bound)
        _warn_of_open_access(options.host, tokens)

        def report_start(generators: str) -> None:
            click.echo(f"serving {generators} with {options.workers} workers on {address}", err=True)

        code = Supervisor(command, bound, folder, options.workers, options.drain, report_start).run()
    if code:
        sys.exit(code)
    click.echo("stopped", err=True)


def _serve_in_this_process(generators: tuple[str, ...], options: ServeOptions, place: WorkerPlace | None) -> None:
    """Serve until a signal, or until the supervisor says so. place: of a worker."""
    from nearcast.dashboard.live import dashboard_pages
    from nearcast.service.app import Limits, make_app
    from nearcast.service.metrics import disable_created_metrics
    from nearcast.service.server import bind, run_server
    from nearcast.service.tracing import start_tracing, trace_store
    from nearcast.service.worker_states import WorkerStates

    tokens = read_tokens(options.token_file)
    workers = None if place is None else WorkerStates(place.folder, place.number)
    if place is not None:
        form = f"%(asctime)s worker {place.number}: %(message)s"
        logging.basicConfig(stream=sys.stderr, format=form, datefmt="%H:%M:%S", force=True)
    with ExitStack() as stack:
        store = open_store(resolve_store_url(PublishSpec(), options.out, options.store))
        stack.callback(store.close)
        tracing = start_tracing()
        if tracing is not None:
            stack.callback(tracing.close)
            store = trace_store(store, tracing)
        names = find_names(generators, store)
        # first: the port may be in use
        bound = stack.enter_context(bind(options.host, options.port) if place is None else place.open_socket())
        online = OnlineOptions(options.online, options.online_engine, options.out)
        opened = open_generators(store, names, online, options.refresh, stack)
        disable_created_metrics()
        service = _start_service(opened, options, workers, stack)
        service.tracing = tracing

        def report_start() -> None:
            if workers is not None:
                service.write_state()
            else:
                click.echo(f"serving {opened.describe()} on {_format_address(options.host, bound)}", err=True)

        if place is None:
            _warn_of_open_access(options.host, tokens)
        explainer = _make_explainer(options.out)
        pages = (
            []
            if options.no_page
            else dashboard_pages(service, options.out, pictures=options.pictures, explain=explainer)
        )
        app = make_app(service, limits=Limits(options.max_keys, options.max_body), tokens=tokens, pages=pages)
        run_server(
            app,
            service,
            bound,
            drain_seconds=options.drain,
            timeout_seconds=options.timeout,
            begun=report_start,
            orders=None if place is None else sys.stdin.fileno(),
        )
    if place is None:
        click.echo("stopped", err=True)


def _format_address(host: str, bound: socket.socket) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{bound.getsockname()[1]}"


def _warn_of_open_access(host: str, tokens: tuple[bytes, ...]) -> None:
    from nearcast.service.server import is_loopback

    if not is_loopback(host) and not tokens:
        click.echo(f"warning: everybody who can connect to {host} may send requests; give --token-file", err=True)


def read_tokens(file: Path | None) -> tuple[bytes, ...]:
    """Return the bearer tokens of the file, else of NEARCAST_TOKEN. Not an option: others can see a command line."""
    from nearcast.service.app import parse_tokens

    if file is not None:
        return parse_tokens(file.read_text(encoding="utf-8", errors="replace"), str(file))
    variable = os.environ.get("NEARCAST_TOKEN")
    return parse_tokens(variable, "NEARCAST_TOKEN") if variable is not None else ()


def _start_service(
    opened: OpenGenerators, options: ServeOptions, workers: WorkerStates | None, stack: ExitStack
) -> Service:
    """Start the service and its key sampler; `stack` closes both."""
    from nearcast.service.generator_service import new_service

    place = options.samples or parse_location(join_location(options.out, SAMPLES))
    sampler = None if options.no_samples else SampleWriter(place, opened.keyed)
    service = new_service(
        opened.generators,
        sampled=None if sampler is None else sampler.add,
        expansions=opened.expansions,
        unopened=opened.unopened,
        workers=workers,
    )
    stack.callback(service.close)
    if sampler is not None:
        sampler.start()
        stack.callback(sampler.close)
    return service


def _make_explainer(out: Location) -> Explain:
    """Return a function for the dashboard that explains why an item is or is not in a list."""

    def explain_pair(generator: str, key: str, item: str, version: int) -> Mapping[str, Any]:
        return explain(generator, key, item, out=out, version=version).as_dict()

    return explain_pair
