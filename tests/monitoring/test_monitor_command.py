"""`nearcast monitor` as a process: what it says, its exit codes, a webhook that is really called, a picture."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.end_to_end.shop import fail, nearcast, succeed
from tests.monitoring.nights import Nights, toml

from needs import require_module


@contextmanager
def listening(status: int = 200) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A web server that takes posts: its URL, and what was posted."""
    got: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook", got
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator with five healthy nights. Look, do not write files."""
    shop = Nights(tmp_path_factory.mktemp("healthy"))
    shop.run()
    shop.publish()
    for _ in range(4):
        assert shop.night() == []
    (shop.folder / "shop.toml").write_text(toml(shop.spec))
    return shop.folder


@pytest.fixture(scope="module")
def ill(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, whose query vectors came from another model last night."""
    shop = Nights(tmp_path_factory.mktemp("ill"))
    shop.run()
    for _ in range(4):
        assert [name for name in shop.night() if not name.startswith("audit")] == []
    turn, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(24, 24)))
    shop.write(queries=shop.queries @ turn)
    shop.run()
    (shop.folder / "shop.toml").write_text(toml(shop.spec))
    return shop.folder


def test_a_healthy_generator_is_said_to_be(healthy: Path) -> None:
    done = succeed("monitor", "shop.toml", "--fail-on", "any", cwd=healthy)
    assert "shop 000005, compared with 4 earlier runs" in done.stdout
    assert "of today's queries: fewer than 20 look-ups are recorded" in done.stdout
    assert "nothing is wrong" in done.stdout


def test_by_name_only_the_runs_are_checked(healthy: Path) -> None:
    told = json.loads(succeed("monitor", "shop", "--json", cwd=healthy).stdout)
    assert told["served"] is None
    assert told["alerts"] == []
    assert told["runs"] == 4


def test_what_is_wrong_is_named_and_exits_with_13_where_it_was_asked_to(ill: Path) -> None:
    done = succeed("monitor", "shop.toml", cwd=ill)
    assert "queries_model" in done.stdout
    assert "likely consequences: " in done.stdout
    message = fail("monitor", "shop.toml", "--fail-on", "queries_model", code=13, cwd=ill)
    assert "shop: queries_model; docs/monitoring.md says what to do" in message
    fail("monitor", "shop.toml", "--fail-on", "any", code=13, cwd=ill)
    succeed("monitor", "shop.toml", "--fail-on", "age", "--fail-on", "memory", cwd=ill)


def test_alerts_are_posted_to_a_webhook_and_health_is_not(healthy: Path, ill: Path) -> None:
    with listening() as (url, got):
        succeed("monitor", "shop.toml", "--webhook", url, cwd=healthy)
        assert got == []
        succeed("monitor", "shop.toml", "--webhook", url, cwd=ill)
    (body,) = got
    assert body["generator"] == "shop"
    assert [alert["check"] for alert in body["alerts"]] == ["queries_model"]
    assert body["text"].startswith("nearcast shop\nqueries_model: ")


def test_a_webhook_that_fails_is_a_warning_and_does_not_hide_the_alert(ill: Path) -> None:
    done = nearcast("monitor", "shop.toml", "--webhook", "http://127.0.0.1:9/", "--fail-on", "any", cwd=ill)
    assert done.returncode == 13
    assert "warning: alerts were not delivered to the webhook" in done.stderr
    with listening(500) as (url, _):
        assert (
            "were not delivered to the webhook: HTTP Error 500"
            in succeed("monitor", "shop.toml", "--webhook", url, cwd=ill).stderr
        )


def test_only_an_http_server_that_answers_2xx_has_taken_an_alert(ill: Path) -> None:
    for url in ("file:///tmp/x", "data:,x", "ftp://h/x", "not a url", "http://h:p/", "http://user:s3cret@"):
        message = fail("monitor", "shop.toml", "--webhook", url, code=2, cwd=ill)
        assert message.startswith("error: --webhook: the webhook's URL ")
        assert "s3cret" not in message
    with listening(302) as (url, got):
        said = succeed("monitor", "shop.toml", "--webhook", url, cwd=ill).stderr
        assert "were not delivered to the webhook: HTTP Error 302: Found" in said
        assert len(got) == 1
    for dead in (url.replace("127", "user:s3cret@127"), url.replace("http", "https")):
        said = succeed("monitor", "shop.toml", "--webhook", dead, cwd=ill).stderr
        assert "warning: alerts were not delivered to the webhook" in said
        assert "s3cret" not in said
        assert "/hook" not in said


def test_the_history_is_drawn(ill: Path, tmp_path: Path) -> None:
    require_module("matplotlib")
    for name in ("history.svg", "history.png"):
        succeed("monitor", "shop.toml", "--picture", tmp_path / name, cwd=ill)
    text = (tmp_path / "history.svg").read_text()
    assert "<svg" in text
    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG")
    assert "write one that ends in .svg" in fail("monitor", "shop", "--picture", "x.gif", code=2, cwd=ill)


def test_an_unknown_generator_and_an_unknown_check_say_what_there_is(healthy: Path) -> None:
    assert "no run of 'shoe' in nearcast" in fail("monitor", "shoe", code=7, cwd=healthy)
    done = nearcast("monitor", "shop", "--fail-on", "recal", cwd=healthy)
    assert done.returncode == 2
    assert "served_recall" in succeed("monitor", "shop", "--checks", cwd=healthy).stdout
    assert "served_recall" in succeed("monitor", "--checks", cwd=healthy).stdout
    assert "Missing argument" in fail("monitor", code=2, cwd=healthy)


def test_the_webhook_of_the_spec_is_a_url(tmp_path: Path) -> None:
    shop = Nights(tmp_path, monitor={"webhook": "chat"})
    (tmp_path / "shop.toml").write_text(toml(shop.spec))
    assert "write a URL that starts with https://" in fail("monitor", "shop.toml", code=2, cwd=tmp_path)
