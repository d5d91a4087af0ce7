"""Run tasks on Spark: one job for a group of calls, one partition for a call, so that it works with Spark Connect too.

Only the number of a call and its reply come back through Spark: data travel by storage. Spark runs a call again if its
Python worker or its executor dies, and may run it twice at once (speculation). A fault that a task raises comes back as
a value and is tried again from here: Spark's PythonException would lose its class. Knows nothing of kNN.

Two jobs are in flight, each with as many calls as the cluster has cores: the second fills the cores that the last tasks
of the first leave idle, and outcomes arrive after each job. (`toLocalIterator` runs one partition after the other.)
"""

from __future__ import annotations

import os
import re
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from nearcast.errors import MissingExtraError, SpecError, WorkerError
from nearcast.runners.attempts import CallQueue
from nearcast.runners.base import TaskCall, TaskOutcome
from nearcast.runners.call_messages import encode_call, perform_message, read_reply
from nearcast.runners.cluster_runner import ClusterRunner
from nearcast.runners.runner_options import refuse_unknown_options
from nearcast.runners.worker import TaskRoom, host_resources, reserve_room

__all__ = ["SparkOptions", "SparkRunner", "make_spark_runner"]

JOBS = 2  # in flight
REPLY_SCHEMA = "number bigint, reply string"
CANCEL_SECONDS = 1.0
MOST_TEXT = 600  # characters of Spark's text in an error

Job = tuple[Sequence[TaskCall], str]  # its calls, and its tag
RowMap = Callable[[Iterator[Any]], Iterator[Any]]


@dataclass(frozen=True, slots=True)
class SparkOptions:
    """Options of the runner `spark`. Default: the active session, else SPARK_REMOTE, else Spark on this machine."""

    master: str | None = None  # for example spark://host:7077
    remote: str | None = None  # of a Spark Connect server: sc://host:15002
    conf: Mapping[str, str] | None = None  # configuration of a session that is started


class SparkRunner(ClusterRunner):
    """Runs tasks in a Spark session. `close` stops the session only if this runner started it."""

    name = "spark"

    def __init__(
        self, workers: int | None = None, options: SparkOptions | None = None, session: Any | None = None
    ) -> None:
        super().__init__(workers)
        self.options = options or SparkOptions()
        self._session: Any = session

    def _run_queue(self, shared: str, queue: CallQueue) -> Iterator[TaskOutcome]:
        """Keep two jobs in Spark. Outcomes arrive after each job."""
        session, calls = self._connect(), len(queue)
        cores = _read_task_cores(session)
        size = self.workers or max(1, int(_count_cores(session) / cores))
        room = TaskRoom(max(1, int(cores)), size, min(calls, size))
        jobs: dict[Future[list[tuple[int, str]]], Job] = {}
        with ThreadPoolExecutor(JOBS, thread_name_prefix="spark-job") as threads:
            try:
                while queue or jobs:
                    while len(jobs) < JOBS and (group := queue.take_group(-(-size // JOBS) if self.workers else size)):
                        tag = f"nearcast-{secrets.token_hex(8)}"
                        function = _make_map(shared, [encode_call(call) for call in group], room)
                        job = threads.submit(_inherit(session, _run_job), session, function, len(group), tag)
                        jobs[job] = group, tag
                    ended, _ = wait(jobs, queue.seconds_to_next(), FIRST_COMPLETED)
                    for job in ended:
                        for outcome in _read_job(job, jobs.pop(job)[0], queue):
                            yield outcome
                            if outcome.error is not None:
                                return
            finally:
                _cancel(session, jobs)

    def _stop(self) -> None:
        self._session.stop()
        self._session = None

    def _connect(self) -> Any:
        """Return a session: of the caller, the active one, a remote one, or one on this machine."""
        if self._session is not None:
            return self._session
        sessions = _import_session()
        active = sessions.getActiveSession()
        if active is not None:
            self._session = active
            return active
        builder = sessions.builder.appName("nearcast")
        for key, value in (self.options.conf or {}).items():
            builder = builder.config(key, value)
        remote = self.options.remote or (None if self.options.master else os.environ.get("SPARK_REMOTE"))
        if remote:
            builder = builder.remote(remote)
        elif self.options.master:
            builder = builder.master(self.options.master)
        elif "PYSPARK_GATEWAY_PORT" not in os.environ:  # spark-submit has chosen the master
            builder = self._configure_local(builder)
        try:
            self._session = builder.getOrCreate()
        except Exception as error:
            where = remote or self.options.master or "on this machine"
            raise WorkerError(f"Spark {where} cannot be reached ({_summarize(error)}); is it running?") from error
        self._is_ours = True
        return self._session

    def _configure_local(self, builder: Any) -> Any:
        """Configure Spark on this machine: the cores divided among the workers (default: one), failures tried again."""
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # the default is `python3` of the PATH
        cores = host_resources().threads
        each = max(1, cores // (self.workers or 1))
        settings = {
            "spark.task.cpus": str(each),
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.ui.enabled": "false",
            "spark.ui.showConsoleProgress": "false",
        }
        builder = builder.master(f"local[{each * (self.workers or 1)},4]")
        for key, value in (settings | dict(self.options.conf or {})).items():
            builder = builder.config(key, value)
        return builder


def _inherit(session: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function, called in a thread with the caller's local properties, for example the scheduler pool."""
    from pyspark import inheritable_thread_target

    inherited: Callable[..., Any] = inheritable_thread_target(session)(function)
    return inherited


def _run_job(session: Any, function: RowMap, calls: int, tag: str) -> list[tuple[int, str]]:
    """Run one job; return (number of the call, its reply)."""
    session.addTag(tag)
    try:
        rows = session.range(0, calls, 1, calls).mapInArrow(function, REPLY_SCHEMA).collect()
    finally:
        session.removeTag(tag)
    return [(int(row[0]), str(row[1])) for row in rows]


def _make_map(shared: str, calls: Sequence[str], room: TaskRoom) -> RowMap:
    """Return the function that Spark runs on each partition: it performs the calls with the numbers of its rows."""

    def perform_rows(batches: Iterator[Any]) -> Iterator[Any]:
        import pyarrow as pa

        reserve_room(room)
        for batch in batches:
            for number in batch.column(0).to_pylist():
                reply = perform_message(shared, calls[number])
                yield pa.RecordBatch.from_pydict({"number": pa.array([number], pa.int64()), "reply": [reply]})

    return perform_rows


def _read_job(job: Future[list[tuple[int, str]]], calls: Sequence[TaskCall], queue: CallQueue) -> list[TaskOutcome]:
    """Return the outcomes of a job, those with an error last; queue its failed calls again."""
    try:
        replies = job.result()
    except Exception as error:
        _queue_again(error, calls, queue)
        return []
    outcomes = []
    for number, line in replies:
        reply = read_reply(line)
        if reply.outcome is not None:
            outcomes.append(reply.outcome)
        elif reply.error is not None:
            queue.fail(calls[number], reply.error)
    return sorted(outcomes, key=lambda outcome: outcome.error is not None)


def _queue_again(error: Exception, calls: Sequence[TaskCall], queue: CallQueue) -> None:
    """Queue the calls of a job that Spark ended: the call that it names has failed, as often as Spark has tried."""
    text = str(error)
    named = re.search(r"Task (\d+) in stage [\d.]+ failed (\d+) times", text)
    fault = WorkerError(f"Spark ended its job: {_summarize(error)}")
    if named is None or int(named[1]) >= len(calls):
        raise fault from error
    number = int(named[1])
    queue.fail(calls[number], fault, attempts=int(named[2]))
    queue.put_back([call for index, call in enumerate(calls) if index != number])


def _summarize(error: Exception) -> str:
    """Return the line of Spark's text that tells the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if re.match(r"([A-Za-z_][\w.]*\.)?[A-Z]\w*(Error|Exception|Lost|Failure)\b", line)]
    crashes = [line for line in lines if "Python worker" in line or "ExecutorLostFailure" in line or "exited" in line]
    chosen = (crashes[:1] or causes[-1:] or lines[:1] or [type(error).__name__])[0]
    return chosen[:MOST_TEXT]


def _cancel(session: Any, jobs: Mapping[Future[Any], Job]) -> None:
    """Cancel jobs and wait until they have ended."""
    left = set(jobs)
    while left:
        for job in left:
            job.cancel()
            session.interruptTag(jobs[job][1])
        left = wait(left, CANCEL_SECONDS).not_done


def _count_cores(session: Any) -> int:
    """Return the number of cores of the session's executors."""
    try:
        return max(1, int(session.sparkContext.defaultParallelism))
    except AttributeError:  # Spark Connect has no context: ask for the default number of partitions
        return max(1, int(session.range(1 << 16).selectExpr("spark_partition_id() AS part").distinct().count()))


def _read_task_cores(session: Any) -> float:
    """Return the cores that Spark reserves for a task; may be less than one."""
    return float(session.conf.get("spark.task.cpus", "1"))


def make_spark_runner(workers: int | None, options: Mapping[str, Any]) -> SparkRunner:
    """Return the runner. Raises SpecError for unknown options, MissingExtraError if PySpark is not installed."""
    refuse_unknown_options("spark", options, SparkOptions.__slots__)
    if options.get("master") and options.get("remote"):
        raise SpecError("runner 'spark' takes master or remote, got both; give the one that is meant")
    _import_session()
    return SparkRunner(workers, SparkOptions(**options))


def _import_session() -> Any:
    """Return the class SparkSession."""
    try:
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise MissingExtraError("runner 'spark' needs PySpark: pip install 'nearcast[spark]'") from error
    return SparkSession
