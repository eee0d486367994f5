"""Token buckets by a clock that the test moves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.domain.buckets import Bucket


def test_a_full_bucket_bursts_and_then_refills_evenly():
    bucket = Bucket(60, 0.0)
    assert [bucket.take(1, 0.0) for _ in range(60)] == [0.0] * 60
    assert bucket.take(1, 0.0) == pytest.approx(1.0)
    assert bucket.take(1, 1.0) == 0.0
    assert bucket.remaining(1.0) == 0
    assert bucket.reset(1.0) == pytest.approx(60.0)


def test_settling_may_leave_less_than_nothing():
    bucket = Bucket(100, 0.0)
    assert bucket.take(50, 0.0) == 0.0
    bucket.settle(100, 0.0)
    assert bucket.remaining(0.0) == 0
    assert bucket.take(1, 0.0) == pytest.approx(51 * 0.6)
    bucket.settle(-1000, 0.0)
    assert bucket.remaining(0.0) == 100


def test_more_than_the_bucket_holds_passes_when_it_is_full():
    bucket = Bucket(10, 0.0)
    assert bucket.take(25, 0.0) == 0.0
    assert bucket.take(1, 0.0) == pytest.approx(96.0)


def test_a_new_limit_keeps_what_was_spent():
    bucket = Bucket(100, 0.0)
    bucket.take(80, 0.0)
    bucket.resize(200, 0.0)
    assert bucket.remaining(0.0) == 120
    bucket.resize(50, 0.0)
    assert bucket.remaining(0.0) == 0


def test_a_clock_that_stands_or_goes_back_gives_nothing():
    bucket = Bucket(60, 10.0)
    bucket.take(60, 10.0)
    assert bucket.remaining(5.0) == 0


def test_no_allowance_is_no_bucket():
    with pytest.raises(ValueError, match="positive"):
        Bucket(0, 0.0)


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(1, 40)), max_size=60), st.integers(1, 120))
def test_never_more_passes_than_one_minute_holds_and_brings(takes, per_minute):
    bucket, now, passed = Bucket(per_minute, 0.0), 0.0, 0
    for pause, amount in takes:
        now += pause
        if amount <= per_minute and bucket.take(amount, now) == 0.0:
            passed += amount
    assert passed <= per_minute + now * per_minute / 60 + 1e-6
