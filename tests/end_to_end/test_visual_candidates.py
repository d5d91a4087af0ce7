"""The recipe of visual candidates, small: one command, from pictures to answers for pins, phrases and home feeds."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.end_to_end.shop import NEARCAST, environment

RECIPE = "examples/visual_candidates"
PICTURES = Path("/usr/share/datasets/fashion-mnist")
SMALL = ("--pins", "4000", "--promoted", "1500", "--people", "60", "--views", "4000", "--searches", "1500")

needs_libraries = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("matplotlib", "skimage", "sklearn")),
    reason="scikit-image, scikit-learn and matplotlib are not installed (pip install --group visual)",
)
needs_pictures = pytest.mark.skipif(
    not PICTURES.is_dir(),
    reason="the pictures of Fashion-MNIST are not installed (apt-get install dataset-fashion-mnist)",
)


def copied(repository: Path, to: Path) -> Path:
    ignored = shutil.ignore_patterns("data", "nearcast", "__pycache__")
    return Path(shutil.copytree(repository / RECIPE, to / "recipe", ignore=ignored))


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{NEARCAST.parent}:{environment()['PATH']}"
    return subprocess.run(
        command, cwd=folder, env=environment(PATH=path), capture_output=True, text=True, check=False, timeout=600
    )


@pytest.mark.slow
@needs_libraries
@needs_pictures
def test_one_command_leads_from_pictures_to_answers(repository, tmp_path):
    folder = copied(repository, tmp_path)
    done = run(["bash", "demo.sh", *SMALL], folder)
    assert done.returncode == 0, done.stdout + done.stderr
    steps = [line[3:5] for line in done.stdout.splitlines() if line.startswith("== ")]
    assert steps == ["1.", "2.", "3.", "4.", "5.", "6.", "7."]
    for words in ("recall@50", "the held-out day", "a search phrase", "a home feed", '"phrase": "Dark  BOOTS"'):
        assert words in done.stdout
    for name in ("pins", "search", "home", "overview"):
        assert (folder / "data" / "pictures" / f"{name}.png").stat().st_size > 10_000

    told = run([sys.executable, "measure.py", "--json"], folder)
    assert told.returncode == 0, told.stderr
    figures = json.loads(told.stdout)
    facts, measures, requests = figures["facts"], figures["measures"], figures["requests"]
    assert measures["recall"] >= 0.99
    assert facts["head"] < facts["pins"] / 2
    assert facts["head_of_learned_views"] >= 0.8
    assert 0.6 < facts["head_of_heldout_views"] < facts["head_of_learned_views"]
    for asked in requests.values():
        assert asked["same"]["low"] > asked["by_chance"]
        assert asked["answered"] > 0.6
    home = requests["a home feed"]
    assert home["keys"] > 1.5, "several of a person's pins have a part in the answer"
    assert home["complete"][0] > home["complete"][1], "several keys show more of a person's tastes than one"


@needs_libraries
def test_without_the_pictures_it_says_how_to_get_them(repository, tmp_path):
    folder = copied(repository, tmp_path)
    done = run([sys.executable, "prepare.py", "--pictures", "nowhere"], folder)
    assert done.returncode == 1
    assert "apt-get install dataset-fashion-mnist" in done.stderr
    assert "Traceback" not in done.stderr
