"""The rules of the audit about labels: promised metrics, and what was lost against the current version.

Takes figures and returns findings. Reads no files and no stores.
"""

from __future__ import annotations

from nearcast.publishing.audit_values import NOTHING_CURRENT, AuditFigures, AuditRule, Finding
from nearcast.spec import AuditSpec

__all__ = ["LABEL_RULES"]

NOT_HERE = "the labels are not here to compare with what is current: publish with the spec"


def _check_promises(figures: AuditFigures, _: AuditSpec) -> Finding:
    """Return the finding of the first broken promise, and name all of them; else of the first promise."""
    if not figures.promises:
        return Finding("promise", "promise", None, None, True, "no metric of labels is promised")
    if figures.labels is None:
        name, bound = next(iter(figures.promises.items()))
        text = f"{name} is promised, and the run measured no labels; run again, or publish with the spec"
        return Finding("promise", name, bound, None, False, text)
    checks = figures.labels.broken or figures.labels.promises
    first, by = checks[0], f"by the labels of {figures.labels.labels['path']}"
    text = f"{by}, {'; '.join(check.describe() for check in checks)}"
    return Finding("promise", first.metric, first.bound, first.value, not figures.labels.broken, text)


def _check_label_loss(figures: AuditFigures, settings: AuditSpec) -> Finding:
    """Return the finding of the largest loss, of the promised metrics or of the first metric without promises."""
    labels, bound = figures.labels, settings.max_label_loss
    if labels is None:
        return Finding("labels", "label_loss", bound, None, True, "the spec has no labels")
    rival = next((rival for rival in labels.rivals if figures.current and rival.name == figures.current.name), None)
    if rival is None:
        text = NOTHING_CURRENT if figures.current is None else NOT_HERE
        return Finding("labels", "label_loss", bound, None, True, text)
    names = [check.metric for check in labels.promises] or [next(iter(labels.metrics))]
    losses = []
    for name in names:
        before, lead = rival.metrics[name].value, rival.leads[name]
        loss = -lead.value / before if before > 0 else 0.0
        losses.append((loss if lead.high < 0 else 0.0, loss, name))  # within the interval it may be chance
    proven, loss, name = max(losses)
    was, lead = rival.metrics[name].value, rival.leads[name]
    text = (
        f"{name} by the labels of {labels.labels['path']} is {labels.metrics[name].value:.4f}, and {was:.4f} with "
        f"{rival.name}: {lead.value:+.4f} (95% interval {lead.low:+.4f} to {lead.high:+.4f})"
    )
    if proven > bound:
        text += f", a loss of {loss:.1%}, and at most {bound:.0%} is allowed"
    return Finding("labels", "label_loss", bound, loss, proven <= bound, text)


LABEL_RULES = (
    AuditRule("promise", (), "metrics of the labels, against the minimum in [promise]", _check_promises),
    AuditRule(
        "labels",
        ("max_label_loss",),
        "loss of the promised metrics against the current lists by the same labels, beyond chance",
        _check_label_loss,
    ),
)
