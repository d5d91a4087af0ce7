"""Times to the nanosecond, as Python values."""

from __future__ import annotations

import datetime
import subprocess
import sys

import pyarrow as pa
import pytest

from nearcast.times import parse_duration, parse_time, to_nanoseconds, to_rows

MIDNIGHT = 1_795_564_800_000_000_000
TEXT = "2026-11-25T00:00:00.000000001"


def table():
    steps = [MIDNIGHT + 1, MIDNIGHT, None, MIDNIGHT - 1]
    return pa.table(
        {
            "at": pa.array(steps, pa.timestamp("ns")),
            "zoned": pa.array(steps, pa.timestamp("ns", "Europe/Amsterdam")),
            "took": pa.array([1, 0, None, -1], pa.duration("ns")),
            "many": pa.array([[MIDNIGHT + 1, None], [], None, [MIDNIGHT]], pa.list_(pa.timestamp("ns"))),
            "n": [1, 2, 3, 4],
        }
    )


def test_rows_keep_nanoseconds():
    rows = to_rows(table())
    assert [row["n"] for row in rows] == [1, 2, 3, 4]
    for name in ("at", "zoned"):
        found = [None if row[name] is None else to_nanoseconds(row[name]) for row in rows]
        assert found == [MIDNIGHT + 1, MIDNIGHT, None, MIDNIGHT - 1]
    assert [None if row["took"] is None else to_nanoseconds(row["took"]) for row in rows] == [1, 0, None, -1]
    assert [to_nanoseconds(one) for one in rows[0]["many"] if one is not None] == [MIDNIGHT + 1]
    assert [row["many"] for row in rows[1:3]] == [[], None]


def test_rows_are_the_same_without_pandas():
    script = (
        "import sys\n"
        "class NoPandas:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'pandas':\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, NoPandas())\n"
        "import pyarrow as pa\n"
        "from nearcast.times import to_rows\n"
        f"table = pa.table({{'at': pa.array([{MIDNIGHT + 1}], pa.timestamp('ns'))}})\n"
        "print(to_rows(table)[0]['at'].isoformat())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == TEXT == to_rows(table())[0]["at"].isoformat()


@pytest.mark.parametrize("step", [0, 1, 999, 1000, 123_456_789])
@pytest.mark.parametrize("zone", ["", "Z", "+00:00"])
def test_a_time_that_is_written_is_read_again(step, zone):
    text = f"2026-11-25T00:00:00.{step:09d}{zone}"
    assert parse_time(text) == MIDNIGHT + step


@pytest.mark.parametrize("amount", [0, 1, -1, 999, 10**9, -(10**9) - 1, 86_400 * 10**9 * 3 + 5])
def test_an_amount_of_time_that_is_written_is_read_again(amount):
    (row,) = to_rows(pa.table({"took": pa.array([amount], pa.duration("ns"))}))
    assert parse_duration(str(row["took"])) == to_nanoseconds(row["took"]) == amount


def test_an_amount_of_time_that_pandas_has_written_is_read():
    import pandas as pd

    for amount in (pd.Timedelta(1, "ns"), pd.Timedelta("-1 days +02:03:04.5"), pd.Timedelta(0)):
        assert parse_duration(amount.isoformat()) == amount.value
        assert to_nanoseconds(amount) == amount.value


def test_a_date_is_its_midnight():
    assert to_nanoseconds(datetime.date(2026, 11, 25)) == MIDNIGHT == parse_time("2026-11-25")
