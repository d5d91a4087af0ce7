"""The typed manifest of a snapshot, and the mapping that it was."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest

from nearcast.table.manifest import Manifest

FACTS: dict[str, Any] = {
    "generator": "shop",
    "version": 7,
    "rows": 3,
    "fingerprint": "ab12",
    "spec": {"k": 5, "metric": "cosine"},
    "engine": {"name": "dense", "settings": {}, "effort": {"probes": 8}, "calibration": None},
    "measures": {"recall": 0.97},
    "promise": {"recall": 0.95, "kept": True, "reason": None},
    "run": {"created": "2026-01-01T00:00:00Z", "seconds": {"join": 1.5}, "seconds_total": 2.0, "estimate": {}},
    "files": {},
    "of_a_later_version": [1],
}


def test_properties_give_the_values_of_the_json() -> None:
    manifest = Manifest(FACTS)
    assert (manifest.generator, manifest.version, manifest.rows, manifest.k) == ("shop", 7, 3, 5)
    assert manifest.engine.params == {"probes": 8}
    assert manifest.engine.as_dict() == FACTS["engine"]
    assert manifest.target.met
    assert manifest.target.as_dict() == FACTS["promise"]
    assert manifest.run.seconds["join"] == 1.5
    assert manifest.slices == ()
    assert manifest.profile is None


def test_the_json_comes_back_unchanged_with_keys_of_other_versions() -> None:
    assert json.dumps(Manifest(FACTS).as_dict()) == json.dumps(FACTS)


def test_missing_keys_are_named() -> None:
    assert Manifest({"rows": 1}).missing_keys()[:2] == ["generator", "version"]


def test_reading_it_as_a_mapping_works_and_warns() -> None:
    manifest = Manifest(FACTS)
    with pytest.warns(DeprecationWarning, match=r"manifest\.measures"):
        assert manifest["measures"]["recall"] == 0.97
    with pytest.warns(DeprecationWarning, match=r"as_dict"):
        assert dict(manifest) == FACTS
    with pytest.warns(DeprecationWarning, match="properties"):
        assert manifest.get("nothing") is None


def test_as_dict_does_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Manifest(FACTS).as_dict() == FACTS
