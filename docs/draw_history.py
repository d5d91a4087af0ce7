"""Draw docs/images/history.svg: seventeen nights of the tests' simulated shop, one with another model's queries.

python docs/draw_history.py
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from tests.monitoring.nights import DIM, Nights  # noqa: E402

from nearcast.history.event_log import HistoryEvent, read  # noqa: E402
from nearcast.monitoring.history_chart import draw_history  # noqa: E402

FIRST_NIGHT = 1_790_000_000.0  # fixed, so that the picture is reproducible
DAY = 86_400.0


def main() -> None:
    """Simulate the nights, and draw them a day apart."""
    with tempfile.TemporaryDirectory() as folder:
        shop = Nights(Path(folder))
        shop.run()
        shop.publish()
        for _ in range(12):
            shop.night()
        turn, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(DIM, DIM)))
        shop.pass_a_day()
        shop.write(queries=shop.queries @ turn)
        shop.run()
        shop.publish()
        shop.look()
        shop.write()
        for _ in range(3):
            shop.night()
        events = read(shop.folder / "nearcast", "shop")
    draw_history(_a_day_apart(events), HERE / "images" / "history.svg")


def _a_day_apart(events: list[HistoryEvent]) -> list[HistoryEvent]:
    night, moved = -1, []
    for event in events:
        night += event.kind == "run"
        moved.append(replace(event, seconds=FIRST_NIGHT + night * DAY))
    return moved


if __name__ == "__main__":
    main()
