"""Read a canary's figures from services over HTTP, and add them up.

Each process of a service names its figures, so that several workers behind one port, or a service that was restarted,
count once each: the newest figures of a process replace its older ones. Knows nothing of rules.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any
from urllib.parse import quote

from nearcast.errors import SpecError
from nearcast.measure.canary_figures import CanaryFigures
from nearcast.stores.canary_share import Canary
from nearcast.webhook import parse_webhook, shorten_url

__all__ = ["FigureSource"]

TIMEOUT_SECONDS = 5.0
MOST_BYTES = 1 << 20


@dataclass(slots=True)
class FigureSource:
    """The services that serve a generator, and what each of their processes has measured."""

    generator: str
    services: Sequence[str]  # URLs, for example http://127.0.0.1:8080
    token: str | None = None  # bearer token
    faults: dict[str, str] = field(default_factory=dict)  # service: why it does not serve the canary
    unreachable: dict[str, str] = field(default_factory=dict)  # service: why it could not be asked
    _found: dict[str, CanaryFigures] = field(default_factory=dict)  # by process

    def __post_init__(self) -> None:
        for url in self.services:
            try:
                parse_webhook(url)
            except ValueError:
                raise SpecError(f"--service: {url!r} is no URL of a service; write http://HOST:PORT") from None

    def read(self, canary: Canary) -> CanaryFigures:
        """Ask every service, and return the sum of all processes that were ever asked."""
        self.faults.clear()
        self.unreachable.clear()
        for url in self.services:
            try:
                self._read_one(url, canary)
            except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
                self.unreachable[shorten_url(url)] = str(error) or type(error).__name__
        return sum(self._found.values(), CanaryFigures())

    def _read_one(self, url: str, canary: Canary) -> None:
        body = self._get(f"{url.rstrip('/')}/v1/generators/{quote(self.generator, safe='')}/canary")
        if body["error"]:
            self.faults[shorten_url(url)] = f"{shorten_url(url)} cannot open the canary; its log says why"
        live = body["canary"]
        if live is not None and canary.is_same(Canary.from_json(live)):
            self._found[str(body["source"])] = CanaryFigures.from_json(body["figures"])

    def _get(self, url: str) -> Any:
        headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {self.token}"} if self.token else {})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        request = urllib.request.Request(url, headers=headers)
        with opener.open(request, timeout=TIMEOUT_SECONDS) as response:
            return json.loads(response.read(MOST_BYTES))
