"""An agent that learns by a policy gradient, in the three kinds of environment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from libs.compute.context import EngineError
from services.training.engines.algorithms.interface import Trained
from services.training.engines.algorithms.policy_gradient import ALGORITHM, advantages
from tests.integration.training.algorithms import (
    Recorder,
    parameters,
    require_cancel,
    require_damage_is_seen,
    require_reports,
    require_reproducible,
    table,
)

_ROWS = table([], columns=("nothing",))
_QUICK = parameters(ALGORITHM, iterations=3, copies=4, horizon=8, batch_size=16, width=8, longest_episode=20)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums of several threads may differ in their last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def balancing() -> tuple[Trained, Recorder]:
    watch = Recorder()
    given = parameters(ALGORITHM, iterations=30, longest_episode=200)
    return ALGORITHM.train(_ROWS, None, given, 5, watch), watch


def test_it_balances_a_pole(balancing: tuple[Trained, Recorder]) -> None:
    results = balancing[0].results
    assert 15 < results["baseline.mean_return"] < 30
    # 177 and 184 with two seeds, and 21 of random pushes.
    assert results["mean_return"] > results["baseline.mean_return"] + 100
    require_reports(balancing[1])


def test_files_give_the_agent_back(balancing: tuple[Trained, Recorder]) -> None:
    agent = ALGORITHM.load(balancing[0].files)
    left, right = agent.predict([[0, 0, -0.1, -0.5], [0, 0, 0.1, 0.5]])
    assert (left["action"], right["action"]) == ("left", "right")
    assert 0.5 <= left["score"] <= 1
    assert agent.predict([]) == []
    for bad in ([1, 2, 3], "up", None, [0, 0, 0, float("nan")]):
        with pytest.raises(EngineError, match="Row 1, column 'input'"):
            agent.predict([bad])
    require_damage_is_seen(ALGORITHM, balancing[0].files)


def test_it_solves_the_world_of_the_textbook() -> None:
    given = parameters(
        ALGORITHM, environment="grid-world", iterations=25, copies=32, horizon=32, longest_episode=100, width=32
    )
    trained = ALGORITHM.train(_ROWS, None, given, 5, Recorder())
    # Russell & Norvig give 0.705 as the utility of the start; a hundred episodes have a standard error of about 0.03.
    assert trained.results["mean_return"] > 0.6
    assert trained.results["baseline.mean_return"] < 0
    agent = ALGORITHM.load(trained.files)
    assert [one["action"] for one in agent.predict(["0,0", "0,1", "0,2"])] == ["right"] * 3
    with pytest.raises(EngineError, match="not a state"):
        agent.predict(["9,9"])


def test_a_table_of_transitions_is_an_environment() -> None:
    transitions = ["lobby, stairs, roof, 1, 0.4", "lobby, lift, roof, 0.5, 1", "lobby, lift, stuck, 0.5, -1"]
    given = {**_QUICK, "environment": "table", "transitions": transitions, "iterations": 40, "learning_rate": 0.02}
    results = ALGORITHM.train(_ROWS, None, given, 5, Recorder()).results
    assert results["mean_return"] == pytest.approx(0.4)
    assert results["baseline.mean_return"] < 0.35
    with pytest.raises(EngineError, match=r"of 'lift' in 'lobby' are 0\.5 in sum"):
        ALGORITHM.train(_ROWS, None, {**given, "transitions": transitions[:2]}, 5, Recorder())


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("map", ["S.", "..."], "not a rectangle"),
        ("map", ["S?G"], "not a rectangle of S"),
        ("map", ["S.."], "a goal"),
        ("map", ["SSG"], "one start"),
        ("transitions", [], "two actions are needed"),
        ("transitions[1]", ["a, x, b, 1, 0", "a, y, b, 1"], "not state, action"),
        ("transitions[0]", ["a, x, b, 2, 0"], "a probability is within 0 and 1"),
    ],
)
def test_what_is_no_environment_is_named(field: str, value: Any, said: str) -> None:
    environment, name = "grid-world" if field == "map" else "table", field.split("[")[0]
    with pytest.raises(EngineError, match=said) as refused:
        ALGORITHM.train(_ROWS, None, {**_QUICK, "environment": environment, name: value}, 1, Recorder())
    assert refused.value.reason == "INVALID_FIELD"
    assert refused.value.metadata == {"field": field}


def test_one_seed_one_model() -> None:
    require_reproducible(ALGORITHM, _ROWS, _QUICK)


def test_it_can_be_cancelled() -> None:
    require_cancel(ALGORITHM, _ROWS, _QUICK)


def test_advantages_end_with_their_episode() -> None:
    # Three steps of one copy, discount 0.5, lambda 0.95; the second ends an episode.
    rewards, values = np.array([[1.0], [1.0], [1.0]]), np.array([[0.5], [0.5], [0.5]])
    following = np.array([[0.5], [9.0], [2.0]])
    ended = np.array([[False], [True], [False]])
    found = advantages(rewards, values, following, ended, ended, 0.5)
    assert found[:, 0] == pytest.approx([0.75 + 0.475 * 0.5, 0.5, 1.5])
    # An episode that was only cut off has a value behind it.
    cut = advantages(rewards, values, following, np.zeros_like(ended), ended, 0.5)
    assert cut[:, 0] == pytest.approx([0.75 + 0.475 * 5.0, 5.0, 1.5])
