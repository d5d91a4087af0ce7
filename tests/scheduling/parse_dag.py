"""Run by Airflow's own Python: parse a folder of DAGs as Airflow does, and print what it has found as JSON."""

import importlib.util
import json
import sys
from pathlib import Path

from airflow.dag_processing.dagbag import DagBag

folder = Path(sys.argv[1])
bag = DagBag(dag_folder=str(folder))
found = {
    name: {
        "tasks": {t.task_id: sorted(t.downstream_task_ids) for t in dag.tasks},
        "retries": {t.task_id: t.retries for t in dag.tasks},
        "catchup": dag.catchup,
        "max_active_runs": dag.max_active_runs,
    }
    for name, dag in bag.dags.items()
}

outcomes = {}
for code in json.loads(sys.argv[2]):
    fake = folder / f"exits_with_{code}"
    fake.write_text(f"#!/bin/sh\nexit {code}\n")
    fake.chmod(0o755)
    spec = importlib.util.spec_from_file_location("shop_dag", next(folder.glob("*.py")))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.NEARCAST = str(fake)
    try:
        module.nearcast("refresh", "shop.toml")
        outcomes[code] = "success"
    except Exception as error:
        outcomes[code] = type(error).__name__
print(json.dumps({"errors": {k: str(v) for k, v in bag.import_errors.items()}, "dags": found, "outcomes": outcomes}))
