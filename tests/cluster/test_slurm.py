"""The example for SLURM, submitted to a real cluster of one node: slurmctld, slurmd and munged on this machine."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.end_to_end import shop as at
from tests.end_to_end.shop import environment, succeed

HERE = Path(__file__).resolve().parent
EXAMPLE = HERE.parent.parent / "examples" / "cluster" / "slurm.sh"
DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch")
WAIT = """
set -eu
"$1" shop.toml "$2" --array=0-2 --output=workers.%a.txt > submitted.txt
cat submitted.txt
gather=$(sed -n 's/.*last step: job \\([0-9]*\\);.*/\\1/p' submitted.txt)
seconds=0
while squeue --noheader | grep -q . && [ "$seconds" -lt 400 ]; do
  sleep 1
  seconds=$((seconds + 1))
done
scontrol show job "$gather"
"""


@pytest.mark.slow
def test_the_slurm_example_makes_the_snapshot_on_a_real_cluster(tmp_path: Path) -> None:
    missing = [name for name in DAEMONS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed (apt-get install slurm-wlm munge)")
    folder = tmp_path / "shop"
    folder.mkdir()
    at.write_shop(folder)
    namespaces = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
    cluster = [str(HERE / "slurm_cluster.sh"), str(tmp_path / "slurm")]
    command = ["sh", "-c", WAIT, "sh", str(EXAMPLE), str(folder / "run")]
    path = f"{at.NEARCAST.parent}:{environment()['PATH']}"
    variables = environment(PATH=path, NEARCAST_CACHE=str(tmp_path / "cache"))
    done = subprocess.run(
        [*namespaces, *cluster, *command], cwd=folder, env=variables, capture_output=True, encoding="utf-8", timeout=500
    )
    logs = "\n".join(p.read_text(errors="replace") for p in sorted(folder.glob("*.txt")) + sorted(folder.glob("*.out")))
    assert done.returncode == 0, (done.stdout, done.stderr, logs)
    assert re.search(r"JobState=COMPLETED", done.stdout), (done.stdout, logs)
    workers = [(folder / f"workers.{index}.txt").read_text() for index in range(3)]
    assert all(f"worker {index} of 3" in text or "is finished" in text for index, text in enumerate(workers)), workers
    assert at.snapshots(folder) == ["000001"]
    succeed("show", "shop", cwd=folder)
