"""Traces of a service: spans of a request, its look-up and its reads, below the caller's; none without OTEL_*."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.end_to_end.service import running, until

import published
from nearcast.errors import MissingExtraError, SpecError, StoreError
from nearcast.serve.lookup import open_lookup
from nearcast.service import generator_service
from nearcast.service.app import make_app
from nearcast.service.generator_service import new_service
from nearcast.service.served_tables import ServedGenerator
from nearcast.service.tracing import Tracing, start_tracing, trace_store
from nearcast.stores import open_store
from needs import require_module

require_module("opentelemetry.sdk.trace", allow_module_level=True)

LISTS = {f"q{row}": [(f"i{row}", 0.5), ("i0", 0.25)] for row in range(1, 60)}
NAMES = {"name": "string"}
CANDIDATES = "/v1/generators/shop/candidates"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CALLER = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


@pytest.fixture
def store(tmp_path: Path) -> str:
    with_version = open_store(f"lmdb:{tmp_path / 'store'}")
    published.publish(
        with_version, "shop", 1, LISTS, {f"i{row}": {"name": f"item {row}"} for row in range(60)}, columns=NAMES
    )
    return with_version.url


@contextmanager
def traced_service(url: str) -> Iterator[tuple[httpx.AsyncClient, Any]]:
    """A service in this process, and the spans that it has finished."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing = Tracing(provider)
    with open_lookup(trace_store(open_store(url), tracing), "shop") as lookup:
        service = new_service({"shop": ServedGenerator(lookup, in_process=True)})
        service.tracing = tracing
        transport = httpx.ASGITransport(app=make_app(service))
        yield httpx.AsyncClient(transport=transport, base_url="http://test"), exporter
        service.close()


def ask(client: httpx.AsyncClient, method: str, path: str, **more: Any) -> httpx.Response:
    return asyncio.run(client.request(method, path, **more))


def spans_of(exporter: Any) -> dict[str, Any]:
    found = exporter.get_finished_spans()
    exporter.clear()
    return {span.name: span for span in found}


def test_a_request_its_look_up_and_its_reads_are_spans_below_the_callers(store):
    with traced_service(store) as (client, exporter):
        assert ask(client, "GET", f"{CANDIDATES}/q7?fields=name", headers=CALLER).json()["found"]
        finished = exporter.get_finished_spans()
        spans = spans_of(exporter)
    request = spans[f"GET {CANDIDATES.replace('shop', '{name}')}/{{key}}"]
    assert f"{request.context.trace_id:032x}" == TRACE
    assert f"{request.parent.span_id:016x}" == PARENT
    assert request.attributes["http.response.status_code"] == 200
    look_up = spans["nearcast.look_up"]
    assert look_up.parent.span_id == request.context.span_id
    assert dict(look_up.attributes) == {"nearcast.generator": "shop", "nearcast.snapshot": "000001"}
    reads = [span for span in finished if span.name == "nearcast.store.get"]
    assert [span.attributes["nearcast.space"] for span in reads] == ["lists", "items"]
    assert {span.parent.span_id for span in reads} == {look_up.context.span_id}
    assert reads[1].attributes["db.operation.batch.size"] == 2
    assert all("q7" not in str(dict(span.attributes)) for span in finished)  # keys may be people


def test_a_look_up_on_a_thread_is_below_its_request(store):
    keys = list(LISTS)[: generator_service.LONG + 1]
    with traced_service(store) as (client, exporter):
        assert ask(client, "POST", CANDIDATES, json={"keys": keys}).status_code == 200
        spans = spans_of(exporter)
    request = spans[f"POST {CANDIDATES.replace('shop', '{name}')}"]
    assert request.parent is None
    assert spans["nearcast.look_up"].parent.span_id == request.context.span_id
    assert spans["nearcast.store.get"].parent.span_id == spans["nearcast.look_up"].context.span_id


def test_requests_at_once_have_traces_of_their_own(store):
    async def ask_all(client: httpx.AsyncClient) -> None:
        await asyncio.gather(*(client.post(CANDIDATES, json={"keys": list(LISTS)}) for _ in range(8)))

    with traced_service(store) as (client, exporter):
        asyncio.run(ask_all(client))
        finished = exporter.get_finished_spans()
    by_id = {span.context.span_id: span for span in finished}
    assert len({span.context.trace_id for span in finished}) == 8
    assert len(finished) == 8 * 3
    for span in finished:
        assert span.parent is None or by_id[span.parent.span_id].context.trace_id == span.context.trace_id


def test_probes_and_polls_make_no_spans_and_refusals_are_no_errors(store):
    from opentelemetry.trace import StatusCode

    with traced_service(store) as (client, exporter):
        for path in ("/healthz", "/readyz", "/metrics"):
            ask(client, "GET", path)
        assert exporter.get_finished_spans() == ()
        assert ask(client, "GET", "/v1/generators/toys/candidates/q7").status_code == 404
        assert ask(client, "GET", f"{CANDIDATES}/q7?k=0").status_code == 422
        assert ask(client, "GET", "/nothing", headers={"traceparent": "00-broken"}).status_code == 404
        found = exporter.get_finished_spans()
    assert [span.attributes["http.response.status_code"] for span in found if span.kind.name == "SERVER"] == [
        *(404, 422, 404)
    ]
    assert {span.status.status_code for span in found} == {StatusCode.UNSET}
    assert found[-1].name == "GET"  # no route: a path would make endless names


def test_a_store_that_fails_is_an_error_of_its_look_up_and_request(store, monkeypatch):
    with traced_service(store) as (client, exporter):
        monkeypatch.setattr("nearcast.serve.view.View.get", lambda *_, **__: (_ for _ in ()).throw(StoreError("gone")))
        assert ask(client, "GET", f"{CANDIDATES}/q7").status_code == 503
        spans = spans_of(exporter)
    assert spans["nearcast.look_up"].attributes["error.type"] == "StoreError"
    assert [span.status.is_ok for span in spans.values()] == [False, False]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
        {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
        {"OTEL_SERVICE_NAME": "shop"},
    ],
)
def test_without_an_exporter_there_are_no_traces(environment):
    assert start_tracing(environment) is None


def test_an_exporter_that_is_not_installed_is_named_with_those_that_are():
    with pytest.raises(SpecError, match=r"no exporter of traces 'jaeger'; installed are .*console"):
        start_tracing({"OTEL_TRACES_EXPORTER": "jaeger"})
    with pytest.raises(SpecError, match="'otlp over pigeon'"):
        start_tracing({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "pigeon"})


def test_traces_without_opentelemetry_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'nearcast\[otel\]'"):
        start_tracing({"OTEL_TRACES_EXPORTER": "console"})


class Receiver:
    """A receiver of OTLP over HTTP on this machine: what a collector is to the exporter."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        kept = self.requests

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

                body = self.rfile.read(int(self.headers["content-length"]))
                kept.append((self.path, ExportTraceServiceRequest.FromString(body)))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_words: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    @property
    def spans(self) -> list[Any]:
        """All spans received."""
        scopes = [each for _, body in list(self.requests) for each in body.resource_spans]
        return [span for resource in scopes for scope in resource.scope_spans for span in scope.spans]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    thread = threading.Thread(target=made.server.serve_forever, daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [(), ("--workers", 2)])
def test_a_service_exports_its_spans_to_the_endpoint_of_the_environment(store, receiver, tmp_path, workers):
    settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    settings |= {"OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test"}
    with running(tmp_path / "service", "--store", store, "--no-samples", *workers, **settings) as service:
        assert service.get(f"{CANDIDATES}/q7", headers=CALLER).status_code == 200
        until(lambda: len(receiver.spans) >= 3)
        assert service.stop() == 0
    assert {path for path, _ in receiver.requests} == {"/v1/traces"}
    ours = [span for span in receiver.spans if span.trace_id.hex() == TRACE]
    assert sorted(span.name for span in ours) == [
        "GET /v1/generators/{name}/candidates/{key}",
        "nearcast.look_up",
        "nearcast.store.get",
    ]
    assert [span.name for span in ours if span.parent_span_id.hex() == PARENT] == [ours[-1].name]
    resource = receiver.requests[0][1].resource_spans[0].resource
    names = {pair.key: pair.value.string_value for pair in resource.attributes}
    assert (names["service.name"], names["deployment.environment.name"]) == ("nearcast", "test")


@pytest.mark.slow
def test_a_service_answers_and_stops_while_no_collector_listens(store, tmp_path):
    settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    with running(tmp_path / "service", "--store", store, "--no-samples", **settings) as service:
        assert service.get(f"{CANDIDATES}/q7").json()["found"]
        assert service.stop() == 0
