"""A bucket as a WebHDFS server: Spark comes without a connector to S3, and this protocol it has.

Serves what Spark needs to write and read Parquet. A folder is there if it was made or if an object is below it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from nearcast.storage.base import Storage
from servers import HERE

ROOT = "/webhdfs/v1/"
OWNER = {"owner": "test", "group": "test", "accessTime": 0, "modificationTime": 0, "childrenNum": 0, "fileId": 0}


@contextmanager
def webhdfs_running(bucket: Storage) -> Iterator[str]:
    """Serve the objects of a bucket for a while; yields the URL of its root as Hadoop names it."""
    folders = {""}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            parts = urlsplit(self.path)
            query = {key.lower(): values[0] for key, values in parse_qs(parts.query).items()}
            name = unquote(parts.path).removeprefix(ROOT).strip("/")
            getattr(self, query["op"].lower(), self.refuse)(name, query)

        do_GET = do_PUT = do_DELETE = answer  # noqa: N815

        def log_message(self, *_: Any) -> None:
            """Stay quiet."""

        def reply(self, status: int, body: Any = b"", **headers: str) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Type", "application/octet-stream" if body is data else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def fail(self, status: int, kind: str, text: str) -> None:
            fault = {"exception": kind.rpartition(".")[2], "javaClassName": kind, "message": text}
            self.reply(status, {"RemoteException": fault})

        def refuse(self, name: str, query: dict[str, str]) -> None:
            self.fail(400, "java.lang.UnsupportedOperationException", query["op"])

        def getfilestatus(self, name: str, _: dict[str, str]) -> None:
            found = status_of(name, "")
            if found is None:
                self.fail(404, "java.io.FileNotFoundException", f"{name} does not exist")
            else:
                self.reply(200, {"FileStatus": found})

        def liststatus(self, name: str, _: dict[str, str]) -> None:
            self.reply(200, {"FileStatuses": {"FileStatus": children_of(name)}})

        def liststatus_batch(self, name: str, _: dict[str, str]) -> None:
            listing = {"FileStatuses": {"FileStatus": children_of(name)}}
            self.reply(200, {"DirectoryListing": {"partialListing": listing, "remainingEntries": 0}})

        def getfileblocklocations(self, _name: str, _: dict[str, str]) -> None:
            self.reply(200, {"BlockLocations": {"BlockLocation": []}})

        def open(self, name: str, query: dict[str, str]) -> None:
            start = int(query.get("offset", 0))
            self.reply(200, bucket.read(name)[start:][: int(query["length"]) if "length" in query else None])

        def mkdirs(self, name: str, _: dict[str, str]) -> None:
            parts = name.split("/")
            folders.update("/".join(parts[: n + 1]) for n in range(len(parts)))
            self.reply(200, {"boolean": True})

        def setpermission(self, _name: str, _: dict[str, str]) -> None:
            self.reply(200)

        def create(self, name: str, query: dict[str, str]) -> None:
            if "data" not in query:
                self.reply(307, Location=f"http://{HERE}:{self.server.server_address[1]}{self.path}&data=true")
                return
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            bucket.write(name, data)
            self.reply(201)

        def rename(self, name: str, query: dict[str, str]) -> None:
            target = query["destination"].strip("/")
            for old in list(names_below(name)):
                bucket.write(target + old.removeprefix(name), bucket.read(old))
                bucket.delete(old)
            moved = {folder for folder in folders if folder == name or folder.startswith(f"{name}/")}
            folders.difference_update(moved)
            folders.update(target + folder.removeprefix(name) for folder in moved)
            self.reply(200, {"boolean": True})

        def delete(self, name: str, _: dict[str, str]) -> None:
            for old in list(names_below(name)):
                bucket.delete(old)
            folders.difference_update({one for one in folders if one == name or one.startswith(f"{name}/")})
            self.reply(200, {"boolean": True})

    def names_below(name: str) -> Iterator[str]:
        if bucket.stat(name) is not None:
            yield name
        yield from (each.name for each in bucket.list_objects(name))

    def status_of(name: str, shown: str) -> dict[str, Any] | None:
        facts = bucket.stat(name) if name else None
        if facts is not None:
            file = {"type": "FILE", "length": facts.size, "permission": "644", "replication": 1, "blockSize": 1 << 27}
            return {**OWNER, **file, "pathSuffix": shown}
        if name in folders or next(iter(bucket.list_objects(name)), None) is not None:
            folder = {"type": "DIRECTORY", "length": 0, "permission": "755", "replication": 0, "blockSize": 0}
            return {**OWNER, **folder, "pathSuffix": shown}
        return None

    def children_of(name: str) -> list[dict[str, Any]]:
        prefix = f"{name}/" if name else ""
        below = [*(each.name for each in bucket.list_objects(name)), *folders]
        shown = {one.removeprefix(prefix).split("/")[0] for one in below if one.startswith(prefix) and one != name}
        if bucket.stat(name) is not None:
            return [found for found in [status_of(name, "")] if found]
        return [found for one in sorted(shown - {""}) if (found := status_of(prefix + one, one)) is not None]

    server = ThreadingHTTPServer((HERE, 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"webhdfs://{HERE}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
