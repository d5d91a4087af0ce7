"""The service as an ASGI application: what is asked at which path, and the OpenAPI description of it.

FastAPI describes the routes, and Starlette serves them: what FastAPI does around an endpoint outlasts the look-up.
`Prepared` checks a request against the model that its endpoint declares, and sends a reply that is whole.
"""

# The annotations of the endpoints are read when they are declared, so this module does not put them off.

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from nearcast.serve.lookup_data import LookupOptions
from nearcast.service.ads_request import chosen_expansion
from nearcast.service.ads_schemas import AdsAnswered, AdsWanted
from nearcast.service.docs_page import docs_page
from nearcast.service.endpoint import Prepared, names_in
from nearcast.service.fallback import KeyQuery
from nearcast.service.generator_service import Service
from nearcast.service.limits import Guard, Limits
from nearcast.service.merged_schemas import Merge, MergedCandidates, mix_of
from nearcast.service.pages import Page, Paged
from nearcast.service.response_bodies import plain_answer, plain_generator, plain_search, told
from nearcast.service.responses import Asgi, RefusedError, Reply, encode, error_reply, json_reply, need_extra
from nearcast.service.schemas import (
    Alive,
    Answered,
    AnsweredMany,
    Failed,
    Generator,
    Generators,
    KeyParameters,
    Keys,
    Ready,
    Search,
    Searched,
    check_values,
)
from nearcast.version import __version__

__all__ = ["make_app"]

TEXT = ((b"content-type", b"text/plain; version=0.0.4; charset=utf-8"),)
HTML = (
    (b"content-type", b"text/html; charset=utf-8"),
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
)
MOST_CANDIDATES = 250_000  # of one answer: some ten megabytes of JSON
CODES = {404: "not_found", 405: "method_not_allowed"}

DESCRIPTION = """Candidates that were found ahead of time, by key; and, where an online index is served, by vector.

Every answer names its snapshot and age, and says where its candidates come from. Items that the overlay has taken out
are in no answer. A key that is not there is no error: it is answered with `found` false and what stands in for it.
"""


def make_app(
    service: Service,
    *,
    limits: Limits = Limits(),  # noqa: B008
    tokens: Iterable[bytes] = (),
    pages: Sequence[Page] = (),
) -> Asgi:
    """The service as an application for any ASGI server. MissingExtraError where `nearcast[serve]` is not installed.

    tokens: bearer tokens, any of which is needed for all but /healthz, /readyz, /openapi.json and /docs; none: nobody
    is asked for one. pages: what is served beside the endpoints, such as the page at /.
    """
    need_extra()
    from fastapi import FastAPI, Path, Query
    from fastapi.routing import APIRoute
    from starlette.applications import Starlette
    from starlette.convertors import Convertor, register_url_convertor
    from starlette.exceptions import HTTPException
    from starlette.responses import Response
    from starlette.routing import Route

    tokens = tuple(tokens)

    class Anything(Convertor[str]):
        """The rest of a path, line breaks among it."""

        regex = r"[\s\S]*"

        def convert(self, value: str) -> str:
            return value

        def to_string(self, value: str) -> str:
            return value

    register_url_convertor("anything", Anything())

    api = FastAPI(
        title="nearcast",
        version=__version__,
        description=DESCRIPTION,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )

    def failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
        always = (401, 414) if tokens else (414,)
        return {status: {"model": Failed, "description": FAILURES[status]} for status in sorted((*always, *statuses))}

    Name = Annotated[str, Path(description="a generator that is served")]  # noqa: N806
    Text = Annotated[str, Path(description="a key, percent-encoded; it may hold slashes")]  # noqa: N806

    @api.get(
        "/v1/generators/{name}/candidates/{key:anything}",
        response_model=Answered,
        responses=failures(400, 404, 422, 503),
        tags=["candidates"],
    )
    async def candidates(name: Name, key: Text, parameters: Annotated[KeyParameters, Query()]) -> Reply:
        """The candidates of one key."""
        request = check_values(parameters.request)
        wanted = LookupOptions(parameters.k, parameters.min_score, names_in(parameters.fields), request)
        answer = await service.candidates(name, KeyQuery(key, parameters.fallback_key), wanted)
        return Reply(encode(plain_answer(answer)))

    @api.post(
        "/v1/generators/{name}/candidates",
        response_model=AnsweredMany,
        responses=failures(400, 404, 413, 415, 422, 503),
        tags=["candidates"],
    )
    async def many_candidates(name: Name, body: Keys) -> Reply:
        """The candidates of many keys, in the order of the request."""
        questions = _questions(service, name, body, limits)
        wanted = LookupOptions(body.k, body.min_score, tuple(body.fields), body.request)
        return Reply(await service.many_candidates(name, questions, wanted, told))

    @api.post(
        "/v1/generators/{name}/merged",
        response_model=MergedCandidates,
        responses=failures(400, 404, 413, 415, 422, 503),
        tags=["candidates"],
    )
    async def merged(name: Name, body: Merge) -> Reply:
        """The candidates of several keys as one list: of keys with weights, or of what the request knows."""
        return json_reply((await service.merged(name, mix_of(body))).as_dict())

    @api.post(
        "/v1/generators/{name}/search",
        response_model=Searched,
        responses=failures(400, 404, 413, 415, 422, 503),
        tags=["candidates"],
    )
    async def search(name: Name, body: Search) -> Reply:
        """What is nearest to each vector, by the online index."""
        online = service.online(name)
        _check_count("vectors", len(body.vectors), body.k or service.k(name), limits)
        if body.recall is not None and body.recall > online.recall:
            message = f"recall is {body.recall}, and the online index of {name} is set to {online.recall}"
            raise RefusedError(422, "recall_too_high", message)
        vectors = service.vectors(name, body.vectors)
        wanted = LookupOptions(body.k, body.min_score, tuple(body.fields), body.request)
        found = await service.search(name, vectors, wanted)
        return json_reply({"engine": online.name, "recall": online.recall, **plain_search(found)})

    @api.post(
        "/v1/generators/{name}/ads",
        response_model=AdsAnswered,
        responses=failures(400, 404, 413, 415, 422, 503),
        tags=["ads"],
    )
    async def ads(name: Name, body: AdsWanted) -> Reply:
        """What is promoted for the candidates of these keys: looked up, expanded, under rules, budgets and caps."""
        _check_count("keys", len(body.keys), min(body.candidates_per_key or MOST_CANDIDATES, service.k(name)), limits)
        chosen = chosen_expansion(service.expansions, body.expansion, service.unopened_expansions)
        return json_reply((await service.ads(name, chosen, body)).as_dict())

    @api.get("/v1/generators", response_model=Generators, responses=failures(), tags=["generators"])
    async def generators() -> Reply:
        """What is served of each generator."""
        states = service.states()
        return json_reply({"generators": [plain_generator(n, service.served[n], state) for n, state in states.items()]})

    @api.get("/v1/generators/{name}", response_model=Generator, responses=failures(400, 404, 503), tags=["generators"])
    async def generator(name: Name) -> Reply:
        """What is served of one generator."""
        served, state = service.generator(name), service.states().get(name)
        if state is None:
            raise RefusedError(503, "not_ready", "no version of this generator is open")
        return json_reply(plain_generator(name, served, state))

    @api.get("/healthz", response_model=Alive, tags=["operation"])
    async def alive() -> Reply:
        """Whether the process answers."""
        return json_reply({"alive": True})

    @api.get(
        "/readyz",
        response_model=Ready,
        responses={503: {"model": Ready, "description": "not now"}},
        tags=["operation"],
    )
    async def ready() -> Reply:
        """Whether requests may be sent here: a version is open of all that is served, and the service is not stopping.

        A generator or table that could not be opened, or stays on an old version, is named and takes no other down.
        """
        reasons = service.reasons()
        told = [*reasons, *service.remarks()]
        return json_reply({"ready": not reasons, "reasons": told}, 503 if reasons else 200)

    @api.get(
        "/metrics",
        response_model=None,
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **failures()},
        tags=["operation"],
    )
    async def metrics() -> Reply:
        """Counters and gauges, as Prometheus reads them."""
        return Reply(service.metrics.text(), 200, TEXT)

    schema = _described_api(api.openapi(), limits, secured=bool(tokens))
    described, page = json_reply(schema), Reply(docs_page(schema), 200, HTML)

    @api.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Reply:
        """This description, for programs."""
        return described

    @api.get("/docs", include_in_schema=False)
    async def docs() -> Reply:
        """This description, for people."""
        return page

    async def no_route(_request: Any, error: Exception) -> Response:
        """A path or a method that there is not."""
        assert isinstance(error, HTTPException)
        code = CODES.get(error.status_code, "refused")
        message = f"{error.detail.lower()}; /docs says what there is"
        reply = error_reply(error.status_code, code, message)
        headers = {**dict(error.headers or {}), "content-type": "application/json"}
        return Response(reply.body, error.status_code, headers)

    routes = [
        Route(route.path, Prepared(route.path_format, route.endpoint, limits), methods=sorted(route.methods or ()))
        for route in api.routes
        if isinstance(route, APIRoute)
    ]
    routes += [Route(page.path, Paged(page), methods=["GET"]) for page in pages]
    served = Starlette(routes=routes, exception_handlers={HTTPException: no_route})
    served.router.redirect_slashes = False
    opened = frozenset(page.path for page in pages if page.open)
    return Guard(
        served, tokens=tokens, observe=service.metrics.request, draining=lambda: service.draining, open_paths=opened
    )


FAILURES = {
    400: "not percent-encoded UTF-8, or no JSON",
    401: "no token, or another one",
    404: "no such generator, no online index, or no such table",
    413: "a body that is too large",
    414: "a URL that is too long",
    415: "a body that is not declared as JSON",
    422: "a request that cannot be answered: the message names what is wrong with it",
    503: "the store did not answer, or too many look-ups are waiting",
}


def _check_count(what: str, count: int, k: int, limits: Limits) -> None:
    """Refused where a request asks for more than one answer should hold."""
    if count > limits.keys:
        message = f"{what} holds {count:,}; one request may hold {limits.keys:,}: send several"
        raise RefusedError(422, "too_many", message)
    if count * k > MOST_CANDIDATES:
        message = f"{count:,} {what} with k = {k:,} are more than {MOST_CANDIDATES:,} candidates: send several requests"
        raise RefusedError(422, "too_many", message)


def _questions(service: Service, name: str, body: Keys, limits: Limits) -> list[KeyQuery]:
    """A question per key; refused where what is given per key does not go with the keys."""
    n = len(body.keys)
    _check_count("keys", n, min(body.k or MOST_CANDIDATES, service.k(name)), limits)
    for what, given in (("fallback_keys", body.fallback_keys), ("vectors", body.vectors)):
        if given is not None and len(given) != n:
            raise RefusedError(422, "invalid", f"{what} holds {len(given):,} where there are {n:,} keys")
    fallbacks = body.fallback_keys or [None] * n
    vectors: list[Any] = [None] * n
    if body.vectors is not None and service.generator(name).online is not None:
        places = [place for place, vector in enumerate(body.vectors) if vector is not None]
        rows = service.vectors(name, [vector for vector in body.vectors if vector is not None])
        for place, row in zip(places, rows, strict=True):
            vectors[place] = row
    return [KeyQuery(k, f or (), v) for k, f, v in zip(body.keys, fallbacks, vectors, strict=True)]


def _described_api(schema: dict[str, Any], limits: Limits, *, secured: bool) -> dict[str, Any]:
    """The description with what this service was started with."""
    shapes = schema["components"]["schemas"]
    for shape, what in (("Keys", "keys"), ("Search", "vectors"), ("AdsWanted", "keys")):
        shapes[shape]["properties"][what]["maxItems"] = limits.keys
    for theirs in ("HTTPValidationError", "ValidationError"):  # FastAPI's own refusals, which are never made
        shapes.pop(theirs, None)
    schema["paths"]["/v1/generators/{name}"]["get"]["responses"].pop("422", None)
    if secured:
        schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for path, operations in schema["paths"].items():
            for operation in operations.values():
                operation["security"] = [] if path in ("/healthz", "/readyz") else [{"token": []}]
    return schema
