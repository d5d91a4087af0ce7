"""Functions about traffic: find head keys, compare the cost of serving variants, and replay a log of requests."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from nearcast.ads.expansion_table import open_expansion
from nearcast.advising.head_keys import HELD_OUT_DAYS, Head, find_head, write_head
from nearcast.advising.recommend import AdviceQuestion, Numbers, Recommendation, recommend
from nearcast.advising.traffic import read_traffic
from nearcast.api.arguments import OUT, SpecLike, StoreLike, input_path, open_target_store, resolve_out, resolve_spec
from nearcast.join.context import prepare
from nearcast.join.inputs import open_sources
from nearcast.join.listener import Listener
from nearcast.publishing.targets import read_spec_target
from nearcast.replaying.candidate_sources import compare_sources
from nearcast.replaying.replay import ReplayReport, open_lookup_source, open_online_source
from nearcast.replaying.replay import replay as replay_ways
from nearcast.replaying.request_funnel import Funnel
from nearcast.replaying.request_log import read_log
from nearcast.spec import parse_model
from nearcast.storage.locations import absolute_location, host_folder, parse_location

if TYPE_CHECKING:
    from nearcast.replaying.candidate_sources import CandidateSource

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
    """Find the keys that cover a share of the traffic; see `nearcast.advising.head_keys.find_head`.

    log: Parquet, a path or a URL. key, time, count: columns of the log, see `nearcast.advising.traffic.read_traffic`.
    by_tomorrow: cover the share of a future day instead of the log. held_out_days: last days to measure it on.
    memory: memory for counting in bytes. to: file or URL to write the keys to, in `column`, for `[queries] only`.
    """
    budget = {} if memory is None else {"memory_bytes": memory}
    listener = listener or Listener()
    traffic = read_traffic(
        input_path(log), key=key, time=time, count=count, progress=listener.progress, note=listener.note, **budget
    )
    found = find_head(traffic, coverage, by_tomorrow=by_tomorrow, held_out_days=held_out_days)
    if to is not None:
        write_head(traffic, found, input_path(to), column=column)
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
) -> Recommendation:
    """Compare the cost of offline, online and mixed serving, and recommend one; see `nearcast.advising.recommend`.

    spec: a generator, whose items and queries are counted and sampled.
    numbers: fields of `nearcast.advising.recommend.Numbers`; they override the spec and the log.
    log: log of requests, as for `head`. key, time, count: its columns.
    rates: file of the measured rates of this machine; read if it exists, else measured and written.
    Raises SpecError for missing or impossible numbers.
    """
    listener, traffic = listener or Listener(), None
    parsed, folder = (None, Path()) if spec is None else resolve_spec(spec, None, None, None)
    if log is not None:
        traffic = read_traffic(
            input_path(log), key=key, time=time, count=count, progress=listener.progress, note=listener.note
        )
    overrides = parse_model(Numbers, dict(numbers or {}), "the numbers")
    place = host_folder(parse_location(out))
    if parsed is not None:
        place = host_folder(resolve_out(None, parsed, folder)) / parsed.name / "advice"
    question = AdviceQuestion(
        spec=parsed,
        base=folder,
        numbers=overrides,
        traffic=traffic,
        engine=online_engine,
        rates_file=Path(rates) if rates else None,
        cache=place,
    )
    return recommend(question, listener)


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
) -> ReplayReport:
    """Answer a log of requests again, by look-up and by online search; see `docs/replay.md`.

    log: Parquet or an Arrow table with one row per request, see `nearcast.replaying.request_log.read_log`.
    versions: snapshots to look up in, published or not; default: the current one.
    expansion: expansion table of the store to apply. k: length of an answer; default: the expansion table's.
    candidates_per_key: candidates used per key. sample: requests to sample.
    online: engine of the online index; None skips it.
    Results are added to the history. Raises InputError if the log cannot be used, NotFoundError, MissingExtraError.
    """
    parsed, folder = resolve_spec(spec, base, None, None)
    place = read_spec_target(parsed, resolve_out(None, parsed, folder))
    asked = parsed.model_copy(update={"out": absolute_location(place.out)})
    run_context = prepare(asked, folder, listener or Listener())
    requests = read_log(
        input_path(log) if isinstance(log, str | Path) else log,
        sample=sample,
        seed=parsed.seed,
        note=run_context.listener.note,
    )
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(open_target_store(store, place))
        table = None if expansion is None else stack.enter_context(open_expansion(opened, expansion))
        several = len(versions) > 1
        looked = [
            stack.enter_context(
                open_lookup_source(run_context, opened, v, f"offline {v:06d}" if several and v else "offline")
            )
            for v in versions or (None,)
        ]
        ways: list[CandidateSource] = [*looked]
        if online is not None:
            same = looked[0].view.version.facts.k  # or the longer lists would win
            ways.append(open_online_source(run_context, engine=online, k=candidates_per_key or same))
        sources = None if online is None else open_sources(asked, folder, run_context.listener)
        compared = compare_sources(run_context, looked, sources)
        for words in compared.warnings:
            run_context.listener.note(words)
        funnel = Funnel(table, k, candidates_per_key)
        version = looked[0].view.version.number
        return replay_ways(run_context, requests, ways, funnel, version=version, compared=compared)[0]
