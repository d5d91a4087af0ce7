"""Requests that nobody should send: from schemathesis, which reads our own description, and from the list below.

None of them may lead to a 5xx, show a path of the machine, or end the service.
"""

from __future__ import annotations

import http.client
import json
import re
import socket

import pytest
import schemathesis
from hypothesis import given, settings
from schemathesis import GenerationMode
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import positive_data_acceptance
from tests.end_to_end.service import running
from tests.published import publish
from tests.unit.test_http_app import COLUMNS, ITEMS, LISTS, Compass

from nearcast.serve.lookup import open_lookup
from nearcast.service.app import Limits, make_app
from nearcast.service.generator_service import new_service
from nearcast.service.served_tables import ServedGenerator
from nearcast.stores import open_store

ONE = b"/v1/generators/shop/candidates/"
MANY = "/v1/generators/shop/candidates"
INSIDE = re.compile(r"/(?:home|root|tmp|usr|srv|var|work)/|\.py\b|Traceback|site-packages|data\.mdb")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    store = open_store(f"lmdb:{folder / 'nearcast' / 'store'}")
    publish(store, "shop", 1, LISTS, ITEMS, columns=COLUMNS, metric="cosine", serve={"default_items": ["fig"]})
    store.close()
    return folder


# by schemathesis


@pytest.fixture(scope="module")
def description(folder):
    """The application with an online index, and its own description of itself; {name} is always a known one."""
    store = open_store(f"lmdb:{folder / 'nearcast' / 'store'}")
    lookup = open_lookup(store, "shop")
    service = new_service({"shop": ServedGenerator(lookup, True, Compass())})
    app = make_app(service, limits=Limits(body_bytes=1 << 24))
    yield schemathesis.openapi.from_asgi("/openapi.json", app, config=SchemathesisConfig.from_dict(ALSO_REFUSALS))
    service.close()
    lookup.close()
    store.close()


OF_A_GENERATOR = [
    ("get", "/v1/generators/{name}/candidates/{key}"),
    ("post", "/v1/generators/{name}/candidates"),
    ("post", "/v1/generators/{name}/merged"),
    ("post", "/v1/generators/{name}/ads"),
    ("post", "/v1/generators/{name}/search"),
    ("get", "/v1/generators/{name}"),
    ("get", "/v1/generators/{name}/canary"),
]
PLAIN = [("get", path) for path in ("/v1/generators", "/healthz", "/readyz", "/metrics")]
POSITIVE, NEGATIVE = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
TRIED = [(*operation, POSITIVE, name) for operation in OF_A_GENERATOR for name in ("shop", None)]
TRIED += [(*operation, NEGATIVE, name) for operation in OF_A_GENERATOR[:5] for name in ("shop", None)]
TRIED += [(*operation, POSITIVE, None) for operation in PLAIN]  # they take nothing that could be wrong
ALSO_REFUSALS = {
    "checks": {"negative_data_rejection": {"expected-statuses": ["400", "404", "413", "414", "415", "422"]}}
}
# A request of the right shape may still name a column that the items do not have, or bring vectors of three numbers.
NOT_OURS = [positive_data_acceptance]


def test_every_operation_of_the_description_is_among_these(description):
    told = [(found.ok().method, found.ok().path) for found in description.get_all_operations()]
    assert sorted(told) == sorted(OF_A_GENERATOR + PLAIN)


@pytest.mark.parametrize(("method", "path", "mode", "name"), TRIED)
def test_whatever_is_sent_is_answered_as_the_description_says(description, method, path, mode, name):
    operation = description[path][method]
    known = {"path_parameters": {"name": name}} if name else {}

    @settings(max_examples=30)
    @given(case=operation.as_strategy(mode, **known))
    def asked(case):
        assert not INSIDE.search(case.call_and_validate(excluded_checks=NOT_OURS).text)

    asked()


# by hand, over a real connection


@pytest.fixture(scope="module")
def service(folder):
    with running(folder) as begun:
        yield begun
        assert begun.get("/v1/generators/shop/candidates/apple").status_code == 200, "it has lived through everything"
        assert begun.stop() == 0
        assert begun.said.count("\n") == 2, begun.said  # that it serves, and that it has stopped


def send(service, data, *, close=False):
    """Send bytes, and read what comes back until the connection is closed: the answers' statuses and all of it."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as connection:
        try:
            connection.sendall(data)
            if close:
                connection.shutdown(socket.SHUT_WR)
        except OSError:  # it was refused before all was sent
            pass
        received = b""
        try:
            while data := connection.recv(1 << 16):
                received += data
        except OSError:
            pass
    assert not INSIDE.search(received.decode("latin-1"))
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", received)], received


def request(target=ONE + b"apple", *, method=b"GET", headers=b"", body=b""):
    return method + b" " + target + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n" + headers + b"\r\n" + body


def post(body, headers=b""):
    head = b"content-type: application/json\r\n" + (headers or b"content-length: %d\r\n" % len(body))
    return request(MANY.encode(), method=b"POST", headers=head, body=body)


CHUNKED = b"transfer-encoding: chunked\r\n"
BIG = b"a" * 10_000_000

KEYS = {
    "slashes": (ONE + b"a//b/../c/./%2F%2f/", 200),
    "dots": (ONE + b"..", 200),
    "dots out of the path": (ONE + b"../../../../etc/passwd", 200),
    "escaped dots": (ONE + b"..%2f..%2f..%2fetc%2fpasswd", 200),
    "a null": (ONE + b"%00", 200),
    "every control character": (ONE + b"".join(b"%%%02x" % n for n in range(32)), 200),
    "a line break that would end a header": (ONE + b"%0d%0aset-cookie:%20a=b", 200),
    "markup": (ONE + b"%3Cscript%3Ealert(1)%3C/script%3E", 200),
    "a format string": (ONE + b"%25s%25n%7B0%7D$%7Bjndi:ldap://x%7D", 200),
    "the last character there is": (ONE + b"%f4%8f%bf%bf", 200),
    "a surrogate": (ONE + b"%ed%a0%80", 400),
    "bytes that are no UTF-8": (ONE + b"%ff%fe", 400),
    "UTF-8 that is too long": (ONE + b"%c0%af", 400),
    "half an escape": (ONE + b"%f", 400),
    "bytes that are not escaped": (ONE + b"\xff\xfe", 400),
    "UTF-8 that is not escaped": (ONE + "m\u00fcsli".encode(), 400),
    "16 kB": (ONE + b"a" * 16_384, 414),
    "10 MB": (ONE + BIG, 414),
    "10 MB of parameters": (ONE + b"a?k=" + BIG, 414),
    "a number without end": (ONE + b"a?k=" + b"9" * 10_000, 422),
    "a score without end": (ONE + b"a?min_score=" + b"9" * 10_000, 422),
    "a parameter twice": (ONE + b"a?k=1&k=1", 422),
    "a parameter that there is not": (ONE + b"a?__proto__=1", 422),
    "a semicolon": (ONE + b"a?k=1;k=2", 422),
    "no parameter at all": (ONE + b"a?&&=&", 422),
    "an empty parameter": (ONE + b"a?k", 422),
    "a null among the fields": (ONE + b"apple?fields=%00", 422),
    "a fragment": (ONE + b"apple#part", 200),
    "a name of dots": (b"/v1/generators/../generators/shop", 404),
    "a name that is no UTF-8": (b"/v1/generators/%ff/candidates/a", 400),
    "escaped slashes of the path": (b"/v1%2fgenerators/shop/candidates/a", 404),
    "a whole URL": (b"http://elsewhere/healthz", 200),
    "two slashes": (b"//healthz", 404),
    "no path": (b"*", 404),
}


@pytest.mark.parametrize("case", KEYS)
def test_a_key_of_any_bytes_is_answered_or_refused(service, case):
    target, status = KEYS[case]
    statuses, _ = send(service, request(target))
    assert statuses == [status]


BODIES = {
    "10 MB": (post(BIG), 413),
    "10 MB in one chunk": (post(b"989680\r\n" + BIG + b"\r\n0\r\n\r\n", CHUNKED), 413),
    "10 MB that are only promised": (post(b"", b"content-length: 10000000\r\n"), 413),
    "more than there are numbers for": (post(b"", b"content-length: 99999999999999999999999\r\n"), 400),
    "less than nothing": (post(b"{}", b"content-length: -1\r\n"), 400),
    "two lengths": (post(b"{}", b"content-length: 2\r\ncontent-length: 3\r\n"), 400),
    "a length and chunks": (post(b"0\r\n\r\n", b"content-length: 5\r\n" + CHUNKED), 400),
    "a chunk of no length": (post(b"zz\r\n{}\r\n0\r\n\r\n", CHUNKED), 400),
    "a million brackets": (post(b"[" * 999_999), 400),
    "a million keys": (post(b'{"keys": [' + b",".join([b"1"] * 400_000) + b"]}"), 422),
    "the same name twice": (post(b'{"keys": ["a"], "keys": ["b"]}'), 200),
    "a number without end": (post(b'{"keys": [' + b"9" * 900_000 + b"]}"), 400),
    "an exponent without end": (post(b'{"keys": ["a"], "min_score": 1e' + b"9" * 1000 + b"}"), 422),
    "a null": (post(b'{"keys": ["\\u0000"]}'), 200),
    "a null that is not escaped": (post(b'{"keys": ["\x00"]}'), 400),
    "half a surrogate": (post(b'{"keys": ["\\ud800"]}'), 400),
    "UTF-16": (post('{"keys": ["a"]}'.encode("utf-16")), 400),
    "a byte order mark": (post(b'\xef\xbb\xbf{"keys": ["a"]}'), 400),
    "two documents": (post(b'{"keys": ["a"]}{"keys": ["a"]}'), 400),
    "nothing": (post(b""), 400),
    "a form": (request(MANY.encode(), method=b"POST", headers=b"content-length: 6\r\n", body=b"keys=a"), 415),
}


@pytest.mark.parametrize("case", BODIES)
def test_a_body_of_any_bytes_is_answered_or_refused(service, case):
    data, status = BODIES[case]
    statuses, _ = send(service, data)
    assert statuses == [status]


WIRES = {
    "noise": bytes(range(256)) * 10,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 500,
    "a method that there is not": request(method=b"BREW"),
    "a tunnel": b"CONNECT elsewhere:443 HTTP/1.1\r\nhost: x\r\n\r\n",
    "TRACE": request(method=b"TRACE"),
    "a null in a header": request(headers=b"x: a\x00b\r\n"),
    "a header without a name": request(headers=b": a\r\n"),
    "a header that goes on": request(headers=b"x: a\r\n b\r\n"),
    "10 MB in a header": request(headers=b"x: " + BIG + b"\r\n"),
    "a million headers": request(headers=b"x: y\r\n" * 1_000_000),
    "an upgrade to a web socket": request(
        headers=b"upgrade: websocket\r\nsec-websocket-key: dGhlIHNhbXBsZQ==\r\nsec-websocket-version: 13\r\n"
    ).replace(b"connection: close", b"connection: upgrade, close"),
    "half a request": request()[:-2],
    "half a body": post(b'{"keys"', b"content-length: 100\r\n"),
    "a token of 10 kB": request(headers=b"authorization: Bearer " + b"a" * 10_000 + b"\r\n"),
    "old HTTP": b"GET /healthz HTTP/1.0\r\n\r\n",
    "no HTTP": b"GET /healthz\r\n\r\n",
    "nothing": b"",
}


@pytest.mark.parametrize("case", WIRES)
def test_what_is_hardly_http_is_refused_or_dropped(service, case):
    statuses, received = send(service, WIRES[case], close=True)
    assert all(status < 500 for status in statuses)
    assert len(received) < 5000


def test_requests_that_come_all_at_once_are_answered_one_by_one(service):
    statuses, _ = send(service, request().replace(b"connection: close", b"x: y") * 200 + request())
    assert statuses == [200] * 201


def test_who_asks_before_sending_is_told_to_go_on_or_not_to(service):
    body = json.dumps({"keys": ["apple"]}).encode()
    expecting = b"content-length: %d\r\nexpect: 100-continue\r\n"
    statuses, _ = send(service, post(body, expecting % len(body)))
    assert statuses == [100, 200]
    statuses, _ = send(service, post(b"", expecting % len(BIG)))
    assert statuses == [413]


def test_a_client_that_goes_away_in_the_middle_is_forgotten(service):
    for _ in range(20):
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
        connection.putrequest("POST", MANY)
        connection.putheader("content-type", "application/json")
        connection.putheader("content-length", "100")
        connection.endheaders(b'{"keys"')
        connection.close()
    assert service.get("/healthz").status_code == 200
