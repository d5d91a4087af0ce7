"""Rules over ads and requests: targets are short for rules, and both select the ads of the pair reference."""

from __future__ import annotations

import contextlib
import datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

import nearcast
from nearcast.ads import targeting
from nearcast.ads.publish_expansion import publish_expansion
from nearcast.ads.targeting import AdFilter, compile_ad_rules, expand_target
from nearcast.eligibility import parse_rule
from nearcast.eligibility.pair_reference import holds
from nearcast.eligibility.ruleset import read_request_value
from nearcast.errors import InputError, SpecError
from nearcast.stores import open_store
from nearcast.table.ad_set import ads_of, with_values, without_overlay
from nearcast.table.expansion_schema import parse_ad_rules
from nearcast.table.expansion_settings import AdSettings, Target
from published import publish

DAY = datetime.datetime(2026, 11, 25)
DAYS = [DAY + datetime.timedelta(days=n) for n in (-1, 0, 1)]
LARGE = [2**53, 2**53 + 1, 2**63 - 1]
WORDS, NUMBERS = st.sampled_from(["a", "b", "c"]), st.sampled_from([0.0, 0.5, 1.0, -1.0, 2.0**53])
COLUMNS = {
    "id": (pa.int64(), None),
    "count": (pa.int64(), st.sampled_from([0, 1, 2, *LARGE])),
    "price": (pa.float64(), NUMBERS),
    "word": (pa.string(), WORDS),
    "new": (pa.bool_(), st.booleans()),
    "since": (pa.timestamp("us"), st.sampled_from(DAYS)),
    "tags": (pa.list_(pa.string()), st.lists(WORDS, max_size=3)),
    "shops": (pa.list_(pa.int64()), st.lists(st.integers(0, 2), max_size=3)),
}
SCHEMA = pa.schema([(name, kind) for name, (kind, _) in COLUMNS.items()])
FIELDS = {  # of the request: (a type as rules have it, values)
    "number": (st.sampled_from([0, 1, 0.5, -1, 2.0**53, float(2**63)]) | st.sampled_from(LARGE)),
    "numbers": st.lists(st.sampled_from([0, 0.5, 1, 2.0**53, *LARGE]), max_size=3),
    "text": WORDS,
    "texts": st.lists(WORDS, max_size=3),
    "flag": st.booleans(),
    "day": st.sampled_from([*DAYS, "2026-11-25", "2026-11-24T23:59:59.999999Z", "2026-11-25T00:00:00.000000001Z"]),
    "days": st.lists(st.sampled_from(DAYS), max_size=2),
    "shop": st.integers(0, 2),
    "ids": st.lists(st.integers(0, 5), max_size=3),
}
REQUESTS = st.fixed_dictionaries({}, optional={name: st.none() | values for name, values in FIELDS.items()})
TARGETS = [
    Target(column="count", test="equals", request="number"),
    Target(column="count", test="at_least", request="number"),
    Target(column="price", test="at_most", request="number"),
    Target(column="price", test="in", request="numbers"),
    Target(column="count", test="in", request="numbers"),
    Target(column="word", test="equals", request="text"),
    Target(column="word", test="in", request="texts"),
    Target(column="new", test="equals", request="flag"),
    Target(column="tags", test="has", request="text"),
    Target(column="tags", test="overlaps", request="texts"),
    Target(column="shops", test="has", request="shop"),
    Target(column="since", test="at_most", request="day"),
    Target(column="since", test="at_least", request="day"),
]


@st.composite
def rows(draw):
    """Rows of ads, nulls among them, with ids from 0."""
    n = draw(st.integers(1, 6))
    values = {name: st.none() | kind for name, (_, kind) in COLUMNS.items() if kind is not None}
    return [{"id": number, **draw(st.fixed_dictionaries(values))} for number in range(n)]


def live_columns(rows, data):
    """The columns of ads: as they were published, or with some values written later."""
    published = [dict(row) for row in rows]
    changes = {}
    for row in published:
        if data.draw(st.booleans()):
            name = data.draw(st.sampled_from(["count", "price", "word", "tags"]))
            changes[row["id"]] = {name: (row[name], float("inf"))}
            row[name] = None
    live = without_overlay(ads_of(pa.Table.from_pylist(published, SCHEMA), id_column=True))
    return with_values(live, changes, 0.0).columns


def compiled(*texts):
    """Rules of an expansion table that are compiled."""
    settings = AdSettings(rules=[{"name": f"r{n}", "keep": text} for n, text in enumerate(texts)])
    parsed = parse_ad_rules(settings, SCHEMA)
    return compile_ad_rules((), parsed.rules, parsed.request), parsed


def expected_rows(parsed, rows, request):
    """What the reference keeps, one ad at a time."""
    values = {name: read_request_value(name, request.get(name), kind) for name, kind in parsed.request.items()}
    return [all(_holds(rule, row, values) is True for rule in parsed.rules) for row in rows]


def _holds(rule, row, values):
    return holds(rule, {}, row, values)


@given(rows(), REQUESTS, st.lists(st.sampled_from(TARGETS), min_size=1, max_size=4, unique=True), st.data())
def test_a_target_selects_the_ads_of_the_rule_that_it_is_short_for_and_of_the_reference(rows, request, targets, data):
    columns, every = live_columns(rows, data), np.arange(len(rows))
    request = {name: value for name, value in request.items() if not (isinstance(value, str) and "." in value)}
    short = compile_ad_rules(targets).among(request, columns, every).tolist()
    rules, parsed = compiled(*(expand_target(target).text for target in targets))
    assert short == rules.among(request, columns, every).tolist() == expected_rows(parsed, rows, request)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_the_text_of_a_target_is_read_as_its_rule(target):
    rule = expand_target(target)
    assert parse_rule(rule.name, rule.text, ("ad", "request")) == rule


ORDERS = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])
OF_NUMBERS = ["ad.count", "ad.price", "request.number", "1", "0.5", "9007199254740993"]
OF_ADS = [
    "ad.price + ad.count",
    "ad.price * 2",
    "-ad.count",
    "ad.count - request.number",
    "request.number + 1",
    "ad.id",
]
OF_TEXTS = ["ad.word", "request.text", '"b"']
OF_TIMES = ["ad.since", "request.day", 'date("2026-11-25")', "request.day - days(1)", "ad.since + hours(24)"]
NULLS = [*(f"ad.{name}" for name in COLUMNS), "request.number", "request.texts", "ad.price * ad.count"]
MEMBERS = [
    "ad.tags {} request.text", "request.texts {} ad.word", "ad.shops {} request.shop", "request.ids {} ad.id",
    "request.numbers {} ad.count", "request.numbers {} ad.price", '["a", "b"] {} ad.word', "ad.tags {} ad.word",
    "[1, 0.5] {} ad.count", 'ad.tags {} "a"', "ad.shops {} 1", "request.days {} ad.since",
    'request.texts {} "a"', "request.numbers {} ad.price * 2",
]  # fmt: skip
OVERLAPS = ["ad.tags overlaps request.texts", 'ad.tags overlaps ["a", "c"]', "request.ids overlaps ad.shops"]


def compare(values):
    return st.builds("{} {} {}".format, st.sampled_from(values), ORDERS, st.sampled_from(values))


CONDITIONS = (
    compare(OF_NUMBERS + OF_ADS)
    | compare(OF_TEXTS)
    | compare(OF_TIMES)
    | st.sampled_from(NULLS).flatmap(lambda name: st.sampled_from([f"{name} is null", f"{name} is not null"]))
    | st.sampled_from(MEMBERS).map(lambda form: form.format("has"))
    | st.sampled_from([f"ad.{a} not in {b}" for a, b in (("word", "request.texts"), ("count", "request.numbers"))])
    | st.sampled_from([*OVERLAPS, "ad.new", "request.flag", "ad.new == request.flag", "true"])
)
TEXTS = st.recursive(
    CONDITIONS,
    lambda inner: (
        st.builds("({} and {})".format, inner, inner)
        | st.builds("({} or {})".format, inner, inner)
        | st.builds("not ({})".format, inner)
    ),
    max_leaves=4,
)
TYPED = (  # so that every field has a type, whatever the other rule names
    "true or request.number == 1.5 or request.numbers has 1.5 or request.texts has request.text or request.flag "
    "or request.ids has 1 or request.shop in [1] or request.days has request.day or request.day == ad.since "
    'or request.text == "a"'
)


@given(rows(), REQUESTS, TEXTS, st.data())
def test_any_rule_selects_the_ads_of_the_reference(rows, request, text, data):
    try:
        rules, parsed = compiled(TYPED, text)
    except SpecError:  # a comparison of two constants
        reject()
    found = rules.among(request, live_columns(rows, data), np.arange(len(rows)))
    assert found.tolist() == expected_rows(parsed, rows, request)


ADS = pa.table({
    "ad": [1, 2, 3, 4],
    "countries": [["de"], ["fr", "de"], [], None],
    "tier": ["b", "a", None, "c"],
    "bid": [1.0, 2.0, 3.0, None],
    "left": pa.nulls(4),
})  # fmt: skip
LINKS = pa.table({"item": ["x"] * 4, "ad": [1, 2, 3, 4]})


@pytest.fixture
def store(tmp_path):
    with contextlib.closing(open_store(f"lmdb:{tmp_path}")) as opened:
        publish(opened, "shop", 1, {"a": [("x", 0.9)]}, metric="cosine")
        yield opened


def with_rules(*texts, **settings):
    return AdSettings(rules=[{"name": f"rule-{n}", "keep": text} for n, text in enumerate(texts)], **settings)


def shown(store, request=None):
    with nearcast.open(store, "shop") as shop, nearcast.open_expansion(store, "ads") as ads:
        return list(ads.ads(shop, ["a"], request=request).ads)


@pytest.mark.parametrize(
    ("text", "request_", "expected"),
    [
        ("ad.countries has request.country", {"country": "de"}, [1, 2]),
        ("ad.countries has request.country or ad.countries is null", {"country": "fr"}, [2, 4]),
        ("not (request.seen has ad.id)", {"seen": [1, 4]}, [2, 3]),
        ("request.seen is null or ad.id not in request.seen", {}, [1, 2, 3, 4]),
        ('ad.tier <= "b"', {}, [1, 2]),
        ("ad.bid * 2 >= request.least", {"least": 4}, [2, 3]),
        ("ad.left is null or ad.left >= 4", {}, [1, 2, 3, 4]),
        ("request.anyone", {"anyone": True}, [1, 2, 3, 4]),
        ("request.anyone", {}, []),
    ],
)
def test_rules_of_an_expansion_table_decide_which_ads_a_request_gets(store, text, request_, expected):
    publish_expansion(store, "ads", ADS, LINKS, with_rules(text))
    assert shown(store, request_) == expected


def test_targets_and_rules_must_all_be_true(store):
    targets = [Target(column="countries", test="has", request="country")]
    publish_expansion(store, "ads", ADS, LINKS, with_rules("ad.bid >= 2", targeting=targets))
    assert shown(store, {"country": "de"}) == [2]
    with pytest.raises(InputError, match="asks for 'countri' of a request; did you mean 'country'"):
        shown(store, {"countri": "de"})


def test_a_field_of_another_type_than_its_rule_has_is_an_error(store):
    publish_expansion(store, "ads", ADS, LINKS, with_rules("ad.bid >= request.least", "ad.tier in request.tiers"))
    with pytest.raises(InputError, match="'least' is to be a number"):
        shown(store, {"least": "much"})
    with pytest.raises(InputError, match="'tiers' is to be a list of texts"):
        shown(store, {"tiers": "a"})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (with_rules("ad.contries has request.country"), "the ads have no column 'contries'; did you mean 'countries'"),
        (with_rules("item.countries has request.country"), "there is no 'item'; known are ad, request"),
        (with_rules("ad.bid >= request.tier", "ad.tier == request.tier"), "a text is compared with a number"),
        (with_rules("ad.prices has 0.5"), "rules: prices holds a list of numbers; rules of ads take lists of text"),
        (
            with_rules("ad.tier == request.x", targeting=[Target(column="tier", test="in", request="x")]),
            "request.x would have to be one value and a list",
        ),
    ],
)
def test_a_rule_that_cannot_be_evaluated_is_refused_before_anything_is_written(store, settings, words):
    with pytest.raises((SpecError, InputError), match=words):
        publish_expansion(store, "ads", ADS.append_column("prices", [[[0.5]] * 4]), LINKS, settings)
    assert store.pointer("ads") is None


def test_facts_hold_rules_only_where_there_are_some(store):
    publish_expansion(store, "ads", ADS, LINKS, AdSettings())
    with contextlib.closing(store.open("ads", 1, verify=True)) as reader:
        assert "rules" not in reader.facts["expansion"]
    publish_expansion(store, "ads", ADS, LINKS, with_rules("ad.bid > 1"))
    with contextlib.closing(store.open("ads", 2, verify=True)) as reader:
        assert reader.facts["expansion"]["rules"] == [{"name": "rule-0", "keep": "ad.bid > 1"}]


def test_the_old_name_of_the_filter_works_and_warns():
    with pytest.warns(DeprecationWarning, match="is now AdFilter"):
        assert targeting.Eligible is AdFilter
