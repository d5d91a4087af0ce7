"""`nearcast serve --workers`: one port, readiness and scrape of several real processes, killed and restarted."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter

import psutil
import pytest
from tests.end_to_end.service import running, until
from tests.end_to_end.shop import flip_a_byte
from tests.published import load, point, publish, whole

from nearcast.serve.overlay import open_overlay
from nearcast.stores import open_store

pytestmark = pytest.mark.slow

ONE = "/v1/generators/shop/candidates/7"


@pytest.fixture
def store(tmp_path):
    opened = open_store(f"lmdb:{tmp_path / 'nearcast' / 'store'}")
    publish(opened, "shop", 1, whole(1, keys=40), metric="cosine")
    yield opened
    opened.close()


@pytest.fixture
def service(tmp_path, store):
    with running(tmp_path, "--workers", 2, "--refresh", 0.05) as begun:
        yield begun


def workers(service):
    return psutil.Process(service.process.pid).children()


class Shopper(threading.Thread):
    """Asks again and again on one connection, and connects again when it is asked to, or was cut off."""

    def __init__(self, service):
        super().__init__()
        self.port, self.statuses, self.errors = service.port, Counter(), []
        self.stopping = threading.Event()

    def run(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)  # connects again after `close`
        while not self.stopping.wait(0.001):
            try:
                connection.request("GET", ONE)
                answer = connection.getresponse()
                answer.read()
                self.statuses[answer.status] += 1
            except (OSError, http.client.HTTPException) as error:
                self.errors.append(error)
                connection.close()
        connection.close()


@contextlib.contextmanager
def shopping(service, n=8):
    """So many customers ask all the time."""
    shoppers = [Shopper(service) for _ in range(n)]
    for shopper in shoppers:
        shopper.start()
    try:
        until(lambda: all(shopper.statuses for shopper in shoppers))
        yield shoppers
    finally:
        for shopper in shoppers:
            shopper.stopping.set()
            shopper.join(60)


def answers(shoppers):
    return sum((shopper.statuses for shopper in shoppers), Counter())


def errors(shoppers):
    return [error for shopper in shoppers for error in shopper.errors]


def test_two_workers_answer_on_one_port_and_any_of_them_for_both(service):
    assert len(workers(service)) == 2
    assert "with 2 workers" in service.said
    for _ in range(20):
        assert service.get(ONE).json()["found"]
        assert service.get("/healthz").json() == {"alive": True}
        assert service.get("/readyz").json() == {"ready": True, "reasons": []}
    for _ in range(10):  # whichever answers tells the sum
        assert service.metric('nearcast_keys_total{generator="shop"}') == 20
        assert service.metric('nearcast_returned_candidates_count{generator="shop"}') == 20
    assert service.metric("nearcast_workers") == 2
    assert service.metric("nearcast_ready") == 1
    cpu = sum(sum(worker.cpu_times()[:2]) for worker in workers(service))
    assert service.metric("process_cpu_seconds_total") == pytest.approx(cpu, abs=2)
    assert service.stop() == 0
    assert service.said.endswith("stopped\n")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", service.port), 5)


def test_every_worker_follows_the_store_and_one_that_cannot_is_named_by_all(store, service, tmp_path):
    with open_overlay(store, "shop") as overlay:
        overlay.remove([1_007_000])
    until(lambda: {service.get(ONE).json()["removed"] for _ in range(10)} == {1})
    publish(store, "shop", 2, whole(2, keys=40), metric="cosine")
    until(lambda: {service.get(ONE).json()["snapshot"] for _ in range(10)} == {"000002"})
    until(lambda: service.metric('nearcast_snapshot_version{generator="shop"}') == 2)
    load(store, "shop", 3, whole(3, keys=40))
    file = tmp_path / "nearcast/store/shop/versions/000003/data.mdb"
    flip_a_byte(file, file.stat().st_size // 2)
    point(store, "shop", 3)
    warning = ["shop: what is newer in the store is not served"]
    until(lambda: all(service.get("/readyz").json()["reasons"] == warning for _ in range(10)))
    assert service.metric('nearcast_update_failing{generator="shop"}') == 1
    until(lambda: service.said.count(str(file)) == 2)
    assert {"worker 1: ", "worker 2: "} <= {line[9:19] for line in service.said.splitlines()}


def test_a_killed_worker_costs_its_own_connections_only_and_is_replaced(service):
    with shopping(service) as shoppers:
        victim = workers(service)[0]
        mine = len(victim.net_connections()) - 1
        victim.kill()
        until(lambda: f"{signal.SIGKILL.name}; another one starts" in service.said)
        until(lambda: service.metric("nearcast_workers") == 2)
        until(lambda: service.get("/readyz").status_code == 200)
    assert set(answers(shoppers)) == {200}
    assert len(errors(shoppers)) <= mine
    counted, answered = service.metric('nearcast_keys_total{generator="shop"}'), answers(shoppers)[200]
    assert answered <= counted <= answered + mine, "the counts of the killed worker are kept"
    assert service.metric("nearcast_worker_restarts_total") == 1
    assert len(workers(service)) == 2


def test_a_service_is_not_ready_while_a_worker_is_missing_and_says_so(service):
    os.kill(workers(service)[0].pid, signal.SIGSTOP)  # it neither answers nor ends
    until(lambda: "1 of 2 workers have not responded" in ask_in_turn(service))
    workers(service)[0].kill()
    until(lambda: "1 of 2 workers are not started" in ask_in_turn(service))
    until(lambda: "true" in ask_in_turn(service))


def ask_in_turn(service):
    """What /readyz answers; a connection to a stopped worker is given up."""
    for _ in range(20):
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=2)
        with contextlib.closing(connection), contextlib.suppress(OSError):
            connection.request("GET", "/readyz")
            return connection.getresponse().read().decode()
    raise AssertionError("no worker answers")


def test_no_request_fails_while_all_workers_are_restarted_and_new_generators_are_served(store, service):
    before = {worker.pid for worker in workers(service)}
    publish(store, "new", 1, whole(1, keys=40), metric="cosine")
    with shopping(service) as shoppers:
        service.process.send_signal(signal.SIGHUP)
        until(lambda: before.isdisjoint(worker.pid for worker in workers(service)))
        assert service.get("/readyz").status_code == 200
    assert errors(shoppers) == []
    assert set(answers(shoppers)) == {200}
    assert service.get("/v1/generators/new/candidates/7").status_code == 200
    assert service.metric('nearcast_keys_total{generator="shop"}') == answers(shoppers)[200]
    assert service.metric("nearcast_worker_restarts_total") == 0
    assert service.stop() == 0


def test_no_request_fails_when_all_workers_are_told_to_stop(tmp_path, store):
    with running(tmp_path, "--workers", 2, "--drain", 3600) as service, shopping(service) as shoppers:
        service.process.send_signal(signal.SIGTERM)
        until(lambda: service.get("/readyz").status_code == 503)
        assert service.get("/readyz").json()["reasons"] == ["the service is stopping"]
        assert service.stop() == 0  # a second signal ends the drain
    assert {type(error) for error in errors(shoppers)} <= {ConnectionRefusedError}, "none was cut off"
    assert set(answers(shoppers)) == {200}


def test_workers_end_by_themselves_when_their_supervisor_is_killed(service):
    left = workers(service)
    service.process.kill()
    service.process.wait()
    until(lambda: not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in left))


def test_a_worker_that_cannot_start_is_tried_again_until_it_can_while_the_other_one_serves(tmp_path, store):
    token = tmp_path / "token"
    token.write_text("sesame\n")
    headers = {"Authorization": "Bearer sesame"}
    with running(tmp_path, "--workers", 2, "--token-file", token) as service:
        token.rename(tmp_path / "elsewhere")
        workers(service)[0].kill()
        until(lambda: service.said.count("has ended with exit code 2; another one starts in") >= 2)
        for _ in range(20):
            assert service.get(ONE, headers=headers).json()["found"]
        assert service.get("/readyz").status_code == 503
        service.process.send_signal(signal.SIGHUP)  # the worker that serves is kept: its replacement cannot start
        until(lambda: "cannot start (exit code 2); the earlier workers go on" in service.said)
        assert service.get(ONE, headers=headers).json()["found"]
        (tmp_path / "elsewhere").rename(token)
        until(lambda: service.get("/readyz").status_code == 200)
        assert service.stop() == 0


def test_every_scrape_is_whole_and_no_counter_falls_while_workers_are_killed(service):
    """A worker that is killed while it counts leaves a file that the others read."""
    counted, kills = [], 4
    with shopping(service) as shoppers:
        for number in range(kills):
            workers(service)[0].kill()
            until(lambda number=number: service.said.count("SIGKILL; another one starts") == number + 1)
            for _ in range(10):
                counted.append(service.metric('nearcast_keys_total{generator="shop"}'))
                assert service.get("/metrics").text.endswith("\n")
            until(lambda: service.metric("nearcast_workers") == 2)
    answered = answers(shoppers)[200]
    assert counted == sorted(counted)
    assert set(answers(shoppers)) == {200}
    last = service.metric('nearcast_keys_total{generator="shop"}')
    assert answered <= last <= answered + len(errors(shoppers)) + len(shoppers) * kills
    assert service.metric("nearcast_worker_restarts_total") == kills


def test_workers_that_are_restarted_again_and_again_under_load_refuse_nothing(service):
    with shopping(service) as shoppers:
        for _ in range(3):  # also before the restart before has ended
            before = {worker.pid for worker in workers(service)}
            service.process.send_signal(signal.SIGHUP)
            service.process.send_signal(signal.SIGHUP)
            until(lambda before=before: before.isdisjoint(worker.pid for worker in workers(service)))
        until(lambda: service.metric("nearcast_workers") == 2)
    assert errors(shoppers) == []
    assert set(answers(shoppers)) == {200}
    assert service.metric('nearcast_keys_total{generator="shop"}') == answers(shoppers)[200]


def test_a_port_in_use_is_an_error_before_anything_is_opened(service, tmp_path):
    with (
        pytest.raises(AssertionError, match=rf"port {service.port} cannot be had .*choose another --host or --port"),
        running(tmp_path / "other", "--workers", 2, "--store", tmp_path / "nearcast/store", port=service.port) as other,
    ):
        other.stop()


def test_a_port_that_another_process_takes_after_the_start_is_an_error_of_one_line(tmp_path, store):
    """Both have bound the port; whoever listens first has it."""
    code = """
import socket, sys
from nearcast.cli import main
from nearcast.service import server
real = server.bind
def bind(host, port):
    bound = real(host, port)
    rival = socket.socket()
    rival.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    rival.bind(bound.getsockname())
    rival.listen()
    globals()["rival"] = rival
    return bound
server.bind = bind
sys.argv = ["nearcast", "serve", "--port", "0", *sys.argv[1:]]
main()
"""
    for more in ((), ("--workers", "2")):
        done = subprocess.run(
            [sys.executable, "-c", code, *more], cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 2
        assert "cannot be had (Address already in use)" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_service_that_cannot_start_ends_with_the_error_of_its_first_worker(tmp_path):
    with pytest.raises(AssertionError, match="nothing is published"), running(tmp_path, "--workers", 2) as service:
        service.stop()
