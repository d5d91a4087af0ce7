"""Rates of a run: core-seconds per unit of work of each stage, measured by `benchmarks/scale.py`, in a JSON file.

The rates of the package were measured on one machine; `nearcast plan --rates FILE` takes those of another. Where items
are at hand, a short trial replaces the rates of the join. Knows nothing of the sizes of a run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from pydantic import Field

from nearcast.errors import SpecError
from nearcast.settings.base_table import SpecTable
from nearcast.settings.parse_spec import parse_model

__all__ = ["PACKAGE_RATES", "CostRates", "read_rates"]

PACKAGE_RATES = Path(__file__).with_name("rates.json")

Seconds = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Factor = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]


class CostRates(SpecTable):
    """Core-seconds per unit of work. A component is one number of one vector; widths are padded as the kernels do."""

    measured_on: str  # machine and commit of the measurement
    ingest_row: Seconds  # hash, check, read, sort and write a row, apart from its vector
    ingest_byte: Seconds  # the same for a byte of its vector
    scan_pair: Seconds  # scan a pair of query and item in the exact 8-bit join
    scan_component: Seconds  # the same, for each component
    truth_pair: Seconds  # score a pair in the reference join, which measures recall
    truth_component: Seconds  # the same, for each component
    build_factor: Factor  # measured time of building cells, as a multiple of the engine's model
    join_factor: Factor  # measured time of a pruned join, as a multiple of the engine's model
    join_growth: Annotated[float, Field(strict=True, allow_inf_nan=False)]  # power of the items by which it grows
    join_items: Factor  # items at which the multiple is `join_factor`
    join_slot: Seconds  # score, sort and write a slot of a list in a join task
    merge_slot: Seconds  # read a slot of the lists of a shard, and merge it
    choose_slot: Seconds  # select stored candidates from a slot: exposure cap, over-fetch
    table_slot: Seconds  # write a slot of the table, and count its measures
    transfer_byte: Seconds  # copy a byte between storage and a worker, and verify it
    task: Seconds  # start and commit a task

    def scan_seconds(self, width: int) -> float:
        """Return the core-seconds of a pair of `width` components in the exact join."""
        return self.scan_pair + width * self.scan_component

    def join_multiple(self, n_items: float) -> float:
        """Return the factor between a pruned join over so many items and the engine's model."""
        return self.join_factor * float((max(n_items, 1.0) / self.join_items) ** self.join_growth)


def read_rates(path: Path = PACKAGE_RATES) -> CostRates:
    """Read a rates file. Raises SpecError that names the file and every fault."""
    hint = "`python benchmarks/scale.py` writes one"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise SpecError(f"{path} cannot be read: {reason}; {hint}") from error
    if not isinstance(values, dict):
        raise SpecError(f"{path} is no table of rates; {hint}")
    return parse_model(CostRates, values, str(path))
