"""Columns of the metric store, thinning, the picture."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from services.training.handlers.curves_picture import Chart, Line, picture
from services.training.store.metric_columns import Points, join, pack, thin, unpack


def points(steps: list[int], values: list[float], times: list[int] | None = None) -> Points:
    return Points(np.array(steps, np.int64), np.array(times or steps, np.int64), np.array(values, np.float64))


def curve(count: int, seed: int = 0) -> Points:
    """A loss as one looks: falling, with noise."""
    steps = np.arange(count, dtype=np.int64) * 10
    values = 5 * np.exp(-steps / count / 3) + np.random.default_rng(seed).normal(0, 0.1, count)
    return Points(steps, 1_700_000_000_000_000 + steps * 1000, values)


@pytest.mark.parametrize("small", [True, False])
def test_columns_come_back_bit_by_bit(small: bool) -> None:
    values = np.array([1.5, -0.0, math.nan, math.inf, -math.inf, 5e-324, 1.7976931348623157e308])
    assert unpack(pack(values, differences=False, small=small), "<f8", differences=False).tobytes() == values.tobytes()
    steps = np.array([7, 3, 3, 1 << 53, 0], np.int64)
    assert unpack(pack(steps, differences=True, small=small), "<i8", differences=True).tolist() == steps.tolist()
    none = np.empty(0, np.int64)
    assert len(unpack(pack(none, differences=True, small=small), "<i8", differences=True)) == 0


def test_even_steps_and_losses_take_less_room_than_they_are_long() -> None:
    whole = curve(16_384)
    assert len(pack(whole.steps, differences=True, small=False)) < 1_000
    # 6.4 bytes of 8 measured: sign, exponent and first digits are packed, noise is not.
    assert len(pack(whole.values, differences=False, small=False)) < 16_384 * 7


def test_the_last_report_of_a_step_counts() -> None:
    joined = join([points([1, 2, 3, 2], [0.1, 0.2, 0.3, 0.25]), points([3, 4], [0.35, 0.4]), points([1], [9.0])])
    assert joined.steps.tolist() == [1, 2, 3, 4]
    assert joined.values.tolist() == [9.0, 0.25, 0.35, 0.4]


def test_a_thinned_curve_has_the_extremes_of_every_part_and_both_ends() -> None:
    whole = curve(100_000)
    whole.values[12_345], whole.values[77_777] = 50.0, -50.0
    thinned = thin(whole, 1000)
    assert len(thinned) <= 1000
    kept = dict(zip(thinned.steps.tolist(), thinned.values.tolist(), strict=True))
    assert {0, 999_990, 123_450, 777_770} <= kept.keys()
    # 499 parts of equal width, by hand.
    part = (whole.steps * 499) // 1_000_000
    thinned_part = (thinned.steps * 499) // 1_000_000
    for number in (0, 61, 250, 388, 498):
        own = whole.values[part == number]
        mine = thinned.values[thinned_part == number]
        assert (mine.min(), mine.max()) == (own.min(), own.max())


def test_a_thinned_curve_shows_what_is_not_finite() -> None:
    whole = curve(10_000)
    whole.values[5000], whole.values[7000:7100] = math.nan, math.inf
    thinned = thin(whole, 300)
    assert len(thinned) <= 300
    assert math.isnan(thinned.values[thinned.steps.tolist().index(50_000)])
    assert thinned.values[thinned.steps.tolist().index(70_000)] == math.inf
    only = Points(whole.steps, whole.times, np.full(10_000, math.nan))
    assert np.isnan(thin(only, 50).values).all()


def test_a_curve_over_time_has_parts_of_equal_time() -> None:
    """A pause in the middle is a gap, not a part."""
    times = [*range(1000), *range(1_000_000, 1_001_000)]
    whole = points(list(range(2000)), [float(number % 7) for number in range(2000)], times)
    assert len(thin(whole, 100, by_time=True)) <= 8
    assert len(thin(whole, 100)) > 90


def test_few_points_stay_as_they_are() -> None:
    whole = curve(100)
    assert thin(whole, 100) is whole


def test_the_picture_is_well_formed_and_names_its_runs() -> None:
    lines = [Line("a & <b>", [(0, 2.0), (10, math.nan), (20, 1.0)]), Line("c/2", [(0, 100.0), (20, 0.0)])]
    drawn = picture([Chart("sft.loss", lines), Chart("nothing", [])], ["a & <b>", "c/2"], False, True)
    root = ElementTree.fromstring(drawn)
    texts = ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a & <b>", "c/2", "sft.loss, logarithmic", "no values", "20 steps"} <= set(texts)
    # NaN parts the first line in two; zero has no logarithm.
    assert len(re.findall("<polyline", drawn)) == 3
    assert "not finite from 10" in drawn


def test_runs_of_a_picture_differ_in_colour_or_dashes() -> None:
    names = [f"r/{number}" for number in range(20)]
    drawn = picture([Chart("k", [Line(name, [(0, 1.0), (1, 2.0)]) for name in names])], names, True, False)
    assert len(set(re.findall(r"<polyline (stroke='[^']*'(?: stroke-dasharray='[^']*')?)", drawn))) == 20
