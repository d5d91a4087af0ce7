"""Format runs and snapshots as tables for people. Computes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from nearcast.cli.common import format_bytes, format_cell, format_seconds
from nearcast.join.context import STAGES
from nearcast.measure.measures import COMPARED, MEASURES, format_value
from nearcast.table.manifest import Manifest, TargetCheck

if TYPE_CHECKING:
    from nearcast.api.retaining import DiskUse
    from nearcast.join.estimate import RunEstimate
    from nearcast.sources.validate_rows import Report, TableReport
    from nearcast.table.snapshot import Candidates, Snapshot

__all__ = [
    "build_candidate_list",
    "build_estimate_table",
    "build_input_table",
    "build_problem_table",
    "build_rule_table",
    "build_run_summary",
    "build_snapshot_list",
    "build_summary",
]

MOST_SLICES = 12
MINUTES = len("2026-11-28T06:30")  # of a time in ISO 8601
FIRST_MEASURES = ("recall", "fill_rate", "query_coverage")  # after a run, with one of the next
FOURTH_MEASURES = ("overlap", "item_coverage")  # the first that was measured
SLICE_WORDS = {  # slices that are not by a column
    ("traffic", "head"): "queries with the most traffic: half of it in total",
    ("traffic", "tail"): "the other half of the traffic",
    ("cells", "rare"): "queries in cells with few other queries",
    ("cells", "common"): "queries in cells with many other queries",
}
SUMMED_UP = ("recall_sample", "score_p01", "score_p99")  # shown within another row


def build_problem_table(report: Report) -> Table:
    """Build a table of the problems of the inputs, with examples and policies."""
    table = Table(title="checks", title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("table", "kind", "policy", "problem"):
        table.add_column(name, style="bold red" if name == "policy" and report.errors else "")
    for p in report.problems:
        table.add_row(p.side, p.kind, p.policy, p.sentence())
    return table


def build_estimate_table(estimate: RunEstimate) -> Text:
    """Format the estimated time, memory and disk of a run in three lines."""
    parts = " · ".join(f"{stage} {format_seconds(seconds)}" for stage, seconds in estimate.seconds.items())
    total = sum(estimate.seconds.values())
    return Text(
        f"estimated time    {format_seconds(total)}  ({parts})\n"
        f"estimated memory  {format_bytes(estimate.memory_bytes)} of {format_bytes(estimate.budget_bytes)} budget\n"
        f"estimated disk    {format_bytes(estimate.disk_bytes)}"
    )


def build_input_table(report: Report) -> Table:
    """Build a table of the sizes and vector lengths of both tables."""
    table = Table(title="inputs", title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("table", "rows", "vectors", "dim", "stored as", "length of vectors (1% · median · 99% · max)"):
        table.add_column(name, justify="right" if name in ("rows", "vectors", "dim") else "left")
    sides: list[tuple[str, TableReport]] = [("items", report.items)]
    if report.queries is not report.items:
        sides.append(("queries", report.queries))
    for name, side in sides:
        norms = side.norms
        words = " · ".join(f"{norms[key]:.4g}" for key in ("p01", "p50", "p99", "max")) if norms else "-"
        table.add_row(name, f"{side.rows:,}", f"{side.vectors:,}", str(side.dim), side.dtype, words)
    return table


def build_rule_table(rules: Mapping[str, Mapping[str, Any]]) -> Table:
    """Build a table of the share of sampled pairs that each rule keeps, with a note if queries get nothing."""
    table = Table(title="rules", title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("rule", "pairs kept", "queries without items", ""):
        table.add_column(name, justify="left" if name in ("rule", "") else "right", overflow="fold")
    for name, facts in rules.items():
        null = facts["without_items_by_null"]
        note = f"{null:.1%} because a value of the query is null; write: or query.COLUMN is null" if null else ""
        if facts["pairs_kept"] == 0:
            note = note or "no sampled pair is kept"
        table.add_row(name, f"{facts['pairs_kept']:.2%}", f"{facts['queries_without_items']:.1%}", note)
    return table


def build_summary(snapshot: Snapshot) -> Group:
    """Build the description of a snapshot: recall target, all measures, recall by slice, costs beside the estimates."""
    manifest = snapshot.manifest
    table = _build_measure_table(manifest, _list_measures(manifest))
    parts: list[RenderableType] = [_build_headline(manifest, snapshot), "", table, ""]
    if manifest.slices:
        parts += [_build_slice_table(manifest.slices), ""]
    return Group(*parts, _build_cost_table(manifest))


def build_run_summary(snapshot: Snapshot, disk: DiskUse, key: str) -> Group:
    """Build the summary after a run: five figures, slices below the target, and where to find the rest.

    key: of a list, as it is written in a shell.
    """
    manifest, run = snapshot.manifest, snapshot.manifest.run
    names = _list_measures(manifest)
    first = [*FIRST_MEASURES, next(name for name in FOURTH_MEASURES if name in names)]
    table = _build_measure_table(manifest, first)
    estimated = f"{format_seconds(run.estimate['seconds_total'])}, {format_bytes(run.estimate['memory_bytes'])}"
    memory = f"{format_bytes(run.peak_memory_bytes)} of memory; estimated: {estimated}"
    table.add_row("time", format_seconds(run.seconds_total), memory)
    parts: list[RenderableType] = [_build_headline(manifest, snapshot), "", table, ""]
    below = [part for part in manifest.slices if part["below_promise"]]
    if below:
        parts += [_build_slice_table(below), ""]
    name, stays = f"{snapshot.generator}/{snapshot.version}", "all stay"
    if disk.keep is not None:
        stays = f"the newest {disk.keep} and all that are served or pinned stay"
    snapshots = "1 snapshot" if disk.snapshots == 1 else f"{disk.snapshots:,} snapshots"
    rest = [
        f"{len(names) - len(first)} more measures: nearcast show {name}",
        f"a list: nearcast lookup {snapshot.generator} {key}",
        f"on disk: {snapshots}, {format_bytes(disk.bytes)} with caches; {stays}",
    ]
    return Group(*parts, *(Text(line, style="dim") for line in rest))


def build_candidate_list(
    found: Candidates, columns: Sequence[str], *, full: bool = False, most_lines: int | None = None
) -> Group:
    """Build a table of one list, best candidate first. full: do not truncate long values.

    most_lines: for a screen of so many lines: a candidate takes one line, and the last candidates are left out.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("rank", "id", "score", *columns):
        is_own = name in ("rank", "id", "score")
        justify: JustifyMethod = "right" if name in ("rank", "score") else "left"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=is_own and most_lines is not None)
    count = len(found.ids)
    n_shown = count if most_lines is None or count <= most_lines else max(1, most_lines - 1)
    for rank, (item, score) in enumerate(zip(found.ids[:n_shown], found.scores[:n_shown], strict=True)):
        shown = [Text(format_cell(found.columns[name][rank], full=full)) for name in columns]
        for cell in shown if most_lines is not None else ():
            cell.no_wrap, cell.overflow = True, "ellipsis"
        table.add_row(str(rank + 1), format_cell(item, full=True), f"{score:.4f}", *shown)
    reason = f", short list: {found.reason}" if found.reason else ""
    parts: list[RenderableType] = [Text(f"{found.query!r}: {count} candidates{reason}"), table]
    if n_shown < count:
        parts.append(Text(f"{count - n_shown:,} more with --first {count} or --full", style="dim"))
    return Group(*parts)


def build_snapshot_list(snapshots: Sequence[Snapshot], updates: Sequence[int]) -> Table:
    """Build a table of snapshots, one per row. updates: those made to the version of each; shown if there are any."""
    table = Table(box=None, pad_edge=False, padding=(0, 1 if any(updates) else 2, 0, 0))
    numbers = ("rows", "recall", "target", "fill", "overlap", "updates")
    for name in (
        "generator",
        "snapshot",
        "made (UTC)",
        *numbers[:-1],
        "time",
        "engine",
        *(["updates"] if any(updates) else []),
    ):
        table.add_column(name, justify="right" if name in numbers else "left", no_wrap=name == "made (UTC)")
    for snapshot, n_updates in zip(snapshots, updates, strict=True):
        m = snapshot.manifest
        measures = m.measures
        table.add_row(
            snapshot.generator,
            snapshot.name,
            m.run.created[:MINUTES].replace("T", " "),
            f"{snapshot.n_rows:,}",
            format_value("recall", measures["recall"]),
            _format_target(m.target),
            format_value("fill_rate", measures["fill_rate"]),
            format_value("overlap", measures.get("overlap")),
            format_seconds(m.run.seconds_total),
            m.engine.name,
            *([str(n_updates or "")] if any(updates) else []),
        )
    return table


def _format_target(target: TargetCheck) -> Text:
    return Text(f"{target.recall:g}, {'met' if target.met else 'MISSED'}", style="green" if target.met else "bold red")


def _build_headline(manifest: Manifest, snapshot: Snapshot) -> Text:
    engine = manifest.engine
    params = "".join(f", {_format_param(name, value)}" for name, value in engine.params.items())
    items = manifest.inputs["items"]["vectors"]
    text = Text(f"{snapshot.generator} snapshot {snapshot.name}", style="bold")
    text.append(
        f"\n{snapshot.n_rows:,} queries × {items:,} items, k = {manifest.k}, {manifest.metric}, "
        f"engine {engine.name}{params}\n{_shorten_path(snapshot.url)}\n",
        style="not bold",
    )
    text.append("recall target ", style="not bold")
    text.append(_format_target(manifest.target))
    if manifest.target.reason:
        text.append(f" ({manifest.target.reason})", style="not bold")
    if manifest.run.incremental is not None:
        text.append(f"\n{_describe_incremental(manifest.run.incremental)}", style="not bold")
    if manifest.ties:
        text.append(f"\nwarning: {manifest.ties}", style="not bold yellow")
    return text


def _describe_incremental(facts: Mapping[str, Any]) -> str:
    """Say whether a run was incremental: what changed and how many lists were joined, or why all of them."""
    changes = "; ".join(
        f"{table}: {rows['new']:,} new, {rows['gone']:,} gone, {rows['changed']:,} changed"
        for table, rows in (facts["changes"] or {}).items()
    )
    if not facts["incremental"]:
        return f"full run: {facts['reason']}" + (f" ({changes})" if changes else "")
    lists = facts["lists"]
    return f"incremental run: {lists['updated']:,} lists updated, {lists['joined']:,} joined in full ({changes})"


def _format_param(name: str, value: int) -> str:
    return name if name == "exact" else f"{name} {value:,}"


def _shorten_path(where: str) -> str:
    """Return a local path relative to the current folder if it is below it."""
    here, path = Path.cwd(), Path(where)
    return str(path.relative_to(here)) if path.is_absolute() and path.is_relative_to(here) else where


def _list_measures(manifest: Manifest) -> list[str]:
    """Return the measures that are printed in separate rows, in order."""
    measures = manifest.measures
    return [n for n in MEASURES if n in measures and n not in SUMMED_UP and not n.endswith(("_low", "_high"))]


def _build_measure_table(manifest: Manifest, names: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("measure")
    table.add_column("value", justify="right")
    table.add_column("", style="dim")
    measures = manifest.measures
    for name in names:
        meaning = MEASURES[name].meaning
        if f"{name}_low" in measures:
            low, high = (format_value(f"{name}_{end}", measures[f"{name}_{end}"]) for end in ("low", "high"))
            if name == "recall":
                meaning = (
                    f"of the exact neighbors, on {measures['recall_sample']:,} queries; 95% interval {low} to {high}"
                )
            else:
                meaning = f"{meaning.split(':')[-1].strip()}; {low} to {high}"
        elif name == "score_p50":
            low, high = (format_value(n, measures[n]) for n in ("score_p01", "score_p99"))
            meaning = f"{meaning}; 98% lie between {low} and {high}"
        elif COMPARED in meaning and manifest.compared_with:
            other = manifest.compared_with
            words = f"{other['version']:06d}, which is {'' if other['served'] else 'not '}served,"
            meaning = meaning.replace(COMPARED, words)
        table.add_row(name, format_value(name, measures[name]), meaning)
    return table


def _build_slice_table(slices: Sequence[Mapping[str, Any]]) -> Table:
    """Build a table of recall by slice, worst first; mark slices below the target."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("slice", "", "recall", "95% interval", "queries", "best score", ""):
        table.add_column(name, justify="right" if name in ("recall", "queries", "best score") else "left")
    ordered = sorted(slices, key=lambda part: (not part["below_promise"], part["recall"]))
    for part in ordered[:MOST_SLICES]:
        note = Text(SLICE_WORDS.get((part["by"], part["value"]), ""), style="dim")
        below = (
            Text("below the target" + (": " if note else ""), style="bold red") + note
            if part["below_promise"]
            else note
        )
        best = "-" if part["best_score"] is None else f"{part['best_score']:.4g}"
        span = f"{part['low']:.2%} to {part['high']:.2%}"
        row = (part["by"], part["value"], f"{part['recall']:.2%}", span, f"{part['queries']:,}", best)
        table.add_row(*row, below)
    left = len(ordered) - MOST_SLICES
    if left > 0:
        table.add_row(Text(f"{left:,} more with --json", style="dim"))
    return table


def _build_cost_table(manifest: Manifest) -> Table:
    run, estimate = manifest.run, manifest.run.estimate
    seconds, expected = run.seconds, estimate["seconds"]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("cost", "measured", "estimated"):
        table.add_column(name, justify="left" if name == "cost" else "right")
    for stage in (s for s in STAGES if s in seconds):
        table.add_row(
            stage, format_seconds(seconds[stage]), format_seconds(expected[stage]) if stage in expected else ""
        )
    table.add_row("total", format_seconds(run.seconds_total), format_seconds(estimate["seconds_total"]), style="bold")
    peak = f"{format_bytes(run.peak_memory_bytes)}"
    table.add_row(
        "memory",
        peak,
        f"{format_bytes(estimate['memory_bytes'])} of {format_bytes(estimate['budget_bytes'])} budget",
    )
    table.add_row("disk", format_bytes(run.disk_bytes), format_bytes(estimate["disk_bytes"]))
    return table
