"""Constraints of a run, compiled from the spec and the attributes of both tables: rules, caps, min_score.

They are stored as a folder of arrays, named by the fingerprint of their inputs, and every task maps it. Knows nothing
of engines.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nearcast.artifact_files import map_array
from nearcast.eligibility import (
    Rule,
    check_rules,
    collect_columns,
    compile_rules,
    open_eligibility,
    parse_rule,
    save_eligibility,
)
from nearcast.engines.base import require_constraints
from nearcast.errors import SpecError
from nearcast.files import fingerprint, fresh_folder, verify
from nearcast.join.context import RunContext
from nearcast.join.inputs import Sources
from nearcast.knn.constraints import FREE, Cap, Constraints, find_crossing
from nearcast.measure.near_duplicates import group_near_duplicates
from nearcast.sources.ingest import Inputs, read_attributes
from nearcast.sources.row_source import RowSource
from nearcast.spec import GeneratorSpec
from nearcast.storage.artifacts import Artifacts
from nearcast.types import Vectors
from nearcast.version import __version__

__all__ = [
    "build_constraints",
    "check_constraints",
    "check_spec_rules",
    "compile_columns",
    "crossing_error",
    "has_constraints",
    "list_constraint_columns",
    "open_constraints",
    "parse_rules",
]

ELIGIBILITY = "eligibility"
ALIKE_FORMAT = "alike 2"  # changes with the grouping, so that earlier artifacts are not used

Int32Array = npt.NDArray[np.int32]


def has_constraints(spec: GeneratorSpec) -> bool:
    """Return whether the spec has rules, caps or a min_score."""
    return bool(spec.rules or spec.caps or spec.min_score is not None)


def parse_rules(spec: GeneratorSpec) -> list[Rule]:
    """Parse the rules of a spec. Raises SpecError that points at the wrong word."""
    return [parse_rule(rule.name, rule.keep) for rule in spec.rules]


def check_spec_rules(spec: GeneratorSpec, sources: Sources) -> None:
    """Check the rules against the columns of both tables, before rows are read. Raises SpecError for the wrong word."""
    rules = parse_rules(spec)
    if not rules:
        return

    def schema(source: RowSource) -> pa.Schema:
        return pa.schema([("id", source.id_type), *source.attribute_types.items()])

    table = "queries" if spec.queries is not None else "items"
    unlisted = {
        "item": _spec_lines(sources.items, "items"),
        "query": _spec_lines(sources.queries, table),
    }
    check_rules(rules, schema(sources.items), schema(sources.queries), unlisted=unlisted)


def _spec_lines(source: RowSource, table: str) -> dict[str, str]:
    """Return the spec line that would add each unlisted column to the attributes."""
    listed = source.spec.attributes
    return {
        name: f"[{table}] attributes = [{', '.join(json.dumps(one) for one in (*listed, name))}]"
        for name in source.unlisted
    }


def build_constraints(run: RunContext, inputs: Inputs, artifacts: Artifacts, originals: Vectors) -> Path | None:
    """Return the folder of the compiled constraints; compile them if missing. None if the spec has none.

    originals: the items' vectors without score terms, which near-duplicates are found by.
    Raises SpecError for rules that do not fit the columns, caps that cross, and kinds that the engine does not support.
    """
    spec = run.spec
    if not has_constraints(spec):
        return None
    settings = [
        [rule.model_dump() for rule in spec.rules],
        [cap.model_dump(by_alias=True) for cap in spec.caps],
        spec.min_score,
    ]
    made_of = [inputs.items.fingerprint, inputs.queries.fingerprint, settings, __version__]
    made_of += [ALIKE_FORMAT] if any(cap.near_duplicate_cosine is not None for cap in spec.caps) else []
    with run.meter.stage("rules"):
        name = f"constraints-{fingerprint(made_of)[:16]}"
        folder = artifacts.ensure(name, lambda folder: _write_constraints(_compile(run, inputs, originals), folder))
    require_constraints(run.engine, open_constraints(folder))
    return folder


@lru_cache(maxsize=2)
def open_constraints(folder: Path | None) -> Constraints:
    """Map the constraints that `build_constraints` wrote; FREE for None."""
    if folder is None:
        return FREE
    facts = verify(folder, contents=False)
    eligibility = open_eligibility(folder / ELIGIBILITY) if facts["rules"] else None
    caps = [Cap(map_array(folder / f"cap-{n}.npy"), most) for n, most in enumerate(facts["caps"])]
    return Constraints(eligibility, tuple(caps), facts["min_score"])


def check_constraints(run: RunContext, inputs: Inputs) -> None:
    """Raise the errors of `build_constraints`, without the search for near-duplicates, which needs the vectors."""
    if has_constraints(run.spec):
        _compile(run, inputs, None)


def compile_columns(spec: GeneratorSpec, queries: pa.Table, items: pa.Table) -> Constraints:
    """Compile rules, caps by columns and min_score for tables in memory; row i is position i.

    queries, items: "id" and the columns of `list_constraint_columns`. Raises SpecError for rules that do not fit the
    columns, and for caps that cross.
    """
    rules = parse_rules(spec)
    eligibility = compile_rules(rules, queries, items) if rules else None
    return Constraints(eligibility, tuple(_compile_caps(spec, items)), spec.min_score)


def list_constraint_columns(spec: GeneratorSpec) -> tuple[list[str], list[str]]:
    """List the columns of the queries, and of the items, that rules and caps read."""
    item_columns, query_columns, _ = collect_columns(parse_rules(spec))
    caps = [cap.by for cap in spec.caps if cap.by is not None]
    return list(query_columns), list(dict.fromkeys((*item_columns, *caps)))


def _compile(run: RunContext, inputs: Inputs, originals: Vectors | None) -> Constraints:
    query_columns, item_columns = list_constraint_columns(run.spec)
    queries = read_attributes(inputs.queries, query_columns, 0, None if run.spec.rules else 0)
    constraints = compile_columns(run.spec, queries, read_attributes(inputs.items, item_columns))
    if originals is None:
        return constraints
    caps = list(constraints.caps)
    by_cosine = [(cap.near_duplicate_cosine, cap) for cap in run.spec.caps if cap.near_duplicate_cosine is not None]
    for cosine, cap in sorted(by_cosine, key=lambda pair: -pair[0]):
        groups = group_near_duplicates(originals, cosine, run.resources, run.listener.progress)
        caps.insert(0, Cap(_split_by_caps(groups, caps), cap.max_per_list))
    return replace(constraints, caps=tuple(caps))


def _write_constraints(constraints: Constraints, folder: Path) -> dict[str, Any]:
    if constraints.eligibility is not None:
        save_eligibility(constraints.eligibility, fresh_folder(folder / ELIGIBILITY))
    for number, cap in enumerate(constraints.caps):
        np.save(folder / f"cap-{number}.npy", cap.groups)
    caps = [cap.most for cap in constraints.caps]
    has_rules = constraints.eligibility is not None
    return {"rules": has_rules, "caps": caps, "min_score": constraints.min_score}


def _compile_caps(spec: GeneratorSpec, items: pa.Table) -> list[Cap]:
    """Compile the caps by columns, the smallest groups first. Raises SpecError if groups of two caps cross."""
    named = [
        (cap.by, Cap(_group_by_column(items, cap.by), cap.max_per_list)) for cap in spec.caps if cap.by is not None
    ]
    named.sort(key=lambda pair: -int(pair[1].groups.max(initial=-1)))
    for (inner_name, inner), (outer_name, outer) in pairwise(named):
        crossing = find_crossing(inner, outer)
        if crossing is not None:
            first, second = (items.column("id")[position].as_py() for position in crossing)
            raise crossing_error(inner_name, outer_name, first, second)
    return [cap for _, cap in named]


def crossing_error(inner: str, outer: str, first: object, second: object) -> SpecError:
    """Return the error for two caps whose groups are not nested, with two items that show it."""
    return SpecError(
        f"caps by {inner} and by {outer} cross: items {first!r} and {second!r} share their "
        f"{inner} but not their {outer}. Only caps whose groups lie within each other can be kept "
        "exactly; cap one of the two, or a column that combines them"
    )


def _group_by_column(items: pa.Table, column: str) -> Int32Array:
    """Return (m,) the group of every item by the value of a column, -1 for null."""
    values = items.column(column).combine_chunks()
    if pa.types.is_nested(values.type):
        raise SpecError(f"caps are by single values, and column {column!r} holds {values.type}")
    encoded = values if pa.types.is_dictionary(values.type) else values.dictionary_encode()
    groups: Int32Array = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int32)
    return groups


def _split_by_caps(groups: Int32Array, others: list[Cap]) -> Int32Array:
    """Split groups by the groups of other caps, so that each lies within one group of every other cap."""
    for cap in others:
        pairs = np.stack([groups, np.where(groups >= 0, cap.groups, -1)], axis=1)
        numbers = np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)
        groups = np.where(groups >= 0, numbers, -1).astype(np.int32)
    return groups
