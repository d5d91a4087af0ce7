"""The URL of a store in Amazon DynamoDB, dynamodb://REGION/TABLE, and its settings. Credentials are never in it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl

from nearcast.errors import SpecError

__all__ = ["DynamoSettings", "parse_dynamodb_url"]

FORM = "write dynamodb://REGION/TABLE, for example dynamodb://eu-west-1/nearcast"
SETTINGS = ("timeout", "grace", "buckets", "endpoint", "create")
MOST_BUCKETS = 1 << 16


@dataclass(frozen=True, slots=True)
class DynamoSettings:
    """The settings of a store in DynamoDB."""

    url: str  # without the settings, for messages
    region: str
    table: str
    timeout: float = 5.0  # seconds to wait for a connection or an answer
    grace: float = 3600.0  # seconds for which open readers can read a retired version
    buckets: int = 256  # partition keys per space
    endpoint: str | None = None  # of another server with this interface
    create: bool = False  # create the table if it is missing


def parse_dynamodb_url(url: str) -> DynamoSettings:
    """Return the settings of a URL. Raises SpecError. Connects to nothing."""
    scheme, _, rest = url.partition("://")
    if "@" in rest.partition("?")[0]:
        raise SpecError(
            f"the store's URL {scheme}://... has a user or a password; credentials of AWS are read from the "
            f"environment, its files or the machine's role; {FORM}"
        )
    found = re.fullmatch(r"([a-z0-9-]+)/([A-Za-z0-9_.-]{3,255})(?:\?(.*))?", rest)
    if found is None:
        raise SpecError(f"the store's URL names no region and table; {FORM}")
    region, table, query = found.groups()
    shown, options = f"dynamodb://{region}/{table}", dict(parse_qsl(query or "", keep_blank_values=True))
    for name in options:
        if name not in SETTINGS:
            raise SpecError(f"{shown} has the setting {name!r}; known ones are {', '.join(SETTINGS)}")
    endpoint = options.get("endpoint")
    if endpoint is not None and not re.fullmatch(r"https?://[A-Za-z0-9._:\[\]-]+/?", endpoint):
        raise SpecError(f"{shown}: endpoint is no URL of a server; write ?endpoint=http://host:port")
    if options.get("create", "false") not in ("true", "false"):
        raise SpecError(f"{shown}: create is {options['create']!r}; give true or false")
    return DynamoSettings(
        shown,
        region,
        table,
        timeout=_parse_number(shown, options, "timeout", 5.0, 0.01, 3600.0),
        grace=_parse_number(shown, options, "grace", 3600.0, 0.0, 30 * 86400.0),
        buckets=int(_parse_number(shown, options, "buckets", 256, 1, MOST_BUCKETS)),
        endpoint=endpoint,
        create=options.get("create") == "true",
    )


def _parse_number(shown: str, options: dict[str, str], name: str, default: float, least: float, most: float) -> float:
    """Return a number of the options; a whole one if the default is whole."""
    if name not in options:
        return default
    try:
        value = (int if isinstance(default, int) else float)(options[name])
    except ValueError:
        value = -1.0
    if not least <= value <= most:
        kind = "whole number" if isinstance(default, int) else "number"
        raise SpecError(f"{shown}: {name} is {options[name]!r}; give a {kind} from {least:g} to {most:g}")
    return value
