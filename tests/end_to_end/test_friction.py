"""What a newcomer stumbles over: progress beyond its end, text taken for markup, long cells, keys with a typo."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tests.end_to_end.shop as at
from tests.end_to_end.shop import fail, succeed

import nearcast
from nearcast.join.listener import Listener

PACKAGE = Path(nearcast.__file__).parent
COUNTRIES = [f"country-{n}" for n in range(20)]
HOSTILE = ["[red]x[/red]", "[/]", "[bold", "a[0]", ":smile:", "[link=http://x]y", "\\[x]", "it's {x} %s", "[queries]"]


class Watching(Listener):
    """Keeps every progress report."""

    def __init__(self) -> None:
        super().__init__()
        self.reports: dict[str, list[tuple[int, int]]] = {}

    def progress(self, stage: str, done: int, total: int) -> None:
        self.reports.setdefault(stage, []).append((done, total))

    def faults(self) -> list[str]:
        """Stages that went beyond their total or did not end at it."""
        found = []
        for stage, reports in self.reports.items():
            if any(not 0 <= done <= total for done, total in reports):
                found.append(f"{stage}: {[report for report in reports if report[0] > report[1]][:3]}")
            if reports[-1][0] != reports[-1][1]:
                found.append(f"{stage} ends at {reports[-1]}")
        return found


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator whose ids, names and lists are hard to print, with rules on both sides, after two runs."""
    folder = tmp_path_factory.mktemp("friction")
    items = at.clustered(40, seed=1)
    names = [HOSTILE[n % len(HOSTILE)] for n in range(40)]
    ids = [f"{name}-{n}" for n, name in enumerate(names)]
    shared = {
        "name": names,
        "text": ["x" * 500] * 40,
        "countries": [COUNTRIES] * 40,
        "group": [n % 3 for n in range(40)],
    }
    at.write_rows(folder / "items.parquet", ids, list(items), **shared)
    at.write_rows(
        folder / "queries.parquet", [*HOSTILE, *COUNTRIES], list(at.clustered(29, seed=2)), country=["country-1"] * 29
    )
    at.write_spec(
        folder,
        k=5,
        items={"path": "items.parquet", "attributes": ["group"], "display": ["name", "text", "countries"]},
        queries={"path": "queries.parquet", "attributes": ["country"]},
    )
    with (folder / "shop.toml").open("a") as spec:
        spec.write('[[rules]]\nname = "near"\nkeep = "query.country in item.countries and item.group >= 0"\n')
    text = (folder / "shop.toml").read_text().replace('["group"]', '["group", "countries"]')
    (folder / "shop.toml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def watched(hostile: Path) -> Watching:
    """Everything that reports progress, heard."""
    listener = Watching()
    spec = hostile / "shop.toml"
    nearcast.run(spec, listener=listener)
    nearcast.publish(str(spec), listener=listener)
    rng = np.random.default_rng(1)
    log = pa.table({"key": [HOSTILE[n] for n in rng.integers(len(HOSTILE), size=1100)], "time": list(range(1100))})
    pq.write_table(log, hostile / "log.parquet", row_group_size=300)
    nearcast.head(hostile / "log.parquet", listener=listener)
    vectors = at.clustered(45, seed=1)
    vectors[5] += 1
    return listener


def test_no_stage_reports_beyond_its_total_and_all_end_there(watched: Watching) -> None:
    assert {"copy", "read back", "join", "table", "read log", "read items", "check queries"} <= set(watched.reports)
    assert watched.faults() == []


def test_only_one_place_makes_consoles_and_it_reads_no_markup() -> None:
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "rich.markup" not in text, f"{path}: no text is markup; style with rich.text.Text"
        calls = [
            node
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Call)
            and getattr(node.func, "id", getattr(node.func, "attr", "")) in ("Console", "print")
        ]
        for call in calls:
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            if getattr(call.func, "id", "") == "Console":
                assert path.name == "common.py"
                assert (given["markup"], given["emoji"]) == ("False", "False")
            assert given.get("markup", "False") == "False", path


@pytest.mark.slow
def test_hostile_text_is_printed_letter_for_letter_by_every_command(hostile: Path, watched: Watching) -> None:
    for key in HOSTILE:
        for more in ((), ("--published",)):
            lines = succeed("lookup", "shop", key, *more, "--columns", "name", cwd=hostile).stdout
            assert f"{key!r}: " in lines
            found = json.loads(succeed("lookup", "shop", key, *more, "--json", "--columns", "name", cwd=hostile).stdout)
            for row in found["candidates"]:
                assert row["id"] in lines
                assert row["name"] in lines
    item = f"{HOSTILE[0]}-0"
    assert item in succeed("explain", "shop", HOSTILE[1], item, cwd=hostile).stdout
    note = "[red]gone[/red] :smile: [/]"
    succeed("overlay", "shop", "remove", item, "--note", note, cwd=hostile)
    shown = succeed("overlay", "shop", "list", cwd=hostile).stdout
    assert item in shown
    assert note in shown
    for wrong in ("[redd]", "[/q]", "no[0]"):
        assert repr(wrong) in fail("lookup", "shop", wrong, code=7, cwd=hostile)
        assert wrong in fail("show", wrong, code=7, cwd=hostile)
        assert wrong in succeed("published", "--out", hostile / wrong, cwd=hostile).stdout


def test_head_prints_the_table_of_its_file(hostile: Path, watched: Watching) -> None:
    done = succeed("head", "log.parquet", "--to", "keys[1].parquet", cwd=hostile)
    assert '[queries]\nonly = "keys[1].parquet"' in done.stdout


def test_long_cells_are_cut_with_their_count_unless_they_are_asked_for(hostile: Path, watched: Watching) -> None:
    for more in ((), ("--published",)):
        short = succeed("lookup", "shop", HOSTILE[0], *more, "--columns", "countries,text", cwd=hostile).stdout
        assert "(20 in all)" in " ".join(short.split())
        assert "country-3" not in short
        full = succeed("lookup", "shop", HOSTILE[0], *more, "--columns", "countries", "--full", cwd=hostile).stdout
        assert "country-19" in full
        told = json.loads(
            succeed("lookup", "shop", HOSTILE[0], *more, "--columns", "countries", "--json", cwd=hostile).stdout
        )
        assert told["candidates"][0]["countries"] == COUNTRIES


def test_a_look_up_shows_the_display_columns_from_disk_and_from_the_store(hostile: Path, watched: Watching) -> None:
    for more in ((), ("--published",)):
        found = json.loads(succeed("lookup", "shop", "country-1", "--json", *more, cwd=hostile).stdout)
        assert found["candidates"][0].keys() - {"rank"} == {"id", "score", "name", "text", "countries"}
    elsewhere = hostile / "elsewhere"  # a machine that did not make the snapshot: all columns of the store
    elsewhere.mkdir(exist_ok=True)
    store = ("--store", f"lmdb:{hostile / 'nearcast' / 'store'}")
    found = json.loads(succeed("lookup", "shop", "country-1", "--json", *store, cwd=elsewhere).stdout)
    assert "group" in found["candidates"][0]


def test_the_snapshots_of_a_generator_fit_a_screen_with_whole_times(hostile: Path, watched: Watching) -> None:
    lines = succeed("snapshots", cwd=hostile).stdout.splitlines()
    assert max(map(len, lines)) <= 100
    assert re.search(r" \d{4}-\d\d-\d\d \d\d:\d\d ", lines[1])


def test_a_misspelt_key_is_answered_with_the_nearest_ones(hostile: Path, watched: Watching) -> None:
    assert "the nearest of its 29 keys is 'country-12'" in fail("lookup", "shop", "contry-12", code=7, cwd=hostile)
    published = fail("lookup", "shop", "contry-12", "--published", code=7, cwd=hostile)
    assert "the nearest of its 29 keys is 'country-12'" in published
    unknown = fail("explain", "shop", HOSTILE[0], "no[0]-12", code=7, cwd=hostile)
    assert "the nearest of its 40 items is 'a[0]-12'" in unknown


def test_a_key_of_any_length_leaves_an_error_readable(hostile: Path, watched: Watching) -> None:
    for more in ((), ("--published",)):
        told = fail("lookup", "shop", "y\n" * 2000, *more, code=7, cwd=hostile)
        assert "... (4,000 characters); its 29 keys are, for example," in told
        assert len(told) < 700


def test_overlay_names_what_it_does_not_know_and_what_may_be_meant(hostile: Path, watched: Watching) -> None:
    told = succeed("overlay", "shop", "remove", "a[0]-122", "q\nq", "x", "y", "z", cwd=hostile).stderr
    assert "not in the current snapshot: 'a[0]-122'; the nearest of its 40 items are 'a[0]-12', " in told
    assert "not in the current snapshot: 'q\\nq'; its 40 items are, for example," in told
    assert "and 2 others" in told
    told = succeed("overlay", "shop", "restore", "a[0]-12", "x", cwd=hostile).stderr
    assert "restored 1 of 2" in told
    assert "'a[0]-12' was not removed; did you mean 'a[0]-122'?" in told
    told = succeed("overlay", "shop", "set", "a[0]-12", "nam=x", "zzzz=3", cwd=hostile).stderr
    assert "shop has no column 'nam'; did you mean 'name'?" in told
    assert "shop has no column 'zzzz'; its columns are " in told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("pubish", "shop"), "there is no command 'pubish'; did you mean 'publish'?"),
        (("[b]",), "there is no command '[b]'; `nearcast --help` lists them"),
        (("overlay", "shop", "remov", "x"), "Did you mean 'remove'?"),
        (("lookup", "shop", "x", "--frist", "1"), "Did you mean '--first'?"),
    ],
)
def test_a_misspelt_command_or_option_is_answered_with_the_nearest_one(
    words: tuple[str, ...], told: str, tmp_path: Path
) -> None:
    assert told in fail(*words, code=2, cwd=tmp_path)
