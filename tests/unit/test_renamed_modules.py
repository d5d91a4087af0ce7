"""Old import paths still work, warn, and give the module itself, not a copy of it."""

from __future__ import annotations

import importlib
import sys
import warnings

import pytest

from nearcast.renamed_modules import RENAMED


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_module_name_gives_the_new_module_and_warns(old):
    sys.modules.pop(old, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package of an old module may have an old name, too
        importlib.import_module(old.rpartition(".")[0])
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        found = importlib.import_module(old)
    assert found is importlib.import_module(RENAMED[old])
    assert found.__name__ == RENAMED[old]
    assert [str(w.message) for w in seen if old in str(w.message)] == [f"{old} is now {RENAMED[old]}; import that"]


def test_names_can_be_imported_from_an_old_module():
    sys.modules.pop("nearcast.surplus.plan", None)
    with pytest.warns(DeprecationWarning, match=r"nearcast\.overfetch\.candidates_needed"):
        from nearcast.surplus.plan import plan_lengths
    from nearcast.overfetch.candidates_needed import plan_lengths as new

    assert plan_lengths is new


def test_a_module_that_never_was_is_not_found():
    with pytest.raises(ModuleNotFoundError, match=r"nearcast\.serve\.nonsense"):
        importlib.import_module("nearcast.serve.nonsense")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Changes", "OverlayChanges"),
        ("Event", "PointerEvent"),
        ("Exchanged", "ExchangeResult"),
        ("Held", "PublishLock"),
    ],
)
def test_a_class_that_stores_of_other_packages_import_has_its_old_name_too_and_warns(old, new):
    from nearcast.stores import base

    with pytest.warns(DeprecationWarning, match=f"{old} is now {new}"):
        assert getattr(base, old) is getattr(base, new)
