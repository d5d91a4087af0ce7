"""Simulate two weeks of engagement with pins, at random, from a fixed seed.

These properties of real logs are simulated. Few pins have most of the views (popularity is proportional to 1 / rank).
Popularity changes from day to day. A fifth of the pins are new within the two weeks. People have favourite categories.
A search phrase has several spellings, and some engagement after it is unrelated. The last day is held out. Uses
categories and grey values of pins, not vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

DAYS = 14
DAY_SECONDS = 86_400
NEW_SHARE = 0.2  # of the pins appear within the fortnight
DAILY_SPREAD = 0.5  # of the logarithm of a pin's popularity, from one day to another
FAVOURITES = 2  # categories that a person likes
TASTE = 0.8  # share of a person's views that is of these
STRAY = 0.1  # share of the engagement after a phrase that is unrelated
SHOUTED = 0.2  # share of the phrases in another spelling
WORDS = (
    *(("t-shirt", "tee"), ("trousers", "pants"), ("pullover", "jumper"), ("dress", "summer dress")),
    *(("coat", "winter coat"), ("sandals", "open shoes"), ("shirt", "blouse"), ("sneakers", "running shoes")),
    *(("bag", "handbag"), ("ankle boots", "boots")),
)
TONES = ("", "light ", "dark ")  # of any tone, of the lighter half, of the darker half

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Phrase:
    """A search phrase."""

    text: str
    category: int
    tone: int  # index in TONES


@dataclass(frozen=True, slots=True)
class Simulated:
    """The log and the parameters that it was drawn from."""

    log: pa.Table  # day, seconds, person, phrase (null for a view), pin
    favourites: Ints  # (people, FAVOURITES) categories


def phrases() -> list[Phrase]:
    """Return all phrases: two words for each category, in three tones."""
    return [
        Phrase(tone + word, category, number)
        for category, words in enumerate(WORDS)
        for word in words
        for number, tone in enumerate(TONES)
    ]


def simulate(categories: Ints, darkness: Floats, *, people: int, views: int, searches: int, seed: int) -> Simulated:
    """Simulate views and searches per day, for pins of these categories and of this darkness (0 is white)."""
    rng = np.random.default_rng(seed)
    n = len(categories)
    popularity = 1.0 / (1.0 + rng.permutation(n))
    first_day = np.where(rng.random(n) < NEW_SHARE, rng.integers(0, DAYS, n), 0)
    tones = np.where(darkness > np.median(darkness), 2, 1)
    favourites = rng.permuted(np.tile(np.arange(len(WORDS)), (people, 1)), axis=1)[:, :FAVOURITES]
    days = []
    for day in range(DAYS):
        today = popularity * np.exp(DAILY_SPREAD * rng.standard_normal(n)) * (first_day <= day)
        days.append(_views(rng, day, today, categories, favourites, views))
        days.append(_searches(rng, day, today, categories, tones, people, searches))
    return Simulated(pa.concat_tables(days), favourites)


def _views(
    rng: np.random.Generator, day: int, popularity: Floats, categories: Ints, favourites: Ints, count: int
) -> pa.Table:
    people = rng.integers(0, len(favourites), count)
    liked = favourites[people, rng.integers(0, FAVOURITES, count)]
    event_groups = np.where(rng.random(count) < TASTE, liked, rng.integers(0, len(WORDS), count))
    return _rows(rng, day, people, [None] * count, _drawn(rng, popularity, categories, event_groups))


def _searches(
    rng: np.random.Generator,
    day: int,
    popularity: Floats,
    categories: Ints,
    tones: Ints,
    people: int,
    count: int,
) -> pa.Table:
    known = phrases()
    shares = 1.0 / (1.0 + np.arange(len(known)))
    order = np.random.default_rng(0).permutation(len(known))  # which phrase is common is the same every day
    chosen = order[rng.choice(len(known), count, p=shares / shares.sum())]
    groups = categories * len(TONES) + tones
    wanted_tone = np.array([phrase.tone for phrase in known])[chosen]
    wanted_tone = np.where(wanted_tone > 0, wanted_tone, rng.integers(1, 3, count))
    event_groups = np.array([phrase.category for phrase in known])[chosen]
    event_groups = np.where(rng.random(count) < STRAY, rng.integers(0, len(WORDS), count), event_groups)
    pins = _drawn(rng, popularity, groups, event_groups * len(TONES) + wanted_tone)
    shouted = rng.random(count) < SHOUTED
    texts = [known[at].text.upper() if loud else known[at].text for at, loud in zip(chosen, shouted, strict=True)]
    return _rows(rng, day, rng.integers(0, people, count), texts, pins)


def _drawn(rng: np.random.Generator, popularity: Floats, groups: Ints, event_groups: Ints) -> Ints:
    """Draw a pin of each given group; popular pins more often."""
    pins = np.empty(len(event_groups), np.int64)
    for group in np.unique(event_groups):
        places = np.flatnonzero(event_groups == group)
        members = np.flatnonzero(groups == group)
        shares = popularity[members]
        pins[places] = rng.choice(members, len(places), p=shares / shares.sum())
    return pins


def _rows(rng: np.random.Generator, day: int, people: Ints, texts: list[str | None], pins: Ints) -> pa.Table:
    seconds = day * DAY_SECONDS + np.sort(rng.integers(0, DAY_SECONDS, len(pins)))
    return pa.table(
        {
            "day": np.full(len(pins), day),
            "seconds": seconds,
            "person": people,
            "phrase": pa.array(texts, pa.string()),
            "pin": pins,
        }
    )
