"""The page as HTML: one file that holds everything, or a shell whose parts a service hands out.

Scripts and styles run by hash in the file and by address in the service; nothing else may. Data goes in as JSON that
no script runs, and the front end writes it as text alone. The first screen has its data in one piece, and each
generator in one of its own, which is unpacked when somebody looks at it.
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

from nearcast.dashboard.overview import brief
from nearcast.errors import SpecError
from nearcast.files import finite_json

__all__ = ["PARTS", "Policy", "Shell", "check_origin", "encoded", "part", "shell", "static_page"]

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
class Policy:
    """What a page may load and run, as the value of Content-Security-Policy."""

    scripts: str
    styles: str
    connect: str = "'none'"
    pictures: tuple[str, ...] = ()  # origins of pictures beside data: URLs

    def text(self, *, header: bool) -> str:
        """The policy; as a header it also forbids frames, which a meta element cannot."""
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
class Shell:
    """The page of a service: HTML without data, and the policy to send with it."""

    html: bytes
    policy: str


def check_origin(origin: str) -> str:
    """The origin of pictures, such as https://img.example.com. SpecError where it is none."""
    parts = urlsplit(origin)
    plain = parts.scheme in ("http", "https") and parts.netloc and not (parts.path.strip("/") or parts.query)
    if not plain or any(c in origin for c in " ;,'\"*\r\n\t"):
        raise SpecError(f"{origin!r} is no origin of pictures; write it as https://img.example.com")
    return f"{parts.scheme}://{parts.netloc}"


@cache
def part(name: str) -> bytes:
    """A script or a style that ships with the package."""
    return (resources.files("nearcast.dashboard") / "static").joinpath(*name.split("/")).read_bytes()


def static_page(document: Mapping[str, Any], *, pictures: Sequence[str] = ()) -> bytes:
    """The page with its data in one file, which needs no network."""
    scripts = [part(name) for name in SCRIPTS]
    styles = [part(name) for name in STYLES]
    policy = Policy(_hashes(scripts), _hashes(styles), pictures=tuple(pictures)).text(header=False)
    generators = document["generators"]
    first = {**document, "generators": [brief(page) for page in generators]}
    body = [
        *(b"<style>%s</style>" % style for style in styles),
        b"</head><body>",
        _BODY,
        _piece("data", first),
        *(b"<script>%s</script>" % script for script in scripts),
        *(_piece(f"generator-{place}", _stepped(page)) for place, page in enumerate(generators)),  # after what is seen
        b"</body></html>\n",
    ]
    return _head(policy) + b"\n".join(body)


def shell(prefix: str, *, pictures: Sequence[str] = ()) -> Shell:
    """The page of a service, whose parts are below `prefix`."""
    policy = Policy("'self'", "'self'", "'self'", tuple(pictures)).text(header=True)
    links = "".join(f'<link rel="stylesheet" href="{prefix}{name}">' for name in STYLES)
    scripts = "".join(f'<script defer src="{prefix}{name}"></script>' for name in SCRIPTS)
    html = _head(None) + links.encode() + scripts.encode() + b"</head><body>" + _BODY + b"</body></html>\n"
    return Shell(html, policy)


_BODY = (
    b'<div id="page"><p class="loading">Loading\xe2\x80\xa6</p></div><noscript>This page needs JavaScript.</noscript>'
)


def _head(policy: str | None) -> bytes:
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy}">' if policy else ""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{meta}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">'
        f"<title>{TITLE}</title>\n"
    ).encode()


def _piece(name: str, told: Any) -> bytes:
    """Data that no script runs, found by its name."""
    packed = base64.b64encode(gzip.compress(encoded(told), 9, mtime=0))
    return b'<script type="application/octet-stream" id="%s">%s</script>' % (name.encode(), packed)


def _stepped(page: Mapping[str, Any]) -> dict[str, Any]:
    """A generator whose times are the seconds since the one before, which pack to a fraction; the front end adds up."""
    series = {of: page[of] | {"at": _steps(page[of]["at"])} for of in ("runs", "passes")}
    times = _steps([mark["at"] for mark in page["marks"]])
    marks = [mark | {"at": step} for mark, step in zip(page["marks"], times, strict=True)]
    return {**page, **series, "marks": marks}


def _steps(times: Sequence[int]) -> list[int]:
    return [now - before for before, now in pairwise((0, *times))]


def _hashes(parts: Sequence[bytes]) -> str:
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(p).digest()).decode()}'" for p in parts)


def encoded(document: Any) -> bytes:
    """Plain data as JSON: null for NaN and infinity, which JSON does not have."""
    text = json.dumps(finite_json(document), separators=(",", ":"), ensure_ascii=False, default=str, allow_nan=False)
    return text.encode("utf-8", "replace")
