"""What the ways of a replay answer from, and whether they answer from the same: versions, their age, their files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nearcast.errors import NearcastError
from nearcast.join.context import RunContext
from nearcast.join.inputs import Sources
from nearcast.join.rank import ranker_identity
from nearcast.join.run_plan import make_plan
from nearcast.replaying.candidate_sources import LookUp
from nearcast.table.snapshot import find_snapshot
from nearcast.times import format_utc

__all__ = ["Compared", "compare_inputs"]


@dataclass(frozen=True, slots=True)
class Compared:
    """What each way answers from, in words, and why the ways differ in more than how they answer."""

    ways: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def compare_inputs(run: RunContext, looked: Sequence[LookUp], sources: Sources | None) -> Compared:
    """Say which versions are compared, and warn where an online index is made of other files than they were.

    sources: today's files, which the online index is made of; None where there is no online way.
    """
    words = [
        f"{way.name}: snapshot {way.view.version.snapshot}, made {format_utc(way.view.version.created)}"
        for way in looked
    ]
    warnings = []
    if sources is not None:
        words.append("online: today's files")
        for way in looked:
            changed = _changed(run, way, sources)
            if changed:
                warnings.append(
                    f"{way.name} is snapshot {way.view.version.snapshot} and was made of other files than the online "
                    f"index ({changed}): their difference is also one of what has changed since. Run `nearcast run`, "
                    "and replay the new snapshot with --snapshot, to compare two ways of answering from the same files"
                )
    return Compared(tuple(words), tuple(warnings))


def _changed(run: RunContext, way: LookUp, sources: Sources) -> str:
    """What is different in the files of today; nothing where they are those of the version."""
    facts = way.view.version.facts
    try:
        manifest = find_snapshot(run.workspace.home.parent, run.spec.name, way.view.version.number).manifest
    except NearcastError:
        manifest = None
    if manifest is not None and manifest.fingerprint == facts.fingerprint:
        made_of = manifest.inputs
        then = {side: _hashes(made_of[side]["files"]) for side in ("items", "queries") if side in made_of}
        now = {"items": _hashes(sources.item_digests), "queries": _hashes(sources.query_digests)}
        changed = [side for side, hashes in then.items() if hashes != now[side]]
        return f"the {' and the '.join(changed)} have changed" if changed else ""
    digests = sources.item_digests, sources.query_digests
    ranker = ranker_identity(run.spec, run.workspace.base)
    plan = make_plan(run.spec, run.engine.name, run.settings.model_dump(), *digests, ranker)
    same = plan.fingerprint == facts.fingerprint
    return "" if same else "its snapshot is not here, and what it was made of differs from the spec and files of today"


def _hashes(digests: list[dict[str, str]]) -> list[str]:
    return [digest["blake2b"] for digest in digests]
