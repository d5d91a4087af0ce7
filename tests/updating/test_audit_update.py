"""Updates are judged by the audit that a publish makes, on the state that they would leave."""

from __future__ import annotations

import numpy as np
import pytest
from tests.updating.test_updates import DIM, draw_item, make_shop

import nearcast
from nearcast.errors import AuditError
from nearcast.stores.base import Space
from nearcast.updating import audit_update as audit_module

LOOSE = {"max_items_lost": 1.0, "max_items_gained": 9.0, "min_items_kept": 0.0, "min_fill_rate": 0.0}
LOOSE |= {"min_query_coverage": 0.0, "min_overlap": 0.0, "max_drift": 99.0, "max_vectors_changed": 1.0}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return make_shop(tmp_path_factory.mktemp("shop"), "free", n_items=60, n_queries=40)[0]


def refusal(shop, audit, **batch):
    """Return what the audit says of a batch with these bounds alone; nothing may have changed."""
    before, settings, items = shop.served(), dict(shop.settings), dict(shop.items)
    shop.settings["audit"] = {**settings["audit"], **LOOSE, **audit}
    try:
        with pytest.raises(AuditError) as refused:
            shop.update(**batch)
    finally:
        shop.settings, shop.items = settings, items
    assert shop.served() == before
    return str(refused.value)


@pytest.mark.parametrize(
    ("rule", "bound"),
    [
        ("items", {"max_items_lost": 0.5}),
        ("fill_rate", {"min_fill_rate": 0.9}),
        ("query_coverage", {"min_query_coverage": 0.5}),
        ("items_kept", {"min_items_kept": 0.7}),
        ("overlap", {"min_overlap": 0.3}),
    ],
)
def test_an_update_that_removes_all_items_fails_each_of_these_rules(shop, rule, bound):
    assert f"\n  {rule}: " in refusal(shop, bound, gone=sorted(shop.items))


def test_with_the_default_bounds_an_update_that_removes_all_items_is_refused(shop):
    gone = sorted(shop.items)
    spec = {name: value for name, value in shop.spec().items() if name != "audit"}
    with pytest.raises(AuditError, match="max_items_lost"):
        nearcast.update(spec, gone=gone, store=shop.store, max_lists_changed=1.0)


def test_many_small_updates_are_judged_like_one(tmp_path):
    shop, _ = make_shop(tmp_path, "free", n_items=60, n_queries=10)
    shop.settings["audit"] = {**shop.settings["audit"], **LOOSE, "max_items_lost": 0.1}
    gone = sorted(shop.items)
    for key in gone[:6]:
        shop.update(gone=[key])
    with pytest.raises(AuditError, match="items: 53 of 60"):
        shop.update(gone=gone[6:7])


def test_vectors_of_another_scale_are_refused_by_the_scores(shop, monkeypatch):
    rng = np.random.default_rng(3)
    batch = {5000 + n: (tuple((9 * np.array(draw_item(rng)[0])).tolist()), "a", "de") for n in range(40)}
    monkeypatch.setattr(audit_module, "estimate_noise", lambda *_: 0.1)  # 40 lists are few
    assert "\n  scores: the median score" in refusal(shop, {"max_drift": 0.25}, items=batch)


def test_changed_vectors_of_many_published_items_are_refused(shop):
    batch = {key: (tuple(np.roll(row[0], 1).tolist()), *row[1:]) for key, row in shop.items.items()}
    assert "\n  vectors: " in refusal(shop, {"max_vectors_changed": 0.2}, items=batch)


def test_too_many_new_items_are_refused_and_a_usual_batch_passes(shop):
    rng = np.random.default_rng(4)
    batch = {6000 + n: draw_item(rng) for n in range(40)}
    assert "would become 100" in refusal(shop, {"max_items_gained": 0.5}, items=batch)
    settings = dict(shop.settings)
    shop.settings["audit"] = {**settings["audit"], **LOOSE, "min_fill_rate": 0.9, "max_drift": 0.25, "min_overlap": 0.3}
    try:
        done = shop.update({7000: draw_item(rng), 7001: ((2,) * DIM, "b", "fr")}, gone=[sorted(shop.items)[0]])
    finally:
        shop.settings = settings
    assert done.outcome == "updated"


def test_a_version_that_fails_a_rule_already_takes_updates_that_make_nothing_worse(tmp_path):
    shop, rng = make_shop(tmp_path, "all", n_items=12, n_queries=20)  # rules and caps leave lists short
    shop.settings["audit"] = {**shop.settings["audit"], **LOOSE, "min_fill_rate": 1.0, "max_drift": 99.0}
    assert shop.update({300 + n: draw_item(rng) for n in range(5)}).outcome == "updated"
    with pytest.raises(AuditError, match="fill_rate"):
        shop.update(gone=sorted(shop.items))
    assert shop.served()[Space.LISTS]
