"""What the first screen has of a generator: the lines of the overview, thinned, and nothing of a closer look."""

from __future__ import annotations

from typing import Any

import pytest

from nearcast.dashboard.page import encode_json
from nearcast.dashboard.series import build_overview


def page_of(nights: int, *, evidence: tuple[str, str] | None = None, **columns: list[Any]) -> dict[str, Any]:
    troubles = [] if evidence is None else [{"of": evidence[0], "evidence": evidence[1]}]
    runs = {"at": list(range(nights)), "recall": [0.9] * nights, "items_zeros": [0] * nights} | columns
    return {
        "name": "shop",
        "state": {"troubles": troubles},
        "rank": [0],
        "live": None,
        "version": 1,
        "promise": {"recall": 0.9, "kept": True},
        "runs": runs,
        "passes": {"at": []},
        "marks": [{"at": 1}],
        "manifest": {"spec": "long"},
    }


def test_a_closer_look_is_left_out() -> None:
    told = build_overview(page_of(3))
    assert set(told) == {"name", "state", "rank", "live", "version", "promise", "runs", "passes"}
    assert set(told["runs"]) == {"at", "recall"}


def test_a_year_is_thinned_and_ends_with_its_last_night() -> None:
    told = build_overview(page_of(365))["runs"]
    assert 60 <= len(told["at"]) <= 77
    assert told["at"][-1] == 364
    assert len(told["recall"]) == len(told["at"])


@pytest.mark.parametrize("nights", [0, 1, 2, 75])
def test_a_short_history_is_whole(nights: int) -> None:
    assert build_overview(page_of(nights))["runs"]["at"] == list(range(nights))


def test_the_last_two_values_that_were_measured_are_kept_however_long_ago() -> None:
    overlap = [None] * 365
    overlap[10], overlap[33] = 0.5, 0.75
    told = build_overview(page_of(365, overlap=overlap))["runs"]
    assert [value for value in told["overlap"] if value is not None] == [0.5, 0.75]


def test_the_series_that_a_trouble_names_as_its_evidence_comes_along() -> None:
    told = build_overview(page_of(5, evidence=("runs", "items_zeros")))
    assert told["runs"]["items_zeros"] == [0] * 5
    assert "items_zeros" not in told["passes"]


def test_it_is_a_small_part_of_the_whole() -> None:
    many = {f"column_{n}": [0.123] * 365 for n in range(40)}
    page = page_of(365, **many)
    assert len(encode_json(build_overview(page))) < len(encode_json(page)) / 20
