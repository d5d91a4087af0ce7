"""Webhooks: validate a URL, shorten it for messages, and post JSON to it.

The URL of a chat service is a secret, so messages show only scheme, host and port. A delivery succeeds if the server
answers with status 2xx. Redirects are not followed, since a POST that is redirected with 301 or 302 becomes a GET
without a body. A failure that may pass is tried again, a few times. Knows nothing of alerts.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from nearcast.files import finite_json

__all__ = ["DeliveryFailure", "Webhook", "parse_webhook", "post_json", "shorten_url"]

DELIVERY_SECONDS = 10.0  # total: name look-up, connection, TLS, request and the head of the response
UNSAFE = re.compile(r"[\x00-\x20\x7f]")
ESCAPED = "%/:?#[]@!$&'()*+,;=~-._"  # characters of a path or query that are not escaped (again)
REDIRECTS = (301, 302, 303, 307, 308)
PASSING = (408, 425, 429, 500, 502, 503, 504)  # statuses after which another attempt may succeed
OF_BODY = (400, 413, 422)  # statuses that refuse this body: another one may be accepted
PAUSES = (0.5, 1.5)  # seconds before the second and the third attempt


class DeliveryFailure(NamedTuple):
    """Why a request was not accepted, and whether another attempt may succeed."""

    reason: str
    passing: bool
    of_body: bool = False  # the server answers, and refuses what was sent


@dataclass(frozen=True, slots=True)
class Webhook:
    """http or https URL for a request: ASCII only, without user and password."""

    url: str
    authorization: str | None  # value of the header, from user and password of the URL
    name: str  # for messages: https://hooks.example.com/...


def parse_webhook(text: str) -> Webhook:
    """Parse the URL. Raises ValueError with the correction; the message contains no secret."""
    if UNSAFE.search(text):
        raise ValueError("the webhook's URL holds a blank or a control character; write %20 for a blank")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError(f"the webhook's URL cannot be read; {_CORRECTION}") from None
    scheme = parts.scheme.lower()
    if scheme not in ("http", "https"):
        fault = f"starts with {scheme + ':'!r}" if scheme and parts.netloc + parts.path else "has no scheme"
        raise ValueError(f"the webhook's URL {fault}: write a URL that starts with https:// or http://")
    if not host:
        raise ValueError(f"the webhook's URL names no host; {_CORRECTION}")
    netloc = _encode_host(host) + (f":{port}" if port is not None else "")
    path, query = quote(parts.path or "/", safe=ESCAPED), quote(parts.query, safe=ESCAPED)
    authorization = None
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = "Basic " + base64.b64encode(pair.encode()).decode()
    return Webhook(urlunsplit((scheme, netloc, path, query, "")), authorization, f"{scheme}://{netloc}/...")


_CORRECTION = "write a URL like https://hooks.example.com/alerts"


def _encode_host(host: str) -> str:
    if ":" in host:
        return f"[{host}]"
    try:
        return host if host.isascii() else host.encode("idna").decode()
    except UnicodeError:
        raise ValueError(f"the webhook's host {host!r} is not a valid host name; {_CORRECTION}") from None


def shorten_url(text: str) -> str:
    """Return scheme, host and port of a URL; the rest may contain a secret."""
    try:
        return parse_webhook(text).name
    except ValueError:
        return "..."


def post_json(text: str, body: Mapping[str, Any] | Sequence[Any], *, attempts: int = 1) -> DeliveryFailure | None:
    """POST plain data as JSON to the URL `text`. Return None if the server accepts it, else the failure.

    An attempt takes at most DELIVERY_SECONDS, uses the proxies of the environment, and does not read the body of the
    response. attempts: at most this many, one after the other, if the failure may pass: no connection, no answer, or a
    status that says so. Raises ValueError if the URL is invalid.
    """
    webhook = parse_webhook(text)
    data = json.dumps(finite_json(body), default=str, allow_nan=False).encode()
    failure = _attempt(webhook, data)
    for pause in PAUSES[: attempts - 1]:
        if failure is None or not failure.passing:
            break
        time.sleep(pause)
        failure = _attempt(webhook, data)
    return failure


def _attempt(webhook: Webhook, data: bytes) -> DeliveryFailure | None:
    outcome: list[DeliveryFailure | None] = []
    # On a separate thread, since a socket time-out limits neither the name look-up nor a slow response.
    sending = threading.Thread(target=lambda: outcome.append(_deliver(webhook, data)), daemon=True)
    sending.start()
    sending.join(DELIVERY_SECONDS)
    return outcome[0] if outcome else DeliveryFailure(_describe_silence(webhook), True)


def _deliver(webhook: Webhook, data: bytes) -> DeliveryFailure | None:
    import http.client
    import ssl
    import urllib.request

    headers = {"Content-Type": "application/json", "User-Agent": "nearcast"}
    if webhook.authorization is not None:
        headers["Authorization"] = webhook.authorization
    opener = urllib.request.OpenerDirector()  # the default opener opens files and follows redirects
    for handler in (urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
        opener.add_handler(handler())
    try:
        request = urllib.request.Request(webhook.url, data, headers, method="POST")
        answer = opener.open(request, timeout=DELIVERY_SECONDS)
        if answer is None:  # no handler supports the proxy of the environment
            return DeliveryFailure(f"the proxy for {webhook.name} is not supported", False)
        with answer:
            reason = _describe_status(webhook, answer.status, answer.headers.get("Location"))
            passing, of_body = answer.status in PASSING, answer.status in OF_BODY
            return None if reason is None else DeliveryFailure(reason, passing, of_body)
    except (OSError, ValueError, http.client.HTTPException) as error:  # URLError is an OSError
        cause = getattr(error, "reason", error)
        if isinstance(cause, ssl.SSLError):
            reason = f"{webhook.name}: no TLS connection ({cause.reason or 'refused'}: {_verify_message(cause)})"
            return DeliveryFailure(reason, False)
        if isinstance(cause, TimeoutError):
            return DeliveryFailure(_describe_silence(webhook), True)
        if isinstance(cause, OSError):
            return DeliveryFailure(f"{webhook.name}: {cause.strerror or type(cause).__name__}", True)
        if isinstance(error, http.client.HTTPException):
            return DeliveryFailure(f"{webhook.name} did not answer in HTTP ({type(error).__name__})", True)
        # its text may hold the URL
        return DeliveryFailure(f"{webhook.name} cannot be requested ({type(error).__name__})", False)


def _describe_silence(webhook: Webhook) -> str:
    return f"{webhook.name} did not answer within {DELIVERY_SECONDS:g} s"


def _verify_message(error: Any) -> str:
    return str(getattr(error, "verify_message", "") or "is it https that this port speaks?")


def _describe_status(webhook: Webhook, status: int, location: str | None) -> str | None:
    """Return why a status is a failure. The server's own words may repeat the URL, and are not shown."""
    import http.client

    if 200 <= status < 300:
        return None
    failure = f"HTTP Error {status}: {http.client.responses.get(status, 'a status that HTTP does not define')}"
    if status in REDIRECTS:
        target = f" to {shorten_url(location)}" if location else ""
        return f"{failure}; {webhook.name} redirects{target}, and alerts do not follow redirects; give the final URL"
    return f"{failure}, from {webhook.name}"
