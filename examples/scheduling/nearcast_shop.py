"""An Airflow 3 DAG that refreshes a generator every night: run, audit, publish, then monitor.

Copy it into the DAGs folder. Airflow starts the command and reads its exit code, so nearcast can have a
separate environment, and a large join does not run inside Airflow's worker. docs/scheduling.md lists the codes.
"""

from __future__ import annotations

import datetime
import os
import subprocess

from airflow.sdk import dag, task
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

SPEC = os.environ.get("SHOP_SPEC", "/srv/shop/shop.toml")
NEARCAST = os.environ.get("NEARCAST", "/opt/nearcast/bin/nearcast")

BUSY = 5  # another refresh is in progress and does the work
FOR_A_PERSON = {
    2: "spec",
    3: "inputs",
    4: "recall target",
    9: "installation",
    10: "audit",
    13: "monitor",
}  # no retry helps


def nearcast(*words: str) -> None:
    """Run a command of nearcast. Its exit code decides whether Airflow tries again."""
    code = subprocess.run([NEARCAST, *words, "--quiet"], check=False).returncode  # its output goes to the task's log
    if code == BUSY:
        raise AirflowSkipException("another refresh is in progress")
    if code in FOR_A_PERSON:
        raise AirflowFailException(f"exit code {code}, {FOR_A_PERSON[code]}: the log says what to do")
    if code != 0:
        raise AirflowException(f"exit code {code}: trying again continues the work")


@dag(
    schedule="17 2 * * *",
    start_date=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    catchup=False,  # a refresh reads today's files, so missed days need no run
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": datetime.timedelta(minutes=10)},
    tags=["nearcast"],
)
def nearcast_shop() -> None:
    """Refresh, then monitor; the monitor also after a failed refresh, since the current version is then stale."""

    @task
    def refresh() -> None:
        nearcast("refresh", SPEC)

    @task(trigger_rule="none_skipped")
    def monitor() -> None:
        nearcast("monitor", SPEC, "--fail-on", "any")

    refresh() >> monitor()


nearcast_shop()
