"""A web server that takes posts: which statuses it answers with, and what was posted."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Hook:
    """The server's address, the statuses that it answers with (the last one for all later posts), and the posts."""

    url: str = ""
    statuses: list[int] = field(default_factory=lambda: [200])
    posts: list[Any] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    def take(self) -> list[Any]:
        """Return the posts since the last call."""
        found, self.posts = self.posts, []
        return found


@contextmanager
def listening_hook(*statuses: int) -> Iterator[Hook]:
    """Listen on 127.0.0.1 until the end of the block."""
    hook = Hook(statuses=list(statuses) or [200])

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            hook.posts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            hook.paths.append(self.path)
            self.send_response(hook.statuses.pop(0) if len(hook.statuses) > 1 else hook.statuses[0])
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    hook.url = f"http://127.0.0.1:{server.server_port}/s3cret"
    try:
        yield hook
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
