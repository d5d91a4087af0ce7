"""Tables about publishing, for people. Draws what it is given and computes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from nearcast.cli.common import size, stretch
from nearcast.measure.measures import format_value

if TYPE_CHECKING:
    from nearcast.publishing.audit_rules import Finding
    from nearcast.publishing.publication import Publication
    from nearcast.publishing.store_listing import PublishedGenerator, StoredVersion

__all__ = ["audit_table", "outcome", "published_table"]

SHOWN_EVENTS = 10


def audit_table(findings: Sequence[Finding], accepted: Mapping[str, str]) -> Table:
    """What the audit has found, a rule in a row."""
    table = Table(title="audit", title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("rule", "", "what"):
        table.add_column(name)
    for finding in findings:
        word, style = ("passed", "green") if finding.passed else ("FAILED", "bold red")
        text = finding.text
        if finding.rule in accepted and not finding.passed:
            word, style, text = "accepted", "yellow", f"{text}; accepted: {accepted[finding.rule]}"
        table.add_row(finding.rule, Text(word, style=style), text)
    return table


def outcome(done: Publication) -> Text:
    """What has happened, in a few lines."""
    name = f"{done.generator} {done.name}"
    before = f", before it {done.before:06d}" if done.before else ""
    headlines = {
        "published": f"{name} is current in {done.store}{before}",
        "rolled_back": f"{name} is current again in {done.store}{before}",
        "already_current": f"{name} is current already in {done.store}; nothing was done",
        "would_publish": f"{name} would become current in {done.store}{before}; nothing was done",
    }
    lines = [headlines[done.outcome], *_copy_lines(done)]
    if done.retired:
        lines.append(f"taken away: {', '.join(f'{v:06d}' for v in done.retired)}")
    if done.removed_snapshots:
        lines.append(f"snapshots removed from disk: {', '.join(f'{v:06d}' for v in done.removed_snapshots)}")
    if done.overlay_entries_cut:
        lines.append(f"overlay entries that all versions contain by now: {done.overlay_entries_cut:,} dropped")
    return Text("\n".join(lines))


def _copy_lines(done: Publication) -> list[str]:
    planned = done.outcome == "would_publish"
    if done.outcome not in ("published", "would_publish"):
        return []
    if done.copied is None:
        return ["the store has every byte of it already"]
    what = f"{done.copied.keys:,} keys and {done.copied.items:,} items, {size(done.copied.bytes)}"
    if planned:
        least = f", at least {stretch(done.copy_seconds)} at the throttle" if done.copy_seconds is not None else ""
        return [f"would copy {what}{least}"]
    return [f"copied and read back {what}, in {stretch(done.copy_seconds or 0)}"]


def published_table(found: PublishedGenerator) -> Group:
    """A generator in a store: its versions, then the last moves of its pointer."""
    current = found.pointer.version if found.pointer else None
    withdrawn = found.pointer.withdrawn if found.pointer else ()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("version", "", "made", "published", "keys", "items", "payload", "recall", "accepted"):
        table.add_column(name, justify="right" if name in ("keys", "items", "payload", "recall") else "left")
    for kept in found.versions:
        state = "current" if kept.version == current else "rolled back from" if kept.version in withdrawn else ""
        state, style = (state, "green" if state == "current" else "") if kept.version_facts else ("DAMAGED", "bold red")
        table.add_row(f"{kept.version:06d}", Text(state, style=style), *_figures(kept))
    headline = Text(f"{found.generator} in {found.store}", style="bold")
    age = "nothing is current" if found.age_seconds is None else f"age {stretch(found.age_seconds)}"
    faults = [Text(kept.fault, style="red") for kept in found.versions if kept.fault]
    overlay = f"{found.overlay_entries:,} overlay entries"
    return Group(headline, Text(f"{age}, {overlay}"), table, *faults, _events(found), "")


def _figures(kept: StoredVersion) -> list[str]:
    facts = kept.version_facts
    if facts is None:
        return []
    accepted = ", ".join(facts.audit.get("accepted", {}))
    recall = format_value("recall", facts.measures.get("recall"))
    return [
        *(facts.created, facts.published, f"{facts.keys:,}", f"{facts.items:,}"),
        *(size(facts.payload_bytes), recall, accepted),
    ]


def _events(found: PublishedGenerator) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("when", "move", "to", "note"):
        table.add_column(name)
    for event in found.pointer.events[-SHOWN_EVENTS:] if found.pointer else ():
        table.add_row(event.when, event.kind.replace("_", " "), f"{event.version:06d}", event.note)
    return table
