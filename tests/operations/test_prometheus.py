"""A real Prometheus scrapes a real service, and answers every query of the Grafana dashboard and of the rules."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.end_to_end import shop as at
from tests.end_to_end.service import Service, running
from tests.end_to_end.shop import succeed

from needs import require_module
from servers import free_port

DEPLOY = Path(__file__).resolve().parent.parent.parent / "deploy"
# What a healthy service without live updates, rules, fallbacks and online indexes has no samples of.
WITHOUT_SAMPLES = ("nearcast_follow_", "nearcast_ineligible_", "nearcast_fallbacks_", "nearcast_searches_")


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Prometheus that has scraped a service for some seconds."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed (apt-get install prometheus)")
    folder = tmp_path_factory.mktemp("prometheus")
    at.write_shop(folder)
    succeed("run", "shop.toml", cwd=folder)
    succeed("publish", "shop.toml", cwd=folder)
    at.write_spec(folder, k=9)
    succeed("run", "shop.toml", cwd=folder)
    succeed("publish", "shop.toml", "--canary", "100%", cwd=folder)
    with running(folder, "--no-samples") as service:
        scrape = (DEPLOY / "prometheus" / "scrape.yml").read_text(encoding="utf-8")
        scrape = scrape.replace("127.0.0.1:8080", f"127.0.0.1:{service.port}").replace("15s", "1s")
        rules = f"rule_files: [{DEPLOY / 'prometheus' / 'rules.yml'}]\nglobal: {{evaluation_interval: 1s}}\n"
        (folder / "prometheus.yml").write_text(rules + scrape, encoding="utf-8")
        url = f"http://127.0.0.1:{free_port()}"
        words = [program, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
        with (folder / "prometheus.log").open("w") as log:
            server = subprocess.Popen([*words, f"--web.listen-address={url[7:]}"], stdout=log, stderr=log)
        try:
            look_up_until_scraped(service, url)
            yield url
        finally:
            server.terminate()
            server.wait(120)


def look_up_until_scraped(service: Service, url: str) -> None:
    """Ask the service until Prometheus has a rate of so many requests that their shares are near those of the keys."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            for key in ("q001", "q002", "nobody") * 4:
                service.get(f"/v1/generators/shop/candidates/{key}")
            rows = query(url, 'sum(increase(nearcast_canary_answers_total{arm="canary"}[10m])) > 60')
            if rows and query(url, 'up{job="nearcast"} == 1') and query(url, "route:nearcast_request_seconds:p99_5m"):
                return
        time.sleep(0.2)
    pytest.fail("Prometheus has scraped nothing")


def query(url: str, expression: str) -> list[Any]:
    """Return the result of an instant query."""
    asked = urllib.parse.urlencode({"query": expression})
    with urllib.request.urlopen(f"{url}/api/v1/query?{asked}", timeout=60) as answer:
        found = json.load(answer)
    assert found["status"] == "success", found
    return list(found["data"]["result"])


def list_panel_queries() -> list[tuple[str, str]]:
    dashboard = json.loads((DEPLOY / "grafana" / "nearcast.json").read_text(encoding="utf-8"))
    variables = {"$__rate_interval": "10m", "$generator": ".*"}
    found = []
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            expression = target["expr"]
            for name, value in variables.items():
                expression = expression.replace(name, value)
            found.append((panel["title"], expression))
    return found


def test_every_query_of_the_dashboard_has_an_answer(prometheus: str) -> None:
    for title, expression in list_panel_queries():
        assert "$" not in expression, title
        rows = query(prometheus, expression)
        if not any(name in expression for name in WITHOUT_SAMPLES):
            assert rows, f"{title}: {expression}"


def test_the_queries_of_a_canary_are_its_figures(prometheus: str) -> None:
    def value(part: str, arm: str) -> float:
        (expression,) = {each for _, each in list_panel_queries() if part in each.partition("/")[0]}
        (row,) = [row for row in query(prometheus, expression) if row["metric"].get("arm", arm) == arm]
        return float(row["value"][1])

    for arm in ("current", "canary"):  # of three keys, one is unknown
        assert 0.2 < value("nearcast_canary_empty_total", arm) < 0.5
        assert value("nearcast_canary_errors_total", arm) == 0
        assert 0.5 < value("nearcast_canary_fill_total", arm) < 0.8
        assert 0 < value("nearcast_canary_seconds_bucket", arm) < 1
    assert 0.8 < value("nearcast_canary_overlap_total", "") < 1
    assert value("nearcast_canary_share", "") == 1


def test_the_dashboard_has_a_panel_for_every_metric_of_the_service(prometheus: str) -> None:
    with urllib.request.urlopen(f"{prometheus}/api/v1/label/__name__/values", timeout=60) as answer:
        names = json.load(answer)["data"]
    shown = " ".join(expression for _, expression in list_panel_queries())
    deprecated = {"nearcast_not_following", "nearcast_refusals_total", "nearcast_barred_candidates_total"}
    for name in names:
        base = re.sub(r"_(bucket|sum|count|created)$", "", name)
        if base.startswith("nearcast_") and base not in deprecated and ":" not in base:
            assert base in shown or base in NOT_SHOWN, base


NOT_SHOWN = {
    "nearcast_patch_number",
    "nearcast_patch_age_seconds",
    "nearcast_update_failures_total",
    "nearcast_returned_ads",
}


def test_no_alert_fires_for_a_healthy_service(prometheus: str) -> None:
    with urllib.request.urlopen(f"{prometheus}/api/v1/rules", timeout=60) as answer:
        groups = json.load(answer)["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) >= 10
    assert [rule["name"] for rule in rules if rule["health"] == "err"] == []
    firing = {rule["name"] for rule in rules if rule.get("state") in ("pending", "firing")}
    assert firing == set()


def test_the_yaml_of_the_rules_is_what_the_tests_of_the_rules_read() -> None:
    yaml = require_module("yaml")
    tests = yaml.safe_load((DEPLOY / "prometheus" / "rules_test.yml").read_text(encoding="utf-8"))
    assert tests["rule_files"] == ["rules.yml"]
