"""What the rules change, and what they drop and why."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.dataset.domain.recipes import read_recipe
from services.dataset.engines.html import strip_html
from services.dataset.engines.personal import find_personal_data, luhn_valid
from services.dataset.engines.recipe import Recipe
from services.dataset.engines.rules import Banned, comparable, normalise, words


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
    started = time.process_time()
    strip_html(piece * (1_000_000 // len(piece)))
    assert time.process_time() - started < 5.0


@pytest.mark.parametrize("piece", ["a@", "1 ", "1-", "+1 ", "a.", "(123) ", "123-"])
def test_personal_data_takes_linear_time(piece: str) -> None:
    started = time.process_time()
    find_personal_data(piece * (300_000 // len(piece)))
    assert time.process_time() - started < 5.0


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


def applied(operator: str, text: str, **parameters: Any) -> tuple[str, str | None]:
    """The text after one operator, and why it went."""
    recipe = read_recipe({"steps": [{operator: parameters}]}).to_json()
    done = Recipe.compile(recipe).apply([text])
    fault = done.faults.get(0)
    return done.texts[0], None if fault is None else fault.reason


@pytest.mark.parametrize(
    ("operator", "parameters", "text", "reason"),
    [
        ("length", {"min_chars": 3}, "ab", "2 characters, at least 3 wanted"),
        ("length", {"min_chars": 0, "max_chars": 3}, "abcd", "4 characters, at most 3 wanted"),
        ("length", {"min_chars": None, "max_chars": None}, "", None),
        ("words", {"min_words": 3}, "two words", "2 words, at least 3 wanted"),
        ("words", {"min_words": 4}, "三个字", "3 words, at least 4 wanted"),
        ("words", {"min_words": 3}, "三个字", None),
        ("words", {"min_words": 0, "max_words": 2}, "one two three", "3 words, at most 2 wanted"),
        ("letters", {"min_share": 0.5}, "a 1 2 3", "0.25 of the characters are letters, at least 0.5 wanted"),
        ("letters", {"min_share": 0.5}, "汉字 1", None),
        ("repeated_line", {"max_share": 0.3}, "a\nb\na\nc", "0.5 of the lines are the same, at most 0.3 wanted"),
        ("repeated_line", {"max_share": 0.2}, "a\nb\nc\nd", None),
        ("symbols", {"max_per_word": 0.1}, "one two ... three", "0.3333 symbols a word, at most 0.1 wanted"),
        ("line_lengths", {"min_mean": 5}, "ab\ncd", "2.5 characters a line, at least 5 wanted"),
        (
            "line_lengths",
            {"min_mean": 0, "min_longest": 3},
            "ab\ncd",
            "2 characters in the longest line, at least 3 wanted",
        ),
        ("special_characters", {}, "a+b=1", "0.6 of the characters are special, at most 0.25 wanted"),
        ("special_characters", {}, "汉字", None),
        ("banned_words", {"words": ["Foo"]}, "a foo b", "has 'foo'"),
        ("banned_words", {"words": ["foo"]}, "a food b", None),
        ("banned_words", {"words": ["foo bar"]}, "a Foo, bar", "has 'foo bar'"),
        ("banned_words", {"words": ["坏词"]}, "这是坏词吗", "has '坏 词'"),
        ("personal_data", {"action": "drop"}, "a@b.org", "has an e-mail address"),
        ("languages", {"keep": ["zh"]}, "港务长为每一艘晚归的船点着一盏灯，他把船的名字写在一本书里。", None),
        ("languages", {"keep": ["EN", "zh"]}, "The harbour master keeps a lamp lit for every ship that is late.", None),
    ],
)
def test_reasons(operator: str, parameters: dict[str, Any], text: str, reason: str | None) -> None:
    assert applied(operator, text, **parameters) == (text, reason)


def test_other_languages_go() -> None:
    german = "Der Hafenmeister lässt für jedes Schiff, das sich verspätet, eine Lampe brennen."
    assert str(applied("languages", german, keep=["en", "zh"])[1]).startswith("is de (")
    assert "probability of de, at least 1 wanted" in str(
        applied("languages", german, keep=["de"], min_probability=1)[1]
    )


def test_personal_data_is_masked() -> None:
    text = "write to a.b@c.org, call +49 30 901820, pay with 4111 1111 1111 1111 and not 4111 1111 1111 1112"
    masked = "write to <email>, call <telephone>, pay with <card> and not 4111 1111 1111 1112"
    assert applied("personal_data", text) == (masked, None)
    assert find_personal_data(masked) is None


def test_ten_thousand_banned_words_cost_no_more_than_one() -> None:
    banned = Banned([f"bad{number}" for number in range(10_000)])
    text = "good words " * 200
    started = time.process_time()
    for _ in range(100):
        assert banned.fault(text) is None
    assert time.process_time() - started < 2.0


def test_changes_are_named_and_shown() -> None:
    recipe = Recipe.compile(read_recipe({"steps": ["html", "normalise"]}).to_json())
    done = recipe.apply(["<p>a</p>", "a"])
    assert (done.texts, done.changes) == (["a", "a"], {0: ["html", "normalise"]})
    assert [(change.before, change.after) for change in done.examples["html"]] == [("<p>a</p>", "\na\n")]


def test_words_of_both_kinds_of_scripts() -> None:
    assert words("hello 世界2 naïve") == ["hello", "世", "界", "2", "naïve"]
