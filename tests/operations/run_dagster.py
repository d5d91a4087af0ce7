"""Run by Dagster's own Python: materialize the asset, and run its check, with commands that exit with given codes."""

import importlib.util
import json
import sys
from pathlib import Path

import dagster as dg

folder, source = Path(sys.argv[1]), sys.argv[2]
spec = importlib.util.spec_from_file_location("nearcast_assets", source)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)


def make_command(code: int) -> str:
    """Write a command that prints a result and exits with the code."""
    fake = folder / f"exits_with_{code}"
    fake.write_text(f'#!/bin/sh\necho "{{\\"version\\": 7}}"\necho why >&2\nexit {code}\n')
    fake.chmod(0o755)
    return str(fake)


def call_asset(code: int) -> dict:
    """Call the asset's function alone, without the waits of its retries."""
    module.NEARCAST = make_command(code)
    try:
        result = module.shop_candidates(dg.build_asset_context())
    except dg.Failure as error:
        return {"failure": error.description, "again": error.allow_retries}
    return {"metadata": {name: getattr(value, "value", value) for name, value in result.metadata.items()}}


outcomes = {code: call_asset(code) for code in json.loads(sys.argv[3])}
module.NEARCAST = make_command(0)
done = dg.materialize([module.shop_candidates, module.served_candidates_are_right])
checks = [check.passed for check in done.get_asset_check_evaluations()]
schedules = [schedule.name for schedule in module.definitions.schedules]
print(json.dumps({"outcomes": outcomes, "success": done.success, "checks": checks, "schedules": schedules}))
