"""The command line as people and programs use it: real processes, their output and their exit codes."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
import tomllib
from pathlib import Path

import numpy as np
import pytest
from tests.end_to_end import shop as at
from tests.end_to_end.shop import Finished, fail, nearcast, succeed

from nearcast import cli, load_spec
from nearcast.measure.measures import MEASURES

ODD_IDS = ['it\'s "a/b" Œuvre ✓ 漢字', "[red]", "[/bold]", "-dash", "--json", "back\\", "%s {x} $HOME"]
ROOT = Path(__file__).resolve().parent.parent.parent
LOOKED_UP = [ODD_IDS[0], "[/bold]", "--json"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finished]:
    """A shop with one snapshot, and what its run has said. Look, do not write."""
    folder = tmp_path_factory.mktemp("shop")
    at.write_shop(folder)
    return folder, succeed("run", "shop.toml", cwd=folder)


@pytest.fixture(scope="module")
def shop(made: tuple[Path, Finished]) -> Path:
    return made[0]


@pytest.fixture
def own_shop(shop: Path, tmp_path: Path) -> Path:
    """A copy to write in."""
    return Path(shutil.copytree(shop, tmp_path / "shop"))


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Items with odd ids and names, joined with themselves."""
    folder = tmp_path_factory.mktemp("odd")
    vectors = np.random.default_rng(3).normal(size=(len(ODD_IDS), 4))
    names = [f"{name} [blue]named[/blue]" for name in ODD_IDS]
    at.write_rows(folder / "items.parquet", ODD_IDS, list(vectors), **{"name": names, "[cyan]": names})
    items = {"path": "items.parquet", "display": ["name"], "attributes": ["[cyan]"]}
    at.write_spec(folder, k=len(ODD_IDS), items=items, queries=None)
    succeed("run", "shop.toml", "--quiet", cwd=folder)
    return folder


def flat(text: str) -> str:
    """Text with its line breaks and runs of spaces made one space."""
    return " ".join(text.split())


# run


def test_run_shows_the_promise_the_measures_and_what_it_took(made: tuple[Path, Finished]) -> None:
    _, done = made
    said = flat(done.stdout)
    assert "shop snapshot 000001" in said
    assert "300 queries × 600 items, k = 10, cosine, engine dense, exact" in said
    assert "nearcast/shop/snapshots/000001" in said
    assert "recall target 1, met" in said
    assert "recall 100.00% of the exact neighbors, on 300 queries; 95% interval 100.00% to 100.00%" in said
    assert "fill_rate 100.00% slots that hold a candidate" in said
    assert re.search(r"\btime [\d.]+ s [\d.]+ MB of memory; estimated: [\d.]+ s, [\d.]+ MB\b", said)
    assert "a list: nearcast lookup shop q000" in said
    kept = r"on disk: 1 snapshot, [\d.]+ [kM]B with caches; the newest 10 and all that are served or pinned stay"
    assert re.search(kept, said)


def test_a_summary_names_the_snapshots_that_the_spec_keeps_now(own_shop: Path) -> None:
    with (own_shop / "shop.toml").open("a") as file:
        file.write("\n[publish]\nkeep_snapshots = 4\n")
    said = flat(succeed("run", "shop.toml", cwd=own_shop).stdout)
    assert "the newest 4 and all that are served or pinned stay" in said


def test_show_has_the_cost_of_each_stage_beside_the_estimates(made: tuple[Path, Finished]) -> None:
    said = flat(succeed("show", "shop", cwd=made[0]).stdout)
    assert "cost measured estimated" in said
    for word in ("read", "join", "table", "measure", "total", "memory", "disk"):
        assert re.search(rf"\b{word} +[\d.,]+ (s|B|kB|MB|GB)", said), word


def test_no_line_of_a_plain_summary_is_wider_than_a_page(made: tuple[Path, Finished]) -> None:
    assert max(len(line) for line in made[1].stdout.splitlines() if str(made[0]) not in line) <= 110


def test_without_a_terminal_progress_is_log_lines_on_standard_error(made: tuple[Path, Finished]) -> None:
    said = made[1].stderr
    assert "\x1b" not in said
    assert "\r" not in said
    for stage in ("check items: 600 of 600", "check queries: 300 of 300", "join: 300 of 300", "table: 300 of 300"):
        assert re.search(rf"^\d\d:\d\d:\d\d {stage}, \d+\.\d s$", said, re.MULTILINE), stage
    assert re.search(r"^estimated memory +\S+ MB of 2 GB budget$", said, re.MULTILINE)


def test_run_json_puts_the_manifest_on_standard_output_and_nothing_else_anywhere(shop: Path) -> None:
    done = succeed("run", "shop.toml", "--json", cwd=shop)
    said = json.loads(done.stdout)
    assert (shop / said.pop("snapshot")).samefile(at.snapshot(shop))
    assert said == at.manifest(shop)
    assert done.stderr == ""


def test_the_summary_of_a_run_has_four_measures_and_the_time_and_says_where_the_rest_is(
    made: tuple[Path, Finished],
) -> None:
    folder, done = made
    shown = [name for name in MEASURES if re.search(rf"^{name} ", done.stdout, re.MULTILINE)]
    assert shown == ["recall", "fill_rate", "query_coverage", "item_coverage"]  # overlap, once there is one before
    (left,) = re.findall(r"^(\d+) more measures: (nearcast show shop/1)$", done.stdout, re.MULTILINE)
    every = succeed(*left[1].split()[1:], cwd=folder).stdout.partition("\ncost ")[
        0
    ]  # below are stages, some of one name
    rows = [name for name in MEASURES if re.search(rf"^{name} ", every, re.MULTILINE)]
    assert len(rows) == len(shown) + int(left[0])


def test_show_has_every_measure_that_the_manifest_holds(made: tuple[Path, Finished]) -> None:
    folder = made[0]
    shown = succeed("show", "shop", cwd=folder).stdout
    measures = at.manifest(folder)["measures"]
    assert set(measures) <= set(MEASURES)
    within_others = {"recall_sample", "score_p01", "score_p99"}
    for name in {n for n in set(measures) - within_others if not n.endswith(("_low", "_high"))}:
        assert re.search(rf"^{name} ", shown, re.MULTILINE), name


def test_with_nothing_changed_run_gives_the_snapshot_there_is_and_again_makes_another(own_shop: Path) -> None:
    at.write_spec(own_shop, memory="900MB", threads=2)  # changes nothing of the answer
    same = succeed("run", "shop.toml", cwd=own_shop)
    assert "nothing has changed since snapshot 000001: it is the answer" in same.stderr
    assert "shop snapshot 000001" in same.stdout
    assert at.snapshots(own_shop) == ["000001"]
    again = succeed("run", "shop.toml", "--again", "--quiet", cwd=own_shop)
    assert again.stderr == ""
    assert at.snapshots(own_shop) == ["000001", "000002"]
    assert "overlap 100.00%" in flat(again.stdout)
    assert at.manifest(own_shop, 2)["measures"]["overlap"] == 1.0
    assert at.manifest(own_shop, 2)["fingerprint"] == at.manifest(own_shop, 1)["fingerprint"]


def test_a_run_after_the_items_have_changed_says_how_much_was_kept(own_shop: Path) -> None:
    vectors = at.clustered(at.N_ITEMS, seed=1)
    vectors[:100] = at.clustered(100, seed=7)
    at.write_items(own_shop, vectors)
    succeed("run", "shop.toml", "--quiet", cwd=own_shop)
    measures = at.manifest(own_shop, 2)["measures"]
    assert 0.5 < measures["overlap"] < 1
    assert measures["queries_kept"] == 1.0


# a broken promise


def test_a_broken_promise_exits_4_keeps_the_snapshot_and_says_by_how_much(own_shop: Path) -> None:
    at.write_spec(own_shop, "hasty.toml", name="hasty", engine="faiss-ivf", recall=0.99, engine_settings={"nprobe": 1})
    done = nearcast("run", "hasty.toml", cwd=own_shop)
    assert done.returncode == 4
    kept = at.manifest(own_shop, name="hasty")
    recall, low = kept["measures"]["recall"], kept["measures"]["recall_low"]
    reason = f"recall@10 is {recall:.4f} with a 95% interval from {low:.4f}, and 0.99 was promised"
    assert recall < 0.9
    assert kept["promise"] == {"recall": 0.99, "kept": False, "reason": reason}
    assert f"error: snapshot 000001 is below its recall target: {reason}; it is kept at" in done.stderr
    assert "Traceback" not in done.stderr
    assert "recall target 0.99, MISSED" in done.stdout
    once_more = nearcast("run", "hasty.toml", "--json", cwd=own_shop)  # nothing has changed, nor has the promise
    assert once_more.returncode == 4
    assert json.loads(once_more.stdout)["promise"]["kept"] is False
    assert reason in once_more.stderr
    assert at.snapshots(own_shop, "hasty") == ["000001"]


# check


def test_check_reports_both_sides_and_writes_nothing(tmp_path: Path) -> None:
    at.write_shop(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    done = succeed("check", "shop.toml", cwd=tmp_path)
    said = flat(done.stdout)
    assert "items 600 600 16 float32" in said
    assert "queries 300 300 16 float32" in said
    assert "the inputs pass the checks" in said
    assert "estimated time" in done.stderr
    told = succeed("check", "shop.toml", "--json", cwd=tmp_path)
    assert told.stderr == ""
    assert json.loads(told.stdout)["report"]["items"]["vectors"] == 600
    assert json.loads(told.stdout)["estimate"]["memory_bytes"] > 0
    assert sorted(tmp_path.rglob("*")) == before


def test_check_exits_3_and_shows_examples_of_what_is_wrong(tmp_path: Path) -> None:
    at.write_spec(tmp_path, k=1, queries=None)
    rows = [[1, 0], [np.nan, 1], [0, 0], None, [1, 1]]
    columns = {"name": ["w"] * 5, "category": ["c"] * 5}
    at.write_rows(tmp_path / "items.parquet", ["a", "b[red]", "c", "d", "a"], rows, **columns)
    message = fail("check", "shop.toml", code=3, cwd=tmp_path)
    assert "error: the inputs did not pass the checks." in message
    assert "1 row has a vector with NaN" in message
    assert "'b[red]' (items.parquet row 1) [not_finite]" in message
    assert "'c' (items.parquet row 2) [zero_vector]" in message
    assert "'d' (items.parquet row 3) [null_vector]" in message
    assert "'a' (items.parquet row 4) [duplicate_id]" in message
    assert "Mend the data, or see [checks] in the spec" in message


# show


@pytest.mark.parametrize("name", ["shop/1", "nearcast/shop/snapshots/000001", None])
def test_show_takes_a_generator_a_version_a_folder_or_nothing(made: tuple[Path, Finished], name: str | None) -> None:
    folder, done = made
    shown = succeed("show", *([name] if name else []), cwd=folder).stdout
    assert "shop snapshot 000001" in shown
    told = [line.rstrip() for line in done.stdout.splitlines() if line.split("  ")[0] in MEASURES]
    assert len(told) == 4
    assert set(told) <= {line.rstrip() for line in shown.splitlines()[4:]}  # all that the run has said, and more


def test_show_in_the_folder_of_a_snapshot_knows_its_name(shop: Path) -> None:
    assert "shop snapshot 000001" in succeed("show", ".", cwd=at.snapshot(shop)).stdout


def test_show_json_is_the_manifest_and_verify_reads_every_byte(shop: Path) -> None:
    told = json.loads(succeed("show", "--json", "--verify", cwd=shop).stdout)
    assert (shop / told.pop("snapshot")).samefile(at.snapshot(shop))
    assert told.pop("updates") == []
    assert told.pop("evaluation") is None
    assert told == at.manifest(shop)


def test_show_of_an_unknown_name_lists_what_there_is(own_shop: Path) -> None:
    home = own_shop / "nearcast"
    assert "no snapshot of 'shoop' in nearcast; generators there are shop" in fail(
        "show", "shoop", code=7, cwd=own_shop
    )
    assert "shop has no snapshot 9; it has 1, 000001 to 000001" in fail("show", "shop/9", code=7, cwd=own_shop)
    assert "write GENERATOR or GENERATOR/VERSION, for example shop/3" in fail("show", "shop/new", code=7, cwd=own_shop)
    shutil.copytree(home / "shop" / "snapshots", home / "other" / "snapshots")
    assert "name a generator: there are other, shop" in fail("show", code=7, cwd=own_shop)


def test_show_says_where_it_has_looked_when_there_is_nothing(tmp_path: Path) -> None:
    assert "nearcast has none; run one, or give --out" in fail("show", code=7, cwd=tmp_path)


# snapshots


def test_snapshots_lists_every_snapshot_for_people_and_programs(shop: Path) -> None:
    said = flat(succeed("snapshots", cwd=shop).stdout)
    assert "generator snapshot made (UTC) rows recall target fill overlap time engine" in said
    assert re.search(r"shop 000001 \d{4}-\d\d-\d\d \d\d:\d\d 300 100.00% 1, met 100.00% - \S+ s dense", said)
    (row,) = json.loads(succeed("snapshots", "shop", "--json", cwd=shop).stdout)
    assert (row["generator"], row["version"], row["rows"]) == ("shop", 1, 300)
    assert row["measures"] == at.manifest(shop)["measures"]
    assert "no snapshot of 'shoop'" in fail("snapshots", "shoop", code=7, cwd=shop)


def test_the_folder_of_snapshots_can_be_given_or_come_from_the_environment(shop: Path, tmp_path: Path) -> None:
    assert "000001" in succeed("snapshots", "--out", shop / "nearcast", cwd=tmp_path).stdout
    assert "000001" in nearcast("snapshots", cwd=tmp_path, NEARCAST_OUT=str(shop / "nearcast")).stdout


# lookup


def test_lookup_shows_names_beside_ids_and_scores(shop: Path) -> None:
    lines = succeed("lookup", "shop", "q007", cwd=shop).stdout.splitlines()
    assert lines[0] == "'q007': 10 candidates"
    assert lines[1].split() == ["rank", "id", "score", "name"]
    shown = [re.fullmatch(r" *(\d+) +(i\d{4}) +(\d\.\d{4}) +(\S.* no\. (\d+)) *", line) for line in lines[2:]]
    assert all(shown), lines
    assert [int(row[1]) for row in shown] == list(range(1, 11))
    assert all(int(row[2][1:]) == int(row[5]) for row in shown)  # the name is that of the id
    scores = [float(row[3]) for row in shown]
    assert scores == sorted(scores, reverse=True)


def test_lookup_in_json_with_other_columns_and_only_the_first(shop: Path) -> None:
    words = ("lookup", "shop", "q007", "--json", "--columns", "category, name", "-k", "3", "--snapshot", "1")
    told = json.loads(succeed(*words, cwd=shop).stdout)
    assert (told["query"], len(told["candidates"])) == ("q007", 3)
    assert list(told["candidates"][0]) == ["rank", "id", "score", "category", "name"]
    assert all(row["name"].split()[1] == row["category"] for row in told["candidates"])


def test_lookup_of_an_unknown_key_shows_what_keys_look_like(shop: Path) -> None:
    message = fail("lookup", "shop", "Q7", code=7, cwd=shop)
    assert "shop 000001 has no query 'Q7'; the nearest of its 300 keys are 'q007', 'q017', 'q027'" in message


def test_lookup_of_an_unknown_column_names_those_there_are(shop: Path) -> None:
    message = fail("lookup", "shop", "q007", "--columns", "price", code=7, cwd=shop)
    assert "holds no item column 'price'; it holds category, name" in message


def test_lookup_takes_a_column_twice_and_the_id_as_a_column(shop: Path) -> None:
    done = nearcast("lookup", "shop", "q007", "--columns", "id,name,name", "--json", cwd=shop)
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 7)


@pytest.mark.parametrize("key", LOOKED_UP)
def test_lookup_finds_ids_of_any_letters(odd: Path, key: str) -> None:
    told = json.loads(succeed("lookup", "shop", "--json", "--", key, cwd=odd).stdout)
    assert told["query"] == key
    assert told["candidates"][0]["id"] == key  # cosine with itself
    assert told["candidates"][0]["name"] == f"{key} [blue]named[/blue]"


def test_lookup_prints_ids_and_names_letter_for_letter(odd: Path) -> None:
    lines = succeed("lookup", "shop", "[red]", cwd=odd).stdout.splitlines()
    assert lines[0] == f"'[red]': {len(ODD_IDS)} candidates"
    for key in ODD_IDS:
        assert any(f" {key} " in line and f"{key} [blue]named[/blue]" in line for line in lines), key


def test_a_column_with_brackets_in_its_name_keeps_them(odd: Path) -> None:
    head = succeed("lookup", "shop", "[red]", "--columns", "[cyan]", cwd=odd).stdout.splitlines()[1]
    assert head.split() == ["rank", "id", "score", "[cyan]"]


def test_lookup_of_int64_ids_takes_numbers_also_negative_ones(tmp_path: Path) -> None:
    ids = np.array([-5, 7, 2**62], np.int64)
    columns = {"price": [float("nan"), 1.5, None]}
    at.write_rows(tmp_path / "items.parquet", ids, [[1, 0], [1, 0.1], [0, 1]], **columns)
    at.write_spec(tmp_path, k=3, items={"path": "items.parquet", "display": ["price"]}, queries=None)
    succeed("run", "shop.toml", "--quiet", cwd=tmp_path)

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    told = json.loads(succeed("lookup", "shop", "--json", "--", "-5", cwd=tmp_path).stdout, parse_constant=refuse)
    assert [row["id"] for row in told["candidates"]] == [-5, 7, 2**62]
    assert told["candidates"][0]["price"] is None
    message = fail("lookup", "shop", "seven", code=7, cwd=tmp_path)
    assert f"has no query 'seven'; its 3 keys are, for example, -5, 7, {2**62}" in message


# spec


def test_the_example_spec_runs_as_it_is_where_its_files_are(tmp_path: Path) -> None:
    text = succeed("spec", cwd=tmp_path).stdout
    (tmp_path / "generator.toml").write_text(text)
    at.write_rows(tmp_path / "items.parquet", [f"i{i}" for i in range(80)], list(at.clustered(80, seed=1)))
    at.write_rows(tmp_path / "queries" / "a.parquet", ["q1", "q2"], list(at.clustered(2, seed=2)))
    succeed("run", "generator.toml", cwd=tmp_path)
    assert at.manifest(tmp_path, name="similar-items")["rows"] == 2
    fill = {
        "memory": '"1GB"',
        "threads": "1",
        "ids": None,
        "table": None,
        "at": None,
        "sql": None,
        "embedding": '"v1"',
        "zero_vector": '"error"',
    }
    fill |= {
        "weight": None,
        "only": None,
        "min_score": "-1.0",
        "add": None,
        "multiply": None,
        "missing": None,
        "fill_at": "1",
        "min_recall_today": "0.8",
        "webhook": None,
        "owner": '"ads team"',
        "severity": '"critical"',
        "runbook": '"https://example.com/runbook"',
        "workers": "1",
        "shards": "1",
        "shard_bytes": None,
        "worker_memory": '"1GB"',
        "price_core_hour": "0.04",
        "price_gb_month": "0.02",
        "price_million_requests": "5.0",
        "max_bytes_per_second": '"50MB"',
        "min_recall": "0.9",
    }
    lines = []
    for line in text.splitlines():
        setting = re.match(r"# (\w+) = (.*?) *#", line)
        if setting is None:
            lines.append(line)
        elif setting[2] != "...":
            lines.append(f"{setting[1]} = {setting[2]}")
        elif fill[setting[1]] is not None:
            lines.append(f"{setting[1]} = {fill[setting[1]]}")
    (tmp_path / "full.toml").write_text("\n".join(lines))
    settings = tomllib.loads("\n".join(lines))
    assert len(settings["checks"]) == 10
    assert settings["items"]["embedding"] == "v1"
    assert "the inputs pass the checks" in succeed("check", "full.toml", cwd=tmp_path).stdout


def test_the_schema_is_json_schema_that_knows_every_setting(tmp_path: Path) -> None:
    schema = json.loads(succeed("spec", "--schema", cwd=tmp_path).stdout)
    assert schema["type"] == "object"
    assert set(schema["required"]) == {"name", "metric", "k", "items"}
    assert schema["additionalProperties"] is False
    assert {"SourceSpec", "ChecksSpec", "MeasureSpec"} <= set(schema["$defs"])
    assert set(schema["properties"]) >= {"name", "recall", "engine", "memory", "items", "queries", "checks"}
    for reference in re.findall(r'"\$ref": "#/\$defs/(\w+)"', json.dumps(schema)):
        assert reference in schema["$defs"]
    assert all("description" in field for field in schema["$defs"]["SourceSpec"]["properties"].values())


# errors and their exit codes


def test_a_spec_with_an_unknown_key_exits_2_with_a_suggestion(own_shop: Path) -> None:
    at.write_spec(own_shop, recal=0.9, k=0)
    message = fail("run", "shop.toml", code=2, cwd=own_shop)
    assert "unknown key 'recal'; did you mean 'recall'?" in message
    assert "k is 0" in message


def test_a_missing_spec_exits_2_and_says_where_to_start(tmp_path: Path) -> None:
    assert "`nearcast spec` prints an example" in fail("run", "none.toml", code=2, cwd=tmp_path)


def test_missing_data_exits_3_and_names_the_file(tmp_path: Path) -> None:
    at.write_spec(tmp_path)
    message = fail("run", "shop.toml", code=3, cwd=tmp_path)
    assert f"no Parquet file at {tmp_path / 'items.parquet'}" in message


def test_a_held_generator_exits_5_and_names_the_holder(own_shop: Path) -> None:
    with (own_shop / "nearcast" / "shop" / ".lock").open("w") as lock:
        lock.write("process 4711 since 2026-01-01T00:00:00Z")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        message = fail("run", "shop.toml", code=5, cwd=own_shop)
    assert "generator 'shop' is held by process 4711 since 2026-01-01T00:00:00Z; wait" in message


def test_a_budget_that_is_too_small_exits_6_before_any_work(tmp_path: Path) -> None:
    at.write_shop(tmp_path, memory="20MB")
    message = fail("run", "shop.toml", code=6, cwd=tmp_path)
    assert re.search(
        r"memory is 20 MB, and Python with its libraries takes \d+ MB of it; give at least \d+ MB", message
    )
    assert not (tmp_path / "nearcast").exists()
    given = int(re.search(r"give at least (\d+) MB", message)[1]) + 20
    at.write_spec(tmp_path, memory=f"{given}MB", engine="faiss-hnsw", recall=0.9)
    message = fail("run", "shop.toml", code=6, cwd=tmp_path)
    assert re.search(r"faiss-hnsw will need about \d+ MB of memory, and the budget is \d+ MB; raise `memory`", message)
    assert not list((tmp_path / "nearcast").rglob("*.npy"))
    assert at.snapshots(tmp_path) == []


def test_a_damaged_manifest_exits_8(own_shop: Path) -> None:
    path = at.snapshot(own_shop) / "manifest.json"
    path.write_text(path.read_text()[:-40])
    assert f"{path.relative_to(own_shop)} cannot be read" in fail("show", code=8, cwd=own_shop)


def test_an_absent_library_exits_9_and_names_the_extra(own_shop: Path, tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    absent.mkdir()
    (absent / "faiss.py").write_text("raise ImportError('none here')")
    at.write_spec(own_shop, engine="faiss-ivf", recall=0.9)
    message = fail("run", "shop.toml", code=9, cwd=own_shop, PYTHONPATH=str(absent))
    assert "pip install 'nearcast[faiss]'" in message


def test_an_output_folder_that_cannot_be_written_is_an_error_and_no_traceback(own_shop: Path) -> None:
    (own_shop / "taken").write_text("a file")
    at.write_spec(own_shop, out="taken")
    done = nearcast("run", "shop.toml", cwd=own_shop)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "taken" in done.stderr


# a terminal, and one that is left


def test_on_a_terminal_there_are_bars_with_an_eta_and_standard_output_stays_clean(tmp_path: Path) -> None:
    at.write_shop(tmp_path)
    code, out, drawn = on_a_terminal("run", "shop.toml", cwd=tmp_path)
    assert code == 0
    assert "\x1b" not in out
    assert out.startswith("shop snapshot 000001\n")
    assert "\x1b" in drawn
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn)
    for stage in ("check items", "read items", "join", "table", "ground truth"):
        assert re.search(rf"{stage} +━+ +\d+/\d+ \d:\d\d:\d\d eta (\d\d:\d\d|--:--)", text), stage
    assert re.search(r"join +━+ +300/300", text)
    assert "estimated memory" in text


def test_a_note_on_a_terminal_is_printed_letter_for_letter(own_shop: Path) -> None:
    shutil.move(own_shop / "items.parquet", own_shop / "items[red].parquet")
    items = {"path": "items[red].parquet", "display": ["name"]}
    at.write_spec(own_shop, items=items)
    leave_unfinished(own_shop)
    code, _, drawn = on_a_terminal("run", "shop.toml", cwd=own_shop)
    assert code == 0
    said = flat(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn))
    assert "earlier unfinished work is thrown away, since items changed: items[red].parquet" in said


INTERRUPTED = """
import signal
from pathlib import Path
from nearcast.cli import main
from tests.crash.worker import signal_when
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell start with it ignored
signal_when(Path("nearcast/shop"), "work/plan.json", signal.SIGINT)
main()
"""


def test_a_run_that_is_interrupted_exits_130_and_says_that_it_can_be_continued(tmp_path: Path) -> None:
    at.write_shop(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, "run", "shop.toml"],
        cwd=tmp_path, env=at.environment(PYTHONPATH=str(ROOT)), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 130, done.stderr
    assert done.stderr.endswith("stopped: finished work is kept, and the same command continues it\n")
    assert "Traceback" not in done.stderr


def test_the_rest_of_a_work_folder_whose_removal_was_killed_is_removed_by_the_next_run(own_shop: Path) -> None:
    rest = own_shop / "nearcast" / "shop" / "work" / "join" / "000007"
    rest.mkdir(parents=True)  # the plan was removed first, and this was to follow
    (rest / "scores.npy").write_bytes(b"half")
    succeed("run", "shop.toml", cwd=own_shop)
    assert not (own_shop / "nearcast" / "shop" / "work").exists()


def test_output_that_nobody_reads_to_its_end_is_no_error(shop: Path) -> None:
    done = subprocess.run(
        f"set -o pipefail; {at.NEARCAST} show --json | head -c 1",
        shell=True, executable="/bin/bash", cwd=shop, env=at.environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "{"
    assert done.stderr == ""


def leave_unfinished(folder: Path) -> None:
    """A work folder as a run over other items leaves it when it is killed."""
    facts = at.manifest(folder)
    queries = [{"name": part["name"], "hash": part["blake2b"]} for part in facts["inputs"]["queries"]["files"]]
    plan = {
        "settings": load_spec(folder / "shop.toml").answer_settings(),
        "engine": {key: facts["engine"][key] for key in ("name", "settings")},
        "items": [{"name": "items[red].parquet", "hash": "0"}],
        "queries": queries,
        "nearcast": facts["nearcast"],
    }
    work = folder / "nearcast" / "shop" / "work"
    work.mkdir()
    (work / "plan.json").write_text(json.dumps(plan))


def on_a_terminal(*words: str, cwd: Path) -> tuple[int, str, str]:
    """Run with standard error on a terminal of 100 columns: exit code, standard output, what was drawn."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    with (cwd / "standard-output").open("w+") as out:
        process = subprocess.Popen(
            [at.NEARCAST, *words], cwd=cwd, env=at.environment(), stdin=theirs, stdout=out, stderr=theirs
        )
        os.close(theirs)
        drawn = []
        while True:
            try:
                piece = os.read(ours, 65_536)
            except OSError:  # the last writer has closed it
                break
            if not piece:
                break
            drawn.append(piece)
        os.close(ours)
        code = process.wait(timeout=120)
        out.seek(0)
        return code, out.read(), b"".join(drawn).decode()


# what the installation can do


def test_info_tells_the_instruction_set_and_why(tmp_path: Path) -> None:
    done = nearcast("info", cwd=tmp_path, NEARCAST_ISA="portable")
    assert done.returncode == 0
    assert "portable: NEARCAST_ISA asks for it" in flat(done.stdout)
    told = json.loads(nearcast("info", "--json", cwd=tmp_path).stdout)
    assert told["kernels"]["taken"] in told["kernels"]["available"]
    assert told["engines"]["auto"] == "dense"


def test_an_instruction_set_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    done = nearcast("info", cwd=tmp_path, NEARCAST_ISA="mmx")
    assert done.returncode == 2
    assert "NEARCAST_ISA is 'mmx'" in done.stderr
    assert "portable" in done.stderr


# a look-up on a terminal


def look_up_on_a_terminal(folder: Path, *words: str, lines: int, columns: int) -> list[str]:
    """What a terminal of this size shows of a look-up."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    command = [at.NEARCAST, "lookup", *words]
    with subprocess.Popen(
        command, cwd=folder, env=at.environment(), stdout=child, stderr=child, stdin=child
    ) as process:
        os.close(child)
        shown = b""
        with contextlib.suppress(OSError):  # the other end is closed
            while piece := os.read(parent, 4096):
                shown += piece
        assert process.wait(60) == 0
    os.close(parent)
    return re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).splitlines()


def test_a_look_up_fits_the_screen_and_says_how_to_see_the_rest(own_shop: Path) -> None:
    long_names = [f"A very long name of item {i}, which nobody would read to its end on any screen" for i in range(600)]
    at.write_rows(
        own_shop / "items.parquet",
        [f"i{i:04d}" for i in range(600)],
        list(at.clustered(600, seed=1)),
        name=long_names,
        category=["c"] * 600,
    )
    at.write_spec(own_shop, "wide.toml", name="wide", k=40)
    succeed("run", "wide.toml", cwd=own_shop)
    shown = look_up_on_a_terminal(own_shop, "wide", "q007", lines=24, columns=60)
    assert len(shown) <= 22
    assert max(map(len, shown)) <= 60
    assert shown[0] == "'q007': 40 candidates"
    assert re.fullmatch(r" +1 +i\d{4} +[\d.]+ +A very long name.*…", shown[2].rstrip())
    n_shown = sum(bool(re.match(r" +\d+ +i\d{4}", line)) for line in shown)
    assert shown[-1].rstrip() == f"{40 - n_shown} more with --first 40 or --full"
    every = look_up_on_a_terminal(own_shop, "wide", "q007", "--first", "40", lines=24, columns=60)
    assert sum(bool(re.match(r" +\d+ +i\d{4}", line)) for line in every) == 40
    assert len(json.loads(succeed("lookup", "wide", "q007", "--json", cwd=own_shop).stdout)["candidates"]) == 40
    plain = succeed("lookup", "wide", "q007", cwd=own_shop).stdout
    assert len(re.findall(r"i\d{4}", plain)) == 40
    assert "more with" not in plain


def test_the_garbage_collector_pauses_only_while_a_command_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    enabled: list[bool] = []
    monkeypatch.setattr(gc, "freeze", lambda: None)  # the objects of this process are not those of a command

    def fail_to_import(_name: str) -> None:
        enabled.append(gc.isenabled())
        raise ImportError

    monkeypatch.setattr(cli, "import_module", fail_to_import)
    cli._import_command(["--help"])
    with pytest.raises(ImportError):
        cli._import_command(["run", "shop.toml"])
    assert enabled == [False]
    assert gc.isenabled()
