"""The sample of looked-up keys: uniform, cheap, and written where the monitor finds it."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tests.end_to_end.service import running, until
from tests.monitoring.nights import Nights

from nearcast.serve.key_sampling import FILES_KEPT_SECONDS, Reservoir, SampledLookup, SampleWriter, read_sampled_lookups
from nearcast.serve.lookup_data import Answer


def answer(key: str | int, *, found: bool = True, source: str = "table") -> Answer:
    return Answer(key, found, [], [], None, 0, {}, source, key, "000001", 0.0)


@pytest.mark.parametrize("batch", [1, 7, 100])
def test_every_look_up_is_kept_with_the_same_chance(batch: int) -> None:
    counts: Counter[int] = Counter()
    every = [answer(key) for key in range(1_000)]
    for seed in range(400):
        reservoir = Reservoir(50, seed)
        for start in range(0, 1_000, batch):
            reservoir.add(every[start : start + batch])
        kept = reservoir.sample()
        assert len(kept) == 50
        assert reservoir.seen == 1_000
        counts.update(int(one.key) for one in kept)
    tenths = np.array([sum(counts[key] for key in range(a, a + 100)) for a in range(0, 1_000, 100)])
    assert tenths.sum() == 400 * 50
    assert abs(tenths - 2_000).max() < 5 * np.sqrt(2_000)


def test_few_look_ups_are_all_kept() -> None:
    reservoir = Reservoir(50, 0)
    for key in range(30):
        reservoir.add([answer(key)])
    assert sorted(int(one.key) for one in reservoir.sample()) == list(range(30))


def test_what_is_written_is_read_and_what_is_old_or_half_written_is_not(tmp_path: Path) -> None:
    writer = SampleWriter(tmp_path, ["shop", "other"])
    writer.add("shop", [answer("a"), answer("b", found=False, source="none")])
    writer.write()
    (tmp_path / "shop-1-1.json").write_text('{"generator": "shop", "until"')
    (tmp_path / "shop-2-2.json").write_text(json.dumps({"generator": "shop", "until": 5, "seen": 9, "sample": [["x"]]}))
    rows, seen = read_sampled_lookups(tmp_path, "shop", since=time.time() - 60, size=10)
    assert (rows, seen) == ([SampledLookup("a", True, "table"), SampledLookup("b", False, "none")], 2)
    assert read_sampled_lookups(tmp_path, "other", since=0, size=10) == ([], 0)
    assert read_sampled_lookups(tmp_path / "none", "shop", since=0, size=10) == ([], 0)


def test_services_count_by_the_look_ups_that_they_answered(tmp_path: Path) -> None:
    for number, (name, seen) in enumerate({"busy": 90_000, "idle": 10_000}.items()):
        sample = [[name, True, "table"]] * 1_000
        facts = {"generator": "shop", "until": time.time(), "seen": seen, "sample": sample}
        (tmp_path / f"shop-{number}-1.json").write_text(json.dumps(facts))
    rows, seen = read_sampled_lookups(tmp_path, "shop", since=0, size=1_000)
    assert seen == 100_000
    assert 0.85 < sum(one.key == "busy" for one in rows) / len(rows) < 0.95


def test_a_sample_can_be_read_by_its_owner_alone(tmp_path: Path) -> None:
    writer = SampleWriter(tmp_path / "lookups", ["shop"])
    writer.add("shop", [answer("ann")])
    writer.write()
    (path,) = (tmp_path / "lookups").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600


def test_old_samples_are_removed_by_whoever_writes(tmp_path: Path) -> None:
    import os

    writer = SampleWriter(tmp_path, ["shop"])
    old = tmp_path / "shop-1-1.json"
    old.write_text("{}")
    os.utime(old, (0, time.time() - FILES_KEPT_SECONDS - 10))
    writer._remove_old(time.time())
    assert not old.exists()


def test_samples_of_services_on_several_hosts_meet_in_a_bucket(s3_url: str) -> None:
    for number in range(3):  # clones: the same host name and process number
        writer = SampleWriter(s3_url, ["shop", "other"])
        writer.add("shop", [answer(f"key {number}"), answer("all")])
        writer.write()
        writer.write()
    rows, seen = read_sampled_lookups(s3_url, "shop", since=time.time() - 60, size=10)
    assert seen == 6
    assert {row.key for row in rows} == {"key 0", "key 1", "key 2", "all"}
    assert read_sampled_lookups(s3_url, "other", since=0, size=10) == ([], 0)
    writer._remove_old(time.time() + FILES_KEPT_SECONDS + 60)
    assert read_sampled_lookups(s3_url, "shop", since=0, size=10) == ([], 0)


def test_a_bucket_that_cannot_be_written_is_said_once_and_hurts_nobody(
    s3_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert s3_url
    writer = SampleWriter("s3://no-such-bucket/lookups", ["shop"])
    writer.add("shop", [answer("a")])
    writer.write()
    writer.write()
    assert len([r for r in caplog.records if "looked-up keys are not sampled" in r.message]) == 1


def test_a_folder_that_cannot_be_written_is_said_once_and_hurts_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    writer = SampleWriter(tmp_path / "file" / "below", ["shop"])
    writer.add("shop", [answer("a")])
    writer.write()
    writer.write()
    assert len([r for r in caplog.records if "looked-up keys are not sampled" in r.message]) == 1


def test_keys_that_a_service_was_asked_for_are_what_the_monitor_looks_at(tmp_path: Path) -> None:
    shop = Nights(tmp_path)
    shop.run()
    shop.publish()
    with running(tmp_path) as service:
        for name in shop.query_ids[:40]:
            assert service.get(f"/v1/generators/shop/candidates/{name}").status_code == 200
        body = {"keys": shop.query_ids[40:90] + [f"unknown{n}" for n in range(30)]}
        assert service.post("/v1/generators/shop/candidates", body).status_code == 200
        until(lambda: any((tmp_path / "nearcast" / "lookups").glob("shop-*.json")))
        assert service.stop() == 0
    served = shop.look().served
    assert served is not None
    assert (served.sampled, served.sample, served.lookups) == ("look-ups", 120, 120)
    assert served.misses == pytest.approx(30 / 120)
    assert served.recall == 1.0
    assert served.fallbacks == 0


def test_a_service_that_was_told_so_keeps_no_sample(tmp_path: Path) -> None:
    shop = Nights(tmp_path)
    shop.run()
    shop.publish()
    with running(tmp_path, "--no-samples") as service:
        service.get(f"/v1/generators/shop/candidates/{shop.query_ids[0]}")
        assert service.stop() == 0
    assert not (tmp_path / "nearcast" / "lookups").exists()
