"""The verbs that look at traffic: which keys are its head, what a use case costs, and what a log would be answered."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from nearcast.ads.expansion_table import open_expansion
from nearcast.advising.head_keys import HELD_OUT_DAYS, Head, find_head, write_head
from nearcast.advising.recommend import Asked, Numbers, ask
from nearcast.advising.traffic import read_traffic
from nearcast.api.arguments import OUT, SpecLike, StoreLike, opened_store, resolve
from nearcast.join.context import prepare
from nearcast.join.inputs import open_sources
from nearcast.join.listener import Listener
from nearcast.publishing.targets import target_of_spec
from nearcast.replaying.compared_versions import compare_inputs
from nearcast.replaying.replay import Replayed, looked_up, searched
from nearcast.replaying.replay import replay as replay_ways
from nearcast.replaying.request_funnel import Funnel
from nearcast.replaying.request_log import read_log
from nearcast.spec import parse_model

if TYPE_CHECKING:
    from nearcast.replaying.candidate_sources import Way

__all__ = ["advise", "head", "replay"]


def head(
    log: str | Path,
    *,
    coverage: float = 0.9,
    by_tomorrow: bool = False,
    key: str = "key",
    time: str | None = None,
    count: str | None = None,
    held_out_days: int = HELD_OUT_DAYS,
    memory: int | None = None,
    to: str | Path | None = None,
    column: str = "id",
    listener: Listener | None = None,
) -> Head:
    """Find the keys that cover a share of a log's traffic; see `nearcast.advising.head_keys.find_head`.

    log: Parquet; key, time, count: its columns, see `nearcast.advising.traffic.read_traffic`.
    to: Parquet file that the keys are written to, in `column`: for `[queries] only`.
    """
    bytes_given = {} if memory is None else {"memory_bytes": memory}
    listener = listener or Listener()
    traffic = read_traffic(
        Path(log), key=key, time=time, count=count, progress=listener.progress, note=listener.note, **bytes_given
    )
    found = find_head(traffic, coverage, by_tomorrow=by_tomorrow, held_out_days=held_out_days)
    if to is not None:
        write_head(traffic, found, Path(to), column=column)
    return found


def advise(
    spec: SpecLike | None = None,
    *,
    numbers: Mapping[str, Any] | None = None,
    log: str | Path | None = None,
    key: str = "key",
    time: str | None = None,
    count: str | None = None,
    rates: str | Path | None = None,
    online_engine: str = "faiss-hnsw",
    out: str | Path = OUT,
    listener: Listener | None = None,
) -> Asked:
    """Reckon what a use case costs offline, online and as a mix, and say which; see `nearcast.advising.recommend`.

    spec: a generator, whose items and queries are counted and sampled. numbers: what is known otherwise, by the names
    of `nearcast.advising.recommend.Numbers`; they win over the spec and the log. log: of requests, as for `head`.
    rates: file of what this machine takes; measured and written where it is not there. Raises SpecError for numbers
    that are missing or cannot be.
    """
    listener, traffic = listener or Listener(), None
    parsed, folder = (None, Path()) if spec is None else resolve(spec, None, None, None)
    if log is not None:
        traffic = read_traffic(
            Path(log), key=key, time=time, count=count, progress=listener.progress, note=listener.note
        )
    given = parse_model(Numbers, dict(numbers or {}), "the numbers")
    place = Path(out) if parsed is None else folder / parsed.out / parsed.name / "advice"
    return ask(
        parsed,
        folder,
        given,
        traffic,
        rates=Path(rates) if rates else None,
        kept=place,
        engine=online_engine,
        listener=listener,
    )


def replay(
    spec: SpecLike,
    log: str | Path | pa.Table,
    *,
    versions: Sequence[int] = (),
    expansion: str | None = None,
    k: int | None = None,
    candidates_per_key: int | None = None,
    sample: int | None = None,
    online: str | None = "faiss-hnsw",
    store: StoreLike | None = None,
    base: str | Path | None = None,
    listener: Listener | None = None,
) -> Replayed:
    """Send a log of requests through the whole funnel, by look-up and by online search; see `docs/replay.md`.

    log: Parquet or an Arrow table with a row per request: see `nearcast.replaying.request_log.read_log`.
    versions: snapshots to look up in, published or not; the current one. expansion: a table of the store to go through.
    k: length of an answer; the table's. sample: requests to draw.
    online: the engine to search with; None leaves it out.
    The figures are kept in the history. Raises InputError for a log that is none, NotFoundError, MissingExtraError.
    """
    parsed, folder = resolve(spec, base, None, None)
    place = target_of_spec(parsed, folder / parsed.out)
    asked = parsed.model_copy(update={"out": str(place.out.absolute())})
    run_context = prepare(asked, folder, listener or Listener())
    requests = read_log(
        Path(log) if isinstance(log, str | Path) else log,
        sample=sample,
        seed=parsed.seed,
        note=run_context.listener.note,
    )
    with contextlib.ExitStack() as held:
        opened = held.enter_context(opened_store(store, place))
        table = None if expansion is None else held.enter_context(open_expansion(opened, expansion))
        several = len(versions) > 1
        looked = [
            held.enter_context(looked_up(run_context, opened, v, f"offline {v:06d}" if several and v else "offline"))
            for v in versions or (None,)
        ]
        ways: list[Way] = [*looked]
        if online is not None:
            same = looked[0].view.version.facts.k  # or the longer lists would win
            ways.append(searched(run_context, engine=online, k=candidates_per_key or same))
        sources = None if online is None else open_sources(asked, folder, run_context.listener)
        compared = compare_inputs(run_context, looked, sources)
        for words in compared.warnings:
            run_context.listener.note(words)
        funnel = Funnel(table, k, candidates_per_key)
        version = looked[0].view.version.number
        return replay_ways(run_context, requests, ways, funnel, version=version, compared=compared)[0]
