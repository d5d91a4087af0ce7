"""Random tables with a column of every type on both sides, and random rules between them."""

from __future__ import annotations

import datetime

import pyarrow as pa
from hypothesis import strategies as st

from nearcast.eligibility import check_rules, parse_rule
from nearcast.errors import SpecError

DAY = datetime.date(2026, 11, 25)
MOMENT = datetime.datetime(2026, 11, 25, 12)
days = st.integers(-2, 2).map(lambda n: DAY + datetime.timedelta(days=n))
moments = st.integers(-4, 4).map(lambda n: MOMENT + datetime.timedelta(hours=6 * n))
aware = moments.map(lambda moment: moment.replace(tzinfo=datetime.UTC))
steps = st.sampled_from([0, 1, -1, 999, 1000, 86_400_000_000_000])  # nanoseconds
fine = steps.map(
    lambda step: 1_795_564_800_000_000_000 + step
)  # midnight of DAY, which all units can hold, and near it
late = st.sampled_from([datetime.date(1, 1, 1), datetime.date(9999, 12, 31)]) | days  # beyond what nanoseconds hold
edges = st.sampled_from([2.0**53, 2.0**53 + 2, 2.0**63, -(2.0**63), 2.0**64, 9.3e18, 1e-300, -0.5])
whole = st.sampled_from([0, 1, 2, 3, -1, 2**53, 2**53 + 1, -(2**63), 2**63 - 1])
small = st.integers(0, 3)
numbers = st.sampled_from([0.0, -0.0, 0.5, 1.0, 2.0, 3.0, -1.0, 1e300, float("inf"), float("-inf"), float("nan")])
texts = st.sampled_from(["", "a", "b", "B", "ä", "ab", "\U0001f600", "｡"])
COLUMNS = {  # name: (Arrow type, values)
    "int": (pa.int64(), whole),
    "tiny": (pa.int8(), small),
    "count": (pa.uint16(), small),
    "num": (pa.float64(), numbers),
    "single": (pa.float32(), numbers),
    "double": (pa.float64(), edges),
    "large": (pa.uint64(), st.sampled_from([0, 2**53, 2**53 + 1, 2**63 - 1])),
    "text": (pa.string(), texts),
    "word": (pa.dictionary(pa.int8(), pa.string()), texts),
    "flag": (pa.bool_(), st.booleans()),
    "day": (pa.date32(), days),
    "at": (pa.timestamp("us"), moments),
    "zoned": (pa.timestamp("s", "UTC"), aware),
    "fine": (pa.timestamp("ns"), fine),
    "fine_zoned": (pa.timestamp("ns", "Europe/Amsterdam"), fine),
    "milli": (pa.timestamp("ms"), moments),
    "late": (pa.date32(), late),
    "day64": (pa.date64(), days),
    "span": (pa.duration("ns"), steps),
    "took": (pa.duration("ms"), st.integers(-2, 2).map(lambda n: datetime.timedelta(days=n))),
    "texts": (pa.list_(pa.string()), st.lists(st.none() | texts, max_size=3)),
    "ints": (pa.large_list(pa.int32()), st.lists(st.none() | small, max_size=3)),
    "nums": (pa.list_(pa.float64()), st.lists(st.none() | numbers, max_size=3)),
    "wholes": (pa.list_(pa.int64()), st.lists(st.none() | whole, max_size=3)),
    "doubles": (pa.list_(pa.float64()), st.lists(st.none() | edges, max_size=3)),
    "days": (pa.list_(pa.date32()), st.lists(st.none() | days, max_size=3)),
    "fines": (pa.list_(pa.timestamp("ns")), st.lists(st.none() | fine, max_size=3)),
}
KINDS = {
    "number": ("int", "tiny", "count", "num", "single", "double", "large", "id"),
    "text": ("text", "word"),
    "time": ("day", "at", "zoned", "fine", "fine_zoned", "milli", "late", "day64"),
    "duration": ("took", "span"),
}
LISTS = {"text": ("texts",), "number": ("ints", "nums", "wholes", "doubles"), "time": ("days", "fines")}
CONSTANTS = {
    "number": st.sampled_from(["0", "1", "2", "0.5", "-1", "1e300", "9007199254740993", "9007199254740992.0"]),
    "text": st.sampled_from(['"a"', '"b"', '""', "'ä'"]),
    "time": st.sampled_from(
        ['date("2026-11-25")', 'date("2026-11-25T12:00:00Z")', 'date("2026-11-25T00:00:00.000000001Z")']
    ),
    "duration": st.sampled_from(["days(1)", "hours(6)", "days(0.5)"]),
}
SIDES = ("item", "query")
SCHEMA = pa.schema([("id", pa.int64()), *((name, kind) for name, (kind, _) in COLUMNS.items())])


@st.composite
def tables(draw, most_rows=6):
    """A table of rows with an id and a column of every type, nulls among them."""
    rows = draw(st.integers(0, most_rows))
    columns = {"id": pa.array(range(rows), pa.int64())}
    for name, (kind, values) in COLUMNS.items():
        column = draw(st.lists(st.none() | values, min_size=rows, max_size=rows))
        columns[name] = pa.array(column, kind) if name != "word" else pa.array(column).dictionary_encode().cast(kind)
    return pa.table(columns)


def values(kind, sides, *, depth=2):
    """Expressions of one type, of these sides."""
    names = [f"{side}.{name}" for side in sides for name in KINDS[kind]]
    plain = st.sampled_from(names) | CONSTANTS[kind]
    if depth == 0 or kind == "text":
        return plain
    below = values(kind, sides, depth=depth - 1)
    if kind == "number":
        return plain | st.builds("({} {} {})".format, below, st.sampled_from("+-*/"), below).filter(_counts)
    spans = values("duration", sides, depth=depth - 1)
    if kind == "time":
        return plain | st.builds("({} {} {})".format, below, st.sampled_from("+-"), spans)
    times = values("time", sides, depth=depth - 1)
    return plain | st.builds("({} - {})".format, times, times) | st.builds("(-{})".format, below)


def _counts(text):
    """Whether arithmetic on constants comes to a number: rules that divide by zero, or overflow, are refused."""
    try:
        rule = parse_rule("r", f"{text} < 1")
        check_rules([rule], SCHEMA, SCHEMA)
    except SpecError as error:
        if "divides by zero" in str(error) or "no number" in str(error):
            return False
        raise
    return True


@st.composite
def comparisons(draw):
    kind = draw(st.sampled_from(list(KINDS)))
    order = draw(st.sampled_from(["==", "!=", "<", "<=", ">", ">="]))
    if kind in ("time", "duration") and draw(st.booleans()):  # sums of both sides, which are taken apart
        left, right = draw(values("time", SIDES, depth=1)), draw(values("time", SIDES, depth=1))
        return f"{left} - {right} {order} {draw(CONSTANTS['duration'])}"
    left, right = (draw(values(kind, [draw(st.sampled_from(SIDES))])) for _ in range(2))
    return f"{left} {order} {right}"


@st.composite
def memberships(draw):
    kind = draw(st.sampled_from(list(LISTS)))
    constants = st.lists(CONSTANTS[kind], min_size=1, max_size=3).map(lambda found: f"[{', '.join(found)}]")
    lists = st.sampled_from([f"{side}.{name}" for side in SIDES for name in LISTS[kind]]) | constants
    value = draw(st.sampled_from(SIDES).flatmap(lambda side: values(kind, [side], depth=1)))
    form = draw(st.sampled_from(["{0} has {2}", "{2} in {0}", "{2} not in {0}", "{0} overlaps {1}"]))
    return form.format(draw(lists), draw(lists), value)


def conditions():
    """Conditions of every form, joined in every way."""
    flags = st.sampled_from(
        [*(f"{side}.flag" for side in SIDES), "item.flag == query.flag", "item.flag != true", "true"]
    )
    every = st.sampled_from([f"{side}.{name}" for side in SIDES for name in COLUMNS])
    nulls = st.builds("{} is {}null".format, every, st.sampled_from(["", "not "]))
    leaves = comparisons() | memberships() | nulls | flags
    joined = lambda inner: (  # noqa: E731
        st.builds("({} and {})".format, inner, inner)
        | st.builds("({} or {})".format, inner, inner)
        | st.builds("not ({})".format, inner)
    )
    return st.recursive(leaves, joined, max_leaves=5)
