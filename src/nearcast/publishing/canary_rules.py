"""Judge a canary by its figures and the spec's [canary]: promote it, withdraw it, or wait.

Shares are compared with confidence intervals (Wilson's for each, Newcombe's for their difference), three standard
errors wide since a watcher looks many times. The number of independent observations is that of distinct keys: look-ups
of one key always give the same list. Takes figures, returns findings; moves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from nearcast.measure.canary_figures import ArmFigures, CanaryFigures, HitFigures
from nearcast.settings.publish_tables import CanarySpec

__all__ = ["CanaryFinding", "CanaryVerdict", "Decision", "compare_shares", "judge_canary", "wilson_interval"]

Z = 3.0  # standard errors
SLOW_SECONDS = 0.001  # a shorter look-up is never too slow
SLOW_SHARE = 0.01  # of the look-ups: the 99th percentile

Decision = Literal["wait", "promote", "withdraw", "undecided"]
Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class CanaryFinding:
    """The result of one rule."""

    rule: str
    holds: bool  # by the figures as they are
    certain: bool  # the whole confidence interval agrees
    text: str


@dataclass(frozen=True, slots=True)
class CanaryVerdict:
    """What the figures say."""

    decision: Decision
    why: str
    findings: tuple[CanaryFinding, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def judge_canary(
    figures: CanaryFigures,
    rules: CanarySpec,
    seconds: float,
    *,
    hits: HitFigures | None = None,
    faults: tuple[str, ...] = (),
) -> CanaryVerdict:
    """Judge a canary that has been watched for this long.

    Nothing is decided below `min_answers`; a rule that surely fails withdraws at once; a promotion waits for
    `decide_after` and for all rules to hold surely, or after `max_seconds` to hold by the figures as they are.
    faults: why services cannot read the canary; they prevent a promotion.
    """
    findings = (*_check_opened(faults), *_check_figures(figures, rules, hits))
    late, answers = seconds >= rules.max_seconds, figures.canary.answers + figures.canary.errors
    broken = [finding for finding in findings if not finding.holds]
    if answers < rules.min_answers:
        why = f"{answers:,} of at least {rules.min_answers:,} look-ups are measured"
        return CanaryVerdict("undecided" if late else "wait", "; ".join([why, *faults]), findings)
    surely = [finding for finding in broken if finding.certain]
    if surely or (late and broken):
        return CanaryVerdict("withdraw", "; ".join(finding.text for finding in surely or broken), findings)
    if seconds < rules.decide_after:
        return CanaryVerdict("wait", f"watched for {seconds:.0f} s of {rules.decide_after:.0f}", findings)
    unclear = [finding for finding in findings if not finding.certain or not finding.holds]
    if unclear and not late:
        return CanaryVerdict("wait", "not sure yet: " + ", ".join(f.rule for f in unclear), findings)
    return CanaryVerdict("promote", f"all rules hold over {answers:,} look-ups of {figures.keys:,} keys", findings)


def _check_opened(faults: tuple[str, ...]) -> Iterator[CanaryFinding]:
    if faults:
        yield CanaryFinding("opened", holds=False, certain=False, text="; ".join(faults))


def _check_figures(figures: CanaryFigures, rules: CanarySpec, hits: HitFigures | None) -> Iterator[CanaryFinding]:
    current, canary, keys = figures.current, figures.canary, max(1, figures.keys)
    if canary.answers + canary.errors == 0:
        return
    yield _check_empty(current, canary, keys, rules)
    if canary.answers == 0 or current.answers == 0:
        return
    fill = (canary.mean_fill or 0.0) / current.mean_fill if current.mean_fill else 1.0
    yield CanaryFinding(
        "fill",
        fill >= rules.min_fill_ratio,
        certain=True,
        text=f"lists are {fill:.1%} as long as the current ones, min_fill_ratio is {rules.min_fill_ratio:g}",
    )
    overlap = figures.mean_overlap
    if overlap is not None:
        yield CanaryFinding(
            "overlap",
            overlap >= rules.min_overlap,
            certain=True,
            text=f"the overlap with the current lists is {overlap:.1%}, min_overlap is {rules.min_overlap:.1%}",
        )
    yield _check_latency(current, canary, rules)
    if hits is not None and hits.engagements:
        yield _check_hits(hits, rules)


def _check_empty(current: ArmFigures, canary: ArmFigures, keys: int, rules: CanarySpec) -> CanaryFinding:
    """Compare the shares of look-ups that brought no candidate: an empty list, or an error."""
    before = (current.empty + current.errors) / max(1, current.answers + current.errors)
    after = (canary.empty + canary.errors) / max(1, canary.answers + canary.errors)
    n_before, n_after = (min(keys, max(1, arm.answers + arm.errors)) for arm in (current, canary))
    low, high = compare_shares((before, n_before), (after, n_after))
    limit = rules.max_empty_increase
    holds = after - before <= limit
    return CanaryFinding(
        "empty",
        holds,
        certain=high <= limit if holds else low > limit,
        text=f"{after:.1%} of the look-ups bring no candidate, {before:.1%} of the current version's "
        f"(rise {low:+.1%} to {high:+.1%}), max_empty_increase is {limit:.1%}",
    )


def _check_latency(current: ArmFigures, canary: ArmFigures, rules: CanarySpec) -> CanaryFinding:
    """Check that at most 1% of the look-ups take longer than the current 99th percentile times the ratio."""
    slow = max(SLOW_SECONDS, rules.max_latency_ratio * (current.find_quantile(1 - SLOW_SHARE) or 0.0))
    above = canary.count_above(slow) / canary.answers
    low, _ = wilson_interval(above, canary.answers)
    holds = above <= SLOW_SHARE
    return CanaryFinding(
        "latency",
        holds,
        certain=holds or low > SLOW_SHARE,
        text=f"{above:.2%} of the look-ups take longer than {1000 * slow:.2g} ms: the current 99th percentile "
        f"times max_latency_ratio, {rules.max_latency_ratio:g}, or 1 ms",
    )


def _check_hits(hits: HitFigures, rules: CanarySpec) -> CanaryFinding:
    n, ratio = hits.engagements, rules.min_hit_ratio
    before, after = hits.current / n, hits.canary / n
    low, high = compare_shares((ratio * before, n), (after, n))
    holds = after >= ratio * before
    return CanaryFinding(
        "hits",
        holds,
        certain=low >= 0 if holds else high < 0,
        text=f"{after:.2%} of {n:,} engagements are in the canary's lists, {before:.2%} in the current ones, "
        f"min_hit_ratio is {ratio:g}",
    )


def wilson_interval(share: float, n: int) -> Interval:
    """Return the confidence interval of a share of n independent observations (Wilson, 1927)."""
    middle = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def compare_shares(before: tuple[float, int], after: tuple[float, int]) -> Interval:
    """Return the confidence interval of `after` - `before`, each a share and its observations (Newcombe, 1998)."""
    (p, n), (q, m) = before, after
    (p_low, p_high), (q_low, q_high) = wilson_interval(p, n), wilson_interval(q, m)
    return q - p - math.hypot(q - q_low, p_high - p), q - p + math.hypot(q_high - q, p - p_low)
