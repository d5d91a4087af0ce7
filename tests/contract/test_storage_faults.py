"""Object storage behind a server that fails: a retry or a clear error, and nothing half-committed."""

from __future__ import annotations

import contextlib
import datetime
import os
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from fault_proxy import Fault, FaultProxy, fail_at_random, fail_first, faults_before
from nearcast.errors import AccessError, DamagedError, MissingExtraError, NotFoundError, SpecError, StorageError
from nearcast.storage import bucket_artifacts, object_storage
from nearcast.storage.artifacts import open_artifacts
from nearcast.storage.host_cache import HostCache
from nearcast.storage.object_storage import ObjectStorage
from nearcast.storage.open_storage import open_storage, parse_url
from needs import require_module
from s3_server import BUCKET, environment_of, s3_running
from servers import HERE, free_port

PASSING = {
    "429": Fault(status=429, code="SlowDown"),
    "500": Fault(status=500),
    "503": Fault(status=503, code="SlowDown"),
    "reset": Fault(reset=True),
    "cut body": Fault(cut_body=True),
    "lost reply": Fault(lose_reply=True),
    "slow": Fault(delay=0.3),
}
every_passing_fault = pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)


@pytest.fixture
def proxy(s3_server, s3_url, monkeypatch) -> FaultProxy:
    with faults_before(s3_server.port) as made:
        for name, value in environment_of(made.endpoint).items():
            monkeypatch.setenv(name, value)
        yield made


def write_rows(folder: Path) -> dict[str, object]:
    (folder / "rows").write_bytes(b"rows" * 10_000)
    return {"rows": 10_000}


@every_passing_fault
def test_reading_and_writing_go_on_after_a_fault(proxy, s3_url, fault, tmp_path):
    storage = open_storage(s3_url)
    (tmp_path / "file").write_bytes(os.urandom(20 << 20))
    for use in (
        lambda: storage.write("object", b"bytes"),
        lambda: storage.read("object") == b"bytes",
        lambda: storage.read_ranges("object", [(0, 2), (2, 5)]) == [b"by", b"tes"],
        lambda: storage.stat("object").size == 5,
        lambda: [each.name for each in storage.list_objects()] == ["object"],
        lambda: storage.list_folders() == [],
        lambda: storage.upload("large", tmp_path / "file"),
        lambda: storage.download("large", tmp_path / "copy"),
        lambda: storage.delete("object"),
    ):
        proxy.plan = fail_first(2, fault)
        assert use() in (True, None)
    assert proxy.injected >= 9
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "file").read_bytes()
    assert storage.stat("object") is None


@every_passing_fault
def test_a_create_goes_on_after_a_fault_and_knows_its_own_object(proxy, s3_url, fault):
    storage = open_storage(s3_url)
    assert storage.create("warm", b"")  # probed
    proxy.plan = fail_first(2, fault, conditional=True)
    assert storage.create("commit", b"attempt 1")
    assert proxy.injected >= 1
    proxy.plan = fail_first(2, fault, conditional=True)
    assert not storage.create("commit", b"attempt 2")
    assert storage.read("commit") == b"attempt 1"


@every_passing_fault
def test_a_replace_goes_on_after_a_fault_and_knows_its_own_object(proxy, s3_url, fault):
    storage = open_storage(s3_url)
    storage.create("pointer", b"1")
    etag = storage.stat("pointer").etag
    proxy.plan = fail_first(2, fault, conditional=True)
    assert storage.replace("pointer", b"2", etag)
    proxy.plan = fail_first(2, fault, conditional=True)
    assert not storage.replace("pointer", b"3", etag)
    assert storage.read("pointer") == b"2"


def test_a_conflict_with_a_delete_is_tried_again(proxy, s3_url):
    storage = open_storage(s3_url)
    storage.create("warm", b"")
    proxy.plan = fail_first(3, Fault(status=409, code="ConditionalRequestConflict"), conditional=True)
    assert storage.create("commit", b"attempt")
    assert storage.read("commit") == b"attempt"


@every_passing_fault
def test_the_probe_goes_on_after_a_fault(proxy, s3_url, fault):
    proxy.plan = fail_first(2, fault, conditional=True)
    assert open_storage(s3_url).create("commit", b"attempt")
    assert [each.name for each in open_storage(s3_url).list_objects()] == ["commit"]


def test_a_server_that_ignores_conditions_is_refused_before_the_first_commit(proxy, s3_url, tmp_path):
    proxy.plan = lambda request: Fault(ignore_conditions=True)
    artifacts = open_artifacts(s3_url, HostCache(tmp_path))
    for commit in (
        lambda: open_storage(s3_url).create("commit", b""),
        lambda: open_storage(s3_url).replace("commit", b"", "etag"),
        lambda: artifacts.ensure("a", lambda folder: pytest.fail("work before the refusal")),
    ):
        with pytest.raises(StorageError, match=r"ignores conditional puts .*: two workers could both commit; use"):
            commit()
    assert list(open_storage(s3_url).list_objects()) == []  # nothing was computed or uploaded before the refusal


def test_a_server_without_conditions_is_refused(proxy, s3_url):
    proxy.plan = lambda request: Fault(status=501, code="NotImplemented") if request.conditional else None
    with pytest.raises(StorageError, match=r"status 501 NotImplemented .*; use another server"):
        open_storage(s3_url).create("commit", b"")


@pytest.mark.parametrize("name", ["500", "429", "reset", "slow"])
def test_a_server_that_goes_on_failing_is_given_up_in_time(proxy, s3_url, name, monkeypatch):
    monkeypatch.setenv("NEARCAST_STORAGE_PATIENCE", "1")
    storage = open_storage(s3_url)
    storage.write("object", b"bytes")
    fault = PASSING[name] if name != "slow" else Fault(status=503, delay=0.2)
    proxy.plan = lambda request: fault
    began = time.monotonic()
    for use in (
        lambda: storage.read("object"),
        lambda: storage.create("commit", b""),
        lambda: list(storage.list_objects()),
    ):
        with pytest.raises(StorageError, match=r"failed \(tried \d+ times\): .*; (try again later|check the endpoint)"):
            use()
    assert time.monotonic() - began < 60
    proxy.plan = lambda request: None
    assert open_storage(s3_url).stat("commit") is None


def test_a_download_of_a_damaged_body_is_repeated_and_then_refused(proxy, s3_url, tmp_path):
    open_artifacts(s3_url, HostCache(tmp_path / "one")).ensure("a", write_rows)
    proxy.plan = fail_first(1, Fault(flip_body=True), method="GET", path="/rows")
    folder = open_artifacts(s3_url, HostCache(tmp_path / "two")).open("a")
    assert (folder / "rows").read_bytes() == b"rows" * 10_000
    proxy.plan = fail_first(99, Fault(flip_body=True), method="GET", path="/rows")
    with pytest.raises(DamagedError, match="is not what was uploaded"):
        open_artifacts(s3_url, HostCache(tmp_path / "three")).open("a")
    assert not list((tmp_path / "three" / "entries").iterdir())


@pytest.mark.parametrize("seed", range(3))
def test_with_every_fifth_request_failing_each_artifact_is_committed_once(proxy, s3_url, tmp_path, seed):
    proxy.plan = fail_at_random(0.2, *PASSING.values(), seed=seed)

    def attempt(number: int) -> list[object]:
        artifacts = open_artifacts(s3_url, HostCache(tmp_path / f"host{number}"))

        def write(folder: Path) -> dict[str, object]:
            (folder / "who").write_bytes(str(number).encode() * 1000)
            return {"who": number}

        return [(artifacts.ensure(f"race/{i}", write) / "who").read_bytes()[:1] for i in range(5)]

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(attempt, range(4)))
    assert proxy.injected > 20
    proxy.plan = lambda request: None
    artifacts = open_artifacts(s3_url, HostCache(tmp_path / "last"))
    for i, read in enumerate(zip(*results, strict=True)):
        assert set(read) == {str(artifacts.facts(f"race/{i}")["who"]).encode()}
        assert (artifacts.open(f"race/{i}") / "who").read_bytes()[:1] == read[0]
    time.sleep(1.1)
    artifacts.sweep(older_than=0.0)
    assert len(list(artifacts.storage.list_objects())) == 5 * 3


def test_a_commit_whose_outcome_is_unknown_keeps_its_files(proxy, s3_url, tmp_path, monkeypatch):
    monkeypatch.setenv("NEARCAST_STORAGE_PATIENCE", "1")
    artifacts = open_artifacts(s3_url, HostCache(tmp_path / "one"))
    artifacts.ensure("warm", write_rows)
    down = threading.Event()

    def plan(request):  # the commit is passed on, its reply is lost, and then nothing answers
        if down.is_set():
            return Fault(reset=True)
        if request.conditional:
            down.set()
            return Fault(lose_reply=True)
        return None

    proxy.plan = plan
    with pytest.raises(StorageError):
        artifacts.ensure("a", write_rows)
    proxy.plan = lambda request: None
    folder = open_artifacts(s3_url, HostCache(tmp_path / "two")).open("a")
    assert (folder / "rows").read_bytes() == b"rows" * 10_000


def test_a_slow_upload_whose_files_were_swept_is_not_committed(proxy, s3_url, tmp_path, monkeypatch):
    monkeypatch.setattr(bucket_artifacts, "LONG", 0.0)
    artifacts = open_artifacts(s3_url, HostCache(tmp_path))
    upload = artifacts.storage.upload

    def upload_and_lose(name: str, path: Path) -> None:
        upload(name, path)
        artifacts.storage.delete(name)

    artifacts.storage.upload = upload_and_lose
    with pytest.raises(StorageError, match="was removed during its upload; run again"):
        artifacts.ensure("a", write_rows)
    assert artifacts.facts("a") is None
    artifacts.storage.upload = upload
    artifacts.ensure("a", write_rows)


def test_the_patience_is_a_number(s3_url, monkeypatch):
    for text in ("long", "-1", "1e9", "nan"):
        monkeypatch.setenv("NEARCAST_STORAGE_PATIENCE", text)
        with pytest.raises(SpecError, match=f"NEARCAST_STORAGE_PATIENCE must be a number of seconds, got {text}"):
            open_storage(s3_url)


def test_a_wrong_bucket_is_told_from_a_missing_object(s3_url, tmp_path):
    storage = open_storage("s3://no-such-bucket/runs")
    (tmp_path / "file").touch()
    for use in (
        lambda: storage.read("a"),
        lambda: storage.stat("a"),
        lambda: storage.write("a", b""),
        lambda: storage.create("a", b""),
        lambda: storage.upload("a", tmp_path / "file"),
        lambda: storage.download("a", tmp_path / "copy"),
        lambda: list(storage.list_objects()),
        lambda: storage.list_folders(),
        lambda: open_artifacts("s3://no-such-bucket", HostCache(tmp_path)).facts("a"),
    ):
        with pytest.raises(StorageError, match=r"the bucket no-such-bucket does not exist at http.*; create it, or"):
            use()
    with pytest.raises(NotFoundError):
        open_storage(s3_url).read("a")


@pytest.mark.parametrize(
    ("url", "variables"),
    [
        ("az://container/x", {"AZURE_STORAGE_ACCOUNT_NAME": "shop", "AZURE_STORAGE_ACCOUNT_KEY": "no key"}),
        ("gs://bucket/x", {"GOOGLE_APPLICATION_CREDENTIALS": "/no/such/file.json"}),
    ],
)
def test_settings_that_no_client_accepts_are_not_tried_again(url, variables, monkeypatch):
    require_module("obstore")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(AccessError, match="check endpoint, credentials and network"):
        open_storage(url).read("plan.json")


def test_missing_credentials_are_named(s3_url, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StorageError, match="no credentials were found; set AWS_ACCESS_KEY_ID"):
        open_storage(s3_url).read("a")


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Fault(status=403, code="InvalidAccessKeyId"), "access was refused, got status 403 InvalidAccessKeyId"),
        (Fault(status=403, code="AccessDenied"), "check the right to the bucket"),
        (Fault(status=403, code="RequestTimeTooSkewed"), "the clock of this machine is wrong"),
        (Fault(status=400, code="ExpiredToken"), "access was refused"),
        (Fault(status=400, code="AuthorizationHeaderMalformed"), "set AWS_REGION"),
        (Fault(status=400, code="KeyTooLongError"), "got status 400 KeyTooLongError"),
    ],
)
def test_a_refused_request_is_not_repeated(proxy, s3_url, fault, says):
    storage = open_storage(s3_url)
    proxy.plan = lambda request: fault
    for use in (lambda: storage.write("a", b""), lambda: storage.read("a"), lambda: list(storage.list_objects())):
        before = len(proxy.requests)
        with pytest.raises(StorageError, match=says):
            use()
        assert len(proxy.requests) - before <= 1


def test_an_endpoint_where_nobody_listens_is_named(s3_url, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{HERE}:{free_port()}")
    monkeypatch.setenv("NEARCAST_STORAGE_PATIENCE", "1")
    with pytest.raises(StorageError, match=r"at http://127.0.0.1:\d+ cannot be reached .*; check the endpoint"):
        open_storage(s3_url).read("a")


def test_plain_http_has_to_be_allowed(s3_url, monkeypatch):
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(StorageError, match="set AWS_ALLOW_HTTP=true"):
        open_storage(s3_url).read("a")


def test_a_server_without_https_is_not_tried_again(s3_server, s3_url, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://{HERE}:{s3_server.port}")
    with pytest.raises(AccessError, match=r"speaks no https; write http:// in the endpoint"):
        open_storage(s3_url).read("a")


def test_a_certificate_that_is_not_trusted_is_not_tried_again(s3_url, tmp_path, monkeypatch):
    with https_server(tmp_path) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://{HERE}:{port}")
        with pytest.raises(AccessError, match=r"certificate of the server .* is not trusted; set SSL_CERT_FILE"):
            open_storage(s3_url).read("a")


@contextlib.contextmanager
def https_server(folder: Path) -> Iterator[int]:
    """A server with a certificate that nobody has signed; it answers nothing."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name.from_rfc4514_string("CN=localhost")
    now = datetime.datetime.now(datetime.UTC)
    unsigned = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(1))
    made = unsigned.sign(key, hashes.SHA256())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "server.pem").write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    with HTTPServer((HERE, 0), BaseHTTPRequestHandler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_without_the_client_the_extra_is_named(s3_url, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "obstore", None)
    with pytest.raises(MissingExtraError, match=r'pip install "nearcast\[cloud\]"'):
        open_storage(s3_url).read("a")


def test_a_forked_process_is_told_to_open_its_own(s3_url):
    storage = open_storage(s3_url)
    storage.write("a", b"")
    monkey = ObjectStorage(parse_url(s3_url))
    monkey._process = -1
    with pytest.raises(AccessError, match="was forked; start workers with spawn"):
        monkey.read("a")


def test_a_server_that_is_restarted_is_waited_for(tmp_path, monkeypatch):
    with s3_running(tmp_path) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        artifacts = open_artifacts(f"s3://{BUCKET}/runs", HostCache(tmp_path / "cache"))
        artifacts.ensure("a", write_rows)
        with ThreadPoolExecutor(1) as pool:
            kept = server.read_all()
            server.kill()
            restarting = pool.submit(lambda: (time.sleep(1.0), server.start(kept)))
            folder = artifacts.ensure("b", write_rows)
            restarting.result(60)
        assert (folder / "rows").read_bytes() == b"rows" * 10_000
        assert artifacts.facts("a") == artifacts.facts("b") == {"rows": 10_000}


def test_the_probe_is_made_once_for_each_root_and_endpoint(proxy, s3_url, monkeypatch):
    monkeypatch.setattr(object_storage, "_proven", set())
    for i in range(3):
        open_storage(s3_url).create(f"commit{i}", b"")
    assert sum(request.conditional for request in proxy.requests) == 3 + 3
