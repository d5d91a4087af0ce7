"""Errors of Redis and its library, in words that say the way out. No text holds a password."""

from __future__ import annotations

from typing import Any

from nearcast.errors import SpecError, StoreError
from nearcast.stores.redis_url import CLUSTER, SENTINEL, RedisSettings

__all__ = ["make_foreign_error", "make_redis_error"]

SHOWN_CHARACTERS = 200  # of a text by the server, which may contain a whole command
CHECK = "check ssl_ca_certs and the certificate"
# words of OpenSSL -> what to do
TLS_ERRORS = {
    "certificate has expired": "the server's certificate has expired; renew it on the server",
    "certificate is not yet valid": "the server's certificate is not valid yet; compare the clocks of both machines",
    "Hostname mismatch": "the server's certificate is for another host; give a host name of the certificate in the "
    "URL, or issue a certificate for this one",
    "IP address mismatch": "the server's certificate does not name this address; give a host name of the certificate "
    "in the URL, or issue a certificate that names the address",
    "unable to get local issuer": f"the server's certificate is of an unknown authority; {CHECK}: give its CA file as "
    "?ssl_ca_certs=PATH",
    "self-signed": f"the server's certificate is of an unknown authority; {CHECK}: give its CA file as "
    "?ssl_ca_certs=PATH",
    "self signed": f"the server's certificate is of an unknown authority; {CHECK}: give its CA file as "
    "?ssl_ca_certs=PATH",
    "certificate required": "the server wants a certificate of the client; give ssl_certfile and ssl_keyfile",
    "handshake failure": "the server wants a certificate of the client, or another version of TLS; give ssl_certfile "
    "and ssl_keyfile",
    "EOF occurred": "the server ended the connection while TLS was set up; if it wants a certificate of the client, "
    "give ssl_certfile and ssl_keyfile",
    "No such file": f"a file of the URL is missing; {CHECK}",
    "certificate verify": CHECK,
    "WRONG_VERSION_NUMBER": f"write redis:// if the server has no TLS on this port, else {CHECK}",
    "record layer failure": f"write redis:// if the server has no TLS on this port, else {CHECK}",
    "SSL": f"write redis:// if the server has no TLS on this port, else {CHECK}",
}


def make_redis_error(library: Any, settings: RedisSettings, error: Exception) -> StoreError | SpecError:
    """Return the error to raise for an error of the library."""
    errors = library.exceptions
    while isinstance(error, errors.RedisClusterException):  # no node could be asked: say why the last one could not
        cause = error.__cause__ or error.__context__
        if not isinstance(cause, Exception):
            break
        error = cause
    text = _format_text(settings, error)
    head = text.partition(" ")[0]
    if isinstance(error, errors.MasterDownError) or head == "MASTERDOWN":  # the library's class is a ClusterDownError
        return StoreError(
            f"{settings.url} is a replica without its primary ({text}); give the address of the primary, or "
            "try again when it is back"
        )
    if settings.kind == CLUSTER:
        if "cluster support disabled" in text:
            return SpecError(f"{settings.url} is no Redis Cluster; write redis://HOST:PORT for a single server")
        if isinstance(error, errors.ClusterError | errors.RedisClusterException | errors.AskError):
            return StoreError(
                f"{settings.url} is a Cluster that cannot answer for all keys now ({text}); a failed node is being "
                "replaced, or slots are being moved: try again, and see CLUSTER INFO"
            )
    elif isinstance(error, errors.ClusterError | errors.AskError) or head in ("MOVED", "ASK"):
        return make_cluster_refusal(settings)
    return StoreError(f"{settings.url} {_describe_failure(errors, settings, error, text)}")


def make_cluster_refusal(settings: RedisSettings) -> SpecError:
    """Return the error for a Cluster that was named as a single server."""
    return SpecError(f"{settings.url} is a Redis Cluster; write redis+cluster://HOST:PORT,HOST:PORT with some nodes")


def make_foreign_error(settings: RedisSettings, error: Exception) -> StoreError:
    """Return the error for an answer that is not in the protocol of Redis."""
    return StoreError(f"{settings.url} {_describe_foreign_answer(settings, error)}")


def _describe_failure(errors: Any, settings: RedisSettings, error: Exception, text: str) -> str:
    if isinstance(error, errors.AuthenticationError | errors.AuthorizationError) or "WRONGPASS" in text:
        return f"refuses the user or the password ({text}); correct them in the store's URL"
    if isinstance(error, errors.NoPermissionError) or "NOPERM" in text:
        return f"does not let this user do it ({text}); docs/stores.md lists the commands that are needed"
    if settings.secure:
        for words, way_out in TLS_ERRORS.items():
            if words in text:
                return f"cannot be reached over TLS ({text}); {way_out}"
    if isinstance(error, errors.TimeoutError | TimeoutError):
        tls = ", or write redis:// if the server has no TLS on this port" if settings.secure else ""
        return (
            f"did not answer within {settings.timeout:g} s; see how it does, "
            f"or allow more with ?timeout=SECONDS in the store's URL{tls}"
        )
    if isinstance(error, errors.BusyLoadingError) or "LOADING" in text:
        return "is still loading its data after a start; try again when it is done"
    if isinstance(error, errors.InvalidResponse):
        return _describe_foreign_answer(settings, error)
    if "No master found" in text:
        return (
            f"has no primary for the service {settings.service!r} ({text}); see that the Sentinels run, that one of "
            "them watches a service of that name, and that its primary is up"
        )
    if isinstance(error, errors.ConnectionError | OSError):
        dropped = "closed by server" in text or "reset by peer" in text
        tls = ", or write rediss:// if it wants TLS" if dropped and not settings.secure else ""
        return f"cannot be reached ({text}); see that it runs and that the address is right{tls}"
    if isinstance(error, errors.OutOfMemoryError) or "OOM " in text:
        return f"is full ({text}); raise its maxmemory, or keep fewer versions"
    if isinstance(error, errors.ReadOnlyError) or "READONLY" in text:
        return f"is a replica, which cannot be written ({text}); give the address of the primary"
    if "MISCONF" in text:
        return f"cannot save to its disk and takes no writes ({text}); make room on the server's disk, see its log"
    if "NOREPLICAS" in text:
        return f"has too few replicas to take writes ({text}); see that they run, or lower its min-replicas-to-write"
    if "DB index is out of range" in text:
        return "has no database of that number; give a smaller one, as its setting `databases` allows"
    if settings.kind == SENTINEL and "unknown command" in text:
        return f"answers as no Sentinel does ({text}); give the Sentinels' ports, 26379 by default"
    return f"answered with an error ({text}); see its log"


def _describe_foreign_answer(settings: RedisSettings, error: Exception) -> str:
    return (
        f"does not answer as a Redis does ({_format_text(settings, error)}); see that the port is right, and write "
        "rediss:// if the server wants TLS"
    )


def _format_text(settings: RedisSettings, error: Exception) -> str:
    """Return the text of an error in printable characters, shortened, without the password."""
    text = str(error)
    for secret in settings.secrets:
        text = text.replace(secret, "***")
    shown = "".join(c if c.isprintable() and c != "\ufffd" else c.encode("unicode_escape").decode() for c in text)
    return shown if len(shown) <= SHOWN_CHARACTERS else f"{shown[:SHOWN_CHARACTERS]}..."
