"""The endpoints of the service: one function each, which takes the service and the validated request.

`ROUTES` lists them with their paths and models. Response bodies are built as plain data, without validation. Knows
nothing of ASGI or of how the models are described.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import BaseModel

from nearcast.errors import NearcastError
from nearcast.serve.canary_view import CanaryView
from nearcast.serve.lookup_data import Answer, LookupOptions, LookupState
from nearcast.service.answer_batch import encode_arrow
from nearcast.service.endpoint import Limits
from nearcast.service.fallback import KeyQuery
from nearcast.service.generator_service import Service
from nearcast.service.media_types import ARROW_TYPE, JSON_TYPE
from nearcast.service.online_search import SearchResult
from nearcast.service.request_schemas import (
    AdsRequest,
    LookupParameters,
    LookupRequest,
    MergeRequest,
    SearchRequest,
    to_merge_query,
)
from nearcast.service.response_schemas import (
    AdsResponse,
    CanaryInfo,
    GeneratorInfo,
    GeneratorList,
    HealthResponse,
    LookupBatchResponse,
    LookupResponse,
    MergeResponse,
    ReadinessResponse,
    SearchResponse,
)
from nearcast.service.responses import RefusedError, Reply, encode, json_reply
from nearcast.service.served_tables import ServedGenerator, list_columns

__all__ = ["ROUTES", "EndpointRoute"]

VARY = (b"vary", b"accept")
NEGOTIATED = ((b"content-type", JSON_TYPE.encode()), VARY)
ARROW = ((b"content-type", ARROW_TYPE.encode()), VARY)
METRICS_TEXT = ((b"content-type", b"text/plain; version=0.0.4; charset=utf-8"),)
MAX_RESPONSE_CANDIDATES = 250_000  # some ten megabytes of JSON


async def look_up(service: Service, name: str, key: str, parameters: LookupParameters, media: str) -> Reply:
    """Return the candidates of one key, as JSON or as an Arrow stream of one row."""
    options, query = parameters.options(), KeyQuery(key, parameters.fallback_key)
    if media == ARROW_TYPE:
        return Reply(await service.look_up_many(name, [query], options, encode_arrow), 200, ARROW)
    return Reply(encode(build_lookup_body(await service.look_up(name, query, options))), 200, NEGOTIATED)


async def look_up_many(service: Service, name: str, body: LookupRequest, limits: Limits, media: str) -> Reply:
    """Return the candidates of many keys, in the order of the request, as JSON or as an Arrow stream of rows."""
    queries = _build_queries(service, name, body, limits)
    options = LookupOptions(body.k, body.min_score, tuple(body.fields), body.request)
    if media == ARROW_TYPE:
        return Reply(await service.look_up_many(name, queries, options, encode_arrow), 200, ARROW)
    return Reply(await service.look_up_many(name, queries, options, encode_lookup_batch), 200, NEGOTIATED)


async def merge(service: Service, name: str, body: MergeRequest) -> Reply:
    """Return the candidates of several keys as one list. The keys have weights or come from the context."""
    return json_reply((await service.merge(name, to_merge_query(body))).as_dict())


async def search(service: Service, name: str, body: SearchRequest, limits: Limits) -> Reply:
    """Return the nearest items of each vector, from the online index."""
    online = service.online(name)
    _check_size("vectors", len(body.vectors), body.k or service.k(name), limits)
    if body.recall is not None and body.recall > online.recall:
        message = f"recall is {body.recall}, and the online index of {name} is set to {online.recall}"
        raise RefusedError(422, "recall_too_high", message)
    vectors = service.convert_vectors(name, body.vectors)
    options = LookupOptions(body.k, body.min_score, tuple(body.fields), body.request)
    result = await service.search(name, vectors, options)
    return json_reply({"engine": online.name, "recall": online.recall, **build_search_body(result)})


async def find_ads(service: Service, name: str, body: AdsRequest, limits: Limits) -> Reply:
    """Return the ads for the candidates of these keys: expanded, targeted, under budgets and caps."""
    per_key = min(body.candidates_per_key or MAX_RESPONSE_CANDIDATES, service.k(name))
    _check_size("keys", len(body.keys), per_key, limits)
    return json_reply((await service.find_ads(name, service.expansion(body.expansion), body)).as_dict())


async def list_generators(service: Service) -> Reply:
    """Return all generators that are served."""
    bodies = [build_generator_body(name, service.served[name], state) for name, state in service.states().items()]
    return json_reply({"generators": bodies})


async def get_generator(service: Service, name: str) -> Reply:
    """Return the version of one generator that is served."""
    served, state = service.generator(name), service.states().get(name)
    if state is None:
        raise RefusedError(503, "not_ready", "no version of this generator is open")
    return json_reply(build_generator_body(name, served, state))


async def get_canary(service: Service, name: str) -> Reply:
    """Return the canary of a generator and its figures in this process; null if none is open."""
    return json_reply(build_canary_body(name, service.generator(name)))


async def check_health(_service: Service) -> Reply:
    """Return that the process responds."""
    return json_reply({"alive": True})


async def check_readiness(service: Service) -> Reply:
    """Return whether the service takes requests: every generator has an open version and the service is not stopping.

    A generator or table that could not be opened, or is served from an old version, is named. It does not make the
    service unready.
    """
    problems = service.list_problems()
    reasons = [*problems, *service.list_warnings()]
    return json_reply({"ready": not problems, "reasons": reasons}, 503 if problems else 200)


async def get_metrics(service: Service) -> Reply:
    """Return counters and gauges in the text format of Prometheus."""
    return Reply(service.metrics.format_text(), 200, METRICS_TEXT)


@dataclass(frozen=True, slots=True)
class EndpointRoute:
    """An endpoint with its path and its OpenAPI description."""

    method: str
    path: str
    endpoint: Callable[..., Awaitable[Reply]]
    tag: str
    model: type[BaseModel] | None  # of the response; None: text
    errors: tuple[int, ...] | None = None  # statuses beside 401 and 414; None: no error is described
    responses: dict[int | str, dict[str, Any]] | None = None  # further responses


GENERATOR = "/v1/generators/{name}"
BODY_ERRORS = (400, 404, 413, 415, 422, 503)
ARROW_RESPONSE: dict[int | str, dict[str, Any]] = {
    200: {"content": {ARROW_TYPE: {"schema": {"type": "string", "format": "binary"}}}}
}
ROUTES = (
    EndpointRoute(
        "GET",
        f"{GENERATOR}/candidates/{{key:anything}}",
        look_up,
        "candidates",
        LookupResponse,
        (400, 404, 406, 422, 503),
        ARROW_RESPONSE,
    ),
    EndpointRoute(
        "POST",
        f"{GENERATOR}/candidates",
        look_up_many,
        "candidates",
        LookupBatchResponse,
        (*BODY_ERRORS, 406),
        ARROW_RESPONSE,
    ),
    EndpointRoute("POST", f"{GENERATOR}/merged", merge, "candidates", MergeResponse, BODY_ERRORS),
    EndpointRoute("POST", f"{GENERATOR}/search", search, "candidates", SearchResponse, BODY_ERRORS),
    EndpointRoute("POST", f"{GENERATOR}/ads", find_ads, "ads", AdsResponse, BODY_ERRORS),
    EndpointRoute("GET", "/v1/generators", list_generators, "generators", GeneratorList, ()),
    EndpointRoute("GET", GENERATOR, get_generator, "generators", GeneratorInfo, (400, 404, 503)),
    EndpointRoute("GET", f"{GENERATOR}/canary", get_canary, "generators", CanaryInfo, (400, 404, 503)),
    EndpointRoute("GET", "/healthz", check_health, "operation", HealthResponse),
    EndpointRoute(
        "GET",
        "/readyz",
        check_readiness,
        "operation",
        ReadinessResponse,
        responses={503: {"model": ReadinessResponse, "description": "The service is not ready."}},
    ),
    EndpointRoute(
        "GET",
        "/metrics",
        get_metrics,
        "operation",
        None,
        (),
        {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    ),
)


def _check_size(what: str, count: int, k: int, limits: Limits) -> None:
    """Raise RefusedError if a request has too many keys or vectors, or asks for too many candidates in all."""
    if count > limits.keys:
        message = f"{what} holds {count:,}; one request may hold {limits.keys:,}: send several"
        raise RefusedError(422, "too_many", message)
    if count * k > MAX_RESPONSE_CANDIDATES:
        message = f"{count:,} {what} with k = {k:,} are more than {MAX_RESPONSE_CANDIDATES:,} candidates"
        message += ": send several requests"
        raise RefusedError(422, "too_many", message)


def _build_queries(service: Service, name: str, body: LookupRequest, limits: Limits) -> list[KeyQuery]:
    """Return a query per key. Raises RefusedError if a list of values per key has another length than the keys."""
    n = len(body.keys)
    _check_size("keys", n, min(body.k or MAX_RESPONSE_CANDIDATES, service.k(name)), limits)
    for what, values in (("fallback_keys", body.fallback_keys), ("vectors", body.vectors)):
        if values is not None and len(values) != n:
            raise RefusedError(422, "invalid", f"{what} holds {len(values):,} where there are {n:,} keys")
    fallbacks = body.fallback_keys or [None] * n
    vectors: list[Any] = [None] * n
    if body.vectors is not None and service.generator(name).online is not None:
        positions = [position for position, vector in enumerate(body.vectors) if vector is not None]
        rows = service.convert_vectors(name, [vector for vector in body.vectors if vector is not None])
        for position, row in zip(positions, rows, strict=True):
            vectors[position] = row
    return [KeyQuery(k, f or (), v) for k, f, v in zip(body.keys, fallbacks, vectors, strict=True)]


UPDATE_ERROR = {
    "code": "not_followed",  # without the error text: it names files of the store
    "message": "what is newer in the store is not served; the log of the service says why",
}


def build_lookup_body(answer: Answer) -> dict[str, Any]:
    """Return a `LookupResponse` as plain data."""
    return {
        "key": answer.key,
        "found": answer.found,
        "source": answer.source,
        "source_key": answer.source_key,
        "snapshot": answer.snapshot,
        "age_seconds": round(answer.age_seconds, 3),
        "reason": answer.reason,
        "stored": answer.stored,
        "removed": answer.removed,
        "barred": dict(answer.barred),
        "returned": len(answer.ids),
        "candidates": _build_candidates(answer.ids, answer.scores, answer.columns),
    }


def _build_candidates(ids: Iterable[Any], scores: Iterable[Any], columns: Mapping[str, Iterable[Any]]) -> list[Any]:
    if not columns:
        return [{"id": item, "score": score} for item, score in zip(ids, scores, strict=True)]
    names = ("id", "score", *columns)
    return [dict(zip(names, row, strict=True)) for row in zip(ids, scores, *columns.values(), strict=True)]


def encode_lookup_batch(answers: Iterable[Answer]) -> bytes:
    """Return a `LookupBatchResponse` as JSON. Answers are encoded one by one, so that other threads can run between."""
    return b'{"answers":[' + b",".join([encode(build_lookup_body(answer)) for answer in answers]) + b"]}"


def build_search_body(result: SearchResult) -> dict[str, Any]:
    """Return a `SearchResponse` as plain data, without the fields of the index."""
    columns = result.columns or [{}] * len(result.lists)
    answers = [
        {
            "removed": candidates.removed,
            "barred": dict(candidates.barred),
            "candidates": _build_candidates(candidates.ids, candidates.scores, held),
        }
        for candidates, held in zip(result.lists, columns, strict=True)
    ]
    return {"snapshot": result.snapshot, "answers": answers}


def build_generator_body(name: str, served: ServedGenerator, state: LookupState) -> dict[str, Any]:
    """Return a `GeneratorInfo` as plain data."""
    facts, online = state.version_facts, served.online
    return {
        "name": name,
        "snapshot": state.snapshot,
        "version": state.version,
        "created": facts.created,
        "age_seconds": round(state.age_seconds, 3),
        "keys": facts.keys,
        "items": facts.items,
        "k": facts.k,
        "metric": facts.metric,
        "columns": list_columns(served.lookup.view()),
        "overlay": state.overlay,
        "patch": state.patch,
        "patch_age_seconds": None if state.patch_age_seconds is None else round(state.patch_age_seconds, 3),
        "promise": dict(facts.promise),
        "measures": dict(facts.measures),
        "error": UPDATE_ERROR if state.error else None,
        "online": {"engine": online.name, "dim": online.dim, "recall": online.recall} if online else None,
    }


def build_canary_body(name: str, served: ServedGenerator) -> dict[str, Any]:
    """Return a `CanaryInfo` as plain data. Raises RefusedError if no version is open."""
    try:
        view, error = served.lookup.view(), served.lookup.error
    except NearcastError:
        raise RefusedError(503, "not_ready", "no version of this generator is open") from None
    body = {"name": name, "snapshot": view.snapshot, "error": UPDATE_ERROR if error else None}
    if not isinstance(view, CanaryView):
        return body | {"canary": None, "source": None, "figures": None}
    return body | {
        "canary": asdict(view.canary),
        "source": view.tally.source,
        "figures": view.tally.figures.as_dict(),
    }
