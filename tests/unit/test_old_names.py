"""Earlier spellings of public names work for one minor release and warn with the new name."""

from __future__ import annotations

import importlib
import warnings

import pytest

import nearcast
from nearcast.errors import SpecError
from nearcast.files import fingerprint
from nearcast.spec import GeneratorSpec, json_schema, load_spec, parse_model

ITEMS = {"path": "items.parquet", "attributes": ["shop", "p"]}
REQUIRED = {"name": "similar", "metric": "cosine", "k": 10, "items": ITEMS}
OVERFETCH = {"at_least": 5, "log": "lookups.parquet"}
EXPOSURE = {"max_lists_per_item": 5, "candidates_per_query": 20}

# earlier key, key, the spec with the earlier key, the spec with the key
KEYS = [
    ("surplus", "overfetch", {"surplus": OVERFETCH}, {"overfetch": OVERFETCH}),
    (
        *("like", "smoothing_group"),
        {"overfetch": OVERFETCH | {"like": "shop"}},
        {"overfetch": OVERFETCH | {"smoothing_group": "shop"}},
    ),
    (
        *("together", "correlated_group"),
        {"overfetch": OVERFETCH | {"together": "shop"}},
        {"overfetch": OVERFETCH | {"correlated_group": "shop"}},
    ),
    (
        *("most", "max_lists_per_item"),
        {"exposure": {"most": 5, "candidates_per_query": 20}},
        {"exposure": EXPOSURE},
    ),
    (
        *("per_query", "candidates_per_query"),
        {"exposure": {"max_lists_per_item": 5, "per_query": 20}},
        {"exposure": EXPOSURE},
    ),
    (
        *("most", "max_per_list"),
        {"caps": [{"by": "shop", "most": 3}]},
        {"caps": [{"by": "shop", "max_per_list": 3}]},
    ),
    (
        *("alike", "near_duplicate_cosine"),
        {"caps": [{"alike": 0.9}]},
        {"caps": [{"near_duplicate_cosine": 0.9}]},
    ),
]
NAMES = [f"{old} -> {new}" for old, new, _, _ in KEYS]


def parse(tables, where="generator.toml", **options):
    return parse_model(GeneratorSpec, REQUIRED | tables, where, **options)


@pytest.mark.parametrize(("old", "new", "before", "now"), KEYS, ids=NAMES)
def test_an_earlier_key_of_a_spec_works_and_warns_with_file_and_new_name(old, new, before, now):
    with pytest.warns(FutureWarning, match=f"^generator.toml: key '{old}' is now '{new}'; write '{new}'$"):
        spec = parse(before)
    assert spec == parse(now)


@pytest.mark.parametrize(("old", "new", "before", "now"), KEYS, ids=NAMES)
def test_manifests_and_fingerprints_keep_the_earlier_key_and_are_read_without_a_warning(old, new, before, now):
    spec = parse(now)
    recorded = spec.as_recorded()
    assert f"'{old}'" in repr(recorded)
    assert f"'{new}'" not in repr(recorded)
    assert parse(recorded, recorded=True) == spec
    assert fingerprint(spec.answer_settings()) == fingerprint(parse(before, recorded=True).answer_settings())


@pytest.mark.parametrize(("old", "new", "before", "now"), KEYS, ids=NAMES)
def test_both_spellings_at_once_are_an_error_that_names_both(old, new, before, now):
    (table,) = before
    first, second = before[table], next(iter(now.values()))
    if old == "surplus":
        both = before | now
    elif isinstance(first, list):
        both = {table: [first[0] | second[0]]}
    else:
        both = {table: first | second}
    with pytest.raises(SpecError, match=f"'{old}' is the earlier name of '{new}'; write '{new}' only"):
        parse(both)


def test_the_schema_and_the_example_show_the_new_keys_only():
    text = repr(json_schema())
    for old, new, _, _ in KEYS:
        assert f"'{new}'" in text
        assert f"'{old}'" not in text


@pytest.mark.parametrize(("old", "new", "now"), [(old, new, now) for old, new, _, now in KEYS], ids=NAMES)
def test_an_earlier_attribute_of_a_spec_works_and_warns(old, new, now):
    table = parse(now)
    if old != "surplus":
        (name,) = now
        table = getattr(table, name)
        table = table[0] if isinstance(table, tuple) else table
    with pytest.warns(DeprecationWarning, match=f"{old} is now {new}"):
        assert getattr(table, old) == getattr(table, new)


def test_the_command_line_prints_the_warning_of_an_earlier_key_once_on_standard_error(tmp_path):
    from forked_cli import run_command

    lines = ['name = "a"', 'metric = "l2"', "k = 3", "[items]", 'path = "none.parquet"']
    lines += ["[exposure]", "most = 5", "candidates_per_query = 9"]
    (tmp_path / "a.toml").write_text("\n".join(lines))
    done = run_command(["check", "a.toml"], cwd=tmp_path, env={}, timeout=60)
    assert done.returncode == 3
    assert done.stderr.count("warning: a.toml: key 'most' is now 'max_lists_per_item'") == 1


@pytest.mark.parametrize("module", ["nearcast", "nearcast.errors"])
def test_the_earlier_name_of_an_error_is_the_same_class_and_warns(module):
    with pytest.warns(DeprecationWarning, match=r"nearcast.PromiseError is now nearcast.TargetError"):
        found = importlib.import_module(module).PromiseError
    assert found is nearcast.TargetError
    assert found.exit_code == 4


def test_a_spec_without_earlier_keys_gives_no_warning(tmp_path):
    (tmp_path / "a.toml").write_text('name = "a"\nmetric = "l2"\nk = 3\n[items]\npath = "a.parquet"\n')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_spec(tmp_path / "a.toml")


# call with the earlier argument, the earlier argument, the argument
ARGUMENTS = [(lambda: nearcast.refresh("none.toml", watch_too=False), "watch_too", "with_monitor")]


@pytest.mark.parametrize(("call", "old", "new"), ARGUMENTS, ids=[old for _, old, _ in ARGUMENTS])
def test_an_earlier_argument_works_and_warns(call, old, new):
    with (
        pytest.warns(DeprecationWarning, match=rf"{old}=\.\.\.\) is now .*{new}="),
        pytest.raises(SpecError, match="none"),
    ):
        call()


@pytest.mark.parametrize(("module", "old", "new"), [("nearcast.dashboard.document", "document", "build_document")])
def test_the_earlier_name_of_a_documented_function_is_the_same_function_and_warns(module, old, new):
    home = importlib.import_module(module)
    with pytest.warns(DeprecationWarning, match=rf"{module}.{old} is now {module}.{new}"):
        found = getattr(home, old)
    assert found is getattr(home, new)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = home.no_such_name
