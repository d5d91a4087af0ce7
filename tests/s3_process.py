"""The process of an S3 server: moto, with its bucket and the objects that it is given there before it listens.

moto compares a condition and writes in two steps, so that two of several writers at once may win. S3 does it in one:
here a lock makes it so.
"""

import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from moto.s3.responses import S3Response
from moto.server import main

port, bucket, kept = sys.argv[1:]
one_change_at_a_time = threading.Lock()


def change_alone(method: Callable[[S3Response], Any]) -> Callable[[S3Response], Any]:
    """Compare and write while nothing else is changed."""

    def change(self: S3Response) -> Any:
        with one_change_at_a_time:
            return method(self)

    return change


def end_with_objects(*_: object) -> None:
    """Write all objects into a file and end at once: what was answered is kept, what is under way is broken off."""
    one_change_at_a_time.acquire()
    objects = {key.name: key.value for key in list(backend.buckets[bucket].keys.values())}
    Path(kept).write_bytes(pickle.dumps(objects))
    os._exit(0)


for name in ("put_object", "copy_object", "delete_object"):
    setattr(S3Response, name, change_alone(getattr(S3Response, name)))
signal.signal(signal.SIGUSR1, end_with_objects)
backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
backend.create_bucket(bucket, "us-east-1")
for key, data in pickle.loads(Path(kept).read_bytes()).items():
    backend.put_object(bucket, key, data)
main(["-H", "127.0.0.1", "-p", port])
