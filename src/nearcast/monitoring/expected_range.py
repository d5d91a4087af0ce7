"""What is usual: the median of earlier values, and how far from it a value may be.

Takes numbers and gives numbers.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["FEWEST", "Usual", "usual"]

FEWEST = 3  # values; below that nothing is usual yet
SPREADS = 6.0  # of the MAD scaled to a normal distribution's deviation: a year of healthy days does not get there
MAD_TO_DEVIATION = 1.4826


@dataclass(frozen=True, slots=True)
class Usual:
    """The usual value, and by how much another may differ."""

    value: float
    allowed: float

    def bound(self, found: float, worse: Literal["higher", "lower", "either"]) -> float | None:
        """The bound that the value has passed; None where it has not."""
        over = found - self.value
        if abs(over) <= self.allowed or (worse == "higher" and over < 0) or (worse == "lower" and over > 0):
            return None
        return self.value + (self.allowed if over > 0 else -self.allowed)


def usual(before: Sequence[float], *, floor: float, relative: float = 0.0) -> Usual | None:
    """Judge by earlier values; None where there are too few.

    floor, relative: the least difference that is ever worth a word, in the value's unit and as a share of the usual.
    """
    if len(before) < FEWEST:
        return None
    value = statistics.median(before)
    spread = MAD_TO_DEVIATION * statistics.median(abs(v - value) for v in before)
    return Usual(value, max(floor, relative * abs(value), SPREADS * spread))
