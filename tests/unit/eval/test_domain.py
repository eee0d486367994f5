from __future__ import annotations

import random
from math import comb

import pytest

from libs.common.domain import DomainError
from services.eval.domain import evaluations
from services.eval.domain.answers import is_right, masked, masker
from services.eval.domain.evaluations import Leakage, decide
from services.eval.domain.statistics import compare, mcnemar, wilson
from tests.unit.factories import resource_fields


def test_wilson_matches_published_figures() -> None:
    # Newcombe (1998), Statistics in Medicine 17, 857-872, table I, method 3: 81/263 and 15/148.
    share = wilson(81, 263)
    assert (round(share.lower, 4), round(share.upper, 4)) == (0.2553, 0.3662)
    share = wilson(15, 148)
    assert (round(share.lower, 4), round(share.upper, 4)) == (0.0624, 0.1605)
    assert wilson(0, 20).lower == 0.0
    assert round(wilson(0, 20).upper, 4) == 0.1611
    assert wilson(29, 29).upper == 1.0


def test_wilson_covers_the_true_share() -> None:
    """Exact coverage, averaged over shares (Brown, Cai and DasGupta 2001, Statistical Science 16, 101-133)."""
    coverages: list[float] = []
    for percent in range(5, 100, 5):
        p = percent / 100
        inside = [k for k in range(61) if wilson(k, 60).lower <= p <= wilson(k, 60).upper]
        coverages.append(sum(comb(60, k) * p**k * (1 - p) ** (60 - k) for k in inside))
    assert 0.94 < sum(coverages) / len(coverages) < 0.96
    assert min(coverages) > 0.92


def test_mcnemar_is_exact() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 5) == 1.0
    # 2 * P(X <= 1), X ~ B(10, 1/2) = 2 * 11 / 1024
    assert mcnemar(1, 9) == pytest.approx(22 / 1024)
    # The normal approximation for many rows agrees with the exact sum beside its limit.
    assert mcnemar(950, 1051) == pytest.approx(mcnemar(950, 1050), rel=0.15)


def test_a_real_difference_is_seen_and_a_false_one_is_not() -> None:
    generator = random.Random(3)
    better = [generator.random() < 0.6 for _ in range(1000)]
    worse = [generator.random() < 0.4 for _ in range(1000)]
    seen = compare(better, worse, seed=1)
    assert seen.lower > 0.1
    assert seen.upper < 0.3
    assert seen.p_value < 1e-6
    same = compare(better, better, seed=1)
    assert (same.difference, same.lower, same.upper, same.p_value) == (0, 0, 0, 1)


def test_the_bootstrap_agrees_with_resampling_rows() -> None:
    generator = random.Random(11)
    first = [generator.random() < 0.55 for _ in range(400)]
    second = [generator.random() < 0.5 for _ in range(400)]
    rows = list(zip(first, second, strict=True))
    plain = sorted(sum(a - b for a, b in generator.choices(rows, k=400)) / 400 for _ in range(2000))
    fast = compare(first, second, seed=5)
    assert fast.lower == pytest.approx(plain[50], abs=0.012)
    assert fast.upper == pytest.approx(plain[1949], abs=0.012)


@pytest.mark.parametrize(
    ("expected", "actual", "right"),
    [
        ("torch", " Torch.\n", True),
        ("torch", "torchvision", False),
        ("torch", "", False),
        ("", "", False),
        ("a b", "a  b", True),
    ],
)
def test_exact_match(expected: str, actual: str, right: bool) -> None:
    assert is_right(expected, actual) is right


def test_masking_takes_the_longest_word_first() -> None:
    pattern = masker(["sklearn", "scikit", "scikit-learn"])
    assert pattern is not None
    assert masked("Scikit-learn and SKLEARN.svm", pattern) == "<mask> and <mask>.svm"
    assert masker([]) is None


def test_the_gate_needs_the_lower_bound_above_the_margin() -> None:
    majority = wilson(160, 1000)
    open_verdict = decide("release", wilson(480, 1000), majority, 0.1)
    assert open_verdict.open
    assert "0.100" in open_verdict.rule
    shut = decide("release", wilson(280, 1000), majority, 0.1)
    assert not shut.open  # 0.28 is above 0.26, its lower bound is not


def test_the_gate_stays_shut_when_the_model_has_learned_the_test_rows() -> None:
    score, majority = wilson(480, 1000), wilson(160, 1000)
    few, many = Leakage("few", 1000, 4, 6, 0.01), Leakage("many", 1000, 10, 1, 0.011)
    assert decide("release", score, majority, 0.1, [few]).open
    shut = decide("release", score, majority, 0.1, [few, many])
    assert not shut.open
    assert shut.rule.endswith("at most 1% of the test rows in any training version")
    assert "many: 1.10% of the test rows" in shut.reason
    unknown = decide("release", score, majority, 0.1, [Leakage("gone", problem="gone does not exist.")])
    assert not unknown.open
    assert "gone: not compared: gone does not exist." in unknown.reason


def test_life_cycle() -> None:
    evaluation = evaluations.Evaluation(**resource_fields("orgs/acme/evaluations/e"), state="QUEUED")
    with pytest.raises(DomainError) as caught:
        evaluation.move_to("SUCCEEDED")
    assert caught.value.reason == "STATE_CONFLICT"
    evaluation.move_to("RUNNING")
    evaluation.move_to("RUNNING")
    evaluation.move_to("SUCCEEDED")
    with pytest.raises(DomainError):
        evaluation.move_to("RUNNING")
