"""The process of an S3 server: moto, with its bucket and the objects that it is given there before it listens."""

import pickle
import sys
from pathlib import Path

from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from moto.server import main

port, bucket, kept = sys.argv[1:]
backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
backend.create_bucket(bucket, "us-east-1")
for key, data in pickle.loads(Path(kept).read_bytes()).items():
    backend.put_object(bucket, key, data)
main(["-H", "127.0.0.1", "-p", port])
