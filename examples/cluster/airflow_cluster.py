"""An Airflow 3 DAG that runs a generator on several workers every night: plan, mapped tasks, gather, publish.

Copy it into the DAGs folder. Airflow starts the commands and reads their exit codes, so nearcast can have a separate
environment. The workers meet in the bucket alone: any worker of Airflow may run any task. docs/cluster.md lists the
codes.
"""

from __future__ import annotations

import datetime
import os
import subprocess

from airflow.sdk import dag, get_current_context, task
from airflow.sdk.exceptions import AirflowException, AirflowFailException

SPEC = os.environ.get("SHOP_SPEC", "/srv/shop/shop.toml")
RUNS = os.environ.get("SHOP_RUNS", "s3://shop-vectors/runs")
NEARCAST = os.environ.get("NEARCAST", "/opt/nearcast/bin/nearcast")
WORKERS = 8

MAY_PASS = {1, 5, 6, 8, 11, 12, 14, 15}  # another attempt may succeed; the others need a person


def nearcast(*words: str) -> None:
    """Run a command of nearcast. Its exit code decides whether Airflow tries again."""
    code = subprocess.run([NEARCAST, *words], check=False).returncode  # its output goes to the task's log
    if code < 0 or code in MAY_PASS:
        raise AirflowException(f"exit code {code}: trying again continues the work")
    if code != 0:
        raise AirflowFailException(f"exit code {code}: the log says what to do")


def find_location() -> str:
    """Return the location of this night's run: a folder of its own, so that a retry finds its work again."""
    return f"{RUNS}/{get_current_context()['run_id']}".replace(":", "-").replace("+", "-")


@dag(
    schedule="17 2 * * *",
    start_date=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": datetime.timedelta(minutes=5)},
    tags=["nearcast"],
)
def nearcast_cluster() -> None:
    """Plan, work on mapped tasks, gather, publish."""

    @task
    def plan() -> None:
        nearcast("plan", SPEC, "--work", find_location(), "--workers", str(WORKERS))

    @task
    def work(index: int) -> None:
        nearcast("work", find_location(), "--index", str(index), "--of", str(WORKERS), "--quiet")

    @task
    def gather() -> None:
        nearcast("gather", find_location(), "--quiet")

    @task
    def publish() -> None:
        nearcast("publish", SPEC)

    plan() >> work.expand(index=list(range(WORKERS))) >> gather() >> publish()


nearcast_cluster()
