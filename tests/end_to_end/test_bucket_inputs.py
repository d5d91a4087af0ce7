"""Inputs in a bucket: the same candidates as from local files, and one state of every object or a clear error."""

from __future__ import annotations

import json
import secrets
import urllib.request
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.end_to_end.shop import fail, succeed

import nearcast
from fault_proxy import Fault, FaultProxy, fail_at_random, fail_first, faults_before
from nearcast.errors import InputError, MissingExtraError, SpecError, StorageError
from nearcast.join.listener import Listener
from nearcast.replaying.request_log import read_log
from nearcast.sources import bucket_files
from nearcast.sources.open_source import open_source
from nearcast.sources.parquet_listing import list_parquet
from nearcast.spec import SourceSpec
from nearcast.storage.object_storage import ObjectStorage
from nearcast.storage.open_storage import open_storage
from needs import require_module
from s3_server import BUCKET, environment_of

N, DIM = 120, 8


def rows(n=N, *, seed=0, first=0):
    vectors = np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float32)
    ids = [f"item-{first + i:04d}" for i in range(n)]
    return pa.table({"id": ids, "vector": vectors.tolist(), "price": [float(seed + i) for i in range(n)]})


def write_onnx(path, sign):
    onnx = require_module("onnx")
    value = partial(onnx.helper.make_tensor_value_info, elem_type=onnx.TensorProto.FLOAT, shape=[None])
    factor = onnx.helper.make_tensor("factor", onnx.TensorProto.FLOAT, [1], [sign])
    node = onnx.helper.make_node("Mul", ["score", "factor"], ["rank"])
    graph = onnx.helper.make_graph([node], "rank", [value("score")], [value("rank")], [factor])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())


def write_all(folder: Path, seed: int) -> None:
    """Every kind of file that a command reads, in one of two states that give different answers."""
    folder.mkdir(parents=True)
    pq.write_table(rows(seed=seed), folder / "items.parquet", row_group_size=50)
    for part in range(3):
        (folder / f"parts/day={part % 2}").mkdir(parents=True, exist_ok=True)
        data = rows(seed=seed).slice(part * N // 3, N // 3)
        pq.write_table(data, folder / f"parts/day={part % 2}/part {part} 50%+#é.parquet")
    pq.write_table(rows(40, seed=seed + 10), folder / "queries.parquet")
    vectors = np.random.default_rng(seed).normal(size=(N, DIM)).astype(np.float32)
    np.save(folder / "v.npy", vectors)
    np.save(folder / "fortran.npy", np.asfortranarray(vectors))
    np.save(folder / "ids.npy", np.arange(N) + 100 * seed)
    (folder / "ids.txt").write_text("".join(f"item-{i + 7 * seed:03d}\n" for i in range(N)))
    pq.write_table(pa.table({"id": rows()["id"].to_pylist()[seed::2]}), folder / "only.parquet")
    ids = rows()["id"].to_pylist() * 3
    survived = (np.random.default_rng(seed).random(3 * N) < 0.5).tolist()
    log = {"key": ids, "item": ids[::-1], "survived": survived, "n": list(range(seed, 3 * N + seed))}
    pq.write_table(pa.table(log), folder / "log.parquet", row_group_size=100)
    pq.write_table(pa.table({"ad": list(range(N)), "bid": [float(seed)] * N}), folder / "ads.parquet")
    pq.write_table(pa.table({"item": ids[:N], "ad": np.roll(range(N), seed)}), folder / "links.parquet")


def upload(folder: Path, url: str, *names: str) -> None:
    """Upload these files and folders of a folder, or all."""
    storage = open_storage(url)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and (not names or name.parts[0] in names):
            storage.upload(name.as_posix(), path)


def candidates(snapshot) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((snapshot.folder / "candidates").iterdir())}


@dataclass(frozen=True)
class Place:
    """Where inputs are, and where results go."""

    data: str  # a URL or a path
    out: Path

    def at(self, name: str) -> str:
        return f"{self.data}/{name}"

    def run(self, **tables):
        """Run a generator; a path in a table is a name of the data."""
        spec = {"name": "test", "metric": "inner_product", "k": 3, "measure": {"sample": 20, "calibration": 20}}
        placed = {
            table: {key: self.at(value) if key in ("path", "ids", "only", "log", "model") else value
                    for key, value in settings.items()} if isinstance(settings, dict) else settings
            for table, settings in tables.items()
        }  # fmt: skip
        return candidates(nearcast.run(spec | placed, base=self.out).snapshot)

    def expand(self):
        tables = {"ads": {"path": self.at("ads.parquet")}, "links": {"path": self.at("links.parquet")}}
        done = nearcast.expand({"name": "promoted"} | tables, base=self.out, store=str(self.out / "store"))
        return done.ads, done.links

    def publish_table(self):
        store = str(self.out / "store")
        nearcast.publish_table("test", "phrases", self.at("log.parquet"), key="key", item="item", store=store)
        return nearcast.published("test.phrases", store=store)[0].pointer.version, self.read_lists(store)

    def read_lists(self, store):
        with nearcast.open(store, "test.phrases") as table:
            answers = [table.get(f"item-{i:04d}") for i in range(N)]
        return [(answer.ids, answer.scores) for answer in answers]


ITEMS = {"path": "items.parquet", "attributes": ["price"]}
READS = {
    "items": (["items.parquet"], lambda place: place.run(items=ITEMS)),
    "a folder": (
        ["parts/day=0/part 2 50%+#é.parquet", "parts/day=1/part 1 50%+#é.parquet"],
        lambda place: place.run(items={"path": "parts", "attributes": ["day", "price"]}),
    ),
    "a glob": (["parts/day=1/part 1 50%+#é.parquet"], lambda place: place.run(items={"path": "par*/**/*.parquet"})),
    "queries": (["queries.parquet"], lambda place: place.run(items=ITEMS, queries={"path": "queries.parquet"})),
    "only": (["only.parquet"], lambda place: place.run(items=ITEMS | {"only": "only.parquet"})),
    "npy": (["v.npy", "ids.npy"], lambda place: place.run(items={"path": "v.npy", "ids": "ids.npy"})),
    "npy in Fortran order": (
        ["fortran.npy"], lambda place: place.run(items={"path": "fortran.npy", "ids": "ids.npy"})
    ),
    "ids as text": (["ids.txt"], lambda place: place.run(items={"path": "v.npy", "ids": "ids.txt"})),
    "ids as Parquet": (["items.parquet"], lambda place: place.run(items={"path": "v.npy", "ids": "items.parquet"})),
    "survival": (
        ["log.parquet"], lambda place: place.run(items=ITEMS, overfetch={"at_least": 1, "log": "log.parquet"})
    ),
    "model": (["model.onnx"], lambda place: place.run(items=ITEMS, rank={"model": "model.onnx", "fetch": 10})),
    "head": (
        ["log.parquet"], lambda place: nearcast.head(place.at("log.parquet"), count="n", coverage=0.5).as_dict()
    ),
    "replay": (["log.parquet"], lambda place: read_log(place.at("log.parquet"))),
    "table": (["log.parquet"], Place.publish_table),
    "ads and links": (["ads.parquet", "links.parquet"], Place.expand),
}  # fmt: skip


@pytest.fixture(scope="module")
def states(tmp_path_factory) -> tuple[Path, Path]:
    """The two states of all files, which no test changes."""
    folder = tmp_path_factory.mktemp("states")
    for seed, name in enumerate(("old", "new")):
        write_all(folder / name, seed)
    return folder / "old", folder / "new"


def add_model(read, *folders):
    if read == "model":
        require_module("onnxruntime")
        for number, folder in enumerate(folders):
            write_onnx(folder / "model.onnx", -1.0 if number else 1.0)


def place_in(tmp_path, data) -> Place:
    out = tmp_path / f"out-{secrets.token_hex(4)}"
    out.mkdir()
    return Place(str(data), out)


@pytest.mark.parametrize("read", READS)
def test_what_is_read_from_a_bucket_gives_the_bytes_of_local_files(read, s3_url, states, tmp_path):
    add_model(read, *states)
    upload(states[0], s3_url)
    command = READS[read][1]
    assert command(place_in(tmp_path, s3_url)) == command(place_in(tmp_path, states[0]))


def test_the_manifest_names_objects_by_url_and_etag(s3_url, states, tmp_path):
    upload(states[0], s3_url, "items.parquet")
    place = place_in(tmp_path, s3_url)
    place.run(items=ITEMS)
    manifest = json.loads((place.out / "nearcast/test/snapshots/000001/manifest.json").read_text())
    (file,) = manifest["inputs"]["items"]["files"]
    stored = open_storage(s3_url).stat("items.parquet")
    assert (file["name"], file["bytes"], file["etag"]) == (f"{s3_url}/items.parquet", stored.size, stored.etag)
    assert len(file["blake2b"]) == 32


def test_the_same_objects_need_no_second_run_and_a_new_upload_does(s3_url, states, tmp_path):
    upload(states[0], s3_url, "parts")
    spec = {"name": "test", "metric": "l2", "k": 2, "items": {"path": f"{s3_url}/parts"}}
    assert not nearcast.run(spec, base=tmp_path).reused
    assert nearcast.run(spec, base=tmp_path).reused
    upload(states[1] / "parts/day=0", f"{s3_url}/parts/day=0")
    assert not nearcast.run(spec, base=tmp_path).reused


# --- objects in motion ---------------------------------------------------------------------------------------------


@pytest.fixture
def proxy(s3_server, s3_url, monkeypatch) -> FaultProxy:
    monkeypatch.setenv("NEARCAST_STORAGE_PATIENCE", "20")
    with faults_before(s3_server.port) as made:
        yield made


def behind(proxy: FaultProxy, monkeypatch) -> None:
    for name, value in environment_of(proxy.endpoint).items():
        monkeypatch.setenv(name, value)


def replace_object(storage, name, new):
    storage.upload(name, new / name)


def delete_object(storage, name, new):
    storage.delete(name)


def truncate_object(storage, name, new):
    storage.write(name, storage.read(name)[:-20])


slow = pytest.mark.slow
LIKE_OTHERS = ("a glob", "npy in Fortran order", "ids as text", "ids as Parquet", "survival")  # read like another one
CHANGED = ("changed while it was read",)
NEVER_WHOLE = (  # the change came before the first look
    *("no Parquet file at", "no object at", "not a readable", "is damaged"),
    *("has 118 ids for the 120 vectors", "cannot be read by onnxruntime"),
)


@pytest.mark.parametrize(
    "change",
    [replace_object, pytest.param(delete_object, marks=slow), pytest.param(truncate_object, marks=slow)],
    ids=lambda change: change.__name__,
)
@pytest.mark.parametrize("read", [pytest.param(read, marks=slow if read in LIKE_OTHERS else ()) for read in READS])
def test_whenever_an_object_changes_the_answer_is_that_of_one_state_or_exit_3(
    read, change, proxy, s3_url, states, tmp_path, monkeypatch
):
    old, new = states
    add_model(read, old, new)
    names, command = READS[read]
    direct = open_storage(s3_url)
    direct.stat("connects before the proxy")
    upload(old, s3_url)
    behind(proxy, monkeypatch)
    old_answer = command(place_in(tmp_path, s3_url))
    requests = len(proxy.requests)
    refused = 0
    for place, n in enumerate(sorted({1, requests // 3, requests // 2, requests - 1})):
        name = names[place % len(names)]
        first = len(proxy.requests)

        def plan(request, first=first, n=n, name=name):
            if request.number == first + n:
                change(direct, name, new)

        proxy.plan = plan
        try:
            found = command(place_in(tmp_path, s3_url))
        except (InputError, SpecError) as error:
            said = str(error)
            assert any(word in said for word in (*CHANGED, *NEVER_WHOLE)), said
            assert s3_url in said
            refused += 1
        else:
            proxy.plan = lambda request: None
            if found != old_answer:
                assert found == command(place_in(tmp_path, s3_url))
        direct.upload(name, old / name)
    assert refused


class At(Listener):
    """Act once, when a stage first reports progress."""

    def __init__(self, stage, act):
        super().__init__()
        self.stage, self.act, self.done = stage, act, False

    def progress(self, stage, done, total):
        if stage == self.stage and not self.done:
            self.done = True
            self.act()


@pytest.mark.parametrize("stage", ["hash inputs", "check items", "read items"])
def test_an_object_that_is_added_to_a_folder_meanwhile_is_a_change(stage, s3_url, states, tmp_path):
    upload(states[0], s3_url, "parts")
    storage = open_storage(s3_url)
    spec = {"name": "test", "metric": "l2", "k": 2, "items": {"path": f"{s3_url}/parts"}}
    add = partial(storage.upload, "parts/day=1/new.parquet", states[0] / "items.parquet")
    with pytest.raises(InputError, match=r"parts changed while it was read; run again .*day=1/new\.parquet is new"):
        nearcast.run(spec, base=tmp_path, listener=At(stage, add))
    storage.delete("parts/day=1/new.parquet")
    nearcast.run(spec, base=tmp_path, listener=At(stage, partial(storage.write, "parts/README", b"no Parquet")))


# --- many objects, odd names, folders ------------------------------------------------------------------------------


def test_a_hundred_small_objects_are_read_with_few_requests(proxy, s3_url, tmp_path, monkeypatch):
    folder = tmp_path / "many"
    folder.mkdir()
    for part in range(100):
        pq.write_table(rows(5, seed=part, first=5 * part), folder / f"part-{part:03d}.parquet")
    upload(folder, s3_url)
    behind(proxy, monkeypatch)
    found = place_in(tmp_path, s3_url.rpartition("/")[0]).run(items={"path": s3_url.rpartition("/")[2]})
    requests = [request.method for request in proxy.requests]
    assert len(requests) < 100 * 7 + 30
    assert requests.count("HEAD") < 10
    assert found == place_in(tmp_path, tmp_path).run(items={"path": "many"})


ODD = ["a b.parquet", "é日本.parquet", "50%.parquet", "a%20b.parquet", "x+y.parquet", "h#1.parquet", "q?.parquet",
       "[z].parquet", "quo'te\".parquet", "c=d & e=f/x.parquet", "deep/er/deep/er.parquet", "no ending"]  # fmt: skip


def test_names_may_have_any_letters(s3_url, tmp_path):
    for number, name in enumerate(ODD):
        path = tmp_path / "odd" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows(3, seed=number, first=3 * number), path)
    upload(tmp_path / "odd", s3_url)
    assert [file.name for file in list_parquet(s3_url, tmp_path, "path", "").files] == sorted(
        (f"{s3_url}/{name}" for name in ODD), key=lambda name: name.split("/")
    )
    for name in ODD:
        (file,) = list_parquet(f"{s3_url}/{name}", tmp_path, "path", "").files
        assert file.name == f"{s3_url}/{name}"
    assert open_source(SourceSpec(path=s3_url), tmp_path).n_rows == 3 * len(ODD)


def make_object(s3_server, s3_url, name, data=b""):
    """Put an object whose name our own client refuses."""
    url = f"{s3_server.endpoint}/{s3_url.removeprefix('s3://')}/{name}"
    with urllib.request.urlopen(urllib.request.Request(url, data=data, method="PUT"), timeout=30):
        pass


def test_objects_that_mark_folders_are_no_files(s3_server, s3_url, states, tmp_path):
    upload(states[0], s3_url, "parts")
    for name in ("parts/", "parts/day=1/", "parts/empty/", "parts/day=1_%24folder%24"):
        make_object(s3_server, s3_url, name)
    listing = list_parquet(f"{s3_url}/parts", tmp_path, "path", "")
    assert len(listing.files) == 3
    assert listing.notes == ()
    listing.check()
    assert len(list_parquet(f"{s3_url}/parts/", tmp_path, "path", "").files) == 3


def test_an_object_without_bytes_is_no_parquet(s3_url, tmp_path):
    open_storage(s3_url).write("items/empty.parquet", b"")
    with pytest.raises(InputError, match=r"items/empty\.parquet is not a readable Parquet file"):
        open_source(SourceSpec(path=f"{s3_url}/items"), tmp_path)


@pytest.mark.parametrize("name", ["a//b.parquet", "a/./b.parquet", "a/%01.parquet"])
def test_a_name_that_no_client_can_read_is_an_error_that_says_so(name, s3_server, s3_url, states, tmp_path):
    upload(states[0] / "parts", s3_url)
    make_object(s3_server, s3_url, name, b"x")
    with pytest.raises((InputError, StorageError), match="rename"):
        list_parquet(s3_url, tmp_path, "path", "")


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("nothing", "no Parquet file at s3://.*/nothing; check `path`"),
        ("nothing/*.parquet", r"no Parquet file at s3://.*/nothing/\*\.parquet; check `path`"),
        ("ids.txt", "ids.txt is not a readable Parquet file"),
        ("v.npy", "name their file"),
        ("texts", "no Parquet file at .*/texts; .*; 1 file is no Parquet and was skipped: s3://.*/texts/a"),
        ("a//b", "has an empty part"),
        ("cut.parquet", "cut.parquet is not a readable Parquet file, or was cut short"),
    ],
)
def test_what_is_no_input_is_an_error_that_says_so(path, says, s3_url, states, tmp_path):
    upload(states[0], s3_url, "ids.txt", "v.npy", "items.parquet")
    storage = open_storage(s3_url)
    storage.write("texts/a", b"text")
    storage.write("cut.parquet", storage.read("items.parquet")[:-9])
    with pytest.raises((InputError, SpecError), match=says):
        nearcast.check({"name": "t", "metric": "l2", "k": 1, "items": {"path": f"{s3_url}/{path}"}}, base=tmp_path)
    assert not (tmp_path / "s3:").exists()


@pytest.mark.parametrize("url", ["s3://", "s3:///x", "s3://bu*/x", "s3://user:secret@bucket/x"])
def test_a_url_without_a_bucket_is_refused_and_shows_no_password(url, tmp_path):
    with pytest.raises(InputError, match="names no bucket") as caught:
        list_parquet(url, tmp_path, "path", "")
    assert "secret" not in str(caught.value)


# --- faults of the storage -----------------------------------------------------------------------------------------


def test_a_missing_bucket_is_told(s3_url, tmp_path):
    with pytest.raises(StorageError, match="the bucket nobucket does not exist"):
        nearcast.head("s3://nobucket/log.parquet")


def test_missing_credentials_are_told(s3_url, tmp_path, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StorageError, match="no credentials were found; set AWS_ACCESS_KEY_ID"):
        nearcast.head(f"{s3_url}/log.parquet")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_an_object_that_may_not_be_read_is_told(method, proxy, s3_url, states, tmp_path, monkeypatch):
    upload(states[0], s3_url, "items.parquet")
    behind(proxy, monkeypatch)
    proxy.plan = fail_first(99, Fault(status=403, code="AccessDenied"), method=method, path="items.parquet")
    with pytest.raises(StorageError, match=r"items\.parquet failed.*access was refused"):
        place_in(tmp_path, s3_url).run(items=ITEMS)


FAULTS = {
    "500": Fault(status=500),
    "503": Fault(status=503, code="SlowDown"),
    "429": Fault(status=429),
    "reset": Fault(reset=True),
    "cut": Fault(cut_body=True),
}


@pytest.mark.parametrize(
    "fault", ["500", "cut", *(pytest.param(fault, marks=slow) for fault in ("503", "429", "reset"))]
)
def test_a_run_goes_on_after_faults_of_the_server(fault, proxy, s3_url, states, tmp_path, monkeypatch):
    upload(states[0], s3_url, "parts", "queries.parquet")
    expected = place_in(tmp_path, states[0]).run(items={"path": "parts"}, queries={"path": "queries.parquet"})
    behind(proxy, monkeypatch)
    proxy.plan = fail_at_random(0.4, FAULTS[fault])
    found = place_in(tmp_path, s3_url).run(items={"path": "parts"}, queries={"path": "queries.parquet"})
    assert found == expected
    assert proxy.injected > 3


def test_a_server_that_stays_away_ends_the_run_with_the_reason(proxy, s3_url, states, tmp_path, monkeypatch):
    upload(states[0], s3_url, "items.parquet")
    behind(proxy, monkeypatch)
    monkeypatch.setenv("NEARCAST_STORAGE_PATIENCE", "1")
    proxy.plan = lambda request: Fault(status=503, code="SlowDown") if request.number > 5 else None
    with pytest.raises(StorageError, match="the server failed, got status 503"):
        place_in(tmp_path, s3_url).run(items=ITEMS)


# --- reads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [(1 << 10, 1 << 11, 1 << 9), (100, 100, 100), (1 << 20, 1 << 22, 1 << 23)])
def test_a_parquet_object_reads_the_same_in_pieces_of_any_size(pieces, s3_url, tmp_path, monkeypatch):
    for name, value in zip(("PIECE_BYTES", "WHOLE_BYTES", "AHEAD_BYTES"), pieces, strict=True):
        monkeypatch.setattr(bucket_files, name, value)
    data = rows(200)
    pq.write_table(data, tmp_path / "items.parquet", row_group_size=30)
    upload(tmp_path, s3_url)
    (file,) = list_parquet(f"{s3_url}/items.parquet", tmp_path, "path", "").files
    assert pq.ParquetFile(file.open()).read().equals(data)
    assert file.read() == (tmp_path / "items.parquet").read_bytes()
    with file.open() as opened:
        contents = file.read()
        opened.seek(-10, 2)
        assert opened.read() == contents[-10:]
        opened.seek(5)
        assert (opened.read(7), opened.tell(), opened.size()) == (contents[5:12], 12, len(contents))
    assert file.read_ranges([(3, 3), (0, 5), (len(contents) - 2, len(contents) + 9)]) == [
        b"", contents[:5], contents[-2:]
    ]  # fmt: skip


def test_reading_in_batches_holds_a_row_group_and_not_the_object(s3_url, tmp_path):
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.random.default_rng(0).random(4_000_000)), 8)
    pq.write_table(
        pa.table({"id": range(500_000), "vector": vectors}), tmp_path / "items.parquet", row_group_size=25_000
    )
    upload(tmp_path, s3_url)
    source = open_source(SourceSpec(path=f"{s3_url}/items.parquet"), tmp_path)
    before, most = pa.total_allocated_bytes(), 0
    for _ in source.batches(vectors=True, attributes=False, memory_bytes=4 << 20):
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < (tmp_path / "items.parquet").stat().st_size / 2


# --- what stays on this machine ------------------------------------------------------------------------------------


def test_a_spec_is_a_local_file(s3_url):
    with pytest.raises(SpecError, match=f"{s3_url}/g.toml is in a bucket, and a spec is a local file: copy it here"):
        nearcast.run(f"{s3_url}/g.toml")


def test_python_code_is_not_imported_from_a_bucket(s3_url, states, tmp_path):
    upload(states[0], s3_url, "items.parquet")
    with pytest.raises(SpecError, match='write it as "module:function"'):
        place_in(tmp_path, s3_url).run(items=ITEMS, rank={"function": f"{s3_url}/model.py:rank", "fetch": 9})


def test_without_the_library_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "obstore", None)
    with pytest.raises(MissingExtraError, match=r"nearcast\[cloud\]"):
        list_parquet("s3://bucket/items", tmp_path, "path", "")


def test_the_out_of_the_spec_in_the_same_bucket_is_no_input(s3_url, states, tmp_path):
    upload(states[0] / "parts", f"{s3_url}/shop")
    upload(states[0] / "parts", f"{s3_url}/shop/nearcast/test/snapshots")
    bucket = f"s3://{BUCKET}"
    left = list_parquet(f"{s3_url}/shop", tmp_path, "path", "", leave_out=f"{s3_url}/shop/nearcast")
    assert len(left.files) == 3
    assert len(list_parquet(f"{s3_url}/shop", tmp_path, "path", "", leave_out=bucket.upper()).files) == 6


def test_the_storage_is_asked_by_this_url_scheme_only(tmp_path):
    assert isinstance(bucket_files.open_bucket("gs://bucket"), ObjectStorage)
    assert bucket_files.open_bucket("az://container").url == "az://container"


# --- every command on a generator whose inputs are in a bucket -----------------------------------------------------


@pytest.fixture
def generator_toml(s3_url, states, tmp_path):
    """A spec beside its results, with items, queries and log in the bucket."""
    upload(states[0], s3_url, "items.parquet", "queries.parquet", "log.parquet")
    path = tmp_path / "shop" / "generator.toml"
    path.parent.mkdir()
    path.write_text(f"""
name = "shop"
metric = "cosine"
k = 3

[items]
path = "{s3_url}/items.parquet"
attributes = ["price"]

[queries]
path = "{s3_url}/queries.parquet"

[measure]
sample = 20
calibration = 20
""")
    return path


def test_check_explain_and_diff_work_on_inputs_in_a_bucket(generator_toml, s3_url, states):
    folder = generator_toml.parent
    checked = succeed("check", "generator.toml", cwd=folder)
    assert "120" in checked.stdout
    succeed("run", "generator.toml", cwd=folder)
    open_storage(s3_url).upload("items.parquet", states[1] / "items.parquet")
    succeed("run", "generator.toml", cwd=folder)
    assert "40 queries compared" in succeed("diff", "shop", cwd=folder).stdout
    succeed("explain", "shop", "item-0001", "item-0007", cwd=folder)
    open_storage(s3_url).delete("items.parquet")
    assert f"no Parquet file at {s3_url}/items.parquet" in fail("check", "generator.toml", code=3, cwd=folder)
    succeed("show", "shop", cwd=folder)


def test_head_writes_its_keys_into_a_bucket_for_only(generator_toml, s3_url, tmp_path):
    folder = generator_toml.parent
    words = ("--coverage", "0.3", "--count", "n")
    shown = succeed("head", f"{s3_url}/log.parquet", *words, "--to", f"{s3_url}/keys/head.parquet", cwd=folder)
    assert f'only = "{s3_url}/keys/head.parquet"' in shown.stdout
    succeed("head", f"{s3_url}/log.parquet", *words, "--to", "head.parquet", cwd=folder)
    assert open_storage(s3_url).read("keys/head.parquet") == (folder / "head.parquet").read_bytes()
    fail("head", f"{s3_url}/log.parquet", "--to", f"{s3_url}/keys/", code=3, cwd=folder)
    assert not (folder / "s3:").exists()


def test_publish_monitor_refresh_and_replay_work_on_inputs_in_a_bucket(generator_toml, s3_url, states):
    folder = generator_toml.parent
    succeed("refresh", "generator.toml", cwd=folder)
    assert "nothing" in succeed("refresh", "generator.toml", cwd=folder).stdout
    log = pa.table({"key": [f"item-{i:04d}" for i in range(30)], "engaged": [f"item-{i:04d}" for i in range(30)]})
    pq.write_table(log, folder / "requests.parquet")
    open_storage(s3_url).upload("requests.parquet", folder / "requests.parquet")
    open_storage(s3_url).upload("items.parquet", states[1] / "items.parquet")
    monitored = succeed("monitor", "generator.toml", "--json", cwd=folder)
    assert json.loads(monitored.stdout)
    replayed = succeed("replay", "generator.toml", f"{s3_url}/requests.parquet", "--no-online", cwd=folder)
    assert "30 requests" in replayed.stdout


@slow
def test_tune_and_advise_work_on_inputs_in_a_bucket(generator_toml, s3_url):
    require_module("optuna")
    generator_toml.write_text(generator_toml.read_text().replace("k = 3", "k = 3\nrecall = 0.9"))
    pq.write_table(rows(3000, seed=5), generator_toml.parent / "queries.parquet")
    open_storage(s3_url).upload("queries.parquet", generator_toml.parent / "queries.parquet")
    for words in (("tune", "generator.toml"), ("advise", "generator.toml", "--log", f"{s3_url}/log.parquet")):
        succeed(*words, cwd=generator_toml.parent)


def test_worker_processes_read_inputs_in_a_bucket(s3_url, states, tmp_path):
    upload(states[0], s3_url, "parts", "queries.parquet", "only.parquet")
    places = place_in(tmp_path, s3_url), place_in(tmp_path, states[0])
    found = [
        candidates(
            nearcast.run(
                {
                    "name": "test",
                    "metric": "inner_product",
                    "k": 3,
                    "items": {"path": place.at("parts"), "attributes": ["day"]},
                    "queries": {"path": place.at("queries.parquet"), "only": place.at("only.parquet")},
                },
                base=place.out,
                **runner,
            ).snapshot
        )
        for place, runner in zip(places, ({"runner": "processes", "workers": 2}, {}), strict=True)
    ]
    assert found[0] == found[1]
