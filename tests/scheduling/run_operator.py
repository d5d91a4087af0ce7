"""Run by Airflow's own Python: execute the operators of deploy/airflow with commands that exit with given codes."""

import importlib.util
import json
import sys
from pathlib import Path

folder, source = Path(sys.argv[1]), sys.argv[2]
spec = importlib.util.spec_from_file_location("nearcast_operator", source)
module = importlib.util.module_from_spec(spec)
sys.modules["nearcast_operator"] = module
spec.loader.exec_module(module)

outcomes, commands = {}, {}
for code in json.loads(sys.argv[3]):
    fake = folder / f"exits_with_{code}"
    fake.write_text(f'#!/bin/sh\necho "$@" > {folder}/words\necho "{{\\"version\\": 7}}"\necho why >&2\nexit {code}\n')
    fake.chmod(0o755)
    operator = module.NearcastRefreshOperator(task_id=f"refresh{code}", spec="shop.toml", executable=str(fake))
    try:
        outcomes[code] = operator.execute({})
    except Exception as error:
        outcomes[code] = f"{type(error).__name__}: {error}"
    commands["refresh"] = (folder / "words").read_text().split()
monitor = module.NearcastMonitorOperator(task_id="monitor", spec="shop.toml", executable=str(folder / "exits_with_0"))
monitor.execute({})
commands["monitor"] = (folder / "words").read_text().split()
fields = {name: list(getattr(module, name).template_fields) for name in ("NearcastRefreshOperator", "NearcastOperator")}
print(json.dumps({"outcomes": outcomes, "commands": commands, "fields": fields}))
