"""`nearcast serve` as a process: over a real LMDB file and a real Redis, asked over real connections."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import threading

import click
import httpx
import pytest
from tests.end_to_end.service import running, until
from tests.end_to_end.shop import N_ITEMS, flip_a_byte, write_shop
from tests.published import load, point, publish, whole
from tests.servers import RedisServer, redis_program

from nearcast.cli import cli
from nearcast.cli.serve import read_tokens as tokens
from nearcast.errors import NearcastError, SpecError
from nearcast.serve.overlay import open_overlay
from nearcast.stores import open_store
from needs import require_module

ONE = "/v1/generators/shop/candidates/7"
COLUMNS = {"name": "string"}


def lists(version):
    """Lists of 40 keys whose items tell the version."""
    return whole(version, keys=40)


def items(version):
    return {item: {"name": f"item {item}"} for row in lists(version).values() for item, _ in row}


def version_of(answer):
    """The version that an answer's items tell; all of them the same one."""
    versions = {candidate["id"] // 1_000_000 for candidate in answer["candidates"]}
    assert len(versions) == 1
    return versions.pop()


def candidates(generator, key=7):
    return f"/v1/generators/{generator}/candidates/{key}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def store(folder):
    """An LMDB store with a generator for every test that changes one."""
    opened = open_store(f"lmdb:{folder / 'nearcast' / 'store'}")
    for name in ("shop", "overlaid", "swapped", "damaged"):
        publish(opened, name, 1, lists(1), items(1), columns=COLUMNS, metric="cosine")
    publish(opened, "kind", 3, {"a/b": [(1, 0.5)]}, metric="l2", serve={"default_keys": ["a/b"]})
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def service(folder, store):
    """One service for all that need no other, which ends well."""
    with running(folder, "--refresh", 0.05) as begun:
        yield begun
        assert begun.stop(signal.SIGINT) == 0
        assert begun.said.endswith("stopped\n")


def test_every_endpoint_answers_over_a_real_connection(service):
    begun = "serving damaged 000001, kind 000003, overlaid 000001, shop 000001, swapped 000001 on http://127.0.0.1:"
    assert begun in service.said
    answer = service.get(f"{ONE}?k=2&fields=name").json()
    assert [candidate["name"] for candidate in answer["candidates"]] == ["item 1007000", "item 1007001"]
    assert service.get("/v1/generators/kind/candidates/a/b").json()["found"]
    assert service.get("/v1/generators/kind/candidates/nobody").json()["source"] == "default_key"
    many = service.post("/v1/generators/shop/candidates", {"keys": [7, 99], "k": 1}).json()["answers"]
    assert [answer["found"] for answer in many] == [True, False]
    assert service.post("/v1/generators/shop/search", {"vectors": [[1.0]]}).status_code == 404
    assert len(service.get("/v1/generators").json()["generators"]) == 5
    assert service.get("/v1/generators/kind").json()["snapshot"] == "000003"
    assert service.get("/healthz").json() == {"alive": True}
    assert service.get("/readyz").json() == {"ready": True, "reasons": []}
    assert service.metric('nearcast_keys_total{generator="kind"}') == 2
    assert service.get("/openapi.json").json()["info"]["title"] == "nearcast"
    assert "/v1/generators/{name}/search" in service.get("/docs").text


def test_what_the_overlay_takes_out_is_gone_and_comes_back_when_it_is_restored(store, service):
    one = candidates("overlaid")

    def first():
        return service.get(one).json()["candidates"][0]["id"]

    with open_overlay(store, "overlaid") as overlay:
        overlay.remove([1_007_000])
        until(lambda: first() == 1_007_001)
        assert service.get(one).json()["removed"] == 1
        overlay.update(1_007_001, "name", "renamed")
        until(lambda: service.get(f"{one}?fields=name").json()["candidates"][0]["name"] == "renamed")
        overlay.restore([1_007_000])
        until(lambda: first() == 1_007_000)


def test_publishes_and_rollbacks_are_followed_without_a_torn_answer(store, service):
    seen, stop = [], threading.Event()

    def ask():
        with httpx.Client(base_url=service.url, trust_env=False) as client:
            while not stop.is_set():
                answer = client.get(candidates("swapped")).json()
                seen.append((version_of(answer), answer["snapshot"]))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        until(lambda: seen)
        for version in (2, 3):
            publish(store, "swapped", version, lists(version), metric="cosine")
            until(lambda version=version: seen[-1][0] == version)
        point(store, "swapped", 2)
        until(lambda: seen[-1][0] == 2)
    finally:
        stop.set()
        asking.join()
    changes = [told for place, told in enumerate(seen) if place == 0 or seen[place - 1] != told]
    assert changes == [(1, "000001"), (2, "000002"), (3, "000003"), (2, "000002")]


def test_a_damaged_version_is_refused_and_the_old_one_goes_on(folder, store, service):
    def described():
        return service.get("/v1/generators/damaged")

    load(store, "damaged", 2, lists(2))
    file = folder / "nearcast/store/damaged/versions/000002/data.mdb"
    flip_a_byte(file, file.stat().st_size // 2)
    point(store, "damaged", 2)
    until(lambda: described().json()["error"])
    assert version_of(service.get(candidates("damaged")).json()) == 1
    assert service.get("/readyz").status_code == 200
    assert service.metric('nearcast_update_failing{generator="damaged"}') == 1
    assert str(folder) not in described().text
    until(lambda: str(file) in service.said)
    publish(store, "damaged", 3, lists(3))
    until(lambda: version_of(service.get(candidates("damaged")).json()) == 3)
    assert described().json()["error"] is None
    until(lambda: "damaged follows the store again, at 000003" in service.said)
    assert service.metric('nearcast_update_failures_total{generator="damaged"}') == 1


class Shopper(threading.Thread):
    """Asks again and again on one connection, which it makes anew when it is asked to leave it."""

    def __init__(self, port):
        super().__init__()
        self.port, self.statuses, self.errors, self.asked_to_leave = port, [], [], threading.Event()
        self.stopping = threading.Event()

    def run(self):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            while not self.stopping.is_set():
                connection.request("GET", ONE)
                answer = connection.getresponse()
                answer.read()
                self.statuses.append(answer.status)
                if answer.headers["connection"] == "close":  # as a balancer would, to ask another instance
                    self.asked_to_leave.set()
                    return
        except OSError as error:
            self.errors.append(error)


def test_no_request_fails_when_the_service_is_told_to_stop_under_load(tmp_path, store):
    with running(tmp_path, "shop", "--store", store.url, "--drain", 3600) as service:
        assert service.get(candidates("kind", "a/b")).status_code == 404, "only what was named is served"
        shoppers = [Shopper(service.port) for _ in range(8)]
        for shopper in shoppers:
            shopper.start()
        until(lambda: all(len(shopper.statuses) > 20 for shopper in shoppers))
        service.process.send_signal(signal.SIGTERM)
        for shopper in shoppers:
            shopper.join(60)
            assert (shopper.errors, set(shopper.statuses)) == ([], {200})
            assert shopper.asked_to_leave.is_set()
        answer = service.get("/readyz")  # new connections are taken while clients find out
        assert (answer.status_code, answer.json()["reasons"]) == (503, ["the service is stopping"])
        assert service.get(ONE).status_code == 200
        assert service.stop() == 0


def test_a_request_under_way_is_finished_before_the_service_ends(tmp_path, store):
    with (
        running(tmp_path, "shop", "--store", store.url, "--drain", 0) as service,
        socket.create_connection(("127.0.0.1", service.port)) as slow,
    ):
        body = json.dumps({"keys": [7]}).encode()
        head = "POST /v1/generators/shop/candidates HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        slow.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body[:5])
        assert service.get("/healthz").status_code == 200  # by now it has seen the head
        service.process.send_signal(signal.SIGTERM)
        until(lambda: _refused(service.port))
        slow.sendall(body[5:])
        answer = http.client.HTTPResponse(slow)
        answer.begin()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert json.loads(answer.read())["answers"][0]["found"]
        assert service.process.wait(60) == 0


def _refused(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=60).close()
    except ConnectionRefusedError:
        return True
    return False


def test_whoever_sends_the_signal_twice_need_not_wait_for_the_drain(tmp_path, store):
    with running(tmp_path, "shop", "--store", store.url, "--drain", 3600) as service:
        service.process.send_signal(signal.SIGTERM)
        until(lambda: service.get("/readyz").status_code == 503)
        assert service.stop() == 0
        assert service.said.endswith("stopped\n")


def test_a_token_is_asked_for_where_one_is_set(tmp_path, store):
    (tmp_path / "tokens").write_text("first\nsecond\n")
    words = ("shop", "--store", store.url, "--token-file", "tokens", "--host", "0.0.0.0")
    with running(tmp_path, *words, NEARCAST_TOKEN="not this one") as service:
        assert "warning" not in service.said, "it may be opened to the network"
        for token, status in (("first", 200), ("second", 200), ("third", 401), ("not this one", 401)):
            assert service.get(ONE, headers={"authorization": f"Bearer {token}"}).status_code == status
        assert service.get(ONE).status_code == service.get("/metrics").status_code == 401
        assert service.get("/healthz").status_code == service.get("/readyz").status_code == 200


def test_a_token_may_come_from_the_environment_and_an_empty_one_opens_nothing(monkeypatch):
    assert tokens(None) == ()
    monkeypatch.setenv("NEARCAST_TOKEN", "secret\n")
    assert tokens(None) == (b"secret",)
    monkeypatch.setenv("NEARCAST_TOKEN", "")
    with pytest.raises(SpecError, match="NEARCAST_TOKEN holds no token"):
        tokens(None)


def test_limits_are_those_given_and_without_a_token_the_network_is_warned_of(tmp_path, store):
    words = ("shop", "--store", store.url, "--host", "0.0.0.0", "--max-keys", 3, "--max-body", "200")
    with running(tmp_path, *words) as service:
        assert "warning: everybody who can connect to 0.0.0.0 may send requests; give --token-file" in service.said
        assert service.post("/v1/generators/shop/candidates", {"keys": [1, 2, 3]}).status_code == 200
        assert service.post("/v1/generators/shop/candidates", {"keys": [1, 2, 3, 4]}).status_code == 422
        assert service.post("/v1/generators/shop/candidates", {"keys": [1] * 99}).status_code == 413

        def pieces():  # chunked: it never says how long it is
            yield from [b" " * 100] * 10

        headers = {"content-type": "application/json"}
        path = service.url + "/v1/generators/shop/candidates"
        answer = httpx.post(path, content=pieces(), headers=headers, timeout=60, trust_env=False)
        assert answer.status_code == 413


def test_what_cannot_be_served_is_an_error_at_the_start(tmp_path, store):
    def refused(*words):
        with pytest.raises(NearcastError) as told:
            cli.main(["serve", *map(str, words)], standalone_mode=False)
        return told.value.exit_code, str(told.value)

    code, said = refused("--store", tmp_path / "elsewhere")
    assert (code, "nothing is published in" in said) == (7, True)
    code, said = refused("shoes", "--store", store.url, "--port", 0)
    assert (code, "generators there are" in said) == (7, True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = f"127.0.0.1 port {port} cannot be had (Address already in use); choose another --host or --port"
        assert refused("shop", "--store", store.url, "--port", port) == (2, said)
    (tmp_path / "tokens").write_text("\n")
    assert refused("--store", store.url, "--token-file", tmp_path / "tokens")[0] == 2
    code, said = refused("shop", "--store", store.url, "--port", 0, "--online", write_shop(tmp_path, name="other"))
    assert (code, "is the spec of 'other', which is not served; served are shop" in said) == (2, True)
    with pytest.raises(click.BadParameter, match="not an amount of memory"):
        cli.main(["serve", "--max-body", "much"], standalone_mode=False)


def test_an_online_index_is_served_beside_the_table_and_under_its_overlay(tmp_path):
    require_module("faiss")
    write_shop(tmp_path, serve={"online_recall": 0.9})
    store = open_store(f"lmdb:{tmp_path / 'nearcast' / 'store'}")
    names = {f"i{number:04d}": {"name": f"no. {number}"} for number in range(N_ITEMS)}
    publish(store, "shop", 1, {"known": [("i0001", 1.0)]}, names, columns=COLUMNS, metric="cosine")
    vector = [0.5] * 16
    with running(tmp_path, "--online", "shop.toml") as service:
        assert service.get("/v1/generators/shop").json()["online"] == {"engine": "faiss-hnsw", "dim": 16, "recall": 0.9}
        search, many = "/v1/generators/shop/search", "/v1/generators/shop/candidates"
        body = {"vectors": [vector], "k": 3, "fields": ["name"]}
        nearest = service.post(search, body).json()["answers"][0]["candidates"]
        assert [c["name"] for c in nearest] == [f"no. {int(c['id'][1:])}" for c in nearest]
        asked = {"keys": ["nobody", "known"], "vectors": [vector, vector], "k": 3}
        miss, there = service.post(many, asked).json()["answers"]
        assert (miss["source"], there["source"]) == ("online", "table")
        assert [c["id"] for c in miss["candidates"]] == [c["id"] for c in nearest]
        with open_overlay(store, "shop") as overlay:
            overlay.remove([nearest[0]["id"]])
        until(lambda: service.post(search, body).json()["answers"][0]["removed"] == 1)
        after = service.post(search, body).json()["answers"][0]["candidates"]
        assert after[:2] == nearest[1:]
        assert len(after) == 3
    store.close()


PRODUCTS = {"oat-milk": [("soy-milk", 0.75), ("granola", 0.5), ("butter", 0.25)], "milk": [("butter", 0.25)]}
NAMES = {item: {"name": item.capitalize().replace("-", " ")} for item in ("soy-milk", "granola", "butter")}


def test_the_commands_of_the_documentation_answer_what_it_shows(tmp_path, repository):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    store = open_store(f"lmdb:{tmp_path / 'nearcast' / 'store'}")
    publish(store, "products", 7, PRODUCTS, NAMES, columns=COLUMNS, metric="cosine")
    store.close()
    text = (repository / "docs" / "http.md").read_text(encoding="utf-8")
    examples = re.findall(r"```sh\n(curl .*?)```\n\n```json\n(.*?)```", text, re.DOTALL)
    assert len(examples) == 3
    with running(tmp_path) as service:
        for command, shown in examples:
            asked = command.replace("localhost:8080", f"127.0.0.1:{service.port}")
            done = subprocess.run(["sh", "-c", asked], capture_output=True, text=True, timeout=60, check=True)
            answer = json.loads(re.sub(r'"age_seconds":[0-9.]+', '"age_seconds":5400.0', done.stdout))
            assert answer == json.loads(shown)
        (program,) = re.findall(r"```python\n(import httpx.*?)```", text, re.DOTALL)
        names = {}
        exec(program.replace("localhost:8080", f"127.0.0.1:{service.port}"), names)
        assert names["table"].num_rows == 2


# Redis


@pytest.fixture
def redis(tmp_path):
    server = RedisServer(redis_program(), tmp_path / "redis")
    yield server.start()
    server.kill()


def _fill(redis):
    store = open_store(redis.url)
    publish(store, "shop", 1, lists(1), items(1), columns=COLUMNS, metric="cosine")
    store.close()


def test_a_redis_that_goes_away_is_a_503_until_it_is_back(tmp_path, redis):
    _fill(redis)
    with running(tmp_path, "--store", f"{redis.url}?timeout=1", "--refresh", 0.05) as service:
        assert service.get(f"{ONE}?fields=name").json()["candidates"][0]["name"] == "item 1007000"
        redis.kill()
        answer = service.get(ONE)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
        assert answer.headers["retry-after"] == "1"
        assert str(redis.port) not in answer.text
        assert service.get("/healthz").status_code == 200
        until(lambda: service.get("/readyz").status_code == 503)
        redis.start()
        _fill(redis)
        until(lambda: service.get(ONE).status_code == 200)
        until(lambda: service.get("/readyz").status_code == 200)
        assert service.metric('nearcast_store_errors_total{generator="shop"}') >= 1
        assert service.stop() == 0


def test_a_redis_that_does_not_answer_holds_up_nobody_else(tmp_path, redis):
    _fill(redis)
    with running(tmp_path, "--store", f"{redis.url}?timeout=2", "--drain", 0) as service:
        redis._process.send_signal(signal.SIGSTOP)
        waiting = [threading.Thread(target=service.get, args=(ONE,)) for _ in range(4)]
        for thread in waiting:
            thread.start()
        for _ in range(5):
            assert service.get("/healthz").status_code == 200
        assert service.get(ONE).status_code == 503
        redis._process.send_signal(signal.SIGCONT)
        for thread in waiting:
            thread.join(60)
        until(lambda: service.get(ONE).status_code == 200)
        assert service.stop() == 0
