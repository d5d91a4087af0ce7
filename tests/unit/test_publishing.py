"""Small parts of publishing: where it goes, what is kept, how fast it flows, what a checksum covers."""

from __future__ import annotations

from pathlib import Path

import pytest

from nearcast.errors import DamagedError
from nearcast.publishing.copy_snapshot import Throttle
from nearcast.publishing.retention import choose_kept_versions, find_rollback_target, list_rolled_back
from nearcast.publishing.targets import resolve_store_url
from nearcast.publishing.write_version import add_checksum, compute_checksum
from nearcast.spec import PublishSpec
from nearcast.stores.base import Pointer
from nearcast.times import format_utc, parse_utc


@pytest.mark.parametrize(
    ("store", "url"),
    [
        ("lmdb:store", "lmdb:out/store"),
        ("store", "lmdb:out/store"),
        ("lmdb:../elsewhere", "lmdb:out/../elsewhere"),
        ("lmdb:/srv/candidates", "lmdb:/srv/candidates"),
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("sqlite:some/file", "sqlite:some/file"),  # of another package, which knows what its paths mean
    ],
)
def test_a_path_in_the_spec_is_below_out_and_any_other_store_is_as_it_stands(store, url):
    assert resolve_store_url(PublishSpec(store=store), Path("out")) == url


def test_a_store_that_a_person_names_is_taken_as_it_stands():
    assert resolve_store_url(PublishSpec(store="redis://host"), Path("out"), "lmdb:mine") == "lmdb:mine"


def test_a_rollback_goes_to_the_newest_older_version_that_was_not_rolled_back_from():
    versions = [1, 2, 3, 4, 6]
    assert find_rollback_target(versions, Pointer(6, 1)) == 4
    assert find_rollback_target(versions, Pointer(6, 1, withdrawn=(4, 3))) == 2
    assert find_rollback_target(versions, Pointer(1, 1)) is None
    assert find_rollback_target(versions, Pointer(3, 1, withdrawn=(1, 2))) is None


@pytest.mark.parametrize(
    ("current", "withdrawn", "keep", "kept"),
    [
        (5, (), 3, {3, 4, 5}),
        (5, (), 1, {5}),
        (5, (4,), 2, {3, 5}),  # 4 is no place to go back to
        (5, (4,), 3, {2, 3, 5}),
        (2, (), 2, {1, 2}),  # a rollback needs 1, however new the others are
        (2, (3, 4, 5), 3, {1, 2, 5}),
        (1, (2, 3, 4, 5), 2, {1, 5}),
        (5, (), 100, {1, 2, 3, 4, 5}),
    ],
)
def test_the_current_version_and_the_way_back_are_kept_before_the_newest(current, withdrawn, keep, kept):
    assert choose_kept_versions([1, 2, 3, 4, 5], Pointer(current, 9, withdrawn), keep) == kept


def test_what_is_left_for_an_older_version_is_withdrawn_until_it_is_named_again():
    assert list_rolled_back(Pointer(3, 1), 2) == (3,)
    assert list_rolled_back(Pointer(2, 2, withdrawn=(3,)), 1) == (2, 3)
    assert list_rolled_back(Pointer(1, 3, withdrawn=(2, 3)), 3) == (2,)
    assert list_rolled_back(Pointer(3, 4), 4) == ()


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_throttle_lets_a_thousand_bytes_pass_in_a_second_and_not_sooner():
    time = Time()
    throttle = Throttle(1000, clock=time.clock, sleep=time.sleep)
    for _ in range(10):
        throttle.take(500)
    assert time.now - 100.0 == pytest.approx(5.0)


def test_a_pause_gives_a_throttle_a_tenth_of_a_second_and_no_more():
    time = Time()
    throttle = Throttle(1000, clock=time.clock, sleep=time.sleep)
    throttle.take(500)
    time.now += 3600.0
    before = time.now
    throttle.take(100)
    assert time.now == before
    throttle.take(100)
    assert time.now == pytest.approx(before + 0.1)


def test_without_a_limit_nothing_sleeps():
    time = Time()
    Throttle(None, clock=time.clock, sleep=time.sleep).take(1 << 40)
    assert time.now == 100.0


def test_a_checksum_does_not_depend_on_the_order_and_tells_every_difference():
    pairs = [(b"a", b"1"), (b"b", b"2"), (b"c", b"")]
    total, count = compute_checksum(pairs)
    assert (total, count) == compute_checksum(reversed(pairs))
    assert (total, 3) == (add_checksum(0, *zip(*pairs, strict=True)), count)
    for other in (
        [(b"a", b"2"), (b"b", b"1"), (b"c", b"")],
        [(b"a", b"1"), (b"b", b"2"), (b"d", b"")],
        [(b"a", b"1"), (b"b", b"2"), (b"c", b"\0")],
    ):
        assert compute_checksum(other)[0] != total
    assert compute_checksum([]) == (0, 0)


def test_times_go_to_text_and_back_and_other_text_is_damage():
    assert format_utc(0.0) == "1970-01-01T00:00:00Z"
    assert parse_utc(format_utc(1_700_000_000.0)) == 1_700_000_000.0
    assert parse_utc("1970-01-01T00:00:10") == 10.0
    with pytest.raises(DamagedError, match="'yesterday' is no time"):
        parse_utc("yesterday")
