"""Airflow operators for nearcast: one task per command, with the exit codes as Airflow's own outcomes.

Copy the file into the plugins or DAGs folder. `examples/scheduling/nearcast_shop.py` does the same without a class.

    NearcastRefreshOperator(task_id="refresh", spec="/srv/shop/shop.toml")
    NearcastMonitorOperator(task_id="monitor", spec="/srv/shop/shop.toml", fail_on=["any"])

Exit code 5 (another refresh is in progress) becomes a skipped task, codes that need a person fail without a retry, all
others are tried again; a retry continues the work. The JSON result of the command is the XCom of the task.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from typing import Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

__all__ = ["NearcastMonitorOperator", "NearcastOperator", "NearcastRefreshOperator"]

BUSY = 5
FOR_A_PERSON = frozenset({2, 3, 4, 7, 8, 9, 10, 13, 16, 17, 18})  # docs/scheduling.md


class NearcastOperator(BaseOperator):
    """Run a command of nearcast with --json, and return its result.

    command: name of the command and its arguments. executable: path of nearcast, which may have its own environment.
    environment: variables added to those of the worker.
    """

    template_fields: Sequence[str] = ("command", "environment")
    ui_color = "#d9ead3"

    def __init__(
        self,
        *,
        command: Sequence[str],
        executable: str = "nearcast",
        environment: dict[str, str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.command = list(command)
        self.executable = executable
        self.environment = environment or {}
        self._process: subprocess.Popen[str] | None = None

    def execute(self, context: Any) -> Any:  # noqa: ARG002 - the signature of Airflow
        """Run the command. Raises AirflowSkipException, AirflowFailException or AirflowException by its exit code."""
        words = [self.executable, *self.command, "--quiet", "--json"]
        self.log.info("running %s", " ".join(words))
        self._process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | self.environment
        )
        output, errors = self._process.communicate()
        for line in errors.splitlines():
            self.log.info("%s", line)
        code = self._process.returncode
        if code == BUSY:
            raise AirflowSkipException("another refresh is in progress")
        if code in FOR_A_PERSON:
            raise AirflowFailException(f"exit code {code}: {_last_line(errors)}")
        if code != 0:
            raise AirflowException(f"exit code {code}: {_last_line(errors)}; trying again continues the work")
        return json.loads(output) if output.strip() else None

    def on_kill(self) -> None:
        """Stop the command; the next attempt continues its work."""
        if self._process is not None:
            self._process.terminate()


class NearcastRefreshOperator(NearcastOperator):
    """Run, audit and publish a generator: `nearcast refresh SPEC`."""

    template_fields: Sequence[str] = ("spec", *NearcastOperator.template_fields)

    def __init__(self, *, spec: str, **options: Any) -> None:
        self.spec = spec
        super().__init__(command=["refresh", spec], **options)

    def execute(self, context: Any) -> Any:
        """Refresh the generator; the result names the snapshot and the published version."""
        self.command = ["refresh", self.spec]  # after templates were rendered
        return super().execute(context)


class NearcastMonitorOperator(NearcastOperator):
    """Check the newest run and the served version: `nearcast monitor SPEC`. fail_on: checks that fail the task."""

    template_fields: Sequence[str] = ("spec", *NearcastOperator.template_fields)

    def __init__(self, *, spec: str, fail_on: Sequence[str] = ("any",), **options: Any) -> None:
        self.spec = spec
        self.fail_on = list(fail_on)
        super().__init__(command=["monitor", spec], **options)

    def execute(self, context: Any) -> Any:
        """Monitor the generator; the result holds the alerts."""
        self.command = ["monitor", self.spec, *(word for check in self.fail_on for word in ("--fail-on", check))]
        return super().execute(context)


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else "no message"
