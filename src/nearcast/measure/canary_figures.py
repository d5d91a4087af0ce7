"""Figures of a canary: both versions are looked up for the same keys of its share, and tallied per arm.

Sums alone, so that the figures of several processes add up. Knows nothing of how lists are looked up.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["LATENCY_BOUNDS", "ArmFigures", "CanaryFigures", "HitFigures", "find_latency_bucket", "measure_overlap"]

# Upper bounds of the latency histogram in seconds: 5 us to 10 s, each 1.4 times the one before.
LATENCY_BOUNDS = tuple(5e-6 * 2 ** (step / 2) for step in range(43))
NO_LATENCIES = (0,) * (len(LATENCY_BOUNDS) + 1)


def find_latency_bucket(seconds: float) -> int:
    """Return the position of a duration in a latency histogram; the last bucket has no upper bound."""
    return bisect_left(LATENCY_BOUNDS, seconds)


@dataclass(frozen=True, slots=True)
class ArmFigures:
    """Look-ups of one arm: the current version or the canary's."""

    answers: int = 0
    empty: int = 0  # answers without a candidate
    errors: int = 0  # look-ups that failed
    fill: float = 0.0  # sum over the answers of length / k
    latency: tuple[int, ...] = NO_LATENCIES  # answers by duration, see LATENCY_BOUNDS

    def __add__(self, other: ArmFigures) -> ArmFigures:
        latency = tuple(map(sum, zip(self.latency, other.latency, strict=True)))
        return ArmFigures(
            self.answers + other.answers,
            self.empty + other.empty,
            self.errors + other.errors,
            self.fill + other.fill,
            latency,
        )

    @property
    def empty_rate(self) -> float | None:
        """Share of the answers without a candidate; None without answers."""
        return self.empty / self.answers if self.answers else None

    @property
    def mean_fill(self) -> float | None:
        """Mean of length / k; None without answers."""
        return self.fill / self.answers if self.answers else None

    def find_quantile(self, share: float) -> float | None:
        """Return an upper bound of a quantile of the latency in seconds; None without answers."""
        total, seen = sum(self.latency), 0
        if not total:
            return None
        for bound, count in zip((*LATENCY_BOUNDS, float("inf")), self.latency, strict=True):
            seen += count
            if seen >= share * total:
                return bound
        return float("inf")

    def count_above(self, seconds: float) -> int:
        """Return the number of answers that surely took longer than this."""
        return sum(self.latency[find_latency_bucket(seconds) + 1 :])

    def summarize(self) -> dict[str, Any]:
        """Return the figures for people."""
        return {
            "answers": self.answers,
            "empty": self.empty,
            "errors": self.errors,
            "empty_rate": self.empty_rate,
            "mean_fill": self.mean_fill,
            "p50_seconds": self.find_quantile(0.5),
            "p99_seconds": self.find_quantile(0.99),
        }

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> ArmFigures:
        """Build it from the JSON data of `asdict`. Raises KeyError, TypeError or ValueError."""
        latency = tuple(map(int, fields["latency"]))
        if len(latency) != len(NO_LATENCIES):
            raise ValueError(f"a latency histogram of {len(latency)} buckets where {len(NO_LATENCIES)} are known")
        answers, empty, errors = (int(fields[name]) for name in ("answers", "empty", "errors"))
        return ArmFigures(answers, empty, errors, float(fields["fill"]), latency)


@dataclass(frozen=True, slots=True)
class CanaryFigures:
    """A canary's look-ups since it started, in one process or in several."""

    routed: int = 0  # look-ups of keys in the share; a sample of them is measured
    keys: int = 0  # distinct keys among the measured ones
    compared: int = 0  # measured pairs of lists of which one at least has a candidate
    overlap: float = 0.0  # sum over these pairs of common candidates / length of the longer list
    current: ArmFigures = ArmFigures()
    canary: ArmFigures = ArmFigures()

    def __add__(self, other: CanaryFigures) -> CanaryFigures:
        return CanaryFigures(
            self.routed + other.routed,
            self.keys + other.keys,
            self.compared + other.compared,
            self.overlap + other.overlap,
            self.current + other.current,
            self.canary + other.canary,
        )

    @property
    def mean_overlap(self) -> float | None:
        """Mean overlap of the two lists of a key; None if no pair was compared."""
        return self.overlap / self.compared if self.compared else None

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    def summarize(self) -> dict[str, Any]:
        """Return the figures for people."""
        return {
            "routed": self.routed,
            "keys": self.keys,
            "mean_overlap": self.mean_overlap,
            "current": self.current.summarize(),
            "canary": self.canary.summarize(),
        }

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> CanaryFigures:
        """Build it from the JSON data of `as_dict`. Raises KeyError, TypeError or ValueError."""
        routed, keys, compared = (int(fields[name]) for name in ("routed", "keys", "compared"))
        current, canary = (ArmFigures.from_json(fields[name]) for name in ("current", "canary"))
        return CanaryFigures(routed, keys, compared, float(fields["overlap"]), current, canary)


@dataclass(frozen=True, slots=True)
class HitFigures:
    """Engagements with keys of the share, and how many of their items are in each arm's list of the key."""

    engagements: int
    current: int
    canary: int

    def summarize(self) -> dict[str, Any]:
        """Return the figures for people."""
        rates = {name: getattr(self, name) / self.engagements for name in ("current", "canary") if self.engagements}
        return {"engagements": self.engagements, "current": rates.get("current"), "canary": rates.get("canary")}


def measure_overlap(ids: Sequence[Any], others: Sequence[Any]) -> float | None:
    """Return the common candidates of two lists divided by the length of the longer one; None if both are empty.

    Ids of different types are compared as text.
    """
    longest = max(len(ids), len(others))
    if not longest:
        return None
    if ids and others and type(ids[0]) is not type(others[0]):
        ids, others = [str(one) for one in ids], [str(one) for one in others]
    return len(set(ids) & set(others)) / longest
