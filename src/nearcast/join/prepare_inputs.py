"""The inputs of a join, prepared: ingested tables, score terms in the vectors, compiled constraints, survival."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nearcast.join.compile_constraints import build_constraints
from nearcast.join.context import RunContext
from nearcast.join.plan_overfetch import Survival
from nearcast.join.score_terms import apply_score_terms
from nearcast.join.shard_plan import ItemShards, plan_shards, shard_artifacts
from nearcast.join.validate_run import check_columns
from nearcast.sources.ingest import Inputs
from nearcast.spec import GeneratorSpec

__all__ = ["PreparedInputs", "prepare_inputs"]


@dataclass(frozen=True, slots=True)
class PreparedInputs:
    """The tables that are joined, and everything derived from them before the join."""

    ingested: Inputs  # without score terms
    inputs: Inputs  # that are joined
    constraints: Path | None  # folder of the compiled constraints
    survival: Survival | None  # None without over-fetch
    shards: ItemShards | None = None  # None for one shard; several have no compiled constraints of all items

    @property
    def artifacts(self) -> set[str]:
        """Names of the artifact folders that the join reads, without the index."""
        tables = (self.ingested.items, self.ingested.queries, self.inputs.items, self.inputs.queries)
        names = set().union(*(table.artifact_names for table in tables))
        if self.shards is not None:
            names |= shard_artifacts(self.inputs.items, self.shards)
        return names | ({self.constraints.name} if self.constraints else set())


def prepare_inputs(
    run: RunContext, ingested: Inputs, survival: Survival | None, planned: GeneratorSpec | None = None
) -> PreparedInputs:
    """Apply score terms, choose the item shards, compile the constraints, and check the columns of later stages.

    planned: the spec without the limits of this host; default: the run's own.

    Raises InputError or SpecError for columns, terms, rules and caps that the run cannot use.
    """
    inputs = apply_score_terms(run.spec, ingested, run.artifacts)
    shards = plan_shards(run, planned or run.spec, inputs)
    constraints = None
    if shards is None:
        constraints = build_constraints(run, inputs, run.artifacts, ingested.items.vectors)
    check_columns(run, inputs)
    return PreparedInputs(ingested, inputs, constraints, survival, shards)
