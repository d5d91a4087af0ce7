"""The funnel in plain Python, one pair at a time: slow, and what the arrays are held to."""

from __future__ import annotations


def chosen(scores, links, ads, request, *, now, k, order, items, caps):
    """Ads as (id, candidate, score), best first. links: candidate: ads. ads: id: row, with None for what is missing."""
    found = {}
    for candidate, linked in links.items():
        for ad in linked:
            found.setdefault(ad, []).append(candidate)
    rated = []
    for ad, candidates in sorted(found.items()):
        row = ads[ad]
        if row["paused"] or not in_flight(row, now) or not targeted(row, request) or not in_budget(row):
            continue
        best = min(candidates, key=lambda candidate: (-scores[candidate], candidate))
        score = scores[best] if items == "best" else sum(scores[candidate] for candidate in sorted(candidates))
        if order == "similarity_times_bid":
            score *= 0.0 if row["bid"] is None else row["bid"]
        rated.append((ad, best, score))
    rated.sort(key=lambda entry: (-entry[2], entry[0]))
    return under_caps(rated, ads, caps)[:k]


def in_flight(row, now):
    return (row["starts"] is None or row["starts"] <= now) and (row["ends"] is None or row["ends"] > now)


def in_budget(row):
    return row["budget"] is None or row["budget"] > (row["spent"] or 0)


def targeted(row, request):
    tests = (
        ("countries", "country", lambda mine, given: given in mine),
        ("segment", "segments", lambda mine, given: mine in given),
        ("least_age", "age", lambda mine, given: mine <= given),
    )
    return all(
        row[column] is None or (request.get(field) is not None and test(row[column], request[field]))
        for column, field, test in tests
    )


def under_caps(rated, ads, caps):
    kept, counts = [], {}
    for ad, candidate, score in rated:
        keys = [(name, candidate if name == "item" else ads[ad][name]) for name in caps]
        keys = [key for key in keys if key[1] is not None]
        if all(counts.get(key, 0) < caps[key[0]] for key in keys):
            kept.append((ad, candidate, score))
            for key in keys:
                counts[key] = counts.get(key, 0) + 1
    return kept
