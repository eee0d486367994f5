"""Rules of searches: paths, spaces, grids, rungs, plans, the picture."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest

from libs.common.domain import DomainError, Needs
from services.training.domain.halving import goes_on, rung_shares, rung_step
from services.training.domain.search_space import Dimension, Kind, Space
from services.training.domain.searches import (
    EarlyStopping,
    HyperparameterSearch,
    Objective,
    SearchMethod,
    SearchPlan,
    Trial,
    TrialState,
    best_of,
)
from services.training.domain.spec_paths import read, with_values
from services.training.handlers.search_picture import picture
from services.training.handlers.search_report import report
from tests.unit.factories import resource_fields
from tests.unit.training.samples import tiny_spec

DOCUMENT = {**tiny_spec().to_json(), "parameters": {"max_depth": 3}, "adapter": None}
RATE = Dimension("phases[1].learning_rate", Kind.LOG_UNIFORM, 1e-4, 1e-2)
DECAY = Dimension("phases[0].weight_decay", Kind.UNIFORM, 0.0, 0.2)
BATCH = Dimension("phases[0].batch_size", Kind.INTEGER, 8, 24, step=8)
LAYERS = Dimension("architecture.layers", Kind.CATEGORICAL, choices=(1, 2))


def plan(*dimensions: Dimension, **fields: Any) -> SearchPlan:
    usual: dict[str, Any] = {
        "method": SearchMethod.TPE,
        "objective": Objective("sft.heldout_loss_after"),
        "max_trials": 20,
    }
    return SearchPlan(space=Space(dimensions or (RATE,)), **{**usual, **fields})


def test_the_largest_trial_has_the_largest_of_all_numbers() -> None:
    wide = Dimension("architecture.hidden_size", Kind.CATEGORICAL, choices=(32, 64))
    column = Dimension("phases[0].text_column", Kind.CATEGORICAL, choices=("a", "b"))
    spec = tiny_spec(workers=3)
    largest = plan(RATE, BATCH, wide, column).largest(spec)
    assert (largest.workers, largest.architecture.hidden_size, largest.phases[0].batch_size) == (1, 64, 24)
    assert largest.phases[0].text_column == spec.phases[0].text_column
    # One worker a trial, whatever the training has.
    needs = plan(max_parallel=2, max_seconds=60.0).needs(
        tiny_spec(workers=3, threads_per_worker=2), {"memory_bytes": 5, "storage_bytes": 7}
    )
    assert needs == Needs(cpus=4, gpus=0, memory_bytes=10, seconds=60, storage_bytes=7)


@pytest.mark.parametrize(
    ("path", "value"),
    [("phases[1].learning_rate", 0.01), ("architecture.layers", 1), ("parameters.max_depth", 3), ("seed", 7)],
)
def test_paths_reach_single_values(path: str, value: float) -> None:
    assert read(DOCUMENT, path, "f") == value
    changed = with_values(DOCUMENT, {path: 5})
    assert read(changed, path, "f") == 5
    assert read(DOCUMENT, path, "f") == value


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("phases[1].learning_rte", "phases[1] has no 'learning_rte'; it has answer_column, answers, batch_size,"),
        ("phases[2].steps", "phases has 2 entries, numbered from 0"),
        ("phases.steps", "phases is a list"),
        ("optimiser.beta", "the specification has no 'optimiser'; it has adapter, architecture"),
        ("architecture", "is a group of heads, hidden_size"),
        ("architecture[0]", "architecture is a group of heads"),
        ("seed.x", "seed is a single value"),
        ("adapter.rank", "adapter is not set"),
        ("phases[1].answers", "is a list; only single values can be searched"),
    ],
)
def test_a_wrong_path_is_told_what_there_is(path: str, message: str) -> None:
    with pytest.raises(DomainError) as caught:
        read(DOCUMENT, path, "search.space[3].path")
    assert message in caught.value.message
    assert f"names {path}" in caught.value.message
    assert caught.value.metadata["field"] == "search.space[3].path"


def test_dimensions_take_their_values() -> None:
    assert RATE.at(0.5) == pytest.approx(1e-3)
    assert DECAY.at(0.25) == pytest.approx(0.05)
    assert [BATCH.at(share) for share in (0, 0.34, 0.99)] == [8, 16, 24]
    assert [LAYERS.at(share) for share in (0, 0.5)] == [1, 2]
    for dimension in (RATE, DECAY, BATCH, LAYERS):
        for share in (0.0, 0.3, 0.999):
            assert dimension.contains(dimension.at(share))
            assert 0 <= dimension.position(dimension.at(share)) <= 1
    assert not BATCH.contains(12)
    assert not RATE.contains(0.5)


def test_grid_has_every_combination_with_the_ends_as_written() -> None:
    space = Space((RATE, BATCH))
    grid = space.grid()
    assert len(grid) == space.grid_size == 9
    assert [point[BATCH.path] for point in grid[:3]] == [8, 16, 24]
    rates = [point[RATE.path] for point in grid[::3]]
    assert rates == [1e-4, pytest.approx(1e-3), 1e-2]
    assert Space((BATCH, LAYERS)).size == 6
    assert space.size is None


def test_a_latin_hypercube_has_a_point_in_every_stratum() -> None:
    space = Space((RATE, DECAY))
    points = [space.stratified(4, number, 8) for number in range(8)]
    for dimension in space.dimensions:
        strata = sorted(int(dimension.position(point[dimension.path]) * 8) for point in points)
        assert strata == list(range(8))
    assert points == [space.stratified(4, number, 8) for number in range(8)]
    assert points != [space.stratified(5, number, 8) for number in range(8)]


def test_own_values_are_a_point_only_inside_the_space() -> None:
    assert Space((RATE,)).point_of(DOCUMENT) == {RATE.path: 0.01}
    assert Space((replace(RATE, high=0.005),)).point_of(DOCUMENT) is None


@pytest.mark.parametrize(
    ("dimension", "field", "message"),
    [
        (replace(RATE, low=0.0), "search.space[0].log_uniform.low", "above 0"),
        (replace(RATE, low=1e-2), "search.space[0].log_uniform", "low below high"),
        (replace(BATCH, high=8), "search.space[0].integer", "low below high"),
        (replace(LAYERS, choices=(1, 1)), "search.space[0].categorical", "twice"),
        (replace(LAYERS, choices=(1, 1.5)), "search.space[0].categorical", "a whole number"),
        (replace(LAYERS, choices=(1, "x")), "search.space[0].categorical", "a whole number"),
        (replace(LAYERS, kind=Kind.UNIFORM, low=1, high=4), "search.space[0].uniform", "a whole number"),
        (replace(RATE, path="phases[0].text_column"), "search.space[0].log_uniform", "is text"),
        (replace(LAYERS, path="phases[0].text_column"), "search.space[0].categorical", "is text"),
        (replace(BATCH, path="workers"), "search.space[0].path", "sets itself"),
    ],
)
def test_impossible_dimensions(dimension: Dimension, field: str, message: str) -> None:
    with pytest.raises(DomainError) as caught:
        plan(dimension).check(tiny_spec(), heldout=True, based=False)
    assert caught.value.metadata["field"] == field
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("wrong", "field", "message"),
    [
        ({"objective": Objective("sft.accuracy")}, "search.objective.result", "sft.heldout_exact_match_after"),
        ({"max_trials": 0}, "search.budget.max_trials", "must be set"),
        ({"method": SearchMethod.GRID, "max_trials": 2}, "search.budget.max_trials", "3 points of the grid"),
        (
            {"early_stopping": EarlyStopping(), "objective": Objective("sft.tokens_per_second", True)},
            "search.early_stopping",
            "known while a trial runs",
        ),
    ],
)
def test_impossible_plans(wrong: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(DomainError) as caught:
        plan(**wrong).check(tiny_spec(), heldout=True, based=False)
    assert caught.value.metadata["field"] == field
    assert message in caught.value.message


def test_plan_knows_its_limits() -> None:
    with pytest.raises(DomainError, match="a second time"):
        plan(RATE, RATE).check(tiny_spec(), heldout=True, based=False)
    with pytest.raises(DomainError, match="must be a figure of the training"):
        plan().check(tiny_spec(), heldout=False, based=False)
    with pytest.raises(DomainError, match="comes from the base model"):
        plan(LAYERS).check(tiny_spec(), heldout=True, based=True)
    wide = replace(BATCH, low=1, high=501, step=1)
    with pytest.raises(DomainError, match="at most 500 can be tried"):
        plan(wide, method=SearchMethod.GRID, max_trials=501).check(tiny_spec(), heldout=True, based=False)


def test_plan_and_trial_survive_json() -> None:
    whole = plan(RATE, LAYERS, early_stopping=EarlyStopping(4, 0.25), max_parallel=2, max_seconds=3.5, seed=9)
    assert SearchPlan.from_json(whole.to_json()) == whole
    trial = Trial(3, {RATE.path: 1e-3}, TrialState.PRUNED, rungs=(1.0, 2.0), message="why")
    assert Trial.from_json(trial.to_json()) == trial


def test_rungs_are_a_factor_apart() -> None:
    assert rung_shares(1 / 9, 3) == pytest.approx([1 / 9, 1 / 3])
    assert rung_shares(0.25, 2) == [0.25, 0.5]
    assert [rung_step(share, 90) for share in rung_shares(1 / 9, 3)] == [10, 30]
    assert rung_step(1 / 9, 2) == 1


@pytest.mark.parametrize(
    ("value", "others", "maximize", "expected"),
    [
        (9.0, [], False, True),
        (2.0, [1.0, 3.0], False, False),
        (1.0, [1.0, 3.0], False, True),
        (2.0, [1.0, 3.0, 4.0, 5.0, 6.0], False, True),
        (3.5, [1.0, 3.0, 4.0, 5.0, 6.0], False, False),
        (3.0, [1.0, 2.0], True, True),
        (1.5, [1.0, 2.0], True, False),
    ],
)
def test_one_of_three_goes_on_and_always_the_best(
    value: float, others: list[float], maximize: bool, expected: bool
) -> None:
    assert goes_on(value, others, 3, maximize) is expected


def finished(values: list[float]) -> list[Trial]:
    chance = random.Random(0)
    space = Space((RATE, LAYERS))
    return [
        Trial(number, space.random(chance), TrialState.FINISHED, value=value, end_seconds=10.0 - number)
        for number, value in enumerate(values)
    ]


def test_best_is_the_first_of_equals() -> None:
    trials = [*finished([3.0, 1.0, 1.0]), Trial(3, {}, TrialState.FAILED)]
    low, high = best_of(trials, Objective("x")), best_of(trials, Objective("x", maximize=True))
    assert (low and low.number, high and high.number) == (1, 0)
    assert best_of(trials[3:], Objective("x")) is None


def search_of(trials: list[Trial]) -> HyperparameterSearch:
    search = HyperparameterSearch(
        **resource_fields("orgs/acme/searches/rates"),
        plan=plan(RATE, LAYERS),
        spec=tiny_spec(),
        importances={RATE.path: 0.75, LAYERS.path: 0.25},
    )
    search.saw(trials)
    return search


def test_report_tells_history_by_time_and_lines_by_trial() -> None:
    trials = [*finished([3.0, 1.0, 2.0]), Trial(3, {RATE.path: 1e-3, LAYERS.path: 1}, TrialState.PRUNED)]
    found = report(search_of(trials), trials)
    # They ended in the opposite order.
    assert [(point.number, point.best) for point in found.history] == [(2, 2.0), (1, 1.0), (0, 1.0)]
    assert [line.number for line in found.lines] == [0, 1, 2]
    assert all(0 <= position <= 1 for line in found.lines for position in line.positions)
    assert list(found.axes[1].choices) == ["1", "2"]
    assert found.axes[0].logarithmic
    assert dict(found.states) == {"FINISHED": 3, "PRUNED": 1}


def test_picture_is_drawn_of_any_state() -> None:
    trials = finished([3.0, 1.0, 2.0])
    search = search_of(trials)
    drawn = ElementTree.fromstring(picture(search, report(search, trials)))
    space = "{http://www.w3.org/2000/svg}"
    assert len(drawn.findall(f"{space}circle")) == 3
    # Each trial, and the best so far; the best trial stands out too.
    lines = drawn.findall(f"{space}polyline")
    assert len(lines) == 4
    assert sum(line.get("class") == "best" for line in lines) == 2
    words = " ".join(word.text or "" for word in drawn.iter(f"{space}text"))
    assert "rates: sft.heldout_loss_after (lowest is best), 3 finished" in words
    assert f"{RATE.path} 75%" in words
    empty = picture(search_of([]), report(search_of([]), []))
    assert "no trials yet" in ElementTree.fromstring(empty).find(f"{space}text").text  # type: ignore[union-attr, operator]
