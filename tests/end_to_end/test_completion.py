"""Completion in real shells: commands, options, files, generators and versions appear after the tab key."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path

import pytest
from tests.end_to_end.shop import NEARCAST, environment, succeed
from tests.snapshot_folders import snapshot_facts, write_snapshot_folder

from nearcast.table.snapshot import commit_snapshot

PATIENCE = 60.0  # seconds for what takes one


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with snapshots of two generators and a spec."""
    made = tmp_path_factory.mktemp("shop")
    for generator, count in (("similar-items", 2), ("for-shoppers", 1)):
        for number in range(count):
            source = write_snapshot_folder(made / "made" / f"{generator}-{number}")
            commit_snapshot(made / "nearcast", generator, source, snapshot_facts(f"mark {number}"))
    (made / "shop-spec.toml").write_text("")
    return made


START = {  # program, what it is told first, and a function `nearcast` that prints its arguments
    "bash": (
        ("bash", "--norc", "--noprofile", "-i"),
        'bind "set enable-bracketed-paste off"; eval "$(nearcast completion bash)"',
        "nearcast() { printf '<%s>' \"$@\"; echo '<end>'; }",
    ),
    "zsh": (
        ("zsh", "-f", "-i"),
        'unset zle_bracketed_paste; autoload -Uz compinit; compinit -u -D; eval "$(nearcast completion zsh)"',
        "nearcast() { printf '<%s>' \"$@\"; echo '<end>'; }",
    ),
    "fish": (
        ("fish", "--no-config", "-i"),
        "nearcast completion fish | source",
        "function nearcast; printf '<%s>' $argv; echo '<end>'; end",
    ),
}


class Terminal:
    """An interactive shell on a terminal of its own, with the completion that `nearcast completion SHELL` prints.

    A completed command is entered, and a function prints the arguments that the shell has made of it: each shell draws
    a line in its own way.
    """

    def __init__(self, shell: str, folder: Path, home: Path) -> None:
        self.screen = ""
        words, source, function = START[shell]
        path = f"{NEARCAST.parent}:{os.environ['PATH']}"
        settings = environment(
            PATH=path, PS1="$ ", INPUTRC="/dev/null", HISTFILE="", BASH_SILENCE_DEPRECATION_WARNING="1", HOME=str(home)
        )
        self.process, self._terminal = pty.fork()
        if self.process == 0:
            os.chdir(folder)
            os.execvpe(words[0], words, settings)
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 150, 0, 0))
        for line in (source, function):
            self.screen = ""
            self._type(f"{line}; echo is-'ready'\n")
            self._read_until("is-ready")

    def complete(self, line: str, arguments: str) -> None:
        """Type the beginning of a command, the tab key and Enter; wait for the arguments that the command has got."""
        self.screen = ""
        self._type(f"{line}\t\n")
        self._read_until("".join(f"<{word}>" for word in [*arguments.split(), "end"]))

    def suggest(self, line: str, *texts: str) -> None:
        """Type the beginning of a command and the tab key twice; wait for the texts."""
        self.screen = ""
        self._type(f"{line}\t\t")
        for text in texts:
            self._read_until(text)

    def _type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def _read_until(self, text: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while text not in self.screen:
            assert time.monotonic() < deadline, self.screen
            if select.select([self._terminal], [], [], 0.2)[0]:
                self.screen += os.read(self._terminal, 4096).decode(errors="replace")

    def close(self) -> None:
        """End the shell."""
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        os.close(self._terminal)


@pytest.mark.slow
@pytest.mark.parametrize("shell", START)
def test_a_shell_completes_commands_options_generators_versions_and_files(
    shell: str, folder: Path, tmp_path: Path
) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed (apt-get install {shell})")
    terminal = Terminal(shell, folder, tmp_path)
    try:
        terminal.complete("nearcast loo", "lookup")
        terminal.complete("nearcast lookup sim", "lookup similar-items")
        terminal.complete("nearcast lookup --colu", "lookup --columns")
        terminal.complete("nearcast diff for-shoppers ", "diff for-shoppers 1")
        terminal.complete("nearcast publish shop", "publish shop-spec.toml")
        terminal.complete("nearcast run shop", "run shop-spec.toml")
        terminal.complete("nearcast completion f", "completion fish")
        terminal.suggest("nearcast show similar-items/", "items/1", "items/2")  # fish shortens the names
    finally:
        terminal.close()


def answer(folder: Path, words: str, **more: str) -> list[str]:
    """What the program tells the shell: a completion per line, with its kind."""
    number = str(len(words.split(" ")) - 1)
    settings = environment(_NEARCAST_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=number, **more)
    done = subprocess.run([NEARCAST], cwd=folder, env=settings, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_all_commands_are_completed_without_importing_them(folder: Path) -> None:
    assert {"plain,lookup", "plain,completion", "plain,init"} <= set(answer(folder, "nearcast "))
    assert answer(folder, "nearcast unp") == []


def test_generators_in_a_bucket_or_a_missing_folder_are_not_completed(folder: Path) -> None:
    assert answer(folder, "nearcast lookup --out s3://no-such-bucket/out ") == []
    assert answer(folder, "nearcast lookup ", NEARCAST_OUT="missing") == []


@pytest.mark.parametrize(("shell", "check"), [("bash", "bash -n"), ("zsh", "zsh -n"), ("fish", "fish --no-execute")])
def test_each_script_is_one_that_its_shell_can_read(tmp_path: Path, shell: str, check: str) -> None:
    text = succeed("completion", shell, cwd=tmp_path).stdout
    assert "_NEARCAST_COMPLETE" in text
    program, *options = check.split()
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed (apt-get install {program})")
    (tmp_path / "script").write_text(text)
    done = subprocess.run([program, *options, tmp_path / "script"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
