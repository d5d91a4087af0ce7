"""The image, built by a real builder and run: it holds a command that works for a user who is not root."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.end_to_end import shop as at

ROOT = Path(__file__).resolve().parent.parent.parent
BASE = os.environ.get("NEARCAST_IMAGE_BASE", "")
BUILD = ["--file", "deploy/docker/Dockerfile", "--pull=never", "--build-arg", f"BASE={BASE}"]
COMMAND = "nearcast refresh shop.toml --quiet >&2 && nearcast lookup shop q007 --json && id -u"
NETWORK_SETTINGS = ("index-url", "cert", "proxy", "trusted-host")  # of pip

pytestmark = pytest.mark.slow


class Builder:
    """Buildah with the storage that has the base image; whatever it makes is removed at the end."""

    def __init__(self) -> None:
        self.made: list[list[str]] = []

    def run(self, *words: str | Path, check: bool = True) -> str:
        """Run a command of buildah; return what it prints."""
        settings = {"STORAGE_DRIVER": "vfs", "BUILDAH_ISOLATION": "chroot"} | os.environ
        done = subprocess.run(
            ["buildah", *map(str, words)],
            env=settings,
            capture_output=True,
            encoding="utf-8",
            timeout=3600,
            check=False,
        )
        assert done.returncode == 0 or not check, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    def remove(self) -> None:
        """Remove containers and images, newest first."""
        for words in reversed(self.made):
            self.run(*words, check=False)


def configure_pip(folder: Path) -> list[str]:
    """Return options that let pip in the build reach the index that pip of this machine reaches."""
    done = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    found = {line.partition("=")[0].rpartition(".")[2]: line.partition("=")[2] for line in done.stdout.splitlines()}
    settings = {name: value.strip("'\"") for name, value in found.items() if name in NETWORK_SETTINGS}
    lines = ["[global]", *(f"{name} = {value}" for name, value in settings.items())]
    (folder / "pip.conf").write_text("\n".join(lines) + "\n", encoding="utf-8")
    certificates = [f"{settings['cert']}:{settings['cert']}:ro"] if "cert" in settings else []
    volumes = [f"{folder / 'pip.conf'}:/etc/pip.conf:ro", *certificates]
    return [word for volume in volumes for word in ("--volume", volume)]


@pytest.fixture(scope="module")
def builder() -> Iterator[Builder]:
    """Skips the tests where there is no builder, or no base image for it."""
    if shutil.which("buildah") is None or not BASE:
        pytest.skip("buildah is not installed, or NEARCAST_IMAGE_BASE names no image that it has (make test-image)")
    found = Builder()
    yield found
    found.remove()


@pytest.fixture(scope="module")
def container(builder: Builder, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A container of the image, which is built from the repository as users build it."""
    image = f"localhost/nearcast-test-{os.getpid()}"
    pip = configure_pip(tmp_path_factory.mktemp("pip"))
    builder.made.append(["rmi", image])
    builder.run("bud", *BUILD, *pip, "--tag", image, ROOT)
    name = builder.run("from", "--pull=never", image).strip()
    builder.made.append(["rm", name])
    return name


def test_the_image_runs_the_command_as_a_user_who_is_not_root(builder: Builder, container: str, tmp_path: Path) -> None:
    at.write_shop(tmp_path)
    tmp_path.chmod(0o777)
    said = builder.run("run", "--volume", f"{tmp_path}:/data", container, "sh", "-c", COMMAND)
    answer, user = said.rsplit("\n", 2)[:2]
    assert json.loads(answer)["query"] == "q007"
    assert len(json.loads(answer)["candidates"]) == 10
    assert user == "10001"


def test_the_image_has_native_kernels_and_no_compiler(builder: Builder, container: str) -> None:
    facts = json.loads(builder.run("run", container, "nearcast", "info", "--json"))
    assert facts["kernels"]["taken"] != "numpy"
    assert builder.run("run", container, "sh", "-c", "command -v g++ cc1plus || echo none").strip() == "none"


def test_the_image_starts_nearcast_and_keeps_nothing_of_the_machine_that_built_it(
    builder: Builder, container: str
) -> None:
    config = json.loads(builder.run("inspect", container))["OCIv1"]["config"]
    assert config["Entrypoint"] == ["nearcast"]
    assert config["User"] == "10001:10001"
    found = builder.run("run", container, "sh", "-c", "ls /wheels /source; cat /etc/pip.conf", check=False)
    assert found.strip() == ""
