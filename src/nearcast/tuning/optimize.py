"""The search over engines and settings: Optuna proposes, trials judge, and a file stores all trials.

The one module that imports Optuna. The study is named by the fingerprint of its inputs, so that a second tuning of the
same job continues the first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nearcast.errors import MissingExtraError
from nearcast.tuning.scaling import EXACT_POINT, TUNED_ENGINES, Configuration
from nearcast.tuning.trial import Trial

__all__ = ["EXACT", "Study", "TrialOutcome", "first_configurations", "open_study"]

EXACT = "dense, exact"


@dataclass(frozen=True, slots=True)
class TrialOutcome:
    """The outcome of a proposal: a trial or the reason against one, and the seconds to compare with others."""

    seconds: float
    trial: Trial | None
    reason: str | None = None


class Study:
    """Proposals and their outcomes. Made by `open_study`."""

    def __init__(self, study: Any, engines: Sequence[str], n_items: int) -> None:
        self._study = study
        self._engines = list(engines)
        self._n_items = n_items

    def load_trials(self) -> list[Trial]:
        """Return the trials of earlier tunings."""
        trials = []
        for frozen in self._study.trials:
            facts = frozen.user_attrs.get("trial")
            if facts is not None:
                trials.append(Trial.from_dict(json.loads(facts)))
        return trials

    def count_judged(self) -> int:
        """Return the number of judged proposals."""
        return sum(frozen.value is not None for frozen in self._study.trials)

    def enqueue(self, points: Sequence[Configuration]) -> None:
        """Queue these configurations, to be proposed first."""
        for point in points:
            self._study.enqueue_trial(_list_parameters(point), skip_if_exists=True)

    def judge_next(self, judge: Callable[[Configuration], TrialOutcome]) -> TrialOutcome:
        """Propose one more configuration and judge it."""
        proposal = self._study.ask()
        outcome = judge(self._make_configuration(proposal))
        if outcome.trial is not None:
            proposal.set_user_attr("trial", json.dumps(outcome.trial.as_dict()))
        if outcome.reason is not None:
            proposal.set_user_attr("reason", outcome.reason)
        self._study.tell(proposal, outcome.seconds)
        return outcome

    def _make_configuration(self, proposal: Any) -> Configuration:
        engine = proposal.suggest_categorical("engine", self._engines)
        if engine == EXACT:
            return EXACT_POINT
        return Configuration(engine, TUNED_ENGINES[engine].propose_settings(proposal, self._n_items))


def first_configurations(names: Sequence[str], n_items: int) -> list[Configuration]:
    """Return every engine at its defaults, cheapest trial first."""
    tuned = {name: Configuration(name, engine.default_settings(n_items)) for name, engine in TUNED_ENGINES.items()}
    return [point for name, point in {EXACT: EXACT_POINT, **tuned}.items() if name in names]


def open_study(path: Path, name: str, engines: Sequence[str], n_items: int, seed: int) -> Study:
    """Open the study of this name in this file; create it if missing. Raises MissingExtraError without Optuna."""
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise MissingExtraError(
            "tuning searches with Optuna, which is not installed: pip install 'nearcast[tune]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path.parent.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(path)))
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=6)
    study = optuna.create_study(
        storage=storage, study_name=name, sampler=sampler, direction="minimize", load_if_exists=True
    )
    return Study(study, engines, n_items)


def _list_parameters(point: Configuration) -> dict[str, Any]:
    return {"engine": EXACT} if point == EXACT_POINT else {"engine": point.engine, **point.settings}
