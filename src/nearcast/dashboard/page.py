"""The page as HTML: one self-contained file, or a shell whose parts a service delivers.

The content policy allows only these scripts and styles: by hash in the file, by address in the service. Data is
embedded as packed JSON that is never executed, and the front end writes it as text only. The overview and each
generator have separate blocks; the block of a generator is unpacked when a reader opens it.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

from nearcast.dashboard.series import build_overview
from nearcast.errors import SpecError
from nearcast.files import finite_json

__all__ = [
    "PARTS",
    "ContentPolicy",
    "PageShell",
    "build_shell",
    "build_static_page",
    "encode_json",
    "read_part",
    "validate_origin",
]

SCRIPTS = (  # in this order
    "vendor/uPlot.iife.min.js",
    "vendor/preact-htm.iife.min.js",
    "format.js",
    "charts.js",
    "overview.js",
    "panels.js",
    "generator.js",
    "explorer.js",
    "app.js",
)
STYLES = ("vendor/uPlot.min.css", "page.css")
PARTS: Mapping[str, str] = {
    **dict.fromkeys(SCRIPTS, "text/javascript; charset=utf-8"),
    **dict.fromkeys(STYLES, "text/css; charset=utf-8"),
}
TITLE = "nearcast"


@dataclass(frozen=True, slots=True)
class ContentPolicy:
    """The Content-Security-Policy of a page: the scripts and styles that it may load and run."""

    scripts: str
    styles: str
    connect: str = "'none'"
    pictures: tuple[str, ...] = ()  # origins of pictures, besides data: URLs

    def text(self, *, header: bool) -> str:
        """Return the policy. A header also forbids frames, which a meta element cannot."""
        parts = [
            "default-src 'none'",
            f"script-src {self.scripts}",
            f"style-src {self.styles}",
            f"img-src {' '.join(('data:', *self.pictures))}",
            f"connect-src {self.connect}",
            "base-uri 'none'",
            "form-action 'none'",
            *(("frame-ancestors 'none'",) if header else ()),
        ]
        return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class PageShell:
    """The page of a service: HTML without data, and its content policy."""

    html: bytes
    policy: str


def validate_origin(origin: str) -> str:
    """Return an origin of pictures, for example https://img.example.com. Raises SpecError if it is invalid."""
    parts = urlsplit(origin)
    plain = parts.scheme in ("http", "https") and parts.netloc and not (parts.path.strip("/") or parts.query)
    if not plain or any(c in origin for c in " ;,'\"*\r\n\t"):
        raise SpecError(f"{origin!r} is no origin of pictures; write it like https://img.example.com")
    return f"{parts.scheme}://{parts.netloc}"


@cache
def read_part(name: str) -> bytes:
    """Return a script or a style of the package."""
    return (resources.files("nearcast.dashboard") / "static").joinpath(*name.split("/")).read_bytes()


def build_static_page(document: Mapping[str, Any], *, pictures: Sequence[str] = ()) -> bytes:
    """Return the page with its data as one file that needs no network."""
    scripts = [read_part(name) for name in SCRIPTS]
    styles = [read_part(name) for name in STYLES]
    policy = ContentPolicy(_hash_parts(scripts), _hash_parts(styles), pictures=tuple(pictures)).text(header=False)
    generators = document["generators"]
    first = {**document, "generators": [build_overview(page) for page in generators]}
    body = [
        *(b"<style>%s</style>" % style for style in styles),
        b"</head><body>",
        _BODY,
        _embed_data("data", first),
        *(b"<script>%s</script>" % script for script in scripts),
        *(
            _embed_data(f"generator-{number}", _use_time_steps(page)) for number, page in enumerate(generators)
        ),  # after the first screen
        b"</body></html>\n",
    ]
    return _build_head(policy) + b"\n".join(body)


def build_shell(prefix: str, *, pictures: Sequence[str] = ()) -> PageShell:
    """Return the page of a service, whose parts are below `prefix`."""
    policy = ContentPolicy("'self'", "'self'", "'self'", tuple(pictures)).text(header=True)
    links = "".join(f'<link rel="stylesheet" href="{prefix}{name}">' for name in STYLES)
    scripts = "".join(f'<script defer src="{prefix}{name}"></script>' for name in SCRIPTS)
    html = _build_head(None) + links.encode() + scripts.encode() + b"</head><body>" + _BODY + b"</body></html>\n"
    return PageShell(html, policy)


_BODY = (
    b'<div id="page"><p class="loading">Loading\xe2\x80\xa6</p></div><noscript>This page needs JavaScript.</noscript>'
)


def _build_head(policy: str | None) -> bytes:
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy}">' if policy else ""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{meta}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">'
        f"<title>{TITLE}</title>\n"
    ).encode()


def _embed_data(name: str, data: Any) -> bytes:
    """Return data as a script element that is never executed. name: its id."""
    packed = base64.b64encode(gzip.compress(encode_json(data), 9, mtime=0))
    return b'<script type="application/octet-stream" id="%s">%s</script>' % (name.encode(), packed)


def _use_time_steps(page: Mapping[str, Any]) -> dict[str, Any]:
    """Return a page whose times are differences to the time before, which pack better; the front end adds them up."""
    series = {of: page[of] | {"at": _compute_steps(page[of]["at"])} for of in ("runs", "passes")}
    times = _compute_steps([mark["at"] for mark in page["marks"]])
    marks = [mark | {"at": step} for mark, step in zip(page["marks"], times, strict=True)]
    return {**page, **series, "marks": marks}


def _compute_steps(times: Sequence[int]) -> list[int]:
    return [now - before for before, now in pairwise((0, *times))]


def _hash_parts(parts: Sequence[bytes]) -> str:
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(p).digest()).decode()}'" for p in parts)


def encode_json(document: Any) -> bytes:
    """Return plain data as JSON, with null for NaN and infinity."""
    text = json.dumps(finite_json(document), separators=(",", ":"), ensure_ascii=False, default=str, allow_nan=False)
    return text.encode("utf-8", "replace")
