"""Run ten minutes of load on `nearcast serve` while snapshots are published and rolled back, and items removed.

    python benchmarks/soak.py [--seconds 600] [--quick]

Every 20 s `nearcast publish` makes a new version current, with different scores in odd and even versions. Once a minute
`nearcast rollback` goes back. Twice a second the overlay removes items, and restores them 10 s later. Every answer is
checked: it must be complete, from one version only, and without items that were removed a second before the request.
The memory and the open files of the server are sampled. Prints a summary; writes results/soak.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import psutil
from rich.console import Console

import nearcast
import openloop
import servers
import tables
from nearcast import machine
from nearcast.files import finish, fresh_folder
from serving import commit

RESULTS = Path(__file__).parent / "results" / "soak.json"
GENERATOR, K = "soak", 50
BEST = {1: 0.99, 0: 0.49}  # the highest score of odd and of even versions; no list reaches half a point further down
BETWEEN = 0.54
ANEW = 0.3  # share of lists that differ between odd and even versions
GONE_SECONDS, GONE_AT_ONCE, GONE_EVERY = 10.0, 20, 0.5
EFFECTIVE_SECONDS = 1.0  # an overlay entry is in force everywhere after that
FOLLOWED_SECONDS = 5.0  # a publish is
SAMPLE_SECONDS = 5.0
SHOWN = 10
GROWTH = 1.1  # of the private memory, from the second quarter to the last, above which it is not flat
SLACK_BYTES = 4 << 20
SLACK_FILES = 3

console = Console(width=120)


@dataclass(slots=True)
class Findings:
    """Errors found in the answers."""

    versions: dict[str, int] = field(default_factory=dict)
    removed: int = 0  # candidates that the overlay took out
    torn: int = 0
    came_back: int = 0
    stale: int = 0
    examples: list[str] = field(default_factory=list)

    def tell(self, text: str) -> None:
        """Keep the first few."""
        if len(self.examples) < SHOWN:
            self.examples.append(text)


class Watcher:
    """Checks every answer."""

    def __init__(self, keys: list[int]) -> None:
        self.keys = keys
        self.findings = Findings()
        self.gone: dict[int, float] = {}  # item: when it was written that it is gone
        self.current: tuple[int, float] = (1, math.inf)  # version, and since when; not yet for sure: infinity
        self.followed: list[float] = []  # seconds from the end of each publish to the first answer from it
        self._seen = 1

    def look(self, number: int, sent: float, body: bytes) -> None:
        """One answer."""
        answer, found = orjson.loads(body), self.findings
        version, candidates = int(answer["snapshot"]), answer["candidates"]
        found.versions[answer["snapshot"]] = found.versions.get(answer["snapshot"], 0) + 1
        found.removed += answer["removed"]
        scores = [candidate["score"] for candidate in candidates]
        whole = len(candidates) + answer["removed"] == K and answer["found"] and answer["key"] == self.keys[number]
        if not whole or any((score > BETWEEN) != (version % 2 == 1) for score in scores):
            found.torn += 1
            found.tell(f"torn: {body[:200]!r}")
        until = sent - EFFECTIVE_SECONDS
        back = [c["id"] for c in candidates if self.gone.get(c["id"], sent) < until]
        if back:
            found.came_back += 1
            found.tell(f"{back[:3]} are gone, and are in the answer of {answer['snapshot']} for {answer['key']}")
        wanted, since = self.current
        if version == wanted and self._seen != wanted:
            self._seen = wanted
            self.followed.append(max(0.0, time.perf_counter() - since))
        if version != wanted and sent > since + FOLLOWED_SECONDS:
            found.stale += 1
            found.tell(f"{answer['snapshot']} answers {sent - since:.1f} s after {wanted} was published")


class Disturber(threading.Thread):
    """Publishes, rolls back and removes items until it is stopped. Keeps the errors."""

    def __init__(self, folder: Path, watcher: Watcher, given: argparse.Namespace, n_items: int) -> None:
        super().__init__(daemon=True)
        self.folder, self.watcher, self.given = folder, watcher, given
        self.items = tables.item_ids(n_items).tolist()
        self.over = threading.Event()
        self.error: BaseException | None = None
        self.publishes: list[float] = []
        self.rollbacks: list[float] = []
        self.overlay_writes = 0
        self._rng = random.Random(9)
        self._command: threading.Thread | None = None

    def run(self) -> None:
        """Until `over` is set."""
        try:
            with nearcast.overlay(store_of(self.folder), GENERATOR) as overlay:
                self._disturb(overlay)
        except BaseException as error:
            self.error = error

    def _disturb(self, overlay: Any) -> None:
        began, version, rolled = time.perf_counter(), 2, 0
        while not self.over.wait(GONE_EVERY):
            self._remove_some(overlay)
            now = time.perf_counter() - began
            if self._command is not None and self._command.is_alive():
                continue
            if now > (rolled + 1) * self.given.rollback_every:
                rolled += 1
                self._start(self._roll_back)
            elif now > len(self.publishes) * self.given.publish_every and now > 0:
                version += 1
                self._start(self._publish, version)
        if self._command is not None:
            self._command.join()

    def _start(self, what: Any, *arguments: Any) -> None:
        """On a thread of its own: overlay entries do not wait for a publish."""

        def guarded() -> None:
            try:
                what(*arguments)
            except BaseException as error:
                self.error = error

        self._command = threading.Thread(target=guarded, daemon=True)
        self._command.start()

    def _publish(self, version: int) -> None:
        relink(self.folder, version)
        self.watcher.current = (version, math.inf)
        self.publishes.append(nearcast_says("publish", self.folder))
        self.watcher.current = (version, time.perf_counter())

    def _roll_back(self) -> None:
        self.watcher.current = (self.watcher.current[0], math.inf)
        self.rollbacks.append(nearcast_says("rollback", self.folder))
        pointer = nearcast.published(GENERATOR, store=store_of(self.folder))[0].pointer
        assert pointer is not None
        self.watcher.current = (pointer.version, time.perf_counter())

    def _remove_some(self, overlay: Any) -> None:
        now, gone = time.perf_counter(), self.watcher.gone
        back = [item for item, since in gone.items() if now - since > GONE_SECONDS]
        for item in back:
            del gone[item]
        if back:
            overlay.restore(back)
        some = [item for item in self._rng.sample(self.items, GONE_AT_ONCE) if item not in gone]
        overlay.remove(some)
        written = time.perf_counter()
        gone.update(dict.fromkeys(some, written))
        self.overlay_writes += 1 + bool(back)


class Sampler(threading.Thread):
    """Samples what the server holds."""

    def __init__(self, server: servers.Server, every: float) -> None:
        super().__init__(daemon=True)
        self.server, self.every, self.over = server, every, threading.Event()
        self.samples: list[dict[str, float]] = []

    def run(self) -> None:
        """Until `over` is set."""
        process, began = psutil.Process(self.server.pid), time.perf_counter()
        while True:
            memory = process.memory_full_info()
            self.samples.append(
                {
                    "seconds": round(time.perf_counter() - began, 1),
                    "resident_bytes": memory.rss,  # with the pages of the files that are mapped
                    "private_bytes": memory.uss,
                    "open_files": process.num_fds(),
                    "threads": process.num_threads(),
                }
            )
            if self.over.wait(self.every):
                return


def nearcast_says(verb: str, folder: Path) -> float:
    """Run a command of nearcast to its end; how long it took."""
    program = str(Path(sys.executable).with_name("nearcast"))
    command = [program, verb, GENERATOR, "--out", str(folder / "nearcast"), "--store", store_of(folder), "--quiet"]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr or done.stdout}")
    return time.perf_counter() - started


def store_of(folder: Path) -> str:
    return f"lmdb:{folder / 'nearcast' / 'store'}"


def relink(folder: Path, version: int) -> None:
    """A snapshot with the files of the first or the second one, made now."""
    home = folder / "nearcast" / GENERATOR / "snapshots"
    source = home / f"{2 - version % 2:06d}"
    made = fresh_folder(folder / "making") / f"{version:06d}"
    shutil.copytree(source, made, copy_function=os.link, ignore=shutil.ignore_patterns("manifest.json"))
    manifest = json.loads((source / "manifest.json").read_text())
    manifest["version"], manifest["fingerprint"] = version, f"made-up-{version}"
    manifest["run"]["created"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    finish(made, manifest)
    made.rename(home / made.name)
    last = home / f"{version - 6:06d}"
    if version - 6 > 2:
        shutil.rmtree(last, ignore_errors=True)


def is_flat(samples: list[dict[str, float]]) -> tuple[bool, dict[str, float]]:
    """Whether the last quarter holds about what the second one did; and both."""
    n = len(samples)
    second, last = samples[n // 4 : n // 2] or samples[:1], samples[3 * n // 4 :]
    figures = {
        f"{name}_{when}": statistics.median(sample[name] for sample in part)
        for name in ("private_bytes", "resident_bytes", "open_files")
        for when, part in (("second_quarter", second), ("last_quarter", last))
    }
    memory = figures["private_bytes_last_quarter"] <= GROWTH * figures["private_bytes_second_quarter"] + SLACK_BYTES
    files = figures["open_files_last_quarter"] <= figures["open_files_second_quarter"] + SLACK_FILES
    return memory and files, figures


def soak(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run the load, and return the findings."""
    n_keys, n_items = (5_000, 2_000) if given.quick else (100_000, 20_000)
    for version in (1, 2):
        tables.make_snapshot(
            folder / "nearcast",
            GENERATOR,
            version,
            n_keys=n_keys,
            k=K,
            n_items=n_items,
            seed=version,
            best=BEST[version % 2],
            moved=ANEW,
        )
    nearcast.publish(GENERATOR, 1, out=folder / "nearcast", store=store_of(folder))
    keys = np.random.default_rng(7).permutation(tables.key_ids(n_keys))[:50_000].tolist()
    requests = [openloop.get(f"/v1/generators/{GENERATOR}/candidates/{key}") for key in keys]
    server_core = servers.cores()[0]
    with servers.nearcast_server((GENERATOR, "--store", store_of(folder)), folder, server_core) as server:
        watcher = Watcher(keys)
        disturber, sampler = Disturber(folder, watcher, given, n_items), Sampler(server, given.sample_every)
        sampler.start()
        disturber.start()
        driven = openloop.drive(server.port, requests, given.rate, given.seconds, 16, 0, watcher.look)
        cpu = server.cpu_seconds()
        for thread in (disturber, sampler):
            thread.over.set()
            thread.join()
    log = (folder / "serve.log").read_text()
    flat, figures = is_flat(sampler.samples)
    if disturber.error is not None:
        watcher.findings.tell(f"publishing: {disturber.error}")
    return {
        "machine": machine.describe(),
        "commit": commit(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "settings": {**vars(given), "results": str(given.results), "keys": n_keys, "items": n_items, "k": K},
        "answers": driven.summary(),
        "server_cpu_seconds": cpu,
        "findings": asdict(watcher.findings),
        "publishes": {"count": len(disturber.publishes), "seconds": disturber.publishes},
        "rollbacks": {"count": len(disturber.rollbacks), "seconds": disturber.rollbacks},
        "followed_seconds": watcher.followed,
        "overlay_writes": disturber.overlay_writes,
        "disturber_error": None if disturber.error is None else str(disturber.error),
        "server_log": log.splitlines()[-SHOWN:],
        "server_drained": "stopped" in log,
        "flat": flat,
        "memory": figures,
        "samples": sampler.samples,
    }


def passed(result: dict[str, Any]) -> bool:
    """Zero errors, nothing torn or stale, flat memory."""
    wrong = [result["findings"][name] for name in ("torn", "came_back", "stale")]
    errors = result["answers"]["errors"] + sum(wrong)
    return errors == 0 and result["disturber_error"] is None and result["flat"] and result["server_drained"]


def show(result: dict[str, Any]) -> None:
    """Print a summary."""
    answers, found, memory = result["answers"], result["findings"], result["memory"]
    followed = result["followed_seconds"]
    lines = [
        f"{answers['requests']:,} answers in {answers['seconds']:.0f} s from {len(found['versions'])} versions, "
        f"{answers['errors']} errors, {found['torn']} torn, {found['stale']} stale; "
        f"items that came back in {found['came_back']}",
        f"p50 {answers['p50_ms']} ms, p99 {answers['p99_ms']} ms, worst {answers['max_ms']} ms; "
        f"{found['removed']:,} candidates were taken out",
        f"{result['publishes']['count']} publishes, {result['rollbacks']['count']} rollbacks, "
        f"{result['overlay_writes']:,} overlay writes; followed after {max(followed, default=0):.2f} s at most",
        f"private memory {memory['private_bytes_second_quarter'] / 1e6:.1f} MB in the second quarter, "
        f"{memory['private_bytes_last_quarter'] / 1e6:.1f} MB in the last; open files "
        f"{memory['open_files_second_quarter']:.0f} and {memory['open_files_last_quarter']:.0f}",
        *found["examples"],
        *answers["first_errors"],
        "[bold green]passed" if passed(result) else "[bold red]FAILED",
    ]
    console.print("\n".join(lines))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--rate", type=float, default=1_000, help="requests per second")
    parser.add_argument("--publish-every", type=float, default=20)
    parser.add_argument("--rollback-every", type=float, default=60)
    parser.add_argument("--sample-every", type=float, default=SAMPLE_SECONDS)
    parser.add_argument("--quick", action="store_true", help="20 s on small data: to see that the script works")
    parser.add_argument("--results", type=Path)
    given = parser.parse_args()
    if given.quick:
        given.seconds, given.rate, given.publish_every, given.rollback_every = 20.0, 300.0, 3.0, 10.0
        given.sample_every = 0.5
    given.results = given.results or (RESULTS.with_name("soak-quick.json") if given.quick else RESULTS)
    return given


def main() -> None:
    given = parse()
    with tempfile.TemporaryDirectory(prefix="nearcast-soak-") as folder:
        result = soak(given, Path(folder))
    given.results.parent.mkdir(exist_ok=True)
    given.results.write_text(json.dumps(result, indent=1, default=str) + "\n")
    show(result)
    console.print(f"[dim]written to {given.results}")
    sys.exit(0 if passed(result) else 1)


if __name__ == "__main__":
    main()
