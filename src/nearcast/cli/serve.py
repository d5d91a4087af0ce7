"""`nearcast serve`: look up candidates over HTTP until SIGTERM."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nearcast.api.comparing import explain
from nearcast.cli.common import OutLocation, out_option, parse_memory, pass_options
from nearcast.cli.open_generators import OnlineOptions, OpenGenerators, find_names, open_generators
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

__all__ = ["ServeOptions", "read_tokens", "serve"]


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Options of `nearcast serve`."""

    store: str | None
    out: Location
    host: str
    port: int
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


@click.command()
@click.argument("generators", nargs=-1)
@click.option("--store", metavar="URL", help="Store: lmdb:PATH or redis://HOST:PORT/DB. Default: lmdb:OUT/store.")
@out_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="Port; 0 chooses a free one."
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
    need_extra()
    from nearcast.dashboard.live import dashboard_pages
    from nearcast.service.app import Limits, make_app
    from nearcast.service.metrics import disable_created_metrics
    from nearcast.service.server import bind, is_loopback, run_server

    tokens = read_tokens(options.token_file)
    with ExitStack() as stack:
        store = open_store(resolve_store_url(PublishSpec(), options.out, options.store))
        stack.callback(store.close)
        names = find_names(generators, store)
        bound = stack.enter_context(bind(options.host, options.port))  # first: the port may be in use
        online = OnlineOptions(options.online, options.online_engine, options.out)
        opened = open_generators(store, names, online, options.refresh, stack)
        disable_created_metrics()
        service = _start_service(opened, options, stack)
        if not is_loopback(options.host) and not tokens:
            click.echo(
                f"warning: everybody who can connect to {options.host} may send requests; give --token-file", err=True
            )

        def report_start() -> None:
            host = f"[{options.host}]" if ":" in options.host else options.host
            click.echo(f"serving {opened.describe()} on http://{host}:{bound.getsockname()[1]}", err=True)

        explainer = _make_explainer(options.out)
        pages = (
            []
            if options.no_page
            else dashboard_pages(service, options.out, pictures=options.pictures, explain=explainer)
        )
        app = make_app(service, limits=Limits(options.max_keys, options.max_body), tokens=tokens, pages=pages)
        run_server(
            app, service, bound, drain_seconds=options.drain, timeout_seconds=options.timeout, begun=report_start
        )
    click.echo("stopped", err=True)


def read_tokens(file: Path | None) -> tuple[bytes, ...]:
    """Return the bearer tokens of the file, else of NEARCAST_TOKEN. Not an option: others can see a command line."""
    from nearcast.service.app import parse_tokens

    if file is not None:
        return parse_tokens(file.read_text(encoding="utf-8", errors="replace"), str(file))
    variable = os.environ.get("NEARCAST_TOKEN")
    return parse_tokens(variable, "NEARCAST_TOKEN") if variable is not None else ()


def _start_service(opened: OpenGenerators, options: ServeOptions, stack: ExitStack) -> Service:
    """Start the service and its key sampler; `stack` closes both."""
    from nearcast.service.generator_service import new_service

    place = options.samples or parse_location(join_location(options.out, SAMPLES))
    sampler = None if options.no_samples else SampleWriter(place, opened.keyed)
    service = new_service(
        opened.generators,
        sampled=None if sampler is None else sampler.add,
        expansions=opened.expansions,
        unopened=opened.unopened,
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
