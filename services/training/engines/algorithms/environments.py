"""Environments of an agent: each steps many copies of itself at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from libs.compute.context import EngineError
from services.training.engines.algorithms.interface import Json

Array = np.ndarray

# States of a table at most: probabilities are kept for every state, action and next state.
_MOST_STATES = 500
# Of a table of chances: 80 MB in memory.
_MOST_CELLS = 10_000_000
# Russell & Norvig, Artificial Intelligence, section "Sequential decision problems": a step costs 0.04 and goes where it
# should four times of five, else to one of the two sides; the goal gives 1, a pit takes 1.
_STEP, _STRAIGHT, _ASIDE = -0.04, 0.8, 0.1
_ENDS = {"G": 1.0, "X": -1.0}
_MOVES = {"up": (-1, 0), "right": (0, 1), "down": (1, 0), "left": (0, -1)}


@dataclass(frozen=True)
class Transition:
    """Where an action may lead, with what chance and what reward."""

    state: str
    action: str
    after: str
    chance: float
    reward: float


class Environment(Protocol):
    """What an agent acts in.

    Attributes:
        actions: their names.
        features: numbers of an observation.
    """

    actions: tuple[str, ...]
    features: int

    def begin(self, random: np.random.Generator, count: int) -> Array:
        """States in which episodes begin, [count, ...]."""
        ...

    def step(self, random: np.random.Generator, states: Array, actions: Array) -> tuple[Array, Array, Array]:
        """The next states, the rewards float[n], and whether the episodes ended there, bool[n]."""
        ...

    def observe(self, states: Array) -> Array:
        """What the agent sees, float32[n, features]."""
        ...

    def state_of(self, given: Any) -> Array:
        """The state that somebody names; ValueError with what is expected where it is none."""
        ...


class CartPole:
    """A pole on a cart, which is pushed to the left or to the right and gives 1 for each step that the pole stands.

    Barto, Sutton & Anderson, 1983, with their constants: a cart of 1 kg, a pole of 0.1 kg and 1 m, pushes of 10 N,
    steps of 0.02 s by Euler's method; without friction. It is over at 12 degrees or 2.4 m.
    """

    actions: tuple[str, ...] = ("left", "right")
    features = 4

    _gravity, _cart, _pole, _half, _force, _seconds = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
    _edge, _tilt = 2.4, 12 * math.pi / 180
    # Position, speed, angle, angular speed: what the first and third reach at most, and what is usual of the others.
    _scale = np.array([_edge, 2.0, _tilt, 2.0])

    def begin(self, random: np.random.Generator, count: int) -> Array:
        return random.uniform(-0.05, 0.05, (count, 4))

    def step(self, random: np.random.Generator, states: Array, actions: Array) -> tuple[Array, Array, Array]:
        _, speed, angle, turning = states.T
        mass = self._cart + self._pole
        push = np.where(actions == 1, self._force, -self._force) + self._pole * self._half * turning**2 * np.sin(angle)
        fall = (self._gravity * np.sin(angle) - np.cos(angle) * push / mass) / (
            self._half * (4 / 3 - self._pole * np.cos(angle) ** 2 / mass)
        )
        drive = (push - self._pole * self._half * fall * np.cos(angle)) / mass
        after = states + self._seconds * np.stack([speed, drive, turning, fall], axis=1)
        ended = (np.abs(after[:, 0]) > self._edge) | (np.abs(after[:, 2]) > self._tilt)
        return after, np.ones(len(states)), ended

    def observe(self, states: Array) -> Array:
        return (states / self._scale).astype(np.float32)

    def state_of(self, given: Any) -> Array:
        state = np.asarray(given, float)
        if state.shape != (4,) or not np.isfinite(state).all():
            raise ValueError("not four numbers: position in m, speed, angle in rad, angular speed")
        return state


class Tabular:
    """A Markov decision process as a table.

    Args:
        states: names; episodes begin in the first.
        actions: names.
        chances: of the next state, float[states, actions, states].
        rewards: on the way to it, likewise.
        final: states in which an episode ends, bool[states].
    """

    def __init__(
        self, states: Sequence[str], actions: Sequence[str], chances: Array, rewards: Array, final: Array
    ) -> None:
        self.actions = tuple(actions)
        self.features = len(states)
        self._numbers = {state: number for number, state in enumerate(states)}
        self._limits = chances.cumsum(axis=2)
        self._rewards, self._final = rewards, final

    def begin(self, random: np.random.Generator, count: int) -> Array:
        return np.zeros(count, np.int64)

    def step(self, random: np.random.Generator, states: Array, actions: Array) -> tuple[Array, Array, Array]:
        drawn = random.random((len(states), 1))
        # Sums of chances may end a rounding below 1.
        after = np.minimum((self._limits[states, actions] <= drawn).sum(axis=1), self.features - 1)
        return after, self._rewards[states, actions, after], self._final[after]

    def observe(self, states: Array) -> Array:
        return np.eye(self.features, dtype=np.float32)[states]

    def state_of(self, given: Any) -> Array:
        if given not in self._numbers:
            raise ValueError(f"not a state; there are {', '.join(list(self._numbers)[:20])}")
        return np.array(self._numbers[given])


def environment_of(parameters: Json) -> Environment:
    """The environment that parameters describe.

    Raises:
        EngineError: INVALID_FIELD, the map or the transitions make none.
    """
    match parameters["environment"]:
        case "cart-pole":
            return CartPole()
        case "grid-world":
            return tabular_of(transitions_of(parameters["map"]))
        case _:
            return tabular_of(_transitions(parameters["transitions"]))


def tabular_of(transitions: Sequence[Transition]) -> Tabular:
    """The process that transitions make; episodes begin in the first state and end in those that lead nowhere.

    Raises:
        EngineError: INVALID_FIELD, there is one action only, or the probabilities of one in a state are not 1 in sum.
    """
    states = list(dict.fromkeys(state for one in transitions for state in (one.state, one.after)))
    actions = list(dict.fromkeys(one.action for one in transitions))
    if len(actions) < 2 or len(states) > _MOST_STATES:
        raise _bad("transitions", f"two actions are needed, and at most {_MOST_STATES} states are taken")
    shape = (len(states), len(actions), len(states))
    if math.prod(shape) > _MOST_CELLS:
        raise _bad("transitions", f"states x actions x states must be at most {_MOST_CELLS:,}")
    chances, rewards = np.zeros(shape), np.zeros(shape)
    for one in transitions:
        place = states.index(one.state), actions.index(one.action), states.index(one.after)
        chances[place] += one.chance
        rewards[place] = one.reward
    final = chances.sum(axis=(1, 2)) == 0
    sums = chances.sum(axis=2)
    for state, action in np.argwhere(~final[:, None] & (np.abs(sums - 1) > 1e-6)):
        what = (
            f"the probabilities of {actions[action]!r} in {states[state]!r} are {sums[state, action]:g} in sum, not 1"
        )
        raise _bad("transitions", what)
    chances[final, :, final] = 1
    return Tabular(states, actions, chances, rewards, final)


def transitions_of(rows: Sequence[str]) -> list[Transition]:
    """The transitions of a map: `S` start, `.` free, `#` wall, `G` goal, `X` pit. States are `row,column` from 0.

    Raises:
        EngineError: INVALID_FIELD, it is no rectangle, has other signs, or not one start and a goal.
    """
    cells = {(row, column): sign for row, line in enumerate(rows) for column, sign in enumerate(line)}
    signs = list(cells.values())
    if len({len(line) for line in rows}) != 1 or not set(signs) <= set("S.#GX"):
        raise _bad("map", "not a rectangle of S, '.', #, G and X")
    if signs.count("S") != 1 or "G" not in signs:
        raise _bad("map", "one start (S) and a goal (G) are needed")
    return [
        _way(cells, place, action, move, chance)
        for place, sign in sorted(cells.items(), key=lambda cell: cell[1] != "S")
        if sign in "S."
        for action, (down, right) in _MOVES.items()
        for move, chance in (((down, right), _STRAIGHT), ((right, down), _ASIDE), ((-right, -down), _ASIDE))
    ]


def _way(
    cells: dict[tuple[int, int], str], place: tuple[int, int], action: str, move: tuple[int, int], chance: float
) -> Transition:
    """One way that an action may go; into a wall, or out of the map, it stays where it is."""
    after = (place[0] + move[0], place[1] + move[1])
    if cells.get(after, "#") == "#":
        after = place
    reward = _STEP + _ENDS.get(cells[after], 0.0)
    return Transition(f"{place[0]},{place[1]}", action, f"{after[0]},{after[1]}", chance, reward)


def _transitions(lines: Sequence[str]) -> list[Transition]:
    """Lines of `state, action, next state, probability, reward`."""
    found = []
    for number, line in enumerate(lines):
        parts = [part.strip() for part in line.split(",")]
        try:
            state, action, after = parts[:3]
            chance, reward = (float(part) for part in parts[3:])
        except ValueError as error:
            raise _bad(f"transitions[{number}]", "not state, action, next state, probability, reward") from error
        if not 0 <= chance <= 1 or not math.isfinite(reward):
            raise _bad(f"transitions[{number}]", "a probability is within 0 and 1, and a reward is finite")
        found.append(Transition(state, action, after, chance, reward))
    return found


def _bad(field: str, what: str) -> EngineError:
    return EngineError("INVALID_FIELD", f"{field}: {what}.", field=field)
