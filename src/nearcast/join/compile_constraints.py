"""What every list of a run must obey: compiled from the spec and the attributes of both sides, kept for the tasks.

A folder of arrays, named by what decides it, that every task maps. Knows nothing of engines.
"""

from __future__ import annotations

import json
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nearcast.eligibility import (
    Rule,
    check_rules,
    columns_of,
    compile_rules,
    open_eligibility,
    parse_rule,
    save_eligibility,
)
from nearcast.engines.base import require_constraints
from nearcast.errors import SpecError
from nearcast.files import fingerprint, finish, fresh_folder, is_done, verify
from nearcast.join.context import RunContext
from nearcast.join.inputs import Sources
from nearcast.knn.constraints import FREE, Cap, Constraints, find_crossing
from nearcast.mapped import map_array
from nearcast.measure.near_duplicates import group_near_duplicates
from nearcast.sources.attribute_columns import attributes_of
from nearcast.sources.ingest import IngestedTable, Inputs
from nearcast.sources.row_source import RowSource
from nearcast.spec import GeneratorSpec
from nearcast.types import Vectors
from nearcast.version import __version__

__all__ = [
    "check_constraints",
    "check_spec_rules",
    "has_constraints",
    "have_constraints",
    "open_constraints",
    "rules_of",
]

ELIGIBILITY = "eligibility"
ALIKE_FORMAT = "alike 2"  # changed where the same items would be grouped otherwise: earlier artifacts are then unused

Int32Array = npt.NDArray[np.int32]


def has_constraints(spec: GeneratorSpec) -> bool:
    """Whether lists must obey anything besides being nearest."""
    return bool(spec.rules or spec.caps or spec.min_score is not None)


def rules_of(spec: GeneratorSpec) -> list[Rule]:
    """The rules of a spec, parsed; SpecError points at the word that is wrong."""
    return [parse_rule(rule.name, rule.keep) for rule in spec.rules]


def check_spec_rules(spec: GeneratorSpec, sources: Sources) -> None:
    """Check the rules against the columns of both sides before anything is read; SpecError points at the word."""
    rules = rules_of(spec)
    if not rules:
        return

    def schema(source: RowSource) -> pa.Schema:
        return pa.schema([("id", source.id_type), *source.attribute_types.items()])

    table = "queries" if spec.queries is not None else "items"
    unlisted = {"item": _lines(sources.items, "items"), "query": _lines(sources.queries, table)}
    check_rules(rules, schema(sources.items), schema(sources.queries), unlisted=unlisted)


def _lines(source: RowSource, table: str) -> dict[str, str]:
    """For each column that the attributes of a table do not name: the line of the spec that would."""
    listed = source.spec.attributes
    return {
        name: f"[{table}] attributes = [{', '.join(json.dumps(one) for one in (*listed, name))}]"
        for name in source.unlisted
    }


def have_constraints(run: RunContext, inputs: Inputs, home: Path, originals: Vectors) -> Path | None:
    """Have the compiled constraints of these sides in a folder below `home`; None where the spec has none.

    originals: the items' vectors as they were read: whether two are near-duplicates is no matter of score terms.
    Raises SpecError for rules that do not fit the columns, and for caps that cross or that the engine refuses.
    """
    spec = run.spec
    if not has_constraints(spec):
        return None
    asked = [
        [rule.model_dump() for rule in spec.rules],
        [cap.model_dump(by_alias=True) for cap in spec.caps],
        spec.min_score,
    ]
    made_of = [inputs.items.folder.name, inputs.queries.folder.name, asked, __version__]
    made_of += [ALIKE_FORMAT] if any(cap.near_duplicate_cosine is not None for cap in spec.caps) else []
    folder = home / f"constraints-{fingerprint(made_of)[:16]}"
    if not is_done(folder):
        with run.meter.stage("rules"):
            _write(run, inputs, originals, fresh_folder(folder))
    require_constraints(run.engine, open_constraints(folder))
    return folder


@lru_cache(maxsize=2)
def open_constraints(folder: Path | None) -> Constraints:
    """What `have_constraints` has written, mapped; FREE for None."""
    if folder is None:
        return FREE
    facts = verify(folder, contents=False)
    eligibility = open_eligibility(folder / ELIGIBILITY) if facts["rules"] else None
    caps = [Cap(map_array(folder / f"cap-{n}.npy"), most) for n, most in enumerate(facts["caps"])]
    return Constraints(eligibility, tuple(caps), facts["min_score"])


def check_constraints(run: RunContext, inputs: Inputs) -> None:
    """Raise as `have_constraints` does, without looking for near-duplicates, which takes the vectors."""
    if has_constraints(run.spec):
        _compiled(run, inputs, None)


def _compiled(run: RunContext, inputs: Inputs, originals: Vectors | None) -> Constraints:
    rules = rules_of(run.spec)
    eligibility = None
    if rules:
        item_columns, query_columns, _ = columns_of(rules)
        eligibility = compile_rules(
            rules, attributes_of(inputs.queries, query_columns), attributes_of(inputs.items, item_columns)
        )
    return Constraints(eligibility, tuple(_caps(run, inputs.items, originals)), run.spec.min_score)


def _write(run: RunContext, inputs: Inputs, originals: Vectors, folder: Path) -> None:
    held = _compiled(run, inputs, originals)
    if held.eligibility is not None:
        save_eligibility(held.eligibility, fresh_folder(folder / ELIGIBILITY))
    for number, cap in enumerate(held.caps):
        np.save(folder / f"cap-{number}.npy", cap.groups)
    caps = [cap.most for cap in held.caps]
    finish(folder, {"rules": held.eligibility is not None, "caps": caps, "min_score": held.min_score})


def _caps(run: RunContext, items: IngestedTable, originals: Vectors | None) -> list[Cap]:
    """The caps, the smallest groups first; SpecError where groups of two of them cross."""
    spec = run.spec
    named = [(cap.by, Cap(_groups(items, cap.by), cap.max_per_list)) for cap in spec.caps if cap.by is not None]
    named.sort(key=lambda pair: -int(pair[1].groups.max(initial=-1)))
    for (inner_name, inner), (outer_name, outer) in pairwise(named):
        crossing = find_crossing(inner, outer)
        if crossing is not None:
            first, second = (items.ids[place].as_py() for place in crossing)
            raise SpecError(
                f"caps by {inner_name} and by {outer_name} cross: items {first!r} and {second!r} share their "
                f"{inner_name} but not their {outer_name}. Only caps whose groups lie within each other can be kept "
                "exactly; cap one of the two, or a column that combines them"
            )
    alike = [cap for cap in spec.caps if cap.near_duplicate_cosine is not None and originals is not None]
    found = [cap for _, cap in named]
    for like in sorted(alike, key=lambda cap: -(cap.near_duplicate_cosine or 0)):
        assert like.near_duplicate_cosine is not None
        assert originals is not None
        groups = group_near_duplicates(originals, like.near_duplicate_cosine, run.resources, run.listener.progress)
        found.insert(0, Cap(_within(groups, found), like.max_per_list))
    return found


def _groups(items: IngestedTable, column: str) -> Int32Array:
    """(m,) the group of every item by the value of a column; -1 where it is null."""
    values = attributes_of(items, [column]).column(column).combine_chunks()
    if pa.types.is_nested(values.type):
        raise SpecError(f"caps are by single values, and column {column!r} holds {values.type}")
    encoded = values if pa.types.is_dictionary(values.type) else values.dictionary_encode()
    groups: Int32Array = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int32)
    return groups


def _within(groups: Int32Array, others: list[Cap]) -> Int32Array:
    """Groups cut where those of other caps end, so that they lie within them."""
    for cap in others:
        pairs = np.stack([groups, np.where(groups >= 0, cap.groups, -1)], axis=1)
        numbers = np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)
        groups = np.where(groups >= 0, numbers, -1).astype(np.int32)
    return groups
