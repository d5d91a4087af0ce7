"""A generator as a Dagster asset: materializing it runs, audits and publishes; a check monitors what is served.

    dagster dev -f nearcast_assets.py

Set SHOP_SPEC to the spec, and NEARCAST to the command if nearcast has its own environment.
"""

import json
import os
import subprocess
from typing import Any

import dagster as dg

SPEC = os.environ.get("SHOP_SPEC", "/srv/shop/shop.toml")
NEARCAST = os.environ.get("NEARCAST", "nearcast")
BUSY = 5
FOR_A_PERSON = frozenset({2, 3, 4, 7, 8, 9, 10, 13, 16})  # docs/scheduling.md


def run_nearcast(*words: str) -> tuple[int, Any, str]:
    """Run a command with --json; return its exit code, its result and its last message."""
    done = subprocess.run([NEARCAST, *words, "--quiet", "--json"], capture_output=True, text=True, check=False)
    message = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no message"
    return done.returncode, json.loads(done.stdout) if done.stdout.strip() else None, message


@dg.asset(
    group_name="candidates",
    retry_policy=dg.RetryPolicy(max_retries=3, delay=600),
    op_tags={"dagster/concurrency_key": "nearcast"},  # a join uses all cores of its machine
)
def shop_candidates(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
    """The candidates of every query of the shop, published to its store."""
    code, result, message = run_nearcast("refresh", SPEC)
    if code == BUSY:
        context.log.info("another refresh is in progress and does the work")
        return dg.MaterializeResult(metadata={"outcome": "busy"})
    if code != 0:
        raise dg.Failure(f"exit code {code}: {message}", allow_retries=code not in FOR_A_PERSON)
    return dg.MaterializeResult(metadata={"nearcast": dg.MetadataValue.json(result)})


@dg.asset_check(asset=shop_candidates)
def served_candidates_are_right() -> dg.AssetCheckResult:
    """Compare the served lists with today's exact neighbors, and the newest run with earlier ones."""
    code, result, message = run_nearcast("monitor", SPEC, "--fail-on", "any")
    return dg.AssetCheckResult(
        passed=code == 0,
        description="nothing is wrong" if code == 0 else message,
        metadata={"nearcast": dg.MetadataValue.json(result)} if result is not None else {},
    )


definitions = dg.Definitions(
    assets=[shop_candidates],
    asset_checks=[served_candidates_are_right],
    schedules=[
        dg.ScheduleDefinition(
            name="every_night", target=dg.AssetSelection.assets(shop_candidates), cron_schedule="17 2 * * *"
        )
    ],
)
