"""URLs of stores in Redis: every part is checked, and no part of a password is ever shown or kept."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearcast.errors import NearcastError, SpecError, StoreError
from nearcast.spec import PublishSpec
from nearcast.stores import check_store_url, open_store
from nearcast.stores.redis_url import PASSWORD_VARIABLE, parse_url
from servers import HERE, free_port, redis_program, redis_running

SECRET = "Tr0ub4dor"


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("redis://host/abc", "is no number of a database"),
        ("redis://host/1/2", "is no number of a database"),
        ("redis://host/-1", "is no number of a database"),
        ("redis://host/1x", "is no number of a database"),
        ("redis://host/ 1", "is no number of a database"),
        ("redis://host//1", "is no number of a database"),
        ("redis://host?db=abc", "db is 'abc'"),
        ("redis://host/1?db=abc", "db is 'abc'"),
        ("redis://host/1?db=2", "names another database with [?]db="),
        ("redis://host?db=1.5", "db is '1.5'"),
        ("unix:///run/redis.sock?db=x", "db is 'x'"),
        ("redis://host/0#1", "has a #"),
        ("redis://", "cannot be read"),
        ("redis:///0", "names no host"),
        ("redis://:6379/0", "names no host"),
        ("redis:host", "cannot be read"),
        ("redis://host:port", "cannot be read"),
        ("redis://host:99999", "cannot be read"),
        ("redis://one:1,two:2", r"names several hosts; write redis\+cluster://.*or write redis\+sentinel://"),
        ("redis+cluster://one,two/3", "a Cluster has number 0 alone"),
        ("redis+cluster://one,,two", "names no host"),
        ("redis+cluster://one:x", "cannot be read"),
        ("redis+sentinel://one,two", r"names no service of the Sentinels; write redis\+sentinel://.*/SERVICE"),
        ("redis+sentinel://one/main/x", "is no number of a database"),
        ("redis+sentinel://one/a b", "names no service"),
        ("redis+sentinel://one/main?ssl_ca_certs=/x", "write rediss"),
        ("redis+cluster//one", "cannot be read"),
        ("redis+clusters://one", r"did you mean 'redis\+cluster'\?"),
        ("redis://word@host", "one word before the @"),
        ("redis://host/0?password=x", "has the setting 'password'"),
        ("redis://host/0?buckets=1.5", "give a whole number"),
        ("redis://host:0/0", "the port 0"),
        ("redis://host/0?ssl_cert_reqs=none", "write rediss://"),
        ("unix:///run/s?ssl_keyfile=/x", "write rediss://"),
        ("rediss://host/0?ssl_cert_reqs=never", "give none or optional or required"),
        ("rediss://host/0?ssl_check_hostname=maybe", "give true or false"),
        ("", "store is empty"),
        ("  ", "store is empty"),
        ("redis//:word@host", "cannot be read"),
        ("//:word@host/0", "cannot be read"),
        ("lmdb://:word@host/0", "cannot be read"),
    ],
)
def test_a_url_with_a_wrong_part_is_refused_by_name(url, text):
    with pytest.raises(SpecError, match=text):
        open_store(url)
    if "word@" not in url or "//:" in url:  # a password in the environment would make it right
        with pytest.raises(SpecError, match=text):
            check_store_url(url)


@pytest.mark.parametrize(
    ("url", "shown", "full"),
    [
        ("redis://host", "redis://host", "redis://host?"),
        ("redis://host/", "redis://host/", "redis://host?"),
        ("redis://host/3", "redis://host/3", "redis://host?db=3"),
        ("redis://host?db=3", "redis://host", "redis://host?db=3"),
        ("redis://host/3?db=3", "redis://host/3", "redis://host?db=3"),
        ("rediss://[::1]:7000/0", "rediss://[::1]:7000/0", "rediss://[::1]:7000?db=0"),
        ("valkey://me:pw@host:1/2", "valkey://host:1/2", "redis://me:pw@host:1?db=2"),
        ("redis://:p%40s%2Fs%23%25@host", "redis://host", "redis://:p%40s%2Fs%23%25@host?"),
        ("valkeys://host:1", "valkeys://host:1", "rediss://host:1?"),
        ("redis+cluster://me:pw@a:1,[::1]:2/0", "redis+cluster://a:1,[::1]:2/0", "redis://me:pw@a:1?"),
        ("rediss+sentinel://:pw@a,b:2/main/3", "rediss+sentinel://a,b:2/main/3", "rediss://:pw@a?db=3"),
        ("redis://:p:w@host", "redis://host", "redis://:p%3Aw@host?"),
        ("redis://:p@w@host", "redis://host", "redis://:p%40w@host?"),
        ("unix:///run/s?db=1", "unix:///run/s", "unix:///run/s?db=1"),
    ],
)
def test_a_url_that_is_right_means_what_it_says(url, shown, full):
    settings = parse_url(url)
    assert (settings.url, settings.full_url) == (shown, full)


@given(before=st.text(":/?#@%[] \t&=", max_size=6), after=st.text(":/?#@%[] \t&=", max_size=6))
@pytest.mark.parametrize("scheme", ["redis", "rediss", "valkey", "unix", "redys", "redis+cluster", "redis+sentinel"])
@pytest.mark.parametrize("user", ["", "me"])
def test_no_message_holds_a_part_of_a_password(scheme, user, before, after):
    """A part: one of the two words that the characters between them may cut a password into."""
    words = ("Tr0ub4", "dor99x")
    password = f"{before}{words[0]}{after}{words[1]}"
    url = f"{scheme}://{user}:{password}@{HERE}:1/0?timeout=0.01&buckets=0"
    with pytest.raises(NearcastError) as error:
        open_store(url)
    assert not any(word in str(error.value) for word in words)
    record = json.dumps(PublishSpec(store=url).model_dump(mode="json"))
    assert not any(word in record for word in words)
    with contextlib.suppress(SpecError):
        assert not any(word in repr(parse_url(url.replace("&buckets=0", ""))) for word in words)


def test_a_manifest_keeps_no_password_and_opening_by_it_says_where_to_give_one(monkeypatch):
    kept = PublishSpec(store=f"redis://me:{SECRET}@{HERE}:1/0").model_dump(mode="json")["store"]
    assert kept == f"redis://me:***@{HERE}:1/0"
    with pytest.raises(SpecError, match=rf"is not kept with a snapshot; .*{PASSWORD_VARIABLE}"):
        open_store(kept)
    monkeypatch.setenv(PASSWORD_VARIABLE, SECRET)
    assert parse_url(kept).full_url == f"redis://me:{SECRET}@{HERE}:1?db=0"
    for plain in (f"redis://{HERE}/0", "lmdb:/a:b@c", "/srv/a:b@c"):
        assert PublishSpec(store=plain).model_dump(mode="json")["store"] == plain


@contextlib.contextmanager
def answering(reply: bytes) -> Iterator[int]:
    """A server that answers everything with these bytes, and hangs up."""
    with socket.create_server((HERE, 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.recv(1000)
                        connection.sendall(reply)

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"SSH-2.0-OpenSSH_9\r\n",
        b"\x15\x03\x03\x00\x02\x02\x46",
        b"\x00\xff\xfe\x01\r\n",
        b"-ERR \xff\xfe\x00 " + b"\x07" * 5000 + b"\r\n",
        b"-ERR wrong " + SECRET.encode() + b"\r\n",
        b"+\xff\r\n",
        b":abc\r\n",
        b"$-5\r\n",
        b"-MASTERDOWN Link with MASTER is down\r\n" * 9,
        b"*99999999\r\n",
        b"+PONG\r\n+PONG\r\n",
        b"",
    ],
)
def test_a_server_that_is_no_redis_is_an_error_in_printable_characters(reply):
    with answering(reply) as port, pytest.raises(StoreError) as error:
        open_store(f"redis://:{SECRET}@{HERE}:{port}/0?timeout=2")
    text = str(error.value)
    assert text.startswith(f"redis://{HERE}:{port}/0 ")
    assert SECRET not in text
    assert text.isprintable()
    assert len(text) < 500


def test_a_url_of_another_kind_than_the_server_is_refused_before_anything_is_written(tmp_path):
    settings = ["--cluster-enabled", "yes", "--cluster-port", str(free_port())]
    with redis_running(tmp_path / "cluster", *settings) as server:
        with pytest.raises(SpecError, match=r"is a Redis Cluster; write redis\+cluster://HOST:PORT,HOST:PORT"):
            open_store(server.url)
        with pytest.raises(StoreError, match=r"/main answers as no Sentinel does .* give the Sentinels' ports"):
            open_store(f"redis+sentinel://{HERE}:{server.port}/main?timeout=1")
    refused = pytest.raises(SpecError, match="is no Redis Cluster; write redis://HOST:PORT for a single server")
    with redis_running(tmp_path / "single") as server, refused:
        open_store(f"redis+cluster://{HERE}:{server.port}")
    (tmp_path / "sentinel.conf").write_text(f"sentinel monitor main {HERE} 1 1\n")
    port = free_port()
    command = [redis_program(), tmp_path / "sentinel.conf", "--sentinel", "--port", str(port), "--bind", HERE]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=tmp_path) as process:
        try:
            with pytest.raises(SpecError, match=r"is a Sentinel, which holds no data; write redis\+sentinel://"):
                _open_when_up(f"redis://{HERE}:{port}/0")
        finally:
            process.kill()


def _open_when_up(url: str) -> None:
    for _ in range(600):
        try:
            open_store(url).close()
            return
        except StoreError as error:
            if "refused" not in str(error):
                raise
            threading.Event().wait(0.05)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> Path:
    """A folder with the certificate c.pem of localhost, and its key k.pem."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed (apt-get install openssl)")
    folder = tmp_path_factory.mktemp("tls")
    words = "req -x509 -newkey rsa:2048 -nodes -keyout k.pem -out c.pem -days 2 -subj /CN=localhost"
    subprocess.run(["openssl", *words.split()], cwd=folder, check=True, capture_output=True)
    return folder


def test_tls_on_one_side_only_is_told_with_the_scheme_to_write(tmp_path, certificate):
    port = free_port()
    files = ["--tls-cert-file", certificate / "c.pem", "--tls-key-file", certificate / "k.pem"]
    settings = ["--tls-port", port, "--tls-auth-clients", "no", "--tls-ca-cert-file", certificate / "c.pem", *files]
    with redis_running(tmp_path / "redis", *map(str, settings)) as server:
        with pytest.raises(StoreError, match="write rediss:// if it wants TLS"):
            open_store(f"redis://{HERE}:{port}/0")
        with pytest.raises(StoreError, match="write redis:// if the server has no TLS on this port"):
            open_store(f"rediss://{HERE}:{server.port}/0?timeout=1")
        with pytest.raises(StoreError, match=r"over TLS .*check ssl_ca_certs and the certificate"):
            open_store(f"rediss://localhost:{port}/0")
        with pytest.raises(StoreError, match=r"over TLS .*check ssl_ca_certs and the certificate"):
            open_store(f"rediss://localhost:{port}/0?ssl_ca_certs={tmp_path}/none.pem")
        store = open_store(f"rediss://localhost:{port}/0?ssl_ca_certs={certificate}/c.pem")
        assert store.generators() == []
        store.close()


def test_a_server_that_cannot_save_says_so_in_words(tmp_path):
    with redis_running(tmp_path / "redis") as server:
        import redis

        client = redis.Redis.from_url(server.url)
        client.config_set("save", "3600 1")
        shutil.rmtree(tmp_path / "redis")  # where it saves
        with contextlib.suppress(redis.ResponseError):
            client.bgsave()
        store = open_store(server.url)
        for _ in range(200):
            if client.info("persistence")["rdb_last_bgsave_status"] == "err":
                break
            threading.Event().wait(0.05)
        saves_not = pytest.raises(StoreError, match="cannot save to its disk and takes no writes")
        with saves_not, store.lock("shop"):
            pass
        store.close()
        client.close()
