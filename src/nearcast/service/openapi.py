"""The OpenAPI description of the service, and the same as one HTML page without scripts, fonts or other hosts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from html import escape
from typing import Annotated, Any

from nearcast.service.endpoint import Limits
from nearcast.service.endpoints import EndpointRoute
from nearcast.service.request_schemas import LookupParameters
from nearcast.service.response_schemas import ErrorResponse
from nearcast.version import __version__

__all__ = ["describe_api", "render_docs"]

DESCRIPTION = """Precomputed candidates by key and, if an online index is served, candidates by vector.

Every answer names its snapshot, its age and the source of its candidates. Items that the overlay has removed are in no
answer. A missing key is no error: the answer has `found` false and the candidates of a fallback.
"""
ERRORS = {
    400: "The path or the query is not percent-encoded UTF-8, or the body is not JSON.",
    401: "The token is missing or wrong.",
    404: "No such generator, online index or table.",
    406: "The Accept header allows none of the media types that there are.",
    413: "The body is too large.",
    414: "The URL is too long.",
    415: "The body is not declared as JSON.",
    422: "The request is invalid. The message says why.",
    503: "The store did not respond, or too many look-ups are waiting.",
}
OPEN_ROUTES = ("/healthz", "/readyz")  # they need no token

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a }
h2 { margin-top: 2.5rem; font: 600 1.1rem ui-monospace, monospace; overflow-wrap: anywhere }
h2 b { background: #e8eef7; padding: .1rem .4rem; margin-right: .5rem }
h3 { margin: 2rem 0 .5rem } table { border-collapse: collapse; width: 100%; font-size: .9rem }
td, th { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid #ddd }
code { font: .9em ui-monospace, monospace } a { color: #1a4fa0 }
"""


def describe_api(routes: Iterable[EndpointRoute], limits: Limits, *, secured: bool) -> dict[str, Any]:
    """Return the OpenAPI description of these routes. secured: requests need a bearer token."""
    from fastapi import FastAPI
    from fastapi.responses import JSONResponse, Response

    api = FastAPI(title="nearcast", version=__version__, description=DESCRIPTION, openapi_url=None, docs_url=None)
    for route in routes:
        statuses = () if route.errors is None else (414, *((401,) if secured else ()), *route.errors)
        errors: dict[int | str, dict[str, Any]] = {
            status: {"model": ErrorResponse, "description": ERRORS[status]} for status in sorted(statuses)
        }
        api.add_api_route(
            route.path,
            _describe_arguments(route.endpoint),
            methods=[route.method],
            response_model=route.model,
            responses=errors | (route.responses or {}),
            tags=[route.tag],
            operation_id=route.endpoint.__name__,
            response_class=Response if route.model is None else JSONResponse,
        )
    return _complete_schema(api.openapi(), limits, secured=secured)


def _describe_arguments(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function with the docstring and the HTTP arguments of an endpoint, for FastAPI to inspect."""
    from fastapi import Path, Query

    described = {
        "name": Annotated[str, Path(description="Name of a generator.")],
        "key": Annotated[str, Path(description="Key, percent-encoded. It may hold slashes.")],
        "parameters": Annotated[LookupParameters, Query()],
    }

    def stub() -> None: ...

    arguments = inspect.signature(endpoint, eval_str=True).parameters.values()
    stub.__name__, stub.__doc__ = endpoint.__name__, endpoint.__doc__
    stub.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            argument.replace(annotation=described.get(argument.name, argument.annotation))
            for argument in arguments
            if argument.name not in ("service", "_service", "limits", "media")
        ]
    )
    return stub


def _complete_schema(schema: dict[str, Any], limits: Limits, *, secured: bool) -> dict[str, Any]:
    """Add the limits and the security scheme of this service; drop the validation errors that FastAPI adds."""
    models = schema["components"]["schemas"]
    for model, field in (("LookupRequest", "keys"), ("SearchRequest", "vectors"), ("AdsRequest", "keys")):
        models[model]["properties"][field]["maxItems"] = limits.keys
    for unused in ("HTTPValidationError", "ValidationError"):
        models.pop(unused, None)
    for path in ("/v1/generators/{name}", "/v1/generators/{name}/canary"):
        schema["paths"][path]["get"]["responses"].pop("422", None)
    if secured:
        schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for path, operations in schema["paths"].items():
            for operation in operations.values():
                operation["security"] = [] if path in OPEN_ROUTES else [{"token": []}]
    return schema


def render_docs(schema: Mapping[str, Any]) -> bytes:
    """Return the HTML page of an OpenAPI description."""
    title = f"{escape(schema['info']['title'])} {escape(schema['info']['version'])}"
    parts = [f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>']
    parts.append(f"<h1>{title}</h1><p>{escape(schema['info']['description'])}</p>")
    parts.append('<p>For programs: <a href="openapi.json">openapi.json</a></p>')
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            parts.extend(_render_operation(path, method, operation))
    parts.append("<h1>Schemas</h1>")
    for name, model in schema["components"]["schemas"].items():
        parts.append(f'<h3 id="{escape(name)}">{escape(name)}</h3><p>{escape(model.get("description", ""))}</p>')
        parts.append(_draw_table(_list_properties(model)))
    return "".join(parts).encode()


def _render_operation(path: str, method: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h2><b>{method.upper()}</b>{escape(path)}</h2><p>{escape(operation.get('description', ''))}</p>"
    arguments = [
        (p["name"], _render_type(p["schema"]), p.get("description") or p["schema"].get("description", ""))
        for p in operation.get("parameters", ())
    ]
    if "requestBody" in operation:
        arguments.append(("body", _render_content(operation["requestBody"]), "JSON"))
    if arguments:
        yield _draw_table(arguments)
    responses = operation["responses"].items()
    yield _draw_table([(status, _render_content(response), response["description"]) for status, response in responses])


def _render_content(holder: Mapping[str, Any]) -> str:
    return ", ".join(_render_type(kind.get("schema", {})) for kind in holder.get("content", {}).values())


def _list_properties(model: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    required = model.get("required", ())
    return [
        (name + ("" if name in required else " (optional)"), _render_type(field), field.get("description", ""))
        for name, field in model.get("properties", {}).items()
    ]


def _render_type(schema: Mapping[str, Any]) -> str:
    """Return a type as HTML. Models are links."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    for union in ("anyOf", "allOf"):
        if union in schema:
            return " or ".join(dict.fromkeys(_render_type(one) for one in schema[union]))
    if "enum" in schema:
        return ", ".join(f"<code>{escape(str(value))}</code>" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_render_type(schema.get('items', {}))}"
    bounds = [f"{word} {schema[key]:,}" for key, word in (("minimum", "from"), ("maximum", "to")) if key in schema]
    return " ".join([escape(str(schema.get("type", "anything"))), *bounds])


def _draw_table(rows: list[tuple[str, str, str]]) -> str:
    cells = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{kind}</td><td>{escape(text)}</td></tr>"
        for name, kind, text in rows
    )
    return f"<table>{cells}</table>"
