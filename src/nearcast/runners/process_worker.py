"""The program of a worker process of `processes`: reads calls from one pipe, writes replies to another.

Started as `python -m nearcast.runners.process_worker REPLY_FD`. Ends when its driver ends, also in the middle of a
task: the driver holds the other end of its standard input.
"""

from __future__ import annotations

import json
import os
import queue
import select
import sys
import threading

__all__ = ["main"]

WATCH_SECONDS = 1.0  # between looks at the parent, for the case that another process has inherited its end of the pipe


def main(reply_fd: int) -> None:
    """Run calls until the driver closes the pipe or dies."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    parent = os.getppid()
    calls = os.dup(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # a task that reads standard input finds an empty one
    os.dup2(2, 1)  # what a task prints is for people
    threading.Thread(target=_receive, args=(calls, lines, parent), name="calls", daemon=True).start()
    head = json.loads(lines.get())
    sys.path.extend(folder for folder in head["path"] if folder not in sys.path)
    from nearcast.runners.call_messages import perform_message  # after the watching thread has started

    while True:
        call = json.loads(lines.get())
        os.environ.update(call["variables"])
        reply = perform_message(*call["message"]).encode() + b"\n"
        while reply:
            reply = reply[os.write(reply_fd, reply) :]


def _receive(calls: int, lines: queue.SimpleQueue[str], parent: int) -> None:
    """Pass on the lines of the pipe. End the process when the pipe is closed or the parent is another one."""
    rest = b""
    while os.getppid() == parent:
        if not select.select([calls], [], [], WATCH_SECONDS)[0]:
            continue
        read = os.read(calls, 1 << 16)
        if not read:
            break
        *whole, rest = (rest + read).split(b"\n")
        for line in whole:
            lines.put(line.decode())
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
