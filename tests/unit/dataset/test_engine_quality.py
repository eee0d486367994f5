"""The filters for pages, beside their definitions in plain Python."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.dataset.domain.recipes import read_recipe
from services.dataset.engines.recipe import Recipe
from services.dataset.engines.repetition import Runs, covered_chars, duplicate_run_chars, top_run_chars
from services.dataset.engines.rules import words
from services.dataset.engines.word_table import hash_of, word_table

PROSE = (
    "The harbour master keeps a lamp lit for every ship that is late, and he writes its name into a book with care. "
    "To be sure that no one is missed, the keepers of the two towers look out to sea by turns through the whole night. "
    "What they have seen is told to the watch in the morning, when the boats with fish come back from the banks."
)
TEXTS = st.lists(
    st.lists(st.sampled_from(["a", "bb", "ccc", "7", "字", "naïve", "x_y", "-", "\n"]), max_size=40).map(" ".join),
    min_size=1,
    max_size=6,
)


def applied(operator: str, text: str, language: str = "en", **parameters: Any) -> tuple[str, str | None]:
    """The text after one operator, and why it went."""
    recipe = read_recipe({"language": language, "steps": [{operator: parameters}]}).to_json()
    done = Recipe.compile(recipe).apply([text])
    fault = done.faults.get(0)
    return done.texts[0], None if fault is None else fault.reason


@given(TEXTS)
def test_the_table_has_the_words(texts: list[str]) -> None:
    table = word_table(texts)
    expected = [word for text in texts for word in words(text)]
    assert table.counts.tolist() == [len(words(text)) for text in texts]
    assert table.chars.tolist() == [len(word) for word in expected]
    assert table.letters.tolist() == [any(map(str.isalpha, word)) for word in expected]
    assert table.hashes.tolist() == [hash_of(word) for word in expected]
    assert table.sums(table.chars).tolist() == [sum(map(len, words(text))) for text in texts]


@settings(max_examples=200)
@given(TEXTS, st.integers(1, 5))
def test_runs_are_counted_as_their_definitions_say(texts: list[str], n: int) -> None:
    table = word_table(texts)
    listed = [words(text) for text in texts]
    grams = [[" ".join(one[at : at + n]) for at in range(len(one) - n + 1)] for one in listed]
    counted = Runs(table.hashes, table.first, n)
    assert np.bincount(counted.texts, counted.counts, minlength=len(texts)).tolist() == [len(one) for one in grams]
    assert sorted(counted.counts.tolist()) == sorted(count for one in grams for count in Counter(one).values())
    # most_common gives the first of equals.
    top = [Counter(one).most_common(1)[0] if one else ("", 0) for one in grams]
    assert top_run_chars(table, n).tolist() == [len(gram) * count for gram, count in top]
    expected = [duplicate_chars(one, n) for one in listed]
    bounds = [slice(table.first[at], table.first[at + 1]) for at in range(len(texts))]
    assert [duplicate_run_chars(table.hashes[part], table.chars[part], n) for part in bounds] == expected
    assert all(most >= found for most, found in zip(covered_chars(table, n).tolist(), expected, strict=True))


def duplicate_chars(listed: list[str], n: int) -> int:
    """Characters in runs of n words that came before, as datatrove reads arXiv 2112.11446."""
    seen: set[str] = set()
    found = at = 0
    while at < len(listed) - n + 1:
        gram = " ".join(listed[at : at + n])
        if gram in seen:
            found += sum(map(len, listed[at : at + n]))
            at += n
        else:
            seen.add(gram)
            at += 1
    return found


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (PROSE, None),
        ("word " * 20, "20 words, at least 50 wanted"),
        (PROSE.replace(" ", " a b c d ") * 2, "characters a word, at least 3 wanted"),
        (" ".join(["the incomprehensibilities"] * 30), "characters a word, at most 10 wanted"),
        (PROSE + " #" * 20, "hash signs a word"),
        (PROSE + " ..." * 20, "ellipses a word"),
        ("\n".join(f"- {sentence}" for sentence in PROSE.split(",")), "begin with a bullet"),
        (PROSE.replace(",", "…\n"), "end with an ellipsis"),
        (PROSE + " 12345" * 40, "of the words have a letter"),
        (" ".join(f"harbour{at} master{at}" for at in range(40)), "0 stop words, at least 2 wanted"),
    ],
)
def test_gopher_quality(text: str, reason: str | None) -> None:
    given_reason = applied("gopher_quality", text)[1]
    assert given_reason is None if reason is None else reason in str(given_reason)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (PROSE, None),
        ("one line\ntwo lines\none line\none line\nfour", "of the lines came before"),
        ("one\n\none\n\none\n\nfour five", "of the paragraphs came before"),
        (f"{'long ' * 30}\nb\nc\nd\n{'long ' * 30}", "of the characters are in lines that came before"),
        (" ".join(f"ab cd {at:04}" for at in range(60)), "most frequent run of 2 words"),
        (f"{PROSE} {PROSE}", "in runs of 5 words that came before"),
        ("", None),
    ],
)
def test_gopher_repetition(text: str, reason: str | None) -> None:
    given_reason = applied("gopher_repetition", text)[1]
    assert given_reason is None if reason is None else reason in str(given_reason)


def test_c4_keeps_sentences_only() -> None:
    page = "\n".join(
        [
            "Home | News | About",
            "The lamp burns all night.[1][edit]",
            "Please enable JavaScript to see this page.",
            "We use cookies to make this page better.",
            "Not much.",
            "It is told to the watch. He writes it down! Who reads it?",
            "It goes on...",
            f"{'x' * 1001} is a long word.",
            "And this is the fifth sentence.",
        ]
    )
    kept = "\n".join(
        [
            "The lamp burns all night.",
            "It is told to the watch. He writes it down! Who reads it?",
            "And this is the fifth sentence.",
        ]
    )
    assert applied("c4_quality", page) == (kept, None)
    assert applied("c4_quality", page, min_sentences=6)[1] == "5 sentences, at least 6 wanted"
    assert applied("c4_quality", f"{page}\nA {{ is no prose here.")[1] == "has a curly bracket"
    assert applied("c4_quality", f"{page}\nLorem ipsum dolor sit amet.")[1] == "has 'lorem ipsum'"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (PROSE, None),
        ("\n".join(["a line without an end that is long enough"] * 9), "end with a terminal mark"),
        ("\n".join(f"Short {at}." for at in range(9)), "of the lines are short"),
        ("\n".join([PROSE, PROSE[:80], PROSE[:80], f"{PROSE[:70]}."]), "repeat a line"),
        ("\n\n\n".join(f"Incomprehensibilities-everywhere{at}." for at in range(9)), "line breaks a word"),
        (" \n ", "no line"),
    ],
)
def test_fineweb_quality(text: str, reason: str | None) -> None:
    given_reason = applied("fineweb_quality", text)[1]
    assert given_reason is None if reason is None else reason in str(given_reason)


def test_chinese_pages_have_their_own_marks() -> None:
    sentence = "港务长为每一艘晚归的船点着一盏灯，他把船的名字写在一本书里。"
    others = (
        "两座塔上的看守整夜轮流望着大海，这样就不会错过任何一艘船了。\n"
        "早上渔船回来的时候，他们把看到的事情都告诉了值班的人。"
    )
    menu = "首页\n新闻\n使用条款和隐私政策请看这里。"
    page = f"{menu}\n{sentence}\n{others}"
    assert applied("c4_quality", page, "zh", min_sentences=3, min_words_per_line=5)[0] == f"{sentence}\n{others}"
    assert applied("gopher_quality", f"{sentence}\n{others}", "zh", min_mean_word=None)[1] is None
    assert "stop words" in str(applied("gopher_quality", "船灯海塔人书夜望晚归港务" * 9, "zh", min_mean_word=None)[1])
    assert applied("fineweb_quality", f"{sentence}\n{others}", "zh", short_line_chars=15)[1] is None


def repetition_by_definition(text: str, n: int) -> float:
    """As Data-Juicer computes the measure of arXiv 2303.03915."""
    counts = sorted(Counter(text[at : at + n] for at in range(len(text) - n + 1)).values(), reverse=True)
    if not counts:
        return 0.0
    taken = min(int(np.sqrt(len(counts))), len(counts) - counts.count(1))
    return sum(counts[:taken]) / sum(counts)


@given(st.text(alphabet="abé字", max_size=60), st.integers(1, 4), st.sampled_from([0.05, 0.2, 0.5, 0.9]))
def test_character_repetition(text: str, run: int, limit: float) -> None:
    dropped = applied("character_repetition", text, run=run, max_share=limit)[1] is not None
    assert dropped == (repetition_by_definition(text, run) > limit)


def test_word_repetition() -> None:
    text = " ".join(f"w{at}" for at in range(10)) + " a b c " + " ".join(f"w{at}" for at in range(10))
    assert applied("word_repetition", text, run=3, max_share=0.7)[1] == (
        "0.7619 of the runs of 3 words come again, at most 0.7 wanted"
    )
    assert applied("word_repetition", text, run=3, max_share=0.8)[1] is None
