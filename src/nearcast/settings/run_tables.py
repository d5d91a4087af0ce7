"""The table `[run]` of a spec: where a run happens, how its items are cut into shards, whether it is incremental, and
prices for `nearcast plan`.

Of these settings only the shards below recall 1 change the candidates; an incremental run may find other ones there.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, model_validator

from nearcast.settings.base_table import ByteCount, SpecTable, Whole

__all__ = ["RUNNER_NAMES", "RunSpec", "RunnerName"]

RunnerName = Literal["local", "processes", "spark", "ray"]
RUNNER_NAMES: tuple[str, ...] = get_args(RunnerName)

Price = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
SHARD_KEYS = ("shards", "shard_bytes")  # they exclude each other


class RunSpec(SpecTable):
    """Settings of where and how a run happens. Of them, only shards below recall 1 change the candidates."""

    runner: RunnerName = Field(
        "local",
        description="Runs the tasks: local (this process), processes (several on this machine), spark or ray.",
    )
    workers: Whole | None = Field(
        None,
        ge=1,
        le=100_000,
        description="Workers of the runner. Default: two processes, or as many as the cluster has.",
    )
    shards: Whole | None = Field(
        None,
        ge=1,
        le=100_000,
        description="Parts that the items are cut into, each with an index; a worker holds one at a time. "
        "Default: as many as the memory needs.",
    )
    shard_bytes: ByteCount | None = Field(
        None, description='Maximum bytes of a part of the items, for example "8GB"; instead of `shards`. Default: none.'
    )
    worker_memory: ByteCount | None = Field(
        None, description='Memory budget of a worker, for example "16GB". Default: half of the free memory of its host.'
    )
    incremental: bool = Field(
        False,
        strict=True,
        description="Whether a run updates the lists of the last snapshot, and joins only what has changed since. "
        "Needs more disk: lists are stored wider than k.",
    )
    full_every: Whole = Field(
        7, ge=1, le=10_000, description="Days after which an incremental run joins everything again."
    )
    price_core_hour: Price | None = Field(
        None, description="Price of a core-hour, for `nearcast plan`. Default: no price."
    )
    price_gb_month: Price | None = Field(None, description="Price of storing a GB for a month. Default: no price.")
    price_million_requests: Price | None = Field(
        None, description="Price of a million requests to the storage. Default: no price."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.shards is not None and self.shard_bytes is not None:
            raise ValueError("shards and shard_bytes both set the number of shards; write one of them")
        return self

    def answer_settings(self, recall: float) -> dict[str, Any]:
        """Return the settings that change the candidates at this recall target: the shards, below 1. Else nothing."""
        if recall == 1:
            return {}
        values = {key: getattr(self, key) for key in SHARD_KEYS}
        return {key: value for key, value in values.items() if value is not None and (key, value) != ("shards", 1)}
