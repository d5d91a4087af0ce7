"""Planted states as a person sees them: sign, headline and sentences of each generator, and none that is false."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.dashboard.browser import Tab
from tests.monitoring.test_standing import STATES

from nearcast.dashboard.document import write_page
from nearcast.history.event_log import append
from nearcast.monitoring.alert import LEVELS


def test_each_planted_state_is_shown_by_its_cause_and_by_nothing_false(tab: Callable[..., Tab], tmp_path: Path) -> None:
    named = {f"shop-{number:02d}": STATES[name] for number, name in enumerate(STATES) if STATES[name][0]}
    for name, (events, *_) in named.items():
        for event in events:
            assert append(tmp_path, name, event.kind, event.version, event.facts, seconds=event.seconds) is None
    one, file = tab(), write_page(tmp_path)
    page = one.open(file)
    bad = sum(level == "bad" for _, level, *_ in named.values())
    assert page.locator("h1").inner_text() == f"{bad} of {len(named)} generators have problems"
    rows = {row.locator("th a").inner_text(): row for row in page.locator("table.generators tbody tr").all()}
    for name, (_, level, titles, _, _) in named.items():
        row = rows[name]
        assert row.locator(".badge").inner_text().split(maxsplit=1)[1] == LEVELS[level]  # type: ignore[index]
        said = row.inner_text()
        assert not titles or next(iter(titles.values())) in said
    for name, (_, _, titles, sayings, not_said) in named.items():
        view = one.open(file, f"/g/{name}")
        assert view.locator(".trouble .what").all_inner_texts() == list(titles.values())
        said = " ".join(view.locator("main > .seen, main > .troubles").all_inner_texts())
        for words in sayings:
            assert words in said
        for words in not_said:
            assert words not in said
