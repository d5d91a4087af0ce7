"""The description of the service as one page of HTML that loads nothing: no scripts, no fonts, no other host."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

__all__ = ["docs_page"]

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a }
h2 { margin-top: 2.5rem; font: 600 1.1rem ui-monospace, monospace; overflow-wrap: anywhere }
h2 b { background: #e8eef7; padding: .1rem .4rem; margin-right: .5rem }
h3 { margin: 2rem 0 .5rem } table { border-collapse: collapse; width: 100%; font-size: .9rem }
td, th { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid #ddd }
code { font: .9em ui-monospace, monospace } a { color: #1a4fa0 }
"""


def docs_page(schema: Mapping[str, Any]) -> bytes:
    """The page of an OpenAPI description."""
    title = f"{escape(schema['info']['title'])} {escape(schema['info']['version'])}"
    parts = [f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>']
    parts.append(f"<h1>{title}</h1><p>{escape(schema['info']['description'])}</p>")
    parts.append('<p>For programs: <a href="openapi.json">openapi.json</a></p>')
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            parts.extend(_operation(path, method, operation))
    parts.append("<h1>Shapes</h1>")
    for name, shape in schema["components"]["schemas"].items():
        parts.append(f'<h3 id="{escape(name)}">{escape(name)}</h3><p>{escape(shape.get("description", ""))}</p>')
        parts.append(_table(_properties(shape)))
    return "".join(parts).encode()


def _operation(path: str, method: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h2><b>{method.upper()}</b>{escape(path)}</h2><p>{escape(operation.get('description', ''))}</p>"
    given = [
        (p["name"], _type(p["schema"]), p.get("description") or p["schema"].get("description", ""))
        for p in operation.get("parameters", ())
    ]
    if "requestBody" in operation:
        given.append(("body", _content(operation["requestBody"]), "JSON"))
    if given:
        yield _table(given)
    told = [(status, _content(answer), answer["description"]) for status, answer in operation["responses"].items()]
    yield _table(told)


def _content(holder: Mapping[str, Any]) -> str:
    return ", ".join(_type(kind.get("schema", {})) for kind in holder.get("content", {}).values())


def _properties(shape: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    needed = shape.get("required", ())
    return [
        (name + ("" if name in needed else " (optional)"), _type(held), held.get("description", ""))
        for name, held in shape.get("properties", {}).items()
    ]


def _type(schema: Mapping[str, Any]) -> str:
    """A type in few words, as HTML; shapes are links."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    for several in ("anyOf", "allOf"):
        if several in schema:
            return " or ".join(dict.fromkeys(_type(one) for one in schema[several]))
    if "enum" in schema:
        return ", ".join(f"<code>{escape(str(value))}</code>" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    bounds = [f"{word} {schema[key]:,}" for key, word in (("minimum", "from"), ("maximum", "to")) if key in schema]
    return " ".join([escape(str(schema.get("type", "anything"))), *bounds])


def _table(rows: list[tuple[str, str, str]]) -> str:
    cells = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{kind}</td><td>{escape(text)}</td></tr>"
        for name, kind, text in rows
    )
    return f"<table>{cells}</table>"
