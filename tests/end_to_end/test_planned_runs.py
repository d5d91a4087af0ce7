"""Runs that several processes share: plan, work, watch and gather, through the real command line."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from tests.end_to_end import shop as at
from tests.end_to_end.shop import environment, fail, nearcast, succeed

from nearcast.errors import NearcastError
from nearcast.storage.local_storage import LocalStorage
from s3_server import BUCKET, s3_running, s3_server, s3_url

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
N_ITEMS = 700
N_QUERIES = 1_025
TWO_TASKS = {"k": 680, "measure": {"sample": 50, "calibration": 50}}  # a task then has 1,024 queries

__all__ = ["s3_server", "s3_url"]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Inputs and the spec of a generator whose join has one task."""
    folder = tmp_path / "shop"
    folder.mkdir()
    at.write_items(folder, at.clustered(N_ITEMS, seed=1))
    queries = [f"q{i:04d}" for i in range(N_QUERIES)]
    at.write_rows(folder / "queries.parquet", queries, list(at.clustered(N_QUERIES, seed=2)))
    at.write_spec(folder)
    return folder


@pytest.fixture
def shop_of_two_tasks(shop: Path) -> Path:
    """The same with a join of two tasks, whose lists are long."""
    at.write_spec(shop, **TWO_TASKS)
    return shop


def hashes(snapshot: Path) -> dict[str, str]:
    """The hash of every file of a snapshot but its manifest, which has times."""
    files = sorted(p for p in snapshot.rglob("*") if p.is_file() and p.name != "manifest.json")
    assert files
    return {str(p.relative_to(snapshot)): hashlib.blake2b(p.read_bytes()).hexdigest() for p in files}


def run_alone(folder: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Files and measures of the same generator, run by `nearcast run` in a copy of the folder."""
    copy = folder.with_name("alone")
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("nearcast", "run", "cache*"))
    succeed("run", "shop.toml", "--quiet", cwd=copy)
    return hashes(at.snapshot(copy)), at.manifest(copy)["measures"]


def start(*words: object, cwd: Path, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(at.NEARCAST), *map(str, words)],
        cwd=cwd,
        env=environment(**env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def watched(location: object, cwd: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(succeed("watch", location, "--json", cwd=cwd).stdout)
    return found


def commands_of_the_page() -> list[str]:
    """The commands of the walk-through, in order."""
    section = PAGE.split("## Plan, work, gather")[1].split("\n## ")[0]
    return [block.strip() for block in re.findall(r"```sh\n(.*?)```", section, flags=re.DOTALL)]


def test_the_walk_through_of_the_page_makes_the_snapshot_that_a_run_makes(
    shop_of_two_tasks: Path, s3_url: str, tmp_path: Path
) -> None:
    """Two workers at once, each with a cache of its own and nothing in common but a bucket."""
    shop = shop_of_two_tasks
    commands = [c.replace("s3://shop-vectors/runs/tonight", s3_url) for c in commands_of_the_page()]
    plan, *work, gather = (shlex.split(command) for command in commands)
    assert [words[1] for words in (plan, *work, gather)] == ["plan", "work", "work", "gather"]
    text = succeed(*plan[1:], cwd=shop).stdout
    assert "core-hours" in text
    assert s3_url in text
    children = [
        start(*words[1:], "--json", cwd=tmp_path, NEARCAST_CACHE=str(tmp_path / f"cache{number}"))
        for number, words in enumerate(work)
    ]
    outputs = [child.communicate(timeout=300) for child in children]
    assert [child.returncode for child in children] == [0, 0], outputs
    done = [{stage["stage"]: stage for stage in json.loads(out)["stages"]} for out, _ in outputs]
    for stage, facts in done[0].items():
        assert facts["done_here"] + done[1][stage]["done_here"] == facts["tasks"], "each task is done once"
    assert done[0]["join"]["tasks"] == 2
    found = nearcast(*gather[1:], "--json", cwd=tmp_path, NEARCAST_CACHE=str(tmp_path / "cache2"))
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["snapshot"] == str(at.snapshot(shop))
    files, measures = run_alone(shop)
    assert hashes(at.snapshot(shop)) == files
    assert at.manifest(shop)["measures"] == measures


def test_a_run_without_a_bucket_is_shared_in_a_folder(shop: Path) -> None:
    succeed("plan", "shop.toml", "--work", "run", cwd=shop)
    assert watched("run", shop)["done"] is False
    succeed("work", "run", "--quiet", cwd=shop)
    assert watched("run", shop)["done"] is True
    succeed("gather", "run", "--quiet", cwd=shop)
    assert "q0003" in succeed("explain", "shop", "q0003", "i0007", cwd=shop).stdout
    assert hashes(at.snapshot(shop)) == run_alone(shop)[0]


def test_the_scheduler_s_variables_give_the_share_of_a_worker(shop_of_two_tasks: Path) -> None:
    shop = shop_of_two_tasks
    succeed("plan", "shop.toml", "--work", "run", cwd=shop)
    stages = [stage["stage"] for stage in watched("run", shop)["stages"]]
    for stage in stages[: stages.index("join")]:
        succeed("work", "run", "--stage", stage, "--quiet", cwd=shop)
    shares = [
        {"JOB_COMPLETION_INDEX": "0", "NEARCAST_WORKERS": "3"},
        {"AWS_BATCH_JOB_ARRAY_INDEX": "1", "AWS_BATCH_JOB_ARRAY_SIZE": "3"},
        {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "1"},
    ]
    for number, (variables, tasks) in enumerate(zip(shares, (1, 1, 0), strict=True)):
        done = nearcast("work", "run", "--stage", "join", "--json", cwd=shop, **variables)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert (found["index"], found["workers"], found["stages"][0]["done_here"]) == (number, 3, tasks)
    assert {stage["stage"]: stage["done"] for stage in watched("run", shop)["stages"]}["join"] == 2


def test_a_stage_whose_earlier_stages_are_not_done_is_exit_code_15(shop: Path) -> None:
    succeed("plan", "shop.toml", "--work", "run", cwd=shop)
    text = fail("work", "run", "--stage", "join", "--quiet", code=15, cwd=shop)
    assert re.search(r"1 tasks of stage \w+ are not done, and stage join needs them", text)
    assert "did you mean 'join'?" in fail("work", "run", "--stage", "joins", "--quiet", code=2, cwd=shop)


def test_a_file_where_a_folder_must_be_is_exit_code_2(shop: Path) -> None:
    (shop / "file").write_text("")
    for below in ("file", "file/below"):
        text = fail("plan", "shop.toml", "--work", below, code=2, cwd=shop)
        assert f"the location of the plan is {shop / below}, and nothing can be written to {shop / 'file'}" in text
        at.write_spec(shop, "other.toml", out=below)
        assert f"out is {shop / below}, and nothing" in fail("plan", "other.toml", "--work", "run", code=2, cwd=shop)
    assert not (shop / "run").exists()


def test_a_worker_that_is_killed_is_replaced_by_another(shop_of_two_tasks: Path) -> None:
    shop = shop_of_two_tasks
    succeed("plan", "shop.toml", "--work", "run", cwd=shop)
    victim = start("work", "run", "--quiet", cwd=shop)
    deadline = time.monotonic() + 120
    while not list(LocalStorage(shop / "run").list_objects("claims")):
        assert victim.poll() is None, victim.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(victim.pid, signal.SIGKILL)
    victim.communicate(timeout=120)
    succeed("work", "run", "--takeover", 1, "--quiet", cwd=shop)
    succeed("gather", "run", "--quiet", cwd=shop)
    assert "q0003" in succeed("explain", "shop", "q0003", "i0007", cwd=shop).stdout
    assert hashes(at.snapshot(shop)) == run_alone(shop)[0]


@pytest.mark.slow
def test_a_storage_server_that_is_restarted_in_the_middle_changes_nothing(
    shop_of_two_tasks: Path, tmp_path: Path
) -> None:
    """Twice, while two workers with caches of their own are at work; what the server has answered is kept."""
    shop = shop_of_two_tasks
    (tmp_path / "server").mkdir()
    with s3_running(tmp_path / "server") as server:
        url, variables = f"s3://{BUCKET}/run", server.environment
        planned = nearcast("plan", "shop.toml", "--work", url, cwd=shop, **variables)
        assert planned.returncode == 0, planned.stderr

        def start_worker(number: int) -> subprocess.Popen[str]:
            cache = str(tmp_path / f"cache{number}")
            words = ("work", url, "--index", number, "--of", 2, "--quiet")
            return start(*words, cwd=tmp_path, NEARCAST_CACHE=cache, **variables)

        workers = [start_worker(number) for number in range(2)]
        for begun in ("run/claims/", "run/results/prepare/done.json"):
            deadline = time.monotonic() + 300
            while not any(name.startswith(begun) for name in server.list_names()):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            server.restart(keep=True, pause=1.0)
        for number, worker in enumerate(workers):
            _, err = worker.communicate(timeout=500)
            if worker.returncode == 14:  # it has lost its patience, and says so: it is started again
                assert "start again" in err or "try again" in err or "cannot be reached" in err
                _, err = start_worker(number).communicate(timeout=500)
            else:
                assert worker.returncode == 0, err
        gathered = nearcast("gather", url, "--quiet", cwd=shop, **variables)
        assert gathered.returncode == 0, gathered.stderr
    assert hashes(at.snapshot(shop)) == run_alone(shop)[0]


def test_work_on_a_finished_run_does_nothing_and_gathering_it_again_returns_its_snapshot(shop: Path) -> None:
    succeed("plan", "shop.toml", "--work", "run", cwd=shop)
    first = json.loads(succeed("gather", "run", "--json", cwd=shop).stdout)  # does all tasks itself
    assert "the run is finished" in succeed("work", "run", "--quiet", cwd=shop).stdout
    assert json.loads(succeed("gather", "run", "--json", cwd=shop).stdout)["snapshot"] == first["snapshot"]
    assert watched("run", shop)["snapshot"] == first["snapshot"]
    assert "the run is finished" in succeed("watch", "run", cwd=shop).stdout
    assert at.snapshots(shop) == ["000001"]
    shutil.rmtree(shop / "nearcast")
    succeed("plan", "shop.toml", "--work", "run", cwd=shop)  # the snapshot is gone: planned again
    assert watched("run", shop)["done"] is False


def test_bad_input_is_exit_code_3_of_every_worker_and_is_shown_by_watch(shop: Path) -> None:
    at.write_rows(
        shop / "items.parquet", ["a", "b"], [[float("nan")] * 16, [1.0] * 16], category=["x", "y"], name=["x", "y"]
    )
    at.write_spec(shop, k=1, queries=None)
    succeed("plan", "shop.toml", "--work", "run", cwd=shop)
    for _ in range(2):
        assert "not_finite" in fail("work", "run", "--quiet", code=3, cwd=shop)
    assert "not_finite" in fail("watch", "run", "--once", code=3, cwd=shop)
    shown = nearcast("watch", "run", "--json", cwd=shop)
    assert shown.returncode == 3
    assert json.loads(shown.stdout)["failure"]["error"]["exit_code"] == 3


def test_unfinished_work_is_cleaned_by_the_command(shop: Path) -> None:
    succeed("plan", "shop.toml", "--work", "run", cwd=shop)
    assert json.loads(succeed("clean", "--work", "run", "--wait", 0, "--json", cwd=shop).stdout)["removed"] == [
        str(shop / "run")
    ]
    assert "there is no unfinished work" in succeed("clean", "shop", cwd=shop).stdout
    assert "name a generator, or give --work" in fail("clean", code=2, cwd=shop)
    fail("work", "run", code=7, cwd=shop)


def test_inputs_that_change_after_the_plan_are_exit_code_3(shop: Path) -> None:
    succeed("plan", "shop.toml", "--work", "run", cwd=shop)
    at.write_items(shop, at.clustered(N_ITEMS - 1, seed=1))
    text = fail("work", "run", "--quiet", code=3, cwd=shop)
    assert "differ from those that the run was planned for (items changed: items.parquet); plan again" in text


def test_another_plan_at_the_same_location_is_refused_and_an_equal_one_is_kept(shop: Path) -> None:
    succeed("plan", "shop.toml", "--work", "run", cwd=shop)
    assert "an equal plan" in succeed("plan", "shop.toml", "--work", "run", cwd=shop).stderr
    at.write_spec(shop, k=9)
    assert "holds the plan of another run" in fail("plan", "shop.toml", "--work", "run", code=2, cwd=shop)


def test_a_location_without_a_plan_is_exit_code_7(shop: Path) -> None:
    for command in ("work", "gather", "watch"):
        assert "nearcast plan" in fail(command, "nowhere", code=7, cwd=shop)


def test_a_location_that_no_storage_has_is_exit_code_2_and_no_folder_is_made(shop: Path) -> None:
    before = sorted(shop.iterdir())
    for location, says in (("hdfs://cluster/run", "hdfs:// is not supported"), ("~/run", "~ is not expanded")):
        for words in (["plan", "shop.toml", f"--work={location}"], ["work", location], ["gather", location]):
            assert says in fail(*words, code=2, cwd=shop)
        assert says in fail("watch", location, "--once", code=2, cwd=shop)
    assert sorted(shop.iterdir()) == before


def test_a_worker_with_other_kernels_is_exit_code_15_and_may_watch(shop: Path) -> None:
    at.write_spec(shop, recall=0.9, **TWO_TASKS)
    succeed("plan", "shop.toml", "--work", "run", cwd=shop)
    assert "kernels" in fail("work", "run", "--quiet", code=15, cwd=shop, NEARCAST_ISA="numpy")
    done = nearcast("watch", "run", "--once", cwd=shop, NEARCAST_ISA="numpy")
    assert done.returncode == 0, done.stderr


def test_a_recall_below_the_target_is_exit_code_4_of_gather(shop: Path) -> None:
    pytest.importorskip("faiss")
    forced = {"engine": "faiss-ivf", "engine_settings": {"nlist": 30, "nprobe": 1}, "recall": 0.999}
    at.write_spec(shop, **({"k": 50} | forced))
    succeed("plan", "shop.toml", "--work", "run", cwd=shop)
    succeed("work", "run", "--quiet", cwd=shop)
    assert "below its recall target" in fail("gather", "run", "--quiet", code=4, cwd=shop)
    assert at.snapshots(shop) == ["000001"]


def test_a_storage_that_does_not_answer_is_exit_code_14(shop: Path) -> None:
    unreachable = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ALLOW_HTTP": "true", "AWS_ACCESS_KEY_ID": "x"}
    variables = unreachable | {
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_REGION": "us-east-1",
        "NEARCAST_STORAGE_PATIENCE": "2",
    }
    fail("work", "s3://bucket/run", "--quiet", code=14, cwd=shop, **variables)


def test_the_progress_of_a_run_is_a_line_per_stage_as_it_changes(shop_of_two_tasks: Path) -> None:
    shop = shop_of_two_tasks
    succeed("plan", "shop.toml", "--work", "run", cwd=shop)
    watcher = start("watch", "run", "--every", 0.2, cwd=shop)
    assert watcher.stdout is not None
    begun = watcher.stdout.readline()  # it has looked before the work begins
    succeed("work", "run", "--quiet", cwd=shop)
    rest, err = watcher.communicate(timeout=120)
    out = begun + rest
    assert watcher.returncode == 0, err
    assert re.search(r"^\w+ +0 of 1 tasks", out, flags=re.MULTILINE)
    assert re.search(r"^join +2 of 2 tasks", out, flags=re.MULTILINE)
    assert out.endswith("all stages are done; `nearcast gather` makes the snapshot\n")


def test_options_of_a_run_replace_those_of_the_spec(shop: Path) -> None:
    succeed("run", "shop.toml", "--runner", "processes", "--workers", 2, "--quiet", cwd=shop)
    assert hashes(at.snapshot(shop)) == run_alone(shop)[0]
    assert "runner is 'dask'" in fail("run", "shop.toml", "--runner", "dask", code=2, cwd=shop)


def test_a_plan_of_a_spec_has_its_costs(shop: Path) -> None:
    at.write_spec(shop, run={"price_core_hour": 0.04, "workers": 3}, **TWO_TASKS)
    text = succeed("plan", "shop.toml", cwd=shop).stdout
    assert "700 of 16 dimensions in 1 shard" in text
    assert "3 workers" in text
    found = json.loads(succeed("plan", "shop.toml", "--shards", 2, "--price", "core-hour=1", "--json", cwd=shop).stdout)
    assert {s["stage"]: s["tasks"] for s in found["stages"]}["join"] == 2 * 2
    assert found["money"]["total"] >= 0
    assert not (shop / "nearcast").exists()
    assert "--k is for a plan without a SPEC" in fail("plan", "shop.toml", "--k", 3, code=2, cwd=shop)
    assert "give SPEC" in fail("plan", "--work", "run", "--items", 3, code=2, cwd=shop)


def test_every_exit_code_that_a_worker_may_have_is_in_the_table_of_the_page() -> None:
    table = {int(code) for code in re.findall(r"^\| (\d+)", PAGE, flags=re.MULTILINE)}
    codes = {kind.__name__: kind.exit_code for kind in NearcastError.__subclasses__()}
    serving = ("AuditError", "StoreError", "GoneError", "AlertError", "WithdrawnError", "UndecidedError")
    of_serving = {codes[name] for name in serving}
    assert {0, 1, *codes.values()} - of_serving <= table
