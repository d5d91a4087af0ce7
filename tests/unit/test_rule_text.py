from __future__ import annotations

import random
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nearcast.eligibility import parse_rule
from nearcast.errors import SpecError

EXAMPLES = [
    "item.countries has query.country",
    "item.advertiser != query.advertiser",
    "item.price <= query.budget * 1.2",
    "item.price >= 0 and item.price < 100 or item.price is null",
    "item.released >= date('2026-01-01') and item.released < query.day + days(28)",
    "item.in_stock and not item.adult",
    "item.id not in query.bought",
    "item.genres overlaps query.genres",
    'item.category in ["books", "music"]',
    "not (item.a == 1 and (item.b == 2 or not item.c))",
    "request.today - item.released <= days(30)",
    '(item.a + item.b) / 2 - -1e-7 * (query."odd name" - 3) > 0',
    "item.flag == true",
    "item.seen >= request.now - hours(1.5)",
    "1 <= item.price <= query.budget * 2 and not 5 > query.age >= item.age > 0",
]
WORDS = [
    *("item", "query", "request", ".", "and", "or", "not", "has", "in", "overlaps", "is", "null", "true", "false"),
    *("date", "days", "(", ")", "[", "]", ",", "==", "!=", "<", "<=", ">", ">=", "+", "-", "*", "/", "1", "2.5"),
    *("1e9", '"a"', "'b'", '"2026-11-25"', "id", "price", "=", "&", "|", "!", ";", "%", "#", "\\", '"', "'", "é", "\0"),
]


def refusal(text, name="r"):
    with pytest.raises(SpecError) as caught:
        parse_rule(name, text)
    return str(caught.value)


def marked(text):
    """The words that the mark of a refusal stands under."""
    _, *_, line, marks = refusal(text).split("\n")
    return line[marks.index("^") : marks.rindex("^") + 1]


def accepted_or_refused(text):
    """The rule of a text, or None where it is refused as rules are refused."""
    try:
        rule = parse_rule("r", text)
    except SpecError as error:
        refused = str(error)
        assert refused.startswith("rule 'r'")
        return None
    assert parse_rule("r", str(rule)) == rule
    assert str(parse_rule("r", str(rule))) == str(rule)
    return rule


@pytest.mark.parametrize("text", EXAMPLES)
def test_a_rule_that_is_printed_and_read_again_is_the_same(text):
    rule = parse_rule("r", text)
    assert parse_rule("r", str(rule)) == rule


def test_and_binds_closer_than_or_and_not_closest():
    assert parse_rule("r", "item.a or item.b and not item.c") == parse_rule("r", "item.a or (item.b and (not item.c))")
    assert parse_rule("r", "(item.a or item.b) and item.c") != parse_rule("r", "item.a or item.b and item.c")


def test_times_binds_closer_than_plus_and_both_go_from_the_left():
    assert parse_rule("r", "item.a - 1 - 2 * 3 < 0") == parse_rule("r", "item.a - 1 - (2 * 3) < 0")
    assert parse_rule("r", "item.a - (1 - 2) < 0") != parse_rule("r", "item.a - 1 - 2 < 0")


def test_columns_may_be_called_like_words_of_the_language():
    rule = parse_rule("r", "item.in in item.and and item.not is not null")
    assert str(rule) == "item.in in item.and and not item.not is null"


def test_columns_with_odd_names_are_quoted():
    assert parse_rule("r", 'item."preis (€)" < 3').tree.left.name == "preis (€)"


def test_both_quotes_mean_a_text_and_a_backslash_keeps_the_next_letter():
    assert parse_rule("r", r"item.a == 'it\'s'") == parse_rule("r", '''item.a == "it's"''')


def test_lines_may_be_broken_anywhere():
    assert parse_rule("r", "item.a\n  and\titem.b") == parse_rule("r", "item.a and item.b")


def test_a_comparison_that_mixes_the_sides_is_put_in_order():
    assert str(parse_rule("r", "query.day - item.released <= days(30)").core) == (
        "-item.released <= -query.day + days(30)"
    )
    assert str(parse_rule("r", "item.price - query.budget < 5 - request.slack").core) == (
        "item.price < query.budget + (5 - request.slack)"
    )


@pytest.mark.parametrize(
    ("text", "words", "way_out"),
    [
        ("itm.price < 3", "itm", "did you mean 'item'"),
        ("item.price = 3", "=", "write =="),
        ("item.price <> 3", ">", "write !="),
        ("price < 3", "price", "item.price, query.price, request.price"),
        ("item.a and item", "item", "for example item.id"),
        ("item.a && item.b", "&", "write and"),
        ("item.a and", None, "ends too early"),
        ("item.a b", "b", "and"),
        ("item.a < 1 < 2", "<", "and"),
        ("1 < item.a > 2", ">", "write 1 < item.a and item.a > 2"),
        ("item.a != 1 != query.a", "!=", "write item.a != 1 and 1 != query.a"),
        ("item.a == null", "null", "VALUE is null"),
        ("item.a != None", "None", "VALUE is not null"),
        ("item.a == True", "True", "write true"),
        ("item.a between 1 and 3", "between", "LOW <= VALUE <= HIGH"),
        ("item.a AND item.b", "AND", "in lower case"),
        ("item.name like 'a%'", "like", "make a column"),
        ("abs(item.a - query.a) < 2", "abs", "-LIMIT <= VALUE <= LIMIT"),
        ("3 < abs(3)", "abs", "-LIMIT <= VALUE <= LIMIT"),
        ("max(item.a, query.b, 3) > 1", "max", "VALUE >= A and VALUE >= B"),
        ("item.a > coalesce(item.b, 0)", "coalesce", "VALUE is null or"),
        ("lower(item.name) == 'x'", "lower", "make a column of it"),
        ("item.a in [abs(3)]", "abs", "-LIMIT <= VALUE <= LIMIT"),
        ("wibble() == item.a", "wibble", "known are date, days, hours"),
        ("date(item.day) < item.a", "item.day", "takes a text"),
        ("item.t < days(item.a)", "item.a", "takes a number"),
        ("item.t < days(1, 2)", "days(1, 2)", "takes a number"),
        ("item.t < days(-3)", "-3", "-days(3)"),
        ("item.name == 'abc", "'", "not closed"),
        ("item.a in []", "[]", "name a value"),
        ("today() < item.a", "today", "request.today"),
        ("dat('2026-11-25') < item.a", "dat", "did you mean 'date'"),
        ("item.a < date('25.11.2026')", "'25.11.2026'", "2026-11-25"),
        ("item.a < date('2026-02-30')", "'2026-02-30'", "2026-11-25"),
        ("item.a < date(20261125)", "20261125", "takes a text"),
        ("item.a < days('x')", "'x'", "takes a number"),
        ("item.a < days(1e300)", "1e300", "at most"),
        ("item.a == 99999999999999999999", "99999999999999999999", "at most 9223372036854775807"),
        ("item.a == 1e999", "1e999", "too large"),
        ("item.price / query.budget < 1", "item.price / query.budget", "item's value on one side"),
        ("item.price * query.x + 1 < 1", "item.price * query.x", "only sums can be taken apart"),
        ("item.a - query.b is null", "item.a - query.b", "write a condition on one"),
        ("item.countries has item.a + query.b", "item.a + query.b", "write a condition on one"),
        ("item.\"\" == 1", 'item.""', "has a name"),
        ("(" * 80 + "item.a" + ")" * 80, None, "nested more than 50"),
        ("not " * 80 + "item.a", None, "nested more than 50"),
        ("-" * 80 + "item.a < 3", None, "nested more than 50"),
    ],
)  # fmt: skip
def test_an_error_points_at_the_word_and_says_the_way_out(text, words, way_out):
    assert way_out in refusal(text)
    assert words is None or marked(text + " ") == words


def test_comparisons_in_a_row_are_joined_by_and():
    assert parse_rule("r", "1 <= item.a <= 3 < query.b") == parse_rule(
        "r", "1 <= item.a and item.a <= 3 and 3 < query.b"
    )
    assert parse_rule("r", "not 1 < item.a < 3") == parse_rule("r", "not (1 < item.a and item.a < 3)")
    assert parse_rule("r", "item.a == query.a == 3") == parse_rule("r", "item.a == query.a and query.a == 3")


def test_the_mark_stands_in_the_line_of_the_word():
    assert refusal("item.a and\n  itm.b and\nitem.c") == (
        "rule 'r': there is no 'itm'; did you mean 'item'?\n    itm.b and\n    ^^^"
    )


def test_an_empty_rule_and_an_endless_one_are_refused():
    assert "it is empty" in refusal("  \n ")
    assert "4005 characters" in refusal("item.a" + " " * 3999)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60))
@example("\ud800")
@example('item.a == "\ud800"')
@example("item.a == '\\")
@example("item.a == ²")
@example("item.a == ٣")
def test_no_text_is_answered_by_anything_but_a_rule_or_our_error(text):
    accepted_or_refused(text)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=25), st.sampled_from(["", " "]))
def test_no_row_of_words_is_answered_by_anything_but_a_rule_or_our_error(words, between):
    accepted_or_refused(between.join(words))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(EXAMPLES), st.integers(0, 2**32))
def test_a_rule_with_a_few_changed_letters_is_a_rule_or_refused(text, seed):
    dice, changed = random.Random(seed), text
    for _ in range(dice.randint(1, 4)):
        place, word = dice.randrange(len(changed) + 1), dice.choice(WORDS)
        before, after = changed[:place], changed[place:]
        anywhere = re.sub(r"\w+", lambda found, word=word: dice.choice([found[0], found[0], word]), changed)
        changed = dice.choice([before + word + after, before + after[1:], before + after[::-1], anywhere])
    accepted_or_refused(changed)
