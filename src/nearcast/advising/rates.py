"""Rates of a machine: processor seconds of runs, publishes, look-ups and online searches, and their file.

Rates are measured at two sizes and scaled to a third by a line or a power; `measure_rates` measures them.
Rates are processor seconds of all threads, not wall time: users pay for processors, and other work on the machine
changes these figures less. Does not know the traffic.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nearcast.engines import choose_engine
from nearcast.engines.base import JoinRequest, JoinShape
from nearcast.errors import DamagedError
from nearcast.files import write_text
from nearcast.types import Metric
from nearcast.version import __version__

__all__ = ["JOIN", "CpuMeasurement", "OnlineRates", "Rates", "count_units", "read_rates", "write_rates"]

# Power of a search at one recall: IVF has as many cells as the root of the items, and HNSW is near it at such sizes.
# Two measurements with an error of 10% give the power to within 0.15: a fifth of the seconds at four times the items.
SEARCH_POWER = 0.5
JOIN = "build and join"
MOST_CALIBRATED = 4  # a calibration's samples are at most this part of the queries


@dataclass(frozen=True, slots=True)
class CpuMeasurement:
    """Processor seconds at two sizes. The unit of a size is the unit that the seconds grow with."""

    units: tuple[float, float]
    seconds: tuple[float, float]

    def scale(self, units: float) -> float:
        """Return the seconds at another size, in proportion to the second size."""
        return self.seconds[1] * units / max(self.units[1], 1e-12)

    def fit_line(self, units: float) -> float:
        """Return the seconds at another size: a fixed part, and a part per unit; neither is below 0."""
        (u1, u2), (s1, s2) = self.units, self.seconds
        slope = (s2 - s1) / (u2 - u1) if u2 > u1 else 0.0
        fixed = s2 - slope * u2
        if slope <= 0 or fixed < 0:
            return self.scale(units)
        return fixed + slope * units

    def fit_power(self, units: float, least: float, most: float, usual: float | None = None) -> float:
        """Return the seconds at another size, from the second size by a power of the units within bounds.

        usual: a known power; the mean of it and the measured power is used.
        """
        (u1, u2), (s1, s2) = self.units, self.seconds
        grown = math.log(max(s2, 1e-12) / max(s1, 1e-12)) / math.log(u2 / u1) if u2 > u1 else most
        grown = grown if usual is None else (grown + usual) / 2
        return float(s2 * (units / u2) ** min(most, max(least, grown)))


@dataclass(frozen=True, slots=True)
class OnlineRates:
    """The seconds to build an online index and to search it, at two numbers of items."""

    index: CpuMeasurement  # read the items, build, and calibrate the search parameters
    search: CpuMeasurement  # one request
    recall: float | None  # reached on held-out queries; None for an exact search


@dataclass(frozen=True, slots=True)
class Rates:
    """The rates of a machine for vectors of one generator. The field names are a format (rates file)."""

    machine: Mapping[str, Any]
    engine: str  # engine of the join
    dim: int
    k: int
    recall: float
    report_queries: int  # queries on which a run measures recall
    calibration_queries: int  # queries on which a run calibrates
    stages: Mapping[str, CpuMeasurement]  # by stage of a run
    publish: CpuMeasurement  # unit: keys and items
    lookup_seconds: float  # of one key
    key_bytes: float  # bytes per key of the published table, items included
    online: Mapping[str, OnlineRates]
    seconds: float  # duration of the measurement

    def run_seconds(self, keys: float, items: float) -> float:
        """Estimate the processor seconds of a run, from files to a measured snapshot."""
        return sum(self.stage_seconds(keys, items).values())

    def stage_seconds(self, keys: float, items: float) -> dict[str, float]:
        """Estimate the processor seconds of a run by stage."""
        units = count_units(self, keys, items)
        return {
            stage: measured.scale(units[stage]) if stage == JOIN else measured.fit_line(units[stage])
            for stage, measured in self.stages.items()
        }

    def publish_seconds(self, keys: float, items: float) -> float:
        """Estimate the processor seconds of a publish: audit, copy, verify."""
        return self.publish.fit_line(keys + items)

    def index_seconds(self, engine: str, items: float) -> float:
        """Estimate the processor seconds to build the online index."""
        return self.online[engine].index.fit_power(items, 0.9, 1.6)

    def search_seconds(self, engine: str, items: float) -> float:
        """Estimate the processor seconds of one search in the online index."""
        return self.online[engine].search.fit_power(items, 0.0, 1.0, SEARCH_POWER)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def count_units(rates: Rates, keys: float, items: float) -> dict[str, float]:
    """Return the size of each stage of a run, in the unit that its seconds grow with."""
    request = JoinRequest(Metric.INNER_PRODUCT, rates.k, rates.recall)  # any metric: the work is the same
    shape = JoinShape(request, max(1, round(items)), max(1, round(keys)), rates.dim, 4)
    work = choose_engine(rates.engine).count_pairs(shape)
    report = min(keys / 2, rates.report_queries)
    calibrated = 2 * min(keys / MOST_CALIBRATED, rates.calibration_queries)
    return {
        **dict.fromkeys(("hash", "check", "read"), keys + items),
        "estimate": 1.0,
        "calibrate": calibrated * items,
        JOIN: sum(work.values()),
        "table": keys,
        "measure": report * items,
    }


def write_rates(rates: Rates, path: Path, made_of: Any) -> None:
    """Write rates to a file. made_of: the settings of the measurement; `read_rates` compares them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"nearcast": __version__, "made_of": made_of, "rates": rates.as_dict()}
    write_text(path, json.dumps(facts, indent=1, default=str) + "\n")


def read_rates(path: Path, made_of: Any = None) -> Rates | None:
    """Read rates from a file; None if they are of another `made_of`. Raises DamagedError for an invalid file."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if made_of is not None and (facts["made_of"], facts["nearcast"]) != (made_of, __version__):
            return None
        rates = facts["rates"]
        measured = {name: _read_measurement(value) for name, value in rates["stages"].items()}
        online = {
            name: OnlineRates(_read_measurement(value["index"]), _read_measurement(value["search"]), value["recall"])
            for name, value in rates["online"].items()
        }
        return Rates(**{**rates, "stages": measured, "publish": _read_measurement(rates["publish"]), "online": online})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{path} does not hold rates ({error}); remove it to measure again") from error


def _read_measurement(value: Mapping[str, Any]) -> CpuMeasurement:
    return CpuMeasurement(tuple(value["units"]), tuple(value["seconds"]))
