"""The operations kit in deploy/: each file is read by the program that it is for, where that program is installed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.end_to_end import shop as at
from tests.end_to_end.shop import nearcast

from needs import require_module

DEPLOY = Path(__file__).resolve().parent.parent.parent / "deploy"
ROOT = DEPLOY.parent
FOR_A_PERSON = {2, 3, 4, 7, 8, 9, 10, 13, 16}  # exit codes after which another attempt does not help


def need_program(name: str, package: str) -> str:
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"{name} is not installed (apt-get install {package})")
    return program


def run_program(*words: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, capture_output=True, encoding="utf-8", timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def read_documents(path: Path) -> list[dict[str, Any]]:
    yaml = require_module("yaml")
    return [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]


def kubernetes_documents() -> Iterator[dict[str, Any]]:
    for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")):
        if path.name != "kustomization.yaml":
            yield from read_documents(path)


def list_containers(document: dict[str, Any]) -> list[dict[str, Any]]:
    spec = document.get("spec", {})
    spec = spec["jobTemplate"]["spec"] if "jobTemplate" in spec else spec
    return list(spec["template"]["spec"]["containers"]) if "template" in spec else []


def test_prometheus_accepts_the_rules_and_they_fire_as_they_say() -> None:
    promtool = need_program("promtool", "prometheus")
    folder = DEPLOY / "prometheus"
    assert "SUCCESS" in run_program(promtool, "check", "rules", "rules.yml", cwd=folder)
    assert "SUCCESS" in run_program(promtool, "test", "rules", "rules_test.yml", cwd=folder)
    assert "SUCCESS" in run_program(promtool, "check", "config", "--syntax-only", "scrape.yml", cwd=folder)


def test_every_alert_has_a_severity_a_summary_and_a_description() -> None:
    (document,) = read_documents(DEPLOY / "prometheus" / "rules.yml")
    alerts = [rule for group in document["groups"] for rule in group["rules"] if "alert" in rule]
    assert len(alerts) >= 10
    for alert in alerts:
        assert alert["labels"]["severity"] in ("page", "ticket"), alert["alert"]
        assert {"summary", "description"} <= set(alert["annotations"]), alert["alert"]


def test_rules_and_dashboard_name_metrics_that_services_and_followers_have() -> None:
    from nearcast.service.metric_table import METRICS
    from nearcast.updating.follow import FollowFigures, describe_figures

    text = (DEPLOY / "prometheus" / "rules.yml").read_text(encoding="utf-8")
    dashboard = json.loads((DEPLOY / "grafana" / "nearcast.json").read_text(encoding="utf-8"))
    text += " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    known = {*METRICS, *re.findall(r"^# TYPE (\w+)", describe_figures(FollowFigures(), "shop"), re.MULTILINE)}
    used = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"(?<!:)\bnearcast_\w+", text)}
    assert used - known == set()
    assert {name for name in used if name.startswith("nearcast_follow_")}


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    program = need_program("systemd-analyze", "systemd")
    for unit in (DEPLOY / "systemd").iterdir():
        text = unit.read_text(encoding="utf-8").replace("/opt/nearcast/bin/nearcast", sys.executable)
        (tmp_path / unit.name).write_text(text, encoding="utf-8")
    said = run_program(program, "verify", *sorted(tmp_path.glob("nearcast*")), cwd=tmp_path)
    assert not [line for line in said.splitlines() if "nearcast" in line], said


def test_the_units_start_commands_that_nearcast_has() -> None:
    for unit in (DEPLOY / "systemd").glob("*.service"):
        (command,) = re.findall(r"^ExecStart=\S+/nearcast (.*)$", unit.read_text(encoding="utf-8"), re.MULTILINE)
        check_options(command.split())


def test_systemd_and_kubernetes_try_again_only_what_may_pass() -> None:
    unit = (DEPLOY / "systemd" / "nearcast-refresh@.service").read_text(encoding="utf-8")
    (codes,) = re.findall(r"^RestartPreventExitStatus=(.*)$", unit, re.MULTILINE)
    assert {int(code) for code in codes.split()} == FOR_A_PERSON
    (cron,) = read_documents(DEPLOY / "kubernetes" / "refresh.yaml")
    rules = cron["spec"]["jobTemplate"]["spec"]["podFailurePolicy"]["rules"]
    (fail,) = (rule for rule in rules if rule["action"] == "FailJob")
    assert set(fail["onExitCodes"]["values"]) == FOR_A_PERSON


def test_the_manifests_fit_the_schema_of_kubernetes() -> None:
    validator = require_module("kubernetes_validate")
    documents = list(kubernetes_documents())
    assert {document["kind"] for document in documents} >= {"Deployment", "Service", "CronJob", "PodDisruptionBudget"}
    for document in documents:
        validator.validate(document, validator.latest_version(), strict=True)


def test_kustomize_has_every_file_and_every_name_that_the_manifests_use() -> None:
    (kustomization,) = read_documents(DEPLOY / "kubernetes" / "kustomization.yaml")
    written = {path.name for path in (DEPLOY / "kubernetes").glob("*.yaml")} - {"kustomization.yaml"}
    assert set(kustomization["resources"]) == written
    made = {generator["name"] for generator in kustomization["configMapGenerator"]}
    for generator in kustomization["configMapGenerator"]:
        assert all((DEPLOY / "kubernetes" / name).is_file() for name in generator.get("files", ()))
    used = set(re.findall(r"configMap(?:Ref)?: \{name: ([\w-]+)", "".join(map(read_manifest, written))))
    assert used == made


def read_manifest(name: str) -> str:
    return (DEPLOY / "kubernetes" / name).read_text(encoding="utf-8")


def test_no_container_is_root_or_may_become_it() -> None:
    containers = [container for document in kubernetes_documents() for container in list_containers(document)]
    assert len(containers) == 3
    for container in containers:
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["readOnlyRootFilesystem"] is True
        check_options(container["args"])


def test_the_spec_of_the_manifests_is_valid(tmp_path: Path) -> None:
    from nearcast.spec import load_spec

    spec = load_spec(DEPLOY / "kubernetes" / "shop.toml")
    assert (spec.name, spec.recall) == ("shop", 0.95)


def check_options(words: list[str]) -> None:
    """Check that the command exists and has each option."""
    described = nearcast(words[0], "--help", cwd=ROOT).stdout
    assert described, words
    for word in words[1:]:
        if word.startswith("--"):
            assert re.search(rf"{word}\b", described), f"{words[0]} has no option {word}"


def test_the_image_holds_all_that_the_wheel_is_built_from() -> None:
    """The build context leaves out everything that .dockerignore does not name."""
    ignore = (DEPLOY / "docker" / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    kept = {line[1:] for line in ignore if line.startswith("!")}
    assert all((ROOT / name).exists() for name in kept)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert {"CMakeLists.txt", "pyproject.toml", "src", "README.md", "LICENSE"} <= kept
    assert 'readme = "README.md"' in project


@pytest.mark.slow
def test_the_steps_of_the_dockerfile_make_a_command_that_works(tmp_path: Path) -> None:
    """Without a container: the same build context, wheel and install, in a virtual environment."""
    context = tmp_path / "source"
    context.mkdir()
    for line in (DEPLOY / "docker" / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines():
        if line.startswith("!"):
            source = ROOT / line[1:]
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, context / line[1:])
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", "wheels", "."], cwd=context, check=True, timeout=900)
    (wheel,) = (context / "wheels").glob("nearcast-*.whl")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "image"], check=True, timeout=300)
    there = tmp_path / "image" / "bin"
    extras = re.search(
        r"^ARG EXTRAS=(.*)$", (DEPLOY / "docker" / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert extras is not None
    subprocess.run(
        [there / "pip", "install", "--quiet", f"{wheel}[{extras[1]}]"], cwd=tmp_path, check=True, timeout=900
    )
    info = run_program(there / "nearcast", "info", cwd=tmp_path)
    assert "kernels" in info
    at.write_shop(tmp_path)
    run_program(there / "nearcast", "refresh", "shop.toml", "--quiet", cwd=tmp_path)
    assert at.snapshots(tmp_path) == ["000001"]


def test_the_dashboard_is_one_that_grafana_imports() -> None:
    """The fields that Grafana's importer and the provisioning of dashboards need."""
    dashboard = json.loads((DEPLOY / "grafana" / "nearcast.json").read_text(encoding="utf-8"))
    assert dashboard["title"]
    assert dashboard["uid"]
    assert dashboard["schemaVersion"] >= 36
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in dashboard["panels"]:
        assert panel["targets"]
        assert panel["title"]
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24


OPERATIONS = ROOT / ".operations" / "bin"  # `make operations`


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    hadolint = shutil.which("hadolint", path=str(OPERATIONS)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed (make operations)")
    run_program(hadolint, "Dockerfile", cwd=DEPLOY / "docker")


def test_dagster_materializes_the_asset_and_tries_again_only_what_may_pass(tmp_path: Path) -> None:
    python = Path(os.environ.get("NEARCAST_DAGSTER", OPERATIONS / "python"))
    if not python.is_file():
        pytest.skip("Dagster is not installed (make operations, or set NEARCAST_DAGSTER to the python of one)")
    script = Path(__file__).with_name("run_dagster.py")
    said = run_program(
        python, script, tmp_path, DEPLOY / "dagster" / "nearcast_assets.py", json.dumps(list(range(17))), cwd=tmp_path
    )
    found = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
    outcomes = {int(code): outcome for code, outcome in found["outcomes"].items()}
    assert outcomes[0] == {"metadata": {"nearcast": {"version": 7}}}
    assert outcomes[5] == {"metadata": {"outcome": "busy"}}
    assert {code for code, outcome in outcomes.items() if outcome.get("again") is False} == FOR_A_PERSON
    assert {code for code, outcome in outcomes.items() if outcome.get("again")} == {1, 6, 11, 12, 14, 15}
    assert found["success"]
    assert found["checks"] == [True]
