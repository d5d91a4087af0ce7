"""`nearcast serve`: candidates over HTTP."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nearcast.ads.expansion_table import Expansion, open_expansion
from nearcast.api.comparing import explain
from nearcast.cli.common import LocalPath, out_option
from nearcast.cli.progress import listening
from nearcast.errors import NearcastError, NotFoundError, SpecError
from nearcast.publishing.retention import find_newest_facts
from nearcast.publishing.targets import resolve_store_url
from nearcast.serve.key_sampling import SAMPLES, SampleWriter
from nearcast.serve.lookup import open_lookup
from nearcast.service.limits import Limits, tokens_of
from nearcast.service.responses import need_extra
from nearcast.spec import PublishSpec, load_spec, parse_bytes
from nearcast.stores import open_store

if TYPE_CHECKING:
    from nearcast.dashboard.live import Explain
    from nearcast.service.generator_service import Served, Unopened
    from nearcast.stores.base import Store

__all__ = ["serve", "tokens"]


def _bytes(_context: click.Context, _parameter: click.Parameter, value: str) -> int:
    """An amount of memory, as in a spec."""
    try:
        return parse_bytes(int(value) if value.isdigit() else value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r}: {error}") from None


@click.command()
@click.argument("generators", nargs=-1)
@click.option("--store", metavar="URL", help="lmdb:PATH, redis://HOST:PORT/DB or another store; lmdb:OUT/store.")
@out_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="Port; 0 takes a free one."
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Bearer tokens, one a line, any of which requests need. [env: NEARCAST_TOKEN, a token itself]",
)
@click.option("--max-keys", type=click.IntRange(1, 100_000), default=1000, show_default=True, help="Keys per request.")
@click.option(
    "--max-body", callback=_bytes, metavar="SIZE", default="1MB", show_default=True, help="Size of a request's body."
)
@click.option(
    "--refresh",
    type=click.FloatRange(0.01, 3600),
    metavar="SECONDS",
    default=0.25,
    show_default=True,
    help="How often to ask the store for a new version and overlay entries.",
)
@click.option(
    "--drain",
    type=click.FloatRange(0, 3600),
    metavar="SECONDS",
    default=1.0,
    show_default=True,
    help="How long after SIGTERM requests are still taken, while /readyz says no.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0.1, 3600),
    metavar="SECONDS",
    default=10.0,
    show_default=True,
    help="How long the head of a request may take to arrive, then its body, and its answer to be read.",
)
@click.option(
    "--online",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    multiple=True,
    metavar="SPEC",
    help="Spec of a generator to serve an online index for; may be given several times.",
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
    type=LocalPath(file_okay=False),
    metavar="FOLDER",
    help="Leave a sample of the keys that are asked for there, for `nearcast monitor`; OUT/lookups.",
)
@click.option("--no-samples", is_flag=True, help="Keep no sample of the keys.")
@click.option("--no-page", is_flag=True, help="Serve no page at /.")
@click.option(
    "--pictures",
    multiple=True,
    metavar="ORIGIN",
    help="Show pictures of items from there on the page, such as https://img.example.com.",
)
def serve(
    generators: tuple[str, ...],
    store: str | None,
    out: Path,
    host: str,
    port: int,
    token_file: Path | None,
    max_keys: int,
    max_body: int,
    refresh: float,
    drain: float,
    timeout: float,
    online: tuple[Path, ...],
    online_engine: str,
    samples: Path | None,
    no_samples: bool,
    no_page: bool,
    pictures: tuple[str, ...],
) -> None:
    """Answer for GENERATORS and expansion tables, or for all in the store, over HTTP, until SIGTERM.

    New versions, rollbacks and overlay entries are followed while it runs; a generator that is published for the
    first time is served after a restart. / is a page that shows how they stand, /docs describes the endpoints.
    """
    need_extra()
    from nearcast.dashboard.live import dashboard_pages
    from nearcast.service.app import make_app
    from nearcast.service.generator_service import Served, new_service
    from nearcast.service.metrics import leave_out_creation_times
    from nearcast.service.server import bind, is_loopback, run_server

    allowed = tokens(token_file)
    with ExitStack() as held:
        opened = open_store(resolve_store_url(PublishSpec(), out, store))
        held.callback(opened.close)
        names = _names(generators, opened.generators(), opened.url)
        bound = held.enter_context(bind(host, port))  # before anything slow: it may be taken
        kinds = {name: _is_expansion(opened, name) for name in names}
        indexes = _indexes(online, [name for name in names if not kinds[name]], out, online_engine)

        def open_one(name: str) -> Served | Expansion:
            if kinds[name]:
                return held.enter_context(open_expansion(opened, name, refresh_seconds=refresh))
            lookup = held.enter_context(open_lookup(opened, name, refresh_seconds=refresh))
            return Served(lookup, opened.in_process, indexes.get(name))

        found, unopened = _open_all(names, kinds, open_one, opened)
        expansions = {name: one for name, one in found.items() if isinstance(one, Expansion)}
        served = {name: one for name, one in found.items() if isinstance(one, Served)}
        lookups = {name: one.lookup for name, one in served.items()}
        leave_out_creation_times()
        keyed = [name for name in names if not kinds[name]]
        sampler = None if no_samples else SampleWriter(samples or out / SAMPLES, keyed)
        service = new_service(
            served,
            sampled=None if sampler is None else sampler.offer,
            expansions=expansions,
            unopened=unopened,
        )
        held.callback(service.close)
        if sampler is not None:
            sampler.start()
            held.callback(sampler.close)
        if not is_loopback(host) and not allowed:
            click.echo(f"warning: anybody who can reach {host} may ask; set a token with --token-file", err=True)

        def begun() -> None:
            snapshots = ", ".join(f"{name} {lookup.state.snapshot}" for name, lookup in lookups.items())
            snapshots += "".join(f", ads of {name} {e.lookup.state.snapshot}" for name, e in expansions.items())
            place = f"[{host}]" if ":" in host else host
            click.echo(f"serving {snapshots} on http://{place}:{bound.getsockname()[1]}", err=True)

        pages = [] if no_page else dashboard_pages(service, out, pictures=pictures, explain=_explained(out))
        app = make_app(service, limits=Limits(max_keys, max_body), tokens=allowed, pages=pages)
        run_server(app, service, bound, drain_seconds=drain, timeout_seconds=timeout, begun=begun)
    click.echo("stopped", err=True)


def tokens(file: Path | None) -> tuple[bytes, ...]:
    """The bearer tokens: from the file, else from the environment. Anybody on the machine can read a command line."""
    if file is not None:
        return tokens_of(file.read_text(encoding="utf-8", errors="replace"), str(file))
    variable = os.environ.get("NEARCAST_TOKEN")
    return tokens_of(variable, "NEARCAST_TOKEN") if variable is not None else ()


def _names(wanted: Sequence[str], known: Sequence[str], where: str) -> list[str]:
    if not wanted and not known:
        raise NotFoundError(f"nothing is published in {where}; publish a generator first, or say --store or --out")
    return list(dict.fromkeys(wanted or known))


def _is_expansion(store: Store, name: str) -> bool:
    """Whether what is published under a name is an expansion table, as far as one of its versions can tell."""
    try:
        pointer = store.pointer(name)
        return pointer is not None and find_newest_facts(store, name, pointer).is_expansion
    except NearcastError:
        return False


def _open_all(
    names: Sequence[str], kinds: Mapping[str, bool], open_one: Callable[[str], Served | Expansion], store: Store
) -> tuple[dict[str, Served | Expansion], dict[str, Unopened]]:
    """Open everything; what cannot be opened takes nothing else down. Raises where nothing can be opened at all.

    NotFoundError for a name under which nothing is published.
    """
    from nearcast.service.generator_service import Unopened

    found: dict[str, Served | Expansion] = {}
    unopened: dict[str, Unopened] = {}
    first: NearcastError | None = None
    for name in names:
        try:
            found[name] = open_one(name)
        except NearcastError as error:
            if isinstance(error, NotFoundError) and store.pointer(name) is None:
                raise
            first = first or error
            unopened[name] = Unopened(str(error), kinds[name], partial(open_one, name), partial(store.pointer, name))
    if first is not None and not found:
        raise first
    for name, what in unopened.items():
        click.echo(f"warning: {name} cannot be served: {what.error}", err=True)
    return found, unopened


def _indexes(specs: Iterable[Path], names: Sequence[str], out: Path, engine: str) -> Mapping[str, Any]:
    """An online index per spec, by the generator's name; built where there is none yet."""
    found: dict[str, Any] = {}
    for path in specs:
        spec = load_spec(path)
        if spec.name not in names:
            raise SpecError(f"{path} is the spec of {spec.name!r}, which is not served; served are {', '.join(names)}")
        from nearcast.join.online_index import open_online

        click.echo(f"opening the online index of {spec.name}", err=True)
        recall = spec.serve.online_recall
        with listening(quiet=False) as listener:
            found[spec.name] = open_online(spec, path.parent, out, engine=engine, recall=recall, listener=listener)
    return found


def _explained(out: Path) -> Explain:
    """Why an item is in a list, or not, for the page."""

    def explained(generator: str, key: str, item: str, version: int) -> Mapping[str, Any]:
        return explain(generator, key, item, out=out, version=version).as_dict()

    return explained
