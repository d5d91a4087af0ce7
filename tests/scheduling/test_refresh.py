"""`nearcast refresh` as a scheduler sees it: called again and again, its exit codes, and what is served meanwhile."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.end_to_end import shop as at
from tests.end_to_end.shop import environment, fail, succeed

import nearcast
from nearcast.errors import NearcastError
from nearcast.files import hold_lock

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shop that was refreshed once. Look, do not write."""
    folder = tmp_path_factory.mktemp("shop")
    at.write_shop(folder)
    succeed("refresh", "shop.toml", "--quiet", cwd=folder)
    return folder


@pytest.fixture
def shop(made: Path, tmp_path: Path) -> Path:
    """A copy to write in."""
    return Path(shutil.copytree(made, tmp_path / "shop"))


def said(folder: Path, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(succeed("refresh", "shop.toml", "--json", *words, cwd=folder).stdout)
    return found


def current(folder: Path) -> int:
    """The version that is served."""
    with nearcast.open(f"lmdb:{folder / 'nearcast' / 'store'}", "shop") as lookup:
        return int(lookup.state.facts["version"])


def test_the_first_refresh_makes_a_snapshot_and_serves_it(made: Path) -> None:
    assert at.snapshots(made) == ["000001"]
    assert current(made) == 1


def test_a_refresh_of_unchanged_inputs_does_nothing(shop: Path) -> None:
    found = said(shop)
    assert (found["version"], found["reused"]) == (1, True)
    assert found["publication"]["outcome"] == "already_current"
    assert at.snapshots(shop) == ["000001"]


def test_a_refresh_of_new_inputs_is_served_and_the_next_does_nothing(shop: Path) -> None:
    at.write_items(shop, at.clustered(at.N_ITEMS, seed=1)[:-5])
    first, second = said(shop), said(shop)
    assert (first["version"], first["reused"], first["publication"]["outcome"]) == (2, False, "published")
    assert (second["version"], second["reused"], second["publication"]["outcome"]) == (2, True, "already_current")
    assert current(shop) == 2


def test_a_run_that_was_not_published_is_published_by_the_next_refresh(shop: Path) -> None:
    at.write_items(shop, at.clustered(at.N_ITEMS, seed=1)[:-5])
    succeed("run", "shop.toml", "--quiet", cwd=shop)
    found = said(shop)
    assert (found["reused"], found["publication"]["outcome"]) == (True, "published")
    assert current(shop) == 2


def test_a_failed_audit_is_exit_code_10_each_time_and_what_was_served_stays(shop: Path) -> None:
    at.write_items(shop, at.clustered(at.N_ITEMS, seed=77))  # other vectors under the same ids: nothing is kept
    for _ in range(2):
        assert "overlap" in fail("refresh", "shop.toml", "--quiet", code=10, cwd=shop)
    assert current(shop) == 1


def test_a_broken_promise_is_exit_code_4_each_time_and_nothing_is_published(tmp_path: Path) -> None:
    settings = {"engine": "faiss-ivf", "engine_settings": {"nlist": 30, "nprobe": 1}, "recall": 0.999}
    at.write_shop(tmp_path, **settings)
    for _ in range(2):
        assert "below its recall target" in fail("refresh", "shop.toml", "--quiet", code=4, cwd=tmp_path)
    assert not (tmp_path / "nearcast" / "store").exists()


def test_bad_inputs_are_exit_code_3_and_what_was_served_stays(shop: Path) -> None:
    at.write_rows(shop / "queries.parquet", ["q0", "q1"], [[float("nan")] * 16, [1.0] * 16])
    fail("refresh", "shop.toml", "--quiet", code=3, cwd=shop)
    assert current(shop) == 1


def test_a_refresh_beside_another_one_is_exit_code_5(shop: Path) -> None:
    with hold_lock(shop / "nearcast" / "shop" / ".lock", "the generator"):
        fail("refresh", "shop.toml", "--quiet", code=5, cwd=shop)


def test_a_check_that_is_named_by_fail_on_is_exit_code_13_after_the_publish(shop: Path) -> None:
    at.write_spec(shop, monitor={"max_dead": 0.0, "min_recall_today": 1.0})
    succeed("refresh", "shop.toml", "--quiet", "--fail-on", "any", cwd=shop)
    at.write_spec(shop, audit={"max_age_hours": 1e-9})
    # what is current already is not audited again, and the monitor finds it too old
    assert "age" in fail("refresh", "shop.toml", "--quiet", "--fail-on", "age", code=13, cwd=shop)


def test_from_python_a_refresh_is_the_same(shop: Path) -> None:
    done = nearcast.refresh(shop / "shop.toml", with_monitor=True)
    assert done.reused
    assert done.watched is not None
    assert done.as_dict()["publication"]["outcome"] == "already_current"


def test_every_exit_code_is_in_the_table_of_the_page(repository: Path) -> None:
    page = (repository / "docs" / "scheduling.md").read_text(encoding="utf-8")
    codes = {0} | {kind.exit_code for kind in NearcastError.__subclasses__()}
    assert {code for code in codes if f"| {code} |" not in page} == set()


def test_the_lines_of_the_crontab_run(shop: Path, tmp_path: Path) -> None:
    """As cron does it: five fields, then a line for sh, with the folders of the example replaced."""
    text = (ROOT / "examples" / "scheduling" / "crontab").read_text(encoding="utf-8")
    lines = [line.split(maxsplit=5) for line in text.splitlines() if line[:1].isdigit()]
    assert len(lines) == 2
    for *fields, command in lines:
        assert all(field == "*" or field.isdigit() for field in fields)
        moved = command.replace("/srv/shop", shlex.quote(str(shop)))
        path = f"{at.NEARCAST.parent}:/usr/bin:/bin"
        done = subprocess.run(
            ["sh", "-c", moved], env=environment(PATH=path), capture_output=True, encoding="utf-8", check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
