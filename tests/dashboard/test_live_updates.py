"""The page of a service shows live updates: patches, how fresh files become, and updates that were undone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.dashboard.browser import Tab
from tests.dashboard.hostile import SCRIPT
from tests.end_to_end.service import Service, running, until

import nearcast
from nearcast.api.updates import open_follower, roll_back_updates


def make_table(numbers: range, seed: int) -> pa.Table:
    vectors = np.random.default_rng(seed).normal(size=(len(numbers), 4))
    return pa.table(
        {"id": [f"item {n}" for n in numbers], "vector": pa.array(vectors.tolist(), pa.list_(pa.float32()))}
    )


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files were followed, one of them bad; then a batch came in and was undone."""
    folder = tmp_path_factory.mktemp("updated")
    spec = {"name": "things", "metric": "cosine", "k": 5, "engine": "exact", "items": {"path": "items.parquet"}}
    spec |= {"out": str(folder / "nearcast"), "recall": 1.0, "audit": {"max_lists_changed": 1.0}}
    pq.write_table(make_table(range(60), 1), folder / "items.parquet")
    nearcast.run(spec, base=folder)
    nearcast.publish(spec)
    (folder / "feed").mkdir()
    pq.write_table(make_table(range(60, 63), 2), folder / "feed" / "01.parquet")
    pq.write_table(pa.table({"id": ["x"]}), folder / "feed" / f"02 {SCRIPT.replace('/', '')}.parquet")
    with open_follower(spec, str(folder / "feed")) as follower:
        follower.catch_up()
    nearcast.update(spec, items=make_table(range(5), 3), note=SCRIPT)
    undone = roll_back_updates(spec, 2)
    assert undone == [3]
    nearcast.update(spec, items=make_table(range(5), 3), note=SCRIPT)
    return folder


@pytest.fixture(scope="module")
def service(shop: Path) -> Iterator[Service]:
    with running(shop) as found:
        yield found


def test_the_data_has_the_patches_and_how_fresh_followed_files_are(service: Service) -> None:
    page = service.get("/dashboard/generators/things/page").json()
    numbers = [(patch["number"], patch["counts"]["items"]) for patch in page["updates"]["patches"]]
    assert numbers == [(4, 5), (2, 0), (1, 3)]
    (feed,) = page["updates"]["feeds"]
    assert feed["freshness"]["batches"] == 1
    assert feed["freshness"]["p99"] >= feed["freshness"]["p50"] > 0
    assert feed["set_aside"] == 1
    assert [mark["text"] for mark in page["marks"] if mark["kind"] == "rollback"] == [
        "live updates were undone: patches 3"
    ]
    assert page["live"]["version"] == 1


def test_the_page_shows_them_and_runs_nothing_that_a_name_holds(service: Service, tab: Callable[..., Tab]) -> None:
    one = tab()
    page = one.open(service.url)
    page.get_by_role("link", name="things").first.click()
    section = page.locator("section", has=page.get_by_role("heading", name="Live updates"))
    section.wait_for()
    text = section.inner_text()
    assert "a file is in answers" in text
    assert SCRIPT in text
    assert page.evaluate("window.taken") is None
    assert one.axe() == []


def test_a_new_patch_is_on_the_page_without_a_restart(service: Service, shop: Path) -> None:
    nearcast.update("things", out=shop / "nearcast", gone=["item 7"], max_lists_changed=1.0)
    until(lambda: service.get("/dashboard/generators/things/page").json()["updates"]["patches"][0]["number"] == 5)
