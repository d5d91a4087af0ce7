"""Audit a snapshot: gather its figures, beside those of the version that is current in the store, and judge them.

The rules themselves are in `rules.py`. Reads Parquet and a store, writes nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nearcast.eligibility import columns_of, parse_rule
from nearcast.eligibility.nodes import Reference
from nearcast.errors import AuditError, DamagedError, SpecError
from nearcast.publishing.audit_rules import RULES, apply_rules
from nearcast.publishing.audit_values import AuditFigures, CurrentFigures, Finding
from nearcast.publishing.served_inputs import gather_inputs
from nearcast.publishing.snapshot_rows import SnapshotShape, estimate_payload, find_lists, read_shape
from nearcast.spec import AuditSpec
from nearcast.stores.base import Reader, Space
from nearcast.stores.value_format import decode_lists
from nearcast.stores.version_facts import VersionFacts
from nearcast.table.snapshot import Snapshot
from nearcast.times import parse_utc

__all__ = ["CurrentVersion", "audit_snapshot", "enforce", "validate_accepted"]

SAMPLED_KEYS = 2_000  # a share is known to two points


@dataclass(frozen=True, slots=True)
class CurrentVersion:
    """The version that is current in a store, open."""

    version: int
    facts: VersionFacts
    reader: Reader

    @property
    def name(self) -> str:
        """As people write it."""
        return f"{self.version:06d}"


def audit_snapshot(
    snapshot: Snapshot, settings: AuditSpec, against: CurrentVersion | None, *, now: float, withdrawn: bool = False
) -> list[Finding]:
    """What every rule finds; `now` in seconds since 1970, `withdrawn` if the snapshot was rolled back from."""
    shape = read_shape(snapshot)
    manifest = snapshot.manifest
    return apply_rules(
        AuditFigures(
            name=snapshot.name,
            k=manifest.k,
            measures=manifest.measures,
            promised=manifest.target.recall,
            kept=manifest.target.met,
            keys=shape.keys,
            payload_bytes=estimate_payload(snapshot, shape),
            age_seconds=now - parse_utc(manifest.run.created),
            withdrawn=withdrawn,
            current=_beside(snapshot, shape, against) if against else None,
            items=shape.items,
            metric=manifest.metric,
            profile=manifest.profile,
            rule_columns=_rule_columns(snapshot),
        ),
        settings,
    )


def validate_accepted(accept: Mapping[str, str]) -> None:
    """SpecError for a rule that does not exist, or one that is accepted without a reason."""
    for rule, why in accept.items():
        if rule not in RULES:
            near = difflib.get_close_matches(rule, RULES, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise SpecError(f"{rule!r} is no rule of the audit; {hint}rules are {', '.join(RULES)}")
        if not why.strip():
            raise SpecError(f"say why {rule} is accepted: it is kept with the version")


def enforce(name: str, findings: Sequence[Finding], accept: Mapping[str, str]) -> None:
    """AuditError where a rule failed that is not accepted; SpecError where one is accepted that did not fail."""
    failed = {f.rule: f for f in findings if not f.passed}
    for rule in accept:
        if rule not in failed:
            have = f"failed rules are {', '.join(failed)}" if failed else "no rule has failed"
            raise SpecError(f"{rule} did not fail, so there is nothing to accept; {have}")
    open_ones = [f for f in failed.values() if f.rule not in accept]
    if open_ones:
        lines = "".join(f"\n  {f.rule}: {f.text}" for f in open_ones)
        way = "mend the cause, or accept a rule with --accept RULE --why TEXT"
        if all(finding.rule == "withdrawn" for finding in open_ones):
            way = "run again for a new one, or publish this one all the same: nearcast publish NAME NUMBER"
        raise AuditError(
            f"{name} is not published: {len(open_ones)} of {len(findings)} rules failed{lines}\n{way}",
            tuple(findings),
        )


def _beside(snapshot: Snapshot, shape: SnapshotShape, current: CurrentVersion) -> CurrentFigures:
    facts = current.facts
    keys = current.reader.some_keys(Space.LISTS, SAMPLED_KEYS, snapshot.version)
    same_keys = facts.query_ids == shape.query_ids  # else no key is the same, whatever its bytes
    ours = find_lists(snapshot, keys) if same_keys else {}
    theirs = _lists_in_store(current, list(ours))
    k = min(facts.k, snapshot.manifest.k)
    comparable = facts.item_ids == shape.item_ids
    shares = [
        len(set(ids[:k]) & set(ours[key][:k])) / len(ids[:k]) if comparable else 0.0
        for key, ids in theirs.items()
        if ids
    ]
    return CurrentFigures(
        name=current.name,
        keys=facts.keys,
        payload_bytes=facts.payload_bytes,
        sampled=len(keys),
        kept=len(ours),
        overlap=sum(shares) / len(shares) if shares else 0.0,
        compared=len(shares),
        inputs=gather_inputs(snapshot, shape, current),
    )


def _rule_columns(snapshot: Snapshot) -> dict[str, tuple[str, ...]]:
    """The columns of items and queries that rules compare; not those that a rule allows to be null."""
    rules = [parse_rule(rule["name"], rule["keep"]) for rule in snapshot.manifest.spec.get("rules", ())]
    items, queries, _ = columns_of(rules)
    text = " ".join(str(rule.tree) for rule in rules)
    named = {"items": [("item", name) for name in items], "queries": [("query", name) for name in queries]}
    return {
        table: tuple(name for side, name in pairs if f"{Reference(side, name)} is " not in text)
        for table, pairs in named.items()
    }


def _lists_in_store(current: CurrentVersion, keys: Sequence[bytes]) -> dict[bytes, list[Any]]:
    values = current.reader.get_many(Space.LISTS, keys)
    lists = decode_lists(values, current.facts.item_ids)
    if not lists.found.all():
        raise DamagedError(f"{current.name} in the store lists keys that it does not hold; publish with --repair")
    ids = lists.ids.to_pylist()
    ends = lists.offsets.tolist()
    return {key: ids[a:b] for key, a, b in zip(keys, ends[:-1], ends[1:], strict=True)}
