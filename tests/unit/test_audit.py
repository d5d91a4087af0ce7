"""Each rule of the audit: passes at its bound, fails below it, and says by how much."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nearcast.errors import AuditError, SpecError
from nearcast.publishing.audit import enforce, validate_accepted
from nearcast.publishing.audit_rules import RULES, AuditFigures, AuditRule, CurrentFigures, Finding, apply_rules
from nearcast.spec import AuditSpec

GOOD = {"recall": 0.97, "recall_low": 0.96, "fill_rate": 1.0, "query_coverage": 1.0}
CURRENT = CurrentFigures(
    name="000006", keys=100, payload_bytes=10_000, sampled=100, kept=100, overlap=0.8, compared=100
)
SNAPSHOT = AuditFigures(
    name="000007",
    k=10,
    measures=GOOD,
    recall_target=0.95,
    target_met=True,
    keys=100,
    payload_bytes=10_000,
    age_seconds=3600.0,
    rolled_back=False,
    current=CURRENT,
)


def found(rule: str, settings: AuditSpec | None = None, **changed: object) -> Finding:
    """What a rule finds in a good snapshot with some figures changed."""
    measures = {name: changed.pop(name) for name in GOOD if name in changed}
    beside = {name: changed.pop(name) for name in ("overlap", "compared", "kept_keys", "sampled") if name in changed}
    if "kept_keys" in beside:
        beside["kept"] = beside.pop("kept_keys")
    judged = replace(SNAPSHOT, measures=GOOD | measures, **changed)
    if beside:
        judged = replace(judged, current=replace(CURRENT, **beside))
    return RULES[rule].find(judged, settings or AuditSpec())


def test_a_good_snapshot_passes_every_rule_and_rules_come_in_the_order_of_the_table():
    findings = apply_rules(SNAPSHOT, AuditSpec())
    assert [f.rule for f in findings] == list(RULES)
    assert all(f.passed for f in findings)


def test_every_setting_of_the_audit_table_belongs_to_a_rule():
    of_updates = ["max_lists_changed"]  # judges a batch of `nearcast update`, not a snapshot
    of_rules = [name for rule in RULES.values() for name in rule.settings]
    assert sorted([*of_rules, *of_updates]) == sorted(AuditSpec.model_fields)


@pytest.mark.parametrize(
    ("rule", "at_bound", "beyond", "sentence"),
    [
        (
            "fill_rate",
            {"fill_rate": 0.9},
            {"fill_rate": 0.85},
            "the fill rate is 85.00%, 5.00 points below the required 90.00%",
        ),
        (
            "query_coverage",
            {"query_coverage": 0.95},
            {"query_coverage": 0.9499},
            "the query coverage is 94.99%, 0.01 points below the required 95.00%",
        ),
        (
            "queries_kept",
            {"kept_keys": 90},
            {"kept_keys": 70},
            "of 100 keys of 000006, the share that this snapshot has too is 70.00%, 20.00 points below the required "
            "90.00%",
        ),
        (
            "keys",
            {"keys": 90},
            {"keys": 89},
            "it has 89 keys where 000006 has 100: 11.00% are lost, and at most 10.00% may be",
        ),
        (
            "overlap",
            {"overlap": 0.3},
            {"overlap": 0.05},
            "on 100 keys, the overlap with 000006 is 5.00%, 25.00 points below the required 30.00%; queries "
            "and items of two embedding models look like this",
        ),
        (
            "age",
            {"age_seconds": 48 * 3600.0},
            {"age_seconds": 50.5 * 3600.0},
            "it is 50.5 h old, 2.5 h more than the 48.0 h that is allowed",
        ),
        (
            "size",
            {"payload_bytes": 5_000},
            {"payload_bytes": 4_000},
            "its 4,000 bytes of lists and the 10,000 of 000006 differ by a factor of 2.5, and at most 2 is allowed",
        ),
        (
            "size",
            {"payload_bytes": 20_000},
            {"payload_bytes": 20_001},
            "its 20,001 bytes of lists and the 10,000 of 000006 differ by a factor of 2.0001, and at most 2 is allowed",
        ),
        (
            "withdrawn",
            {"rolled_back": False},
            {"rolled_back": True},
            "000007 was rolled back from; name it to publish it all the same, or make a new snapshot",
        ),
    ],
)
def test_a_rule_passes_at_its_bound_and_fails_beyond_it_saying_by_how_much(rule, at_bound, beyond, sentence):
    assert found(rule, **at_bound).passed
    failed = found(rule, **beyond)
    assert not failed.passed
    assert failed.text == sentence


def test_recall_is_held_to_the_promise_by_the_runs_own_verdict():
    assert found("recall", recall_target=0.95, target_met=True).passed
    failed = found("recall", recall=0.955, recall_low=0.94, recall_target=0.95, target_met=False)
    assert not failed.passed
    assert failed.text == "recall@10 is 0.9550 with a 95% interval from 0.9400, 0.01 below the required 0.95"


def test_a_promise_of_one_is_kept_by_an_exact_engine_although_no_sample_proves_it():
    exact = found("recall", recall=1.0, recall_low=0.9985, recall_target=1.0, target_met=True)
    assert exact.passed
    assert exact.text == "recall@10 is 1.0000 by an engine that is exact, as promised"
    missed = found("recall", recall=0.9999, recall_low=0.998, recall_target=1.0, target_met=False)
    assert not missed.passed
    assert "0.002 below the required 1" in missed.text


def test_an_exact_engine_that_misses_fails_although_the_interval_is_above_the_promise():
    failed = found("recall", recall=0.99, recall_low=0.98, recall_target=0.95, target_met=False)
    assert not failed.passed
    assert failed.text == "recall@10 is 0.9900, and an exact engine was to miss nothing"


def test_a_bound_of_our_own_for_recall_takes_the_place_of_the_promise():
    assert found("recall", AuditSpec(min_recall=0.96), target_met=False, recall_target=0.99).passed
    assert not found("recall", AuditSpec(min_recall=0.965), target_met=False, recall_target=0.99).passed
    assert found(
        "recall", AuditSpec(min_recall=1.0), recall=1.0, recall_low=0.99, recall_target=1.0, target_met=True
    ).passed


def test_keys_have_a_least_number_whatever_is_current():
    settings = AuditSpec(min_keys=50)
    assert found("keys", settings, keys=50, current=None).passed
    failed = found("keys", settings, keys=49, current=None)
    assert not failed.passed
    assert failed.text == "it has 49 keys, 1 fewer than the required 50"


def test_the_share_of_keys_that_may_be_lost_is_not_off_by_a_key_from_rounding():
    for now in (10, 30, 70, 100, 1_000_000):
        current = replace(CURRENT, keys=now)
        assert found("keys", keys=now * 9 // 10, current=current).passed
        assert not found("keys", keys=now * 9 // 10 - 1, current=current).passed


@pytest.mark.parametrize("rule", ["queries_kept", "keys", "overlap", "size"])
def test_a_comparison_passes_when_nothing_is_current(rule):
    finding = found(rule, current=None)
    assert finding.passed
    assert "nothing is current to compare with" in finding.text


def test_a_snapshot_from_the_future_is_of_age_zero_and_the_finding_says_so():
    finding = found("age", age_seconds=-2 * 3600.0)
    assert finding.passed
    assert finding.found == 0
    assert finding.text == "it was made 2.0 h ahead of this machine's clock; its age counts as 0"


def test_a_failure_by_less_than_what_is_shown_still_says_by_how_much():
    assert "0.0001 points below" in found("fill_rate", fill_rate=0.899999).text


def test_no_common_key_fails_the_overlap_and_empty_current_lists_do_not():
    assert not found("overlap", overlap=0.0, compared=0, kept_keys=0).passed
    assert found("overlap", overlap=0.0, compared=0).passed


def test_a_table_that_becomes_empty_fails_by_size_and_by_keys():
    assert not found("size", payload_bytes=0).passed
    assert not found("keys", keys=0).passed


def findings(**passed: bool) -> list[Finding]:
    return [Finding(rule, rule, 0.5, 0.4, ok, f"the sentence about {rule}") for rule, ok in passed.items()]


def test_settling_names_every_rule_that_failed_with_its_sentence():
    with pytest.raises(AuditError) as caught:
        enforce("shop 000007", findings(overlap=False, keys=True, age=False), {})
    assert str(caught.value).startswith("shop 000007 is not published: 2 of 3 rules failed\n")
    assert "\n  overlap: the sentence about overlap\n  age: the sentence about age\n" in str(caught.value)
    assert [f.rule for f in caught.value.findings] == ["overlap", "keys", "age"]
    assert caught.value.exit_code == 10


def test_settling_passes_what_is_accepted_and_nothing_else():
    enforce("shop 000007", findings(overlap=False, keys=True), {"overlap": "new model"})
    with pytest.raises(AuditError, match="1 of 2 rules failed\n  age: "):
        enforce("shop 000007", findings(overlap=False, age=False), {"overlap": "new model"})


def test_accepting_what_did_not_fail_is_an_error():
    with pytest.raises(SpecError, match=r"keys did not fail, .* failed rules are overlap"):
        enforce("shop 000007", findings(overlap=False, keys=True), {"overlap": "x", "keys": "y"})


def test_accepting_a_rule_that_does_not_exist_names_the_rules_there_are():
    with pytest.raises(
        SpecError, match="'overlpa' is no rule of the audit; did you mean 'overlap'\\? rules are recall, "
    ):
        validate_accepted({"overlpa": "a reason"})
    with pytest.raises(SpecError, match="say why overlap is accepted"):
        validate_accepted({"overlap": " "})


def row_of(rule: AuditRule) -> str:
    """The rule as the page for people on call shows it."""
    defaults = [AuditSpec.model_fields[name].default for name in rule.settings]
    settings = [f"`{n} = {'...' if d is None else d}`" for n, d in zip(rule.settings, defaults, strict=True)]
    return f"| `{rule.name}` | {', '.join(settings) or '-'} | {rule.meaning} |"


def test_the_page_for_people_on_call_lists_the_rules_with_their_settings(repository):
    page = (repository / "docs" / "publishing.md").read_text(encoding="utf-8")
    assert "\n".join(map(row_of, RULES.values())) in page
