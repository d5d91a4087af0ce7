"""The page at / of a running service: live, read-only, behind the token, and as closed as the file is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.dashboard.browser import Tab
from tests.dashboard.hostile import SCRIPT
from tests.end_to_end.service import Service, running

import nearcast

TOKEN = "open-sesame"
HEAD = {"Authorization": f"Bearer {TOKEN}"}
N = 60


def _write(folder: Path, turn: int) -> None:
    vectors = [[float((n * 7 + turn) % 13), float(n % 5), float((n * 3) % 7), 1.0] for n in range(N)]
    ids = [f"item {n:02d} {SCRIPT}" if n % 2 else f"item {n:02d}" for n in range(N)]
    titles = [f"Thing {n} {SCRIPT}" for n in range(N)]
    column = pa.array(vectors, pa.list_(pa.float32()))
    pq.write_table(pa.table({"id": ids, "vector": column, "title": titles}), folder / "items.parquet")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two snapshots of items with hostile ids and titles, the second published, one item removed."""
    folder = tmp_path_factory.mktemp("live")
    spec = {"name": "things", "metric": "cosine", "k": 5, "memory": "1GB", "engine": "exact"}
    spec |= {"items": {"path": "items.parquet", "display": ["title"]}, "audit": {"min_overlap": 0.0}}
    for turn in (0, 3):
        _write(folder, turn)
        nearcast.run(spec, base=folder)
    out = folder / "nearcast"
    nearcast.publish("things", out=out)
    nearest = nearcast.lookup("things", "item 00", out=out).ids[0]
    with nearcast.overlay(out / "store", "things") as overlay:
        overlay.remove([nearest], note="sold out")
    return folder


@pytest.fixture(scope="module")
def service(shop: Path) -> Iterator[Service]:
    with running(shop, NEARCAST_TOKEN=TOKEN) as found:
        yield found


def test_the_shell_needs_no_token_and_tells_nothing_the_data_needs_one(service: Service) -> None:
    shell = service.get("/")
    assert shell.status_code == 200
    assert "things" not in shell.text
    policy = shell.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert service.get("/dashboard/parts/app.js").headers["content-type"].startswith("text/javascript")
    of = "/dashboard/generators/things"
    for path in ("/dashboard/data", f"{of}/page", f"{of}/keys?q=", f"{of}/list?key=x"):
        assert service.get(path).status_code == 401
        assert service.get(path, headers={"Authorization": "Bearer guess"}).status_code == 401
        assert service.get(path, headers=HEAD).status_code == 200


def test_the_page_is_read_only_and_serves_no_other_file(service: Service) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        for path in ("/", "/dashboard/data", "/dashboard/generators/things/list?key=x"):
            assert httpx.request(method, service.url + path, headers=HEAD, trust_env=False).status_code == 405
    for path in ("../page.py", "..%2fpage.py", "page.py", "%2e%2e/page.py", "vendor", "vendor/preact.LICENSE"):
        assert service.get(f"/dashboard/parts/{path}", headers=HEAD).status_code == 404


def test_what_cannot_be_asked_is_refused_in_words(service: Service) -> None:
    def is_refused(path: str) -> tuple[int, str]:
        reply = service.get(f"/dashboard/generators/{path}", headers=HEAD)
        return reply.status_code, reply.json()["error"]["code"]

    assert is_refused("nobody/list?key=x") == (404, "unknown_generator")
    assert is_refused("things/list") == (422, "invalid")
    assert is_refused("things/list?key=x&before=1e9") == (422, "invalid")
    assert is_refused("things/list?key=%ff") == (400, "bad_encoding")
    assert is_refused("%ff/list?key=x") == (400, "bad_encoding")
    assert is_refused("things/explain?key=a&item=b") == (404, "not_found")


def test_a_list_is_that_of_the_served_snapshot_beside_the_one_before(service: Service) -> None:
    told = service.get("/dashboard/generators/things/list?key=item%2000", headers=HEAD).json()
    assert (told["now"]["snapshot"], told["before"]["snapshot"]) == ("000002", "000001")
    assert len(told["now"]["candidates"]) == 5
    assert [row["removed"] for row in told["now"]["candidates"] if "removed" in row] == [
        "removed by the overlay until it is restored (sold out)"
    ]
    assert set(told["diff"]) == {"came", "went", "moved", "kept"}
    first = service.get("/dashboard/generators/things/list?key=item%2000&before=1", headers=HEAD).json()
    assert first["before"]["snapshot"] == "000001"


def test_the_data_has_generators_in_brief_and_each_is_whole_at_its_own_address(service: Service) -> None:
    (brief,) = service.get("/dashboard/data", headers=HEAD).json()["generators"]
    whole = service.get("/dashboard/generators/things/page", headers=HEAD).json()
    assert {"manifest", "marks", "frontier", "versions"} <= set(whole)
    assert not {"manifest", "marks", "frontier", "versions"} & set(brief)
    assert (brief["live"]["version"], brief["asked"]) == (whole["live"]["version"], whole["asked"])
    assert service.get("/dashboard/generators/nobody/page", headers=HEAD).status_code == 404


def test_keys_are_found_by_their_beginning_and_by_their_title(service: Service) -> None:
    def keys(typed: str) -> list[str]:
        reply = service.get("/dashboard/generators/things/keys", headers=HEAD, params={"q": typed})
        return [row["key"] for row in reply.json()["keys"]]

    assert keys("item 02") == ["item 02"]
    assert keys("thing 8 ")[0] == "item 08"
    assert keys("nothing of the kind") == []
    assert len(keys("")) == 12


def test_the_page_asks_for_the_token_then_shows_what_is_served_live(
    service: Service, tab: Callable[..., Tab], shop: Path
) -> None:
    one = tab()
    page = one.open(service.url)
    assert page.locator("h1").inner_text() == "A token is needed"
    assert one.axe() == []
    page.get_by_label("Token").fill("guess")
    page.get_by_role("button", name="Open").click()
    page.get_by_role("alert").wait_for()
    assert "does not know this token" in page.get_by_role("alert").inner_text()
    page.get_by_label("Token").fill(TOKEN)
    page.keyboard.press("Enter")
    page.locator("table.generators").wait_for()
    assert page.locator("h1").inner_text() == "1 of 1 generator is not monitored"
    assert "The monitor has not run yet." in page.locator("table.generators").inner_text()
    assert "live" in page.locator(".made").inner_text()
    _look_into_a_list(page)
    assert page.evaluate("window.taken") is None
    assert all(url.startswith(service.url) for url in one.elsewhere)
    one.complaints = [text for text in one.complaints if "401" not in text]


def _look_into_a_list(page: Any) -> None:
    page.get_by_role("link", name="things").first.click()
    page.get_by_role("link", name="Look into lists").click()
    page.get_by_role("combobox", name="Key").fill("item 0")
    page.get_by_role("option").first.wait_for()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.locator(".candidates").first.wait_for()
    text = page.locator("main").inner_text()
    assert SCRIPT in text
    assert "sold out" in text
    assert page.locator("main img, main svg, main script").count() == 0


def test_a_service_may_serve_no_page(shop: Path) -> None:
    with running(shop, "--no-page") as service:
        assert service.get("/").status_code == 404
        assert service.get("/dashboard/data").status_code == 404


def test_a_pair_is_explained_where_the_snapshot_was_made(service: Service) -> None:
    asked = {"key": "item 00", "item": "item 02"}
    told = service.get("/dashboard/generators/things/explain", params=asked, headers=HEAD).json()
    assert told["cause"] in ("listed", "nearer")
    assert told["rank"] >= 1
