"""Format publications, audits and store listings for people. Computes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from nearcast.cli.common import format_bytes, format_seconds
from nearcast.measure.measures import format_value

if TYPE_CHECKING:
    from nearcast.publishing.audit_rules import Finding
    from nearcast.publishing.publication import Publication
    from nearcast.publishing.store_listing import PublishedGenerator, StoredVersion

__all__ = ["build_audit_table", "build_published_table", "describe_publication"]

SHOWN_EVENTS = 10
SHOWN_PATCHES = 10


def build_audit_table(findings: Sequence[Finding], accepted: Mapping[str, str]) -> Table:
    """Build a table of audit findings, one rule per row."""
    table = Table(title="audit", title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("rule", "", "finding"):
        table.add_column(name)
    for finding in findings:
        word, style = ("passed", "green") if finding.passed else ("FAILED", "bold red")
        text = finding.text
        if finding.rule in accepted and not finding.passed:
            word, style, text = "accepted", "yellow", f"{text}; accepted: {accepted[finding.rule]}"
        table.add_row(finding.rule, Text(word, style=style), text)
    return table


def describe_publication(done: Publication) -> Text:
    """Describe the outcome of a publish or rollback in a few lines."""
    name = f"{done.generator} {done.name}"
    before = f", before it {done.before:06d}" if done.before else ""
    headlines = {
        "published": f"{name} is current in {done.store}{before}",
        "rolled_back": f"{name} is current again in {done.store}{before}",
        "already_current": f"{name} is current already in {done.store}; nothing to do",
        "canary_started": f"{name} is a canary in {done.store}, beside {done.before or 0:06d}",
        "would_publish": f"{name} would become current in {done.store}{before}; dry run, nothing was changed",
    }
    lines = [headlines[done.outcome], *_describe_copy(done)]
    if done.retired:
        lines.append(f"versions deleted from the store: {', '.join(f'{v:06d}' for v in done.retired)}")
    if done.removed_snapshots:
        lines.append(f"snapshots deleted from disk: {', '.join(f'{v:06d}' for v in done.removed_snapshots)}")
    if done.overlay_entries_cut:
        lines.append(f"overlay entries compacted, since every version contains them: {done.overlay_entries_cut:,}")
    return Text("\n".join(lines))


def _describe_copy(done: Publication) -> list[str]:
    planned = done.outcome == "would_publish"
    if done.outcome not in ("published", "would_publish", "canary_started"):
        return []
    if done.copied is None:
        return ["the store has all of its bytes already"]
    what = f"{done.copied.keys:,} keys and {done.copied.items:,} items, {format_bytes(done.copied.bytes)}"
    if planned:
        least = (
            f", at least {format_seconds(done.copy_seconds)} at the throttle" if done.copy_seconds is not None else ""
        )
        return [f"would copy {what}{least}"]
    return [f"copied and read back {what}, in {format_seconds(done.copy_seconds or 0)}"]


def build_published_table(found: PublishedGenerator) -> Group:
    """Build the listing of a generator in a store: its versions, then the last moves of its pointer."""
    current = found.pointer.version if found.pointer else None
    canary = found.pointer.canary if found.pointer else None
    rolled_back = found.pointer.withdrawn if found.pointer else ()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("version", "", "made", "published", "keys", "items", "payload", "recall", "accepted"):
        table.add_column(name, justify="right" if name in ("keys", "items", "payload", "recall") else "left")
    for kept in found.versions:
        state = "current" if kept.version == current else "rolled back" if kept.version in rolled_back else ""
        if canary is not None and kept.version == canary.version:
            state = f"{canary.mode} {canary.share:.4g}"
        state, style = (state, "green" if state == "current" else "") if kept.version_facts else ("DAMAGED", "bold red")
        table.add_row(f"{kept.version:06d}", Text(state, style=style), *_format_version(kept))
    headline = Text(f"{found.generator} in {found.store}", style="bold")
    age = "nothing is current" if found.age_seconds is None else f"age {format_seconds(found.age_seconds)}"
    faults = [Text(kept.fault, style="red") for kept in found.versions if kept.fault]
    patches = [Text(line) for kept in found.versions for line in _describe_patches(kept)]
    overlay = f"{found.overlay_entries:,} overlay entries"
    return Group(headline, Text(f"{age}, {overlay}"), table, *faults, *patches, _build_event_table(found), "")


def _describe_patches(kept: StoredVersion) -> list[str]:
    """Return a line about the patches of a version, and one for each of the newest; nothing if it has none."""
    state, newest = kept.patches, kept.patches.newest
    if newest is None:
        return []
    folded = "" if state.folded is None else f"; up to {state.folded.number} they are folded"
    lines = [f"patches of {kept.version:06d}: {len(state.patches)} that can be undone, newest {newest.number}{folded}"]
    for patch in state.patches[-SHOWN_PATCHES:]:
        counts = ", ".join(f"{name} {count:,}" for name, count in patch.counts.items())
        lines.append(f"  {patch.number}  {patch.when}  {counts}  {patch.note}".rstrip())
    return lines


def _format_version(kept: StoredVersion) -> list[str]:
    facts = kept.version_facts
    if facts is None:
        return []
    accepted = ", ".join(facts.audit.get("accepted", {}))
    recall = format_value("recall", facts.measures.get("recall"))
    return [
        *(facts.created, facts.published, f"{facts.keys:,}", f"{facts.items:,}"),
        *(format_bytes(facts.payload_bytes), recall, accepted),
    ]


def _build_event_table(found: PublishedGenerator) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("when", "move", "to", "note"):
        table.add_column(name)
    for event in found.pointer.events[-SHOWN_EVENTS:] if found.pointer else ():
        table.add_row(event.when, event.kind.replace("_", " "), f"{event.version:06d}", event.note)
    return table
