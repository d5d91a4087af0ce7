"""Run the command line in processes forked from one that has imported everything, so that each starts at once.

Every command is a process of its own, with its own folder, environment, output and exit code. Libraries and all
modules of nearcast, which read no environment when they are imported, are imported before the fork.
`tests/end_to_end/shop.py` runs commands so; tests of starting, stopping and pipes start the real program instead.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import pkgutil
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

LIBRARIES = (
    "numpy",
    "pyarrow",
    "pyarrow.compute",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "pydantic",
    "click",
    "rich.console",
    "rich.progress",
    "rich.table",
    "lark",
    "lmdb",
    "psutil",
    "threadpoolctl",
)
ENOUGH = 1 << 20  # bytes of a request: words, folder and environment


def run_command(
    words: Sequence[str], *, cwd: Path, env: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run `nearcast WORDS` to its end, with standard input closed."""
    with (
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
        socket.socket(socket.AF_UNIX) as connection,
    ):
        connection.settimeout(timeout)
        connection.connect(_server(os.getpid()))
        request = json.dumps({"words": list(words), "cwd": str(cwd), "env": dict(env)}).encode()
        socket.send_fds(connection, [request], [out.fileno(), err.fileno()])
        connection.shutdown(socket.SHUT_WR)
        code = int(connection.recv(100))
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode("utf-8"))
    return subprocess.CompletedProcess(list(words), code, *texts)


CLIENT = """#!{python} -IS
import json, os, signal, socket, stat, sys
if not stat.S_ISCHR(os.stat(0).st_mode) or sys.argv[1:2] in (["serve"], ["follow"]):
    os.execv({program!r}, [{program!r}, *sys.argv[1:]])
server = socket.socket(socket.AF_UNIX)
server.connect({path!r})
request = json.dumps({{"words": sys.argv[1:], "cwd": os.getcwd(), "env": dict(os.environ)}})
socket.send_fds(server, [request.encode()], [1, 2])
server.shutdown(socket.SHUT_WR)
code = int(server.recv(100))
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


def install_command(folder: Path) -> Path:
    """Write `nearcast` into a folder, for shells: it forks commands without standard input, and starts the others."""
    folder.mkdir(parents=True, exist_ok=True)
    client = folder / "nearcast"
    program = str(Path(sys.executable).with_name("nearcast"))
    client.write_text(CLIENT.format(python=sys.executable, program=program, path=_server(os.getpid())))
    client.chmod(0o755)
    return folder


@functools.cache
def _server(_process: int) -> str:
    """Start the server of this process, and return the path of its socket."""
    folder = tempfile.mkdtemp(prefix="nearcast-cli-")
    path = str(Path(folder) / "socket")
    server = subprocess.Popen([sys.executable, __file__, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(server.kill)
    return path


def serve(path: str) -> None:
    """Import everything, then fork a process for each connection until standard input ends."""
    modules = pkgutil.walk_packages(import_module("nearcast").__path__, "nearcast.")
    for name in (*LIBRARIES, *(module.name for module in modules)):
        import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        print("ready", flush=True)
        threading.Thread(target=_end_with_the_tests, daemon=True).start()
        while True:
            connection, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                _answer(connection)
            connection.close()


def _end_with_the_tests() -> None:
    sys.stdin.read()
    os._exit(0)


def _answer(connection: socket.socket) -> None:
    """Run the command of one connection in a child, and send its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    text, fds, _, _ = socket.recv_fds(connection, ENOUGH, 2)
    while more := connection.recv(ENOUGH):
        text += more
    child = os.fork()
    if child == 0:
        connection.close()
        _run(json.loads(text), *fds)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(OSError):
        connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _run(request: dict, out: int, err: int) -> None:
    """Become the command: take its folder, environment and output, run it, and exit with its code."""
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (out, 1), (err, 2)):
        os.dup2(source, target)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv = ["nearcast", *request["words"]]
    code = 1
    try:
        import_module("nearcast.cli").main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])
