"""What a machine lacks is said at the end of a test run, not passed over."""

from __future__ import annotations

import os
import subprocess
import sys


def test_a_run_without_redis_server_ends_with_the_number_of_skipped_tests_and_what_to_install(repository, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/unit/test_redis_store.py"],
        cwd=repository,
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    (line,) = (line for line in done.stdout.splitlines() if " skipped: " in line)
    count, _, reason = line.partition(" skipped: ")
    assert int(count) > 1
    assert reason == "redis-server is not installed (apt-get install redis-server)"
