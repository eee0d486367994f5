"""What the rules change, and what they drop and why."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.dataset.domain.cleaning import DEFAULT_RULES, CleaningRules
from services.dataset.engines.html import strip_html
from services.dataset.engines.personal import find_personal_data, luhn_valid
from services.dataset.engines.rules import Rules, change, comparable, find_fault, normalise, words


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("<p>One</p><p>two &amp; three</p>", "\nOne\n\ntwo & three\n"),
        ("a <b class='x'>bold</b> word<br/>next", "a bold word\nnext"),
        ("<script>if (a < b) x()</script>kept<STYLE>p{}</STYLE><!-- gone --> end", "kept end"),
        ("<class 'int'> and List<int> and a < b > c", "<class 'int'> and List<int> and a < b > c"),
        ("<scripture> stays, <script without an end", "<scripture> stays, <script without an end"),
        ("&lt;b&gt; is a tag", "<b> is a tag"),
        ("İ <b>x</b>", "İ x"),
    ],
)
def test_html(before: str, after: str) -> None:
    assert strip_html(before) == after


@pytest.mark.parametrize("piece", ["<", "<a ", "<!--", "<script", "<script></script", "&", "<!DOCTYPE", "</p"])
def test_html_takes_linear_time(piece: str) -> None:
    started = time.perf_counter()
    strip_html(piece * (1_000_000 // len(piece)))
    assert time.perf_counter() - started < 5.0


@pytest.mark.parametrize("piece", ["a@", "1 ", "1-", "+1 ", "a.", "(123) ", "123-"])
def test_personal_data_takes_linear_time(piece: str) -> None:
    started = time.perf_counter()
    find_personal_data(piece * (300_000 // len(piece)))
    assert time.perf_counter() - started < 5.0


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("write to jane.doe+x@mail.example.co.uk", "an e-mail address"),
        ("card 4111 1111 1111 1111", "a card number with a valid check digit"),
        ("card 4111 1111 1111 1112", None),
        ("call +49 30 901820 today", "a telephone number"),
        ("call (555) 123-4567", "a telephone number"),
        ("手机 13812345678", "a telephone number"),
        ("version 1.2.3-4567, 2026-11-21, 192.168.100.200, id 20261121123456", None),
        ("decorator @property and a @ b", None),
    ],
)
def test_personal_data(text: str, found: str | None) -> None:
    assert find_personal_data(text) == found


def test_luhn() -> None:
    assert luhn_valid("79927398713")
    assert not luhn_valid("79927398710")


def test_normalise() -> None:
    assert normalise(" a \r\nb\t\n\n\n\n  c\u2028e\u0301\x00 ") == "a\nb\n\n  c\né"


@given(st.text(max_size=200))
def test_normalise_and_comparable_are_done_at_once(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)
    assert comparable(comparable(text)) == comparable(text)
    assert comparable(normalise(text)) == comparable(text.replace("\x00", ""))


@pytest.mark.parametrize(
    ("rules", "text", "rule"),
    [
        (Rules(min_chars=3), "ab", "min_chars"),
        (Rules(max_chars=3), "abcd", "max_chars"),
        (Rules(min_words=3), "two words", "min_words"),
        (Rules(min_words=4), "三个字", "min_words"),
        (Rules(min_words=3), "三个字", None),
        (Rules(min_alpha_ratio=0.5), "a 1 2 3", "min_alpha_ratio"),
        (Rules(min_alpha_ratio=0.5), "汉字 1", None),
        (Rules(max_repeated_line_ratio=0.3), "a\nb\na\nc", "max_repeated_line_ratio"),
        (Rules(max_repeated_line_ratio=0.2), "a\nb\nc\nd", None),
        (Rules(max_symbol_ratio=0.1), "one two ... three", "max_symbol_ratio"),
        (Rules(banned_words=("Foo",)), "a foo b", "banned_words"),
        (Rules(banned_words=("foo",)), "a food b", None),
        (Rules(banned_words=("foo bar",)), "a Foo, bar", "banned_words"),
        (Rules(banned_words=("坏词",)), "这是坏词吗", "banned_words"),
        (Rules(drop_personal_data=True), "a@b.org", "drop_personal_data"),
    ],
)
def test_faults(rules: Rules, text: str, rule: str | None) -> None:
    fault = find_fault(text, rules)
    assert (fault[0] if fault else None) == rule
    if fault:
        assert fault[1]


def test_ten_thousand_banned_words_cost_no_more_than_one() -> None:
    rules = Rules(banned_words=tuple(f"bad{number}" for number in range(10_000)))
    text = "good words " * 200
    started = time.perf_counter()
    for _ in range(100):
        assert find_fault(text, rules) is None
    assert time.perf_counter() - started < 2.0


def test_changes_are_named() -> None:
    assert change("<p>a</p>", Rules(strip_html=True, normalise=True)) == ("a", ["strip_html", "normalise"])
    assert change("a", Rules(strip_html=True, normalise=True)) == ("a", [])


def test_words_of_both_kinds_of_scripts() -> None:
    assert words("hello 世界2 naïve") == ["hello", "世", "界", "2", "naïve"]


def test_the_engine_takes_what_the_domain_gives() -> None:
    given_rules = CleaningRules(min_chars=3, banned_words=("a", "b c"))
    assert Rules.from_spec(given_rules.to_json()) == Rules(min_chars=3, banned_words=("a", "b c"))
    assert Rules.from_spec(DEFAULT_RULES.to_json()).near_duplicate_threshold == 0.8
