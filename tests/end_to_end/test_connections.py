"""Below the requests: slow clients, heads that are no heads, refusals as JSON, and a stop without a reset."""

from __future__ import annotations

import contextlib
import json
import re
import selectors
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
from tests.end_to_end.service import running, until
from tests.published import publish, whole

from nearcast.stores import open_store

ONE = b"/v1/generators/shop/candidates/7"
MANY = b"/v1/generators/shop/candidates"
BODY = b'{"keys": [7]}'
SLOW = 400  # connections at once


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("connections")
    store = open_store(f"lmdb:{folder / 'nearcast' / 'store'}")
    publish(store, "shop", 1, whole(1, keys=40), metric="cosine")
    publish(store, "wide", 1, {7: [(n, 1 - n / 40_000) for n in range(20_000)]}, metric="cosine")
    store.close()
    return folder


@pytest.fixture(scope="module")
def store(folder):
    return f"lmdb:{folder / 'nearcast' / 'store'}"


@pytest.fixture(scope="module")
def service(folder):
    """One service for all, which ends well after everything."""
    with lasting(folder) as begun:
        yield begun


@pytest.fixture(scope="module")
def hasty(folder, store):
    """A service that waits one second for what is slow. On a busy machine any client may be slow."""
    with lasting(folder / "hasty", "--store", store, "--timeout", 1) as begun:
        yield begun


@contextlib.contextmanager
def lasting(folder, *words):
    """A service that must answer before and after everything, and say nothing meanwhile."""
    with running(folder, *words) as begun:
        assert begun.get(ONE.decode()).status_code == 200
        begun.files_at_rest = open_files(begun)
        yield begun
        assert begun.get(ONE.decode()).status_code == 200, "it has lived through everything"
        assert begun.stop() == 0
        assert begun.said.count("\n") == 2, begun.said  # that it serves, and that it has stopped


def open_files(service):
    """How many files and sockets the service has open; None where the system does not show it."""
    files = Path(f"/proc/{service.process.pid}/fd")
    return len(list(files.iterdir())) if files.is_dir() else None


def connect(service):
    return socket.create_connection(("127.0.0.1", service.port), timeout=30)


def read_all(connection):
    """Everything that comes until the end; ConnectionResetError where it is reset before."""
    received = b""
    while data := connection.recv(1 << 16):
        received += data
    return received


def answers_in(received, *, bodies=True):
    """(status, headers, body) of each answer; every body has a length, and every error the documented shape."""
    answers = []
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        status, lines = int(head.split(b" ")[1]), head.split(b"\r\n")[1:]
        headers = {
            name.decode().lower(): value.strip().decode() for name, _, value in (line.partition(b":") for line in lines)
        }
        if status == 100:
            answers.append((status, headers, b""))
            received = rest
            continue
        length = int(headers["content-length"]) if bodies else 0
        body, received = rest[:length], rest[length:]
        if status >= 400:
            assert headers["content-type"] == "application/json"
            assert headers["x-content-type-options"] == "nosniff"
            if bodies:
                error = json.loads(body)["error"]
                assert set(error) == {"code", "message"}
                assert re.fullmatch(r"[a-z_]+", error["code"])
        answers.append((status, headers, body))
    return answers


def ask(service, data, *, half_close=False, bodies=True):
    """Send bytes, and read until the service closes: its answers."""
    with connect(service) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it was refused before all was sent
            connection.sendall(data)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
        return answers_in(read_all(connection), bodies=bodies)


def get(target=ONE, *headers, version=b"1.1", method=b"GET", host=b"host: x", last=True):
    lines = [method + b" " + target + b" HTTP/" + version, *([host] if host else []), *headers]
    return b"\r\n".join([*lines, *([b"connection: close"] if last else []), b"", b""])


def post(body=BODY, *headers, length=None, **more):
    size = b"content-length: %d" % (len(body) if length is None else length)
    return get(MANY, b"content-type: application/json", *(headers or [size]), method=b"POST", **more) + body


CHUNKED = b"transfer-encoding: chunked"
CASES = {
    # Host
    "no Host": (get(host=None), [400]),
    "two Hosts": (get(ONE, b"host: y"), [400]),
    "two Hosts that are the same": (get(ONE, b"host: x"), [400]),
    "a Host with a path": (get(host=b"host: x/y"), [400]),
    "a Host with a user": (get(host=b"host: me@x"), [400]),
    "a Host with a blank": (get(host=b"host: a b"), [400]),
    "a Host of an IPv6 address": (get(host=b"host: [::1]:80"), [200]),
    "an empty Host": (get(host=b"host:"), [200]),
    "no Host in HTTP/1.0": (get(host=None, version=b"1.0"), [200]),
    "no Host with a whole URL": (get(b"http://x/healthz", host=None), [400]),
    "a whole URL": (get(b"http://elsewhere/healthz"), [200]),
    # versions and other protocols
    "HTTP/1.2": (get(version=b"1.2"), [400]),
    "HTTP/2.0": (get(version=b"2.0"), [400]),
    "HTTP/0.9": (b"GET /healthz\r\n\r\n", [400]),
    "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00" * 30, [400]),
    "the hello of TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 500, [400]),
    "noise": (bytes(range(256)), [400]),
    "an upgrade to HTTP/2": (get(ONE, b"upgrade: h2c", b"connection: upgrade", last=False), [200]),
    "an upgrade with a body": (
        post(BODY, b"content-length: 13", b"upgrade: h2c", b"connection: upgrade", last=False),
        [400],
    ),
    "an upgrade to a web socket": (get(ONE, b"upgrade: websocket", b"connection: upgrade", last=False) + get(), [200]),
    # methods
    "a method that there is not": (get(method=b"BREW"), [405]),
    "another": (get(method=b"get"), [405]),
    "a method of 30 letters": (get(method=b"A" * 30), [405]),
    "a method that a route does not have": (get(method=b"DELETE"), [405]),
    "POST where there is GET": (get(ONE, b"content-length: 0", method=b"POST"), [405]),
    "OPTIONS": (get(method=b"OPTIONS"), [405]),
    "OPTIONS of all": (get(b"*", method=b"OPTIONS"), [404]),
    "CONNECT": (get(b"x:443", method=b"CONNECT"), [405]),
    "TRACE": (get(method=b"TRACE"), [405]),
    "a path that there is not": (get(b"/nowhere"), [404]),
    "a generator that there is not": (get(b"/v1/generators/none/candidates/7"), [404]),
    # heads
    "a head that is too large, in one send": (get(ONE, b"x: " + b"a" * 70_000), [431]),
    "many headers that are too large together": (get(ONE, *[b"x: " + b"a" * 90] * 1000), [431]),
    "a head that is just small enough": (get(ONE, b"x: " + b"a" * 65_000), [200]),
    "a URL of 16 kB": (get(ONE + b"a" * 16_400), [414]),
    "a URL of 70 kB": (get(ONE + b"a" * 70_000), [414]),
    "a URL of 1 MB": (get(ONE + b"a" * 1_000_000), [414]),
    "a head that is too large after another request": (get(last=False) + get(ONE, b"x: " + b"a" * 70_000), [200, 431]),
    "a folded header": (get(ONE, b"x: a\r\n b"), [400]),
    "a header without a name": (get(ONE, b": a"), [400]),
    "a header without a colon": (get(ONE, b"just words"), [400]),
    "a blank before the colon": (get(ONE, b"x : a"), [400]),
    "a null in a header": (get(ONE, b"x: a\x00b"), [400]),
    "bytes that are not escaped": (get(ONE + b"\xff"), [400]),
    "a blank in the target": (get(ONE + b" x"), [400]),
    "an expectation that there is not": (post(BODY, b"content-length: 13", b"expect: a-cake"), [417]),
    # bodies
    "a body": (post(), [200]),
    "a body in chunks": (post(b"d\r\n" + BODY + b"\r\n0\r\n\r\n", CHUNKED), [200]),
    "chunks in capitals": (post(b"D\r\n" + BODY + b"\r\n0\r\n\r\n", b"Transfer-Encoding: Chunked"), [200]),
    "a body that is declared too large": (post(b"", length=2_000_000), [413]),
    "a body that is sent too large": (post(b" " * 2_000_000), [413]),
    "chunks that are too large": (post(b"1e8480\r\n" + b" " * 2_000_000 + b"\r\n0\r\n\r\n", CHUNKED), [413]),
    "one chunk that says to be endless": (post(b"ffffffffffffffffff\r\n", CHUNKED), [400]),
    "a chunk of no size": (post(b"zz\r\n{}\r\n0\r\n\r\n", CHUNKED), [400]),
    "a chunk of negative size": (post(b"-1\r\n{}\r\n0\r\n\r\n", CHUNKED), [400]),
    "a chunk without its end": (post(b"2\r\n{}x\r\n0\r\n\r\n", CHUNKED), [400]),
    "a length and chunks": (post(b"0\r\n\r\n", b"content-length: 5", CHUNKED), [400]),
    "chunks and a length": (post(b"0\r\n\r\n", CHUNKED, b"content-length: 5"), [400]),
    "two lengths": (post(BODY, b"content-length: 13", b"content-length: 14"), [400]),
    "a length of no number": (post(BODY, b"content-length: 1e3"), [400]),
    "a length below zero": (post(BODY, b"content-length: -1"), [400]),
    "another coding": (post(BODY, b"transfer-encoding: gzip, chunked"), [501]),
    "a coding that is not chunked": (post(BODY, b"transfer-encoding: identity"), [400, 501]),
    "chunks in HTTP/1.0": (post(b"0\r\n\r\n", CHUNKED, version=b"1.0"), [400]),
    "a body that is compressed": (post(BODY, b"content-length: 13", b"content-encoding: gzip"), [415]),
    "a body that is no JSON": (post(b"{"), [400]),
    "a body of the wrong shape": (post(b"{}"), [422]),
    "a body that is asked about first": (post(BODY, b"content-length: 13", b"expect: 100-continue"), [100, 200]),
    "a body that is asked about and too large": (post(b"", b"content-length: 2000000", b"expect: 100-continue"), [413]),
    "a body of GET": (get(ONE, b"content-length: 13") + BODY, [200]),
    # several
    "a hundred at once": (get(last=False) * 100 + get(), [200] * 101),
    "a good one and noise": (get(last=False) + b"\x00\x01\x02", [200, 400]),
    "a slow one, and then noise": (post(BODY, last=False) * 3 + b"noise\r\n\r\n", [200, 200, 200, 400]),
    "an error and a good one": (get(b"/nowhere", last=False) + get(), [404, 200]),
    "blank lines before": (b"\r\n\r\n" + get(), [200]),
}


@pytest.mark.parametrize("case", CASES)
def test_whatever_is_sent_is_answered_as_json_and_the_answer_arrives(service, case):
    data, statuses = CASES[case]
    found = ask(service, data)
    told = [status for status, _, _ in found]
    assert told == statuses or (case == "a coding that is not chunked" and told[0] in statuses)
    assert (found[-1][1].get("connection") == "close") or found[-1][0] < 400
    if found[-1][0] == 405:
        assert found[-1][1]["allow"]


@pytest.mark.parametrize(
    ("target", "status"), [(ONE, 200), (b"/nowhere", 404), (MANY, 405), (ONE + b"a" * 17_000, 414)]
)
def test_head_is_answered_like_get_without_a_body(service, target, status):
    with connect(service) as connection:
        connection.sendall(get(target, method=b"HEAD"))
        received = read_all(connection)
    assert received.endswith(b"\r\n\r\n")
    ((found, headers, _),) = answers_in(received, bodies=False)
    assert (found, int(headers["content-length"]) > 0) == (status, True)


@pytest.mark.parametrize("data", [get(), post(), get(ONE + b"?k=5", version=b"1.0")])
def test_a_client_that_ends_its_side_first_is_answered(service, data):
    assert [status for status, _, _ in ask(service, data, half_close=True)] == [200]


@pytest.mark.parametrize("data", [get()[:-2], get()[:9], post(b"{", length=100), post(b"5\r\n{", CHUNKED)])
def test_a_request_that_ends_early_is_refused(service, data):
    assert [status for status, _, _ in ask(service, data, half_close=True)] == [400]


def trickle(connections, pieces, *, every=0.1, most=120.0):
    """Send a byte to each connection now and then, until the service has closed them all: what each received."""
    watched, received = selectors.DefaultSelector(), dict.fromkeys(connections, b"")
    for connection in connections:
        watched.register(connection, selectors.EVENT_READ)
    deadline, place = time.monotonic() + most, 0
    while watched.get_map():
        assert time.monotonic() < deadline, f"{len(watched.get_map())} connections are still open"
        for key, _ in watched.select(every):
            data = b""
            with contextlib.suppress(ConnectionResetError):
                data = key.fileobj.recv(1 << 16)
            received[key.fileobj] += data
            if not data:
                watched.unregister(key.fileobj)
        for key in list(watched.get_map().values()):
            with contextlib.suppress(OSError):
                key.fileobj.send(pieces[place : place + 1] or b"a")
        place += 1
    return list(received.values())


SLOWLY = {
    "nothing at all": (b"", None),
    "blank lines": (b"", b"\r\n" * 200),
    "a head, byte by byte": (b"", get()[:10] + b"a" * 200),
    "headers, one by one": (get()[:-2], b"x:y\r\n" * 100),
    "a body, byte by byte": (post(b"", length=1000), b" " * 200),
    "chunks, one by one": (post(b"", CHUNKED), b"1\r\n \r\n" * 100),
}


QUICK = ("a head, byte by byte", "a body, byte by byte")


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in SLOWLY]
)
def test_slow_clients_are_refused_after_the_time_for_all_of_it_and_hold_up_nobody(hasty, case):
    begun, pieces = SLOWLY[case]
    with contextlib.ExitStack() as held:
        connections = [held.enter_context(connect(hasty)) for _ in range(SLOW if case.startswith("a head") else 20)]
        for connection in connections:
            connection.sendall(begun)
        assert hasty.get(ONE.decode()).status_code == 200
        received = trickle(connections, pieces) if pieces else [read_all(connection) for connection in connections]
        told = {tuple(status for status, _, _ in answers_in(data)) for data in received}
    assert told == {()} if case in ("nothing at all", "blank lines") else told == {(408,)}


def test_who_does_not_read_the_answer_is_dropped(hasty):
    at_rest = hasty.files_at_rest
    if at_rest is None:
        pytest.skip("this system does not show the open files of a process")
    until(lambda: open_files(hasty) <= at_rest)  # connections of tests before this one linger
    with contextlib.ExitStack() as held:
        for _ in range(5):
            connection = held.enter_context(connect(hasty))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(get(b"/v1/generators/wide/candidates/7", last=False) * 20)
            assert connection.recv(1, socket.MSG_PEEK)  # it has begun to answer
        until(lambda: open_files(hasty) <= at_rest)


def test_a_refusal_is_counted(service):
    line = 'nearcast_requests_total{route="other",status="431"}'
    ask(service, get(ONE, b"x: " + b"a" * 70_000))
    assert service.metric(line) >= 1


# the stop


class Reconnecting(threading.Thread):
    """A client that connects anew at once whenever it is asked to leave, until it is refused."""

    def __init__(self, port, data):
        super().__init__()
        self.port, self.data = port, data
        self.statuses, self.faults, self.refused = [], [], False

    def run(self):
        while not self.refused and not self.faults:
            try:
                connection = socket.create_connection(("127.0.0.1", self.port), timeout=30)
            except ConnectionRefusedError:
                self.refused = True
                return
            except OSError as error:
                self.faults.append(repr(error))
                return
            with connection:
                try:
                    connection.sendall(self.data)
                    received = read_all(connection)
                    self.statuses += (
                        [status for status, _, _ in answers_in(received)] or self.faults.append("closed") or []
                    )
                except OSError as error:
                    self.faults.append(repr(error))


@pytest.mark.parametrize("drain", [0, pytest.param(0.3, marks=pytest.mark.slow)])
def test_clients_that_reconnect_during_the_stop_are_answered_or_refused_and_never_reset(tmp_path, store, drain):
    with running(tmp_path, "--store", store, "--drain", drain) as service:
        clients = [Reconnecting(service.port, post() if n % 2 else get()) for n in range(64)]
        for client in clients:
            client.start()
        until(lambda: all(len(client.statuses) > 2 for client in clients))
        assert service.stop() == 0
        for client in clients:
            client.join(60)
    assert [client.faults for client in clients if client.faults] == []
    assert {status for client in clients for status in client.statuses} == {200}
    assert all(client.refused for client in clients)


def test_a_connection_made_before_the_stop_may_still_send_its_request(tmp_path, store):
    with running(tmp_path, "--store", store, "--drain", 0) as service, contextlib.ExitStack() as held:
        fresh = [held.enter_context(connect(service)) for _ in range(64)]
        used = held.enter_context(connect(service))
        used.sendall(get(last=False))
        assert used.recv(1 << 16)
        service.process.send_signal(signal.SIGTERM)
        for connection in fresh:
            connection.sendall(get(last=False))
            assert [status for status, _, _ in answers_in(read_all(connection))] == [200]
        assert b"HTTP" not in read_all(used)
        assert service.process.wait(60) == 0


def is_draining(service):
    return service.get("/readyz").status_code == 503


def is_closed(service):
    with contextlib.suppress(ConnectionRefusedError), connect(service):
        return False
    return True


@pytest.mark.slow
def test_more_signals_end_it_sooner(tmp_path, store):
    with running(tmp_path, "--store", store, "--drain", 3600, "--timeout", 60) as service, connect(service) as slow:
        slow.sendall(post(b"", length=13))
        assert service.get(ONE.decode()).status_code == 200
        for seen in (is_draining, is_closed, lambda _: True):  # the last one: the slow one is not waited for
            service.process.send_signal(signal.SIGTERM)
            until(lambda seen=seen: seen(service))
        assert service.process.wait(60) == 0
        assert [status for status, _, _ in answers_in(slow.recv(1 << 16))] in ([], [503])
