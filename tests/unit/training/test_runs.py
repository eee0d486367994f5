"""Runs: states, parameters, the filter, divergence."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from libs.common.domain import DomainError
from services.training.domain.divergence import OnDivergence, begins_to_diverge, bound, has_diverged
from services.training.domain.run_filter import Comparison, Ordering, microseconds, parse_filter, parse_order
from services.training.domain.runs import RunState, parameters, require
from services.training.domain.spec import TrainingSpec
from services.training.domain.trainings import TrainingRun
from services.training.store.run_search import terms_of
from tests.unit.factories import resource_fields
from tests.unit.training.samples import tiny_spec


def run(state: str = "RUNNING", number: int = 1, **fields: object) -> TrainingRun:
    name = f"orgs/acme/trainings/packages/runs/{number}"
    return TrainingRun(**{**resource_fields(name), "spec": tiny_spec(), "state": state, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wish", "states"),
    [
        ("paused", {RunState.QUEUED, RunState.RUNNING}),
        ("resumed", {RunState.PAUSED}),
        ("retried", {RunState.FAILED, RunState.CANCELLED}),
    ],
)
def test_what_may_be_asked_in_which_state(wish: str, states: set[RunState]) -> None:
    for state in RunState:
        if state in states:
            require(run(state), wish)
            continue
        with pytest.raises(DomainError) as refused:
            require(run(state), wish)
        assert refused.value.reason == "STATE_CONFLICT"
        assert f"is {state.lower()}; only a" in refused.value.message


def test_parameters_have_the_names_of_phases() -> None:
    found = parameters(run(dataset_version="orgs/acme/datasets/d/versions/1"))
    assert found["dataset_version"] == "orgs/acme/datasets/d/versions/1"
    assert "validation_version" not in found
    assert found["spec.sft.learning_rate"] == 0.01
    assert found["spec.pretrain.method"] == "pretrain"
    assert found["spec.architecture.layers"] == 1.0
    assert found["spec.on_divergence"] == "alert"
    assert found["spec.sft.answers"] == '["bank", "ship", "zoo"]'


def test_specs_from_before_alert() -> None:
    old = tiny_spec().to_json()
    del old["on_divergence"]
    assert TrainingSpec.from_json(old).on_divergence is OnDivergence.ALERT
    stops = replace(tiny_spec(), on_divergence=OnDivergence.STOP)
    assert TrainingSpec.from_json(stops.to_json()) == stops


def test_a_filter() -> None:
    text = (
        "state = failed AND training=orgs/acme/trainings/packages  AND labels.team != 'n \\'l\\' p' AND "
        'results.sft.last_loss<1.2 AND spec.sft.learning_rate >= 1e-4 AND spec.sft.text_column = "5" AND '
        "create_time > 2026-01-02T00:00:00Z"
    )
    assert parse_filter(text) == [
        Comparison("state", "=", "FAILED"),
        Comparison("training", "=", "packages"),
        Comparison("labels.team", "!=", "n 'l' p"),
        Comparison("results.sft.last_loss", "<", 1.2),
        Comparison("spec.sft.learning_rate", ">=", 1e-4),
        Comparison("spec.sft.text_column", "=", "5"),
        Comparison("create_time", ">", microseconds(datetime(2026, 1, 2, tzinfo=UTC))),
    ]
    assert parse_filter("  ") == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("colour = red", "at character 1: there is no field 'colour'"),
        ("state = FAILED OR state = RUNNING", "at character 16: expected AND, found 'OR state = RUNNING'"),
        ("state FAILED", "at character 7: expected one of = != < <= > >=, found 'FAILED'"),
        ("state = ", "at character 9: expected a value"),
        ("state = BROKEN", "at character 9: 'BROKEN' is no state; there are QUEUED, RUNNING"),
        ("state < FAILED", "at character 7: state is text, which has = and != only"),
        ("results.loss < low", "at character 16: results.loss is a number, and 'low' is none"),
        ("results.loss < nan", "at character 16"),
        ("spec.method > abc", "at character 13: spec.method is text"),
        ("create_time > soon", "at character 15: 'soon' is not a time"),
        ("state = FAILED AND", "at character 16: expected AND"),
        ("= 5", "at character 1: expected a field, found '= 5'"),
        ("(state = FAILED)", "at character 1: expected a field"),
        (" AND ".join(["results.x < 1"] * 21), "more than 20 comparisons"),
    ],
)
def test_a_filter_that_cannot_be_read_says_where(text: str, problem: str) -> None:
    with pytest.raises(DomainError) as refused:
        parse_filter(text)
    assert (refused.value.reason, refused.value.metadata) == ("INVALID_FIELD", {"field": "filter"})
    assert problem in refused.value.message


def test_an_order() -> None:
    assert parse_order("") == Ordering("create_time", True)
    assert parse_order("results.sft.last_loss") == Ordering("results.sft.last_loss", False)
    assert parse_order("spec.seed desc") == Ordering("spec.seed", True)
    for text in ("state", "results.x down", "results.x desc desc", "labels.a"):
        with pytest.raises(DomainError, match="order_by"):
            parse_order(text)


def test_terms_are_salted_with_the_organization() -> None:
    """The table of terms has no tenants: the same label elsewhere must be another term."""
    labels, results = {"team": "red"}, {"sft.last_loss": 0.5, "broken": math.nan}
    ours = terms_of(run(labels=labels, results=results))
    theirs = terms_of(
        TrainingRun(
            **resource_fields("orgs/rival/trainings/packages/runs/1"),
            spec=tiny_spec(),
            state="RUNNING",
            labels=labels,
            results=results,
        )
    )
    assert len(ours) == len(theirs) > 30
    assert not ours.keys() & theirs.keys()
    assert 0.5 in ours.values()
    assert all(math.isfinite(value) for value in ours.values())


def losses(count: int, seed: int = 3) -> list[float]:
    """A loss as one looks: falling, with noise."""
    choose = random.Random(seed)
    return [4 * math.exp(-step / 60) + 1 + choose.gauss(0, 0.08) for step in range(count)]


def test_a_usual_loss_never_diverges() -> None:
    for seed in range(20):
        usual = losses(300, seed)
        assert not any(has_diverged(usual[: end + 1]) for end in range(len(usual)))


def test_a_jump_that_stays_is_divergence_and_a_peak_is_not() -> None:
    usual = losses(200)
    assert not has_diverged([*usual, 9.0, 9.0])
    assert not has_diverged([*usual, 9.0, 1.1, 9.0])
    assert has_diverged([*usual, 9.0, 9.5, 10.0])
    assert has_diverged([*usual, math.nan, math.inf, math.nan])


def test_an_episode_is_told_once() -> None:
    jumped = losses(200) + [9.0] * 10
    told = [end for end in range(len(jumped)) if begins_to_diverge(jumped[: end + 1])]
    assert told == [202]


def test_a_bound_needs_a_history_and_some_room() -> None:
    assert bound(losses(19)) == math.inf
    # A loss that stands still: five hundredths above it.
    assert bound([2.0] * 30) == pytest.approx(2.1)
