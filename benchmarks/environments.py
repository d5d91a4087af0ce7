"""Virtual environments of the peer libraries: make them, and say what did not install.

Packages that cannot be installed together, such as the two that hold ScaNN, have environments of their own. Knows
nothing of arrays and of what the peers do.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

__all__ = ["FOLDER", "REQUIREMENTS", "get_interpreter", "get_reason", "prepare"]

FOLDER = Path(__file__).parent / ".environments"
INSTALL_SECONDS = 1_800  # of one requirement: hnswlib is compiled, torch is large

# Each requirement is installed by itself, so that a library that fails takes no other with it.
REQUIREMENTS: dict[str, list[str]] = {
    "scann-core": ["scann-core==0.2.1"],
    "scann": ["scann==1.4.2"],
    "faiss": ["faiss-cpu==1.15.1", "superkmeans==0.2.0"],
    "graphs": ["hnswlib==0.8.0", "usearch==2.26.6", "scalable-vs==0.5.0"],
    "lists": ["rabitqlib==0.7.1", "lorann==1.0.1"],
    "torch": ["torch==2.13.0"],
}
COMMON = "numpy threadpoolctl"  # threadpoolctl reports the thread pools


def get_interpreter(folder: Path, name: str) -> Path:
    """Return the Python of an environment, made or not; without a name, the Python that runs this."""
    return folder / name / "bin" / "python" if name else Path(sys.executable)


def get_reason(folder: Path, name: str, package: str) -> str | None:
    """Return why a package is missing from an environment; None if it was installed."""
    if not name:
        return None
    path = folder / name / "failed.json"
    if not path.is_file():
        return f"no environment {folder / name}: run join.py --prepare"
    failed: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return failed.get(package)


def prepare(folder: Path, names: list[str]) -> dict[str, dict[str, str]]:
    """Make these environments, or bring them up to date; return the error of each package that failed."""
    failed: dict[str, dict[str, str]] = {}
    for name in names:
        python = get_interpreter(folder, name)
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(folder / name)], check=True)
        failed[name] = {}
        for requirement in [COMMON, *REQUIREMENTS[name]]:
            print(f"{name}: {requirement}", flush=True)
            error = _install(python, requirement)
            if error is not None:
                print(f"{name}: {requirement} failed: {error}", flush=True)
                failed[name][requirement.partition("==")[0]] = error
        (folder / name / "failed.json").write_text(json.dumps(failed[name], indent=1) + "\n", encoding="utf-8")
    return failed


def _install(python: Path, requirement: str) -> str | None:
    """Return the last line of pip's error, or None."""
    command = [str(python), "-m", "pip", "install", "--quiet", "--no-compile", *requirement.split()]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS)
    except subprocess.TimeoutExpired:
        return f"pip ran for {INSTALL_SECONDS} seconds"
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith(("hint", "note", "["))]
    errors = [line for line in lines if line.lower().lstrip().startswith("error")]
    return (errors or lines or ["pip failed"])[-1].strip()
