"""Function that finds the cheapest engine and settings of a generator: tune."""

from __future__ import annotations

from pathlib import Path

from nearcast.api.arguments import SpecLike, resolve_spec
from nearcast.join.context import prepare
from nearcast.join.listener import Listener
from nearcast.spec import GeneratorSpec, parse_model
from nearcast.table.snapshot import open_home
from nearcast.tuning.tune import TRIALS
from nearcast.tuning.tune import tune as tune_job
from nearcast.tuning.tuning_result import TuningResult, save_result

__all__ = ["tune"]


def tune(
    spec: SpecLike,
    *,
    trials: int = TRIALS,
    seconds: float | None = None,
    memory: int | None = None,
    base: str | Path | None = None,
    listener: Listener | None = None,
) -> tuple[TuningResult, Path]:
    """Find the cheapest engine and settings that meet the recall target; see `nearcast.tuning.tune.tune`.

    Return the result, and the folder that it is saved in (frontier.json).
    trials: settings to try, including those of earlier tunings.
    seconds: time limit; default: about half the time of an exact join.
    memory: memory budget of the job in bytes; default: the spec's.
    """
    parsed, folder = resolve_spec(spec, base, None, None)
    free = {"engine": "auto", "engine_settings": {}} | ({} if memory is None else {"memory": memory})
    run_context = prepare(
        parse_model(GeneratorSpec, parsed.model_dump() | free, "the spec"), folder, listener or Listener()
    )
    tuned = tune_job(run_context, trials=trials, seconds=seconds)
    home = run_context.workspace.home / "tuning"
    save_result(tuned, home / "frontier.json")
    if isinstance(run_context.workspace.out, str):  # the dashboard reads it there
        name = f"{parsed.name}/tuning/frontier.json"
        open_home(run_context.workspace.out).write_file(name, (home / "frontier.json").read_bytes())
    return tuned, home
