"""The URL of a store in Redis or Valkey, and its settings. No message shows any part of a password.

    redis://host:port/db    rediss://, valkey://, valkeys://    unix://PATH?db=0    one server
    redis+cluster://host:port,host:port                         a Cluster: some of its nodes
    redis+sentinel://host:port,host:port/SERVICE[/db]           Sentinels and the service that they watch

Special characters of a password must be percent-encoded. Otherwise parts of it would be parsed as host, path or a
setting, and appear in messages. Such a URL is refused as a whole and never shown.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from nearcast.errors import SpecError

__all__ = ["FORM", "MOST_BUCKETS", "PASSWORD_VARIABLE", "RedisSettings", "check_url", "parse_url"]

OURS = ("timeout", "grace", "buckets")
PASSED_ON = ("db", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname", "ssl_cert_reqs")
TLS_SETTINGS = "ssl_"  # prefix of the settings that need TLS
TLS_CHOICES = {"ssl_cert_reqs": ("none", "optional", "required"), "ssl_check_hostname": ("true", "false")}
MOST_BUCKETS = 1 << 20
MOST_DATABASES = 1 << 20
TIMEOUT, GRACE, BUCKETS = 5.0, 3600.0, 4096.0
FORM = "write redis://[user:password@]host[:port][/db], where db is a number"
CLUSTER_FORM = "write redis+cluster://[user:password@]host[:port],host[:port]"
SENTINEL_FORM = "write redis+sentinel://[user:password@]host[:port],host[:port]/SERVICE[/db]"
CLUSTER, SENTINEL = "cluster", "sentinel"
PORTS = {"": 6379, CLUSTER: 6379, SENTINEL: 26379}
LIBRARY_SCHEMES = {"redis": "redis", "valkey": "redis", "rediss": "rediss", "valkeys": "rediss", "unix": "unix"}
ENCODE = "percent-encode the characters @ : / ? # % of a password: %40 %3A %2F %3F %23 %25"
PASSWORD_VARIABLE = "NEARCAST_STORE_PASSWORD"  # the name of a variable, no password
SENTINEL_PASSWORD_VARIABLE = "NEARCAST_SENTINEL_PASSWORD"
HIDDEN = "***"  # in place of a password in a stored or displayed URL


@dataclass(frozen=True, slots=True)
class RedisSettings:
    """The settings of a store in Redis."""

    url: str  # without the user, the password and the settings, for messages
    full_url: str = field(repr=False)  # for the library
    timeout: float = TIMEOUT  # seconds to wait for a connection or an answer
    grace: float = GRACE  # seconds for which open readers can read a retired version
    buckets: int = int(BUCKETS)  # hashes per space: they keep single commands small
    secrets: tuple[str, ...] = field(default=(), repr=False)  # texts that no message may contain
    kind: str = ""  # CLUSTER or SENTINEL; empty for one server
    nodes: tuple[tuple[str, int], ...] = ()  # host and port of nodes of the Cluster, or of Sentinels
    service: str = ""  # that the Sentinels watch

    @property
    def secure(self) -> bool:
        """Whether connections use TLS."""
        return self.full_url.startswith("rediss:")


def parse_url(url: str) -> RedisSettings:
    """Return the settings of a URL. Raises SpecError, which never shows a part of the password."""
    scheme, _, rest = url.partition("://")
    name, _, kind = scheme.partition("+")
    form = {CLUSTER: CLUSTER_FORM, SENTINEL: SENTINEL_FORM}.get(kind, FORM)
    if not rest or not re.fullmatch(r"[a-z]+", name) or kind not in PORTS or (kind and name == "unix"):
        raise SpecError(f"the store's URL cannot be read; {form}")
    login, at, rest = rest.rpartition("@")
    user, password = _parse_login(scheme, login) if at else ("", None)
    if "#" in rest:
        raise SpecError(f"the store's URL has a #, which means nothing in it; {form}; {ENCODE}")
    rest, _, query = rest.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    nodes: tuple[tuple[str, int | None], ...] = ()
    service = ""
    if name == "unix":
        shown, address = f"unix://{rest}", rest
        _parse_number(options, "db", 0, least=0, most=MOST_DATABASES, shown=shown, whole=True)
    else:
        text, slash, path = rest.partition("/")
        nodes = _parse_nodes(text, kind, form)
        address = ",".join(_format_address(host, port) for host, port in nodes)
        place = f"{scheme}://{address}"
        _parse_number(options, "db", 0, least=0, most=MOST_DATABASES, shown=place, whole=True)
        service, database = _parse_service(place, path) if kind == SENTINEL else ("", path)
        options |= _parse_database(place, database, options, form)
        if kind == CLUSTER and options.pop("db", "0") != "0":
            raise SpecError(f"{place} names a database, and a Cluster has number 0 alone; leave it out")
        shown = f"{place}/{service}" if service else f"{place}{slash}{path}"
        if service and "db" in options:
            shown = f"{shown}/{options['db']}"
    for option in options:
        if option not in OURS + PASSED_ON:
            raise SpecError(f"{shown} has the setting {option!r}; known ones are {', '.join(OURS + PASSED_ON)}")
    library_scheme = LIBRARY_SCHEMES.get(name, name)
    _validate_tls(library_scheme, options, shown)
    if password is None:
        password = os.environ.get(PASSWORD_VARIABLE) or None
    passed = urlencode({name: value for name, value in options.items() if name in PASSED_ON}, quote_via=quote)
    login = f"{quote(user, safe='')}:{quote(password, safe='')}@" if password is not None else ""
    first = address.partition(",")[0]
    return RedisSettings(
        url=shown,
        full_url=f"{library_scheme}://{login}{first}?{passed}",
        timeout=_parse_number(options, "timeout", TIMEOUT, least=0.01, most=3600, shown=shown),
        grace=_parse_number(options, "grace", GRACE, least=0, most=30 * 86400, shown=shown),
        buckets=int(_parse_number(options, "buckets", BUCKETS, least=1, most=MOST_BUCKETS, shown=shown, whole=True)),
        secrets=_list_secrets(password, os.environ.get(SENTINEL_PASSWORD_VARIABLE) if kind == SENTINEL else None),
        kind=kind,
        nodes=tuple((host, PORTS[kind] if port is None else port) for host, port in nodes),
        service=service,
    )


def _list_secrets(*passwords: str | None) -> tuple[str, ...]:
    return tuple({text for password in passwords if password for text in (password, quote(password, safe=""))})


def _parse_nodes(text: str, kind: str, form: str) -> tuple[tuple[str, int | None], ...]:
    """Return host and port of each node of a list. Raises SpecError if one cannot be read."""
    parts = text.split(",")
    if len(parts) > 1 and not kind:
        raise SpecError(f"the store's URL names several hosts; {CLUSTER_FORM}, or {SENTINEL_FORM}")
    nodes = []
    for part in parts:
        try:
            place = urlsplit(f"redis://{part}")
            host, port = place.hostname or "", place.port
        except ValueError:
            raise SpecError(f"the store's URL cannot be read; {form}; {ENCODE}") from None
        if port == 0:
            raise SpecError(f"the store's URL has the port 0, which no server can have; {form}")
        if not re.fullmatch(r"[A-Za-z0-9._:-]+", host):
            raise SpecError(f"the store's URL names no host; {form}; {ENCODE}")
        nodes.append((host, port))
    return tuple(nodes)


def _format_address(host: str, port: int | None) -> str:
    return (f"[{host}]" if ":" in host else host) + ("" if port is None else f":{port}")


def _parse_service(place: str, path: str) -> tuple[str, str]:
    """Return the service and the database of the path of a Sentinel's URL. Raises SpecError without a service."""
    service, _, database = path.partition("/")
    if not re.fullmatch(r"[A-Za-z0-9._-]+", service):
        raise SpecError(f"the store's URL {place}/... names no service of the Sentinels; {SENTINEL_FORM}")
    return service, database


def check_url(url: str) -> None:
    """Raise SpecError for a URL that is invalid with any password in the environment. Connects to nothing."""
    scheme, _, rest = url.partition("://")
    login, at, place = rest.rpartition("@")
    parse_url(f"{scheme}://{place}" if at and re.fullmatch(r"[^:/?#\s]*(:\*{3})?", login) else url)


def _validate_tls(scheme: str, options: dict[str, str], shown: str) -> None:
    """Raise SpecError for a TLS setting without TLS, or with an unknown value."""
    for name in options:
        if name.startswith(TLS_SETTINGS) and scheme != "rediss":
            raise SpecError(f"{shown} has the setting {name}, which means something with TLS alone; write rediss://")
        if name in TLS_CHOICES and options[name].lower() not in TLS_CHOICES[name]:
            raise SpecError(f"{shown}: {name} is {options[name]!r}; give {' or '.join(TLS_CHOICES[name])}")


def _parse_login(scheme: str, login: str) -> tuple[str, str | None]:
    """Return user and password of the text before the last @. Raises SpecError if it is ambiguous."""
    user, colon, password = login.partition(":")
    if re.search(r"[/?#\s]", login):
        raise SpecError(f"the user or the password in the store's URL {scheme}://... cannot be read; {ENCODE}")
    if not colon:
        if not os.environ.get(PASSWORD_VARIABLE):
            raise SpecError(
                f"the store's URL {scheme}://... has one word before the @; write user:password@ or :password@, or set "
                f"the password in the environment as {PASSWORD_VARIABLE}"
            )
        return unquote(user), None
    if password == HIDDEN:
        if not os.environ.get(PASSWORD_VARIABLE):
            raise SpecError(
                "the password of the store is not kept with a snapshot; give the spec file or --store, or set it in "
                f"the environment as {PASSWORD_VARIABLE}"
            )
        return unquote(user), None
    return unquote(user), unquote(password)


def _parse_database(place: str, named: str, options: dict[str, str], form: str) -> dict[str, str]:
    """Return the database of the path as a setting. Raises SpecError if it is no number or contradicts ?db=."""
    if not named:
        return {}
    if not re.fullmatch(r"[0-9]{1,7}", named):
        raise SpecError(f"the path in the store's URL {place}/... is no number of a database; {form}; {ENCODE}")
    if "db" in options and options["db"] != named:
        raise SpecError(f"{place}/{named} names another database with ?db=; leave one of the two out")
    return {"db": str(int(named))}


def _parse_number(
    options: dict[str, str], name: str, default: float, *, least: float, most: float, shown: str, whole: bool = False
) -> float:
    if name not in options:
        return default
    try:
        value = float(options[name])
    except ValueError:
        value = -1.0
    if not least <= value <= most or (whole and not options[name].isdecimal()):
        kind = "whole number" if whole else "number"
        raise SpecError(f"{shown}: {name} is {options[name]!r}; give a {kind} from {least:g} to {most:g}")
    return value
