"""Traces of requests with OpenTelemetry: a span of the request, of its look-up, and of each read of the store.

The standard variables OTEL_* turn traces on and configure them. Without them, no module of OpenTelemetry is imported,
and nothing is wrapped. Spans have no keys and no URLs, since keys may be people.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from importlib.metadata import entry_points
from typing import Any, TypeVar, cast

from nearcast.errors import MissingExtraError, NearcastError, SpecError
from nearcast.serve.view import View
from nearcast.service.responses import Asgi, Message, Receive, Send
from nearcast.stores.base import Reader, Space, Store
from nearcast.version import __version__

__all__ = ["TracedApp", "Tracing", "start_tracing", "trace_store"]

SCOPE = "nearcast"  # of the instrumentation, and the default name of the service
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}  # exporters, by OTEL_EXPORTER_OTLP_PROTOCOL
EXPORTERS = "opentelemetry_traces_exporter"  # the group of entry points that the exporters of all packages are in
UNTRACED = frozenset({"/healthz", "/readyz", "/metrics"})  # probes come every few seconds

Result = TypeVar("Result")
Query = Callable[[View], Result]


class Tracing:
    """Makes the spans of one process. Made by `start_tracing`, or of any provider of OpenTelemetry."""

    def __init__(self, provider: Any) -> None:
        from opentelemetry import context, propagate, trace

        self._provider = provider
        self._tracer = provider.get_tracer(SCOPE, __version__)
        self._trace, self._read_context, self._propagate = trace, context.get_current, propagate

    def close(self) -> None:
        """Export the spans that wait."""
        self._provider.shutdown()

    def start_request(self, scope: Mapping[str, Any]) -> AbstractContextManager[Any]:
        """Start the span of an HTTP request, below the span that its headers name."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        return self._start(
            scope["method"],
            self._propagate.extract(headers),
            self._trace.SpanKind.SERVER,
            {"http.request.method": scope["method"], "url.scheme": scope.get("scheme", "http")},
        )

    def finish_request(self, span: Any, method: str, route: str | None, status: int) -> None:
        """Note the route and the status of a request."""
        if route is not None:
            span.update_name(f"{method} {route}")
            span.set_attribute("http.route", route)
        span.set_attribute("http.response.status_code", status)
        if status >= 500 or status == 0:
            self._fail(span, str(status))

    def trace_lookup(self, generator: str, ask: Callable[[Query[Result]], Result]) -> Callable[[Query[Result]], Result]:
        """Return `ask`, which answers a query of the current view, with a span around it, on any thread."""
        parent = self._read_context()

        def ask_traced(query: Query[Result]) -> Result:
            names = {"nearcast.generator": generator}
            with self._start("nearcast.look_up", parent, self._trace.SpanKind.INTERNAL, names) as span:

                def answer(view: View) -> Result:
                    span.set_attribute("nearcast.snapshot", view.snapshot)
                    return query(view)

                try:
                    return ask(answer)
                except NearcastError as error:
                    self._fail(span, type(error).__name__)
                    raise

        return ask_traced

    def trace_read(self, system: str, space: Space, keys: Sequence[bytes]) -> AbstractContextManager[Any] | None:
        """Start the span of a read of a store; return None outside a traced request."""
        if not self._trace.get_current_span().is_recording():
            return None
        facts = {"db.system.name": system, "nearcast.space": str(space), "db.operation.batch.size": len(keys)}
        return self._start("nearcast.store.get", None, self._trace.SpanKind.CLIENT, facts)

    def _start(self, name: str, parent: Any, kind: Any, facts: Mapping[str, Any]) -> AbstractContextManager[Any]:
        started: AbstractContextManager[Any] = self._tracer.start_as_current_span(
            name, parent, kind, facts, record_exception=False, set_status_on_exception=False
        )
        return started

    def _fail(self, span: Any, kind: str) -> None:
        span.set_attribute("error.type", kind)
        span.set_status(self._trace.StatusCode.ERROR)


class TracedApp:
    """ASGI middleware: a span around each request but probes."""

    def __init__(self, app: Asgi, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["path"] in UNTRACED:
            await self._app(scope, receive, send)
            return
        status = 0

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with self._tracing.start_request(scope) as span:
            await self._app(scope, receive, send_and_note)
            route = getattr(scope.get("endpoint"), "path", None)
            self._tracing.finish_request(span, scope["method"], route, status)


class TracedStore:
    """A store whose readers make a span for each read within a traced request."""

    def __init__(self, store: Store, tracing: Tracing) -> None:
        self._store = store
        self._tracing = tracing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def open(self, generator: str, version: int, *, verify: bool) -> Reader:
        """Open a version. Raises the errors of the store."""
        return cast(Reader, TracedReader(self._store.open(generator, version, verify=verify), self))

    def trace_read(self, space: Space, keys: Sequence[bytes]) -> AbstractContextManager[Any] | None:
        """Start the span of a read; see `Tracing.trace_read`."""
        return self._tracing.trace_read(self._store.url.partition(":")[0], space, keys)


class TracedReader:
    """A reader that makes a span for each read within a traced request."""

    def __init__(self, reader: Reader, store: TracedStore) -> None:
        self._reader = reader
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    def get_many(self, space: Space, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the values of these keys; None for a missing key."""
        span = self._store.trace_read(space, keys)
        if span is None:
            return self._reader.get_many(space, keys)
        with span:
            return self._reader.get_many(space, keys)


def trace_store(store: Store, tracing: Tracing) -> Store:
    """Return the store with a span for each read within a traced request."""
    return cast(Store, TracedStore(store, tracing))


def start_tracing(environment: Mapping[str, str] = os.environ) -> Tracing | None:
    """Start what the variables OTEL_* say; return None if none of them turns traces on.

    OTEL_TRACES_EXPORTER names exporters, or an endpoint of OTLP is given. Raises MissingExtraError if OpenTelemetry is
    not installed, SpecError for an exporter that is not.
    """
    names = _list_exporters(environment)
    if not names:
        return None
    try:
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise MissingExtraError(
            "OTEL_* variables turn traces on, which need OpenTelemetry: pip install 'nearcast[otel]'"
        ) from error
    is_named = "OTEL_SERVICE_NAME" in environment or "service.name=" in environment.get("OTEL_RESOURCE_ATTRIBUTES", "")
    provider = TracerProvider(resource=Resource.create({} if is_named else {SERVICE_NAME: SCOPE}))
    for name in names:
        provider.add_span_processor(BatchSpanProcessor(_make_exporter(name)))
    return Tracing(provider)


def _list_exporters(environment: Mapping[str, str]) -> list[str]:
    """Return the names of the exporters; none if traces are off."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []
    default = "otlp" if any(environment.get(name) for name in ENDPOINTS) else "none"
    text = environment.get("OTEL_TRACES_EXPORTER", "").strip() or default
    names = [name.strip() for name in text.split(",")]
    protocol = environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environment.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    otlp = PROTOCOLS.get(protocol or "http/protobuf", f"otlp over {protocol}")
    return [otlp if name == "otlp" else name for name in names if name not in ("", "none")]


def _make_exporter(name: str) -> Any:
    found = list(entry_points(group=EXPORTERS, name=name))
    if not found:
        known = ", ".join(sorted({each.name for each in entry_points(group=EXPORTERS)}))
        raise SpecError(
            f"there is no exporter of traces {name!r}; installed are {known or 'none'}; see docs/operations.md"
        )
    return found[0].load()()
