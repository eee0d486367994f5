"""Formulas of the built-in algorithms, on values from by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from services.training.engines.algorithms.average_precision import (
    Boxes,
    average_precision,
    mean_average_precision,
    overlaps,
    suppressed,
)
from services.training.engines.algorithms.edit_distance import character_error_rate, edit_distance
from services.training.engines.algorithms.environments import CartPole, tabular_of, transitions_of
from services.training.engines.algorithms.grams import bag, grams_of
from services.training.engines.algorithms.mel import filters, log_mel, to_hertz, to_mel
from services.training.engines.algorithms.ranking import mean_reciprocal_rank, ranks, recall_at_1
from services.training.engines.algorithms.word_tags import (
    BEGIN,
    END,
    MIDDLE,
    SINGLE,
    best_tags,
    f1,
    longest_match,
    tags_of,
    words_of,
)


def boxes(*rows: tuple[float, float, float, float, int, float]) -> Boxes:
    """Left, top, right, bottom, label, score of each."""
    given = np.array(rows, float).reshape(-1, 6)
    return Boxes(given[:, :4], given[:, 4].astype(int), given[:, 5])


def test_overlaps() -> None:
    one = np.array([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    other = np.array([[1.0, 0.0, 3.0, 2.0], [5.0, 5.0, 6.0, 6.0], [0.0, 0.0, 0.0, 0.0]])
    assert overlaps(one, other).tolist() == [[pytest.approx(1 / 3), 0, 0], [0, 0, 0]]


def test_average_precision() -> None:
    # Right, wrong, right, and one of three objects is never found: precisions 1, 2/3 at recalls 1/3, 2/3.
    scores, hits = np.array([0.9, 0.8, 0.7]), np.array([True, False, True])
    assert average_precision(scores, hits, 3) == pytest.approx((1 + 2 / 3) / 3)
    # A later precision that is higher counts at the lower recalls too.
    assert average_precision(scores, np.array([False, True, True]), 2) == pytest.approx(2 / 3)
    assert average_precision(np.zeros(0), np.zeros(0, bool), 2) == 0


def test_mean_average_precision_hits_an_object_once_and_averages_classes() -> None:
    right = [boxes((0, 0, 10, 10, 0, 1), (20, 20, 30, 30, 1, 1)), boxes()]
    found = [boxes((0, 0, 10, 9, 0, 0.9), (0, 0, 10, 10, 0, 0.8)), boxes((1, 1, 5, 5, 0, 0.95))]
    # Class 0: wrong, right, wrong (the object is taken): 1/2. Class 1: 0.
    assert mean_average_precision(found, right) == pytest.approx(0.25)
    assert mean_average_precision(right, right) == 1
    assert mean_average_precision([boxes()], [boxes()]) == 0


def test_suppression_keeps_the_best_of_a_class() -> None:
    kept = suppressed(
        boxes((0, 0, 10, 10, 0, 0.5), (0, 0, 10, 9, 0, 0.9), (0, 0, 10, 9, 1, 0.7), (50, 0, 60, 9, 0, 0.1))
    )
    assert kept.scores.tolist() == [0.9, 0.7, 0.1]


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("汉字", "汉子", 1), ("", "", 0)],
)
def test_edit_distance(one: str, other: str, distance: int) -> None:
    assert edit_distance(one, other) == distance


def test_character_error_rate() -> None:
    assert character_error_rate([("12", "123"), ("9", "9")]) == 0.25
    assert character_error_rate([("", "1234")]) == 1


def test_mel_scale() -> None:
    assert to_mel(np.array([0.0, 700.0])) == pytest.approx([0, 2595 * math.log10(2)])
    assert to_hertz(to_mel(np.array([440.0]))) == pytest.approx([440])


def test_mel_filters_are_triangles_that_meet() -> None:
    bank = filters(4, 4001, 8000)
    assert bank.shape == (4, 4001)
    peaks = to_hertz(np.linspace(0, 2595 * math.log10(1 + 4000 / 700), 6))[1:-1]
    assert bank.argmax(axis=1) == pytest.approx(peaks, abs=1)
    assert bank.max(axis=1) == pytest.approx([1, 1, 1, 1], abs=0.01)
    # Between the first and the last peak, what falls and what rises are 1 together.
    inner = bank[:, int(peaks[0]) + 1 : int(peaks[-1])]
    assert inner.sum(axis=0) == pytest.approx(np.ones(inner.shape[1]), abs=1e-5)


def test_log_mel_of_a_tone_is_highest_in_its_band() -> None:
    time = np.arange(8000) / 8000
    spectrum = log_mel(np.sin(2 * np.pi * 1000 * time).astype(np.float32), 20, 8000)
    assert spectrum.shape == (98, 20)
    corners = to_hertz(np.linspace(0, to_mel(np.array(4000.0)), 22))
    assert set(spectrum.argmax(axis=1)) == {int(np.abs(corners[1:-1] - 1000).argmin())}


def test_tags_and_words() -> None:
    words = ["我", "喜欢", "图书馆", "中华人民"]
    tags = tags_of(words)
    assert tags == [SINGLE, BEGIN, END, BEGIN, MIDDLE, END, BEGIN, MIDDLE, MIDDLE, END]
    assert words_of("".join(words), tags) == words
    assert words_of("ab", [BEGIN, MIDDLE]) == ["ab"]


def test_best_tags_make_whole_words() -> None:
    # Each character by itself would be B, B: that leaves a word without an end.
    scores = np.log(np.array([[0.6, 0.1, 0.1, 0.2], [0.5, 0.1, 0.3, 0.1]]))
    assert best_tags(scores) == [BEGIN, END]
    assert best_tags(np.log(np.array([[0.9, 0.05, 0.04, 0.01]]))) == [SINGLE]


def test_longest_match_and_f1() -> None:
    words = frozenset(["研究", "研究生", "生命", "起源"])
    assert longest_match("研究生命起源", words, 3) == ["研究生", "命", "起源"]
    # One of three found words is right, of three.
    assert f1([(["研究生", "命", "起源"], ["研究", "生命", "起源"])]) == pytest.approx(1 / 3)
    assert f1([(["研究", "生命"], ["研究", "生命"])]) == 1


def test_ranks() -> None:
    rank = ranks(np.array([[0.9, 0.5, 0.1], [0.5, 0.5, 0.9], [0.1, 0.2, 0.3]]), np.array([0, 1, 2]))
    assert rank.tolist() == [1, 3, 1]
    assert recall_at_1(rank) == pytest.approx(2 / 3)
    assert mean_reciprocal_rank(rank) == pytest.approx((1 + 1 / 3 + 1) / 3)


def test_grams() -> None:
    assert grams_of("Ab") == ["<ab>", "<", "a", "b", ">", "<a", "ab", "b>", "<ab", "ab>", "<ab>"]
    assert np.linalg.norm(bag("a b", 64)) == pytest.approx(1)


def test_a_push_from_rest() -> None:
    # push / mass = 9.0909, fall = -9.0909 / (0.5 (4/3 - 1/11)) = -14.6341, drive = 9.0909 + 0.05 * 14.6341 / 1.1.
    after, reward, ended = CartPole().step(np.random.default_rng(1), np.zeros((1, 4)), np.array([1]))
    assert after[0] == pytest.approx([0, 0.02 * 9.75610, 0, -0.02 * 14.63415], abs=1e-6)
    assert (reward.tolist(), ended.tolist()) == ([1.0], [False])
    tilted = np.array([[0, 0, 0.21, 0], [2.41, 0, 0, 0]])
    assert CartPole().step(np.random.default_rng(1), tilted, np.array([0, 0]))[2].all()


def test_a_map_goes_where_it_should_four_times_of_five() -> None:
    world = tabular_of(transitions_of(["SG"]))
    random = np.random.default_rng(1)
    states = world.begin(random, 10_000)
    after, rewards, ended = world.step(random, states, np.full(10_000, world.actions.index("right")))
    assert ended.mean() == pytest.approx(0.8, abs=0.015)
    assert set(np.round(rewards, 2)) == {0.96, -0.04}
    # In the goal nothing happens any more.
    assert world.step(random, after[ended], np.zeros(ended.sum(), int))[1].sum() == 0
