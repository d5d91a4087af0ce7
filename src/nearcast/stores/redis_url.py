"""The URL of a store in Redis or Valkey, and its settings. No message shows any part of a password.

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
ENCODE = "percent-encode the characters @ : / ? # % of a password: %40 %3A %2F %3F %23 %25"
PASSWORD_VARIABLE = "NEARCAST_STORE_PASSWORD"  # the name of a variable, no password
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


def parse_url(url: str) -> RedisSettings:
    """Return the settings of a URL. Raises SpecError, which never shows a part of the password."""
    scheme, _, rest = url.partition("://")
    if not rest or not re.fullmatch(r"[a-z]+", scheme):
        raise SpecError(f"the store's URL cannot be read; {FORM}")
    login, at, rest = rest.rpartition("@")
    user, password = _parse_login(scheme, login) if at else ("", None)
    try:
        parts = urlsplit(f"{scheme}://{rest}")
        host = parts.hostname or ""
        port = "" if parts.port is None else f":{parts.port}"
    except ValueError:
        raise SpecError(f"the store's URL cannot be read; {FORM}; {ENCODE}") from None
    if port == ":0":
        raise SpecError(f"the store's URL has the port 0, which no server can have; {FORM}")
    if parts.fragment or "#" in rest:
        raise SpecError(f"the store's URL has a #, which means nothing in it; {FORM}; {ENCODE}")
    path, options = parts.path, dict(parse_qsl(parts.query, keep_blank_values=True))
    if scheme == "unix":
        shown, address = f"unix://{host}{path}", f"{host}{path}"
        _parse_number(options, "db", 0, least=0, most=MOST_DATABASES, shown=shown, whole=True)
    else:
        if not re.fullmatch(r"[A-Za-z0-9._:-]+", host):
            raise SpecError(f"the store's URL names no host; {FORM}; {ENCODE}")
        _parse_number(options, "db", 0, least=0, most=MOST_DATABASES, shown=f"{scheme}://{host}{port}", whole=True)
        address = f"[{host}]{port}" if ":" in host else f"{host}{port}"
        options |= _parse_database(f"{scheme}://{address}", path, options)
        shown = f"{scheme}://{address}" + (f"/{options['db']}" if "db" in options and path.strip("/") else path)
    for name in options:
        if name not in OURS + PASSED_ON:
            raise SpecError(f"{shown} has the setting {name!r}; known ones are {', '.join(OURS + PASSED_ON)}")
    _validate_tls(scheme, options, shown)
    if password is None:
        password = os.environ.get(PASSWORD_VARIABLE) or None
    passed = urlencode({name: value for name, value in options.items() if name in PASSED_ON}, quote_via=quote)
    login = f"{quote(user, safe='')}:{quote(password, safe='')}@" if password is not None else ""
    return RedisSettings(
        url=shown,
        full_url=f"{'redis' if scheme == 'valkey' else scheme}://{login}{address}?{passed}",
        timeout=_parse_number(options, "timeout", TIMEOUT, least=0.01, most=3600, shown=shown),
        grace=_parse_number(options, "grace", GRACE, least=0, most=30 * 86400, shown=shown),
        buckets=int(_parse_number(options, "buckets", BUCKETS, least=1, most=MOST_BUCKETS, shown=shown, whole=True)),
        secrets=tuple({password, quote(password, safe="")}) if password else (),
    )


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


def _parse_database(place: str, path: str, options: dict[str, str]) -> dict[str, str]:
    """Return the database of the path as a setting. Raises SpecError if it is no number or contradicts ?db=."""
    named = path.removeprefix("/")
    if not named:
        return {}
    if not re.fullmatch(r"[0-9]{1,7}", named):
        raise SpecError(f"the path in the store's URL {place}/... is no number of a database; {FORM}; {ENCODE}")
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
