"""The examples for schedulers: valid for their scheduler, and their commands run, with its variables set."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.end_to_end import shop as at
from tests.end_to_end.shop import nearcast, succeed

from needs import require_module

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLES = ROOT / "examples" / "cluster"
LOCATION = "s3://shop-vectors/runs/tonight"
NEVER_AGAIN = {2, 3, 7, 16}  # codes after which docs/cluster.md says that another attempt does not help
AGAIN = {14, 15}


def read_job(name: str) -> dict[str, Any]:
    yaml = require_module("yaml")
    found: dict[str, Any] = yaml.safe_load((EXAMPLES / name).read_text(encoding="utf-8"))
    return found


def only_container(job: dict[str, Any]) -> dict[str, Any]:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return dict(container)


def run_command(command: list[str], folder: Path, **variables: str) -> None:
    """Run the command of a container, at another location."""
    words = ["run" if word == LOCATION else word for word in command]
    assert words[0] == "nearcast"
    done = nearcast(*words[1:], cwd=folder, **variables)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def planned(tmp_path: Path) -> Path:
    at.write_shop(tmp_path)
    succeed("plan", "shop.toml", "--work", "run", cwd=tmp_path)
    return tmp_path


def test_the_commands_of_the_kubernetes_jobs_make_the_snapshot(planned: Path) -> None:
    work, gather = (read_job(f"kubernetes-{name}.yaml") for name in ("work", "gather"))
    assert work["spec"]["completionMode"] == "Indexed"
    variables = {each["name"]: each["value"] for each in only_container(work)["env"]}
    assert variables["NEARCAST_WORKERS"] == str(work["spec"]["completions"])
    variables |= {"NEARCAST_CACHE": str(planned / "cache"), "JOB_COMPLETION_INDEX": "3"}
    run_command(only_container(work)["command"], planned, **variables)
    run_command(only_container(gather)["command"], planned)
    assert at.snapshots(planned) == ["000001"]


@pytest.mark.parametrize(("name", "codes"), [("work", NEVER_AGAIN), ("gather", NEVER_AGAIN | {4})])
def test_the_kubernetes_jobs_end_at_once_where_no_other_attempt_helps(name: str, codes: set[int]) -> None:
    job = read_job(f"kubernetes-{name}.yaml")
    (rule,) = (rule for rule in job["spec"]["podFailurePolicy"]["rules"] if rule["action"] == "FailJob")
    assert set(rule["onExitCodes"]["values"]) == codes
    assert rule["onExitCodes"]["containerName"] == only_container(job)["name"]


@pytest.mark.parametrize("name", ["work", "gather"])
def test_the_kubernetes_jobs_fit_the_schema_of_kubernetes(name: str) -> None:
    validator = require_module("kubernetes_validate")
    job = read_job(f"kubernetes-{name}.yaml")
    validator.validate(job, validator.latest_version(), strict=True)
    job["spec"]["completion"] = 3
    with pytest.raises(validator.ValidationError, match="completion"):
        validator.validate(job, validator.latest_version(), strict=True)


FAKE_AWS = """#!/bin/sh
printf '%s\\n' "$@" > calls/$(ls calls | wc -l)
echo job-$(ls calls | wc -l)
"""


def submitted(folder: Path) -> list[dict[str, Any]]:
    """What the script for AWS Batch passes to each call of `aws`, as parameters of the API."""
    (folder / "calls").mkdir()
    fake = folder / "aws"
    fake.write_text(FAKE_AWS)
    fake.chmod(0o755)
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
    words = [str(EXAMPLES / "aws-batch.sh"), "night", "run"]
    done = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=60, check=True
    )
    assert done.stdout == "job-2 job-3\n"
    return [read_call((folder / "calls" / str(number)).read_text().splitlines()) for number in range(3)]


def read_call(words: list[str]) -> dict[str, Any]:
    """Parse options of `aws batch submit-job` as the command line of AWS does: KEY=VALUE,... are structures."""
    found: dict[str, Any] = {"operation": words[1]}
    for option, value in zip(words[2::2], words[3::2], strict=True):
        name = option.removeprefix("--")
        if name in ("array-properties", "parameters", "depends-on"):
            pairs = dict(pair.split("=", 1) for pair in value.split(","))
            found[name] = [pairs] if name == "depends-on" else pairs
        else:
            found[name] = value
    return found


def test_the_aws_batch_jobs_fit_the_api_of_aws(tmp_path: Path) -> None:
    loaders, validate, model = (require_module(f"botocore.{name}") for name in ("loaders", "validate", "model"))
    api = model.ServiceModel(loaders.Loader().load_service_model("batch", "service-2"))
    definition = json.loads((EXAMPLES / "aws-batch-definition.json").read_text(encoding="utf-8"))

    def faults(operation: str, parameters: dict[str, Any]) -> str:
        shape = api.operation_model(operation).input_shape
        return str(validate.ParamValidator().validate(parameters, shape).generate_report())

    assert faults("RegisterJobDefinition", definition) == ""
    assert "Unknown parameter" in faults("RegisterJobDefinition", definition | {"retries": 3})
    registered, *jobs = submitted(tmp_path)
    assert registered["cli-input-json"] == f"file://{EXAMPLES}/aws-batch-definition.json"
    for job in jobs:
        request: dict[str, Any] = {
            "jobName": job["job-name"],
            "jobQueue": job["job-queue"],
            "jobDefinition": job["job-definition"],
            "parameters": job["parameters"],
        }
        if "array-properties" in job:
            request["arrayProperties"] = {"size": int(job["array-properties"]["size"])}
        if "depends-on" in job:
            request["dependsOn"] = job["depends-on"]
        assert faults("SubmitJob", request) == ""
    assert jobs[1]["depends-on"] == [{"jobId": "job-2"}]


def test_the_commands_of_the_aws_batch_jobs_make_the_snapshot(planned: Path) -> None:
    definition = json.loads((EXAMPLES / "aws-batch-definition.json").read_text(encoding="utf-8"))
    variables = {each["name"]: each["value"] for each in definition["containerProperties"]["environment"]}
    _, work, gather = submitted(planned)
    assert work["array-properties"]["size"] == variables["NEARCAST_WORKERS"]
    variables |= {"NEARCAST_CACHE": str(planned / "cache"), "AWS_BATCH_JOB_ARRAY_INDEX": "0"}
    for job in (work, gather):
        values = {f"Ref::{name}": value for name, value in job["parameters"].items()}
        run_command(
            [values.get(word, word) for word in definition["containerProperties"]["command"]], planned, **variables
        )
        variables.pop("AWS_BATCH_JOB_ARRAY_INDEX", None)
    assert at.snapshots(planned) == ["000001"]


def test_aws_batch_tries_again_what_may_pass_and_nothing_else() -> None:
    rules = json.loads((EXAMPLES / "aws-batch-definition.json").read_text(encoding="utf-8"))["retryStrategy"]
    actions = {rule["onExitCode"]: rule["action"] for rule in rules["evaluateOnExit"] if "onExitCode" in rule}
    assert {int(code) for code, action in actions.items() if action == "RETRY"} == AGAIN | {137}
    assert list(actions)[-1] == "*"
    assert actions["*"] == "EXIT"
