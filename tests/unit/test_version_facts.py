"""The facts of a version are typed, and their JSON stays as it was read, key by key."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from nearcast.errors import DamagedError
from nearcast.stores.version_facts import LAYOUTS, WEIGHT_TABLE, VersionFacts

LEAST = {
    "format": 1,
    "generator": "shop",
    "version": 7,
    "snapshot": "000007",
    "created": "2026-01-01T00:00:00Z",
    "query_ids": "int64",
    "item_ids": "string",
}


def read(facts):
    return VersionFacts.from_json(facts, "shop 7")


@pytest.mark.parametrize(
    "facts",
    [
        LEAST,
        dict(reversed(LEAST.items())),
        {**LEAST, "rules": None, "profile": None, "columns": {}, "keys": 0, "serve": {}},
        {"of_a_newer_nearcast": [1, {"a": None}], **LEAST, "keys": 3, "checksum": {"lists": 1, "items": 2}},
    ],
)
def test_the_json_that_was_read_is_written_again_byte_for_byte(facts):
    assert json.dumps(read(facts).to_json()) == json.dumps(facts)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_facts_made_here_are_written_with_all_keys_of_their_kind_and_are_read_as_equal_values(kind):
    made = replace(read(LEAST), kind=kind, layout=())
    written = made.to_json()
    assert tuple(written) == LAYOUTS[kind]
    assert replace(read(written), layout=()) == made


def test_what_an_older_nearcast_did_not_write_has_its_default():
    facts = read(LEAST)
    assert (facts.kind, facts.started, facts.rules, facts.profile, facts.checksum) == (None, None, None, None, None)
    assert (facts.keys, facts.items, facts.query_rows, facts.payload_bytes, facts.k) == (0, 0, 0, 0, 0)
    assert (facts.columns, facts.measures, facts.promise, facts.serve, facts.audit) == ({}, {}, {}, {}, {})
    assert not facts.read_back
    assert not facts.is_expansion
    assert read({**LEAST, "kind": WEIGHT_TABLE}).is_weight_table


@pytest.mark.parametrize("name", LEAST)
def test_facts_without_a_required_key_are_an_error_that_names_it(name):
    with pytest.raises(DamagedError, match=rf"the facts of shop 7 in the store cannot be used .*{name}"):
        read({key: value for key, value in LEAST.items() if key != name})
