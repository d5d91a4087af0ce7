"""The process of an S3 server: moto, with its bucket and the objects that it is given there before it listens.

moto compares a condition and writes in two steps, so that two of several writers at once may win. S3 does it in one:
here a lock makes it so.
"""

import pickle
import sys
import threading
from pathlib import Path
from typing import Any

from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from moto.s3.responses import S3Response
from moto.server import main

port, bucket, kept = sys.argv[1:]
one_put_at_a_time = threading.Lock()
put_object = S3Response.put_object


def put_alone(self: S3Response) -> Any:
    """Compare and write while no other put does."""
    with one_put_at_a_time:
        return put_object(self)


S3Response.put_object = put_alone  # type: ignore[method-assign]
backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
backend.create_bucket(bucket, "us-east-1")
for key, data in pickle.loads(Path(kept).read_bytes()).items():
    backend.put_object(bucket, key, data)
main(["-H", "127.0.0.1", "-p", port])
