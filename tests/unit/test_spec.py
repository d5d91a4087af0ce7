from __future__ import annotations

import re
import tomllib

import pytest

from builders import generator
from nearcast.errors import SpecError
from nearcast.files import fingerprint
from nearcast.spec import (
    CHECK_KINDS,
    ChecksSpec,
    ExposureSpec,
    GeneratorSpec,
    MeasureSpec,
    OverfetchSpec,
    RunSpec,
    SourceSpec,
    example,
    json_schema,
    load_spec,
    parse_bytes,
    parse_model,
)
from nearcast.table.expansion_settings import load_expansion_spec
from nearcast.types import Metric

REQUIRED = {"name": "similar", "metric": "cosine", "k": 10, "items": {"path": "items.parquet"}}


def parse(**changed):
    return parse_model(GeneratorSpec, REQUIRED | changed, "generator.toml")


def refusal(**changed):
    with pytest.raises(SpecError) as caught:
        parse(**changed)
    return str(caught.value)


def answer_fingerprint(**changed):
    return fingerprint(parse(**changed).answer_settings())


def test_a_spec_needs_four_settings_and_the_rest_have_defaults():
    spec = parse()
    assert (spec.name, spec.metric, spec.k, spec.items.path) == ("similar", Metric.COSINE, 10, "items.parquet")
    assert spec.recall == 1.0
    assert spec.engine == "auto"
    assert spec.engine_settings == {}
    assert spec.exclude_self is False
    assert spec.seed == 0
    assert spec.memory is None
    assert spec.threads is None
    assert spec.out == "nearcast"
    assert spec.queries is None
    assert spec.checks == ChecksSpec()
    assert spec.measure == MeasureSpec(sample=2000, calibration=1000)


def test_the_defaults_of_a_source_read_id_and_vector():
    source = parse().items
    assert (source.id, source.vector, source.ids, source.embedding) == ("id", "vector", None, None)
    assert source.attributes == source.display == source.columns == ()


def test_every_check_stops_the_run_by_default_save_for_zero_vectors_without_cosine():
    checks = parse().checks
    assert {kind: checks.policy(kind, Metric.COSINE) for kind in CHECK_KINDS} == dict.fromkeys(CHECK_KINDS, "error")
    assert [checks.policy("zero_vector", metric) for metric in Metric] == ["keep", "error", "keep"]
    assert ChecksSpec(zero_vector="drop").policy("zero_vector", Metric.L2) == "drop"


def test_without_queries_the_items_are_the_queries():
    assert parse().query_source == parse().items
    assert parse(queries={"path": "q.parquet"}).query_source.path == "q.parquet"


def test_attributes_and_display_columns_travel_once_each_in_the_order_given():
    assert SourceSpec(path="a.parquet", attributes=("b", "a"), display=("a", "c")).columns == ("b", "a", "c")


def test_a_spec_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        parse().k = 3


@pytest.mark.parametrize("missing", sorted(REQUIRED))
def test_a_missing_setting_is_named(missing):
    with pytest.raises(SpecError, match=f"generator.toml: '{missing}' is missing"):
        parse_model(GeneratorSpec, {k: v for k, v in REQUIRED.items() if k != missing}, "generator.toml")


@pytest.mark.parametrize(
    ("changed", "key", "suggestion"),
    [
        ({"reccall": 1.0}, "reccall", "recall"),
        ({"Metric": "l2"}, "Metric", "metric"),
        ({"thread": 2}, "thread", "threads"),
        ({"exclude-self": True}, "exclude-self", "exclude_self"),
        ({"items": {"path": "a.parquet", "vectors": "v"}}, "items.vectors", "vector"),
        ({"queries": {"path": "a.parquet", "embeding": "v"}}, "queries.embeding", "embedding"),
        ({"checks": {"zero_vectors": "drop"}}, "checks.zero_vectors", "zero_vector"),
        ({"measure": {"samples": 3}}, "measure.samples", "sample"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(changed, key, suggestion):
    assert f"unknown key {key!r}; did you mean {suggestion!r}?" in refusal(**changed)


def test_an_unknown_key_that_is_near_to_none_lists_the_known_ones():
    message = refusal(measure={"zzz": 1})
    assert "unknown key 'measure.zzz'; known keys are sample, calibration" in message


@pytest.mark.parametrize(
    ("wrong", "belongs"),
    [
        ({"keep": "item.a > 1"}, "'keep'; it belongs to [[rules]] or [publish]"),
        ({"zero_vector": "drop"}, "'zero_vector'; it belongs to [checks]"),
        ({"webhook": "x"}, "'webhook'; it belongs to [monitor]"),
        ({"display": ["x"]}, "'display'; it belongs to [items] or [queries]"),
        ({"checks": {"k": 3}}, "'checks.k'; it belongs to the top of the file"),
    ],
)
def test_a_key_in_the_wrong_table_is_told_where_it_belongs(wrong, belongs):
    assert f"unknown key {belongs}" in refusal(**wrong)


def test_all_faults_are_told_at_once():
    message = refusal(k=0, metric="dot", checks={"null_id": "keep"})
    for key in ("k is 0", "metric is 'dot'", "checks.null_id is 'keep'"):
        assert key in message


WRONG = [
    ({"name": "Similar Items"}, "name is 'Similar Items'"),
    ({"name": ""}, "name is ''"),
    ({"name": "../up"}, "name is '../up'"),
    ({"name": 7}, "name is 7"),
    ({"metric": "euclid"}, "metric is 'euclid'"),
    ({"k": 0}, "k is 0"),
    ({"k": 10_001}, "k is 10001"),
    ({"k": "ten"}, "k is 'ten'"),
    ({"k": 2.5}, "k is 2.5"),
    ({"recall": 0}, "recall is 0"),
    ({"recall": 1.01}, "recall is 1.01"),
    ({"recall": 95}, "recall is 95"),
    ({"recall": "high"}, "recall is 'high'"),
    ({"recall": float("nan")}, "recall is nan"),
    ({"engine": 3}, "engine is 3"),
    ({"engine_settings": "m=3"}, "engine_settings is 'm=3'"),
    ({"exclude_self": "perhaps"}, "exclude_self is 'perhaps'"),
    ({"seed": -1}, "seed is -1"),
    ({"seed": "x"}, "seed is 'x'"),
    ({"memory": "lots"}, "memory is 'lots'"),
    ({"memory": "4 XB"}, "memory is '4 XB'"),
    ({"memory": "1MB"}, "memory is '1MB'"),
    ({"memory": True}, "memory is True"),
    ({"memory": 1.5}, "memory is 1.5"),
    ({"threads": 0}, "threads is 0"),
    ({"threads": "many"}, "threads is 'many'"),
    ({"out": 3}, "out is 3"),
    ({"items": "items.parquet"}, "items is 'items.parquet'"),
    ({"items": {"path": 3}}, "items.path is 3"),
    ({"items": {"path": "a.parquet", "id": 1}}, "items.id is 1"),
    ({"items": {"path": "a.parquet", "vector": ["v"]}}, "items.vector is ['v']"),
    ({"items": {"path": "a.parquet", "attributes": "name"}}, "items.attributes is 'name'"),
    ({"items": {"path": "a.parquet", "display": [1]}}, "items.display.0 is 1"),
    ({"items": {"path": "a.parquet", "embedding": 2}}, "items.embedding is 2"),
    ({"checks": {"not_finite": "ignore"}}, "checks.not_finite is 'ignore'"),
    ({"checks": {"duplicate_id": "keep"}}, "checks.duplicate_id is 'keep'"),
    ({"checks": {"null_id": "keep"}}, "checks.null_id is 'keep'"),
    ({"checks": {"id_type": "drop"}}, "checks.id_type is 'drop'"),
    ({"checks": {"empty_input": "keep"}}, "checks.empty_input is 'keep'"),
    ({"checks": {"k_above_items": "drop"}}, "checks.k_above_items is 'drop'"),
    ({"checks": {"embedding": "drop"}}, "checks.embedding is 'drop'"),
    ({"measure": {"sample": 0}}, "measure.sample is 0"),
    ({"measure": {"calibration": 3}}, "measure.calibration is 3"),
    ({"run": {"runner": "dask"}}, "run.runner is 'dask'"),
    ({"run": {"workers": 0}}, "run.workers is 0"),
    ({"run": {"shards": 0}}, "run.shards is 0"),
    ({"run": {"shards": 2.5}}, "run.shards is 2.5"),
    ({"run": {"shard_bytes": "1kB"}}, "run.shard_bytes is '1kB'"),
    ({"run": {"worker_memory": "much"}}, "run.worker_memory is 'much'"),
    ({"run": {"price_core_hour": -1}}, "run.price_core_hour is -1"),
    ({"run": {"price_gb_month": float("nan")}}, "run.price_gb_month is nan"),
    ({"run": {"price_million_requests": "5 EUR"}}, "run.price_million_requests is '5 EUR'"),
    ({"run": {"shards": 2, "shard_bytes": "1GB"}}, "shards and shard_bytes both set the number of shards"),
]


@pytest.mark.parametrize(("changed", "words"), WRONG)
def test_a_value_that_does_not_fit_is_named_with_its_key_and_its_file(changed, words):
    message = refusal(**changed)
    assert message.startswith("generator.toml: ")
    assert words in message
    assert "pydantic" not in message


@pytest.mark.parametrize("key", ["k", "recall", "seed", "threads"])
def test_true_is_not_a_number(key):
    assert f"{key} is True" in refusal(**{key: True})


def test_npy_vectors_without_ids_are_refused_with_the_line_to_add():
    message = refusal(items={"path": "vectors.npy"})
    assert "vectors.npy holds vectors without ids" in message
    assert 'ids = "ids.npy"' in message


def test_a_file_of_ids_beside_parquet_is_refused():
    assert "in items.parquet the ids are a column" in refusal(items={"path": "items.parquet", "ids": "ids.npy"})


@pytest.mark.parametrize("column", ["key", "emb"])
def test_the_id_and_the_vector_are_no_attributes(column):
    source = {"path": "a.parquet", "id": "key", "vector": "emb", "attributes": [column]}
    assert f"{column!r} is the id or vector column already" in refusal(items=source)


def test_an_attribute_called_id_is_refused_as_the_snapshot_has_one():
    assert "rename the attribute 'id'" in refusal(items={"path": "a.parquet", "id": "key", "attributes": ["id"]})


@pytest.mark.parametrize(
    ("written", "count"),
    [
        (12345, 12345),
        ("12345", 12345),
        ("12345B", 12345),
        ("4GB", 4_000_000_000),
        ("4 gb", 4_000_000_000),
        (" 1.5GB ", 1_500_000_000),
        ("512MB", 512_000_000),
        ("20kb", 20_000),
        ("1TB", 10**12),
        ("2KiB", 2048),
        ("512 MiB", 512 << 20),
        ("2GiB", 2 << 30),
        ("1TiB", 1 << 40),
    ],
)
def test_amounts_of_memory_are_read_in_every_unit(written, count):
    assert parse_bytes(written) == count


@pytest.mark.parametrize("written", ["", "GB", "-4GB", "4 XB", "1e9", "4,5GB", None, 1.5, True])
def test_what_is_no_amount_of_memory_is_refused_with_an_example(written):
    with pytest.raises(ValueError, match='write it like "4GB"'):
        parse_bytes(written)


def test_memory_may_be_written_as_text_or_as_bytes():
    assert parse(memory="1GB").memory == parse(memory=10**9).memory == 10**9


CHANGES = [
    {"name": "other"},
    {"metric": "l2"},
    {"k": 11},
    {"recall": 0.9},
    {"engine": "exact"},
    {"engine_settings": {"m": 16}},
    {"exclude_self": True},
    {"seed": 1},
    {"items": {"path": "items.parquet", "id": "key"}},
    {"items": {"path": "items.parquet", "vector": "embedding"}},
    {"items": {"path": "items.parquet", "attributes": ["brand"]}},
    {"items": {"path": "items.parquet", "display": ["brand"]}},
    {"items": {"path": "items.parquet", "embedding": "v2"}},
    {"queries": {"path": "items.parquet"}},
    *({"checks": {kind: "drop"}} for kind in CHECK_KINDS[:6]),
    {"checks": {"k_above_items": "keep"}},
    {"checks": {"embedding": "keep"}},
    {"measure": {"sample": 10}},
    {"measure": {"calibration": 50}},
]


def test_the_fingerprint_changes_with_each_setting_that_decides_the_answer():
    prints = [answer_fingerprint(), *(answer_fingerprint(**changed) for changed in CHANGES)]
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize(
    "changed",
    [{"memory": "1GB"}, {"threads": 3}, {"out": "elsewhere"}, {"items": {"path": "moved/items.parquet"}}],
)
def test_the_fingerprint_does_not_change_with_speed_and_places(changed):
    assert answer_fingerprint(**changed) == answer_fingerprint()


def test_the_fingerprint_does_not_change_with_the_place_of_ids_or_queries():
    npy = {"path": "a.npy", "ids": "a.txt"}
    moved = {"path": "b.npy", "ids": "b.txt"}
    assert answer_fingerprint(items=npy, queries=npy) == answer_fingerprint(items=moved, queries=moved)


@pytest.mark.parametrize(
    "changed",
    [
        {"runner": "spark"},
        {"workers": 7},
        {"worker_memory": "1GB"},
        {"price_core_hour": 0.04},
        {"shards": 1},
    ],
)
def test_where_a_run_happens_changes_neither_the_fingerprint_nor_the_manifest(changed):
    assert answer_fingerprint(run=changed, recall=0.9) == answer_fingerprint(recall=0.9)
    assert parse(run=changed, recall=0.9).as_recorded() == parse(recall=0.9).as_recorded()
    assert "run" not in parse(run=changed).as_recorded()


@pytest.mark.parametrize("changed", [{"shards": 3}, {"shard_bytes": "1GB"}])
def test_shards_change_the_fingerprint_below_recall_1_alone(changed):
    assert answer_fingerprint(run=changed) == answer_fingerprint()
    assert answer_fingerprint(run=changed, recall=0.9) != answer_fingerprint(recall=0.9)
    recorded = parse(run=changed, recall=0.9).as_recorded()
    assert parse_model(GeneratorSpec, recorded, "manifest.json", recorded=True).run == parse(run=changed).run


def test_options_replace_settings_of_the_run():
    spec = parse(run={"runner": "ray", "shard_bytes": "1GB"})
    assert spec.with_run(runner="spark").run == RunSpec(runner="spark", shard_bytes=10**9)
    assert spec.with_run(shards=4).run == RunSpec(runner="ray", shards=4)
    with pytest.raises(SpecError, match="workers is 0"):
        spec.with_run(workers=0)


def test_every_setting_is_either_in_the_fingerprint_or_known_not_to_decide_the_answer():
    recorded = {field.serialization_alias or name for name, field in GeneratorSpec.model_fields.items()}
    assert recorded - set(parse().answer_settings()) == {
        *("memory", "threads", "out", "monitor", "run"),
        *("publish", "audit", "serve", "canary", "labels", "promise"),
    }


def test_the_example_is_a_spec_as_it_stands():
    spec = parse_model(GeneratorSpec, tomllib.loads(example()), "the example")
    assert spec.queries is not None
    assert spec == parse_model(GeneratorSpec, spec.model_dump(mode="json"), "the example again")


def test_the_example_shows_every_setting_with_its_default():
    as_it_stands = parse_model(GeneratorSpec, tomllib.loads(example()), "the example")
    uncommented = re.sub(r"^# (\w+ = (?!\.\.\. ))", r"\1", example(), flags=re.MULTILINE)
    assert uncommented != example()
    assert parse_model(GeneratorSpec, tomllib.loads(uncommented), "the example with its comments off") == as_it_stands
    for model in (GeneratorSpec, SourceSpec, ChecksSpec, MeasureSpec, OverfetchSpec, ExposureSpec, RunSpec):
        for key in model.model_fields:
            assert re.search(rf"^(# )?{key} = |^(# )?\[{key}\]|^#   {key} = ", example(), flags=re.MULTILINE), key


def test_every_setting_is_described_in_the_example_and_in_the_schema():
    for line in example().splitlines():
        if re.match(r"(# )?\w+ = ", line):
            assert re.search(r" # .+", line), line
    schema = json_schema()
    assert set(schema["properties"]) == set(GeneratorSpec.model_fields)
    assert schema["additionalProperties"] is False
    assert schema["properties"]["k"]["description"] == "Candidates per query."


def test_a_spec_is_loaded_from_toml(tmp_path):
    path = tmp_path / "generator.toml"
    path.write_text(
        'name = "a"\nmetric = "l2"\nk = 3\nmemory = "64 MiB"\n[items]\npath = "ü.parquet"\n', encoding="utf-8"
    )
    spec = load_spec(path)
    assert (spec.k, spec.memory, spec.items.path) == (3, 64 << 20, "ü.parquet")


def test_a_missing_spec_is_named_with_the_command_that_prints_an_example(tmp_path):
    with pytest.raises(SpecError, match=r"nothing\.toml") as caught:
        load_spec(tmp_path / "nothing.toml")
    assert "`nearcast spec`" in str(caught.value)


def test_toml_that_does_not_parse_is_told_with_file_and_line(tmp_path):
    path = tmp_path / "broken.toml"
    path.write_text("k = \n")
    with pytest.raises(SpecError, match=r"broken\.toml is not valid TOML: .*line 1"):
        load_spec(path)


def test_bytes_that_are_no_text_are_told_with_the_file(tmp_path):
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match=r"binary\.toml cannot be read"):
        load_spec(path)


def test_the_helper_of_these_tests_makes_a_spec():
    assert generator(k=3).k == 3


def test_the_spec_of_the_other_kind_is_recognised(tmp_path):
    (tmp_path / "generator.toml").write_text('name = "a"\nmetric = "l2"\nk = 3\nitems = {path = "a"}\n')
    (tmp_path / "ads.toml").write_text('name = "a"\nads = {path = "a"}\nlinks = {path = "b"}\n')
    with pytest.raises(SpecError, match="is the spec of an expansion table, which `nearcast expand` takes"):
        load_spec(tmp_path / "ads.toml")
    with pytest.raises(SpecError, match="is the spec of a generator, which `nearcast run` takes"):
        load_expansion_spec(tmp_path / "generator.toml")


def test_the_known_keys_are_listed_once():
    assert refusal(zz=1, yy=2, xx=3).count("known keys are") == 1
