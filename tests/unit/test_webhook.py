"""Webhooks: which URLs are taken, what counts as delivered, and that no message shows a secret."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearcast import webhook
from nearcast.spec import MonitorSpec
from nearcast.webhook import parse_webhook, post_json, shorten_url

SECRET = "s3cret"
TLS = b"\x16"  # the first byte of a client that wants TLS
BODY = {"text": "shop\nrecall: 64%", "share": float("nan"), "when": time.gmtime}


@contextlib.contextmanager
def server(answer, *, pause=0.0, family=socket.AF_INET):
    """A socket that answers each connection with these bytes, one by one if it pauses: its port, what came in."""
    heard = []
    with socket.create_server(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0), family=family) as listening:
        listening.settimeout(0.05)
        stop = threading.Event()

        def serve():
            while not stop.is_set():
                with contextlib.suppress(OSError):
                    connection, _ = listening.accept()
                    with connection:
                        connection.settimeout(30)
                        heard.append(read(connection))
                        for n in range(0, len(answer), 1 if pause else 1 << 20):
                            connection.sendall(answer[n : n + (1 if pause else 1 << 20)])
                            if stop.wait(pause):
                                break

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listening.getsockname()[1], heard
        finally:
            stop.set()
            thread.join()


def read(connection):
    """One request: up to the end of its declared body."""
    data = b""
    while b"\r\n\r\n" not in data and data[:1] != TLS and (more := connection.recv(1 << 16)):
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = [int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")]
    while length and len(body) < length[0] and (more := connection.recv(1 << 16)):
        body += more
    return head, body


def answer(status, *headers):
    return b"\r\n".join(
        [b"HTTP/1.1 %d no such %s" % (status, SECRET.encode()), *headers, b"content-length: 0", b"", b""]
    )


WRONG = {
    "file:///etc/passwd": "starts with 'file:'",
    "data:,ok": "starts with 'data:'",
    "ftp://h/x": "starts with 'ftp:'",
    "FILE:///x": "starts with 'file:'",
    "javascript:alert(1)": "starts with 'javascript:'",
    "gopher://h": "starts with 'gopher:'",
    "notaurl": "has no scheme",
    "not a url": "holds a blank",
    "": "has no scheme",
    "//hooks.example.com/x": "has no scheme",
    "http://": "names no host",
    "https:///path": "names no host",
    "http:hooks": "names no host",
    "http://h/a b": "holds a blank",
    "http://h/a\nX-Header: 1": "holds a blank or a control character",
    "http://h/\r\n\r\n": "holds a blank or a control character",
    "http://h\x00": "holds a blank or a control character",
    "http://h:port/": "cannot be read",
    "http://h:99999/": "cannot be read",
    "http://[::1/": "cannot be read",
    "http://b\u00fccher..example/": "not a valid host name",
}


@pytest.mark.parametrize("url", WRONG, ids=repr)
def test_only_http_urls_are_taken(url):
    with pytest.raises(ValueError, match=WRONG[url]):
        parse_webhook(url)
    with pytest.raises(ValueError, match="webhook"):
        MonitorSpec(webhook=url)


RIGHT = {
    "http://h": ("http://h/", "http://h/..."),
    "HTTPS://H:8443/a?b=c#d": ("https://h:8443/a?b=c", "https://h:8443/..."),
    "http://user:pa%40ss@h/p": ("http://h/p", "http://h/..."),
    "http://[::1]:80/x": ("http://[::1]:80/x", "http://[::1]:80/..."),
    "https://b\u00fccher.example/\u00fc?q=\u00e9": (
        "https://xn--bcher-kva.example/%C3%BC?q=%C3%A9",
        "https://xn--bcher-kva.example/...",
    ),
}


@pytest.mark.parametrize("url", RIGHT)
def test_a_url_is_made_ascii_and_shown_without_its_secrets(url):
    found = parse_webhook(url)
    assert (found.url, found.name) == RIGHT[url]


@given(st.text(max_size=40))
def test_any_text_is_a_url_or_a_value_error_without_the_secret_part(text):
    for url in (text, f"http://{text}", f"https://user:{SECRET}@{text}/x", f"http://h/{SECRET}{text}"):
        try:
            found = parse_webhook(url)
            assert found.url.isascii()
            assert found.url.startswith(("http://", "https://"))
        except ValueError as error:
            assert SECRET not in str(error)  # noqa: PT017
        assert SECRET not in shorten_url(url)


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_a_status_of_2xx_is_a_delivery_and_the_body_arrives_as_json(status):
    with server(answer(status)) as (port, heard):
        assert post_json(f"http://user:{SECRET}@127.0.0.1:{port}/hook?a=b", BODY) is None
    ((head, body),) = heard
    assert head.startswith(b"POST /hook?a=b HTTP/1.1\r\n")
    assert b"\r\nAuthorization: Basic dXNlcjpzM2NyZXQ=" in head
    assert json.loads(body, parse_constant=pytest.fail)["share"] is None


@pytest.mark.parametrize("status", [301, 302, 303, 304, 307, 308, 400, 401, 404, 410, 413, 429, 500, 503])
def test_no_other_status_is_a_delivery_and_no_redirect_is_followed(status):
    with (
        server(answer(200)) as (elsewhere, lost),
        server(answer(status, b"location: http://127.0.0.1:%d/%s" % (elsewhere, SECRET.encode()))) as (port, heard),
    ):
        reason = post_json(f"http://127.0.0.1:{port}/{SECRET}", BODY).reason
    assert reason.startswith(f"HTTP Error {status}: {http.client.responses[status]}")
    assert ("redirects to http://127.0.0.1:" in reason) == (status in (301, 302, 303, 307, 308))
    assert SECRET not in reason
    assert (len(heard), len(lost)) == (1, 0)


ODD = {
    "nothing": (b"", "did not answer in HTTP|Remote"),
    "no HTTP": (b"SSH-2.0-OpenSSH\r\n", "did not answer in HTTP"),
    "a status of no number": (b"HTTP/1.1 ok\r\n\r\n", "did not answer in HTTP"),
    "a head without end": (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 300 + b"\r\n", "did not answer in HTTP"),
    "a line without end": (b"HTTP/1.1 200 " + b"a" * 100_000, "did not answer in HTTP"),
    "a status of 1xx at the end": (b"HTTP/1.1 101 Switching\r\n\r\n", "HTTP Error 101"),
}


@pytest.mark.parametrize("case", ODD)
def test_what_is_no_answer_is_no_delivery(case):
    data, words = ODD[case]
    with server(data) as (port, _):
        reason = post_json(f"http://127.0.0.1:{port}/{SECRET}", BODY).reason
    assert reason
    assert SECRET not in reason
    assert re.search(words, reason), reason


def test_the_body_of_an_answer_is_not_read_however_long(monkeypatch):
    monkeypatch.setattr(webhook, "DELIVERY_SECONDS", 5.0)
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n"
    with server(head + b"a" * 1_000_000) as (port, _):
        assert post_json(f"http://127.0.0.1:{port}/", BODY) is None


@pytest.mark.parametrize("data", [answer(200), b""], ids=["an answer that trickles in", "silence"])
def test_a_server_that_takes_its_time_is_given_so_much_in_all(monkeypatch, data):
    monkeypatch.setattr(webhook, "DELIVERY_SECONDS", 0.4)
    with server(data or b" ", pause=0.3 if data else 5) as (port, _):
        assert "did not answer within 0.4 s" in post_json(f"http://127.0.0.1:{port}/", BODY).reason


def test_a_server_that_is_not_there_or_speaks_no_tls_is_named():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    failure = post_json(f"http://127.0.0.1:{port}/{SECRET}", BODY)
    assert failure == (f"http://127.0.0.1:{port}/...: Connection refused", True, False)
    with server(answer(200)) as (port, _):
        reason = post_json(f"https://127.0.0.1:{port}/{SECRET}", BODY).reason
    assert reason.startswith(f"https://127.0.0.1:{port}/...: no TLS connection")
    reason = post_json(f"http://nowhere.invalid/{SECRET}", BODY).reason
    assert reason.startswith("http://nowhere.invalid/...: ")
    assert SECRET not in reason


def test_ipv6_is_reached():
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    with server(answer(200), family=socket.AF_INET6) as (port, heard):
        assert post_json(f"http://[::1]:{port}/", BODY) is None
    assert f"Host: [::1]:{port}".encode() in heard[0][0]


def test_a_proxy_of_the_environment_is_used_and_left_aside_for_no_proxy(monkeypatch):
    with server(answer(200)) as (port, heard):
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        assert post_json("http://hooks.example.com/x", BODY) is None
        assert heard[0][0].startswith(b"POST http://hooks.example.com/x HTTP/1.1")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert post_json(f"http://127.0.0.1:{port}/direct", BODY) is None
        assert heard[1][0].startswith(b"POST /direct")
        for proxy in ("socks5://127.0.0.1:1", "not a url", "http://"):
            monkeypatch.setenv("http_proxy", proxy)
            assert post_json("http://hooks.example.com/x", BODY), proxy


def test_a_manifest_does_not_show_the_webhook():
    settings = MonitorSpec(webhook=f"https://user:{SECRET}@hooks.example.com/services/{SECRET}?t={SECRET}")
    assert settings.model_dump(mode="json")["webhook"] == "https://hooks.example.com/..."
    assert settings.webhook.endswith(SECRET)
