"""The listing of a bucket follows the rules of a local folder: the same files, folders of columns and notes."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nearcast.errors import InputError
from nearcast.sources import bucket_files, parquet_listing
from nearcast.sources.hive import hive_values
from nearcast.sources.parquet_listing import list_parquet
from nearcast.storage.local_storage import LocalStorage

NAMES = (
    "a",
    "b.parquet",
    "c.PQ",
    "_SUCCESS",
    ".hidden",
    "_x=1",
    "day=2",
    "_delta_log",
    "x[1]",
    "é %20+#",
    "p._COPYING_",
)
PARTS = st.sampled_from(NAMES)
TREES = st.lists(st.tuples(st.lists(PARTS, min_size=1, max_size=4), st.booleans()), min_size=1, max_size=8)
PATTERNS = st.lists(
    st.sampled_from(["*", "**", "a", "day=*", "_*", "x[1]", "*.parquet", "day=2", "?"]), min_size=1, max_size=4
)


@pytest.fixture(scope="module")
def parquet():
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": [1]}), sink)
    return sink.getvalue().to_pybytes()


@pytest.fixture
def as_bucket(tmp_path, monkeypatch):
    """A local folder that is read as if it was the bucket s3://bucket."""
    monkeypatch.setattr(parquet_listing, "open_bucket", lambda bucket: LocalStorage(tmp_path))
    monkeypatch.setattr(bucket_files, "open_bucket", lambda bucket: LocalStorage(tmp_path))
    return tmp_path


def describe(pattern, base, leave_out):
    """What a listing says, in words that are the same for both; or its error."""
    local = not str(pattern).startswith("s3:")

    def plain(text):
        return (
            str(text)
            .replace("s3://bucket/", "")
            .replace("s3://bucket", "")
            .replace(f"{base}/", "")
            .replace(str(base), "")
        )

    try:
        found = list_parquet(pattern, base, "path", "check it", leave_out=leave_out)
    except InputError as error:
        return plain(error)
    folder = found.folder.relative_to(base) if local else found.folder
    files = [
        (plain(file.name), hive_values(file.path, found.base), hive_values(file.path, found.folder))
        for file in found.files
    ]
    return files, [plain(note).lstrip(": ") for note in found.notes], str(folder)


@given(tree=TREES, pattern=PATTERNS, out=st.lists(PARTS, min_size=1, max_size=2))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_bucket_is_listed_as_a_local_folder_is(tree, pattern, out, as_bucket, parquet):
    for path in sorted(as_bucket.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    for parts, is_parquet in tree:
        path = as_bucket.joinpath(*parts)
        if not any(above.is_file() for above in (path, *path.parents)) and not path.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(parquet if is_parquet else b"text")
    name = "/".join(pattern)
    local = describe(name, as_bucket, as_bucket.joinpath(*out))
    assert describe(f"s3://bucket/{name}", as_bucket, f"s3://bucket/{'/'.join(out)}") == local
